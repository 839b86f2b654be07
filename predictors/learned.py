"""What predictors that learn from text share: checks, censored lengths, targets, saving.

A new one is a class in a file of its own with ``_learn`` and ``_raw`` (and ``_state`` and
``_restore`` to be saved), and a line in the registry; docs/predictors.md has an example.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.context import Context
from lengthwise.errors import InputError
from lengthwise.prediction import Floats, Prediction
from lengthwise.predictors import columns, folder, recalibration, targets
from lengthwise.predictors.censoring import drawn_logs, expected_logs
from lengthwise.predictors.effects import USED, Effects, tells_apart
from lengthwise.predictors.hub import HubPredictor
from lengthwise.predictors.novelty import Novelty
from lengthwise.predictors.shifting import capped, rebucketed, shifted
from lengthwise.predictors.stream import Stream
from lengthwise.protocols import Predictor

FOLDS = 5
ROUNDS = 3  # of effects and what they are added to, when both move


class Learned(HubPredictor, ABC):
    """A predictor of one ``target`` from the prompt's text.

    ``buckets`` is a number of equally filled buckets or a sequence of inner edges in tokens
    (default: at percentiles 25, 50, 75 and 99); ``levels`` are those of the quantile target.
    """

    name: ClassVar[str]  # in the registry
    needs = frozenset({"prompt"})
    uses: frozenset[str] = USED  # once it is fitted, what makes a difference to it
    weighs: ClassVar[bool] = False  # whether ``_learn`` reads ``_row_weights``; else rows are drawn

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
        self.effects_: Effects | None = None  # of context, where it was fitted with some
        self.shown_: targets.AnyTarget | None = None  # buckets as they are told, with effects
        self.novelty_: Novelty | None = None  # None of one saved before there was any

    def fit(
        self,
        prompts: Sequence[str],
        output_tokens: ArrayLike,
        *,
        prompt_tokens: ArrayLike | None = None,
        censored: ArrayLike | None = None,
        context: Context | None = None,
        weights: ArrayLike | None = None,
    ) -> Self:
        """Learns from prompts and answer lengths, n each; ``censored`` marks lengths cut short.

        ``context`` (of the same n requests) tells whose lengths they are, ``weights`` (n,) how much
        each row counts, 1 by default.
        """
        text, length, cut = columns.fit_columns(prompts, output_tokens, censored, of=self.name)
        heavy = columns.weights(weights, rows=len(text), of=self.name)
        if context is not None and len(context) not in (0, len(text)):
            raise InputError(
                f"{self.name}: the context has {len(context)} rows, the prompts {len(text)}"
            )
        if not self.weighs and weights is not None:
            rows = columns.resampled(heavy, self.seed)
            text, length, cut = [text[row] for row in rows], length[rows], cut[rows]
            context = context.select(rows) if context else None
            heavy = np.ones(len(rows))
        self._row_weights = heavy
        self.effects_, length = self._centred(text, length, cut, context)
        logs = np.log(length)
        names = np.zeros(len(text))
        if self.effects_ is not None:
            names = self.effects_.of_names(context, len(text))
        own = np.exp(logs - names)
        target = targets.make_target(self.target, own, buckets=self._buckets(), levels=self.levels)
        raw, rows = self._learn(text, own, target)
        self.target_ = target.calibrated(raw, own[rows])
        if self.effects_ is not None and context is not None:
            seen, weight = context.select(rows), heavy[rows]
            said = np.log(self.target_.prediction(raw).predicted_tokens) + names[rows]
            self.effects_ = self.effects_.with_line(logs[rows], said, seen, weight)
            drawn = names[rows] + self.effects_.of_line(seen, said)
            self.target_ = target.calibrated(raw, np.maximum(np.exp(logs[rows] - drawn), 1e-3))
            if self.target_.spread is not None:  # of what comes, with the effects in it
                spread = replace(self.target_.spread, longest=float(length.max()))
                self.target_ = replace(self.target_, spread=spread)
            self.shown_ = targets.make_target(self.target, length, buckets=self.buckets)
        self._declare()
        self.novelty_ = Novelty.fit(text, own, raw, heavy)
        del self._row_weights
        return self

    def predict(
        self,
        prompts: Sequence[str],
        *,
        prompt_tokens: ArrayLike | None = None,
        output_tokens: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Prediction:
        """Predictions for n prompts; none exceeds the ``max_tokens`` of its context.

        It abstains from prompts that are too unlike those that it was trained on, each for itself;
        ``stream`` sees their company too.
        """
        text = columns.texts(prompts, of=self.name)
        if context is not None and len(context) not in (0, len(text)):
            raise InputError(
                f"{self.name}: the context has {len(context)} rows, the prompts {len(text)}"
            )
        return self.told(text, context)

    def told(
        self, text: list[str], context: Context | None, company: tuple[Floats, Floats] | None = None
    ) -> Prediction:
        """``predict``, knowing of each prompt the shape (n, SHAPE), as ``Novelty.shapes``, and how
        new its company is, (n,) as ``Novelty.score``.
        """
        found = self._fitted().prediction(self._raw(text))
        if self.novelty_ is not None:
            shapes, new = (None, 0.0) if company is None else company
            score = np.maximum(self.novelty_.score(text, shapes), new)
            found = self.novelty_.judged(found, score, self._fitted())
        if self.effects_ is None:
            return capped(found, context)
        shift = self.effects_.of_names(context, len(text))
        shift = shift + self.effects_.of_line(context, np.log(found.predicted_tokens) + shift)
        if isinstance(self.shown_, targets.Bucket):
            return capped(rebucketed(found, shift, self.shown_), context)
        return capped(shifted(found, shift), context)

    def recalibrated(
        self,
        prompts: Sequence[str],
        output_tokens: ArrayLike,
        *,
        censored: ArrayLike | None = None,
        context: Context | None = None,
    ) -> Self:
        """A copy whose lengths, and how they lie around what is said, are those of n answers that
        came; nothing is trained, and the order stays.

        Where that order holds on them (Kendall's tau above 0 by two standard errors), they are what
        is familiar from then on. Raises ``InputError`` for fewer than 30 answers.
        """
        recalibration.check(len(columns.texts(prompts, of=self.name)), self.name)
        text, length, cut = columns.fit_columns(prompts, output_tokens, censored, of=self.name)
        made, raw, target = copy.copy(self), self._raw(text), self._fitted()
        folds, names, own = folds_of(text, self.seed), np.zeros(len(text)), length
        for _ in range(1 if self.effects_ is None else ROUNDS):
            said = np.log(target.prediction(raw).predicted_tokens)
            if self.effects_ is not None:  # which look at what is said, and so move with it
                names = self.effects_.of_names(context, len(text))
                names = names + self.effects_.of_line(context, said + names)
            own = recalibration.filled(said, length * np.exp(-names), cut, self.seed)
            target = recalibration.recalibrated(self._fitted(), raw, own, folds)
        made.target_ = target
        if isinstance(self.shown_, targets.Bucket) and isinstance(target, targets.Bucket):
            before = self._fitted()
            assert isinstance(before, targets.Bucket)
            by = target.edges[1] / before.edges[1]
            made.shown_ = recalibration.scaled(self.shown_, by, float(length.max()))
        if self.novelty_ is not None:
            tokens = target.prediction(raw).predicted_tokens * np.exp(names)
            weights = np.ones(len(text))
            fresh = Novelty.fit(text, own, raw, weights)
            known = recalibration.orders(tokens, length)
            made.novelty_ = fresh if known else replace(self.novelty_, lengths=fresh.lengths)
        return made

    def stream(self) -> Predictor:
        """The predictor for requests in the order of arrival, see ``Stream``."""
        return self if self.novelty_ is None else Stream(self, self.novelty_)

    def save(self, path: str | Path) -> None:
        """Writes the folder that ``load_predictor`` reads."""
        state, arrays = self._state()
        arrays |= {f"target.{key}": value for key, value in self._fitted().arrays().items()}
        if self.effects_ is not None:
            state |= {"context": self.effects_.state()}
            arrays |= {f"context.{key}": value for key, value in self.effects_.arrays().items()}
            if isinstance(self.shown_, targets.Bucket):
                arrays |= {f"shown.{key}": value for key, value in self.shown_.arrays().items()}
        arrays |= {} if self.novelty_ is None else self.novelty_.arrays()
        saved = folder.Saved(self.name, self._options(), state, arrays)
        folder.write(saved, path, self._write_extra)

    @classmethod
    def restore(cls, saved: folder.Saved, path: Path) -> Self:
        """The predictor in a saved folder."""
        for key, values in saved.arrays.items():
            # trees split at infinity; nothing else may be beyond all bounds
            if values.dtype.kind not in "fiu" or not (
                np.isfinite(values).all() or key.endswith(".threshold")
            ):
                raise ValueError(f"array {key} holds values that are no finite numbers")
        made = cls(**saved.options)
        made.target_ = targets.restored(made.target, folder.under("target.", saved.arrays))
        if "context" in saved.state:
            made.effects_ = Effects.restored(
                saved.state["context"], folder.under("context.", saved.arrays)
            )
            if made.target == "bucket":
                made.shown_ = targets.restored("bucket", folder.under("shown.", saved.arrays))
        made._declare()
        made.novelty_ = Novelty.restored(saved.arrays)
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

    def _write_extra(self, path: Path) -> None:
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

    def _declare(self) -> None:
        """What it uses, now that it is fitted."""
        self.uses = frozenset({"max_tokens"}) | (self.effects_.uses if self.effects_ else set())

    def _buckets(self) -> int | Sequence[float] | None:
        """Of lengths without the effects, whose edges are not those that were asked for."""
        if self.effects_ is None or self.buckets is None or isinstance(self.buckets, int):
            return self.buckets
        return len(self.buckets) + 1

    def _centred(
        self, text: list[str], length: Floats, cut: columns.Mask, context: Context | None
    ) -> tuple[Effects | None, Floats]:
        """Effects of names, and lengths (n,) of which those that were cut are filled."""
        if context is None or not tells_apart(context):
            return None, self._uncensored(text, length, cut) if cut.any() else length
        from lengthwise.predictors.text import Design

        unseen = Design.of(text, self.seed, self._row_weights).held_out_mean
        effects = Effects.fit(np.log(length), context, unseen, self._row_weights)
        if cut.any():
            names = np.exp(effects.of_names(context, len(text)))
            length = self._uncensored(text, length / names, cut) * names
            effects = Effects.fit(np.log(length), context, unseen, self._row_weights)
        return effects, length

    def _uncensored(self, prompts: list[str], length: Floats, cut: columns.Mask) -> Floats:
        """Lengths (n,) with the censored ones filled by a ridge on the same prompts.

        By their expectation for one number a request, by draws for a distribution.
        """
        from lengthwise.predictors.text import Design

        design = Design.of(prompts, self.seed, self._row_weights)
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
