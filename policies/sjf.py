"""Shortest job first by predicted length, not preemptive.

SSJF: Qiu et al., "Efficient Interactive LLM Serving with Proxy Model-based Sequence Length
Prediction", 2024, section 3; vLLM-LTR (Fu et al., NeurIPS 2024) is the same order from a rank.
"""

from typing import Any

from lengthwise.policy import SchedulingPolicy, Score


def sjf(predicted_tokens: Any) -> Any:
    """Shortest predicted answer first."""
    return predicted_tokens


SJF = SchedulingPolicy(Score.from_function(sjf))
