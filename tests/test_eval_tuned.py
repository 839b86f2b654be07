"""A policy tuned and judged: on other requests, where the best is known, and from the terminal."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import lengthwise as lw
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval import compare as comparing
from lengthwise.eval import tuned as tuned_module
from lengthwise.eval.compare import compare
from lengthwise.eval.held_out import apart, windows_of_source
from lengthwise.eval.source import Fixed, Spelled
from lengthwise.eval.tuned import tune_policy
from lengthwise.policies import load_policy
from lengthwise.serving import Engine
from lengthwise.training.cli import cli, main
from lengthwise.workload import Workload
from tests.one_seat import SEAT, SLOW_PREFILL, burst


def tuned(**given: Any) -> Any:
    return tune_policy(
        "work", burst(360), requests=60, seeds=3, engine=SEAT, timing=SLOW_PREFILL, **given
    )


def test_what_is_found_is_near_the_best_on_requests_that_were_not_seen() -> None:
    """On one seat, shortest processing time first is optimal: b is the ratio of the two times."""
    found = tuned()
    assert found.names == ["fcfs", "work", found.tuned]
    b = load_policy(found.tuned).score.tunables["b"]
    assert 0.3 < b < 0.8
    exact = tune_policy(
        "work:b=0.5", burst(360), requests=60, seeds=3, engine=SEAT, timing=SLOW_PREFILL
    )
    best = exact.values["test", "work:b=0.5"]
    assert found.values["test", found.tuned] / best == pytest.approx([1.0] * 3, abs=0.01)
    assert found.ratio("test", found.tuned, "work").high < 1
    assert found.ratio("test", found.tuned, "fcfs").mean < 0.8


def test_values_are_those_of_runs_of_those_windows() -> None:
    """The first windows were tuned on and those after judged on; intervals are scipy's."""
    found = tuned(budget=12)
    whole = burst(360)
    for on, first in (("train", 0), ("test", 180)):
        by_hand = []
        for k in range(3):
            window = whole.window(first + 60 * k, first + 60 * (k + 1))
            result = lw.simulate(window, policy="fcfs", engine=SEAT, timing=SLOW_PREFILL)
            by_hand.append(result.summary()["e2e_mean_s"])
        assert found.values[on, "fcfs"].tolist() == by_hand
        interval = stats.t.interval(0.95, 2, np.mean(by_hand), stats.sem(by_hand))
        said = found.interval(on, "fcfs")
        assert (said.low, said.high) == pytest.approx(interval)


def test_tuning_never_sees_what_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        tuned_module, "tune", lambda policy, runs, **more: (seen.extend(runs), policy)[1]
    )
    tuned()
    assert [int(run.workload["prompt_tokens"][0]) for run in seen] == burst(360)["prompt_tokens"][
        [0, 60, 120]
    ].tolist()
    seen.clear()
    tune_policy("mlfq", "azure-conv-2023", requests=20, seeds=2, rates=(5.0, 9.0))
    assert [round(run.workload.rate, 6) for run in seen] == [5.0, 9.0] * 2
    asked = windows_of_source(Spelled("azure-conv-2023"), (5.0,), 20, 2)
    assert {w.seed for w in asked.tuning}.isdisjoint(w.seed for w in asked.test)


def test_a_comparison_s_policies_are_tuned_on_what_is_not_compared_on() -> None:
    whole = burst(360)
    windows, rest, told = apart(Fixed(whole), None)
    numbers = np.concatenate([w.workload["prompt_tokens"] for w in windows])
    assert numbers.tolist() == whole["prompt_tokens"][:120].tolist()
    assert rest.load(None, 0)["prompt_tokens"].tolist() == whole["prompt_tokens"][120:].tolist()
    assert told == "on the first 120 requests, and compared on the 240 after them"
    drawn, same, _ = apart(Spelled("azure-conv-2023", {"requests": 30}), 4.0)
    assert same == Spelled("azure-conv-2023", {"requests": 30})
    assert min(w.seed for w in drawn) > 10_000  # as many seeds as a comparison may have
    with pytest.raises(InputError, match="too few to tune on"):
        apart(Fixed(burst(17)), None)


def test_every_row_of_a_comparison_is_tuned_with_its_own_predictor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"engine": SEAT, "timing": SLOW_PREFILL, "seeds": 2}
    predictors = ("noisy-oracle:tau=0.2",)
    found = compare(burst(360), ("sjf", "work"), predictors, tuning=True, budget=24, **given)
    names = [who.label for who in found.contenders]
    assert names[:3] == ["fcfs", "sjf · noisy-oracle:tau=0.2", "sjf · oracle"]
    exact = found.contenders[-1]
    assert exact.policy_name.startswith("work:b=") and exact.predictor_name == "oracle"
    assert 0.3 < load_policy(exact.policy_name).score.tunables["b"] < 0.9
    assert found.runs["requests"].dropna().unique().tolist() == [240]
    assert found.notices[0].startswith("policies were tuned for e2e_mean on the first 120")
    assert found.config["tuning"] == {"metric": "e2e_mean", "budget": 24}
    plain = compare(burst(360).window(120, 360), ("work",), predictors, **given)
    rate = found.rates[0]
    assert (found.of(rate, exact, "e2e_mean_s") < plain.of(rate, plain.contenders[-1],
            "e2e_mean_s")).all()  # fmt: skip
    # what was tuned is kept, and not tuned again
    from lengthwise.eval.cells import Cells

    cells = Cells.open(tmp_path / "cells", {"what": "comparison"})
    first = compare(burst(360), ("work",), tuning=True, budget=12, cells=cells, **given)
    monkeypatch.setattr(comparing, "tune", None)
    again = compare(burst(360), ("work",), tuning=True, budget=12, cells=cells, **given)
    pd.testing.assert_frame_equal(first.runs, again.runs)


def test_routers_are_tuned_where_routers_are_compared() -> None:
    given: dict[str, Any] = {"engine": SEAT, "timing": SLOW_PREFILL, "replicas": 2}
    found = compare(
        burst(360), ("work",), routers=("jsew",), tuning=True, budget=24, seeds=1, **given
    )
    assert {who.policy_name for who in found.contenders} == {"fcfs", "work"}
    assert [who.router_name for who in found.contenders if who.router_name != "round-robin"]
    one = tune_policy("jsew", burst(240), requests=60, seeds=2, budget=24, **given)
    assert one.names[0] == "round-robin" and one.names[1] == "jsew"


def test_bad_input_is_told() -> None:
    with pytest.raises(InputError, match="sjf has no numbers to tune"):
        tune_policy("sjf", burst(120), requests=60)
    with pytest.raises(UnknownNameError, match="did you mean 'e2e_mean'"):
        tune_policy("work", burst(120), metric="e2e_meen")
    with pytest.raises(UnknownNameError, match="did you mean 'e2e_mean'"):
        compare(burst(120), ("work",), tuning=True, metric="e2e_meen")
    with pytest.raises(InputError, match="not two windows of 1000"):
        tune_policy("work", burst(120))
    with pytest.raises(InputError, match="1 seed and 1 request"):
        tune_policy("work", burst(120), seeds=0)


def test_notices_say_what_was_not_as_asked() -> None:
    found = tuned(budget=4)
    assert "3 windows to tune on: 12 runs, not 4" in found.notices
    alone = Workload({"arrival_s": np.arange(40) * 1e4, "prompt_tokens": np.full(40, 5),
                      "output_tokens": np.full(40, 5)})  # fmt: skip
    idle = tune_policy("work", alone, requests=10, seeds=2, engine=SEAT, timing=SLOW_PREFILL)
    assert idle.tuned == "work"
    assert "work: nothing was found that is better than its defaults" in idle.notices
    assert any("give higher --rates" in notice for notice in idle.notices)


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    burst(120).to_frame().to_csv("t.csv", index=False)


LINE = "tune work t.csv --requests 60 --seeds 1 --budget 8 --max-num-seqs 1 --num-gpu-blocks 500"


def test_the_command_says_what_it_found(trace: None, capsys: pytest.CaptureFixture[str]) -> None:
    def run(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(line))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    code, out, _ = run(f"{LINE} --out found")
    assert code == 0
    assert "held out" in out and "× fcfs" in out
    rows = pd.read_parquet("found/runs.parquet")
    assert set(rows["set"]) == {"train", "test"} and "e2e_mean_s" in rows
    document = json.loads(Path("found/tuned.json").read_text())
    assert out.splitlines()[0].strip() == document["tuned"]
    assert not Path("found.cells").exists()
    code, out, _ = run(f"{LINE} --json")
    assert json.loads(out)["tuned"] == document["tuned"]
    code, out, _ = run(f"{LINE} --csv")
    assert out.startswith("workload,set,policy,predictor,runs,e2e_mean_s,")
    code, _, err = run("tune srft t.csv")
    assert code == 2 and "did you mean 'srtf'" in err
    code, _, err = run("tune fcfs t.csv")
    assert (code, err.count("\n")) == (2, 1) and "fcfs has no numbers to tune" in err
    code, out, _ = run("compare t.csv --policies work --tune --budget 12 --seeds 1 --dry-run "
                       "--processes 1")  # fmt: skip
    assert "would tune work on the first 39 requests, and compared on the 81 after them" in out


def test_options_reach_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def called(*given: Any, **more: Any) -> Any:
        found.append((given, more))
        raise KeyError

    monkeypatch.setattr(tuned_module, "tune_policy", called)

    def of(line: str) -> tuple[Any, dict[str, Any]]:
        with pytest.raises(KeyError):
            cli.main(args=shlex.split(line), standalone_mode=False, obj=f"lengthwise {line}")
        return found[-1]

    args, plain = of("tune srtf w")
    assert args == ("srtf", Spelled("w", {}))
    names = ("metric", "budget", "rates", "requests", "seeds", "predictor", "engine", "seed")
    assert [plain[name] for name in names] == [
        "e2e_mean", 64, (), 1000, 5, "oracle", Engine(), 0,
    ]  # fmt: skip
    for text, (name, value) in {
        "--metric ttft_p99": ("metric", "ttft_p99"), "--budget 9": ("budget", 9),
        "--rates 2,4": ("rates", (2.0, 4.0)), "--rates auto": ("rates", "auto"),
        "--requests 70": ("requests", 70), "--seeds 2": ("seeds", 2), "--seed 7": ("seed", 7),
        "--predictor ./p": ("predictor", "./p"), "--max-num-seqs 9": ("engine",
        Engine(max_num_seqs=9)), "--replicas 3": ("replicas", 3), "--router jsq": ("router", "jsq"),
    }.items():  # fmt: skip
        _, changed = of(f"tune srtf w {text}")
        differ = {key for key in plain if key != "progress" and plain[key] != changed[key]}
        assert (differ, changed[name]) == ({name}, value), text
    args, _ = of("tune srtf w --arrivals poisson:3 --split test")
    assert args[1] == Spelled("w", {"arrivals": "poisson:3", "split": "test"})
