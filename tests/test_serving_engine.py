"""The reference engine on small schedules worked out by hand, and its decision points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import Admission, Preemption, SchedulingPolicy, Score
from lengthwise.protocols import Batch
from lengthwise.serving import HOLD, Engine, Node, Records, Stop, Stops, System, run
from lengthwise.serving.records import PS
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.reference.timeline import Step
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload
from tests.systems import alike

SECOND = LinearTiming(base_s=1.0)  # every iteration takes a second


def workload(*rows: tuple[float, int, int], **columns: Any) -> Workload:
    """Requests as (arrival, prompt, output)."""
    arrival, prompt, output = zip(*rows, strict=True)
    return Workload(
        {"arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": output, **columns}
    )


def cluster(
    requests: Workload, policy: str | SchedulingPolicy = "fcfs", **given: Any
) -> ReferenceRun:
    """A run with small defaults, all checks on, that keeps its steps."""
    options = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "num_gpu_blocks": 64,
               "block_size": 4}  # fmt: skip
    for name in list(given):
        if name in Engine.__dataclass_fields__:
            options[name] = given.pop(name)
    given = {"routing": load_router("round-robin"), "timing": SECOND, "check": True} | given
    made = ReferenceRun(
        requests, **alike(policy=load_policy(policy), engine=Engine(**options), **given)
    )
    made.steps = []
    return made


def schedule(made: ReferenceRun) -> list[dict[int, int]]:
    """Runs to the end; the tokens of each request, iteration by iteration."""
    made.advance()
    assert made.steps is not None
    return [{r.id: tokens for r, tokens in step.scheduled.items()} for _, step in made.steps]


def seconds(values: Any) -> list[float]:
    return [float(value) / PS for value in values]


def test_prefill_then_one_token_an_iteration() -> None:
    made = cluster(workload((0.5, 10, 3)))
    assert schedule(made) == [{0: 10}, {0: 1}, {0: 1}]
    records = made.records()
    assert seconds(records.scheduled_ps) == [0.5]
    assert seconds(records.first_token_ps) == [1.5]  # the end of the iteration that ends prefill
    assert seconds(records.finish_ps) == [3.5]


def test_the_token_budget_cuts_prompts_into_chunks_running_first() -> None:
    made = cluster(workload((0, 20, 2), (0, 9, 2)), max_num_batched_tokens=12)
    # 12 | 8 of request 0, 4 of request 1 | 0 decodes, 1 goes on | 1 decodes
    assert schedule(made) == [{0: 12}, {0: 8, 1: 4}, {0: 1, 1: 5}, {1: 1}]


def test_long_prefill_token_threshold() -> None:
    made = cluster(workload((0, 20, 1), (0, 3, 1)), long_prefill_token_threshold=5)
    # cut to 5 while somebody else is there; alone, request 0 may take all (as of vLLM 0.33)
    assert schedule(made) == [{0: 5, 1: 3}, {0: 15}]
    older = cluster(
        workload((0, 20, 1), (0, 3, 1)),
        long_prefill_token_threshold=5, long_prefill_applies_alone=True,
    )  # fmt: skip
    assert schedule(older) == [{0: 5, 1: 3}, {0: 5}, {0: 5}, {0: 5}]


def test_without_chunked_prefill_a_prompt_waits_for_its_whole_budget() -> None:
    made = cluster(workload((0, 10, 2), (0, 9, 1)), enable_chunked_prefill=False)
    assert schedule(made) == [{0: 10}, {0: 1, 1: 9}]


def test_seats() -> None:
    made = cluster(workload((0, 2, 2), (0, 2, 1), (0, 2, 1)), max_num_seqs=2)
    assert schedule(made) == [{0: 2, 1: 2}, {0: 1, 2: 2}]


def test_an_arrival_waits_for_the_iteration_under_way() -> None:
    made = cluster(workload((0, 2, 3), (0.5, 2, 1), (2.0, 2, 1)))
    assert schedule(made) == [{0: 2}, {0: 1, 1: 2}, {0: 1, 2: 2}]  # arrival at 2.0 is in time
    assert seconds(made.records().scheduled_ps) == [0.0, 1.0, 2.0]


def test_kv_pressure_preempts_the_last_and_recomputes_it() -> None:
    # 4 usable blocks of 4: two requests of 7 tokens fill them; at 9 tokens one must go
    made = cluster(workload((0, 7, 4), (0, 7, 3)), num_gpu_blocks=5)
    assert schedule(made) == [
        {0: 7, 1: 7},  # both hold 2 blocks and have 8 tokens
        {0: 1, 1: 1},  # 8 computed, 9 known
        {0: 1},  # needs a third block: request 1 gives its two away
        {0: 1},  # request 1 knows 9 tokens: 3 blocks, 1 free; it waits
        {1: 9},  # all it knows is computed again, and yields its last token
    ]
    records = made.records()
    assert records.preemptions.tolist() == [0, 1]
    assert records.recomputed_tokens.tolist() == [0, 8]
    assert seconds(records.first_token_ps) == [1.0, 1.0]
    assert seconds(records.finish_ps) == [4.0, 5.0]


def test_priority_preempts_the_worst_score_even_before_it_in_the_batch() -> None:
    # request 0 came first but has the higher score, so it is the victim of request 1's growth
    made = cluster(workload((0, 7, 4), (0.1, 7, 4), priority=[5, 1]), "priority", num_gpu_blocks=5)
    steps = schedule(made)
    assert steps[0] == {0: 7}
    assert steps[1] == {0: 1, 1: 7}
    assert steps[2] == {1: 1}  # request 0 needed a third block, was the worst, and left
    assert made.records().preemptions.tolist() == [1, 0]


def test_who_preempts_itself_ends_the_turn_in_older_versions() -> None:
    given = workload((0, 7, 4), (0.1, 7, 4), priority=[5, 1])
    older = cluster(given, "priority", num_gpu_blocks=5, schedule_past_preemption=False)
    assert schedule(older)[:4] == [{0: 7}, {0: 1, 1: 7}, {}, {1: 1}]
    assert older.steps is not None
    assert older.steps[2][1].start_ps == older.steps[2][1].end_ps  # an empty one takes no time


def test_requests_that_preempt_each_other_forever_are_reported() -> None:
    # Equal in everything, each is the victim of the other's growth, before it can finish its prompt
    # for the second time: vLLM without its admission gate would go on like this.
    made = cluster(
        workload((0, 17, 9), (0, 17, 9), priority=[0, 0]), "priority", num_gpu_blocks=9,
        long_prefill_token_threshold=8, scheduler_reserve_full_isl=False,
    )  # fmt: skip
    with pytest.raises(InputError, match="2 requests preempt each other forever"):
        made.advance()


def test_admission_gates() -> None:
    # request 1's prompt needs 4 blocks; 3 are free while request 0 runs
    given = workload((0, 6, 3), (0, 14, 1))
    whole = cluster(given, num_gpu_blocks=6, max_num_batched_tokens=10)
    assert schedule(whole) == [{0: 6}, {0: 1}, {0: 1}, {1: 10}, {1: 4}]
    first_chunk = cluster(
        given, num_gpu_blocks=6, max_num_batched_tokens=10, scheduler_reserve_full_isl=False
    )
    assert schedule(first_chunk)[0] == {0: 6, 1: 4}
    # a watermark of 60% of 10 blocks leaves 6 of them free, whenever others run
    marked = cluster(workload((0, 8, 2), (0, 8, 1)), num_gpu_blocks=10, watermark=0.6)
    assert schedule(marked) == [{0: 8}, {0: 1}, {1: 8}]


def test_prefix_caching_shares_blocks_and_computes_the_last_token_again() -> None:
    hashes = {"prefix_hashes": [(1, 2, 3), (1, 2, 3), (1, 9)], "hash_block_tokens": [4, 4, 4]}
    made = cluster(
        workload((0, 12, 1), (2, 12, 1), (4, 12, 1), **hashes), enable_prefix_caching=True
    )
    # 12 tokens are 3 full blocks, but the last token must be computed: its whole block is
    assert schedule(made) == [{0: 12}, {1: 4}, {2: 8}]
    assert made.records().cached_tokens.tolist() == [0, 8, 4]


def test_prefix_cache_evicts_the_least_recently_used_tail_first() -> None:
    hashes = {"prefix_hashes": [(1, 2), (3, 4), (5, 6), (1, 2), (3, 4)],
              "hash_block_tokens": [4] * 5}  # fmt: skip
    rows = [(10.0 * i, 9, 1) for i in range(5)]
    made = cluster(workload(*rows, **hashes), enable_prefix_caching=True, num_gpu_blocks=7)
    # 6 blocks, 3 a request, of which 2 are cached when it leaves. The third request takes the two
    # free blocks that were never full and then the oldest: block 2 of the first request. The fourth
    # finds block 1 of that, and for the rest takes one free block and block 4 of the second.
    assert schedule(made) == [{0: 9}, {1: 9}, {2: 9}, {3: 5}, {4: 5}]
    assert made.records().cached_tokens.tolist() == [0, 0, 0, 4, 4]


def test_a_preempted_request_finds_its_own_blocks_again() -> None:
    given = workload((0, 7, 4), (0, 7, 3))
    made = cluster(given, num_gpu_blocks=5, enable_prefix_caching=True)
    # as without caching, but one of request 1's two full blocks was not taken meanwhile
    assert schedule(made)[-1] == {1: 5}
    assert made.records().recomputed_tokens.tolist() == [0, 4]


def test_async_scheduling_schedules_before_results_are_known() -> None:
    made = cluster(workload((0, 10, 3), (0.5, 4, 1)), async_scheduling=True)
    # request 1 arrives at 0.5, when the second iteration has long been scheduled (at 0)
    assert schedule(made)[:4] == [{0: 10}, {0: 1}, {0: 1, 1: 4}, {}]
    records = made.records()
    assert seconds(records.finish_ps) == [3.0, 3.0]
    assert seconds(records.scheduled_ps) == [0.0, 2.0]


def test_closed_loop() -> None:
    given = workload((0, 2, 2), (0, 2, 1), parent=[-1, 0], think_s=[0, 0.25])
    made = cluster(given)
    assert schedule(made) == [{0: 2}, {0: 1}, {1: 2}]
    assert seconds(made.records().arrival_ps) == [0.0, 2.25]


def test_batches_as_the_timing_sees_them() -> None:
    batches: list[Batch] = []

    class Recorder:
        name, num_gpu_blocks = "recorder", None

        def iteration_time(self, batch: Batch) -> float:
            batches.append(batch)
            return 1.0

    schedule(cluster(workload((0, 10, 2), (0, 7, 1)), timing=Recorder(), max_num_batched_tokens=12))
    assert batches == [
        # tokens 1 to 10 attend to 1 + ... + 10 = 55, the next prompt's first two to 1 + 2
        Batch(prefill_tokens=12, prefill_seqs=2, chunk_context=55 + 3),
        # a decoding sequence attends to 11; tokens 3 to 7 of the other to 3 + ... + 7 = 25
        Batch(prefill_tokens=5, prefill_seqs=1, decode_seqs=1, context_tokens=11, chunk_context=25),
    ]


# Beyond stock vLLM


def test_policy_preemption_needs_a_gain_above_its_price() -> None:
    given = workload((0, 4, 8), (1.5, 4, 1))
    free = "srtf+preempt:price=0.0"
    steps = schedule(cluster(given, free, max_num_seqs=1, predictions=[8, 1]))
    # after two tokens request 0 has 6 to go, request 1 has 1
    assert steps[:4] == [{0: 4}, {0: 1}, {1: 4}, {0: 6}]
    dear = "srtf+preempt:price=10.0"
    made = cluster(given, dear, max_num_seqs=1, predictions=[8, 1])
    assert {1: 4} not in schedule(made)[:8]
    assert made.records().preemptions.tolist() == [0, 0]
    margin = "srtf+preempt:price=0.0,margin=5.0"  # the gain is 5, and not above it
    made = cluster(given, margin, max_num_seqs=1, predictions=[8, 1])
    schedule(made)
    assert made.records().preemptions.tolist() == [0, 0]


def test_a_preemption_has_a_price_beside_its_tokens() -> None:
    # 6 tokens are lost, 2 requests wait for them, and 5 decode steps are saved
    for overhead, paid in ((490, True), (496, False)):
        spec = f"srtf+preempt:price=0.005,overhead_tokens={overhead}"
        made = cluster(workload((0, 4, 8), (1.5, 4, 1)), spec, max_num_seqs=1, predictions=[8, 1])
        schedule(made)
        assert (made.records().preemptions.sum() == 1) == paid


def test_policy_preemption_only_where_seats_or_blocks_lack() -> None:
    given = workload((0, 4, 8), (1.5, 4, 1))
    made = cluster(given, "srtf+preempt:price=0.0", max_num_seqs=2, predictions=[8, 1])
    schedule(made)
    assert made.records().preemptions.tolist() == [0, 0]
    # 3 usable blocks: request 0 holds 2 with 6 tokens, request 1 needs 2
    made = cluster(
        given, "srtf+preempt:price=0.0", max_num_seqs=2, num_gpu_blocks=4, block_size=4,
        predictions=[8, 1],
    )  # fmt: skip
    with pytest.raises(InputError, match="usable blocks"):
        cluster(workload((0, 9, 8)), num_gpu_blocks=4)
    schedule(made)
    assert made.records().preemptions.tolist() == [0, 0]  # 4 tokens are 1 block: it fits
    made = cluster(
        workload((0, 4, 8), (1.5, 8, 1)), "srtf+preempt:price=0.0", num_gpu_blocks=4,
        predictions=[8, 1],
    )  # fmt: skip
    schedule(made)
    assert made.records().preemptions.tolist() == [1, 0]


def test_who_gave_way_does_not_return_in_the_same_iteration() -> None:
    # 4 usable blocks: request 1 will need 3 of them and request 0, which holds 2, gives way. The
    # first chunk of each would then fit beside the other's, but only the next iteration does that.
    made = cluster(
        workload((0, 5, 9), (0.5, 12, 2)), "sjf+preempt:price=0.0", num_gpu_blocks=5,
        predictions=[9, 1], long_prefill_token_threshold=4, scheduler_reserve_full_isl=False,
    )  # fmt: skip
    assert schedule(made)[:3] == [{0: 5}, {1: 4}, {1: 4, 0: 4}]


def test_progress_protects() -> None:
    given = workload((0, 4, 8), (4.5, 4, 1))
    spared = "srtf+preempt:price=0.0,protect_after=0.5"  # 5 of 8 tokens are generated by then
    made = cluster(given, spared, max_num_seqs=1, predictions=[8, 1])
    schedule(made)
    assert made.records().preemptions.tolist() == [0, 0]


def test_no_more_than_max_per_step() -> None:
    rows = [(0.0, 2, 9)] * 3 + [(1.5, 2, 1)] * 3
    predicted = [9.0] * 3 + [1.0] * 3
    for most in (1, 2, 3):
        made = cluster(
            workload(*rows), f"srtf+preempt:price=0.0,max_per_step={most}", max_num_seqs=3,
            predictions=predicted,
        )  # fmt: skip
        schedule(made)
        assert made.steps is not None
        assert max(len(step.preempted) for _, step in made.steps) == most


def test_swap_moves_the_cache_instead_of_computing_it_again() -> None:
    given = workload((0, 4, 8), (1.5, 4, 1))

    class Bus(LinearTiming):
        swap_s_per_token = 0.01

    swap = "srtf+preempt:price=0.0,mode=swap"
    made = cluster(
        given, swap, max_num_seqs=1, predictions=[8, 1], timing=Bus(base_s=1.0)
    )  # fmt: skip
    assert schedule(made)[:4] == [{0: 4}, {0: 1}, {1: 4}, {0: 1}]
    records = made.records()
    assert records.recomputed_tokens.tolist() == [0, 0]
    # 5 computed tokens out in the third iteration and in again in the fourth: 0.05 s each
    assert seconds(records.finish_ps) == [9.1, 3.05]


def test_admission_reserves_for_what_is_predicted() -> None:
    given = workload((0, 4, 9), (0, 4, 9))
    stock = cluster(given, "sjf", num_gpu_blocks=6, predictions=[9, 9])
    assert schedule(stock)[0] == {0: 4, 1: 4}
    assert stock.records().preemptions.sum() > 0
    # both will fill 3 blocks. 18 tokens to come are 5 blocks, and request 1 needs one itself
    careful = SchedulingPolicy(load_policy("sjf").score, admission=Admission(reserve=1.0))
    made = cluster(given, careful, num_gpu_blocks=6, predictions=[9, 9])
    assert schedule(made)[0] == {0: 4}
    assert made.records().preemptions.sum() == 0


def test_admission_by_the_peak_of_what_three_requests_will_hold() -> None:
    # prompts of 2, 2 and 1 tokens, answers of 6, 2 and 2, and 7 blocks of a token. A last token is
    # never computed, so that A holds 7 as it ends. With B they hold 3 + 3 when B ends, and 7 later:
    # both are admitted. C would make it 3 + 3 + 2 = 8, but one iteration later 3 + 3 + 1 as B ends
    # and 4 + 2 as it ends itself.
    given = workload((0, 2, 6), (0, 2, 2), (0, 1, 2))
    tight = {"num_gpu_blocks": 8, "block_size": 1, "predictions": [6, 2, 2],
             "scheduler_reserve_full_isl": False}  # fmt: skip
    peak = cluster(given, "fcfs+admit:reserve=1,by=peak", **tight)
    assert schedule(peak)[:3] == [{0: 2, 1: 2}, {0: 1, 1: 1, 2: 1}, {0: 1, 2: 1}]
    assert peak.records().preemptions.tolist() == [0, 0, 0]
    assert seconds(peak.records().finish_ps) == [6, 2, 3]
    # the sum of what all still need leaves no room for B while A runs: 2 + 6 + 2 of 5
    careful = cluster(given, "fcfs+admit:reserve=1", **tight)
    assert schedule(careful)[0] == {0: 2}
    assert seconds(careful.records().finish_ps) == [6, 8, 8]
    # whoever fits now: all three, of whom the third token of each does not
    stock = cluster(given, "fcfs", **tight)
    assert schedule(stock)[0] == {0: 2, 1: 2, 2: 1}
    assert stock.records().preemptions.tolist() == [0, 0, 1]


def test_with_exact_lengths_the_peak_rule_never_lets_one_give_way() -> None:
    rng, given_way = np.random.default_rng(3), 0
    few = {"num_gpu_blocks": 12, "max_num_seqs": 8, "max_num_batched_tokens": 512}
    for _ in range(20):
        jobs = [(float(at), int(p), int(o)) for at, p, o in zip(
            np.sort(rng.integers(0, 30, 25)), rng.integers(1, 20, 25), rng.integers(1, 20, 25),
            strict=True)]  # fmt: skip
        given = workload(*jobs)
        lengths = given["output_tokens"].astype(float)
        found = [
            cluster(given, policy, predictions=lengths, **few)
            for policy in ("fcfs", "fcfs+admit:reserve=1,by=peak", "sjf+admit:reserve=1,by=peak")
        ]
        for made in found:
            schedule(made)
        given_way += int(found[0].records().preemptions.sum())
        assert not any(made.records().preemptions.any() for made in found[1:])
    assert given_way > 0


def test_the_guard_bounds_waiting_by_that_of_fcfs() -> None:
    # FCFS starts the long one after the one job before it, and ends it at 23 s
    jobs = [(0.0, 1, 3), (0.0, 1, 20), *((2.0 * i, 1, 3) for i in range(1, 60))]
    requests = workload(*jobs)
    lengths = requests["output_tokens"].astype(float)
    ends = {}
    for policy in ("sjf", "sjf+guard:floor_s=0", "sjf+guard:floor_s=30"):
        made = cluster(requests, policy, predictions=lengths, max_num_seqs=1)
        schedule(made)
        ends[policy] = seconds(made.records().finish_ps)
    assert ends["sjf"][1] == max(ends["sjf"])  # behind all the short ones
    assert 23 < ends["sjf+guard:floor_s=0"][1] < 1.5 * 23
    assert 30 + 20 < ends["sjf+guard:floor_s=30"][1] <= 30 + 3 + 20  # whoever runs runs on
    guarded = load_policy("sjf+guard")
    node = Node(Engine(max_num_seqs=1, num_gpu_blocks=64), SECOND, guarded)
    records = run(requests, System((node,), load_router("jsq")), lengths)
    made = cluster(requests, guarded, predictions=lengths, max_num_seqs=1)
    schedule(made)
    assert records.backend == "fast"
    assert records.finish_ps.tolist() == made.records().finish_ps.tolist()


def test_scores_see_the_features_at_the_start_of_the_iteration() -> None:
    seen: list[tuple[Any, ...]] = []

    def watch(
        now_s: Any, generated_tokens: Any, computed_tokens: Any, preemptions: Any,
        running_requests: Any, waiting_requests: Any, kv_utilization: Any,
    ) -> Any:  # fmt: skip
        seen.append(
            tuple(
                np.asarray(value).tolist()
                for value in (
                    now_s, generated_tokens, computed_tokens, preemptions, running_requests,
                    waiting_requests, kv_utilization,
                )
            )
        )  # fmt: skip
        return 0.0 * now_s

    policy = SchedulingPolicy(Score.from_function(watch))
    schedule(cluster(workload((0, 4, 2), (0.5, 4, 1)), policy, num_gpu_blocks=11))
    assert seen == [
        ([0.0], [0], [0], [0], [0], [1], [0.0]),
        ([1.0], [0], [0], [0], [1], [1], [0.1]),
    ]


# Routing and decision points


def test_routing_by_score_and_ties_to_the_lowest_index() -> None:
    rows = [(float(i), 4, 2) for i in range(6)]
    records = run_on(3, "round-robin", rows)
    assert records.replica.tolist() == [0, 1, 2, 0, 1, 2]
    records = run_on(2, "jsq", [(0, 4, 20), (0, 4, 1), (3, 4, 1), (5, 4, 1)])
    assert records.replica.tolist() == [0, 1, 1, 1]


def run_on(replicas: int, router: str, rows: list[tuple[float, int, int]]) -> Records:
    given = alike(
        policy=load_policy("fcfs"), routing=load_router(router),
        engine=Engine(num_gpu_blocks=64), timing=SECOND, replicas=replicas,
    )  # fmt: skip
    return run(workload(*rows), **given, backend="reference", check=True)


def test_random_routing_depends_on_the_seed_alone() -> None:
    rows = [(0.1 * i, 4, 2) for i in range(400)]
    made = [
        run(
            workload(*rows), backend="reference",
            **alike(
                policy=load_policy(policy), routing=load_router(router),
                engine=Engine(num_gpu_blocks=64), timing=SECOND, replicas=4, seed=seed,
                predictions=np.ones(400),
            ),
        ).replica
        for seed, policy, router in (
            (1, "fcfs", "random"), (1, "sjf", "random"), (2, "fcfs", "random"),
        )
    ]  # fmt: skip
    assert made[0].tolist() == made[1].tolist() != made[2].tolist()
    counts = np.bincount(made[0], minlength=4)
    assert ((counts > 70) & (counts < 130)).all()  # 4 standard deviations around 100


def test_route_and_admit_decisions() -> None:
    made = cluster(
        workload((0, 4, 2), (0, 4, 2), (0, 4, 1)), max_num_seqs=1, replicas=2,
        predictions=[3.0, 1.5, 7.0],
    )  # fmt: skip
    both, names = Stops(route=True, admit=True), ["routed_requests", "outstanding_tokens"]
    for request in range(3):
        stop = made.advance(both)
        assert stop == Stop("route", request=request, candidates=2)
        rows = features(made, [*names, "predicted_tokens"], stop)
        assert rows[:, 0].tolist() == [request, 0]
        assert rows[:, 1].tolist() == [[0.0, 7.0, 12.5][request], 0.0]
        assert rows[:, 2].tolist() == [[3.0, 1.5, 7.0][request]] * 2
        made.answer(0)
    stop = made.advance(both)
    assert stop == Stop("admit", node=0, candidates=3)
    rows = features(made, ["predicted_tokens", "waiting_requests", "now_s"], stop)
    assert rows.tolist() == [[3.0, 3, 0], [1.5, 3, 0], [7.0, 3, 0]]
    one = np.zeros((1, 1))
    assert made.features(["predicted_tokens"], one) == 1  # no more than there is room for
    assert one.tolist() == [[3.0]]
    made.answer([2])
    assert made.totals.in_system == 3
    stop = made.advance(Stops(admit=True))  # request 2 is done, one seat is free again
    assert stop == Stop("admit", node=0, candidates=2)
    assert made.totals.now_ps == PS and made.totals.finished == 1
    assert features(made, ["predicted_tokens"], stop).tolist() == [[3.0], [1.5]]
    assert made.advance() == Stop("done")  # nothing was ordered: the policy's own order holds
    assert made.records().finish_ps.argsort().tolist() == [2, 0, 1]
    total_ps = (made.records().finish_ps - made.records().arrival_ps).sum()
    assert made.totals.request_ps == total_ps


def features(made: ReferenceRun, names: list[str], stop: Stop) -> NDArray[np.float64]:
    rows = np.zeros((stop.candidates, len(names)))
    assert made.features(names, rows) == stop.candidates
    return rows


def test_preemption_by_answer() -> None:
    made = cluster(workload((0, 4, 5), (0, 4, 5), (1.5, 4, 1)), "sjf", max_num_seqs=2,
                   predictions=[5, 5, 1])  # fmt: skip
    stop = made.advance(Stops(preempt=True))
    assert stop == Stop("preempt", node=0, candidates=2)
    assert features(made, ["generated_tokens"], stop).tolist() == [[2], [2]]
    made.answer([1])
    while made.advance(Stops(preempt=True)).kind == "preempt":
        made.answer([])  # nobody gives way
    records = made.records()
    assert records.preemptions.tolist() == [0, 1, 0]
    assert seconds(records.finish_ps) == [5.0, 6.0, 3.0]
    assert made.totals.preemptions == 1 and made.totals.recomputed_tokens == 5
    assert made.totals.waiting_ps == 1.5 * PS  # request 2 half a second, request 1 one second


def test_a_request_held_at_the_router_waits_there() -> None:
    made = cluster(workload((1, 4, 2), (1.25, 4, 1)), replicas=2)
    stops = Stops(route=True, hold_ps=PS // 4)
    asked = []
    while (stop := made.advance(stops)).kind == "route":
        asked.append((made.totals.now_ps / PS, stop.request))
        held = stop.request == 0 and made.totals.now_ps < 1.5 * PS
        made.answer(HOLD if held else 1)
        assert made.totals.in_system == 1 + any(request == 1 for _, request in asked)
    # at 1.25 s both are due: the lower id is asked for first
    assert asked == [(1.0, 0), (1.25, 0), (1.25, 1), (1.5, 0)]
    records = made.records()
    assert seconds(records.arrival_ps) == [1.0, 1.25]  # latency counts from there
    assert seconds(records.scheduled_ps) == [2.25, 1.25]
    assert records.replica.tolist() == [1, 1]
    assert made.totals.waiting_ps == 1.25 * PS
    assert made.totals.request_ps == (records.finish_ps - records.arrival_ps).sum()


def test_a_horizon_is_a_moment() -> None:
    made = cluster(workload((1, 4, 2)))
    assert made.advance(Stops(horizon_ps=PS // 2)) == Stop("horizon")
    assert made.totals.now_ps == PS // 2 and made.totals.in_system == 0
    assert made.advance(Stops(horizon_ps=2 * PS)) == Stop("horizon")
    assert made.totals.generated_tokens == 1  # what happens at the moment has happened
    assert made.advance(Stops(horizon_ps=PS)) == Stop("horizon")  # time does not go back
    assert made.totals.now_ps == 2 * PS
    assert made.advance(Stops(horizon_ps=9 * PS)) == Stop("done")


def test_decisions_at_the_wrong_moment() -> None:
    made = cluster(workload((0, 4, 2)))
    with pytest.raises(InputError, match="nothing waits for an answer"):
        made.answer(0)
    with pytest.raises(InputError, match="nothing waits for an answer"):
        made.features(["now_s"], np.zeros((1, 1)))
    assert made.advance(Stops(route=True)).kind == "route"
    for _ in range(2):
        with pytest.raises(InputError, match="request 0 waits for a node: call answer"):
            made.advance()
    with pytest.raises(InputError, match=r"node 1 is not one of 0 to 0, nor HOLD \(-1\)"):
        made.answer(1)
    made.answer(0)
    assert made.advance(Stops(admit=True)).kind == "admit"
    for wrong in ([3], [-1], [0, 0]):
        with pytest.raises(InputError, match=r"admit at node 0: .* one of 0 to 0, once"):
            made.answer(wrong)
    with pytest.raises(InputError, match="a policy reads predicted_tokens, which needs a pred"):
        made.features(["predicted_tokens"], np.zeros((1, 1)))
    with pytest.raises(UnknownNameError, match="did you mean 'prompt_tokens'"):
        made.features(["prompt_token"], np.zeros((1, 1)))


# What can't run


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_model_len": 20}, "request 1 has 12 prompt and 9 output tokens, but max_model_len"),
        ({"num_gpu_blocks": 4}, "request 1 has 12 prompt .* 3 usable blocks of 4 tokens"),
        ({"num_gpu_blocks": 1}, "request 0 .* has 0 usable blocks"),
        ({"num_gpu_blocks": None}, "timing 'linear' has no KV cache size"),
        ({"enable_chunked_prefill": False}, "request 1 .* max_num_batched_tokens is 16"),
        ({"replicas": 0}, "replicas must be"),
        ({"predictions": [1.0]}, "predicted_tokens have shape"),
        ({"predictions": [1.0, np.nan]}, "must be finite"),
        ({"policy": "sjf"}, "policy 'sjf' reads predicted_tokens, which needs a predictor"),
        ({"policy": "priority"}, "policy 'priority' reads priority, and the workload has no such"),
        ({"routing": load_router("least-tokens")}, "router 'least-tokens' reads outstanding_"),
        ({"policy": SchedulingPolicy(load_policy("fcfs").score, admission=Admission(1.0))},
         "needs a predictor"),
        ({"policy": SchedulingPolicy(
            load_policy("fcfs").score, Preemption("recompute"), queue="fcfs")},
         "preemption needs the priority queue"),
    ],
)  # fmt: skip
def test_refusals(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cluster(workload((0, 5, 5), (1, 12, 9)), **given)


def test_scores_that_are_not_numbers() -> None:
    def odd(arrival_s: Any) -> Any:
        return np.sqrt(arrival_s - 1)

    with np.errstate(invalid="ignore"), pytest.raises(InputError, match="'odd' gave NaN"):
        cluster(workload((0, 5, 5)), SchedulingPolicy(Score.from_function(odd)))


def test_unknown_backend_and_version() -> None:
    made = cluster(workload((0, 1, 1)))
    with pytest.raises(UnknownNameError, match="did you mean 'reference'"):
        run(workload((0, 1, 1)), made.system, backend="refrence")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="vLLM version"):
        Engine.of_vllm("0.1")


def test_steps_are_kept_on_request() -> None:
    made = cluster(workload((0, 4, 2)))
    made.advance()
    assert made.steps is not None
    assert all(isinstance(step, Step) for _, step in made.steps)


def test_ten_thousand_at_once() -> None:
    rows = [(0.0, 3, 1)] * 10_000
    node = Node(Engine(num_gpu_blocks=2_000), SECOND, load_policy("fcfs"))
    records = run(workload(*rows), System((node,), load_router("jsq")), backend="reference")
    # 256 seats and 2,048 tokens: 256 requests of one iteration each
    assert seconds(records.finish_ps)[-1] == float(-(-10_000 // 256))
