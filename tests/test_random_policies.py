"""What is registered is drawn by the suites that hold engines to each other."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from lengthwise import registry
from lengthwise.policies import load_policy
from lengthwise.policies.plugins.vllm.driver import VALUES
from lengthwise.policy import RoutingPolicy, SchedulingPolicy, Score
from lengthwise.serving.fast.features import ACCESSORS
from tests.conformance import cases
from tests.random_policies import random_policy, random_score
from tests.test_serving_kernel import SCORES, trial


def longest_prompt(prompt_tokens: Any, *, weight: float = 1.0) -> Any:
    return -weight * prompt_tokens


def fewest_seats(free_seats: Any) -> Any:
    return free_seats


DUMMY = SchedulingPolicy(Score.from_function(longest_prompt))
DUMMY_ROUTER = RoutingPolicy(Score.from_function(fewest_seats))


def test_a_newly_registered_policy_and_router_are_in_the_suites(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(registry.TABLES["policy"], "dummy", f"{__name__}:DUMMY")
    monkeypatch.setitem(registry.TABLES["router"], "dummy", f"{__name__}:DUMMY_ROUTER")
    systems = [trial(seed)["system"] for seed in range(60)]
    scores = {node.policy.score.function for system in systems for node in system.nodes}
    assert longest_prompt in scores
    assert fewest_seats in {system.routing.score.function for system in systems}
    drawn = {cases.policy_case(seed, "0.33.0").policy.score.function for seed in range(120)}
    assert longest_prompt in drawn


def test_every_registered_policy_is_drawn() -> None:
    drawn = Counter(
        node.policy.score.function for seed in range(300) for node in trial(seed)["system"].nodes
    )
    for name in registry.names("policy"):
        assert drawn[load_policy(name).score.function] > 2


@pytest.mark.parametrize(("told", "scores"), [(ACCESSORS, SCORES), (cases.EXACT, cases.SCORES)])
def test_random_scores_read_every_feature(told: Any, scores: int) -> None:
    read = {
        name
        for number in range(scores)
        for name in load_policy(random_score(number, told)).score.features
    }
    assert read == set(told)


def test_a_draw_is_the_same_again_and_loads_by_its_name() -> None:
    for seed in range(30):
        one, two = (random_policy(np.random.default_rng(seed), VALUES, 9) for _ in range(2))
        assert one.name == two.name
        assert load_policy(one.name).score.features == one.score.features
