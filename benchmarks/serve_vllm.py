"""Serves workloads with a real vLLM (``AsyncLLM``) and records every request's times.

    python -m benchmarks.serve_vllm PLAN.json OUT

runs on a GPU machine; the plan lists engines, and for each the runs that share it:

    [{"model": "llama-3.1-8b", "options": {"max_num_seqs": 256}, "scheduler": null | "ranked",
      "runs": [{"name": "...", "workload": "x.csv", "rate": 12.0 | null, "load": 0.9,
                "seconds": 32, "policy": {...}}]}]

``rate`` requests/s scale the arrivals of a workload given at 1 request/s (null: all at once);
``load`` is a share of the saturation that the engine's first run, a burst, tells. A run writes
``NAME.parquet`` (requests), ``NAME.iterations.parquet`` and ``NAME.json`` into OUT.
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

RANKED = "benchmarks.vllm_ranked.ranked"


async def serve(engine: Any, workload: pd.DataFrame, seed: int) -> tuple[Any, pd.DataFrame]:
    """Sends each request at its arrival; returns iterations, and one row a request (ns)."""
    rng = np.random.default_rng(seed)
    vocabulary = engine.vllm_config.model_config.get_vocab_size()
    prompts = [rng.integers(0, vocabulary, n).tolist() for n in workload["prompt_tokens"]]
    outputs = workload["output_tokens"].tolist()
    rows: dict[int, tuple[int, int, int, int]] = {}

    async def one(index: int) -> None:
        name = f"r{index}"
        rows[index] = await measure_vllm.generate(engine, name, prompts[index], outputs[index])

    begin = time.perf_counter() + 0.2
    tasks = []
    for index, arrival in enumerate(workload["arrival_s"]):
        wait = begin + arrival - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(index)))
    await asyncio.gather(*tasks)
    iterations, events = await measure_vllm.flush(engine)
    times = measure_vllm.with_times(events, iterations)
    client = pd.DataFrame.from_dict(
        rows, orient="index", columns=["submit_ns", "first_ns", "last_ns", "tokens"]
    ).sort_index()
    client.insert(0, "arrival_s", workload["arrival_s"].to_numpy())
    client.insert(1, "prompt_tokens", workload["prompt_tokens"].to_numpy())
    client.index = pd.Index([f"r{i}" for i in client.index])
    return iterations, client.join(times)


def saturation(
    iterations: pd.DataFrame, workload: pd.DataFrame, max_num_seqs: int, budget: int
) -> float:
    """Requests/s that the engine can sustain, from the iterations of a burst."""
    done = iterations["done_ns"].to_numpy()
    took = np.diff(done) / 1e9
    terms = np.column_stack(
        [
            np.ones(len(done)),
            *(iterations[c] for c in ("prefill_tokens", "decode_seqs", "context_tokens")),
        ]
    )[1:]
    keep = took < np.quantile(took, 0.995)
    coefficients = np.linalg.lstsq(terms[keep], took[keep], rcond=None)[0]
    prompt, output = workload["prompt_tokens"].mean(), workload["output_tokens"].mean()
    per_iteration = min(max_num_seqs / (output + 2), budget / (prompt + output))
    decoding = per_iteration * output
    squares = (workload["output_tokens"] * workload["prompt_tokens"]).sum() + (
        workload["output_tokens"] ** 2
    ).sum() / 2
    context = decoding * squares / workload["output_tokens"].sum()
    seconds = coefficients @ [1, per_iteration * prompt, decoding, context]
    return float(per_iteration / seconds)


async def runs(engine: Any, entry: dict[str, Any], folder: Path, out: Path) -> None:
    """All runs of one engine."""
    scheduler = engine.vllm_config.scheduler_config
    about = measure_vllm.about(engine)
    calibration: pd.DataFrame | None = None
    await measure_vllm.generate(engine, "warm", [5] * 600, 20)
    await measure_vllm.flush(engine)
    for index, run in enumerate(entry["runs"]):
        if "policy" in run:
            await measure_vllm.command(engine, policy=run["policy"])
            await measure_vllm.flush(engine)
        workload = pd.read_csv(folder / run["workload"])
        rate = run.get("rate")
        facts = {"run": run, "about": about, "options": entry.get("options", {})}
        if "load" in run and calibration is not None:
            seats = entry.get("effective_seqs", scheduler.max_num_seqs)
            full = saturation(calibration, workload, seats, scheduler.max_num_batched_tokens)
            rate = full * run["load"]
            facts["saturation"] = full
        workload["arrival_s"] = workload["arrival_s"] / rate if rate else 0.0
        if "seconds" in run:
            workload = workload[workload["arrival_s"] <= run["seconds"]]
        facts["rate"] = rate
        begin = time.time()
        iterations, requests = await serve(engine, workload, seed=run.get("seed", index))
        facts["took_s"] = time.time() - begin
        if calibration is None:
            calibration = iterations
        iterations.to_parquet(out / f"{run['name']}.iterations.parquet", compression="zstd")
        requests.to_parquet(out / f"{run['name']}.parquet", compression="zstd")
        (out / f"{run['name']}.json").write_text(json.dumps(facts, indent=1), "utf-8")
        e2e = (requests["last_ns"] - requests["submit_ns"]) / 1e9
        ttft = (requests["first_ns"] - requests["submit_ns"]) / 1e9
        print(
            f"RUN {run['name']}: {len(requests)} requests, rate {rate}, {facts['took_s']:.1f} s, "
            f"ttft {ttft.mean():.3f}, e2e {e2e.mean():.3f} p99 {e2e.quantile(0.99):.3f}",
            flush=True,
        )


def main(plan: Path, out: Path) -> None:
    """Runs a plan."""
    out.mkdir(parents=True, exist_ok=True)
    for entry in json.loads(plan.read_text("utf-8")):
        scheduler = RANKED if entry.get("scheduler") == "ranked" else measure_vllm.RECORDER
        begin = time.time()
        with model_folder(entry["model"]) as model:
            engine = measure_vllm.start(model, scheduler=scheduler, **entry.get("options", {}))
            print(f"ENGINE {entry['model']} {entry.get('options')} {time.time() - begin:.1f} s")
            try:
                asyncio.run(runs(engine, entry, plan.parent, out))
            finally:
                engine.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
