"""What drives vLLM, on fakes of it: the sweep, the recorder, its environment and its replica."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import platform
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lengthwise.errors import InputError, InvariantError, LengthwiseError, UnknownNameError
from lengthwise.picoseconds import PS
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import SchedulingPolicy, Score
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.inputs import prepare
from lengthwise.serving.reference.request import Request
from lengthwise.serving.reference.timeline import Step
from lengthwise.serving.scoring import Features, Scorer
from lengthwise.serving.timing import LinearTiming, measure_vllm
from lengthwise.serving.timing.columns import COLUMNS, EVENTS
from lengthwise.serving.vllm import backend, environment
from lengthwise.serving.vllm.client import Vllm, VllmScheduler
from lengthwise.workload import Workload

OURS = ("vllm_sweep", "vllm_recorder")


class FakeVllm:
    """As much of vLLM's scheduler as the sweep and the recorder lie on."""

    def __init__(self, *, vllm_config: Any = None) -> None:
        self.requests: dict[str, Any] = {}
        self.running: list[Any] = []
        self.waiting: list[Any] = []
        self.aborted: list[str] = []
        self.next: SimpleNamespace | None = None  # what ``schedule`` gives
        self.kv_cache_manager = SimpleNamespace(
            enable_caching=True,
            block_pool=SimpleNamespace(num_gpu_blocks=100, get_num_free_blocks=lambda: 60),
            coordinator=Coordinator(),
        )
        model = SimpleNamespace(get_vocab_size=lambda: 50)
        self.vllm_config = SimpleNamespace(model_config=model)

    def add_request(self, request: Any) -> None:
        self.requests[request.request_id] = request

    def schedule(self) -> Any:
        return self.next

    def update_from_output(self, output: Any, results: Any) -> Any:
        return results

    def finish_requests(self, names: list[str], status: str) -> None:
        assert status == "aborted"
        self.aborted += names
        for name in names:
            self.requests.pop(name, None)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """The sweep and the recorder, imported beside a fake of vLLM."""

    def module(name: str, **content: Any) -> None:
        made = ModuleType(name)
        for key, value in content.items():
            setattr(made, key, value)
        monkeypatch.setitem(sys.modules, name, made)

    def request(**given: Any) -> Any:
        return SimpleNamespace(num_computed_tokens=0, **given)

    for name in ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        module(name)
    sys.modules["vllm"].SamplingParams = lambda **given: SimpleNamespace(**given)  # type: ignore[attr-defined]
    module("vllm.v1.request", Request=request,
           RequestStatus=SimpleNamespace(FINISHED_ABORTED="aborted"))  # fmt: skip
    module("vllm.v1.core.sched.scheduler", Scheduler=FakeVllm)
    module("vllm.v1.core.sched.async_scheduler", AsyncScheduler=type("Later", (FakeVllm,), {}))
    module("vllm.sampling_params", RequestOutputKind=SimpleNamespace(DELTA="delta"))
    names = [f"lengthwise.serving.timing.{name}" for name in OURS]
    for name in names:
        sys.modules.pop(name, None)
    yield tuple(importlib.import_module(name) for name in names)  # type: ignore[misc]
    for name in names:
        sys.modules.pop(name, None)


class Coordinator:
    def cache_blocks(self, request: Any, tokens: int) -> None:
        raise IndexError("this request carries no block hashes")


class Host(FakeVllm):
    def add_unrecorded(self, request: Any) -> None:
        self.add_request(request)


def sweep(modules: Any, host: Any, plan: list[Any], folder: Path, **more: Any) -> Any:
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    return modules[0].Sweep(host, {"sweep": str(path), "seconds": 100.0, **more})


def test_a_group_s_steps_one_batch_an_iteration(modules: Any, tmp_path: Path) -> None:
    host = Host()
    plan = [{"context": [100, 200, 300], "steps": [[3, 2, []], [2, 1, [[8, 0], [4, 50]]]]},
            {"context": [7], "steps": [[1, 1, []]]}]  # fmt: skip
    made = sweep(modules, host, plan, tmp_path)
    assert not host.kv_cache_manager.enable_caching and not made.done
    host.kv_cache_manager.coordinator.cache_blocks(host, 1)  # of newer versions, which don't ask
    assert made.before_schedule() == 0
    assert [r.num_computed_tokens for r in host.requests.values()] == [100, 200, 300]
    assert [len(r.prompt_token_ids) for r in host.requests.values()] == [101, 201, 301]
    assert all(r.sampling_params.max_tokens == 1 << 14 for r in host.requests.values())
    assert made.before_schedule() == 0 and len(host.requests) == 3  # again
    assert made.before_schedule() == 0  # two of them, beside two chunks
    assert host.aborted == ["sweep0n3"] and list(host.requests) == [
        "sweep0n1", "sweep0n2", "sweep0n4", "sweep0n5",
    ]  # fmt: skip
    chunks = [host.requests[name] for name in ("sweep0n4", "sweep0n5")]
    assert [(r.num_computed_tokens, len(r.prompt_token_ids)) for r in chunks] == [(0, 8), (50, 54)]
    assert all(r.sampling_params.max_tokens == 1 for r in chunks)
    assert chunks[0].sampling_params.ignore_eos and not chunks[0].sampling_params.detokenize
    assert made.before_schedule() == 1  # the next group: those before it are gone
    assert host.aborted == ["sweep0n3", "sweep0n1", "sweep0n2"]
    assert host.requests["sweep0n6"].num_computed_tokens == 7
    assert made.before_schedule() == -1 and made.done
    assert not host.requests and host.kv_cache_manager.enable_caching
    with pytest.raises(IndexError):
        host.kv_cache_manager.coordinator.cache_blocks(host, 1)
    assert made.before_schedule() == -1


def test_a_burst_ends_with_its_last_two(modules: Any, tmp_path: Path) -> None:
    host = Host()
    made = sweep(modules, host, [{"requests": [[5, 9], [6, 8], [7, 7], [8, 6]]}], tmp_path,
                 sampling={"temperature": 0.5})  # fmt: skip
    assert made.before_schedule() == 0
    assert [len(r.prompt_token_ids) for r in host.requests.values()] == [5, 6, 7, 8]
    assert [r.sampling_params.max_tokens for r in host.requests.values()] == [9, 8, 7, 6]
    assert host.requests["sweep0n1"].sampling_params.temperature == 0.5
    del host.requests["sweep0n1"]
    assert made.before_schedule() == 0 and len(host.requests) == 3
    del host.requests["sweep0n2"]
    host.requests["other"] = SimpleNamespace(request_id="other")
    assert made.before_schedule() == -1 and sorted(host.aborted) == ["sweep0n3", "sweep0n4"]
    assert list(host.requests) == ["other"]


def test_a_sweep_ends_in_time_and_takes_its_own_with_it(modules: Any, tmp_path: Path) -> None:
    host = Host()
    made = sweep(modules, host, [{"context": [9], "steps": [[1, 99, []]]}], tmp_path)
    assert made.before_schedule() == 0
    host.requests["other"] = SimpleNamespace(request_id="other")
    made._deadline = 0.0
    assert made.before_schedule() == -1 and made.done
    assert host.aborted == ["sweep0n1"] and list(host.requests) == ["other"]
    left_s = sweep(modules, Host(), [], tmp_path)._deadline - time.monotonic()
    assert 0 < left_s <= 100


def test_prompts_of_a_sweep_are_tokens_of_the_vocabulary(modules: Any, tmp_path: Path) -> None:
    host, other = Host(), Host()
    first, second = (sweep(modules, one, [], tmp_path, seed=seed)
                     for one, seed in ((host, 3), (other, 3)))  # fmt: skip
    first._add(0, 1000, 1), first._add(0, 1000, 1), second._add(0, 1000, 1)
    prompts = [host.requests[name].prompt_token_ids for name in ("sweep3n1", "sweep3n2")]
    assert prompts[0] == other.requests["sweep3n1"].prompt_token_ids != prompts[1]
    assert set(prompts[0]) == set(range(50)) and len(first._tokens) == 2**18
    assert prompts[0] == first._tokens[7919 : 7919 + 1000]
    for _ in range(80):  # round the end of what is there: none is cut short
        first._add(0, 4000, 1)
    assert {len(r.prompt_token_ids) for r in list(host.requests.values())[-80:]} == {4000}
    third = sweep(modules, Host(), [], tmp_path)
    assert third._tokens != first._tokens


def recording(modules: Any, **requests: Any) -> Any:
    made = modules[1].RecordingScheduler()
    for name, given in requests.items():
        made.requests[name] = SimpleNamespace(request_id=name, **given)
    return made


def scheduled(preempted: Any = (), new: int = 0, **tokens: int) -> SimpleNamespace:
    return SimpleNamespace(
        num_scheduled_tokens=tokens, preempted_req_ids=preempted, scheduled_new_reqs=[0] * new
    )


def test_an_iteration_s_shape_by_hand(modules: Any) -> None:
    made = recording(
        modules,
        a=dict(num_computed_tokens=21, num_prompt_tokens=20, max_tokens=9, is_prefill_chunk=False),
        b=dict(num_computed_tokens=40, num_prompt_tokens=20, max_tokens=99, is_prefill_chunk=False),
        c=dict(num_computed_tokens=30, num_prompt_tokens=50, max_tokens=9, is_prefill_chunk=True),
        d=dict(num_computed_tokens=1, num_prompt_tokens=1, max_tokens=9, is_prefill_chunk=False),
    )
    made.running, made.waiting = [1, 2, 3, 4], [5]
    made.next = scheduled(("x", "y"), 3, a=1, b=1, c=10, d=1)
    assert made.schedule() is made.next and made.next.lengthwise_row == 0
    row = dict(zip(COLUMNS, made._rows[0], strict=True))
    # a and b decode; c computes 10 after 20, and d, of one token, its prompt
    assert (row["decode_seqs"], row["context_tokens"]) == (2, 61)
    assert (row["prefill_seqs"], row["prefill_tokens"]) == (2, 11)
    assert row["chunk_context"] == 10 * 20 + 55 + 1 and row["max_context"] == 40
    assert (row["running"], row["waiting"], row["preempted"], row["new"]) == (4, 1, 2, 3)
    assert (row["used_blocks"], row["label"], row["done_ns"]) == (40, -1, -1)
    assert 0 < row["schedule_ns"] <= row["scheduled_ns"]
    assert made.update_from_output(made.next, "results") == "results"
    row = dict(zip(COLUMNS, made._rows[0], strict=True))
    assert row["scheduled_ns"] <= row["done_ns"] <= row["updated_ns"]
    made.next = scheduled()  # an empty iteration is none
    made.schedule()
    assert len(made._rows) == 1
    made.update_from_output(made.next, "results")
    made.update_from_output(SimpleNamespace(lengthwise_row=1), "results")  # flushed meanwhile
    made.next = scheduled(None, 0, a=1)
    made.schedule()
    assert dict(zip(COLUMNS, made._rows[1], strict=True))["preempted"] == 0


def request(name: str, **extra: Any) -> SimpleNamespace:
    sampling = SimpleNamespace(extra_args={"lengthwise": extra} if extra else None)
    return SimpleNamespace(request_id=name, sampling_params=sampling, num_computed_tokens=0)


def test_what_clients_wait_for_is_noted_and_flushed(modules: Any, tmp_path: Path) -> None:
    """A prompt in two chunks, two tokens, then a request of one token alone."""
    made = recording(modules)
    for name in ("one-0", "two-more-1"):
        made.add_request(request(name))
    one, two = made.requests["one-0"], made.requests["two-more-1"]

    def step(what: Any, computed: int, chunk: bool, tokens: int, most: int) -> None:
        what.num_computed_tokens, what.is_prefill_chunk = computed, chunk
        what.num_prompt_tokens, what.max_tokens = 30, most
        made.next = scheduled(**{what.request_id: tokens})
        made.schedule()

    step(one, 20, True, 20, 3)
    step(one, 30, False, 10, 3)
    step(one, 31, False, 1, 3)
    step(one, 32, False, 1, 3)  # its last: 30 + 3 - 1
    step(two, 30, False, 30, 1)
    assert {name: event[1:] for name, event in made._events.items()} == {
        "one": [0, 1, 3], "two-more": [4, 4, 4],
    }  # fmt: skip
    path = tmp_path / "recorded.npz"
    made.add_request(request("flush-0", flush=str(path)))
    assert "flush-0" in made.requests and not made._rows and not made._events
    with np.load(path) as data:
        assert data["rows"].shape == (5, len(COLUMNS)) and data["names"].tolist() == [
            "one",
            "two-more",
        ]
        assert data["events"][:, 1:].tolist() == [[0, 1, 3], [4, 4, 4]]
        assert (data["events"][:, 0] > 0).all() and data["events"].shape[1] == len(EVENTS)
    # a prompt that is computed again after a preemption has begun, and has its first token, before
    made.add_request(request("again-0"))
    again = made.requests["again-0"]
    step(again, 30, False, 30, 3)
    step(again, 31, False, 31, 3)
    assert made._events["again"][1:] == [0, 0, -1]
    made._rows.clear(), made._events.clear()
    made.add_request(request("flush-1", flush=str(path)))
    with np.load(path) as data:
        assert data["rows"].shape == (0, len(COLUMNS)) and data["events"].shape == (0, len(EVENTS))


def test_a_sweep_is_run_before_its_client_is_told(modules: Any, tmp_path: Path) -> None:
    plan = [{"context": [9, 9], "steps": [[2, 2, []]]}]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    made = recording(modules)
    made.add_request(request("go-0", sweep=str(tmp_path / "plan.json"), seconds=100.0))
    assert list(made.requests) == ["sweep0n1", "sweep0n2"]  # the first batch stands; go waits
    made.add_request(request("late-0"))
    assert made._events == {}  # while a sweep runs, nobody's times are noted
    for label in (0, 0):
        for name in ("sweep0n1", "sweep0n2"):
            made.requests[name].num_prompt_tokens = 10
            made.requests[name].is_prefill_chunk, made.requests[name].max_tokens = False, 99
        made.next = scheduled(sweep0n1=1, sweep0n2=1)
        made.schedule()
        assert made._rows[-1][-1] == label
    made.next = scheduled()
    made.schedule()
    assert list(made.requests) == ["late-0", "go-0"] and made._sweep is None
    made.add_request(request("now-0"))
    assert list(made._events) == ["now"]


def test_the_recorder_is_of_vllm_s_own_kind(modules: Any) -> None:
    class Config:
        def __init__(self, later: bool) -> None:
            self.scheduler_config = SimpleNamespace(async_scheduling=later)

    _, recorder = modules
    kinds = (recorder.RecordingScheduler, recorder.RecordingAsyncScheduler)
    for later in (False, True):
        assert type(recorder.recorder(vllm_config=Config(later))) is kinds[later]


# The client's side


class Answers:
    """An engine that gives two tokens, then three, and does what commands ask for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        model = SimpleNamespace(get_vocab_size=lambda: 50, max_model_len=500)
        seats = SimpleNamespace(max_num_seqs=3)
        self.vllm_config = SimpleNamespace(model_config=model, scheduler_config=seats)

    async def generate(self, prompt: Any, sampling: Any, name: str) -> Any:
        self.asked.append((name, prompt["prompt_token_ids"], sampling))
        command = (sampling.extra_args or {}).get("lengthwise", {})
        if "flush" in command:
            names = [n for n, *_ in self.asked if n.startswith(("alone", "level"))]
            rows = np.arange(2 * len(COLUMNS)).reshape(2, -1)
            events = np.tile([7, 0, 1, 1], (len(names), 1))
            np.savez(command["flush"], rows=rows, events=events, names=np.array(names, dtype=str))
        for tokens in (2, 3):
            await asyncio.sleep(0)
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * tokens)])


def test_requests_are_timed_from_the_client_s_side(modules: Any) -> None:
    engine = Answers()
    submitted, first, last, count = asyncio.run(measure_vllm.generate(engine, "n", [1, 2], 9))
    assert 0 < submitted <= first < last and count == 5
    _, prompt, sampling = engine.asked[0]
    assert prompt == [1, 2] and (sampling.max_tokens, sampling.extra_args) == (9, None)
    assert sampling.ignore_eos is True and sampling.detokenize is False
    assert sampling.output_kind == "delta"
    # of four at once one would wait for a seat
    frame = asyncio.run(measure_vllm.frontend(engine, levels=(1, 3, 4), tokens=4))
    assert list(frame.index) == [*(f"alone{i}" for i in range(16)), "level1n0",
                                 *(f"level3n{i}" for i in range(3))]  # fmt: skip
    assert frame["prompt"].tolist() == [16, 256, 496, 496] * 4 + [32] * 4  # what the model holds
    assert frame["level"].tolist() == [1] * 17 + [3] * 3 and set(frame["tokens"]) == {5}
    assert set(frame["engine_added_ns"]) == {7} and set(frame["engine_scheduled_ns"]) == {0}
    assert set(frame["engine_first_ns"]) == {len(COLUMNS) + 2} == set(frame["engine_last_ns"])
    assert all(0 <= token < 50 for _, prompt, _ in engine.asked for token in prompt)


def test_a_plan_is_run_and_its_iterations_read(modules: Any) -> None:
    engine = Answers()
    rows = asyncio.run(measure_vllm.sweep(engine, [{"requests": []}], 5.0, seed=3))
    assert list(rows.columns) == list(COLUMNS) and len(rows) == 2
    asked = [sampling.extra_args["lengthwise"] for _, _, sampling in engine.asked]
    assert asked[0].keys() == {"sweep", "seconds", "seed"} and asked[0]["seconds"] == 5.0
    assert asked[1].keys() == {"flush"}
    assert [(prompt, sampling.max_tokens) for _, prompt, sampling in engine.asked] == [([1], 1)] * 2


def test_events_take_the_times_of_their_iterations() -> None:
    events = pd.DataFrame(
        [[5, 0, 1, 2], [6, -1, 2, 3], [7, 1, -1, 0]], columns=list(EVENTS), index=list("abc")
    )
    iterations = pd.DataFrame({"schedule_ns": [10, 20, 30], "done_ns": [11, 21, 31]})
    found = measure_vllm.with_times(events, iterations)
    assert found["engine_added_ns"].tolist() == [5, 6, 7]
    assert found["engine_scheduled_ns"].tolist() == [10, -1, 20]
    assert found["engine_first_ns"].tolist() == [21, 31, -1]
    assert found["engine_last_ns"].tolist() == [31, -1, 11]
    none = measure_vllm.with_times(events, iterations[:0])
    assert (none.drop(columns="engine_added_ns") == -1).all().all()


# The environment


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(environment, "_run", ran.append)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "half").write_text("")

    def fill(install: list[str]) -> None:
        (tmp_path / "e").mkdir()
        ran.append([*install, "pack"])

    python = environment._virtual_environment(tmp_path / "e", fill)
    assert python == tmp_path / "e" / "bin" / "python"
    assert ran == [
        [sys.executable, "-m", "venv", str(tmp_path / "e")],
        [str(python), "-m", "pip", "install", "-q", "--retries", "1", "pack"],
    ]  # fmt: skip
    assert not (tmp_path / "e" / "half").exists() and (tmp_path / "e" / "complete").exists()
    assert environment._virtual_environment(tmp_path / "e", fill) == python and len(ran) == 2


def test_where_environments_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = tmp_path / "lengthwise" / "vllm"
    assert environment.cache_folder() == root and not environment.is_made()
    pins = environment.REQUIREMENTS.read_text() + environment.TORCH
    pins += environment.WITHOUT_DEPENDENCIES + platform.python_version()
    folder = root / f"env-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"
    assert environment._folder(root) == folder and environment.NEWEST == "0.33.0"
    folder.mkdir(parents=True)
    (root / "vllm-0.33.0").mkdir()
    assert not environment.is_made()
    (folder / "complete").touch()
    assert environment.is_made() and not environment.is_made("0.26.0")
    (folder / "complete").unlink()
    (root / "vllm-0.26.0").mkdir()
    assert not environment.is_made("0.26.0")
    monkeypatch.setattr(environment, "_interpreter", lambda root: root / "python")
    found = environment.environment("0.26.0")
    assert found.python == root / "python" and found.vllm == root / "vllm-0.26.0"
    said = found.variables()
    assert said["PYTHONPATH"] == str(found.vllm) and said["HF_HUB_OFFLINE"] == "1"
    assert said["CUDA_VISIBLE_DEVICES"] == "" and said["OMP_NUM_THREADS"] == "1"
    with pytest.raises(UnknownNameError, match=r"unknown vLLM version '0\.27\.0'"):
        environment.environment("0.27.0")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment.cache_folder() == tmp_path / ".cache" / "lengthwise" / "vllm"


def test_only_the_python_files_of_a_wheel_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str]) -> None:
        ran.append(command)
        with zipfile.ZipFile(Path(command[-2]) / "vllm-9-any.whl", "w") as made:
            for name in ("vllm/a.py", "vllm/b.so", "vllm-9.dist-info/METADATA"):
                made.writestr(name, "x")

    monkeypatch.setattr(environment, "_run", run)
    folder = environment._python_files(tmp_path, "9")
    assert folder == tmp_path / "vllm-9" and capsys.readouterr().err.startswith("lengthwise: fetch")
    kept = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert kept == {"vllm/a.py", "vllm-9.dist-info/METADATA"}
    assert ran[0][-1] == "vllm==9" and ran[0].count("--platform") == 3
    assert ran[0][1:4] == ["-m", "pip", "download"] and "--no-deps" in ran[0]
    assert environment._python_files(tmp_path, "9") == folder and len(ran) == 1
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("code", "out", "err", "kind", "said"),
    [
        (0, "", "Connection refused", None, ""),
        (1, "x\nlast\n\n", "", LengthwiseError, "failed: a b c d: last"),
        (1, "", "", LengthwiseError, "failed: a b c d: no output"),
        (1, "", "timed out\n", environment.VllmUnavailable, "environment: b c d: timed out"),
        (2, "Max retries exceeded", "", environment.VllmUnavailable, "no network to make"),
    ],
)
def test_what_an_installation_says(
    code: int, out: str, err: str, kind: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **given: Any) -> Any:
        assert given == {"capture_output": True, "text": True, "check": False}
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    monkeypatch.setattr(subprocess, "run", run)
    if kind is None:
        environment._run(list("abcd"))
        return
    with pytest.raises(kind) as caught:
        environment._run(list("abcd"))
    assert said in str(caught.value) and type(caught.value) is kind


# The replica that asks vLLM

WORKLOAD = Workload(
    {"arrival_s": [0.0, 1.0], "prompt_tokens": [9, 5], "output_tokens": [2, 3],
     "priority": [3, 4], "deadline_s": [7.0, 9.0]}
)  # fmt: skip


class Told(Vllm):
    """Answers that were thought of before; what was asked is kept."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.told: list[dict[str, Any]] = []
        self.answers = list(answers)
        self._schedulers, self.version = 0, "x"

    def ask(self, *commands: dict[str, Any]) -> list[dict[str, Any]]:
        self.told += commands
        return [{} if c["do"] in ("new", "add", "drop") else self.answers.pop(0) for c in commands]


def replica(told: Told, policy: str = "fcfs", plugin: Any = None, **engine: Any) -> VllmScheduler:
    options = Engine(max_num_seqs=2, num_gpu_blocks=9, **engine)
    node = Node(options, LinearTiming(1.0), load_policy(policy))
    inputs = prepare(WORKLOAD, System((node,), load_router("jsq")), [4.0, 6.0])
    features = Features(WORKLOAD, inputs.predictions, 0)
    scorer = Scorer(node.policy.score, features, inputs.arrival_ps)
    return VllmScheduler(told, 0, node, scorer, inputs, WORKLOAD, plugin)


def arrived(id: int) -> Request:
    row = {name: WORKLOAD[name].tolist()[id] for name in WORKLOAD.columns}
    return Request(
        id, row["prompt_tokens"], row["output_tokens"], int(row["arrival_s"] * PS), 4, ()
    )


def test_vllm_is_asked_and_believed() -> None:
    told = Told(
        {"scheduled": [[0, 9, 0]], "preempted": [], "waiting": 1, "running": 1, "free": 5},
        {"finished": [], "running": 1, "waiting": 1, "free": 5},
        {"scheduled": [[1, 5, 2]], "preempted": [0], "waiting": 1, "running": 1, "free": 6},
    )
    made = replica(told)
    first, second = arrived(0), arrived(1)
    made.add(first, 0, 0)
    made.add(second, PS, PS)
    assert [c["do"] for c in told.told] == ["new"] and told.told[0]["queue"] == "fcfs"
    assert told.told[0]["num_gpu_blocks"] == 9 and told.told[0]["engine"]["max_num_seqs"] == 2
    made.begin(2 * PS)
    step = made.schedule(())
    assert [c["do"] for c in told.told] == ["new", "add", "add", "schedule"]
    assert told.told[1]["request"] == [0, 0.0, first.score, [9, [], 1], 2, {}]
    assert told.told[3]["now_s"] == 2.0 and {c["id"] for c in told.told} == {1}
    assert step.scheduled == {first: 9} and made.running == [first] and first.in_batch
    assert made.kv.free == 5 and list(made.waiting) == [1] and first.cached == 0
    first.computed = 9
    step.yields = [first]
    assert made.finish(step) == []
    made.begin(3 * PS)
    step = made.schedule(())
    assert step.preempted == [first] and made.running == [second] and not first.in_batch
    assert (first.computed, first.preemptions, second.computed, second.cached) == (0, 1, 2, 2)
    assert step.scheduled == {second: 5} and made.kv.free == 6 and list(made.waiting) == [0]


def test_what_the_plugin_is_told_of_a_request() -> None:
    told = Told()
    made = replica(told, "srtf", {"policy": "srtf"})
    assert told.told[0]["queue"] == "fcfs" and told.told[0]["plugin"] == {"policy": "srtf"}
    made.add(arrived(1), PS, PS)
    made.drop()
    assert told.told[1]["request"] == [
        1, 1.0, 4.0, [5, [], 1], 3, {"deadline_s": 8.0, "predicted_tokens": 6.0},
    ]  # fmt: skip
    assert told.told[2] == {"do": "drop", "id": 1}
    score = replica(Told(), "sjf")
    one = arrived(0)
    score.add(one, 0, 0)
    assert one.score == 4.0  # what is predicted of it


def test_what_vllm_answers_must_agree() -> None:
    def answered(**given: Any) -> VllmScheduler:
        good = {"scheduled": [[0, 9, 0]], "preempted": [], "waiting": 0, "running": 1, "free": 5}
        made = replica(Told({**good, **given}, {"finished": [0], "running": 0, "waiting": 0}))
        made.add(arrived(0), 0, 0)
        return made

    with pytest.raises(InvariantError, match="vLLM has 1 waiting, not 0"):
        answered(waiting=1).schedule(())
    made = answered()
    made.schedule(())
    made._vllm.answers.insert(0, {"scheduled": [[0, 1, 8]], "preempted": [], "waiting": 0})  # type: ignore[attr-defined]
    made.running[0].computed = 9
    with pytest.raises(InvariantError, match="request 0 computed 9, not 8"):
        made.schedule(())
    made = answered()
    step = made.schedule(())
    one = made.running[0]
    one.known += 1  # one of its two tokens
    step.yields = [one]
    assert made.finish(step) == []
    with pytest.raises(InvariantError, match=r"finished is \[\], but \[0\] with vLLM"):
        made.settle()
    made = answered()
    step = made.schedule(())
    one = made.running[0]
    one.known += 2
    step.yields = [one]
    assert made.finish(step) == [one] and made.running == []
    made.settle()
    made.settle()  # nothing is left to be told
    assert made._vllm.answers == []  # type: ignore[attr-defined]


def test_what_vllm_can_not_be_asked() -> None:
    made = replica(Told())
    for ask in (lambda: made.remove(arrived(0)), made.candidates, lambda: made.preempt([])):
        with pytest.raises(InputError):
            ask()
    made.preempt(None)
    made.check()
    assert made.cached_tokens(arrived(0)) == 0 and isinstance(Step(), Step)
    with pytest.raises(InputError, match="prefix cache can't be looked into"):
        replica(Told(), enable_prefix_caching=True).cached_tokens(arrived(0))


def test_a_process_that_ends_or_refuses_is_told(tmp_path: Path) -> None:
    made = object.__new__(Vllm)
    made.version = "9"
    made._log = (tmp_path / "log").open("w+")
    made._log.write("first\nlast words\n")

    def piped(answer: str) -> None:
        written = SimpleNamespace(write=lambda text: None)
        read = SimpleNamespace(readline=lambda: answer)
        made._process = SimpleNamespace(stdin=written, stdout=read)  # type: ignore[assignment]

    piped('[{"a": 1}, {"b": 2}]\n')
    assert made.ask({"do": "x"}, {"do": "y"}) == [{"a": 1}, {"b": 2}]
    piped('[{"a": 1}, {"error": "KeyError: 3"}]\n')
    with pytest.raises(LengthwiseError, match="vLLM 9: KeyError: 3"):
        made.ask({"do": "x"})
    piped("")
    with pytest.raises(LengthwiseError, match="vLLM 9 ended: last words"):
        made.ask({"do": "x"})
    made._log.close()


def test_how_the_plugin_is_told_to_follow_a_policy() -> None:
    settings = backend.plugin_settings
    assert settings(load_policy("fcfs")) is None
    assert settings(load_policy("srtf")) == {
        "policy": "srtf", "guard": 0.0, "policy_timeout_s": 1e9,
    }  # fmt: skip
    guarded = load_policy("srtf+guard:ratio=2")
    assert settings(guarded) == {"policy": "srtf+guard:ratio=2", "policy_timeout_s": 1e9}
    still = SchedulingPolicy(Score.from_function(lambda prompt_tokens: prompt_tokens, "still"))
    assert settings(still) is None
    moving = SchedulingPolicy(Score.from_function(lambda now_s: now_s, "moving"))
    for policy in (moving, SchedulingPolicy(still.score, load_policy("srtf").preemption)):
        with pytest.raises(InputError, match="has no spelling that vLLM's process could load"):
            settings(policy)
    for spec in ("srtf+preempt:mode=swap", "sjf+admit:reserve=0.1"):
        with pytest.raises(InputError, match="swaps or reserves KV blocks, which vLLM can't"):
            settings(load_policy(spec))
