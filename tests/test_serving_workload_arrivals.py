"""Arrival processes against the theory of each, and the spelling of specs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.serving.workload import arrivals
from lengthwise.workload import Workload

N = 200_000
SPECS = ("poisson:8", "gamma:8,cv=3", "bursty:8", "bursty:8,ratio=20,cv=2", "constant:8")


def dispersion(times: np.ndarray, window_s: float) -> float:
    """Variance over mean of the counts in windows."""
    counts = np.bincount((times / window_s).astype(np.int64))[:-1]
    return float(counts.var() / counts.mean())


@pytest.mark.parametrize("spec", SPECS)
def test_every_process_ascends_repeats_by_seed_and_has_its_rate(spec: str) -> None:
    times = arrivals(spec, N, seed=3)
    assert times.shape == (N,)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    # the rate of the burstiest varies by 2.5% from seed to seed
    assert N / times[-1] == pytest.approx(8, rel=0.1)
    np.testing.assert_array_equal(times, arrivals(spec, N, seed=3))
    if spec != "constant:8":
        assert not np.array_equal(times, arrivals(spec, N, seed=4))


@pytest.mark.parametrize("spec", SPECS)
def test_another_rate_is_the_same_draw_stretched(spec: str) -> None:
    np.testing.assert_allclose(
        arrivals(spec, 1000, rate=2, seed=1), 4 * arrivals(spec, 1000, seed=1)
    )


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.diff(arrivals("poisson:8", 20_000, seed=0), prepend=0)
    assert stats.kstest(gaps, "expon", args=(0, 1 / 8)).pvalue > 0.001


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gamma_gaps_have_their_distribution(cv: float) -> None:
    gaps = np.diff(arrivals(f"gamma:4,cv={cv}", 20_000, seed=0), prepend=0)
    shape = 1 / cv**2
    assert stats.kstest(gaps, "gamma", args=(shape, 0, 1 / (4 * shape))).pvalue > 0.001
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize(
    ("ratio", "share", "dwell_s"), [(5.0, 0.1, 10.0), (20.0, 0.2, 3.0), (0.2, 0.5, 20.0)]
)
def test_bursts_have_the_dispersion_of_a_markov_modulated_process(
    ratio: float, share: float, dwell_s: float
) -> None:
    """Fischer and Meier-Hellstern 1993: the variance of the counts of a two-state MMPP."""
    rate, window_s = 8.0, 10.0
    calm = rate / (1 - share + share * ratio)
    variance = share * (1 - share) * (calm * (ratio - 1)) ** 2
    decay = 1 / dwell_s + share / (dwell_s * (1 - share))
    x = decay * window_s
    expected = 1 + 2 * variance / (rate * decay) * (1 - (1 - np.exp(-x)) / x)
    spec = f"bursty:{rate},ratio={ratio},share={share},dwell_s={dwell_s}"
    measured = np.mean([dispersion(arrivals(spec, N, seed=s), window_s) for s in range(3)])
    assert measured == pytest.approx(expected, rel=0.06)


def test_constant_and_burst_by_hand() -> None:
    np.testing.assert_allclose(arrivals("constant:2", 4), [0, 0.5, 1, 1.5])
    np.testing.assert_array_equal(arrivals("burst", 3), [0, 0, 0])
    with pytest.raises(InputError, match="it has no rate"):
        arrivals("burst", 3, rate=2)


def test_traces_are_replayed_cycled_and_scaled(tmp_path: Path) -> None:
    trace = [10.0, 11.0, 14.0]
    np.testing.assert_allclose(arrivals(trace, 2), [0, 1])
    # one cycle takes the trace's span and a mean gap: 4 + 2
    np.testing.assert_allclose(arrivals(trace, 7), [0, 1, 4, 6, 7, 10, 12])
    np.testing.assert_allclose(arrivals(trace, 3, rate=4), [0, 0.125, 0.5])
    workload = Workload(
        {"arrival_s": trace, "prompt_tokens": [1, 1, 1], "output_tokens": [1, 1, 1]}
    )
    np.testing.assert_allclose(arrivals(workload, 3), [0, 1, 4])
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n1,1,1\n2,1,0\n3,1,1\n")
    np.testing.assert_allclose(arrivals(path, 2), [0, 2])  # the request without output is left out
    np.testing.assert_allclose(arrivals(str(path), 3), [0, 2, 4])
    with pytest.raises(InputError, match="can't be cycled"):
        arrivals([5.0, 5.0], 3)
    with pytest.raises(InputError, match="no rate to change"):
        arrivals([5.0, 5.0], 2, rate=3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("poison:8", "arrival process 'poison'; did you mean 'poisson'"),
        ("poisson", "need a rate in requests/s, e.g. poisson:8"),
        ("poisson:0", "0 must be a positive number"),
        ("poisson:-2", "-2 must be a positive number"),
        ("poisson:nan", "nan must be a positive number"),
        ("poisson:fast", "'fast' is not a number"),
        ("gamma:8,cv=0", "cv must be above 0, not 0"),
        ("gamma:8,vc=2", "unknown parameter 'vc' of arrivals .*; did you mean 'cv'"),
        ("gamma:8,2", "unknown parameter '2' of arrivals"),
        ("poisson:8,cv=2", "unknown parameter 'cv' of arrivals .* .allowed: none"),
        ("bursty:8,share=1", "share must be above 0 and below 1, not 1"),
        ("bursty:8,ratio=inf", "ratio must be above 0, not inf"),
        ("burst:8", "a burst arrives all at once; it has no rate"),
        ("nowhere.csv", "no such file"),
        ("closed:8", "a closed loop has no arrival times of its own"),
    ],
)
def test_bad_specs_are_one_clear_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        arrivals(spec, 5)
    assert "\n" not in str(caught.value)


def test_bad_numbers() -> None:
    with pytest.raises(InputError, match="requests must be 1 or more, not 0"):
        arrivals("poisson:8", 0)
    for rate in (0, -1, np.nan, np.inf):
        with pytest.raises(InputError, match="rate must be a positive number"):
            arrivals("poisson:8", 5, rate=rate)
    with pytest.raises(UnknownNameError):
        arrivals("", 5)
