"""What a policy costs on workloads that training can't draw, beside the best baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lengthwise.envs.costs import Cost
from lengthwise.errors import InputError
from lengthwise.eval.statistics import Interval, paired_ratio
from lengthwise.training.judging import Bench, Judged, costs

# Episodes draw workload seeds below 2**31; these are out of their reach. Which weights are best is
# chosen on the first; what a finished run says of them is measured on the second.
VALIDATION_SEED, CONFIRMATION_SEED, TEST_SEED = 2**31, 2**31 + 5_000, 2**31 + 10_000
TIE = 0.01  # baselines whose costs differ by no more than this share are as good as each other


@dataclass(frozen=True)
class Validation:
    """Held-out workloads, by seed, and what each baseline costs on them (per request)."""

    bench: Bench
    cost: Cost
    seeds: range
    baselines: dict[str, list[float]]

    @classmethod
    def of(cls, bench: Bench, cost: Cost, seeds: range, judges: Sequence[Judged]) -> Validation:
        """Runs the baselines. Raises ``InputError`` where a cost is not a finite number."""
        made = cls(bench, cost, seeds, {})
        for judged in judges:
            made.baselines[judged.name] = made.costs(judged)
        return made

    def costs(self, judged: Judged) -> list[float]:
        """The cost a request of each workload under a policy or router."""
        found = costs(self.bench, judged, self.cost, self.seeds)
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
        levels = [self.ratio(found, self.best) for found in self.baselines.values()]
        return len(levels) > 1 and all(
            ratio is not None and ratio.mean < 1 + TIE for ratio in levels
        )

    def _level(self, found: Sequence[float]) -> float:
        if min(min(costs) for costs in (found, *self.baselines.values())) > 0:
            return float(np.log(found).mean())
        return float(np.mean(found))


def told(ratio: Interval | None, baseline: str) -> str:
    """``1.04 of jsq, the best baseline (95% 1.01 to 1.07)``"""
    if ratio is None:
        return f"the best baseline is {baseline}; costs are not positive, so there is no ratio"
    interval = "" if ratio.count == 1 else f" (95% {ratio.low:.3g} to {ratio.high:.3g})"
    return f"{ratio.mean:.3g} of {baseline}, the best baseline{interval}"
