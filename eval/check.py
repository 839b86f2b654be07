"""A user's score function on everything that it may be run by, before it is run by any of it.

The contract first (``lengthwise.contract``): arrays, single numbers, purity. Then what it becomes:
machine code or called Python, the reference engine and its compiled twin on the same requests,
vLLM's own scheduler where its environment is made, who can tell the features it reads, and how long
it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from lengthwise import contract, registry
from lengthwise.blame import Problem, place_of
from lengthwise.errors import LengthwiseError
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.load import only_function
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policy import RoutingPolicy, SchedulingPolicy, Score
from lengthwise.prediction import Prediction, Predictions
from lengthwise.sampled import columns
from lengthwise.serving import Engine, Node, Records, System, run
from lengthwise.serving.fast.calls import why_python
from lengthwise.serving.fast.compiler.score import compile_score, sample_rows
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload

Verdict = Literal["ok", "wrong", "note", "not checked"]
QUEUE = 1000  # requests scored at once, to time it
# What the plugin can't tell to the last bit: its clock starts elsewhere, and it divides otherwise.
INEXACT = frozenset({"arrival_s", "now_s", "kv_utilization", "deadline_s"})
# Who schedules, and who routes, among the providers of features.
CARRIERS = {
    "policy": ("reference", "fast", "vllm", "sglang", "transformers"),
    "router": ("reference", "fast", "router", "environment"),
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what came of it."""

    name: str
    verdict: Verdict
    said: str


@dataclass(frozen=True)
class Checked:
    """All that is known of a score; ``ok`` where nothing is wrong with it."""

    policy: str
    kind: str
    where: str
    reads: tuple[str, ...]
    problems: tuple[Problem, ...]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and all(check.verdict != "wrong" for check in self.checks)

    @property
    def lines(self) -> list[str]:
        """What is wrong, a line each."""
        wrong = [f"{c.name}: {c.said}" for c in self.checks if c.verdict == "wrong"]
        return [*map(str, self.problems), *([] if self.problems else wrong)]

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "policy": self.policy, "kind": self.kind, "where": self.where, "ok": self.ok,
            "reads": list(self.reads), "problems": [asdict(one) for one in self.problems],
            "checks": [asdict(one) for one in self.checks],
        }  # fmt: skip


def check_policy(spec: str, *, router: bool = False) -> Checked:
    """Looks at ``FILE.py``, ``FILE.py:FUNCTION`` or anything else that names a policy or router.

    Raises ``InputError`` for what can't be loaded at all.
    """
    if spec.endswith(".py"):
        spec = f"{spec}:{only_function(spec)}"
    kind = "router" if router or spec.partition(":")[0] in registry.TABLES["router"] else "policy"
    policy = (load_router if kind == "router" else load_policy)(spec, tried=False)
    score = policy.score
    file, line = place_of(score.function)
    problems = tuple(contract.problems(score))
    steps: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("machine code", lambda: _compiled(score)),
        ("engines", lambda: _engines(policy)),
        ("vLLM", lambda: _vllm(policy)),
        ("features", lambda: _carried(score, kind)),
        ("speed", lambda: _speed(score)),
    )
    checks = []
    for name, step in steps:
        if problems:
            checks.append(Check(name, "not checked", "the function first"))
            continue
        try:
            checks += step()
        except LengthwiseError as error:
            checks.append(Check(name, "wrong", str(error)))
    if not problems:
        tried = "the same as arrays, as single numbers, and again; no argument is written to"
        checks.insert(0, Check("function", "ok", tried))
    return Checked(
        spec, kind, f"{file}:{line}" if line else "", score.features, problems, tuple(checks)
    )


def _compiled(score: Score) -> Iterator[Check]:
    why = why_python(score)
    if why is None:
        yield Check("machine code", "ok", "the same bits as Python")
    else:
        yield Check("machine code", "note", f"called as Python, which is slower: {why}")


def _engines(policy: SchedulingPolicy | RoutingPolicy) -> Iterator[Check]:
    """The reference and its twin on the same requests."""
    counts = []
    for seed in range(3):
        workload, system, predictions = _case(policy, seed)
        first, second = (
            run(workload, system, predictions, seed=seed, backend=backend)
            for backend in ("reference", "fast")
        )
        counts.append(len(workload))
        if (row := _differs(first, second)) is not None:
            said = f"they differ at request {row} of workload {seed}"
            yield Check("engines", "wrong", f"{said}: a score depends on more than its features")
            return
    said = f"reference and compiled twin agree on {sum(counts)} requests, to the picosecond"
    yield Check("engines", "ok", said)


def _vllm(policy: SchedulingPolicy | RoutingPolicy) -> Iterator[Check]:
    """vLLM's own scheduler with our plugin, against the reference."""
    from lengthwise.policies.plugins.vllm.driver import VALUES
    from lengthwise.serving.vllm.environment import NEWEST, is_made

    name = f"vLLM {NEWEST}"
    if isinstance(policy, RoutingPolicy):
        yield Check(name, "not checked", "a router stands before it")
        return
    lacking = VALUES.lacks(policy.score.features, "it")
    if lacking is not None:
        yield Check(name, "note", lacking.partition(" (it has")[0])
        return
    if not is_made():
        make = "python -m lengthwise.serving.vllm.environment makes its environment"
        yield Check(name, "not checked", make)
        return
    workload, system, _ = _case(policy, 0)
    # clients tell lengths; a curve is what is left of them
    lengths = np.maximum(1.0, np.rint(workload["output_tokens"] * 1.25))
    given: dict[str, Any] = {"predictions": lengths}
    theirs = run(workload, system, backend="vllm", **given)
    row = _differs(run(workload, system, backend="reference", **given), theirs)
    if row is None:
        yield Check(
            name, "ok", f"its scheduler and the reference agree on {len(workload)} requests"
        )
    elif read := sorted(INEXACT & set(policy.score.features)):
        said = (
            f"its scheduler differs at request {row}: its {', '.join(read)} differ in the last bit"
        )
        yield Check(name, "note", said)
    else:
        yield Check(name, "wrong", f"its scheduler and the reference differ at request {row}")


def _carried(score: Score, kind: str) -> Iterator[Check]:
    """Who can tell what it reads."""
    able, unable = [], []
    for name in CARRIERS[kind]:
        lacking = [f for f in score.features if f not in registry.load("provider", name)]
        if lacking:
            unable.append(f"{name} (no {', '.join(lacking)})")
        else:
            able.append(name)
    refused = f"; refused by {', '.join(unable)}" if unable else ""
    yield Check("features", "ok", f"told by {', '.join(able)}{refused}")


def _speed(score: Score) -> Iterator[Check]:
    values = {n: a for n, a in columns(QUEUE, seed=2).items() if n in score.features}
    row = {name: array[0].item() for name, array in values.items()}
    with np.errstate(all="ignore"):
        many, one = _seconds(lambda: score.evaluate(values)), _seconds(lambda: score.evaluate(row))
    said = f"{1e6 * many:.3g} us for {QUEUE} requests, {1e6 * one:.3g} us for one"
    if why_python(score) is None:
        compiled, rows = compile_score(score), sample_rows(QUEUE, seed=2)
        said += f", {1e6 * _seconds(lambda: compiled.evaluate(rows)):.3g} us compiled"
    limit = Settings().policy_timeout_s
    if max(many, one) > limit:
        said += f": the engines' plugins switch off what takes more than {limit:g} s"
        yield Check("speed", "wrong", said)
    else:
        yield Check("speed", "ok", said)


def _seconds(call: Callable[[], Any]) -> float:
    """The median time of a few calls."""
    found = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return sorted(found)[2]


def _case(
    policy: SchedulingPolicy | RoutingPolicy, seed: int
) -> tuple[Workload, System, Predictions]:
    """A small crowded run in which every feature moves: with priorities, deadlines, shared prompts
    and, for routers, three replicas.
    """
    rng = np.random.default_rng(seed)
    count, size = 60, 8
    prompt, output = rng.integers(1, 90, count), rng.integers(1, 60, count)
    arrival = np.sort(rng.uniform(0, 2.0, count)) if seed else np.arange(count) * 0.01
    hashes = [
        tuple(int(rng.integers(3)) * 100 + k for k in range(tokens // size))
        for tokens in prompt.tolist()
    ]
    workload = Workload(
        {
            "arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": output,
            "priority": rng.integers(0, 4, count), "prefix_hashes": hashes,
            "deadline_s": arrival + rng.uniform(0.5, 5.0, count),
            "tenant": [f"tenant {k}" for k in rng.integers(0, 3, count)],
            "hash_block_tokens": np.full(count, size),
        }
    )  # fmt: skip
    engine = Engine(
        max_num_seqs=5, max_num_batched_tokens=64, num_gpu_blocks=60, block_size=size,
        enable_prefix_caching=isinstance(policy, RoutingPolicy),
    )  # fmt: skip
    timing = LinearTiming(0.01, per_prefill_token_s=1e-4, per_sequence_s=1e-3)
    middle = np.maximum(1.0, output * rng.lognormal(0, 0.5, count))
    lengths = middle[:, None] * np.array([0.5, 1.0, 2.0])
    predictions = Prediction.distribution(lengths, [0.1, 0.5, 0.9]).of_run()
    if isinstance(policy, RoutingPolicy):
        node = Node(engine, timing, load_policy("fcfs"))
        return workload, System((node,) * 3, policy), predictions
    return workload, System((Node(engine, timing, policy),), load_router("jsq")), predictions


def _differs(first: Records, second: Records) -> int | None:
    """The first request that two runs served differently; None if there is none."""
    names = ("replica", "scheduled_ps", "first_token_ps", "finish_ps", "preemptions")
    same = np.all([getattr(first, n) == getattr(second, n) for n in names], axis=0)
    return None if same.all() else int(np.argmin(same))
