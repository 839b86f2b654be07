"""lengthwise: scheduling policies and output-length predictors for LLM serving.

The names below are loaded when first used, so ``import lengthwise`` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lengthwise.errors import InputError, LengthwiseError, UnknownNameError
    from lengthwise.eval.placement import plan
    from lengthwise.eval.simulate import Result, simulate
    from lengthwise.policies import load_policy, load_router
    from lengthwise.policy import (
        Admission,
        Between,
        Guard,
        Preemption,
        RoutingPolicy,
        SchedulingPolicy,
        Score,
    )
    from lengthwise.prediction import Prediction
    from lengthwise.predictors import load_predictor
    from lengthwise.serving import Engine, Fail, KVTransfer, Node, Slow, System
    from lengthwise.serving.timing import LinearTiming, timing
    from lengthwise.workload import Workload

_WHERE = {
    "Admission": "lengthwise.policy",
    "Between": "lengthwise.policy",
    "Engine": "lengthwise.serving",
    "Fail": "lengthwise.serving",
    "Guard": "lengthwise.policy",
    "InputError": "lengthwise.errors",
    "KVTransfer": "lengthwise.serving",
    "LengthwiseError": "lengthwise.errors",
    "LinearTiming": "lengthwise.serving.timing",
    "Node": "lengthwise.serving",
    "Prediction": "lengthwise.prediction",
    "Preemption": "lengthwise.policy",
    "Result": "lengthwise.eval.simulate",
    "RoutingPolicy": "lengthwise.policy",
    "SchedulingPolicy": "lengthwise.policy",
    "Score": "lengthwise.policy",
    "Slow": "lengthwise.serving",
    "System": "lengthwise.serving",
    "UnknownNameError": "lengthwise.errors",
    "Workload": "lengthwise.workload",
    "load_policy": "lengthwise.policies",
    "load_predictor": "lengthwise.predictors",
    "load_router": "lengthwise.policies",
    "plan": "lengthwise.eval.placement",
    "simulate": "lengthwise.eval.simulate",
    "timing": "lengthwise.serving.timing",
}

__all__ = [
    "Admission",
    "Between",
    "Engine",
    "Fail",
    "Guard",
    "InputError",
    "KVTransfer",
    "LengthwiseError",
    "LinearTiming",
    "Node",
    "Prediction",
    "Preemption",
    "Result",
    "RoutingPolicy",
    "SchedulingPolicy",
    "Score",
    "Slow",
    "System",
    "UnknownNameError",
    "Workload",
    "__version__",
    "load_policy",
    "load_predictor",
    "load_router",
    "plan",
    "simulate",
    "timing",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lengthwise' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
