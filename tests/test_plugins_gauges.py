"""Gauges of expected work: by hand, and as a whole vLLM's stat logger."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest

from lengthwise.policies.plugins.vllm import gauges
from lengthwise.policies.plugins.vllm.gauges import Backlog, Logging
from lengthwise.serving.vllm import VllmUnavailable
from lengthwise.starvation import UNKNOWN_TOKENS
from tests.engines import whole_environment


def test_a_backlog_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "RECENT", 2)
    backlog = Backlog()
    assert backlog.answer_tokens == UNKNOWN_TOKENS
    backlog._lengths = gauges.deque(maxlen=2)
    backlog.generated(40, [30])  # ten tokens are of others
    assert backlog.tokens(2, 3) == {
        "predicted_backlog_tokens": 3 * 30 + 2 * 30 - 10, "predicted_waiting_tokens": 90,
        "predicted_answer_tokens": 30,
    }  # fmt: skip
    backlog.generated(0, [])
    backlog.generated(100, [50])
    assert backlog.answer_tokens == 40
    # those that run made more than was expected of them: one more each
    assert backlog.tokens(1, 0)["predicted_backlog_tokens"] == 1
    backlog.generated(10, [10])
    assert backlog.answer_tokens == 30  # of the last two
    # nobody is there: what was made of requests whose end was not told is forgotten
    assert backlog.tokens(0, 0)["predicted_backlog_tokens"] == 0
    assert backlog.tokens(1, 0)["predicted_backlog_tokens"] == 30


def stats(running: int, waiting: int, skipped: int = 0) -> Any:
    return SimpleNamespace(
        num_running_reqs=running, num_waiting_reqs=waiting, num_skipped_waiting_reqs=skipped
    )


def test_it_is_idle_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(model_config=SimpleNamespace(served_model_name=["a", "b"], model="m"))
    for said in (None, "", "0"):
        if said is None:
            monkeypatch.delenv("LENGTHWISE_GAUGES", raising=False)
        else:
            monkeypatch.setenv("LENGTHWISE_GAUGES", said)
        idle = Logging(config, 7)
        idle.record(stats(1, 1), None)
        assert idle._gauges == {}
    monkeypatch.setenv("LENGTHWISE_GAUGES", "1")
    shown = Logging(config, 7)
    shown.record(stats(0, 1, skipped=2), None)
    shown.record(None, SimpleNamespace(num_generation_tokens=5, finished_requests=[]))
    value = prometheus_client.REGISTRY.get_sample_value(
        "lengthwise:predicted_waiting_tokens", {"model_name": "a", "engine": "7"}
    )
    assert value == 3 * UNKNOWN_TOKENS
    config.model_config.served_model_name = None
    assert gauges._model_name(config) == "m"
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        gauges.Other  # noqa: B018


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_vllm_finds_makes_and_calls_it() -> None:
    """Its own loader of plugins, and its own classes of counts."""
    try:
        lines = whole_environment.run([], "tests.engines.gauges_check")
    except VllmUnavailable as error:
        pytest.skip(str(error))
    found = {line.split("{")[0]: float(line.split()[-1]) for line in lines if "{" in line}
    assert found == {
        "lengthwise:predicted_backlog_tokens": 140.0, "lengthwise:predicted_waiting_tokens": 90.0,
        "lengthwise:predicted_answer_tokens": 30.0,
    }  # fmt: skip
