"""Skip-join multi-level feedback queue: no prediction needed.

FastServe: Wu et al., "Fast Distributed Inference Serving for Large Language Models", NSDI 2026
(arXiv 2305.05920), section 4.1.
"""

from typing import Annotated, Any

from lengthwise.policy import Between, Preemption, SchedulingPolicy, Score


def mlfq(
    generated_tokens: Any,
    prompt_tokens: Any,
    *,
    quantum: Annotated[int, Between(1, 2**20)] = 32,
    levels: Annotated[int, Between(1, 32)] = 8,
    skip_join: bool = True,
    prefill_ratio: Annotated[int, Between(1, 2**20)] = 64,
) -> Any:
    """The service at which the request's level began, in tokens: least attained level first.

    Level k lasts ``quantum * 2**k`` tokens. With ``skip_join`` a request joins at the level that
    its prompt would have reached, ``prefill_ratio`` prompt tokens counting as one generated token.
    The score is the level's lower bound in tokens rather than its number, so that a difference of
    scores is a difference in tokens, which is what ``Preemption.price`` is measured in.
    """
    served = generated_tokens + skip_join * (prompt_tokens // prefill_ratio)
    start = 0 * served
    for level in range(1, levels):
        bound = quantum * (2**level - 1)
        start = start + (served >= bound) * (quantum * 2 ** (level - 1))
    return start


MLFQ = SchedulingPolicy(Score.from_function(mlfq), Preemption(mode="recompute"))
