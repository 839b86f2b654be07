"""What the fast engine starts from and is written from, by hand: arrays, tables, curves, calls."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise import simulate
from lengthwise.curves import Curve
from lengthwise.errors import InputError, InvariantError, UnknownNameError
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import RoutingPolicy, SchedulingPolicy, Score
from lengthwise.prediction import CURVES, Prediction, Predictions
from lengthwise.serving import Engine, Fail, Node, Slow, System, begin, run
from lengthwise.serving.fast import prefixes, setup, tables
from lengthwise.serving.fast import state as ks
from lengthwise.serving.fast.calls import ScoreCalls, why_python
from lengthwise.serving.fast.compiler import build
from lengthwise.serving.fast.features import BITS, mask
from lengthwise.serving.fast.prefixes import prefixes_of
from lengthwise.serving.fast.run import begin_run
from lengthwise.serving.fast.tabulated import CERTAIN, curve_arrays
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload


def test_families_are_lists_of_children_in_order() -> None:
    given = Workload({
        "arrival_s": np.zeros(6), "prompt_tokens": np.ones(6), "output_tokens": np.ones(6),
        "parent": [-1, 0, -1, 0, 2, 0],
    })  # fmt: skip
    first, sibling = setup._families(given)
    assert first.tolist() == [1, -1, 4, -1, -1, -1]
    assert sibling.tolist() == [-1, 3, -1, 5, -1, -1]


def test_parts_lie_one_after_the_other_and_grow() -> None:
    assert setup._before(np.array([3, 0, 5, 2])).tolist() == [0, 3, 3, 8]
    array = np.arange(4)
    assert setup._longer(array, 0) is array
    assert setup._longer(array, 2).tolist() == [0, 1, 2, 3, 0, 0, 0, 0]  # twice as many
    assert len(setup._longer(array, 9)) == 13


def test_arrays_of_another_kind_never_reach_machine_code() -> None:
    """Each by itself: a wrong type, too many dimensions or too few, and columns that are apart."""

    def table(**given: Any) -> Any:
        arrays = {
            name: np.zeros((2,) * max(dimensions, 1), kind)
            for name, (kind, dimensions) in ks.KINDS.items()
        }
        return ks.address_table(ks.State(**{**arrays, **given}))

    found = table(arrival=np.zeros(7, np.int64), hist=np.zeros((3, 5), np.int64))
    fields = ks.State._fields
    assert found.shape == (len(fields), 3)
    assert found[fields.index("arrival"), 1:].tolist() == [7, 0]
    assert found[fields.index("hist"), 1:].tolist() == [3, 5]
    assert (found[:, 0] > 0).all() and len(set(found[:, 0])) == len(fields)
    for wrong in (np.zeros(7, np.int32), np.zeros((7, 1), np.int64), np.zeros(14, np.int64)[::2]):
        with pytest.raises(InvariantError, match="the fast engine's array arrival is int"):
            table(arrival=wrong)
    with pytest.raises(InvariantError, match="array hist is"):
        table(hist=np.zeros(3, np.int64))


def state(**given: Any) -> Any:
    """As much of a state as grows."""

    class State(SimpleNamespace):
        def _replace(self, **changed: Any) -> Any:
            return State(**{**self.__dict__, **changed})

    run = np.zeros(1, ks.RUN)
    replica = np.zeros(2, ks.REPLICA)
    replica["capacity"], replica["queue_at"] = [4, 3], [0, 4]
    made: dict[str, Any] = dict(
        run=run, replica=replica, log=np.zeros(2, ks.LOG), lost=np.zeros(0, ks.LOST_VISIT),
        heap=np.arange(7), stale=np.arange(7), watched=np.arange(0), stash=np.arange(4),
        rows=np.arange(4), out=np.arange(4),
    )  # fmt: skip
    return State(**{**made, **given})


def test_what_ran_out_grows_and_keeps_what_it_holds() -> None:
    full = state()
    full.run["log"], full.run["log_rows"] = 1, 2
    assert len(setup.grow(full).log) == 4
    full.run["log_rows"] = 1
    full.run["lost_room"] = 3
    assert len(setup.grow(full).lost) == 3
    # the first replica's queue: it moves behind the other one, with its content
    moved = state()
    found = setup.grow(moved)
    assert moved.replica["capacity"].tolist() == [8, 3]
    assert moved.replica["queue_at"].tolist() == [7, 4]
    assert len(found.heap) >= 15 and found.heap[7:11].tolist() == [0, 1, 2, 3]
    assert found.heap[4:7].tolist() == [4, 5, 6] and found.stale[7:11].tolist() == [0, 1, 2, 3]
    assert len(found.stash) >= 8 and len(found.rows) >= 8 and len(found.out) >= 8
    assert len(found.watched) == 0
    # the last one's: it stays where it is
    last = state(watched=np.arange(7))
    last.run["at_replica"] = 1
    found = setup.grow(last)
    assert last.replica["queue_at"].tolist() == [0, 4] and last.replica["capacity"][1] == 6
    assert len(found.heap) >= 10 and found.heap[:7].tolist() == list(range(7))
    assert found.watched[:7].tolist() == list(range(7)) and len(found.watched) >= 10
    rows = setup.with_rows(state(), 9)
    assert len(rows.rows) == 9 == len(rows.out)
    assert len(setup.with_rows(state(), 4).rows) == 4


# The room that a run has: of each array exactly where something needs it

PLAIN = {
    "arrival_s": np.arange(4.0),
    "prompt_tokens": np.full(4, 9),
    "output_tokens": np.full(4, 5),
}


def begun(*nodes: Node, router: Any = "jsq", seed: int = 5, log: bool = False, stops: bool = False,
          columns: dict[str, Any] | None = None, **given: Any) -> Any:  # fmt: skip
    routing = load_router(router) if isinstance(router, str) else router
    system = System(nodes, routing, **given)
    work = Workload(PLAIN | (columns or {}))
    return begin_run(work, system, np.full(4, 3.5), seed, log, stops=stops)[0]


def node(policy: str = "fcfs", **options: Any) -> Node:
    engine = Engine(**{"max_num_seqs": 3, "num_gpu_blocks": 20, "block_size": 4, **options})
    return Node(engine, LinearTiming(0.01), load_policy(policy))


NOTHING = (
    "heap", "stale", "watched", "log", "scraped", "block", "bucket", "bucket_end", "held", "hit",
    "hashes", "prefix", "chain", "chain_at", "score", "flight", "stored", "sent", "shadow", "since",
    "owed", "sent_ahead", "think", "first_child", "sibling", "calendar", "roots", "asked", "gave",
    "candidate", "slow", "turn", "lost", "fresh", "reach_ps", "priority", "deadline",
)  # fmt: skip


def rooms(state: Any, *names: str) -> dict[str, int]:
    """The sizes of arrays that not every run has, but for those that are named."""
    return {name: getattr(state, name).size for name in NOTHING if name not in names}


def test_a_plain_run_has_room_for_its_seats_and_requests_alone() -> None:
    state = begun(node())
    assert not any(rooms(state).values()) and not state.waits.size
    sizes = {"acting": 3, "first": 6, "orphan": 6, "slot": 3, "stash": 3, "rows": 3, "out": 3,
             "places": 1, "end": 1, "seen": 1, "replica": 1, "link": 4, "generated": 4, "reach": 4,
             "where": 4, "scheduled": 4, "first_token": 4, "finish": 4, "preemptions": 4,
             "recomputed": 4, "cached": 4}  # fmt: skip
    assert {name: len(getattr(state, name)) for name in sizes} == sizes
    assert state.wheel.shape == (1, ks.WHEEL) and (state.wheel == -1).all()
    assert state.hist.shape == (1, 4) and state.step.shape == (1, 2)
    assert state.end.tolist() == [ks.NEVER] and not state.scheduled.any()
    run = state.run[0]
    assert (run["requests"], run["replicas"], run["open"], run["seed"]) == (4, 1, 1, 5)
    assert (run["closed_loop"], run["choices"], run["log"]) == (0, 0, 0)
    assert (run["interval"], run["scraped"], run["router_at"]) == (0, -1, 0)
    row = state.replica[0]
    assert (row["free"], row["seat"], row["seats_end"], row["free_slot"]) == (19, 0, 3, 0)
    assert (row["capacity"], row["queue_at"], row["slow_at"], row["slow_end"]) == (0, 0, 0, 0)
    lists = ("head", "tail", "queue_head", "queue_tail", "oldest", "newest", "blank",
             "shadow_head", "shadow_tail", "sent_head")  # fmt: skip
    assert {int(row[name]) for name in lists} == {-1}


def test_what_a_policy_needs_has_room_in_every_replica() -> None:
    guarded = node("srtf+preempt:mode=swap+guard", max_num_seqs=2)
    state = begun(node(), guarded, guarded, router="power-of-two", log=True, metrics_interval_s=0.5)
    queue = 2 * (4 * 2 + 64)
    more = {"heap": queue, "stale": queue, "watched": queue, "score": 4, "stored": 4, "shadow": 4,
            "since": 4, "owed": 4, "sent_ahead": 4, "log": 1024, "scraped": 3}  # fmt: skip
    assert {name: len(getattr(state, name)) for name in more} == more
    assert not any(rooms(state, *more).values())
    assert state.waits.shape == (3, ks.RING)
    assert len(state.stash) == len(state.rows) == len(state.out) == 4 * 2 + 64
    assert state.replica["capacity"].tolist() == [0, 72, 72]
    assert state.replica["queue_at"].tolist() == [0, 0, 72]
    assert state.replica["seat"].tolist() == [0, 3, 5]
    assert state.replica["seats_end"].tolist() == [3, 5, 7]
    assert state.replica["node"].tolist() == [0, 1, 1]
    run = state.run[0]
    assert (run["choices"], run["log"], run["interval"]) == (2, 1, 5 * 10**11)
    assert run["router_at"] != 0 and state.places.size == 3
    # the guard alone, and a policy by score alone, have no more than theirs
    alone = begun(node("sjf+guard"))
    assert len(alone.since) == 4 and len(alone.watched) == 4 * 3 + 64 and not alone.stored.size
    bare = begun(node("sjf+guard:ratio=0"))
    assert not bare.since.size and not bare.watched.size and len(bare.heap) == 76


@pytest.mark.parametrize(("size", "shift", "longest"), [
    (1, 0, 14), (2, 1, 7), (4, 2, 4), (12, -1, 2), (16, 4, 1), (24, -1, 1), (96, -1, 1),
])  # fmt: skip
def test_blocks_are_counted_by_shifts_where_their_size_is_a_power_of_two(
    size: int, shift: int, longest: int
) -> None:
    row = begun(node(block_size=size)).node[0]
    assert (row["block_size"], row["shift"], row["longest"]) == (size, shift, longest)


def test_a_node_s_numbers_by_hand() -> None:
    made = node(
        "srtf+preempt:price=0.5,max_per_step=3", max_num_batched_tokens=70, watermark=0.25,
        long_prefill_token_threshold=9, num_gpu_blocks=30,
    )  # fmt: skip
    row = begun(made).node[0]
    numbers = {
        "max_seqs": 3, "max_tokens": 70, "blocks": 29, "watermark": 7, "threshold": 9,
        "max_per_step": 3, "price": 0.5, "preemption": 1, "swaps": 0, "by_score": 1, "scored": 1,
        "every": 0, "guarded": 0, "guard_ratio": 0, "guard_floor": 0, "depth": 1, "caching": 0,
        "pipeline": 0, "reserve": 0,
    }  # fmt: skip
    assert {name: row[name] for name in numbers} == numbers
    plain = begun(node("fcfs+guard:ratio=0.5,floor_s=2", async_scheduling=True,
                       enable_prefix_caching=True)).node[0]  # fmt: skip
    numbers = {"by_score": 0, "preemption": 0, "depth": 2, "watermark": 0, "threshold": 0,
               "every": 0}  # fmt: skip
    assert {name: plain[name] for name in numbers} == numbers


def test_what_a_caller_or_an_event_needs_has_room() -> None:
    asked = begun(node(), node(), stops=True)
    more = {"asked": 4, "gave": 4, "candidate": 6, "calendar": 4, "sent": 4}
    assert {name: len(getattr(asked, name)) for name in more} == more
    assert not any(rooms(asked, *more).values())
    happens = begun(node(), node(), events=(Fail(1, 1.0, 2.0), Slow(0, 1.0, 2.0, 2.0)))
    more = {"asked": 4, "calendar": 4, "slow": 1, "fresh": 2}
    assert {name: len(getattr(happens, name)) for name in more} == more
    assert len(happens.turn) >= 2 and not any(rooms(happens, *more, "turn").values())
    assert happens.scheduled.tolist() == [-1] * 4
    assert happens.replica["slow_at"].tolist() == [0, 1]
    assert happens.replica["slow_end"].tolist() == [1, 1]
    slow = begun(node(), node(), events=(Slow(1, 1.0, 2.0, 2.0),))
    assert not slow.turn.size and not slow.fresh.size and not slow.scheduled.any()
    assert slow.replica["slow_end"].tolist() == [0, 1] and len(slow.asked) == 4


def test_closed_loops_clocks_and_columns_have_room() -> None:
    columns = {"parent": [-1, 0, 0, -1], "think_s": [0.0, 1.0, 2.0, 0.0], "priority": [1, 2, 3, 4],
               "deadline_s": np.arange(4.0)}  # fmt: skip
    state = begun(node("priority"), columns=columns)
    assert state.think.tolist() == [0, 10**12, 2 * 10**12, 0] and state.roots.tolist() == [0, 3]
    assert state.first_child.tolist() == [1, -1, -1, -1] and len(state.calendar) == 4
    assert state.arrival is not state.planned and state.run[0]["closed_loop"] == 1
    assert not state.asked.size and state.priority.tolist() == [1, 2, 3, 4]
    assert len(state.deadline) == 4
    ahead = begun(node(async_scheduling=True), node())
    assert len(ahead.flight) == 4 and not ahead.reach_ps.size
    oldest = Score.from_function(longest_wait)
    seen = begun(node(), node(), router=RoutingPolicy(oldest))
    assert len(seen.sent) == 4 and seen.run[0]["routing_reads"] == mask(["oldest_request_s"])
    assert begun(node(), seed=2**63 + 7).run[0]["seed"] == 7 - 2**63


def longest_wait(oldest_request_s: Any) -> Any:
    return oldest_request_s


def hashed(*hashes: tuple[int, ...], size: int = 4) -> tuple[Any, Any, Any]:
    n = len(hashes)
    given = Workload({
        "arrival_s": np.zeros(n), "prompt_tokens": np.full(n, 99), "output_tokens": np.ones(n),
        "prefix_hashes": list(hashes), "hash_block_tokens": np.full(n, size),
    })  # fmt: skip
    run = np.zeros(1, ks.RUN)
    found = setup._prefixes(run, given)
    return run, found.hashes, found.at


def test_hashes_lie_flat_and_may_be_of_any_size() -> None:
    run, flat, at = hashed((5, 6), (), (7,), size=32)
    assert (
        flat.tolist() == [5, 6, 7] and at.tolist() == [0, 2, 2, 3] and run["hash_tokens"][0] == 32
    )
    _, flat, _ = hashed((2**70, 5), (2**70, 2**71))
    assert flat.tolist() == [0, 1, 0, 2]  # numbered as they appear
    plain = Workload({"arrival_s": [0.0], "prompt_tokens": [1], "output_tokens": [1]})
    run = np.zeros(1, ks.RUN)
    none = setup._prefixes(run, plain)
    assert len(none.hashes) == 0 and none.at.tolist() == [0, 0] and run["hash_tokens"][0] == 1
    with pytest.raises(InputError, match="prefix_hashes need the column hash_block_tokens"):
        setup._prefixes(run, plain.replace(prefix_hashes=[(1,)]))


def test_prefixes_are_numbered_once_for_all_runs_of_a_column() -> None:
    n = 4
    work = Workload({
        "arrival_s": np.arange(n), "prompt_tokens": np.full(n, 99), "output_tokens": np.ones(n),
        "prefix_hashes": [(5, 6), (5, 7), (), (6,)], "hash_block_tokens": np.full(n, 16),
    })  # fmt: skip
    stretched = work.at_rate(3.0).at_rate(7.0)
    assert stretched["prefix_hashes"] is work["prefix_hashes"]
    known = prefixes_of(work["prefix_hashes"])
    assert prefixes_of(stretched["prefix_hashes"]) is known and (known.number == -1).all()
    engine, tick = Engine(enable_prefix_caching=True, num_gpu_blocks=64), LinearTiming(base_s=1.0)
    first = simulate(work, engine=engine, timing=tick, backend="fast")
    assert known.number.tolist() == [0, 1, 0, 2, 3]  # 6 begins another prefix than 5, 6
    known.hashes[:] = 0  # nobody reads them again
    again = simulate(work, engine=engine, timing=tick, backend="fast")
    assert again.records.cached_tokens.tolist() == first.records.cached_tokens.tolist()
    assert first.records.cached_tokens.tolist() == [0, 16, 0, 0]
    # a column that others can write to is copied, as is one of another kind
    mine = np.fromiter([(1,), (2,)], object, 2)
    two = {"arrival_s": [0, 1], "prompt_tokens": [99, 99], "output_tokens": [1, 1],
           "hash_block_tokens": [16, 16]}  # fmt: skip
    assert Workload({**two, "prefix_hashes": mine})["prefix_hashes"] is not mine
    key = id(stretched["prefix_hashes"])
    assert key in prefixes._known
    del work, stretched, first, again
    gc.collect()
    assert key not in prefixes._known  # kept no longer than its column


def test_seats_and_blocks_are_in_lists() -> None:
    replica = np.zeros(2, ks.REPLICA)
    replica["seats_end"] = [2, 5]
    slots = setup._slots(replica)
    assert slots["next"].tolist() == [1, -1, 3, 4, -1]
    node = np.zeros(2, ks.NODE)
    node["caching"], node["blocks"], node["max_seqs"] = [1, 0], [3, 9], [2, 2]
    node["longest"], node["bucket_mask"] = [5, 7], [3, 3]
    replica["node"] = [0, 1]
    made = setup._blocks(replica, node)
    assert made["block"]["newer"].tolist() == [1, 2, 3, -1]  # three beside the null block
    assert replica["blank"].tolist() == [1, 0] and len(made["bucket"]) == 4
    assert len(made["held"]) == 10 and len(made["hit"]) == 5
    assert (made["bucket_end"] == -1).all()


# Tables


def test_sums_are_written_from_the_table_of_terms() -> None:
    assert tables.sum_of_terms("c", "schedule", running="n + 1") == (
        "c.schedule_ps + c.schedule_seq_ps * (n + 1)"
    )
    assert tables.sum_of_terms("c", "tail") == "c.tail_ps"
    with pytest.raises(InvariantError, match="schedule_seq multiplies running, which the fast"):
        tables.sum_of_terms("c", "schedule")
    assert tables.is_read("m", "now_s", "priority") == (
        f"m & {BITS['now_s'] | BITS['priority']} != 0"
    )
    assert mask(["now_s", "priority"]) == BITS["now_s"] | BITS["priority"]
    pair = tables.is_read_of("m", "pair")
    assert pair == f"m & {BITS['random_draw'] | BITS['cached_tokens']} != 0"


def test_features_are_written_behind_their_bits() -> None:
    lines = tables.copy_features("row", "old", "m", "pair").split("\n")
    assert lines[:3] == ["to = row", "reads = m", "seen = old"]
    body = [line.strip() for line in lines[3:]]
    assert "to.random_draw = seen.random_draw" in body
    counted = tables.write_counted_features("row", "m")
    for name in ("routed_requests", "outstanding_requests", "outstanding_tokens"):
        assert f"to.{name} = " in counted
    assert "to.running_requests" not in counted
    whole = tables.write_features("row", "m", "replica")
    assert "to.running_requests = " in whole and "to.arrival_s" not in whole
    for name in ("kv_utilization", "oldest_request_s"):  # what takes work is asked for
        assert f"    if reads & {BITS[name]}:\n        to.{name} = " in whole
    names = ks.REPLICA.names or ()
    copied = tables.restore("a", "b", "node", "free").split("\n")
    assert copied == [f"a.{n} = b.{n}" for n in names if n not in ("node", "free")]


def test_numbers_that_a_source_imports_are_put_in() -> None:
    found = build._imported(
        "from lengthwise.picoseconds import PS as SECOND, picoseconds\nimport numpy as np\n"
        "from math import pi\n"
    )
    assert found == {"SECOND": 10**12}
    text = build.source({"ONE": True, "TWO": False})
    assert "ONE = True\n\n\nTWO = False" in text and "sum_of_terms" not in text
    assert "write_features" not in text and "from lengthwise.serving.fast.queue" not in text
    assert build._text(build.ast.parse("'a b'", mode="eval").body) == "a b"
    assert build._text(build.ast.parse("x + 1", mode="eval").body) == "x + 1"


# Curves


def test_curves_are_kept_once_and_those_that_are_read() -> None:
    tokens = np.array([5.0, 7.0])
    one = Curve.table([0.0, 9.0], [[5.0, 1.0], [7.0, 3.0]])
    two = Curve.table([0.0], [[2.0]], [0, 0], "falling")
    places = list(CURVES)
    given = Predictions(
        {"predicted_tokens": tokens}, {places[0]: one, places[1]: one, places[2]: two}
    )
    made = curve_arrays(given, [*CURVES, "now_s"])
    assert made["curve_data"].tolist() == [0, 9, 5, 1, 7, 3, 0, 2]
    assert made["curve"].tolist() == [(0, 2, 2, 1), (0, 2, 2, 1), (6, 1, 7, 2)]
    assert made["curve_row"].tolist() == [[0, 1], [0, 1], [0, 0]] and len(made["limit"]) == 0
    some = curve_arrays(given.capped([3, 9]), [places[2]])
    assert some["curve"].tolist()[2] == (0, 1, 1, 2) and some["limit"].tolist() == [3, 9]
    none = curve_arrays(None, ["now_s"])
    assert none["curve_data"].size == 0 and not none["curve"].tolist()[0][1]


def test_one_length_needs_no_table() -> None:
    names = list(CURVES)
    certain = Predictions.given([5.0, 0.5], 2)
    assert certain is not None
    for given in (certain, certain.capped([3, 9]), Prediction.exact([5.0, 7.0]).of_run()):
        made = curve_arrays(given, names)
        assert made["curve"]["between"].tolist() == [CERTAIN] * 3 and made["curve_data"].size == 0
    assert CERTAIN == 3
    wide = Prediction.bucketed([[0.5, 0.5]], [0, 5, 9]).of_run()
    moved = Predictions({"predicted_tokens": np.array([9.0, 7.0])}, certain.curves)
    for given in (wide, moved):  # a distribution; a column that says something else
        assert curve_arrays(given, names)["curve_data"].size > 0


# Calls and backends


def test_scores_are_called_as_machine_code_where_they_compile() -> None:
    def slow(prompt_tokens: Any, now_s: Any) -> Any:
        return np.log1p(prompt_tokens) + 0 * now_s

    score = Score.from_function(slow)
    assert why_python(load_policy("sjf").score) is None
    why = why_python(score)
    assert why is not None and "log1p" in why
    policies = [load_policy("fcfs"), load_policy("sjf"), SchedulingPolicy(score)]
    calls = ScoreCalls(policies, load_router("jsq"), 2)
    assert calls.policy_at[0] == 0 != calls.policy_at[1] and calls.router_at != 0
    assert calls.why == [None, None, why]
    assert ScoreCalls(policies, load_router("jsq"), 1).router_at == 0
    with pytest.raises(InputError, match="divided by zero or failed otherwise"):
        calls.reraise()


WORKLOAD = Workload({"arrival_s": [0.0], "prompt_tokens": [3], "output_tokens": [2]})


def system(router: RoutingPolicy | None = None) -> System:
    node = Node(Engine(num_gpu_blocks=9), LinearTiming(1.0), load_policy("fcfs"))
    return System((node,), router or load_router("jsq"))


def test_who_asks_is_told_which_engine_ran_and_why() -> None:
    for backend, ran, why in (
        ("auto", "fast", "the compiled engine supports this run"),
        ("fast", "fast", "asked for"), ("reference", "reference", "asked for"),
    ):  # fmt: skip
        found = run(WORKLOAD, system(), backend=backend)  # type: ignore[arg-type]
        assert (found.backend, found.backend_reason) == (ran, why)
        assert found.finish_ps.tolist() == [2 * 10**12]
    checked = run(WORKLOAD, system(), check=True)
    assert checked.backend == "reference"
    assert checked.backend_reason == "invariants are checked by the reference engine alone"
    with pytest.raises(InputError, match="backend fast can't run this: invariants are checked"):
        run(WORKLOAD, system(), backend="fast", check=True)
    with pytest.raises(UnknownNameError, match="'fats'; did you mean 'fast'"):
        run(WORKLOAD, system(), backend="fats")  # type: ignore[arg-type]
    assert isinstance(begin(WORKLOAD, system()), ReferenceRun)
    fast = begin(WORKLOAD, system(), backend="fast")
    assert not isinstance(fast, ReferenceRun) and fast.advance().kind == "done"
    with pytest.raises(UnknownNameError, match="unknown backend 'auto' of a run"):
        begin(WORKLOAD, system(), backend="auto")  # type: ignore[arg-type]
