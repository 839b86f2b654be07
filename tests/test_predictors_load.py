"""From a spelling or a folder to a predictor; what is neither is told in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.predictors.baseline import Constant

PROMPTS = [f"Write {'a story' if i % 2 else 'one word'} number {i}" for i in range(40)]
LENGTHS = np.array([300.0 + i if i % 2 else 5.0 + i % 7 for i in range(40)])


def test_none_is_no_predictor_and_a_predictor_stays_itself() -> None:
    assert load_predictor("none") is None and load_predictor(None) is None
    mine = Constant(tokens=3)
    assert load_predictor(mine) is mine


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("orcale", "unknown predictor 'orcale'; did you mean 'oracle'"),
        ("constant:tokns=2", "unknown option 'tokns' of predictor 'constant'; did you mean"),
        ("constant:tokens", "expected name=value, not 'tokens'"),
        ("ridge:target=rnk", "unknown target 'rnk'; did you mean 'rank'"),
        ("./no/such/folder", "is no saved predictor: it does not exist"),
    ],
)
def test_bad_spellings_are_one_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_predictor(spec)
    assert "\n" not in str(caught.value)


def test_an_unfitted_predictor_says_how_to_train_it() -> None:
    with pytest.raises(InputError, match="lengthwise train predictor DATA --model ridge --out DIR"):
        load_predictor("ridge").predict(["a"])  # type: ignore[union-attr]


def test_a_folder_that_is_no_predictor(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no predictor\.json"):
        load_predictor(tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is no predictor; it is left as it is"):
        Constant().save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: text.replace('"format": 1', '"format": 99'), "has format 99"),
        (lambda text: "[1, 2]", r"has format \[1, 2\]"),
        (lambda text: text.replace('"ridge"', '"rigde"'), "unknown predictor 'rigde'"),
        (lambda text: text.replace('"target": "exact"', '"target": "rnk"'), "unknown target 'rnk'"),
        (lambda text: text.replace('"terms"', '"word"'), "is damaged: it has no 'terms'"),
        (lambda text: text.replace('"seed"', '"sead"'), "is damaged: TypeError"),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(tmp_path: Path, damage: object, message: str) -> None:
    make_predictor("ridge").fit(PROMPTS, LENGTHS).save(tmp_path / "p")
    told = tmp_path / "p" / "predictor.json"
    told.write_text(damage(told.read_text()))  # type: ignore[operator]
    with pytest.raises((InputError, UnknownNameError), match=message) as caught:
        load_predictor(tmp_path / "p")
    assert "\n" not in str(caught.value)


def test_truncated_or_foreign_arrays_are_refused(tmp_path: Path) -> None:
    make_predictor("gbdt").fit(PROMPTS, LENGTHS).save(tmp_path / "p")
    arrays = tmp_path / "p" / "arrays.safetensors"
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is damaged"):
        load_predictor(tmp_path / "p")
    arrays.unlink()
    with pytest.raises(InputError, match="is damaged"):
        load_predictor(tmp_path / "p")


def test_trees_that_would_never_end_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    make_predictor("gbdt").fit(PROMPTS, LENGTHS).save(tmp_path / "p")
    arrays = load_file(tmp_path / "p" / "arrays.safetensors")
    arrays["trees.0.left"] = np.zeros_like(arrays["trees.0.left"])  # back to the root, for ever
    save_file(arrays, tmp_path / "p" / "arrays.safetensors")
    with pytest.raises(InputError, match="form trees"):
        load_predictor(tmp_path / "p")


def test_saving_again_replaces_and_an_unwritable_place_is_told(tmp_path: Path) -> None:
    Constant(tokens=10).save(tmp_path / "p")
    Constant(tokens=20).save(tmp_path / "p")
    assert load_predictor(tmp_path / "p").predict(["a"]).predicted_tokens[0] == 20  # type: ignore[union-attr]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't write the predictor"):
        Constant().save(tmp_path / "file" / "p")


def test_a_saved_predictor_needs_no_training_library(tmp_path: Path) -> None:
    """Loading and predicting imports neither scikit-learn nor scipy nor torch."""
    for name in ("ridge", "gbdt"):
        make_predictor(name).fit(PROMPTS, LENGTHS).save(tmp_path / name)
        code = (
            "import sys\n"
            "for name in ('sklearn', 'scipy', 'torch', 'pandas'): sys.modules[name] = None\n"
            "from lengthwise.predictors import load_predictor\n"
            f"print(load_predictor({str(tmp_path / name)!r}).predict({PROMPTS[:5]!r})"
            ".predicted_tokens.tolist())"
        )
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        here = load_predictor(tmp_path / name)
        assert here is not None
        assert json.loads(run.stdout) == here.predict(PROMPTS[:5]).predicted_tokens.tolist()


def test_importing_the_part_is_light() -> None:
    code = (
        "import sys, lengthwise.predictors\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'pandas', 'numba', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
