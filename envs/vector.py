"""Many environments in one: n runs of the compiled engine, stepped by one call.

All follow one protocol, Gymnasium's ``VectorEnv``; a single environment is this one with
``num_envs=1``. Observations are written in place, by machine code, to arrays that the next step
writes again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from lengthwise.envs.costs import latency
from lengthwise.envs.episodes import Episode
from lengthwise.envs.picture import picture
from lengthwise.envs.task import Task, signature_of
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.picoseconds import PS
from lengthwise.serving import Totals
from lengthwise.serving.fast import state as ks
from lengthwise.serving.fast.many import Drawn, Many, Seen
from lengthwise.serving.records import Records

Observation = dict[str, NDArray[Any]] | NDArray[np.float32]
Arrays = NDArray[Any]

RENDER_MODES = ("ansi", "rgb_array")
MODES = {
    AutoresetMode.NEXT_STEP: ks.NEXT_STEP,
    AutoresetMode.SAME_STEP: ks.SAME_STEP,
    AutoresetMode.DISABLED: ks.DISABLED,
}


class DecisionVectorEnv(VectorEnv[Observation, Arrays, Arrays]):
    """``num_envs`` environments in which an agent picks one of up to ``slots`` candidates.

    Observations, (num_envs, ...): ``candidates`` (slots * F) float32, candidate by candidate, zero
    where there is none; ``mask`` (slots) int8, 1 where there is one; ``state`` (4) float32, the
    situation as a whole. With ``flat`` they are one float32 vector, in this order. **Without
    ``copy`` the next step writes to the same arrays.** Rewards and flags are always copies.

    ``autoreset_mode`` is one of Gymnasium's (or its name). NEXT_STEP: the step after an episode's
    end begins the next one, whatever the action. SAME_STEP: it begins at once, and ``final_obs``
    and ``final_info`` tell of the end. DISABLED: ``reset(options={"reset_mask": mask})`` begins it.

    ``info`` holds ``now_s`` and ``illegal_actions``, and at an episode's end ``mean_latency_s`` and
    ``scenario``. Environment i draws its episodes from a generator of its own, seeded with
    ``seed + i``, so it does what a single environment of that seed does.

    An environment can be pickled between episodes: its options and its generators are kept, its
    prepared episodes are not.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 1}  # noqa: RUF012
    task: ClassVar[Callable[..., Task]]
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "task" in cls.__dict__:
            more = ("num_envs", "flat", "copy", "autoreset_mode", "render_mode")
            cls.__signature__ = signature_of(cls.task, *more)  # type: ignore[attr-defined]

    def __init__(
        self,
        *given: Any,
        num_envs: int = 1,
        flat: bool = False,
        copy: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        if num_envs < 1:
            raise InputError(f"num_envs must be 1 or more, not {num_envs}")
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise UnknownNameError("render_mode", render_mode, RENDER_MODES)
        mode = _mode(autoreset_mode)
        self._made = (given, {
            **options, "num_envs": num_envs, "flat": flat, "copy": copy, "autoreset_mode": mode,
            "render_mode": render_mode,
        })  # fmt: skip
        task = self.game = type(self).task(*given, **{**self.defaults, **options})
        self.num_envs, self.flat, self.copy, self.render_mode = num_envs, flat, copy, render_mode
        self.metadata = {**self.metadata, "autoreset_mode": mode}
        self.autoreset_mode = mode  # as Gymnasium's own have it, where TorchRL looks for it
        self.columns, self.cost = task.columns, task.cost
        self.single_action_space = spaces.Discrete(task.slots)
        self.single_observation_space = task.observation_space(flat)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._plain = task.cost is not latency  # a cost that Python computes
        self.many = Many(
            task.kind, num_envs, task.slots, _seen(task), self._draw,
            mode=MODES[mode], bank=task.bank, plays=task.plays,
            illegal_penalty=task.illegal_penalty, hold_ps=round(task.hold_s * PS),
            keep_totals=self._plain, show=task.show,
        )  # fmt: skip
        self._same_step = mode is AutoresetMode.SAME_STEP
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._wanted: list[int | None] = [None] * num_envs
        self._paid = np.zeros(num_envs)
        self._names: list[str] = [""] * num_envs  # of the scenarios that are played
        self._seen = self._parts(self.many.flat, self.many.mask)
        nothing = np.zeros((num_envs, task.width), np.float32)
        self._nothing = self._parts(nothing, np.zeros((num_envs, task.slots), np.int8))
        self._ended = self.many.ended.view(bool)
        self._masks: NDArray[np.bool_] = self.many.mask.view(bool)
        self._all = np.ones(num_envs, bool)

    # Gymnasium's protocol

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins episodes: everywhere, or where ``options["reset_mask"]`` (num_envs,) says so.

        ``seed`` seeds environment i with ``seed + i``, or with its entry of a list.
        ``options["workload_seed"]`` asks for one episode of the source.
        """
        given = options or {}
        where = self._reset_mask(given.get("reset_mask"))
        for k, one in enumerate(self._seeds(seed)):
            if where[k]:
                self._seed(k, one, given.get("workload_seed"))
        self._paid[where] = 0.0
        self.many.begin(where)
        self._wanted = [None] * self.num_envs
        return self._observation(), self._info(where)

    def step(self, actions: Arrays) -> tuple[Observation, Arrays, Arrays, Arrays, dict[str, Any]]:
        """Takes an action in each environment, (num_envs,) whole numbers, and runs each to its
        next choice. Raises ``InputError`` for one outside the action space, before any is taken,
        and where no run is under way."""
        many = self.many
        self._take(actions)
        if self._plain:
            before = many.env["stage"] == ks.CHOICE
        many.step()
        if self._plain:
            self._pay(before)
        ended = self._ended.copy()
        info = self._info(self._all)
        if ended.any():
            self._tell_end(info, ended)
        return (
            self._observation(), many.reward.copy(), ended, np.zeros(self.num_envs, bool), info
        )  # fmt: skip

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions have a candidate, (num_envs, slots); the next step writes to it."""
        return self._masks

    def render(self) -> tuple[Any, ...] | None:
        """A line ("ansi") or a picture of the candidates ("rgb_array") of each environment."""
        if self.render_mode is None:
            return None
        draw = self._picture if self.render_mode == "rgb_array" else self._line
        return tuple(draw(k) for k in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing is held but memory."""

    # What else can be asked

    def totals(self, k: int) -> Totals:
        """The integrals of environment k's run, up to now."""
        return self.many.totals(k)

    def records(self, k: int) -> Records:
        """The records of environment k's run, once it has ended and before the next one begins."""
        return self.many.records(k)

    def drawn(self, k: int) -> Drawn:
        """The episode that environment k plays."""
        return self.many.of(k).drawn

    def raw(self, k: int) -> NDArray[np.float64]:
        """Environment k's candidates' columns (n, F) before they are normalised."""
        rows = self.many.rows(k)[np.flatnonzero(self._with_row(k))]
        return self.columns.raw({name: rows[name] for name in self.columns.reads})

    # Parts

    def _draw(self, k: int) -> Episode:
        wanted = self._wanted[k]
        if wanted is None:
            generator = self._generators[k]
            if generator is None:
                generator = self._generators[k] = seeding.np_random()[0]
            wanted = int(generator.integers(2**31))
        episode = self.game.source(wanted)
        return replace(episode, scale=self.game.reward_scale or episode.scale)

    def _seeds(self, seed: int | list[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + k for k in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise InputError(f"seeds must be {self.num_envs}, one an environment, not {len(seed)}")
        return list(seed)

    def _seed(self, k: int, seed: int | None, workload_seed: int | None) -> None:
        if seed is not None:
            self._generators[k] = seeding.np_random(seed)[0]
        if seed is not None or workload_seed is not None:
            self.many.forget(k)
        self._wanted[k] = workload_seed

    def _reset_mask(self, given: Any) -> NDArray[np.bool_]:
        if given is None:
            return self._all
        mask = np.asarray(given)
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
            raise InputError(
                f"reset_mask must be {self.num_envs} truth values of which one is true, not "
                f"{given!r}"
            )
        return mask

    def _take(self, actions: Any) -> None:
        given = np.asarray(actions)
        if given.dtype.kind not in "iu":
            raise InputError(
                f"action must be in 0..{self.game.slots - 1}, a whole number, not {actions!r}"
            )
        if given.shape != (self.num_envs,):
            raise InputError(f"actions must have shape ({self.num_envs},), not {given.shape}")
        self.many.action[:] = given

    def _pay(self, stepped: NDArray[np.bool_]) -> None:
        """Rewards by a cost that is a Python function of the totals."""
        many = self.many
        for k in np.flatnonzero(stepped).tolist():
            cost = float(self.cost(many.last_totals(k)))
            many.reward[k] -= (cost - self._paid[k]) / many.env["last_scale"][k]
            self._paid[k] = 0.0 if self._ended[k] else cost

    def _parts(self, flat: NDArray[np.float32], mask: NDArray[np.int8]) -> Observation:
        if self.flat:
            return flat
        end = self.game.slots * len(self.columns.names)
        state = end + self.game.slots
        return {"candidates": flat[:, :end], "mask": mask, "state": flat[:, state:]}

    def _observation(self) -> Observation:
        return _copied(self._seen) if self.copy else _fresh(self._seen)

    def _info(self, where: NDArray[np.bool_]) -> dict[str, Any]:
        many = self.many
        if where is self._all:
            now_s, illegal = many.now_s.copy(), many.illegal.copy()
        else:
            now_s, illegal = many.now_s * where, many.illegal * where
        there = where.copy()
        return {
            "now_s": now_s, "_now_s": there, "illegal_actions": illegal, "_illegal_actions": there,
        }  # fmt: skip

    def _tell_end(self, info: dict[str, Any], ended: NDArray[np.bool_]) -> None:
        many = self.many
        names = np.full(self.num_envs, None, object)
        for k in np.flatnonzero(ended).tolist():
            names[k] = many.last_name(k)
        final: dict[str, Any] = {
            "mean_latency_s": many.mean_latency_s * ended, "_mean_latency_s": ended.copy(),
            "scenario": names, "_scenario": ended.copy(),
        }  # fmt: skip
        if not self._same_step:
            info.update(final)
            return
        final["now_s"], final["_now_s"] = many.final_now_s * ended, ended.copy()
        final["illegal_actions"] = many.final_illegal * ended
        final["_illegal_actions"] = ended.copy()
        last = np.full(self.num_envs, None, object)
        for k in np.flatnonzero(ended).tolist():
            last[k] = one_of(self._nothing, k)
        info.update(final_obs=last, _final_obs=ended.copy())
        info.update(final_info=final, _final_info=ended.copy())

    def _with_row(self, k: int) -> NDArray[np.bool_]:
        """Which actions of environment k have a row of columns, (slots,)."""
        there: NDArray[np.bool_] = self._masks[k].copy()
        if self.game.hold_s:
            there[-1] = False
        return there

    def _picture(self, k: int) -> NDArray[np.uint8]:
        end = self.game.slots * len(self.columns.names)
        return picture(
            self.many.flat[k, :end].reshape(self.game.slots, -1), self.many.mask[k].astype(bool)
        )

    def _line(self, k: int) -> str:
        totals = self.many.totals(k)
        return (
            f"t={totals.now_ps / PS:.6f}s: {int(self.many.mask[k].sum())} candidates, "
            f"{totals.in_system} requests in the system"
        )

    # Pickling

    def __getstate__(self) -> dict[str, Any]:
        if (self.many.env["stage"] == ks.CHOICE).any():
            raise InputError(
                "an environment with a run under way can't be pickled: do it before reset(), or "
                "after an episode's end"
            )
        return {"made": self._made, "generators": self._generators, "spec": self.spec}

    def __setstate__(self, state: dict[str, Any]) -> None:
        given, options = state["made"]
        self.__init__(*given, **options)  # type: ignore[misc]
        self._generators, self.spec = state["generators"], state["spec"]


def one_of(observation: Observation, k: int) -> Any:
    """A copy of one environment's part of an observation."""
    if isinstance(observation, dict):
        return {name: part[k].copy() for name, part in observation.items()}
    return observation[k].copy()


def _copied(observation: Observation) -> Observation:
    if isinstance(observation, dict):
        return {name: part.copy() for name, part in observation.items()}
    return observation.copy()


def _fresh(observation: Observation) -> Observation:
    """The same arrays, in a dict that the caller may change."""
    return dict(observation) if isinstance(observation, dict) else observation


def _mode(given: AutoresetMode | str) -> AutoresetMode:
    if isinstance(given, AutoresetMode):
        return given
    for mode in AutoresetMode:
        if given in (mode.name, mode.value):
            return mode
    raise UnknownNameError("autoreset_mode", given, [mode.name for mode in AutoresetMode])


def _seen(task: Task) -> list[Seen]:
    return [Seen(c.plus, c.minus, c.log, c.shift, c.scale) for c in task.columns.columns]
