"""The fit recovers the coefficients of an engine whose every time is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lengthwise.serving.timing import fit as fitting
from lengthwise.serving.timing.errors import errors
from lengthwise.serving.timing.vllm_plan import sweep_plan
from tests.engines.fake_sweep import (
    BASE,
    CONTEXT,
    GRAPHS,
    LAUNCH_EAGER,
    MIXED_BASE,
    MIXED_CONTEXT,
    PAIR,
    PER_SEQ,
    PER_TOKEN,
    recorded,
)

PLAN = sweep_plan(800_000, 2048, 256, 131_072, thoroughness=0.5)


@pytest.mark.parametrize("slow_cpu", [False, True])
def test_the_fit_finds_what_the_engine_was_made_of(slow_cpu: bool) -> None:
    iterations = fitting.read_iterations(recorded(PLAN, 1, slow_cpu), GRAPHS.tolist())
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
    iterations = fitting.read_iterations(recorded(PLAN, 2), GRAPHS.tolist())
    assert 0.1 < iterations.held_out[iterations.usable].mean() < 0.3
    without = replace(iterations, usable=iterations.usable & ~iterations.held_out)
    found, blind = fitting.fit(iterations), fitting.fit(without, hold_out=False)
    assert found.terms == pytest.approx(blind.terms, rel=1e-9, abs=0)
    assert found.decode_context == blind.decode_context and found.decode == blind.decode
    assert found.terms != pytest.approx(
        fitting.fit(iterations, hold_out=False).terms, rel=1e-4, abs=0
    )
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
    found = fitting._fit_mixed(columns, took, took, knots, start, knots <= 256)
    assert (found >= 0).all()
    assert found[4] == 0
    assert (columns @ found).sum() == pytest.approx(took.sum())  # unbiased in all
