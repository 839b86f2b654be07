"""`lengthwise profile`: what it sets, what it says when vLLM does not start, stopping and going on.

The engine is one whose every time is known; a real vLLM is profiled by ``tests.engines.run``.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lengthwise.errors import InputError
from lengthwise.serving.timing import build, measure, measure_vllm, vllm_start
from lengthwise.serving.timing.parts import Parts
from lengthwise.serving.timing.profile import capture_sizes
from lengthwise.serving.timing.vllm_plan import batches, sweep_plan
from lengthwise.training.cli import main
from tests.engines.fake_sweep import GRAPHS, recorded

ABOUT: dict[str, Any] = {
    "engine": {"name": "vllm", "version": "0.26.0"}, "dtype": "bfloat16", "tensor_parallel": 1,
    "num_gpu_blocks": 50_000, "block_size": 16, "async_scheduling": True, "max_num_seqs": 256,
    "max_num_batched_tokens": 2048, "max_model_len": 131_072, "date": "2026-11-27",
    "cudagraph_capture_sizes": GRAPHS.tolist(), "gpu": "NVIDIA H100 80GB HBM3",
}  # fmt: skip
LINE = "profile --model llama-3.1-8b --out p.json --thoroughness 0.25"


def built(name: str, rows: pd.DataFrame, clients: pd.DataFrame, about: Any) -> dict[str, Any]:
    """What ``build_profile`` would write, without its fit."""
    if len(rows) < 500:
        raise InputError("too few iterations")
    return {"name": name, **about, "iterations": len(rows)}


class FakeEngine:
    """Measures groups on a clock of its own; ``stop_at`` ends the work in that group."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.swept: list[int] = []
        self.started: list[dict[str, Any]] = []
        self.stop_at: int | None = None
        self.now_s = 100.0
        self.blocks = 50_000
        monkeypatch.setattr(measure, "_gpu", lambda *_: ("NVIDIA H100 80GB HBM3", 79.1))
        monkeypatch.setattr(build, "build_profile", built)  # a fit takes seconds
        monkeypatch.setattr(measure_vllm, "start", self.start)
        monkeypatch.setattr(
            measure_vllm, "about", lambda _: ABOUT | {"num_gpu_blocks": self.blocks}
        )
        monkeypatch.setattr(measure_vllm, "sweep", self.sweep)
        monkeypatch.setattr(measure_vllm, "frontend", self.frontend)

    def start(self, model: Path, *, log: Path, **options: Any) -> Any:
        self.started.append(options)
        return SimpleNamespace(shutdown=lambda: None)

    async def sweep(
        self, _: Any, plan: list[dict[str, Any]], seconds: float, seed: int = -1
    ) -> pd.DataFrame:
        (group,) = plan
        if seed == self.stop_at:
            raise KeyboardInterrupt
        self.swept.append(seed)
        shown = {"context": [], "steps": [[0, 2, [[64, 0]]]]} if "requests" in group else group
        rows = recorded([shown], seed + 1, began_s=self.now_s)
        self.now_s = float(rows["done_ns"].max()) / 1e9 + 0.1
        command = rows.iloc[[0]].assign(label=-1)  # the request that asked for the sweep
        return pd.concat([command, rows], ignore_index=True)

    async def frontend(self, _: Any) -> pd.DataFrame:
        names = [f"alone{k}" for k in range(8)] + [f"level64n{k}" for k in range(64)]
        count = len(names)
        submit = np.arange(count) * 10**9
        return pd.DataFrame(
            {
                "level": [1] * 8 + [64] * 64, "prompt": [16, 256, 1024, 4096] * 2 + [32] * 64,
                "submit_ns": submit, "first_ns": submit + 20 * 10**6, "tokens": 48,
                "last_ns": submit + 400 * 10**6, "engine_added_ns": submit + 10**6,
                "engine_scheduled_ns": submit + 2 * 10**6,
                "engine_first_ns": submit + 18 * 10**6, "engine_last_ns": submit + 398 * 10**6,
            }, index=pd.Index(names, name="name"),
        )  # fmt: skip


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeEngine:
    monkeypatch.chdir(tmp_path)
    return FakeEngine(monkeypatch)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[Any, str, str]]:
    def ran(line: str) -> tuple[Any, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(shlex.split(line))
        return end.value.code, *capsys.readouterr()

    return ran


def plan() -> list[dict[str, Any]]:
    return sweep_plan(50_000 * 16, 2048, 256, 131_072, thoroughness=0.25)


def test_a_stopped_profile_goes_on_to_the_same_files(engine: FakeEngine, run: Any) -> None:
    assert run(LINE)[0] == 0
    groups = len(plan())
    assert engine.swept == list(range(groups))
    whole = pd.read_parquet("p.iterations.parquet")
    Path("p.json").rename("whole.json")
    engine.swept, engine.stop_at, engine.now_s = [], 5, 100.0
    code, out, err = run(LINE)
    assert (code, out) == (130, "") and err.endswith(
        "lengthwise: SIGINT: 5 measured groups of batches kept in p.parts; the same command goes "
        "on from there\n"
    )
    assert {path.name for path in Path().iterdir()} == {
        "p.parts", "whole.json", "p.iterations.parquet", "p.frontend.parquet",
    }  # fmt: skip
    engine.swept, engine.stop_at, engine.blocks = [], None, 50_003
    code, out, err = run(LINE)
    assert (code, out) == (0, "wrote p.json\n")
    assert "going on: p.parts holds 5 measured groups of batches" in err
    # a burst warms the new engine up, and is not kept; then come the groups that were left
    assert engine.swept == [-1, *range(5, groups)]
    assert not Path("p.parts").exists()
    rows = pd.read_parquet("p.iterations.parquet")
    shape = [name for name in rows if not name.endswith("_ns")]
    pd.testing.assert_frame_equal(rows[shape], whole[shape])
    assert rows["label"].max() == groups - 1 and (rows["label"] == -1).sum() == groups
    assert rows["schedule_ns"].is_monotonic_increasing
    made, before = (json.loads(Path(name).read_text()) for name in ("p.json", "whole.json"))
    assert made == before
    assert made["num_gpu_blocks"] == 50_000  # of the first start
    assert made["name"] == "h100/llama-3.1-8b" and made["iterations"] == len(rows)


def test_other_work_is_refused_and_forced_work_begins_anew(engine: FakeEngine, run: Any) -> None:
    engine.stop_at = 2
    assert run(LINE)[0] == 130
    engine.stop_at = None
    for more, said in (
        ("--max-num-seqs 64", "whose max_num_seqs is 1024, not 64; --force discards them"),
        ("--quantization fp8", "whose quantization is None, not 'fp8'"),
        ("--thoroughness 1", "whose thoroughness is 0.25, not 1.0"),
    ):
        code, _, err = run(f"{LINE} {more}")
        assert code == 2 and said in err and err.count("\n") == 1
    code, _, err = run(LINE.replace("3.1-8b", "3.2-3b"))
    assert code == 2 and "whose model is 'llama-3.1-8b', not 'llama-3.2-3b'" in err
    assert len(engine.started) == 1 and len(Parts.beside(Path("p.json")).done()) == 2
    engine.swept = []
    assert run(f"{LINE} --max-num-seqs 64 --force")[0] == 0
    assert engine.swept[0] == 0 and engine.started[-1]["max_num_seqs"] == 64
    code, _, err = run(LINE)
    assert code == 2 and "'p.json' is there already" in err
    Path("q.parts").mkdir()
    assert "holds something else" in run(LINE.replace("p.json", "q.json"))[2]


def test_what_the_server_would_choose_is_measured_unless_said(
    engine: FakeEngine, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(f"{LINE} --quantization fp8 --kv-cache-dtype fp8 --tensor-parallel 2")[0] == 0
    assert engine.started == [
        {
            "tensor_parallel_size": 2, "max_num_seqs": 1024, "max_num_batched_tokens": 8192,
            "quantization": "fp8", "kv_cache_dtype": "fp8",
        }
    ]  # fmt: skip
    made = json.loads(Path("p.json").read_text())
    assert made["name"] == "2xh100/llama-3.1-8b-fp8-kv-fp8"
    assert made["command"].endswith("--quantization fp8 --kv-cache-dtype fp8")
    for gpu, gib, chosen in (
        ("NVIDIA A100-SXM4-80GB", 79.1, (256, 2048)), ("NVIDIA L40S", 44.4, (256, 2048)),
        ("NVIDIA H200", 139.8, (1024, 8192)),
    ):  # fmt: skip
        monkeypatch.setattr(measure, "_gpu", lambda *_, gpu=gpu, gib=gib: (gpu, gib))
        engine.stop_at = 0
        assert run(LINE.replace("p.json", f"{gib}.json").replace("0.25", "1"))[0] == 130
        options = engine.started[-1]
        assert (options["max_num_seqs"], options["max_num_batched_tokens"]) == chosen
    names = [
        measure._name(gpu, measure.model_shape("qwen2.5-7b"), 1, None, None)
        for gpu in ("NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090", "NVIDIA B200")
    ]
    assert names == ["a100/qwen2.5-7b", "4090/qwen2.5-7b", "b200/qwen2.5-7b"]
    for given, said in (
        ({"max_num_seqs": 100, "max_num_batched_tokens": 50}, "must be at least max_num_seqs"),
        ({"quantization": "fp4"}, "unknown quantization 'fp4'"),
        ({"kv_cache_dtype": "fp4"}, "unknown KV cache dtype 'fp4'"),
        ({"engine": "torch", "kv_cache_dtype": "fp8"}, "--engine torch measures bfloat16"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            measure.profile(**given)


def test_time_that_is_over_leaves_groups_out_and_says_so(engine: FakeEngine, run: Any) -> None:
    """A group is never cut: the first has been measured when the time is over."""
    code, _, err = run(f"{LINE} --seconds 0.000001")
    assert code == 2 and f"{len(plan()) - 1} groups of batches were left out" in err
    assert "too few iterations" in err
    code, _, err = run(f"{LINE} --seconds 1e6")  # goes on from the one
    assert code == 0 and "holds 1 measured groups" in err and engine.swept.count(0) == 1


def test_progress_counts_planned_iterations(engine: FakeEngine) -> None:
    told: list[tuple[int, int]] = []
    measure.profile(out="p.json", thoroughness=0.25, progress=lambda *at: told.append(at))
    sizes = [batches(group, 2048) for group in plan()]
    assert [done for done, _ in told] == [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    assert {total for _, total in told} == {sum(sizes)}
    assert batches({"requests": [[3000, 7], [1100, 90]]}, 2048) == 2 + 90
    assert batches({"context": [], "steps": [[0, 3, []], [1, 8, []]]}, 2048) == 11


def test_groups_of_another_boot_follow_in_time(tmp_path: Path) -> None:
    parts = Parts.open(tmp_path / "p.json", {"a": 1})
    rows = pd.DataFrame(
        {
            "schedule_ns": [50, 60], "scheduled_ns": [52, 62], "done_ns": [58, -1],
            "updated_ns": [59, -1], "label": [0, 0],
        }
    )  # fmt: skip
    parts.write(0, rows)
    parts.write(1, rows - 10 * (rows > 0))  # its clock began anew
    found = parts.iterations()
    assert found["schedule_ns"].tolist()[:2] == [40, 50]  # time decides which is first
    assert found["done_ns"].tolist()[1] == -1
    parts.write(1, rows + 5 * (rows > 0))
    found = parts.iterations()
    assert found["schedule_ns"].tolist() == [50, 60, 59 + 10**9, 69 + 10**9]
    assert found["done_ns"].tolist() == [58, -1, 67 + 10**9, -1]
    assert parts.seconds() == pytest.approx(2 * 9e-9)
    # an engine's facts are those of the first that was asked, whatever a later one allots
    assert parts.engine({"blocks": 7}) == {"blocks": 7} == parts.engine({"blocks": 9})
    assert parts.done() == [0, 1] and parts.read("clients") is None


# What vLLM needs, and why it does not start


def test_what_vllm_needs_is_set_unless_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*there: str) -> None:
        monkeypatch.setattr(vllm_start, "find_spec", lambda name: name if name in there else None)

    names = ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "VLLM_WORKER_MULTIPROC_METHOD",
             "VLLM_USE_FLASHINFER_SAMPLER", "VLLM_CACHE_ROOT")  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(os, "environ", {"CUDA_HOME": "/nowhere", "HOME": os.environ["HOME"]})
        monkeypatch.setattr(vllm_start.shutil, "which", lambda name: None)
        found()
        assert vllm_start.settle() == dict(zip(names, ("1", "1", "spawn", "0"), strict=False))
        assert vllm_start.settle() == {}
    for there, compiler, sampler in (
        (("flashinfer",), None, True), (("flashinfer",), "/bin/nvcc", False),
        (("flashinfer", "flashinfer_jit_cache"), None, False),
    ):  # fmt: skip
        with monkeypatch.context() as patched:
            patched.setattr(os, "environ", {"CUDA_HOME": "/nowhere", "HF_HUB_OFFLINE": "0"})
            monkeypatch.setattr(vllm_start.shutil, "which", lambda name, at=compiler: at)
            found(*there)
            assert ("VLLM_USE_FLASHINFER_SAMPLER" in vllm_start.settle()) is sampler
            assert os.environ["HF_HUB_OFFLINE"] == "0"
    with monkeypatch.context() as patched:
        patched.setattr(os, "environ", {})
        patched.setattr(os, "access", lambda path, mode: False)
        assert vllm_start.settle()["VLLM_CACHE_ROOT"].endswith("lengthwise-vllm/vllm_cache_root")
        assert Path(os.environ["TRITON_CACHE_DIR"]).name == "triton_cache_dir"
        assert "TORCHINDUCTOR_CACHE_DIR" in os.environ
    with monkeypatch.context() as patched:
        patched.setattr(os, "environ", {})
        patched.setattr(os, "access", lambda path, mode: True)
        assert "VLLM_CACHE_ROOT" not in vllm_start.settle()


CORE = "(EngineCore_DP0 pid=41) ERROR 11-27 12:00:01 [core.py:1330] "
WORKER = "(Worker_TP1 pid=77) ERROR 11-27 12:00:00 [multiproc_executor.py:901] "
OUT_OF_MEMORY = [
    "EngineCore failed to start.", "Traceback (most recent call last):",
    '  File "vllm/v1/engine/core.py", line 1320, in run_engine_core', "    raise x",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 112.00 MiB.",
]  # fmt: skip
FAILED = RuntimeError("Engine core initialization failed. See root cause above. Failed core: {}")


def log(prefix: str, lines: list[str]) -> str:
    return "".join(f"{prefix}{line}\n" for line in lines)


def test_the_cause_is_the_process_s_own(tmp_path: Path) -> None:
    said = vllm_start.cause(
        "INFO 11-27 12:00:00 [a.py:1] fine\n" + log(CORE, OUT_OF_MEMORY), FAILED
    )
    assert said == (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 112.00 MiB. (is another process "
        "using the GPU? --tensor-parallel shares a model)"
    )
    echo = ["Traceback (most recent call last):", "    x()",
            "Exception: WorkerProc initialization failed due to an exception in a background "
            "process. See stack trace for root cause."]  # fmt: skip
    kernel = [
        "Traceback (most recent call last):",
        "    op()",
        "AttributeError: '_OpNamespace' '_C' object has no attribute 'silu_and_mul'",
    ]
    assert vllm_start.cause(log(WORKER, kernel) + log(CORE, echo), FAILED) == (
        "AttributeError: '_OpNamespace' '_C' object has no attribute 'silu_and_mul'"
    )
    # of a chain the first: what was raised from it only passes it on
    chain = [
        *kernel,
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        "Traceback (most recent call last):",
        "    load()",
        "ValueError: no backend",
    ]
    assert "silu_and_mul" in vllm_start.cause(log(CORE, chain), FAILED)
    apart = [*kernel, *echo[:2], "ValueError: no backend"]  # one that was handled, then the cause
    assert vllm_start.cause(log(CORE, apart), FAILED) == "ValueError: no backend"
    multiline = ["Traceback (most recent call last):", "    x()", "ValueError:", "  two lines"]
    assert vllm_start.cause(log(CORE, multiline), FAILED) == "ValueError: two lines"


def test_the_cause_without_a_traceback() -> None:
    class ValidationError(ValueError):
        pass

    unknown = ValidationError(
        "1 validation error for ModelConfig\n  Value error, Model architectures ['FooForCausalLM'] "
        "are not supported for now. [type=value_error, input_value=1]"
    )
    assert vllm_start.cause("", unknown) == (
        "ValidationError: Model architectures ['FooForCausalLM'] are not supported for now."
    )
    outer = RuntimeError("outer")
    outer.__cause__ = OSError("the disk is full")
    assert vllm_start.cause("", outer) == "OSError: the disk is full"
    killed = RuntimeError("See root cause above. Failed core proc(s): {'EngineCore_DP0': -9}")
    assert vllm_start.cause("", killed) == (
        "its process was ended by signal 9, as the machine does when its memory is full"
    )
    long = vllm_start.cause("", ValueError("x" * 1000))
    assert len(long) == vllm_start.MOST_SAID and long.endswith("…")
    assert "--max-model-len" in vllm_start.cause("", ValueError("the model's max seq len (9) …"))


def test_what_an_engine_prints_goes_to_its_log(tmp_path: Path) -> None:
    """Also what processes print that go on after the start; progress is seen on the terminal."""
    code = (
        "import subprocess, sys\n"
        "from pathlib import Path\n"
        "from lengthwise.serving.timing.vllm_start import output_to\n"
        "with output_to(Path('log')):\n"
        "    print('of this process')\n"
        "    print('progress', file=sys.stderr)\n"
        "    child = subprocess.Popen(['sh', '-c', 'read x; echo of a child >&2'], stdin=-1)\n"
        "child.communicate(b'\\n')\n"
        "print('after')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("after\n", "progress\n")
    assert (tmp_path / "log").read_text() == "of this process\nof a child\n"


def test_an_engine_that_does_not_start_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Any
) -> None:
    """A vLLM that fails as the real one does: its process prints the cause, we are told to look."""
    failing = tmp_path / "vllm"
    (failing / "engine").mkdir(parents=True)
    (failing / "v1" / "engine").mkdir(parents=True)
    for folder in (failing, failing / "engine", failing / "v1", failing / "v1" / "engine"):
        (folder / "__init__.py").write_text("")
    (failing / "engine" / "arg_utils.py").write_text(
        "class AsyncEngineArgs:\n    def __init__(self, **options): pass\n"
    )
    (failing / "v1" / "engine" / "async_llm.py").write_text(
        "import os\n"
        "class AsyncLLM:\n"
        "    @staticmethod\n"
        "    def from_engine_args(args):\n"
        f"        os.write(2, {log(CORE, OUT_OF_MEMORY).encode()!r})\n"
        f"        raise RuntimeError({str(FAILED)!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(measure, "_gpu", lambda *_: ("NVIDIA H200", 139.8))
    code, out, err = run("profile --out p.json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "vLLM did not start: OutOfMemoryError: CUDA out of memory" in err
    assert err.endswith("all that it said is in p.parts/vllm.log\n")
    assert "EngineCore failed to start" in Path("p.parts/vllm.log").read_text()
    assert not Path("p.json").exists()
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]


def test_graphs_of_the_fake_engine_are_vllm_s() -> None:
    assert ABOUT["cudagraph_capture_sizes"] == capture_sizes(256, 2048).tolist()
