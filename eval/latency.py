"""How long a request would take at a server, from what a router sees of it: timing, then practice.

First what follows from the engine: the prompt tokens ahead of the request in iterations of its
budget, a seat, and then iterations of the batch that is there. Then what observed requests say of
that: a line through the logarithms of how far off it was, and a quantile of what is left.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.protocols import Batch, TimingModel
from lengthwise.serving.clock import Clock
from lengthwise.serving.options import Engine
from lengthwise.serving.records import PS

FEWEST = 30  # observations before they correct anything
KEPT = 5000  # observations of each latency, the last ones
EVERY = 50  # observations until the line is found again, once there are many
PENALTY = 1.0  # of the line's slopes: of few observations, it is flat
MOST_LOG = math.log(100.0)  # that a prediction is corrected by, up or down
DEFAULT_BLOCKS = 50_000  # KV blocks of a timing that does not know its own
KINDS = ("ttft", "tpot")


@dataclass(frozen=True)
class Seen:
    """A server as a router sees it, and the request that may go there."""

    kv_utilization: float  # share of KV blocks in use
    prompt_tokens: int
    waiting_requests: int
    running_requests: int
    generated_tokens: int = 0  # of the request, so far
    cached_share: float = 0.0  # of the prompt, in the prefix cache there
    prefill_tokens: int = 0  # of requests under way there, not computed yet; 0: not told
    decode_tokens: int = 0  # tokens that these still have to generate; 0: not told
    role: str = ""  # "prefill", "decode", or "" for both


class LatencyModel:
    """Seconds to the first token and for each further one, at a server of one kind.

    ``answer_tokens`` is the mean length of answers, which tells how soon seats become free.
    ``quantile`` is that of latencies which is predicted, None for the mean.
    """

    def __init__(
        self,
        engine: Engine,
        timing: TimingModel,
        answer_tokens: float = 256.0,
        quantile: float | None = 0.9,
    ) -> None:
        self.engine, self.timing = engine, timing
        self._answer = max(answer_tokens, 1.0)
        self._clock = Clock.of(engine, timing)
        blocks = engine.num_gpu_blocks or getattr(timing, "num_gpu_blocks", None) or DEFAULT_BLOCKS
        self._room = float(blocks * engine.block_size)
        self._off = {kind: Correction(quantile) for kind in KINDS}

    @property
    def observed(self) -> dict[str, int]:
        """Observations by latency, of all time."""
        return {kind: off.count for kind, off in self._off.items()}

    def predict(self, seen: Seen) -> tuple[float, float]:
        """Seconds to the first token, and for each one after it."""
        ttft, tpot = self.plain(seen)
        row = _row(seen)
        return (
            ttft * self._off["ttft"].factor(row),
            tpot * self._off["tpot"].factor(row),
        )

    def observe(self, seen: Seen, ttft_s: float = 0.0, tpot_s: float = 0.0) -> None:
        """What became of a request that met a server like this; 0 for what is not known."""
        for kind, real, ours in zip(KINDS, (ttft_s, tpot_s), self.plain(seen), strict=True):
            if real > 0:
                self._off[kind].add(_row(seen), math.log(real / ours))

    def plain(self, seen: Seen) -> tuple[float, float]:
        """The same by timing alone."""
        seats = self.engine.max_num_seqs
        running = min(seen.running_requests, seats)
        context = min(seen.kv_utilization, 1.0) * self._room
        own = max(round(seen.prompt_tokens * (1 - seen.cached_share)), 1)
        step = self._step(running + 1, context + seen.prompt_tokens + seen.generated_tokens)
        if seen.role == "prefill":
            running, context = 0, 0.0
        ahead = seen.prefill_tokens or seen.waiting_requests * seen.prompt_tokens
        first = self._prefill(ahead + own, own, running, context)
        # seats that must become free before it has one, at the rate at which answers end
        lacking = running + seen.waiting_requests + 1 - seats
        if lacking > 0 and seen.role != "prefill":
            left = seen.decode_tokens / max(running, 1) or self._answer
            first += lacking * left / seats * step
        # iterations that compute others' prompts delay this one's tokens
        busy = self._prefill(seen.prefill_tokens, 0, running, context) if running else 0.0
        tokens = max(seen.decode_tokens / max(running, 1), self._answer)
        return max(first, 1e-6), max(step + busy / tokens, 1e-6)

    def _step(self, sequences: float, context: float) -> float:
        """An iteration in which all of them decode, s."""
        count = max(min(round(sequences), self.engine.max_num_seqs), 1)
        return self._clock.iteration_ps(
            Batch(decode_seqs=count, context_tokens=round(context))
        ) / PS  # fmt: skip

    def _prefill(self, tokens: float, own: int, running: int, context: float) -> float:
        """Iterations that compute so many prompt tokens beside those that decode, s."""
        left, took = max(int(tokens), 0), 0.0
        budget = max(self.engine.max_num_batched_tokens - running, 1)
        if not left:
            return 0.0
        whole, rest = divmod(left, budget)
        for size, count in ((budget, whole), (rest, 1)):
            if size and count:
                batch = Batch(
                    prefill_tokens=size, prefill_seqs=1, decode_seqs=running,
                    context_tokens=round(context), chunk_context=size * max(own, size) // 2,
                )  # fmt: skip
                took += count * self._clock.iteration_ps(batch) / PS
        return took


class Correction:
    """Logarithms of real over predicted latencies: a ridge regression, and a quantile beyond it."""

    def __init__(self, quantile: float | None) -> None:
        self._quantile = quantile
        self._rows: deque[NDArray[np.float64]] = deque(maxlen=KEPT)
        self._logs: deque[float] = deque(maxlen=KEPT)
        self.count = 0
        self._due = FEWEST
        self._slopes: NDArray[np.float64] | None = None
        self._beyond = 0.0

    def add(self, row: NDArray[np.float64], log: float) -> None:
        """One more observation."""
        self._rows.append(row)
        self._logs.append(log)
        self.count += 1
        if self.count >= self._due:
            self._fit()
            self._due = self.count + max(EVERY, self.count // 20)

    def factor(self, row: NDArray[np.float64]) -> float:
        """What a prediction is multiplied by; 1 while little was observed."""
        if self._slopes is None:
            return 1.0
        log = float(row @ self._slopes) + self._beyond
        return math.exp(min(max(log, -MOST_LOG), MOST_LOG))

    def _fit(self) -> None:
        rows, logs = np.array(self._rows), np.array(self._logs)
        penalty = PENALTY * np.eye(rows.shape[1])
        penalty[0, 0] = 0.0  # the level is free
        self._slopes = np.linalg.solve(rows.T @ rows + penalty, rows.T @ logs)
        left = logs - rows @ self._slopes
        if self._quantile is None:
            self._beyond = float(np.log(np.exp(left).mean()))
        else:
            self._beyond = float(np.quantile(left, self._quantile))


def _row(seen: Seen) -> NDArray[np.float64]:
    """What the line is a line of: (8,), a constant first."""
    return np.array(
        [
            1.0, seen.kv_utilization, seen.cached_share, float(seen.waiting_requests > 0),
            *(math.log1p(n) / 10 for n in (
                seen.prompt_tokens, seen.waiting_requests, seen.running_requests,
                seen.prefill_tokens,
            )),
        ]
    )  # fmt: skip
