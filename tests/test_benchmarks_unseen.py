"""The benchmark of traces that nobody was tuned on: what is trained on, and what its tables say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import unseen
from lengthwise.eval.compare import capacity_of
from lengthwise.eval.held_out import trials_of
from lengthwise.eval.setting import Setting
from lengthwise.eval.source import Fixed
from lengthwise.eval.tuned import held_out


def traces(folder: Path) -> None:
    """Both traces to train on: 60 requests each, no two of the same length."""
    (folder / "traces").mkdir()
    for first, name in enumerate(unseen.TRAINED):
        lengths = 10 + 100 * first + np.arange(60)
        pd.DataFrame(
            {"arrival_s": np.arange(60.0), "prompt_tokens": 50, "output_tokens": lengths}
        ).to_csv(folder / "traces" / f"{name}.csv.gz", index=False)


def test_what_is_trained_on_is_the_beginning_of_each_trace_at_both_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces(tmp_path)
    monkeypatch.setattr(unseen, "REQUESTS", 10)
    monkeypatch.setattr(unseen, "TRAIN", 2)
    loaded = Setting(unseen.ENGINE).load()
    whole = unseen.learnt_on(tmp_path, loaded)
    apart = held_out(Fixed(whole), loaded, None, (), 10, 4)
    seen = [trial.workload["output_tokens"].tolist() for trial in apart.trials("train")]
    assert seen == [list(range(at, at + 10)) for at in (10, 20, 110, 120)]
    held = [trial.workload["output_tokens"].tolist() for trial in apart.trials("test")]
    assert held == [list(range(at, at + 10)) for at in (30, 40, 130, 140)]
    for name, pair in zip(unseen.TRAINED, (slice(0, 2), slice(2, 4)), strict=True):
        capacity = capacity_of(unseen.read(tmp_path, name), loaded)
        shares = [trial.workload.rate / capacity for trial in apart.trials("train")[pair]]
        assert shares == pytest.approx(unseen.LOADS)


def test_no_lengths_leave_prompts_to_order_by(tmp_path: Path) -> None:
    traces(tmp_path)
    windows = held_out(
        Fixed(unseen.read(tmp_path, unseen.TRAINED[0])), Setting(unseen.ENGINE).load(), None, (),
        20, 1,
    ).windows.test  # fmt: skip
    known = {
        name: trials_of(windows, (), Setting(unseen.ENGINE).load().system("fcfs"),
                        unseen.load_predictor(spec))[0].predictions
        for name, spec in unseen.KNOWN.items()
    }  # fmt: skip
    assert len(set(known["none"].predicted_tokens)) == 1  # type: ignore[union-attr]
    truth = windows[0].workload["output_tokens"]
    assert (known["all"].predicted_tokens == truth).all()  # type: ignore[union-attr]
    assert (known["some"].predicted_tokens != truth).any()  # type: ignore[union-attr]


def row(none: float, some: float, every: float) -> dict[str, Any]:
    """Latencies in FCFS's, the same on both windows but for FCFS's own."""
    fcfs = np.array([[2.0, 4.0], [4.0, 8.0]])
    made: dict[str, Any] = {"tau": None, "fcfs": fcfs.tolist(), "bound": [0.5, 1.0]}
    for known, ratio in zip(unseen.KNOWN, (none, some, every), strict=True):
        for who, times in zip(unseen.WHO, (1.0, 1.5, 0.5), strict=True):
            made[f"{known} {who}"] = (fcfs * ratio * times).tolist()
    return made


def test_its_tables_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"a, 0.9": row(0.8, 0.4, 0.2), "a, 1.1": row(0.5, 0.5, 0.25)}
    rows["b, 1.1"] = row(0.5, 0.5, 0.25) | {"tau": 0.25}
    unseen.told({"policies": {"none": ["work"], "some": [], "all": []}, "rows": rows})
    said = capsys.readouterr().out
    assert "no lengths: `work`" in said
    same, half = "1.500 (1.500 to 1.500) | 0.500 (0.500 to 0.500)", "0.50 (0.50 to 0.50)"
    assert (
        f"| a, 0.9 | 3 | 0.25 | 0.80 (0.80 to 0.80) | {same} | 0.40 (0.40 to 0.40) | {same} | "
        f"0.20 (0.20 to 0.20) | {same} |"
    ) in said
    assert f"| b, 1.1 (ridge τ 0.25) | 6 | {half} | {half} | 0.25 (0.25 to 0.25) |" in said
    worth = [line for line in said.splitlines() if line.startswith(("| 0.9 |", "| 1.1 |"))]
    assert worth == [
        "| 0.9 | no lengths | 0.80 | 1.00 | 4.00 |",
        "| 0.9 | τ 0.5, or ridge | 0.40 | 0.50 | 2.00 |",
        "| 0.9 | exact lengths | 0.20 | 0.25 | 1.00 |",
        "| 1.1 | no lengths | 0.50 | 1.00 | 2.00 |",
        "| 1.1 | τ 0.5, or ridge | 0.50 | 1.00 | 2.00 |",
        "| 1.1 | exact lengths | 0.25 | 0.50 | 1.00 |",
    ]
