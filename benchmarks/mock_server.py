"""What clients of the mock server see, beside what the simulator says of the same requests.

    python -m benchmarks.mock_server [--requests 200] [--rate 20] [--speed 1]

A process of its own serves; this one sends a trace's requests at their times, half of them
streamed, and measures by its own clock.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time

import aiohttp
import numpy as np

import lengthwise as lw
from lengthwise.workload import Workload

ENGINE = {"max_num_seqs": 64, "async_scheduling": True}
CODE = "from lengthwise.training.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--speed", type=float, default=1.0)
    given = parser.parse_args()
    workload = lw.Workload.preset(
        "azure-conv-2023", requests=given.requests, rate=given.rate, seed=0
    )
    print(f"{'policy':<12} {'':<10} {'mean, s':>10} {'P50':>8} {'P99':>8}")
    for policy in ("fcfs", "srtf"):
        told = lw.simulate(workload, policy, "oracle", lw.Engine(**ENGINE)).requests
        expected = (told["finish_s"] - told["arrival_s"]).to_numpy()
        seen = serve(workload, policy, given.speed)
        for label, values in (("simulated", expected), ("clients", seen)):
            row = (values.mean(), *np.percentile(values, (50, 99)))
            print(f"{policy:<12} {label:<10} " + " ".join(f"{value:8.3f}" for value in row))
        ratios = (
            seen.mean() / expected.mean(), *(np.percentile(seen, p) / np.percentile(expected, p)
                                             for p in (50, 99)),
        )  # fmt: skip
        print(f"{policy:<12} {'ratio':<10} " + " ".join(f"{value:8.3f}" for value in ratios))


def serve(workload: Workload, policy: str, speed: float) -> np.ndarray:
    """Latency of each request as its client sees it, in seconds of the engine, (n,)."""
    command = [
        sys.executable, "-uc", CODE, "mock-server", "--port", "0", "--policy", policy,
        "--predictor", "oracle", "--speed", str(speed), "--max-num-seqs",
        str(ENGINE["max_num_seqs"]), "--async-scheduling",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        try:
            return asyncio.run(drive(workload, url, speed))
        finally:
            process.terminate()


async def drive(workload: Workload, url: str, speed: float) -> np.ndarray:
    """Sends all requests at their times."""
    columns = (workload[name].tolist() for name in ("arrival_s", "prompt_tokens", "output_tokens"))
    rows = list(zip(*columns, strict=True))
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(number: int, at_s: float, prompt: int, output: int) -> float:
            body = {
                "prompt": [number] * prompt, "max_tokens": output, "ignore_eos": True,
                "stream": number % 2 == 0,
            }  # fmt: skip
            await asyncio.sleep(began + at_s / speed - time.monotonic())
            start = time.monotonic()
            async with session.post("/v1/completions", json=body) as answer:
                await answer.read()
            return (time.monotonic() - start) * speed

        began = time.monotonic() + 0.5
        tasks = [one(number, *row) for number, row in enumerate(rows)]
        return np.array(await asyncio.gather(*tasks))


if __name__ == "__main__":
    main()
