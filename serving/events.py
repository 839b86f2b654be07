"""What happens to nodes in a run: slow-downs and failures, told by a timetable.

``slow``: the GPU's work of every iteration that starts from ``at_s`` on and before ``until_s``
takes ``factor`` times as long, in picoseconds rounded to the nearest; an iteration that is under
way when the window opens or closes keeps its length.

``fail``: from ``at_s`` on a node computes nothing. Iterations under way then are lost, those that
end at that very moment are not. The router learns of it ``detected_after_s`` later, or when the
node is back if that is earlier, and has sent requests there until then; all that are there lose
their KV cache and their tokens and go back to the router, which sends them on at once. The node
takes requests again, with nothing cached, ``start_up_s`` after ``until_s``. While the router knows
of no node that is up, requests wait. At one moment iterations end first, then failures are
noticed, nodes come back and nodes fail (by node), and then requests arrive.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.picoseconds import LONGEST_S, PS
from lengthwise.serving.listed import SUFFIXES, read_list

NEVER_PS = 2**62  # after all that any run does
MOST = 1e6  # of a factor
LEAST_S = 1e-3  # of what is drawn at random
SHIFT = 20  # factors are whole multiples of 2 ** -SHIFT, so that both engines stretch alike

Window = tuple[int, int, int]  # from and until, ps, and a factor x 2 ** SHIFT


@dataclass(frozen=True)
class Slow:
    """A node's iterations take ``factor`` times as long from ``at_s`` to ``until_s``.

    ``node`` is a place from 0, or a name that one node has; without ``until_s`` it lasts.
    """

    node: int | str
    at_s: float = 0.0
    until_s: float | None = None
    factor: float = 2.0
    kind: ClassVar[str] = "slow"

    def __post_init__(self) -> None:
        _check_times(self)
        if not _is_number(self.factor) or not 1 <= self.factor <= MOST:
            raise InputError(
                f"{said(self)}: factor must be a number from 1 to {MOST:g}, not {self.factor!r}"
            )

    @property
    def ends_ps(self) -> int:
        """When it is over."""
        return NEVER_PS if self.until_s is None else round(self.until_s * PS)


@dataclass(frozen=True)
class Fail:
    """A node is down from ``at_s`` until ``start_up_s`` after ``until_s``, or for good without it.

    ``detected_after_s``: until the router knows.
    """

    node: int | str
    at_s: float = 0.0
    until_s: float | None = None
    detected_after_s: float = 0.0
    start_up_s: float = 0.0
    kind: ClassVar[str] = "fail"

    def __post_init__(self) -> None:
        _check_times(self)
        for name in ("detected_after_s", "start_up_s"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= LONGEST_S:
                raise InputError(
                    f"{said(self)}: {name} must be a number from 0 to {LONGEST_S:g}, not {value!r}"
                )

    @property
    def ends_ps(self) -> int:
        """When the node takes requests again."""
        if self.until_s is None:
            return NEVER_PS
        return round(self.until_s * PS) + round(self.start_up_s * PS)

    @property
    def noticed_ps(self) -> int:
        """When the router knows."""
        return min(_begins_ps(self) + round(self.detected_after_s * PS), self.ends_ps)


Event = Slow | Fail
KINDS: dict[str, type[Event]] = {Slow.kind: Slow, Fail.kind: Fail}
# What a timetable tells, in the order in which it happens at one moment; LOST: fails and is noticed
NOTICE, UP, FAIL, LOST = 0, 1, 2, 3
Turn = tuple[int, int, int]  # a time in ps, one of these, and a node
EventsLike = str | Path | Sequence[Event | Mapping[str, Any]]


def said(event: Event) -> str:
    """What messages call it."""
    return f"{event.kind} of node {event.node!r} at {event.at_s!r} s"


def stretched(duration_ps: int, factor: int) -> int:
    """A duration times a factor that is given x 2 ** SHIFT, rounded half up."""
    rest = (duration_ps & ((1 << SHIFT) - 1)) * factor + (1 << (SHIFT - 1))
    return (duration_ps >> SHIFT) * factor + (rest >> SHIFT)


def place_of(node: int | str, names: Sequence[str]) -> int:
    """The place of the node that is called so; ``names`` are the nodes', "" where one has none.

    Raises ``UnknownNameError`` for no such node, ``InputError`` for a name that several have.
    """
    if isinstance(node, int | np.integer) and not isinstance(node, bool):
        if 0 <= node < len(names):
            return int(node)
    elif isinstance(node, str):
        places = [place for place, name in enumerate(names) if name == node != ""]
        if len(places) > 1:
            raise InputError(
                f"{len(places)} nodes are called {node!r}: name one by its place, "
                f"{', '.join(map(str, places[:4]))}{' ...' if len(places) > 4 else ''}"
            )
        if places:
            return places[0]
        if node.isascii() and node.isdigit() and int(node) < len(names):
            return int(node)
    known = [*dict.fromkeys(name for name in names if name), *map(str, range(len(names)))]
    raise UnknownNameError("node of an event", str(node), known)


def check_events(events: Sequence[Event], names: Sequence[str]) -> None:
    """Raises ``InputError`` for events that a system of these nodes can't have."""
    windows: dict[tuple[str, int], list[Event]] = {}
    for event in events:
        if not isinstance(event, tuple(KINDS.values())):
            raise InputError(f"an event must be one of {', '.join(KINDS)}, not {event!r}"[:200])
        windows.setdefault((event.kind, place_of(event.node, names)), []).append(event)
    for found in windows.values():
        found.sort(key=_begins_ps)
        for first, second in pairwise(found):
            if _begins_ps(second) < first.ends_ps:
                raise InputError(f"{said(second)}: it overlaps the one at {first.at_s!r} s")
    lost = {place for (kind, place), found in windows.items()
            if kind == Fail.kind and found[-1].ends_ps == NEVER_PS}  # fmt: skip
    if len(lost) == len(names):
        raise InputError(
            "every node fails and never comes back: requests could wait for ever; give one of them "
            "until_s"
        )


def slow_windows(events: Sequence[Event], names: Sequence[str]) -> tuple[tuple[Window, ...], ...]:
    """When each node is slow, in order, and how much."""
    found: list[list[Window]] = [[] for _ in names]
    for event in sorted(events, key=_begins_ps):
        if isinstance(event, Slow):
            window = _begins_ps(event), event.ends_ps, round(event.factor * 2**SHIFT)
            found[place_of(event.node, names)].append(window)
    return tuple(map(tuple, found))


def turns(events: Sequence[Event], names: Sequence[str]) -> tuple[Turn, ...]:
    """The timetable of failures, in order."""
    found: list[Turn] = []
    for event in events:
        if isinstance(event, Fail):
            at_ps, place = _begins_ps(event), place_of(event.node, names)
            if event.noticed_ps == at_ps:
                found.append((at_ps, LOST, place))
            else:
                found += [(at_ps, FAIL, place), (event.noticed_ps, NOTICE, place)]
            if event.ends_ps < NEVER_PS:
                found.append((event.ends_ps, UP, place))
    return tuple(sorted(found))


def downtime_ps(events: Sequence[Event], until_ps: int) -> int:
    """How long nodes are down up to a moment, summed over nodes."""
    return sum(
        max(0, min(event.ends_ps, until_ps) - _begins_ps(event))
        for event in events
        if isinstance(event, Fail)
    )


@dataclass(frozen=True)
class RandomEvents:
    """Failures and slow-downs of nodes at random, each node's independent of the others'.

    A node fails ``fail_every_s`` after it came back, on average, for ``fail_for_s`` on average
    (both exponential, the usual model of mean times to failure and to repair), and the router
    learns of it ``detected_after_s`` later. It slows down ``slow_every_s`` after the last time,
    for ``slow_for_s`` (averages too), by a factor that is uniform from 1 to ``slow_factor``.
    Without a time between, that does not happen.
    """

    fail_every_s: float | None = None
    fail_for_s: float = 30.0
    detected_after_s: float = 1.0
    slow_every_s: float | None = None
    slow_for_s: float = 30.0
    slow_factor: float = 3.0

    def __post_init__(self) -> None:
        for name in ("fail_every_s", "fail_for_s", "slow_every_s", "slow_for_s"):
            value = getattr(self, name)
            if value is None and name.endswith("every_s"):
                continue
            if not _is_number(value) or not LEAST_S <= value <= LONGEST_S:
                raise InputError(
                    f"{name} must be a number from {LEAST_S:g} to {LONGEST_S:g}, not {value!r}"
                )
        Fail(0, detected_after_s=self.detected_after_s)
        Slow(0, factor=self.slow_factor)

    @classmethod
    def of(cls, given: RandomEvents | Mapping[str, Any]) -> RandomEvents:
        """From plain data; raises ``UnknownNameError`` for unknown keys."""
        if isinstance(given, RandomEvents):
            return given
        if not isinstance(given, Mapping):
            raise InputError(f"failures must be keys and values, not {given!r}"[:200])
        keys = [field.name for field in fields(cls)]
        for key in given:
            if key not in keys:
                raise UnknownNameError("key of failures", str(key), keys)
        return cls(**given)

    def draw(self, rng: np.random.Generator, nodes: int, span_s: float) -> tuple[Event, ...]:
        """What happens to ``nodes`` nodes in a run of about ``span_s``; all come back."""
        found: list[Event] = []
        for node in range(nodes):
            for at, until in _windows(rng, self.fail_every_s, self.fail_for_s, span_s):
                found.append(Fail(node, at, until, self.detected_after_s))
            for at, until in _windows(rng, self.slow_every_s, self.slow_for_s, span_s):
                found.append(Slow(node, at, until, float(rng.uniform(1, self.slow_factor))))
        return tuple(found)


def _windows(
    rng: np.random.Generator, every_s: float | None, for_s: float, span_s: float
) -> list[tuple[float, float]]:
    """Windows that begin before ``span_s``, with exponential lengths and times between."""
    found: list[tuple[float, float]] = []
    if every_s is None:
        return found
    at_s = float(rng.exponential(every_s))
    while at_s < span_s:
        until_s = min(at_s + max(float(rng.exponential(for_s)), LEAST_S), LONGEST_S)
        found.append((at_s, until_s))
        at_s = until_s + max(float(rng.exponential(every_s)), LEAST_S)
    return found


def read_events(given: EventsLike | None) -> tuple[Event, ...]:
    """Events that were made, or written to a YAML, JSON or CSV file: a list with the keys
    ``kind``, ``node`` and those of that kind. Raises ``InputError`` for what can't be read,
    ``UnknownNameError`` for unknown keys and kinds.
    """
    if given is None:
        return ()
    where, rows = "events", list[Any]()
    if isinstance(given, str | Path):
        where = os.fspath(given)
        if not where.endswith(SUFFIXES):
            raise InputError(f"events are read from {', '.join(SUFFIXES)} files, not {where!r}")
        rows = read_list(Path(where), "events")
    elif isinstance(given, Sequence):
        rows = list(given)
    else:
        raise InputError(f"events must be a file or a sequence, not {given!r}"[:200])
    return tuple(_read(row, f"event {index} in {where}") for index, row in enumerate(rows))


def _read(row: Any, where: str) -> Event:
    if isinstance(row, Slow | Fail):
        return row
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: expected the keys and values of an event, not {row!r}"[:200])
    given = dict(row)
    kind = str(given.pop("kind", ""))
    if kind not in KINDS:
        raise UnknownNameError(f"kind of {where}", kind, KINDS)
    keys = [field.name for field in fields(KINDS[kind])]
    for key in given:
        if key not in keys:
            raise UnknownNameError(f"key of {where} ({kind})", str(key), ("kind", *keys))
    for key in ("node", "at_s"):
        if key not in given:
            raise InputError(f"{where}: it needs {key}")
    try:
        return KINDS[kind](**given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _begins_ps(event: Event) -> int:
    return round(event.at_s * PS)


def _check_times(event: Event) -> None:
    if not _is_number(event.at_s) or not 0 <= event.at_s <= LONGEST_S:
        raise InputError(
            f"{said(event)}: at_s must be a number from 0 to {LONGEST_S:g}, not {event.at_s!r}"
        )
    if event.until_s is None:
        return
    if not _is_number(event.until_s) or not 0 <= event.until_s <= LONGEST_S:
        raise InputError(
            f"{said(event)}: until_s must be a number from 0 to {LONGEST_S:g}, or left out for "
            f"ever, not {event.until_s!r}"
        )
    if round(event.until_s * PS) <= _begins_ps(event):
        raise InputError(f"{said(event)}: until_s must come after it, not {event.until_s!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
