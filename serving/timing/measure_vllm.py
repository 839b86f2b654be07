"""Drives a real vLLM on the GPU at hand through a sweep, and records every iteration.

The model is a shape: its weights are random ("dummy"), nothing is downloaded. The engine runs at
vLLM's defaults, asynchronous scheduling and CUDA graphs included, as ``AsyncLLM`` in its own
process; see ``vllm_recorder`` for what is recorded and ``vllm_plan`` for the sweep.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lengthwise.errors import InputError
from lengthwise.serving.timing.parts import Parts
from lengthwise.serving.timing.vllm_plan import batches, sweep_plan
from lengthwise.serving.timing.vllm_start import cause, output_to, settle

RECORDER = "lengthwise.serving.timing.vllm_recorder.recorder"
FRONTEND_LEVELS = (1, 16, 64, 128, 256, 512, 1024)  # as many as there are seats


def start(
    model: Path, *, scheduler: str | None = RECORDER, log: Path | None = None, **options: Any
) -> Any:
    """An ``AsyncLLM`` for the model whose ``config.json`` lies in the folder ``model``.

    What vLLM prints goes to the file ``log`` if there is one. Raises ``InputError`` with the cause
    in one line where vLLM is not installed or does not start.
    """
    settle()
    chosen: dict[str, Any] = dict(load_format="dummy", skip_tokenizer_init=True) | options
    if scheduler is not None:
        chosen["scheduler_cls"] = scheduler
    with nullcontext() if log is None else output_to(log):
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise InputError(
                f"vLLM is not installed here ({error}); install it, or use --engine torch"
            ) from None
        if log is None:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(model), **chosen))
        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(model), **chosen))
        except Exception as error:
            said = cause(log.read_text("utf-8", "replace"), error)
            raise InputError(f"vLLM did not start: {said}; all that it said is in {log}") from None


def about(engine: Any) -> dict[str, Any]:
    """Versions, GPU and the engine's options, for the profile."""
    import torch
    import vllm

    config = engine.vllm_config
    facts: dict[str, Any] = {
        "engine": {"name": "vllm", "version": vllm.__version__},
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "kv_cache_dtype": config.cache_config.cache_dtype,
        "quantization": config.model_config.quantization,
        "tensor_parallel": config.parallel_config.tensor_parallel_size,
        "num_gpu_blocks": config.cache_config.num_gpu_blocks,
        "block_size": config.cache_config.block_size,
        "async_scheduling": config.scheduler_config.async_scheduling,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_model_len": config.model_config.max_model_len,
        "cudagraph_capture_sizes": config.compilation_config.cudagraph_capture_sizes,
        "sampler": "vllm" if os.environ.get("VLLM_USE_FLASHINFER_SAMPLER") == "0" else "default",
        "date": time.strftime("%Y-%m-%d"),
        "gpu": "none",
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
        facts["gpu_memory_gib"] = round(torch.cuda.mem_get_info(0)[1] / 2**30, 2)
        facts["driver"] = _driver()
    return facts


def _driver() -> str:
    import subprocess

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


async def command(engine: Any, **extra: Any) -> None:
    """Sends the recorder a command and waits until it is done."""
    await generate(engine, f"cmd{time.perf_counter_ns()}", [1], 1, lengthwise=extra)


async def generate(
    engine: Any, name: str, prompt: list[int], tokens: int, **extra: Any
) -> tuple[int, int, int, int]:
    """One request; when it was submitted, its first and last token came (ns), and how many."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = SamplingParams(
        max_tokens=tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra or None,
    )
    submitted = time.perf_counter_ns()
    first = last = count = 0
    async for output in engine.generate({"prompt_token_ids": prompt}, sampling, name):
        last = time.perf_counter_ns()
        first = first or last
        count += len(output.outputs[0].token_ids)
    return submitted, first, last, count


async def flush(engine: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The iterations and the requests' events since the last flush."""
    from lengthwise.serving.timing.columns import COLUMNS, EVENTS

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recorded.npz"
        await command(engine, flush=str(path))
        with np.load(path) as data:
            rows = pd.DataFrame(data["rows"], columns=list(COLUMNS))
            events = pd.DataFrame(data["events"], columns=list(EVENTS), index=data["names"])
    return rows, events


async def sweep(
    engine: Any, plan: list[dict[str, Any]], seconds: float, **extra: Any
) -> pd.DataFrame:
    """Runs a plan in the engine; returns its iterations."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(json.dumps(plan), "utf-8")
        await command(engine, sweep=str(path), seconds=seconds, **extra)
    rows, _ = await flush(engine)
    return rows


async def frontend(
    engine: Any, levels: tuple[int, ...] | None = None, tokens: int = 48
) -> pd.DataFrame:
    """Requests from a client's side: alone with prompts of several lengths, and many at once."""
    rng = np.random.default_rng(1)
    vocabulary = engine.vllm_config.model_config.get_vocab_size()
    rows = []

    async def one(name: str, level: int, length: int) -> None:
        prompt = rng.integers(0, vocabulary, length).tolist()
        rows.append((name, level, length, *await generate(engine, name, prompt, tokens)))

    longest = engine.vllm_config.model_config.max_model_len - tokens
    for index, length in enumerate([16, 256, 1024, 4096] * 4):
        await one(f"alone{index}", 1, min(length, longest))
    seats = engine.vllm_config.scheduler_config.max_num_seqs
    for level in (n for n in levels or FRONTEND_LEVELS if n <= seats):
        await asyncio.gather(*(one(f"level{level}n{i}", level, 32) for i in range(level)))
    client = pd.DataFrame(
        rows, columns=["name", "level", "prompt", "submit_ns", "first_ns", "last_ns", "tokens"]
    ).set_index("name")
    iterations, events = await flush(engine)
    return client.join(with_times(events, iterations))


def with_times(events: pd.DataFrame, iterations: pd.DataFrame) -> pd.DataFrame:
    """Events with the times of the iterations that they name: columns ``engine_*_ns``."""

    def at(rows: pd.Series[Any], column: str) -> Any:
        values = iterations[column].to_numpy()
        inside = (rows >= 0) & (rows < len(values))
        return np.where(inside, values[np.where(inside, rows, 0)] if len(values) else -1, -1)

    return pd.DataFrame(
        {
            "engine_added_ns": events["added_ns"],
            "engine_scheduled_ns": at(events["scheduled_row"], "schedule_ns"),
            "engine_first_ns": at(events["first_token_row"], "done_ns"),
            "engine_last_ns": at(events["last_row"], "done_ns"),
        },
        index=events.index,
    )


async def measure(
    engine: Any,
    parts: Parts,
    seconds: float,
    thoroughness: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """Sweep and front end of a running engine: iterations, clients, and groups left out for time.

    Each group is kept in ``parts`` as it is finished, and is not measured again. No group starts
    once all of them have taken ``seconds``. ``progress`` is called with iterations, done and in
    all.
    """
    facts = parts.engine(about(engine))
    budget = facts["max_num_batched_tokens"]
    plan = sweep_plan(
        facts["num_gpu_blocks"] * facts["block_size"], budget, facts["max_num_seqs"],
        facts["max_model_len"], thoroughness=thoroughness,
    )  # fmt: skip
    sizes = [batches(group, budget) for group in plan]
    done, spent = set(parts.done()), parts.seconds()
    if done and len(done) < len(plan):  # the engine is new: its caches are cold and empty
        await sweep(engine, [plan[0]], seconds)
    for number, group in enumerate(plan):
        progress(sum(sizes[k] for k in done), sum(sizes))
        if number in done:
            continue
        if spent > seconds:
            break
        began = time.monotonic()
        rows = await sweep(engine, [group], seconds, seed=number)
        inside = rows["label"] >= 0
        parts.write(number, rows.assign(label=rows["label"].where(~inside, number)))
        spent += time.monotonic() - began
        done.add(number)
    progress(sum(sizes[k] for k in done), sum(sizes))
    clients = parts.read("frontend")
    if clients is None:
        clients = await frontend(engine)
        parts.write("frontend", clients)
    return parts.iterations(), clients, len(plan) - len(done)
