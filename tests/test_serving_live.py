"""A node whose requests come as time goes on equals the run that knows them all, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.policies import load_policy, load_router
from lengthwise.prediction import Prediction, Predictions
from lengthwise.serving import Engine, Node, System, run
from lengthwise.serving.inputs import block_keys
from lengthwise.serving.live import Asked, LiveNode
from lengthwise.serving.timing import timing
from lengthwise.workload import Workload

ROUND_ROBIN = load_router("round-robin")


def drawn(seed: int, requests: int = 150, rate: float = 30.0) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate, requests)),
            "prompt_tokens": rng.integers(1, 400, requests),
            "output_tokens": rng.integers(1, 120, requests),
            "priority": rng.integers(0, 3, requests),
            "prefix_hashes": [tuple(rng.integers(0, 2, 4).tolist()) for _ in range(requests)],
            "hash_block_tokens": np.full(requests, 32),
        }
    )


def node(policy: str, **options: object) -> Node:
    engine = Engine(**{"max_num_seqs": 8, "max_num_batched_tokens": 256, **options})  # type: ignore[arg-type]
    return Node(engine, timing("h200/llama-3.1-8b"), load_policy(policy))


def asked_of(workload: Workload, served: Node, predictions: Predictions | None) -> list[Asked]:
    keys = block_keys(workload, served.engine.block_size)
    names = ("prompt_tokens", "output_tokens", "priority")
    rows = zip(*(workload[name].tolist() for name in names), strict=True)
    return [
        Asked(
            prompt, output, priority, block_keys=keys[id],
            predictions=None if predictions is None else predictions.select([id]),
        )
        for id, (prompt, output, priority) in enumerate(rows)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("fcfs", {}),
        ("fcfs", {"async_scheduling": True, "enable_prefix_caching": True}),
        ("fcfs", {"num_gpu_blocks": 60, "async_scheduling": True}),
        ("priority", {"num_gpu_blocks": 60}),
        ("sjf", {"async_scheduling": True}),
        ("srtf+preempt", {"num_gpu_blocks": 80}),
        ("srtf-refreshed+guard", {"async_scheduling": True}),
        ("hrrn", {"enable_prefix_caching": True}),
        ("mlfq+guard", {"num_gpu_blocks": 80, "async_scheduling": True}),
    ],
)
def test_it_takes_the_steps_of_a_run(policy: str, options: dict[str, object]) -> None:
    workload, served = drawn(seed=3), node(policy, **options)
    rng = np.random.default_rng(4)
    guess = workload["output_tokens"] * rng.lognormal(0, 0.5, len(workload))
    predictions = Prediction(tokens=guess).of_run()
    system = System((served,), ROUND_ROBIN)
    told = run(workload, system, predictions, backend="reference")

    live = LiveNode(served, sample=predictions.select([0]))
    first, finish = {}, {}
    coming = np.rint(workload["arrival_s"] * 1e12).astype(np.int64).tolist()
    looked = rng.integers(0, int(told.finish_ps.max()), 300).tolist()  # whoever drives it looks
    times = sorted([(when, -1) for when in looked] + [(at, id) for id, at in enumerate(coming)])
    all_asked = asked_of(workload, served, predictions)

    def look(until_ps: int) -> None:
        for seen_ps, request, last in live.advance(until_ps):
            assert seen_ps <= until_ps
            first.setdefault(request.id, seen_ps)
            if last:
                finish[request.id] = seen_ps

    for when, id in times:
        look(when)
        if id >= 0:
            assert live.add(all_asked[id], when).id == id
    while (when_next := live.next_ps) is not None:
        look(when_next)

    everybody = range(len(workload))
    assert [finish[id] for id in everybody] == told.finish_ps.tolist()
    assert [first[id] for id in everybody] == told.first_token_ps.tolist()
    assert live.preemptions == told.preemptions.sum()
    live.replica.check()
    assert (live.running, live.waiting, live.replica.outstanding) == (0, 0, 0)
    assert not live._features._rows and live.kv_utilization == 0


@pytest.mark.parametrize("options", [{}, {"async_scheduling": True, "enable_prefix_caching": True}])
def test_who_hangs_up_leaves_nothing_behind(options: dict[str, object]) -> None:
    workload, served = drawn(seed=5), node("mlfq+guard", num_gpu_blocks=80, **options)
    live, rng, here, ended = LiveNode(served), np.random.default_rng(6), {}, set()
    for id, asked in enumerate(asked_of(workload, served, None)):
        now_ps = round(workload["arrival_s"][id] * 1e12)
        for token in live.advance(now_ps):
            assert token.request.id in here  # nobody who hung up gets another token
            if token.last:
                del here[token.request.id]
                ended.add(token.request.id)
        here[id] = live.add(asked, now_ps)
        if rng.random() < 0.5:
            live.remove(here.pop(int(rng.choice(list(here)))))
        live.replica.check()
    while (when := live.next_ps) is not None:
        ended |= {token.request.id for token in live.advance(when) if token.last}
    assert ended >= set(here)
    assert (live.running, live.waiting, live.replica.outstanding) == (0, 0, 0)
    assert not live._features._rows and live.kv_utilization == 0


def test_what_can_not_be_served_is_refused() -> None:
    with pytest.raises(InputError, match="needs a predictor"):
        LiveNode(node("srtf"))
    exact = Prediction(tokens=np.array([5.0])).of_run()
    with pytest.raises(InputError, match="fcfs queue"):
        LiveNode(node("fcfs+preempt"), sample=exact)
    live = LiveNode(node("fcfs", num_gpu_blocks=11))
    assert live.longest == 161  # ten blocks of 16, and the last token is never computed
    live.add(Asked(100, 61), 0)
    with pytest.raises(InputError, match="longer than 161 tokens"):
        live.add(Asked(100, 62), 0)
    with pytest.raises(InputError, match="longer than 90 tokens"):
        LiveNode(node("fcfs", max_model_len=90)).add(Asked(80, 11), 0)
