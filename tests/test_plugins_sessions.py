"""A session's finished answers, and live lengths that no longer fit, in the plugins."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise.context import Context
from lengthwise.policies.plugins import litellm
from lengthwise.policies.plugins.accuracy import Accuracy
from lengthwise.policies.plugins.calls import call_of
from lengthwise.policies.plugins.known import known_of, sound, with_chat
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.prompt_lengths import PromptLengths
from lengthwise.prediction import Prediction
from lengthwise.served_text import PromptReader
from lengthwise.sessions import Sessions
from tests.test_plugins_lengths import asked, entry, until


class LastAnswer:
    """Predicts the session's last answer again, else 30; within 10 tokens."""

    needs = frozenset({"prompt"})
    uses = frozenset({"previous_tokens"})

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def predict(
        self, prompts: list[str], *, context: Context | None = None, **given: Any
    ) -> Prediction:
        assert context is not None
        self.told.append(context.row(0))
        last = self.told[-1].get("previous_tokens") or np.nan
        tokens = 30.0 if np.isnan(last) else last
        return Prediction.distribution([[tokens - 10, tokens, tokens + 10]], [0.01, 0.5, 0.99])


def test_sessions_know_their_finished_answers_and_forget_the_oldest() -> None:
    sessions = Sessions(most=2)
    one, other = {"session_id": "1"}, {"session_id": "1", "tenant": "t"}
    assert sessions.before(one)["previous_answers"] == 0 and sessions.before({}) == {}
    sessions.finished(one, 10)
    sessions.finished(one, 40)
    sessions.finished(other, 7)
    sessions.finished({}, 99)
    assert sessions.before(one) == {
        "previous_answers": 2, "previous_log_tokens": pytest.approx(np.log(20)),
        "previous_tokens": 40,
    }  # fmt: skip
    assert sessions.before(other)["previous_tokens"] == 7
    sessions.before(one)  # used again: the other is the oldest now
    sessions.finished({"session_id": "2"}, 3)
    assert len(sessions) == 2 and sessions.before(other)["previous_answers"] == 0


@pytest.mark.parametrize(
    "sent, session",
    [
        ({"session_id": "s", "user": "u"}, "s"),
        ({"conversation_id": 7, "cache_salt": "c"}, "7"),
        ({"x-session-id": "h"}, "h"),
        ({"user": "u", "cache_salt": "c"}, "u"),
        ({"cache_salt": "c"}, "c"),
        ({"session_id": ["odd"], "user": True}, None),
        ({"session_id": ""}, None),
    ],
)
def test_a_session_has_many_names(sent: dict[str, Any], session: str | None) -> None:
    assert known_of(sent).get("session_id") == session


def test_what_somebody_says_to_be_known_is_checked() -> None:
    said = {"session_id": 3, "temperature": "warm", "tools": 1, "nonsense": 2, "model": None}
    assert sound(said) == {"session_id": "3", "tools": 1}
    assert sound(None) == {}


def test_a_chat_tells_its_system_prompt_and_earlier_answers() -> None:
    say = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "x" * 400}, {"role": "user", "content": "And now?"},
    ]  # fmt: skip
    call = call_of({"messages": say, "metadata": {"headers": {"X-Session-Id": "h"}}})
    assert (call.asked, call.known["session_id"]) == ("And now?", "h")
    assert call.known["previous_tokens"] == 100 and call.known["previous_answers"] == 1
    alike = call_of({"messages": [*say[:1], {"role": "user", "content": "Other"}]})
    assert alike.known["system_hash"] == call.known["system_hash"]
    assert "previous_tokens" not in alike.known
    seen = with_chat({"previous_answers": 1.0, "previous_tokens": 9.0}, call.known)
    assert seen["previous_tokens"] == 9  # seen, not estimated
    unseen = with_chat({"previous_answers": 0.0, "previous_tokens": np.nan}, call.known)
    assert unseen["previous_tokens"] == 100


def test_an_engine_s_prompt_tells_the_same_as_a_router_s() -> None:
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        f"<|im_start|>assistant\n{'x' * 400}<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    tokenizer = SimpleNamespace(all_special_tokens=[], decode=lambda ids, **options: text)
    served = PromptReader(tokenizer).served([0] * (len(text) // 4))
    say = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "x" * 400}, {"role": "user", "content": "And now?"},
    ]  # fmt: skip
    known = call_of({"messages": say}).known
    assert served.text == "And now?"
    assert served.told["system_hash"] == known["system_hash"]
    assert served.told["previous_tokens"] == pytest.approx(known["previous_tokens"], rel=0.02)


def test_vllm_s_next_request_of_a_session_knows_the_last_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fake predictor repeats the session's last answer, of which there is none at first."""

    def request(n: int, session: str, answer: int) -> Any:
        parameters = SimpleNamespace(extra_args={"session_id": session}, max_tokens=None)
        return entry(n, 10, sampling_params=parameters, num_output_tokens=answer)

    def order(made: Any, requests: list[Any]) -> list[int]:
        for one in requests:
            made.ask(one, None, needed=True)
        until(lambda: all(one.state == "ready" for one in requests), made)
        by_length = sorted(requests, key=lambda one: (one.predicted_tokens, one.sequence))
        for one in requests:
            made.finished(one)
        return [one.sequence for one in by_length]

    with asked(monkeypatch, "repeats", predict_timeout_s=20.0) as (made, _):
        assert order(made, [request(0, "long", 500), request(1, "short", 5)]) == [0, 1]
        assert order(made, [request(2, "long", 500), request(3, "short", 5)]) == [3, 2]


def test_transformers_orders_by_the_session_s_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers", "5.17")
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    from lengthwise.policies.plugins import transformers as plugin

    predictor = LastAnswer()
    monkeypatch.setattr(plugin, "saved_predictor", lambda folder: predictor)
    both_are_there = threading.Event()

    def known(request_id: str) -> dict[str, Any]:
        if request_id == "long 2":  # the engine takes in both before it schedules
            assert both_are_there.wait(60)
        return {"session_id": request_id.split()[0]}

    text = SimpleNamespace(all_special_tokens=[], decode=lambda ids, **options: "a question")
    plugin.register("sjf", predict="DIR", tokenizer=text, known=known, guard=0)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
    )  # fmt: skip
    manager = transformers.LlamaForCausalLM(config).eval().init_continuous_batching(
        generation_config=transformers.GenerationConfig(do_sample=False, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(
            scheduler_type="lengthwise", num_blocks=32, page_size=16, max_batch_tokens=64,
            max_requests_per_batch=1, use_cuda_graph=False,
        ),
    )  # fmt: skip

    def finished(n: int) -> list[str]:
        found: list[str] = []
        deadline = time.monotonic() + 120
        while len(found) < n and time.monotonic() < deadline:
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                found.append(result.request_id)
        return found

    manager.add_request([5, 6, 7], request_id="long 1", max_new_tokens=25)
    manager.add_request([5, 6, 7], request_id="short 1", max_new_tokens=4)
    manager.start()
    try:
        assert finished(2) == ["short 1", "long 1"]  # neither is predicted beyond its limit
        manager.add_request([5, 6, 7], request_id="long 2", max_new_tokens=60)
        manager.add_request([5, 6, 7], request_id="short 2", max_new_tokens=60)
        both_are_there.set()
        assert finished(2) == ["short 2", "long 2"]
    finally:
        manager.stop(block=True)
    assert [told.get("previous_tokens") for told in predictor.told[2:]] == [25, 4]
    assert predictor.told[0]["max_tokens"] == 25


def test_a_router_s_predictor_hears_of_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    from lengthwise.policies.plugins import prompt_lengths

    monkeypatch.setattr(prompt_lengths, "saved_predictor", lambda folder: LastAnswer())
    lengths = PromptLengths("DIR", 20.0, 256.0, Counters())
    call = call_of({"user": "u", "messages": [{"role": "user", "content": "hi"}]})
    first = asyncio.run(lengths.of(call))
    assert first.answer == pytest.approx(30, abs=1)
    lengths.ended(first, 80)
    assert asyncio.run(lengths.of(call)).answer == pytest.approx(80, abs=1)
    short = asyncio.run(lengths.of(call._replace(limit=50.0)))
    assert short.answer == 50 and max(short.interval) == 50


def test_litellm_tells_how_long_answers_were() -> None:
    strategy = object.__new__(litellm.RoutingStrategy)
    ended: list[tuple[Any, float]] = []
    strategy._lengths = SimpleNamespace(ended=lambda *of: ended.append(of))  # type: ignore
    strategy.ranking = SimpleNamespace(done=lambda request: None)  # type: ignore[assignment]
    strategy._callers, strategy._expected = {}, {"a": "A", "b": "B", "c": "C"}  # type: ignore
    for tag, response in (
        ("a", {"usage": {"completion_tokens": 12}}),
        ("b", None),  # failed
        ("c", SimpleNamespace(usage=SimpleNamespace(completion_tokens="many"))),
        ("unknown", {"usage": {"completion_tokens": 3}}),
    ):
        strategy.ended({"litellm_params": {"metadata": {litellm.TAG: tag}}}, response)
    assert ended == [("A", 12.0)] and not strategy._expected


def test_coverage_is_measured_and_low_coverage_said_once(caplog: pytest.LogCaptureFixture) -> None:
    accuracy, counters = Accuracy(made := Counters()), made
    for n in range(100):
        accuracy.finished("predictor", 10.0 + n % 7, 10 + n % 7, (5.2, 10.9))
    assert counters.gauges["recent_coverage", "predictor"] == pytest.approx(0.29, abs=0.02)
    assert counters.gauges["followed", "predictor"] == 1  # the order is right all the same
    for n in range(256):
        accuracy.finished("predictor", 10.0 + n % 7, 10 + n % 7, (5.0, 17.0))
    accuracy.finished("client", 5.0, 5)
    assert counters.gauges["recent_coverage", "predictor"] > 0.9
    assert caplog.text.count("90% intervals") == 1
    assert ("recent_coverage", "client") not in counters.gauges


def serve(lengths: PromptLengths, n: int, length: Callable[[int], float]) -> list[float]:
    async def all_of_them() -> list[float]:
        answers = []
        for i in range(n):
            expected = await lengths.of(call_of(f"say {10 + i % 40}"))
            lengths.ended(expected, length(10 + i % 40))
            answers.append(expected.answer)
        return answers

    return asyncio.run(all_of_them())


def test_a_router_does_not_follow_lengths_that_are_the_wrong_way_round(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counters = Counters()
    lengths = PromptLengths(lambda text: float(text.split()[1]), 20.0, 256.0, counters)
    assert set(serve(lengths, 50, lambda said: 100 - said)) <= set(range(10, 50))
    assert set(serve(lengths, 10, lambda said: said)) == {256.0}
    assert counters.counts["fallbacks", "drift"] == 10
    assert counters.gauges["followed", "predictor"] == 0
    assert serve(lengths, 300, lambda said: said)[-1] < 50
    assert counters.gauges["followed", "predictor"] == 1
    assert caplog.text.count("the wrong way round") == 1
