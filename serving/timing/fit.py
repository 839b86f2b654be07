"""Fits the timing model to recorded iterations of a real engine: two clocks, CPU and GPU.

vLLM schedules and launches an iteration while the GPU works on the one before it. With S the
moment at which an iteration was scheduled, its GPU work starts when the GPU is free and the CPU has
prepared the first kernel, ends after ``gpu`` seconds but not before the last kernel is launched,

    F[k] = max(max(F[k-1], S[k] + prepare[k]) + gpu[k], S[k] + launch[k] + tail)

and its result is seen when the CPU is done with launching the next one,

    U[k] = max(F[k], S[k+1] + launch[k+1]).

S and U were recorded. ``gpu`` is linear in the shape of the batch, with one base for each size that
a batch is padded to; ``prepare`` and ``launch`` depend on how the batch runs: all of it as one CUDA
graph (decoding alone), piece by piece as graphs (up to the largest captured size), or without. The
CPU's speed changes from second to second on a shared machine, so each window of ``WINDOW_S`` gets a
factor of its own in the fit; the model uses their mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import nnls

from lengthwise.serving.timing.profile import TILE, padded
from lengthwise.serving.timing.vllm_plan import SIZES

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

WINDOW_S = 0.4
SPEEDS = (0.9, 2.5)  # factors that a window may have
HELD_OUT = 0.2
ROUNDS = 12
LONG = 12_000  # attention beside prefill is slower for longer contexts, unevenly: not fitted
SMOOTH = 2.0  # how little the base of mixed iterations bends, and
LEVEL = 0.3  # how near it stays to that of decoding where CUDA graphs run
MARGIN = 0.1  # of an iteration: how much later the later clock must be, to be it for sure
SHORTEST_S = 2e-4  # no iteration works or launches for less
SCALE = 0.04  # relative residual from which the loss grows linearly
CPU = (
    "launch_decode", "launch_decode_seq", "launch_graph", "launch_eager", "launch_mixed_seq",
    "launch_prefill_seq", "prepare", "prepare_seq", "tail",
)  # fmt: skip
# seconds: where the rounds start; the last three are kept, the sweep can't tell them
CPU_START = (2.3e-3, 1e-5, 5.6e-3, 16e-3, 6e-6, 2e-4, 1.5e-3, 8e-6, 5e-4)
MIXED = ("mixed_context", "chunk_context", "decode_seq", "prefill_seq")


@nb.njit(cache=True)
def pipeline(
    scheduled: Floats,
    seen: Floats,
    gpu: Floats,
    prepare: Floats,
    launch: Floats,
    tail: float,
    overlaps: Bools,
    decode: Bools,
) -> tuple[Floats, Floats, Bools, Bools]:
    """When each result is seen, given when all were scheduled and the one before was seen.

    Also when the GPU started on each, and two marks. An iteration is the GPU's if its end is that
    of the GPU's work by a wide margin, and when that work began is known, from such an iteration
    before or through decoding. It is the CPU's if the launch of the next one was later by a wide
    margin.
    """
    n = len(scheduled)
    predicted, starts = np.empty(n), np.empty(n)
    by_gpu, by_cpu = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
    free, known = scheduled[0], False
    for k in range(n):
        if not overlaps[k]:
            free, known = scheduled[k], False
        starts[k] = max(free, scheduled[k] + prepare[k])
        launched = scheduled[k] + launch[k] + tail
        known = known and starts[k] + gpu[k] > launched
        free = max(starts[k] + gpu[k], launched)
        predicted[k] = free
        margin = free - scheduled[k]
        if k + 1 < n and overlaps[k + 1]:
            margin = free - scheduled[k + 1] - launch[k + 1]
            predicted[k] = max(free, free - margin)
        # what was seen corrects the clock that was the later one by the model
        wide = MARGIN * (predicted[k] - scheduled[k])
        by_gpu[k], by_cpu[k] = known and margin > wide, margin < -wide
        if margin > wide:
            free, known = seen[k], True
        else:
            free = seen[k] if margin > 0 else min(free, seen[k])
            known = known and decode[k]
    return predicted, starts, by_gpu, by_cpu


@dataclass(frozen=True)
class Iterations:
    """Recorded iterations as arrays of shape (n,), in the order in which they ran; seconds."""

    frame: pd.DataFrame
    graph_sizes: NDArray[np.int64]  # captured batch sizes, ascending
    scheduled: Floats
    seen: Floats
    took: Floats  # from the result before to this one
    overlaps: Bools  # scheduled before the result of the one before was seen
    usable: Bools
    held_out: Bools

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Tokens that each iteration computes."""
        tokens: NDArray[np.int64] = (
            self.frame["prefill_tokens"] + self.frame["decode_seqs"]
        ).to_numpy()
        return tokens

    @property
    def decode(self) -> Bools:
        """Decoding alone."""
        alone: Bools = (self.frame["prefill_tokens"] == 0).to_numpy()
        return alone

    @property
    def eager(self) -> Bools:
        """Larger than any captured size: launched without CUDA graphs."""
        large: Bools = ~self.decode & (self.tokens > self.graph_sizes[-1])
        return large

    @property
    def sequences(self) -> Floats:
        """Sequences in each batch."""
        sequences = self.frame["prefill_seqs"] + self.frame["decode_seqs"]
        return sequences.to_numpy(dtype=np.float64)

    @property
    def padded(self) -> NDArray[np.int64]:
        """Tokens after padding to a captured size, or to whole tiles."""
        return padded(self.tokens, self.graph_sizes)


def read_iterations(frame: pd.DataFrame, graph_sizes: list[int], seed: int = 0) -> Iterations:
    """Prepares the recorder's rows; a fifth of the designed batches is held out of the fit.

    Not usable are iterations beside which many requests came or went (setting up a group of the
    sweep), and the first runs of a CUDA graph, which wait for its upload.
    """
    frame = frame[frame["done_ns"] > 0].reset_index(drop=True)
    origin = frame["scheduled_ns"].iloc[0]
    scheduled = (frame["scheduled_ns"] - origin).to_numpy() / 1e9
    seen = (frame["done_ns"] - origin).to_numpy() / 1e9
    took = np.diff(seen, prepend=seen[0])
    calm = (frame["new"] <= 10).to_numpy() & (frame["preempted"] == 0).to_numpy()
    usable = calm & np.append(calm[1:], True) & np.append(True, calm[:-1])
    usable &= (took > 0) & (np.arange(len(frame)) > 0)
    sizes = np.array(graph_sizes, dtype=np.int64)
    iterations = Iterations(
        frame, sizes, scheduled, seen, took,
        np.append(False, scheduled[1:] < seen[:-1]), usable, np.zeros(len(frame), bool),
    )  # fmt: skip
    shapes = frame.groupby(
        ["label", "prefill_tokens", "prefill_seqs", "decode_seqs", "chunk_context"], sort=False
    ).ngroup()
    rng = np.random.default_rng(seed)
    held = rng.random(shapes.max() + 1)[shapes.to_numpy()] < HELD_OUT
    usable &= ~_first_uses(iterations)
    return Iterations(frame, sizes, scheduled, seen, took, iterations.overlaps, usable, held)


def _first_uses(iterations: Iterations) -> Bools:
    """Iterations whose successor is the first to run its CUDA graph, and that successor."""
    kinds = pd.Series(list(zip(iterations.padded, iterations.decode, strict=True)))
    first = ~kinds.duplicated().to_numpy()
    first &= ~iterations.eager
    uploads: Bools = first | np.append(first[1:], False)
    return uploads


def _hat(at: Floats, knots: Floats) -> Floats:
    """Weights of linear interpolation between knots, shape (n, knots); constant outside."""
    at = np.clip(at, knots[0], knots[-1])
    left = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)
    share = (at - knots[left]) / (knots[left + 1] - knots[left])
    weights = np.zeros((len(at), len(knots)))
    weights[np.arange(len(at)), left] = 1 - share
    weights[np.arange(len(at)), left + 1] += share
    return weights


@dataclass(frozen=True)
class Fit:
    """Seconds: knots (size, seconds) of the tables, and named coefficients."""

    decode: list[tuple[int, float]]  # base by padded sequences
    decode_context: list[tuple[int, float]]  # each attended token, by sequences
    mixed: list[tuple[int, float]]  # base by padded tokens
    terms: dict[str, float]
    speeds: Floats  # the CPU's factor in each window


def fit(iterations: Iterations, *, hold_out: bool = True) -> Fit:
    """The model's coefficients, from the iterations that are not held out, or from all.

    Decoding that follows and precedes decoding takes what the GPU takes. For the rest, rounds: by
    the model so far, tell which ends are the GPU's and which the CPU's; from the first fit the
    GPU's time, linearly, from the second the CPU's; and the CPU's speed in each window.
    """
    weigh = iterations.usable & ~(iterations.held_out & hold_out)
    decode_knots, context_knots, decode = _fit_decode(iterations, weigh)
    bases, slopes = decode[: len(decode_knots)], decode[len(decode_knots) :]
    gpu_decode = decode_columns(iterations, decode_knots, context_knots) @ decode

    knots = _mixed_knots(iterations)
    columns = mixed_columns(iterations, knots)
    # up to the largest graph, the products of matrices are those of decoding at that size
    graphs = knots <= iterations.graph_sizes[-1]
    start = np.where(
        graphs, np.interp(knots, decode_knots, bases), knots * _token_seconds(iterations)
    )
    gpu = np.concatenate([start, [slopes.mean(), 1e-9, 1e-5, 1e-4]])
    cpu = np.array(CPU_START)
    window = windows(iterations)
    speeds = np.full(window.max() + 1, 1.4)
    uneven = (iterations.frame["max_context"] > LONG) & (iterations.frame["decode_seqs"] > 0)
    fit_gpu = weigh & ~iterations.decode & ~uneven.to_numpy()
    for _ in range(ROUNDS):
        durations = np.where(iterations.decode, gpu_decode, columns @ gpu)
        prepare, launch = cpu_seconds(iterations, cpu, speeds[window])
        _, starts, by_gpu, by_cpu = pipeline(
            iterations.scheduled, iterations.seen, durations, prepare, launch, cpu[-1],
            iterations.overlaps, iterations.decode,
        )  # fmt: skip
        rows = fit_gpu & by_gpu & (iterations.seen - starts > SHORTEST_S)
        worked = (iterations.seen - starts)[rows]
        # Two results that are seen at once leave one iteration twice its time and the next nearly
        # none: relative to the longer of seen and fitted, neither pulls harder than the other.
        scale = np.maximum(worked, durations[rows])
        gpu = _fit_mixed(columns[rows], worked, scale, knots, start, graphs)
        following = np.flatnonzero(by_cpu[:-1] & weigh[:-1] & iterations.overlaps[1:]) + 1
        took = iterations.seen[following - 1] - iterations.scheduled[following]
        following, took = following[took > SHORTEST_S], took[took > SHORTEST_S]
        cpu, speeds = _fit_cpu(iterations, following, took, cpu, window, len(speeds))
    return Fit(
        [(int(n), float(s)) for n, s in zip(decode_knots, bases, strict=True)],
        [(int(n), float(s)) for n, s in zip(context_knots, slopes, strict=True)],
        [(int(n), float(s)) for n, s in zip(knots, gpu, strict=False)],
        dict(zip(MIXED + CPU, [*gpu[len(knots) :].tolist(), *cpu.tolist()], strict=True)),
        speeds,
    )


def _fit_mixed(
    columns: Floats, took: Floats, scale: Floats, knots: Floats, start: Floats, graphs: Bools
) -> Floats:
    """Coefficients of the GPU's time, errors relative to ``scale``, outliers weighed down.

    Bases bend as little as they must; in CUDA graphs, beside those of decoding (``start``).
    """
    count = len(start)
    knots_bend = _second_differences(knots, columns.shape[1])
    target = np.zeros(count - 2)
    inside = graphs[:-2] & graphs[1:-1] & graphs[2:]
    target[inside] = (knots_bend[:, :count] @ start)[inside]
    level = np.zeros((count, columns.shape[1]))
    level[np.flatnonzero(graphs), np.flatnonzero(graphs)] = 1.0
    typical = np.median(took)
    prior = np.vstack([knots_bend * (SMOOTH / typical), level * (LEVEL / typical)])
    prior_target = np.append(
        target * (SMOOTH / typical), np.where(graphs, start, 0) * (LEVEL / typical)
    )
    weights = np.ones(len(took))
    solution = np.zeros(columns.shape[1])
    for _ in range(15):
        scaled, target = columns * (weights / scale)[:, None], took * weights / scale
        solution = nnls(np.vstack([scaled, prior]), np.append(target, prior_target), maxiter=5000)[
            0
        ]
        error = np.abs(columns @ solution - took) / scale
        weights = 1 / np.sqrt(np.maximum(error, SCALE) / SCALE)
    unbiased: Floats = solution * (took.sum() / (columns @ solution).sum())
    return unbiased


def _fit_cpu(
    iterations: Iterations,
    rows: NDArray[np.int64],
    took: Floats,
    cpu: Floats,
    window: NDArray[np.int64],
    count: int,
) -> tuple[Floats, Floats]:
    """Launch times of the iterations ``rows``, which took the CPU ``took``; speeds by window."""
    if len(rows) < 20:  # a large model: the CPU is never the slower one
        return cpu, np.full(count, 1.0)
    _, launch = cpu_seconds(iterations, cpu, np.ones(len(window)))
    ratio = took / launch[rows]
    speeds = np.full(count, np.nan)
    for number in np.unique(window[rows]):
        speeds[number] = np.median(ratio[window[rows] == number])
    told = ~np.isnan(speeds)
    speeds /= np.quantile(ratio, 0.05)  # the terms are the CPU's at its best
    speeds = np.clip(np.where(told, speeds, np.median(speeds[told])), *SPEEDS)
    decode, eager = iterations.decode[rows], iterations.eager[rows]
    sequences = iterations.sequences[rows]
    prefills = iterations.frame["prefill_seqs"].to_numpy(dtype=np.float64)[rows]
    columns = np.column_stack(
        [
            decode, decode * sequences, ~decode & ~eager, eager, ~decode * sequences,
            ~decode * prefills,
        ]
    ).astype(np.float64)  # fmt: skip
    columns *= speeds[window[rows]][:, None]
    start = cpu[: columns.shape[1]]
    prior = np.diag(0.5 / np.maximum(start, 1e-6))  # holds what no row tells
    weights = np.ones(len(rows))
    solution = start
    for _ in range(15):
        scaled = columns * (weights / took)[:, None]
        solution = nnls(np.vstack([scaled, prior]), np.append(weights, prior @ start))[0]
        error = np.abs(columns @ solution / took - 1)
        weights = 1 / np.sqrt(np.maximum(error, SCALE) / SCALE)
    return np.append(solution, cpu[columns.shape[1] :]), speeds


def windows(iterations: Iterations) -> NDArray[np.int64]:
    """The number of the window of time that each iteration lies in."""
    number = (iterations.scheduled / WINDOW_S).astype(np.int64)
    return np.unique(number, return_inverse=True)[1]


def cpu_seconds(iterations: Iterations, cpu: Floats, factor: Floats) -> tuple[Floats, Floats]:
    """CPU seconds from scheduled to the first kernel, and to the last."""
    sequences = iterations.sequences
    mixed = np.where(iterations.eager, cpu[3], cpu[2]) + cpu[4] * sequences
    mixed += cpu[5] * iterations.frame["prefill_seqs"].to_numpy()
    launch = np.where(iterations.decode, cpu[0] + cpu[1] * sequences, mixed)
    prepare = np.minimum(cpu[6] + cpu[7] * sequences, launch)
    return prepare * factor, launch * factor


def _fit_decode(iterations: Iterations, weigh: Bools) -> tuple[Floats, Floats, Floats]:
    """Base by padded size and slope by sequences, where decoding runs between decoding."""
    decode = iterations.decode
    clean = weigh & decode & np.append(False, decode[:-1]) & np.append(decode[1:], False)
    clean &= iterations.overlaps & np.append(iterations.overlaps[1:], False)
    took = iterations.took
    most = iterations.tokens[clean].max()
    knots = np.unique(iterations.padded[clean]).astype(np.float64)
    context_knots = np.array(sorted(n for n in SIZES if n <= most), dtype=np.float64)
    columns = decode_columns(iterations, knots, context_knots)[clean]
    # neighbouring sizes are alike: this settles those seen at one context only, or held out
    slopes = np.diff(np.eye(len(context_knots)), axis=0) * 1e6
    slopes = np.hstack([np.zeros((len(slopes), len(knots))), slopes])
    bases = _second_differences(knots, columns.shape[1]) * 30
    ridge = np.vstack([slopes, bases])
    weights = np.ones(clean.sum())
    solution = np.zeros(columns.shape[1])
    for _ in range(25):
        scaled = columns * (weights / took[clean])[:, None]
        # nothing is faster for a longer context, whatever the CPU did while one was measured
        solution = nnls(
            np.vstack([scaled, ridge]), np.append(weights, np.zeros(len(ridge))), maxiter=5000
        )[0]
        error = np.abs(columns @ solution / took[clean] - 1)
        weights = 1 / np.sqrt(np.maximum(error, 0.01) / 0.01)
    # stalls are rare and long: they belong into the mean, though not into the shape
    solution *= took[clean].sum() / (columns @ solution).sum()
    return knots, context_knots, solution


def decode_columns(iterations: Iterations, knots: Floats, context_knots: Floats) -> Floats:
    base = _hat(iterations.padded.astype(np.float64), knots)
    context = iterations.frame["context_tokens"].to_numpy()[:, None]
    slope = _hat(iterations.tokens.astype(np.float64), context_knots) * context
    return np.hstack([base, slope])


def _mixed_knots(iterations: Iterations) -> Floats:
    """Sizes at which the base of mixed iterations is fitted, where there is data around."""
    tokens = iterations.tokens[~iterations.decode & iterations.usable]
    graphs = iterations.graph_sizes
    grid = np.concatenate(
        [[1], graphs[(graphs >= 32) & (graphs % 32 == 0)], np.arange(128, 2049, TILE)]
    )
    grid = np.unique(grid)
    grid = np.concatenate([grid, np.arange(2560, tokens.max() + 1, 512)]).astype(np.float64)
    knots: Floats = grid[grid <= max(tokens.max(), 640)]
    return knots


def mixed_columns(iterations: Iterations, knots: Floats) -> Floats:
    frame = iterations.frame
    terms = [frame[c].to_numpy(dtype=np.float64) for c in ("context_tokens", "chunk_context")]
    terms += [frame[c].to_numpy(dtype=np.float64) for c in ("decode_seqs", "prefill_seqs")]
    columns = np.column_stack([_hat(iterations.padded.astype(np.float64), knots), *terms])
    columns[iterations.decode] = 0.0
    return columns


def _second_differences(knots: Floats, parameters: int) -> Floats:
    """Rows that are zero for a straight line through the first ``len(knots)`` parameters."""
    rows = np.zeros((len(knots) - 2, parameters))
    for i in range(len(knots) - 2):
        left, right = knots[i + 1] - knots[i], knots[i + 2] - knots[i + 1]
        rows[i, i : i + 3] = np.array([right, -(left + right), left]) / (left + right)
    return rows


def _token_seconds(iterations: Iterations) -> float:
    """A first guess of the seconds a token, from the largest prefill iterations."""
    large = ~iterations.decode & iterations.usable
    large &= iterations.tokens > 0.8 * iterations.tokens[large].max()
    return float(np.median(iterations.took[large] / iterations.tokens[large]))


def overheads(iterations: Iterations) -> dict[str, float]:
    """The CPU's seconds to schedule an iteration and to take in its result, by sequences."""
    frame = iterations.frame[iterations.usable]
    update = (frame["updated_ns"] - frame["done_ns"]) / 1e9
    schedule = (frame["scheduled_ns"] - frame["schedule_ns"]) / 1e9
    sequences = frame["prefill_seqs"] + frame["decode_seqs"]
    schedule_line = _line(frame["running"].to_numpy(float), schedule.to_numpy(float))
    update_line = _line(sequences.to_numpy(float), update.to_numpy(float))
    return {
        "schedule": schedule_line[0],
        "schedule_seq": schedule_line[1],
        "update": update_line[0],
        "update_seq": update_line[1],
    }


def frontend(frame: pd.DataFrame, cpu: dict[str, float]) -> dict[str, float]:
    """Seconds from a client to the scheduler, and from an iteration's end back to the client.

    The way there is read off requests that come alone; the way back, off tokens that come to
    ``level`` clients at once. The update that lies before it is the engine's.
    """
    alone = frame[frame.index.str.startswith("alone")]
    there = (alone["engine_added_ns"] - alone["submit_ns"]) / 1e9
    arrival = _line(alone["prompt"].to_numpy(float), there.to_numpy(float))
    first = (frame["first_ns"] - frame["engine_first_ns"]) / 1e9
    last = (frame["last_ns"] - frame["engine_last_ns"]) / 1e9
    back = pd.concat([first, last]).groupby(pd.concat([frame["level"]] * 2)).median()
    level = back.index.to_numpy(dtype=np.float64)
    update = cpu["update"] + cpu["update_seq"] * level
    slope, intercept = np.polyfit(level, back.to_numpy() - update, 1)
    output = (max(float(intercept), 0.0), max(float(slope), 0.0))
    return {
        "arrival": arrival[0],
        "arrival_token": arrival[1],
        "output": output[0],
        "output_seq": output[1],
    }


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Intercept and slope, neither below zero, of the line with the least absolute error."""
    weights = np.ones(len(x))
    intercept = slope = 0.0
    for _ in range(30):
        columns = np.column_stack([np.ones(len(x)), x]) * weights[:, None]
        intercept, slope = np.linalg.lstsq(columns, y * weights, rcond=None)[0]
        weights = 1 / np.sqrt(np.maximum(np.abs(y - intercept - slope * x), 1e-6))
    return max(float(intercept), 0.0), max(float(slope), 0.0)
