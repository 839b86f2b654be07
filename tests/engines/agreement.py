"""What the reference engine decides, event by event, for the plugin to be held to."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lengthwise import registry
from lengthwise.curves import Curve
from lengthwise.policies import load_policy
from lengthwise.policies.plugins.vllm.driver import VALUES
from lengthwise.policy import SchedulingPolicy
from lengthwise.prediction import CURVES, EDGES, Predictions
from lengthwise.serving import Node, System
from lengthwise.serving.records import PS
from lengthwise.serving.reference.run import ReferenceRun
from tests.conformance.cases import ROUTING, longest, noisy_lengths, random_case
from tests.random_policies import PREEMPTIONS, random_score, registered_policy

GUARDS = ("", "+guard", "+guard:ratio=1,floor_s=0.001", "+guard:ratio=0.3,floor_s=0")


def policies(count: int) -> list[str]:
    """Every registered policy that the plugin can carry, and more of them that are drawn.

    Some have other tunables, preemption or a guard; ``count`` are drawn.
    """
    names = registry.names("policy")
    drawn = [_drawn(np.random.default_rng(seed)) for seed in range(count)]
    return [spec for spec in (*names, *drawn) if _carried(load_policy(spec))]


def _drawn(rng: np.random.Generator) -> str:
    spec = registered_policy(rng)
    if load_policy(spec).queue == "fcfs":
        return spec
    return f"{spec}{PREEMPTIONS[rng.integers(len(PREEMPTIONS))]}{GUARDS[rng.integers(len(GUARDS))]}"


def _carried(policy: SchedulingPolicy) -> bool:
    reads = policy.score.features  # a deadline reaches the plugin as the time left, not to the bit
    return VALUES.lacks(reads, policy.name) is None and "deadline_s" not in reads


def by_curves(count: int) -> list[str]:
    """Policies that read the curves of predictions: those registered, and scores that are drawn."""
    told = [*CURVES, "predicted_tokens", "generated_tokens", "arrival_s", "now_s"]
    drawn = (random_score(number, told) for number in range(count))
    specs = ("srtf", "srtf-refreshed", *drawn)
    reading = [spec for spec in specs if set(load_policy(spec).score.features) & set(CURVES)]
    return [f"{spec}{PREEMPTIONS[k % len(PREEMPTIONS)]}" for k, spec in enumerate(reading)]


def curves(rng: np.random.Generator, requests: int) -> dict[str, Curve]:
    """Tables of any shape; they rise and fall, each request by its own."""
    shape = (requests, len(EDGES))
    return {name: Curve.table(EDGES, rng.uniform(0, 120, shape)) for name in CURVES}


def case(seed: int, version: str, policy: str, *, curved: bool = False) -> dict[str, Any]:
    """A random workload on random options under a policy, as ``checks.agree`` takes it.

    ``curved``: lengths are a predictor's, with curves, and not the clients' own.
    """
    drawn = random_case(seed, version)
    workload = drawn.workload
    if "parent" in workload:
        workload = workload.replace(parent=None, think_s=None)
    rng = np.random.default_rng(seed + 10_000)
    engine = dataclasses.replace(drawn.engine, scheduler_reserve_full_isl=True)
    predicted = noisy_lengths(rng, workload, engine)
    node = Node(engine, drawn.timing, load_policy(policy))
    tables = curves(rng, len(workload)) if curved else {}
    predictions: Any = predicted
    if curved:
        plain = Predictions({"predicted_tokens": predicted}, tables)
        predictions = plain.capped(longest(engine) - workload["prompt_tokens"])
    made = ReferenceRun(workload, System((node,), ROUTING), predictions)
    events = _watch(made)
    made.advance()
    jobs = [
        {
            "arrival_s": arrival_ps / PS,
            "prompt": int(workload["prompt_tokens"][row]),
            "output": int(workload["output_tokens"][row]),
            "priority": int(workload["priority"][row]),
            "extra": {} if curved else {"predicted_tokens": float(predicted[row])},
            "tokens": _tokens(workload, row),
        }
        for row, arrival_ps in enumerate(made.records().arrival_ps.tolist())
    ]
    options = dataclasses.asdict(engine)
    assert options["num_gpu_blocks"] is not None
    options["blocks"] = options.pop("num_gpu_blocks")
    options["lengthwise"] = {"policy": policy} | ({} if "+guard" in policy else {"guard": 0})
    made_up = {"name": f"seed {seed}, {policy}", "jobs": jobs, "options": options, "events": events}
    if curved:
        options["lengthwise"] |= {"predictor": "told", "predict_timeout_s": 600.0}
        values = {name: curve.values.tolist() for name, curve in tables.items()}
        made_up["told"] = {"tokens": predicted.tolist(), "curves": values}
    return made_up


def _tokens(workload: Any, row: int) -> list[int]:
    """Token ids that are equal where the prefix hashes are; the rest is the request's own."""
    length, tokens = int(workload["prompt_tokens"][row]), list[int]()
    if "prefix_hashes" in workload:
        size = int(workload["hash_block_tokens"][row])
        for content in workload["prefix_hashes"][row]:
            tokens += range(int(content) * size, (int(content) + 1) * size)
    own = range((1 << 30) + (row << 16), (1 << 30) + (row << 16) + length)
    return tokens[:length] + list(own[: max(0, length - len(tokens))])


def _watch(made: ReferenceRun) -> list[list[Any]]:
    """Collects what the one replica does: additions, decisions with their time, ends of steps."""
    (replica,) = made.nodes
    events: list[list[Any]] = []
    begun: list[float] = []
    add, begin, schedule, finish = replica.add, replica.begin, replica.schedule, replica.finish

    def watched_add(request: Any, *rest: Any) -> None:
        add(request, *rest)
        events.append(["add", request.id])

    def watched_begin(now_ps: int) -> None:
        begun[:] = [now_ps / PS]
        begin(now_ps)

    def watched_schedule(*rest: Any) -> Any:
        step = schedule(*rest)
        scheduled = [[request.id, tokens] for request, tokens in step.scheduled.items()]
        preempted = sorted(request.id for request in step.preempted)
        events.append(["schedule", begun[0], scheduled, preempted])
        return step

    def watched_finish() -> Any:
        done = finish()
        events.append(["finish", [request.id for request in done]])
        return done

    replica.add = watched_add  # type: ignore[method-assign,assignment]
    replica.begin = watched_begin  # type: ignore[method-assign,assignment]
    replica.schedule = watched_schedule  # type: ignore[method-assign,assignment]
    replica.finish = watched_finish  # type: ignore[method-assign,assignment]
    return events
