"""A whole vLLM on the CPU under the plugin, in short; ``make engines`` has the long version."""

from __future__ import annotations

import json

import pytest

from lengthwise.serving.vllm import VllmUnavailable
from tests.engines import whole_engine, whole_environment

# the first test that needs the environment makes it, which may take long
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(3000)]


def run(*arguments: str) -> list[str]:
    try:
        return whole_environment.run(arguments)
    except VllmUnavailable as error:
        pytest.skip(str(error))


def test_the_tokens_are_those_of_stock() -> None:
    (line,) = (line for line in run("tokens", "srtf+preempt:price=0") if "tokens" in line)
    assert line.startswith("srtf+preempt:price=0: the same tokens")


def test_a_server_with_a_predictor_that_hangs_serves_everybody() -> None:
    """Thirty-two OpenAI clients, four of whom hang up; what they get is checked where they are."""
    counted = json.loads(run("hangs")[-1])["metrics"]
    late = counted['lengthwise_fallbacks_total{engine="0",reason="predictor-timeout"}']
    assert late > 0 and whole_engine.asked_for(counted) == 32
