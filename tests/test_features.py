"""The features table and those who can tell features: what a part lacks is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise import features, registry
from lengthwise.envs.columns import Columns
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.features import Feature
from lengthwise.policies.plugins.routing import ReplicaRouter
from lengthwise.policy import RoutingPolicy, SchedulingPolicy, Score
from lengthwise.provider import Provider
from lengthwise.serving import Engine
from lengthwise.serving.run import run
from lengthwise.serving.timing.linear import LinearTiming
from lengthwise.workload import Workload
from tests.systems import alike

PROVIDERS = registry.names("provider")
PAGE = Path(__file__).parent.parent / "docs" / "features.md"


def table() -> str:
    """The features and who can tell them, in Markdown."""
    told = {name: registry.load("provider", name) for name in PROVIDERS}
    head = ["feature", "unit", "of", "changes with", "meaning", *PROVIDERS]
    rows = [head, ["---"] * len(head)]
    for name, feature in features.FEATURES.items():
        about = [f"`{name}`", feature.unit, feature.of, feature.changes, feature.meaning]
        rows.append(about + ["x" if name in told[one] else "" for one in PROVIDERS])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def test_the_page_shows_the_table() -> None:
    assert f"-->\n{table()}\n<!-- end -->" in PAGE.read_text("utf-8")


@pytest.fixture
def novel(monkeypatch: pytest.MonkeyPatch) -> Score:
    """A score that reads a feature which stands in the table and nowhere else."""
    row = Feature("waiting_request", "requests", "int64", "replica", "state", "one of a test")
    monkeypatch.setitem(features.FEATURES, row.name, row)

    def newest(waiting_request: Any) -> Any:
        return waiting_request

    return Score.from_function(newest)


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_feature_of_the_table_alone_is_refused_by_every_provider(name: str, novel: Score) -> None:
    provider = registry.load("provider", name)
    with pytest.raises(InputError) as refused:
        provider.require(novel.features, f"policy {novel.name!r}")
    line = str(refused.value)
    assert "\n" not in line
    assert f"policy 'newest' reads waiting_request (of a replica), and {provider.label}" in line
    assert ("nearest: waiting_requests" in line) == ("waiting_requests" in provider)


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize("reader", ["policy", "router"])
def test_an_engine_runs_no_policy_that_reads_it(backend: Any, reader: str, novel: Score) -> None:
    columns = {"arrival_s": [0.0], "prompt_tokens": [3], "output_tokens": [2]}
    plain = Score.from_function(lambda routed_requests: routed_requests, "plain")
    given = alike(
        policy=SchedulingPolicy(novel if reader == "policy" else plain),
        routing=RoutingPolicy(novel if reader == "router" else plain),
        engine=Engine(num_gpu_blocks=64), timing=LinearTiming(1.0), replicas=2,
    )  # fmt: skip
    workload = Workload({name: np.array(column) for name, column in columns.items()})
    with pytest.raises(InputError, match=r"'newest' reads waiting_request .*can't tell"):
        run(workload, **given, backend=backend)


def test_routers_and_environments_refuse_it(novel: Score) -> None:
    with pytest.raises(InputError, match=r"reads waiting_request .*this router can't tell"):
        ReplicaRouter(RoutingPolicy(novel))
    with pytest.raises(InputError, match="did you mean 'waiting_requests'"):
        Columns.of(novel.features)


def test_a_router_that_is_not_told_a_request_s_feature_refuses_it() -> None:
    def by_priority(priority: Any, routed_requests: Any) -> Any:
        return priority + routed_requests

    policy = RoutingPolicy(Score.from_function(by_priority))
    with pytest.raises(InputError, match=r"reads priority \(of a request\), and this router"):
        ReplicaRouter(policy, tells=("prompt_tokens",))
    assert ReplicaRouter(policy).rank(["a"], priority=1) == ["a"]
    with pytest.raises(InputError, match=r"reads priority, which rank.. was not given"):
        ReplicaRouter(policy).rank(["a"])


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_tells_what_stands_in_the_table(name: str) -> None:
    provider = registry.load("provider", name)
    assert provider and set(provider) <= set(features.FEATURES)


def test_a_provider_of_an_unknown_name_is_refused_when_it_is_made() -> None:
    with pytest.raises(UnknownNameError, match="'now_ms' of an abacus; did you mean 'now_s'"):
        Provider("an abacus", {"now_ms": 0})


if __name__ == "__main__":
    print(table())
