"""What routers and schedulers see of replicas, followed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lengthwise.policies import load_policy, load_router
from lengthwise.policy import Preemption, SchedulingPolicy, Score
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.draws import sample
from lengthwise.serving.run import begin
from lengthwise.serving.run import run as run_whole
from lengthwise.serving.system import Stops
from lengthwise.serving.timing.linear import LinearTiming
from lengthwise.workload import Workload

SEEN = (
    "free_seats", "max_seats", "oldest_request_s", "prefill_backlog_tokens",
    "decode_backlog_tokens", "cached_tokens",
)  # fmt: skip


def seen_at_routing(
    workload: dict[str, Any],
    predicted: list[float],
    names: tuple[str, ...],
    *,
    policy: str = "fcfs",
    interval_s: float = 0.0,
    **options: Any,
) -> list[list[float]]:
    """What a router sees of one node whenever a request arrives; iterations take a second."""
    node = Node(Engine(**options), LinearTiming(1.0), load_policy(policy))
    system = System((node,), load_router("jsq"), interval_s)
    run = begin(Workload(workload), system, np.array(predicted))
    rows = []
    while run.advance(Stops(route=True)).kind == "route":
        out = np.zeros((1, len(names)))
        assert run.features(names, out) == 1
        rows.append(out[0].tolist())
        run.answer(0)
    return rows


def test_backlogs_seats_and_ages_by_hand() -> None:
    rows = seen_at_routing(
        {"arrival_s": [0.0, 0.5, 2.5, 3.5, 100.0], "prompt_tokens": [5, 20, 3, 2, 1],
         "output_tokens": [4, 3, 1, 1, 1]},
        [6.0, 1.5, 1.0, 1.0, 1.0], SEEN,
        max_num_seqs=2, max_num_batched_tokens=8, num_gpu_blocks=100,
    )  # fmt: skip
    assert rows == [
        [2, 2, 0.0, 0, 0, 0],
        # request 0 has been given all its prompt and no answer; 6 tokens of it are expected
        [1, 2, 0.5, 0, 6, 0],
        # two iterations gave it a token and request 1 seven prompt tokens beside it
        [0, 2, 2.5, 6, 4 + 2, 0],
        # its last prompt tokens are under way; request 2 waits with three and a token to come
        [0, 2, 3.5, 3, 3 + 2 + 1, 0],
        [2, 2, 0.0, 0, 0, 0],
    ]


def test_an_answer_longer_than_predicted_owes_nothing() -> None:
    rows = seen_at_routing(
        {"arrival_s": [0.0, 1.5, 2.5, 6.5], "prompt_tokens": [1] * 4,
         "output_tokens": [30, 1, 1, 1]},
        [1.5, 9.0, 1.0, 1.0], ("decode_backlog_tokens",), num_gpu_blocks=100,
    )  # fmt: skip
    assert rows == [[0], [1], [0 + 9], [0]]


def test_cached_tokens_are_those_of_the_request_that_arrives() -> None:
    shared = {"prefix_hashes": [(7, 8), (7, 9), (5,), (7, 8)], "hash_block_tokens": [4] * 4}
    rows = seen_at_routing(
        {"arrival_s": [0.0, 10.0, 20.0, 30.0], "prompt_tokens": [9] * 4, "output_tokens": [2] * 4}
        | shared,
        [1.0] * 4, ("cached_tokens",), num_gpu_blocks=100, block_size=4,
        enable_prefix_caching=True,
    )  # fmt: skip
    assert rows == [[0], [4], [0], [8]]


def test_a_router_sees_a_scraped_state_and_its_own_books_of_now() -> None:
    rows = seen_at_routing(
        {"arrival_s": [0.1, 0.2, 5.2], "prompt_tokens": [5] * 3, "output_tokens": [9] * 3},
        [9.0] * 3, 
        ("free_seats", "decode_backlog_tokens", "oldest_request_s", "outstanding_requests"),
        interval_s=5.0, max_num_seqs=4, num_gpu_blocks=100,
    )  # fmt: skip
    assert rows[1] == [4, 0, pytest.approx(0.1), 1]  # nothing was there at 0 s
    assert rows[2] == [2, (9 - 4) + (9 - 3), pytest.approx(5.1), 2]


def test_the_nominal_speed_tells_nodes_apart() -> None:
    run = begin(
        Workload({"arrival_s": [0.0], "prompt_tokens": [1], "output_tokens": [1]}),
        System(
            tuple(
                Node(Engine(num_gpu_blocks=9, max_num_seqs=seats), timing, load_policy("fcfs"))
                for timing, seats in (
                    (LinearTiming(0.01), 256), (LinearTiming(0.005), 256), (LinearTiming(0.01), 4),
                    (LinearTiming(0.01, per_context_token_s=1e-6), 256),
                )
            ),
            load_router("jsq"),
        ),
    )  # fmt: skip
    run.advance(Stops(route=True))
    out = np.zeros((4, 1))
    run.features(("decode_tokens_per_s",), out)
    assert out.ravel().tolist() == [3200.0, 6400.0, 400.0, pytest.approx(32 / (0.01 + 0.032))]


def test_a_swapped_prompt_is_no_backlog() -> None:
    def shortest(predicted_tokens: Any) -> Any:
        return predicted_tokens

    policy = SchedulingPolicy(Score.from_function(shortest), Preemption(mode="swap", price=0.0))
    node = Node(Engine(num_gpu_blocks=100, max_num_seqs=1), LinearTiming(1.0), policy)
    workload = Workload(
        {"arrival_s": [0.0, 1.5, 2.5], "prompt_tokens": [5, 7, 1], "output_tokens": [9, 3, 1]}
    )
    run = begin(workload, System((node,), load_router("jsq")), np.array([9.0, 3.0, 1.0]))
    seen = []
    while run.advance(Stops(route=True)).kind == "route":
        out = np.zeros((1, 2))
        run.features(("prefill_backlog_tokens", "waiting_requests"), out)
        seen.append(out[0].tolist())
        run.answer(0)
    assert seen == [[0, 0], [0, 0], [0, 1]]  # what was computed of request 0 lies in host memory


@pytest.mark.parametrize("backend", ["reference", "fast"])
def test_a_policy_reads_how_often_a_request_was_preempted(backend: Any) -> None:
    """Shortest first, but whoever was sent back twice goes before all and is left alone."""

    def twice_is_enough(predicted_tokens: Any, preemptions: Any) -> Any:
        return predicted_tokens - 1000.0 * (preemptions >= 2)

    policy = SchedulingPolicy(
        Score.from_function(twice_is_enough), Preemption(mode="recompute", price=0.0)
    )
    node = Node(Engine(num_gpu_blocks=100, max_num_seqs=1), LinearTiming(1.0), policy)
    shorts = 6
    workload = Workload(
        {"arrival_s": [0.0, *(2.5 + 3.0 * np.arange(shorts))], "prompt_tokens": [1] * (shorts + 1),
         "output_tokens": [20] + [1] * shorts}
    )  # fmt: skip
    system = System((node,), load_router("jsq"))
    records = run_whole(workload, system, workload["output_tokens"] * 1.0, backend=backend)
    assert records.preemptions.tolist() == [2] + [0] * shorts
    # the third short one finds it protected by its score and waits to the end
    assert (records.finish_ps[3:] > records.finish_ps[0]).all()
    assert (records.finish_ps[1:3] < records.finish_ps[0]).all()


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize("choices", [0, 1, 2, 3, 4, 5])
def test_a_router_looks_at_as_many_nodes_as_it_samples(backend: Any, choices: int) -> None:
    """All are idle: the first of those that are looked at, which are drawn for each request."""
    n, nodes = 60, 4
    work = Workload({
        "arrival_s": np.arange(n) * 10.0, "prompt_tokens": np.ones(n, int),
        "output_tokens": np.ones(n, int),
    })  # fmt: skip
    node = Node(Engine(num_gpu_blocks=9), LinearTiming(0.01), load_policy("fcfs"))
    system = System((node,) * nodes, load_router(f"jsq:choices={choices}"))
    found = run_whole(work, system, np.ones(n), seed=11, backend=backend)
    looked = [sample(11, id, nodes, choices) if 0 < choices < nodes else [0] for id in range(n)]
    assert found.replica.tolist() == [min(places) for places in looked]
    assert len(set(found.replica.tolist())) == {0: 1, 1: 4, 2: 3, 3: 2, 4: 1, 5: 1}[choices]
