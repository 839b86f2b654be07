"""The reference engine against the real vLLM scheduler, stepped in an environment of its own.

`python -m tests.conformance.run` does the same on thousands of workloads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from lengthwise import registry
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.plugins.vllm.driver import VALUES
from lengthwise.policy import Preemption, SchedulingPolicy, Score
from lengthwise.serving import Engine, Node, System, run
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.timing import LinearTiming, timing
from lengthwise.serving.vllm import VERSIONS, Vllm, VllmRun, VllmUnavailable
from lengthwise.serving.vllm.backend import plugin_settings
from lengthwise.workload import Workload
from tests.conformance.cases import policy_case, random_case
from tests.conformance.compare import difference
from tests.conformance.regressions import regressions

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", params=list(VERSIONS))
def vllm(request: pytest.FixtureRequest) -> Iterator[Vllm]:
    try:
        started = Vllm(request.param)
    except VllmUnavailable as error:
        pytest.skip(str(error))
    with started:
        yield started


@pytest.mark.parametrize("tens", range(5))
def test_random_workloads_schedule_alike(vllm: Vllm, tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        found = difference(random_case(seed, vllm.version), vllm)
        assert found is None, f"vLLM {vllm.version}: {found}"


def test_what_once_differed(vllm: Vllm) -> None:
    for case in regressions(vllm.version):
        assert difference(case, vllm) is None


def test_a_difference_is_found(vllm: Vllm) -> None:
    """The other version's options, where they matter, are told apart."""
    other = next(version for version in VERSIONS if version != vllm.version)
    found = [difference(case, vllm) for case in regressions(other)]
    assert [difference_ is not None for difference_ in found] == [False, True, True]
    assert "step 1: scheduled, preempted are" in str(found[2])


@pytest.mark.parametrize("tens", range(3))
def test_any_policy_through_the_plugin_schedules_alike(vllm: Vllm, tens: int) -> None:
    """Every registered one and random scores inside the real scheduler, to the picosecond."""
    for seed in range(10 * tens, 10 * tens + 10):
        found = difference(policy_case(seed, vllm.version), vllm)
        assert found is None, f"vLLM {vllm.version}: {found}"


def test_guarded_policies_on_profiles_schedule_alike(vllm: Vllm) -> None:
    """With the starvation guard, on two clocks."""
    policies = {name: load_policy(name) for name in registry.names("policy")}
    names = [
        name for name, policy in policies.items()
        if policy.queue == "priority" and VALUES.lacks(policy.score.features, name) is None
    ]  # fmt: skip
    for seed, name in enumerate(f"{name}+guard:ratio=0.5,floor_s=0.001" for name in names):
        rng = np.random.default_rng(seed)
        prompt, output = rng.integers(1, 60, 30), rng.integers(1, 40, 30)
        workload = Workload(
            {"arrival_s": np.sort(np.round(rng.exponential(0.5, 30), 2)), "prompt_tokens": prompt,
             "output_tokens": output, "priority": rng.integers(0, 3, 30),
             "deadline_s": rng.uniform(1, 60, 30)}
        )  # fmt: skip
        policy = load_policy(name)
        engine = Engine.of_vllm(
            vllm.version, max_num_seqs=4, max_num_batched_tokens=32, num_gpu_blocks=30,
            block_size=4, async_scheduling=bool(seed % 2),
        )  # fmt: skip
        model = timing("h200/llama-3.1-8b") if seed % 2 else LinearTiming(0.01, 1e-4, 1e-3)
        system = System.replicated(Node(engine, model, policy), 2, load_router("jsq"))
        predicted = np.maximum(output + rng.normal(0, 6, 30), 1)
        ours = ReferenceRun(workload, system, predicted, check=True)
        settings = plugin_settings(policy)
        assert settings is not None
        theirs = VllmRun(vllm, workload, system, predicted, plugins=[settings] * 2)
        ours.advance()
        theirs.advance()
        for field in ("replica", "scheduled_ps", "first_token_ps", "finish_ps", "preemptions"):
            mine, other = getattr(ours.records(), field), getattr(theirs.records(), field)
            assert mine.tolist() == other.tolist(), f"{name}: {field}"


def test_errors_of_vllm_come_back(vllm: Vllm) -> None:
    with pytest.raises(LengthwiseError, match=rf"vLLM {vllm.version}: KeyError"):
        vllm.ask({"do": "schedule", "id": -1, "now_s": 0.0})


def test_backend_vllm() -> None:
    workload = Workload(
        {"arrival_s": [0, 0, 1], "prompt_tokens": [9, 3, 5], "output_tokens": [4, 2, 2]}
    )
    node = Node(Engine(num_gpu_blocks=64), LinearTiming(1.0), load_policy("fcfs"))
    system = System((node,), load_router("jsq"))
    try:
        stock = run(workload, system, [4.0, 2.0, 2.0], backend="vllm")
    except VllmUnavailable as error:
        pytest.skip(str(error))
    assert (stock.backend, stock.backend_reason) == (
        "vllm", f"asked for: vLLM {list(VERSIONS)[-1]}, its own queue",
    )  # fmt: skip
    ours = run(workload, system, [4.0, 2.0, 2.0], backend="reference")
    for field in dataclasses.fields(ours):
        if isinstance(getattr(ours, field.name), np.ndarray):
            assert (getattr(ours, field.name) == getattr(stock, field.name)).all()


def test_what_vllm_cannot_do_is_refused() -> None:
    def mine(generated_tokens: object) -> object:
        return generated_tokens

    with pytest.raises(InputError, match="swaps or reserves"):
        plugin_settings(load_policy("srtf+preempt:mode=swap"))
    with pytest.raises(InputError, match="no spelling"):
        plugin_settings(SchedulingPolicy(Score.from_function(mine)))
    assert plugin_settings(load_policy("fcfs")) is None
    unspelled = SchedulingPolicy(load_policy("sjf").score, Preemption(), label="shortest")
    assert plugin_settings(unspelled) is None  # static: vLLM's own priority queue will do
    settings = plugin_settings(load_policy("srtf+preempt:price=0.5"))
    assert settings is not None and settings["policy"] == "srtf+preempt:price=0.5"
