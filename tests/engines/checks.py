"""Checks of the vLLM plugin that need vLLM: run by ``python checks.py`` in its environment.

Reads tasks ``[[check, arguments], ...]`` as JSON from standard input and prints one JSON line each:
``{"ok": true, "found": ...}`` or ``{"ok": false, "error": ...}``.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import random
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what vLLM prints must not mix with the answers

# ruff: noqa: E402
from stepping import Engine, Job, NotDone, Run, make_config, make_scheduler, name
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from lengthwise.curves import RequestCurve
from lengthwise.policies.plugins.predictor_process import AT, Answer
from lengthwise.policies.plugins.vllm import lengths

POLICIES = (
    "sjf", "srtf", "mlfq:quantum=4", "hrrn", "priority", "sjf+preempt:price=0",
    "srtf+preempt:price=0", "srtf+preempt:price=0,margin=3,max_per_step=2,protect_after=0.5",
    "mlfq:quantum=2+preempt:price=0", "hrrn+preempt:price=0",
)  # fmt: skip


def random_jobs(rng: random.Random, *, aborts: bool) -> list[Job]:
    """Up to 60 requests, some with shared prefixes, some that their clients abort."""
    count, span = rng.randint(1, 60), rng.choice([0.0, 0.3, 2.0])
    stem = [rng.randint(0, 400) for _ in range(100)]
    jobs = []
    for index in range(count):
        prompt, output = rng.randint(1, 120), rng.randint(1, rng.choice([4, 60]))
        shared = min(rng.choice([0, 0, 40, 100]), prompt)
        tokens = stem[:shared] + [1000 + index * 200 + i for i in range(prompt - shared)]
        extra: dict[str, Any] = {}
        if rng.random() < 0.9:
            extra["predicted_tokens"] = output * rng.choice([1.0, 0.5, 2.0])
        jobs.append(
            Job(
                arrival_s=rng.random() * span, prompt=prompt, output=output, extra=extra,
                priority=rng.randint(0, 3), tokens=tokens,
                abort_step=rng.randint(0, 80) if aborts and rng.random() < 0.15 else None,
            )
        )  # fmt: skip
    return jobs


def random_options(rng: random.Random, jobs: list[Job]) -> dict[str, Any]:
    """Options from starving to ample, for jobs that fit one by one."""
    seats, size = rng.randint(1, 16), rng.choice([4, 16])
    largest = max(-(-(job.prompt + job.output) // size) for job in jobs)
    return {
        "max_num_seqs": seats,
        "max_num_batched_tokens": rng.randint(max(seats, 8), 200),
        "blocks": 2 + largest + rng.choice([0, 2, largest, 50 * largest]),
        "block_size": size,
        "enable_prefix_caching": rng.random() < 0.5,
        "async_scheduling": rng.random() < 0.5,
        "long_prefill_token_threshold": rng.choice([0, 0, 20]),
    }


def serve(jobs: list[Job], **given: Any) -> Run:
    """One run from configuration to the last job."""
    return Engine(make_scheduler(make_config(**given)), jobs).serve(most=20_000)


def stuck_by_itself(jobs: list[Job], options: dict[str, Any]) -> bool:
    """Whether vLLM's own priority queue never gets these jobs done.

    Before 0.19 prompts in chunks can preempt each other for ever when KV blocks are scarce.
    """
    for priorities in ([job.priority for job in jobs], [0] * len(jobs)):
        same_jobs = [
            dataclasses.replace(job, priority=p) for job, p in zip(jobs, priorities, strict=True)
        ]
        try:
            serve(same_jobs, policy="priority", **options)
        except NotDone:
            return True
    return False


def same(left: Run, right: Run) -> None:
    """Raises ``AssertionError`` at the first step in which two runs differ."""
    for number, (a, b) in enumerate(zip(left.steps, right.steps, strict=False)):
        assert list(a.items()) == list(b.items()), f"step {number}: {a} is not {b}"
        assert left.preempted[number] == right.preempted[number], f"step {number}: preempted"
    assert len(left.steps) == len(right.steps) and left.finish_s == right.finish_s


# The checks


def stock(first: int, count: int) -> dict[str, int]:
    """``fcfs`` is vLLM's own class; ``priority`` without a guard schedules as vLLM's own does.

    And FCFS by a score, through all of the plugin's machinery, is vLLM's priority queue with
    equal priorities.
    """
    here = str(Path(__file__).parent / "arrival_order.py")
    for seed in range(first, first + count):
        rng = random.Random(seed)
        jobs = random_jobs(rng, aborts=True)
        options = random_options(rng, jobs)
        wanted = serve(jobs, **options)
        made = make_scheduler(make_config(lengthwise={"policy": "fcfs"}, **options))
        base = AsyncScheduler if options["async_scheduling"] else Scheduler
        assert type(made) is base, f"fcfs took {type(made)}"
        same(Engine(made, jobs).serve(), wanted)
        wanted = serve(jobs, policy="priority", **options)
        same(serve(jobs, lengthwise={"policy": "priority", "guard": 0}, **options), wanted)
        for job in jobs:
            job.priority = 0
        wanted = serve(jobs, policy="priority", **options)
        same(serve(jobs, lengthwise={"policy": f"{here}:arrival"}, **options), wanted)
    return {"workloads": count}


def random_workloads(first: int, count: int) -> dict[str, int]:
    """No request is lost, duplicated or cut, no KV block leaks, whatever the policy and guard."""
    preempted = stuck = 0
    for seed in range(first, first + count):
        rng = random.Random(seed)
        jobs = random_jobs(rng, aborts=True)
        options = random_options(rng, jobs)
        settings = {"policy": rng.choice(POLICIES), "guard": rng.choice([0, 1.0, 1.5])}
        floor_s = rng.choice([0, 0.5])
        if settings["guard"]:
            settings["guard_floor_s"] = floor_s
        try:
            run = serve(jobs, lengthwise=settings, **options)
        except Exception as error:
            if isinstance(error, NotDone) and stuck_by_itself(jobs, options):
                stuck += 1
                continue
            raise AssertionError(f"seed {seed}, {settings}, {options}") from error
        preempted += sum(map(len, run.preempted))
    return {"workloads": count, "preemptions": preempted, "stuck": stuck}


def shadow(first: int, count: int) -> dict[str, int]:
    """In shadow mode a predictor is asked for every request, and vLLM's own schedule is as ever."""
    fake = str(Path(__file__).with_name("fake_predictor.py"))
    real, lengths.command = lengths.command, lambda *_, **__: [sys.executable, fake, "works"]
    asked = answered = 0
    for seed in range(first, first + count):
        rng = random.Random(seed)
        jobs = random_jobs(rng, aborts=True)
        for job in jobs:
            job.extra = {}
        options = random_options(rng, jobs)
        watched = {"policy": "fcfs", "predictor": "x"}
        made = make_scheduler(make_config(lengthwise=watched, **options))
        base = AsyncScheduler if options["async_scheduling"] else Scheduler
        assert type(made).__mro__[2] is base and "Shadow" in type(made).__mro__[1].__name__
        same(Engine(made, jobs).serve(), serve(jobs, **options))
        counts = made.lengthwise.counters.counts
        made.lengthwise.close()
        asked += len(jobs)
        answered += counts["predictions", "predictor"]
        late = sum(n for (name, _), n in counts.items() if name == "fallbacks")
        assert counts["predictions", "predictor"] + late == len(jobs)
    lengths.command = real
    return {"asked": asked, "answered": answered}


def said(lengthwise: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What a server says at its start: through vLLM's own logger, in its format."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda r: lines.append(f"{r.levelname} {r.getMessage()}")  # type: ignore[method-assign]
    logger = logging.getLogger("vllm")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    config = make_config(
        lengthwise=lengthwise, max_num_seqs=4, max_num_batched_tokens=64, blocks=100, **options
    )
    try:
        scheduler = make_scheduler(config)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    if hasattr(scheduler, "lengthwise"):
        scheduler.lengthwise.close()
    return {"lines": [line for line in lines if "lengthwise" in line]}


class Told:
    """Stands in for a predictor's process: answers at once, from a table by job.

    Jobs are asked for in the order in which they are added.
    """

    up = True

    def __init__(self, table: dict[str, Any], added: list[int]) -> None:
        self._table, self._added = table, added
        self._answers: list[Answer] = []

    def send(self, sequence: int, prompt: list[int], known: bytes = b"") -> None:
        job = self._added[sequence]
        curves = {
            name: RequestCurve(AT, values[job]) for name, values in self._table["curves"].items()
        }
        self._answers.append(Answer(sequence, self._table["tokens"][job], 0.0, curves))

    def received(self) -> list[Answer]:
        found, self._answers = self._answers, []
        return found

    def close(self) -> None:
        pass


@contextmanager
def told(table: dict[str, Any] | None, added: list[int]) -> Iterator[None]:
    """Drivers that are made here are told lengths and curves from a table, if there is one."""
    real = lengths.PredictorProcess
    if table is not None:
        lengths.PredictorProcess = lambda *_: Told(table, added)
    try:
        yield
    finally:
        lengths.PredictorProcess = real


def agree(cases: list[dict[str, Any]]) -> dict[str, int]:
    """Replays what the reference engine did, event by event, and compares every decision."""
    steps = preempted = 0
    for case in cases:
        jobs = [Job(**job) for job in case["jobs"]]
        added = [given[0] for event, *given in case["events"] if event == "add"]
        with told(case.get("told"), added):
            engine = Engine(make_scheduler(make_config(**case["options"])), jobs)
        for event, *given in case["events"]:
            if event == "add":
                engine.add(given[0])
            elif event == "finish":
                done = [int(i) for i in engine.land()]
                assert done == given[0], f"{case['name']}: finished {done}, reference {given[0]}"
            else:
                engine.now_s, scheduled, lost = given
                engine.schedule()
                ours = [[int(i), n] for i, n in engine.run.steps[-1].items()]
                gone = sorted(int(i) for i in engine.run.preempted[-1])
                where = f"{case['name']}, step {len(engine.run.steps) - 1}"
                assert gone == lost, f"{where}: preempted {gone}, reference {lost}"
                assert ours == scheduled, f"{where}: scheduled {ours}, reference {scheduled}"
                steps += 1
                preempted += len(lost)
        engine.check()
    return {"cases": len(cases), "steps": steps, "preempted": preempted}


def order(lengthwise: dict[str, Any], jobs: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """Who was admitted in which order, and when each job finished, in steps of 0.01 s."""
    made = [Job(**job) for job in jobs]
    run = serve(made, lengthwise=lengthwise, **options)
    return {
        "admitted": [int(i) for i in run.admitted],
        "finished": [int(i) for i in run.finish_s],
        "finish_s": {int(i): round(at, 6) for i, at in run.finish_s.items()},
        "preempted": sum(map(len, run.preempted)),
    }


def refused(lengthwise: Any, **options: Any) -> str:
    """What a configuration that can't work is told."""
    from lengthwise.errors import InputError

    config = make_config(lengthwise=lengthwise, max_num_seqs=4, max_num_batched_tokens=64,
                         blocks=100, **options)  # fmt: skip
    try:
        make_scheduler(config)
    except InputError as error:
        return str(error)
    raise AssertionError("it was accepted")


def counted(
    lengthwise: dict[str, Any], jobs: list[dict[str, Any]], **options: Any
) -> dict[str, Any]:
    """What the plugin counted, and the order of admission."""
    scheduler = make_scheduler(make_config(lengthwise=lengthwise, **options))
    warnings: list[str] = []
    scheduler.lengthwise.counters.log = logging.getLogger("checks")
    scheduler.lengthwise.counters.log.warning = lambda text, *given: warnings.append(text % given)
    run = Engine(scheduler, [Job(**job) for job in jobs]).serve()
    counts = {
        f"{key}:{label}": n for (key, label), n in scheduler.lengthwise.counters.counts.items()
    }
    scheduler.lengthwise.close()
    return {
        "counts": counts, "admitted": [int(i) for i in run.admitted], "warnings": warnings,
    }  # fmt: skip


def recorded(
    lengthwise: dict[str, Any], jobs: list[dict[str, Any]], tokenizer: str, **options: Any
) -> dict[str, Any]:
    """Serves jobs with a record, as a model with that tokenizer would."""
    config = make_config(lengthwise=lengthwise, **options)
    config.model_config = copy.copy(config.model_config)
    config.model_config.tokenizer = tokenizer
    scheduler = make_scheduler(config)
    run = Engine(scheduler, [Job(**job) for job in jobs]).serve()
    scheduler.shutdown()
    counters = scheduler.lengthwise_record._counters
    return {
        "generated": {int(i): n for i, n in run.generated.items()},
        "counts": {f"{key}:{label}": n for (key, label), n in counters.counts.items()},
        "class": type(scheduler).__name__,
    }


CHECKS = {
    check.__name__: check
    for check in (stock, shadow, random_workloads, agree, order, refused, said, counted, recorded)
}


def main() -> None:
    """Runs the tasks of standard input."""
    for check, given in json.load(sys.stdin):
        answer: dict[str, Any]
        try:
            answer = {"ok": True, "found": CHECKS[check](**given)}
        except Exception as error:
            traceback.print_exc()
            cause = f" ({error.__cause__!r})" if error.__cause__ else ""
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}{cause}"}
        print(json.dumps(answer), file=ANSWERS, flush=True)


if __name__ == "__main__":
    assert name(1) == "000001"
    main()
