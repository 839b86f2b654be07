"""Grids, searches, windows and verdicts on cases small enough to be worked out by hand."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval import bound, metrics, output, prediction_metrics, reproduce, tune
from lengthwise.eval import capacity as capacity_module
from lengthwise.eval.alone import Alone, alone_s
from lengthwise.eval.capacity import capacity
from lengthwise.eval.compare import BOUND, QUANTILES, Comparison, Contender, compare
from lengthwise.eval.ground import beyond_training
from lengthwise.eval.predict import check_prediction, needs_prediction
from lengthwise.eval.prediction_windows import PredictionWindow, verdict, window_of, windowed
from lengthwise.eval.reproductions import ssjf, vllm_ltr
from lengthwise.eval.setting import Setting
from lengthwise.eval.simulate import simulate
from lengthwise.eval.source import Fixed, Spelled, as_source
from lengthwise.eval.statistics import t_interval
from lengthwise.eval.windows import TEST_SEED, TUNING_SEED, windows_of
from lengthwise.picoseconds import LONGEST_S
from lengthwise.policies import load_policy, load_router
from lengthwise.prediction import Prediction
from lengthwise.serving import Engine, Node, Records, System
from lengthwise.serving.records import PS
from lengthwise.serving.timing import LinearTiming
from lengthwise.trained import TrainedOn
from lengthwise.workload import Workload

ONE = Engine(max_num_seqs=1, num_gpu_blocks=500)
TICK = LinearTiming(base_s=1.0)


def burst(*output: int, name: str = "burst") -> Workload:
    n = len(output)
    return Workload(
        {"arrival_s": np.zeros(n), "prompt_tokens": np.ones(n, int), "output_tokens": output},
        name=name,
    )


# Alone


def test_alone_by_hand_in_chunks_and_up_to_a_threshold() -> None:
    """A prompt of 25 in chunks of 10 is three iterations; of 21 the last token is a decoding."""
    timing = LinearTiming(
        base_s=1.0, per_prefill_token_s=0.1, per_sequence_s=0.25, per_context_token_s=0.01
    )
    workload = Workload(
        {"arrival_s": [0.0] * 3, "prompt_tokens": [25, 21, 4], "output_tokens": [1, 3, 2]}
    )
    engine = Engine(max_num_seqs=5, max_num_batched_tokens=10, num_gpu_blocks=500)
    found = alone_s(workload, engine, timing)
    assert found is not None
    each = [
        simulate(workload.select([i]), "fcfs", engine=engine, timing=timing).records
        for i in range(3)
    ]
    assert found.tolist() == [metrics.e2e_s(one)[0] for one in each]
    short = dataclasses.replace(engine, long_prefill_token_threshold=5)
    more = alone_s(workload, short, TICK)
    assert more is not None
    assert more.tolist() == [5, 5 + 2, 1 + 1]  # the last token of 21 gives the first output
    wide = dataclasses.replace(engine, long_prefill_token_threshold=50)
    assert alone_s(workload, wide, TICK).tolist() == [3, 3 + 2, 1 + 1]  # type: ignore[union-attr]
    assert alone_s(workload, dataclasses.replace(engine, async_scheduling=True), TICK) is None


def test_alone_is_on_each_kind_of_node_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = LinearTiming(base_s=3.0)
    nodes = [Node(ONE, timing, load_policy("fcfs")) for timing in (TICK, slow, TICK)]
    workload = burst(2, 5)
    calls: list[Any] = []

    def counted(*given: Any) -> Any:
        calls.append(given)
        return alone_s(*given)

    monkeypatch.setattr("lengthwise.eval.alone.alone_s", counted)
    found = Alone.of(workload, System(tuple(nodes), load_router("jsq")))
    assert found is not None
    assert len(calls) == 2
    assert found.kind.tolist() == [0, 1, 0]
    assert found.seconds.tolist() == [[2, 5], [6, 15]]
    assert found.where_served(np.array([1, 2])).tolist() == [6, 5]
    assert found.where_served(np.array([2, 1])).tolist() == [2, 15]
    ahead = Node(dataclasses.replace(ONE, async_scheduling=True), TICK, load_policy("fcfs"))
    assert Alone.of(workload, System((nodes[0], ahead), load_router("jsq"))) is None


# Fairness


def brute_gap(records: Records, tenants: list[str], window_s: float) -> dict[str, float]:
    """The service gap second by second of a thousandth."""
    n = len(tenants)
    start = records.arrival_ps / PS
    first, end = records.first_token_ps / PS, records.finish_ps / PS
    scheduled = records.scheduled_ps / PS
    begin = start.min()
    gaps = []
    while begin + window_s <= end.max() + window_s - 1e-9:
        stop = begin + window_s
        served = {}
        for tenant in set(tenants):
            mine = [i for i in range(n) if tenants[i] == tenant]
            ticks = np.arange(begin, stop, 0.01) + 0.005
            covered = np.zeros(len(ticks), bool)
            for i in mine:
                covered |= (ticks >= start[i]) & (ticks <= end[i])
            if not covered.all():
                continue
            total = 0.0
            for i in mine:
                for a, b, amount in (
                    (scheduled[i], first[i], 1.0 * records.prompt_tokens[i]),
                    (first[i], end[i], 2.0 * records.output_tokens[i]),
                ):
                    share = max(min(b, stop) - max(a, begin), 0.0)
                    total += amount * share / max(b - a, 1e-9)
            served[tenant] = total
        if len(served) >= 2:
            gaps.append(max(served.values()) - min(served.values()))
        begin = stop
    return {"service_gap_mean": float(np.mean(gaps)), "service_gap_max": float(np.max(gaps))}


@pytest.mark.parametrize("seed", range(4))
def test_service_gaps_are_those_counted_tick_by_tick(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 24
    arrival = np.sort(rng.uniform(0, 40, n))
    scheduled = arrival + rng.uniform(0.1, 6, n)
    first = scheduled + rng.uniform(0.1, 3, n)
    finish = first + rng.uniform(0.1, 20, n)
    records = Records(
        replica=np.zeros(n, np.int64), arrival_ps=(arrival * PS).astype(np.int64),
        scheduled_ps=(scheduled * PS).astype(np.int64),
        first_token_ps=(first * PS).astype(np.int64), finish_ps=(finish * PS).astype(np.int64),
        prompt_tokens=rng.integers(1, 90, n), output_tokens=rng.integers(1, 90, n),
        predicted_tokens=np.full(n, np.nan), preemptions=np.zeros(n, np.int64),
        recomputed_tokens=np.zeros(n, np.int64), cached_tokens=np.zeros(n, np.int64),
        backend="reference",
    )  # fmt: skip
    tenants = rng.choice(["a", "b", "c"], n).tolist()
    found = metrics.service_gap(records, np.array(tenants, dtype=object), window_s=5.0)
    expected = brute_gap(records, tenants, 5.0)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-3), name
    weighted = metrics.service_gap(
        records, np.array(tenants, dtype=object), window_s=5.0, input_weight=3.0, output_weight=6.0
    )
    assert weighted["service_gap_max"] == pytest.approx(3 * found["service_gap_max"])


def test_metrics_that_are_asked_for_and_no_others() -> None:
    workload = burst(3, 1).replace(tenant=np.array(["a", "b"], dtype=object))
    records = simulate(workload, "fcfs", engine=ONE, timing=TICK).records
    plain = metrics.summary(records)
    assert not {"downtime_s", "jain_index", "slo_attainment", "service_gap_mean"} & set(plain)
    assert plain["requests"] == 2.0
    down = metrics.summary(records, downtime_s=7.0)
    assert (down["downtime_s"], down["retries"], down["lost_tokens"]) == (7.0, 0.0, 0.0)
    assert metrics.describe("x", np.full(3, np.nan)) == pytest.approx(
        {f"x_{s}": np.nan for s in metrics.STATISTICS}, nan_ok=True
    )
    with pytest.raises(UnknownNameError, match="did you mean 'ttft'"):
        metrics.meets_slo(records, {"tft": 1.0})
    with pytest.raises(InputError, match="must be a positive number"):
        metrics.parse_slo("ttft=0", ("ttft",))


# Grids


SMALL = Spelled("lmsys-chat", {"requests": 40})


def test_a_grid_says_how_it_was_made_and_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    found = compare(
        SMALL, ("sjf",), ("noisy-oracle:sigma=0.5",), (3.0, 1.0), 3, Engine(max_num_seqs=4),
        replicas=2, router="jsq", slo={"ttft": 0.5}, metrics_interval_s=0.25, backend="fast",
        progress=lambda done, of: told.append((done, of)),
    )  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]
    config = found.config
    assert config["workload"] == found.name == "lmsys-chat"
    assert config["policies"] == ["fcfs", "sjf", "sjf"]
    assert config["predictors"] == ["none", "noisy-oracle:sigma=0.5", "oracle"]
    assert config["rates_requests_per_s"] == [3.0, 1.0]
    assert config["seeds"] == [0, 1, 2]
    assert (config["router"], config["replicas"]) == ("jsq", 2)
    assert config["metrics_interval_s"] == 0.25
    assert config["backend"] == ["fast"]
    assert config["engine"]["max_num_seqs"] == 4
    assert found.rates == [1.0, 3.0]
    assert (found.seeds, found.routed, found.baseline) == (3, False, "fcfs")
    assert "slo_attainment" in found.runs
    # a seed draws its workload at the first rate, which the others stretch
    runs = found.runs[(found.runs.policy == "fcfs") & (found.runs.seed == 2)].set_index("rate")
    for rate in (3.0, 1.0):
        drawn = SMALL.load(3.0, 2).at_rate(rate)
        alone = simulate(
            drawn, "fcfs", engine=Engine(max_num_seqs=4), replicas=2, router="jsq", seed=2,
            metrics_interval_s=0.25,
        ).summary({"ttft": 0.5})  # fmt: skip
        for name in ("e2e_p99_s", "slo_attainment", "slowdown_mean", "makespan_s"):
            assert runs[name][rate] == pytest.approx(alone[name], rel=1e-12)
    assert not found.notices


def test_quantiles_are_means_over_seeds() -> None:
    found = compare(SMALL, ("fcfs",), (), (4.0,), 2, Engine(max_num_seqs=4))
    each = [
        np.quantile(
            metrics.e2e_s(simulate(SMALL.load(4.0, seed), engine=Engine(max_num_seqs=4)).records),
            QUANTILES,
        )
        for seed in range(2)
    ]
    who = found.contenders[0]
    assert found.quantiles(4.0, who) == pytest.approx(np.mean(each, axis=0), rel=1e-12)
    assert (QUANTILES[0], QUANTILES[-1], len(QUANTILES)) == (0.0, 1.0, 401)
    own = compare(Fixed(SMALL.load(4.0, 0)), ("fcfs",), seeds=1)
    assert own.quantiles(math.nan, own.contenders[0]) is own.curves[None, "fcfs"]
    assert not any("same requests" in notice for notice in own.notices)  # one seed: of course


def test_one_predictor_two_names_are_refused_and_labels_are_told() -> None:
    class Mine:
        needs = frozenset({"output_tokens"})
        name = "mine"

        def predict(self, prompts: Any, *, output_tokens: Any, **rest: Any) -> Prediction:
            return Prediction.exact(output_tokens)

    with pytest.raises(InputError, match="two rows are both called"):
        compare(SMALL, ("sjf",), (Mine(), Mine()), seeds=1)  # type: ignore[list-item]
    assert Contender("p", "q", "p", "q").label == "p · q"
    assert Contender("p", None, "p", "none", "r", "r").name == "r + p"
    assert Contender("fcfs", None, "fcfs", "none", "r", "r").label == "r"
    twice = compare(SMALL, ("fcfs", "sjf", "sjf"), ("oracle", "oracle"), (2.0,), 1)
    assert [who.label for who in twice.contenders] == ["fcfs", "sjf · oracle"]


def test_nodes_that_differ_have_no_bound_and_keep_their_policy() -> None:
    slow = LinearTiming(base_s=2.0)
    nodes = [Node(ONE, TICK, load_policy("sjf")), Node(ONE, slow, load_policy("fcfs"))]
    found = compare(Fixed(burst(3, 1, 4, 2)), ("mlfq",), seeds=1, nodes=nodes)
    assert "no lower bound is known for nodes that differ" in found.notices
    assert math.isnan(found.bound(math.nan).mean)
    assert [who.predictor_name for who in found.contenders][:1] == ["oracle"]  # a node's sjf reads


def test_failures_are_in_every_row_and_change_what_is_served(tmp_path: Path) -> None:
    events = tmp_path / "events.yaml"
    events.write_text("- {kind: fail, node: 0, at_s: 1.0, until_s: 30.0}\n")
    found = compare(
        Fixed(burst(*range(1, 9))), ("sjf",), seeds=1, engine=ONE, timing=TICK, replicas=2,
        failures=str(events),
    )  # fmt: skip
    rows = found.runs[found.runs.policy != BOUND]
    assert (rows.downtime_s > 0).all()
    assert (rows.retries > 0).all()
    assert found.config["failures"]


def abstaining(share: float) -> Any:
    """A predictor that leaves the first rows in their order; it is said once, by the mean."""

    class Unsure:
        needs = frozenset({"output_tokens"})
        name = "unsure"

        def predict(self, prompts: Any, *, output_tokens: Any, **rest: Any) -> Prediction:
            n = len(output_tokens)
            return dataclasses.replace(
                Prediction.exact(output_tokens), abstained=np.arange(n) < share * n
            )

    return Unsure()


def test_what_a_predictor_left_in_order_is_said_once_for_all_seeds() -> None:
    found = compare(SMALL, ("sjf",), (abstaining(0.25),), (2.0, 4.0), 2)
    said = [notice for notice in found.notices if "unsure" in notice]
    assert len(said) == 1
    assert "25%" in said[0]
    one = simulate(SMALL.load(2.0, 0), "sjf", abstaining(0.5))
    assert one.config["abstained_share"] == 0.5
    assert "50%" in one.notices[-1]
    none = simulate(SMALL.load(2.0, 0), "sjf", "oracle")
    assert "abstained_share" not in none.config
    assert not none.notices


def test_a_run_s_config_names_what_went_into_it(tmp_path: Path) -> None:
    workload = burst(3, 1, 2)
    policy = "srtf+preempt:mode=recompute,price=0+admit:reserve=0.25+guard:ratio=2"
    result = simulate(
        workload, policy, "oracle", ONE, TICK, 2, "jsq", "reference", 7, log_iterations=True
    )
    config = result.config
    assert (config["workload"], config["requests"], config["seed"]) == ("burst", 3, 7)
    assert config["rate_requests_per_s"] == workload.rate
    assert (config["policy"], config["predictor"]) == (policy, "oracle")
    assert config["preemption"]["price"] == 0.0
    assert config["admission"] == {"reserve": 0.25} | {
        k: v for k, v in config["admission"].items() if k != "reserve"
    }
    assert config["guard"]["ratio"] == 2
    assert (config["router"], config["replicas"], config["backend"]) == ("jsq", 2, "reference")
    assert simulate(workload, "fcfs").config["guard"] is None
    assert result.engine == ONE
    assert result.timing == TICK
    folder = result.save(tmp_path / "out", "the command")
    assert {p.name for p in folder.iterdir()} == {
        "requests.parquet", "iterations.parquet", "summary.json", "config.json",
    }  # fmt: skip
    saved = json.loads((folder / "summary.json").read_text())
    assert saved["e2e_mean_s"] == result.summary()["e2e_mean_s"]
    quiet = simulate(workload, "fcfs", engine=ONE, timing=TICK)
    assert quiet.iterations is None
    assert {p.name for p in quiet.save(tmp_path / "quiet").iterdir()} == {
        "requests.parquet", "summary.json", "config.json",
    }  # fmt: skip
    visits = quiet.visits
    assert visits["finished"].all()
    assert visits["finish_s"].tolist() == [3, 4, 6]


def test_what_is_written_is_json_without_numbers_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    output.write_json(path, {1: (math.nan, math.inf, 2.5), "a": {"b": [None, True]}})
    assert json.loads(path.read_text()) == {"1": [None, None, 2.5], "a": {"b": [None, True]}}
    assert path.read_text().startswith('{\n  "1"')
    made = output.provenance({"seed": 3}, "cmd")
    assert (made["command"], made["seed"]) == ("cmd", 3)
    assert made["versions"]["numpy"] == np.__version__
    assert output.provenance({})["command"]
    assert output.check_writable(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(InputError, match=r"nodes or replicas \(2\), not both"):
        Setting(nodes="2xh200/llama-3.1-8b", replicas=2).load()
    for wrong in (0, 1.5, -1):
        with pytest.raises(InputError, match="at least 1"):
            Setting(replicas=wrong).load()  # type: ignore[arg-type]
    loaded = Setting(nodes="2xh200/llama-3.1-8b,roofline:h100/llama-3.1-8b").load()
    assert not loaded.alike
    said = loaded.config()
    assert (said["replicas"], len(said["nodes"])) == (3, 2)
    assert [node["count"] for node in said["nodes"]] == [2, 1]
    assert said["timing"].startswith("2 x ")
    assert "engine" not in said
    assert "metrics_interval_s" not in said
    same = Setting(replicas=2, metrics_interval_s=0.5).load()
    assert same.alike
    assert same.config()["metrics_interval_s"] == 0.5
    assert "nodes" not in same.config()


def test_sources_are_spelled_without_their_folders() -> None:
    assert Spelled("/data/chats.parquet").name == "chats.parquet"
    joined = Spelled("/data/p.parquet", {"arrivals": "/data/t.csv"})
    assert joined.name == "p.parquet, arrivals of t.csv"
    workload = burst(1, 2)
    fixed = as_source(workload)
    assert fixed.load(None, 5) is workload
    spread = Workload({"arrival_s": [0.0, 1.0], "prompt_tokens": [1, 1], "output_tokens": [1, 1]})
    assert as_source(spread).load(4.0, 0).rate == pytest.approx(4.0)
    assert as_source(fixed) is fixed
    assert as_source("lmsys-chat") == Spelled("lmsys-chat")


def test_who_reads_predictions() -> None:
    fcfs, jsq = load_policy("fcfs"), load_router("jsq")
    assert needs_prediction(fcfs, jsq) == ""
    assert needs_prediction(load_policy("sjf"), jsq) == "sjf"
    assert needs_prediction(fcfs, load_router("least-tokens")) == "least-tokens"
    reserving = load_policy("fcfs+admit:reserve=0.5")
    assert needs_prediction(reserving) == "fcfs+admit:reserve=0.5 (admission reserve)"
    check_prediction(load_policy("sjf"), jsq, predicted=True)
    check_prediction(fcfs, jsq, predicted=False)
    with pytest.raises(InputError, match="'sjf' reads predicted_tokens"):
        check_prediction(load_policy("sjf"), jsq, predicted=False)


def test_leaving_the_ground_is_told_by_range() -> None:
    ground = TrainedOn((("prompt_tokens", 1.0, 10.0), ("nodes", 1.0, 2.0), ("seats", 1.0, 4.0)))
    policy = dataclasses.replace(load_policy("fcfs"), trained_on=ground)

    def said(prompts: list[int], nodes: int, seats: int) -> tuple[str, ...]:
        n = len(prompts)
        workload = Workload(
            {"arrival_s": np.zeros(n), "prompt_tokens": prompts, "output_tokens": [1] * n}
        )
        engine = Engine(max_num_seqs=seats, num_gpu_blocks=500)
        system = System(tuple(Node(engine, TICK, policy) for _ in range(nodes)), load_router("jsq"))
        return beyond_training(workload, system, None)

    assert said([1, 10], 2, 4) == ()
    for case in (([1, 11], 2, 4), ([1, 10], 3, 4), ([1, 10], 2, 5)):
        assert len(said(*case)) == 1, case
    assert said([1, 10], 1, 1) == ()


# Capacity


class Regular:
    """Arrivals one by one, evenly spaced."""

    name = "regular"

    def __init__(self, count: int = 50) -> None:
        self.count = count
        self.asked: list[tuple[float | None, int]] = []

    def load(self, rate: float | None, seed: int) -> Workload:
        self.asked.append((rate, seed))
        times = np.arange(self.count) / (rate or 1.0)
        ones = np.ones(self.count)
        return Workload({"arrival_s": times, "prompt_tokens": ones, "output_tokens": ones})


def test_capacity_doubles_or_halves_and_then_bisects() -> None:
    """A request takes 0.1 s: 10 requests/s are served, from wherever the search starts."""
    told: list[tuple[int, int]] = []
    for start in (1.0, 3.0, 100.0):
        source = Regular()
        found = capacity(
            source, "fcfs", {"wait_max": 0.5e-3}, seeds=2, tolerance=0.05,
            engine=Engine(max_num_seqs=1), timing=LinearTiming(base_s=0.1, num_gpu_blocks=100),
            start_rate=start, progress=lambda done, of: told.append((done, of)),
        )  # fmt: skip
        assert source.asked == [(start, 0), (start, 1)]
        assert found.per_seed[0] == found.per_seed[1]
        assert found.rate == t_interval(found.per_seed)
        rates = [probe.rate for probe in found.probes if probe.seed == 0]
        assert rates[0] == start
        steps = [b / a for a, b in itertools.pairwise(rates)]
        assert steps[0] == (0.5 if start > 10 else 2.0)
        low = max(p.rate for p in found.probes if p.met)
        high = min(p.rate for p in found.probes if not p.met)
        assert low == found.per_seed[0]
        assert low <= 10.0 < high <= 1.05 * low
        assert 1.05 * low < high**2 / low * 1.05  # as close as asked, no closer than needed
    assert told == [(1, 2), (2, 2)] * 3


@pytest.mark.parametrize(("start", "end"), [(1.0, 2.0**20), (4.0, 2.0**22)])
def test_capacity_gives_up_after_twenty_doublings(
    start: float, end: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def never(workload: Workload, *given: Any, **more: Any) -> Any:
        tried.append(workload.rate)
        records = SimpleNamespace()
        return SimpleNamespace(records=records)

    monkeypatch.setattr(capacity_module, "simulate_on", never)
    monkeypatch.setattr(capacity_module, "_statistics", lambda records, slo: {"ttft_p99": 0.5})
    with pytest.raises(InputError, match="meets the SLO even at"):
        capacity(Regular(), "fcfs", {"ttft_p99": 0.5}, seeds=1, start_rate=start)
    assert len(tried) == 21
    assert tried[-1] == pytest.approx(end)
    tried.clear()
    monkeypatch.setattr(capacity_module, "_statistics", lambda records, slo: {"ttft_p99": 0.6})
    with pytest.raises(InputError, match="misses the SLO even at"):
        capacity(Regular(2), "fcfs", {"ttft_p99": 0.5}, seeds=1, start_rate=start)
    assert len(tried) == 21
    assert tried[-1] == pytest.approx(start / 2.0**20)
    tried.clear()  # the last of 50 requests must arrive before the engines' clock ends
    with pytest.raises(InputError, match="misses the SLO even at"):
        capacity(Regular(50), "fcfs", {"ttft_p99": 0.5}, seeds=1, start_rate=start)
    assert tried[-1] >= 49 / LONGEST_S > tried[-1] / 2


def test_capacity_s_bad_arguments() -> None:
    for wrong in ({"seeds": 0}, {"tolerance": 0.0}, {"tolerance": 1.0}):
        with pytest.raises(InputError, match="1 seed or more and a tolerance"):
            capacity(Regular(), "fcfs", {"ttft_p99": 1.0}, **wrong)  # type: ignore[arg-type]
    assert len(metrics.OF_REQUESTS) == 30
    values = capacity_module._statistics(
        simulate(burst(4, 2), engine=ONE, timing=TICK).records, {"e2e_max": 1.0, "ttft_mean": 1.0}
    )
    assert values == {"e2e_max": 6.0, "ttft_mean": 3.0}


# Windows to judge on


def trace(n: int) -> Workload:
    return Workload(
        {"arrival_s": np.arange(n) * 2.0, "prompt_tokens": np.arange(1, n + 1),
         "output_tokens": np.ones(n)},
        name="trace",
    )  # fmt: skip


def test_a_trace_of_one_window_is_judged_as_it_is() -> None:
    for size in (10, 9):
        found = windows_of(trace(size), requests=10, rate=None, test=3)
        assert [w.seed for w in found.test] == [TEST_SEED, TEST_SEED + 1, TEST_SEED + 2]
        assert {len(w.workload) for w in found.test} == {size}
        assert found.tuning == ()
        assert [w.span for w in found.test] == [None] * 3
    cut = windows_of(trace(11), requests=10, rate=None, test=1)
    assert cut.test[0].span == (0, 10)
    assert windows_of(trace(10), requests=10, rate=4.0, test=1).test[0].workload.rate == 4.0
    with pytest.raises(InputError, match="not two windows of 10"):
        windows_of(trace(19), requests=10, rate=None, test=1, tuning=1)
    two = windows_of(trace(20), requests=10, rate=None, test=1, tuning=1)
    assert [w.span for w in (*two.tuning, *two.test)] == [(0, 10), (10, 20)]
    assert [w.seed for w in (*two.tuning, *two.test)] == [TUNING_SEED, TEST_SEED + 1]
    assert not two.notices
    many = windows_of(trace(100), requests=10, rate=None, test=8, tuning=2)
    assert not many.notices
    assert [w.span[0] // 10 for w in many.test if w.span] == list(range(2, 10))


def test_drawn_windows_have_seeds_that_training_has_not() -> None:
    assert min(TEST_SEED, TUNING_SEED) >= 2**31

    def mine(seed: int) -> Workload:
        return burst(1, 1 + seed % 7, name="mine")

    found = windows_of(mine, requests=10, rate=None, test=2, tuning=3)
    assert found.name == "mine"
    assert [w.seed for w in found.tuning] == [TUNING_SEED + k for k in range(3)]
    assert [w.seed for w in found.test] == [TEST_SEED, TEST_SEED + 1]
    for window in (*found.tuning, *found.test):
        assert window.workload["output_tokens"][1] == 1 + window.seed % 7
    preset = windows_of("lmsys-chat", requests=7, rate=3.0, test=1)
    assert (len(preset.test[0].workload), preset.test[0].seed) == (7, TEST_SEED)
    expected = Workload.preset("lmsys-chat", requests=7, rate=3.0, seed=TEST_SEED)
    assert preset.test[0].workload["output_tokens"].tolist() == expected["output_tokens"].tolist()
    with pytest.raises(UnknownNameError):
        windows_of("lmsys-chatt", requests=7, rate=None, test=0)


# Whether a predictor holds


def window(tau: float, coverage: float | None = None, factor: float = 1.0, **more: Any) -> Any:
    given = {"first": 0, "rows": 256, "factor_error": 0.02, "abstained": 0.0, **more}
    return PredictionWindow(kendall_tau=tau, coverage=coverage, factor=factor, **given)


def test_verdicts_at_their_thresholds() -> None:
    """Of 256 rows tau's standard error is 0.042 and a share of 0.9 has one of 0.01875."""
    error = math.sqrt(2 * (2 * 256 + 5) / (9 * 256 * 255))
    assert error == pytest.approx(0.04197, rel=1e-3)
    chance, above = window(2 * error - 1e-6), window(2 * error + 1e-6)
    assert verdict([chance]).startswith("train it anew: over 256 answers its order was no better")
    assert verdict([above]) == "it holds: its order holds (τ 0.08 ± 0.08)"
    assert verdict([above, chance]).startswith("train it anew: over the last 256 answers")
    apart = 2 * math.hypot(error, error)
    held = verdict([window(0.5 + apart - 1e-6), window(0.5)])
    assert held == "it holds: its order holds (τ 0.50 ± 0.08)"
    fell = verdict([window(0.5 + apart + 1e-6), window(0.5)])
    assert fell == "watch it: its order has weakened from τ 0.62 to 0.50"
    off = 2 * math.sqrt(0.09 / 256)
    for sign in (-1, 1):
        near_, far = (window(0.5, 0.9 + sign * (off + e)) for e in (-1e-6, 1e-6))
        assert verdict([near_]).startswith("it holds: its order holds (τ 0.50 ± 0.08), 90% interv")
        shown = "86%" if sign < 0 else "94%"
        assert verdict([far]).startswith(f"recalibrate it: 90% intervals cover {shown} of 256")
    # a level is told where it moved, or there is no beginning, by more than a tenth and two errors
    assert verdict([window(0.5, factor=1.11)]).startswith(
        "recalibrate it: answers are 1.11 times what it predicts; its order holds"
    )
    assert verdict([window(0.5, factor=1.09)]).startswith("it holds")
    assert verdict([window(0.5, factor=1 / 1.11)]).startswith("recalibrate it: answers are 0.90")
    assert verdict([window(0.5, factor=1.11, factor_error=0.053)]).startswith("it holds")
    assert verdict([window(0.5, factor=1.11, factor_error=0.05)]).startswith("recalibrate")
    same = [window(0.5, factor=1.3), window(0.5, factor=1.3)]
    assert verdict(same).startswith("it holds")  # as it was from the beginning
    assert verdict([window(0.5, factor=1.2), window(0.5, factor=1.3)]).startswith("recalibrate it")
    assert verdict([window(0.5, factor=1.24), window(0.5, factor=1.3)]).startswith("it holds")
    both = verdict([window(0.5, 0.7, factor=1.5)])
    assert both.startswith(
        "recalibrate it: 90% intervals cover 70% of 256 answers and answers are 1.50 times"
    )
    # where coverage is off too, the level counts although it did not move
    assert "1.30 times" in verdict([window(0.5, 0.9, 1.3), window(0.5, 0.7, 1.3)])


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(100, [100]), (256, [256]), (511, [511]), (512, [256, 256]), (600, [256, 344]),
     (12 * 256, [256] * 12), (12 * 300, [300] * 12), (3601, [301] * 10 + [591])],
)  # fmt: skip
def test_windows_of_a_file(rows: int, sizes: list[int]) -> None:
    actual = np.arange(1.0, rows + 1)
    lost = np.arange(rows) < 64
    found = windowed(Prediction.exact(actual), actual, lost)
    assert [one.rows for one in found] == sizes
    assert [one.first for one in found] == np.cumsum([0, *sizes[:-1]]).tolist()
    assert found[0].abstained == 64 / sizes[0]
    assert all(one.kendall_tau == 1 for one in found)


def test_one_window_by_hand() -> None:
    actual = np.array([10.0, 20.0, 40.0, 80.0])
    found = window_of(Prediction.exact(np.array([5.0, 20.0, 20.0, 20.0])), actual)
    logs = np.log([2, 1, 2, 4])
    assert found.factor == pytest.approx(math.exp(logs.mean()))
    assert found.factor_error == pytest.approx(logs.std() / 2)
    assert found.coverage is None
    assert (found.first, found.rows, found.abstained) == (0, 4, 0.0)
    assert window_of(Prediction.exact(actual), actual, None, 7).first == 7


# Metrics of predictions


def test_intervals_of_metrics_are_of_resampled_groups_by_seed() -> None:
    rng = np.random.default_rng(0)
    actual = rng.integers(1, 300, 40).astype(float)
    predicted = np.maximum(actual + rng.normal(0, 60, 40), 1.0)
    groups = (np.arange(40) // 2).tolist()
    prediction = Prediction.exact(predicted)
    first = prediction_metrics.prediction_metrics(prediction, actual, groups=groups, resamples=60)
    again = prediction_metrics.prediction_metrics(prediction, actual, groups=groups, resamples=60)
    other = prediction_metrics.prediction_metrics(
        prediction, actual, groups=groups, resamples=60, seed=1
    )
    assert first == again != other
    found = first["mae"]
    draws = prediction_metrics._draws(40, groups, 60, 0)
    for rows in draws:
        assert len(rows) == 40
        assert sorted(rows.tolist()) == sorted([r ^ 1 for r in rows.tolist()])  # pairs whole
    values = [np.abs(predicted - actual)[rows].mean() for rows in draws]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    assert found.mean == pytest.approx(np.abs(predicted - actual).mean())
    assert found.count == 40
    assert len(prediction_metrics._draws(40, None, 5, 0)) == 5
    assert prediction_metrics.within(np.array([1.0, 60.0]), np.array([51.0, 9.0]), 50) == 0.5
    assert math.isnan(prediction_metrics.r2_log(np.array([1.0, 2.0]), np.array([3.0, 3.0])))


# Published tables


def test_a_published_table_has_ours_in_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def grid(source: Any, policies: Any, predictors: Any, rates: Any = (), *args: Any,
             **given: Any) -> Any:  # fmt: skip
        asked.append({"source": source, "policies": policies, "predictors": predictors,
                      "rates": list(rates), "args": args, **given})  # fmt: skip
        who = (Contender("fcfs", None, "fcfs", "none"), Contender("a", None, "a", "none"),
               Contender("b", None, "b", "none"))  # fmt: skip
        rows = [
            {"rate": rate, "offered_rate": 1.0, "seed": seed, "policy": one.policy_name,
             "predictor": "none", "normalized_latency_mean_s": (k + 1.0) * (seed + 1),
             "e2e_mean_s": (k + 2.0) * (seed + 1)}
            for rate in (list(rates) or [math.nan])
            for seed in range(2)
            for k, one in enumerate(who)
        ]  # fmt: skip
        return Comparison("x", pd.DataFrame(rows), who, {}, {})

    monkeypatch.setattr(vllm_ltr, "compare", grid)
    monkeypatch.setattr(vllm_ltr, "lines", lambda *given: ())
    monkeypatch.setattr(ssjf, "compare", grid)
    found = reproduce.reproduce("vllm-ltr", 2, 3)
    assert found.quantity == "s/token"
    assert [line.setting for line in found.lines[::3]] == [
        "8B, ShareGPT", "8B, LMSYS", "70B, ShareGPT", "70B, LMSYS",
    ]  # fmt: skip
    # Table 4 of the paper: latency a token, and what it is of FCFS's
    assert [line.theirs for line in found.lines] == [
        "1.15", "1.07", "0.56", "1.73", "0.80", "0.38", "1.44", "1.37", "0.78", "2.17", "1.00",
        "0.54",
    ]  # fmt: skip
    assert [line.their_ratio for line in found.lines[:6]] == [
        "1.00", "0.93", "0.49", "1.00", "0.46", "0.22",
    ]  # fmt: skip
    for k, line in enumerate(found.lines):
        assert line.ours is not None and line.our_ratio is not None
        assert line.ours.mean == 1.5 * (k % 3 + 1)
        assert line.our_ratio.mean == pytest.approx(k % 3 + 1)
    assert [one["seeds"] for one in asked] == [2] * 4
    assert [one["processes"] for one in asked] == [3] * 4
    assert [one["source"].options["requests"] for one in asked] == [2000] * 4
    assert [one["predictors"][0] for one in asked] == [
        f"noisy-oracle:tau={tau}" for tau in (0.54, 0.62, 0.54, 0.62)
    ]
    assert [one["timing"] for one in asked] == [
        *["roofline:a100/llama-3.1-8b"] * 2, *["roofline:8xa100/llama-3.1-70b"] * 2
    ]  # fmt: skip
    asked.clear()
    monkeypatch.setattr(ssjf, "alone_s", lambda *given: np.array([1.0, 3.0]))
    table = reproduce.reproduce("ssjf", 2, 1)
    assert asked[0]["rates"] == [0.25, 0.35, 0.4, 0.45]  # shares of one request in two seconds
    assert asked[0]["args"][0] == 2
    assert asked[0]["args"][1].max_num_seqs == 1
    assert [line.setting for line in table.lines[::3]] == [
        f"load {load}" for load in (0.5, 0.7, 0.8, 0.9)
    ]
    assert [line.our_ratio.mean for line in table.lines[:3]] == pytest.approx([1, 1.5, 2])  # type: ignore[union-attr]
    assert [line.ours.mean for line in table.lines[:3]] == pytest.approx([3.0, 4.5, 6.0])  # type: ignore[union-attr]
    papers: Any = {"mine": lambda *given, **more: (given, more)}
    mine: Any = reproduce.reproduce("mine", 4, 2, papers=papers, small=True)
    assert mine == ((4, 2, None, None), {"small": True})
    with pytest.raises(UnknownNameError, match="did you mean 'ssjf'"):
        reproduce.reproduce("ssfj")


# Tuning


def test_candidates_are_halved_on_more_and_more_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metric is the distance of b from 3 and the same on each run: the nearest is found."""
    policy = load_policy("work")

    def value(case: Any, judged: Any) -> Any:
        return 1.0 + abs(math.log(judged.score.tunables["b"] / 0.3)) + 0.01 * case

    monkeypatch.setattr(tune, "records_of", value)
    search = tune._Search(policy, [0, 1, 2, 3], lambda v: v, np.random.default_rng(0))  # type: ignore[arg-type, list-item]
    assert search.rungs == [1, 2, 4]
    assert sorted(search.order) == [0, 1, 2, 3]
    assert [search._price(n) for n in (0, 1, 2, 4, 8)] == [0, 4, 2 + 1 + 2, 8, 8 + 4 + 4]
    assert [tune._half(n) for n in (0, 1, 2, 3, 8)] == [0, 1, 1, 1, 4]
    best = search.halve([{"b": 1.0}], tune.WIDE, 64)
    assert len(search.known) <= 64
    assert len(search.known) > 40
    assert abs(math.log(best["b"] / 0.3)) < abs(math.log(1 / 0.3)) / 3
    level = search.level({"b": 0.3}, [0, 1, 2, 3])
    assert level == pytest.approx(np.mean(np.log(1.0 + 0.01 * np.arange(4))))
    assert tune.BUDGET == 64


def test_a_policy_takes_the_place_of_all_nodes_policies_or_of_the_router() -> None:
    node = Node(ONE, TICK, load_policy("fcfs"))
    system = System((node, node), load_router("round-robin"))
    sjf, jsq = load_policy("sjf"), load_router("jsq")
    assert [n.policy for n in tune.placed(system, sjf).nodes] == [sjf, sjf]
    assert tune.placed(system, sjf).routing == system.routing
    assert tune.placed(system, jsq).routing == jsq
    assert tune.placed(system, jsq).nodes == system.nodes


# The bound


def test_the_bound_is_the_largest_of_its_three(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = burst(3, 3, 3, 3)
    engine = Engine(max_num_seqs=4, num_gpu_blocks=500)
    for one, batch, alone, expected in ((1, 2, 3, 3), (1, 5, 3, 5), (7, 5, 3, 7)):
        monkeypatch.setattr(bound, "_one_machine", lambda *given, one=one: float(one))
        monkeypatch.setattr(bound, "_batching", lambda *given, batch=batch: float(batch))
        own = np.array([alone - 1.0, alone + 1.0])
        assert bound.mean_latency_bound_s(workload, engine, TICK, own) == expected
        assert bound.mean_latency_bound_s(workload, engine, TICK, None) == max(one, batch)
        cached = dataclasses.replace(engine, enable_prefix_caching=True)
        assert bound.mean_latency_bound_s(workload, cached, TICK, own) == expected
        # prefixes that are shared make prompts shorter than alone
        shared = workload.replace(
            prefix_hashes=[()] * 4, hash_block_tokens=np.full(4, engine.block_size)
        )
        assert bound.mean_latency_bound_s(shared, cached, TICK, own) == max(one, batch)
        assert bound.mean_latency_bound_s(shared, engine, TICK, own) == expected
    assert math.isnan(bound.mean_latency_bound_s(workload, engine, SimpleNamespace(), None))  # type: ignore[arg-type]
