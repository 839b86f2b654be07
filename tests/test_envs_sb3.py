"""The stable-baselines3 adapter, held against ``DummyVecEnv`` over the same environments."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from lengthwise.envs.sb3 import SB3VecEnv
from lengthwise.errors import InputError


class Corridor(gymnasium.Env[Any, Any]):
    """Walk right to the end of five cells; cut off after eight steps. Staying put at an end is
    masked out."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012 - Gymnasium's

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(
            {"cell": spaces.Box(0, 4, (1,), np.float32), "mask": spaces.MultiBinary(2)}
        )
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.cell, self.steps = int(self.np_random.integers(3)), 0
        return self._seen(), {"cell": self.cell}

    def step(self, action: Any) -> Any:
        self.cell = max(0, self.cell + (1 if action else -1))
        self.steps += 1
        done = self.cell == 4
        cut = self.steps >= 8
        return self._seen(), float(done), done, cut, {"cell": self.cell, "steps": self.steps}

    def action_masks(self) -> Any:
        return np.array([self.cell > 0, True])

    def render(self) -> Any:
        return np.full((4, 4, 3), self.cell, np.uint8)

    def _seen(self) -> dict[str, Any]:
        return {
            "cell": np.array([self.cell], np.float32),
            "mask": self.action_masks().astype(np.int8),
        }


def vector(count: int = 3, make: Callable[[], Any] = Corridor, **options: Any) -> SyncVectorEnv:
    options = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False, **options}
    return SyncVectorEnv([make] * count, **options)


def test_the_same_as_stable_baselines3s_own() -> None:
    """Observations, rewards, ends, final observations and infos, over many episodes."""
    ours, theirs = SB3VecEnv(vector()), DummyVecEnv([Corridor] * 3)  # type: ignore[list-item]
    ours.seed(5)
    theirs.seed(5)
    rng, ends, cuts = np.random.default_rng(0), 0, 0
    before, expected = ours.reset(), theirs.reset()
    assert isinstance(before, dict) and isinstance(expected, dict)
    assert ours.reset_infos == theirs.reset_infos
    for _ in range(300):
        actions = rng.integers(0, 2, 3)
        kept = {name: value.copy() for name, value in before.items()}
        after, rewards, done, infos = ours.step(actions)
        expected, wanted_rewards, wanted_done, wanted = theirs.step(actions)
        assert isinstance(after, dict) and isinstance(expected, dict)
        for name in expected:
            np.testing.assert_array_equal(after[name], expected[name])
            np.testing.assert_array_equal(before[name], kept[name])  # it is the caller's to keep
        np.testing.assert_array_equal(rewards, wanted_rewards)
        np.testing.assert_array_equal(done, wanted_done)
        for i in range(3):
            # where an episode ended, stable-baselines3 tells of the one that ended
            assert (
                infos[i]["TimeLimit.truncated"] == wanted[i]["TimeLimit.truncated"]
                if done[i]
                else "terminal_observation" not in infos[i]
            )
            if done[i]:
                last, wanted_last = (x[i]["terminal_observation"] for x in (infos, wanted))
                assert {k: v.tolist() for k, v in last.items()} == {
                    k: v.tolist() for k, v in wanted_last.items()
                }
            assert {k: infos[i][k] for k in ("cell", "steps")} == {
                k: wanted[i][k] for k in ("cell", "steps")
            }
        ends, cuts = (
            ends + int(done.sum()),
            cuts + sum(bool(info.get("TimeLimit.truncated")) for info in infos),
        )
        masks = np.stack(ours.env_method("action_masks"))
        np.testing.assert_array_equal(masks, np.stack(theirs.env_method("action_masks")))
        before = after
    assert ends > 50 and cuts > 5


def test_masks_by_name() -> None:
    made = SB3VecEnv(vector())
    made.reset()
    assert is_masking_supported(made)
    assert get_action_masks(made).shape == (3, 2)
    assert len(made.env_method("action_masks", indices=[0, 2])) == 2
    other = SB3VecEnv(vector(make=lambda: gymnasium.make("CartPole-v1")))
    assert not is_masking_supported(other)


def test_attributes_pictures_and_pickles() -> None:
    made = SB3VecEnv(vector(make=lambda: Corridor("rgb_array")))
    made.reset()
    assert made.render_mode == "rgb_array"
    assert made.get_attr("steps") == [0, 0, 0]
    made.set_attr("steps", 7)
    assert made.get_attr("steps", indices=1) == [7]
    picture = made.render()
    assert picture is not None and picture.shape[2] == 3
    with pytest.raises(AttributeError):
        made.get_attr("nothing")
    with pytest.raises(InputError, match="for all at once"):
        made.set_attr("steps", 7, indices=0)
    plain = SB3VecEnv(vector())
    plain.seed(3)
    again = pickle.loads(pickle.dumps(plain))
    first, second = plain.reset(), again.reset()
    assert isinstance(first, dict) and isinstance(second, dict)
    assert first["cell"].tolist() == second["cell"].tolist()


def test_another_autoreset_mode_is_refused() -> None:
    with pytest.raises(InputError, match="SAME_STEP, not NEXT_STEP"):
        SB3VecEnv(vector(autoreset_mode=AutoresetMode.NEXT_STEP))


def reaches_the_end(model: Any, masks: bool) -> bool:
    env = Corridor()
    for seed in range(5):
        seen, _ = env.reset(seed=seed)
        done = False
        for _ in range(4):
            more = {"action_masks": env.action_masks()} if masks else {}
            action, _ = model.predict(seen, deterministic=True, **more)
            seen, _, done, _, _ = env.step(int(action))
            if done:
                break
        if not done:
            return False
    return True


@pytest.mark.parametrize("learner", [PPO, MaskablePPO, DQN])
def test_learners_of_stable_baselines3_learn_through_it(learner: Any) -> None:
    made = VecMonitor(SB3VecEnv(vector(8)))
    quick: dict[str, Any] = (
        {
            "learning_starts": 100,
            "train_freq": 1,
            "gradient_steps": 2,
            "target_update_interval": 64,
            "gamma": 0.9,
            "learning_rate": 5e-3,
        }
        if learner is DQN
        else {"n_steps": 32, "batch_size": 128, "n_epochs": 4, "gamma": 0.9, "learning_rate": 1e-2}
    )
    model = learner("MultiInputPolicy", made, seed=0, device="cpu", **quick)
    model.learn(2048)
    assert reaches_the_end(model, learner is MaskablePPO)
    assert len(model.ep_info_buffer) > 0  # VecMonitor told of episodes


def test_normalised_by_stable_baselines3() -> None:
    inner = SB3VecEnv(vector())
    made = VecNormalize(inner, norm_obs_keys=["cell"])
    made.reset()
    rng = np.random.default_rng(0)
    for _ in range(200):
        seen, *_ = made.step(rng.integers(0, 2, 3))
    assert isinstance(seen, dict)
    raw = made.get_original_obs()
    assert isinstance(raw, dict)
    expected = (raw["cell"] - made.obs_rms["cell"].mean) / np.sqrt(made.obs_rms["cell"].var + 1e-8)
    np.testing.assert_allclose(seen["cell"], expected, rtol=1e-5)
    np.testing.assert_array_equal(seen["mask"], raw["mask"])


class Bell(Corridor):
    """Tells of a bell at every other cell only, within a dict too."""

    def step(self, action: Any) -> Any:
        *seen, info = super().step(action)
        if self.cell % 2:
            info |= {"bell": self.steps, "said": {"loud": self.cell}}
        return *seen, info


def test_an_info_is_told_where_it_is_known() -> None:
    """Items that all environments have, some have and none has, against stable-baselines3's own."""
    ours, theirs = SB3VecEnv(vector(make=Bell)), DummyVecEnv([Bell] * 3)  # type: ignore[list-item]
    ours.seed(1)
    theirs.seed(1)
    ours.reset()
    theirs.reset()
    rng, counts = np.random.default_rng(0), set()
    for _ in range(60):
        actions = rng.integers(0, 2, 3)
        (*_, done, infos), (*_, wanted) = ours.step(actions), theirs.step(actions)
        counts.add(sum("bell" in info for info in wanted))
        for info, other, ended in zip(infos, wanted, done, strict=True):
            if not ended:
                other.pop("TimeLimit.truncated")
                assert info == other
    assert counts == {0, 1, 2, 3}


class Whole(VectorEnv[Any, Any, Any]):
    """Three environments in one, as ours are: no list of single ones, one method for all."""

    def __init__(self, masked: bool = True) -> None:
        self.num_envs, self.metadata = 3, {"autoreset_mode": AutoresetMode.SAME_STEP}
        parts = {"cell": spaces.Box(0, 9, (1,), np.float32)}
        if masked:
            parts["mask"] = spaces.MultiBinary(2)  # type: ignore[assignment]
        self.single_observation_space = spaces.Dict(parts)
        self.single_action_space = spaces.Discrete(2)
        self.masked, self.level, self.closed = masked, 1, False

    def _seen(self) -> dict[str, Any]:
        seen = {"cell": np.array([[0], [1], [2]], np.float32)}
        mask = np.array([[1, 0], [0, 1], [1, 1]], np.int8)
        return {**seen, "mask": mask} if self.masked else seen

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.asked = (seed, options)
        return self._seen(), {"at": np.array([4, 5, 6]), "_at": np.array([True, False, True])}

    def step(self, actions: Any) -> Any:
        """The first ends and is cut off at once, the second is cut off, the third goes on."""
        self.took = actions
        last = np.array([{"cell": np.array([7.0])}, {"cell": np.array([8.0])}, None], dtype=object)
        info = {"final_obs": last, "final_info": {"at": np.array([1, 2, 0])}, "at": np.arange(3)}
        ended, cut = np.array([True, False, False]), np.array([True, True, False])
        return self._seen(), np.array([0.5, 1.5, 2.5]), ended, cut, info

    def double(self, values: Any, *, more: int = 0) -> Any:
        return 2 * np.asarray(values) + more

    def close(self, **kwargs: Any) -> None:
        self.closed = True


def test_an_environment_of_one_piece() -> None:
    env = Whole()
    made = SB3VecEnv(env)
    made.seed(4)
    made.set_options([{"a": 1}, {}, {"b": 2}])
    made.reset()
    assert env.asked == ([4, 5, 6], {"a": 1, "b": 2})
    assert made.reset_infos == [{"at": 4}, {}, {"at": 6}]
    made.reset()
    assert env.asked == (None, None)  # used once
    seen, rewards, done, infos = made.step(np.array([0, 1, 0]))
    assert env.took.tolist() == [0, 1, 0] and isinstance(seen, dict)
    assert seen["cell"].ravel().tolist() == [0, 1, 2]
    assert rewards.tolist() == [0.5, 1.5, 2.5] and rewards.dtype == np.float32
    assert done.tolist() == [True, True, False]
    told = [(info["at"], info.get("TimeLimit.truncated")) for info in infos]
    assert told == [(1, False), (2, True), (2, None)]
    last = [info.get("terminal_observation") for info in infos]
    assert [None if one is None else one["cell"].tolist() for one in last] == [[7], [8], None]
    # masks from what was seen, methods and attributes of all at once
    assert made.has_attr("action_masks") and made.action_masks().dtype == bool
    masks = [[True, False], [False, True], [True, True]]
    assert made.action_masks().tolist() == masks
    assert [row.tolist() for row in made.env_method("action_masks", indices=[2, 0])] == [
        masks[2], masks[0]
    ]  # fmt: skip
    assert made.env_method("double", [1, 2, 3], more=1) == [3, 5, 7]
    assert made.env_method("double", [1, 2, 3], indices=1) == [4]
    assert made.get_attr("level") == [1, 1, 1]
    made.set_attr("level", 3)
    assert env.level == 3 and made.get_attr("level", indices=[0, 2]) == [3, 3]
    assert made.has_attr("level") and not made.has_attr("nothing")
    assert made.env_is_wrapped(Corridor) == [False] * 3
    assert made.env_is_wrapped(Corridor, indices=[1]) == [False]
    made.close()
    assert env.closed
    assert (made.num_envs, made.action_space) == (3, spaces.Discrete(2))


def test_an_environment_without_masks() -> None:
    env = Whole(masked=False)
    made = SB3VecEnv(env)
    assert not made.has_attr("action_masks")
    for _ in range(2):
        with pytest.raises(AttributeError, match="no action_masks, and its observation no mask"):
            made.action_masks()
        made.reset()
    env.action_masks = lambda: [[1, 0]] * 3  # type: ignore[attr-defined]
    assert made.has_attr("action_masks")
    assert made.action_masks().tolist() == [[True, False]] * 3


def test_final_observations_in_batches_and_pictures_that_are_none() -> None:
    env = Whole()
    ends = env.step

    def batched(actions: Any) -> Any:
        *rest, info = ends(actions)
        info["final_obs"] = {"cell": np.array([[7.0], [8.0], [9.0]])}
        del info["final_info"]
        return *rest, info

    env.step = batched  # type: ignore[method-assign]
    env.render = lambda: None  # type: ignore[method-assign]
    made = SB3VecEnv(env)
    assert list(made.get_images()) == [None] * 3
    made.reset()
    *_, infos = made.step(np.zeros(3, int))
    assert [info["at"] for info in infos] == [0, 1, 2]
    assert infos[1]["terminal_observation"]["cell"].tolist() == [8.0]
    env.render = lambda: (1, 2, 3)  # type: ignore[method-assign,assignment,return-value]
    assert list(made.get_images()) == [1, 2, 3]
