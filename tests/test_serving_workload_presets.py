"""Presets: their statistics beside those published for the traces that they stand for."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.serving.workload import preset, preset_names
from lengthwise.workload import Workload

N = 100_000
# name: (requests/s, CV of gaps, variance/mean of counts in 10 s, prompt tokens, output tokens, tau)
# tokens: mean / median / p95 / p99 / standard deviation; None: not published
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "azure-conv-2023": (
        5.925, 1.08, 3.61,
        (1202.9, 1016, 4085, 4122, 1172.8), (200.9, 115, 447, 598, 161.9), 0.036,
    ),
    "azure-code-2023": (
        3.138, 13.64, 77.5,
        (2028.4, 1465, 7067.6, 7436, 1952), (27.5, 13, 86, 247, 62.1), -0.007,
    ),
    "mooncake-conversation": (
        3.261, 2.96, 2.04,
        (12449.1, 7284, 40537.2, 89975.9, 16321.5), (347.7, 356, 713, 1166.5, 254.8), 0.051,
    ),
    "reasoning": (
        13.486, 1.67, 14.6,
        (960.4, 117, 5273, 18117.5, 3286.6), (3067.8, 2083, 9342.3, 15925.1, 3259.8), -0.27,
    ),
    "lmsys-chat": (
        None, None, None,
        (92.4, 28, 432, 750, 163.2), (208.1, 140, 521, 855, 201.2), 0.136,
    ),
    # three prompts above 32k (one of 241,402) and two answers above 4k make up the published
    # deviations of 1686.9 and 327.9, and 4% of the mean prompt
    "sharegpt": (
        None, None, None,
        (301.5, 36, 1620, 3458, None), (323, 280, 838, 996, None), 0.1,
    ),
    # quoted after Llumnix (OSDI 2024), table 1, BurstGPT (GPT4-Conversation); not re-measured
    "burstgpt": (
        None, None, None, (830, 582, 2345, 3549, None), (271, 243, 669, 964, None), None,
    ),
}  # fmt: skip


def test_every_preset_but_the_generated_one_has_published_statistics() -> None:
    assert set(preset_names()) == {*PUBLISHED, "synthetic-chat", "overload"}  # two are made


@pytest.mark.parametrize("name", PUBLISHED)
def test_lengths_are_as_published(name: str) -> None:
    *_, prompt, output, tau = PUBLISHED[name]
    workload = preset(name, requests=N, seed=1)
    for column, (mean, median, p95, p99, deviation) in (
        ("prompt_tokens", prompt), ("output_tokens", output),
    ):  # fmt: skip
        tokens = workload[column]
        assert tokens.mean() == pytest.approx(mean, rel=0.04)
        assert np.median(tokens) == pytest.approx(median, rel=0.03, abs=1)
        assert np.quantile(tokens, 0.95) == pytest.approx(p95, rel=0.04)
        assert np.quantile(tokens, 0.99) == pytest.approx(p99, rel=0.04)
        if deviation is not None:
            assert tokens.std() == pytest.approx(deviation, rel=0.05)
    if tau is not None:
        measured = kendalltau(
            workload["prompt_tokens"][:20_000], workload["output_tokens"][:20_000]
        )
        assert measured.statistic == pytest.approx(tau, abs=0.02)


@pytest.mark.parametrize("name", [name for name, row in PUBLISHED.items() if row[0]])
def test_arrivals_are_as_published(name: str) -> None:
    rate, cv, dispersion, *_ = PUBLISHED[name]
    rows = []
    for seed in range(5):
        times = preset(name, requests=N, seed=seed)["arrival_s"]
        gaps = np.diff(times)
        counts = np.bincount((times / 10).astype(np.int64))[:-1]
        rows.append((N / times[-1], gaps.std() / gaps.mean(), counts.var() / counts.mean()))
    measured = np.mean(rows, axis=0)
    assert measured[0] == pytest.approx(rate, rel=0.05)
    assert measured[1] == pytest.approx(cv, rel=0.05)
    assert measured[2] == pytest.approx(dispersion, rel=0.1)


def test_mooncake_prefixes_hit_as_published() -> None:
    workload = preset("mooncake-conversation", requests=20_000, seed=2)
    seen: set[int] = set()
    hits = total = continued = 0
    for row, hashes in enumerate(workload["prefix_hashes"]):
        assert len(hashes) == workload["prompt_tokens"][row] // 512
        known = 0
        for block in hashes:
            if block not in seen:
                break
            known += 1
        hits, total, continued = hits + known, total + len(hashes), continued + (known > 1)
        seen.update(hashes)
    # published: 35% of blocks; in the trace 37% of requests find more than the common first block
    assert hits / total == pytest.approx(0.35, abs=0.02)
    assert continued / len(workload) == pytest.approx(0.37, abs=0.03)
    # ticks of the trace's clock, 3 s
    assert np.unique(np.diff(workload["arrival_s"]))[1] == pytest.approx(3.0)


def test_sessions_grow_and_their_prompts_extend_each_other() -> None:
    workload = preset("mooncake-conversation", requests=3_000, seed=0)
    last: dict[int, tuple[int, ...]] = {}
    for session, hashes in zip(workload["session_id"], workload["prefix_hashes"], strict=True):
        before = last.get(session, ())
        assert hashes[: len(before)] == before
        last[session] = hashes
    assert len(last) == pytest.approx(3_000 / 1.72, rel=0.05)


@pytest.mark.parametrize("name", preset_names())
def test_presets_repeat_by_seed_and_take_a_rate(name: str) -> None:
    one, again = (preset(name, requests=500, seed=7) for _ in range(2))
    for column in one.columns:
        np.testing.assert_array_equal(one[column], again[column])
    other = preset(name, requests=500, seed=8)
    drawn = "arrival_s" if name == "overload" else "output_tokens"  # all of one length
    assert not np.array_equal(one[drawn], other[drawn])
    fast = preset(name, requests=500, rate=40.0, seed=7)
    np.testing.assert_array_equal(fast["output_tokens"], one["output_tokens"])
    # exact, but for the ticks of Mooncake's clock
    assert fast.rate == pytest.approx(40.0, rel=0.02 if name.startswith("mooncake") else 1e-9)
    assert len(preset(name, requests=1, rate=3.0)) == 1
    assert Workload.preset(name, requests=500, rate=40.0, seed=7).rate == fast.rate


def test_bad_presets() -> None:
    with pytest.raises(UnknownNameError, match="'azure-conv'; did you mean 'azure-conv-2023'"):
        preset("azure-conv")
    with pytest.raises(InputError, match="requests must be 1 to 100000000, not 0"):
        preset("sharegpt", requests=0)
    with pytest.raises(InputError, match="seed must be a whole number of 0 or more, not -1"):
        preset("sharegpt", seed=-1)
    for rate in (0.0, -1.0, np.nan):
        with pytest.raises(InputError, match="rate must be a positive number"):
            preset("sharegpt", rate=rate)


@pytest.mark.slow
def test_a_million_requests_take_seconds() -> None:
    start = time.process_time()
    preset("azure-conv-2023", requests=1_000_000, rate=8.0)
    assert time.process_time() - start < 4  # 0.5 s on an idle core
