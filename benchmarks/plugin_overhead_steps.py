"""The part of ``plugin_overhead`` that runs where vLLM is."""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import sys
import time
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what vLLM prints must not mix with the answers

# ruff: noqa: E402
from stepping import Engine, Job, make_config, make_scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import RequestStatus

SEATS, BUDGET = 256, 8192


def jobs(waiting: int) -> list[Job]:
    """Requests that decode through all of the steps."""
    rng = random.Random(0)
    made = []
    for index in range(SEATS + waiting):
        extra = {"predicted_tokens": float(rng.randint(1, 2000))}
        prompt = rng.randint(200, 500) if index < SEATS else 20
        made.append(Job(0.0, prompt, 100_000, extra))
    return made


def prepared(lengthwise: dict[str, Any] | None, waiting: int) -> Engine:
    """A scheduler with 256 decoding requests and the rest waiting."""
    config = make_config(
        blocks=400_000, lengthwise=lengthwise, max_num_seqs=SEATS, max_num_batched_tokens=BUDGET
    )
    engine = Engine(make_scheduler(config), jobs(waiting))
    for index in range(SEATS):
        engine.add(index)
    while len(engine.run.first_s) < SEATS:
        engine.schedule()
        engine.now_s += 0.01
        engine.land()
    for index in range(SEATS, SEATS + waiting):
        engine.add(index)
    return engine


def timed(engine: Engine, admits: bool) -> float:
    """CPU seconds in one ``schedule()``; the step is then carried out: everybody gets a token.

    With ``admits`` a client hangs up before it, so that a seat is free.
    """
    scheduler = engine.scheduler
    if admits:
        gone = scheduler.running[0].request_id
        scheduler.finish_requests([gone], RequestStatus.FINISHED_ABORTED)
    start = time.thread_time()
    output = scheduler.schedule()
    took = time.thread_time() - start
    ids = list(output.num_scheduled_tokens)
    made = ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={i: place for place, i in enumerate(ids)},
        sampled_token_ids=[[7]] * len(ids),
    )
    engine.now_s += 0.01
    scheduler.update_from_output(output, made)
    return took


def main() -> None:
    """Reads the task from standard input; one JSON line a row."""
    task = json.load(sys.stdin)
    for admits in (False, True):
        for waiting in task["waiting"]:
            for number, policy in enumerate(task["policies"]):
                stock = prepared(None, waiting)
                ours = prepared({"policy": policy}, waiting)
                gc.collect()
                gc.disable()
                pairs = [(timed(stock, admits), timed(ours, admits)) for _ in range(task["steps"])]
                gc.enable()
                row = {
                    "policy": number, "waiting": waiting, "admits": admits,
                    "stock_us": 1e6 * statistics.median(a for a, _ in pairs),
                    "plugin_us": 1e6 * statistics.median(b for _, b in pairs),
                }  # fmt: skip
                print(json.dumps(row), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
