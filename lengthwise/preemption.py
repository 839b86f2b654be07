"""Who gives way to whom: the one walk of preemption by policy, whatever engine runs the batch.

The rule is ``policy.Preemption``. An engine says what it has (seats, blocks, tokens, scores) and
takes out of its batch whom the walk names. The reference engine and the plugins share this code;
the compiled engine repeats it (``serving.fast.replica.preempt_by_policy``) and is held to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from lengthwise.policy import Preemption

W = TypeVar("W")  # a waiting request
R = TypeVar("R")  # a running request


class Demand(NamedTuple):
    """What admitting a waiting request takes."""

    blocks: int  # KV blocks that must be free
    tokens: int  # that its first iteration computes


class Victims(Generic[R]):
    """The running requests as candidates, worst first.

    ``running`` is in the order of the batch, ``scores`` of shape (running,); a request without a
    score (NaN) is no candidate. ``lost`` says what a preemption would throw away, in tokens.
    """

    def __init__(
        self,
        running: Sequence[R],
        scores: ArrayLike,
        *,
        arrival: Callable[[R], float],
        lost: Callable[[R], int],
        protected: Callable[[R], bool],
    ) -> None:
        given = np.asarray(scores, dtype=np.float64)
        self.lost = lost
        self._running, self._arrival, self._protected = running, arrival, protected
        self._scores = np.where(np.isnan(given), -np.inf, given)
        self._place = 0
        self._masked = False

    def worst(self) -> tuple[R, float] | None:
        """The next victim and its score: the highest, then latest arrival, then first in batch."""
        while len(self._scores):
            top = self._scores.max()
            if top == -np.inf:
                break
            tied = np.flatnonzero(self._scores == top).tolist()
            self._place = max(tied, key=lambda place: self._arrival(self._running[place]))
            request = self._running[self._place]
            if self._masked or not self._protected(request):
                return request, float(top)
            # most of the time the worst is not protected, and nobody else need be asked
            self._scores[[self._protected(other) for other in self._running]] = -np.inf
            self._masked = True
        return None

    def take(self) -> None:
        """The last ``worst`` is no longer a candidate."""
        self._scores[self._place] = -np.inf


def exchanges(
    rule: Preemption,
    waiting: Iterable[W],
    victims: Callable[[], Victims[R]],
    *,
    seats: int,
    in_replica: tuple[int, int],
    score: Callable[[W], float],
    demand: Callable[[W], Demand],
    free_blocks: Callable[[], int],
    spare_tokens: Callable[[], int],
) -> Iterator[tuple[R, W]]:
    """Yields (victim, the waiting request that it gives way to) before an iteration.

    The caller takes each victim out of its batch before it asks for the next. Walks ``waiting``,
    next first, giving each request a seat and the blocks of its ``demand`` for as long as those,
    victims' places and the iteration's tokens last; at the first request that gets none, the walk
    ends. ``waiting`` must leave out the victims of this iteration and who can't be admitted for
    other reasons.

    ``seats`` are free and ``in_replica`` is (running, waiting) as the walk begins. A waiting
    request without a score (NaN) takes nobody's place. ``demand`` is asked again after each victim,
    whose blocks may be the very ones that were found in the prefix cache. ``free_blocks`` and
    ``spare_tokens`` (of the iteration, that the batch leaves) are as of the call, as are the
    ``victims``, which are asked for at most once and only if somebody finds no place.
    """
    running: Victims[R] | None = None
    gave_way = promised = spent = 0
    for request in waiting:
        while True:
            if seats > 0:
                needed = demand(request)
                if promised + needed.blocks <= free_blocks():
                    break
            if gave_way == rule.max_per_step:
                return
            if running is None:
                running = victims()
            worst = running.worst()
            if worst is None:
                return
            victim, of_victim = worst
            cost = rule.cost(running.lost(victim), *in_replica)
            if not of_victim - score(request) > rule.margin + cost:
                return
            if spare_tokens() - spent <= 0:
                return
            running.take()
            gave_way += 1
            seats += 1
            yield victim, request
        seats -= 1
        promised += needed.blocks
        spent += needed.tokens
