"""From a run of a user's own server: how its GPU and CPU differ from those a profile was made on.

Cards of one kind differ by a few percent, and hosts by more: a profile whose GPU is 2% slow makes
queues half as long again where KV is scarce. Two factors say most of it. They are found by running
the measured requests in the simulator under many pairs of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.eval.measured import Measured
from lengthwise.eval.predict import needs_prediction
from lengthwise.policies import load_policy, load_router
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.run import run
from lengthwise.serving.timing.load import timing as load_timing
from lengthwise.serving.timing.profile import ProfileTiming

METRICS = ("ttft", "tpot", "e2e")
STATISTICS = ("mean", "P50", "P90", "P99")
QUANTILES = (0.5, 0.9, 0.99)
BOUND = {"P99": 0.10}  # how far a figure may be off to be called met; of the others, LEVEL
LEVEL = 0.05
# What a figure is trusted to, as its share: near saturation queues multiply every error, so that
# the first token is told to 5% only. P99 is trusted half as much.
TRUST = {"ttft": 0.05, "tpot": 0.02, "e2e": 0.02}
INDEPENDENT = 1 / 3  # the twelve figures of a run weigh as four: they are of the same requests
# What is known without a run: cards of one kind within 5% (one standard deviation, of logarithms),
# CPUs within a factor of 1.8.
PRIOR = (0.05, 0.6)
WIDTH = 3.84  # of twice the logarithm: 95% of one number
NEEDED = 1 / 6  # share of the figures that factors must meet beyond the profile's, elsewhere
GRID = 9  # values of each factor in a round
ROUNDS = 3
LEARNED = 0.6  # an interval of more than this share of what is known without a run: hardly told
FIRST = (0.16, 1.8)  # logarithms: factors of .85 to 1.17, and of a sixth to six
DIGITS = (3, 2)

Floats = NDArray[np.float64]
Parts = Sequence[NDArray[np.intp]]  # of each run, places of requests


@dataclass(frozen=True)
class Half:
    """How many of a half's figures are met with and without the factors found on the other."""

    figures: int
    plain: int
    calibrated: int


@dataclass(frozen=True)
class Factor:
    """A factor with its 95% interval; ``told`` is false where the runs hardly tell it."""

    value: float
    low: float
    high: float
    told: bool


@dataclass(frozen=True)
class Calibration:
    """What was found: ``timing`` is the spelling of the calibrated profile.

    ``second_half`` is of factors that were found on the first halves of the runs alone;
    ``rows`` hold each run's figures measured, by the plain profile and by the calibrated one.
    ``factors`` are those of ``timing``: of GPU and CPU as found, or 1 where none are needed.
    """

    timing: str
    gpu: Factor
    cpu: Factor
    second_half: Half
    rows: tuple[dict[str, Any], ...]
    factors: tuple[float, float]
    notices: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "timing": self.timing,
            **{name: vars(getattr(self, name)) for name in ("gpu", "cpu", "second_half")},
            "factors": list(self.factors),
            "figures": list(self.rows),
            "notices": list(self.notices),
        }


def calibrate(
    runs: Sequence[Measured],
    timing: str | ProfileTiming,
    engine: Engine,
    policy: str = "fcfs",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """The factors under which ``timing``, a profile, tells the latencies of ``runs``.

    ``engine`` and ``policy`` are those that served. Each run is simulated with its own arrivals and
    lengths; compared are mean, P50, P90 and P99 of TTFT, TPOT and end-to-end latency. A grid is
    narrowed around the best three times. A factor that the runs hardly tell stays near 1, as cards
    and hosts usually do, and ``notices`` say so. Where the profile as it is tells the second halves
    as well, it is left as it is.

    Raises ``InputError`` for a timing that is no profile, and a policy that reads lengths.
    """
    profile = load_timing(timing) if isinstance(timing, str) else timing
    if not isinstance(profile, ProfileTiming):
        raise InputError(
            f"calibrate takes a measured profile, not {timing!r}, which knows no CPU beside its GPU"
        )
    fitted = _Fit(runs, profile, engine, policy)
    halves = [_half_of(len(one)) for one in runs]
    total = 2 * ROUNDS * GRID * GRID
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    early = fitted.search([first for first, _ in halves], step)
    late = [second for _, second in halves]
    count, plain = fitted.met((1.0, 1.0), late)
    _, calibrated = fitted.met(early.values, late)
    found = fitted.search([np.arange(len(one)) for one in runs], step)
    notices = [notice for one in runs for notice in one.notices]
    notices += [
        f"these runs hardly tell the {name}'s factor: anything from {one.low:.2f} to "
        f"{one.high:.2f} fits, so {one.value:g} leans on what is usual"
        for name, one in (("GPU", found.gpu), ("CPU", found.cpu))
        if not one.told
    ]
    used = found.values
    if calibrated - plain < NEEDED * count:
        used = (1.0, 1.0)
        notices.append(
            f"the profile as it is does as well on the second half ({plain} figures met, "
            f"{calibrated} with factors of the first half): it needs no factors"
        )
    return Calibration(
        profile.with_factors(gpu=used[0], cpu=used[1]).name, found.gpu, found.cpu,
        Half(count, plain, calibrated), tuple(fitted.rows(used)), used, tuple(notices),
    )  # fmt: skip


def _half_of(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The earlier and the later half of n requests in order of arrival."""
    return np.arange(n // 2), np.arange(n // 2, n)


def figures(first_s: Floats | None, last_s: Floats, tokens: NDArray[np.int64]) -> dict[str, Floats]:
    """Mean, P50, P90 and P99 of each latency in seconds, (4,); TPOT of two tokens or more."""
    found = {"e2e": last_s}
    if first_s is not None:
        several = tokens > 1
        found["ttft"] = first_s
        if several.any():
            found["tpot"] = (last_s - first_s)[several] / (tokens[several] - 1)
    return {name: statistics(found[name]) for name in METRICS if name in found}


def statistics(values: Floats) -> Floats:
    """Mean, P50, P90 and P99, (4,)."""
    return np.array([values.mean(), *np.quantile(values, QUANTILES)])


def met(ratio: Floats) -> NDArray[np.bool_]:
    """Which of (mean, P50, P90, P99), simulated over measured, are within 5%, P99 within 10%."""
    return np.abs(ratio - 1) <= np.array([BOUND.get(name, LEVEL) for name in STATISTICS]) + 1e-12


@dataclass(frozen=True)
class _Found:
    gpu: Factor
    cpu: Factor

    @property
    def values(self) -> tuple[float, float]:
        return self.gpu.value, self.cpu.value


@dataclass(frozen=True)
class _Surface:
    """Twice the negative logarithm of how well pairs of factors fit, (gpu, cpu)."""

    axes: tuple[Floats, Floats]
    misfit: Floats

    def factor(self, axis: int) -> Factor:
        """One of the two with its interval: where the best of the other fits nearly as well."""
        values, profile = self.axes[axis], self.misfit.min(axis=1 - axis)
        inside = np.flatnonzero(profile <= profile.min() + WIDTH)
        low, high = values[max(inside[0] - 1, 0)], values[min(inside[-1] + 1, len(values) - 1)]
        told = math.log(high / low) < LEARNED * 2 * math.sqrt(WIDTH) * PRIOR[axis]
        return Factor(float(values[profile.argmin()]), float(low), float(high), told)


class _Fit:
    """The runs, and their simulations under any factors."""

    def __init__(
        self, runs: Sequence[Measured], profile: ProfileTiming, engine: Engine, policy: str
    ) -> None:
        self._runs, self._profile, self._engine = runs, profile, engine
        self._policy, self._router = load_policy(policy), load_router("round-robin")
        if needs_prediction(self._policy):
            raise InputError(f"calibrate runs policies that need no lengths, not {policy!r}")
        self._kept: dict[tuple[float, float], list[tuple[Floats, Floats]]] = {}

    def _simulated(self, factors: tuple[float, float]) -> list[tuple[Floats, Floats]]:
        """Seconds to first and last tokens of each run's requests."""
        if factors not in self._kept:
            timing = self._profile.with_factors(gpu=factors[0], cpu=factors[1])
            system = System((Node(self._engine, timing, self._policy),), self._router)
            found = []
            for one in self._runs:
                records = run(one.workload, system, None)
                found.append(
                    (
                        (records.first_token_ps - records.arrival_ps) / 1e12,
                        (records.finish_ps - records.arrival_ps) / 1e12,
                    )
                )
            self._kept[factors] = found
        return self._kept[factors]

    def _ratios(self, factors: tuple[float, float], parts: Parts) -> list[dict[str, Floats]]:
        """Simulated over measured of each run's part, each figure, (4,)."""
        out = []
        for one, part, (first, last) in zip(
            self._runs, parts, self._simulated(factors), strict=True
        ):
            tokens = one.workload["output_tokens"][part]
            real = figures(
                None if one.first_s is None else one.first_s[part], one.last_s[part], tokens
            )
            ours = figures(first[part], last[part], tokens)
            out.append({name: ours[name] / real[name] for name in real})
        return out

    def met(self, factors: tuple[float, float], parts: Parts) -> tuple[int, int]:
        """How many figures there are, and how many of them are met."""
        ratios = [ratio for one in self._ratios(factors, parts) for ratio in one.values()]
        return sum(map(len, ratios)), int(sum(met(ratio).sum() for ratio in ratios))

    def _misfit(self, factors: tuple[float, float], parts: Parts) -> float:
        total = 0.0
        for one in self._ratios(factors, parts):
            for name, ratio in one.items():
                off = np.log(ratio) / (TRUST[name] * np.array([1, 1, 1, 2]))
                # grows like the distance, not its square: one figure that can't be met by any
                # factor must not decide
                total += INDEPENDENT * float(np.sum(2 * (np.sqrt(1 + off * off) - 1)))
        known = sum(
            (math.log(factor) / width) ** 2 for factor, width in zip(factors, PRIOR, strict=True)
        )
        return total + known

    def search(self, parts: Parts, step: Callable[[], None]) -> _Found:
        """Grids around the best, each narrower, but never than what fits nearly as well."""
        centre, spread = np.zeros(2), np.array(FIRST)
        for _ in range(ROUNDS):
            axes = [
                np.exp(np.linspace(c - s, c + s, GRID)) for c, s in zip(centre, spread, strict=True)
            ]
            surface = self._surface((axes[0], axes[1]), parts, step)
            found = [surface.factor(axis) for axis in (0, 1)]
            centre = np.array([math.log(math.sqrt(one.low * one.high)) for one in found])
            spread = np.array([0.6 * math.log(one.high / one.low) for one in found])
        return _Found(*found)

    def _surface(
        self, axes: tuple[Floats, Floats], parts: Parts, step: Callable[[], None]
    ) -> _Surface:
        rounded = (axes[0].round(DIGITS[0]), axes[1].round(DIGITS[1]))
        misfit = np.empty((len(rounded[0]), len(rounded[1])))
        for i, gpu in enumerate(rounded[0].tolist()):
            for j, cpu in enumerate(rounded[1].tolist()):
                misfit[i, j] = self._misfit((gpu, cpu), parts)
                step()
        return _Surface(rounded, misfit)

    def rows(self, factors: tuple[float, float]) -> list[dict[str, Any]]:
        """Each run's figures in seconds, measured and simulated without and with the factors."""
        out = []
        every = [np.arange(len(one)) for one in self._runs]
        plain, calibrated = (self._ratios(at, every) for at in ((1.0, 1.0), factors))
        for one, before, after in zip(self._runs, plain, calibrated, strict=True):
            real = figures(one.first_s, one.last_s, one.workload["output_tokens"])
            for name in real:
                for k, statistic in enumerate(STATISTICS):
                    out.append(
                        {
                            "run": one.name, "figure": f"{name}_{statistic.lower()}",
                            "measured_s": float(real[name][k]),
                            "plain": float(before[name][k] - 1),
                            "calibrated": float(after[name][k] - 1),
                        }
                    )  # fmt: skip
        return out
