"""Intelligent Router's table: its mix of tasks, its routers, and the whole in a short form."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lengthwise as lw
from lengthwise.eval.cells import Cells
from lengthwise.serving import Engine
from lengthwise.training import intelligent_router as ir
from lengthwise.training.commands.stopped import Interrupted


def test_the_mix_has_its_tasks_in_equal_parts_with_the_lengths_of_the_table() -> None:
    work = ir.five_tasks(20_000, 50.0, 3)
    assert work.rate == pytest.approx(50.0, rel=0.03)
    for task, (prompt, answer) in ir.TASKS.items():
        rows = work["task"] == task
        assert rows.mean() == pytest.approx(0.2, abs=0.01)
        assert work["prompt_tokens"][rows].mean() == pytest.approx(prompt, rel=0.05)
        assert work["output_tokens"][rows].mean() == pytest.approx(answer, rel=0.05)
    again = ir.five_tasks(20_000, 50.0, 3)
    assert (again["output_tokens"] == work["output_tokens"]).all()
    assert (ir.five_tasks(20_000, 50.0, 4)["output_tokens"] != work["output_tokens"]).any()


def test_latencies_are_those_of_the_reference_engine() -> None:
    regime = ir.Regime("4 seats", Engine(max_num_seqs=4), 0.9)
    (found,) = ir.mean_latencies(regime, 30.0, "jsq", 80, [5])
    work = ir.five_tasks(80, 30.0, ir.TEST_SEED + 5)
    result = lw.simulate(
        work, router="jsq", replicas=4, engine=regime.engine, backend="reference", seed=5,
        predictor="oracle",
    )  # fmt: skip
    assert found == pytest.approx(result.summary()["e2e_mean_s"], rel=1e-9)


def test_a_burst_sustains_what_long_overload_serves() -> None:
    engine = Engine(max_num_seqs=16)
    capacity = ir.sustained(engine)
    work = ir.five_tasks(6000, 1.5 * capacity, 1)
    table = lw.simulate(work, engine=engine).requests
    served = (table["finish_s"] <= 40.0).sum() - (table["finish_s"] <= 10.0).sum()
    assert served / 30.0 == pytest.approx(capacity, rel=0.08)


def test_the_table_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ir, "REGIMES", (ir.TAUGHT, replace(ir.TAUGHT, replicas=8)))
    monkeypatch.setattr(ir, "PPO", {"rollout": 400, "batch_size": 200, "n_epochs": 1})
    moved: list[tuple[int, int]] = []
    found = ir.intelligent_router(
        2, 1, lambda done, total: moved.append((done, total)), requests=60, steps=800,
        learners=("RL, guided", "ES"),
    )  # fmt: skip
    names = [*ir.BASELINES, "RL, guided", "ES"]
    assert [line.policy for line in found.lines] == 2 * names
    assert moved[-1] == (20, 20)
    by_name = {(line.setting[0], line.policy): line for line in found.lines}
    for line in found.lines:
        assert line.ours is not None and line.our_ratio is not None
        assert 0 < line.ours.mean < 100
        if line.policy == "round-robin":
            assert line.our_ratio.mean == 1
    assert by_name["4", "RL, guided"].their_ratio == "0.886"
    assert by_name["8", "RL, guided"].their_ratio == "0.884"
    assert by_name["8", "jsq"].their_ratio == "–"
    assert found.first == "round robin"
    mean = np.mean(ir.mean_latencies(
        ir.TAUGHT, 0.9 * 4 * ir.sustained(ir.TAUGHT.engine), "jsq", 60, [0, 1]
    ))  # fmt: skip
    jsq = by_name["4", "jsq"].ours
    assert jsq is not None and jsq.mean == pytest.approx(mean)


def test_what_is_finished_of_the_table_is_not_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ir, "REGIMES", (ir.TAUGHT,))
    asked: list[Any] = []
    real = ir.mean_latencies

    def noted(*given: Any) -> list[float]:
        asked.append(given[2])
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(ir, "mean_latencies", noted)
    given: dict[str, Any] = {"requests": 40, "learners": ()}
    cells = Cells.open(tmp_path / "c", {})
    with pytest.raises(KeyboardInterrupt):
        ir.intelligent_router(2, 1, None, cells, **given)
    found = ir.intelligent_router(2, 1, None, cells, **given)
    assert asked == [*ir.BASELINES[:4], *ir.BASELINES[3:]]
    assert found == ir.intelligent_router(2, 1, **given)

    def stopped(*given: Any) -> Any:  # a learner's folder lies among the cells
        assert given[-1] == cells.folder / "learner-0"
        raise Interrupted("saved; the same command with --resume goes on", signal.SIGTERM)

    monkeypatch.setattr(ir, "train", stopped)
    with pytest.raises(Interrupted) as caught:
        ir.intelligent_router(2, 1, None, cells, learners=("ES",))
    assert (str(caught.value), caught.value.number) == ("", signal.SIGTERM)
