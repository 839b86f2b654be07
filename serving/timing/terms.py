"""The one table of what an iteration's time is made of, beside its look-up by size.

Every clock (the linear and the roofline model's, the profiles', both engines') is a sum of these
terms: a coefficient times a quantity of the iteration. The reference walks the table, the fast
engine's source is written from it, so a new term is a row here and a coefficient in a timing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lengthwise.errors import UnknownNameError

Part = Literal[
    "gpu", "floor", "launch", "prepare", "tail", "schedule", "update", "arrival", "output"
]
When = Literal["any", "decode", "mixed"]  # mixed: with tokens that prefill; decode: without

# What a term may multiply: its unit and what it counts. The first five are fields of ``Batch``.
QUANTITIES: dict[str, tuple[str, str]] = {
    "prefill_tokens": ("tokens", "prompt (or recomputed) tokens of the iteration"),
    "prefill_seqs": ("sequences", "sequences that those tokens belong to"),
    "decode_seqs": ("sequences", "sequences that generate one token each"),
    "context_tokens": ("tokens", "tokens that the decoding sequences attend to"),
    "chunk_context": ("pairs", "pairs of a prefill token and a token that it attends to"),
    "sequences": ("sequences", "all that compute something"),
    "running": ("requests", "requests in the batch, whether or not they compute"),
    "yields": ("tokens", "output tokens that the iteration makes"),
    "prompt_tokens": ("tokens", "the prompt of a request that arrives"),
    "once": ("1", "1"),
}


@dataclass(frozen=True, slots=True)
class Term:
    """One term: ``coefficient x times``, added to the ``part`` of the clock that it belongs to.

    ``name`` is its coefficient's: seconds for each unit of ``times`` in profiles, integer
    picoseconds in the engines. ``measured``: every profile has it; one that has not takes no time.
    """

    name: str
    part: Part
    times: str
    when: When
    meaning: str
    measured: bool = True

    @property
    def unit(self) -> str:
        """The unit of its coefficient in profiles."""
        unit = QUANTITIES[self.times][0]
        return "s" if unit == "1" else f"s/{unit.removesuffix('s')}"


TERMS: dict[str, Term] = {
    term.name: term
    for term in (
        # the GPU's work on an iteration, beyond what the tables hold for its size
        Term("context", "gpu", "context_tokens", "decode",
             "attention of decoding sequences, where no table by size holds it", measured=False),
        Term("mixed_context", "gpu", "context_tokens", "mixed", "the same beside prefill"),
        Term("chunk_context", "gpu", "chunk_context", "mixed", "attention of prefill"),
        Term("decode_seq", "gpu", "decode_seqs", "mixed",
             "a decoding sequence beside prefill, beyond its token"),
        Term("prefill_seq", "gpu", "prefill_seqs", "mixed", "a sequence that prefills"),
        # with one clock: no iteration is shorter, as the GPU waits for a slower CPU
        Term("floor", "floor", "once", "any", "the CPU's work", measured=False),
        Term("floor_seq", "floor", "sequences", "any", "the same for each sequence",
             measured=False),
        # with two clocks: from scheduled to the last kernel launched, beyond what the tables hold
        Term("launch_decode", "launch", "once", "decode", "launching a graph of decoding"),
        Term("launch_decode_seq", "launch", "sequences", "decode", "the same for each sequence"),
        Term("launch_mixed_seq", "launch", "sequences", "mixed", "launching, for each sequence"),
        Term("launch_prefill_seq", "launch", "prefill_seqs", "mixed",
             "the same for each that prefills"),
        Term("prepare", "prepare", "once", "any", "from scheduled to the first kernel"),
        Term("prepare_seq", "prepare", "sequences", "any", "the same for each sequence"),
        Term("tail", "tail", "once", "any", "from the last launch to the end, at least"),
        Term("schedule", "schedule", "once", "any", "deciding an iteration"),
        Term("schedule_seq", "schedule", "running", "any", "the same for each running request"),
        Term("update", "update", "once", "any", "taking in an iteration's result"),
        Term("update_seq", "update", "sequences", "any", "the same for each sequence"),
        Term("arrival", "arrival", "once", "any", "from a request's arrival to the scheduler"),
        Term("arrival_token", "arrival", "prompt_tokens", "any", "the same for each token"),
        Term("output", "output", "once", "any", "until clients have an iteration's tokens"),
        Term("output_seq", "output", "yields", "any", "the same for each token"),
    )
}  # fmt: skip


def terms_of(part: Part, when: When = "any") -> list[Term]:
    """The terms that add to a part of the clock in iterations of this kind, in table order."""
    return [t for t in TERMS.values() if t.part == part and t.when in ("any", when)]


def check(names: Iterable[str]) -> None:
    """Raises ``UnknownNameError`` for a coefficient of no term."""
    for name in names:
        if name not in TERMS:
            raise UnknownNameError("timing term", name, TERMS)


class Sum:
    """A part of the clock with its coefficients bound, in integer picoseconds."""

    def __init__(self, terms: Mapping[str, int], part: Part, when: When = "any") -> None:
        found = [(term.times, terms.get(term.name, 0)) for term in terms_of(part, when)]
        self._once = sum(ps for times, ps in found if times == "once")
        self._each = [(times, ps) for times, ps in found if ps and times != "once"]

    def of(self, iteration: object) -> int:
        """The sum for an iteration that has the quantities as attributes."""
        total = self._once
        for times, ps in self._each:
            total += ps * getattr(iteration, times)
        return total

    def at(self, **quantities: Any) -> Any:
        """The sum for these quantities, of which all that it multiplies must be given."""
        return self._once + sum(ps * quantities[times] for times, ps in self._each)
