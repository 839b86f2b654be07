"""The network of every learned policy: one small MLP scores each candidate on its own.

Logits are minus the scores, so the trained actor *is* a score over features and can leave the gym.
The critic sees more: all candidates, pooled, and the environment's ``state``; it stays behind.
Architecture as in Deep Sets (Zaheer et al., NeurIPS 2017): permutation-equivariant actor,
permutation-invariant critic.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn

ILLEGAL = -1e8  # logit or value of a slot without a candidate


@dataclass(frozen=True)
class Sizes:
    """How an observation is laid out as one vector: candidates (slots * F), mask (slots), state
    (S)."""

    slots: int
    columns: int  # F
    state: int  # S

    @classmethod
    def of(cls, space: spaces.Space[Any], slots: int, columns: int) -> Sizes:
        """Of an environment's observation space, a dict or that vector itself."""
        length = slots * (columns + 1)
        if isinstance(space, spaces.Dict):
            return cls(slots, columns, int(np.prod(space["state"].shape or ())))
        return cls(slots, columns, int(np.prod(space.shape or ())) - length)

    @property
    def length(self) -> int:
        """Numbers of an observation."""
        return self.slots * (self.columns + 1) + self.state

    def mask(self, observation: Any) -> Any:
        """Where there are candidates, (..., slots), in a batch of observations of either form."""
        if isinstance(observation, dict):
            return observation["mask"] > 0.5
        start = self.slots * self.columns
        return observation[..., start : start + self.slots] > 0.5

    def candidates(self, observation: Any) -> Any:
        """The candidates' columns, (..., slots, F)."""
        if isinstance(observation, dict):
            rows = observation["candidates"]
        else:
            rows = observation[..., : self.slots * self.columns]
        return rows.reshape(*rows.shape[:-1], self.slots, self.columns)


class Flat(BaseFeaturesExtractor):
    """The observation as one vector, from a dict or as it comes."""

    def __init__(self, observation_space: spaces.Space[Any], sizes: Sizes) -> None:
        super().__init__(observation_space, sizes.length)
        self.sizes = sizes

    def forward(self, observations: Any) -> Tensor:
        """(B, slots * F + slots + S)"""
        if isinstance(observations, Tensor):
            return observations
        parts = [observations[name] for name in ("candidates", "mask", "state")]
        return torch.cat([part.float() for part in parts], dim=1)


class _Seen(NamedTuple):
    """A batch's candidates, found once for actor and critic."""

    rows: Tensor  # (B, slots, F) where all slots have a candidate, else (candidates, F)
    mask: Tensor  # (B, slots)
    whole: bool  # every slot has a candidate

    def spread(self, found: Tensor, nothing: float) -> Tensor:
        """What was found of ``rows``, (B, slots, outputs); ``nothing`` where there is none."""
        if self.whole:
            return found
        out = found.new_full((*self.mask.shape, found.shape[-1]), nothing)
        return out.masked_scatter(self.mask[..., None].expand_as(out), found)


class CandidateNet(nn.Module):
    """Actor and critic over a ``Flat`` vector. Slots without a candidate are not computed."""

    def __init__(self, sizes: Sizes, hidden: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        # near uniform to begin with
        self.score = _tanh_mlp([sizes.columns, *hidden], _linear(hidden[-1], 1, 0.01))
        # beyond what training shows the network is flat; the order there is the linear part's
        self.skip = nn.Linear(sizes.columns, 1, bias=False)
        nn.init.zeros_(self.skip.weight)
        self.embed = nn.Sequential(_linear(sizes.columns, hidden[0]), nn.ReLU())
        pooled = 2 * hidden[0] + sizes.state
        self.pool = nn.Sequential(_linear(pooled, hidden[-1]), nn.ReLU())
        self.latent_dim_pi, self.latent_dim_vf = sizes.slots, hidden[-1]

    def forward(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, slots) and the critic's latent vector (B, hidden[-1])."""
        seen = self._seen(flat)
        return self._actor(seen), self._critic(flat, seen)

    def forward_actor(self, flat: Tensor) -> Tensor:
        """Minus the scores (B, slots); ``ILLEGAL`` where there is no candidate."""
        return self._actor(self._seen(flat))

    def forward_critic(self, flat: Tensor) -> Tensor:
        """The candidates pooled by mean and maximum, with the state: (B, hidden[-1])."""
        return self._critic(flat, self._seen(flat))

    def _seen(self, flat: Tensor) -> _Seen:
        rows, mask = self.sizes.candidates(flat), self.sizes.mask(flat)
        whole = bool(mask.all())
        return _Seen(rows if whole else rows[mask], mask, whole)

    def _actor(self, seen: _Seen) -> Tensor:
        logits = -self.score(seen.rows) - self.skip(seen.rows)
        return seen.spread(logits, ILLEGAL)[..., 0]

    def _critic(self, flat: Tensor, seen: _Seen) -> Tensor:
        embedded = seen.spread(self.embed(seen.rows), 0.0)
        count = seen.mask.sum(1, keepdim=True).clamp(min=1)
        mean = embedded.sum(1) / count
        most = embedded.amax(1)  # a rectified number is never below 0
        state = flat[:, flat.shape[1] - self.sizes.state :]
        latent: Tensor = self.pool(torch.cat([mean, most, state], dim=1))
        return latent


class ScorerPolicy(ActorCriticPolicy):
    """For PPO, which reads the mask from the observation.

    What stable-baselines3 does through objects of torch's distributions is written out here: for
    networks this small they would take as long as the network.
    """

    def _build(self, lr_schedule: Any) -> None:
        _build(self, lr_schedule)

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (B,), values (B, 1) and the actions' log-probabilities (B,)."""
        log_probs, values = self._heads(obs)
        if deterministic:
            actions = log_probs.argmax(1)
        else:  # the largest of log-probabilities with Gumbel noise is a draw (Gumbel 1954)
            actions = (log_probs - torch.empty_like(log_probs).exponential_().log()).argmax(1)
        return actions, values, log_probs.gather(1, actions[:, None])[:, 0]

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (B, 1), log-probabilities (B,) and entropies (B,)."""
        log_probs, values = self._heads(obs)
        entropy = -(log_probs.exp() * log_probs).sum(1)
        return values, log_probs.gather(1, actions[:, None])[:, 0], entropy

    def _heads(self, obs: Any) -> tuple[Tensor, Tensor]:
        logits, latent = self.mlp_extractor(self.features_extractor(obs))
        return torch.log_softmax(logits, dim=1), self.value_net(latent)


class MaskableScorerPolicy(MaskableActorCriticPolicy):
    """For MaskablePPO."""

    def _build(self, lr_schedule: Any) -> None:
        _build(self, lr_schedule)


def _build(policy: Any, lr_schedule: Any) -> None:
    """Puts ``CandidateNet`` where stable-baselines3 has its own networks."""
    policy.mlp_extractor = CandidateNet(policy.features_extractor.sizes, policy.net_arch)
    policy.action_net = nn.Identity()
    policy.value_net = _linear(policy.mlp_extractor.latent_dim_vf, 1, 1.0)
    policy.optimizer = policy.optimizer_class(
        policy.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs
    )


class _Dueling(nn.Module):
    """Q(s, a) = V(s) - (score of a - mean score): its greedy choice is the lowest score."""

    def __init__(self, sizes: Sizes, hidden: list[int]) -> None:
        super().__init__()
        self.net = CandidateNet(sizes, hidden)
        self.value = _linear(self.net.latent_dim_vf, 1, 1.0)

    def forward(self, flat: Tensor) -> Tensor:
        logits, latent = self.net(flat)
        legal = logits > ILLEGAL
        mean = (logits * legal).sum(1, keepdim=True) / legal.sum(1, keepdim=True).clamp(min=1)
        return torch.where(legal, self.value(latent) + logits - mean, ILLEGAL)


class ScorerQNetwork(QNetwork):
    """Action values for DQN from the same network."""

    def __init__(self, **options: Any) -> None:
        hidden = options.pop("net_arch")
        super().__init__(net_arch=[], **options)
        self.net_arch = hidden
        self.q_net = _Dueling(options["features_extractor"].sizes, hidden)  # type: ignore[assignment]


class ScorerDQNPolicy(DQNPolicy):
    """For DQN."""

    def make_q_net(self) -> QNetwork:
        """The network and, called again, its target."""
        made = self._update_features_extractor(self.net_args, features_extractor=None)
        return ScorerQNetwork(**made).to(self.device)


def score_skip(policy: nn.Module) -> Any:
    """The linear part beside the actor's layers, (F,) float64."""
    found = next(m for m in policy.modules() if isinstance(m, CandidateNet))
    return found.skip.weight.detach().cpu().numpy().astype(np.float64)[0]


def score_layers(policy: nn.Module) -> list[tuple[Any, Any]]:
    """The actor's (weight, bias) pairs, float64, from any of the three policies."""
    found = next(m for m in policy.modules() if isinstance(m, CandidateNet))
    return [
        (m.weight.detach().cpu().numpy().astype(np.float64),
         m.bias.detach().cpu().numpy().astype(np.float64))
        for m in found.score if isinstance(m, nn.Linear)
    ]  # fmt: skip


def _tanh_mlp(sizes: list[int], last: nn.Linear) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [_linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers, last)


def _linear(fan_in: int, fan_out: int, gain: float = 2**0.5) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
