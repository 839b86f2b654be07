"""The evolution strategy that numbers are searched by: the package ``cma``'s (decision 14)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError

Floats = NDArray[np.float64]


class Search:
    """A CMA-ES of the package ``cma``: ask for candidates, tell their fitness.

    ``diagonal`` keeps one variance a weight (the separable form), which learns faster; without it
    covariances are learned too. Deterministic in (seed, what was told), so that telling again what
    was told brings it back. Raises ``InputError`` for fewer than two weights or four candidates.
    """

    def __init__(
        self, start: Floats, sigma: float, population: int, seed: int, diagonal: bool = True
    ) -> None:
        if population < 4 or not sigma > 0 or len(start) < 2:
            raise InputError(
                "a search needs a population of 4 or more, a sigma above 0 and two weights or more"
            )
        from cma import CMAEvolutionStrategy

        rng = np.random.default_rng(seed)  # in place of numpy's global one, which is others' too
        self._strategy = CMAEvolutionStrategy(
            np.array(start, np.float64), sigma,
            {"popsize": population, "CMA_diagonal": diagonal, "verbose": -9, "seed": np.nan,
             "randn": lambda *shape: rng.standard_normal(shape)},
        )  # fmt: skip
        self._asked: list[Floats] = []

    @property
    def mean(self) -> Floats:
        """The distribution's mean, (n,)."""
        return np.array(self._strategy.mean, np.float64)

    @property
    def generation(self) -> int:
        """How often the fitness of candidates was told."""
        return int(self._strategy.countiter)

    def ask(self) -> Floats:
        """Candidates, (population, n)."""
        self._asked = self._strategy.ask()
        return np.array(self._asked)

    def tell(self, fitness: Sequence[float]) -> None:
        """The candidates' fitness, lower is better; raises ``InputError`` for NaN."""
        values = np.asarray(fitness, np.float64)
        if values.shape != (len(self._asked),) or not self._asked:
            raise InputError("a search is told the fitness of the candidates that it was asked for")
        if not np.isfinite(values).all():
            raise InputError("a fitness must be a finite number")
        self._strategy.tell(self._asked, values.tolist())
        self._asked = []
