"""From a predictor and a workload to its predictions, wherever they are needed."""

from __future__ import annotations

from pathlib import Path

from lengthwise.context import Context, given
from lengthwise.errors import InputError
from lengthwise.prediction import Predictions
from lengthwise.predictors.load import load_predictor
from lengthwise.predictors.oracle import NoisyOracle
from lengthwise.protocols import Predictor
from lengthwise.served_text import asked_texts
from lengthwise.workload import Workload

PredictorLike = str | Path | Predictor | None
ORACLES = "oracle, or noisy-oracle:tau=0.5"


def predictor_label(predictor: PredictorLike) -> str:
    """What tables call a predictor: its spelling, a folder's name, a class's name."""
    if predictor is None or predictor == "none":
        return "none"
    if isinstance(predictor, str | Path):
        text = str(predictor)
        return Path(text).name if "/" in text.partition(":")[0] else text
    return type(predictor).__name__.lower()


def abstention_notice(share: float, label: str) -> str:
    """What is said once of a predictor that did not order a share of the requests; "" for none."""
    if share <= 0:
        return ""
    told = "fewer than 1%" if share < 0.005 else f"{share:.0%}"
    return (
        f"{label} abstained from {told} of the requests, too unlike what it was trained on; they "
        "count as of typical length, in the order of arrival"
    )


def predict(predictor: PredictorLike, workload: Workload, seed: int = 0) -> Predictions | None:
    """Predicted answer lengths of a workload's n requests, or None without a predictor.

    None exceeds the workload's ``max_tokens``, where it has them. Training, evaluation and the
    command line all ask here. A noisy oracle draws its noise from ``seed``, the run's or the
    episode's, unless it names one itself. Raises ``InputError`` where the predictor reads a column
    that the workload lacks.
    """
    loaded = load_predictor(predictor)
    if loaded is None:
        return None
    if isinstance(loaded, NoisyOracle):
        loaded = loaded.seeded(seed)
    label = predictor_label(predictor)
    for column in sorted(loaded.needs):
        if column not in workload:
            what = "the text of prompts" if column == "prompt" else f"column {column!r}"
            raise InputError(
                f"predictor {label!r} reads {what}, which {workload.name} does not have; "
                f"without it use --predictor {ORACLES}"
            )

    stream = getattr(loaded, "stream", None)
    made = (loaded if stream is None else stream()).predict(
        asked_texts(workload.columns) if "prompt" in loaded.needs else [],
        prompt_tokens=workload["prompt_tokens"],
        output_tokens=workload["output_tokens"] if "output_tokens" in loaded.needs else None,
        **given(loaded, Context.of(workload.columns)),
    )
    found = made.of_run()
    return found.capped(workload["max_tokens"]) if "max_tokens" in workload else found
