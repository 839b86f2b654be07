"""How fast training is, end to end, and where its time goes.

    python benchmarks/ppo_speed.py --algo ppo --n-envs 64
    python benchmarks/ppo_speed.py --env lengthwise/Scheduling-v1 --env-set '{"rate": 12}'

Trains the way ``lengthwise train policy`` does, without evaluations, and prints steps a second and
the share of the environment, of the policy's forward passes (choosing actions, and the buffers),
and of the updates: on one thread, by the wall's clock and by the processor's, which other processes
do not slow down. Medians over ``--repeats`` runs of ``--steps`` steps, after one that is not
counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from stable_baselines3.common.vec_env import VecMonitor

from lengthwise.registry import load
from lengthwise.training.agents import SETTINGS, make_agent, settings_for
from lengthwise.training.vectors import make_vector


class Clock:
    """Processor seconds spent inside functions, by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def around(self, thing: Any, method: str, name: str) -> None:
        """Times a method of an object from now on."""
        inner = getattr(thing, method)

        def timed(*args: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return inner(*args, **options)
            finally:
                self.spent[name] = self.spent.get(name, 0.0) + time.process_time() - began

        setattr(thing, method, timed)


def main() -> None:
    """Measures one algorithm in one environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="lengthwise/Routing-v1")
    parser.add_argument("--algo", default="ppo", choices=SETTINGS)
    parser.add_argument("--n-envs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=131_072)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--env-set", type=json.loads, default={}, help="options, as JSON")
    parser.add_argument("--set", type=json.loads, default={}, help="settings, as JSON")
    parser.add_argument("--hidden", type=json.loads, default=[32, 32])
    given = parser.parse_args()
    torch.set_num_threads(1)
    make = load("env", given.env)
    options = {"rate": 14.0, "engine": {"max_num_seqs": 4}, **given.env_set}
    columns = len(make(**options).columns.names)
    settings = settings_for(given.algo, given.set)
    rates, cpu_rates, shares = [], [], []
    for repeat in range(given.repeats + 1):
        env = make_vector(make, options, given.n_envs)
        agent = make_agent(given.algo, VecMonitor(env), columns, settings, given.hidden, repeat)
        clock = Clock()
        clock.around(env, "step_wait", "environment")
        clock.around(agent, "train", "update")
        clock.around(agent, "collect_rollouts", "collecting")
        began, began_cpu = time.perf_counter(), time.process_time()
        agent.learn(given.steps)
        wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        if repeat:  # the first compiles
            rates.append(agent.num_timesteps / wall)
            cpu_rates.append(agent.num_timesteps / cpu)
            spent = clock.spent
            forward = spent["collecting"] - spent["environment"]
            parts = {"environment": spent["environment"], "policy forward": forward,
                     "update": spent["update"]}  # fmt: skip
            shares.append({name: part / cpu for name, part in parts.items()})
    print(f"{given.algo}, {given.env}, {given.n_envs} environments, {torch.__version__} on CPU")
    print(f"{statistics.median(rates):,.0f} steps/s ({min(rates):,.0f} to {max(rates):,.0f})")
    print(f"{statistics.median(cpu_rates):,.0f} steps a processor second")
    for name in shares[0]:
        print(f"{statistics.median(share[name] for share in shares):6.1%}  {name}")


if __name__ == "__main__":
    main()
