"""The plugin in vLLM's real scheduler, on the CPU, of four versions from 0.12 to the newest."""

from __future__ import annotations

import atexit
import functools
import itertools
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.policies.bundle import write_bundle
from lengthwise.policies.learned import MLP
from lengthwise.policy import SchedulingPolicy, Score
from lengthwise.serving.vllm import VERSIONS as REFERENCE
from lengthwise.serving.vllm import VllmUnavailable
from tests.engines import agreement
from tests.engines.environments import VERSIONS, run_checks

# the first test that needs the environment makes it, which may take long
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3000)]
# one process for a version runs all its tasks: starting it takes most of the time
NEWEST = VERSIONS[-1]
ALL = [NEWEST, *(pytest.param(v, marks=pytest.mark.slow) for v in VERSIONS if v != NEWEST)]
DRAWN = 25  # policies
BOTH = [NEWEST, *(pytest.param(v, marks=pytest.mark.slow) for v in REFERENCE if v != NEWEST)]


@functools.cache
def _tasks(version: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Every task for a version by its name."""
    tasks = {
        "stock": ("stock", {"first": 0, "count": 5}),
        "shadow": ("shadow", {"first": 100, "count": 3}),
        **{f"said {name}": ("said", {"lengthwise": given}) for name, given in SAID.items()},
        "random": ("random_workloads", {"first": 0, "count": 50}),
        **{f"refused {name}": ("refused", given) for name, (given, _) in REFUSED.items()},
        **{name: ("order", given) for name, given in _orders().items()},
        **{name: ("counted", given) for name, given in COUNTED.items()},
    }
    if version in REFERENCE:
        tasks["agree"] = ("agree", {"cases": _agreement(version)})
        tasks["agree by curves"] = ("agree", {"cases": _curved(version)})
    return tasks


def _agreement(version: str) -> list[dict[str, Any]]:
    specs = [*agreement.policies(DRAWN), _bundles()["learned"]]
    return [agreement.case(seed, version, spec) for seed, spec in enumerate(specs)]


def _curved(version: str) -> list[dict[str, Any]]:
    specs = enumerate(agreement.by_curves(DRAWN))
    return [agreement.case(seed, version, spec, curved=True) for seed, spec in specs]


@functools.cache
def _bundles() -> dict[str, str]:
    """Exported policies, until the process ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng = np.random.default_rng(5)
    net = MLP(
        np.zeros(3), np.ones(3), np.array([True, True, False]),
        ((rng.normal(size=(4, 3)), rng.normal(size=4)), (rng.normal(size=(1, 4)), np.zeros(1))),
    )  # fmt: skip
    reads = ("predicted_tokens", "prompt_tokens", "generated_tokens")
    longest = MLP(np.zeros(1), np.ones(1), np.array([False]), ((np.array([[-1.0]]), np.zeros(1)),))
    policies = {
        "learned": SchedulingPolicy(Score("learned", net, reads)),
        "longest": SchedulingPolicy(Score("longest", longest, ("prompt_tokens",))),
    }
    return {name: str(write_bundle(made, folder / name)) for name, made in policies.items()}


@functools.cache
def answers(version: str) -> dict[str, dict[str, Any]]:
    tasks = _tasks(version)
    try:
        return dict(zip(tasks, run_checks(version, list(tasks.values())), strict=True))
    except VllmUnavailable as error:
        pytest.skip(str(error))


def found(version: str, name: str) -> Any:
    answer = answers(version)[name]
    assert answer["ok"], answer.get("error")
    return answer["found"]


# Stock results, and nothing lost


@pytest.mark.parametrize("version", ALL)
def test_fcfs_and_priority_are_stock_step_by_step(version: str) -> None:
    assert found(version, "stock") == {"workloads": 5}


@pytest.mark.parametrize("version", ALL)
def test_shadow_mode_asks_for_every_request_and_changes_no_step(version: str) -> None:
    assert found(version, "shadow")["asked"] > 30


SAID: dict[str, dict[str, Any]] = {
    "srtf": {"policy": "srtf", "guard": 2},
    "fcfs": {"policy": "fcfs"},
    "port": {"policy": "sjf", "metrics_host": "203.0.113.7", "metrics_port": 9},
}


@pytest.mark.parametrize("version", ALL)
def test_a_server_says_what_runs_in_one_line(version: str) -> None:
    (line,) = found(version, "said srtf")["lines"]
    assert line.startswith("INFO lengthwise ") and f" in vLLM {version}" in line
    for part in ("policy srtf", "preemption recompute", "guard 2 from 0.5 s", "predictor none",
                 "record none"):  # fmt: skip
        assert part in line
    (line,) = found(version, "said fcfs")["lines"]
    assert "policy fcfs (vLLM's own class)" in line and "guard off" in line
    warning, line = found(version, "said port")["lines"]
    assert warning.startswith("WARNING") and "can't listen on metrics_host '203.0.113.7'" in warning
    assert line.startswith("INFO")


@pytest.mark.parametrize("version", ALL)
def test_no_request_is_lost_and_no_block_leaks(version: str) -> None:
    result = found(version, "random")
    assert result["workloads"] == 50
    assert result["preemptions"] > 50  # they were hard enough to mean something


@pytest.mark.parametrize("version", BOTH)
def test_every_decision_is_the_reference_engine_s(version: str) -> None:
    result = found(version, "agree")
    assert result["cases"] == len(agreement.policies(DRAWN)) + 1
    assert result["preempted"] > 50


@pytest.mark.parametrize("version", BOTH)
def test_every_decision_by_a_predictor_s_curves_is_the_reference_engine_s(version: str) -> None:
    result = found(version, "agree by curves")
    assert result["cases"] == len(agreement.by_curves(DRAWN)) > 10
    assert result["preempted"] > 50


# Published orders: one seat, so that the order is all there is; a step takes 0.01 s

ONE_SEAT = {"max_num_seqs": 1, "max_num_batched_tokens": 512, "blocks": 200}


def _jobs(*rows: tuple[float, int], **each: Any) -> list[dict[str, Any]]:
    """Jobs from (arrival in s, output tokens), predicted exactly."""
    return [
        {"arrival_s": at, "prompt": 8, "output": n, "extra": {"predicted_tokens": n}, **each}
        for at, n in rows
    ]


def _orders() -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(0)
    arrivals = np.sort(rng.integers(0, 150, 30)) * 0.01
    arrivals = np.maximum(arrivals - 0.001, 0)  # clear of rounding: before their step begins
    many = list(zip(arrivals.tolist(), rng.integers(1, 30, 30).tolist(), strict=True))
    starved = _jobs((0, 3), (0, 90), *((0.02 * i, 3) for i in range(1, 120)))
    burst = _jobs(*zip(itertools.repeat(0.0), (5, 1, 3, 2, 4)))
    return {
        "sjf": {"lengthwise": {"policy": "sjf"}, "jobs": burst, **ONE_SEAT},
        "srpt": {
            "lengthwise": {"policy": "srtf+preempt:price=0", "guard": 0},
            "jobs": _jobs(*many), **ONE_SEAT,
        },
        "mlfq": {
            "lengthwise": {"policy": "mlfq:quantum=2,levels=3,skip_join=false+preempt:price=0",
                           "guard": 0},
            "jobs": _jobs((0, 8), (0, 3)), **ONE_SEAT,
        },
        "hrrn short": {
            "lengthwise": {"policy": "hrrn"},
            "jobs": _jobs((0, 10), (0.01, 10), (0.05, 2)), **ONE_SEAT,
        },
        "hrrn long": {
            "lengthwise": {"policy": "hrrn"},
            "jobs": _jobs((0, 10), (0.01, 10), (0.09, 2)), **ONE_SEAT,
        },
        "starved": {"lengthwise": {"policy": "sjf", "guard": 0}, "jobs": starved, **ONE_SEAT},
        "guarded": {
            "lengthwise": {"policy": "sjf", "guard": 1.5, "guard_floor_s": 0},
            "jobs": starved, **ONE_SEAT,
        },
        "bundle": {
            "lengthwise": {"bundle": _bundles()["longest"]},
            "jobs": [{"arrival_s": 0, "prompt": p, "output": 2} for p in (7, 30, 3, 50)],
            **ONE_SEAT,
        },
        "default": {
            "lengthwise": {"policy": "sjf", "default_tokens": 3},
            "jobs": [{**job, "extra": extra} for job, extra in
                     zip(burst, ({}, *(j["extra"] for j in burst[1:])), strict=True)],
            **ONE_SEAT,
        },
    }  # fmt: skip


@pytest.mark.parametrize("version", ALL)
def test_sjf_serves_by_predicted_length(version: str) -> None:
    assert found(version, "sjf")["admitted"] == [1, 3, 2, 4, 0]
    # request 0 has no prediction and counts as 3 tokens; it ties with request 2, which came later
    assert found(version, "default")["admitted"] == [1, 3, 0, 2, 4]


@pytest.mark.parametrize("version", ALL)
def test_srtf_with_exact_lengths_is_srpt(version: str) -> None:
    """Shortest remaining processing time, in slots: the optimum (Schrage 1968), by its definition.

    A preempted request recomputes its few tokens in one step, which yields its next token too, so
    that nothing is lost and the real scheduler must reach the optimum exactly.
    """
    jobs = _orders()["srpt"]["jobs"]
    left = [job["output"] for job in jobs]
    arrives = [math.ceil(job["arrival_s"] * 100) for job in jobs]
    finish: dict[int, int] = {}
    for slot in itertools.count():
        here = [i for i in range(len(jobs)) if arrives[i] <= slot and left[i]]
        if here:
            now = min(here, key=lambda i: left[i])
            left[now] -= 1
            if not left[now]:
                finish[now] = slot + 1
        elif not any(left):
            break
    result = found(version, "srpt")
    total = sum(round(at * 100) for at in result["finish_s"].values())
    assert total == sum(finish.values())
    assert result["preempted"] > 3


@pytest.mark.parametrize("version", ALL)
def test_mlfq_demotes_by_the_service_attained(version: str) -> None:
    # quantum 2: job 0 runs 2 steps, is demoted and gives way; job 1 reaches the same level after
    # 2 steps and, tied, keeps its seat for its third; then job 0 runs its other 6
    result = found(version, "mlfq")
    assert result["finish_s"] == {"1": 0.05, "0": 0.11}


@pytest.mark.parametrize("version", ALL)
def test_hrrn_weighs_waiting_against_length(version: str) -> None:
    # at 0.10 s: 0.09 / 11 against 0.05 / 3, and 0.09 / 11 against 0.01 / 3
    assert found(version, "hrrn short")["admitted"] == [0, 2, 1]
    assert found(version, "hrrn long")["admitted"] == [0, 1, 2]


@pytest.mark.parametrize("version", ALL)
def test_the_guard_ends_starvation(version: str) -> None:
    starved, guarded = found(version, "starved"), found(version, "guarded")
    assert starved["finished"][-1] == 1  # the long one, behind 120 short ones
    # FCFS starts it after the one job before it and ends it at 0.93 s
    assert guarded["finish_s"]["1"] < 1.5 * 0.93
    assert len(guarded["finished"]) == len(starved["finished"]) == 121


@pytest.mark.parametrize("version", ALL)
def test_a_bundle_s_order(version: str) -> None:
    assert found(version, "bundle")["admitted"] == [3, 1, 0, 2]  # longest prompt first


# What is refused, by name

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"lengthwise": {}}, "either a policy or a bundle"),
    "both": ({"lengthwise": {"policy": "sjf", "bundle": "x"}}, "either a policy or a bundle"),
    "setting": ({"lengthwise": {"policys": "sjf"}}, "did you mean 'policy'"),
    "type": ({"lengthwise": {"policy": "sjf", "guard": "on"}}, "guard takes float, not 'on'"),
    "list": ({"lengthwise": ["sjf"]}, "takes an object of settings"),
    "policy": ({"lengthwise": {"policy": "srft"}}, "did you mean 'srtf'"),
    "bundle": ({"lengthwise": {"bundle": "/nowhere"}}, "no bundle at '/nowhere'"),
    "predictor": ({"lengthwise": {"policy": "sjf", "predictor": "/nowhere"}}, "/nowhere"),
    "router": ({"lengthwise": {"policy": "jsq"}}, "unknown policy 'jsq'"),
    "swap": ({"lengthwise": {"policy": "srtf+preempt:mode=swap"}}, "by swapping"),
    "shadow": ({"lengthwise": {"policy": "fcfs", "predictor": "/nowhere"}}, "/nowhere"),
    "port": ({"lengthwise": {"policy": "sjf", "metrics_port": 65536}}, "65535 or less"),
    "idle guard": ({"lengthwise": {"policy": "fcfs", "guard": 1.5}}, "guard has no effect"),
    "idle floor": (
        {"lengthwise": {"policy": "sjf", "guard": 0, "guard_floor_s": 1}},
        "guard_floor_s has no effect",
    ),
    "idle prompts": (
        {"lengthwise": {"policy": "sjf", "record_prompts": True}},
        "record_prompts has no effect: there is no record",
    ),
    "idle time": (
        {"lengthwise": {"policy": "sjf", "predict_timeout_s": 1.0}},
        "predict_timeout_s has no effect: there is no predictor",
    ),
    "idle default": (
        {"lengthwise": {"policy": "mlfq", "guard": 0, "default_tokens": 9}},
        "default_tokens has no effect",
    ),
    "idle host": (
        {"lengthwise": {"policy": "sjf", "metrics_host": "::1"}},
        "metrics_host has no effect",
    ),
    "idle port": (
        {"lengthwise": {"policy": "fcfs", "metrics_port": 9}},
        "metrics_port has no effect",
    ),
    "admit": ({"lengthwise": {"policy": "sjf+admit:reserve=1"}}, "memory-aware admission"),
    "fcfs": ({"lengthwise": {"policy": "fcfs+preempt"}}, "preemption with vLLM's own queue"),
    "queue": ({"lengthwise": {"policy": "fcfs"}, "policy": "priority"}, "--scheduling-policy"),
}


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("name", REFUSED)
def test_what_can_t_work_is_refused_by_name(version: str, name: str) -> None:
    said = found(version, f"refused {name}")
    assert REFUSED[name][1] in said and "\n" not in said


# Failing policies

HERE = Path(__file__).parent / "engines" / "bad_policies.py"
FIVE = [{"arrival_s": 0, "prompt": p, "output": 2} for p in (9, 13, 4, 20, 6)]
COUNTED: dict[str, dict[str, Any]] = {
    "raises once": {"lengthwise": {"policy": f"{HERE}:unlucky"}, "jobs": FIVE, **ONE_SEAT},
    "raises by clock": {"lengthwise": {"policy": f"{HERE}:unlucky_by_clock"}, "jobs": FIVE,
                        **ONE_SEAT},
    "raises always": {"lengthwise": {"policy": f"{HERE}:broken"}, "jobs": FIVE, **ONE_SEAT},
    "gives nan": {"lengthwise": {"policy": f"{HERE}:not_a_number"}, "jobs": FIVE, **ONE_SEAT},
    "exits": {"lengthwise": {"policy": f"{HERE}:exits"}, "jobs": FIVE, **ONE_SEAT},
    "gives text": {"lengthwise": {"policy": f"{HERE}:text"}, "jobs": FIVE, **ONE_SEAT},
    "is slow": {"lengthwise": {"policy": f"{HERE}:slow", "policy_timeout_s": 0.01}, "jobs": FIVE,
                **ONE_SEAT},
    "bad length": {"lengthwise": {"policy": "sjf"}, **ONE_SEAT,
                   "jobs": [{**job, "extra": {"predicted_tokens": bad}} for job, bad in
                            zip(FIVE, (-1, "9", None, True, 3), strict=True)]},
}  # fmt: skip

FAILING = {
    "raises always": "raised", "exits": "raised SystemExit", "gives nan": "gave nan",
    "gives text": "gave 'first'",
}  # fmt: skip


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("name", FAILING)
def test_a_failing_policy_means_fcfs_said_once(version: str, name: str) -> None:
    result = found(version, name)
    assert result["admitted"] == [0, 1, 2, 3, 4]
    (warning,) = result["warnings"]
    assert FAILING[name] in warning
    assert result["counts"]["fallbacks:policy"] == 5


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("name", ["raises once", "raises by clock"])
def test_a_policy_that_fails_for_one_request_orders_the_others(version: str, name: str) -> None:
    # shortest prompt first; the one with 13 tokens fails and starts when FCFS would start it: once
    # work for one request was served, the second to come is due
    result = found(version, name)
    assert result["counts"]["fallbacks:policy"] == 1
    assert [i for i in result["admitted"] if i != 1] == [2, 4, 0, 3]
    assert result["admitted"].index(1) <= 2


@pytest.mark.parametrize("version", ALL)
def test_a_slow_policy_is_switched_off(version: str) -> None:
    result = found(version, "is slow")
    assert sorted(result["admitted"]) == [0, 1, 2, 3, 4]
    assert result["counts"]["fallbacks:policy"] == 2  # the first three were scored, slowly


@pytest.mark.parametrize("version", ALL)
def test_a_client_s_nonsense_is_counted_and_replaced(version: str) -> None:
    counts = found(version, "bad length")["counts"]
    assert counts == {
        "ignored:predicted_tokens": 2, "predictions:default": 3, "predictions:client": 2,
    }  # fmt: skip
