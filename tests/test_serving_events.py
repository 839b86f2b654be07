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
from lengthwise.eval.compare import compare
from lengthwise.eval.tables import columns_of
from lengthwise.policies import load_policy, load_router
from lengthwise.serving import HOLD, Engine, Fail, Node, Run, Slow, Stops, System, begin, run
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
        events += slows(rng, node, last_s) + fails(rng, node, last_s, final=node > 0)
    changed = dataclasses.replace(found["system"], events=tuple(events))
    return {**found, "system": changed}


def slows(rng: np.random.Generator, node: int, last_s: float) -> list[Slow]:
    times = np.sort(rng.uniform(0, last_s, 2 * int(rng.integers(4)))).round(int(rng.integers(1, 9)))
    return [
        Slow(node, at, until, float(rng.choice([1, 1.1, 2, 3.7, 20])))
        for at, until in zip(times[::2].tolist(), times[1::2].tolist(), strict=True)
        if at < until
    ]


def fails(rng: np.random.Generator, node: int, last_s: float, *, final: bool) -> list[Fail]:
    """Failures that may be noticed late, or after the node is back; ``final``: one may stay."""
    times = np.sort(rng.uniform(0, last_s, 2 * int(rng.integers(3)))).round(int(rng.integers(1, 9)))
    found: list[Fail] = []
    for at, until in zip(times[::2].tolist(), times[1::2].tolist(), strict=True):
        late = float(rng.choice([0, 0, 0.01, 0.5, 100]) * rng.random())
        if at >= until or (found and found[-1].ends_ps > at * PS):
            continue
        found.append(Fail(node, at, until, late, float(rng.choice([0, 0, 0.2]))))
    if found and final and rng.random() < 0.2:
        found[-1] = dataclasses.replace(found[-1], until_s=None)
    return found


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


THREE = workload((0, 4, 3), (0, 4, 3), (1, 4, 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("event", "visits"),
    [
        # request 0 has one token when node 0 fails, the second is lost with the iteration
        (Fail(0, 1.5, 5), [(0, 0, 0, 1.5, 1), (0, 1, 3, 6, 0), (1, 1, 0, 3, 0),
                           (2, 0, None, 1.5, 0), (2, 1, 6, 8, 0)]),
        # an iteration that ends as the node fails counts
        (Fail(0, 2, 5), [(0, 0, 0, 2, 2), (0, 1, 3, 6, 0), (1, 1, 0, 3, 0),
                         (2, 0, None, 2, 0), (2, 1, 6, 8, 0)]),
        # the router learns of it when requests 1 and 0 are done at 3 and 6
        (Fail(0, 0.5, 9, detected_after_s=2), [(0, 0, 0, 2.5, 0), (0, 1, 3, 6, 0), (1, 1, 0, 3, 0),
                                               (2, 0, None, 2.5, 0), (2, 1, 6, 8, 0)]),
        # it is back before anybody noticed, and takes what comes back to the router
        (Fail(0, 0.5, 2.2, 10, 0.3), [(0, 0, 0, 2.5, 0), (0, 1, 3, 6, 0), (1, 1, 0, 3, 0),
                                      (2, 0, None, 2.5, 0), (2, 0, 2.5, 4.5, 0)]),
    ],
)  # fmt: skip
def test_one_of_two_nodes_fails(event: Fail, visits: list[Any], backend: Backend) -> None:
    """Three requests by hand: 0 and 2 are sent to node 0, which fails; 1 is node 1's."""
    found = run(THREE, system(2, event), backend=backend)
    frame = found.visits.to_frame()
    seen = [
        (row.request_id, row.node, None if np.isnan(row.start_s) else row.start_s, row.finish_s,
         row.lost_tokens)
        for row in frame.itertuples()
    ]  # fmt: skip
    assert seen == visits
    assert found.retries.tolist() == [1, 0, 1]
    assert found.lost_tokens.tolist() == [visits[0][4], 0, 0]
    assert (found.arrival_ps == THREE["arrival_s"] * PS).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_requests_wait_while_no_node_is_up(backend: Backend) -> None:
    found = run(THREE, system(1, Fail(0, 0.5, 5, start_up_s=2)), backend=backend)
    assert (found.scheduled_ps / PS).tolist() == [7, 10, 13]
    assert found.retries.tolist() == [1, 1, 0] and found.lost_tokens.tolist() == [0, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_node_that_is_back_takes_its_share_and_no_burst(backend: Backend) -> None:
    many = workload(*((float(i), 4, 1) for i in range(40)))
    found = run(many, system(2, Fail(0, 0, 20)), backend=backend)
    assert (found.replica[:20] == 1).all()
    assert found.replica[20:].tolist() == [0, 1] * 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_prefix_cache_of_a_node_that_failed_is_empty(backend: Backend) -> None:
    engine = Engine(max_num_seqs=1, num_gpu_blocks=64, block_size=4, enable_prefix_caching=True)
    alike = lw.Workload({
        "arrival_s": [0, 10, 20], "prompt_tokens": [9, 9, 9], "output_tokens": [1, 1, 1],
        "prefix_hashes": [(1, 2)] * 3, "hash_block_tokens": [4] * 3,
    })  # fmt: skip
    node = Node(engine, LinearTiming(1.0), load_policy("fcfs"))
    for events, cached in (((), [0, 8, 8]), ((Fail(0, 12, 15),), [0, 8, 0])):
        found = run(alike, System((node,), load_router("jsq"), events=events), backend=backend)
        assert found.cached_tokens.tolist() == cached


def test_nobody_is_lost_and_tokens_are_conserved() -> None:
    """Over random runs: all finish, every token generated was delivered or is counted as lost,
    and nobody is sent to a node that is known to be down."""
    retried = 0
    for seed in range(40):
        given = happening(seed)
        log = given.pop("log_iterations")
        made = begin(**given)
        assert log and made.advance().kind == "done"
        found, totals = made.records(), made.totals
        assert totals.finished == len(given["workload"]) and totals.in_system == 0
        assert totals.generated_tokens == found.output_tokens.sum() + found.lost_tokens.sum()
        assert totals.lost_tokens == found.lost_tokens.sum()
        assert totals.retries == found.retries.sum() == len(found.visits.node) - totals.finished
        assert totals.preemptions == found.preemptions.sum()
        assert totals.recomputed_tokens == found.recomputed_tokens.sum()
        retried += totals.retries
        visits = found.visits
        for event in given["system"].events:
            if isinstance(event, Fail):
                there = (visits.node == event.node) & (visits.start_ps >= 0)
                begun = visits.start_ps[there]
                assert not ((begun >= event.noticed_ps) & (begun < event.ends_ps)).any()
    assert retried > 100


def chosen(made: Run, seed: int) -> list[tuple[Any, ...]]:
    """What a run asks and is told on the way, by answers at random."""
    rng, told = np.random.default_rng(seed), list[tuple[Any, ...]]()
    rows = np.zeros((999, 3))
    names = ("outstanding_requests", "waiting_requests", "kv_utilization")
    while (stop := made.advance(Stops(route=True, hold_ps=10**10))).kind == "route":
        count = made.features(names, rows)
        told.append((stop, made.totals, rows[:count].tolist()))
        up = sorted({*range(stop.candidates)} - {*stop.closed})
        assert up
        for down in stop.closed:
            with pytest.raises(InputError, match=f"node {down} is down"):
                made.answer(down)
        made.answer(HOLD if rng.random() < 0.1 else int(rng.choice(up)))
    return [*told, (made.totals, [column.tolist() for column in columns(made.records())])]


def columns(records: Any) -> list[Any]:
    found = (getattr(records, field.name) for field in dataclasses.fields(records))
    return [column for column in found if isinstance(column, np.ndarray)]


def test_both_engines_stop_alike_whatever_happens() -> None:
    closed = 0
    for seed in range(12):
        given = happening(seed)
        given.pop("log_iterations")
        told = [chosen(begin(**given, backend=backend), seed) for backend in ("reference", "fast")]
        assert repr(told[0]) == repr(told[1])
        closed += sum(len(one[0].closed) for one in told[0][:-1])
    assert closed > 20


def test_summaries_tell_what_was_lost() -> None:
    found = lw.simulate(THREE, nodes=[ONE, ONE], failures=[Fail(0, 1.5, 5)])
    told = found.summary()
    assert (told["retries"], told["lost_tokens"], told["downtime_s"]) == (2, 1, 3.5)
    assert "retries" not in lw.simulate(THREE, nodes=[ONE, ONE], failures=[Slow(0)]).summary()
    compared = compare(THREE, ("fcfs",), seeds=1, nodes=[ONE, ONE], failures=[Fail(0, 1.5, 5)])
    assert [column.heading for column in columns_of(compared)][-2:] == ["retried", "lost tokens"]
    assert compared.runs["lost_tokens"].dropna().tolist() == [1.0]


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
        ({"kind": "fail", "factor": 2}, r"unknown key 'factor' of event 0 in events \(fail\)"),
        ({"kind": "fail", "start_up_s": -1}, "start_up_s must be a number from 0"),
        ({"kind": "fail", "detected_after_s": None}, "detected_after_s must be a number from 0"),
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


def test_failures_must_not_overlap_and_somebody_must_come_back() -> None:
    system(2, Fail(0, 1, 2, start_up_s=1), Fail(0, 3), Slow(0, 1, 4), Fail(1, 0, 9))
    with pytest.raises(InputError, match=r"fail of node 0 at 2.5 s: it overlaps the one at 1 s"):
        system(1, Fail(0, 1, 2, start_up_s=1), Fail(0, 2.5, 4))
    for events in ((Fail(0, 1),), (Fail(0, 1, 2), Fail(0, 3))):
        with pytest.raises(InputError, match="every node fails and never comes back"):
            system(1, *events)
    with pytest.raises(InputError, match="every node fails and never comes back"):
        system(2, Fail(0, 3), Fail(1, 2))


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
