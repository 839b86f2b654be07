"""A run that stops on the way: the fast engine's equals the reference's, step by step."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.prediction import CURVES
from lengthwise.serving.fast.features import ACCESSORS
from lengthwise.serving.fast.run import FastRun
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.system import HOLD, Stops
from tests.test_serving_kernel import differences, spans, trial

NAMES = tuple(name for name in ACCESSORS if name not in CURVES)  # trials have no curves


def steps(kind, seed):
    """What a caller sees of a run that it answers at random: stops, features, totals, the end."""
    given = trial(seed, unequal=seed % 2 == 0)
    rng = np.random.default_rng(seed)
    system = dataclasses.replace(
        given["system"], metrics_interval_s=float(rng.choice([0.0, 0.01, 0.3]))
    )
    seen = []
    try:
        run = kind(
            given["workload"], system, given["predictions"], seed=given["seed"],
            log_iterations=True,
        )  # fmt: skip
        out = np.zeros((12, len(NAMES)))
        while True:
            route, admit, preempt, horizon = rng.random(4) < (0.7, 0.5, 0.5, 0.2)
            stops = Stops(
                route=bool(route), admit=bool(admit), preempt=bool(preempt),
                horizon_ps=run.totals.now_ps + int(rng.integers(10**10)) if horizon else None,
                hold_ps=int(rng.integers(1, 10**11)),
            )  # fmt: skip
            stop = run.advance(stops)
            seen += [stop, run.totals]
            if stop.kind == "done":
                return [*seen, run.records()]
            if stop.kind == "horizon":
                continue
            rows = int(rng.integers(0, 13))
            if rng.random() < 0.7:
                shown = run.features(NAMES, out[:rows])
                seen.append(out[:shown].tobytes())
            if stop.kind == "route":
                run.answer(HOLD if rng.random() < 0.2 else int(rng.integers(stop.candidates)))
            elif rng.random() < 0.8:
                most = min(stop.candidates, 3 if stop.kind == "preempt" else 20)
                few = int(rng.integers(most + 1)) if rng.random() < 0.7 else 0
                run.answer(rng.permutation(stop.candidates)[:few])
    except InputError as error:
        return [*seen, str(error)]


def disagreements(seeds):
    """Trials in which the engines differ, with the first step that does."""
    found = {}
    for seed in seeds:
        slow, fast = steps(ReferenceRun, seed), steps(FastRun, seed)
        for step, (first, second) in enumerate(zip(slow, fast, strict=False)):
            same = (
                not differences(first, second)
                if hasattr(first, "finish_ps") and hasattr(second, "finish_ps")
                else first == second
            )
            if not same:
                found[seed] = (step, first, second)
                break
        else:
            if len(slow) != len(fast):
                found[seed] = (len(slow), len(fast))
    return found


@pytest.mark.parametrize("seeds", spans(500, 40, 4))
def test_five_hundred_runs_answered_at_random_are_equal_step_by_step(seeds):
    assert disagreements(range(*seeds)) == {}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_run_that_stops_reads_or_writes_outside_an_array():
    code = (
        "from tests.test_serving_run import FastRun, steps\n"
        "for seed in range(500):\n"
        "    steps(FastRun, seed)\n"
    )
    env = {**os.environ, "NUMBA_BOUNDSCHECK": "1"}
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", code]
    subprocess.run(command, env=env, check=True, cwd=root)
