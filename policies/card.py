"""The card of an exported policy: README.md in its bundle, for whoever finds the folder.

A card says what the bundle holds and what was measured, and no more: a policy that was exported
without a training run says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lengthwise import features
from lengthwise.policies.blend import Blend
from lengthwise.policies.formula import Formula
from lengthwise.policies.learned import MLP
from lengthwise.policy import RoutingPolicy, SchedulingPolicy

CARD = "README.md"
Report = Mapping[str, Any]


def card(policy: SchedulingPolicy | RoutingPolicy, report: Report | None = None) -> str:
    """The text of the card.

    ``report`` is what a training run found: ``env``, ``algo``, ``seed``, ``budget`` (of what and
    how much was spent), ``cost``, ``baselines`` (cost by name), ``best_baseline``, ``ratio`` (mean,
    low, high; or None) and ``notices``.
    """
    routes = isinstance(policy, RoutingPolicy)
    what = "Router" if routes else "Scheduling policy"
    tags = ["lengthwise", "llm-serving", "routing" if routes else "scheduling"]
    front = f"library_name: lengthwise\ntags: [{', '.join(tags)}]\n"  # YAML, for model hubs
    lowest = "The replica with the lowest score takes a request." if routes else (
        "The waiting request with the lowest score goes first."
    )  # fmt: skip
    parts = [
        f"---\n{front}---\n", f"# {what}: {policy.score.name}\n",
        f"{lowest} A bundle of [lengthwise](https://pypi.org/project/lengthwise/): "
        f"`policy.json`{_weights(policy)}. Reading it runs no code of it.\n",
        "## What it reads\n", _reads(policy), "## What it was trained on\n",
        _trained(policy, report), "## How good it is\n", _measured(report), "## Use\n",
        _use(routes), "## Limits\n", _limits(policy),
    ]  # fmt: skip
    return "\n".join(parts)


def _weights(policy: SchedulingPolicy | RoutingPolicy) -> str:
    function = policy.score.function
    if isinstance(function, MLP):
        linear = "" if function.skip is None else " beside a linear part"
        return f" and `weights.safetensors`, a network of {len(function.layers)} layers{linear}"
    if isinstance(function, Blend):
        terms = zip(function.terms, function.weights, strict=True)
        return ", the weights of known terms (" + ", ".join(f"{w:.4g} {n}" for n, w in terms) + ")"
    if isinstance(function, Formula):
        return f", the formula `{function}`"
    said = ", ".join(f"{name}={value}" for name, value in policy.score.tunables.items())
    return ", a registered score by name" + (f" with {said}" if said else "")


def _reads(policy: SchedulingPolicy | RoutingPolicy) -> str:
    found = [features.get(name) for name in policy.score.features]
    return "| feature | unit | |\n| --- | --- | --- |\n" + "".join(
        f"| {f.name} | {f.unit} | {f.meaning} |\n" for f in found
    )


def _trained(policy: SchedulingPolicy | RoutingPolicy, report: Report | None) -> str:
    trained = policy.trained_on
    if trained is None and report is None:
        return "Nothing: it was exported as it is registered.\n"
    lines = []
    if report is not None:
        lines += [f"- environment: {report['env']}", f"- algorithm: {report['algo']}, "
                  f"{report['budget']}, seed {report['seed']}"]  # fmt: skip
    if trained is not None:
        if trained.workloads:
            lines.append(f"- workloads: {', '.join(trained.workloads)}")
        lines += [f"- {name}: {low:.6g} to {high:.6g}" for name, low, high in trained.ranges]
    return "\n".join(lines) + "\n"


def _measured(report: Report | None) -> str:
    if report is None:
        return "Not measured when it was exported: `lengthwise evaluate policy DIR WORKLOAD`.\n"
    costs = {**report["baselines"], "this policy": report["cost"]}
    text = "The cost on held-out workloads, by which the weights were chosen; low is good:\n\n"
    text += "| | cost |\n| --- | ---: |\n"
    text += "".join(f"| {name} | {cost:.4g} |\n" for name, cost in costs.items())
    ratio = report.get("ratio")
    if ratio is not None:
        text += (
            f"\nOn further workloads, on which nothing was chosen: {ratio['mean']:.3f} of the cost "
            f"of {report['best_baseline']}, the best of these baselines "
            f"({ratio['low']:.3f} to {ratio['high']:.3f}, 95%).\n"
        )
    return text + "".join(f"\n- {notice}" for notice in report["notices"]) + (
        "\n" if report["notices"] else ""
    )  # fmt: skip


def _use(routes: bool) -> str:
    if routes:
        return (
            "```\nlengthwise compare azure-conv-2023 --replicas 4 --rates 60 --routers jsq,DIR\n"
            "lengthwise serve-epp --endpoints HOST:PORT,HOST:PORT --router DIR\n```\n"
        )
    return (
        "```\nlengthwise compare azure-conv-2023 --rates 24 --policies fcfs,sjf,DIR\n"
        "vllm serve MODEL --scheduler-cls lengthwise.policies.plugins.vllm.scheduler \\\n"
        '    --additional-config \'{"lengthwise": {"bundle": "DIR"}}\'\n```\n'
    )


def _limits(policy: SchedulingPolicy | RoutingPolicy) -> str:
    lines = []
    if features.reads_prediction(policy.score.features):
        lines.append("- It reads predicted lengths: it is no better than the predictor beside it.")
    if policy.trained_on is not None:
        lines.append(
            "- Outside the ranges above nothing is known of it. Simulator and plugins say so once "
            "when they leave them."
        )
    lines.append(
        "- Order is worth something only where requests wait: judge it on your own traffic first "
        "(`lengthwise evaluate policy DIR TRACE`)."
    )
    return "\n".join(lines) + "\n"
