"""The two clocks of asynchronous scheduling, against hand-computed schedules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from lengthwise.policy import RoutingPolicy, SchedulingPolicy, Score
from lengthwise.protocols import Batch
from lengthwise.serving import Engine, Node, Records, System
from lengthwise.serving.run import run
from lengthwise.serving.timing.model import Pipeline
from lengthwise.workload import Workload

MS = 10**9
NONE = dict.fromkeys(
    (
        "mixed_context", "chunk_context", "decode_seq", "prefill_seq", "launch_decode",
        "launch_decode_seq", "launch_mixed_seq", "launch_prefill_seq", "prepare", "prepare_seq",
        "tail", "schedule", "schedule_seq", "update", "update_seq", "arrival", "arrival_token",
        "output", "output_seq",
    ),
    0,
)  # fmt: skip


@dataclass(frozen=True)
class TwoClocks:
    """Decoding takes the GPU 5 ms, prefill 10 ms; the rest is given."""

    terms: dict[str, int]
    mixed_launch_ms: int = 0
    name: str = "two clocks"
    num_gpu_blocks: int | None = 1000

    def pipeline(self, max_num_batched_tokens: int, max_num_seqs: int) -> Pipeline:
        tokens = np.ones(max_num_batched_tokens + 1, dtype=np.int64)
        seqs = np.ones(max_num_seqs + 1, dtype=np.int64)
        return Pipeline(
            decode_ps=5 * MS * seqs,
            decode_context_ps=0 * seqs,
            mixed_ps=10 * MS * tokens,
            mixed_launch_ps=self.mixed_launch_ms * MS * tokens,
            terms=NONE | self.terms,
        )

    def iteration_time(self, batch: Batch) -> float:
        return 0.010 if batch.prefill_tokens else 0.005


def serve(model: TwoClocks, arrivals_ms: list[int], output: int = 3) -> Records:
    n = len(arrivals_ms)
    workload = Workload(
        {
            "arrival_s": np.array(arrivals_ms) / 1e3,
            "prompt_tokens": np.full(n, 100),
            "output_tokens": np.full(n, output),
        }
    )
    policy = SchedulingPolicy(Score("fcfs", lambda a: a, ("arrival_s",)), queue="fcfs")
    routing = RoutingPolicy(Score("first", lambda r: r, ("running_requests",)))
    system = System((Node(Engine(async_scheduling=True), model, policy),), routing)
    return run(workload, system, backend="reference", check=True)


def test_where_the_cpu_takes_no_time_the_gpu_is_never_idle() -> None:
    records = serve(TwoClocks({}), [0])
    assert records.first_token_ps.tolist() == [10 * MS]
    assert records.finish_ps.tolist() == [20 * MS]  # two decoding iterations of 5 ms


def test_launching_hides_behind_the_gpu() -> None:
    # 2 ms to launch an iteration: only the first is waited for
    model = TwoClocks({"launch_decode": 2 * MS, "prepare": 2 * MS}, mixed_launch_ms=2)
    records = serve(model, [0])
    assert records.first_token_ps.tolist() == [12 * MS]
    assert records.finish_ps.tolist() == [22 * MS]


def test_a_slow_launch_holds_up_the_result_before_it() -> None:
    # Decoding is launched in 8 ms, longer than the GPU's 5. The prefill (10 ms) is seen at 10;
    # the first decode was launched at 8 and works from 10 to 15; the second is launched from 10
    # to 18 and so the first is seen at 18; it works from 18 (nothing is prepared before its
    # launch) to 23.
    model = TwoClocks({"launch_decode": 8 * MS, "prepare": 8 * MS}, mixed_launch_ms=0)
    records = serve(model, [0])
    assert records.first_token_ps.tolist() == [10 * MS]
    assert records.finish_ps.tolist() == [23 * MS]


def test_the_gpu_waits_for_the_last_kernel() -> None:
    # the prefill's kernels are launched in 25 ms, one after the other while the GPU works
    records = serve(TwoClocks({"tail": 1 * MS}, mixed_launch_ms=25), [0])
    assert records.first_token_ps.tolist() == [26 * MS]


def test_an_arrival_waits_for_the_iteration_under_way_and_the_next() -> None:
    # The second request arrives at 12, in the second iteration (10 to 15); the third (15 to 20)
    # was scheduled when the second started; so its prefill runs from 20 to 30.
    records = serve(TwoClocks({}), [0, 12], output=5)
    assert records.first_token_ps[1] == 30 * MS


def test_an_arrival_during_a_launch_makes_the_iteration_after_it() -> None:
    # The first prefill is launched from 0 to 6; the request of 3 is in the iteration that the CPU
    # schedules at 6, with the first one's decoding: the GPU works on it from 10 to 20. The CPU
    # launches it from 6 to 12, and only then sees that the first prefill was done at 10.
    records = serve(TwoClocks({}, mixed_launch_ms=6), [0, 3])
    assert records.first_token_ps.tolist() == [12 * MS, 20 * MS]


def test_latencies_outside_the_engine() -> None:
    terms = {"arrival": 1 * MS, "arrival_token": MS // 100, "output": 3 * MS, "output_seq": MS}
    records = serve(TwoClocks(terms), [0])
    assert records.arrival_ps.tolist() == [0]
    assert records.first_token_ps.tolist() == [(1 + 1 + 10 + 3 + 1) * MS]  # 100 tokens at 0.01 ms


def test_scheduling_and_updating_are_the_cpus() -> None:
    # 0.5 ms to schedule, 0.25 to take in a result: hidden, but for the first and the last
    terms = {"schedule": MS // 2, "update": MS // 4}
    records = serve(TwoClocks(terms), [0])
    assert records.first_token_ps.tolist() == [10 * MS + 3 * MS // 4]
    assert records.finish_ps.tolist() == [20 * MS + 3 * MS // 4]


@pytest.mark.parametrize("requests", [1, 7, 40])
def test_every_request_finishes_and_time_only_grows(requests: int) -> None:
    rng = np.random.default_rng(requests)
    arrivals = np.sort(rng.integers(0, 200, requests)).tolist()
    terms = {"launch_decode": 3 * MS, "prepare": MS, "schedule": MS // 5, "update": MS // 5}
    records = serve(TwoClocks(terms, mixed_launch_ms=12), arrivals, output=6)
    assert (records.scheduled_ps >= records.arrival_ps).all()
    assert (records.first_token_ps > records.scheduled_ps).all()
    assert (records.finish_ps > records.first_token_ps).all()
