"""The card of an exported policy: what it holds and what was measured, each line, and no more."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lengthwise import features
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.blend import Blend
from lengthwise.policies.bundle import write_bundle
from lengthwise.policies.card import CARD, card
from lengthwise.policies.learned import MLP
from lengthwise.policy import RoutingPolicy, SchedulingPolicy, Score
from lengthwise.trained import TrainedOn

NAMES = ("arrival_s", "predicted_tokens")
REPORT: dict[str, Any] = {
    "env": "lengthwise/Routing-v0", "algo": "ppo", "seed": 3, "budget": "5,000 steps",
    "cost": 0.123456, "baselines": {"jsq": 0.25, "jsew": 0.2}, "best_baseline": "jsew",
    "ratio": {"mean": 0.61728, "low": 0.5, "high": 0.7251}, "notices": ["one thing", "another"],
}  # fmt: skip


def sections(text: str) -> dict[str, str]:
    """The text under each heading; of all before the first, under ""."""
    head, *rest = text.split("\n## ")
    return {"": head} | {one.split("\n", 1)[0]: one.split("\n", 1)[1].strip() for one in rest}


def network(skip: bool = False) -> MLP:
    layers = ((np.ones((4, 2)), np.zeros(4)), (np.ones((1, 4)), np.zeros(1)))
    plain = np.zeros(2, bool)
    return MLP(np.zeros(2), np.ones(2), plain, layers, np.ones(2) if skip else None)


def test_an_exported_score_says_that_nothing_was_measured() -> None:
    text = card(load_policy("mlfq:quantum=64"))
    front = yaml.safe_load(text.split("---")[1])
    assert front == {"library_name": "lengthwise",
                     "tags": ["lengthwise", "llm-serving", "scheduling"]}  # fmt: skip
    found = sections(text)
    assert list(found)[1:] == [
        "What it reads", "What it was trained on", "How good it is", "Use", "Limits",
    ]  # fmt: skip
    assert "# Scheduling policy: mlfq" in found[""]
    assert "The waiting request with the lowest score goes first." in found[""]
    assert "a registered score by name with " in found[""] and "quantum=64" in found[""]
    assert found["What it was trained on"] == "Nothing: it was exported as it is registered."
    assert found["How good it is"].startswith("Not measured when it was exported")
    assert "--scheduler-cls" in found["Use"] and "serve-epp" not in found["Use"]
    assert found["Limits"].splitlines() == [
        "- Order is worth something only where requests wait: judge it on your own traffic first "
        "(`lengthwise evaluate policy DIR TRACE`)."
    ]
    plain = sections(card(load_policy("sjf")))
    assert "`policy.json`, a registered score by name. Reading it" in plain[""]
    assert plain["Limits"].startswith("- It reads predicted lengths: it is no better")


def test_a_feature_stands_with_its_unit_and_its_meaning() -> None:
    rows = sections(card(load_policy("sjf")))["What it reads"].splitlines()
    asked = features.get("predicted_tokens")
    assert rows == [
        "| feature | unit | |", "| --- | --- | --- |",
        f"| {asked.name} | {asked.unit} | {asked.meaning} |",
    ]  # fmt: skip


def test_a_trained_router_has_its_costs_and_where_they_were_seen() -> None:
    trained = TrainedOn((("load", 0.5, 1.0500001), ("nodes", 2, 4)), ("azure", "mine"))
    score = Score("learned", network(), ("running_requests", "waiting_requests"))
    router = dataclasses.replace(RoutingPolicy(score), trained_on=trained)
    text = card(router, REPORT)
    assert "tags: [lengthwise, llm-serving, routing]" in text and "# Router: learned" in text
    found = sections(text)
    assert "The replica with the lowest score takes a request." in found[""]
    assert "`policy.json` and `weights.safetensors`, a network of 2 layers. Reading" in found[""]
    assert found["What it was trained on"].splitlines() == [
        "- environment: lengthwise/Routing-v0", "- algorithm: ppo, 5,000 steps, seed 3",
        "- workloads: azure, mine", "- load: 0.5 to 1.05", "- nodes: 2 to 4",
    ]  # fmt: skip
    said = found["How good it is"].splitlines()
    assert said[2:7] == [
        "| | cost |", "| --- | ---: |", "| jsq | 0.25 |", "| jsew | 0.2 |",
        "| this policy | 0.1235 |",
    ]  # fmt: skip
    assert said[8] == (
        "On further workloads, on which nothing was chosen: 0.617 of the cost of jsew, the best of "
        "these baselines (0.500 to 0.725, 95%)."
    )
    assert said[9:] == ["", "- one thing", "- another"]
    assert "serve-epp" in found["Use"] and "--scheduler-cls" not in found["Use"]
    assert [line[:20] for line in found["Limits"].splitlines()] == [
        "- Outside the ranges", "- Order is worth som",
    ]  # fmt: skip
    bare = sections(card(router, REPORT | {"ratio": None, "notices": []}))["How good it is"]
    assert bare.splitlines()[-1] == "| this policy | 0.1235 |"
    unnamed = dataclasses.replace(router, trained_on=TrainedOn((("load", 1, 2),)))
    assert sections(card(unnamed))["What it was trained on"] == "- load: 1 to 2"


def test_what_a_bundle_holds_is_said_of_each_kind(tmp_path: Path) -> None:
    policy = SchedulingPolicy(Score("n", network(skip=True), NAMES))
    assert "a network of 2 layers beside a linear part. Reading" in card(policy)
    blend = Blend(("predicted", "prompt"), (1.0, 0.123456))
    text = card(SchedulingPolicy(Score("b", blend, blend.features)))
    assert "`policy.json`, the weights of known terms (1 predicted, 0.1235 prompt)." in text
    write_bundle(load_policy("sjf"), tmp_path / "one")
    assert (tmp_path / "one" / CARD).read_text() == card(load_policy("sjf"))
    write_bundle(load_router("jsq"), tmp_path / "two", "said by hand")
    assert (tmp_path / "two" / CARD).read_text() == "said by hand"
