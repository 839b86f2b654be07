"""What a policy costs on workloads that training can't draw, beside the best baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lengthwise.envs.costs import Cost, latency
from lengthwise.envs.episodes import Episode, Source
from lengthwise.errors import InputError
from lengthwise.eval.statistics import Interval, paired_ratio
from lengthwise.eval.tune import METRICS, placed, records_of
from lengthwise.serving import begin
from lengthwise.training.evolution import nothing_to_learn
from lengthwise.training.judging import Judged

# Episodes draw workload seeds below 2**31; these are out of their reach. Which weights are best is
# chosen on the first; what a finished run says of them is measured on the second; ``eval.windows``
# has those that finished policies are judged on.
VALIDATION_SEED, CONFIRMATION_SEED = 2**31, 2**31 + 5_000


@dataclass(frozen=True)
class Validation:
    """Held-out episodes, and what each baseline costs on each of them (per request)."""

    episodes: Sequence[Episode]
    cost: Cost
    baselines: dict[str, list[float]]

    @classmethod
    def of(cls, source: Source, cost: Cost, seeds: range, judges: Sequence[Judged]) -> Validation:
        """Draws the episodes and runs the baselines.

        Raises ``InputError`` where a cost is not a finite number.
        """
        made = cls([source(seed) for seed in seeds], cost, {})
        for judged in judges:
            made.baselines[judged.name] = made.costs(judged)
        return made

    def costs(self, judged: Judged) -> list[float]:
        """The cost a request of each episode under a policy or router."""
        found = [_cost(episode, judged, self.cost) for episode in self.episodes]
        if not np.isfinite(found).all():
            raise InputError(
                f"the cost of {judged.name} is {found[int(np.argmin(np.isfinite(found)))]} on a "
                "held-out workload: a cost must be a finite number"
            )
        return found

    @property
    def means(self) -> dict[str, float]:
        """The mean cost of each baseline."""
        return {name: float(np.mean(found)) for name, found in self.baselines.items()}

    @property
    def best(self) -> str:
        """The baseline that costs least: by geometric mean, so that each workload counts alike."""
        return min(self.baselines, key=lambda name: self._level(self.baselines[name]))

    def better(self, a: Sequence[float], b: Sequence[float]) -> bool:
        """Whether the first costs are below the second's."""
        return self._level(a) < self._level(b)

    def ratio(self, found: Sequence[float], to: str) -> Interval | None:
        """Costs over a baseline's, paired by workload; None where a cost is not positive."""
        if min(*found, *self.baselines[to]) <= 0:
            return None
        return paired_ratio(found, self.baselines[to])

    @property
    def ties(self) -> bool:
        """Whether several baselines cost the same: then, most likely, nothing waits."""
        found = {name: np.array(costs) for name, costs in self.baselines.items()}
        return bool(min(map(np.min, found.values())) > 0 and nothing_to_learn(found))

    def _level(self, found: Sequence[float]) -> float:
        if min(min(costs) for costs in (found, *self.baselines.values())) > 0:
            return float(np.log(found).mean())
        return float(np.mean(found))


def _cost(episode: Episode, judged: Judged, cost: Cost) -> float:
    if cost is latency:  # known from the records, so the fast engine will do
        return METRICS["e2e_mean"](records_of(episode, judged))
    system = placed(episode.system, judged)
    made = begin(episode.workload, system, episode.predictions, seed=episode.seed)
    made.advance()
    return cost(made.totals) / len(episode.workload)


def told(ratio: Interval | None, baseline: str) -> str:
    """``1.040 of jsq, the best baseline (95% 1.012 to 1.069)``"""
    if ratio is None:
        return f"the best baseline is {baseline}; costs are not positive, so there is no ratio"
    interval = "" if ratio.count == 1 else f" (95% {ratio.low:.3f} to {ratio.high:.3f})"
    return f"{ratio.mean:.3f} of {baseline}, the best baseline{interval}"
