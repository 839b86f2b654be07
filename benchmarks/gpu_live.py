"""What the plugin costs and wins in a live vLLM: shadow mode, caps, a predictor under a template.

    python -m benchmarks.gpu_live prepare DATA            # anywhere: prompts, lengths, a predictor
    python -m benchmarks.gpu_live cost DATA OUT           # on a GPU, about 7 minutes each
    python -m benchmarks.gpu_live overload DATA OUT

``cost`` keeps two engines alive, vLLM's own scheduler and another, and serves the same burst by
turns, five pairs each: shadow mode with a record, and a policy in FCFS order with a record.
``overload`` serves 1.3 times of what the engine sustains under one policy after another, each in an
engine of its own; half of the clients limit their answers. Both write JSON into OUT as they go.

Prompts are chats under a template, in tokens of a byte tokenizer; weights are random, and an answer
ends where the workload says (``gpu_live_scheduler``), whatever its ``max_tokens``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SCHEDULER = "benchmarks.gpu_live_scheduler.scheduler"
PAIRS, BURST = 5, 500
SECONDS = 22.0  # of arrivals
LOAD = 1.3  # times what a burst sustained
LONGEST = 600  # tokens of an answer
LIMITS = (16, 64, 128)  # max_tokens of those who name one
HERE = Path(__file__).parent


# Anywhere


def prepare(data: Path) -> None:
    """Writes the model's folder, ``requests.json`` and ``predictor`` into ``data``."""
    import lengthwise as lw
    from lengthwise.predictors import make_predictor
    from lengthwise.serving.timing.vllm_model import model_folder
    from lengthwise.serving.workload.split import in_split
    from tests.engines import live_model

    work = lw.Workload.preset("synthetic-chat", requests=6000, rate=1.0, seed=0)
    texts = np.array(work["prompt"], dtype=object)
    lengths = np.minimum(work["output_tokens"], LONGEST)
    train = in_split(texts, "train", 0.5)
    predictor = make_predictor("ridge").fit(texts[train].tolist(), lengths[train])
    predictor.save(data / "predictor")
    (data / "model").mkdir(exist_ok=True)
    live_model.make(data / "model")
    with model_folder("llama-3.1-8b") as made:
        (data / "model" / "config.json").write_text((made / "config.json").read_text())
    rng = np.random.default_rng(0)
    rows = [
        {"text": text, "tokens": int(n),
         "limit": int(rng.choice(LIMITS)) if rng.random() < 0.5 else LONGEST}
        for text, n in zip(texts[~train], lengths[~train].tolist(), strict=True)
    ]  # fmt: skip
    for row in rows:
        row["answer"] = min(row["tokens"], row["limit"])
    (data / "requests.json").write_text(json.dumps(rows))


# On a GPU


def start(data: Path, settings: dict[str, Any] | None, **options: Any) -> Any:
    """An engine under vLLM's own scheduler, or under the plugin with these settings."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    config = {} if settings is None else {"lengthwise": settings}
    given: dict[str, Any] = {
        "load_format": "dummy", "max_model_len": 4096, "enable_prefix_caching": False,
        "scheduler_cls": SCHEDULER, "additional_config": config, **options,
    }  # fmt: skip
    return AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(data / "model"), **given))


def chats(data: Path, rows: list[dict[str, Any]]) -> list[list[int]]:
    """Token ids of each request's chat, rendered with the template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data / "model")
    found: list[list[int]] = []
    for row in rows:
        said = [{"role": "user", "content": row["text"]}]
        text = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


async def serve(
    engine: Any, rows: list[dict[str, Any]], prompts: list[list[int]], arrivals: list[float],
    told: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: {}, capped: bool = True,
) -> list[tuple[float, float, float, int]]:  # fmt: skip
    """(submitted, first, last, tokens) of each request, s; ``told`` is what its client sends."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    name = time.monotonic_ns()

    async def one(index: int) -> tuple[float, float, float, int]:
        row = rows[index]
        sampling = SamplingParams(
            max_tokens=row["limit"] if capped else LONGEST, ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={"answer_tokens": row["answer"], **told(row)},
        )  # fmt: skip
        begin = time.perf_counter()
        first = last = 0.0
        count = 0
        prompt = {"prompt_token_ids": prompts[index]}
        async for output in engine.generate(prompt, sampling, f"{name}-{index}"):
            last = time.perf_counter()
            first = first or last
            count += len(output.outputs[0].token_ids)
        assert count == row["answer"], (count, row)
        return begin, first, last, count

    begin = time.perf_counter() + 0.1
    tasks = []
    for index, arrival in enumerate(arrivals):
        wait = begin + arrival - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(index)))
    return list(await asyncio.gather(*tasks))


async def burst(engine: Any, rows: list[dict[str, Any]], prompts: list[list[int]]) -> float:
    """Tokens per second of all at once."""
    times = await serve(engine, rows, prompts, [0.0] * len(rows))
    took = max(last for _, _, last, _ in times) - min(begin for begin, *_ in times)
    return sum(tokens for *_, tokens in times) / took


def cost(data: Path, out: Path, options: dict[str, Any]) -> None:
    """Five pairs of bursts each: stock beside shadow mode, and beside a policy in FCFS order."""
    rows = json.loads((data / "requests.json").read_text())[: options.pop("requests", BURST)]
    options.pop("seconds", None)
    prompts = chats(data, rows)
    share = {"gpu_memory_utilization": 0.44, "max_num_seqs": 128, **options}
    predictor = str(data / "predictor")
    arrival = f"{HERE.parent / 'tests' / 'engines' / 'arrival_order.py'}:arrival"
    others = {
        "shadow": {"policy": "fcfs", "predictor": predictor, "record": str(out / "record-shadow")},
        "order": {"policy": arrival, "predictor": predictor, "record": str(out / "record-order")},
    }
    stock = start(data, None, **share)

    async def pairs(other: Any) -> list[tuple[float, float]]:
        for engine in (stock, other):  # warm
            await burst(engine, rows[:64], prompts)
        found = []
        for number in range(PAIRS):
            turn = [stock, other] if number % 2 == 0 else [other, stock]
            speed = {id(engine): await burst(engine, rows, prompts) for engine in turn}
            found.append((speed[id(stock)], speed[id(other)]))
            print(f"PAIR {number}: {found[-1]}", flush=True)
        return found

    async def all_pairs() -> None:
        for name, settings in others.items():
            other = start(data, settings, **share)
            try:
                found = await pairs(other)
            finally:
                other.shutdown()
                gc.collect()
            ratios = [b / a for a, b in found]
            result = {
                "settings": settings, "requests": len(rows), "pairs_tokens_per_s": found,
                "ratio_mean": statistics.mean(ratios), "ratio_stdev": statistics.stdev(ratios),
                "ratio_median": statistics.median(ratios), "machine": machine(),
            }  # fmt: skip
            (out / f"cost-{name}.json").write_text(json.dumps(result, indent=1))
            print(f"COST {name}: {result['ratio_mean']:.4f} of stock's tokens/s", flush=True)

    try:
        asyncio.run(all_pairs())
    finally:
        stock.shutdown()


def overload(data: Path, out: Path, options: dict[str, Any]) -> None:
    """The same arrivals under each policy; how long requests take, end to end."""
    rows = json.loads((data / "requests.json").read_text())[: options.pop("requests", 2500)]
    seconds, load = options.pop("seconds", SECONDS), options.pop("load", LOAD)
    wanted = options.pop("runs", None)
    prompts = chats(data, rows)
    share = {"gpu_memory_utilization": 0.9, "max_num_seqs": 64, **options}
    predictor = str(data / "predictor")

    def exact(row: dict[str, Any]) -> dict[str, Any]:
        return {"predicted_tokens": float(row["answer"])}

    runs: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
        "stock": (None, {}),
        "sjf-ridge": ({"policy": "sjf", "predictor": predictor}, {}),
        "sjf-ridge-uncapped": ({"policy": "sjf", "predictor": predictor}, {"capped": False}),
        "srtf-ridge": ({"policy": "srtf", "predictor": predictor}, {}),
        "srtf-oracle": ({"policy": "srtf"}, {"told": exact}),
        "mlfq": ({"policy": "mlfq"}, {}),
    }
    arrivals: list[float] = []
    for name in wanted or list(runs):
        settings, sent = runs[name]
        engine = start(data, settings, **share)

        async def one(engine: Any = engine, sent: dict[str, Any] = sent) -> list[Any]:
            await burst(engine, rows[:64], prompts)
            if not arrivals:  # the first run tells how much is too much
                some = rows[:300]
                rate = load * await burst(engine, some, prompts) / mean_answer(some)
                rng = np.random.default_rng(0)
                times = np.cumsum(rng.exponential(1 / rate, len(prompts)))
                arrivals.extend(times[times < seconds].tolist())
            return await serve(engine, rows, prompts, arrivals, **sent)

        try:
            found = asyncio.run(one())
        finally:
            engine.shutdown()
            gc.collect()
        whole = np.array([last - begin for begin, _, last, _ in found])
        tokens = np.array([count for *_, count in found])
        result = {
            "settings": settings, "requests": len(found), "rate": len(found) / seconds,
            "mean_s": whole.mean(), "p50_s": np.median(whole), "p99_s": np.quantile(whole, 0.99),
            "mean_s_per_token": (whole / tokens).mean(),
            "ttft_mean_s": np.mean([first - begin for begin, first, _, _ in found]),
            "took_s": max(last for _, _, last, _ in found) - min(begin for begin, *_ in found),
            "machine": machine(),
        }  # fmt: skip
        (out / f"overload-{name}.json").write_text(json.dumps(result, indent=1))
        print(
            f"OVERLOAD {name}: mean {whole.mean():.2f} s, P99 {result['p99_s']:.2f} s, "
            f"{result['mean_s_per_token']:.4f} s/token, {result['took_s']:.1f} s", flush=True,
        )  # fmt: skip


def mean_answer(rows: list[dict[str, Any]]) -> float:
    return statistics.mean(row["answer"] for row in rows)


def machine() -> dict[str, Any]:
    """Where it ran."""
    import torch
    import vllm

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {"gpu": gpu, "vllm": vllm.__version__, "date": time.strftime("%Y-%m-%d")}


def main(what: str, data: Path, out: Path | None = None, options: str = "{}") -> None:
    """Runs one part; ``options`` (JSON) are vLLM's, and ``requests``, ``seconds`` for a trial."""
    data.mkdir(parents=True, exist_ok=True)
    if what == "prepare":
        prepare(data)
        return
    assert out is not None, f"{what} needs a folder OUT"
    out.mkdir(parents=True, exist_ok=True)
    {"cost": cost, "overload": overload}[what](data, out, json.loads(options))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:4]), *sys.argv[4:5])
