"""``python -m tests.same_again`` writes ``tests/data/same_again.json``: what was made from seeds.

Who publishes a number says the command and the seed, and whoever repeats it must get that number:
workloads, plans of sweeps, noisy lengths and whole runs are here as a few sums each. They say that
something became another thing, and not which is right: that is said by the tests by hand.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise import registry, simulate
from lengthwise.context import Context
from lengthwise.predictors.oracle import NoisyOracle
from lengthwise.protocols import Batch
from lengthwise.serving import Engine, Fail, Slow
from lengthwise.serving.timing import LinearTiming, timing
from lengthwise.serving.timing.vllm_plan import sweep_plan
from lengthwise.serving.workload import arrivals, generate_prompts, preset, preset_names
from lengthwise.serving.workload.arrivals import closed_loop
from lengthwise.workload import Workload

FILE = Path(__file__).parent / "data" / "same_again.json"
Sums = list[float | int]

PROCESSES = (
    "poisson:8", "gamma:8,cv=3", "bursty:8,ratio=4,share=0.2,dwell_s=3", "bursty:8,cv=2",
    "constant:8", "burst",
)  # fmt: skip
PLANS = {
    "large": (450_000, 8192, 1024, 131_072), "usual": (60_000, 2048, 256, 4096),
    "small": (9_000, 512, 24, 2048),
}  # fmt: skip
TIMINGS = ("h200/llama-3.1-8b", "h100/llama-3.1-8b", "roofline:a100/llama-2-13b",
           "roofline:2xh100/llama-3.1-70b", "h200/llama-3.1-8b:gpu=2,cpu=3")  # fmt: skip
PREDICTORS = (
    ("ridge", {"target": "exact", "alpha": 3.0}), ("ridge", {"target": "bucket", "buckets": 4}),
    ("ridge", {"target": "rank"}), ("ridge", {"target": "quantile"}), ("prompt-length", {}),
    ("constant", {}),
)  # fmt: skip
TIGHT = Engine(max_num_seqs=6, max_num_batched_tokens=64, num_gpu_blocks=40, block_size=8)
TIMING = LinearTiming(
    base_s=0.01, per_prefill_token_s=2e-4, per_sequence_s=1e-3, per_context_token_s=1e-5
)
ENGINES = {
    "whole prompts": Engine(
        max_num_seqs=5, max_num_batched_tokens=96, num_gpu_blocks=50, block_size=4,
        enable_chunked_prefill=False,
    ),
    "long prompts in parts": Engine(
        max_num_seqs=6, max_num_batched_tokens=64, num_gpu_blocks=40, block_size=8,
        long_prefill_token_threshold=24,
    ),
    "asynchronous": Engine(
        max_num_seqs=6, max_num_batched_tokens=64, num_gpu_blocks=40, block_size=8,
        async_scheduling=True,
    ),
    "a watermark": Engine(
        max_num_seqs=6, max_num_batched_tokens=64, num_gpu_blocks=44, block_size=8, watermark=0.1,
        scheduler_reserve_full_isl=False,
    ),
    "prefixes": Engine(
        max_num_seqs=6, max_num_batched_tokens=64, num_gpu_blocks=44, block_size=8,
        enable_prefix_caching=True,
    ),
}  # fmt: skip
BESIDE = (
    "fcfs", "srtf+preempt:price=0.0", "srtf+preempt:price=0.001,margin=0.5,max_per_step=2",
    "sjf+preempt:mode=recompute,protect_after=0.5", "sjf+guard:ratio=1", "srtf+admit:reserve=0.7",
    "srtf+preempt:mode=swap,price=0.0", "scls:slice=8", "las:computed=1",
)  # fmt: skip


def crowd(n: int = 60, seed: int = 5) -> Workload:
    """Requests with every column that a policy reads, more at a time than fit."""
    rng = np.random.default_rng(seed)
    arrival = np.sort(rng.uniform(0, 2, n))
    prompt, output = rng.integers(3, 60, n), rng.integers(1, 40, n)
    hashes = np.empty(n, object)
    hashes[:] = [[int(k % 3), 10 + int(k % 5), 20 + k][: max(p // 8, 1)]
                 for k, p in enumerate(prompt)]  # fmt: skip
    return Workload({
        "arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": output,
        "priority": rng.integers(0, 4, n), "deadline_s": arrival + rng.uniform(0.5, 9, n),
        "tenant": np.array([f"t{k}" for k in rng.integers(0, 3, n)], object),
        "prefix_hashes": hashes, "hash_block_tokens": np.full(n, 8),
    }, name="crowd")  # fmt: skip


def of_workload(made: Workload) -> Sums:
    """Times weighted by place, so that an exchange is seen, and sums of the lengths."""
    place = np.arange(1, len(made) + 1)
    columns = ("arrival_s", "prompt_tokens", "output_tokens")
    return [len(made), *(float((made[name] * place).sum()) for name in columns)]


def of_run(**given: Any) -> Sums:
    given = {"workload": crowd(), "timing": TIMING, "engine": TIGHT, "seed": 3, **given}
    result = simulate(predictor="noisy-oracle:sigma=0.5", backend="reference", **given)
    rows = result.requests
    place = np.arange(1, len(rows) + 1)
    names = ("scheduled_s", "first_token_s", "finish_s", "preemptions", "recomputed_tokens",
             "replica")  # fmt: skip
    return [float((rows[name] * place).sum()) for name in names]


def of_summary() -> Sums:
    """Every metric of a run on three nodes."""
    found = simulate(
        crowd(120), policy="srtf", predictor="noisy-oracle:sigma=0.5", timing=TIMING, engine=TIGHT,
        replicas=3, router="jsq", backend="reference", seed=3,
    ).summary()  # fmt: skip
    numbers = (float(value) for value in found.values() if isinstance(value, int | float))
    return [value for value in numbers if np.isfinite(value)]


def of_plan(name: str) -> Sums:
    plan = sweep_plan(*PLANS[name], seed=1, thoroughness=0.3)
    numbers = [float(word) for word in json.dumps(plan).replace("[", " ").replace("]", " ")
               .replace(",", " ").split() if word[0].isdigit()]  # fmt: skip
    place = np.arange(1, len(numbers) + 1)
    return [len(plan), len(numbers), sum(numbers), float((place * numbers).sum())]


def of_prompts(**given: Any) -> Sums:
    made = generate_prompts(200, 7, **given)
    place = np.arange(1, 201)
    texts = sum(zlib.crc32(text.encode()) for text in made.prompt)
    assert made.censored is not None
    return [texts, int((made.prompt_tokens * place).sum()),
            int((made.output_tokens * place).sum()), int(made.censored.sum())]  # fmt: skip


def of_noise(**given: Any) -> Sums:
    lengths = np.arange(1.0, 400.0)
    oracle = NoisyOracle(**given).fit([], lengths)
    said = oracle.predict([], output_tokens=lengths).predicted_tokens
    return [float(said.sum()), float((said * lengths).sum())]


def of_predictor(name: str, **options: Any) -> Sums:
    """What is said of prompts that were not learned from, by row."""
    learned, asked = generate_prompts(260, 8), generate_prompts(90, 9)
    cut = learned.output_tokens > 900
    made = registry.load("predictor", name)(**options)
    made.fit(
        learned.prompt, np.minimum(learned.output_tokens, 900),
        prompt_tokens=learned.prompt_tokens, censored=cut,
    )  # fmt: skip
    said = made.predict(asked.prompt, prompt_tokens=asked.prompt_tokens)
    place = np.arange(1, 91)
    columns = [said.predicted_tokens] if said.rank is None else [said.rank, said.predicted_tokens]
    if not said.certain:
        columns += said.interval(0.9)
    return [float((column * place).sum()) for column in columns]


def of_context(name: str, rows: int = 260, **options: Any) -> Sums:
    """The same of requests of which is known who answers, for whom, and what came before; then in
    the order of arrival, where the company turns; and set right on answers that are longer.
    """
    rng = np.random.default_rng(0)
    learned, asked = generate_prompts(rows, 8), generate_prompts(150, 9)

    def context(n: int) -> Context:
        previous = np.where(rng.random(n) < 0.5, rng.uniform(20, 600, n), np.nan)
        return Context(
            model=rng.choice(np.array(["small", "large"], object), n),
            tenant=rng.choice(np.array(["a", "b", "c", None], object), n),
            previous_tokens=previous, previous_log_tokens=np.log(previous),
            max_tokens=rng.choice([np.nan, 80.0, 900.0], n), tools=rng.integers(0, 2, n) * 1.0,
        )  # fmt: skip

    first, second = context(rows), context(150)
    tokens = learned.output_tokens * np.where(first.model == "large", 2.0, 1.0)
    made = registry.load("predictor", name)(**options)
    made.fit(learned.prompt, np.rint(tokens), context=first, weights=rng.uniform(0.5, 2, rows))
    place = np.arange(1, 151)
    told = [made.predict(asked.prompt, context=second)]
    turned = [*asked.prompt[:20], *["the same words again"] * 110, *asked.prompt[130:]]
    told.append(made.stream().predict(turned, context=second))
    again = made.recalibrated(asked.prompt, 3 * asked.output_tokens, context=second)
    told.append(again.predict(asked.prompt, context=second))
    found: Sums = []
    for said in told:
        abstained = np.zeros(150) if said.abstained is None else said.abstained
        columns = [said.predicted_tokens, abstained, *said.interval(0.9)]
        found += [float((column * place).sum()) for column in columns]
    return found


def of_env(name: str, **options: Any) -> Sums:
    """What an environment shows and pays while choices are drawn."""
    import gymnasium

    import lengthwise.envs  # noqa: F401 - registers

    env: Any = gymnasium.make(
        f"lengthwise/{name}-v1", workload=lambda seed: crowd(40, seed), timing=TIMING, engine=TIGHT,
        **options,
    ).unwrapped  # fmt: skip
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=4)
    shown, paid, done = np.zeros(3), [], False
    while not done:
        values = [np.asarray(part, float).ravel() for part in observation.values()]
        places = [np.arange(1, len(part) + 1) for part in values]
        shown += [float(part @ place) for part, place in zip(values, places, strict=True)]
        action = int(rng.choice(np.flatnonzero(observation["mask"])))
        observation, reward, done, *_ = env.step(action)
        paid.append(reward)
    weighted = np.asarray(paid) * np.arange(1, len(paid) + 1)
    return [*shown.tolist(), len(paid), float(np.sum(paid)), float(weighted.sum())]


def of_times(spec: str) -> Sums:
    found = arrivals(spec, 400, seed=2)
    return [float(found.sum()), float(found[-1]), float(found[200])]


def of_timing(name: str) -> Sums:
    """Picoseconds of each part of iterations: decoding alone, a prompt alone, and both."""
    model = timing(name)
    found: Sums = []
    for prefill, seqs, context in ((0, 1, 90), (0, 40, 9000), (512, 0, 0), (900, 30, 20_000)):
        batch = Batch(prefill, int(prefill > 0), seqs, context, prefill * (prefill + 1) // 2)
        found.append(round(1e9 * model.iteration_time(batch)))
    return found


CASES: dict[str, Callable[[], Sums]] = {
    **{f"preset {name}": lambda name=name: of_workload(preset(name, requests=300, seed=2))
       for name in preset_names()},
    **{f"arrivals {spec}": lambda spec=spec: of_times(spec) for spec in PROCESSES},
    **{f"plan {name}": lambda name=name: of_plan(name) for name in PLANS},
    "prompts": of_prompts, "prompts again": lambda: of_prompts(sample=1, ceiling=0.5),
    "noise of tau 0.5": lambda: of_noise(tau=0.5, seed=3),
    "noise of sigma 1": lambda: of_noise(sigma=1.0, seed=3),
    **{f"run {name}": lambda name=name: of_run(policy=name)
       for name in dict.fromkeys([*registry.names("policy"), *BESIDE])},
    **{f"router {name}": lambda name=name: of_run(router=name, replicas=3)
       for name in registry.names("router")},
    **{f"engine, {name}": lambda one=one: of_run(engine=one, policy="srtf")
       for name, one in ENGINES.items()},
    **{f"timing {name}": lambda name=name: of_timing(name) for name in TIMINGS},
    **{f"predictor {name} {options}": lambda name=name, options=options: of_predictor(
        name, **options) for name, options in PREDICTORS},
    "predictor with a context, ridge": lambda: of_context("ridge", target="exact", alpha=3.0),
    "predictor with a context, buckets": lambda: of_context(
        "ridge", target="bucket", buckets=3, alpha=3.0),
    "predictor with a context, gbdt": lambda: of_context("gbdt", 120, target="exact"),
    "environment of scheduling": lambda: of_env("Scheduling"),
    "environment of routing": lambda: of_env("Routing", replicas=3),
    "environment of preemption": lambda: of_env("Preemption", policy="sjf"),
    "closed": lambda: [float((column * np.arange(1, 41)).sum())
                       for column in closed_loop("closed:7,think_s=2", 40, seed=2).values()],
    "a cache of prefixes, lpm": lambda: of_run(engine=ENGINES["prefixes"], policy="lpm"),
    "a cache of prefixes, dlpm": lambda: of_run(
        engine=ENGINES["prefixes"], policy="dlpm:quantum=64"),
    "a cache of prefixes, affinity": lambda: of_run(
        engine=ENGINES["prefixes"], router="prefix-affinity", replicas=3),
    "summary": of_summary,
    "failures": lambda: of_run(
        replicas=3, router="jsq", failures=[Fail("1", 0.5, 1.0), Slow("0", 0.2, 1.0, 3.0)]
    ),
    "scraped": lambda: of_run(replicas=3, router="least-tokens", metrics_interval_s=0.3),
}  # fmt: skip


def main() -> None:
    rows = (f" {json.dumps(name)}: {json.dumps(make())}" for name, make in CASES.items())
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
