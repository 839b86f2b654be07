"""Predictors that read no text: one length for all, and the length of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from lengthwise.context import Context
from lengthwise.errors import InputError
from lengthwise.prediction import Prediction
from lengthwise.predictors import columns, folder
from lengthwise.predictors.censoring import expected_logs
from lengthwise.predictors.hub import HubPredictor
from lengthwise.predictors.shifting import capped


class Constant(HubPredictor):
    """Predicts ``tokens`` for every request; ``fit`` replaces it by the typical (median) length."""

    needs: frozenset[str] = frozenset()
    uses = frozenset({"max_tokens"})

    def __init__(self, tokens: float = 200.0) -> None:
        self.tokens = columns.number(tokens, name="tokens", of="constant")
        if self.tokens < 1:
            raise InputError(f"constant: tokens must be 1 or more, not {tokens!r}")
        self.tokens_ = self.tokens

    def fit(
        self,
        prompts: Sequence[str],
        output_tokens: ArrayLike,
        *,
        prompt_tokens: ArrayLike | None = None,
        censored: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Self:
        """Takes the median; with censored lengths, that of a log-normal fitted to them."""
        rows = columns.count(prompts, output_tokens, of="constant")
        length = columns.lengths(output_tokens, rows=rows, name="output_tokens", of="constant")
        cut = columns.mask(censored, rows=rows, of="constant")
        if cut.any():
            mu = expected_logs(np.log(length), cut, lambda y: np.full_like(y, y.mean()))[1]
            self.tokens_ = float(np.exp(mu[0]))
        else:
            self.tokens_ = float(np.median(length))
        return self

    def predict(
        self,
        prompts: Sequence[str],
        *,
        prompt_tokens: ArrayLike | None = None,
        output_tokens: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Prediction:
        """The same length for each request."""
        rows = columns.count(prompts, prompt_tokens, output_tokens, of="constant")
        return capped(Prediction.exact(np.full(rows, self.tokens_)), context)

    def save(self, path: str | Path) -> None:
        """Writes the folder that ``load_predictor`` reads."""
        saved = folder.Saved("constant", {"tokens": self.tokens}, {"tokens": self.tokens_})
        folder.write(saved, path)

    @classmethod
    def restore(cls, saved: folder.Saved, path: Path) -> Self:
        """The predictor in a saved folder."""
        made = cls(**saved.options)
        made.tokens_ = float(saved.state["tokens"])
        return made


class PromptLength(HubPredictor):
    """Predicts ``exp(intercept + slope * log prompt_tokens)``, within the training lengths.

    Unfitted it predicts the prompt's own length.
    """

    needs = frozenset({"prompt_tokens"})
    uses = frozenset({"max_tokens"})

    def __init__(self) -> None:
        self.intercept_, self.slope_ = 0.0, 1.0
        self.range_ = (1.0, float(np.finfo(np.float64).max))  # tokens

    def fit(
        self,
        prompts: Sequence[str],
        output_tokens: ArrayLike,
        *,
        prompt_tokens: ArrayLike | None = None,
        censored: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Self:
        """Least squares of log length on log prompt length."""
        x = self._logs(prompts, prompt_tokens)
        length = columns.lengths(
            output_tokens, rows=len(x), name="output_tokens", of="prompt-length"
        )
        cut = columns.mask(censored, rows=len(x), of="prompt-length")
        design = np.stack([np.ones_like(x), x - x.mean()], axis=1)  # (n, 2)

        def fitted(y: columns.Floats) -> columns.Floats:
            return np.asarray(design @ np.linalg.lstsq(design, y, rcond=None)[0])

        filled = expected_logs(np.log(length), cut, fitted)[0]
        level, slope = np.linalg.lstsq(design, filled, rcond=None)[0]
        self.slope_ = float(slope)
        self.intercept_ = float(level - slope * x.mean())
        self.range_ = (float(np.exp(filled.min())), float(np.exp(filled.max())))
        return self

    def predict(
        self,
        prompts: Sequence[str],
        *,
        prompt_tokens: ArrayLike | None = None,
        output_tokens: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Prediction:
        """One length for each request; ``prompts`` may be empty."""
        logs = self._logs(prompts, prompt_tokens)
        said = np.exp(self.intercept_ + self.slope_ * logs)
        return capped(Prediction.exact(np.clip(said, *self.range_)), context)

    def save(self, path: str | Path) -> None:
        """Writes the folder that ``load_predictor`` reads."""
        state = {"intercept": self.intercept_, "slope": self.slope_, "range": list(self.range_)}
        folder.write(folder.Saved("prompt-length", {}, state), path)

    @classmethod
    def restore(cls, saved: folder.Saved, path: Path) -> Self:
        """The predictor in a saved folder."""
        made = cls(**saved.options)
        made.intercept_ = float(saved.state["intercept"])
        made.slope_ = float(saved.state["slope"])
        low, high = saved.state["range"]
        made.range_ = (float(low), float(high))
        return made

    def _logs(self, prompts: Sequence[str], prompt_tokens: ArrayLike | None) -> columns.Floats:
        if prompt_tokens is None:
            raise InputError("prompt-length reads prompt_tokens, which the data do not have")
        rows = columns.count(prompts, prompt_tokens, of="prompt-length")
        return np.log(
            columns.lengths(prompt_tokens, rows=rows, name="prompt_tokens", of="prompt-length")
        )
