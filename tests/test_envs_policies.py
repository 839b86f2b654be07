"""An agent that plays a known policy's choices gets that policy's run, to the picosecond."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lengthwise.envs.base import DecisionEnv
from lengthwise.envs.columns import SCALES, Columns
from lengthwise.envs.preemption import PreemptionEnv
from lengthwise.envs.routing import RoutingEnv
from lengthwise.envs.scheduling import SchedulingEnv
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import Preemption, RoutingPolicy, SchedulingPolicy, Score
from lengthwise.prediction import Prediction
from lengthwise.serving import Engine, Node, Records, System, run
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload

TIMING = LinearTiming(
    base_s=0.01, per_prefill_token_s=1e-4, per_sequence_s=0.001, num_gpu_blocks=10_000
)
ENGINE = Engine(max_num_seqs=5, max_num_batched_tokens=256)


def overload(seed: int) -> Workload:
    rng = np.random.default_rng(seed)
    n = 150
    return Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(0.05, n)),
            "prompt_tokens": rng.integers(1, 400, n),
            "output_tokens": rng.geometric(0.02, n),
        }
    )


def plain(
    seed: int, policy: str | SchedulingPolicy, router: str | RoutingPolicy, replicas: int
) -> Records:
    workload = overload(seed)
    node = Node(ENGINE, TIMING, load_policy(policy))
    system = System.replicated(node, replicas, load_router(router))
    return run(workload, system, workload["output_tokens"], seed=seed, backend="reference")


def played(env: DecisionEnv, seed: int, choose: Callable[[NDArray[np.float64]], int]) -> Records:
    env.reset(options={"workload_seed": seed})
    done = False
    while not done:
        _, _, done, _, _ = env.step(choose(env.candidates()))
    return env.records()


def same(a: Records, b: Records) -> None:
    for name in ("replica", "scheduled_ps", "first_token_ps", "finish_ps", "preemptions"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(
    ("policy", "choose"),
    [
        ("fcfs", lambda rows: 0),
        ("sjf", lambda rows: int(rows[:, 0].argmin())),
        ("hrrn", lambda rows: int((rows[:, 1] / (rows[:, 0] + 1)).argmax())),
    ],
)
def test_scheduling_plays_known_policies(
    policy: str, choose: Callable[[NDArray[np.float64]], int], replicas: int
) -> None:
    env = SchedulingEnv(
        overload, slots=150, timing=TIMING, engine=ENGINE, replicas=replicas,
        features=("predicted_tokens", "waited_s"),
    )  # fmt: skip
    for seed in range(3):
        same(played(env, seed, choose), plain(seed, policy, "round-robin", replicas))


class ByPrompt:
    """Foretells short or long answers, the likelier to be long the longer the prompt."""

    needs = frozenset({"prompt_tokens"})

    def predict(self, prompts: Any, *, prompt_tokens: Any, **more: Any) -> Prediction:
        longer = np.asarray(prompt_tokens, dtype=np.float64)[:, None] / 4
        return Prediction.distribution(np.array([[5.0, 40.0]]) + longer, [0.4, 0.6])


@pytest.mark.parametrize("feature", ["expected_remaining_tokens", "gittins_index"])
def test_an_agent_sees_the_curves_that_policies_read(feature: str) -> None:
    env = SchedulingEnv(
        overload, slots=150, timing=TIMING, engine=ENGINE, predictor=ByPrompt(),
        features=(feature,),
    )  # fmt: skip
    policy = {"gittins_index": SchedulingPolicy(Score.from_function(gittins))}.get(
        feature, load_policy("srtf+preempt:mode=none")
    )
    for seed in range(2):
        found = played(env, seed, lambda rows: int(rows[:, 0].argmin()))
        workload = overload(seed)
        said = ByPrompt().predict([], prompt_tokens=workload["prompt_tokens"]).of_run()
        system = System.replicated(Node(ENGINE, TIMING, policy), 1, load_router("round-robin"))
        same(found, run(workload, system, said, seed=seed, backend="reference"))


def gittins(gittins_index: Any) -> Any:
    return gittins_index


@pytest.mark.parametrize(
    ("router", "features"),
    [
        ("round-robin", ("routed_requests",)),
        ("least-tokens", ("outstanding_tokens",)),
        ("jsq", ("running_requests", "waiting_requests")),
    ],
)
def test_routing_plays_known_routers(router: str, features: tuple[str, ...]) -> None:
    env = RoutingEnv(
        overload, replicas=3, timing=TIMING, engine=ENGINE, features=features, policy="sjf"
    )
    for seed in range(3):
        found = played(env, seed, lambda rows: int(rows.sum(axis=1).argmin()))
        same(found, plain(seed, "sjf", router, 3))


def random_layers(width: int, seed: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(16, width)), rng.normal(size=16)),
        (rng.normal(size=(1, 16)), rng.normal(size=1)),
    ]


def greedy(columns: Columns, seed: int) -> Callable[[NDArray[np.float64]], int]:
    """The agent's choice: the lowest output of the layers on what it is shown."""
    (first, bias), (last, offset) = random_layers(len(columns.names), seed)
    normalise = columns.normaliser().normalise

    def choose(rows: NDArray[np.float64]) -> int:
        scores = np.tanh(normalise(rows) @ first.T + bias) @ last.T + offset
        return int(scores.round(9).argmin())  # BLAS gives equal rows scores that differ by rounding

    return choose


def test_an_exported_scheduler_schedules_like_its_agent() -> None:
    names = ("predicted_tokens", "prompt_tokens", "waited_s", "waiting_requests")
    env = SchedulingEnv(overload, slots=150, timing=TIMING, engine=ENGINE, features=names)
    for seed in range(3):
        mlp, reads = env.columns.score(random_layers(len(names), seed))
        policy = SchedulingPolicy(Score("learned", mlp, reads))
        found = played(env, seed, greedy(env.columns, seed))
        same(found, plain(seed, policy, "round-robin", 1))


def test_an_exported_router_routes_like_its_agent() -> None:
    names = ("running_requests", "waiting_requests", "outstanding_tokens", "predicted_tokens")
    env = RoutingEnv(overload, replicas=3, timing=TIMING, engine=ENGINE, features=names)
    for seed in range(3):
        mlp, reads = env.columns.score(random_layers(len(names), seed))
        found = played(env, seed, greedy(env.columns, seed))
        same(found, plain(seed, "fcfs", RoutingPolicy(Score("learned", mlp, reads)), 3))


def test_columns_fold_differences_into_the_first_layer() -> None:
    """The exported score over features equals the layers over normalised columns, by hand."""
    rng = np.random.default_rng(0)
    columns = Columns.of(("predicted_tokens", "waited_s", "remaining_tokens"))
    first, last = (rng.normal(size=(4, 3)), rng.normal(size=4)), (rng.normal(size=(1, 4)), [0.3])
    mlp, names = columns.score([first, (last[0], np.array(last[1]))])
    assert names == (
        "predicted_tokens",
        "now_s",
        "arrival_s",
        "predicted_tokens",
        "generated_tokens",
    )
    n = 1000
    values = {
        "predicted_tokens": rng.uniform(1, 2000, n),
        "now_s": rng.uniform(1000, 2000, n),
        "arrival_s": rng.uniform(0, 1000, n),
        "generated_tokens": rng.integers(0, 100, n),
    }
    waited = values["now_s"] - values["arrival_s"]
    left = values["predicted_tokens"] - values["generated_tokens"]
    (_, a, b), (_, c, d), (_, e, f) = (SCALES[name] for name in columns.names)
    seen = np.stack(
        [(np.log1p(values["predicted_tokens"]) - a) / b, (waited - c) / d, (left - e) / f], axis=1
    )
    expected = np.tanh(seen @ first[0].T + first[1]) @ last[0].T + last[1]
    np.testing.assert_allclose(mlp(*(values[n] for n in names)), expected[:, 0], rtol=1e-9)
    np.testing.assert_allclose(columns.normaliser().normalise(columns.raw(values)), seen)


def left(predicted_tokens: Any, generated_tokens: Any) -> Any:
    """A score: what is left to generate."""
    return predicted_tokens - generated_tokens


def highest(rows: NDArray[np.float64], arrival: NDArray[np.float64]) -> int:
    """The worst running request, the latest of equals, if it is worse than the waiting one."""
    scores = rows[:, 0] - rows[:, 1]
    worst = max(range(len(rows) - 1), key=lambda i: (scores[i], arrival[i], -i))
    return worst if scores[worst] > scores[-1] else len(rows) - 1


@pytest.mark.parametrize("blocks", [10_000, 60])
def test_an_exported_score_preempts_like_its_agent(blocks: int) -> None:
    """With seats alone short, and with KV blocks short too."""
    timing = LinearTiming(
        base_s=0.01, per_prefill_token_s=1e-4, per_sequence_s=0.001, num_gpu_blocks=blocks
    )
    score = Score("left", left, ("predicted_tokens", "generated_tokens"))
    preemptions = 0
    for seed in range(3):
        env = PreemptionEnv(
            overload, timing=timing, engine=ENGINE, policy=SchedulingPolicy(score),
            features=("predicted_tokens", "generated_tokens", "waited_s"),
        )  # fmt: skip
        env.reset(options={"workload_seed": seed})
        done = False
        while not done:
            rows = env.candidates()
            arrival = -rows[:, 2]  # of equals at one moment, the latest has waited least
            place = highest(rows, arrival)
            _, _, done, _, info = env.step(np.flatnonzero(env.action_masks())[place])
        assert info["illegal_actions"] == 0
        exported = SchedulingPolicy(score, Preemption("recompute", price=0.0))
        node = Node(ENGINE, timing, exported)
        system = System.replicated(node, 1, load_router("round-robin"))
        workload = overload(seed)
        predicted = workload["output_tokens"]
        for backend in ("fast", "reference"):
            expected = run(workload, system, predicted, seed=seed, backend=backend)  # type: ignore[arg-type]
            same(env.records(), expected)
        preemptions += int(expected.preemptions.sum())
    assert preemptions > 20
