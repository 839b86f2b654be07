"""Training and evaluating a predictor as the command line does, on files of our own."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from lengthwise.errors import InputError
from lengthwise.eval.terminal import console, prediction_view
from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.serving.workload import Prompts, read_prompts
from lengthwise.training.predictor import evaluate_predictor, train_predictor

KINDS = {"Answer yes or no": 4, "Write a long story": 600, "Translate this": 40}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "responses.jsonl.gz"
    rows = []
    for i in range(300):
        kind = list(KINDS)[rng.integers(3)]
        for model, factor in (("terse", 0.5), ("chatty", 2.0)):
            length = int(np.ceil(KINDS[kind] * factor * np.exp(rng.normal(0, 0.4))))
            text = f"{kind}: case {i}"
            rows.append(
                {"prompt": text, "model": model, "prompt_tokens": 6, "output_tokens": length}
            )
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


def shown(report: dict[str, Any]) -> str:
    """What the terminal says of it."""
    screen = console()
    with screen.capture() as said:
        screen.print(prediction_view(report))
    return said.get()


def test_the_report_is_of_unseen_prompts_and_repeats(data: Path, tmp_path: Path) -> None:
    report = train_predictor(data, answers_by="chatty", out=tmp_path / "p")
    assert report["train"]["prompts"] + report["test"]["prompts"] == 300
    rows = read_prompts(data, model="chatty")
    train, test = rows.split("train"), rows.split("test")
    assert not set(train.prompt) & set(test.prompt)
    predictor = load_predictor(tmp_path / "p")
    assert predictor is not None
    said = predictor.predict(list(test.prompt)).predicted_tokens
    tau = report["metrics"]["kendall_tau"]
    assert tau["value"] == pytest.approx(kendalltau(said, test.output_tokens).statistic)
    assert tau["low"] < tau["value"] < tau["high"] and tau["value"] > 0.6
    again = evaluate_predictor(tmp_path / "p", data)
    assert again["metrics"] == report["metrics"] and again["test"] == report["test"]
    assert json.loads((tmp_path / "p" / "report.json").read_text())["metrics"] == report["metrics"]


def test_the_same_seed_writes_the_same_bytes(data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_predictor(
            data, answers_by="terse", model="gbdt", target="bucket", max_rows=200,
            options={"buckets": 3}, out=tmp_path / name, command="train", seed=5,
        )  # fmt: skip
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == [
        "README.md", "arrays.safetensors", "config.json", "predictor.json", "report.json",
    ]  # fmt: skip
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["command"] == "train" and "numpy" in config["versions"]


@pytest.mark.parametrize("model", ["constant", "prompt-length"])
def test_baselines_train_too(data: Path, tmp_path: Path, model: str) -> None:
    report = train_predictor(data, answers_by="terse", model=model, out=tmp_path / "p")
    assert abs(report["metrics"]["kendall_tau"]["value"]) < 0.2
    with pytest.raises(InputError, match="has the target exact alone"):
        train_predictor(data, answers_by="terse", model=model, target="rank")


def test_an_encoder_at_a_path_and_checkpoints_are_gone_at_the_end(
    data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    short = {"epochs": 1, "max_tokens": 16}
    train_predictor(
        data,
        answers_by="terse",
        model="transformer",
        max_rows=60,
        out=tmp_path / "a",
        options=short,
    )
    report = train_predictor(
        data, answers_by="terse", model=str(tmp_path / "a" / "encoder"), target="rank",
        max_rows=60, out=tmp_path / "b", options={**short, "frozen": True},
    )  # fmt: skip
    assert set(report["metrics"]) >= {"kendall_tau", "mae", "bucket_accuracy"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_oracles_are_evaluated_by_their_spelling(data: Path) -> None:
    report = evaluate_predictor("oracle", data, answers_by="chatty", split="all")
    assert report["metrics"]["kendall_tau"]["value"] == pytest.approx(1)
    assert report["metrics"]["mae"]["value"] == 0 and report["test"]["rows"] == 300
    noisy = evaluate_predictor("noisy-oracle:tau=0.5", data, answers_by="chatty", split="all")
    assert noisy["metrics"]["kendall_tau"]["value"] == pytest.approx(0.5, abs=0.01)


def prompts(n: int, **columns: Any) -> Prompts:
    values: dict[str, Any] = {
        "prompt": np.array([f"prompt {i}" for i in range(n)], dtype=object),
        "prompt_tokens": np.full(n, 3),
        "output_tokens": np.arange(1, n + 1),
        "censored": np.zeros(n, dtype=bool),
    }
    return Prompts(**{**values, **columns})


def test_censored_answers_are_trained_on_and_not_measured() -> None:
    cut = np.arange(200) >= 150
    report = train_predictor(prompts(200, censored=cut))
    assert report["train"]["censored"] + report["test"]["censored"] == 50
    assert f"{report['train']['censored']} of them cut short and counted" in shown(report)
    assert f"{report['test']['censored']} of them cut short and left out" in shown(report)
    all_cut = prompts(30, censored=np.arange(30) > 0)
    with pytest.raises(InputError, match="metrics need 2 whole answers; the all split has 1"):
        evaluate_predictor("oracle", all_cut, split="all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "rigde"}, "unknown predictor model 'rigde'; did you mean 'ridge'"),
        ({"model": "oracle"}, "'oracle' learns nothing"),
        ({"model": "./no/encoder"}, "no pretrained encoder './no/encoder'"),
        ({"target": "rnk"}, "unknown target 'rnk'; did you mean 'rank'"),
        ({"answers_by": "chaty"}, "unknown model 'chaty' in .*; did you mean 'chatty'"),
        ({"answers_by": None}, r"holds answers of 2 models \(chatty, terse\); name the one"),
        ({"test_share": 1.0}, r"test_share must lie in \[0, 1\)"),
        ({"max_rows": 0}, "max_rows must be 1 or more"),
        ({"max_rows": 8}, "too few to learn from"),
        ({"options": {"buckts": 3}}, "unknown option 'buckts' of predictor 'ridge'; did you mean"),
        ({"target": "bucket", "options": {"buckets": 1}}, "buckets must be 2 or more"),
    ],
)
def test_bad_input_is_told_in_one_line(data: Path, options: dict[str, Any], message: str) -> None:
    if options.get("model", "").startswith("."):
        pytest.importorskip("torch")
    with pytest.raises(InputError, match=message) as caught:
        train_predictor(data, **{"answers_by": "chatty", **options})
    assert "\n" not in str(caught.value)


def test_nothing_is_lost_where_results_cannot_go(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="it holds other files"):
        train_predictor(data, answers_by="terse", out=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="no predictor to evaluate"):
        evaluate_predictor("none", data)


def test_a_test_share_of_zero_trains_on_everything(data: Path, tmp_path: Path) -> None:
    report = train_predictor(data, answers_by="chatty", test_share=0, out=tmp_path / "p")
    assert report["train"]["rows"] == 300 and report["test"]["rows"] == 0
    assert "metrics" not in report
    again = evaluate_predictor(tmp_path / "p", data)
    assert again["split"] == "all" and again["trained_on"]
    assert "it was trained on prompts among these" in shown(again)
    with pytest.raises(InputError, match="trained on all prompts: there is no test split"):
        evaluate_predictor(tmp_path / "p", data, split="test")
    with pytest.raises(InputError, match="was trained on: its card takes results on others"):
        evaluate_predictor(tmp_path / "p", data, card=True)


def test_all_of_another_file_is_evaluated_and_half_of_a_copy(data: Path, tmp_path: Path) -> None:
    train_predictor(data, answers_by="chatty", out=tmp_path / "p")
    (tmp_path / "copy.jsonl.gz").write_bytes(data.read_bytes())
    copied = evaluate_predictor(tmp_path / "p", tmp_path / "copy.jsonl.gz")
    assert copied["split"] == "test" and copied["test"]["rows"] < 200
    assert not copied["trained_on"] and "others" in shown(copied)
    assert evaluate_predictor(tmp_path / "p", data, split="train")["trained_on"]
    other = evaluate_predictor(tmp_path / "p", prompts(50))
    assert other["split"] == "all" and other["test"]["rows"] == 50 and not other["trained_on"]
    # of several models in a file only those that are learned are told
    assert not any("models together" in told for told in copied["notices"])
    both = evaluate_predictor(tmp_path / "p", data, answers_by="all")
    assert any("answers of 2 models together (chatty, terse)" in told for told in both["notices"])


def test_a_file_that_names_no_models_has_none_to_pick() -> None:
    with pytest.raises(InputError, match="does not say which model answered: no 'gpt' to pick"):
        evaluate_predictor("constant:tokens=9", prompts(50), answers_by="gpt")


def test_empty_answers_are_left_out_and_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i}", "response": "word " * (i % 9 + 1)} for i in range(60)]
    rows += [{"prompt": "say nothing", "response": None}, {"prompt": "nor now", "response": ""}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    report = train_predictor(path)
    assert report["train"]["rows"] + report["test"]["rows"] == 60
    assert any("dropped 2 requests without output" in told for told in report["notices"])
    found = train_predictor(prompts(60, output_tokens=np.arange(60)))
    assert "prompts: left out 1 empty answers" in found["notices"]


def test_several_sources_count_alike_or_as_they_are_told_to() -> None:
    few = prompts(40, output_tokens=np.arange(40) % 3 + 400, name="few")
    many = prompts(400, output_tokens=np.arange(400) % 3 + 4, name="many")
    for weights, low, high in ((None, 25, 60), ([1, 99], 4, 6), ([99, 1], 350, 402)):
        assert low <= _typical([few, many], weights) <= high
    assert set(train_predictor([few, many])["by_source"]) == {"few", "many"}
    with pytest.raises(InputError, match="source_weights has 1 numbers, for 2 sources"):
        train_predictor([few, many], source_weights=[1])


def _typical(parts: list[Prompts], weights: list[float] | None) -> float:
    """What a predictor says that can but learn one length."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        train_predictor(
            parts, test_share=0, source_weights=weights, out=f"{folder}/p", options={"alpha": 1e6}
        )
        predictor = load_predictor(f"{folder}/p")
        assert predictor is not None
        return float(np.median(predictor.predict(["prompt 12"]).predicted_tokens))


def test_all_models_of_a_file_are_learned_each_with_its_effect(data: Path) -> None:
    pooled = train_predictor(data, answers_by="all")["metrics"]["kendall_tau"]
    blind = read_prompts(data)
    without = train_predictor(Prompts(blind.prompt, blind.prompt_tokens, blind.output_tokens,
                                      blind.censored))  # fmt: skip
    assert pooled["value"] > without["metrics"]["kendall_tau"]["value"] + 0.05


def test_several_answers_to_a_prompt_count_as_the_mean_of_their_logs_and_by_their_spread() -> None:
    rng = np.random.default_rng(3)
    asked = [f"{list(KINDS)[i % 3]}: case {i}" for i in range(90)]
    logs = np.log([KINDS[text.partition(":")[0]] for text in asked])[:, None]
    samples = np.exp(logs + 2 + rng.normal(0, 0.8, (90, 6)))
    each = [text for text in asked for _ in range(6)]
    mean = np.exp(np.log(samples).mean(axis=1))
    many = make_predictor("ridge", alpha=3.0).fit(each, samples.ravel())
    once = make_predictor("ridge", alpha=3.0).fit(asked, mean)
    assert many.predict(asked).predicted_tokens == pytest.approx(
        once.predict(asked).predicted_tokens, rel=1e-3
    )
    wide = make_predictor("ridge", target="quantile").fit(each, samples.ravel()).predict(asked)
    narrow = make_predictor("ridge", target="quantile").fit(asked, mean).predict(asked)
    spread = [np.log(np.divide(*one.interval(0.9)[::-1])).mean() for one in (wide, narrow)]
    assert spread[0] > 1.5 * spread[1]


def test_max_rows_draws_so_many_rows_by_the_seed(data: Path) -> None:
    rows = [train_predictor(data, answers_by="terse", max_rows=80, seed=s) for s in (0, 0, 1)]
    assert all(one["train"]["rows"] + one["test"]["rows"] == 80 for one in rows)
    assert rows[0]["sketch"] == rows[1]["sketch"] != rows[2]["sketch"]


@pytest.mark.parametrize(("model", "target"), [("ridge", "quantile"), ("gbdt", "exact")])
def test_no_model_hears_the_lengths_that_it_is_measured_on(
    model: str, target: str, tmp_path: Path
) -> None:
    """The test split's answers in another order: the report moves, the predictor does not."""
    rng = np.random.default_rng(7)
    kinds = rng.integers(0, 3, 160)
    rows = Prompts(
        prompt=np.array([f"{list(KINDS)[k]}: case {i}" for i, k in enumerate(kinds)], dtype=object),
        prompt_tokens=np.full(160, 6),
        output_tokens=np.rint(np.exp(rng.normal(np.array([1.5, 6, 3.5])[kinds], 0.4))).astype(int)
        + 1,
        censored=np.zeros(160, dtype=bool),
    )
    tested = np.isin(rows.prompt, rows.split("test", 0.5).prompt)
    assert 40 < tested.sum() < 120
    moved = rows.output_tokens.copy()
    moved[tested] = rng.permutation(moved[tested]) * 7
    made, reports = [], []
    for name, given in (("a", rows), ("b", replace(rows, output_tokens=moved))):
        reports.append(train_predictor(given, model=model, target=target, out=tmp_path / name))
        made.append(load_predictor(str(tmp_path / name)))
    assert reports[0]["metrics"] != reports[1]["metrics"]
    asked = [*rows.prompt[:40], "Something else"]
    for one, other in zip(*(vars(each.predict(asked)).values() for each in made), strict=True):  # type: ignore[union-attr]
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)
