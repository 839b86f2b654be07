"""Runs of the fast engine by the dozen, stepped together: what vector environments stand on.

``Many`` holds E environments, each with episodes that were prepared for it, and one call of
machine code a step (``steps.step_many``). What a run changes lies in one block a place, so that an
episode begins anew by copying it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, InvariantError
from lengthwise.exact import symlog
from lengthwise.features import FEATURES
from lengthwise.prediction import Predictions
from lengthwise.serving.fast import state as ks
from lengthwise.serving.fast.calls import ScoreCalls
from lengthwise.serving.fast.compiler.build import compiled
from lengthwise.serving.fast.features import ACCESSORS, mask
from lengthwise.serving.fast.run import (
    begin_run,
    flags_of,
    numbered,
    raise_for,
    records_of,
    supports,
    totals_of,
)
from lengthwise.serving.fast.setup import grow, with_rows
from lengthwise.serving.fast.shown import FAR, SITUATION
from lengthwise.serving.inputs import Inputs
from lengthwise.serving.records import Records
from lengthwise.serving.system import Node, System, Totals
from lengthwise.workload import Workload

Kind = Literal["route", "admit", "preempt"]
KINDS: dict[Kind, int] = {"route": ks.ROUTE, "admit": ks.ADMIT, "preempt": ks.PREEMPT}
READ: dict[Kind, tuple[str, ...]] = {"route": ("waiting_requests",), "admit": (), "preempt": ()}
TRIES = 10  # episodes drawn until one leaves a choice
# What a run writes before it reads it needs no copy; all that is neither in this list nor in the
# next one is part of an episode's block.
SCRATCH = (
    "log", "rows", "out", "stash", "ends", "heap", "stale", "watched", "candidate", "acting",
    "words", "glance", "hit", "places", "lost",
)  # fmt: skip
CONSTANT = (
    "node", "decode_ps", "mixed_ps", "decode_context_ps", "mixed_launch_ps", "planned", "reach_ps",
    "prompt", "output", "predicted", "curve", "curve_data", "curve_row", "limit", "priority",
    "deadline", "tenant", "weight", "share", "ahead", "think", "first_child", "sibling", "roots",
    "hashes", "chain", "chain_at", "prefix", "kept", "slow", "turn", "fresh",
)  # fmt: skip
STAYS = {"predicted_tokens": "predicted", "prompt_tokens": "prompt", "priority": "priority"}
SHARED = (
    "gym", "env", "place", "column", "action", "flat", "mask", "reward", "ended", "now_s",
    "illegal", "final_now_s", "final_illegal", "mean_latency_s",
)  # fmt: skip
BLOCK = tuple(
    name
    for name in ks.State._fields
    if name not in SCRATCH and name not in CONSTANT and name not in SHARED and name != "run"
)


class Drawn(Protocol):
    """An episode, as an environment draws it (``envs.episodes.Episode``)."""

    @property
    def workload(self) -> Workload: ...
    @property
    def system(self) -> System: ...
    @property
    def predictions(self) -> Predictions | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def scale(self) -> float:
        """What its rewards are divided by."""
        ...

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Seen:
    """One column of a candidate: feature ``plus`` less ``minus`` (if any), normalised."""

    plus: str
    minus: str | None
    log: bool
    shift: float
    scale: float


@dataclass
class Place:
    """An episode that is prepared for an environment, and what keeps its memory alive."""

    drawn: Drawn
    state: ks.State
    inputs: Inputs
    calls: ScoreCalls
    block: NDArray[np.uint8]
    pristine: NDArray[np.uint8]
    runs: NDArray[Any]  # (2,) the run's row, and how it was at the beginning


class Many:
    """E environments in which choices of one kind are due.

    ``draw(k)`` gives environment k its next episode. Each holds ``bank`` of them and plays them in
    turn; each is played ``plays`` times before the next one is drawn in its place. ``mode`` is what
    follows an episode's end, one of ``state``'s. Arrays that a step writes: ``flat``
    (E, slots * F + slots + 4) float32 (candidate by candidate, the mask, the situation), ``mask``
    (E, slots) int8, ``reward``, ``ended``, ``now_s``, ``illegal``; and of the episode that ended
    last ``final_now_s``, ``final_illegal``, ``mean_latency_s``, (E,) each.
    """

    def __init__(
        self,
        kind: Kind,
        envs: int,
        slots: int,
        columns: Sequence[Seen],
        draw: Callable[[int], Drawn],
        *,
        mode: int,
        bank: int,
        plays: int,
        illegal_penalty: float,
        hold_ps: int = 0,
        keep_totals: bool = False,
        show: str = "first",
    ) -> None:
        self.kind, self.envs, self.slots, self.plays = kind, envs, slots, plays
        self.bank = bank
        self._draw = draw
        self.reads = tuple(dict.fromkeys(
            n for c in columns for n in (c.plus, c.minus) if n is not None
        ))  # fmt: skip
        self._stays = [c for c in columns if c.minus is None and c.plus in STAYS]
        width = slots * (len(columns) + 1) + SITUATION
        gym = np.zeros(1, ks.GYM)
        values: dict[str, Any] = {
            "kind": KINDS[kind], "slots": slots, "columns": len(columns),
            "reads": mask((*self.reads, *READ[kind])), "hold": hold_ps > 0, "hold_ps": hold_ps,
            "mode": mode, "envs": envs, "bank": bank, "at": ks.NONE, "keep": keep_totals,
            "illegal_penalty": illegal_penalty, "show": ks.SHOWN.index(show),
        }  # fmt: skip
        for name, value in values.items():
            gym[name] = value
        self.gym, self.env = gym, np.zeros(envs, ks.ENV)
        self.place = np.zeros(envs * bank, ks.PLACE)
        self.action = np.zeros(envs, np.int64)
        self.flat = np.zeros((envs, width), np.float32)
        self.mask = np.zeros((envs, slots), np.int8)
        self.reward, self.ended = np.zeros(envs), np.zeros(envs, np.int8)
        self.now_s, self.illegal = np.zeros(envs), np.zeros(envs, np.int64)
        self.final_now_s, self.final_illegal = np.zeros(envs), np.zeros(envs, np.int64)
        self.mean_latency_s = np.zeros(envs)
        self._shared = {name: getattr(self, name) for name in SHARED if name != "column"}
        self._shared["column"] = _columns(columns)
        self._places: list[Place | None] = [None] * len(self.place)
        self._tables = np.zeros((len(self.place) + 1, len(ks.State._fields), 3), np.int64)
        self._blocks: list[NDArray[np.uint8]] = [np.zeros(0, np.uint8)] * envs
        self._known: WeakValueDictionary[Any, NDArray[Any]] = WeakValueDictionary()
        self._variants: list[dict[str, bool]] = []
        self._entries: list[dict[str, Callable[[int], int]]] = []
        self._batch = self._tables[-1]  # what all environments share
        for row, name in zip(self._batch, ks.State._fields, strict=True):
            if name in self._shared:
                array = self._shared[name]
                row[0], row[1 : 1 + array.ndim] = array.ctypes.data, array.shape

    def begin(self, which: NDArray[np.bool_] | None = None) -> None:
        """Begins an episode in all environments, or in those of a mask (E,)."""
        chosen = np.ones(self.envs, bool) if which is None else which
        self.env["stage"][chosen] = ks.BEGIN
        self.env["pending"] = chosen
        self.reward[chosen] = 0.0
        self.ended[chosen] = 0
        self.gym["left"], self.gym["at"] = int(chosen.sum()), 0
        self._go()

    def forget(self, k: int) -> None:
        """Environment k draws its next episodes anew, and its run is over."""
        self.place["plays"][k * self.bank : (k + 1) * self.bank] = 0
        self.env["turn"][k] = 0
        self.env["stage"][k] = ks.IDLE

    def step(self) -> None:
        """Takes ``action``, (E,); raises ``InputError`` for one that is none."""
        self._go()

    def totals(self, k: int) -> Totals:
        """The integrals of environment k's run up to now."""
        return totals_of(self.of(k).state.run[0])

    def last_totals(self, k: int) -> Totals:
        """The same as it was when the last step's reward was due; needs ``keep_totals``."""
        row = self.env[k]
        return totals_of({name: row[f"last_{name}"] for name in ks.TOTALS})

    def rows(self, k: int) -> NDArray[Any]:
        """The features of what environment k shows, one ``FEATURE_ROW`` an action."""
        place = self.of(k)
        if self.env["stage"][k] != ks.CHOICE:
            raise InputError("no choice is due: call reset() first")
        self.gym["at"] = k
        self._entries[int(self.env["variant"][k])]["show_again"](self._batch.ctypes.data)
        self.gym["at"] = ks.NONE
        return place.state.rows

    def last_name(self, k: int) -> str:
        """The name of the episode that environment k ended last."""
        place = self._places[int(self.env["last_place"][k])]
        return "" if place is None else place.drawn.name

    def records(self, k: int) -> Records:
        """The records of environment k's run, once it is done."""
        place = self.of(k)
        return records_of(place.state, place.inputs, log=False)

    def of(self, k: int) -> Place:
        """The episode that environment k plays, or played last."""
        found = self._places[int(self.env["place"][k])]
        if found is None or self.env["stage"][k] == ks.IDLE:
            raise InputError("no run is under way: call reset() first")
        return found

    def _go(self) -> None:
        """Has all that are to take a step do so; an error leaves no run under way, but for that of
        an action that is none, which is told before anybody moves."""
        try:
            self._run()
        except BaseException:
            if self.gym["left"][0]:
                self.env["stage"] = ks.IDLE
            raise
        finally:
            self.gym["at"], self.gym["left"] = ks.NONE, 0

    def _run(self) -> None:
        gym = self.gym[0]
        tries: Counter[int] = Counter()
        address = self._batch.ctypes.data
        while True:
            if not self._entries:
                self._prepare(int(gym["at"]))
                self.gym["variant"] = 0
            code = self._entries[int(gym["variant"])]["step_many"](address)
            if code == ks.DONE:
                if not gym["left"]:
                    break
                gym["variant"] = (gym["variant"] + 1) % len(self._entries)
                gym["at"] = 0
                continue
            k = int(gym["at"])
            if code == ks.GROW:
                self._grow(k)
            elif code == ks.DRAW:
                self._prepare(k)
            elif code == ks.EMPTY:
                tries[k] += 1
                self._redraw(k, tries[k])
            else:
                self._raise(code, k)

    def _raise(self, code: int, k: int) -> None:
        """Says what a code means."""
        if code == ks.NO_ACTION:
            raise InputError(f"action must be in 0..{self.slots - 1}, not {self.action[k]}")
        if code == ks.NO_RUN:
            raise InputError("no run is under way: call reset() first")
        place = self._places[int(self.env["place"][k])]
        if place is not None:
            raise_for(code, place.state, place.calls)
        raise InvariantError(f"the fast engine stopped with code {code}")

    def _redraw(self, k: int, tries: int) -> None:
        """Another episode in the place of one that left no choice."""
        at = int(self.env["place"][k])
        if tries == TRIES:
            name = self.of_place(at).drawn.workload.name
            raise InputError(
                f"workload {name}: no moment of it leaves a choice; a higher rate or a "
                "smaller engine makes requests wait"
            )
        self.place["plays"][at] = 0
        self.env["turn"][k] -= 1

    def of_place(self, at: int) -> Place:
        """A place that was prepared."""
        found = self._places[at]
        assert found is not None
        return found

    def _grow(self, k: int) -> None:
        at = int(self.env["place"][k])
        place = self.of_place(at)
        place.state = _aliased(grow(place.state))
        self._bind(at, place)

    def _bind(self, at: int, place: Place) -> None:
        """Takes the places of arrays that may have moved."""
        place.calls.bind(place.state)
        for name in ("rows_at", "out_at"):
            place.runs[name] = place.state.run[name]
        self._tables[at] = ks.address_table(place.state)

    def _prepare(self, k: int) -> None:
        """Draws the episode that environment k is to play next."""
        drawn = self._draw(k)
        nodes = len(drawn.system.nodes)
        if self.kind == "route" and nodes > self.slots - bool(self.gym["hold"][0]):
            raise InputError(
                f"the scenario {drawn.name!r} has {nodes} nodes, more than an action can name: "
                f"replicas must be {nodes} or more"
            )
        if self.kind == "preempt":
            for node in drawn.system.nodes:
                self._check_preemptible(node)
        refused = supports(drawn.workload, drawn.system)
        if refused is not None:
            raise InputError(refused)
        lacking = ACCESSORS.lacks(self.reads, "an environment")
        if lacking is not None:
            raise InputError(lacking)
        state, inputs, calls, features = begin_run(
            drawn.workload, drawn.system, drawn.predictions, drawn.seed, stops=True,
            shown=(*self.reads, *READ[self.kind]),
        )  # fmt: skip
        features.require(self.reads, "an environment")
        flags = {**flags_of(state, stops=True), "MANY": True}
        flags["POLICY"] |= self.kind == "preempt"
        state = numbered(state, flags)
        state = with_rows(state, self.slots + 1)._replace(kept=self._kept(state))
        if len(state.stash) < self.slots:
            state = state._replace(stash=np.zeros(self.slots, ks.WAITING))
        place = self._placed(k, drawn, state, inputs, calls)
        at = k * self.bank + int(self.env["turn"][k]) % self.bank
        self._places[at] = place
        self._bind(at, place)
        place.runs[1] = place.runs[0]
        row = self.place[at : at + 1]
        values = {
            "table": self._tables[at].ctypes.data, "variant": self._variant(flags),
            "plays": self.plays, "block_at": place.block.ctypes.data,
            "pristine_at": place.pristine.ctypes.data, "words": len(place.pristine) // 8,
            "run_at": place.runs[:1].ctypes.data, "run_pristine_at": place.runs[1:].ctypes.data,
            "run_words": ks.RUN.itemsize // 8, "scale": drawn.scale,
        }  # fmt: skip
        for name, value in values.items():
            row[name] = value

    def _check_preemptible(self, node: Node) -> None:
        """Refuses a node of which not all running requests can be named, or that decides itself."""
        if node.engine.max_num_seqs >= self.slots:
            raise InputError(
                f"slots must be {node.engine.max_num_seqs + 1} or more, one a seat and one for "
                f"nobody, not {self.slots}"
            )
        if node.policy.queue != "priority" or node.policy.preemption.mode != "none":
            raise InputError(
                f"policy {node.policy.name!r}: who gives way is the agent's choice in a queue that "
                "is ordered by a score; sjf is one, fcfs and a policy with +preempt are none"
            )

    def _placed(
        self, k: int, drawn: Drawn, state: ks.State, inputs: Inputs, calls: ScoreCalls
    ) -> Place:
        """The state with all that a run changes in environment k's block of memory."""
        arrays = {name: getattr(state, name) for name in BLOCK}
        ends = np.cumsum([-(-array.nbytes // 64) * 64 for array in arrays.values()]).tolist()
        begins = dict(zip(arrays, [0, *ends], strict=False))
        if len(self._blocks[k]) < ends[-1]:
            self._blocks[k] = _aligned(ends[-1])
        block = self._blocks[k][: ends[-1]]
        pristine = _aligned(ends[-1])
        moved: dict[str, Any] = {}
        for name, array in arrays.items():
            part = slice(begins[name], begins[name] + array.nbytes)
            pristine[part] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            moved[name] = block[part].view(array.dtype).reshape(array.shape)
        pristine = self._once(pristine)
        runs = np.zeros(2, ks.RUN)
        runs[0] = state.run[0]
        runs[f"at_{self.kind}"], runs["horizon"] = True, ks.NEVER
        constant = {name: self._once(getattr(state, name)) for name in CONSTANT}
        state = _aliased(state._replace(
            **moved, **constant, **self._shared, run=runs[:1], glance=np.zeros(1, ks.FEATURE_ROW)
        ))  # fmt: skip
        return Place(drawn, state, inputs, calls, block, pristine, runs)

    def _kept(self, state: ks.State) -> NDArray[np.float64]:
        """The columns that stay what they are at arrival, as agents see them, (columns, n)."""
        kept = np.zeros((len(self._stays), len(state.prompt)))
        for row, column in zip(kept, self._stays, strict=True):
            x = getattr(state, STAYS[column.plus]).astype(np.float64)
            row[:] = ((symlog(x) if column.log else x) - column.shift) / column.scale
        return np.clip(kept, -FAR, FAR)

    def _once(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array, or one of the same content that is there already: caches hold it once."""
        key = (array.dtype, array.shape, array.tobytes())
        return self._known.setdefault(key, array)

    def _variant(self, flags: dict[str, bool]) -> int:
        """Which machine code a run takes."""
        if flags not in self._variants:
            self._variants.append(flags)
            self._entries.append(compiled(**flags))
        return self._variants.index(flags)


def _columns(columns: Sequence[Seen]) -> NDArray[Any]:
    rows = np.zeros(len(columns), ks.COLUMN)
    places = {name: place for place, name in enumerate(FEATURES)}
    kept = 0
    for row, column in zip(rows, columns, strict=True):
        for sign, name in (("plus", column.plus), ("minus", column.minus)):
            row[sign] = ks.NONE if name is None else places[name]
            row[f"{sign}_float"] = name is not None and FEATURES[name].dtype == "float64"
        stays = column.minus is None and column.plus in STAYS
        row["kept"] = kept if stays else ks.NONE
        kept += stays
        row["log"], row["shift"], row["scale"] = column.log, column.shift, column.scale
    return rows


def _aliased(state: ks.State) -> ks.State:
    """The state with the rows' memory as words too."""
    return state._replace(words=state.rows.view(np.int64).reshape(len(state.rows), -1))


def _aligned(size: int) -> NDArray[np.uint8]:
    """Memory that begins at a cache line."""
    raw = np.zeros(size + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + size]
