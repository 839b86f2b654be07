"""Settings judged before a server starts, engine by engine, in the plugins' own words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies.plugins import check
from lengthwise.policies.plugins.check import ENGINES, STOCK, check_settings


@pytest.mark.parametrize(
    ("given", "engine", "runs"),
    [
        ({"policy": "srtf"}, "vllm", "policy srtf (score srtf), preemption recompute"),
        ({"lengthwise": {"policy": "fcfs", "record": "{tmp}/r"}}, "vllm",
         "policy fcfs (vLLM's own class)"),
        ({"policy": "srtf"}, "sglang", "policy srtf (score srtf), predictor none, record none"),
        ({"policy": "fcfs", "record": "{tmp}/r"}, "sglang",
         "policy fcfs (SGLang's own order), predictor none, record {tmp}/r"),
    ],
)  # fmt: skip
def test_what_an_engine_would_run(tmp_path: Path, given: Any, engine: str, runs: str) -> None:
    def here(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: here(inner) for key, inner in value.items()}
        return value.replace("{tmp}", str(tmp_path))

    found = check_settings(here(given), engine)
    assert found.engine == engine and found.notices == ()
    assert found.runs.startswith(here(runs))
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    assert found.settings.policy == here(given).get("lengthwise", here(given))["policy"]


def test_the_engine_is_vllm_unless_it_is_said() -> None:
    assert check_settings({"policy": "srtf"}).engine == "vllm" and set(ENGINES) == {
        "vllm",
        "sglang",
    }
    with pytest.raises(UnknownNameError, match="did you mean 'sglang'"):
        check_settings({"policy": "srtf"}, "sglnag")


def test_other_keys_of_the_configuration_are_told_and_not_read() -> None:
    config: Any = {"lengthwise": {"policy": "srtf"}, "b": {"c": 1}, "a": 2}
    assert check_settings(config).notices == ("not lengthwise's, and not checked: a, b",)
    assert check_settings({"lengthwise": {"policy": "srtf"}}).notices == ()
    with pytest.raises(UnknownNameError, match="did you mean 'lengthwise'"):
        check_settings({"lengthwize": {"policy": "srtf"}})
    with pytest.raises(InputError, match="takes an object of settings, not"):
        check_settings(["srtf"])
    with pytest.raises(UnknownNameError, match="'polcy'"):
        check_settings({"polcy": "srtf"})


@pytest.mark.parametrize(
    ("given", "engine", "said"),
    [
        ({"policy": "srtf+admit:reserve=0.5"}, "vllm", "memory-aware admission"),
        ({"policy": "fcfs", "policy_timeout_s": 3}, "vllm", "policy_timeout_s"),
        ({"policy": "hrrn"}, "sglang", "ranks must agree"),
        ({"policy": "srtf", "guard": 5}, "sglang", "guard"),
        ({"policy": "fcfs"}, "sglang", "without predictor or record it does nothing"),
        ({"policy": "srtf", "record": "/proc/none/here"}, "vllm", "record: can't write to"),
        ({"policy": "srtf", "predictor": "/nowhere"}, "vllm", "is no saved predictor"),
    ],
)
def test_what_a_plugin_would_refuse_is_refused(given: Any, engine: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_settings(given, engine)


def test_a_score_reads_what_the_engine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    values = SimpleNamespace(require=lambda names, of: asked.append((list(names), of)))
    monkeypatch.setattr(check, "VALUES", values)
    check_settings({"policy": "srtf"})
    assert asked == [(["expected_remaining_tokens"], "policy 'srtf'")]
    check_settings({"policy": "fcfs"})
    assert len(asked) == 1  # vLLM's own order reads nothing
    assert STOCK.parallel_config.pipeline_parallel_size == 1  # one that no policy is refused on
    assert STOCK.kv_transfer_config is None and STOCK.scheduler_config.policy == "fcfs"
