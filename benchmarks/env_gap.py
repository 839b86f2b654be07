"""What is trained and what is deployed: a fixed score in Scheduling-v1 and in the engine.

    python -m benchmarks.env_gap [--requests 2000] [--slots 64]

The score is greedy over the requests that the environment shows, and then orders the engine's whole
queue, on the same workload, at a load where the queue grows beyond the slots. Prints the ratio of
the mean latencies for both rules of what is shown.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from lengthwise.envs.columns import Columns
from lengthwise.envs.scheduling import FEATURES_SEEN, SchedulingVectorEnv
from lengthwise.policies import load_router
from lengthwise.policies.learned import MLP
from lengthwise.policy import SchedulingPolicy, Score
from lengthwise.serving import Engine, Node, System, run

Layers = list[tuple[NDArray[np.float64], NDArray[np.float64]]]
ENGINE = Engine(max_num_seqs=16)


def scores() -> dict[str, Layers]:
    """Layers over normalised (predicted_tokens, prompt_tokens, waited_s)."""
    found: dict[str, Layers] = {
        "shortest answer": [(np.array([[1.0, 0.0, 0.0]]), np.zeros(1))],
        "shortest prompt": [(np.array([[0.0, 1.0, 0.0]]), np.zeros(1))],
        "both": [(np.array([[1.0, 0.5, 0.0]]), np.zeros(1))],
        "both, aging": [(np.array([[1.0, 0.5, -0.5]]), np.zeros(1))],
    }
    for seed in range(4):
        rng = np.random.default_rng(seed)
        found[f"random network {seed}"] = [
            (rng.normal(size=(16, 3)), rng.normal(size=16)),
            (rng.normal(size=(1, 16)), np.zeros(1)),
        ]
    return found


def in_environment(layers: Layers, show: str, slots: int, requests: int, rate: float) -> float:
    """Mean latency, in seconds, of the greedy agent."""
    env = SchedulingVectorEnv(
        slots=slots, show=show, requests=requests, rate=rate, engine=ENGINE, flat=True,
        features=FEATURES_SEEN, autoreset_mode="DISABLED",
    )  # fmt: skip
    width = slots * len(FEATURES_SEEN)
    net = MLP(np.zeros(3), np.ones(3), np.zeros(3, bool), tuple(layers))
    seen, _ = env.reset(options={"workload_seed": 0})
    while True:
        rows = np.asarray(seen)[0, :width].reshape(slots, -1).astype(np.float64)
        count = int(env.action_masks()[0].sum())
        seen, _, ended, _, info = env.step(np.array([int(net(*rows[:count].T).argmin())]))
        if ended[0]:
            return float(info["mean_latency_s"][0])


def in_engine(layers: Layers, requests: int, rate: float) -> float:
    """Mean latency of the exported score."""
    env = SchedulingVectorEnv(requests=requests, rate=rate, engine=ENGINE)
    episode = env.game.source(0)
    mlp, names = Columns.of(FEATURES_SEEN).score(layers)
    policy = SchedulingPolicy(Score("learned", mlp, names))
    system = System((Node(ENGINE, episode.system.nodes[0].timing, policy),), load_router("jsq"))
    records = run(episode.workload, system, episode.predictions, seed=0, backend="fast")
    return float((records.finish_ps - records.arrival_ps).mean() / 1e12)


def main() -> None:
    """Prints a line a score."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--rate", type=float, default=16.0)
    given = parser.parse_args()
    print(f"{'score':18} {'engine, s':>10} {'first':>8} {'spread':>8}   (environment / engine)")
    for name, layers in scores().items():
        engine = in_engine(layers, given.requests, given.rate)
        ratios = [
            in_environment(layers, show, given.slots, given.requests, given.rate) / engine
            for show in ("first", "spread")
        ]
        print(f"{name:18} {engine:10.3f} {ratios[0]:8.3f} {ratios[1]:8.3f}", flush=True)


if __name__ == "__main__":
    main()
