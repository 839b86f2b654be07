"""Predictors that read no text: one length for all, and the length of the prompt.

What a learned predictor has to beat. They are no paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from lengthwise.context import Context
from lengthwise.errors import InputError
from lengthwise.kendall import tau_error
from lengthwise.prediction import Prediction
from lengthwise.predictors import columns, folder
from lengthwise.predictors.censoring import expected_logs
from lengthwise.predictors.hub import HubPredictor
from lengthwise.predictors.novelty import ABSTAIN, LIMIT, Window
from lengthwise.predictors.shifting import capped
from lengthwise.protocols import Predictor
from lengthwise.workload import MOST_TOKENS

SHIFT = 0.23  # as ``novelty.SHIFT``, of two numbers: the mean and the spread of log prompt lengths


class Constant(HubPredictor):
    """Predicts ``tokens`` for every request; ``fit`` replaces it by the typical (median) length."""

    needs: frozenset[str] = frozenset()
    uses = frozenset({"max_tokens"})

    def __init__(self, tokens: float = 200.0) -> None:
        self.tokens = columns.number(tokens, name="tokens", of="constant")
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise InputError(
                f"constant: tokens must be 1 or more and up to {MOST_TOKENS}, not {tokens!r}"
            )
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
        self.company_: Company | None = None  # None unfitted, and of one saved before there was any

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
        self.company_ = Company.of(x, slope * x, np.exp(filled))
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

    def stream(self) -> Predictor:
        """The predictor for requests in the order of arrival.

        It abstains from all of them where the prompt's length told nothing of the training
        answers', and while prompts are not as long as those trained on.
        """
        return self if self.company_ is None else LengthStream(self, self.company_)

    def save(self, path: str | Path) -> None:
        """Writes the folder that ``load_predictor`` reads."""
        state: dict[str, Any] = {
            "intercept": self.intercept_, "slope": self.slope_, "range": list(self.range_)
        }  # fmt: skip
        if self.company_ is not None:
            state["company"] = [*self.company_.numbers, self.company_.orders]
        folder.write(folder.Saved("prompt-length", {}, state), path)

    @classmethod
    def restore(cls, saved: folder.Saved, path: Path) -> Self:
        """The predictor in a saved folder."""
        made = cls(**saved.options)
        made.intercept_ = float(saved.state["intercept"])
        made.slope_ = float(saved.state["slope"])
        low, high = saved.state["range"]
        made.range_ = (float(low), float(high))
        if "company" in saved.state:
            middle, spread, mean, square, typical, orders = saved.state["company"]
            made.company_ = Company(
                float(middle), float(spread), float(mean), float(square), float(typical),
                bool(orders),
            )  # fmt: skip
        return made

    def _logs(self, prompts: Sequence[str], prompt_tokens: ArrayLike | None) -> columns.Floats:
        if prompt_tokens is None:
            raise InputError("prompt-length reads prompt_tokens, which the data do not have")
        rows = columns.count(prompts, prompt_tokens, of="prompt-length")
        return np.log(
            columns.lengths(prompt_tokens, rows=rows, name="prompt_tokens", of="prompt-length")
        )


@dataclass(frozen=True)
class Company:
    """What the training prompts' log lengths were like, and whether they told of answers."""

    middle: float
    spread: float
    mean: float  # of standardised log lengths, held within ``LIMIT``
    square: float  # mean of (z² - 1) / √2 of these
    typical: float  # tokens: the median answer
    orders: bool  # whether τ on the training rows was above 0 by two standard errors

    @classmethod
    def of(cls, logs: columns.Floats, said: columns.Floats, tokens: columns.Floats) -> Company:
        """Of n log prompt lengths, what is said of them, and answers in tokens."""
        from scipy.stats import kendalltau

        spread = float(logs.std())
        plain = cls(float(logs.mean()), spread if spread > 1e-9 else 1.0, 0.0, 0.0, 0.0, False)
        mean, square = plain.shapes(logs).mean(axis=0).tolist()
        tau = kendalltau(said, tokens).statistic if len(logs) > 1 else 0.0
        orders = bool(tau > 2 * tau_error(len(logs))) if len(logs) > 1 else False  # not of NaN
        return cls(plain.middle, plain.spread, mean, square, float(np.median(tokens)), orders)

    @property
    def numbers(self) -> tuple[float, ...]:
        """All but ``orders``."""
        return self.middle, self.spread, self.mean, self.square, self.typical

    def shapes(self, logs: columns.Floats) -> columns.Floats:
        """What ``novelty.Window`` compares, (n, 2): first and second moments, centred."""
        z = np.clip((logs - self.middle) / self.spread, -LIMIT, LIMIT)
        return np.stack((z - self.mean, (z * z - 1) / np.sqrt(2) - self.square), axis=1)


class LengthStream:
    """``PromptLength`` in the order of arrival; ``predict`` depends on what it was asked before."""

    def __init__(self, predictor: PromptLength, company: Company) -> None:
        self.predictor, self._company = predictor, company
        self._window = Window(np.zeros((1, 2)), SHIFT)
        self.needs, self.uses = predictor.needs, predictor.uses

    def fit(self, prompts: Sequence[str], output_tokens: ArrayLike, **given: Any) -> Self:
        """Fits the predictor, and knows no workload yet."""
        self.predictor.fit(prompts, output_tokens, **given)
        assert self.predictor.company_ is not None
        self._company, self._window = self.predictor.company_, Window(np.zeros((1, 2)), SHIFT)
        return self

    def predict(
        self,
        prompts: Sequence[str],
        *,
        prompt_tokens: ArrayLike | None = None,
        output_tokens: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Prediction:
        """Predictions for n prompts, which came one after the other, and after those before."""
        said = self.predictor.predict(prompts, prompt_tokens=prompt_tokens, context=context)
        logs = self.predictor._logs(prompts, prompt_tokens)
        new = self._window.score(self._company.shapes(logs)) > ABSTAIN
        neutral = Prediction.exact([self._company.typical])
        return capped(said.abstaining(new | (not self._company.orders), neutral), context)

    def save(self, folder: Any) -> None:
        """Writes the predictor."""
        self.predictor.save(folder)
