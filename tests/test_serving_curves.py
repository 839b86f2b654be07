"""Curves over generated tokens in the engines: known answers, and the twin equals the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lengthwise import remaining
from lengthwise.curves import BETWEEN, Curve
from lengthwise.errors import InputError
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import Preemption, RoutingPolicy, SchedulingPolicy, Score
from lengthwise.prediction import CURVES, Prediction, Predictions
from lengthwise.remaining import Pieces
from lengthwise.serving import Engine, Stops, run
from lengthwise.serving.fast.run import FastRun
from lengthwise.serving.inputs import predictions_of
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.timing.linear import LinearTiming
from lengthwise.workload import Workload
from tests.systems import alike

TIMING = LinearTiming(0.01, 1e-5, 1e-4, 1e-7)
ONE = load_router("round-robin")


def workload(n: int, seed: int, **columns: Any) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(0.05, n)),
            "prompt_tokens": rng.integers(1, 60, n), "output_tokens": rng.integers(1, 80, n),
            **columns,
        }
    )  # fmt: skip


def served(
    work: Workload, policy: Any, predictions: Any, backend: str = "reference", **options: Any
) -> Any:
    engine = Engine(**{"max_num_seqs": 4, "num_gpu_blocks": 40, "block_size": 8, **options})
    chosen = load_policy(policy) if isinstance(policy, str) else policy
    given = alike(policy=chosen, routing=ONE, engine=engine, timing=TIMING)
    return run(work, predictions=predictions, backend=backend, **given)


def same(one: Any, other: Any) -> None:
    for name in ("finish_ps", "first_token_ps", "scheduled_ps", "preemptions", "recomputed_tokens"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def left(predicted_tokens: Any, generated_tokens: Any) -> Any:
    return predicted_tokens - generated_tokens


LEFT = SchedulingPolicy(Score.from_function(left), load_policy("srtf").preemption)


def test_with_exact_lengths_it_is_srtf() -> None:
    work = workload(300, 0)
    exact = Prediction.exact(work["output_tokens"]).of_run()
    plain = served(work, "srtf", exact)
    assert plain.preemptions.sum() > 0
    same(served(work, LEFT, exact), plain)
    same(served(work, "srtf-refreshed+preempt:price=0.01,protect_after=1", exact), plain)
    same(served(work, "srtf", work["output_tokens"]), plain)  # an array says as much


def gittins(gittins_index: Any) -> Any:
    return gittins_index


def in_line(arrival_s: Any) -> Any:
    return arrival_s


@pytest.mark.parametrize("policy", ["srtf-refreshed", "gittins"])
def test_of_memoryless_lengths_the_index_tells_nothing(policy: str) -> None:
    """What is to come is the same for all at all times: first come, first served."""
    work = workload(200, 1)
    n = len(work)
    flat = Curve.table([0.0], [[50.0]], np.zeros(n, int), "step")
    made = Predictions({"predicted_tokens": np.full(n, 50.0)}, dict.fromkeys(CURVES, flat))
    line = SchedulingPolicy(Score.from_function(in_line))
    chosen = SchedulingPolicy(Score.from_function(gittins)) if policy == "gittins" else policy
    same(served(work, chosen, made), served(work, line, made))


def test_a_refreshed_prediction_lets_the_outlived_give_way() -> None:
    """By hand: lengths are 2 or 40; a request that has outlived 2 has 38 to go, and waits."""
    work = Workload({"arrival_s": [0.0, 0.025], "prompt_tokens": [1, 1], "output_tokens": [40, 2]})
    two = Prediction.distribution([[2.0, 40.0]] * 2, [0.4, 0.6])
    curve = two.curve("expected_remaining_tokens", [0, 1, 2, 40])
    made = Predictions(
        {"predicted_tokens": two.predicted_tokens}, {"expected_remaining_tokens": curve}
    )
    free = load_policy("srtf+preempt:price=0,overhead_tokens=0")
    found = served(work, free, made, max_num_seqs=1)
    assert found.preemptions.tolist() == [1, 0]  # 37 to come against 21
    frozen = SchedulingPolicy(Score.from_function(left), free.preemption)
    assert served(work, frozen, made, max_num_seqs=1).preemptions.tolist() == [0, 0]  # 21 - 3


def two_lengths(n: int, short: float, long: float, share: float) -> Predictions:
    """Everybody's answer has ``short`` tokens with probability ``share``, else ``long``."""
    lengths = np.array([[short, long]])
    pieces = Pieces(lengths, lengths, np.array([[share, 1 - share]]))
    edges = np.arange(long)
    values = [[remaining.gittins(pieces, np.array([edge]))[0] for edge in edges]]
    curve = Curve.table(edges, values, np.zeros(n, int))
    mean = share * short + (1 - share) * long
    return Predictions({"predicted_tokens": np.full(n, mean)}, {"gittins_index": curve})


def test_the_gittins_policy_has_the_means_that_theory_gives() -> None:
    """An M/G/1 queue of lengths 20 and 600 at load 0.7, each equal to a coin's other side at first.

    Whoever has not outlived 20 tokens goes first, so that the short see only the first 20 tokens of
    others: an M/D/1 queue. The long see all work that is there, and the first 20 tokens of those
    who come meanwhile: (E[W] + 600 s) / (1 - load of these), where W is what they would wait first
    come, first served. (Scully et al., SOAP, section 3.)
    """
    s, share, load, n = 0.001, 0.8, 0.7, 40_000
    rng = np.random.default_rng(7)
    tokens = np.where(rng.random(n) < share, 20, 600)
    rate = load / ((share * 20 + (1 - share) * 600) * s)
    work = Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate, n)),
            "prompt_tokens": np.ones(n, int), "output_tokens": tokens,
        }
    )  # fmt: skip
    free = Preemption("recompute", price=0.0, overhead_tokens=0, protect_after=1e9)
    policy = SchedulingPolicy(Score.from_function(gittins), free)
    engine = Engine(max_num_seqs=1, num_gpu_blocks=200)

    def took_s(policy: SchedulingPolicy) -> Any:
        given = alike(policy=policy, routing=ONE, engine=engine, timing=LinearTiming(s))
        made = run(work, predictions=two_lengths(n, 20, 600, share), backend="fast", **given)
        return (made.finish_ps - made.arrival_ps) / 1e12

    took, in_turn = took_s(policy), took_s(SchedulingPolicy(Score.from_function(in_line)))
    first = rate * 20 * s
    short = 20 * s + rate * (20 * s) ** 2 / (2 * (1 - first))
    wait = (in_turn[tokens == 600] - 600 * s).mean()
    assert took[tokens == 20].mean() == pytest.approx(short, rel=0.04)
    assert took[tokens == 600].mean() == pytest.approx((wait + 600 * s) / (1 - first), rel=0.04)


def random_predictions(work: Workload, rng: np.random.Generator) -> Predictions:
    """Tables of any shape, shared or not; some rise, some fall."""
    n, curves = len(work), {}
    for name in CURVES:
        edges = np.concatenate(([0.0], np.cumsum(rng.integers(1, 30, rng.integers(0, 6)))))
        rows = int(rng.integers(1, n + 1))
        values = rng.uniform(0, 100, (rows, len(edges)))
        if rng.random() < 0.5:
            values = np.sort(values, axis=1)[:, ::-1]
        curves[name] = Curve.table(
            edges, values, rng.integers(0, rows, n), BETWEEN[rng.integers(len(BETWEEN))]
        )
    made = Predictions({"predicted_tokens": rng.uniform(1, 90, n)}, curves)
    return made.capped(rng.integers(1, 100, n)) if rng.random() < 0.5 else made


def mixed(expected_remaining_tokens: Any, gittins_index: Any, remaining_tokens_p90: Any) -> Any:
    return expected_remaining_tokens + 0.5 * gittins_index - 0.25 * remaining_tokens_p90


def clocked(gittins_index: Any, now_s: Any, arrival_s: Any) -> Any:
    return gittins_index - 20.0 * (now_s - arrival_s)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_twin_equals_the_reference(seed: int, asynchronous: bool) -> None:
    rng = np.random.default_rng(seed)
    work = workload(150, seed)
    made = random_predictions(work, rng)
    for function in (mixed, clocked):
        policy = SchedulingPolicy(
            Score.from_function(function), load_policy("srtf+preempt:price=0.2").preemption
        )
        options = {"async_scheduling": asynchronous, "enable_prefix_caching": bool(seed % 2)}
        reference = served(work, policy, made, **options)
        same(served(work, policy, made, "fast", **options), reference)


def by_expectation(expected_remaining_tokens: Any, running_requests: Any) -> Any:
    return expected_remaining_tokens * 0.001 * running_requests + running_requests


def test_routers_read_them_too() -> None:
    work = workload(200, 3)
    made = random_predictions(work, np.random.default_rng(5))
    router = RoutingPolicy(Score.from_function(by_expectation))
    engine = Engine(max_num_seqs=4, num_gpu_blocks=64, block_size=8)
    given = alike(
        policy=load_policy("srtf-refreshed"), routing=router, engine=engine, timing=TIMING,
        replicas=3,
    )  # fmt: skip
    reference = run(work, predictions=made, backend="reference", **given)
    same(run(work, predictions=made, backend="fast", **given), reference)


def test_a_caller_reads_them_at_stops_whatever_the_policy_reads() -> None:
    work = workload(60, 4)
    given = alike(
        policy=load_policy("sjf"), routing=ONE, engine=Engine(max_num_seqs=4, num_gpu_blocks=40),
        timing=TIMING, predictions=random_predictions(work, np.random.default_rng(4)),
    )  # fmt: skip
    seen = []
    for kind in (ReferenceRun, FastRun):
        made, rows = kind(work, **given), np.zeros((8, len(CURVES)))
        seen.append([])
        while (stop := made.advance(Stops(admit=True, preempt=True))).kind != "done":
            shown = made.features(tuple(CURVES), rows)
            seen[-1] += [stop, rows[:shown].tolist()]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("backend", ["reference", "fast"])
def test_a_curve_that_was_not_tabulated_is_refused_by_name(backend: str) -> None:
    work = workload(5, 0)
    bare = Predictions({"predicted_tokens": np.full(5, 10.0)})
    with pytest.raises(InputError, match="reads expected_remaining_tokens, and the predictions"):
        served(work, "srtf-refreshed", bare, backend)
    with pytest.raises(InputError, match="reads expected_remaining_tokens, which needs a predic"):
        served(work, "srtf-refreshed", None, backend)


def test_no_prediction_exceeds_what_the_client_allows() -> None:
    work = workload(300, 4)
    limits = work["output_tokens"] + np.random.default_rng(0).integers(0, 5, 300)
    capped = work.replace(max_tokens=limits)
    wild = np.random.default_rng(1).uniform(1, 400, 300)
    found = predictions_of(capped, wild)
    assert found is not None
    np.testing.assert_array_equal(found.predicted_tokens, np.minimum(wild, limits))
    for backend in ("reference", "fast"):
        records = served(capped, "srtf", wild, backend)
        same(records, served(work, "srtf", np.minimum(wild, limits)))
        np.testing.assert_array_equal(records.predicted_tokens, np.minimum(wild, limits))
    assert served(work, "srtf", wild).predicted_tokens.max() > limits.max()
