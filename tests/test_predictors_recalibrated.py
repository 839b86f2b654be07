"""A predictor whose world has moved: seen by `evaluate predictor`, set right without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from lengthwise.errors import InputError
from lengthwise.eval.prediction_windows import WINDOW, verdict, windowed
from lengthwise.kendall import tau_error
from lengthwise.prediction import Prediction
from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.training.cli import main
from lengthwise.training.predictor import evaluate_predictor, train_predictor

WORDS = [f"word{i}" for i in range(60)]
TARGETS = ("exact", "bucket", "rank", "quantile")


def rows(
    n: int, seed: int, factor: float = 1.0, noise: float = 0.5
) -> tuple[list[str], np.ndarray]:
    """Prompts whose words tell the length, times ``factor``."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(WORDS), (n, 8))
    logs = 4 + np.log(factor) + 0.025 * (drawn - 30).sum(axis=1) + noise * rng.normal(size=n)
    return [" ".join(WORDS[k] for k in row) for row in drawn], np.ceil(np.exp(logs))


def covered(predictor: Any, asked: list[str], length: np.ndarray) -> float:
    low, high = predictor.predict(asked).interval(0.9)
    return float(((low <= length) & (length <= high)).mean())


@pytest.fixture(scope="module", params=TARGETS)
def trained(request: Any) -> Any:
    return make_predictor("ridge", target=request.param).fit(*rows(400, 1))


def test_coverage_of_a_moved_workload_returns_and_the_order_stays(
    trained: Any, tmp_path: Path
) -> None:
    asked, length = rows(1000, 2, factor=3.0, noise=0.8)
    assert covered(trained, asked, length) < 0.82
    made = trained.recalibrated(*rows(250, 3, factor=3.0, noise=0.8))
    assert covered(made, asked, length) == pytest.approx(0.9, abs=0.07)
    said, was = made.predict(asked), trained.predict(asked)
    if trained.target != "bucket":  # whose order is that of mean lengths, which move
        assert kendalltau(said.order, was.order).statistic > 0.97
    # as far from the mean as before the world moved
    bias = np.log(length.mean() / said.predicted_tokens.mean())
    assert abs(bias) < 0.5 < np.log(length.mean() / was.predicted_tokens.mean())
    made.save(tmp_path / "made")
    again: Any = load_predictor(tmp_path / "made")
    assert (again.predict(asked).predicted_tokens == said.predicted_tokens).all()
    assert (again.predict(asked).interval()[1] == said.interval()[1]).all()


def test_answers_that_were_cut_count_as_at_least_so_long() -> None:
    trained: Any = make_predictor("ridge").fit(*rows(400, 1))
    asked, length = rows(400, 4, factor=3.0)
    cut = length > 200
    made = trained.recalibrated(asked, np.minimum(length, 200), censored=cut)
    fooled = trained.recalibrated(asked, np.minimum(length, 200))
    truth = np.exp(np.log(length).mean())
    middle, low = (
        np.exp(np.log(one.predict(asked).predicted_tokens).mean()) for one in (made, fooled)
    )
    assert abs(np.log(middle / truth)) < 0.1 and low < 0.75 * truth
    assert covered(made, asked, length) > covered(fooled, asked, length) + 0.1


def test_what_orders_is_familiar_from_then_on_and_what_does_not_is_left_alone() -> None:
    trained: Any = make_predictor("ridge").fit(*rows(400, 1))
    asked, length = rows(120, 5)
    elsewhere = [f"{text}!? " * 30 for text in asked]
    assert trained.stream().predict(elsewhere).abstained[-50:].all()
    made = trained.recalibrated(elsewhere, length)
    assert made.stream().predict(elsewhere).abstained[-50:].mean() < 0.2
    shuffled = np.random.default_rng(0).permutation(length)
    told = trained.recalibrated(elsewhere, shuffled * 7)
    assert told.stream().predict(elsewhere).abstained[-50:].all()
    assert told.stream().predict(elsewhere).predicted_tokens[-1] == pytest.approx(
        np.median(shuffled * 7), rel=0.02
    )
    with pytest.raises(InputError, match="30 answers or more, not 12"):
        trained.recalibrated(asked[:12], length[:12])


def test_models_effects_stay_when_all_of_them_move() -> None:
    from lengthwise.context import Context

    asked, length = rows(500, 6)
    who = np.where(np.arange(500) % 2 == 0, "terse", "chatty").astype(object)
    length = np.ceil(length * np.where(who == "terse", 1, 4))
    context = Context(model=who, max_tokens=np.full(500, 1e6))
    trained: Any = make_predictor("ridge").fit(asked, length, context=context)
    made = trained.recalibrated(asked, length * 2, context=context)
    ratio = (
        made.predict(asked, context=context).predicted_tokens
        / trained.predict(asked, context=context).predicted_tokens
    )
    assert np.exp(np.log(ratio).mean()) == pytest.approx(2, rel=0.05)


def drifting(path: Path) -> Path:
    """A log in its order: as trained for 600 answers, then three times as long."""
    asked, length = rows(600, 7)
    later, longer = rows(900, 8, factor=3.0, noise=0.8)
    with path.open("w") as out:
        for text, tokens in zip(asked + later, [*length, *longer], strict=True):
            row = {"prompt": text, "prompt_tokens": 8, "output_tokens": int(tokens)}
            out.write(json.dumps(row) + "\n")
    return path


def test_the_command_line_tells_of_drift_and_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").mkdir()
    asked, length = rows(400, 1)
    lines = [
        json.dumps({"prompt": text, "prompt_tokens": 8, "output_tokens": int(tokens)})
        for text, tokens in zip(asked, length, strict=True)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    log = drifting(tmp_path / "log.jsonl")
    folder, fresh = str(tmp_path / "p"), str(tmp_path / "p2")
    train_predictor(tmp_path / "train.jsonl", out=folder)
    found = evaluate_predictor(folder, log)
    first, last = found["windows"][0], found["windows"][-1]
    assert first["coverage"] > 0.84 and last["coverage"] < 0.7
    assert first["factor"] == pytest.approx(1, abs=0.15)
    assert last["factor"] == pytest.approx(3, rel=0.15)
    assert found["verdict"].startswith("recalibrate it: 90% intervals cover")
    assert "its order holds" in found["verdict"]
    with pytest.raises(SystemExit) as ended:
        main(["train", "predictor", str(log), "--recalibrate", folder, "--out", fresh])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "before: τ" in told and "after: τ" in told
    report = json.loads(Path(fresh, "report.json").read_text())
    moved = report["recalibrated"]
    assert moved["from"] == "p" and moved["trained_on"].endswith("train.jsonl")
    assert moved["before"]["coverage"] < 0.8 < moved["after"]["coverage"]
    card = Path(fresh, "README.md").read_text()
    assert "recalibrated on" in card and "Before and after it was recalibrated" in card
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "predictor", fresh, str(log)])
    assert ended.value.code == 0
    assert "in 90% intervals" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--recalibrate", "constant"], "no predictor that learned from text"),
        (["--recalibrate", "P", "--model", "gbdt"], "keeps the model and the target"),
        (["--recalibrate", "P", "--set", "alpha=3"], "keeps its options"),
    ],
)
def test_bad_input_is_one_line(
    more: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_predictor("ridge").fit(*rows(60, 1)).save(tmp_path / "p")  # type: ignore[attr-defined]
    log = drifting(tmp_path / "log.jsonl")
    given = [str(tmp_path / "p") if one == "P" else one for one in more]
    with pytest.raises(SystemExit) as ended:
        main(["train", "predictor", str(log), *given, "--out", str(tmp_path / "q")])
    assert ended.value.code == 2 and told in capsys.readouterr().err
    assert not (tmp_path / "q").exists()


def test_windows_and_verdicts_of_known_errors() -> None:
    rng = np.random.default_rng(0)
    truth = np.exp(rng.normal(5, 1, 3 * WINDOW + 40))
    right = Prediction.exact(truth)
    found = windowed(right, truth)
    assert [w.rows for w in found] == [WINDOW, WINDOW, WINDOW + 40]
    assert all(w.kendall_tau == 1 and w.factor == 1 and w.coverage is None for w in found)
    assert verdict(found) == "it holds: its order holds (τ 1.00 ± 0.08)"
    noise = Prediction.exact(rng.permutation(truth))
    assert verdict(windowed(noise, truth)).startswith("train it anew: over the last 296 answers")
    half = Prediction.exact(np.where(np.arange(len(truth)) < 500, truth, truth / 2))
    assert "answers are 2.00 times what it predicts" in verdict(windowed(half, truth))
    fades = np.log(truth) + rng.normal(0, 1, len(truth)) * (np.arange(len(truth)) > 500) * 2
    assert "weakened from" in verdict(windowed(Prediction.exact(np.exp(fades)), truth))
    assert len(windowed(right.select(slice(0, 30)), truth[:30])) == 1


def test_the_error_of_tau_is_what_independent_pairs_show() -> None:
    rng = np.random.default_rng(1)
    taus = [kendalltau(*rng.normal(size=(2, 40))).statistic for _ in range(400)]
    assert np.std(taus) == pytest.approx(tau_error(40), rel=0.1)
