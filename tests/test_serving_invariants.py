"""What must hold for every workload, engine and policy; hypothesis looks for one where it doesn't.

``check=True`` verifies seats, tokens and blocks after every event; here the records are held to
what any correct run must give.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError, InvariantError
from lengthwise.policies import load_policy, load_router
from lengthwise.serving import Engine, Stop, Stops
from lengthwise.serving.draws import sample, splitmix64, uniform
from lengthwise.serving.inputs import block_keys
from lengthwise.serving.records import PS
from lengthwise.serving.reference.kv_cache import KVCache
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload
from tests.systems import alike

POLICIES = (
    "fcfs", "sjf", "sjf+admit:reserve=1.0", "fcfs+admit:reserve=0.7,by=peak", "priority",
    "hrrn", "srtf", "mlfq:quantum=2",
    "srtf+preempt:price=0.0", "srtf+preempt:price=0.0,mode=swap",
    "mlfq:quantum=1,levels=3+preempt:price=0.0,max_per_step=2",
    "srtf+preempt:price=0.001,overhead_tokens=4,margin=1.0,protect_after=0.5",
    "sjf+guard:ratio=0.5,floor_s=0.01", "mlfq:quantum=2+preempt:price=0.0+guard",
)  # fmt: skip
ROUTERS = ("round-robin", "random", "jsq", "least-tokens", "power-of-two")


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a run, from starving to ample."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 30))
    prompt, output = rng.integers(1, 40, count), rng.integers(1, 20, count)
    gap, error = draw(st.sampled_from((0, 0.1, 5))), draw(st.sampled_from((0, 6)))
    columns: dict[str, Any] = {
        "arrival_s": np.sort(np.round(rng.exponential(gap, count), 1)),
        "prompt_tokens": prompt, "output_tokens": output, "priority": rng.integers(0, 3, count),
    }  # fmt: skip
    block_size = draw(st.sampled_from((1, 2, 5, 16)))
    caching = draw(st.booleans())
    if caching:
        columns["prefix_hashes"] = [tuple(rng.integers(0, 2, tokens // 3)) for tokens in prompt]
        columns["hash_block_tokens"] = np.full(count, 3)
    if draw(st.integers(0, 4)) == 0:
        columns["parent"] = [int(rng.integers(-1, i)) if i else -1 for i in range(count)]
        columns["think_s"] = rng.choice([0.0, 0.5], count)
    least = -(-int((prompt + output).max()) // block_size)
    seats = draw(st.integers(1, 9))
    return alike(
        workload=Workload(columns),
        policy=load_policy(draw(st.sampled_from(POLICIES))),
        routing=load_router(draw(st.sampled_from(ROUTERS))),
        engine=Engine(
            max_num_seqs=seats,
            max_num_batched_tokens=seats + draw(st.integers(0, 40)),
            num_gpu_blocks=1 + least + draw(st.integers(0, 3 * least)),
            block_size=block_size,
            enable_prefix_caching=caching,
            long_prefill_token_threshold=draw(st.sampled_from((0, 0, 7))),
            async_scheduling=draw(st.booleans()),
            scheduler_reserve_full_isl=draw(st.booleans()),
            watermark=draw(st.sampled_from((0.0, 0.1))),
            long_prefill_applies_alone=draw(st.booleans()),
            schedule_past_preemption=draw(st.booleans()),
        ),
        timing=LinearTiming(0.01, per_prefill_token_s=1e-4, per_sequence_s=1e-3),
        replicas=draw(st.integers(1, 3)),
        predictions=np.maximum(output + rng.normal(0, error, count), 1),
        seed=draw(st.integers(0, 9)),
        log_iterations=True,
        check=True,
    )


def finished(given: dict[str, Any]) -> ReferenceRun:
    """A run at its end; those whose requests preempt each other forever are not looked at."""
    made = ReferenceRun(**given)
    made.steps = []
    try:
        assert made.advance() == Stop("done")
    except InputError as error:
        assert "preempt each other forever" in str(error)
        reject()
    return made


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(runs())
def test_every_request_is_served_once_and_every_token_accounted_for(given: dict[str, Any]) -> None:
    made = finished(given)
    assert made.steps is not None
    records, workload = made.records(), given["workload"]
    engine, policy = given["system"].nodes[0].engine, given["system"].nodes[0].policy
    prompt, output = workload["prompt_tokens"], workload["output_tokens"]
    assert (records.arrival_ps <= records.scheduled_ps).all()
    assert (records.scheduled_ps < records.first_token_ps).all()
    assert ((records.first_token_ps < records.finish_ps) | (output == 1)).all()
    # tokens: each is computed once (the last one generated never is), plus what was recomputed,
    # less what the cache or host memory gave
    executed = np.zeros(len(workload), dtype=np.int64)
    swapped = 0
    for _, step in made.steps:
        swapped += step.swapped_tokens
        for request, tokens in step.scheduled.items():
            executed[request.id] += tokens
    once = executed - records.recomputed_tokens
    assert (once <= prompt + output - 1).all()
    if not engine.enable_prefix_caching:
        assert (once == prompt + output - 1).all()
        assert (records.cached_tokens == 0).all()
    if policy.preemption.mode != "swap":
        assert swapped == 0
    assert (records.cached_tokens < prompt).all()
    assert ((records.preemptions > 0) | (records.recomputed_tokens == 0)).all()
    # capacity, iteration by iteration
    log = records.iterations
    assert log is not None
    assert (log.used_blocks <= engine.num_gpu_blocks - 1).all()
    assert (log.running <= engine.max_num_seqs).all()
    assert (log.prefill_tokens + log.decode_seqs <= engine.max_num_batched_tokens).all()
    # the end: nothing is left anywhere, and Little's law holds to the picosecond
    for node in made.nodes:
        assert node.kv.used == 0 and node.outstanding == 0 and not node.in_flight
    totals = made.totals
    assert totals.now_ps == records.finish_ps.max() and totals.in_system == 0
    assert totals.request_ps == (records.finish_ps - records.arrival_ps).sum()
    assert totals.finished == len(workload) and totals.generated_tokens == output.sum()
    assert totals.preemptions == records.preemptions.sum()
    assert totals.recomputed_tokens == records.recomputed_tokens.sum()
    waited = (records.scheduled_ps - records.arrival_ps).sum()
    assert 0 <= totals.waiting_ps <= totals.request_ps
    if not engine.async_scheduling:  # which schedules before the iteration starts
        assert waited <= totals.waiting_ps
        assert waited == totals.waiting_ps or totals.preemptions


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(runs(), st.booleans())
def test_the_same_run_gives_the_same_bytes_however_often_it_stops(
    given: dict[str, Any], admit: bool
) -> None:
    whole, stopping = finished(given), ReferenceRun(**given)
    node, seats = given["system"].nodes[0], np.zeros((99, 1))
    stops = Stops(route=True, admit=admit, preempt=admit)
    horizon_ps = 0
    while True:
        horizon_ps += PS // 20
        stop = stopping.advance(dataclasses.replace(stops, horizon_ps=horizon_ps))
        if stop.kind == "done":
            break
        if stop.kind == "horizon":
            assert stopping.totals.now_ps == horizon_ps
            continue
        assert stopping.features(["waiting_requests"], seats) == stop.candidates > 0
        if stop.kind == "route":
            stopping.answer(int(whole.records().replica[stop.request]))
        elif stop.kind == "admit":
            assert seats[0] >= stop.candidates
            if node.policy.queue == "priority" and not node.engine.async_scheduling:
                stopping.answer(range(min(3, stop.candidates)))  # what the policy would do anyway
        elif node.policy.preemption.mode == "none":
            stopping.answer([])
    assert stopping.totals == whole.totals
    for left, right in (
        (whole.records(), stopping.records()),
        (whole.records().iterations, stopping.records().iterations),
    ):
        for field in dataclasses.fields(left):  # type: ignore[arg-type]
            value = getattr(left, field.name)
            if isinstance(value, np.ndarray):
                assert value.tobytes() == getattr(right, field.name).tobytes(), field.name


def test_the_checker_sees_what_is_wrong() -> None:
    def made() -> ReferenceRun:
        arrivals = {"arrival_s": [0, 0], "prompt_tokens": [8, 8], "output_tokens": [3, 3]}
        given = alike(
            workload=Workload(arrivals), policy=load_policy("fcfs"), routing=load_router("jsq"),
            engine=Engine(num_gpu_blocks=9, block_size=4, enable_prefix_caching=True),
            timing=LinearTiming(1.0), check=True,
        )  # fmt: skip
        stopped = ReferenceRun(**given)
        assert stopped.advance(Stops(admit=True)).kind == "admit"
        stopped.nodes[0].schedule()
        stopped.nodes[0].check()
        return stopped

    lost = made().nodes[0]
    lost.kv.free -= 1
    with pytest.raises(InvariantError):
        lost.check()
    shared = made().nodes[0]
    shared.running[0].blocks[0] = shared.running[1].blocks[0]
    with pytest.raises(InvariantError, match="reference counts"):
        shared.check()
    ahead = made().nodes[0]
    ahead.running[0].computed += 99
    with pytest.raises(InvariantError, match="can't know"):
        ahead.check()
    unfinished = made()
    with pytest.raises(InvariantError, match="0 of 2 requests"):
        unfinished.records()


@pytest.mark.parametrize("clause", [
    "one more than the seats", "a waiting request in the batch", "a waiting request with blocks",
    "a waiting request that is counted twice", "a running request that is not in the batch",
    "one token more than it knows", "tokens outside blocks", "fewer than no free blocks",
    "more free blocks than there are", "a block twice", "a block nobody counts",
    "a free block twice", "a free block that is held", "an index of nothing",
])  # fmt: skip
def test_each_clause_of_the_checker_sees_its_own(clause: str) -> None:
    """One corruption, which no other clause would report in these words."""
    columns = {"arrival_s": [0] * 3, "prompt_tokens": [8] * 3, "output_tokens": [3] * 3}
    given = alike(
        workload=Workload(columns), policy=load_policy("fcfs"), routing=load_router("jsq"),
        engine=Engine(num_gpu_blocks=20, block_size=4, enable_prefix_caching=True, max_num_seqs=2),
        timing=LinearTiming(1.0), check=True,
    )  # fmt: skip
    run = ReferenceRun(**given)
    run.advance(Stops(admit=True))
    node: Any = run.nodes[0]
    node.schedule()
    node.check()
    decides, kv = node.scheduler, node.kv
    first, second = node.running
    (waits,) = decides.waiting.ordered()
    blank = kv._blank
    match clause:
        case "one more than the seats":
            decides.engine = dataclasses.replace(decides.engine, max_num_seqs=1)
            said = "2 requests run on 1"
        case "a waiting request in the batch":
            waits.in_batch, said = True, "a waiting request runs"
        case "a waiting request with blocks":
            waits.held, said = 1, "a waiting request runs or holds"
        case "a waiting request that is counted twice":
            decides.waiting.ordered = lambda: [waits, waits]
            said = "a waiting request runs"
        case "a running request that is not in the batch":
            first.in_batch, said = False, "can't know"
        case "one token more than it knows":
            first.computed, said = first.known + first.pending + 1, "can't know"
        case "tokens outside blocks":
            first.held, said = 1, "outside its KV blocks"
        case "fewer than no free blocks":
            kv.free, said = -1, "-1 of 19 KV blocks are free"
        case "more free blocks than there are":
            kv.free, said = 20, "20 of 19 KV blocks are free"
        case "a block twice":
            first.blocks[1], said = first.blocks[0], "holds a KV block twice"
        case "a block nobody counts":
            first.blocks[0], said = second.blocks[0], "reference counts differ"
        case "a free block twice":
            blank[0], said = blank[1], "counted wrongly"
        case "a free block that is held":
            blank[0], said = first.blocks[0], "counted wrongly"
        case _:
            kv._key_of[99], said = 1, "the prefix index and the cached"
    with pytest.raises(InvariantError, match=said):
        node.check()


def test_the_checker_without_a_prefix_cache_and_the_records_see_theirs() -> None:
    kv = KVCache(20, 4, False)
    holder: Any = SimpleNamespace(held=3)
    kv.free -= 3
    kv.check([holder])
    holder.held = 2
    with pytest.raises(InvariantError, match="held and KV blocks used differ"):
        kv.check([holder])
    run = ReferenceRun(
        **alike(
            workload=Workload({"arrival_s": [0, 0], "prompt_tokens": [8, 8],
                               "output_tokens": [3, 3]}),
            policy=load_policy("fcfs"), routing=load_router("jsq"),
            engine=Engine(num_gpu_blocks=20), timing=LinearTiming(1.0),
        )
    )  # fmt: skip
    assert run.advance() == Stop("done")
    run.records()
    run._rows[1] = run._rows[0]
    with pytest.raises(InvariantError, match="finished twice"):
        run.records()


def test_splitmix64_is_the_published_generator() -> None:
    """The first outputs of Vigna's splitmix64.c from state 1234567, as in the prng test suites."""
    state, found = 1234567, []
    for _ in range(5):
        found.append(splitmix64(state))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert found == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip


def test_draws_are_uniform_and_samples_distinct() -> None:
    from scipy import stats

    values = [uniform(7, request, 3) for request in range(20_000)]
    assert stats.kstest(values, "uniform").pvalue > 0.01
    pairs = [tuple(sample(7, request, 5, 2)) for request in range(10_000)]
    assert all(a < b for a, b in pairs)
    counts = [pairs.count((a, b)) for a in range(5) for b in range(a + 1, 5)]
    assert stats.chisquare(counts).pvalue > 0.01


def test_block_keys_name_content() -> None:
    given = Workload(
        {
            "arrival_s": [0.0] * 4, "prompt_tokens": [12, 12, 9, 12], "output_tokens": [1] * 4,
            "prefix_hashes": [(1, 2), (1, 2), (1, 3), (2, 2)], "hash_block_tokens": [6] * 4,
        }
    )  # fmt: skip
    keys = block_keys(given, 4)
    # blocks end at tokens 4, 8 and 12; the second lies across both hashes
    assert keys[0] == keys[1] and len(keys[0]) == 3
    assert keys[2][0] == keys[0][0] and keys[2][1] != keys[0][1] and len(keys[2]) == 2
    assert not set(keys[3]) & set(keys[0])
    coarse = block_keys(given, 12)
    assert coarse[0] == coarse[1] != coarse[3] and coarse[2] == ()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "policy", ["fcfs", "srtf", "mlfq:quantum=2", "srtf+guard:ratio=1,floor_s=0"]
)
def test_a_request_moves_in_mid_decode(policy: str, asynchronous: bool) -> None:
    """Removed from one node and added to another, it generates what is left, and no more."""
    arrivals = {"arrival_s": [0, 0, 0], "prompt_tokens": [8, 9, 5], "output_tokens": [6, 9, 4]}
    given = alike(
        workload=Workload(arrivals), policy=load_policy(policy), routing=load_router("jsq"),
        engine=Engine(num_gpu_blocks=30, block_size=4, async_scheduling=asynchronous,
                      enable_prefix_caching=True, max_num_seqs=2),
        timing=LinearTiming(1.0), replicas=2, predictions=[6, 9, 4], check=True,
    )  # fmt: skip
    made = ReferenceRun(**given)
    while (stop := made.advance(Stops(route=True, horizon_ps=7 * PS // 2))).kind == "route":
        made.answer(0)
    assert stop.kind == "horizon"
    here, there = made.nodes
    moved = next(r for r in here.running if 0 < r.generated < r.output)
    generated, used = moved.generated, here.kv.used
    assert here.remove(moved) is moved and moved.generated == generated
    assert moved.held == 0 and here.kv.used < used
    here.check()
    now_ps = made.totals.now_ps
    there.add(moved, now_ps, 0)
    tokens, reach = 0, moved.reach
    while moved.generated < moved.output:
        there.begin(now_ps)
        there.preempt()
        step = there.schedule()
        tokens += step.scheduled.get(moved, 0)
        if len(there.in_flight) == there.depth or not step.yields:
            now_ps = there.ends_ps
            there.finish()
            there.check()
    assert tokens == moved.prompt + moved.output - 1  # all of it, once
    assert moved.recomputed == reach
    while there.in_flight:
        there.finish()
    assert there.kv.used == 0 and not there.running and not len(there.waiting)
