"""Ray Serve and LiteLLM themselves, as processes on loopback, in front of fake models.

Three replicas, one of them four times slower, serve one request at a time. Sending each in turn
asks more of the slow one than it can do; any router that looks at the replicas must be far better.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.policies.bundle import write_bundle
from lengthwise.policies.learned import MLP
from lengthwise.policies.load import load_router
from lengthwise.policy import RoutingPolicy, Score
from lengthwise.predictors import make_predictor
from lengthwise.serving.vllm import VllmUnavailable
from tests.engines.router_environment import run_check

# the first test that needs the environment makes it, which may take long
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
COUNT = 100
LOAD = {"seed": 0, "count": COUNT, "rate": 14.0}


def bundles(folder: Path) -> tuple[str, str]:
    """Two exported routers: by name, and a network that has learned to join the shortest queue."""
    one = np.array([[1.0, 1.0]])
    net = MLP(np.zeros(2), np.ones(2), np.array([False, False]), ((one, np.zeros(1)),))
    learned = RoutingPolicy(Score("learned", net, ("running_requests", "waiting_requests")))
    return (
        str(write_bundle(load_router("least-tokens"), folder / "least-tokens")),
        str(write_bundle(learned, folder / "learned")),
    )


def checked(script: str, task: dict[str, Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = run_check(script, {**LOAD, **task})
    except VllmUnavailable as error:
        pytest.skip(f"PyPI can't be reached, and the environment is not there yet: {error}")
    return found


def test_ray_serve(tmp_path: Path) -> None:
    by_name, learned = bundles(tmp_path)
    routers = {
        "round-robin": {"policy": "round-robin"},
        "least-tokens": {"policy": by_name},
        "dying": {"policy": learned},
        "full": {"policy": "jsq"},
    }
    found = checked("ray_serve_checks.py", {"routers": routers, "dies": ["dying"]})

    for name in ("round-robin", "least-tokens"):
        assert found[name]["answered"] == COUNT and not found[name]["retried"]
    assert found["least-tokens"]["mean_s"] < 0.5 * found["round-robin"]["mean_s"]
    # turns are taken over all requests; a replica that is too busy to be asked loses its last one
    turns = np.add([found["round-robin"]["by_slot"][str(slot)] for slot in range(3)],
                   found["round-robin"]["warmed"])  # fmt: skip
    assert max(turns) - min(turns) <= 3
    assert found["least-tokens"]["by_slot"]["2"] < 0.25 * COUNT  # the slow one

    assert found["dying"]["answered"] == COUNT
    # what the replica took with it failed at its client, which asked again
    assert 1 <= len(found["dying"]["retried"]) < 0.3 * COUNT
    assert found["left"] == 0  # no request is counted for ever
    # Ray Serve refuses the one where its own proxy would go around it; the other reads no body
    assert "not supported on the ingress deployment" in found["ingress"].pop("itself")
    assert found["ingress"] == {"behind": "built", "by http": [True, ""]}
    assert found["odd"] == 8
    told, streamed = found["judged"]  # exactly; and 50 of the last 150 as half of their length
    assert told == [0.0] * len(told) and len(told) == 3
    assert streamed == [0.0, 0.0, pytest.approx(50 / 150, abs=0.05)]
    counted, still = found["hung up"]  # three are served, others are ranked until there is a seat
    assert counted > 3 and still == 0


def test_litellm_s_proxy() -> None:
    """By YAML alone, with another plugin in the list that forbids some calls."""
    found = checked("litellm_proxy_checks.py", {})
    unset, no_json, name, setting, folder = found["refused"]
    assert "is not set: say LENGTHWISE_LITELLM=" in unset and "is not JSON" in no_json
    assert "did you mean 'least-tokens'" in name and "did you mean 'policy'" in setting
    assert "/nowhere" in folder
    assert found["first"] == 200 and found["statuses"] == [200]
    assert min(found["by replica"]) > 1 and found["left"] == 0  # 12 in all
    assert found["denied"] >= 400  # the other plugin's word counts
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert found[path] == [200, 1, 0], path
    assert found["reset"] == [200, 200] and found["again"] is True


def test_litellm(tmp_path: Path) -> None:
    by_name, learned = bundles(tmp_path)
    predictor = tmp_path / "predictor"
    lengths = np.arange(1, 21)
    made = make_predictor("prompt-length")
    made.fit(["a"] * 20, 3 * lengths, prompt_tokens=lengths).save(predictor)
    late = {"predict_timeout_s": 60.0}  # a busy machine is not what is tested
    strategies = {
        "round-robin": {"policy": "round-robin", "told": False, "predict": str(predictor), **late},
        "least-tokens": {"policy": by_name, "told": True, **late},
        "dying": {"policy": learned, "told": False},
    }
    found = checked("litellm_checks.py", {"strategies": strategies, "dies": ["dying"]})

    for name in ("round-robin", "least-tokens", "dying"):  # LiteLLM itself asks again
        assert found[name]["answered"] == COUNT and not found[name]["failed"]
        assert found[name]["left"] == 0
    for name in ("round-robin", "least-tokens"):  # prompts may be longer than those trained on
        counted = set(found[name]["counts"]) - {"abstained:predictor"}
        assert counted == {"predictions:predictor"}
    assert found["least-tokens"]["mean_s"] < 0.5 * found["round-robin"]["mean_s"]
    assert found["least-tokens"]["by_replica"]["replica2"] < 0.25 * COUNT

    assert found["left after hanging up"] == 0
    for kind, streams in found["streams"].items():
        assert streams.pop("while read") == 1, kind
        assert set(streams.values()) == {0}, (kind, streams)
    assert len(found["odd"]) == 3
    assert "await router.acompletion(...)" in found["synchronous"]
    assert found["all dead"].startswith("RouterRateLimitError: No deployments available")
