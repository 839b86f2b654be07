"""Runs vLLM's own scheduler with a fake model runner, on commands from standard input.

This file runs in the environment that ``environment`` makes; of lengthwise it imports the plugin,
and that only if it is asked to. A line of input is a JSON array of commands, a line of output the
array of their answers. Commands, each for the scheduler ``id``:

    new       engine options, KV blocks, vLLM's queue policy or the settings of lengthwise's plugin
    add       a request: id, arrival, priority, prompt (see ``_prompt``) and output tokens
    schedule  -> tokens scheduled for which request, which were preempted, what is left
    update    the oldest scheduled step is done -> which requests finished
    drop      forget the scheduler
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import traceback
from collections import deque
from pathlib import Path
from typing import Any

# What vLLM prints must not mix with the answers, from its import on.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

# ruff: noqa: E402
import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

LONGEST = 1 << 30  # tokens; stands for no limit on a request's length
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512,
    "max_position_embeddings": LONGEST, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "torch_dtype": "float32",
}  # fmt: skip
PLUGIN = "lengthwise.policies.plugins.vllm.scheduler"
# Token ids only have to differ where content does. They come from disjoint ranges.
HASHED, OWN, GENERATED = 1 << 40, 1 << 50, 1 << 60


class Clock:
    """Simulated time, in seconds, for the plugin."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


CLOCK = Clock()


class Bench:
    """One scheduler, and the steps whose results it waits for."""

    def __init__(self, model: str, given: dict[str, Any]) -> None:
        engine = given["engine"]
        longest = engine["max_model_len"] or LONGEST
        if not engine["enable_chunked_prefill"]:  # vLLM insists on it
            longest = min(longest, engine["max_num_batched_tokens"])
        scheduler_config = SchedulerConfig(
            max_num_seqs=engine["max_num_seqs"],
            max_num_batched_tokens=engine["max_num_batched_tokens"],
            max_model_len=longest,
            is_encoder_decoder=False,
            enable_chunked_prefill=engine["enable_chunked_prefill"],
            long_prefill_token_threshold=engine["long_prefill_token_threshold"],
            async_scheduling=engine["async_scheduling"],
            scheduler_reserve_full_isl=engine["scheduler_reserve_full_isl"],
            watermark=engine["watermark"],
            policy=given["queue"],
            scheduler_cls=PLUGIN if given["plugin"] else None,
        )
        cache_config = CacheConfig(
            block_size=engine["block_size"],
            enable_prefix_caching=engine["enable_prefix_caching"],
        )
        config = VllmConfig(
            model_config=ModelConfig(
                model=model, skip_tokenizer_init=True, dtype="float32", max_model_len=longest
            ),
            scheduler_config=scheduler_config,
            cache_config=cache_config,
            device_config=DeviceConfig("cpu"),
            additional_config={"lengthwise": given["plugin"]} if given["plugin"] else {},
        )
        cache_config.num_gpu_blocks = given["num_gpu_blocks"]
        # what vLLM's own defaults may have changed is set again: the caller asked for these
        for name in ("async_scheduling", "enable_chunked_prefill", "long_prefill_token_threshold"):
            setattr(config.scheduler_config, name, engine[name])
        spec = FullAttentionSpec(
            block_size=engine["block_size"], num_kv_heads=1, head_size=1, dtype=torch.float32
        )
        groups = [KVCacheGroupSpec(["layer"], spec)]
        self.scheduler: Any = config.scheduler_config.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(given["num_gpu_blocks"], [], groups),
            structured_output_manager=StructuredOutputManager(config),
            block_size=engine["block_size"],
            log_stats=False,
        )
        if given["plugin"] and hasattr(self.scheduler, "lengthwise"):
            self.scheduler.lengthwise.clock.follow(CLOCK)
        caching = engine["enable_prefix_caching"]
        self._hasher = get_request_block_hasher(engine["block_size"], sha256) if caching else None
        self._in_flight: deque[tuple[Any, list[str]]] = deque()
        self._preempted: list[int] = []
        self._watch_preemptions()

    def _watch_preemptions(self) -> None:
        preempt = self.scheduler._preempt_request

        def noting(request: Any, *args: Any, **given: Any) -> None:
            self._preempted.append(int(request.request_id))
            preempt(request, *args, **given)

        self.scheduler._preempt_request = noting

    def add(self, given: dict[str, Any]) -> dict[str, Any]:
        id, arrival, priority, prompt, output, extra = given["request"]
        request = Request(
            request_id=_name(id),
            prompt_token_ids=_prompt(id, *prompt),
            sampling_params=SamplingParams(
                max_tokens=output, ignore_eos=True, extra_args=extra or None
            ),
            pooling_params=None,
            arrival_time=arrival,
            priority=priority,
            block_hasher=self._hasher,
        )
        # max_tokens is how the fake answer ends, and no limit that its client would have named
        request.sampling_params.max_tokens = LONGEST
        CLOCK.now_s = max(CLOCK.now_s, arrival)
        self.scheduler.add_request(request)
        return {}

    def schedule(self, given: dict[str, Any]) -> dict[str, Any]:
        CLOCK.now_s = given["now_s"]
        self._preempted.clear()
        output = self.scheduler.schedule()
        scheduled, yields = [], []
        for id, tokens in output.num_scheduled_tokens.items():
            request = self.scheduler.requests[id]
            scheduled.append([int(id), tokens, request.num_computed_tokens - tokens])
            if not request.is_prefill_chunk:
                yields.append(id)
        self._in_flight.append((output, yields))
        return {"scheduled": scheduled, "preempted": list(self._preempted), **self._counts()}

    def update(self, given: dict[str, Any]) -> dict[str, Any]:
        output, yields = self._in_flight.popleft()
        ids = list(output.num_scheduled_tokens)
        sampled: list[list[int]] = [[] for _ in ids]
        for id in yields:
            request = self.scheduler.requests[id]
            token = GENERATED + (int(id) << 24) + request.num_tokens
            sampled[ids.index(id)] = [token]
        results = self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={id: index for index, id in enumerate(ids)},
                sampled_token_ids=sampled,
            ),
        )
        finished = [
            int(result.request_id)
            for outputs in results.values()
            for result in outputs.outputs
            if result.finish_reason is not None
        ]
        return {"finished": finished, **self._counts()}

    def _counts(self) -> dict[str, Any]:
        running, waiting = self.scheduler.get_request_counts()
        pool = self.scheduler.kv_cache_manager.block_pool
        free = pool.get_num_free_blocks()
        return {"running": running, "waiting": waiting, "free": free}


def _name(id: int) -> str:
    """vLLM compares request ids as text, so that equal lengths keep the order of numbers."""
    return f"{id:012d}"


def _prompt(id: int, tokens: int, hashes: list[int], hash_tokens: int) -> list[int]:
    """A prompt whose leading blocks of ``hash_tokens`` tokens have the content named by hashes."""
    ids = [
        HASHED + content * hash_tokens + place for content in hashes for place in range(hash_tokens)
    ][:tokens]
    ids.extend(OWN + (id << 24) + place for place in range(len(ids), tokens))
    return ids


def _find_lengthwise(folder: str) -> None:
    """Makes the package in ``folder`` importable, and nothing that may lie beside it."""
    spec = importlib.util.spec_from_file_location(
        "lengthwise", Path(folder) / "__init__.py", submodule_search_locations=[folder]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["lengthwise"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main() -> None:
    """Answers commands until standard input ends."""
    init_none_hash(sha256)
    _find_lengthwise(sys.argv[1])
    benches: dict[int, Bench] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL))
        for line in sys.stdin:
            answers: list[dict[str, Any]] = []
            try:
                for given in json.loads(line):
                    answers.append(_answer(benches, given, folder))
            except Exception as error:
                answers.append({"error": f"{type(error).__name__}: {error}"})
                traceback.print_exc()
            print(json.dumps(answers), file=ANSWERS, flush=True)


def _answer(benches: dict[int, Bench], given: dict[str, Any], model: str) -> dict[str, Any]:
    id, do = given["id"], given["do"]
    if do == "new":
        benches[id] = Bench(model, given)
    elif do == "drop":
        del benches[id]
    else:
        answer: dict[str, Any] = getattr(benches[id], do)(given)
        return answer
    return {}


if __name__ == "__main__":
    main()
