"""What learned predictors share, and the parts of the base, the probe and the hub, by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from torch import nn

from lengthwise.context import Context
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.prediction import Floats
from lengthwise.predictors import (
    base,
    effects,
    folder,
    hub,
    load,
    novelty,
    oracle,
    recalibration,
    spreads,
    targets,
)
from lengthwise.predictors.base import Base, Pretrained
from lengthwise.predictors.baseline import LengthStream, PromptLength
from lengthwise.predictors.censoring import drawn_logs, expected_logs
from lengthwise.predictors.columns import resampled
from lengthwise.predictors.effects import Effects
from lengthwise.predictors.features import SHAPE, TextFeatures, shape_of
from lengthwise.predictors.learned import FOLDS, Learned, folds_of
from lengthwise.predictors.novelty import Novelty
from lengthwise.predictors.probe import Probe, Watch, collected, decoder_layer, prompt_state
from lengthwise.predictors.shifting import rebucketed, shifted
from lengthwise.predictors.stream import Stream
from lengthwise.predictors.text import Design

RNG = np.random.default_rng(3)
COUNTS = np.arange(60) % 12 + 1
PROMPTS = [f"{' '.join(['word'] * n)} {k}" for k, n in enumerate(COUNTS)]
LENGTHS = np.ceil(8.0 * COUNTS * np.exp(RNG.normal(0, 0.2, 60)))
MODELS = ["a" if k % 2 else "b" for k in range(60)]


def told(**columns: Any) -> Context:
    return Context(**columns)


class Words(Learned):
    """Says the logarithm of ten tokens a word; what it learns from is kept as it came."""

    name = "words"
    unseen: ClassVar[slice] = slice(5, None)  # the rows that it tells of when it learns

    def _learn(self, prompts: list[str], length: Floats, target: targets.AnyTarget) -> Any:
        self.heard = (prompts, length, self._row_weights, target)
        self.outputs = target.outputs
        rows = np.arange(len(prompts))[self.unseen]
        return self._raw([prompts[row] for row in rows]), rows

    def _raw(self, prompts: list[str]) -> Floats:
        logs = np.log(10.0 * np.array([len(prompt.split()) for prompt in prompts]))[:, None]
        if self.target == "bucket":
            near = np.exp(-np.abs(logs - np.linspace(2, 5, self.outputs)))
            return np.asarray(near / near.sum(axis=1, keepdims=True))
        return np.asarray(logs + (np.linspace(-1, 1, self.outputs) if self.outputs > 1 else 0.0))

    def _state(self) -> Any:
        return {"mine": 1}, {"own": np.arange(3.0)}

    def _restore(self, state: Mapping[str, Any], arrays: Mapping[str, Any], path: Path) -> None:
        self.back = (state["mine"], arrays["own"].tolist(), path)
        self.outputs = self._fitted().outputs


class Heavy(Words):
    """The same, which reads the weights of rows."""

    weighs = True


def same(one: Any, other: Any) -> None:
    """Two predictions say the same."""
    for name in ("tokens", "quantiles", "probabilities", "rank", "edges", "abstained"):
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None), name
        if left is not None:
            np.testing.assert_allclose(left, right, rtol=1e-12, err_msg=name)


# What learned predictors share


def test_a_fit_is_calibrated_on_the_rows_that_it_did_not_see() -> None:
    made = Words(seed=3)
    assert made.fit(PROMPTS, LENGTHS) is made
    prompts, length, weights, target = made.heard
    assert prompts == PROMPTS
    np.testing.assert_allclose(length, LENGTHS, rtol=1e-12)
    assert weights.tolist() == [1.0] * 60 and not hasattr(made, "_row_weights")
    wanted = targets.make_target("exact", LENGTHS)
    assert type(target) is type(wanted)
    raw = made._raw(PROMPTS)
    calibrated = wanted.calibrated(raw[5:], LENGTHS[5:])
    same(made._fitted().prediction(raw), calibrated.prediction(raw))
    known = Novelty.fit(PROMPTS, LENGTHS, raw[5:], np.ones(60))
    for name, values in known.arrays().items():
        np.testing.assert_allclose(made.novelty_.arrays()[name], values, err_msg=name)  # type: ignore[union-attr]
    assert made.effects_ is None and made.shown_ is None
    same(
        made.predict(PROMPTS),
        known.judged(calibrated.prediction(raw), known.score(PROMPTS), calibrated),
    )


def test_rows_count_as_their_weights_say() -> None:
    weights = np.where(np.arange(60) < 20, 3.0, 0.5)
    heavy = Heavy().fit(PROMPTS, LENGTHS, weights=weights)
    assert heavy.heard[0] == PROMPTS
    np.testing.assert_allclose(heavy.heard[2], weights / weights.mean())
    drawn = Words(seed=5).fit(PROMPTS, LENGTHS, weights=weights, context=told(model=MODELS))
    rows = resampled(weights / weights.mean(), 5)
    assert drawn.heard[0] == [PROMPTS[row] for row in rows]
    assert drawn.heard[2].tolist() == [1.0] * 60
    plain = Words(seed=5).fit(
        [PROMPTS[row] for row in rows], LENGTHS[rows],
        context=told(model=[MODELS[row] for row in rows]),
    )  # fmt: skip
    np.testing.assert_allclose(drawn.heard[1], plain.heard[1])
    same(drawn.predict(PROMPTS), plain.predict(PROMPTS))
    # one weight for all is none
    same(Words().fit(PROMPTS, LENGTHS).predict(PROMPTS),
         Words().fit(PROMPTS, LENGTHS, weights=np.full(60, 7.0)).predict(PROMPTS))  # fmt: skip


def test_lengths_that_were_cut_are_filled_before_anything_is_learned() -> None:
    cut = np.arange(60) % 4 == 0
    for target in ("exact", "rank", "quantile", "bucket"):
        made = Words(target, seed=2).fit(PROMPTS, LENGTHS, censored=cut)
        design = Design.of(PROMPTS, 2, np.ones(60))
        filled, mu, sigma = expected_logs(np.log(LENGTHS), cut, design.held_out_mean)
        if target in ("quantile", "bucket"):
            filled = drawn_logs(np.log(LENGTHS), cut, mu, sigma, np.random.default_rng(2))
        np.testing.assert_allclose(made.heard[1], np.exp(filled), rtol=1e-12)
        np.testing.assert_allclose(made.heard[1][~cut], LENGTHS[~cut])
        assert (made.heard[1][cut] >= LENGTHS[cut] * (1 - 1e-9)).all()
    none = Words().fit(PROMPTS, LENGTHS, censored=np.zeros(60, bool))
    np.testing.assert_allclose(none.heard[1], LENGTHS, rtol=1e-12)


def test_whose_lengths_they_are_is_taken_off_and_put_on_again() -> None:
    """Model a answers four times as long as b."""
    lengths = LENGTHS * np.where(np.array(MODELS) == "a", 4.0, 1.0)
    context = told(model=MODELS)
    made = Heavy(seed=1).fit(PROMPTS, lengths, context=context)
    unseen = Design.of(PROMPTS, 1, np.ones(60)).held_out_mean
    effects = Effects.fit(np.log(lengths), context, unseen, np.ones(60))
    assert made.effects_ is not None
    assert made.effects_.intercepts == effects.intercepts
    names = effects.of_names(context, 60)
    np.testing.assert_allclose(made.heard[1], lengths / np.exp(names), rtol=1e-12)
    assert made.uses == {"max_tokens", "model"}
    said = made.predict(["word word", "word word"], context=told(model=["a", "b"]))
    known = effects.intercepts["model"]
    ratio = said.predicted_tokens[0] / said.predicted_tokens[1]
    assert math.log(ratio) == pytest.approx(known["a"] - known["b"])
    assert ratio == pytest.approx(4, rel=0.25)
    # whoever is not known is between them
    nobody = made.predict(["word word"]).predicted_tokens[0]
    assert said.predicted_tokens[1] < nobody < said.predicted_tokens[0]
    # nothing of context, or nothing that tells requests apart: as without
    plain = Heavy(seed=1).fit(PROMPTS, lengths)
    for less in (told(), told(model=["a"] * 60)):
        other = Heavy(seed=1).fit(PROMPTS, lengths, context=less)
        assert other.effects_ is None
        same(other.predict(PROMPTS), plain.predict(PROMPTS))
    for wrong in (told(model=["a"] * 59), told(model=["a"] * 61)):
        with pytest.raises(InputError, match=r"the context has .* rows, the prompts 60"):
            made.fit(PROMPTS, lengths, context=wrong)
        with pytest.raises(InputError, match=r"the context has .* rows, the prompts 60"):
            made.predict(PROMPTS, context=wrong)


def test_cut_lengths_of_several_models_are_filled_as_one_s() -> None:
    cut = np.arange(60) % 5 == 0
    lengths = LENGTHS * np.where(np.array(MODELS) == "a", 4.0, 1.0)
    context = told(model=MODELS)
    made = Heavy(seed=1).fit(PROMPTS, lengths, context=context, censored=cut)
    design = Design.of(PROMPTS, 1, np.ones(60))
    first = Effects.fit(np.log(lengths), context, design.held_out_mean, np.ones(60))
    names = np.exp(first.of_names(context, 60))
    filled, *_ = expected_logs(np.log(lengths / names), cut, design.held_out_mean)
    whole = np.exp(filled) * names
    second = Effects.fit(np.log(whole), context, design.held_out_mean, np.ones(60))
    assert made.effects_ is not None and made.effects_.intercepts == second.intercepts
    np.testing.assert_allclose(
        made.heard[1], whole / np.exp(second.of_names(context, 60)), rtol=1e-12
    )


def test_a_line_of_context_is_fitted_to_what_prompts_and_names_leave() -> None:
    """Temperature doubles the length; the target is calibrated on what is left of it."""
    heat = np.linspace(0, 1, 60)[RNG.permutation(60)]
    lengths = LENGTHS * np.exp(heat)
    context = told(model=MODELS, temperature=heat)
    made = Heavy(seed=1).fit(PROMPTS, lengths, context=context)
    effects = made.effects_
    assert effects is not None and "temperature" in effects.columns
    names = Effects(effects.intercepts).of_names(context, 60)
    own = lengths / np.exp(names)
    raw, rows = made._raw(PROMPTS)[5:], np.arange(5, 60)
    first = targets.make_target("exact", own).calibrated(raw, own[5:])
    said = np.log(first.prediction(raw).predicted_tokens) + names[5:]
    line = Effects(effects.intercepts).with_line(
        np.log(lengths[5:]), said, context.select(rows), np.ones(55)
    )
    np.testing.assert_allclose(effects.weights, line.weights, rtol=1e-9)
    drawn = names[5:] + line.of_line(context.select(rows), said)
    last = first.calibrated(raw, np.maximum(np.exp(np.log(lengths[5:]) - drawn), 1e-3))
    assert made.target_ is not None and made.target_.spread is not None
    assert made.target_.spread.longest == lengths.max()
    shift = effects.of_names(context, 60)
    plain = last.prediction(made._raw(PROMPTS))
    shift = shift + effects.of_line(context, np.log(plain.predicted_tokens) + shift)
    known = made.novelty_
    assert known is not None
    judged = known.judged(plain, known.score(PROMPTS), last)
    np.testing.assert_allclose(
        made.predict(PROMPTS, context=context).predicted_tokens,
        shifted(judged, shift).predicted_tokens, rtol=1e-9,
    )  # fmt: skip
    assert made.uses == {"max_tokens", "model", "temperature"}


def test_buckets_with_context_are_told_in_the_edges_that_were_asked_for() -> None:
    context = told(model=MODELS)
    lengths = LENGTHS * np.where(np.array(MODELS) == "a", 4.0, 1.0)
    made = Heavy("bucket", buckets=[20.0, 60.0, 150.0]).fit(PROMPTS, lengths, context=context)
    shown = made.shown_
    assert isinstance(shown, targets.Bucket)
    assert shown.edges[1:-1].tolist() == [20.0, 60.0, 150.0]
    inner = made.heard[3]
    assert isinstance(inner, targets.Bucket) and inner.outputs == 4
    said = made.predict(PROMPTS[:4], context=told(model=["a", "b", "a", "b"]))
    assert said.edges is not None and said.edges.tolist() == shown.edges.tolist()
    known = made.novelty_
    assert known is not None and made.effects_ is not None
    plain = made._fitted().prediction(made._raw(PROMPTS[:4]))
    judged = known.judged(plain, known.score(PROMPTS[:4]), made._fitted())
    shift = made.effects_.of_names(told(model=["a", "b", "a", "b"]), 4)
    same(said, rebucketed(judged, shift, shown))
    # a number of buckets is that number, whatever the effects
    some = Heavy("bucket", buckets=3).fit(PROMPTS, lengths, context=context)
    assert isinstance(some.heard[3], targets.Bucket) and some.heard[3].outputs == 3
    without = Heavy("bucket", buckets=[20.0, 60.0, 150.0]).fit(PROMPTS, LENGTHS)
    assert without.shown_ is None
    assert isinstance(without.heard[3], targets.Bucket)
    assert without.heard[3].edges[1:-1].tolist() == [20.0, 60.0, 150.0]
    assert Heavy("bucket", buckets=[20.0])._buckets() == [20.0]


def test_no_length_is_above_what_its_request_may_have() -> None:
    made = Words().fit(PROMPTS, LENGTHS)
    free = made.predict(PROMPTS[:3]).predicted_tokens
    said = made.predict(PROMPTS[:3], context=told(max_tokens=[5.0, 1e6, 7.0])).predicted_tokens
    assert said.tolist() == [min(free[0], 5.0), free[1], min(free[2], 7.0)]
    moved = Heavy().fit(PROMPTS, LENGTHS, context=told(model=MODELS))
    asked = told(model=["a"] * 3, max_tokens=[5.0, 1e6, 7.0])
    assert moved.predict(PROMPTS[:3], context=asked).predicted_tokens.max() <= free.max() * 4
    assert moved.predict(PROMPTS[:3], context=asked).predicted_tokens[0] == 5.0
    wide = Heavy("bucket").fit(PROMPTS, LENGTHS, context=told(model=MODELS))
    assert wide.predict(PROMPTS[:3], context=asked).predicted_tokens[0] <= 5.0


def test_company_makes_a_prompt_as_new_as_it_is() -> None:
    made = Words().fit(PROMPTS, LENGTHS)
    known = made.novelty_
    assert known is not None
    shapes = known.shapes(PROMPTS[:4])
    plain = made.told(PROMPTS[:4], None)
    same(made.told(PROMPTS[:4], None, (shapes, np.zeros(4))), plain)
    said = made.told(PROMPTS[:4], None, (shapes, np.array([0.0, 1.0, 0.0, 0.0])))
    assert said.abstained is not None and said.abstained.tolist() == [False, True, False, False]
    assert said.predicted_tokens[1] == np.median(known.lengths)
    assert isinstance(made.stream(), Stream)
    made.novelty_ = None
    assert made.stream() is made
    assert made.predict(["unlike all of them"]).abstained is None


def test_in_the_order_of_arrival_it_declares_and_saves_what_the_predictor_does(
    tmp_path: Path,
) -> None:
    fitted = Words().fit(PROMPTS, LENGTHS, context=told(model=MODELS))
    plain = PromptLength().fit([], LENGTHS, prompt_tokens=COUNTS * 7.0)
    for made, kind in ((fitted, Stream), (plain, LengthStream)):
        stream: Any = made.stream()
        assert type(stream) is kind
        assert (stream.needs, stream.uses) == (made.needs, made.uses)
        stream.save(tmp_path / "of the stream")
        made.save(tmp_path / "own")
        saved, own = (folder.read(tmp_path / name) for name in ("of the stream", "own"))
        assert (saved.name, saved.state) == (own.name, own.state)
        assert saved.arrays.keys() == own.arrays.keys()


def test_what_was_not_fitted_says_how_it_is() -> None:
    with pytest.raises(InputError, match="predictor 'words' is not fitted; train it with"):
        Words().predict(["a"])
    with pytest.raises(InputError, match="takes 30 answers or more, not 29"):
        Words().fit(PROMPTS, LENGTHS).recalibrated(PROMPTS[:29], LENGTHS[:29])


@pytest.mark.parametrize("target", ["exact", "rank", "quantile", "bucket"])
@pytest.mark.parametrize("with_context", [False, True])
def test_recalibrated_by_hand(target: str, with_context: bool) -> None:
    context = told(model=MODELS) if with_context else None
    made = Heavy(target, seed=4).fit(PROMPTS, LENGTHS, context=context)
    before = made.predict(PROMPTS, context=context)
    cut = np.arange(60) % 6 == 0
    came = LENGTHS * 3.0
    moved = made.recalibrated(PROMPTS, came, censored=cut, context=context)
    assert moved is not made
    same(made.predict(PROMPTS, context=context), before)
    raw, wanted, names = made._raw(PROMPTS), made._fitted(), np.zeros(60)
    own = came
    for _ in range(3 if with_context else 1):
        said = np.log(wanted.prediction(raw).predicted_tokens)
        if made.effects_ is not None:
            names = made.effects_.of_names(context, 60)
            names = names + made.effects_.of_line(context, said + names)
        own = recalibration.filled(said, came * np.exp(-names), cut, 4)
        wanted = recalibration.recalibrated(made._fitted(), raw, own, folds_of(PROMPTS, 4))
    same(moved._fitted().prediction(raw), wanted.prediction(raw))
    fresh = Novelty.fit(PROMPTS, own, raw, np.ones(60))
    assert moved.novelty_ is not None
    np.testing.assert_array_equal(moved.novelty_.lengths, fresh.lengths)
    np.testing.assert_array_equal(moved.novelty_.known, fresh.known)
    if target == "bucket" and with_context:
        assert isinstance(wanted, targets.Bucket) and isinstance(moved.shown_, targets.Bucket)
        by = wanted.edges[1] / made._fitted().edges[1]  # type: ignore[union-attr]
        edges = made.shown_.edges  # type: ignore[union-attr]
        np.testing.assert_allclose(moved.shown_.edges[:-1], edges[:-1] * by)
        assert moved.shown_.edges[-1] == max(edges[-1] * by, came.max())
    # of answers that come in another order, what is familiar stays
    turned = made.recalibrated(PROMPTS, came[np.argsort(np.argsort(-came))][::-1], context=context)
    backward = made.recalibrated(PROMPTS, np.sort(came)[::-1][np.argsort(np.argsort(COUNTS))])
    assert backward.novelty_ is not None and made.novelty_ is not None
    if context is None:
        np.testing.assert_array_equal(backward.novelty_.known, made.novelty_.known)
        assert not np.array_equal(backward.novelty_.lengths, made.novelty_.lengths)
    assert turned.novelty_ is not None


@pytest.mark.parametrize("target", ["exact", "bucket"])
@pytest.mark.parametrize("with_context", [False, True])
def test_saved_and_restored_by_hand(target: str, with_context: bool, tmp_path: Path) -> None:
    context = told(model=MODELS) if with_context else None
    buckets = np.array([20.0, 60.0]) if target == "bucket" else None
    made = Heavy(target, buckets=buckets, levels=(0.1, 0.9), seed=4)  # type: ignore[arg-type]
    made.fit(PROMPTS, LENGTHS, context=context).save(tmp_path / "p")
    saved = folder.read(tmp_path / "p")
    assert saved.name == "words" and saved.state["mine"] == 1
    assert saved.options == {
        "target": target, "buckets": None if buckets is None else [20.0, 60.0],
        "levels": [0.1, 0.9], "seed": 4,
    }  # fmt: skip
    assert ("context" in saved.state) is with_context
    shown = any(name.startswith("shown.") for name in saved.arrays)
    assert shown is (with_context and target == "bucket")
    back = Heavy.restore(saved, tmp_path / "p")
    assert back.back == (1, [0.0, 1.0, 2.0], tmp_path / "p")
    assert back.uses == made.uses == ({"max_tokens", "model"} if with_context else {"max_tokens"})
    same(back.predict(PROMPTS, context=context), made.predict(PROMPTS, context=context))
    same(back.predict(["quite another thing"]), made.predict(["quite another thing"]))
    assert Words("bucket", buckets=3)._options()["buckets"] == 3
    for name, bad in (("own", np.array([np.inf])), ("own", np.array([np.nan])),
                      ("own", np.array([True])), ("threshold", np.array([np.inf]))):  # fmt: skip
        arrays = {**saved.arrays, name: bad}
        wrong = folder.Saved(saved.name, saved.options, saved.state, arrays)
        with pytest.raises(ValueError, match=f"array {name} holds values that are no finite"):
            Heavy.restore(wrong, tmp_path)
    beyond = {**saved.arrays, "t.threshold": np.array([np.inf])}
    Heavy.restore(folder.Saved(saved.name, saved.options, saved.state, beyond), tmp_path)


def test_folds_are_of_prompts_and_even() -> None:
    prompts = [f"p{k % 23}" for k in range(50)]
    folds = folds_of(prompts, 7)
    shuffled = np.random.default_rng(7).permutation(23)
    assert folds.tolist() == [int(shuffled[k % 23] % 5) for k in range(50)]
    assert set(folds_of(["a", "b", "a"], 0).tolist()) == {0, 1} and FOLDS == 5


# Loading


def test_options_of_a_spelling_are_numbers_truths_or_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "a=1,b=-2.5,c=True,d=false,e=x=y,,f=1e3"
    found = load._options(text, "spec")
    assert found == {"a": 1, "b": -2.5, "c": True, "d": False, "e": "x=y", "f": 1000.0}
    assert [type(value) for value in found.values()] == [int, float, bool, bool, str, float]
    for bad in ("a", "a=", "=3", "a=1,b"):
        with pytest.raises(InputError, match="expected name=value, not"):
            load._options(bad, "spec")
    assert load._options("", "spec") == {}
    with pytest.raises(UnknownNameError, match="did you mean 'tokens'"):
        load.make_predictor("constant", token=3)
    with pytest.raises(UnknownNameError, match="unknown option 'self' of predictor 'constant'"):
        load.make_predictor("constant", self=3)


def test_whoever_predicts_is_a_predictor() -> None:
    asks = SimpleNamespace(predict=lambda prompts: None, needs=frozenset())
    assert load.load_predictor(asks) is asks
    assert load.load_predictor(None) is None is load.load_predictor("none")
    for wrong in (SimpleNamespace(predict=1, needs=()), SimpleNamespace(predict=print), 7):
        with pytest.raises(InputError, match="not a predictor"):
            load.load_predictor(wrong)  # type: ignore[arg-type]


def test_what_is_no_folder_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for spec, why in ((tmp_path / "none", "does not exist"), (Path("none"), "does not exist"),
                      ("a/b", "does not exist"), ("a/b:x=1", "does not exist"),
                      ("empty", "has no predictor.json"), (tmp_path / "empty", "has")):  # fmt: skip
        with pytest.raises(InputError, match=f"is no saved predictor: it {why}"):
            load.load_predictor(spec)
    with pytest.raises(UnknownNameError):
        load.load_predictor("nonesuch:x=a/b")
    with pytest.raises(InputError, match="is no saved predictor"):
        load.load_predictor(Path("hf:me/x"))  # a folder of that name


# The hub


def test_what_the_hub_is_asked_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    calls: list[tuple[str, Any]] = []

    class Api:
        def create_repo(self, *given: Any, **more: Any) -> Any:
            calls.append(("repo", (given, more)))
            return SimpleNamespace(repo_id="me/full")

        def create_branch(self, **more: Any) -> None:
            calls.append(("branch", more))

        def upload_folder(self, **more: Any) -> str:
            calls.append(("upload", more))
            return "address"

    def api(token: Any = None) -> Api:
        calls.append(("api", token))
        return Api()

    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    made = load.make_predictor("constant", tokens=50)
    assert isinstance(made, hub.HubPredictor)
    assert made.save_pretrained(tmp_path / "c") is None and calls == []
    assert made.save_pretrained(tmp_path / "c", push_to_hub=True, create_pr=True) == "address"
    said = "Push predictor using lengthwise."
    sent = {
        "repo_id": "me/full", "folder_path": str(tmp_path / "c"), "repo_type": "model",
        "revision": None, "commit_message": said, "create_pr": True,
        "allow_patterns": list(hub.FILES),
    }  # fmt: skip
    assert calls == [
        ("api", None),
        ("repo", (("c",), {"repo_type": "model", "private": None, "exist_ok": True})),
        ("upload", sent),
    ]
    calls.clear()
    made.save_pretrained(tmp_path / "c", repo_id="me/other", push_to_hub=True, token="t")
    assert calls[0] == ("api", "t") and calls[1][1][0] == ("me/other",)
    calls.clear()
    assert made.push_to_hub("me/x", branch="b", private=False, token="t") == "address"
    assert [name for name, _ in calls] == ["api", "repo", "branch", "upload"]
    assert calls[1][1][1]["private"] is False and calls[0][1] == "t"
    assert calls[2][1] == {
        "repo_id": "me/full",
        "branch": "b",
        "repo_type": "model",
        "exist_ok": True,
    }
    assert calls[3][1]["revision"] == "b" and calls[3][1]["create_pr"] is None
    assert not Path(calls[3][1]["folder_path"]).exists()  # it was a temporary one
    calls.clear()

    def download(*given: Any, **more: Any) -> str:
        calls.append(("download", (given, more)))
        return str(tmp_path / "c")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    asked = {"repo_type": "model", "revision": None, "token": None,
             "allow_patterns": list(hub.FILES)}  # fmt: skip
    assert hub.fetched_spelling("hf:me/x") == tmp_path / "c"
    assert calls.pop() == ("download", (("me/x",), asked))
    assert hub.fetched_spelling("hf:me/x@v@2") == tmp_path / "c"
    assert calls.pop()[1][1]["revision"] == "v@2"
    type(made).from_pretrained("me/x")
    quiet = {"cache_dir": None, "force_download": False, "local_files_only": False}
    assert calls.pop() == ("download", (("me/x",), {**asked, **quiet}))
    type(made).from_pretrained(
        "me/x", force_download=True, local_files_only=True, cache_dir="d", revision="r", token=True
    )
    told = {"cache_dir": "d", "force_download": True, "local_files_only": True, "revision": "r",
            "token": True}  # fmt: skip
    assert calls.pop() == ("download", (("me/x",), {**asked, **told}))

    def silent(*given: Any, **more: Any) -> str:
        raise ValueError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", silent)
    with pytest.raises(InputError, match=r"no predictor 'me/x' on the hub: ValueError$"):
        hub.fetched("me/x")


# The base


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The base with embeddings of two numbers; what was embedded."""
    asked: list[list[str]] = []

    def embeddings(prompts: Sequence[str]) -> Floats:
        asked.append(list(prompts))
        return np.array([[len(p.split()), len(p)] for p in prompts], dtype=float)

    features = Design.of(PROMPTS, 0, np.ones(60)).features
    weights = np.linspace(-0.1, 0.1, len(features.terms) + len(SHAPE))[:, None]
    made = Pretrained(
        features, weights, np.array([6.0, 30.0]), np.array([3.0, 15.0]), np.array([0.7, 0.2]),
        np.array([0.4]),
    )  # fmt: skip
    target = targets.make_target("exact", LENGTHS).calibrated(np.log(LENGTHS)[:, None], LENGTHS)
    arrays = made.arrays() | {"centre": np.array([4.0, 0.5])}
    arrays |= {f"target.{name}": value for name, value in target.arrays().items()}
    known = Novelty.fit(PROMPTS, LENGTHS, np.log(LENGTHS)[:, None], np.ones(60))
    saved = folder.Saved("base", {}, {"terms": list(features.terms)}, arrays | known.arrays())
    monkeypatch.setattr(base, "_shipped", lambda: saved)
    monkeypatch.setattr(base, "embeddings", embeddings)
    return asked


def score_of(prompts: Sequence[str], made: Base) -> Floats:
    known = made.pretrained_
    table = np.array([[len(p.split()), len(p)] for p in prompts], dtype=float)
    standard = (table - [6.0, 30.0]) / [3.0, 15.0]
    text = np.asarray(known.features.rows(prompts).dot(known.weights))[:, 0]
    return np.asarray(standard @ [0.7, 0.2] + text + 0.4)


def test_the_base_s_score_by_hand(small: list[list[str]]) -> None:
    made = Base()
    prompts = [PROMPTS[3], PROMPTS[5], PROMPTS[3]]
    np.testing.assert_allclose(made._score(prompts), score_of(prompts, made))
    assert small == [[PROMPTS[3], PROMPTS[5]]]  # each prompt once
    np.testing.assert_allclose(made._raw(prompts)[:, 0], 4.0 + 0.5 * score_of(prompts, made))
    assert made.target_ is not None and made.novelty_ is not None
    for target in ("rank", "bucket", "quantile"):
        bare = Base(target)
        assert bare.target_ is None and bare.novelty_ is None
        with pytest.raises(InputError, match=f"for {target} give it rows of your own"):
            bare.predict(["a"])


@pytest.mark.parametrize("target", ["exact", "quantile"])
def test_the_base_s_own_rows_by_hand(small: list[list[str]], target: str, tmp_path: Path) -> None:
    weights = np.where(np.arange(60) < 20, 3.0, 0.5)
    made = Base(target, seed=2).fit(PROMPTS, LENGTHS, weights=weights)
    heavy = weights / weights.mean()
    design = Design.of(PROMPTS, 2, heavy)
    labels = targets.regression_labels(targets.make_target(target, LENGTHS), LENGTHS)
    alpha, unseen = design.best_alpha(labels)
    weight, intercept = design.solve(labels, alpha)
    np.testing.assert_allclose(made.weights_, weight)
    np.testing.assert_allclose(made.intercept_, intercept)
    score, share = score_of(PROMPTS, made), heavy / heavy.sum()
    assert made.blend_ is not None and made.blend_.shape == (3, labels.shape[1])
    for k in range(labels.shape[1]):
        # each row beside the mean of what its guess was learned from
        x = np.column_stack([unseen[:, k], score, labels[:, k]])
        near = x.copy()
        for fold in range(5):
            out = design.folds == fold
            for column, of in ((0, 2), (1, 1), (2, 2)):
                near[out, column] -= np.average(x[~out, of], weights=heavy[~out])
        spread = np.sqrt(share @ near**2)
        # as if 40 prompts more had shown the ridge as it is, and half a trust in the score
        drawn = np.sqrt(40 / len(set(PROMPTS))) * spread[:2]
        table = np.concatenate([np.sqrt(share)[:, None] * near[:, :2], np.diag(drawn)])
        prior = drawn * [1.0, 0.5 * spread[2] / spread[1]]
        two = lsq_linear(table, [*(np.sqrt(share) * near[:, 2]), *prior], (0, np.inf)).x
        np.testing.assert_allclose(made.blend_[1:, k], two, rtol=1e-5, atol=1e-8)
        middle = share @ labels[:, k] - (share @ x[:, :2]) @ two
        assert made.blend_[0, k] == pytest.approx(middle, rel=1e-5)
    own = np.asarray(design.features.rows(PROMPTS).dot(weight)) + intercept
    said = made.blend_[0] + made.blend_[1] * own + made.blend_[2] * score[:, None]
    raw = targets.from_regression(made._fitted(), said)
    np.testing.assert_allclose(made._raw(PROMPTS), raw, rtol=1e-9)
    made.save(tmp_path / "p")
    back = load.load_predictor(tmp_path / "p")
    assert isinstance(back, Base) and back.blend_ is not None
    same(back.predict(PROMPTS), made.predict(PROMPTS))
    np.testing.assert_array_equal(back.centre_, made.centre_)
    plain = Base()
    plain.save(tmp_path / "plain")
    again = load.load_predictor(tmp_path / "plain")
    assert isinstance(again, Base) and again.blend_ is None
    same(again.predict(PROMPTS), plain.predict(PROMPTS))


@pytest.mark.parametrize("narrow", [True, False])
def test_the_base_s_encoder_is_minilm_without_its_last_layer(
    narrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lengthwise.predictors import encoder

    asked: list[Any] = []
    text = SimpleNamespace(
        tokens=lambda prompts: [len(p) for p in prompts],
        embedded=lambda ids: torch.tensor([[float(n), 0.5] for n in ids]),
    )

    def pretrained(name: str, **more: Any) -> Any:
        asked.append((name, more))
        return text

    monkeypatch.setattr(encoder, "pretrained", pretrained)
    monkeypatch.setattr(encoder, "computes_bfloat16", lambda: narrow)
    base._encoder.cache_clear()
    try:
        found = base.embeddings(["a", "bcd"])
        assert found.dtype == np.float64 and found.tolist() == [[1.0, 0.5], [3.0, 0.5]]
        base.embeddings(["a"])
        base.embeddings(["a"], exact=True)
        same = {"max_tokens": 128, "drop_layers": 1}
        assert asked == [
            ("minilm", {**same, "narrow": narrow}),
            ("minilm", {**same, "narrow": False}),
        ]
    finally:
        base._encoder.cache_clear()


# The probe


def test_a_probe_s_sizes_are_checked_at_their_limits() -> None:
    made = Probe(1, bins=1, longest=1, hidden=1)
    assert made.bin_tokens == 1.0
    assert (Probe(3).bins, Probe(3).longest, Probe(3).hidden) == (10, 512, 512)
    assert Probe(3).bin_tokens == 51.2
    for name in ("width", "bins", "hidden"):
        with pytest.raises(InputError, match=f"a probe's {name} must be 1 or more, not 0"):
            Probe(**{"width": 2, name: 0})
    assert Probe(2, bins=7, longest=7).bin_tokens == 1.0
    with pytest.raises(InputError, match="7 bins need at least as many tokens, not longest=6"):
        Probe(2, bins=7, longest=6)
    for states, left in ((np.zeros((19, 2)), np.zeros(19)), (np.zeros((20, 3)), np.zeros(20)),
                         (np.zeros((20, 2)), np.zeros(19)), (np.zeros(20), np.zeros(20)),
                         ):  # fmt: skip
        with pytest.raises(InputError, match="a probe learns from"):
            Probe(2).fit(states, left)


def test_what_a_probe_is_fitted_to_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    from lengthwise.predictors import probe as module

    heard: dict[str, Any] = {}

    def minimize(net: Any, loss: Any, seen: Any, held: Any, schedule: Any, *, seed: int) -> None:
        heard.update(net=net, loss=loss, seen=seen, held=held, schedule=schedule, seed=seed)

    monkeypatch.setattr(module, "minimize", minimize)
    states = RNG.normal(3, 2, (40, 3))
    states[:, 2] = 5.0  # which never changes
    left = np.concatenate(([0, 9.9, 10, 19, 99, 100, 5000, 50], RNG.integers(0, 100, 32)))
    made = Probe(3, bins=10, longest=100, hidden=4)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert made.fit(states, left, seed=6, epochs=7) is made
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_allclose(made.shift, states.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(made.scale[:2], states.std(axis=0, ddof=1)[:2], rtol=1e-5)
    assert made.scale[2] == pytest.approx(1e-6)
    order = np.random.default_rng(6).permutation(40)
    assert heard["held"].tolist() == order[:4].tolist()
    assert heard["seen"].tolist() == order[4:].tolist()
    assert heard["seed"] == 6 and heard["net"] is made.net
    schedule = heard["schedule"]
    assert (schedule.epochs, schedule.patience, schedule.batch_size) == (7, 5, 32)
    inputs = (torch.tensor(states, dtype=torch.float32) - made.shift) / made.scale
    logs = torch.log_softmax(made.net(inputs[:8]), dim=1)
    labels = [0, 0, 1, 1, 9, 9, 9, 5]
    wanted = -sum(logs[k, label] for k, label in enumerate(labels)) / 8
    assert float(heard["loss"](np.arange(8)).detach()) == pytest.approx(
        float(torch.as_tensor(wanted).detach()), rel=1e-5
    )
    # it begins as its seed says, whatever it was before
    weights = [layer.weight.clone() for layer in (made.net[0], made.net[2])]
    made.fit(states, left, seed=6)
    assert all(torch.equal(made.net[k].weight, w) for k, w in zip((0, 2), weights, strict=True))
    assert heard["schedule"].epochs == 30
    made.fit(states, left, seed=7)
    assert not any(torch.equal(made.net[k].weight, w) for k, w in zip((0, 2), weights, strict=True))
    assert made.fit(states, left) is made and heard["seed"] == 0


def test_beliefs_by_hand() -> None:
    made = Probe(2, bins=4, longest=40)
    belief = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(made.expected(belief), [5 * 0.1 + 15 * 0.2 + 25 * 0.3 + 35 * 0.4, 5])
    tiny = Probe(2, bins=4, longest=4)
    assert tiny.expected(belief)[1] == 1.0  # half a token is one
    # a tenth of each bin falls into the next, twice; the first has nowhere to fall
    step = np.eye(4) * 0.9 + np.eye(4, k=-1) * 0.1
    step[0, 0] = 1.0
    for tokens in (0, 1, 2):
        moved = made.after(belief.clone(), tokens)
        np.testing.assert_allclose(moved, belief.numpy() @ np.linalg.matrix_power(step, tokens))
    made.shift, made.scale = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])
    states = torch.tensor([[3.0, 2.0]], dtype=torch.float64)
    wanted = torch.softmax(made.net(torch.tensor([[1.0, 0.0]])), dim=1)
    np.testing.assert_allclose(made.probabilities(states), wanted.detach(), rtol=1e-6)
    assert made.to("cpu") is made


def test_a_saved_probe_by_hand(tmp_path: Path) -> None:
    made = Probe(2, bins=3, longest=30, hidden=4)
    made.shift = torch.tensor([1.0, 2.0])
    made.save(tmp_path / "p")
    told = json.loads((tmp_path / "p" / "probe.json").read_text())
    assert told == {"format": 1, "width": 2, "bins": 3, "longest": 30, "hidden": 4}
    back = Probe.load(tmp_path / "p")
    assert (back.bins, back.longest, back.hidden) == (3, 30, 4)
    assert back.shift.tolist() == [1.0, 2.0] and back.scale.tolist() == [1.0, 1.0]
    for wrong, why in (
        ({**told, "format": 2}, "its format is not 1"), ({**told, "other": 1}, "holds no probe"),
        ({"width": 2}, "holds no probe"), ([1], "holds no probe"),
        ({**told, "bins": 0}, "bins must be 1 or more"), ({**told, "hidden": 5}, "holds no probe"),
    ):  # fmt: skip
        (tmp_path / "p" / "probe.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=why):
            Probe.load(tmp_path / "p")
    with pytest.raises(InputError, match="holds no probe"):
        Probe.load(tmp_path / "none")


class Adds(nn.Module):
    """A layer that adds one."""

    def __init__(self, tuples: bool) -> None:
        super().__init__()
        self.tuples = tuples

    def forward(self, hidden: torch.Tensor) -> Any:
        return (hidden + 1, "more") if self.tuples else hidden + 1


class Stack(nn.Module):
    """A model of three layers whose hidden states are a token's number, and itself doubled."""

    def __init__(self, tuples: bool = False) -> None:
        super().__init__()
        self.small = nn.ModuleList([nn.Identity()])
        self.layers = nn.ModuleList([Adds(tuples) for _ in range(3)])
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor) -> None:
        hidden: Any = torch.stack((input_ids, 2 * input_ids), dim=2).float()
        for layer in self.layers:
            hidden = layer(hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden


def test_layers_are_of_the_longest_stack() -> None:
    model = Stack()
    assert decoder_layer(model) is model.layers[1]
    for at in (0, 2, -1, -3):
        assert decoder_layer(model, at) is model.layers[at]
    for at in (3, -4):
        with pytest.raises(InputError, match=f"layer {at} of 3: there is no such layer"):
            decoder_layer(model, at)
    with pytest.raises(InputError, match="Linear has no stack of layers to hook"):
        decoder_layer(nn.Linear(1, 1))


@pytest.mark.parametrize("tuples", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_a_watch_by_hand(tuples: bool, every: int) -> None:
    """Beliefs are Bayes's: what was held, moved on, times what is seen."""
    model, made = Stack(tuples), Probe(2, bins=4, longest=40)
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    watch = Watch(model, made, layer=0, every=every, mask=mask)
    with pytest.raises(InputError, match="the probe has seen no prompt yet"):
        _ = watch.expected_remaining_tokens
    prompts = torch.tensor([[1, 2, 6], [9, 2, 4]])
    with watch, torch.inference_mode():
        model(prompts)
        state = torch.tensor([[3.0, 6.0], [3.0, 6.0]]) + 1  # the padded 9 is left out
        belief = made.probabilities(state)
        left = made.expected(belief).numpy()
        np.testing.assert_allclose(watch.expected_remaining_tokens, left, rtol=1e-6)
        assert watch.generated == 0
        for done, token in enumerate(([5, 5], [7, 1], [2, 2]), start=1):
            model(torch.tensor(token)[:, None])
            assert watch.generated == done
            if done % every == 0:
                seen = torch.tensor([[n + 1.0, 2.0 * n + 1.0] for n in token])
                both = made.after(belief.clone(), every) * made.probabilities(seen)
                belief = both / both.sum(dim=1, keepdim=True)
            left = made.expected(belief).numpy() - done % every
            np.testing.assert_allclose(watch.expected_remaining_tokens, np.maximum(left, 1),
                                       rtol=1e-5)  # fmt: skip
        model(prompts)  # another batch begins anew
        assert watch.generated == 0
    model(torch.tensor([[3], [3]]))
    assert watch.generated == 0  # nobody watches any more
    with pytest.raises(InputError, match="every 1 or more tokens, not 0"):
        Watch(model, made, every=0)
    assert Watch(model, made).every == 1


def test_a_belief_that_is_contradicted_altogether_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, made = Stack(), Probe(2, bins=4, longest=40)
    says = [torch.tensor([[0.0, 0.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])]
    monkeypatch.setattr(made, "probabilities", lambda states: says[0])
    with Watch(model, made, layer=0) as watch, torch.inference_mode():
        model(torch.tensor([[3]]))  # before any prompt there is nothing to go on from
        assert watch._belief is None and watch.generated == 1
        model(torch.tensor([[3, 3]]))
        assert watch.expected_remaining_tokens.tolist() == [35.0]
        says.pop(0)
        model(torch.tensor([[3]]))
        assert watch.expected_remaining_tokens.tolist() == [5.0]
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    np.testing.assert_allclose(prompt_state(hidden), hidden.mean(dim=1))
    long = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 0, 1]])  # of which the last four are here
    found = prompt_state(hidden, long)
    np.testing.assert_allclose(found[0], (hidden[0, 0] + hidden[0, 2] + hidden[0, 3]) / 3)
    np.testing.assert_allclose(found[1], hidden[1, 3])


@pytest.mark.parametrize("tuples", [False, True])
def test_what_is_collected_by_hand(tuples: bool) -> None:
    model = Stack(tuples)
    states, left = collected(model, [[1, 3], [5]], [[7, 8, 9], [2]], layer=2, every=2)
    assert states.dtype == np.float32
    assert states.tolist() == [[5, 7], [11, 19], [8, 13]]
    assert left.tolist() == [3, 1, 1]
    states, left = collected(model, [[1, 3]], [[7, 8]])
    assert states.tolist() == [[4, 6], [9, 16], [10, 18]] and left.tolist() == [2, 1, 0]
    assert not model.layers[2]._forward_hooks and not model.layers[1]._forward_hooks
    with pytest.raises(ValueError):
        collected(model, [[1]], [])
    assert not model.layers[1]._forward_hooks


# Sides of what was measured


def test_a_workload_at_the_very_limit_has_not_moved_away() -> None:
    shapes = np.random.default_rng(5).normal(0.4, 1.0, (60, 2))
    far = novelty.Window(np.zeros((1, 2)), 1.0)
    each = [float(far.drift(row[None])[0][0]) for row in shapes]
    for limit, last in ((each[-1], novelty.ABSTAIN), (np.nextafter(each[-1], 0.0), 1.0)):
        window = novelty.Window(np.zeros((1, 2)), limit)
        assert [float(window.score(row[None])[0]) for row in shapes][-1] == last
    batch = novelty.Window(np.zeros((1, 2)), 1.0).drift(shapes)[0][-1]
    assert novelty.Window(np.zeros((1, 2)), float(batch)).score(shapes)[-1] == novelty.ABSTAIN
    begin = novelty.Window(np.zeros((1, 2)), each[-1] / novelty.SHIFTING)
    score = [float(begin.score(row[None])[0]) for row in shapes][-1]
    assert score in (0.0, pytest.approx(novelty.FAMILIAR))  # where it begins, by a rounding
    few = novelty.Window(np.zeros((1, 2)), 1e-9)
    said = [float(few.score(row[None])[0]) for row in shapes]
    assert said[: novelty.FEWEST - 1] == [0.0] * (novelty.FEWEST - 1) and said[49] == 1.0


def test_names_with_effects_are_the_most_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    column = np.array(["b", "c", "a", "c", None, "b", "c", "d", "a"], dtype=object)
    assert effects._frequent(column) == {"c": 0, "a": 1, "b": 2}
    monkeypatch.setattr(effects, "MOST_NAMES", 2)
    assert effects._frequent(column) == {"c": 0, "a": 1}
    monkeypatch.setattr(effects, "FEWEST", 3)
    assert effects._frequent(column) == {"c": 0}


def test_an_order_of_names_is_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts order nothing, of models that are a hundred times apart."""
    long = np.where(np.array(MODELS) == "a", 100.0, 1.0)
    context = told(model=MODELS)
    made = Heavy(seed=4).fit(PROMPTS, LENGTHS * long, context=context)
    other = [f"quite another text {prompt}" for prompt in PROMPTS]
    came = LENGTHS[np.random.default_rng(8).permutation(60)] * long
    moved = made.recalibrated(other, came, context=context)
    assert moved.novelty_ is not None and made.novelty_ is not None
    assert len(moved.novelty_.known) > len(made.novelty_.known)  # they are familiar now


@pytest.mark.parametrize("target", ["exact", "rank"])
def test_what_is_said_is_one_token_at_least_before_spreads_are_of_it(target: str) -> None:
    tokens = np.array([0.5] * 20 + [1.4] * 20 + [50.0] * 20)
    raw = np.log(tokens)[:, None]
    made: Any = targets.make_target(target, LENGTHS).calibrated(raw, tokens)
    assert made.spread is not None
    curve = made.curve(raw[:, 0]) if target == "rank" else None
    if curve is not None:
        said = np.maximum(curve, 1.0)
        assert said.min() == 1.0 and np.isclose(said, 1.4).any()
        wanted = spreads.of_ratios(said, tokens, made.curve.high)
        np.testing.assert_allclose(made.spread.cuts, wanted.cuts)


def test_an_oracle_s_noise_is_within_a_thousandth_of_what_was_asked() -> None:
    from scipy.stats import kendalltau

    lengths = np.ceil(np.exp(np.random.default_rng(1).normal(5, 1, 3000)))
    logs, off = np.log(lengths), []
    for wanted in (-0.6, -0.2, 0.1, 0.3, 0.45, 0.6, 0.8):
        made = oracle.NoisyOracle(tau=wanted).fit([], lengths)
        assert made.blend_ is not None
        said = oracle._blend(logs, oracle.normal_by_row(0, 3000), *made.blend_)
        off.append(abs(kendalltau(said, lengths).statistic - wanted))
    assert max(off) < 1e-3


def test_one_prompt_at_a_time_is_as_far_from_the_nearest_source() -> None:
    centres = np.array([[0.0, 0.0], [2.0, 2.0], [-1.0, 1.0]])
    shapes = np.random.default_rng(6).normal(1.5, 1.0, (300, 2))
    batch = novelty.Window(centres, 1.0).drift(shapes)[0]
    one = novelty.Window(centres, 1.0)
    assert [one.drift(row[None])[0][0] for row in shapes] == pytest.approx(batch.tolist())
    last = shapes[-novelty.WINDOW :].mean(axis=0)
    near = min(((last - centre) ** 2).mean() for centre in centres)
    assert batch[-1] == pytest.approx(math.sqrt(near - 1 / novelty.WINDOW))


def test_buckets_move_by_the_median_ratio() -> None:
    rng = np.random.default_rng(7)
    target = targets.make_target("bucket", LENGTHS, buckets=[20.0, 60.0])
    assert isinstance(target, targets.Bucket)
    raw = rng.dirichlet(np.ones(3), 60)
    came = np.ceil(LENGTHS * np.where(np.arange(60) < 12, 40.0, 2.0))  # some far longer
    said = target.prediction(raw).predicted_tokens
    by = float(np.exp(np.median(np.log(came / said))))
    moved = recalibration.recalibrated(target, raw, came, np.arange(60) % 5)
    assert isinstance(moved, targets.Bucket)
    np.testing.assert_allclose(moved.edges[1:-1], np.array([20.0, 60.0]) * by)
    assert by < 0.9 * float(np.exp(np.log(came / said).mean()))


@pytest.mark.parametrize("target", ["exact", "rank"])
def test_lines_are_of_the_other_folds_and_ratios_of_the_fold(target: str) -> None:
    made: Any = targets.make_target(target, LENGTHS)
    raw = np.log(LENGTHS)[:, None] if target == "exact" else LENGTHS[:, None] / 1000
    made = made.calibrated(raw, LENGTHS)
    came = np.ceil(LENGTHS**1.2 * np.exp(np.random.default_rng(1).normal(0, 0.4, 60)))
    folds = np.arange(60) % 3
    said, logs = np.log(made.prediction(raw).predicted_tokens), np.log(came)
    unseen = np.empty(60)
    for fold in range(3):
        out = folds == fold
        level, slope = recalibration.line(said[~out], logs[~out])
        unseen[out] = level + slope * said[out]
    moved: Any = recalibration.recalibrated(made, raw, came, folds)
    level, slope = recalibration.line(said, logs)
    wanted = made.moved(level, slope)
    longest = max(came.max(), wanted.longest)
    spread = spreads.of_ratios(np.exp(unseen), came, longest, conformal=True)
    np.testing.assert_allclose(moved.spread.cuts, spread.cuts)
    assert moved.spread.longest == spread.longest
    np.testing.assert_allclose(
        moved.prediction(raw).predicted_tokens, wanted.prediction(raw).predicted_tokens
    )


def test_intercepts_are_those_of_restricted_maximum_likelihood() -> None:
    """Names with as many rows each, whose variances are those of the analysis of variance."""
    rng = np.random.default_rng(2)
    names = np.repeat([f"n{k}" for k in range(50)], 3)
    logs = np.repeat(rng.normal(0, 0.8, 50), 3) + rng.normal(0, 0.5, 150)  # what prompts leave
    codes = {"model": effects._frequent(names)}
    found = effects._intercepts(logs, told(model=names), codes, np.ones(150))["model"]
    each = logs.reshape(50, 3)
    within = each.var(axis=1, ddof=1).mean()
    between = each.mean(axis=1).var(ddof=1)
    kept = (between - within / 3) / between  # of what a mean is off, what is the name's
    order = [int(name[1:]) for name in codes["model"]]
    wanted = kept * (each.mean(axis=1) - logs.mean())
    np.testing.assert_allclose(found, wanted[order], rtol=0.02, atol=0.005)


def test_a_tail_is_of_those_beyond_a_quantile_and_of_enough_of_them() -> None:
    tokens = np.arange(1.0, 61.0)
    first = np.where(tokens > 30, tokens / 1.5, tokens * 2)  # 30 are beyond
    last = np.where(tokens > 41, tokens / 1.2, np.where(tokens > 36, tokens, tokens * 2))
    # of the last 19 are beyond and five just at it, which are too few
    found = spreads.of_quantiles(np.column_stack([first, last]), tokens)
    assert found.tail == pytest.approx(math.log(1.5)) and found.longest == 60.0
    one_more = np.where(tokens == 41, tokens / 1.2, last)
    again = spreads.of_quantiles(np.column_stack([first, one_more]), tokens)
    assert again.tail == pytest.approx(math.log(1.2))
    far = spreads.of_quantiles((tokens / 2)[:, None], tokens)
    assert far.tail == 0.5  # and no more than that
    none = spreads.of_quantiles((tokens * 2)[:, None], tokens)
    assert none.tail == 0.0
    few = spreads.of_quantiles(np.column_stack([np.where(tokens > 50, tokens / 1.5, tokens),
                                                tokens * 2]), tokens)  # fmt: skip
    assert few.tail == pytest.approx(math.log(1.5))  # of the first, as nobody has enough


def test_noise_is_split_mix_and_box_muller_s() -> None:
    """In Python's integers, as the two papers have them."""
    word = 2**64 - 1

    def mixed(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & word
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & word
        return x ^ (x >> 31)

    gamma = 0x9E3779B97F4A7C15
    for seed in (0, 5, 2**64 - 1):
        key = mixed((seed + gamma) & word)
        found = oracle.normal_by_row(seed, 50)
        for row in range(50):
            one, two = (
                ((mixed((key + k * gamma) & word) >> 11) + 0.5) / 2**53
                for k in (2 * row + 1, 2 * row + 2)
            )
            wanted = math.sqrt(-2 * math.log(one)) * math.cos(2 * math.pi * two)
            assert found[row] == pytest.approx(wanted, rel=1e-12)


def test_what_never_changed_in_training_counts_as_it_is() -> None:
    texts = ["red red blue", "red green", "blue green green green", "red"]  # no digit, no question
    made = TextFeatures.fit(texts)
    spread = np.array([shape_of(text) for text in texts]).std(axis=0)
    assert (spread < 1e-9).any() and len(made.scale) == len(SHAPE)
    np.testing.assert_allclose(made.scale, np.where(spread > 1e-9, spread, 1.0) / 0.1)
