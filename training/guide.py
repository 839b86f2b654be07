"""Training guided by a heuristic: its demonstrations to begin with, a penalty for leaving it later.

Guidance by a heuristic is what took the learned router of Jain et al. (Intelligent Router, 2024)
from 4 to 11% over round robin. Here the network first learns to choose as a registered policy does
(behaviour cloning, critic included); then each choice that the policy would not make costs a
penalty that falls to nothing, so that the end of training optimises the true cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch.nn import functional

from lengthwise.envs.columns import SCALES, Columns
from lengthwise.errors import InputError
from lengthwise.policy import RoutingPolicy, SchedulingPolicy
from lengthwise.training.masked_dqn import MaskedDQN, random_legal
from lengthwise.training.scorer import Sizes

GUIDANCE: dict[str, float] = {
    "demonstrations": 32_768,  # decisions of the guide that are cloned
    "clone_epochs": 8,
    "penalty": 0.1,  # of a choice that is not the guide's, in units of a normalised reward
    "penalty_until": 0.5,  # the share of the steps after which nothing is left of it
}
STRAY = 0.1  # share of random decisions among demonstrations: what to do after a mistake, too
# What an environment shows in place of absolute times, with which factor; the present moment is 0.
_SHOWN: Mapping[str, tuple[str, float]] = {
    "arrival_s": ("waited_s", -1.0), "deadline_s": ("slack_s", 1.0),
}  # fmt: skip


class Guide:
    """A policy or router that reads what it needs from the columns of an environment."""

    def __init__(self, policy: SchedulingPolicy | RoutingPolicy, seen: Sequence[str]) -> None:
        self.policy, self.score = policy, policy.score
        if isinstance(policy, RoutingPolicy) and policy.choices:
            raise InputError(f"guide {policy.name!r} looks at random replicas only")
        reads = [name for name in self.score.features if name != "now_s"]
        wanted = [_SHOWN.get(name, (name, 1.0))[0] for name in reads]
        for name in wanted:
            if name not in SCALES:
                raise InputError(
                    f"guide {policy.name!r} reads {name}, which no environment shows (shown: "
                    f"{', '.join(SCALES)})"
                )
        self.features = (*seen, *dict.fromkeys(name for name in wanted if name not in seen))

    def scores(self, rows: NDArray[Any], mask: NDArray[np.bool_], columns: Columns) -> Any:
        """The guide's scores (n, slots) from normalised columns (n, slots, F); inf where there is
        no candidate."""
        values: dict[str, Any] = {}
        for name in self.score.features:
            shown, factor = _SHOWN.get(name, (name, 1.0))
            if name == "now_s":
                values[name] = np.zeros(mask.shape)
                continue
            column = columns.columns[columns.names.index(shown)]
            raw = rows[..., columns.names.index(shown)].astype(np.float64)
            raw = raw * column.scale + column.shift
            values[name] = factor * (np.sign(raw) * np.expm1(np.abs(raw)) if column.log else raw)
        with np.errstate(all="ignore"):  # beyond the last candidate columns mean nothing
            found = np.broadcast_to(self.score.evaluate(values), mask.shape)
        return np.where(mask, found, np.inf)


class Guided(VecEnvWrapper):
    """Environments that show the guide's columns too: it is asked, the agent does not see them.

    ``penalty`` is what a choice costs now that the guide would not make.
    """

    def __init__(self, venv: VecEnv, guide: Guide, columns: Columns, seen: int) -> None:
        self.whole = Sizes.of(venv.observation_space, int(venv.action_space.n), len(columns.names))  # type: ignore[attr-defined]
        self.sizes = Sizes(self.whole.slots, seen, self.whole.state)
        self.guide, self.columns, self.penalty = guide, columns, 0.0
        space = venv.observation_space
        if isinstance(space, spaces.Dict):
            box = space["candidates"]
            assert isinstance(box, spaces.Box)
            width = self.sizes.slots * seen
            cut = spaces.Box(box.low[:width], box.high[:width], dtype=np.float32)
            shown: spaces.Space[Any] = spaces.Dict({**space.spaces, "candidates": cut})
        else:
            assert isinstance(space, spaces.Box)
            shown = spaces.Box(self._cut(space.low), self._cut(space.high), dtype=np.float32)
        super().__init__(venv, observation_space=shown)

    def reset(self) -> Any:
        return self._ask(self.venv.reset())

    def step_async(self, actions: NDArray[Any]) -> None:
        row = np.arange(self.num_envs)
        self._left = self._scores[row, actions] > self._least + 1e-6 * np.abs(self._least)
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        observation, rewards, done, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self._cut(info["terminal_observation"])
        return self._ask(observation), rewards - self.penalty * self._left, done, infos

    def _ask(self, observation: Any) -> Any:
        mask = self.whole.mask(observation)
        self._scores = self.guide.scores(self.whole.candidates(observation), mask, self.columns)
        self._least = self._scores.min(axis=1)
        near = self._least + 1e-6 * np.abs(self._least)
        # equal scores may differ by float32's rounding; the first of equals is taken
        self.choices = (self._scores <= near[:, None]).argmax(axis=1)
        return self._cut(observation)

    def _cut(self, observation: Any) -> Any:
        rows = self.whole.candidates(observation)[..., : self.sizes.columns]
        rows = rows.reshape(*rows.shape[:-2], -1)
        if isinstance(observation, dict):
            return {**observation, "candidates": rows}
        rest = observation[..., self.whole.slots * self.whole.columns :]
        return np.concatenate([rows, rest], axis=-1)


def clone(
    agent: BaseAlgorithm, env: Guided, gamma: float, options: Mapping[str, float], seed: int
) -> float:
    """Teaches the network the guide's choices, and the critic what they are worth.

    Returns the share of the last pass in which the network chose as the guide did.
    """
    seen, choices, returns = _demonstrations(env, gamma, int(options["demonstrations"]), seed)
    optimiser = torch.optim.Adam(agent.policy.parameters(), lr=2e-3)
    rng = np.random.default_rng(seed)
    agree = 0.0
    for _ in range(int(options["clone_epochs"])):
        agreed = 0
        for rows in np.array_split(rng.permutation(len(choices)), -(-len(choices) // 1024)):
            batch, actions = seen(rows), choices[rows]
            log_prob, values, chosen = _heads(agent, batch, actions)
            known = ~torch.isnan(returns[rows])
            loss = -log_prob.mean()
            if bool(known.any()):
                loss = loss + 0.5 * functional.mse_loss(values[known], returns[rows][known])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(agent.policy.parameters(), 1.0)
            optimiser.step()
            agreed += int((chosen == actions).sum())
        agree = agreed / len(choices)
    if isinstance(agent, MaskedDQN):
        agent.q_net_target.load_state_dict(agent.q_net.state_dict())
    return agree


def _demonstrations(env: Guided, gamma: float, count: int, seed: int) -> Any:
    """Observations (a function from row numbers to a batch), the guide's choices and the discounted
    returns (NaN where too little of the future was seen), as tensors."""
    rng = np.random.default_rng(seed)
    np.random.seed(seed)
    steps = -(-count // env.num_envs)
    observation = env.reset()
    seen, choices, rewards, ends = [], [], [], []
    for _ in range(steps):
        seen.append(observation)
        choices.append(env.choices)
        stray = rng.random(env.num_envs) < STRAY
        actions = np.where(stray, random_legal(env.sizes.mask(observation)), env.choices)
        observation, reward, done, _ = env.step(actions)
        rewards.append(reward)
        ends.append(done)
    returns = np.zeros((steps + 1, env.num_envs))
    for t in reversed(range(steps)):
        returns[t] = rewards[t] + gamma * np.where(ends[t], 0.0, returns[t + 1])
    unseen = min(steps, int(3 / max(1 - gamma, 1e-6)))  # 1 - e**-3 of the future weighs 95%
    returns[steps - unseen : steps] = np.nan
    flat = torch.from_numpy(np.concatenate(returns[:steps]).astype(np.float32))
    if isinstance(seen[0], dict):
        whole = {
            name: torch.from_numpy(np.concatenate([one[name] for one in seen])) for name in seen[0]
        }

        def batch(rows: Any) -> Any:
            return {name: value[rows] for name, value in whole.items()}
    else:
        stacked = torch.from_numpy(np.concatenate(seen))

        def batch(rows: Any) -> Any:
            return stacked[rows]

    return batch, torch.from_numpy(np.concatenate(choices)), flat


def _heads(agent: BaseAlgorithm, seen: Any, actions: torch.Tensor) -> Any:
    """Log-probabilities of the actions, values, and the choices that the network would make."""
    if isinstance(agent, MaskedDQN):
        values = agent.q_net(seen)
        log_prob = functional.log_softmax(values, dim=1)
        of_actions = values.gather(1, actions[:, None])[:, 0]
        return log_prob.gather(1, actions[:, None])[:, 0], of_actions, values.argmax(1)
    policy: Any = agent.policy
    features = policy.extract_features(seen)
    logits, latent = policy.mlp_extractor(features)
    log_prob = functional.log_softmax(logits, dim=1).gather(1, actions[:, None])[:, 0]
    return log_prob, policy.value_net(latent).flatten(), logits.argmax(1)
