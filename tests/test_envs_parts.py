"""The parts of an environment by hand: what is seen and drawn, its defaults, its scenarios."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import lengthwise.envs  # noqa: F401 - registers
from lengthwise.envs import routing as routing_module
from lengthwise.envs.columns import SCALES, Columns
from lengthwise.envs.costs import cost_of, latency
from lengthwise.envs.episodes import Episode, episode_source, episodes_of, system_of
from lengthwise.envs.picture import picture
from lengthwise.envs.routing import RoutingEnv, RoutingVectorEnv
from lengthwise.envs.scenarios import PRESETS, Scenario, Scenarios, presets, read_scenarios, varied
from lengthwise.envs.task import Task, task_of
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.picoseconds import PS
from lengthwise.policies import load_policy, load_router
from lengthwise.prediction import Predictions
from lengthwise.predictors import load_predictor
from lengthwise.predictors.predict import predict
from lengthwise.serving import Engine, Node, System, Totals, run
from lengthwise.serving.draws import stream
from lengthwise.serving.events import RandomEvents
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload

# one request at a time, each a prompt of one token and then 0.1 s a token
ALONE = LinearTiming(base_s=0.1, num_gpu_blocks=10_000)
ONE: dict[str, Any] = {"timing": ALONE, "engine": Engine(max_num_seqs=1, max_num_batched_tokens=64)}


def made_of(outputs: Any, name: str = "made") -> Workload:
    n = len(outputs)
    return Workload(
        {
            "arrival_s": np.arange(n) * 1.0,
            "prompt_tokens": np.arange(1, n + 1),
            "output_tokens": np.asarray(outputs),
        },
        name=name,
    )


def served(seats: list[int]) -> System:
    policy = load_policy("fcfs")
    nodes = tuple(Node(Engine(max_num_seqs=count), ALONE, policy) for count in seats)
    return System(nodes, load_router("jsq"))


# Columns


def test_scales_are_those_that_shipped_policies_and_published_figures_were_trained_with() -> None:
    """(logarithm, what is shown as 0, distance that is shown as 1), in logarithms or units."""
    logs = {
        "predicted_tokens": (5, 1), "expected_remaining_tokens": (5, 1),
        "remaining_tokens_p90": (6, 1), "gittins_index": (5, 1), "prompt_tokens": (6, 1.5),
        "generated_tokens": (3, 2), "computed_tokens": (6, 1.5), "preemptions": (0, 1),
        "routed_requests": (4, 1), "prefill_backlog_tokens": (6, 2), "max_seats": (5, 1),
        "decode_tokens_per_s": (8, 1), "cached_tokens": (4, 2),
    }  # fmt: skip
    plain = {
        "priority": (0, 1), "running_requests": (32, 32), "waiting_requests": (8, 16),
        "kv_utilization": (0.5, 0.25), "outstanding_requests": (32, 32),
        "outstanding_tokens": (10_000, 10_000), "oldest_request_s": (5, 10),
        "decode_backlog_tokens": (5_000, 5_000), "free_seats": (32, 32), "random_draw": (0.5, 0.3),
        "waited_s": (5, 10), "slack_s": (0, 10), "remaining_tokens": (200, 200),
    }  # fmt: skip
    wanted = {name: (True, *pair) for name, pair in logs.items()}
    wanted |= {name: (False, *pair) for name, pair in plain.items()}
    assert dict(SCALES) == wanted
    for name, (log, shift, scale) in wanted.items():
        shown = Columns.of((name,)).normaliser().normalise(np.array([[shift], [shift + scale]]))
        assert log or shown.ravel().tolist() == pytest.approx([0, 1])


def test_columns_name_what_they_are_read_from() -> None:
    columns = Columns.of(
        ("waited_s", "remaining_tokens", "predicted_tokens", "slack_s"), {"slack_s": (2, 0.5)}
    )
    assert columns.names == ("waited_s", "remaining_tokens", "predicted_tokens", "slack_s")
    assert columns.reads == (
        "now_s", "arrival_s", "predicted_tokens", "generated_tokens", "deadline_s"
    )  # fmt: skip
    values = {
        "now_s": np.array([10.0, 11.0]), "arrival_s": np.array([4.0, 11.0]),
        "predicted_tokens": np.array([300, 7]), "generated_tokens": np.array([100, 9]),
        "deadline_s": np.array([12.0, 5.0]),
    }  # fmt: skip
    raw = columns.raw(values)
    assert raw.dtype == np.float64
    assert raw.tolist() == [[6, 200, 300, 2], [0, -2, 7, -6]]
    seen = columns.normaliser().normalise(raw)
    assert seen[:, 3].tolist() == [0.0, -16.0]  # (2 - 2) / 0.5 and (-6 - 2) / 0.5
    assert seen[:, 0].tolist() == pytest.approx([0.1, -0.5])
    assert seen[:, 2].tolist() == pytest.approx([np.log(301) - 5, np.log(8) - 5])


def test_a_linear_part_is_folded_like_the_first_layer() -> None:
    rng = np.random.default_rng(0)
    columns = Columns.of(("prompt_tokens", "waited_s", "slack_s"))
    weight, bias = rng.normal(size=(1, 3)), rng.normal(size=1)
    skip = rng.normal(size=3)
    score, names = columns.score([(weight, bias)], skip)
    assert names == ("prompt_tokens", "now_s", "arrival_s", "deadline_s", "now_s")
    values = [np.array([3.0, 900.0]), np.array([50.0, 51.0]), np.array([20.0, 49.0]),
              np.array([70.0, 52.0]), np.array([50.0, 51.0])]  # fmt: skip
    seen = np.stack(
        [(np.log1p(values[0]) - 6) / 1.5, (values[1] - values[2] - 5) / 10,
         (values[3] - values[4]) / 10], axis=1,
    )  # fmt: skip
    np.testing.assert_allclose(score(*values), seen @ (weight[0] + skip) + bias[0], rtol=1e-12)
    without, _ = columns.score([(weight, bias)])
    np.testing.assert_allclose(without(*values), seen @ weight[0] + bias[0], rtol=1e-12)
    assert without.skip is None and len(score.layers) == 1
    # layers after the first are left alone
    second = (rng.normal(size=(1, 2)), rng.normal(size=1))
    deep, _ = columns.score([(rng.normal(size=(2, 3)), np.zeros(2)), second], skip)
    assert deep.layers[1] == second


@pytest.mark.parametrize("scale", [(1.0,), (0, 1, 2), (np.nan, 1), (0, np.inf), (0, 0), (0, -1)])
def test_a_scale_is_a_shift_and_a_positive_number(scale: Any) -> None:
    with pytest.raises(InputError, match="scale of priority must be"):
        Columns.of(("priority",), {"priority": scale})


# Costs, episodes, pictures


def test_costs_by_name_or_as_they_are() -> None:
    assert cost_of("latency") is latency
    assert cost_of(len) is len  # type: ignore[arg-type,comparison-overlap]
    with pytest.raises(UnknownNameError, match="did you mean 'latency'"):
        cost_of("latenci")
    # two requests for three seconds, a third for half a second
    totals = Totals(now_ps=3 * PS, in_system=3, request_ps=13 * PS // 2, waiting_ps=0, finished=0,
                    generated_tokens=0, preemptions=0, recomputed_tokens=0)  # fmt: skip
    assert latency(totals) == 6.5


def test_an_episode_tells_the_ranges_that_a_policy_meets() -> None:
    workload = made_of([4, 9, 2])
    said = Predictions({"predicted_tokens": np.array([5.0, 80.0, 3.0])})
    ranges = Episode(workload, served([16, 64, 32]), said, 0, 1.0, "one").ranges
    assert ranges == {
        "prompt_tokens": (1.0, 3.0), "nodes": (3.0, 3.0), "seats": (16.0, 64.0),
        "predicted_tokens": (3.0, 80.0),
    }  # fmt: skip
    blind = Episode(workload, served([16]), None, 0, 1e-9, "one")
    assert set(blind.ranges) == {"prompt_tokens", "nodes", "seats"}
    for scale in (0.0, -1.0, np.nan):
        with pytest.raises(InputError, match="scale must be positive"):
            Episode(workload, served([16]), None, 0, scale, "one")


def test_episodes_of_one_system() -> None:
    """Scaled by their number of requests or as asked, with the run's seed, name and predictions."""
    drawn: list[int] = []

    def source(seed: int) -> Workload:
        drawn.append(seed)
        return made_of([seed + 1] * 7, name=f"drawn {seed}")

    episode = episodes_of(source)(5)
    assert (episode.seed, episode.scale, episode.name) == (5, 7.0, "drawn 5")
    assert drawn == [5] and len(episode.system.nodes) == 1
    assert episode.predictions is not None  # the oracle's
    assert episode.predictions.predicted_tokens.tolist() == [6.0] * 7
    assert episode.system.metrics_interval_s == 0.0
    assert episode.system.routing.score.name == load_router("round-robin").score.name
    node = episode.system.nodes[0]
    assert node.policy == load_policy("fcfs") and node.engine == Engine()
    assert episodes_of(source, scale=0.5, predictor=None)(5).scale == 0.5
    for scale in (0.0, -2.0, np.nan):
        with pytest.raises(InputError, match="reward_scale must be positive"):
            episodes_of(source, scale=scale)
    assert len(episodes_of("burstgpt")(0).workload) == 500
    told = inspect.signature(episodes_of).parameters
    assert {name: told[name].default for name in ("timing", "predictor", "replicas")} == {
        "timing": "h200/llama-3.1-8b", "predictor": "oracle", "replicas": 1,
    }  # fmt: skip


def test_what_serves_is_equal_replicas_or_the_nodes_that_are_named() -> None:
    plain: dict[str, Any] = {
        "timing": ALONE, "engine": {"max_num_seqs": 3}, "policy": "sjf", "router": "jsq"
    }  # fmt: skip
    three = system_of(**plain, replicas=3, metrics_interval_s=0.5)
    assert [node.engine.max_num_seqs for node in three.nodes] == [3, 3, 3]
    assert (
        three.metrics_interval_s == 0.5 and system_of(**plain, replicas=1).nodes[0].timing is ALONE
    )
    assert system_of(**plain, replicas=1).metrics_interval_s == 0.0
    named = system_of(
        **plain,
        replicas=9,
        nodes=[{"max_num_seqs": 5}, {"policy": "fcfs"}],
        metrics_interval_s=0.25,
    )
    assert [node.engine.max_num_seqs for node in named.nodes] == [5, 3]
    assert [node.policy for node in named.nodes] == [load_policy("sjf"), load_policy("fcfs")]
    assert named.metrics_interval_s == 0.25 and named.routing == load_router("jsq")
    assert system_of(**{**plain, "timing": "h200/llama-3.1-8b"}, replicas=1).nodes[0].timing


def test_workloads_by_name_by_file_and_by_function(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'burstgpt'"):
        episode_source("burstgtp", requests=20, rate=None)  # before the first episode
    by_name = episode_source("burstgpt", requests=20, rate=4.0)
    assert len(by_name(1)) == 20
    same = Workload.preset("burstgpt", requests=20, rate=4.0, seed=1)
    assert by_name(1)["arrival_s"].tolist() == same["arrival_s"].tolist()
    assert by_name(2)["arrival_s"].tolist() != same["arrival_s"].tolist()
    path = tmp_path / "trace.csv"
    made_of([3] * 30).to_frame().to_csv(path, index=False)
    by_file = episode_source(str(path), requests=10, rate=2.0)
    assert len(by_file(0)) == 10 and np.diff(by_file(0)["arrival_s"]).tolist() == pytest.approx(
        [0.5] * 9, rel=0.05
    )
    assert len(episode_source(str(path), requests=30, rate=None)(0)) == 30
    # what is no longer than asked for is played as it is, also if it begins later
    late = Workload({**made_of([3] * 5).columns, "arrival_s": 7.0 + np.arange(5)})
    for requests in (5, 6):
        assert episode_source(late, requests=requests, rate=None)(0) is late
    window = episode_source(late, requests=4, rate=None)(0)
    assert window["arrival_s"].tolist() == [0, 1, 2, 3]

    def own(seed: int) -> Workload:
        return made_of([seed] * 3)

    assert episode_source(own, requests=99, rate=9.0) is own


def test_a_picture_has_a_cell_of_24_pixels_a_number_with_lines_between() -> None:
    """Colours lie between white and full red or blue as tanh does; the third is nobody."""
    seen = np.array([[0.5, -0.25, 0.0], [3.0, -3.0, 1e9], [1.0, 1.0, 1.0]])  # (slots, F)
    drawn = picture(seen, np.array([True, True, False]))
    assert drawn.shape == (3 * 24, 3 * 24, 3) and drawn.dtype == np.uint8
    full = {True: (178, 24, 43), False: (33, 102, 172)}
    for slot in range(3):
        for feature in range(3):
            share = np.tanh(seen[slot, feature])
            end = full[bool(share >= 0)]
            wanted = [round(247 + abs(share) * (value - 247)) for value in end]
            cell = drawn[24 * feature : 24 * (feature + 1), 24 * slot : 24 * (slot + 1)]
            assert (cell[1:, 1:] == (wanted if slot < 2 else [200] * 3)).all()
            assert (cell[0] == 120).all() and (cell[:, 0] == 120).all()


# Tasks and environments


def task(**changed: Any) -> Task:
    options: dict[str, Any] = {
        "kind": "route", "source": lambda seed: None, "slots": 2, "features": ("priority",) * 1,
        "scales": None, "cost": "latency", **changed,
    }  # fmt: skip
    return task_of(options.pop("kind"), options.pop("source"), options.pop("slots"), **options)


def test_a_task_s_numbers_at_their_bounds() -> None:
    least = task()
    assert (least.bank, least.plays, least.hold_s, least.show) == (1, 1, 0.0, "first")
    assert (least.illegal_penalty, least.reward_scale, least.slots) == (1.0, None, 2)
    assert least.cost is latency
    assert task(illegal_penalty=0).illegal_penalty == 0
    assert task(reward_scale=1e-6, show="spread", bank=2, plays=3).show == "spread"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"slots": 1}, "at least 2 candidates, not 1"),
        ({"reward_scale": 0.0}, "reward_scale must be positive"),
        ({"reward_scale": np.nan}, "reward_scale must be positive"),
        ({"illegal_penalty": -0.1}, "illegal_penalty must be 0 or more"),
        ({"illegal_penalty": np.inf}, "illegal_penalty must be 0 or more"),
        ({"show": "last"}, "unknown show 'last'"),
        ({"bank": 0}, "bank and plays must be 1 or more, not 0 and 1"),
        ({"plays": 0}, "not 1 and 0"),
        ({"cost": "late"}, "unknown cost"),
        ({"scales": {"slack_s": (0, 1)}}, "feature to scale"),
    ]
    for options, message in refused:
        with pytest.raises(InputError, match=message):
            task(**options)


def test_a_task_s_observations_have_places_for_all() -> None:
    made = task(slots=3, features=("priority", "waited_s"))
    assert made.width == 3 * 2 + 3 + 4
    flat, parts = made.observation_space(True), made.observation_space(False)
    assert flat == spaces.Box(-1e6, 1e6, (13,), np.float32)
    assert parts == spaces.Dict(
        candidates=spaces.Box(-1e6, 1e6, (6,), np.float32), mask=spaces.MultiBinary(3),
        state=spaces.Box(-1e6, 1e6, (4,), np.float32),
    )  # fmt: skip


COMMON = {
    "workload": "azure-conv-2023", "scenarios": None, "requests": 500, "rate": None,
    "timing": "h200/llama-3.1-8b", "engine": None, "predictor": "oracle", "scales": None,
    "cost": "latency", "reward_scale": None, "illegal_penalty": 1.0, "bank": 4, "plays": 16,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "Scheduling": {
        **COMMON, "slots": 64, "show": "spread", "replicas": 1, "nodes": None,
        "router": "round-robin", "features": ("predicted_tokens", "prompt_tokens", "waited_s"),
    },
    "Routing": {
        **COMMON, "replicas": 4, "nodes": None, "metrics_interval_s": 0.0, "policy": "fcfs",
        "hold": False, "hold_s": 0.02,
        "features": ("running_requests", "waiting_requests", "outstanding_tokens",
                     "kv_utilization"),
    },
    "Preemption": {
        **COMMON, "engine": Engine(max_num_seqs=12), "slots": None, "replicas": 1,
        "router": "round-robin", "policy": "sjf",
        "features": ("predicted_tokens", "generated_tokens", "computed_tokens", "prompt_tokens",
                     "waited_s"),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_environments_tell_their_options_and_defaults(name: str) -> None:
    spec = gymnasium.spec(f"lengthwise/{name}-v1")
    single, vector = (
        _loaded(spec.entry_point), _loaded(spec.vector_entry_point)
    )  # fmt: skip
    extra = {"flat": None, "render_mode": None}
    for kind, more in ((single, extra), (vector, {**extra, "num_envs": None, "copy": None,
                                                  "autoreset_mode": None})):  # fmt: skip
        told = inspect.signature(kind).parameters
        assert {key: one.default for key, one in told.items()} == {**OPTIONS[name], **more}
        assert all(told[key].kind is inspect.Parameter.KEYWORD_ONLY for key in more)
        assert kind.metadata == {"render_modes": ["ansi", "rgb_array"], "render_fps": 1}


def _loaded(entry: Any) -> Any:
    module, _, name = str(entry).partition(":")
    return getattr(__import__(module, fromlist=[name]), name)


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
def test_the_first_versions_draw_a_new_episode_each_time() -> None:
    small = {"workload": lambda seed: made_of([3] * 20), "timing": ALONE}
    for name, slots, show in (("Scheduling", 32, "first"), ("Routing", 4, "first")):
        env: Any = gymnasium.make(f"lengthwise/{name}-v0", **small).unwrapped
        game = env.vector.game
        assert (game.slots, game.show, game.bank, game.plays) == (slots, show, 1, 1)
        # what is given stands
        env = gymnasium.make(f"lengthwise/{name}-v0", **small, bank=3).unwrapped
        assert env.vector.game.bank == 3


def vector(name: str, **options: Any) -> Any:
    given: dict[str, Any] = {
        "workload": lambda seed: made_of([3 + seed % 5] * 20),
        "timing": ALONE,
        **options,
    }
    return gymnasium.make_vec(f"lengthwise/{name}-v1", **given)


def test_how_many_can_be_chosen() -> None:
    assert vector("Preemption", engine={"max_num_seqs": 5}).game.slots == 6
    assert vector("Preemption", engine={"max_num_seqs": 5}, slots=9).game.slots == 9
    assert vector("Routing", replicas=2).game.slots == 2
    held = vector("Routing", replicas=2, hold=True, hold_s=1e6).game
    assert (held.slots, held.hold_s) == (3, 1e6)
    assert vector("Routing", hold_s=-1.0).game.hold_s == 0.0  # not asked for
    for hold_s in (0.0, -1.0, 1.1e6, np.nan):
        with pytest.raises(InputError, match="hold_s must be above 0 and at most 1e"):
            vector("Routing", hold=True, hold_s=hold_s)
    fleet = vector("Routing", nodes=[{"count": 2}, {"speed": 0.5}], metrics_interval_s=0.5)
    assert fleet.game.slots == 3
    fleet.reset(seed=0)
    assert len(fleet.drawn(0).system.nodes) == 3 and fleet.drawn(0).system.metrics_interval_s == 0.5
    for few in ({"replicas": 1}, {"replicas": 0}, {"nodes": [{}]}):
        with pytest.raises(InputError, match="a choice needs at least 2 candidates"):
            vector("Routing", **few)
    # a set of scenarios stands in for the rest, but for how many nodes there are at most
    episode = Episode(made_of([3] * 20), served([4, 4, 4]), None, 0, 1.0, "given")
    seen = ("running_requests", "free_seats")
    given = vector("Routing", scenarios=lambda seed: episode, replicas=5, features=seen)
    given.reset(seed=0)
    assert given.game.slots == 5 and given.drawn(0).name == "given"
    assert given.action_masks().tolist() == [[True] * 3 + [False] * 2]


def test_environments_take_what_serves_from_their_options() -> None:
    options: dict[str, Any] = {"engine": {"max_num_seqs": 4}, "requests": 20, "rate": 50.0,
                               "workload": "burstgpt",
                               "predictor": "noisy-oracle:sigma=1,seed=3"}  # fmt: skip
    routing = vector("Routing", policy="srtf", replicas=2, **options)
    scheduling = vector("Scheduling", router="jsq", replicas=2, **options)
    preempting = vector("Preemption", router="jsq", policy="hrrn", replicas=2, **options)
    for env, policy in ((routing, "srtf"), (scheduling, "fcfs"), (preempting, "hrrn")):
        env.reset(seed=0, options={"workload_seed": 6})
        drawn = env.drawn(0)
        assert drawn.system.routing == load_router("jsq")
        assert [node.policy for node in drawn.system.nodes] == [load_policy(policy)] * 2
        assert [node.engine.max_num_seqs for node in drawn.system.nodes] == [4, 4]
        same = Workload.preset("burstgpt", requests=20, rate=50.0, seed=6)
        assert drawn.workload["arrival_s"].tolist() == same["arrival_s"].tolist()
        said = drawn.predictions.predicted_tokens
        assert not np.array_equal(said, same["output_tokens"])
        assert (drawn.scale, drawn.seed) == (20.0, 6)


# A single environment


def test_a_single_environment_s_step_by_step() -> None:
    env: Any = gymnasium.make(
        "lengthwise/Routing-v1", workload=lambda seed: made_of([30] * 6), timing=ALONE, replicas=2,
        engine={"max_num_seqs": 2}, illegal_penalty=0.5,
    ).unwrapped  # fmt: skip
    seen, info = env.reset(seed=0)
    assert set(seen) == {"candidates", "mask", "state"}  # flat is asked for
    assert info == {"now_s": 0.0, "illegal_actions": 0}
    assert all(not isinstance(value, np.generic) for value in info.values())
    seen["mask"][:] = 0  # the caller's to change
    assert env.action_masks().tolist() == [True, True]
    env.action_masks()[:] = False
    assert env.action_masks().tolist() == [True, True]
    assert env.render() is None
    for action in (np.int64(1), 0, 1, 0, 1, 1.0):
        _, reward, ended, truncated, info = env.step(action)
        assert type(reward) is float and type(ended) is bool and truncated is False
    assert ended and set(info) == {"now_s", "illegal_actions", "mean_latency_s", "scenario"}
    assert info["scenario"] == "made"
    assert [int(node) for node in env.records().replica] == [1, 0, 1, 0, 1, 1]
    assert info["now_s"] == env.records().finish_ps.max() / 1e12 == env.totals.now_ps / 1e12


def test_seeds_begin_a_single_environment_s_episodes_anew() -> None:
    """With a bank of several, as without; without a seed they go on."""
    draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence(3))).integers
    first = [int(draws(2**31)) for _ in range(2)]
    env: Any = gymnasium.make(
        "lengthwise/Routing-v1", workload=lambda seed: made_of([3 + seed % 5] * 6), timing=ALONE,
        replicas=2, bank=4, plays=16,
    ).unwrapped  # fmt: skip
    told = []
    for seed in (3, None, 3, None, 4):
        env.reset(seed=seed)
        told.append(env.vector.drawn(0).seed)
    assert told[:4] == first * 2 and told[4] not in first


def test_a_single_environment_is_reset_before_its_first_step() -> None:
    env: Any = gymnasium.make(
        "lengthwise/Routing-v1", workload=lambda seed: made_of([30] * 3), timing=ALONE, replicas=2
    ).unwrapped
    with pytest.raises(InputError, match="no run is under way"):
        env.step(0)
    env.reset(seed=0)
    for _ in range(3):
        ended = env.step(0)[2]
    assert ended
    with pytest.raises(InputError, match="no run is under way"):
        env.step(0)


def test_environments_of_ones_own_may_have_another_parent() -> None:
    """Which hears of its subclasses, as Python's own classes do."""
    heard: list[type] = []

    class Listed:
        def __init_subclass__(cls, **given: Any) -> None:
            super().__init_subclass__(**given)
            heard.append(cls)

    class Own(RoutingEnv, Listed):
        pass

    class Many(RoutingVectorEnv, Listed):
        pass

    assert heard == [Own, Many] and "replicas" in inspect.signature(Own).parameters


# Vector environments


def test_environments_of_a_vector_are_seeded_one_by_one() -> None:
    env = vector("Routing", num_envs=3, replicas=2)

    def drawn(seed: Any, **options: Any) -> list[int]:
        env.reset(seed=seed, options=options or None)
        return [env.drawn(k).seed for k in range(3)]

    apart = drawn(5)
    assert drawn([5, 6, 7]) == apart == drawn(np.int64(5)) and len(set(apart)) == 3
    assert drawn([7, 6, 5]) == apart[::-1]
    again = drawn([5, None, 7])
    assert again[0] == apart[0] and again[2] == apart[2] and again[1] != apart[1]
    assert drawn(None, workload_seed=12) == [12] * 3
    assert 12 not in drawn(None)  # asked for once
    # with episodes ahead in a bank as well: what was drawn is forgotten
    banked = vector("Routing", num_envs=2, replicas=2, bank=3, plays=9)
    banked.reset(seed=5)
    first = [banked.drawn(k).seed for k in range(2)]
    banked.reset(options={"workload_seed": 12})
    assert [banked.drawn(k).seed for k in range(2)] == [12, 12]
    banked.reset(seed=[5, None])
    assert banked.drawn(0).seed == first[0] and banked.drawn(1).seed not in (12, first[1])
    with pytest.raises(InputError, match="seeds must be 3, one an environment, not 2"):
        env.reset(seed=[1, 2])


def test_where_a_vector_is_reset_is_told() -> None:
    env = vector("Routing", num_envs=2, replicas=2, autoreset_mode="Disabled",
                 workload=lambda seed: made_of([3] * 4))  # fmt: skip
    _, info = env.reset(seed=0)
    assert {name: value.tolist() for name, value in info.items()} == {
        "now_s": [0, 0], "_now_s": [True, True], "illegal_actions": [0, 0],
        "_illegal_actions": [True, True],
    }  # fmt: skip
    env.step(np.array([1, 0], np.uint8))
    before = env.drawn(0).seed
    _, info = env.reset(options={"reset_mask": np.array([False, True])})
    assert env.drawn(0).seed == before  # and its run goes on
    assert info["now_s"].tolist() == [0, 0] and info["_now_s"].tolist() == [False, True]
    _, _, _, _, info = env.step(np.array([0, 0]))
    assert info["now_s"].tolist() == [2.0, 1.0]
    for wrong in ([True], np.array([1, 0]), np.array([[True, False]])):
        with pytest.raises(InputError, match="reset_mask must be 2 truth values"):
            env.reset(options={"reset_mask": wrong})


def test_the_end_of_an_episode_is_told_where_it_ended() -> None:
    """Of two environments, with episodes of four and six requests."""
    lengths = iter([4, 6, 4, 6, 4, 6, 4, 6])
    for mode in ("NEXT_STEP", "SAME_STEP"):
        env = vector(
            "Routing", num_envs=2, replicas=2, autoreset_mode=mode, bank=1, plays=1,
            workload=lambda seed: made_of([3] * next(lengths), "n"),
        )  # fmt: skip
        env.reset(seed=0)
        for step in range(1, 5):
            seen, rewards, ended, _, info = env.step(np.array([step % 2, 0]))
        assert ended.tolist() == [True, False] and rewards.dtype == np.float64
        end = info if mode == "NEXT_STEP" else info["final_info"]
        assert end["scenario"].tolist() == ["n", None]
        assert end["_scenario"].tolist() == end["_mean_latency_s"].tolist() == [True, False]
        assert end["mean_latency_s"][0] > 0 == end["mean_latency_s"][1]
        if mode == "NEXT_STEP":
            assert "final_obs" not in info and info["now_s"].tolist() == pytest.approx([3.3, 4.0])
            continue
        assert end["now_s"].tolist() == pytest.approx([3.3, 0]) and end[
            "illegal_actions"
        ].tolist() == [0, 0]
        assert end["_now_s"].tolist() == end["_illegal_actions"].tolist() == [True, False]
        assert info["_final_obs"].tolist() == info["_final_info"].tolist() == [True, False]
        assert info["final_obs"][1] is None
        assert not any(part.any() for part in info["final_obs"][0].values())
        assert info["now_s"].tolist() == [0.0, 4.0]  # the next episode's
        assert seen["mask"].tolist() == [[1, 1], [1, 1]]


def test_one_vector_or_its_parts_copies_or_not() -> None:
    flat = vector("Routing", replicas=2, num_envs=2, flat=True, copy=True)
    parts = vector("Routing", replicas=2, num_envs=2, copy=True)
    for _ in range(2):
        whole, _ = flat.reset(seed=0)
        some, _ = parts.reset(seed=0)
    assert flat.single_observation_space.shape == (2 * 4 + 2 + 4,)
    assert (flat.num_envs, flat.flat, flat.copy, parts.flat) == (2, True, True, False)
    joined = np.concatenate([some["candidates"], some["mask"], some["state"]], axis=1)
    np.testing.assert_array_equal(whole, joined)
    held, _ = parts.reset(seed=0)
    kept = {name: part.copy() for name, part in held.items()}
    for _ in range(3):
        flat.step(np.array([0, 1]))
        parts.step(np.array([0, 1]))
    for name, part in held.items():
        np.testing.assert_array_equal(part, kept[name])
    plain = vector("Routing", replicas=2)
    assert (plain.num_envs, plain.flat, plain.copy, plain.render_mode) == (1, False, False, None)
    assert plain.metadata["autoreset_mode"].name == plain.autoreset_mode.name == "NEXT_STEP"
    assert plain.single_action_space == spaces.Discrete(2)
    first, _ = plain.reset(seed=0)
    first["more"] = 1  # the caller's dict
    assert "more" not in plain.step(np.array([0]))[0]


def test_what_is_rendered_and_what_is_raw() -> None:
    env = vector("Routing", num_envs=2, replicas=2, hold=True, render_mode="ansi",
                 features=("running_requests", "prompt_tokens"))  # fmt: skip
    env.reset(seed=0)
    env.step(np.array([1, 0]))
    line = "t=1.000000s: 3 candidates, 1 requests in the system"
    busy = "t=1.000000s: 3 candidates, 2 requests in the system"
    assert set(env.render()) <= {line, busy}
    # the last action is to wait; it has no row
    assert env.raw(0).shape == (2, 2)
    assert vector("Routing", replicas=2).render() is None
    pictured = vector("Routing", replicas=2, render_mode="rgb_array")
    pictured.reset(seed=0)
    rows = pictured.many.flat[0, :8].reshape(2, 4)
    np.testing.assert_array_equal(pictured.render()[0], picture(rows, np.array([True, True])))


def test_a_cost_of_python_s_is_paid_as_it_grows() -> None:
    """Requests in the system when each choice is due, at two scales, over two episodes."""
    options: dict[str, Any] = {"workload": lambda seed: made_of([30] * 5), "replicas": 2, "bank": 1,
                               "plays": 1, "engine": {"max_num_seqs": 8}}  # fmt: skip
    env = vector("Routing", cost=lambda totals: float(totals.now_ps / 1e12), **options)
    env.reset(seed=0)
    for _ in range(2):
        paid = []
        for _ in range(5):
            _, rewards, ended, _, info = env.step(np.array([0]))
            paid.append(float(rewards[0]))
        assert ended[0] and paid[:4] == pytest.approx([-1 / 5] * 4)  # a second each, over 5
        assert sum(paid) == pytest.approx(-info["now_s"][0] / 5)
        env.step(np.array([0]))  # begins the next
    scaled = vector("Routing", cost=lambda totals: float(totals.now_ps / 1e12), reward_scale=2.0,
                    **options)  # fmt: skip
    scaled.reset(seed=0)
    assert scaled.step(np.array([0]))[1].tolist() == pytest.approx([-0.5])
    scaled.reset(seed=1)  # in the middle: nothing is owed
    assert scaled.step(np.array([0]))[1].tolist() == pytest.approx([-0.5])


# Scenarios


def test_capacity_is_counted_from_a_tenth_to_nine_tenths_of_the_answers() -> None:
    """One after the other, each longer than the last: answers 4 to 36 of 0 to 40."""
    outputs = np.arange(1, 42)
    asked: list[int] = []

    def source(seed: int) -> Workload:
        asked.append(seed)
        return made_of(outputs).replace(deadline_s=np.arange(41) + 0.5)

    scenario = Scenario("one", source, **ONE)
    done = 0.1 * np.cumsum(outputs)
    assert scenario.capacity == pytest.approx(32 / (done[36] - done[4]), rel=1e-9)
    assert asked == [2**31 - 1]
    assert scenario.capacity and len(asked) == 1  # kept
    alike = made_of([3] * 41).replace(prompt_tokens=np.ones(41, int))
    at_once = Scenario("all", alike, timing=ALONE, engine=Engine(max_num_seqs=64))
    assert at_once.capacity == pytest.approx(32 / 1e-9)  # no time between


def test_capacity_is_first_come_first_served_whatever_the_policy() -> None:
    outputs = np.r_[np.full(20, 9), np.full(21, 1)]
    ours = Scenario("sjf", made_of(outputs), requests=41, policy="sjf", **ONE)
    done = 0.1 * np.cumsum(outputs)
    assert ours.capacity == pytest.approx(32 / (done[36] - done[4]), rel=1e-9)


def test_an_episode_of_a_scenario_has_its_parts() -> None:
    given = {"fail_every_s": 5.0, "fail_for_s": 2.0}
    scenario = Scenario("all", made_of(np.arange(1, 41)), requests=40, rate=4.0, predictor="oracle",
                        timing=ALONE, engine={"max_num_seqs": 2}, replicas=2, policy="sjf",
                        router="least-tokens", metrics_interval_s=0.5, failures=given)  # fmt: skip
    episode = scenario(9)
    assert (episode.seed, episode.name) == (9, "all")
    assert episode.workload.rate == pytest.approx(4.0)
    assert episode.predictions is not None
    assert episode.predictions.predicted_tokens.tolist() == list(range(1, 41))
    span_s = float(episode.workload["arrival_s"].max())
    wanted = RandomEvents.of(given).draw(stream(9, 0xFA11), 2, span_s)
    assert episode.system.events == wanted and wanted
    assert episode.system.metrics_interval_s == 0.5
    assert episode.system.routing == load_router("least-tokens")
    # rewards are divided by the sum of latencies of one run of what serves
    made = scenario._episode(2**31 - 1, 1.0)
    records = run(made.workload, made.system, made.predictions, seed=2**31 - 1)
    assert episode.scale == pytest.approx(
        float((records.finish_ps - records.arrival_ps).sum()) / 1e12, rel=1e-12
    )
    told = inspect.signature(Scenario).parameters
    defaults = {name: one.default for name, one in told.items() if name not in ("name", "workload")}
    assert defaults == {
        "requests": 2000, "load": None, "rate": None, "predictor": "noisy-oracle:tau=0.5",
        "timing": "h200/llama-3.1-8b", "engine": None, "replicas": 1, "nodes": None,
        "policy": "fcfs", "router": "jsq", "metrics_interval_s": 0.0, "span": (0.0, 1.0),
        "prompt_factor": 1.0, "output_factor": 1.0, "failures": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"load": 0}, "load must be above 0"), ({"load": np.inf}, "load must be above 0"),
        ({"load": np.nan}, "load must be above 0"), ({"load": True}, "load must be above 0"),
        ({"rate": "2"}, "rate must be above 0"), ({"rate": -1.0}, "rate must be above 0"),
        ({"output_factor": 0.0}, "output_factor must be above 0"),
        ({"prompt_factor": None}, None), ({"load": 1, "rate": 1}, "not both"),
        ({"requests": 9}, "whole number of at least 10 and up to 10000000, not 9"),
        ({"requests": 10}, None), ({"requests": 10**7}, None),
        ({"requests": 10**7 + 1}, "up to 10000000, not 10000001"),
        ({"requests": 10.0}, "not 10.0"), ({"requests": True}, "not True"),
        ({"span": (0, 1)}, None), ({"span": (0.5, 0.5)}, "two shares"),
        ({"span": (0.5, 1.01)}, "two shares"), ({"span": (-0.1, 1)}, "two shares"),
        ({"span": (0, 0.5, 1)}, "two shares"), ({"span": (0,)}, "two shares"),
        ({"span": (0, "1")}, "two shares"), ({"span": (False, 1)}, "two shares"),
    ],
)  # fmt: skip
def test_a_scenario_s_numbers_at_their_bounds(given: dict[str, Any], message: str | None) -> None:
    if message is None:
        Scenario("s", "burstgpt", **given)
        return
    with pytest.raises(InputError, match=f"scenario 's': .*{message}"):
        Scenario("s", "burstgpt", **given)


def test_a_span_holds_ten_requests_or_more() -> None:
    trace = made_of(np.arange(1, 41))
    ten = Scenario("ten", trace, span=(0.25, 0.5), predictor=None, **ONE)(0).workload
    assert ten["output_tokens"].tolist() == list(range(11, 21))
    with pytest.raises(InputError, match=r"span \(0.25, 0.475\) holds 9 of the 40 requests"):
        Scenario("nine", trace, span=(0.25, 0.475), **ONE)(0)


def test_lengths_are_multiplied_rounded_and_bounded(tmp_path: Path) -> None:
    trace = made_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 1000])

    def drawn(**factors: float) -> tuple[list[int], list[int]]:
        one = Scenario("s", trace, requests=10, predictor=None, **factors, **ONE)._source(0)  # type: ignore[arg-type]
        assert one["output_tokens"].dtype == np.int64
        return one["prompt_tokens"].tolist(), one["output_tokens"].tolist()

    same = list(range(1, 11))
    assert drawn(output_factor=0.4) == (same, [1, 1, 1, 2, 2, 2, 3, 3, 4, 400])
    assert drawn(prompt_factor=0.25) == (
        [1, 1, 1, 1, 1, 2, 2, 2, 2, 2], trace["output_tokens"].tolist()
    )  # fmt: skip
    assert drawn(prompt_factor=13_000)[0] == [13_000 * k for k in range(1, 10)] + [120_000]
    assert drawn(output_factor=12.5)[1][-1] == 12_000
    path = tmp_path / "trace.csv"
    trace.to_frame().to_csv(path, index=False)
    again = Scenario("file", str(path), span=(0.0, 1.0), requests=10, predictor=None, **ONE)
    assert again._source(0)["prompt_tokens"].tolist() == same


def test_a_set_of_scenarios() -> None:
    mixed = Scenarios([Scenario(f"at {k}", "burstgpt", load=k) for k in (0.9, 0.5, 0.7)])
    assert len(mixed) == 3 and [one.name for one in mixed] == ["at 0.9", "at 0.5", "at 0.7"]
    assert mixed.loads == (0.5, 0.9)
    assert Scenarios([*mixed, Scenario("rate", "burstgpt", rate=1.0)]).loads is None
    with pytest.raises(InputError, match="at least one"):
        Scenarios([])
    names = [one.name for one in presets((0.5, 1.0))]
    assert names == [f"{name} at {load}" for name in PRESETS for load in ("0.5", "1")]
    assert (
        next(iter(presets(engine=Engine(max_num_seqs=2)))).system.nodes[0].engine.max_num_seqs == 2
    )


def test_varied_scenarios_change_round_by_round() -> None:
    """Factors in every other round over the workloads; loads and predictors over their ranges."""
    some = varied(("burstgpt", made_of([3] * 20, "own")), count=8)
    assert [one.name for one in some] == [
        f"{k}: {'own' if k % 2 else 'burstgpt'}" for k in range(8)
    ]
    assert [one.prompt_factor != 1 for one in some] == [False, False, True, True] * 2
    assert [one.output_factor != 1 for one in some] == [False, False, True, True] * 2
    assert varied(count=5).items == varied(count=5, seed=0).items
    many = varied(count=600)
    loads = np.array([one.load for one in many])
    assert 0.5 <= loads.min() < 0.55 and 1.16 < loads.max() <= 1.2
    most = [one.predictor for one in many]
    assert {spec: round(4 * most.count(spec) / 600) for spec in set(most)} == {
        "oracle": 1, "noisy-oracle:tau=0.7": 1, "noisy-oracle:tau=0.5": 1,
        "noisy-oracle:tau=0.3": 1,
    }  # fmt: skip
    # uniform in the logarithm, and written with three digits
    for name, low, high in (("prompt_factor", 0.2, 20), ("output_factor", 0.3, 3)):
        drawn = [getattr(one, name) for one in many if getattr(one, name) != 1]
        assert np.mean(np.log(drawn)) == pytest.approx(np.log(low * high) / 2, abs=0.2)
        assert all(value == float(f"{value:.3g}") for value in drawn)
    assert [one.requests for one in varied(count=2, requests=50)] == [50, 50]
    fleets = varied(("burstgpt",), count=300, fleet=True)
    own = [one for one in fleets if len(one.nodes) == 4]  # type: ignore[arg-type]
    assert 0.3 < len(own) / 300 < 0.5
    ages = [one.metrics_interval_s for one in own]
    assert {age: round(4 * ages.count(age) / len(own)) for age in set(ages)} == {
        0.0: 1, 0.25: 1, 1.0: 1, 2.0: 1
    }  # fmt: skip
    assert all(one.engine is None for one in fleets)


def written(tmp_path: Path, said: Any) -> Path:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(said))
    return path


def test_scenarios_of_a_file_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"workload": ["burstgpt", "reasoning"], "load": [0.8, 1.0], "predictor": ["oracle", None]},
        {"workload": "sharegpt", "load": 0.9},
        {"workload": "sharegpt", "rate": 2.0},
        {"workload": "sharegpt", "load": [0.5]},
        {"name": "x", "workload": ["burstgpt", "reasoning"], "load": 0.9},
        {"name": "y", "workload": "burstgpt", "rate": [1, 2]},
        {"name": "z", "workload": "burstgpt", "load": 0.9, "span": [0, 1]},
    ]
    assert [one.name for one in read_scenarios(written(tmp_path, rows))] == [
        *(f"{w}, {load}, {p}" for w in ("burstgpt", "reasoning") for load in (0.8, 1.0)
          for p in ("oracle", None)),
        "sharegpt, 0.9", "sharegpt", "sharegpt, 0.5", "x, burstgpt", "x, reasoning", "y, 1", "y, 2",
        "z",
    ]  # fmt: skip
    shared = {"defaults": {"requests": 50}, "scenarios": [{"workload": "burstgpt"},
              {"workload": "reasoning", "requests": 60}]}  # fmt: skip
    assert [one.requests for one in read_scenarios(written(tmp_path, shared))] == [50, 60]
    assert len(read_scenarios("varied")) == len(read_scenarios("varied-unequal")) == 64
    assert all(len(one.system.nodes) == 4 for one in list(read_scenarios("varied-unequal"))[:5])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"workload": 3}, "scenario 1 in .*: workload can't be 3"),
        ({"timing": 3}, "timing can't be 3"), ({"policy": 3}, "policy can't be 3"),
        ({"router": None}, "router can't be None"), ({"predictor": 3}, "predictor can't be 3"),
        ({"engine": "x"}, "engine can't be 'x'"), ({"nodes": 3}, "nodes can't be 3"),
        ({"span": "ab"}, "span can't be 'ab'"), ({"load": "x"}, "^scenario 'burstgpt, x': load"),
        ({"replicas": 0}, "^scenario 1 in .*set.json: .*replicas"),
        ({"policy": "sfj"}, "did you mean 'sjf'"), ({"predictor": "orakle"}, "'oracle'"),
        ({"span": [0, 2]}, "^scenario 'burstgpt': span must be"),
    ],
)  # fmt: skip
def test_entries_that_can_t_be_are_told_with_their_place(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    good = {"workload": "burstgpt", "name": "good"}
    with pytest.raises(InputError, match=message):
        read_scenarios(written(tmp_path, [good, {"workload": "burstgpt", **row}]))


def test_files_that_hold_something_else_are_told(tmp_path: Path) -> None:
    wrong: tuple[Any, ...] = (
        {"defaults": [], "scenarios": []},
        {"scenarios": {}},
        {"defaults": {}},
        3,
    )
    for said in wrong:
        with pytest.raises(InputError, match=r"set\.json: expected a list of scenarios") as caught:
            read_scenarios(written(tmp_path, said))
        assert len(str(caught.value)) <= 200
    with pytest.raises(InputError) as caught:
        read_scenarios(written(tmp_path, {"scenarios": "x" * 500}))
    assert len(str(caught.value)) == 200
    with pytest.raises(
        UnknownNameError, match=r"unknown key 'default' of .*did you mean 'defaults'"
    ):
        read_scenarios(written(tmp_path, {"default": {}, "scenarios": []}))


def test_a_set_draws_each_scenario_at_the_seed_itself() -> None:
    """Not at a part of it: what is held out by its seed would be drawn for another one."""

    class Told:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, seed: int) -> tuple[str, int]:
            return self.name, seed

    items: Any = [Told("a"), Told("b"), Told("c")]
    source = Scenarios(items)
    assert [source(seed) for seed in (0, 4, 2**31 + 1)] == [
        ("a", 0), ("b", 4), ("abc"[(2**31 + 1) % 3], 2**31 + 1),
    ]  # fmt: skip


def test_an_episode_is_its_seed_s_workload_at_the_load_and_its_seed_s_predictions() -> None:
    scenario = Scenario(
        "x", "burstgpt", load=0.8, requests=30, predictor="noisy-oracle:tau=0.5",
        engine=Engine(max_num_seqs=4, num_gpu_blocks=9000), timing=LinearTiming(0.01),
    )  # fmt: skip
    noisy = load_predictor("noisy-oracle:tau=0.5")
    for seed in (3, 4):
        made = scenario(seed)
        drawn = Workload.preset("burstgpt", requests=30, seed=seed)
        expected = drawn.at_rate(0.8 * scenario.capacity)
        for name in ("arrival_s", "prompt_tokens", "output_tokens"):
            assert made.workload[name].tolist() == expected[name].tolist()
        said = [predict(noisy, expected, by) for by in (seed, 7 - seed)]
        tokens = [
            one.columns["predicted_tokens"].tolist() for one in (made.predictions, *said) if one
        ]
        assert tokens[0] == tokens[1] != tokens[2]
        assert made.seed == seed and made.scale == scenario.scale


@pytest.mark.parametrize("given", [{"replicas": 1}, {"replicas": 1, "hold": True}])
def test_a_choice_among_one_replica_is_none(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^a choice needs at least 2 candidates, not 1$"):
        routing_module.routing(**given)
