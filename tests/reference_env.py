"""The oracle of the environments: one decision at a time over the reference engine, in Python."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.envs.columns import Columns
from lengthwise.envs.episodes import Episode
from lengthwise.exact import symlog
from lengthwise.serving import HOLD, Stop, Stops, begin
from lengthwise.serving.records import PS

FAR = 1e6


class ReferenceEnv:
    """One episode: ``observation`` until ``done``; ``step`` gives a reward."""

    def __init__(
        self,
        kind: str,
        episode: Episode,
        names: tuple[str, ...],
        slots: int,
        *,
        hold_s: float = 0.0,
        penalty: float = 1.0,
        show: str = "first",
    ) -> None:
        self.kind, self.episode, self.slots, self.penalty = kind, episode, slots, penalty
        self.columns, self.show = Columns.of(names), show
        self.hold_ps = round(hold_s * PS)
        self.run = begin(
            episode.workload, episode.system, episode.predictions, seed=episode.seed,
            backend="reference",
        )  # fmt: skip
        self.paid_ps = 0
        self.picked: list[int] = []
        self.left: list[int] = []
        self.done = False
        self._advance()

    @property
    def requests(self) -> int:
        return len(self.episode.workload)

    def features(self, names: tuple[str, ...], most: int) -> dict[str, NDArray[np.float64]]:
        rows = np.empty((most, len(names)))
        count = self.run.features(names, rows)
        return {name: rows[:count, i] for i, name in enumerate(names)}

    def _advance(self) -> None:
        if self.kind == "route":
            self._advance_to_route()
            return
        if self.picked:
            if len(self.left) > 1 and self.seats > len(self.picked) and self.tokens > 0:
                return
            self.run.answer(self.picked)
            self.picked = []
        while (stop := self.run.advance(Stops(admit=True))).kind == "admit":
            if stop.candidates > 1:
                self._queue(stop)
                return
            self.run.answer(0)
        self.done = True

    def _advance_to_route(self) -> None:
        stops = Stops(route=True, hold_ps=self.hold_ps or Stops().hold_ps)
        while True:
            self.stop = self.run.advance(stops)
            self.done = self.stop.kind == "done"
            if self.done or len(self.open()) > 1 or self.hold_ps:
                return
            self.run.answer(self.open()[0])

    def open(self) -> list[int]:
        """The nodes that may be named."""
        return [at for at in range(self.stop.candidates) if at not in self.stop.closed]

    def slots_shown(self, rows: int) -> list[int]:
        """Where the rows of candidates stand."""
        return self.open() if self.kind == "route" else list(range(rows))

    def _queue(self, stop: Stop) -> None:
        engine = self.episode.system.nodes[stop.node].engine
        here = self.features(("running_requests", "kv_utilization"), 1)
        self.waiting, self.running = stop.candidates, int(here["running_requests"][0])
        self.kv = float(here["kv_utilization"][0])
        self.max_seqs = engine.max_num_seqs
        self.seats = engine.max_num_seqs - self.running
        self.tokens = engine.max_num_batched_tokens - self.running
        more = ("prompt_tokens", "predicted_tokens")
        seen = self.features((*self.columns.reads, *more), stop.candidates)
        self.prompt = seen["prompt_tokens"]
        self.rows = self.columns.raw(seen)
        self.left = list(range(len(self.rows)))
        if self.show == "spread" and len(self.left) > self.slots:
            self._spread(seen["predicted_tokens"])

    def _spread(self, predicted: NDArray[np.float64]) -> None:
        quarter = self.slots // 4
        head = self.slots - 3 * quarter
        shown, rest = self.left[:head], self.left[head:]
        for key in (predicted, self.prompt, predicted + self.prompt):
            shortest = sorted(rest, key=lambda row, key=key: key[row])[:quarter]
            shown += shortest
            rest = [row for row in rest if row not in shortest]
        self.left = shown + rest

    def raw(self) -> NDArray[np.float64]:
        if self.kind == "route":
            rows = self.columns.raw(self.features(self.columns.reads, self.stop.candidates))
            return rows[self.open()]
        shown: NDArray[np.float64] = self.rows[self.left[: self.slots]]
        return shown

    def state(self) -> list[float]:
        totals = self.run.totals
        if self.kind == "admit":
            return [
                symlog(self.waiting - len(self.picked)),
                symlog(totals.in_system),
                (self.running + len(self.picked)) / self.max_seqs,
                self.kv,
            ]
        nodes = self.stop.candidates
        names = ("waiting_requests",)
        queues = self.features(names, nodes)["waiting_requests"]
        predictions, id = self.episode.predictions, self.stop.request
        answer = 0.0 if predictions is None else predictions.predicted_tokens[id]
        prompt = self.episode.workload["prompt_tokens"][id]
        return [
            (queues[self.open()] > 0).sum() / nodes,
            symlog(totals.in_system / nodes),
            symlog(float(prompt)) - 6.0,
            symlog(answer) - 5.0,
        ]

    def flat(self) -> NDArray[np.float32]:
        """Candidates, mask and state as one vector."""
        width = len(self.columns.names)
        out = np.zeros(self.slots * (width + 1) + 4, np.float32)
        if self.done:
            return out
        seen = np.clip(self.columns.normaliser().normalise(self.raw()), -FAR, FAR)
        shown = self.slots_shown(len(seen))
        out[: self.slots * width].reshape(self.slots, width)[shown] = seen
        out[self.slots * width :][shown] = 1
        if self.hold_ps:
            out[self.slots * (width + 1) - 1] = 1
        out[-4:] = np.clip(self.state(), -FAR, FAR)
        return out

    def step(self, choice: int) -> float:
        width = len(self.columns.names)
        reward = 0.0
        if not self.flat()[self.slots * width + choice]:
            choice, reward = self.slots_shown(1)[0], -self.penalty
        if self.kind == "admit":
            row = self.left.pop(choice)
            self.picked.append(row)
            self.tokens -= int(self.prompt[row])
        elif self.hold_ps and choice == self.slots - 1:
            self.run.answer(HOLD)
        else:
            self.run.answer(choice)
        self._advance()
        spent_ps = self.run.totals.request_ps
        grown, self.paid_ps = spent_ps - self.paid_ps, spent_ps
        return reward - float(grown) / PS / self.episode.scale

    def end(self) -> dict[str, Any]:
        """What an episode's end says."""
        totals = self.run.totals
        return {
            "now_s": totals.now_ps / PS,
            "mean_latency_s": float(totals.request_ps) / PS / self.requests,
        }
