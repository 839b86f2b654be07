"""The fit recovers the coefficients of an engine whose every time is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lengthwise.serving.timing import fit as fitting
from lengthwise.serving.timing.columns import COLUMNS
from lengthwise.serving.timing.errors import errors
from lengthwise.serving.timing.profile import capture_sizes, padded
from lengthwise.serving.timing.vllm_plan import sweep_plan

GRAPHS = capture_sizes(256, 2048)
BASE, PER_SEQ, CONTEXT = 5e-3, 15e-6, 29e-9
MIXED_BASE, PER_TOKEN, MIXED_CONTEXT, PAIR = 5e-3, 22e-6, 31e-9, 0.9e-9
LAUNCH_DECODE, LAUNCH_GRAPH, LAUNCH_EAGER = 2.3e-3, 6e-3, 16e-3


def simulate_sweep(seed: int, slow_cpu: bool) -> pd.DataFrame:
    """What the recorder would write for an engine with known times, with 1% of noise."""
    rng = np.random.default_rng(seed)
    plan = sweep_plan(800_000, 2048, 256, 131_072, thoroughness=0.5)
    rows, done, free, label = [], 0.0, 0.0, -1
    shapes = []
    for label, group in enumerate(plan):
        for n, repeat, chunks in group.get("steps", []):
            for _ in range(repeat):
                context = sum(group["context"][:n]) + n
                pairs = sum(t * b + t * (t + 1) // 2 for t, b in chunks)
                longest = max([*group["context"][:n], *(t + b for t, b in chunks)])
                shapes.append((label, n, context, chunks, pairs, longest))
    pending: tuple[int, float] | None = None
    for k, (label, n, context, chunks, pairs, longest) in enumerate(shapes):
        tokens = sum(t for t, _ in chunks)
        size = int(padded(np.array([n + tokens]), GRAPHS)[0])
        slow = 1.5 if slow_cpu and (k // 60) % 2 else 1.0
        if chunks:
            work = MIXED_BASE + PER_TOKEN * size + MIXED_CONTEXT * context + PAIR * pairs
            launch = (LAUNCH_GRAPH if size <= GRAPHS[-1] else LAUNCH_EAGER) * slow
        else:
            work = BASE + PER_SEQ * size + CONTEXT * context
            launch = LAUNCH_DECODE * slow
        work *= rng.lognormal(0, 0.01)
        scheduled = done + 3e-4
        start = max(free, scheduled + min(1.5e-3 * slow, launch))
        ends = max(start + work, scheduled + launch + 5e-4)
        if pending is not None:
            done = max(free, scheduled + launch)
            rows[pending[0]][2:4] = [done, done + 2e-4]
            done += 2e-4
        rows.append(
            [scheduled - 2e-4, scheduled, -1.0, -1.0, tokens, len(chunks), n, context, pairs,
             longest, n + len(chunks), 0, 0, len(chunks), 0, label]
        )  # fmt: skip
        free, pending = ends, (k, ends)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    for column in ("schedule_ns", "scheduled_ns", "done_ns", "updated_ns"):
        frame[column] = (frame[column] * 1e9).round().astype(np.int64)
    return frame


@pytest.mark.parametrize("slow_cpu", [False, True])
def test_the_fit_finds_what_the_engine_was_made_of(slow_cpu: bool) -> None:
    iterations = fitting.read_iterations(simulate_sweep(1, slow_cpu), GRAPHS.tolist())
    found = fitting.fit(iterations)
    for size, base in found.decode:
        if size <= 224:
            assert base == pytest.approx(BASE + PER_SEQ * size, rel=0.05), size
    slopes = [slope for n, slope in found.decode_context if 16 <= n <= 200]
    assert np.mean(slopes) == pytest.approx(CONTEXT, rel=0.05)
    for size, base in found.mixed:
        if 1024 <= size <= 2048:
            assert base == pytest.approx(MIXED_BASE + PER_TOKEN * size, rel=0.05), size
    assert found.terms["chunk_context"] == pytest.approx(PAIR, rel=0.10)
    assert found.terms["mixed_context"] == pytest.approx(MIXED_CONTEXT, rel=0.25)
    speed = np.median(found.speeds)
    assert found.terms["launch_eager"] * speed == pytest.approx(LAUNCH_EAGER * 1.25, rel=0.3)
    held_out = errors(iterations, found, iterations.held_out)
    assert held_out["decode"]["mean"] < 0.03
    assert held_out["mixed, without"]["median"] < 0.04


def test_the_fit_does_not_see_what_is_held_out() -> None:
    """As if those iterations were not usable at all; with them it says something else."""
    iterations = fitting.read_iterations(simulate_sweep(2, slow_cpu=False), GRAPHS.tolist())
    assert 0.1 < iterations.held_out[iterations.usable].mean() < 0.3
    without = replace(iterations, usable=iterations.usable & ~iterations.held_out)
    found, blind = fitting.fit(iterations), fitting.fit(without, hold_out=False)
    assert found.terms == blind.terms
    assert found.decode_context == blind.decode_context and found.decode == blind.decode
    assert found.terms != fitting.fit(iterations, hold_out=False).terms
    # one shape, whatever its repetitions, is all held out or not at all
    shapes = iterations.frame.groupby(
        ["label", "prefill_tokens", "prefill_seqs", "decode_seqs", "chunk_context"], sort=False
    ).ngroup()
    assert (pd.Series(iterations.held_out).groupby(shapes).nunique() == 1).all()


def test_no_coefficient_of_the_gpu_is_negative() -> None:
    """Iterations that took less the more they attended to: no more attention ever saves time."""
    rng = np.random.default_rng(3)
    knots = np.array([1.0, 256.0, 1024.0, 2048.0])
    columns = np.hstack([fitting._hat(rng.uniform(1, 2048, 300), knots), rng.random((300, 4))])
    took = 5e-3 + 1e-3 * columns[:, 1:4].sum(axis=1) - 1e-3 * columns[:, 4]
    start = np.full(4, 5e-3)
    found = fitting._fit_mixed(columns, took, start, knots <= 256)
    assert (found >= 0).all()
    assert found[4] == 0
    assert (columns @ found).sum() == pytest.approx(took.sum())  # unbiased in all
