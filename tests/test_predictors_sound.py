"""A saved predictor that was tampered with is refused in one line, or it predicts."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lengthwise.context import Context
from lengthwise.errors import InputError
from lengthwise.predictors import load_predictor, make_predictor, sound

MUTATIONS = 80  # of each
PROMPTS = [f"{'long' if i % 2 else 'short'} story number {i} of {i % 7}" for i in range(80)]
LENGTHS = np.array([400.0 if i % 2 else 20.0 for i in range(80)]) + np.arange(80) % 9


@pytest.fixture(scope="module", params=["ridge-exact", "ridge-bucket", "ridge-quantile",
                                        "ridge-rank", "gbdt-quantile"])  # fmt: skip
def saved(request, tmp_path_factory) -> Path:
    name, target = request.param.split("-")
    path = tmp_path_factory.mktemp("saved") / "p"
    context = Context(model=[f"m{i % 3}" for i in range(80)])
    make_predictor(name, target=target).fit(PROMPTS, LENGTHS, context=context).save(path)
    return path


def mutated(described: dict, arrays: dict, rng: np.random.Generator) -> None:
    """One thing is changed: an array is lost, cut, spoiled or retyped, or a value of the JSON."""
    if rng.random() < 0.6:
        key = rng.choice(sorted(arrays))
        kind, value = rng.integers(7), arrays[key]
        if kind == 0:
            del arrays[key]
        elif kind == 1:
            arrays[key] = value[:-1]
        elif kind == 2 and value.size:
            arrays[key] = value.copy()
            spoiled = [np.nan, np.inf, -1e300, 0] if value.dtype.kind == "f" else [-1, 2**40, 0]
            arrays[key].flat[rng.integers(value.size)] = rng.choice(spoiled)
        elif kind == 3:
            arrays[key] = value.reshape(-1, 1)
        elif kind == 4:
            arrays[key] = value.astype(rng.choice([np.float32, np.int8, np.bool_, np.uint64]))
        elif kind == 5:
            arrays[key] = np.concatenate((value, value))
        else:
            arrays[key] = -value
        return
    holder = described
    while True:
        key = rng.choice(sorted(holder))
        if isinstance(holder[key], dict) and holder[key] and rng.random() < 0.8:
            holder = holder[key]
            continue
        break
    choices = [None, -1, 1e9, "x", [], {}, [1, 2], True, ["a"] * 3]
    if rng.random() < 0.3:
        del holder[key]
    else:
        holder[key] = choices[rng.integers(len(choices))]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_whatever_is_changed_it_is_refused_or_predicts(saved: Path, tmp_path: Path) -> None:
    described = (saved / "predictor.json").read_text()
    arrays = load_file(saved / "arrays.safetensors")
    refused = 0
    for seed in range(MUTATIONS):
        rng = np.random.default_rng(seed)
        fresh, numbers = json.loads(described), dict(arrays)
        mutated(fresh, numbers, rng)
        path = tmp_path / str(seed)
        path.mkdir()
        (path / "predictor.json").write_text(json.dumps(fresh))
        save_file({k: np.ascontiguousarray(v) for k, v in numbers.items()},
                  path / "arrays.safetensors")  # fmt: skip
        try:
            loaded = load_predictor(path)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        assert loaded is not None
        for context in ({}, {"context": Context(model=["m1"] * 80)}):
            said = loaded.predict(PROMPTS, **context).predicted_tokens
            assert said.shape == (80,) and np.isfinite(said).all()
    assert MUTATIONS * 0.3 < refused < MUTATIONS  # most are noticed, some make no difference


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "more.json").symlink_to("/etc/hostname"), "more.json is a link"),
        (lambda p: os.mkfifo(p / "pipe"), "pipe is no plain file"),
        (lambda p: (p / "modeling.py").write_text("1"), "may hold code, which is never run"),
        (lambda p: (p / "weights.bin").write_bytes(b"1"), "may hold code"),
        (lambda p: (p / "config.json").write_text('{"auto_map": {"A": "m.A"}}'), "auto_map"),
        (
            lambda p: (p / "config.json").write_text('{"t": {"attn_implementation": "a/b"}}'),
            "attn_implementation of config.json asks for code, 'a/b'",
        ),
        (
            lambda p: (p / "model.safetensors.index.json").write_text(
                '{"weight_map": {"w": "../../secret.safetensors"}}'
            ),
            "names '../../secret.safetensors', no shard here",
        ),
        (lambda p: (p / "config.json").write_text("{"), "config.json is no JSON"),
    ],
)
def test_what_runs_or_leads_elsewhere_is_refused(saved, tmp_path, change, message) -> None:
    shutil.copytree(saved, tmp_path / "p")
    load_predictor(tmp_path / "p")
    change(tmp_path / "p")
    with pytest.raises(InputError, match=message) as caught:
        load_predictor(tmp_path / "p")
    assert "\n" not in str(caught.value)


def test_sizes_are_capped(saved, tmp_path, monkeypatch) -> None:
    from lengthwise.predictors import sound

    monkeypatch.setattr(sound, "MOST_JSON_BYTES", 10)
    with pytest.raises(InputError, match=r"predictor.json has \d+ bytes"):
        load_predictor(saved)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "x.index.json", "a.json"])
@pytest.mark.parametrize("content", ["[1, 2]", '"text"', "7", "null"])
def test_json_that_is_no_object_asks_for_nothing(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert sound.check_folder(tmp_path) is None  # it raises for what is asked


class Says:
    """A predictor that says what it is told to, without context and with it."""

    needs = frozenset({"prompt"})

    def __init__(self, plain, known=None) -> None:
        self.plain, self.known, self.asked = plain, known, []
        self.uses = ("model",) if known is not None else ()

    def predict(self, prompts, *, prompt_tokens, context=None):
        self.asked.append(context)
        assert len(prompts) == len(prompt_tokens) and "" in prompts
        said = self.plain if context is None else self.known
        if isinstance(said, Exception):
            raise said
        return SimpleNamespace(predicted_tokens=np.log(np.array(said, dtype=float)))


FINE = [3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("plain", "known", "why"),
    [
        (FINE, None, ""),
        (FINE, FINE, ""),
        (FINE, [3.0, 4.0], "it predicts no lengths"),
        ([3.0, np.nan, 5.0], None, "it predicts no lengths"),
        ([3.0, np.inf, 5.0], None, "it predicts no lengths"),
        ([3.0, 0.0, 5.0], None, "divide by zero"),
        ([3.0, -1.0, 5.0], FINE, "invalid value"),
        (KeyError("knots"), None, "KeyError"),
        (FINE, InputError("no model m"), "no model m"),
    ],
)
def test_a_predictor_says_something_finite_with_and_without_context(plain, known, why) -> None:
    one = Says(plain, known)
    if why:
        with pytest.raises(InputError, match=f"^predictor 'p' is damaged: .*{why}"):
            sound.check_predicts(one, Path("p"))
        return
    sound.check_predicts(one, Path("p"))
    assert [context is None for context in one.asked] == [True, False][: 1 + (known is not None)]
    if known is not None:
        assert list(one.asked[1].model) == ["m"] * 3


def test_a_predictor_that_reads_more_than_prompts_is_not_asked() -> None:
    one = Says(KeyError("asked"))
    one.needs = frozenset({"prompt", "hidden_states"})
    sound.check_predicts(one, Path("p"))
    assert one.asked == []


def test_sizes_in_a_configuration_have_an_end(tmp_path: Path) -> None:
    def said(**config) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        sound.check_folder(tmp_path)

    said(num_hidden_layers=1000, hidden_size=2**31 - 1, vocab_size=-(2**31 - 1))
    for config in ({"num_hidden_layers": 1001}, {"hidden_size": 2**31}, {"x": float("nan")}):
        with pytest.raises(InputError, match=f"{next(iter(config))} of config.json is beyond"):
            said(**config)
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.index.json").write_text(json.dumps({"weight_map": {"a": "b.safetensors"}}))
    with pytest.raises(InputError, match=r"names .b\.safetensors., no shard here"):
        sound.check_folder(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"")
    sound.check_folder(tmp_path)
    nested = {"a": [{"b": {"attn_implementation": "kernels/x"}}]}
    (tmp_path / "generation_config.json").write_text(json.dumps(nested))
    with pytest.raises(InputError, match=r"attn_implementation of .* asks for code, 'kernels/x'"):
        sound.check_folder(tmp_path)
