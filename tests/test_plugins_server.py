"""Real vLLM servers on the CPU with real clients: what docs/engines.md promises of a live server.

Each server goes through its checks in order (``tests/engines/live_server.py``); here they are told.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.predictors import make_predictor
from lengthwise.serving.vllm import VllmUnavailable
from tests.engines import live_model, live_server, whole_environment

# the first test that needs the environment makes it, which may take long
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(3000)]
TOLD = [(case, check.__name__) for case, checks in live_server.CHECKS.items() for check in checks]


@functools.cache
def told(case: str) -> dict[str, dict[str, Any]]:
    """What the checks of a server found, by name."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prompts = [f"Tell me {'so ' * n}please" for n in range(40)]
        predictor = make_predictor("ridge").fit(prompts, 5 * np.arange(1, 41))
        predictor.save(root / "predictor")
        (root / "model").mkdir()
        (root / "server").mkdir()
        model = live_model.make(root / "model")
        given = [case, str(root / "server"), str(model), str(root / "predictor")]
        try:
            lines = whole_environment.run(given, "tests.engines.live_server")
        except VllmUnavailable as error:
            pytest.skip(str(error))
        except AssertionError as error:  # the server did not start: so all of its checks are told
            return {"": {"error": str(error)}}
    rows = [json.loads(line) for line in lines if line.startswith('{"check"')]
    return {row["check"]: row for row in rows}


@pytest.mark.parametrize("case, check", TOLD)
def test_a_live_server(case: str, check: str) -> None:
    checks = told(case)
    found = checks.get(check, checks.get(""))
    assert found is not None, f"{case} ended before {check}"
    assert found["error"] is None, found["error"]
