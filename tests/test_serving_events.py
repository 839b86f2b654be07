"""What happens to nodes in a run: known answers, both engines alike, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.policies import load_policy, load_router
from lengthwise.serving import Engine, Node, Slow, System, run
from lengthwise.serving.events import SHIFT, read_events, stretched
from lengthwise.serving.records import PS
from lengthwise.serving.run import Backend
from lengthwise.serving.timing import LinearTiming
from lengthwise.training.cli import main
from tests.test_serving_kernel import TwoClocks, disagreements, spans, trial

BACKENDS: tuple[Backend, ...] = ("reference", "fast")
ONE = Node(Engine(max_num_seqs=1, num_gpu_blocks=64), LinearTiming(1.0), load_policy("fcfs"))


def workload(*rows: tuple[float, int, int]) -> lw.Workload:
    arrival, prompt, output = zip(*rows, strict=True)
    return lw.Workload({"arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": output})


def system(count: int, *events: Any, router: str = "round-robin", **given: Any) -> System:
    """Equal nodes with one seat, whose iterations take a second."""
    return System.replicated(ONE, count, load_router(router), events=events, **given)


def happening(seed: int) -> dict[str, Any]:
    """The arguments of a random run in which things happen to nodes.

    One more node has all that a node can have, so that one compiled engine serves every seed.
    """
    found = trial(seed)
    longest = int((found["workload"]["prompt_tokens"] + found["workload"]["output_tokens"]).max())
    engine = Engine(
        max_num_seqs=3, num_gpu_blocks=longest + 9, block_size=4, enable_prefix_caching=True,
        async_scheduling=True,
    )  # fmt: skip
    full = Node(engine, TwoClocks(0.01, 1e-4), load_policy("srtf+preempt+guard"))
    nodes = (*found["system"].nodes, full)
    found["system"] = dataclasses.replace(found["system"], nodes=nodes)
    rng = np.random.default_rng([seed, 7])
    last_s = float(found["workload"]["arrival_s"].max()) * 1.5 + 0.1
    events: list[Any] = []
    for node in range(len(found["system"].nodes)):
        events += slows(rng, node, last_s)
    changed = dataclasses.replace(found["system"], events=tuple(events))
    return {**found, "system": changed}


def slows(rng: np.random.Generator, node: int, last_s: float) -> list[Slow]:
    times = np.sort(rng.uniform(0, last_s, 2 * int(rng.integers(4)))).round(int(rng.integers(1, 9)))
    return [
        Slow(node, at, until, float(rng.choice([1, 1.1, 2, 3.7, 50])))
        for at, until in zip(times[::2].tolist(), times[1::2].tolist(), strict=True)
        if at < until
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_node_that_is_slow_for_a_window(backend: Backend) -> None:
    """Iterations start at 0, 1, 2 (slow until 4), 4 (slow until 6) and 6: those of 2 and 4 s take
    twice as long, and the one that starts as the window closes does not."""
    found = run(workload((0, 4, 5)), system(1, Slow(0, 1.5, 6, 2)), backend=backend,
                log_iterations=True)  # fmt: skip
    assert found.iterations is not None
    assert (found.iterations.start_ps / PS).tolist() == [0, 1, 2, 4, 6]
    assert (found.finish_ps / PS).tolist() == [7]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_of_two_nodes_is_slow_for_good(backend: Backend) -> None:
    slow = Slow(1, factor=1.5)
    found = run(workload((0, 4, 2), (0, 4, 2)), system(2, slow), backend=backend)
    assert (found.finish_ps / PS).tolist() == [2, 3]


def test_a_router_that_counts_requests_sends_less_to_a_slow_node() -> None:
    many = workload(*((1.2 * i, 4, 2) for i in range(40)))
    for router, more in (("round-robin", False), ("jsq", True)):
        sent = [
            int((run(many, system(2, *events, router=router)).replica == 1).sum())
            for events in ((), (Slow(1, factor=4),))
        ]
        assert (sent[1] < sent[0]) is more


@pytest.mark.parametrize("factor", [1, 1.1, 2, 1e6, 4 / 3])
def test_stretching_is_exact_to_half_a_picosecond(factor: float) -> None:
    scaled = round(factor * 2**SHIFT)
    for duration in (0, 1, 3, 10**9 + 7, 2**40 + 12345):
        exact, rest = divmod(duration * scaled, 2**SHIFT)
        assert stretched(duration, scaled) == exact + (2 * rest >= 2**SHIFT)


@pytest.mark.parametrize("seeds", spans(500, 60, 1))
def test_both_engines_agree_whatever_happens(seeds: tuple[int, int]) -> None:
    assert disagreements(range(*seeds), make=happening) == {}


# Files and what is refused

ROWS = [
    {"kind": "slow", "node": "big", "at_s": 3, "until_s": 5.5, "factor": 2},
    {"kind": "slow", "node": 1, "at_s": 0},
]
TEXTS = {
    "json": json.dumps(ROWS),
    "yaml": "events:\n- {kind: slow, node: big, at_s: 3, until_s: 5.5, factor: 2}\n"
    "- {kind: slow, node: 1, at_s: 0}\n",
    "csv": "kind, node, at_s, until_s, factor\nslow, big, 3, 5.5, 2\nslow, 1, 0,,\n",
}


@pytest.mark.parametrize("suffix", TEXTS)
def test_events_in_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"events.{suffix}"
    path.write_text(TEXTS[suffix])
    assert read_events(path) == (Slow("big", 3, 5.5, 2), Slow(1, 0)) == read_events(ROWS)
    named = dataclasses.replace(ONE, name="big")
    found = lw.simulate(workload((0, 4, 2), (0, 4, 5)), nodes=[named, ONE], failures=path)
    assert found.requests["finish_s"].tolist() == [2, 10]
    assert found.config["failures"][0] == {**ROWS[0], "kind": "slow"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"node": "bigg"}, "unknown node 'bigg' of an event; did you mean 'big'"),
        ({"node": 2}, "unknown node '2' of an event"),
        ({"node": -1}, "unknown node '-1' of an event"),
        ({"node": "twin"}, "2 nodes are called 'twin': name one by its place, 1, 2"),
        ({"kind": "slwo"}, "unknown kind 'slwo' of event 0 in events; did you mean 'slow'"),
        ({"factr": 2}, r"unknown key 'factr' of event 0 in events \(slow\); did you mean 'factor'"),
        ({"at_s": -1}, "at_s must be a number from 0 to"),
        ({"at_s": float("nan")}, "at_s must be a number from 0 to"),
        ({"at_s": "soon"}, "at_s must be a number from 0 to .* not 'soon'"),
        ({"until_s": 1}, "until_s must come after it, not 1"),
        ({"until_s": float("inf")}, "until_s must be a number from 0 to"),
        *(({"factor": value}, "factor must be a number from 1 to") for value in
          (0, -1, 0.5, float("nan"), 1e9, "twice", True)),
    ],
)  # fmt: skip
def test_bad_events_are_told(row: dict[str, Any], message: str) -> None:
    twin = dataclasses.replace(ONE, name="twin")
    nodes = [dataclasses.replace(ONE, name="big"), twin, twin]
    if row.get("node") == 2:
        nodes = nodes[:2]
    event = {"kind": "slow", "node": "big", "at_s": 1, "until_s": 2, **row}
    with pytest.raises(InputError, match=message) as caught:
        lw.simulate(workload((0, 4, 2)), nodes=nodes, failures=[event])
    assert "\n" not in str(caught.value)


def test_windows_of_one_kind_must_not_overlap() -> None:
    system(2, Slow(0, 1, 2), Slow(0, 2, 3), Slow(1, 1, 3))
    for second in (Slow(0, 1.5, 3), Slow(0, 0, 1.1), Slow(0, 1, 2), Slow(0, 0)):
        with pytest.raises(InputError, match=r"slow of node 0 at .* overlaps the one at"):
            system(1, Slow(0, 1, 2), second)


def test_bad_files_are_told(tmp_path: Path) -> None:
    for name, text, message in (
        ("events.txt", "", "events are read from .yaml, .yml, .json, .csv files, not"),
        ("events.yaml", "failures: []", "unknown key 'failures' of"),
        ("events.yaml", "- [", "can't be read"),
        ("events.json", "3", "expected a list of events, not 3"),
        ("events.csv", "kind,node\nslow,0,1\n", "can't be read: a row has other"),
        ("events.csv", "kind,node\nslow,0\n", "event 0 in .*: it needs at_s"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            read_events(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"nowhere\.csv'?: No such file"):
        read_events("nowhere.csv")


@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    path = tmp_path / "events.csv"
    path.write_text("kind,node,at_s,until_s,factor\nslow,1,0,60,3\n")
    line = f"{command} azure-conv-2023 --requests 30 --replicas 2 --failures"
    more = ["--seeds", "1", "--policies", "fcfs"] if command == "compare" else []
    with pytest.raises(SystemExit) as ended:
        main([*line.split(), str(path), *more])
    assert not ended.value.code
    path.write_text("kind,node,at_s,until_s,factor\nslow,2,0,60,3\n")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*line.split(), str(path), *more])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
