"""More corners by hand: what is read, refused before anything runs, or true at one value alone."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from packaging.specifiers import SpecifierSet
from scipy.special import softmax

from lengthwise.errors import InputError, InvariantError
from lengthwise.eval.alone import alone_s
from lengthwise.eval.tune import tune
from lengthwise.policies import load_policy
from lengthwise.policies.formula import read
from lengthwise.policies.plugins.calls import _tokens
from lengthwise.policies.plugins.gateways.picker import RECENT_EVENTS, _State
from lengthwise.policies.plugins.gateways.proxy import HintProxy
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.scorer import Scorer
from lengthwise.policy import Score
from lengthwise.predictors import sound
from lengthwise.serving import Engine
from lengthwise.serving.fast.compiler.score import compile_score
from lengthwise.serving.fast.run import FastRun
from lengthwise.serving.fast.state import FEATURE_ROW
from lengthwise.serving.timing import LinearTiming
from lengthwise.serving.workload.files import _from_dataset
from lengthwise.training import doctor
from lengthwise.training.commands import folders
from lengthwise.workload import Workload


@pytest.mark.parametrize("wanted", ["<=1.4", "<1.4", ">=1.4", ">1.4", "==1.4", "!=1.4", ">=1,<2"])
@pytest.mark.parametrize("version", ["1.3.9", "1.4", "1.4.0", "1.4.1", "2.0", "0.9"])
def test_versions_are_in_ranges_as_packaging_says(version: str, wanted: str) -> None:
    assert doctor.meets(version, wanted) == (version in SpecifierSet(wanted))


def test_an_extra_whose_package_is_too_old_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = next(iter(doctor.EXTRAS))
    monkeypatch.setattr(doctor, "EXTRAS", {extra: "what it is for"})
    monkeypatch.setattr(doctor, "_requirements", lambda: {extra: {"a": ">=2", "b": ">=1"}})
    monkeypatch.setattr(doctor, "_version", {"a": "1.9", "b": "1.0"}.get)
    (found,) = doctor._extras()
    assert found.found == "not installed"
    assert "a>=2 (found 1.9)" in found.said and "b>=1" not in found.said
    monkeypatch.setattr(doctor, "_version", {"a": "2.0", "b": "1.0"}.get)
    (found,) = doctor._extras()
    assert (found.found, found.said) == ("installed", "what it is for")


@pytest.mark.parametrize("value", [0.5, 1, 1.0, 3])
def test_lengths_and_deadlines_may_be_below_one(value: float) -> None:
    assert _tokens(value) == float(value)
    assert _tokens(-value) is None and _tokens(0) is None and _tokens(True) is None


def test_a_score_that_raises_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def score(prompt_tokens: Any) -> Any:
        raise ValueError("odd prompt")

    scorer = Scorer(Score.from_function(score), Counters(logging.getLogger("corners")), 1.0)
    with caplog.at_level(logging.WARNING, logger="corners"):
        assert np.isnan(scorer.one({"prompt_tokens": 1.0}))
        scorer.one({"prompt_tokens": 2.0})
    said = [line.getMessage() for line in caplog.records]
    assert sum("raised ValueError('odd prompt')" in line for line in said) == 1


def test_what_an_event_is_worth_forgets_old_answers() -> None:
    """Half of what is known counts on, once so many events were seen: by hand."""
    state = _State()
    state.ended(RECENT_EVENTS, RECENT_EVENTS)  # just as many are kept
    assert (state.tokens, state.events) == (RECENT_EVENTS, RECENT_EVENTS)
    state.ended(3 * RECENT_EVENTS, RECENT_EVENTS)
    assert (state.tokens, state.events) == (2 * RECENT_EVENTS, RECENT_EVENTS)
    assert state.tokens_per_event == 2.0


def test_a_proxy_is_ready_until_it_drains() -> None:
    for draining, status in ((False, 200), (True, 503)):
        proxy: Any = SimpleNamespace(_draining=draining)
        assert asyncio.run(HintProxy._ready(proxy, None)).status == status  # type: ignore[arg-type]


def test_what_returns_more_than_one_expression_is_no_formula() -> None:
    def two(prompt_tokens: Any) -> Any:
        more = prompt_tokens + 1
        return more

    def nothing(prompt_tokens: Any) -> Any:
        return

    def no_return(prompt_tokens: Any) -> Any:
        prompt_tokens + 1

    def one(prompt_tokens: Any) -> Any:
        """Says what it is."""
        return prompt_tokens + 1

    assert [read(f) for f in (two, nothing, no_return)] == [None, None, None]
    assert read(one) is not None


def test_a_number_around_a_function_is_compiled_with_it() -> None:
    weight = 3.25

    def score(prompt_tokens: Any, predicted_tokens: Any) -> Any:
        return predicted_tokens + weight * prompt_tokens

    rows = np.zeros(2, dtype=FEATURE_ROW)
    rows["prompt_tokens"], rows["predicted_tokens"] = [4.0, 8.0], [1.0, 2.0]
    made = compile_score(Score.from_function(score))
    assert made.evaluate(rows).tolist() == [14.0, 28.0]


def test_only_a_run_that_is_done_has_records() -> None:
    made: Any = SimpleNamespace(
        totals=SimpleNamespace(finished=2), _state=SimpleNamespace(where=[0, 0, 0])
    )
    with pytest.raises(InvariantError, match="2 of 3 requests have finished"):
        FastRun.records(made)


def test_without_numbers_to_tune_nothing_runs() -> None:
    policy = load_policy("fcfs")
    runs: Any = ["no run"]  # which would fail
    assert tune(policy, runs, budget=4) is policy


def test_a_chunk_of_one_token_is_a_limit_too() -> None:
    """A prompt of 5 and an answer of 2: five iterations of one token each, then one more."""
    timing = LinearTiming(base_s=1.0)
    work = Workload({"arrival_s": [0.0], "prompt_tokens": [5], "output_tokens": [2]})
    for threshold, seconds in ((1, 6.0), (2, 4.0), (0, 2.0)):
        engine = Engine(long_prefill_token_threshold=threshold)
        found = alone_s(work, engine, timing)
        assert found is not None and found.tolist() == [seconds]


def test_several_splits_are_named() -> None:
    with pytest.raises(InputError, match=r"hf:x holds several splits \(train, test\)"):
        _from_dataset({"train": None, "test": None}, "hf:x")


def test_a_file_as_large_as_may_be_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "MOST_JSON_BYTES", 7)
    (tmp_path / "a.json").write_text('{"a":1}')
    checked: list[str] = []
    monkeypatch.setattr(sound, "_check_json", lambda path, name, found: checked.append(name))
    sound.check_folder(tmp_path)
    assert checked == ["a.json"]
    (tmp_path / "a.json").write_text('{"a":12}')
    with pytest.raises(InputError, match="has 8 bytes"):
        sound.check_folder(tmp_path)


def test_a_flag_of_several_values_is_spelled_again() -> None:
    """``--json`` and ``--csv`` are one option with two values."""
    import click

    @click.command()
    @click.option("--json", "form", flag_value="json")
    @click.option("--csv", "form", flag_value="csv")
    def command(form: str | None) -> None: ...

    for form in ("json", "csv"):
        assert folders._line(command, {"form": form}) == [f"--{form}"]
    assert folders._line(command, {}) == []


def test_probabilities_of_buckets_are_scipy_s_softmax() -> None:
    torch = pytest.importorskip("torch")
    assert torch
    from lengthwise.predictors import heads, targets

    said = np.random.default_rng(8).normal(3.0, 2.0, (6, 4))
    goal = targets.Bucket(np.array([0.0, 10.0, 100.0, 1000.0, 1e4]), np.ones(4))
    assert heads.read(None, said, goal) == pytest.approx(softmax(said, axis=1), rel=1e-12)
    for name, loss in heads.RANK_LOSSES.items():
        assert heads.loss_of(None, targets.Rank(), name, "cpu") is loss
