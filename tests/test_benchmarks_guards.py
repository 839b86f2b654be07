"""The benchmark of guards with a trained predictor: whose prompts it is judged on, and by what."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import guards
from lengthwise.serving.workload import read_prompts


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Arrivals, and prompts whose answers are as long as they say; windows of 20 requests."""
    monkeypatch.setattr(guards, "LENGTH", 20)
    rng = np.random.default_rng(0)
    words = rng.integers(1, 40, 120)
    prompts = tmp_path / "prompts.csv"
    pd.DataFrame(
        {
            "prompt": [f"question {k}: " + "word " * n for k, n in enumerate(words)],
            "model": ["mine"] * 100 + ["other"] * 20, "prompt_tokens": words + 4,
            "output_tokens": 5 * words,
        }
    ).to_csv(prompts, index=False)  # fmt: skip
    trace = tmp_path / "trace.csv"
    arrival = np.cumsum(rng.exponential(1.0, 60))
    pd.DataFrame(
        {"arrival_s": arrival, "prompt_tokens": 10, "output_tokens": 10}
    ).to_csv(trace, index=False)  # fmt: skip
    return str(trace), str(prompts)


def test_windows_have_the_traces_arrivals_and_prompts_that_nothing_was_trained_on(
    files: tuple[str, str],
) -> None:
    trace, prompts = files
    windows = guards.windows_of(trace, 20, 2, prompts, "mine")
    test = set(read_prompts(prompts, model="mine").split("test", 0.5).prompt)
    train = set(read_prompts(prompts, model="mine").split("train", 0.5).prompt)
    assert not test & train
    arrivals = pd.read_csv(trace)["arrival_s"].to_numpy()
    for window, at in zip(windows, (20, 40), strict=True):
        assert len(window) == 20
        assert set(window["prompt"]) <= test
        gaps, expected = np.diff(window["arrival_s"]), np.diff(arrivals[at : at + 20])
        assert gaps / gaps.sum() == pytest.approx(expected / expected.sum())
    assert list(windows[0]["prompt"]) != list(windows[1]["prompt"])
    plain = guards.windows_of(trace, 0, 1)
    assert "prompt" not in plain[0] and len(plain[0]) == 20


def test_a_predictor_is_trained_where_it_is_named_and_its_table_has_files(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, prompts = files
    assert guards.trained("noisy-oracle:tau=0.5", prompts, "mine") == "noisy-oracle:tau=0.5"
    policy = f"{Path(guards.__file__).parent / 'squared_ageing.py'}:score:tokens=1.0"
    given = [trace, "--prompts", prompts, "--answers-by", "mine", "--predictor", "ridge",
             "--rates", "3", "--policies", f"{policy};sjf"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["guards", *given])
    guards.main()
    told = capsys.readouterr().out
    tau = float(told.split("τ ")[1].split()[0])
    assert 0.3 < tau < 1
    rows = [line.split("|")[1].strip() for line in told.splitlines() if line.startswith("| ")]
    assert told.count(" – |") == 4  # no queue forms, so there is no gain to have a share of
    assert rows[1:] == ["fcfs", "srtf", policy, "sjf"]
