"""A request inside a replica: integers that say how far it has come."""

from __future__ import annotations

import math

from lengthwise.starvation import Waiter


class Request:
    """The state of one request from its arrival at a replica to its finish.

    ``known`` counts the tokens that are known (the prompt and what was generated), ``computed``
    those whose keys and values are in the cache, iterations in flight included. ``pending`` is 1
    while an iteration in flight will yield the next token (asynchronous scheduling only).
    """

    __slots__ = (
        "ahead", "arrival_ps", "block_keys", "blocks", "cached", "computed", "first_token_ps",
        "hands_over", "hashed", "held", "id", "in_batch", "known", "output", "pending", "predicted",
        "preemptions", "prompt", "reach", "recomputed", "remote", "scheduled_ps", "score", "stored",
        "waiter",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        prompt: int,
        output: int,
        arrival_ps: int,
        predicted: int,
        block_keys: tuple[int, ...],
    ) -> None:
        self.id = id
        self.prompt = prompt
        self.output = output
        self.arrival_ps = arrival_ps
        self.predicted = predicted  # predicted answer length, rounded up; 0 without a prediction
        self.block_keys = block_keys  # identities of the prompt's leading blocks, where given
        self.score: float = 0.0
        self.ahead = False  # the starvation guard sent it to the front
        self.waiter: Waiter | None = None  # the guard's books
        self.known = prompt
        self.computed = 0
        self.pending = 0
        self.in_batch = False  # running, as opposed to waiting
        self.preemptions = 0
        # computed tokens that lie in host memory (preemption mode "swap"), or at another node
        self.stored = 0
        self.remote = False  # they lie at another node
        self.hands_over = False  # when its prompt is computed here another node goes on with it
        self.reach = 0  # the furthest that ``computed`` has ever been
        self.recomputed = 0  # tokens computed again, below ``reach``
        self.cached = -1  # tokens found in the prefix cache at first admission; -1 before it
        self.scheduled_ps = -1
        self.first_token_ps = -1
        # the KV cache's books
        self.blocks: list[int] = []
        self.held = 0
        self.hashed = 0

    @property
    def generated(self) -> int:
        """Output tokens so far."""
        return self.known - self.prompt

    @property
    def prefill_left(self) -> int:
        """Prompt tokens that no iteration has computed or is computing."""
        return max(self.prompt - max(self.computed, self.stored), 0)

    @property
    def decode_left(self) -> int:
        """Predicted tokens, rounded up, that are not generated yet."""
        return max(self.predicted - self.generated, 0)

    @property
    def rank(self) -> float:
        """Its place among others, lowest first: the score, unless the guard sent it ahead."""
        return -math.inf if self.ahead else self.score

    @property
    def missing(self) -> int:
        """Tokens to compute before the next one can be generated."""
        return self.known + self.pending - self.computed

    def key(self, index: int) -> int:
        """The identity of the tokens up to the end of block ``index``; below 0 if no other's."""
        if index < len(self.block_keys):
            return self.block_keys[index]
        return -1 - (self.id << 24 | index)
