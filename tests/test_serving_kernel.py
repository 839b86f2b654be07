"""The fast engine against the reference: the same records and iterations, to the bit."""

import dataclasses
import itertools
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import Admission, Guard, Preemption, SchedulingPolicy, Score
from lengthwise.serving import Engine
from lengthwise.serving.fast import run as kernel
from lengthwise.serving.fast.features import ACCESSORS
from lengthwise.serving.run import run
from lengthwise.serving.system import Node, System
from lengthwise.serving.timing.linear import LinearTiming
from lengthwise.serving.timing.model import Pipeline
from lengthwise.serving.timing.terms import TERMS
from lengthwise.workload import Workload
from tests.random_policies import random_policy, random_router
from tests.systems import alike

SCORES = 28  # random ones; each is compiled once
FEW = 8  # trials
GUARDS = (
    "", "", "+guard", "+guard:ratio=0.5,floor_s=0.01", "+guard:ratio=0.1,floor_s=0.001",
    "+guard:ratio=1,floor_s=0", "+guard:ratio=0.01,floor_s=0",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TwoClocks(LinearTiming):
    """A linear timing that knows the pipeline of asynchronous scheduling too."""

    terms: tuple = ()

    def pipeline(self, max_num_batched_tokens, max_num_seqs):
        tables = self.tables(max_num_batched_tokens, max_num_seqs)
        return Pipeline(
            tables.decode_ps, np.full(max_num_seqs + 1, tables.terms["context"]), tables.mixed_ps,
            tables.mixed_ps // 3, dict(self.terms),
        )  # fmt: skip


def trial(seed, *, unequal=False):
    """The arguments of one run of either engine; ``unequal`` asks for nodes of several kinds."""
    rng = np.random.default_rng(seed)

    def one(*choices):
        return choices[rng.integers(len(choices))]

    block_size = one(1, 4, 16, 16, 24)
    longest = int(one(4, 20, 60, 200))
    prompt = rng.integers(1, 1 + int(one(4, 30, 120)), 200)
    n = int(rng.integers(1, 120))
    if seed % 13:  # two thirds of all iterations would be those of a few long trials
        n = min(n, 3000 // longest)
    prompt, output = prompt[:n], rng.integers(1, 1 + longest, n)
    columns = {
        "arrival_s": np.cumsum(rng.exponential(one(1e-4, 0.01, 0.05, 0.3), n)),
        "prompt_tokens": prompt,
        "output_tokens": output,
        "priority": rng.integers(-2, 3, n),
        "deadline_s": rng.random(n) * 10,
    }
    whose = np.random.default_rng([seed, 1]).integers(0, 1 + seed % 5, n)
    columns["tenant"] = [f"tenant {k}" for k in whose]
    if seed % 2:
        columns["tenant_weight"] = np.array([1.0, 0.5, 3.0, 0.1, 7.0])[whose]
    if rng.random() < 0.2:
        columns["arrival_s"] = np.round(columns["arrival_s"], 1)  # many at once
    if rng.random() < 0.2:
        columns["parent"] = np.array([int(rng.integers(-1, i)) if i else -1 for i in range(n)])
        columns["think_s"] = np.round(rng.exponential(0.1, n), 2)
    if rng.random() < 0.4:  # prefixes drawn from few, of lengths that fit blocks or do not
        columns["hash_block_tokens"] = np.full(n, one(block_size, 5, 32))
        families = [rng.integers(0, 4, 40).tolist() for _ in range(3)]
        columns["prefix_hashes"] = [
            tuple(families[rng.integers(3)][: rng.integers(0, 12)]) for _ in range(n)
        ]
    total = int((prompt + output).max())
    count = int(one(1, 1, 2, 3, 8))
    nodes = [node(one, rng, block_size, total)]
    if unequal or rng.random() < 0.3:
        sizes = (block_size, one(1, 4, 16, 24))
        nodes += [node(one, rng, one(*sizes), total) for _ in range(int(one(1, 2, 7)))]
        count = max(count, len(nodes))
    noise = one(0.0, 0.5)
    return {
        "workload": Workload(columns),
        "system": System(
            tuple(nodes[i % len(nodes)] for i in range(count)),
            random_router(rng, ACCESSORS, SCORES),
            metrics_interval_s=float(one(0.0, 0.0, 0.01, 0.5)),
        ),
        "predictions": np.maximum(1.0, output * np.exp(noise * rng.standard_normal(n))),
        "seed": int(rng.integers(2**62)),
        "log_iterations": True,
    }


def node(one, rng, block_size, longest):
    """A random node that can hold requests of ``longest`` tokens."""
    most = -(-longest // block_size) + 1
    max_num_seqs = int(one(1, 2, 5, 16, 64))
    chunked = rng.random() < 0.85
    engine = Engine(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(
            max_num_seqs, 1 if chunked else longest, int(one(8, 32, 100, 2048))
        ),
        num_gpu_blocks=int(most + one(0, 1, 3, most, 4 * most, 20 * most)),
        block_size=block_size,
        enable_chunked_prefill=chunked,
        long_prefill_token_threshold=int(one(0, 0, 0, 3, 16)),
        scheduler_reserve_full_isl=bool(rng.random() < 0.7),
        watermark=float(one(0.0, 0.0, 0.05)),
        enable_prefix_caching=bool(rng.random() < 0.4),
        async_scheduling=bool(rng.random() < 0.4),
        long_prefill_applies_alone=bool(rng.random() < 0.3),
        schedule_past_preemption=bool(rng.random() < 0.7),
    )
    kind = LinearTiming
    if rng.random() < 0.5:
        high = int(one(1, 10**9, 5 * 10**9))
        terms = tuple((name, int(rng.integers(0, high))) for name in TERMS)
        kind = partial(TwoClocks, terms=terms)
    timing = kind(
        base_s=float(one(0.0, 0.005)), per_prefill_token_s=float(one(0.0, 2e-5, 1e-3)),
        per_sequence_s=float(one(0.0, 4e-5)), per_context_token_s=float(one(0.0, 1e-6)),
    )  # fmt: skip
    return Node(engine, timing, random_policy(rng, ACCESSORS, SCORES, further=one(*GUARDS)))


def differences(first, second):
    """The columns in which two records differ by a bit."""
    found = [
        field.name
        for field in dataclasses.fields(first)
        if isinstance(getattr(first, field.name), np.ndarray)
        and not _same(getattr(first, field.name), getattr(second, field.name))
    ]
    logs = first.iterations, second.iterations
    if logs[0] is not None:
        found += [
            f"iterations.{field.name}"
            for field in dataclasses.fields(logs[0])
            if not _same(getattr(logs[0], field.name), getattr(logs[1], field.name))
        ]
    return found


def _same(first, second):
    return first.dtype == second.dtype and first.tobytes() == second.tobytes()


def outcome(engine, workload, given):
    """The records, or the line with which the run was refused (preemption without end)."""
    try:
        return engine(workload, **given)
    except InputError as error:
        return str(error)


def disagreements(seeds, make=trial, **options):
    """Trials in which the engines differ, with the columns, or with what each refused."""
    found = {}
    for seed in seeds:
        given = make(seed, **options)
        workload = given.pop("workload")
        assert kernel.supports(workload, given["system"]) is None
        slow = outcome(partial(run, backend="reference"), workload, given)
        fast = outcome(kernel.run, workload, given)
        if isinstance(slow, str) or isinstance(fast, str):
            columns = [] if str(slow) == str(fast) else [str(slow), str(fast)]
        else:
            columns = differences(slow, fast)
        if columns:
            found[seed] = columns
    return found


def spans(total, first, parts):
    """Seeds 0 to ``total``: a few at once, the rest in ``parts``, so that no trial is run twice."""
    edges = [first + (total - first) * part // parts for part in range(parts + 1)]
    late = [pytest.mark.slow, pytest.mark.timeout(3600)]
    return [(0, first)] + [pytest.param(span, marks=late) for span in itertools.pairwise(edges)]


# the first few of them, which take four variants of the engine, run under other numbas as well
@pytest.mark.parametrize("seeds", [(0, FEW), (FEW, 150), *spans(2000, 150, 4)[1:]])
def test_two_thousand_trials_agree_to_the_bit(seeds):
    assert disagreements(range(*seeds)) == {}


@pytest.mark.parametrize("seeds", spans(500, 60, 1))
def test_five_hundred_systems_of_unequal_nodes_agree_to_the_bit(seeds):
    first, last = seeds
    assert disagreements(range(5000 + first, 5000 + last), unequal=True) == {}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_trial_reads_or_writes_outside_an_array():
    code = (
        "import runpy, sys\n"
        "from lengthwise.serving.fast import run as kernel\n"
        "module = runpy.run_path(sys.argv[1])\n"
        "for seed in range(2000):\n"
        "    given = module['trial'](seed)\n"
        "    module['outcome'](kernel.run, given.pop('workload'), given)\n"
    )
    env = {**os.environ, "NUMBA_BOUNDSCHECK": "1"}
    subprocess.run([sys.executable, "-c", code, str(Path(__file__))], env=env, check=True)


def engines(columns, *, policy="fcfs", num_gpu_blocks=10_000, told=None, **options):
    """What both engines make of a workload: records, or the line with which it is refused."""
    given = alike(
        policy=load_policy(policy), routing=load_router("round-robin"),
        engine=Engine(num_gpu_blocks=num_gpu_blocks, **options),
        timing=LinearTiming(base_s=0.01, per_prefill_token_s=1e-5),
        predictions=np.asarray(columns["output_tokens"] if told is None else told, float),
        log_iterations=True,
    )  # fmt: skip
    workload = Workload({name: np.asarray(column) for name, column in columns.items()})
    return [
        outcome(one, workload, given) for one in (partial(run, backend="reference"), kernel.run)
    ]


def some(n, *, longest):
    rng = np.random.default_rng(0)
    return {
        "arrival_s": np.cumsum(rng.exponential(0.01, n)),
        "prompt_tokens": rng.integers(1, longest, n),
        "output_tokens": rng.integers(1, longest, n),
    }


def uneven(arrival_s, now_s, prompt_tokens):
    """A score in Python whose last bit depends on where in an array a request stands."""
    return prompt_tokens - np.log1p(now_s - arrival_s)


@pytest.mark.parametrize("preemption", [Preemption(), Preemption("recompute", price=0.0)])
def test_a_guarded_policy_in_python(preemption):
    policy = SchedulingPolicy(Score.from_function(uneven), preemption, guard=Guard(0.5, 0.0))
    columns = some(600, longest=30) | {"arrival_s": np.arange(600) * 0.01}
    slow, fast = engines(columns, policy=policy, max_num_seqs=8, num_gpu_blocks=20)
    assert differences(slow, fast) == []
    plain = engines(columns, policy=SchedulingPolicy(policy.score, preemption), max_num_seqs=8,
                    num_gpu_blocks=20)[1]  # fmt: skip
    assert differences(plain, fast)  # it acts


@pytest.mark.parametrize("policy", ["fcfs", "srtf", "srtf+guard:ratio=0.1,floor_s=0", "mlfq"])
def test_ten_thousand_arrivals_at_once(policy):
    columns = some(10_000, longest=9) | {"arrival_s": np.full(10_000, 3.0)}
    slow, fast = engines(columns, policy=policy)
    assert differences(slow, fast) == []
    assert fast.scheduled_ps.min() == 3 * 10**12


@pytest.mark.parametrize("by", ["sum", "peak"])
def test_an_infinite_reserve_serves_one_after_the_other(by):
    """But requests whose predicted lengths are reached, of which nothing is to come."""
    columns = some(60, longest=30) | {"arrival_s": np.zeros(60)}
    for reserve in (math.inf, sys.float_info.max, 1e300):
        policy = SchedulingPolicy(load_policy("fcfs").score, admission=Admission(reserve, by))
        told = columns["output_tokens"] + 1.0
        slow, fast = engines(columns, policy=policy, told=told, num_gpu_blocks=200)
        assert differences(slow, fast) == []
        assert fast.iterations.running.max() == 1
        slow, fast = engines(columns, policy=policy, told=np.zeros(60), num_gpu_blocks=200)
        assert differences(slow, fast) == []
        assert bool(fast.iterations.running.max() > 1) == (by == "sum")


@pytest.mark.parametrize("policy", ["fcfs", "srtf"])
def test_one_usable_block_holds_one_request(policy):
    slow, fast = engines(some(50, longest=9), policy=policy, num_gpu_blocks=2)
    assert differences(slow, fast) == []
    assert fast.iterations.used_blocks.max() == 1
    assert fast.iterations.running.max() == 1


def test_a_cache_of_no_usable_block_is_refused():
    slow, fast = engines(some(1, longest=9), num_gpu_blocks=1)
    assert slow == fast
    assert "the KV cache has 0 usable blocks" in fast


@pytest.mark.parametrize("policy", ["fcfs", "srtf+preempt:price=0.0"])
def test_one_seat_serves_one_after_the_other(policy):
    slow, fast = engines(some(100, longest=50), policy=policy, max_num_seqs=1)
    assert differences(slow, fast) == []
    assert fast.iterations.running.max() == 1


def test_a_request_without_output_is_refused():
    with pytest.raises(InputError, match="output_tokens"):
        engines(some(1, longest=9) | {"output_tokens": [0]})


def test_a_million_requests_with_a_tail_of_long_contexts():
    rng = np.random.default_rng(0)
    n, budget, base_ps = 1_000_000, 2048, 10**10
    prompt, output = rng.integers(1, 100, n), rng.integers(1, 40, n)
    prompt[::1000] = 100_000
    workload = Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(0.001, n)),
            "prompt_tokens": prompt, "output_tokens": output,
        }
    )  # fmt: skip
    given = alike(
        policy=load_policy("srtf"), routing=load_router("round-robin"),
        engine=Engine(num_gpu_blocks=50_000, max_num_batched_tokens=budget),
        timing=LinearTiming(base_s=base_ps / 10**12), predictions=output.astype(float),
    )  # fmt: skip
    records = kernel.run(workload, **given)
    least = np.ceil(prompt / budget) + output - 1  # iterations that nobody can do without
    assert ((records.finish_ps - records.scheduled_ps) >= least * base_ps).all()
    assert (records.first_token_ps <= records.finish_ps).all()
    # all prompts went through the budget, on one replica that never rests for long
    assert records.finish_ps.max() >= prompt.sum() / budget * base_ps


@pytest.mark.parametrize(("policy", "first"), [("fcfs", False), ("sjf", True)])
def test_only_a_new_score_needs_numba(tmp_path, policy, first):
    code = (
        "import sys, numpy as np, lengthwise as lw\n"
        "from lengthwise.policies import load_policy, load_router\n"
        "from lengthwise.serving import Node, System, run\n"
        "ones = np.ones(9, int)\n"
        "w = lw.Workload({'arrival_s': np.arange(9.0), 'prompt_tokens': ones,"
        " 'output_tokens': ones})\n"
        "n = Node(lw.Engine(num_gpu_blocks=9), lw.LinearTiming(base_s=0.5),"
        f" load_policy({policy!r}))\n"
        "r = run(w, System((n,), load_router('jsq')), ones * 1.0, backend='fast')\n"
        "print('numba' in sys.modules, *r.finish_ps)"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    seen = [
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
        for _ in range(2)
    ]
    half = " ".join(str(int((i + 0.5) * 10**12)) for i in range(9))
    assert [one.stdout.decode().strip() for one in seen] == [f"{first} {half}", f"False {half}"]
