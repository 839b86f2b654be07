"""Plans of nodes: the mix against all that there are, and what a file may say."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval.buckets import Bucket, buckets_of, most_rate
from lengthwise.eval.mix import cheapest_mix, nodes_alone
from lengthwise.eval.placement import plan, sent_to, wanted_of
from lengthwise.eval.setting import Setting
from lengthwise.eval.simulate import simulate_on
from lengthwise.policies import load_policy
from lengthwise.serving import Engine, Node
from lengthwise.serving.timing import LinearTiming
from lengthwise.training.cli import main
from lengthwise.workload import Workload

Floats = NDArray[np.float64]


def enumerated(
    load: Floats, prices: list[float], limits: list[int | None], slices: int
) -> float | None:
    """The least cost of all counts and all ways to hand out the slices."""
    types, buckets = load.shape
    most = [
        int(np.ceil(np.where(np.isfinite(load[g]), load[g], 0).sum())) + 1
        if limits[g] is None else limits[g] for g in range(types)
    ]  # fmt: skip
    ways = [one for one in itertools.product(range(slices + 1), repeat=types) if sum(one) == slices]
    best: float | None = None
    for each in itertools.product(ways, repeat=buckets):
        cut = np.array(each).T / slices  # (types, buckets)
        if (cut[~np.isfinite(load)] > 0).any():
            continue
        busy = (cut * np.where(np.isfinite(load), load, 0)).sum(axis=1)
        need = np.ceil(busy - 1e-9)
        if (need > most).any():
            continue
        cost = float(need @ prices)
        best = cost if best is None else min(best, cost)
    return best


@pytest.mark.parametrize("seed", range(40))
def test_the_mix_is_the_cheapest_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    types, buckets, slices = (2, 3, 3) if seed % 2 else (3, 2, 2)
    load = rng.uniform(0.05, 2.5, (types, buckets))
    load[rng.random(load.shape) < 0.15] = np.inf
    prices = rng.uniform(0.5, 8, types).round(2).tolist()
    limits = [None if rng.random() < 0.6 else int(rng.integers(0, 4)) for _ in range(types)]
    best = enumerated(load, prices, limits, slices)
    found = cheapest_mix(load, prices, limits, slices)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.cost == pytest.approx(best)
    assert found.gap == 0
    assert found.shares.sum(axis=0) == pytest.approx(1)
    assert (found.shares[~np.isfinite(load)] == 0).all()
    assert found.utilization.max() <= 1 + 1e-6
    assert all(c <= m for c, m in zip(found.counts, limits, strict=True) if m is not None)


@pytest.mark.parametrize("total, count", [(0.2, 1), (1.0, 1), (1.01, 2), (6.9, 7)])
def test_one_type_takes_the_load_over_what_one_carries(total: float, count: int) -> None:
    load = np.array([[0.25, 0.75]]) * total
    found = cheapest_mix(load, [2.0], slices=4)
    assert found is not None
    assert found.counts == (count,) == (nodes_alone(load[0]),)
    assert found.utilization == pytest.approx([total / count])


def test_shares_leave_the_busiest_type_as_free_as_they_can() -> None:
    # either serves either; of two equal nodes, each takes half
    found = cheapest_mix(np.array([[1.2], [1.2]]), [1.0, 1.0], [1, 1], slices=8)
    assert found is not None and found.counts == (1, 1)
    assert found.utilization == pytest.approx([0.6, 0.6])


def test_each_request_goes_to_its_type_as_often_as_the_shares_say() -> None:
    found = cheapest_mix(np.array([[1.2, np.inf], [1.2, 0.1]]), [1.0, 1.0], [1, 1], slices=8)
    assert found is not None
    of = np.array([0, 1] * 500)
    sent = sent_to(found, of)
    for b in (0, 1):
        share = np.bincount(sent[of == b], minlength=2) / 500
        assert share == pytest.approx(found.shares[:, b], abs=2 / 500)


def test_a_bucket_is_one_cell_of_lengths() -> None:
    workload = Workload({"arrival_s": np.arange(5.0), "prompt_tokens": [5, 10, 11, 900, 10],
                         "output_tokens": [1, 8, 8, 1, 9]})  # fmt: skip
    found, of = buckets_of(workload, (10, 100), (8, 16))
    assert [(b.prompt, b.output, b.share) for b in found] == [
        ((0, 10), (0, 8), 0.4), ((0, 10), (8, None), 0.2), ((10, None), (0, 8), 0.4),
    ]  # fmt: skip
    assert of.tolist() == [0, 0, 2, 2, 1]
    assert found[2].label == "11+ prompt and 1–8 answer tokens"


def one_at_a_time(service_s: float, blocks: int = 1000) -> Node:
    """A node that serves one request of one token at a time, in the same time."""
    engine = Engine(max_num_seqs=1, num_gpu_blocks=blocks)
    timing = LinearTiming(
        base_s=service_s, per_prefill_token_s=0, per_sequence_s=0, per_context_token_s=0
    )
    return Node(engine, timing, load_policy("fcfs"))


def test_the_rate_of_a_bucket_is_that_of_the_queue_in_the_textbook() -> None:
    """M/D/1: requests within two services are those that come to less than one of waiting work:
    P(wait <= t) for t below the service time d is (1 - rho) exp(rate t)."""
    d = 0.1
    ones = np.ones(1, np.int64)
    bucket = Bucket((0, 1), (0, 1), 1.0, ones, ones)
    asked = 0.8  # at wait <= 0.99 d
    found, why = most_rate(one_at_a_time(d), bucket, {"ttft": 1.99 * d}, asked)
    exact = next(
        rho for rho in np.linspace(0.01, 0.99, 981) if (1 - rho) * np.exp(rho * 0.99) < asked
    )
    assert why == ""
    # judged are a few hundred requests: a standard error of some hundredths of the share
    assert found * d == pytest.approx(exact, abs=0.12)
    assert most_rate(one_at_a_time(d), bucket, {"ttft": 100.0}, 0.5)[0] == pytest.approx(
        1 / d, 0.02
    )


def test_what_is_too_slow_or_too_large_says_so() -> None:
    ones = np.ones(1, np.int64)
    bucket = Bucket((0, None), (0, None), 1.0, 100 * ones, ones)
    rate, why = most_rate(one_at_a_time(0.1), bucket, {"ttft": 0.05}, 0.99)
    assert rate == 0 and why == "alone, 0% of them meet the SLO"
    rate, why = most_rate(one_at_a_time(0.1, blocks=2), bucket, {"ttft": 1}, 0.99)
    assert rate == 0 and why == "one of 101 tokens does not fit its 16"


GIVEN: dict[str, Any] = {
    "gpus": [
        {"name": "small", "timing": "roofline:l4/llama-2-7b", "price": 0.7},
        {"name": "large", "timing": "roofline:a100/llama-2-7b", "price": 3.67, "limit": 5},
    ],
    "workload": "lmsys-chat",
    "requests": 300,
    "rate": 12,
    "slo": {"tpot": 0.12},
    "headroom": 0,
    "buckets": {"prompt": [500, 4000], "output": [2000]},
}


def test_a_plan_is_what_its_parts_say() -> None:
    found = plan(GIVEN, seed=1)
    counts, types = found.mix.counts, found.wanted.types
    assert found.mix.cost == pytest.approx(
        sum(c * t.price for c, t in zip(counts, types, strict=True))
    )
    assert found.rate == pytest.approx(12)
    assert sum(found.share(place) for place in range(2)) == pytest.approx(1)
    for place, one in enumerate(found.singles):  # rounded up from the sum over buckets
        need = sum(12 * b.share / found.rates[place, n] for n, b in enumerate(found.buckets))
        assert one.count == int(np.ceil(need)) and one.cost >= found.mix.cost
    assert found.capacity == pytest.approx(12 / found.mix.utilization.max())
    by_plan, behind = found.tried
    assert by_plan.router == "plan" and 0.5 < by_plan.attainment <= 1
    # what is said of a router is what the nodes file comes to elsewhere
    source = wanted_of(GIVEN).source
    loaded = Setting(Engine(), nodes=found.nodes(), router="least-requests").load()
    ran = simulate_on(source.load(12, 1), loaded, "fcfs", None, seed=1, backend="auto")
    assert behind.attainment == pytest.approx(ran.summary({"tpot": 0.12})["slo_attainment"])


def bursts() -> Workload:
    """Twenty requests at once every four seconds, which no Poisson process of that rate does."""
    return Workload({
        "arrival_s": np.repeat(np.arange(60.0) * 4, 20), "prompt_tokens": np.full(1200, 400),
        "output_tokens": np.full(1200, 100),
    })  # fmt: skip


def test_headroom_is_raised_until_the_simulation_is_within_the_slo() -> None:
    given = {"gpus": [{**GIVEN["gpus"][1], "limit": None}], "workload": bursts(),
             "slo": {"ttft": 0.5}}  # fmt: skip
    plain = plan({**given, "headroom": 0}, routers=("plan",))
    assert plain.tried[0].attainment < 0.99
    assert "headroom: auto" in plain.notices[-1]
    auto = plan(given, routers=("plan",))
    assert auto.tried[0].attainment >= 0.99
    assert auto.mix.cost > plain.mix.cost
    assert auto.utilization(0) <= 1 - auto.headroom + 1e-9
    assert auto.capacity == pytest.approx(auto.rate * (1 - auto.headroom) / auto.utilization(0))
    (alone,) = auto.singles  # never dearer than one type alone that is within the SLO
    assert alone.attainment >= 0.99 and auto.mix.cost <= alone.cost
    kept = plan({**given, "headroom": 0.9}, routers=("plan",))
    assert kept.headroom == 0.9
    assert kept.mix.counts == (int(np.ceil(plain.utilization(0) * plain.mix.counts[0] / 0.1)),)
    limited = plan(
        {**given, "gpus": [{**GIVEN["gpus"][1], "limit": 1}]},
        routers=("plan",),
    )
    assert limited.mix.counts == (1,)
    assert limited.tried[0].attainment == plain.tried[0].attainment
    assert "more nodes are not to be had" in limited.notices[-1]


def test_a_node_that_cannot_hold_all_is_behind_no_router() -> None:
    small = {"name": "small", "timing": "roofline:l4/llama-2-7b", "price": 0.01,
             "num_gpu_blocks": 80}  # fmt: skip
    large = {**GIVEN["gpus"][1], "max_num_seqs": 4}
    found = plan({**GIVEN, "rate": 4, "gpus": [small, large]})
    assert found.mix.counts[0] > 0 and found.mix.counts[1] > 0
    by_plan, behind = found.tried
    assert by_plan.attainment > 0 and by_plan.why == ""
    assert behind.why and np.isnan(behind.attainment)
    assert found.singles[0].count is None and "does not fit" in found.singles[0].why


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpus": None}, "gpus must be a list"),
        ({"gpus": [{"timing": "roofline:l44/llama-2-7b", "price": 1}]}, "did you mean 'l4'"),
        ({"gpus": [{"timing": "h100/llama-3.1-8c", "price": 1}]}, "h100/llama-3.1-8b"),
        ({"gpus": [{"timing": "roofline:l4/llama-2-7b", "price": -1}]},
         "gpu 0 of plan: price must be a number above 0.0, not -1"),
        ({"gpus": [{"timing": "roofline:l4/llama-2-7b"}]}, "gpu 0 of plan has no price"),
        ({"gpus": [{"price": 1}]}, "gpu 0 of plan has no timing"),
        ({"gpus": [{"timing": "roofline:l4/llama-2-7b", "prise": 1}]}, "did you mean 'price'"),
        ({"gpus": [GIVEN["gpus"][0]] * 2}, "two gpus are called 'small'"),
        ({"gpus": [{**GIVEN["gpus"][0], "limit": -1}]}, "limit must be a whole number from 0"),
        ({"gpus": [{**GIVEN["gpus"][0], "max_num_seqs": 0}]}, "gpu 0 of plan: max_num_seqs"),
        ({"slo": {"tpott": 1}}, "did you mean 'tpot'"),
        ({"slo": {"tpot": 0}}, "slo's tpot must be a number above 0.0"),
        ({"slo": "tpot"}, "slo must have limits"),
        ({"worklode": "x"}, "did you mean 'workload'"),
        ({"rate": "many"}, "rate must be a number above 0.0, not 'many'"),
        ({"attainment": 99}, "attainment must be a number above 0.0 and up to 1.0, not 99"),
        ({"headroom": 1}, "headroom must be a number from 0.0 and below 1.0"),
        ({"buckets": {"prompt": [10, 5]}}, "must rise"),
        ({"buckets": {"prompts": [10]}}, "did you mean 'prompt'"),
        ({"workload": 3}, "workload must be a preset's name or a file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as found:
        wanted_of({**GIVEN, **change})
    assert said in str(found.value)


@pytest.mark.parametrize("key", ["gpus", "workload", "slo"])
def test_a_file_without_what_it_needs_is_refused(key: str) -> None:
    with pytest.raises(InputError, match=f"has no {key}"):
        wanted_of({name: value for name, value in GIVEN.items() if name != key})


def test_an_unknown_workload_or_router_has_its_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="least-requests"):
        plan(GIVEN, routers=("least-request",))


def test_limits_that_are_too_low_are_said() -> None:
    few = [{**one, "limit": 1} for one in GIVEN["gpus"]]
    with pytest.raises(
        InputError, match=r"no mix within the limits \(small 1, large 1\) serves 500"
    ):
        plan({**GIVEN, "gpus": few, "rate": 500})


def cli(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(str(ended.value.code))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(GIVEN))
    return path


def test_the_command_writes_nodes_that_others_read(file: Path, capsys: Any) -> None:
    asked = ("plan", "fleet.yaml", "--processes", "1", "--json", "--out", "nodes.yaml")
    assert cli(*asked) == 0
    shown = json.loads(capsys.readouterr().out)
    counts = {row["node"]: row["count"] for row in shown["rows"] if row["count"]}
    nodes = yaml.safe_load(Path("nodes.yaml").read_text())
    assert {node["name"]: node["count"] for node in nodes} == counts
    assert shown["usd_per_hour"] == sum(row["usd_per_hour"] for row in shown["rows"])
    assert cli(*asked) == 0  # its own is replaced
    assert cli(*asked[:2], "--rate", "3", *asked[2:]) == 2  # another's is not
    assert "is there already" in capsys.readouterr().err
    assert (
        cli("simulate", "lmsys-chat", "--requests", "50", "--rate", "5", "--nodes", "nodes.yaml")
        == 0
    )


def test_the_table_has_the_plan_the_single_types_and_the_simulation(
    file: Path, capsys: Any
) -> None:
    assert cli("plan", "fleet.yaml", "--processes", "1", "--routers", "plan") == 0
    said = capsys.readouterr().out
    for part in ("Rent ", "$/h", "one type alone", "the plan saves", "by the plan's shares"):
        assert part in said
    assert cli("plan", "fleet.yaml", "--dry-run") == 0
    assert (
        "would plan lmsys-chat (300 requests at 12 a second in 2 buckets)"
        in capsys.readouterr().out
    )


def test_an_slo_that_nobody_meets_names_the_bucket(file: Path, capsys: Any) -> None:
    file.write_text(yaml.safe_dump({**GIVEN, "slo": {"tpot": 1e-4}}))
    assert cli("plan", "fleet.yaml", "--processes", "1") == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("lengthwise:")]
    assert "no gpu serves 99% of requests of 1–500 prompt and 1+ answer tokens" in line
    assert "small: alone, 0%" in line and "large: alone, 0%" in line


@pytest.mark.parametrize("text", ["gpus: [", "- a", "", "\x00"])
def test_no_plan_is_one_line(file: Path, capsys: Any, text: str) -> None:
    file.write_text(text)
    assert cli("plan", "fleet.yaml") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert cli("plan", "nowhere.yaml") == 2
