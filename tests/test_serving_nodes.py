"""Nodes that differ: how they are spelled, what is refused, and what a run makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lengthwise as lw
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval.compare import compare
from lengthwise.eval.tables import bound_row, footnote, subtitle
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import RoutingPolicy, Score
from lengthwise.protocols import Batch
from lengthwise.serving import Engine, Node, Stops, System, run
from lengthwise.serving.nodes import nodes_of, read_nodes
from lengthwise.serving.records import PS
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.run import Backend
from lengthwise.serving.timing import LinearTiming
from lengthwise.serving.timing import timing as load_timing
from lengthwise.training.cli import main

FCFS = load_policy("fcfs")
SLOW, FAST = LinearTiming(1.0, name="slow"), LinearTiming(0.5, name="fast")
ONE = Engine(max_num_seqs=1, num_gpu_blocks=64)
FILE = """
- count: 2
  name: big
  timing: h200/llama-3.1-8b
  max_num_seqs: 128
- timing: roofline:l40s/llama-3.1-8b
  policy: mlfq:quantum=64
  num_gpu_blocks: 1000
"""


def workload(*rows: tuple[float, int, int]) -> lw.Workload:
    arrival, prompt, output = zip(*rows, strict=True)
    return lw.Workload({"arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": output})


def two(slow: Engine = ONE, fast: Engine = ONE, router: str = "jsq", **given: Any) -> System:
    """A slow node and one that is twice as fast."""
    nodes = Node(slow, SLOW, FCFS), Node(fast, FAST, FCFS)
    return System(nodes, load_router(router), **given)


def test_spelled_nodes() -> None:
    kinds = read_nodes("2xh200/llama-3.1-8b,roofline:2xh100/llama-3.1-8b", Engine(), SLOW)
    assert [(kind.count, kind.timing.name) for kind in kinds] == [
        (2, "h200/llama-3.1-8b"), (1, "roofline:2xh100/llama-3.1-8b"),
    ]  # fmt: skip
    nodes = nodes_of(kinds, FCFS)
    assert len(nodes) == 3 and nodes[0] is nodes[1] and nodes[2].policy is FCFS


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_nodes_in_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"nodes.{suffix}"
    rows = [
        {"count": 2, "name": "big", "timing": "h200/llama-3.1-8b", "max_num_seqs": 128},
        {"timing": "roofline:l40s/llama-3.1-8b", "policy": "mlfq:quantum=64",
         "num_gpu_blocks": 1000},
    ]  # fmt: skip
    path.write_text(FILE if suffix == "yaml" else json.dumps({"nodes": rows}))
    big, small = read_nodes(path, Engine(block_size=32), SLOW)
    assert (big.count, big.name, big.policy) == (2, "big", None)
    assert (big.engine.max_num_seqs, big.engine.block_size) == (128, 32)
    assert small.policy == load_policy("mlfq:quantum=64") and small.engine.num_gpu_blocks == 1000
    assert read_nodes(rows, Engine(block_size=32), SLOW) == (big, small)


def test_nodes_made_in_python() -> None:
    result = lw.simulate(
        workload((0, 4, 2), (0, 4, 2)), router="round-robin",
        nodes=[lw.Node(ONE, SLOW, FCFS), lw.Node(ONE, FAST, FCFS)],
    )  # fmt: skip
    assert result.requests["finish_s"].tolist() == [2.0, 1.0]
    assert result.config["timing"] == "1 x slow + 1 x fast"
    assert [node["timing"] for node in result.config["nodes"]] == ["slow", "fast"]
    visits = result.visits
    assert visits["node"].tolist() == [0, 1] and visits["stage"].tolist() == ["both"] * 2
    assert visits["finish_s"].tolist() == [2.0, 1.0] and visits["start_s"].tolist() == [0.0, 0.0]
    assert result.summary()["slowdown_max"] == 1.0  # each was alone on the node that served it


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("", "at least one node"),
        ([], "at least one node"),
        ("0xh200/llama-3.1-8b", "node 0 in nodes: a node's count must be a whole number from 1"),
        ("nowhere.yaml", "nodes file 'nowhere.yaml': No such file"),
        ("2xh200/llama-3.1-8x", "unknown timing 'h200/llama-3.1-8x'|no profile of"),
        ([{"timming": "h200/llama-3.1-8b"}], "unknown key 'timming' of node 0 in nodes; did you "
         "mean 'timing'"),
        ([{}, {"role": "decoder"}], "unknown node role 'decoder'; did you mean 'decode'"),
        ([{"policy": "srft"}], "did you mean 'srtf'"),
        ([{"max_num_seqs": "many"}], "node 0 in nodes: max_num_seqs must be a whole number"),
        ([{"name": 7}], "node 0 in nodes: name must be a name, not 7"),
        (["h200"], "expected the keys and values of a node, not 'h200'"),
    ],
)  # fmt: skip
def test_bad_nodes_are_told(nodes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        lw.simulate(workload((0, 4, 2)), nodes=nodes)
    assert "\n" not in str(caught.value)


def test_bad_files_are_told(tmp_path: Path) -> None:
    for text, message in (
        ("- count: [", "can't be read"),
        ("node: []", "unknown key 'node' .*did you mean 'nodes'"),
        ("nodes: 3", "expected a list of nodes, not 3"),
        ("nodes: []", "at least one node"),
        ("- seats: 3", "unknown key 'seats' of node 0 in .*nodes.yaml"),
    ):
        (tmp_path / "nodes.yaml").write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            read_nodes(tmp_path / "nodes.yaml", Engine(), SLOW)
        assert "\n" not in str(caught.value)


def test_nodes_and_replicas_are_one_or_the_other() -> None:
    with pytest.raises(InputError, match="nodes or replicas"):
        lw.simulate(workload((0, 4, 2)), nodes="2xh200/llama-3.1-8b", replicas=2)


def test_every_node_must_hold_every_request() -> None:
    small = Engine(num_gpu_blocks=4, block_size=4)
    with pytest.raises(InputError, match=r"node 1 \(fast\): request 1 has 12 prompt .* 3 usable"):
        run(workload((0, 4, 2), (1, 12, 9)), two(fast=small))


def test_a_policy_of_one_node_that_lacks_what_it_reads() -> None:
    nodes = [Node(ONE, SLOW, FCFS), Node(ONE, FAST, load_policy("sjf"))]
    with pytest.raises(InputError, match="'sjf' reads predicted_tokens and no predictor"):
        lw.simulate(workload((0, 4, 2)), nodes=nodes)


def test_the_command_line_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "simulate azure-conv-2023 --requests 9 --nodes 2xh200/llama-3.1-8x"
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_command_line_runs_nodes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = (
        "simulate azure-conv-2023 --requests 50 --rate 40 --router jsq --metrics-interval 0.1 "
        "--max-num-seqs 64 --nodes h200/llama-3.1-8b,2xroofline:l40s/llama-3.1-8b --out"
    )
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), str(out)])
    assert not ended.value.code
    config = json.loads((out / "config.json").read_text())
    assert config["replicas"] == 3 and config["metrics_interval_s"] == 0.1
    assert [node["count"] for node in config["nodes"]] == [1, 2]
    assert {node["engine"]["max_num_seqs"] for node in config["nodes"]} == {64}


def test_comparisons_over_nodes() -> None:
    source = workload(*((0.3 * i, 4, 2 + i % 3) for i in range(40)))
    found = compare(
        source,
        ("sjf",),
        seeds=1,
        router="jsq",
        nodes=[Node(ONE, SLOW, FCFS), {"timing": "h200/llama-3.1-8b"}],
    )
    assert "no lower bound is known for nodes that differ" in found.notices
    assert np.isnan(found.bound(float("nan")).mean)
    assert {cell.text for cell in bound_row(found, float("nan"))} == {"–"}
    assert "lower bound: none is known here." in footnote(found)
    assert "on 1 x slow + 1 x h200/llama-3.1-8b, routed by jsq" in subtitle(found)
    assert (found.runs["slowdown_mean"].dropna() >= 1).all()


def test_each_node_has_its_own_engine_and_policy() -> None:
    """A node of a system behaves as it does alone with the requests that it was sent."""
    rng = np.random.default_rng(3)
    n = 200
    columns = {
        "arrival_s": np.round(np.cumsum(rng.exponential(0.3, n)), 2),
        "prompt_tokens": rng.integers(1, 40, n), "output_tokens": rng.integers(1, 12, n),
    }  # fmt: skip
    whole = lw.Workload(columns)
    predicted = np.maximum(1, columns["output_tokens"] + rng.normal(0, 2, n))
    nodes = (
        Node(Engine(max_num_seqs=2, num_gpu_blocks=32), LinearTiming(0.2), load_policy("sjf")),
        Node(Engine(max_num_seqs=9, num_gpu_blocks=16, block_size=4, async_scheduling=True,
                    max_num_batched_tokens=32), LinearTiming(0.1, 1e-3), FCFS),
        Node(Engine(max_num_seqs=4, num_gpu_blocks=16, block_size=4), LinearTiming(0.1, 1e-3),
             load_policy("srtf+preempt:price=0+guard:ratio=1,floor_s=0.1")),
    )  # fmt: skip
    system = System(nodes, load_router("random"))
    together = run(whole, system, predicted, seed=5, check=True, log_iterations=True)
    assert together.iterations is not None
    for index, node in enumerate(nodes):
        mine = together.replica == index
        alone = run(
            whole.select(mine), System((node,), system.routing), predicted[mine],
            backend="reference", log_iterations=True,
        )  # fmt: skip
        assert alone.iterations is not None
        for name in ("scheduled_ps", "first_token_ps", "finish_ps", "preemptions"):
            np.testing.assert_array_equal(getattr(together, name)[mine], getattr(alone, name))
        logged = together.iterations.replica == index
        for name in ("start_ps", "duration_ps", "used_blocks", "waiting"):
            np.testing.assert_array_equal(
                getattr(together.iterations, name)[logged], getattr(alone.iterations, name)
            )


def test_old_metrics_are_of_the_last_multiple_of_the_interval() -> None:
    """Four arrivals: the router of every 2 s does not see what came since, but what it sent."""
    requests = workload((0.5, 4, 9), (1.0, 4, 9), (2.0, 4, 9), (2.5, 4, 9))
    names = ["running_requests", "waiting_requests", "routed_requests", "now_s"]
    for interval_s, seen in (
        (0.0, [[0, 0, 0, 0.5], [1, 0, 1, 1.0], [1, 1, 2, 2.0], [1, 2, 3, 2.5]]),
        # at 2.0 s: before the arrival of that moment; at 2.5 s still so
        (2.0, [[0, 0, 0, 0.5], [0, 0, 1, 1.0], [1, 1, 2, 2.0], [1, 1, 3, 2.5]]),
        (0.75, [[0, 0, 0, 0.5], [1, 0, 1, 1.0], [1, 1, 2, 2.0], [1, 2, 3, 2.5]]),
    ):
        made = ReferenceRun(requests, two(metrics_interval_s=interval_s))
        found = []
        while made.advance(Stops(route=True)).kind == "route":
            rows = np.zeros((2, 4))
            made.features(names, rows)
            found.append(rows[0].tolist())
            made.answer(0)
        assert found[: 1 if interval_s == 0.75 else 4] == seen[: 1 if interval_s == 0.75 else 4]


@pytest.mark.parametrize("backend", ["reference", "fast"])
def test_old_metrics_herd(backend: Backend) -> None:
    """Joining the shortest queue by old metrics sends all of an interval to one node."""
    requests = workload(*((0.1 * i, 4, 3) for i in range(40)))
    fresh = run(requests, two(router="jsq"), backend=backend).replica
    old = run(requests, two(router="jsq", metrics_interval_s=1.0), backend=backend).replica
    assert (old.reshape(4, 10) == old.reshape(4, 10)[:, :1]).all()
    assert not (fresh.reshape(4, 10) == fresh.reshape(4, 10)[:, :1]).all()
    never = run(
        requests, two(router="round-robin", metrics_interval_s=1.0), backend=backend
    ).replica
    assert never.tolist() == [0, 1] * 20  # what the router counts itself is never old


def most_seats(free_seats: Any) -> Any:
    return -free_seats


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize("interval_s", [1e-12, 0.5, 1e6])
def test_old_metrics_begin_with_the_empty_nodes(backend: Backend, interval_s: float) -> None:
    """At time 0, before anything came; from a picosecond to days."""
    seats = two(fast=Engine(max_num_seqs=4, num_gpu_blocks=64), metrics_interval_s=interval_s)
    system = System(seats.nodes, RoutingPolicy(Score.from_function(most_seats)), interval_s)
    requests = workload((0.0, 4, 9), (0.0, 4, 9), (1.0, 4, 9))
    assert run(requests, system, backend=backend).replica.tolist() == [1, 1, 1]


def test_what_a_system_refuses() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'both'"):
        Node(ONE, SLOW, FCFS, role="boht")  # type: ignore[arg-type]
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="metrics_interval_s must be"):
            two(metrics_interval_s=bad)
    assert two().interval_ps == 0 and two(metrics_interval_s=0.02).interval_ps == PS // 50


def test_a_node_at_half_speed_takes_twice_as_long():
    timing = load_timing("h200/llama-3.1-8b")
    (kind,) = read_nodes([{"speed": 0.5}], Engine(), timing)
    slow = kind.timing
    assert slow.name == "h200/llama-3.1-8b at 0.5" and slow.num_gpu_blocks == timing.num_gpu_blocks
    for batch in (Batch(0, 0, 30, 30_000, 0), Batch(512, 2, 10, 9_000, 100_000)):
        ratio = slow.iteration_time(batch) / timing.iteration_time(batch)
        assert ratio == pytest.approx(2.0, rel=1e-9)
        tables = [one.tables(2048, 64).iteration_ps(batch) for one in (slow, timing)]
        assert tables[0] / tables[1] == pytest.approx(2.0, rel=1e-3)
        clocks = [one.pipeline(2048, 64).gpu_ps(batch) for one in (slow, timing)]
        assert clocks[0] / clocks[1] == pytest.approx(2.0, rel=1e-3)
    assert read_nodes([{"speed": 1}], Engine(), timing)[0].timing is timing
    with pytest.raises(InputError, match="speed must be a number above 0, not 0"):
        read_nodes([{"speed": 0}], Engine(), timing)
