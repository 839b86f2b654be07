"""Names to things: one dict of "module:attribute" strings per kind, and a short ``load``.

Nothing is imported before it is asked for, so a table may name a class whose module needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lengthwise.errors import UnknownNameError

TABLES: dict[str, dict[str, str]] = {
    "policy": {
        "fcfs": "lengthwise.policies.fcfs:FCFS",
        "sjf": "lengthwise.policies.sjf:SJF",
        "srtf": "lengthwise.policies.srtf:SRTF",
        "srtf-refreshed": "lengthwise.policies.srtf:SRTF_REFRESHED",
        "mlfq": "lengthwise.policies.mlfq:MLFQ",
        "hrrn": "lengthwise.policies.hrrn:HRRN",
        "priority": "lengthwise.policies.priority:PRIORITY",
        "work": "lengthwise.policies.work:WORK",
        "weighted-sjf": "lengthwise.policies.weighted_sjf:WEIGHTED_SJF",
        "gittins": "lengthwise.policies.gittins:GITTINS",
        "tie": "lengthwise.policies.tie:TIE",
        "trail": "lengthwise.policies.trail:TRAIL",
        "ltr": "lengthwise.policies.ltr:LTR",
        "fastserve": "lengthwise.policies.fastserve:FASTSERVE",
        "las": "lengthwise.policies.las:LAS",
        "scls": "lengthwise.policies.scls:SCLS",
        "ageing": "lengthwise.policies.ageing:AGEING",
        "longest": "lengthwise.policies.longest:LONGEST",
        "edf": "lengthwise.policies.edf:EDF",
        "llf": "lengthwise.policies.llf:LLF",
        "niyama": "lengthwise.policies.niyama:NIYAMA",
        "lpm": "lengthwise.policies.lpm:LPM",
        "vtc": "lengthwise.policies.vtc:VTC",
        "lcf": "lengthwise.policies.lcf:LCF",
        "plas": "lengthwise.policies.plas:PLAS",
        "wfq": "lengthwise.policies.wfq:WFQ",
        "dlpm": "lengthwise.policies.dlpm:DLPM",
    },
    "router": {
        "round-robin": "lengthwise.policies.routers:ROUND_ROBIN",
        "random": "lengthwise.policies.routers:RANDOM",
        "jsq": "lengthwise.policies.routers:JSQ",
        "least-tokens": "lengthwise.policies.routers:LEAST_TOKENS",
        "least-requests": "lengthwise.policies.least_requests:LEAST_REQUESTS",
        "power-of-two": "lengthwise.policies.routers:POWER_OF_TWO",
        "weighted-round-robin": "lengthwise.policies.weighted_round_robin:WEIGHTED_ROUND_ROBIN",
        "jsq-tokens": "lengthwise.policies.jsq_tokens:JSQ_TOKENS",
        "jsew": "lengthwise.policies.jsew:JSEW",
        "least-load": "lengthwise.policies.least_load:LEAST_LOAD",
        "lmetric": "lengthwise.policies.lmetric:LMETRIC",
        "prefix-affinity": "lengthwise.policies.prefix_affinity:PREFIX_AFFINITY",
        "min-min": "lengthwise.policies.min_min:MIN_MIN",
        "max-min": "lengthwise.policies.max_min:MAX_MIN",
        "max-capacity": "lengthwise.policies.max_capacity:MAX_CAPACITY",
    },
    "predictor": {
        "oracle": "lengthwise.predictors.oracle:Oracle",
        "noisy-oracle": "lengthwise.predictors.oracle:NoisyOracle",
        "constant": "lengthwise.predictors.baseline:Constant",
        "prompt-length": "lengthwise.predictors.baseline:PromptLength",
        "ridge": "lengthwise.predictors.text:Ridge",
        "gbdt": "lengthwise.predictors.text:GBDT",
        "transformer": "lengthwise.predictors.transformer:Transformer",
        "minilm": "lengthwise.predictors.transformer:MiniLM",
        "base": "lengthwise.predictors.base:Base",
    },
    "provider": {  # who can tell features
        "reference": "lengthwise.serving.scoring:REFERENCE",
        "fast": "lengthwise.serving.fast.features:ACCESSORS",
        "vllm": "lengthwise.policies.plugins.vllm.driver:VALUES",
        "sglang": "lengthwise.policies.plugins.sglang:VALUES",
        "transformers": "lengthwise.policies.plugins.transformers:VALUES",
        "router": "lengthwise.policies.plugins.routing:VALUES",
        "priority": "lengthwise.policies.plugins.priority:AT_ARRIVAL",
        "environment": "lengthwise.envs.columns:FEATURES",
    },
    "env": {
        "lengthwise/Scheduling-v0": "lengthwise.envs.scheduling:SchedulingEnvV0",
        "lengthwise/Scheduling-v1": "lengthwise.envs.scheduling:SchedulingEnv",
        "lengthwise/Preemption-v1": "lengthwise.envs.preemption:PreemptionEnv",
        "lengthwise/Routing-v0": "lengthwise.envs.routing:RoutingEnvV0",
        "lengthwise/Routing-v1": "lengthwise.envs.routing:RoutingEnv",
    },
}


# Parts that meet without importing each other: how one asks another to read what a user wrote.
LOADERS: dict[str, str] = {
    "policy": "lengthwise.policies.load:load_policy",
    "router": "lengthwise.policies.load:load_router",
    "predictor": "lengthwise.predictors.load:load_predictor",
    "workload file": "lengthwise.serving.workload.readers:read",
    "workload preset": "lengthwise.serving.workload.presets:preset",
}


def loader(kind: str) -> Any:
    """The function that reads a user's spelling of a policy, a predictor or a workload."""
    return resolve(LOADERS[kind])


def names(kind: str) -> list[str]:
    """The registered names of ``kind``, in table order."""
    return list(TABLES[kind])


def load(kind: str, name: str) -> Any:
    """The object registered as ``name``; raises ``UnknownNameError`` with the nearest name."""
    try:
        target = TABLES[kind][name]
    except KeyError:
        raise UnknownNameError(kind, name, TABLES[kind]) from None
    return resolve(target)


def resolve(target: str) -> Any:
    """Imports "module:attribute"."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
