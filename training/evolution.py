"""An evolution strategy over blends of terms, with the fast engine as fitness function.

A CMA-ES (Hansen and Ostermeier, Evolutionary Computation 2001), by default in its separable form
(Ros and Hansen, PPSN 2008): a normal distribution over the weights, one variance a weight. A
candidate's fitness is its mean log cost over that of the baseline that is best there, over episodes
that all candidates share (common random numbers). The start is the best baseline that is a blend,
so that learning never begins below it; the best on validation episodes is what is kept.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from lengthwise.envs.episodes import Episode
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval.strategy import Search
from lengthwise.eval.tune import METRICS, records_of
from lengthwise.policies.blend import Blend
from lengthwise.policies.srtf import SRTF
from lengthwise.policies.terms import TERMS
from lengthwise.policy import Preemption, RoutingPolicy, SchedulingPolicy, Score
from lengthwise.serving import Stops, begin
from lengthwise.trained import Range, TrainedOn, widened

Floats = NDArray[np.float64]
Judged = SchedulingPolicy | RoutingPolicy

# A weight that is no term's: how readily a scheduler preempts; see ``policy_of``.
PREEMPT = "preempt"
USUAL_PRICE = 0.01  # of ``Preemption``, in tokens of the answer for one to be computed again
LEAST_PREEMPT = 0.05  # below it no exchange is worth its price

# What is learned: terms, and how far weights may lie apart is the search's to find.
FAMILIES: dict[str, tuple[str, ...]] = {
    "scheduling": (
        "predicted", "prompt", "root_predicted", "footprint", "arrival", "expected_remaining",
        "left_prompt", PREEMPT,
    ),
    "routing": (
        "outstanding_s", "outstanding_per_seat", "prefill_s", "decode_s", "seat_wait_s",
        "requests_per_seat", "own_s", "own_prompt_s", "unfinished_s", "unfinished_per_seat",
        "own_step_s", "own_crowd_s", "prompt_crowd_s",
    ),
}  # fmt: skip
TOKENS = ("predicted", "expected_remaining", "remaining")  # terms in tokens of the answer
COSTS = ("e2e_mean", "e2e_p99", "normalized_latency_mean")  # columns of a table of costs
TIE = 0.01  # baselines whose costs differ by no more than this share are as good as each other
MEASURED = 400  # routing decisions of an episode that scales are measured on


@dataclass(frozen=True)
class Goal:
    """What is minimised: the mean over episodes of weighted log ratios to the best baseline there.

    ``p99`` and ``normalized`` are the weights of the 99th percentile and of the mean normalised
    latency, beside the mean's, which is the rest. ``regret`` is the extra weight of episodes on
    which the baseline is better: a policy for many systems should lose on none.
    """

    p99: float = 0.0
    normalized: float = 0.0
    regret: float = 1.0

    def __post_init__(self) -> None:
        if min(self.p99, self.normalized, self.regret) < 0 or self.p99 + self.normalized > 1:
            raise InputError(
                "weights of p99 and normalized latency must be 0 or more and at most 1 together"
            )

    def __call__(self, costs: Floats, best: Floats) -> float:
        """From costs (episodes, 3) of a candidate and of the best baseline."""
        weights = np.array([1 - self.p99 - self.normalized, self.p99, self.normalized])
        logs = np.log(costs / best) @ weights
        return float(logs.mean() + self.regret * np.maximum(logs, 0).mean())


def costs_of(episode: Episode, judged: Judged) -> list[float]:
    """Mean and P99 latency, s, and mean normalised latency, s/token, of an episode."""
    records = records_of(episode, judged)
    found = [METRICS[name](records) for name in COSTS]
    if not np.isfinite(found).all() or min(found) <= 0:
        raise InputError(
            f"the cost of {judged.name} on {episode.name} is {found[0]}: a cost must be a finite "
            "number above 0"
        )
    return found


def least(table: Floats) -> Floats:
    """Of costs (policies, episodes, 3) those of the policy with the lowest mean latency of each
    episode, (episodes, 3): who is judged by it knew in hindsight what to run.
    """
    chosen: Floats = table[table[:, :, 0].argmin(axis=0), np.arange(table.shape[1])]
    return chosen


Costs = Callable[[Sequence[Judged]], Floats]  # policies -> (policies, episodes, 3)


@contextmanager
def judging(episodes: Sequence[Episode], processes: int = 1) -> Iterator[Costs]:
    """A function that runs policies on all episodes, over as many processes."""
    if processes <= 1:
        yield lambda policies: np.array(
            [[costs_of(one, policy) for one in episodes] for policy in policies]
        )
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_give, initargs=(list(episodes),)
    ) as pool:

        def costs(policies: Sequence[Judged]) -> Floats:
            pairs = [(policy, i) for policy in policies for i in range(len(episodes))]
            each = max(1, len(pairs) // (4 * processes))
            found = np.array(list(pool.map(_one, pairs, chunksize=each)))
            return found.reshape(len(policies), len(episodes), len(COSTS))

        yield costs


_episodes: list[Episode] = []  # a worker process's own


def _give(episodes: list[Episode]) -> None:
    _episodes[:] = episodes


def _one(pair: tuple[Judged, int]) -> list[float]:
    return costs_of(_episodes[pair[1]], pair[0])


def policy_of(kind: str, terms: Sequence[str], weights: Sequence[float]) -> Judged:
    """The policy or router of a blend, scaled so that its largest weight is 1; order is the same.

    Terms without weight are left out, so that nothing is read that does not count. A scheduler's
    ``PREEMPT`` of 1 is preemption at ``USUAL_PRICE`` for each token of the answer, of 2 at half of
    it; below ``LEAST_PREEMPT`` there is none.
    """
    used = {name: float(w) for name, w in zip(terms, weights, strict=True) if w}
    readiness = used.pop(PREEMPT, 0.0)
    most = max(map(abs, used.values()), default=0.0)
    if not 0 < most < np.inf:
        raise InputError(f"weights {list(weights)!r} make no score")
    token = sum(used.get(name, 0.0) for name in TOKENS) / most
    used = {name: w / most for name, w in used.items()}
    score = Blend(tuple(used), tuple(used.values())).score("learned")
    if kind == "routing":
        return RoutingPolicy(score)
    if readiness < LEAST_PREEMPT or not token:
        return SchedulingPolicy(score)
    return SchedulingPolicy(score, Preemption("recompute", price=USUAL_PRICE * token / readiness))


def as_blend(policy: Judged) -> dict[str, float] | None:
    """A baseline as weights of terms; None for one that is no blend."""
    score: Score = policy.score
    given = score.tunables
    known: dict[str, dict[str, float]] = {
        "fcfs": {"arrival": 1.0}, "sjf": {"predicted": 1.0}, "jsq": {"requests": 1.0},
        "least-tokens": {"outstanding": 1.0}, "least-requests": {"unfinished_s": 1.0},
        "weighted-round-robin": {"turn": 1.0},
        "min-min": {"outstanding_s": 1.0, "own_s": 1.0, "own_prompt_s": 1.0},
    }  # fmt: skip
    if isinstance(policy, RoutingPolicy) and policy.choices:
        return None
    if score.name == "srtf" and getattr(policy, "preemption", None) == SRTF.preemption:
        return {"expected_remaining": 1.0, PREEMPT: 1.0}
    if score.name == "work":
        return {"predicted": 1.0, "prompt": float(given["b"])}
    if score.name == "jsew":
        return {
            "prefill_s": float(given["b"]), "seat_wait_s": 1.0, "decode_s": float(given["crowding"])
        }  # fmt: skip
    return known.get(score.name)


def scales_of(episodes: Sequence[Episode], kind: str, terms: Sequence[str], by: Judged) -> Floats:
    """How much each term differs between candidates, (terms,): what a weight of 1 is measured in.

    For a scheduler the spread over requests (of arrivals: over a hundred in a row); for a router
    the mean spread over the replicas, in runs that ``by`` decides.
    """
    scored = [name for name in terms if name != PREEMPT]
    spread = np.array([_spread(episode, kind, scored, by) for episode in episodes]).mean(axis=0)
    found = dict(zip(scored, spread, strict=True))
    return np.array([found.get(name) or 1.0 for name in terms])


def _spread(episode: Episode, kind: str, terms: Sequence[str], by: Judged) -> list[float]:
    scores = [TERMS[name] for name in terms]
    if kind == "scheduling":
        values = _columns(episode)
        near = np.array_split(
            np.arange(len(episode.workload)), max(1, len(episode.workload) // 100)
        )
        return [
            float(np.mean([np.std(np.asarray(score.evaluate(values))[rows]) for rows in near]))
            if name == "arrival" else float(np.std(score.evaluate(values)))
            for name, score in zip(terms, scores, strict=True)
        ]  # fmt: skip
    names = tuple(dict.fromkeys(name for s in (*scores, by.score) for name in s.features))
    going = begin(
        episode.workload, episode.system, episode.predictions, seed=episode.seed, backend="fast"
    )
    rows = np.zeros((len(episode.system.nodes), len(names)))
    found = []
    for _ in range(min(MEASURED, len(episode.workload))):
        if going.advance(Stops(route=True)).kind != "route":
            break
        going.features(names, rows)
        values = dict(zip(names, rows.T, strict=True))
        found.append([float(np.std(np.asarray(score.evaluate(values)))) for score in scores])
        going.answer(int(np.argmin(by.score.evaluate(values))))
    return [float(value) for value in np.mean(found, axis=0)]


def _columns(episode: Episode) -> dict[str, Floats]:
    """The features of an episode's requests that are known at arrival."""
    values = {name: np.asarray(episode.workload[name], np.float64)
              for name in ("arrival_s", "prompt_tokens")}  # fmt: skip
    if episode.predictions is not None:
        values["predicted_tokens"] = episode.predictions.predicted_tokens
        values["expected_remaining_tokens"] = episode.predictions.predicted_tokens
    values["generated_tokens"] = values["computed_tokens"] = np.zeros(len(episode.workload))
    return values


def ground(episodes: Sequence[Episode], loads: Range | None = None) -> TrainedOn:
    """The ranges that these episodes cover."""
    each = [episode.ranges for episode in episodes]
    spans = reduce(widened, each).items()
    ranges = {name: span for name, span in spans if all(name in one for one in each)}
    if loads is not None:
        ranges["load"] = loads
    return TrainedOn.of(ranges, {episode.workload.name for episode in episodes})


def nothing_to_learn(costs: Mapping[str, Floats]) -> str:
    """What to say before training where baselines tie; "" where they don't.

    ``costs`` holds the mean latencies of two baselines or more, (episodes,), by name.
    """
    levels = {name: float(np.log(found).mean()) for name, found in costs.items()}
    if len(levels) < 2 or max(levels.values()) - min(levels.values()) > np.log1p(TIE):
        return ""
    return (
        f"nothing to learn here: {', '.join(levels)} cost the same to 1%; most likely no queue "
        "forms (a higher load, fewer seats or fewer replicas make one)"
    )


@dataclass(frozen=True)
class Evolved:
    """What a search found: a policy, the fitness on validation episodes of it and of the start.

    ``history`` holds (evaluations, validation fitness) pairs, ``told`` the training fitness of each
    generation, from which a search goes on exactly. ``improved``: whether anything beat the start.
    """

    policy: Judged
    weights: dict[str, float]
    fitness: float
    start: dict[str, float]
    start_fitness: float
    history: tuple[tuple[int, float], ...]
    told: tuple[tuple[float, ...], ...]
    evaluations: int

    @property
    def improved(self) -> bool:
        """Whether validation found something better than the start."""
        return self.fitness < self.start_fitness


def search(
    kind: str,
    costs: Costs,
    validate: Costs,
    *,
    best: Floats,
    best_validation: Floats,
    start: Mapping[str, float],
    scales: Mapping[str, float],
    goal: Goal,
    evaluations: int = 400,
    population: int = 16,
    sigma: float = 0.3,
    every: int = 3,
    seed: int = 0,
    diagonal: bool = True,
    told: Sequence[Sequence[float]] = (),
    after: Callable[[Evolved], bool] | None = None,
) -> Evolved:
    """Searches weights of terms, all of them 0 or more, so that the score is monotone.

    ``costs`` and ``validate`` run policies on training and on validation episodes; ``best`` and
    ``best_validation`` (episodes, 3) are the best baselines' costs there (see ``least``). ``start``
    are weights of terms, ``scales`` what a weight is measured in, ``diagonal`` is that of
    ``Search``. Every ``every`` generations the distribution's mean and the generation's best are
    validated. ``told`` are the generations of an earlier call with the same arguments, which are
    not run again, only validated; ``after`` each generation may return True to end.
    """
    terms = tuple(dict.fromkeys((*scales, *start)))
    if kind not in FAMILIES:
        raise UnknownNameError("kind of policy", kind, FAMILIES)
    unit = np.array([scales.get(name, 1.0) for name in terms])
    origin = np.array([start.get(name, 0.0) for name in terms]) * unit
    origin /= np.linalg.norm(origin) or 1.0
    found = Search(origin, sigma, population, seed, diagonal)
    kept = list(origin)
    fitness = goal(validate([policy_of(kind, terms, origin / unit)])[0], best_validation)
    start_fitness, history = fitness, [(0, fitness)]
    past: list[tuple[float, ...]] = []

    def state() -> Evolved:
        weights = np.array(kept) / unit
        policy = policy_of(kind, terms, weights)
        named = dict(zip(terms, weights.tolist(), strict=True))
        return Evolved(
            policy, named, fitness, dict(start), start_fitness, tuple(history), tuple(past),
            len(past) * population,
        )  # fmt: skip

    generations = max(1, evaluations // population)
    while found.generation < generations:
        asked = np.abs(found.ask())  # the sign of a weight is its term's
        index = found.generation
        if index < len(told):
            values = [float(value) for value in told[index]]
        else:
            rows = costs([policy_of(kind, terms, row / unit) for row in asked])
            values = [goal(row, best) for row in rows]
        found.tell(values)
        past.append(tuple(values))
        if found.generation % every == 0 or found.generation == generations:
            tried = [np.abs(found.mean), asked[int(np.argmin(values))]]
            rows = validate([policy_of(kind, terms, one / unit) for one in tried])
            for one, row in zip(tried, rows, strict=True):
                value = goal(row, best_validation)
                history.append((found.generation * population, value))
                if value < fitness:
                    fitness, kept = value, list(one)
        if index >= len(told) and after is not None and after(state()):
            break
    return state()


def with_ground(policy: Judged, trained_on: TrainedOn) -> Judged:
    """The policy, with what it was trained on."""
    return replace(policy, trained_on=trained_on)
