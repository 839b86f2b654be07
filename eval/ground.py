"""Whether a run asks policies, or a profile, about something that they were not made from."""

from __future__ import annotations

import numpy as np

from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.prediction import Predictions
from lengthwise.serving import System
from lengthwise.serving.timing.profile import ProfileTiming
from lengthwise.serving.timing.roofline import RooflineTiming
from lengthwise.trained import Range
from lengthwise.workload import Workload


def beyond_training(
    workload: Workload, system: System, predictions: Predictions | None
) -> tuple[str, ...]:
    """One line for each learned policy that a run takes beyond what its bundle records.

    Told from what a run is given: lengths, predicted lengths, nodes and seats. What comes about
    while it runs, such as its load, is not looked at.
    """
    policies: list[SchedulingPolicy | RoutingPolicy] = [node.policy for node in system.nodes]
    policies.append(system.routing)
    learned = {id(policy): policy for policy in policies if policy.trained_on is not None}
    if not learned:
        return ()
    seats = [node.engine.max_num_seqs for node in system.nodes]
    nodes = float(len(system.nodes))
    seen: dict[str, Range] = {
        "prompt_tokens": _range(workload["prompt_tokens"]),
        "nodes": (nodes, nodes),
        "seats": _range(np.array(seats)),
    }
    if predictions is not None and "predicted_tokens" in predictions.columns:
        seen["predicted_tokens"] = _range(predictions.columns["predicted_tokens"])
    said = [
        policy.trained_on.notice(policy.name, seen)
        for policy in learned.values()
        if policy.trained_on is not None
    ]
    return tuple(dict.fromkeys(filter(None, said)))


def beyond_measured(system: System, workload: Workload | None = None) -> tuple[str, ...]:
    """One line for each profile that is asked about more than was measured.

    Told are iterations of more sequences or tokens than any that was recorded, as far as an
    engine's options allow them, and contexts that ``workload`` makes longer than any.
    """
    said = []
    longest = 0
    if workload is not None:
        longest = int((workload["prompt_tokens"] + workload["output_tokens"]).max())
    for node in system.nodes:
        if not isinstance(node.timing, ProfileTiming):
            continue
        about, engine = node.timing.about, node.engine
        names = ("max_num_seqs", "max_num_batched_tokens")
        measured = [int(about[name]) for name in names if about.get(name) is not None]
        recorded = about.get("measured") or {}
        if recorded:
            measured = [int(recorded["sequences"]), int(recorded["tokens"])]
        allowed = [engine.max_num_seqs, engine.max_num_batched_tokens]
        if len(measured) == 2 and (measured[0] < allowed[0] or measured[1] < allowed[1]):
            said.append(
                f"{node.timing.name} was measured up to {measured[0]:,} sequences and "
                f"{measured[1]:,} tokens an iteration; this engine may go to {allowed[0]:,} and "
                f"{allowed[1]:,}, where times are extrapolated"
            )
        context = min(longest, engine.max_model_len or longest)
        if recorded and context > int(recorded["context"]):
            said.append(
                f"{node.timing.name} was measured up to contexts of {recorded['context']:,} "
                "tokens; this workload has longer ones, where times are extrapolated"
            )
    return tuple(dict.fromkeys(said))


def estimated(system: System) -> tuple[str, ...]:
    """One line for each roofline: how far off it may be."""
    return tuple(
        dict.fromkeys(
            node.timing.expected_error
            for node in system.nodes
            if isinstance(node.timing, RooflineTiming)
        )
    )


def _range(values: object) -> Range:
    found = np.asarray(values, np.float64)
    return float(found.min()), float(found.max())
