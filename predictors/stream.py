"""A predictor of requests as they come, which notices when they are another workload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import ArrayLike

from lengthwise.context import Context
from lengthwise.prediction import Prediction
from lengthwise.predictors import columns
from lengthwise.predictors.novelty import Novelty

if TYPE_CHECKING:
    from lengthwise.predictors.learned import Learned


class Stream:
    """``Learned`` in the order of arrival: once the last prompts' mean shape has moved away from
    the training prompts', it abstains from every request until they are back.

    ``predict`` depends on what it was asked before; its other methods are the predictor's own.
    """

    def __init__(self, predictor: Learned, novelty: Novelty) -> None:
        self.predictor, self._novelty, self._window = predictor, novelty, novelty.window()
        self.needs, self.uses = predictor.needs, predictor.uses

    def fit(self, prompts: Sequence[str], output_tokens: ArrayLike, **given: Any) -> Self:
        """Fits the predictor, and knows no workload yet."""
        self.predictor.fit(prompts, output_tokens, **given)
        assert self.predictor.novelty_ is not None
        self._novelty = self.predictor.novelty_
        self._window = self._novelty.window()
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
        text = columns.texts(prompts, of=self.predictor.name)
        shapes = self._novelty.shapes(text)
        return self.predictor.told(text, context, (shapes, self._window.score(shapes)))

    def save(self, folder: Any) -> None:
        """Writes the predictor."""
        self.predictor.save(folder)
