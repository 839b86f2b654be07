"""The endpoint picker behind real Envoy, in front of mock servers, on one machine.

    python -m benchmarks.gateway cost [--requests 2000] [--rate 200]
    python -m benchmarks.gateway load [--requests 2000] [--concurrency 64]
    python -m benchmarks.gateway fleet [--rate 14] [--routers round-robin,jsew,./my_router]

``cost``: what a picker adds to latency, on servers of one and the same kind: Envoy alone and with
``serve-epp``, in turns. ``load``: as many requests at once, of which none may be lost or go to
another endpoint than the picker's. ``fleet``: two fast and two slow servers; Envoy's round robin
and least request, and routers of ours behind it, beside the simulator's word on the same requests.
Mock servers and the picker are processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import yaml

import lengthwise as lw
from lengthwise.serving.options import Engine
from lengthwise.workload import Workload
from tests.engines.envoy import Envoy, free_ports

CODE = "from lengthwise.training.cli import main; main()"
SEATS = 8
FLEET = ("h200/llama-3.1-8b",) * 2 + ("roofline:l40s/llama-3.1-8b",) * 2
SCRAPE_S = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("cost", "load", "fleet"))
    parser.add_argument("--requests", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--routers", default="round-robin,jsew")
    given = parser.parse_args()
    if given.what == "cost":
        cost(given.requests or 2000, given.rate or 200.0)
    elif given.what == "load":
        load(given.requests or 2000, given.concurrency)
    else:
        fleet(given.requests or 500, given.rate or 14.0, given.routers.split(","))


@contextmanager
def running(*arguments: str, lines: int = 1) -> Iterator[list[str]]:
    """A command of ours, until the block ends; its first lines."""
    process = subprocess.Popen(
        [sys.executable, "-uc", CODE, *arguments], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield [process.stdout.readline().strip() for _ in range(lines)]
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def servers(*arguments: str, count: int) -> Iterator[list[str]]:
    """Addresses of mock servers."""
    with running("mock-server", "--port", "0", *arguments, lines=count) as said:
        yield [line.split()[-1].removeprefix("http://") for line in said]


@contextmanager
def picker(endpoints: str, router: str) -> Iterator[tuple[int, int]]:
    """The ports of a picker and of its metrics."""
    port, shown = free_ports(2)
    with running(
        "serve-epp", "--endpoints", endpoints, "--router", router, "--port", str(port),
        "--metrics-port", str(shown), "--scrape-interval", str(SCRAPE_S),
    ) as (said,):  # fmt: skip
        if "endpoint picker on" not in said:
            raise SystemExit(said)
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{shown}/ready").close()
                break
            except OSError:
                time.sleep(0.05)
        yield port, shown


def metric(port: int, name: str, label: str) -> dict[str, float]:
    """The values of a metric by one of its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(
        rf'^{re.escape(name)}\{{.*?{label}="([^"]*)".*?\}} (\S+)$', text, re.MULTILINE
    )
    return {key: float(value) for key, value in found}


async def ask(
    session: aiohttp.ClientSession, prompt: int, output: int, predicted: float
) -> tuple[float, float]:
    """One streamed answer: seconds to its first byte and to its last."""
    body = {
        "prompt": "abc " * prompt, "max_tokens": output, "ignore_eos": True, "stream": True,
        "vllm_xargs": {"predicted_tokens": predicted},
    }  # fmt: skip
    start = time.monotonic()
    async with session.post("/v1/completions", json=body) as answer:
        assert answer.status == 200, answer.status
        data = await answer.content.readany()
        first = time.monotonic() - start
        data += await answer.content.read()
    assert data.endswith(b"data: [DONE]\n\n") and data.count(b"\ndata: ") == output
    return first, time.monotonic() - start


async def at_rate(url: str, rows: Sequence[tuple[float, int, int]]) -> np.ndarray:
    """Seconds to the first and last byte of requests sent at their times, (n, 2)."""
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.monotonic() + 0.5

        async def one(at_s: float, prompt: int, output: int) -> tuple[float, float]:
            await asyncio.sleep(began + at_s - time.monotonic())
            return await ask(session, prompt, output, output)

        return np.array(await asyncio.gather(*(one(*row) for row in rows)))


def cost(requests: int, rate: float) -> None:
    rows = [(number / rate, 300, 10) for number in range(requests)]
    print(f"{requests} streamed requests at {rate:g}/s; ms to the first byte and to the last")
    print(f"{'':<16} {'first P50':>10} {'P99':>8} {'last P50':>10} {'P99':>8}")
    with servers("--replicas", "2", "--speed", "20", count=2) as addresses:
        with picker(",".join(addresses), "least-tokens") as (port, shown):
            for _ in range(2):
                found = []
                for label, options in (
                    ("Envoy alone", {}),
                    ("with serve-epp", {"picker": port}),
                    ("answers unseen", {"picker": port, "answers": False}),
                ):
                    with Envoy(addresses, **options) as envoy:
                        asyncio.run(at_rate(envoy.url, rows[: int(rate)]))
                        took = asyncio.run(at_rate(envoy.url, rows)) * 1000
                    found.append(np.percentile(took, (50, 99), axis=0).T.ravel())
                    print(f"{label:<16} " + " ".join(f"{value:8.2f} " for value in found[-1]))
                for label, these in zip(("added", "added, unseen"), found[1:], strict=True):
                    added = " ".join(f"{value:8.2f} " for value in these - found[0])
                    print(f"{label:<16} {added}")
            with urllib.request.urlopen(f"http://127.0.0.1:{shown}/metrics") as answer:
                text = answer.read().decode()
            total, count = (
                float(re.findall(rf"^lengthwise_epp_decision_seconds_{part} (\S+)", text, re.M)[0])
                for part in ("sum", "count")
            )
            print(f"a decision: {total / count * 1000:.3f} ms on average")


def load(requests: int, concurrency: int) -> None:
    rng = np.random.default_rng(0)
    sizes = np.stack([rng.integers(1, 500, requests), rng.integers(1, 60, requests)], axis=1)
    nodes = "2xh200/llama-3.1-8b,roofline:l40s/llama-3.1-8b"
    with servers("--nodes", nodes, "--max-num-seqs", "16", "--speed", "4", count=3) as addresses:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "fleet.yaml"
            kinds = (FLEET[0], FLEET[0], FLEET[2])
            _write(file, addresses, kinds, 16)
            with picker(str(file), "jsew") as (port, shown):
                with Envoy(addresses, picker=port) as envoy:
                    start = time.monotonic()
                    asyncio.run(_at_once(envoy.url, sizes.tolist(), concurrency))
                    took = time.monotonic() - start
                picks = metric(shown, "lengthwise_epp_picks_total", "endpoint")
                ends = metric(shown, "lengthwise_epp_streams_total", "end")
        served = {}
        for address in addresses:
            port = int(address.rpartition(":")[2])
            done = metric(port, "vllm:request_success_total", "finished_reason")
            served[address] = done["length"]
    print(f"{requests} streamed requests, {concurrency} at once: {took:.1f} s, all whole")
    print(f"picked and served, by endpoint: {list(picks.values())} {list(served.values())}")
    print(f"streams of the gateway: {ends}")
    if any(picks[address] != served[address] for address in addresses):
        raise SystemExit("requests went elsewhere than the picker said")


async def _at_once(url: str, sizes: Sequence[Sequence[int]], concurrency: int) -> None:
    gate = asyncio.Semaphore(concurrency)
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(prompt: int, output: int) -> None:
            async with gate:
                await ask(session, prompt, output, output)

        await asyncio.gather(*(one(*size) for size in sizes))


def _write(file: Path, addresses: Sequence[str], kinds: Sequence[str], seats: int) -> None:
    rows = [
        {"address": address, "timing": kind, "max_num_seqs": seats}
        for address, kind in zip(addresses, kinds, strict=True)
    ]
    file.write_text(yaml.safe_dump(rows))


def fleet(requests: int, rate: float, routers: Sequence[str]) -> None:
    workload = lw.Workload.preset("azure-conv-2023", requests=requests, rate=rate, seed=1)
    columns = (workload[name].tolist() for name in ("arrival_s", "prompt_tokens", "output_tokens"))
    rows = list(zip(*columns, strict=True))
    nodes = "2xh200/llama-3.1-8b,2xroofline:l40s/llama-3.1-8b"
    runs: list[tuple[str, str, dict[str, Any], str | None]] = [
        # Envoy begins its turns anywhere, and what it draws nobody knows: no twins
        ("Envoy round robin", "", {}, None),
        ("Envoy least request", "", {"fallback": "least_request"}, None),
        *((f"serve-epp {Path(router).name}", router, {}, router) for router in routers),
    ]
    print(f"{requests} requests of {workload.name} at {rate:g}/s on {nodes}, {SEATS} seats each")
    print(f"{'latency, s':<24} {'':<10} {'mean':>8} {'P50':>8} {'P99':>8}")
    for label, twin, options, router in runs:
        took = _through_envoy(rows, nodes, options, router)
        lines = {"measured": took}
        if twin:
            lines["simulated"] = _simulated(workload, nodes, twin)
        table = {
            name: np.array([values.mean(), *np.percentile(values, (50, 99))])
            for name, values in lines.items()
        }
        if twin:
            table["ratio"] = table["measured"] / table["simulated"]
        for name, values in table.items():
            print(f"{label:<24} {name:<10} " + " ".join(f"{value:8.3f}" for value in values))


def _simulated(workload: Workload, nodes: str, router: str) -> np.ndarray:
    found = lw.simulate(
        workload, "fcfs", "oracle", Engine(max_num_seqs=SEATS), nodes=nodes, router=router,
        metrics_interval_s=0.0 if router == "round-robin" else SCRAPE_S,
    ).requests  # fmt: skip
    return np.asarray(found["finish_s"] - found["arrival_s"])


def _through_envoy(
    rows: Sequence[tuple[float, int, int]], nodes: str, options: dict[str, Any], router: str | None
) -> np.ndarray:
    with servers("--nodes", nodes, "--max-num-seqs", str(SEATS), count=4) as addresses:
        if router is None:
            with Envoy(addresses, **options) as envoy:
                return asyncio.run(at_rate(envoy.url, rows))[:, 1]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "fleet.yaml"
            _write(file, addresses, FLEET, SEATS)
            with picker(str(file), router) as (port, _):
                with Envoy(addresses, picker=port) as envoy:
                    return asyncio.run(at_rate(envoy.url, rows))[:, 1]


if __name__ == "__main__":
    main()
