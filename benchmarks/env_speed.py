"""Steps a second of the environments through ``make_vec``, with random legal actions.

    python -m benchmarks.env_speed [--steps 400000] [--only NAME]

One core, CPU seconds, since a busy machine stretches wall time. Observations, masks, rewards and
infos are included, and so are the episodes' ends. What is left out, and stated beside it, is
drawing new episodes (Python, once for ``plays`` plays). Loads are near what each system can serve.
``engine`` is the same work without an agent: requests a second of the compiled engine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import Any

import gymnasium
import numpy as np

import lengthwise.envs  # noqa: F401 - registers
from lengthwise.envs.episodes import episodes_of
from lengthwise.serving import run
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload

ENVS = 64
# short answers, as in ``benchmarks.engine_speed``: 405 requests/s a replica at most
TIMING = LinearTiming(
    base_s=6.5e-3, per_prefill_token_s=21e-6, per_sequence_s=40e-6, num_gpu_blocks=56_105
)
SEATS = {"max_num_seqs": 64}
PLAYS = 1_000_000  # no new draws while the clock runs


def short(seed: int, rate: float, requests: int = 2000) -> Workload:
    """Poisson arrivals, prompts of 16 to 63 tokens, geometric answers of 24 tokens on average."""
    rng = np.random.default_rng(seed)
    return Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate, requests)),
            "prompt_tokens": rng.integers(16, 64, requests),
            "output_tokens": np.minimum(rng.geometric(1 / 24, requests), 400),
        }
    )


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"routing, {nodes} x 64 seats, short": (
            "Routing",
            {
                "workload": partial(short, rate=170.0 * nodes), "timing": TIMING,
                "replicas": nodes, "engine": SEATS,
            },
        )
        for nodes in (4, 16, 64)
    },
    **{
        f"routing, {nodes} x 64 seats": (
            "Routing", {"replicas": nodes, "engine": SEATS, "rate": 37.5 * nodes, "requests": 2000}
        )
        for nodes in (4, 16, 64)
    },
    "scheduling, 16 seats": (
        "Scheduling", {"engine": {"max_num_seqs": 16}, "rate": 12.0, "requests": 1000}
    ),
    "scheduling, 64 seats": ("Scheduling", {"engine": SEATS, "rate": 37.5, "requests": 1000}),
    "preemption, 16 seats": (
        "Preemption", {"engine": {"max_num_seqs": 16}, "rate": 12.0, "requests": 1000}
    ),
}  # fmt: skip


def steps_per_second(name: str, options: dict[str, Any], steps: int, repeats: int) -> list[float]:
    """The rates of ``repeats`` stretches of ``steps`` steps, over all environments."""
    env: Any = gymnasium.make_vec(
        f"lengthwise/{name}-v1", num_envs=ENVS, bank=1, plays=PLAYS, **options
    )
    env.reset(seed=0)
    draws = np.random.default_rng(0).random((max(1, steps // ENVS), ENVS))
    masks = env.unwrapped.action_masks()
    rates = []
    for _ in range(repeats + 1):
        spent = 0.0
        for row in draws:
            # where the draw lies among the legal actions
            wanted = (row * masks.sum(1)).astype(np.int64)
            actions = (masks.cumsum(1) > wanted[:, None]).argmax(1)
            begin = time.process_time()
            env.step(actions)
            spent += time.process_time() - begin
        rates.append(draws.size / spent)
    return rates[1:]  # the first one warms up


def engine_requests_per_second(options: dict[str, Any]) -> float:
    """Requests a second of the compiled engine on the same episodes."""
    source = episodes_of(**{"workload": "azure-conv-2023", "router": "random", **options})
    rates = []
    for seed in range(8):
        one = source(seed)
        begin = time.process_time()
        run(one.workload, one.system, one.predictions, seed=seed, backend="fast")
        rates.append(len(one.workload) / (time.process_time() - begin))
    return statistics.median(rates)


def drawing_s(name: str, options: dict[str, Any]) -> float:
    """Seconds that a new episode costs, in Python."""
    env: Any = gymnasium.make(f"lengthwise/{name}-v1", bank=1, plays=1, **options)
    env.reset(seed=0)
    times = []
    for _ in range(10):
        begin = time.process_time()
        env.reset()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def main() -> None:
    """Prints a line a case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    print(f"{'case':32} {'steps/s (median, range)':34} {'engine, requests/s':>19} {'a draw':>9}")
    for label, (name, options) in CASES.items():
        if given.only not in label:
            continue
        rates = steps_per_second(name, options, given.steps, given.repeats)
        text = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        engine = engine_requests_per_second(options)
        print(
            f"{label:32} {text:34} {engine:19,.0f} {1000 * drawing_s(name, options):6.1f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
