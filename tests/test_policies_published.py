"""Published policies against what theory or the paper says of them, on one seat and on several."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import lengthwise as lw
from lengthwise.curves import Curve
from lengthwise.policies import load_policy
from lengthwise.prediction import Predictions
from lengthwise.serving import Engine
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload

TICK = LinearTiming(base_s=1.0)  # an iteration a second, whatever is in it


def seats(count: int, **options: Any) -> Engine:
    return Engine(max_num_seqs=count, num_gpu_blocks=2000, max_num_batched_tokens=4096, **options)


def burst(output: Any, **columns: Any) -> Workload:
    n = len(output)
    at = {"arrival_s": np.zeros(n), "prompt_tokens": np.ones(n, int), "output_tokens": output}
    return Workload({**at, **columns})


def finish_s(workload: Workload, policy: str, engine: Engine, predictor: Any = "oracle") -> Any:
    result = lw.simulate(workload, policy=policy, predictor=predictor, engine=engine, timing=TICK)
    return result.records.finish_ps / 1e12


def test_no_order_has_a_smaller_largest_lateness_than_edf() -> None:
    """Jackson's rule, against every order of six jobs on one machine."""
    rng = np.random.default_rng(0)
    for _ in range(4):
        output, due = rng.integers(1, 30, 6), rng.permutation(90)[:6] + 1.0
        late = finish_s(burst(output, deadline_s=due), "edf", seats(1)) - due

        def largest(order: Any, output: Any = output, due: Any = due) -> float:
            return float((np.cumsum(output[list(order)]) - due[list(order)]).max())

        assert late.max() == min(map(largest, itertools.permutations(range(6))))


def test_edf_meets_all_deadlines_where_any_order_does() -> None:
    """Deadlines that some order just meets are met, and first come first served misses some."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        output = rng.integers(1, 40, 12)
        order = rng.permutation(12)
        due = np.empty(12)
        due[order] = np.cumsum(output[order])
        workload = burst(output, deadline_s=due)
        assert (finish_s(workload, "edf", seats(1)) <= due).all()
        assert not (finish_s(workload, "fcfs", seats(1)) <= due).all()

    score = load_policy("llf:token_s=0.5").score
    assert score(30.0, 20.0) == 20  # who must start at 20 s goes before who must at 21 s


def test_who_is_late_anyway_gives_way_to_who_is_not() -> None:
    """Jobs of 10, two of which are due: EDF serves the lost one first, and both are late."""
    output, due = np.array([10, 10, 10]), np.array([5.0, 12.0, 21.0])
    workload = burst(output, deadline_s=due)
    assert (finish_s(workload, "edf", seats(1)) <= due).tolist() == [False, False, False]
    done = finish_s(workload, "niyama:token_s=1,work=0", seats(1))
    assert (done <= due).tolist() == [False, True, True]
    score = load_policy("niyama:token_s=0.5,work=2").score
    assert score(10.0, 30.0, 20.0) == 30 + 2 * 10  # 20 left, of which each takes half a second
    assert score(21.0, 30.0, 20.0) > 1e8


def test_gittins_is_srpt_for_known_lengths_and_fcfs_for_exponential_ones() -> None:
    rng = np.random.default_rng(2)
    output = 1 + rng.geometric(1 / 60, 80)
    at = {"arrival_s": np.cumsum(rng.exponential(20.0, 80))}
    workload = burst(output, **at)
    exact = finish_s(workload, "gittins", seats(2))
    assert exact.tolist() == finish_s(workload, "srtf+preempt:protect_after=1e9", seats(2)).tolist()
    assert exact.tolist() != finish_s(workload, "fcfs", seats(2)).tolist()
    # of memoryless lengths (tests/test_prediction_curves.py) the index is the mean, at all times
    index = Curve.table([0.0], [[60.0]], np.zeros(80, int), "step")
    mean = {"predicted_tokens": np.full(80, 60.0)}
    blind = lw.simulate(
        workload, policy="gittins", predicted_tokens=Predictions(mean, {"gittins_index": index}),
        engine=seats(2), timing=TICK,
    )  # fmt: skip
    assert (blind.records.finish_ps / 1e12).tolist() == finish_s(
        workload, "fcfs", seats(2)
    ).tolist()


def test_longest_first_fills_machines_within_grahams_bound() -> None:
    """Seats whose iterations take a second each are identical machines."""
    rng = np.random.default_rng(3)
    for machines in (2, 3):
        output = rng.integers(5, 40, 8)

        def makespan(places: Any, output: Any = output, machines: int = machines) -> float:
            return float(np.bincount(places, output, machines).max())

        least = min(map(makespan, itertools.product(range(machines), repeat=8)))
        made = finish_s(burst(output), "longest", seats(machines)).max()
        assert least <= made <= (4 / 3 - 1 / (3 * machines)) * least
    short, long = (load_policy(name).score(np.arange(9.0)) for name in ("sjf", "longest"))
    assert np.argsort(short).tolist() == np.argsort(long).tolist()[::-1]


def test_ageing_lies_between_shortest_and_first_and_bounds_who_overtakes() -> None:
    rng = np.random.default_rng(4)
    output, arrival = rng.integers(1, 200, 150), np.cumsum(rng.exponential(40.0, 150))
    workload = burst(output, arrival_s=arrival)
    ends = {spec: finish_s(workload, spec, seats(1)) for spec in
            ("sjf", "fcfs", "ageing:tokens_per_s=0", "ageing:tokens_per_s=1000000",
             "ageing:tokens_per_s=0.5")}  # fmt: skip
    assert ends["ageing:tokens_per_s=0"].tolist() == ends["sjf"].tolist()
    assert ends["ageing:tokens_per_s=1000000"].tolist() == ends["fcfs"].tolist()
    mine = ends["ageing:tokens_per_s=0.5"]
    overtaken = (mine[:, None] > mine) & (np.arange(150)[:, None] < np.arange(150))
    gap_s = arrival - arrival[:, None]
    shorter = output[:, None] - output
    assert overtaken.any()
    assert (gap_s[overtaken] <= shorter[overtaken] / 0.5).all()


def test_least_attained_service_by_hand() -> None:
    """A long job runs for 10 s; one of 4 s comes, has less behind it all along, and is done first;
    the long one computes its tokens again in one iteration.
    """
    workload = burst([30, 4], arrival_s=[0.0, 10.0])
    free = "las+preempt:price=0,protect_after=1e9"
    assert finish_s(workload, free, seats(1)).tolist() == [34.0, 14.0]
    assert finish_s(workload, "fcfs", seats(1)).tolist() == [30.0, 34.0]
    assert load_policy("las:computed=0.5").score(7, 20) == 17


def test_slices_take_turns() -> None:
    """Two answers of 6 in slices of 2 on one seat: first one, then the other."""
    done = finish_s(burst([6, 6]), "scls:slice=2", seats(1))
    assert done.tolist() == [10.0, 12.0]
    assert finish_s(burst([6, 6]), "fcfs", seats(1)).tolist() == [6.0, 12.0]
    score = load_policy("scls:slice=2").score
    assert score(np.arange(6)).tolist() == [0, 0, 2, 2, 4, 4]


def test_trail_preempts_until_the_share_c_and_not_after() -> None:
    """Of 10 predicted tokens; a job of 1 comes after 7 or after 8 of them."""
    for after, done in ((7, [11.0, 8.0]), (8, [10.0, 11.0])):
        workload = burst([10, 1], arrival_s=[0.0, after - 0.5])
        assert finish_s(workload, "trail", seats(1)).tolist() == done, after


def test_ltr_promotes_who_starved_for_a_quantum() -> None:
    """Short ones keep coming: a long job waits for all of them, or for 20 s."""
    count = 40
    output = np.r_[30, np.full(count, 2)]
    workload = burst(output, arrival_s=np.r_[0.0, np.arange(count) * 2.0])
    never = finish_s(workload, "ltr:starved_s=1e6", seats(1))
    assert (never[0], never[11]) == (2 * count + 30, 22)
    # after 20 s it takes the seat from the eleventh, for the 8 s of its quantum
    starved = finish_s(workload, "ltr:starved_s=20,quantum=8", seats(1))
    assert starved[1:12].tolist() == [*range(2, 21, 2), 30]
    preemptive = finish_s(workload, "sjf+preempt:price=0,protect_after=1e9", seats(1))
    assert never.tolist() == preemptive.tolist()


def test_fastserve_is_mlfq_until_somebody_starves() -> None:
    rng = np.random.default_rng(5)
    generated, prompt = rng.integers(0, 4000, 200), rng.integers(1, 9000, 200)
    plain = load_policy("mlfq").score(generated, prompt)
    arrival = np.zeros(200)
    mine = load_policy("fastserve").score
    assert mine(generated, prompt, 60.0, arrival).tolist() == plain.tolist()
    promoted = mine(generated, prompt, 60.1, arrival)
    assert promoted.tolist() == np.where(generated < 32, 0, plain).tolist()


def test_tie_waits_for_the_tail() -> None:
    """Both are expected to take 100; the one that may take 400 goes second."""
    score = load_policy("tie").score
    assert score(np.array([100.0, 100.0]), np.array([110.0, 400.0])).tolist() == [155, 300]
    assert load_policy("tie:beta=0").score(100.0, 400.0) == 100


def test_longest_prefix_first_reuses_more_of_a_small_cache() -> None:
    """Two families that take turns, and room for one: a depth-first order reads each once."""
    n, blocks = 24, 8
    family = np.arange(n) % 2
    hashes = [tuple(range(100 * int(k), 100 * int(k) + blocks)) for k in family]
    workload = Workload({
        "arrival_s": np.zeros(n), "prompt_tokens": np.full(n, 16 * blocks + 1),
        "output_tokens": np.full(n, 2), "prefix_hashes": hashes,
        "hash_block_tokens": np.full(n, 16),
    })  # fmt: skip
    engine = Engine(
        max_num_seqs=1, num_gpu_blocks=blocks + 4, enable_prefix_caching=True,
        max_num_batched_tokens=4096,
    )  # fmt: skip
    cached = {
        policy: int(
            lw.simulate(workload, policy=policy, engine=engine, timing=TICK)
            .requests["cached_tokens"]
            .sum()
        )
        for policy in ("fcfs", "lpm", "lpm:most_waiting=3")
    }
    assert cached["lpm"] == (n - 2) * 16 * blocks  # each family is computed once
    assert cached["fcfs"] <= cached["lpm:most_waiting=3"] < cached["lpm"]
    assert cached["fcfs"] < cached["lpm"] / 3


@pytest.mark.parametrize("spec", ["lpm"])
def test_what_an_engine_cannot_tell_is_refused_by_name(spec: str) -> None:
    from lengthwise.policies.plugins.vllm.driver import VALUES

    said = VALUES.lacks(load_policy(spec).score.features, spec)
    assert said is not None and said.startswith("lpm reads cached_tokens (of a pair)")
