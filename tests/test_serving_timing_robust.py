"""What the fit of a timing profile minimises, written down again and left to scipy's optimisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.optimize import least_squares

from lengthwise.serving.timing import fit as fitting
from lengthwise.serving.timing.columns import COLUMNS

Floats = NDArray[np.float64]


def least(residuals: Callable[[Floats], Floats], start: Floats, robust: int, scale: float,
          low: float) -> Floats:  # fmt: skip
    """The minimum over x >= low of squares, of which the first ``robust`` are Huber's instead."""

    def loss(z: Floats) -> Floats:
        far = np.append(z[:robust] > scale**2, np.zeros(len(z) - robust, bool))
        root = np.sqrt(np.maximum(z, scale**2))
        rho = np.where(far, 2 * scale * root - scale**2, z)
        first = np.where(far, scale / root, 1.0)
        return np.array([rho, first, np.where(far, -scale / (2 * root**3), 0.0)])

    found = least_squares(
        residuals, start, bounds=(low, np.inf), loss=loss, method="trf",
        xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=4000,
    )  # fmt: skip
    x: Floats = found.x
    return x


def test_mixed_iterations_are_a_robust_fit_beside_a_straight_line_and_decoding() -> None:
    rng = np.random.default_rng(5)
    knots = np.array([1.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0])
    graphs = knots <= 256
    sizes = rng.uniform(1, 2048, 250)
    columns = np.hstack([fitting._hat(sizes, knots), rng.uniform(0, 1, (250, 4))])
    truth = np.array([5e-3, 5.4e-3, 5.2e-3, 6e-3, 12e-3, 20e-3, 47e-3, 1e-3, 2e-3, 3e-3, 1e-3])
    took = columns @ truth * rng.lognormal(0, 0.03, 250)
    took[::9] *= 1.7  # stalls: outliers that must not bend it
    start = np.array([5e-3, 5.1e-3, 5.3e-3, 5.8e-3, 11e-3, 22e-3, 44e-3])
    scale = took.copy()
    took[4::9] *= 0.1  # what a stall delayed is seen with what follows it
    typical = float(np.median(took))
    ahead = (knots[2:] - knots[1:-1]) / (knots[2:] - knots[:-2])  # a line's middle, where it lies

    def residuals(x: Floats) -> Floats:
        x = x * 1e-3
        bend = ahead * x[:5] - x[1:6] + (1 - ahead) * x[2:7]
        own = ahead * start[:5] - start[1:6] + (1 - ahead) * start[2:7]
        bend[:2] -= own[:2]  # three sizes beside each other that all run as graphs: as decoding
        near = (x[:4] - start[:4]) * fitting.LEVEL / typical
        off = (columns @ x - took) / scale
        return np.concatenate([off, bend * fitting.SMOOTH / typical, near])

    x = least(residuals, np.append(start, [1e-3] * 4) * 1e3, 250, fitting.SCALE, 0.0) * 1e-3
    expected = x * took.sum() / (columns @ x).sum()
    found = fitting._fit_mixed(columns, took, scale, knots, start, graphs)
    assert found == pytest.approx(expected, rel=2e-3)
    assert found[:7] == pytest.approx(truth[:7] * took.sum() / (columns @ truth).sum(), rel=0.15)
    # with no iteration that tells, sizes in graphs stay at decoding's and the rest goes straight on
    few = fitting._fit_mixed(columns[:1] * 1e-9, took[:1], scale[:1], knots, start, graphs)
    few = few / few[0] * start[0]
    assert few[:4] == pytest.approx(start[:4], rel=1e-6)


def iterations_of(frame: pd.DataFrame, n: int) -> fitting.Iterations:
    whole = pd.DataFrame(0, index=range(n), columns=list(COLUMNS)).assign(**frame)
    ms = 10**6
    times = np.arange(n) * 10 * ms
    whole = whole.assign(
        schedule_ns=times, scheduled_ns=times + ms, done_ns=times + 15 * ms,
        updated_ns=times + 17 * ms,
    )  # fmt: skip
    return fitting.read_iterations(whole.astype(np.int64), [1, 2, 4, 8, 16, 32, 64])


def test_launches_are_a_robust_fit_beside_what_was_assumed() -> None:
    rng = np.random.default_rng(6)
    n = 240
    decode = rng.random(n) < 0.4
    frame = pd.DataFrame({
        "decode_seqs": rng.integers(1, 30, n),
        "prefill_seqs": np.where(decode, 0, rng.integers(1, 4, n)),
        "prefill_tokens": np.where(decode, 0, rng.integers(1, 90, n)),
    })  # fmt: skip
    found = iterations_of(frame, n)
    cpu, window = np.array(fitting.CPU_START), fitting.windows(found)
    rows = np.flatnonzero(rng.random(n) < 0.8)
    prefills = frame["prefill_seqs"].to_numpy()
    seconds = np.where(found.eager, 15e-3, 6e-3) + 4e-5 * found.sequences + 3e-4 * prefills
    seconds = np.where(decode, 2e-3 + 2e-5 * found.sequences, seconds)
    factors = rng.uniform(1.0, 1.8, window.max() + 1)
    took = (seconds * factors[window] * rng.lognormal(0, 0.02, n))[rows]
    took[::11] *= 2.5
    kept, speeds = fitting._fit_cpu(found, rows, took, cpu, window, len(factors))

    launch = np.where(
        decode, cpu[0] + cpu[1] * found.sequences,
        np.where(found.eager, cpu[3], cpu[2]) + cpu[4] * found.sequences + cpu[5] * prefills,
    )[rows]  # fmt: skip
    ratio = pd.Series(took / launch)
    mine = ratio.groupby(window[rows]).median() / np.quantile(ratio, 0.05)
    assert speeds == pytest.approx(mine.clip(0.9, 2.5).to_numpy())
    kinds = np.column_stack([
        decode, decode * found.sequences, ~decode & ~found.eager, ~decode & found.eager,
        ~decode * found.sequences, ~decode * prefills,
    ])[rows] * speeds[window[rows]][:, None]  # fmt: skip

    def residuals(x: Floats) -> Floats:  # x times what was assumed
        return np.append(kinds @ (x * cpu[:6]) / took - 1, 0.5 * (x - 1))

    x = least(residuals, np.ones(6), len(rows), fitting.SCALE, 0.0)
    assert kept[:6] == pytest.approx(x * cpu[:6], rel=2e-3)
    assert kept[6:].tolist() == cpu[6:].tolist()
    assert x != pytest.approx(np.ones(6), rel=0.05)


def test_decoding_is_a_robust_fit_whose_neighbours_are_alike() -> None:
    rng = np.random.default_rng(7)
    n = 400
    sizes = np.sort(rng.choice([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64], n))
    frame = pd.DataFrame({
        "decode_seqs": sizes, "context_tokens": sizes * rng.integers(100, 4000, n),
    })  # fmt: skip
    found = iterations_of(frame, n)
    took = 5e-3 + 2e-5 * found.padded + 3e-8 * frame["context_tokens"].to_numpy()
    took = took * rng.lognormal(0, 0.01, n)
    took[::13] += 4e-3  # stalls
    found = replace(found, took=took)
    weigh = found.usable & (rng.random(n) < 0.9)
    # only decoding that lies between decoding, and overlaps both
    weigh[50:60], found.overlaps[55] = True, False
    knots, slopes, solution = fitting._fit_decode(found, weigh)
    clean = weigh.copy()
    clean[[0, 54, 55, n - 1]] = False
    assert knots.tolist() == sorted(set(found.padded[clean]))
    assert slopes.tolist() == [s for s in sorted(fitting.SIZES) if s <= 64]

    base = fitting._hat(found.padded[clean].astype(float), knots)
    context = fitting._hat(sizes[clean].astype(float), slopes)
    context = context * frame["context_tokens"].to_numpy()[clean][:, None]
    count, unit = len(knots), np.append(np.full(len(knots), 1e-3), np.full(len(slopes), 1e-8))
    columns = np.hstack([base, context]) * unit

    def residuals(x: Floats) -> Floats:
        bases, each = (x * unit)[:count], (x * unit)[count:]
        rise = np.diff(bases) / np.diff(knots)
        left, right = np.diff(knots)[:-1], np.diff(knots)[1:]
        bend = np.diff(rise) * left * right / (left + right)
        return np.concatenate([columns @ x / took[clean] - 1, np.diff(each) * 1e6, bend * 30])

    x = least(residuals, solution / unit, int(clean.sum()), 0.01, -np.inf)
    expected = x * unit * took[clean].sum() / (columns @ x).sum()
    assert solution[:count] == pytest.approx(expected[:count], rel=2e-3)
    assert solution[count:] == pytest.approx(expected[count:], rel=5e-3)
    assert (columns @ (solution / unit)).sum() == pytest.approx(took[clean].sum())
