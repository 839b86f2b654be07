"""The environments under what others wrote: TorchRL, Gymnasium's wrappers, CleanRL's PPO."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import (
    FrameStackObservation,
    NormalizeObservation,
    RecordEpisodeStatistics,
    RecordVideo,
    TimeAwareObservation,
)
from gymnasium.wrappers.vector import RecordEpisodeStatistics as VectorStatistics
from torch import nn
from torch.distributions import Categorical

import lengthwise.envs  # noqa: F401 - registers
from lengthwise.envs.episodes import Episode
from lengthwise.policies import load_policy, load_router
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.timing import LinearTiming
from tests.test_envs_checkers import TIMING, bursty

NAMES = ("Routing", "Scheduling", "Preemption")
OPTIONS: dict[str, Any] = {"workload": bursty, "timing": TIMING, "engine": {"max_num_seqs": 4}}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_torchrl_s_checker(name: str, flat: bool) -> None:
    pytest.importorskip("torchrl", reason="TorchRL, of the extra dev, is not installed")
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    env = gymnasium.make(f"lengthwise/{name}-v1", flat=flat, **OPTIONS)
    check_env_specs(GymWrapper(env))


@pytest.mark.parametrize(("mode", "flat"), [("DISABLED", False), ("SAME_STEP", True)])
def test_torchrl_steps_many_at_once(mode: str, flat: bool) -> None:
    """It resets what has ended; episodes have 60 arrivals, the last of which ends one."""
    pytest.importorskip("torchrl", reason="TorchRL, of the extra dev, is not installed")
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    envs = gymnasium.make_vec(
        "lengthwise/Routing-v1", num_envs=3, autoreset_mode=mode, flat=flat, **OPTIONS
    )
    wrapped = GymWrapper(envs)
    check_env_specs(wrapped)
    seen = wrapped.rollout(200, break_when_any_done=False)
    assert seen.shape == (3, 200)
    assert seen["next", "done"].nonzero()[:, 1].reshape(3, 3).tolist() == [[59, 119, 179]] * 3


def test_gymnasium_records_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the file itself, which MoviePy writes."""
    films: list[list[np.ndarray]] = []

    class Clip:
        def __init__(self, frames: list[np.ndarray], fps: int) -> None:
            films.append(list(frames))

        def write_videofile(self, path: str, logger: Any) -> None:
            assert path.startswith(str(tmp_path))

    writer = ModuleType("moviepy.video.io.ImageSequenceClip")
    writer.ImageSequenceClip = Clip  # type: ignore[attr-defined]
    for name in ("moviepy", "moviepy.video", "moviepy.video.io"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, writer.__name__, writer)
    env = RecordVideo(
        gymnasium.make("lengthwise/Routing-v1", render_mode="rgb_array", **OPTIONS),
        str(tmp_path / "films"), episode_trigger=lambda episode: True, disable_logger=True,
    )  # fmt: skip
    env.reset(seed=0)
    done = False
    while not done:
        _, _, done, _, _ = env.step(0)
    env.close()
    (frames,) = films
    assert len(frames) == 61  # one before the first step
    assert {frame.shape for frame in frames} == {frames[0].shape}
    assert all(size % 2 == 0 for size in frames[0].shape[:2])  # H.264 takes no other


def test_gymnasium_records_returns() -> None:
    env = RecordEpisodeStatistics(gymnasium.make("lengthwise/Routing-v1", **OPTIONS))
    env.reset(seed=0)
    done, info = False, {}
    while not done:
        _, _, done, _, info = env.step(0)
    assert info["episode"]["l"] == 60
    assert info["episode"]["r"] == pytest.approx(-info["mean_latency_s"])


@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_s_wrappers_of_observations_take_them(name: str) -> None:
    """Stacked, scaled, and with the time that is left, which asks for a limit of steps."""
    flat = gymnasium.make(f"lengthwise/{name}-v1", flat=True, max_episode_steps=15, **OPTIONS)
    width = flat.observation_space.shape
    assert width is not None
    env = FrameStackObservation(NormalizeObservation(TimeAwareObservation(flat)), 2)
    seen, _ = env.reset(seed=0)
    done, steps = False, 0
    while not done:
        assert env.observation_space.contains(seen)
        assert seen.shape == (2, width[0] + 1)
        mask = env.get_wrapper_attr("action_masks")()
        seen, _, ended, cut, _ = env.step(int(np.flatnonzero(mask)[0]))
        done, steps = ended or cut, steps + 1
    assert steps <= 15


def test_gymnasium_s_own_vectors_take_them() -> None:
    def seen(mode: str | None) -> np.ndarray:
        envs = gymnasium.make_vec(
            "lengthwise/Routing-v1", num_envs=2, vectorization_mode=mode, flat=True, **OPTIONS
        )
        observation, _ = envs.reset(seed=3)
        for _ in range(70):  # past an episode's end
            observation, *_ = envs.step(np.array([0, 1]))
        found = np.array(observation)
        envs.close()
        return found

    np.testing.assert_array_equal(seen("sync"), seen("vector_entry_point"))


def test_stable_baselines3_learns_with_masks_by_hand() -> None:
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.maskable.utils import get_action_masks
    from stable_baselines3.common.env_util import make_vec_env

    envs = make_vec_env("lengthwise/Scheduling-v1", n_envs=2, env_kwargs=OPTIONS)
    model = MaskablePPO("MultiInputPolicy", envs, n_steps=64, batch_size=64, device="cpu")
    model.learn(256)
    seen, masks = envs.reset(), get_action_masks(envs)
    assert isinstance(seen, dict)
    actions, _ = model.predict(seen, action_masks=masks, deterministic=True)
    assert masks[np.arange(2), actions].all()


def test_made_by_name_they_can_be_pickled_and_copied() -> None:
    env = gymnasium.make("lengthwise/Routing-v1", **OPTIONS)
    for twin in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        first, second = env.reset(seed=1)[0], twin.reset(seed=1)[0]
        assert all(np.array_equal(first[name], second[name]) for name in first)
        env = gymnasium.make("lengthwise/Routing-v1", **OPTIONS)


class Agent(nn.Module):
    """CleanRL's ``ppo.py``: one network chooses, another says what it is worth."""

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 1))
        self.actor = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, actions))

    def forward(self, seen: torch.Tensor, action: torch.Tensor | None = None) -> Any:
        chances = Categorical(logits=self.actor(seen))
        action = chances.sample() if action is None else action
        return action, chances.log_prob(action), chances.entropy(), self.critic(seen)[:, 0]


def test_cleanrl_s_ppo_learns_to_avoid_the_slow_replica() -> None:
    """Its loop (Huang et al., JMLR 2022) on ``make_vec``; one of two replicas is ten times slower.

    The best that can be had without queues is what the fast one gives.
    """
    torch.manual_seed(0)
    slow = LinearTiming(base_s=0.1, per_sequence_s=0.005, num_gpu_blocks=400)
    nodes = tuple(Node(Engine(max_num_seqs=4), t, load_policy("fcfs")) for t in (TIMING, slow))
    system = System(nodes, load_router("jsq"))
    count, length = 8, 64
    envs = VectorStatistics(
        gymnasium.make_vec(
            "lengthwise/Routing-v1", num_envs=count, flat=True, copy=True, replicas=2,
            features=("decode_tokens_per_s", "running_requests"),
            scenarios=lambda seed: Episode(bursty(seed, 30), system, None, seed, 30.0, "two"),
        )
    )  # fmt: skip
    seen = torch.tensor(envs.reset(seed=0)[0])
    agent = Agent(seen.shape[1], 2)
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3, eps=1e-5)
    done = torch.zeros(count)
    returns: list[float] = []
    for _ in range(20):
        rollout = []
        for _ in range(length):
            with torch.no_grad():
                action, logprob, _, value = agent(seen)
            following, reward, ended, _, info = envs.step(action.numpy())
            rollout.append((seen, action, logprob, torch.tensor(reward).float(), done, value))
            seen, done = torch.tensor(following), torch.tensor(ended).float()
            if "episode" in info:
                returns += info["episode"]["r"][info["_episode"]].tolist()
        states, actions, logprobs, rewards, dones, values = map(
            torch.stack, zip(*rollout, strict=True)
        )
        with torch.no_grad():
            upcoming, left = agent(seen)[3], 1.0 - done
            advantages, last = torch.zeros_like(rewards), torch.zeros(count)
            for t in reversed(range(length)):
                delta = rewards[t] + 0.99 * upcoming * left - values[t]
                advantages[t] = last = delta + 0.99 * 0.95 * left * last
                upcoming, left = values[t], 1.0 - dones[t]
        flat = [part.flatten(0, 1) for part in (states, actions, logprobs)]
        goals, gains = (advantages + values).flatten(), advantages.flatten()
        for _ in range(4):
            for rows in torch.randperm(count * length).split(128):
                _, now, entropy, worth = agent(flat[0][rows], flat[1][rows])
                ratio = (now - flat[2][rows]).exp()
                gain = (gains[rows] - gains[rows].mean()) / (gains[rows].std() + 1e-8)
                policy = -torch.min(gain * ratio, gain * ratio.clamp(0.8, 1.2)).mean()
                loss = policy - 0.01 * entropy.mean() + 0.25 * ((worth - goals[rows]) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
    tenth = len(returns) // 10
    first, last_returns = np.mean(returns[:tenth]), np.mean(returns[-tenth:])
    assert last_returns > 0.5 * first
    assert tenth > 10
    with torch.no_grad():
        chosen = agent.actor(torch.tensor(envs.reset(seed=99)[0])).argmax(dim=1)
    assert not chosen.any()  # the fast replica is the first
