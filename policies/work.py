"""Least predicted work first, in tokens: an answer's tokens and, at a discount, its prompt's.

Weighting prefill against decoding is that of a hybrid batch's time (Agrawal et al., "Taming
Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", OSDI 2024, section 3): a prompt's
tokens share an iteration, an answer's come one an iteration. The default weight was found by an
evolution strategy on one synthetic workload; tune it to yours.
"""

from typing import Annotated, Any

from lengthwise.policy import Between, SchedulingPolicy, Score


def work(
    predicted_tokens: Any, prompt_tokens: Any, *, b: Annotated[float, Between(0, 100)] = 0.08
) -> Any:
    """Least work first: predicted tokens, and ``b`` for each token of the prompt."""
    return predicted_tokens + b * prompt_tokens


WORK = SchedulingPolicy(Score.from_function(work))
