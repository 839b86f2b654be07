"""Policies and routers for suites that hold engines to each other: all registered ones, and more.

A newly registered one is drawn by being registered. Beside them stand random scores: expression
trees over the features that an engine can tell, scaled by their units so that each one matters.
They are written to files, as a user's policy is, so that every engine can load them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise import features, registry
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import RoutingPolicy, SchedulingPolicy

# What a value of this unit is divided by, so that those of small workloads are about 1.
SCALES = {"s": 0.2, "tokens": 20.0, "requests": 3.0, "1": 1.0, "tokens/s": 300.0}
PAIRS = ("{} + {}", "{} - {}", "{} * {}", "np.minimum({}, {})", "np.maximum({}, {})")
PREEMPTIONS = (
    "", "", "", "+preempt:price=0.0", "+preempt:price=0.001,margin=0.5,overhead_tokens=3",
    "+preempt:price=0.01,overhead_tokens=0,max_per_step=2",
    "+preempt:protect_after=0.5,price=0.001,overhead_tokens=5", "+preempt:mode=none",
)  # fmt: skip
# What the simulated engines offer beyond vLLM.
BEYOND = (
    "", "", "", "+preempt:mode=swap,price=0.0", "+admit:reserve=1.0",
    "+preempt:price=0.0+admit:reserve=0.3", "+admit:reserve=1.0,by=peak",
    "+preempt:price=0.0+admit:reserve=0.8,by=peak,of=expected_remaining_tokens",
)  # fmt: skip


def registered_policy(rng: np.random.Generator) -> str:
    """The spelling of a registered policy, some of its tunables changed."""
    names = registry.names("policy")
    name = names[rng.integers(len(names))]
    policy = registry.load("policy", name)
    changed = [
        f"{key}={_other(value, rng)}"
        for key, value in policy.score.tunables.items()
        if rng.random() < 0.4
    ]
    return f"{name}:{','.join(changed)}" if changed else name


def random_policy(
    rng: np.random.Generator,
    told: Iterable[str],
    scores: int,
    *,
    beyond: bool = True,
    further: str = "",
) -> SchedulingPolicy:
    """Any policy: a registered one, or one of ``scores`` random ones over the features ``told``.

    Without ``beyond`` it is one that a plugin in vLLM can follow; ``further`` is added to its name.
    """
    spec = registered_policy(rng)
    if rng.random() < 0.4:
        spec = random_score(int(rng.integers(scores)), told)
    if (plain := _policy(spec)).queue == "fcfs":
        return plain
    more = BEYOND[rng.integers(len(BEYOND))] if beyond else ""
    more = more or PREEMPTIONS[rng.integers(len(PREEMPTIONS))]
    return _policy(spec + more + further)


def random_router(rng: np.random.Generator, told: Iterable[str], scores: int) -> RoutingPolicy:
    """The same for routers; some look at two replicas only."""
    names = registry.names("router")
    spec = names[rng.integers(len(names))]
    if rng.random() < 0.4:
        spec = random_score(int(rng.integers(scores)), told)
    policy = _router(spec)
    return dataclasses.replace(policy, choices=2) if rng.random() < 0.2 else policy


def random_score(number: int, told: Iterable[str]) -> str:
    """``FILE:score`` of a random score: every feature that is told is read by one in a few."""
    names = sorted(told)
    rng = np.random.default_rng([number, len(names)])
    count = int(rng.integers(2, 5))
    reads = {names[number % len(names)], *rng.choice(names, count - 1).tolist()}
    leaves = [f"{name} / {SCALES[features.get(name).unit]}" for name in sorted(reads)]
    nodes = [*leaves, *(leaves[i] for i in rng.integers(len(leaves), size=rng.integers(3)))]
    while len(nodes) > 1:
        first, second = (nodes.pop(int(rng.integers(len(nodes)))) for _ in range(2))
        nodes.append(_node(first, second, rng))
    return f"{_written(sorted(reads), nodes[0])}:score"


def _node(first: str, second: str, rng: np.random.Generator) -> str:
    if rng.random() < 0.2:
        return f"np.where(({first}) > ({second}), {rng.integers(4)}.5, ({first}) - ({second}))"
    if rng.random() < 0.2:
        return f"np.floor({2 * rng.random():.2f} * ({first})) + ({second})"
    return f"({PAIRS[rng.integers(len(PAIRS))].format(f'({first})', f'({second})')})"


def _other(value: Any, rng: np.random.Generator) -> Any:
    """Another value for a tunable, of its type and in a range that its default is in."""
    if isinstance(value, bool):
        return str(not value).lower()
    factor = (0.25, 0.5, 2.0)[rng.integers(3)]
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


# A file is judged by trying its score, which takes longer than many a trial.
_policy, _router = cache(load_policy), cache(load_router)


@cache
def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"lengthwise-random-scores-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _written(reads: Sequence[str], body: str) -> Path:
    text = f"import numpy as np\n\n\ndef score({', '.join(reads)}):\n    return {body}\n"
    path = _folder() / f"score_{hashlib.sha256(text.encode()).hexdigest()[:16]}.py"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(text)
        os.replace(partial, path)
    return path
