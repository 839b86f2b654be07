"""Searching for a score: expression trees that evolve, with the simulated engine as judge.

Genetic programming (Koza 1992; typed by units, as Keijzer and Babovic, GECCO 1999) over what a
policy may read: subtrees are exchanged, grown, cut and replaced, numbers are tuned by an evolution
strategy. What does not keep units, may divide by zero, or stops telling requests apart beyond what
was seen, is never run. Candidates race: half of them go on from a few windows to twice as many, as
in ``lengthwise.eval.tune``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.eval.cells import Cells, once
from lengthwise.eval.strategy import Search
from lengthwise.eval.tune import METRICS, Case, records_of
from lengthwise.policies.formula import (
    Formula,
    Node,
    feature,
    number,
    values_of,
    with_values,
    written,
)
from lengthwise.policies.limits import limits
from lengthwise.policies.units import TOKENS, unit_of
from lengthwise.policy import Preemption, SchedulingPolicy

BUDGET = 2000  # simulated runs
SIZE = 15  # nodes of a tree
PARSIMONY = 5e-4  # of the metric's logarithm that a node must be worth
BROOD, KEPT, CONTEST = 24, 40, 3  # children of a generation, survivors, who contend to be a parent
SHARE = 0.4  # of the runs that go into tuning numbers
ROUNDS = 8  # of the strategy that tunes the numbers of one tree
GUARD = 1e-3  # the least value of a denominator that might be 0
FAR = 10.0  # how many times beyond what was seen a score must still tell requests apart
A_DAY = 2.0**17  # seconds, more than one
Rows = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Candidate:
    """A tree, and how it preempts."""

    tree: Node
    preemption: Preemption = field(default_factory=Preemption)

    @cached_property
    def policy(self) -> SchedulingPolicy:
        """As engines run it."""
        return SchedulingPolicy(Formula(self.tree).score("searched"), self.preemption)

    @property
    def preempts(self) -> bool:
        """Whether it preempts, so that differences of scores matter and not their order alone."""
        return self.preemption.mode != "none"

    @property
    def beside(self) -> str:
        """What stands behind the score, as one types it."""
        if not self.preempts:
            return ""
        usual = asdict(Preemption(mode="recompute"))
        given = [f"{k}={v}" for k, v in asdict(self.preemption).items() if v != usual[k]]
        return f"+preempt{':' if given else ''}{','.join(given)}"

    @property
    def key(self) -> str:
        """What it is known by."""
        return f"{written(self.tree, lambda node: repr(node.value))}{self.beside}"


@dataclass(frozen=True)
class Searching:
    """What came of a search: the best candidate, the best of those that it began with (with their
    level: the mean logarithm of the metric), and how many runs it took.

    ``history`` has (runs, level of the best so far), a row whenever there was a better one.
    """

    best: Candidate
    level: float
    seed: str
    seed_level: float
    runs: int
    refused: int
    history: tuple[tuple[int, float], ...]


def search(
    seeds: Mapping[str, Candidate],
    trials: Sequence[Case],
    rows: Rows,
    *,
    metric: str = "e2e_mean",
    budget: int = BUDGET,
    size: int = SIZE,
    parsimony: float = PARSIMONY,
    seed: int = 0,
    cells: Cells | None = None,
    progress: Callable[[int, int], None] | None = None,
    names: Sequence[str] = (),
) -> Searching:
    """The candidate with the lowest metric over ``trials`` and few nodes.

    ``seeds`` are what it begins with, by name: what it returns has no higher metric than any of
    them. ``rows`` are values of features, (n,) each, as runs see them; ``names`` are those that new
    trees may read, all of them unless given. Equal
    seeds find the same, and with ``cells`` an interrupted search goes on where it was. Raises
    ``InputError`` for a budget that does not reach beyond the seeds.
    """
    if budget < len(trials) * (len(seeds) + BROOD):
        raise InputError(
            f"a budget of {budget} runs is less than one on each of {len(trials)} windows for "
            f"{len(seeds)} policies to begin with and {BROOD} others"
        )
    found = _Evolution(seeds, trials, rows, metric, budget, size, parsimony, seed, cells, progress,
                       names)  # fmt: skip
    return found.run()


class _Evolution:
    def __init__(
        self, seeds: Mapping[str, Candidate], trials: Sequence[Case], rows: Rows, metric: str,
        budget: int, size: int, parsimony: float, seed: int, cells: Cells | None,
        progress: Callable[[int, int], None] | None, names: Sequence[str],
    ) -> None:  # fmt: skip
        self.seeds, self.trials, self.metric, self.budget = seeds, trials, METRICS[metric], budget
        self.size, self.parsimony, self.seed = size, parsimony, seed
        self.rng = np.random.default_rng(seed)
        self.variation = Variation(rows, size, self.rng, names)
        self.cells, self.moved = cells, progress
        self.known: dict[tuple[str, int], float] = {}
        self.order = self.rng.permutation(len(trials)).tolist()
        self.whole: dict[str, Candidate] = {}  # run on all windows
        self.tuned: set[str] = set()
        self.seen: set[bytes] = set()
        self.spent = self.refused = 0  # runs on numbers; trees that were not run
        self.history: list[tuple[int, float]] = []

    def run(self) -> Searching:
        self._measure([(one, self.order) for one in self.seeds.values()])
        levels = {name: self._level(one) for name, one in self.seeds.items()}
        first = min(levels, key=lambda name: levels[name])
        for one in self.seeds.values():
            self.seen.add(self.variation.fingerprint(one))
            self.whole[one.key] = one
        self._note()
        while self._left() >= len(self.trials):
            before = len(self.known)
            if self.spent <= SHARE * len(self.known):
                self._tune_numbers()
            self._generation()
            if len(self.known) == before:
                break  # nothing new is found any more
        fit = [one for one in self.whole.values() if self._level(one) <= levels[first]]
        best = min(fit, key=self._fitness)
        return Searching(
            best, self._level(best), first, levels[first], len(self.known), self.refused,
            tuple(self.history),
        )  # fmt: skip

    def _left(self) -> int:
        return self.budget - len(self.known)

    def _level(self, one: Candidate, runs: int | None = None) -> float:
        return float(np.mean([math.log(self.known[one.key, i]) for i in self.order[:runs]]))

    def _fitness(self, one: Candidate) -> float:
        return self._level(one) + self.parsimony * one.tree.size

    def _generation(self) -> None:
        """Children of the best, raced over the windows; the last of them join the others."""
        parents = sorted(self.whole.values(), key=self._fitness)[:KEPT]
        brood: list[Candidate] = []
        for _ in range(20 * BROOD):
            if len(brood) == BROOD:
                break
            one, other = (self._parent(parents) for _ in range(2))
            child = self.variation.child(one, other)
            if child is None:
                self.refused += 1
                continue
            mark = self.variation.fingerprint(child)
            if mark not in self.seen:
                self.seen.add(mark)
                brood.append(child)
        runs, count = 1, len(self.trials)
        while brood:
            runs = min(runs, count)
            self._measure([(one, self.order[:runs]) for one in brood])
            brood = [one for one in brood if self._known(one, runs)]
            if runs == count:
                break
            brood.sort(key=lambda one: self._level(one, runs) + self.parsimony * one.tree.size)
            brood, runs = brood[: max(1, len(brood) // 2)], 2 * runs
        self.whole |= {one.key: one for one in brood}
        self._note()

    def _known(self, one: Candidate, runs: int) -> bool:
        return all((one.key, i) in self.known for i in self.order[:runs])

    def _parent(self, among: Sequence[Candidate]) -> Candidate:
        """The fittest of a few; ``among`` is sorted."""
        return among[int(self.rng.integers(0, len(among), CONTEST).min())]

    def _tune_numbers(self) -> None:
        """The evolution strategy, over the numbers of the fittest tree that has not been there."""
        fit = sorted(self.whole.values(), key=self._fitness)
        todo = [one for one in fit if one.key not in self.tuned and _numbers(one)]
        if not todo:
            return
        begin, before = todo[0], len(self.known)
        self.tuned.add(begin.key)
        count = len(_numbers(begin))
        strategy = Search(
            np.zeros(max(count, 2)), 0.7, 4 + int(3 * math.log(count)), self.seed + len(self.tuned),
            diagonal=False,
        )  # fmt: skip
        best = begin
        for _ in range(ROUNDS):
            made = [_with_factors(begin, row[:count]) for row in strategy.ask()]
            self._measure([(one, self.order) for one in made if self.variation.sound(one)])
            level = [self._level(one) if self._known(one, len(self.trials)) else math.inf
                     for one in made]  # fmt: skip
            if not any(map(math.isfinite, level)):
                break
            worst = max(one for one in level if math.isfinite(one))
            strategy.tell([one if math.isfinite(one) else worst + 1.0 for one in level])
            best = min((best, *(m for m, at in zip(made, level, strict=True)
                                if math.isfinite(at))), key=self._fitness)  # fmt: skip
            if self._left() < len(self.trials):
                break
        self.tuned.add(best.key)
        self.whole[best.key] = best
        self.spent += len(self.known) - before
        self._note()

    def _measure(self, wanted: Sequence[tuple[Candidate, Sequence[int]]]) -> None:
        """Runs candidates on windows, as far as the budget goes; whole batches are kept."""
        asked: dict[tuple[str, int], Candidate] = {}
        for one, indices in wanted:
            new = [(one.key, i) for i in indices if (one.key, i) not in self.known]
            if len(asked) + len(new) <= self._left():
                asked |= dict.fromkeys(new, one)
        if not asked:
            return
        said = "\n".join(f"{key} {i}" for key, i in asked)
        name = f"runs-{blake2b(said.encode(), digest_size=8).hexdigest()}"

        def run_all() -> list[float]:
            values: list[float] = []
            for (_, index), one in asked.items():
                values.append(self._run(one, index))
                if self.moved is not None:
                    self.moved(len(self.known) + len(values), self.budget)
            return values

        values = once(self.cells, name, run_all)
        self.known |= dict(zip(asked, values, strict=True))
        if self.moved is not None:
            self.moved(len(self.known), self.budget)

    def _run(self, one: Candidate, index: int) -> float:
        value = self.metric(records_of(self.trials[index], one.policy))
        if not 0 < value < math.inf:
            raise InputError(f"a search needs a metric above 0, not {value} of {one.key}")
        return value

    def _note(self) -> None:
        level = min(map(self._level, self.whole.values()))
        if not self.history or level < self.history[-1][1]:
            self.history.append((len(self.known), level))


def _numbers(one: Candidate) -> list[float]:
    """What can be tuned of it: its free numbers, and its price on preemption."""
    price = one.preemption.price
    return [*values_of(one.tree), *([price] if one.preempts and price > 0 else [])]


def _with_factors(one: Candidate, logs: NDArray[np.float64]) -> Candidate:
    values = [_rounded(v * math.exp(min(max(x, -8.0), 8.0))) if v else _rounded(x)
              for v, x in zip(_numbers(one), logs.tolist(), strict=True)]  # fmt: skip
    own = len(values_of(one.tree))
    tree = with_values(one.tree, iter(values[:own]))
    priced = values[own:]
    preemption = replace(one.preemption, price=priced[0]) if priced else one.preemption
    return Candidate(tree, preemption)


def _rounded(value: float) -> float:
    """What a file can say, and a reader remember."""
    return float(f"{value:.3g}")


class Variation:
    """Makes trees of others, and says which are sound. ``rows`` are values that runs have seen."""

    def __init__(
        self, rows: Rows, size: int, rng: np.random.Generator, names: Sequence[str] = ()
    ) -> None:
        self.rows, self.size, self.rng = rows, size, rng
        self.names = tuple(names) or tuple(rows)
        self.beyond = {k: v if k in SHARES else FAR * v for k, v in rows.items()}
        self.later = {k: v + A_DAY if k in MOMENTS else v for k, v in rows.items()}

    def child(self, one: Candidate, other: Candidate) -> Candidate | None:
        """A variation of one candidate, or a mixture of two; None if what came is not sound."""
        draw, tree = float(self.rng.random()), one.tree
        preemption = one.preemption
        if draw < 0.35:
            tree = self._put(tree, self._pick(tree), self._pick(other.tree))
        elif draw < 0.6:
            tree = self._put(tree, self._pick(tree), self._grown(2))
        elif draw < 0.75:  # something is added to the whole
            op = ("+", "-", "*", "/", "min", "max")[int(self.rng.integers(6))]
            tree = Node(op, (tree, self._grown(1)))  # type: ignore[arg-type]
        elif draw < 0.85:  # or a part stands for the whole
            tree = self._pick(tree)
        elif draw < 0.95:
            values = [_rounded(v * math.exp(float(self.rng.normal(0, 0.7)))) for v in
                      values_of(tree)]  # fmt: skip
            tree = with_values(tree, iter(values))
        else:
            on = not one.preempts
            price = _rounded(0.01 * math.exp(float(self.rng.normal(0, 1.5))))
            preemption = Preemption(mode="recompute", price=price) if on else Preemption()
        if draw < 0.6 and preemption == one.preemption and self.rng.random() < 0.2:
            preemption = other.preemption
        try:
            made = Candidate(self.mended(tree), preemption)
        except InputError:
            return None
        return made if self.sound(made) else None

    def sound(self, one: Candidate) -> bool:
        """Whether a candidate keeps units, is finite and tells requests apart beyond what was seen.

        Where it preempts, its score is in tokens, as the price is.
        """
        if one.tree.size > self.size or not any(node.op == "feature" for node in one.tree):
            return False
        try:
            unit = unit_of(one.tree)
            limits(one.tree)
        except InputError:
            return False
        if one.preempts and unit not in (None, TOKENS):
            return False
        here, far, later = (self._scores(one.tree, rows) for rows in
                            (self.rows, self.beyond, self.later))  # fmt: skip
        told, further = (len(np.unique(scores)) for scores in (here, far))
        if told < 2 or 2 * further < told:
            return False
        return _same_order(here, later)

    def fingerprint(self, one: Candidate) -> bytes:
        """The same for candidates that order, and preempt, what was seen alike."""
        scores = self._scores(one.tree, self.rows)
        if one.preempts:
            text = ",".join(f"{value:.9g}" for value in scores.tolist()) + one.beside
            return blake2b(text.encode()).digest()
        return blake2b(np.argsort(scores, kind="stable").tobytes()).digest()

    def mended(self, node: Node) -> Node:
        """The tree with a number where units differ, a least value of what is divided by, and
        numbers that stand beside each other as one; raises ``InputError`` where that is not enough.
        """
        if not node.args:
            return node
        args = tuple(self.mended(one) for one in node.args)
        if all(one.op in ("number", "literal") for one in args):
            return number(_rounded(float(Formula(replace(node, args=args))())))
        if node.op in ("+", "-", "min", "max"):
            units = [unit_of(one) for one in args]
            if None not in units and units[0] != units[1]:
                by = number(_rounded(self._scale(args[0]) / self._scale(args[1])))
                args = (args[0], self.mended(Node("*", (by, args[1]))))
        elif node.op == "/":
            low, high = limits(args[1])
            if low < GUARD and high > -GUARD:
                args = (args[0], Node("max", (args[1], Node("literal", value=GUARD))))
        elif node.op == "sqrt" and limits(args[0])[0] < 0:
            args = (Node("max", (args[0], Node("literal"))),)
        elif node.op == "*":
            first, second = args
            if second.op == "number":
                first, second = second, first
            inner = second.args[0] if second.op == "*" else second
            if first.op == "number" and inner.op == "number" and second.op == "*":
                return Node("*", (number(_rounded(first.value * inner.value)), second.args[1]))
            args = (first, second)
        return replace(node, args=args)

    def _scores(self, tree: Node, rows: Rows) -> NDArray[np.float64]:
        formula = Formula(tree)
        found = formula(*(rows[name] for name in formula.features))
        return np.broadcast_to(np.asarray(found, np.float64), (len(next(iter(rows.values()))),))

    def _scale(self, node: Node) -> float:
        """How large it is."""
        return max(float(np.median(np.abs(self._scores(node, self.rows)))), GUARD)

    def _pick(self, tree: Node) -> Node:
        """One of its nodes."""
        nodes = list(tree)
        return nodes[int(self.rng.integers(len(nodes)))]

    def _put(self, tree: Node, old: Node, new: Node) -> Node:
        """The tree with ``new`` where ``old`` (that very one) is."""
        if tree is old:
            return new
        return replace(tree, args=tuple(self._put(one, old, new) for one in tree.args))

    def _grown(self, depth: int) -> Node:
        """A random tree, whose units need not fit."""
        draw = float(self.rng.random())
        if depth == 0 or draw < 0.3:
            return self._leaf()
        if draw < 0.38:
            return Node("sqrt", (self._grown(depth - 1),))
        ops = ("+", "-", "*", "/", "min", "max")
        op = ops[int(self.rng.choice(6, p=(0.25, 0.15, 0.25, 0.15, 0.1, 0.1)))]
        return Node(op, (self._grown(depth - 1), self._grown(depth - 1)))  # type: ignore[arg-type]

    def _leaf(self) -> Node:
        """A feature, how long a request has waited, or a number of the size of a feature."""
        draw = float(self.rng.random())
        name = self.names[int(self.rng.integers(len(self.names)))]
        if draw < 0.1 and {"now_s", "arrival_s"} <= set(self.names):
            return Node("-", (feature("now_s"), feature("arrival_s")))
        if draw < 0.25:
            return number(_rounded(self._scale(feature(name)) * self.rng.lognormal(0, 1)))
        return feature(name)


SHARES = frozenset({"kv_utilization", "tenant_weight", "priority"})  # never larger than usual
MOMENTS = frozenset({"arrival_s", "now_s", "deadline_s"})  # of one clock, whose zero means nothing
MOST_TURNED = 0.01  # of pairs of neighbours


def _same_order(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether hardly any neighbours in the first order have changed places in the second."""
    following = other[np.argsort(one, kind="stable")]
    steps = np.diff(following)
    return bool((steps < -1e-9 * np.abs(following[1:])).mean() <= MOST_TURNED)
