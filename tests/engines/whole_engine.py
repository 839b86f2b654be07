"""A whole vLLM on the CPU under the plugin: run in the environment of ``whole_environment``.

    python whole_engine.py tokens POLICY ...      the same tokens as stock, for every policy
    python whole_engine.py server WORK            an HTTP server: clients, disconnection, metrics

The model is tiny and random; generation is greedy, so that its tokens are a matter of fact.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

CLASS = "lengthwise.policies.plugins.vllm.scheduler"
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 1024,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
OPTIONS: dict[str, Any] = {
    "load_format": "dummy", "skip_tokenizer_init": True, "max_num_seqs": 4,
    "num_gpu_blocks_override": 14, "block_size": 32, "enforce_eager": True,
    "max_num_batched_tokens": 256, "max_model_len": 256, "seed": 0, "dtype": "float32",
}  # fmt: skip
PROMPTS = [[(37 * i + 11 * j) % 1000 + 5 for j in range(8 + 5 * i)] for i in range(16)]
LENGTHS = [3 + (29 * i) % 50 for i in range(16)]


def model_folder(root: str) -> str:
    (Path(root) / "config.json").write_text(json.dumps(MODEL))
    return root


def settings(policy: str) -> dict[str, Any]:
    return {"policy": policy}


async def generate(model: str, lengthwise: dict[str, Any] | None) -> list[list[int]]:
    """The tokens of every prompt, all asked for at once."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    extra: dict[str, Any] = {}
    if lengthwise is not None:
        extra = {"scheduler_cls": CLASS, "additional_config": {"lengthwise": lengthwise}}
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, **OPTIONS, **extra))

    async def one(index: int) -> list[int]:
        sampling = SamplingParams(
            temperature=0, max_tokens=LENGTHS[index], ignore_eos=True, detokenize=False,
            extra_args={"predicted_tokens": LENGTHS[index]},
        )  # fmt: skip
        tokens: list[int] = []
        prompt = {"prompt_token_ids": PROMPTS[index]}
        async for output in engine.generate(prompt, sampling, f"r{index}"):
            tokens = list(output.outputs[0].token_ids)
        return tokens

    try:
        return await asyncio.gather(*(one(i) for i in range(len(PROMPTS))))
    finally:
        engine.shutdown()


def tokens(policies: list[str]) -> None:
    """Stock against every policy."""
    with tempfile.TemporaryDirectory() as root:
        model = model_folder(root)
        wanted = asyncio.run(generate(model, None))
        assert [len(t) for t in wanted] == LENGTHS
        for policy in policies:
            start = time.monotonic()
            found = asyncio.run(generate(model, settings(policy)))
            assert found == wanted, f"{policy}: other tokens than stock"
            print(f"{policy}: the same tokens, {time.monotonic() - start:.0f} s", flush=True)


class Server:
    """vLLM's OpenAI server on a free port of loopback."""

    def __init__(self, model: str, lengthwise: dict[str, Any], scheduler: str = CLASS) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # not ``vllm serve``, whose command line asks for the metadata of a package named vllm
        line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        for name, value in OPTIONS.items():
            flag = "--" + name.replace("_", "-")
            line += [flag] if value is True else [flag, str(value)]
        line += ["--scheduler-cls", scheduler, "--host", "127.0.0.1", "--port", str(self.port)]
        line += ["--additional-config", json.dumps({"lengthwise": lengthwise})]
        line += ["--served-model-name", "tiny"]
        self.process = subprocess.Popen(line, start_new_session=True)
        deadline = time.monotonic() + 600
        while True:
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start"
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


async def clients(server: Server, predicted: bool = True) -> dict[str, Any]:
    """Sixteen concurrent OpenAI clients, two of which hang up in the middle."""
    import openai

    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    finished: list[int] = []

    async def one(index: int) -> int:
        xargs = {"vllm_xargs": {"predicted_tokens": LENGTHS[index]}} if predicted else {}
        stream = await client.completions.create(
            model="tiny", prompt=PROMPTS[index], max_tokens=LENGTHS[index], temperature=0,
            stream=True,
            extra_body={"ignore_eos": True, "detokenize": False, "return_token_ids": True, **xargs},
        )  # fmt: skip
        count = 0
        async for chunk in stream:
            for choice in chunk.choices:
                count += len(getattr(choice, "token_ids", None) or [])
            if index in (5, 11) and count:
                await stream.close()
                return -1
        finished.append(index)
        return count

    counts = await asyncio.gather(*(one(i) for i in range(len(PROMPTS))))
    await client.close()
    return {"counts": counts, "finished": finished}


def metrics(port: int) -> dict[str, float]:
    """The plugin's own counters."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("lengthwise_") and "_created" not in line
    }


def asked_for(found: dict[str, float]) -> float:
    """Requests whose length is settled, one way or the other."""
    return sum(
        value for key, value in found.items()
        if key.startswith(("lengthwise_predictions_total", "lengthwise_fallbacks_total"))
        and 'reason="policy"' not in key
    )  # fmt: skip


def serve(lengthwise: dict[str, Any], scheduler: str = CLASS, predicted: bool = True) -> None:
    """One server, twice sixteen clients, and its counters."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as root:
        server = Server(model_folder(root), {**lengthwise, "metrics_port": port}, scheduler)
        try:
            for _ in range(2):
                counts = asyncio.run(clients(server, predicted))["counts"]
                wanted = [-1 if i in (5, 11) else n for i, n in enumerate(LENGTHS)]
                assert counts == wanted, counts
            # a client that hung up is known to the engine a moment later
            deadline = time.monotonic() + 30
            while asked_for(found := metrics(port)) < 2 * len(PROMPTS):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            print(json.dumps({"metrics": found}), flush=True)
        finally:
            server.close()


def main() -> None:
    what, *rest = sys.argv[1:]
    if what == "tokens":
        tokens(rest)
    elif what == "server":
        serve(json.loads(rest[0]))
    else:  # a predictor that misbehaves, see ``faulty_scheduler``
        os.environ["LENGTHWISE_TEST_FAULT"] = what
        here = Path(__file__).parent
        os.environ["PYTHONPATH"] = f"{here}:{os.environ.get('PYTHONPATH', '')}"
        serve(
            {"policy": "sjf", "predictor": "fake", "predict_timeout_s": 0.2},
            "faulty_scheduler.scheduler",
            predicted=False,
        )


if __name__ == "__main__":
    main()
