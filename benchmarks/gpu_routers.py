"""Routers in front of real engines that differ, one GPU each.

    python -m benchmarks.gpu_routers prepare DATA [--routers A,B,./bundle] ...   # anywhere
    python -m benchmarks.gpu_routers run DATA OUT [--done results.json]         # where the GPUs are
    python -m benchmarks.gpu_routers_compare OUT/results.json TIMING            # anywhere

``prepare`` writes the plan, the lengths of requests and copies of the bundles into DATA. ``run``
starts one engine a GPU, all at once, measures what a burst sustains on each, and then serves every
planned run: the same arrivals and lengths under each router, seed by seed, in shuffled order. The
routers are scored by the code of the plugins (``policies.plugins.routing``). Results are written
whole after each run, and a run that is in ``--done`` is not done again; a run that would not end
within ``--minutes`` is not begun.

``--engine h200/llama-3.1-8b`` (any timing) serves with stand-ins that sleep, to try it out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.errors import InputError
from lengthwise.policies.bundle import is_bundle
from lengthwise.policies.load import load_router
from lengthwise.policies.plugins.routing import REPORTED, ReplicaRouter
from lengthwise.writing import whole_file

PLAN, REQUESTS, RESULTS = "plan.json", "requests.json", "results.json"
TELLS = ("prompt_tokens", "predicted_tokens", "arrival_s", "now_s")
ROUTERS = ("round-robin", "jsq-tokens", "least-tokens", "jsew")
COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens", "predicted_tokens", "replica",
           "submit_s", "first_s", "last_s")  # fmt: skip
START_S = 300.0  # an engine that is not ready by then never will be


NUMBERS = ("seconds", "tau", "report_s", "duty")  # of a plan, as options


@dataclass(frozen=True)
class Plan:
    """What is to be measured; ``seats`` has one entry a replica."""

    routers: tuple[str, ...] = ROUTERS
    seats: tuple[int, ...] = (64, 16)
    loads: tuple[float, ...] = (0.8, 1.0)  # of what bursts sustained
    seeds: tuple[int, ...] = (0, 1, 2)
    seconds: float = 20.0  # of arrivals
    tau: float = 1.0  # Kendall's, of predicted and true lengths; 1 is the truth
    report_s: float = 0.02  # replicas report so often
    colocated: int = -1  # the replica that shares its GPU with another load, -1 for none
    duty: float = 0.5  # of that load
    model: str = "llama-3.1-8b"
    max_model_len: int = 4096

    @classmethod
    def read(cls, data: Path) -> Plan:
        """From a prepared folder."""
        found = json.loads((data / PLAN).read_text("utf-8"))
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})


# Anywhere


def prepare(data: Path, plan: Plan, workload: str, longest: tuple[int, int]) -> None:
    """Writes the plan, 20,000 requests' lengths and predictions, and copies of the bundles."""
    from lengthwise.predictors.predict import predict
    from lengthwise.serving.workload import load_workload

    work = load_workload(workload, requests=20_000 if workload in lw_presets() else None, seed=0)
    prompts = np.minimum(work["prompt_tokens"], longest[0])
    outputs = np.minimum(work["output_tokens"], longest[1])
    made = predict("oracle" if plan.tau == 1 else f"noisy-oracle:tau={plan.tau}", work, 0)
    assert made is not None
    predicted = np.minimum(made.columns["predicted_tokens"], longest[1])
    data.mkdir(parents=True, exist_ok=True)
    routers = []
    for spec in plan.routers:
        ReplicaRouter(load_router(spec), reports=tuple(REPORTED), tells=TELLS)  # refused now
        if is_bundle(spec):
            shutil.copytree(spec, data / Path(spec).name, dirs_exist_ok=True)
            spec = Path(spec).name
        routers.append(spec)
    with whole_file(data / REQUESTS) as fresh:
        rows = np.stack([prompts, outputs, np.round(predicted, 1)], axis=1)
        fresh.write_text(json.dumps(rows.tolist()), "utf-8")
    with whole_file(data / PLAN) as fresh:
        fresh.write_text(json.dumps(asdict(plan) | {"routers": routers}, indent=1), "utf-8")


def lw_presets() -> Sequence[str]:
    """Names that draw as many requests as they are asked for."""
    from lengthwise.serving.workload.presets import PRESETS

    return list(PRESETS)


def drawn(
    requests: np.ndarray[Any, Any], rate: float, seconds: float, seed: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Arrivals and lengths of one seed: a Poisson process, given how many come in ``seconds``."""
    rng = np.random.default_rng(seed)
    count = round(rate * seconds)
    rows = requests[rng.choice(len(requests), count, replace=count > len(requests))]
    return {
        "arrival_s": np.sort(rng.uniform(0.0, seconds, count)),
        "prompt_tokens": rows[:, 0].astype(int),
        "output_tokens": rows[:, 1].astype(int),
        "predicted_tokens": rows[:, 2],
    }


# Where the GPUs are


class Fleet:
    """The replicas' processes, and what they say."""

    def __init__(self, plan: Plan, out: Path, engine: str) -> None:
        self.plan, self.out, self.engine = plan, out, engine
        self.about: dict[int, dict[str, Any]] = {}
        self.reports: list[dict[str, float]] = [{} for _ in plan.seats]
        self.generated: list[list[tuple[int, int]]] = [[] for _ in plan.seats]  # (ns, tokens)
        self.router: ReplicaRouter | None = None  # told of what replicas report
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._server: asyncio.Server | None = None
        self._numbers = 0

    async def start(self) -> None:
        """Starts all engines at once; raises ``InputError`` with the log's end if one fails."""
        folder = tempfile.mkdtemp()
        socket = f"{folder}/s"
        self._server = await asyncio.start_unix_server(self._meet, socket, limit=2**20)
        begin = time.monotonic()
        for index, seats in enumerate(self.plan.seats):
            options: dict[str, Any] = {"max_num_seqs": seats}
            if self.engine == "vllm":
                options |= {
                    "max_model_len": self.plan.max_model_len, "enable_prefix_caching": False,
                }  # fmt: skip
            if index == self.plan.colocated:
                options["gpu_memory_utilization"] = 0.85  # its neighbour's matrices are beside it
            about = {
                "name": str(index), "engine": self.engine, "model": self.plan.model,
                "options": options, "report_s": self.plan.report_s,
            }  # fmt: skip
            self._spawn(index, socket, json.dumps(about))
        while len(self._writers) < len(self.plan.seats):
            for index, process in enumerate(self._processes):
                if process.poll() is not None:
                    raise InputError(f"replica {index} ended while starting:\n{self._log(index)}")
            if time.monotonic() - begin > START_S:
                late = [i for i in range(len(self.plan.seats)) if i not in self._writers]
                raise InputError(f"not ready in {START_S:g} s: {late}\n{self._log(late[0])}")
            await asyncio.sleep(0.2)

    def start_load(self) -> None:
        """Starts the other tenant of the co-located replica's GPU."""
        if self.plan.colocated >= 0:
            self._spawn(self.plan.colocated, "load", str(self.plan.duty))

    async def stop(self) -> None:
        """Ends what was started."""
        for writer in self._writers.values():
            writer.write(b'{"stop": true}\n')
        for process in self._processes[len(self.plan.seats) :]:
            process.kill()
        for process in self._processes:
            try:  # one that was not heard of yet is still starting
                wait = 20.0 if len(self._writers) == len(self.plan.seats) else 0.0
                await asyncio.to_thread(process.wait, wait)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)
        for writer in self._writers.values():
            writer.close()
            with suppress(OSError):  # it may have hung up first
                await writer.wait_closed()
        if self._server is not None:
            self._server.close()

    async def serve(
        self, replica: int, prompt: int, output: int, predicted: float = 0.0
    ) -> dict[str, Any]:
        """One request on one replica; its first and last token's times (ns)."""
        self._numbers += 1
        name = f"r{self._numbers}"
        asked = {"name": name, "prompt_tokens": int(prompt), "output_tokens": int(output),
                 "predicted_tokens": float(predicted)}  # fmt: skip
        waiting = self._waiting[name] = asyncio.get_running_loop().create_future()
        self._writers[replica].write((json.dumps(asked) + "\n").encode())
        return await waiting

    def _spawn(self, index: int, *arguments: str) -> None:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(index)}
        for cache in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            environment[cache] = f"{tempfile.gettempdir()}/gpu-routers-{index}/{cache.lower()}"
        command = [sys.executable, "-m", "benchmarks.gpu_routers_replica", *arguments]
        with open(self.out / f"replica-{len(self._processes)}.log", "wb") as log:
            self._processes.append(
                subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            )

    def _log(self, index: int) -> str:
        text = (self.out / f"replica-{index}.log").read_text("utf-8", "replace")
        return "\n".join(text.splitlines()[-30:])

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = json.loads(await reader.readline())
        index = int(first["ready"])
        self.about[index] = first["about"]
        self._writers[index] = writer
        async for line in reader:
            said = json.loads(line)
            if "report" in said:
                report = said["report"]
                self.generated[index].append((said["at_ns"], report.pop("generated")))
                self.reports[index].update(report)
                if self.router is not None:
                    self.router.report(index, **self.reports[index])
            elif "done" in said:
                self._waiting.pop(said["done"]).set_result(said)
            else:
                failure = InputError(f"replica {index}: {said['failed']}: {said['why']}")
                self._waiting.pop(said["failed"]).set_exception(failure)
        gone = InputError(f"replica {index} is gone:\n{self._log(index)}")
        for waiting in self._waiting.values():  # nobody can tell which of them were its own
            if not waiting.done():
                waiting.set_exception(gone)


async def speed(fleet: Fleet, replica: int) -> float:
    """Tokens/s that 32 sequences (or all seats) of about 1000 tokens decode."""
    count = min(32, fleet.plan.seats[replica])
    served = await asyncio.gather(*(fleet.serve(replica, 900, 200) for _ in range(count)))
    begin = max(one["first_ns"] for one in served)
    end = min(one["last_ns"] for one in served)
    marks = np.array(fleet.generated[replica])
    made = np.interp([begin, end], marks[:, 0], marks[:, 1])
    return float((made[1] - made[0]) / ((end - begin) / 1e9))


async def sustained(fleet: Fleet, replica: int, requests: np.ndarray[Any, Any]) -> float:
    """Tokens/s while a burst of five requests a seat keeps all seats taken."""
    seats = fleet.plan.seats[replica]
    rows = requests[: 5 * seats]
    served = await asyncio.gather(
        *(fleet.serve(replica, prompt, output) for prompt, output, _ in rows.tolist())
    )
    last = np.sort([one["last_ns"] for one in served])
    begin, end = last[seats // 4], last[-seats]  # seats are full, and not yet empty again
    marks = np.array(fleet.generated[replica])
    made = np.interp([begin, end], marks[:, 0], marks[:, 1])
    return float((made[1] - made[0]) / ((end - begin) / 1e9))


async def measure(
    fleet: Fleet, spec: str, rows: dict[str, np.ndarray[Any, Any]], data: Path, seed: int
) -> dict[str, Any]:
    """One run: every request to the replica that the router ranks first when it arrives."""
    where = data / spec
    router = ReplicaRouter(
        str(where) if is_bundle(str(where)) else spec,
        reports=tuple(REPORTED), tells=TELLS, seed=seed,
    )  # fmt: skip
    replicas = list(range(len(fleet.plan.seats)))
    for index in replicas:
        router.report(index, **fleet.reports[index])
    fleet.router = router
    count = len(rows["arrival_s"])
    found = {name: rows[name].tolist() for name in COLUMNS[:4]}
    found |= {name: [0.0] * count for name in COLUMNS[4:]}
    lists = [rows[name].tolist() for name in COLUMNS[:4]]
    ranking_s = 0.0

    async def one(index: int) -> None:
        nonlocal ranking_s
        arrival, prompt, output, predicted = (values[index] for values in lists)
        submit = time.perf_counter_ns()
        best = router.rank(
            replicas, prompt_tokens=prompt, predicted_tokens=predicted, now_s=arrival,
            arrival_s=arrival,
        )[0]  # fmt: skip
        router.sent(best, index, prompt + predicted)
        ranking_s += (time.perf_counter_ns() - submit) / 1e9
        assert isinstance(best, int)
        served = await fleet.serve(best, prompt, output, predicted)
        router.done(index)
        if served["tokens"] != output:
            raise InputError(f"an answer has {served['tokens']} tokens, not {output}")
        found["replica"][index] = best
        found["submit_s"][index] = round(submit / 1e9 - begin, 6)
        found["first_s"][index] = round(served["first_ns"] / 1e9 - begin, 6)
        found["last_s"][index] = round(served["last_ns"] / 1e9 - begin, 6)

    begin = time.perf_counter() + 0.2
    tasks = []
    for index, arrival in enumerate(lists[0]):
        wait = begin + arrival - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(index)))
    await asyncio.gather(*tasks)
    fleet.router = None
    counts = router.counters.counts.items()
    return {
        "requests": found, "took_s": time.perf_counter() - begin,
        "ranking_us": 1e6 * ranking_s / count,
        "fallbacks": sum(n for (name, _), n in counts if name == "fallbacks"),
    }  # fmt: skip


def order(plan: Plan) -> list[tuple[int, float, str]]:
    """(seed, load, router) of all runs: seed by seed, shuffled within one."""
    runs: list[tuple[int, float, str]] = []
    for seed in plan.seeds:
        block = [(seed, load, router) for load in plan.loads for router in plan.routers]
        np.random.default_rng(seed).shuffle(block)  # type: ignore[arg-type]
        runs += [(int(seed), float(load), str(router)) for seed, load, router in block]
    return runs


async def run(data: Path, out: Path, done: Path | None, minutes: float, engine: str) -> None:
    """Serves what is planned and not done."""
    plan = Plan.read(data)
    begin = time.monotonic()
    requests = np.array(json.loads((data / REQUESTS).read_text("utf-8")))
    results: dict[str, Any] = {"plan": asdict(plan), "runs": []}
    if done is not None:
        results = json.loads(done.read_text("utf-8"))
    had = {(one["seed"], one["load"], one["router"]) for one in results["runs"]}
    left = [one for one in order(plan) if one not in had]
    fleet = Fleet(plan, out, engine)

    def write() -> None:
        with whole_file(out / RESULTS) as fresh:
            fresh.write_text(json.dumps(results), "utf-8")

    try:
        await fleet.start()
        print(f"READY {time.monotonic() - begin:.0f} s", flush=True)
        replicas = range(len(plan.seats))
        for _ in range(2):  # the first time warms
            speeds = await asyncio.gather(*(speed(fleet, index) for index in replicas))
        if plan.colocated >= 0:
            fleet.start_load()
            await asyncio.sleep(15)
            loaded = await asyncio.gather(*(speed(fleet, index) for index in replicas))
        else:
            loaded = speeds
        for index in replicas:
            fleet.reports[index]["decode_tokens_per_s"] = loaded[index]
        tokens = await asyncio.gather(*(sustained(fleet, i, requests) for i in replicas))
        session = {
            "replicas": [fleet.about[index] for index in replicas], "tokens_per_s": tokens,
            "decode_tokens_per_s": speeds, "decode_tokens_per_s_loaded": loaded,
            "mean_output_tokens": float(requests[:, 1].mean()), "cores": os.cpu_count(),
            "machine": platform.machine(), "date": time.strftime("%Y-%m-%d"),
        }  # fmt: skip
        results.setdefault("sessions", []).append(session)
        capacity = results.setdefault("capacity", sum(tokens) / float(requests[:, 1].mean()))
        write()
        print(f"CAPACITY {tokens} tokens/s, {capacity:.2f} requests/s, decode {loaded}", flush=True)
        longest = 1.5 * plan.seconds
        for seed, load, router in left:
            if time.monotonic() - begin + longest > 60 * minutes:
                print(f"OUT OF TIME with {len(order(plan)) - len(results['runs'])} runs to go")
                break
            rows = drawn(requests, load * capacity, plan.seconds, seed)
            found = await measure(fleet, router, rows, data, seed)
            longest = max(longest, found["took_s"])
            results["runs"].append(
                {"seed": seed, "load": load, "router": router,
                 "session": len(results["sessions"]) - 1, **found}
            )  # fmt: skip
            write()
            times = found["requests"]
            e2e = np.subtract(times["last_s"], times["arrival_s"])
            shares = np.bincount(np.array(times["replica"], dtype=int), minlength=len(plan.seats))
            print(
                f"RUN {seed} {load:g} {router}: {len(e2e)} requests in {found['took_s']:.1f} s, "
                f"mean {e2e.mean():.3f} s, P99 {np.quantile(e2e, 0.99):.3f} s, {shares.tolist()}, "
                f"{found['ranking_us']:.0f} us a decision", flush=True,
            )  # fmt: skip
    finally:
        await fleet.stop()


def plan_options(
    parser: argparse.ArgumentParser, plan: type[Plan], numbers: Sequence[str], *,
    routers: Sequence[str], loads: str, seeds: int,
) -> None:  # fmt: skip
    """The options of ``prepare``: what a plan says, its ``numbers`` among them."""
    parser.add_argument("data", type=Path)
    parser.add_argument("--workload", default="sharegpt")
    parser.add_argument(
        "--longest", type=_two, default="2048,1024", help="tokens of a prompt, of an answer"
    )
    parser.add_argument("--routers", default=",".join(routers))
    parser.add_argument("--seats", default="64,16")
    parser.add_argument("--loads", default=loads)
    parser.add_argument("--seeds", type=int, default=seeds)
    for name in numbers:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(plan, name))


def _two(text: str) -> tuple[int, int]:
    first, second = text.split(",")
    return int(first), int(second)


def planned(given: argparse.Namespace, numbers: Sequence[str]) -> dict[str, Any]:
    """Those options as fields of a plan."""
    return {
        "routers": tuple(given.routers.split(",")),
        "seats": tuple(int(item) for item in given.seats.split(",")),
        "loads": tuple(float(item) for item in given.loads.split(",")),
        "seeds": tuple(range(given.seeds)),
        **{name: getattr(given, name) for name in numbers},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parts = parser.add_subparsers(dest="part", required=True)
    first = parts.add_parser("prepare")
    plan_options(first, Plan, NUMBERS, routers=ROUTERS, loads="0.8,1.0", seeds=3)
    first.add_argument("--colocated", type=int, default=-1)
    second = parts.add_parser("run")
    second.add_argument("data", type=Path)
    second.add_argument("out", type=Path)
    second.add_argument("--done", type=Path)
    second.add_argument("--minutes", type=float, default=9.0)
    second.add_argument("--engine", default="vllm")
    given = parser.parse_args(arguments)
    if given.part == "run":
        given.out.mkdir(parents=True, exist_ok=True)
        asyncio.run(run(given.data, given.out, given.done, given.minutes, given.engine))
        return
    plan = Plan(**planned(given, NUMBERS), colocated=given.colocated)
    prepare(given.data, plan, given.workload, given.longest)


if __name__ == "__main__":
    main()
