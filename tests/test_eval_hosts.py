"""Hosts that differ: the corners, what is run on them, and what is said to hold."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.eval.compare import compare, on_hosts
from lengthwise.eval.flat import comparison_document
from lengthwise.eval.hosts import CALIBRATED, SEEN, Host, hosts_of, on_host, spread
from lengthwise.eval.plan import compare_plan
from lengthwise.eval.setting import Setting
from lengthwise.eval.source import as_source
from lengthwise.eval.statistics import Interval
from lengthwise.eval.survival import hosts_sentence, side
from lengthwise.serving import Engine
from lengthwise.serving.timing import LinearTiming, timing
from lengthwise.serving.timing.speed import at_speed
from lengthwise.workload import Workload

SMALL = Engine(max_num_seqs=8, async_scheduling=True)


def test_corners_and_their_words() -> None:
    for found, gpu, cpu in (
        (SEEN, (0.95, 1.05), (0.5, 2.5)),
        (CALIBRATED, (0.98, 1.02), (0.8, 1.25)),
    ):
        assert {(host.gpu, host.cpu) for host in found} == {(g, c) for g in gpu for c in cpu}
        assert len({host.name for host in found}) == 4
    assert spread(SEEN) == "GPU 0.95 to 1.05 and CPU 0.5 to 2.5 of the profile's times"


def test_a_calibrated_profile_is_known_better() -> None:
    def of(*names: str) -> tuple[Host, ...]:
        return hosts_of(Setting(nodes=",".join(names)).load().kinds)

    assert of("h200/llama-3.1-8b") == of("roofline:h100/llama-3.1-8b") == SEEN
    nodes: Any = [{"timing": "h200/llama-3.1-8b:gpu=0.98,cpu=1.4"}]
    assert hosts_of(Setting(nodes=nodes).load().kinds) == CALIBRATED
    nodes += [{"timing": "h200/llama-3.1-8b"}]
    assert hosts_of(Setting(nodes=nodes).load().kinds) == SEEN
    with pytest.raises(InputError, match="'linear' has no GPU and CPU"):
        hosts_of(Setting(timing=LinearTiming(1.0)).load().kinds)


def test_times_on_another_host() -> None:
    slow = Host("slow", 1.05, 2.5)
    made: Any = on_host(timing("h200/llama-3.1-8b"), slow)
    assert (made.gpu, made.cpu) == (1.05, 2.5)
    again: Any = on_host(timing("h200/llama-3.1-8b:gpu=0.9,cpu=2"), slow)
    assert (again.gpu, again.cpu) == pytest.approx((0.945, 5.0))
    rough: Any = on_host(timing("roofline:h100/llama-3.1-8b"), slow)
    assert (rough.gpu_factor, rough.cpu) == (1.05, 2.5)
    half: Any = on_host(at_speed(timing("h200/llama-3.1-8b"), 0.5), slow)
    assert (half.speed, half.timing.cpu) == (0.5, 2.5)
    kinds = Setting(host=slow).load().kinds
    assert kinds[0].timing.name == "h200/llama-3.1-8b:gpu=1.05,cpu=2.5"


def burst() -> Workload:
    """Sixty requests whose long ones come first, so that order matters."""
    return Workload(
        {
            "arrival_s": np.arange(60) * 0.01, "prompt_tokens": np.full(60, 100),
            "output_tokens": np.where(np.arange(60) % 3 == 0, 300, 20),
        },
        name="burst",
    )  # fmt: skip


def test_all_is_run_again_on_each_host() -> None:
    told: list[tuple[int, int]] = []
    found = compare(
        burst(), ("sjf",), seeds=1, engine=SMALL, hosts=True, progress=lambda *at: told.append(at)
    )
    assert list(found.hosts) == [host.name for host in SEEN]
    assert told == [(k, 5) for k in range(1, 6)]
    for host in SEEN:
        alone = compare(
            burst(), ("sjf",), seeds=1, engine=SMALL,
            timing=f"h200/llama-3.1-8b:gpu={host.gpu},cpu={host.cpu}",
        )  # fmt: skip
        np.testing.assert_array_equal(
            found.hosts[host.name].runs["e2e_mean_s"], alone.runs["e2e_mean_s"]
        )
    (row,) = [who for who in found.contenders if who.policy_name == "sjf"]
    told: list[tuple[int, int]] = []
    alone_there = on_hosts(
        as_source(burst()), row, float("nan"), 1, Setting(SMALL),
        progress=lambda done, of: told.append((done, of)),
    )  # fmt: skip
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {name: one.mean for name, one in alone_there.items()} == {
        name: there.ratio(float("nan"), row, "e2e_mean_s").mean
        for name, there in found.hosts.items()
    }
    assert any("GPU 0.95 to 1.05 and CPU 0.5 to 2.5" in notice for notice in found.notices)
    assert found.config["hosts"][1] == {"name": "slow CPU", "gpu": 0.95, "cpu": 2.5}
    document = comparison_document(found)
    (row,) = [r for r in document["hosts"] if r["metric"] == "e2e_mean_s"]
    assert row["verdict"] == "lower" and row["survives"]
    assert row["least"] == min(row["ratio"], *row["hosts"].values())
    assert "a lower mean latency holds for sjf · oracle (" in document["verdicts"][0]
    plan = compare_plan(
        as_source(burst()), ("sjf",), ("oracle",), (), 1, SMALL, hosts=True,
        timing="h200/llama-3.1-8b",
    )  # fmt: skip
    assert "5 cells, 10 runs" in plan[1] and "on 5 hosts from fast to slow" in plan


def test_near_saturation_it_is_said_once_that_hosts_differ() -> None:
    def told(rates: tuple[float, ...], name: str = "h200/llama-3.1-8b") -> tuple[list[str], float]:
        found = compare(burst(), ("sjf",), rates=rates, seeds=1, engine=SMALL, timing=name)
        return [line for line in found.notices if "--host-uncertainty" in line], found.capacity

    nothing, most = told((1.0,))
    assert not nothing
    (line,), _ = told((0.9 * most, 0.95 * most))
    assert line.startswith("from 85% of what can be served on")
    assert not told((0.9 * most,), "h200/llama-3.1-8b:cpu=1.001")[0]


# What holds, of comparisons whose numbers are made up


def made(
    here: dict[str, float], sure: float = 0.005,
    over: bool = False, capacity: float = 10.0, **there: dict[str, float],
) -> Any:  # fmt: skip
    """A comparison of rows with these ratios of mean latency, here and on hosts by name."""

    def one(ratios: dict[str, float], most: float, is_over: bool) -> Any:
        def ratio(rate: float, who: Any, metric: str, to: Any = None) -> Interval:
            mean = ratios[who.label] if metric == "e2e_mean_s" else 1.0
            return Interval(mean, mean - sure, mean + sure, 3)

        return SimpleNamespace(
            ratio=ratio, overloaded=lambda rate: is_over, capacity=most, hosts={}, baseline="fcfs"
        )

    found = one(here, capacity, over)
    found.hosts = {
        name: one(ratios, ratios.pop("capacity", capacity), ratios.pop("over", 0.0) > 0)
        for name, ratios in there.items()
    }
    rows = [SimpleNamespace(label=label) for label in here]
    groups = [SimpleNamespace(first=row, contenders=(row,)) for row in (None, *rows)]
    found.alike = lambda rate: groups
    return found


def sentence(found: Any) -> str:
    return hosts_sentence(found, 8.0).removeprefix("on hosts from fast to slow ")


def test_what_holds_and_what_does_not() -> None:
    same = made({"a": 0.8, "b": 0.9}, x={"a": 0.7, "b": 0.985}, y={"a": 0.97, "b": 0.9})
    assert sentence(same) == ("a lower mean latency holds for a (70 to 97%), not for b (90 to 98%)")
    none = made({"a": 0.9}, x={"a": 1.0})
    assert sentence(none) == "a lower mean latency doesn't hold for a (90 to 100%)"
    higher = made({"a": 1.1, "b": 1.1}, x={"a": 1.03, "b": 1.019})
    assert sentence(higher) == (
        "a higher mean latency holds for a (103 to 110%), not for b (102 to 110%)"
    )
    quiet = made({"a": 1.0}, x={"a": 0.96})
    assert sentence(quiet) == "no latency differs from fcfs's on any"
    hidden = made({"a": 1.0}, x={"a": 0.9})
    assert sentence(hidden) == "mean latency differs on some for a (90 to 100%)"
    unsure = made({"a": 1.0}, sure=0.2, x={"a": 0.9})  # nowhere for sure
    assert sentence(unsure) == "no latency differs from fcfs's on any"


def test_overload_on_some_hosts_is_named() -> None:
    some = made({"a": 1.0}, x={"a": 1.0, "over": 1.0, "capacity": 7.0}, y={"a": 1.0})
    assert sentence(some).endswith("overload on x, where as few as 7 can be served")
    others = made({"a": 1.0}, over=True, x={"a": 1.0, "capacity": 12.0})
    assert sentence(others).endswith("no overload on the others, where up to 12 can be served")
    all_of_them = made({"a": 1.0}, over=True, x={"a": 1.0, "over": 1.0})
    assert "overload" not in sentence(all_of_them)


def test_sides_by_hand() -> None:
    assert [side(Interval(m, low, high, 3)) for m, low, high in (
        (0.9, 0.8, 0.979), (0.9, 0.8, 0.981), (1.1, 1.021, 1.2), (1.1, 1.019, 1.2), (1, 1, 1),
    )] == ["lower", "same", "higher", "same", "same"]  # fmt: skip
    alone = [Interval(mean, math.nan, math.nan, 1) for mean in (0.97, 0.98, 1.02, 1.03)]
    assert [side(one) for one in alone] == ["lower", "same", "same", "higher"]
