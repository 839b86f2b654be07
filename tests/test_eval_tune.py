"""Tuning: what it finds where the best is known, what it costs, and what it never looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval import tune as tuning
from lengthwise.eval.cells import Cells
from lengthwise.eval.tune import METRICS, WIDE, Case, records_of, tune
from lengthwise.policies import load_policy, load_router
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload


@dataclass(frozen=True)
class Window:
    workload: Workload
    system: System
    predictions: Any
    seed: int


def window(seed: int, requests: int = 60) -> Window:
    """All at once on one seat: prompt tokens take half as long as an answer's."""
    rng = np.random.default_rng(seed)
    prompt, output = rng.integers(1, 400, requests), rng.integers(1, 200, requests)
    workload = Workload(
        {"arrival_s": np.zeros(requests), "prompt_tokens": prompt, "output_tokens": output}
    )
    node = Node(
        Engine(max_num_seqs=1, max_num_batched_tokens=4096, num_gpu_blocks=200),
        LinearTiming(base_s=0.01, per_prefill_token_s=0.005), load_policy("fcfs"),
    )  # fmt: skip
    system = System((node, node), load_router("round-robin"))
    return Window(workload, system, output * 1.0, seed)


RUNS = [window(seed) for seed in range(3)]


def generator() -> np.random.Generator:
    return np.random.default_rng(5)


def level(policy: Any, runs: list[Window], metric: str = "e2e_mean") -> float:
    values = [METRICS[metric](records_of(case, policy)) for case in runs]
    return float(np.mean(np.log(values)))


def test_the_best_weight_is_found() -> None:
    """On one seat, shortest processing time first is best: b is the ratio of the two times."""
    found = tune(load_policy("work"), RUNS, budget=60, seed=0)
    exact = load_policy("work:b=0.5")
    default = level(load_policy("work"), RUNS)
    assert level(found, RUNS) - level(exact, RUNS) < 0.1 * (default - level(exact, RUNS))
    assert 0.3 < found.score.tunables["b"] < 0.8
    assert found.name == f"work:b={found.score.tunables['b']:g}"
    assert load_policy(found.name).score == found.score  # what the table says can be typed in


def test_on_runs_that_it_did_not_see_as_well() -> None:
    found = tune(load_policy("work"), RUNS, budget=60, seed=0)
    unseen = [window(seed) for seed in range(100, 104)]
    assert level(found, unseen) < level(load_policy("work"), unseen)


@pytest.mark.parametrize("budget", [12, 13, 40, 64])
def test_the_budget_is_kept_and_used(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated: list[tuple[int, str]] = []

    def counted(case: Case, judged: Any) -> Any:
        simulated.append((case.seed, repr(judged.score.tunables)))
        return records_of(case, judged)

    monkeypatch.setattr(tuning, "records_of", counted)
    tune(load_policy("work"), RUNS, budget=budget, seed=1)
    assert 0.75 * budget - 3 <= len(simulated) <= budget
    assert len(set(simulated)) == len(simulated)  # nothing twice


def test_the_same_seed_finds_the_same_and_no_worse_than_the_defaults() -> None:
    for spec in ("hrrn", "mlfq", "weighted-sjf"):
        policy = load_policy(spec)
        runs: list[Any] = RUNS[:2]
        if spec == "weighted-sjf":
            runs = [
                Window(
                    case.workload.replace(priority=np.arange(60) % 3), case.system,
                    case.predictions, case.seed,
                )
                for case in runs
            ]  # fmt: skip
        first, again = (tune(policy, runs, budget=12, seed=5) for _ in range(2))
        assert first == again
        assert level(first, runs) <= level(policy, runs)
    router = load_router("jsew")
    tuned = tune(router, RUNS[:2], metric="e2e_p99", budget=12, seed=2)
    assert level(tuned, RUNS[:2], "e2e_p99") <= level(router, RUNS[:2], "e2e_p99")


def test_candidates_stay_in_the_ranges_that_are_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[dict[str, Any]] = []

    def seen(case: Case, judged: Any) -> Any:
        tried.append(judged.score.tunables)
        return records_of(case, judged)

    monkeypatch.setattr(tuning, "records_of", seen)
    tune(load_policy("mlfq:levels=30,quantum=1"), RUNS[:1], budget=24, seed=0)
    assert max(one["levels"] for one in tried) == 32  # twice as many were drawn
    assert min(one["quantum"] for one in tried) == 1


def test_what_has_no_tunables_is_as_it_was() -> None:
    policy = load_policy("sjf")
    assert tune(policy, RUNS, budget=12) is policy


def test_what_stands_beside_the_score_is_tuned_where_it_is_in_use() -> None:
    policy = load_policy("work:b=0.02+preempt:mode=swap,price=0,max_per_step=3+guard:ratio=2")
    numbers, _ = tuning.numbers_of(policy)
    assert numbers == {"b": 0.02, "preempt:protect_after": 1.0, "guard:ratio": 2.0}
    found = tune(policy, RUNS, budget=40)
    assert found != policy
    assert found.preemption.price == 0  # naive preemption is another policy, not a start
    assert (found.preemption.mode, found.preemption.max_per_step) == ("swap", 3)
    assert load_policy(found.name) == found
    assert tuning.numbers_of(load_policy("srtf"))[0] == {
        "preempt:price": 0.01, "preempt:protect_after": 1.0,
    }  # fmt: skip
    assert list(tuning.numbers_of(load_policy("srtf-refreshed"))[0]) == ["preempt:price"]
    assert tuning.numbers_of(load_policy("sjf"))[0] == {}
    named = tuning.with_tunables(load_policy("srtf"), {"preempt:price": 0.02})
    assert named.name == "srtf+preempt:price=0.02"
    router = load_router("least-load:choices=1,penalty=2.0")
    tuned = tune(router, RUNS, budget=12)
    assert load_router(tuned.name) == tuned


def test_bad_input_is_told() -> None:
    with pytest.raises(InputError, match="less than 4 for each of 3"):
        tune(load_policy("work"), RUNS, budget=11)
    with pytest.raises(InputError, match="at least one run"):
        tune(load_policy("work"), [], budget=11)
    with pytest.raises(UnknownNameError, match="did you mean 'e2e_mean'"):
        tune(load_policy("work"), RUNS, metric="e2e_meen")
    with pytest.raises(InputError, match="above 0, not nan"):
        tune(load_policy("work"), RUNS, metric=lambda records: math.nan)


def test_halving_is_paid_as_it_runs() -> None:
    """Of five runs: eight on the first, four more on the second, two on two, one on the last."""
    search = tuning._Search(load_policy("work"), [RUNS[0]] * 5, METRICS["e2e_mean"], generator())
    assert search.rungs == [1, 2, 4, 5]
    assert search._price(8) == 8 * 1 + 4 * 1 + 2 * 2 + 1 * 1


def test_candidates_by_kind_of_tunable() -> None:
    rng = generator()
    drawn = [tuning._near({"on": True, "n": 8, "x": 2.0, "off": 0.0, "none": 0}, WIDE, rng, {})
             for _ in range(60)]  # fmt: skip
    assert {one["on"] for one in drawn} == {True, False}
    assert all(1 <= one["n"] <= 64 and isinstance(one["n"], int) for one in drawn)
    assert all(2 / 8 <= one["x"] <= 2 * 8 for one in drawn)
    assert min(one["x"] for one in drawn) < 1 and max(one["x"] for one in drawn) > 4
    assert all(-1 <= one["off"] <= 1 for one in drawn) and len({d["off"] for d in drawn}) > 50
    assert {one["none"] for one in drawn} == {0}


def test_a_sampling_router_is_named_with_its_choices() -> None:
    router = load_router("jsq-tokens:choices=2")
    found = tuning.with_tunables(router, dict(router.score.tunables))
    assert found.name.endswith("choices=2")
    assert load_router(found.name).choices == 2


def test_an_interrupted_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was simulated is not simulated again, and the same is found."""
    simulated: list[int] = []
    stop = 20

    def counted(case: Case, judged: Any) -> Any:
        if len(simulated) == stop:
            raise KeyboardInterrupt
        simulated.append(case.seed)
        return records_of(case, judged)

    policy, cells = load_policy("work"), Cells.open(tmp_path / "cells", {"what": "tuning"})
    whole = tune(policy, RUNS, budget=40, seed=3)
    monkeypatch.setattr(tuning, "records_of", counted)
    with pytest.raises(KeyboardInterrupt):
        tune(policy, RUNS, budget=40, seed=3, cells=cells)
    assert len(cells) == 20
    stop = 100
    moved: list[tuple[int, int]] = []
    again = tune(
        policy, RUNS, budget=40, seed=3, cells=cells, progress=lambda *at: moved.append(at)
    )
    assert again == whole
    assert len(simulated) == len(cells) <= 40
    assert moved == [(done, 40) for done in range(1, len(cells) + 1)]
