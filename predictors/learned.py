"""What predictors that learn from text share: checks, censored lengths, targets, saving.

A new one is a class in a file of its own with ``_learn`` and ``_raw`` (and ``_state`` and
``_restore`` to be saved), and a line in the registry; docs/predictors.md has an example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.context import Context
from lengthwise.errors import InputError
from lengthwise.prediction import Floats, Prediction
from lengthwise.predictors import columns, folder, targets
from lengthwise.predictors.censoring import drawn_logs, expected_logs
from lengthwise.predictors.shifting import capped

FOLDS = 5


class Learned(ABC):
    """A predictor of one ``target`` from the prompt's text.

    ``buckets`` is a number of equally filled buckets or a sequence of inner edges in tokens
    (default: at percentiles 25, 50, 75 and 99); ``levels`` are those of the quantile target.
    """

    name: ClassVar[str]  # in the registry
    needs = frozenset({"prompt"})
    uses = frozenset({"max_tokens"})

    def __init__(
        self,
        target: str = "exact",
        *,
        buckets: int | Sequence[float] | None = None,
        levels: Sequence[float] = targets.LEVELS,
        seed: int = 0,
    ) -> None:
        self.target = targets.check_target(target)
        self.buckets, self.levels, self.seed = buckets, levels, seed
        self.target_: targets.AnyTarget | None = None

    def fit(
        self,
        prompts: Sequence[str],
        output_tokens: ArrayLike,
        *,
        prompt_tokens: ArrayLike | None = None,
        censored: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Self:
        """Learns from prompts and answer lengths, n each; ``censored`` marks lengths cut short."""
        text, length, cut = columns.fit_columns(prompts, output_tokens, censored, of=self.name)
        if cut.any():
            length = self._uncensored(text, length, cut)
        target = targets.make_target(self.target, length, buckets=self.buckets, levels=self.levels)
        raw, rows = self._learn(text, length, target)
        self.target_ = target.calibrated(raw, length[rows])
        return self

    def predict(
        self,
        prompts: Sequence[str],
        *,
        prompt_tokens: ArrayLike | None = None,
        output_tokens: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Prediction:
        """Predictions for n prompts; none exceeds the ``max_tokens`` of its context."""
        text = columns.texts(prompts, of=self.name)
        return capped(self._fitted().prediction(self._raw(text)), context)

    def save(self, path: str | Path) -> None:
        """Writes the folder that ``load_predictor`` reads."""
        state, arrays = self._state()
        arrays |= {f"target.{key}": value for key, value in self._fitted().arrays().items()}
        saved = folder.Saved(self.name, self._options(), state, arrays)
        folder.write(saved, path, self._write_extra)

    @classmethod
    def restore(cls, saved: folder.Saved, path: Path) -> Self:
        """The predictor in a saved folder."""
        made = cls(**saved.options)
        arrays = {
            key.removeprefix("target."): value
            for key, value in saved.arrays.items()
            if key.startswith("target.")
        }
        made.target_ = targets.restored(made.target, arrays)
        made._restore(saved.state, saved.arrays, path)
        return made

    @abstractmethod
    def _learn(
        self, prompts: list[str], length: Floats, target: targets.AnyTarget
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Fits to prompts and lengths (n,). Returns raw outputs (m, outputs) for rows (m,) that
        the model giving them did not see, which calibrate the target."""

    @abstractmethod
    def _raw(self, prompts: list[str]) -> Floats:
        """Raw outputs (n, outputs), as the target reads them."""

    @abstractmethod
    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What was learned: what JSON can hold, and arrays."""

    @abstractmethod
    def _restore(
        self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], path: Path
    ) -> None:
        """Takes back what ``_state`` gave and ``_write_extra`` wrote into the folder ``path``."""

    def _write_extra(self, path: Path) -> None:  # noqa: B027 - most have no files of their own
        """Adds files of its own to the folder being saved."""

    def _options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        buckets = self.buckets if self.buckets is None else np.asarray(self.buckets).tolist()
        return {
            "target": self.target, "buckets": buckets, "levels": list(self.levels),
            "seed": self.seed,
        }  # fmt: skip

    def _fitted(self) -> targets.AnyTarget:
        if self.target_ is None:
            raise InputError(
                f"predictor {self.name!r} is not fitted; train it with `lengthwise train predictor "
                f"DATA --model {self.name} --out DIR` and give DIR"
            )
        return self.target_

    def _uncensored(self, prompts: list[str], length: Floats, cut: columns.Mask) -> Floats:
        """Lengths (n,) with the censored ones filled by a ridge on the same prompts.

        By their expectation for one number a request, by draws for a distribution.
        """
        from lengthwise.predictors.text import Design

        design = Design.of(prompts, self.seed)
        logs = np.log(length)
        filled, mu, sigma = expected_logs(logs, cut, design.held_out_mean)
        if self.target in ("bucket", "quantile"):
            rng = np.random.default_rng(self.seed)
            filled = drawn_logs(logs, cut, mu, sigma, rng)
        return np.exp(filled)


def folds_of(prompts: Sequence[str], seed: int) -> NDArray[np.int64]:
    """A fold for each row, (n,) in 0..FOLDS - 1 or fewer; equal prompts share one."""
    first: dict[str, int] = {}
    index = np.array([first.setdefault(prompt, len(first)) for prompt in prompts])
    shuffled = np.random.default_rng(seed).permutation(len(first))
    return np.asarray(shuffled[index] % min(FOLDS, len(first)))
