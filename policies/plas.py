"""Program-level least attained service: calls of programs that were served least go first.

PLAS of Autellix: Luo et al., "Autellix: An Efficient Serving Engine for LLM Agents as General
Programs", 2025, section 4.2. A program, say an agent's session, is a tenant here: a column
``tenant``, or ``--columns tenant=session_id``. As theirs it has levels, so that programs that are
about as far go by arrival, and preempts, here at ``Preemption.price``. Theirs attains the time of
calls that are done; here it is tokens, those of running calls among them.
"""

from typing import Annotated, Any

from lengthwise.policy import Between, Preemption, SchedulingPolicy, Score


def plas(
    tenant_attained: Any,
    *,
    quantum: Annotated[int, Between(1, 2**20)] = 1024,
    levels: Annotated[int, Between(1, 32)] = 10,
) -> Any:
    """The service at which the level of the request's program began, in tokens.

    Level k lasts ``quantum * 2**k`` tokens; generated tokens count twice.
    """
    start = 0.0 * tenant_attained
    for level in range(1, levels):
        bound = quantum * (2**level - 1)
        start = start + (tenant_attained >= bound) * (quantum * 2.0 ** (level - 1))
    return start


PLAS = SchedulingPolicy(Score.from_function(plas), Preemption(mode="recompute"))
