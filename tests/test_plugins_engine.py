"""A whole vLLM on the CPU under the plugin, in short; ``make engines`` has the long version."""

from __future__ import annotations

import json

import pytest

from lengthwise.serving.vllm import VllmUnavailable
from tests.engines import sglang_environment, whole_engine, whole_environment

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


def test_sglang_keeps_to_priorities_but_in_order_and_preemption() -> None:
    try:
        found = sglang_environment.run_checks()
    except VllmUnavailable as error:
        pytest.skip(str(error))
    for name in ("lowest first", "highest first"):
        # shortest remaining first, of lengths 80, none, 20, [1, 2] and "100"; the default is 50
        assert found[name] == {"order": "cbdae", "kept": True, "labels": 2}
    # a full queue: whom a newcomer without priority, or of 3, 4 or 6, costs the place
    assert found["stock"] == ["b"] == found["full, lowest first"][2]
    assert found["full, lowest first"] == [["new"], ["b"], ["b"], ["new"]]
    assert found["full, highest first"] == [["new"], ["new"], ["new"], ["e"]]
    first, longer, threshold = found["preempted"]
    assert first == {"done": True, "released": [["long", 3]], "kept": True}
    assert longer == threshold == {"done": False, "released": [], "kept": True}
    front = found["front"]  # nine tokens a prompt token, a client's own word, and 50 at most
    assert {rid: one["lengthwise_tokens"] for rid, one in front["sent"].items()} == {
        "1": 45, "2": 4, "3": 50,
    }  # fmt: skip
    assert front["ended"] == [[45, 11], [50, 50]] and front["still there"] == ["2"]
    assert "without --enable-priority-scheduling" in found["not enabled"]
    assert found["guard"].startswith("SystemExit: LENGTHWISE_SGLANG: lengthwise setting guard")
    assert "no +preempt" in found["preemption"]
