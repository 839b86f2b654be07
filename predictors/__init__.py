"""Output-length predictors: from a prompt to how long its answer will be."""

from lengthwise.predictors.load import load_predictor, make_predictor

__all__ = ["load_predictor", "make_predictor"]
