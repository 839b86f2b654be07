"""Timing profiles: what was measured on a GPU under a real engine, as a JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.protocols import Batch
from lengthwise.reading import read_described
from lengthwise.serving.options import MOST_BLOCKS
from lengthwise.serving.records import PS
from lengthwise.serving.timing.model import Pipeline, TimingTables, whole_ps
from lengthwise.serving.timing.terms import TERMS

FORMAT = "lengthwise-timing-profile"
FORMAT_VERSION = 1
TILE = 128  # without CUDA graphs, matrix products run in tiles of so many tokens
SPED = ("launch", "prepare")  # the terms that the CPU's speed multiplies
MOST_S = 1000.0  # of anything that an iteration is made of
MEAN_CONTEXT = 1000  # tokens a sequence at which ``tables`` and ``pipeline`` agree for decoding
IN_TABLES = ("launch_graph", "launch_eager")  # launching beside prefill, by size
MEASURED = (*(term.name for term in TERMS.values() if term.measured), *IN_TABLES)

Knots = Sequence[tuple[float, float]]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def capture_sizes(max_num_seqs: int, max_num_batched_tokens: int) -> Ints:
    """The batch sizes that vLLM captures as CUDA graphs by default, ascending."""
    most = min(2 * max_num_seqs, 512, max_num_batched_tokens)
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)}
    if max_num_batched_tokens <= most:
        sizes.add(max_num_batched_tokens)
    return np.array(sorted(size for size in sizes if size <= most), dtype=np.int64)


@dataclass(frozen=True)
class ProfileTiming:
    """A fitted profile: knots (size, seconds) of its tables and its coefficients in seconds.

    ``decode`` is the GPU's time of a decoding iteration by padded size, ``decode_context`` that of
    each attended token by sequences, ``mixed`` the time of any other iteration by padded tokens;
    between knots they are interpolated linearly. ``terms`` are explained by ``timing.terms``; the
    CPU's are those of its best moments, and ``cpu`` says how much longer it takes on average.
    ``gpu`` is the same of the GPU beside the one that was measured: cards of one kind differ.
    """

    name: str
    num_gpu_blocks: int | None
    decode: Knots
    decode_context: Knots
    mixed: Knots
    terms: Mapping[str, float]
    about: Mapping[str, Any]
    cpu: float = 1.0
    gpu: float = 1.0

    def with_factors(self, *, gpu: float = 1.0, cpu: float = 1.0) -> ProfileTiming:
        """A host whose GPU takes ``gpu`` times as long for its work, its CPU ``cpu`` times.

        The CPU's work is launching an iteration. Raises ``InputError`` for a factor that is not
        between 0 and 100.
        """
        check_factors(gpu=gpu, cpu=cpu)
        said = [f"{name}={x:g}" for name, x in (("gpu", gpu), ("cpu", cpu)) if x != 1]
        plain = self.name.partition(":")[0]
        return replace(self, name=":".join([plain, ",".join(said)][: 1 + bool(said)]),
                       gpu=gpu, cpu=cpu)  # fmt: skip

    def pipeline(self, max_num_batched_tokens: int, max_num_seqs: int) -> Pipeline:
        """The two clocks of the engine that was measured, for batches up to the given sizes."""
        graphs = capture_sizes(max_num_seqs, max_num_batched_tokens)
        seqs = np.arange(max_num_seqs + 1)
        tokens = np.arange(max_num_batched_tokens + 1)
        terms = {term: seconds * self._factor(term) for term, seconds in self.terms.items()}
        launch = np.where(tokens <= graphs[-1], terms["launch_graph"], terms["launch_eager"])
        return Pipeline(
            decode_ps=_ps(self.gpu * _line(self.decode, padded(seqs, graphs))),
            decode_context_ps=_ps(self.gpu * _line(self.decode_context, seqs, beyond=False)),
            mixed_ps=_ps(self.gpu * _line(self.mixed, padded(tokens, graphs))),
            mixed_launch_ps=_ps(launch),
            terms={k: round(v * PS) for k, v in terms.items() if k not in IN_TABLES},
        )

    def tables(self, max_num_batched_tokens: int, max_num_seqs: int) -> TimingTables:
        """The same on one clock: each iteration takes what the slower of the two takes.

        For engines that keep one iteration in flight at a time. Attention's slope is one number
        here, right for all sizes at ``MEAN_CONTEXT`` tokens a sequence.
        """
        clocks = self.pipeline(max_num_batched_tokens, max_num_seqs)
        terms, seqs = clocks.terms, np.arange(max_num_seqs + 1)
        slope = int(np.median(clocks.decode_context_ps))
        even = (clocks.decode_context_ps - slope) * MEAN_CONTEXT * seqs
        cpu = terms["schedule"] + terms["update"]
        cpu_seq = terms["schedule_seq"] + terms["update_seq"]
        return TimingTables(
            decode_ps=clocks.decode_ps + even,
            mixed_ps=np.maximum(clocks.mixed_ps, clocks.mixed_launch_ps + cpu),
            terms={
                **{name: ps for name, ps in terms.items() if TERMS[name].part == "gpu"},
                "context": slope,
                "floor": terms["launch_decode"] + cpu,
                "floor_seq": terms["launch_decode_seq"] + cpu_seq,
            },
        )

    def _factor(self, term: str) -> float:
        if term.startswith(SPED):
            return self.cpu
        return self.gpu if TERMS[term].part == "gpu" else 1.0

    @cached_property
    def _largest(self) -> TimingTables:
        return self.tables(16_384, 1024)

    def iteration_time(self, batch: Batch) -> float:
        """Seconds that an iteration with this batch takes, one after the other."""
        return self._largest.iteration_ps(batch) / PS


def read_profile(path: Path, engine_version: str | None = None) -> ProfileTiming:
    """The profile in a file; refused if measured on another version than ``engine_version``."""
    data = read_described(path, "profile")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path} is no timing profile: its format is not {FORMAT!r}")
    if data.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"the profile {path} has format version {data.get('format_version')!r}; "
            f"this lengthwise reads version {FORMAT_VERSION}"
        )
    try:
        fit, engine = data["fit"], data["engine"]
        profile = ProfileTiming(
            name=str(data["name"]),
            num_gpu_blocks=_blocks(data["num_gpu_blocks"]),
            decode=_knots(fit["decode"]),
            decode_context=_knots(fit["decode_context"]),
            mixed=_knots(fit["mixed"]),
            terms=_terms(fit["terms"]),
            about={key: value for key, value in data.items() if key != "fit"},
        )
        measured = engine["version"]
        _check_recorded(data)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        said = str(error) if isinstance(error, InputError) else repr(error)
        raise InputError(f"the profile {path} is damaged: {said}") from None
    if engine_version is not None and engine_version != measured:
        raise InputError(
            f"the profile {profile.name} was measured on {engine['name']} {measured}, "
            f"not on {engine_version}; profile that version with `lengthwise profile`"
        )
    return profile


def _terms(given: Mapping[str, Any]) -> dict[str, float]:
    """The coefficients: all that every profile has measured, and those of other terms it names."""
    named = (term for term in TERMS if term in given)
    found = {term: float(given[term]) for term in dict.fromkeys((*MEASURED, *named))}
    for term, seconds in found.items():
        if not abs(seconds) <= MOST_S:
            raise InputError(f"{term} is {seconds!r} s; {MOST_S:g} are the most")
    return found


def _knots(pairs: Any) -> tuple[tuple[float, float], ...]:
    found = tuple((float(size), float(seconds)) for size, seconds in pairs)
    sizes = [size for size, _ in found]
    if not found or not all(low < high for low, high in pairwise(sizes)):
        raise InputError("a table's sizes must rise")
    if not all(0 <= size < math.inf and abs(seconds) <= MOST_S for size, seconds in found):
        raise InputError(f"a table holds sizes from 0 and up to {MOST_S:g} s")
    return found


def _check_recorded(about: Mapping[str, Any]) -> None:
    """That what a profile says of the batches it was measured with, if anything, is numbers."""
    recorded = about.get("measured") or {}
    sizes = [recorded[name] for name in ("sequences", "tokens", "context")] if recorded else []
    sizes += [about[name] for name in ("max_num_seqs", "max_num_batched_tokens")
              if about.get(name) is not None]  # fmt: skip
    if not all(isinstance(size, int) for size in sizes):
        raise InputError(f"sizes of its batches must be whole numbers, not {sizes}")


def _blocks(given: Any) -> int | None:
    if given is None:
        return None
    if isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= MOST_BLOCKS:
        return given
    raise InputError(
        f"num_gpu_blocks is {given!r}; it must be a whole number from 1 to {MOST_BLOCKS}"
    )


def check_factors(**factors: float) -> None:
    """Raises ``InputError`` for a factor that is not between 0 and 100."""
    for name, factor in factors.items():
        if not 0 < factor < 100:
            raise InputError(f"{name} must be above 0 and below 100, not {factor!r}")


def padded(sizes: Ints, graphs: Ints) -> Ints:
    """Each size rounded up to a captured one, beyond the largest to whole tiles."""
    place = np.searchsorted(graphs, sizes)
    return np.where(sizes <= graphs[-1], np.append(graphs, 0)[place], -(-sizes // TILE) * TILE)


def _line(knots: Knots, at: Ints, *, beyond: bool = True) -> Floats:
    """Linear interpolation between knots; beyond the last, a line of the mean slope, or level."""
    x = np.array([size for size, _ in knots])
    y = np.array([seconds for _, seconds in knots])
    inside: Floats = np.interp(at, x, y)
    if not beyond or len(x) == 1:
        return inside
    half = min(len(x) // 2, len(x) - 2)  # the mean slope of the upper half: single knots are noisy
    slope = max((y[-1] - y[half]) / (x[-1] - x[half]), 0.0)
    extended: Floats = inside + slope * np.maximum(at - x[-1], 0.0)
    return extended


def _ps(seconds: Floats) -> Ints:
    return whole_ps(seconds * PS, "the profile")
