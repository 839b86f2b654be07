"""Serves workloads with a real vLLM under our scheduler class, one policy after another.

    python -m benchmarks.gpu_policies PLAN.json OUT [ENGINE ...]

runs on a GPU machine. The plan names engines, each with its plugin settings (null: vLLM's own
scheduler) and the runs that share it:

    {"model": "llama-3.1-8b", "options": {"max_num_seqs": 64},
     "engines": {"srtf": {"settings": {"policy": "srtf", "guard": 0.0},
                          "runs": [{"name": "srtf-burst", "workload": "x.csv", "rate": null,
                                    "seconds": 30, "predicted": "output_tokens"}]}}}

``rate`` scales arrivals given at 1 request/s (null: all at once), ``seconds`` cuts them, and
``predicted`` names the column that is sent with each request as ``predicted_tokens``. Each run
writes ``NAME.parquet`` (client times, ns) into OUT; a run whose file is there is passed over.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lengthwise.serving.timing import measure_vllm
from lengthwise.serving.timing.vllm_model import model_folder

SCHEDULER = "lengthwise.policies.plugins.vllm.scheduler"


def requests_of(run: dict[str, Any], folder: Path) -> pd.DataFrame:
    """The requests of a run, with their arrival times."""
    workload = pd.read_csv(folder / run["workload"])
    rate = run["rate"]
    workload["arrival_s"] = workload["arrival_s"] / rate if rate else 0.0
    if "seconds" in run:
        workload = workload[workload["arrival_s"] <= run["seconds"]]
    return workload.head(run.get("requests", len(workload))).reset_index(drop=True)


async def serve(engine: Any, workload: pd.DataFrame, predicted: str | None) -> pd.DataFrame:
    """Sends each request at its arrival; one row a request, client times in ns."""
    rng = np.random.default_rng(0)
    vocabulary = engine.vllm_config.model_config.get_vocab_size()
    prompts = [rng.integers(0, vocabulary, n).tolist() for n in workload["prompt_tokens"]]
    outputs = workload["output_tokens"].tolist()
    lengths = workload[predicted].tolist() if predicted else []
    rows: dict[int, tuple[int, int, int, int]] = {}

    async def one(index: int) -> None:
        extra = {"predicted_tokens": float(lengths[index])} if predicted else {}
        name = f"r{time.monotonic_ns()}-{index}"
        rows[index] = await measure_vllm.generate(
            engine, name, prompts[index], outputs[index], **extra
        )

    begin = time.perf_counter() + 0.2
    tasks = []
    for index, arrival in enumerate(workload["arrival_s"]):
        wait = begin + arrival - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(index)))
    await asyncio.gather(*tasks)
    client = pd.DataFrame.from_dict(
        rows, orient="index", columns=["submit_ns", "first_ns", "last_ns", "tokens"]
    ).sort_index()
    return workload.join(client)


async def serve_all(engine: Any, runs: list[dict[str, Any]], folder: Path, out: Path) -> None:
    """All runs of one engine that are not there yet."""
    await measure_vllm.generate(engine, "warm", [5] * 600, 20)
    for run in runs:
        path = out / f"{run['name']}.parquet"
        if path.exists():
            continue
        found = await serve(engine, requests_of(run, folder), run.get("predicted"))
        if (found["tokens"] != found["output_tokens"]).any():
            raise AssertionError(f"{run['name']}: an answer lacks tokens")
        found.to_parquet(path, compression="zstd")
        e2e = (found["last_ns"] - found["submit_ns"]) / 1e9
        took = (found["last_ns"].max() - found["submit_ns"].min()) / 1e9
        print(
            f"RUN {run['name']}: {len(found)} requests in {took:.1f} s, mean {e2e.mean():.3f} s, "
            f"P99 {e2e.quantile(0.99):.3f} s, {(e2e / found['tokens']).mean():.4f} s/token",
            flush=True,
        )


def main(plan_path: Path, out: Path, chosen: list[str]) -> None:
    """Runs the chosen engines of a plan, or all."""
    out.mkdir(parents=True, exist_ok=True)
    plan = json.loads(plan_path.read_text("utf-8"))
    for name in chosen or list(plan["engines"]):
        engine_plan = plan["engines"][name]
        begin = time.time()
        options = dict(plan["options"])
        settings = engine_plan["settings"]
        if settings is not None:
            options["additional_config"] = {"lengthwise": settings}
        with model_folder(plan["model"]) as model:
            scheduler = SCHEDULER if settings is not None else None
            engine = measure_vllm.start(model, scheduler=scheduler, **options)
            print(f"ENGINE {name} {settings} {time.time() - begin:.1f} s", flush=True)
            try:
                asyncio.run(serve_all(engine, engine_plan["runs"], plan_path.parent, out))
            finally:
                engine.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
