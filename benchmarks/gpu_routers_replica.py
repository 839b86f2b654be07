"""One replica of ``benchmarks.gpu_routers``: an engine at the other end of a Unix socket.

    python -m benchmarks.gpu_routers_replica SOCKET '{"name": "0", "engine": "vllm", ...}'
    python -m benchmarks.gpu_routers_replica load DUTY      # another tenant of the same GPU

The engine is vLLM (random weights, answers as long as they are wanted), or, to try the harness
where there is no GPU, a stand-in that sleeps for as long as a timing profile says. Both sides speak
lines of JSON. The replica reports what a router may ask of it as often as it is told, counted from
the requests and tokens that pass through its front end.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

BLOCK = 16  # tokens of a KV block


class Engine(Protocol):
    """What serves: ``about`` names its seats, KV blocks and batch; the rest is for requests."""

    about: dict[str, Any]

    def generate(self, name: str, prompt_tokens: int, tokens: int) -> AsyncIterator[int]:
        """Serves a request; the number of tokens of each piece of its answer."""
        ...

    def shutdown(self) -> None:
        """Ends the engine."""
        ...


class Vllm:
    """An ``AsyncLLM`` with the shape of a known model."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        import torch
        import vllm
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from lengthwise.serving.timing.vllm_model import model_folder

        with model_folder(model) as folder:
            given = {"load_format": "dummy", "skip_tokenizer_init": True, **options}
            self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(folder), **given))
        config = self._engine.vllm_config
        self.about = {
            "gpu": torch.cuda.get_device_name(0),
            "engine": {"name": "vllm", "version": vllm.__version__},
            "num_gpu_blocks": config.cache_config.num_gpu_blocks,
            "block_size": config.cache_config.block_size,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "async_scheduling": bool(config.scheduler_config.async_scheduling),
        }
        self._vocabulary = self._engine.vllm_config.model_config.get_vocab_size()
        self._draws = np.random.default_rng(0)

    async def generate(self, name: str, prompt_tokens: int, tokens: int) -> AsyncIterator[int]:
        """Random prompts: nothing of one is in the cache when the next one comes."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            max_tokens=tokens, ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )  # fmt: skip
        prompt = self._draws.integers(0, self._vocabulary, prompt_tokens).tolist()
        async for output in self._engine.generate({"prompt_token_ids": prompt}, sampling, name):
            yield len(output.outputs[0].token_ids)

    def shutdown(self) -> None:
        """Ends the engine's processes."""
        self._engine.shutdown()


@dataclass
class Job:
    """A request inside the stand-in."""

    prompt_left: int
    tokens: int
    context: int = 0
    made: int = 0
    out: asyncio.Queue[int] = field(default_factory=asyncio.Queue)


class StandIn:
    """Continuous batching with chunked prefill, asleep for as long as each iteration takes."""

    def __init__(self, timing: str, options: dict[str, Any], speed: float = 1.0) -> None:
        from lengthwise.serving.timing import timing as load_timing

        self._timing = load_timing(timing)
        self._speed = speed
        self._seats = options["max_num_seqs"]
        self._batched = options.get("max_num_batched_tokens", 2048)
        self.about = {
            "gpu": "none", "engine": {"name": f"stand-in timed by {timing}"},
            "num_gpu_blocks": self._timing.num_gpu_blocks, "block_size": BLOCK,
            "max_num_seqs": self._seats, "max_num_batched_tokens": self._batched,
            "async_scheduling": False,
        }  # fmt: skip
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._loop: asyncio.Task[None] | None = None

    async def generate(self, name: str, prompt_tokens: int, tokens: int) -> AsyncIterator[int]:
        """First come, first served."""
        job = Job(prompt_tokens, tokens)
        self._waiting.append(job)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._serve())
        while job.made < tokens or not job.out.empty():
            yield await job.out.get()

    async def _serve(self) -> None:
        from lengthwise.protocols import Batch

        due = time.perf_counter()
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self._seats:
                self._running.append(self._waiting.popleft())
            left, chunks, decoding = self._batched, [], []
            for job in self._running:
                if job.prompt_left == 0:
                    decoding.append(job)
                    left -= 1
            for job in self._running:
                if job.prompt_left and left > 0:
                    chunk = min(left, job.prompt_left)
                    chunks.append((job, chunk))
                    left -= chunk
            batch = Batch(
                prefill_tokens=sum(chunk for _, chunk in chunks), prefill_seqs=len(chunks),
                decode_seqs=len(decoding), context_tokens=sum(job.context for job in decoding),
            )  # fmt: skip
            now = time.perf_counter()
            due = max(due, now) + self._timing.iteration_time(batch) / self._speed
            await asyncio.sleep(max(0.0, due - now))
            for job, chunk in chunks:
                job.prompt_left -= chunk
                job.context += chunk
            for job in [*decoding, *(job for job, _ in chunks if job.prompt_left == 0)]:
                job.made += 1
                job.context += 1
                job.out.put_nowait(1)
            self._running = [job for job in self._running if job.made < job.tokens]

    def shutdown(self) -> None:
        """Nothing is held."""


@dataclass
class Open:
    """What the front end knows of an unfinished request."""

    prompt_tokens: int
    predicted_tokens: float
    made: int = 0


class FrontEnd:
    """Counts what passes through, as a router that reads its streams can."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.open: dict[str, Open] = {}
        self.generated = 0

    async def serve(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Serves one request; its first and last token's time (ns) and how many there were."""
        name = asked["name"]
        known = self.open[name] = Open(asked["prompt_tokens"], asked["predicted_tokens"])
        first = last = 0
        try:
            stream = self.engine.generate(name, asked["prompt_tokens"], asked["output_tokens"])
            async for tokens in stream:
                last = time.perf_counter_ns()
                first = first or last
                known.made += tokens
                self.generated += tokens
        finally:
            del self.open[name]
        return {"done": name, "first_ns": first, "last_ns": last, "tokens": known.made}

    def report(self) -> dict[str, float]:
        """The features that a replica reports, by name, and all tokens generated so far."""
        seats = self.engine.about["max_num_seqs"]
        blocks = self.engine.about["num_gpu_blocks"]
        running = min(len(self.open), seats)
        held = list(self.open.values())
        tokens = sum(one.prompt_tokens + one.made for one in held[:running])
        return {
            "running_requests": running,
            "waiting_requests": len(held) - running,
            "kv_utilization": min(1.0, tokens / (blocks * BLOCK)),
            "prefill_backlog_tokens": sum(one.prompt_tokens for one in held if not one.made),
            "decode_backlog_tokens": sum(
                max(0, int(np.ceil(one.predicted_tokens)) - one.made) for one in held
            ),
            "free_seats": seats - running,
            "max_seats": seats,
            "generated": self.generated,
        }


async def talk(socket: str, about: dict[str, Any], engine: Engine) -> None:
    """Serves what the socket asks for until it says stop, or closes."""
    front = FrontEnd(engine)
    reader, writer = await asyncio.open_unix_connection(socket, limit=2**20)

    def say(message: dict[str, Any]) -> None:
        writer.write((json.dumps(message) + "\n").encode())

    async def one(asked: dict[str, Any]) -> None:
        try:
            say(await front.serve(asked))
        except Exception as error:  # the harness must not wait for it
            say({"failed": asked["name"], "why": repr(error)})

    async def reports() -> None:
        while True:
            say({"report": front.report(), "at_ns": time.perf_counter_ns()})
            await asyncio.sleep(about["report_s"])

    say({"ready": about["name"], "about": engine.about})
    telling = asyncio.create_task(reports())
    tasks = set()
    async for line in reader:
        asked = json.loads(line)
        if "stop" in asked:
            break
        task = asyncio.create_task(one(asked))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    telling.cancel()
    writer.close()


def load(duty: float) -> None:
    """Keeps the GPU busy for that share of the time with matrix products; until it is ended."""
    import torch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    while True:
        begin = time.perf_counter()
        a @ a
        torch.cuda.synchronize()
        took = time.perf_counter() - begin
        time.sleep(took * (1 / duty - 1))


def main(socket: str, text: str) -> None:
    """Starts the engine and serves."""
    if socket == "load":
        load(float(text))
        return
    about = json.loads(text)
    engine: Engine
    if about["engine"] == "vllm":
        engine = Vllm(about["model"], about["options"])
    else:
        engine = StandIn(about["engine"], about["options"], about.get("speed", 1.0))
    try:
        asyncio.run(talk(str(Path(socket)), about, engine))
    finally:
        engine.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:3])
