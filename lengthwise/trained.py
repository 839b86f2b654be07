"""What a policy was trained on, and whether it is asked about something else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lengthwise.errors import InputError

Range = tuple[float, float]
BEYOND = "is used beyond what it was trained on"


def widened(ranges: Mapping[str, Range], more: Mapping[str, Range]) -> dict[str, Range]:
    """Ranges by name that cover both."""
    found = dict(ranges)
    for name, (low, high) in more.items():
        least, most = found.get(name, (low, high))
        found[name] = (min(low, least), max(high, most))
    return found


@dataclass(frozen=True)
class TrainedOn:
    """The ranges of what was seen in training, by name, and the workloads' names.

    Names are those of features (in their units), ``load`` (arrivals over what the system can
    serve), ``nodes`` and ``seats`` (of a node). Raises ``InputError`` for a range that is none.
    """

    ranges: tuple[tuple[str, float, float], ...]
    workloads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low, high in self.ranges:
            if not low <= high:
                raise InputError(f"trained on {name} from {low!r} to {high!r}: that is no range")

    @classmethod
    def of(cls, ranges: Mapping[str, Range], workloads: Iterable[str] = ()) -> TrainedOn:
        """From (lowest, highest) by name."""
        rows = tuple((name, float(low), float(high)) for name, (low, high) in ranges.items())
        return cls(rows, tuple(sorted(set(workloads))))

    def left(self, seen: Mapping[str, Range]) -> list[str]:
        """What lies outside: ``nodes 8 (trained on 4)``, one entry a name of both."""
        told = []
        for name, low, high in self.ranges:
            if name not in seen:
                continue
            least, most = seen[name]
            if least < low or most > high:
                told.append(f"{name} {_span(least, most)} (trained on {_span(low, high)})")
        return told

    def notice(self, policy: str, seen: Mapping[str, Range]) -> str:
        """One line that says what lies outside; "" where nothing does."""
        left = self.left(seen)
        return f"{policy} {BEYOND}: {', '.join(left)}" if left else ""


def _span(low: float, high: float) -> str:
    return f"{low:,.6g}" if low == high else f"{low:,.6g} to {high:,.6g}"
