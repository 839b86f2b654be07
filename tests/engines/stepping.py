"""Steps a real vLLM ``Scheduler`` on the CPU with a fake model runner, in simulated time.

Runs inside the environment that holds vLLM's Python files, of any version from 0.12.0; of this
repository it imports the plugin alone.
"""

from __future__ import annotations

import atexit
import inspect
import json
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from lengthwise.policies.plugins.vllm import scheduler as plugin

LONGEST = 1 << 20  # tokens
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512,
    "max_position_embeddings": LONGEST, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "torch_dtype": "float32",
}  # fmt: skip
OWN, GENERATED = 1 << 30, 1 << 40  # token ids need only differ where content does
init_none_hash(sha256)


@dataclass
class Job:
    """A request to be served; ``extra`` is what its client sent as vllm_xargs."""

    arrival_s: float
    prompt: int
    output: int
    extra: dict[str, Any] = field(default_factory=dict)
    priority: int = 0
    tokens: list[int] | None = None  # the prompt's token ids; its own ones otherwise
    abort_step: int | None = None  # its client disconnects then
    stops: bool = False  # the model ends its answer there, well before the limit
    limit: int = LONGEST  # what its client allows: predictions are no longer


@dataclass
class Run:
    """What happened."""

    steps: list[dict[str, int]] = field(default_factory=list)  # id -> tokens, in order
    preempted: list[set[str]] = field(default_factory=list)  # one set a step
    admitted: list[str] = field(default_factory=list)  # in order, resumptions included
    first_s: dict[str, float] = field(default_factory=dict)
    finish_s: dict[str, float] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    generated: dict[str, int] = field(default_factory=dict)

    def mean_s(self, jobs: list[Job]) -> float:
        """Mean end-to-end latency of those that finished."""
        waits = [self.finish_s[name(i)] - j.arrival_s for i, j in enumerate(jobs)
                 if name(i) in self.finish_s]  # fmt: skip
        return sum(waits) / len(waits)


class NotDone(AssertionError):
    """A run takes so many steps that it must go in circles."""


def name(index: int) -> str:
    """vLLM compares request ids as text: these keep the order of numbers."""
    return f"{index:06d}"


def _sampled(index: int, tokens: int) -> int:
    """The token that follows the first ``tokens`` of a job."""
    return GENERATED + (index << 20) + tokens


def keep(given: dict[str, Any], callable_: Any) -> dict[str, Any]:
    """The arguments that this version of vLLM knows."""
    known = _parameters(callable_)
    return {key: value for key, value in given.items() if key in known}


@cache
def _parameters(callable_: Any) -> frozenset[str]:
    return frozenset(inspect.signature(callable_).parameters)


def _model_folder() -> str:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (Path(folder) / "config.json").write_text(json.dumps(MODEL))
    return folder


MODEL_FOLDER = _model_folder()
_model_configs: dict[int, ModelConfig] = {}


def make_config(
    *,
    blocks: int,
    lengthwise: dict[str, Any] | None = None,
    policy: str = "fcfs",
    block_size: int = 16,
    max_model_len: int | None = None,
    enable_prefix_caching: bool = False,
    **options: Any,
) -> VllmConfig:
    """vLLM's configuration of a tiny model on the CPU; ``options`` are ``SchedulerConfig``'s."""
    longest = max_model_len or LONGEST
    if not options.get("enable_chunked_prefill", True):
        longest = min(longest, options["max_num_batched_tokens"])  # vLLM insists on it
    if longest not in _model_configs:
        _model_configs[longest] = ModelConfig(
            model=MODEL_FOLDER, tokenizer=MODEL_FOLDER, skip_tokenizer_init=True,
            dtype="float32", seed=0, max_model_len=longest,
        )  # fmt: skip
    given = {
        "is_encoder_decoder": False, "enable_chunked_prefill": True, "async_scheduling": False,
        "watermark": 0.0, "long_prefill_token_threshold": 0, **options,
    }  # fmt: skip
    scheduling = SchedulerConfig(
        **keep({**given, "max_model_len": longest, "policy": policy}, SchedulerConfig)
    )
    cache = CacheConfig(block_size=block_size, enable_prefix_caching=enable_prefix_caching)
    extra = {} if lengthwise is None else {"additional_config": {"lengthwise": lengthwise}}
    config = VllmConfig(
        model_config=_model_configs[longest], scheduler_config=scheduling, cache_config=cache,
        device_config=DeviceConfig("cpu"), **extra,
    )  # fmt: skip
    cache.num_gpu_blocks = blocks
    for option in ("async_scheduling", "enable_chunked_prefill", "long_prefill_token_threshold"):
        setattr(config.scheduler_config, option, given[option])  # vLLM's defaults had a say
    return config


def make_scheduler(config: VllmConfig) -> Any:
    """A scheduler: the plugin's if the configuration names a policy, else vLLM's own."""
    size = config.cache_config.block_size
    spec = FullAttentionSpec(
        **keep(
            {
                "block_size": size,
                "num_kv_heads": 1,
                "head_size": 1,
                "dtype": torch.float32,
                "use_mla": False,
            },
            FullAttentionSpec,
        )
    )
    kv = KVCacheConfig(
        num_blocks=config.cache_config.num_gpu_blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
    )
    named = (config.additional_config or {}).get("lengthwise") is not None
    make = plugin if named else config.scheduler_config.get_scheduler_cls()
    return make(
        vllm_config=config, kv_cache_config=kv, block_size=size, log_stats=True,
        structured_output_manager=StructuredOutputManager(config),
    )  # fmt: skip


class Engine:
    """Feeds jobs to a scheduler and plays the model runner; a step takes ``step_s(output)``.

    With ``async_scheduling`` a step is scheduled before the one before it is known.
    """

    def __init__(
        self,
        scheduler: Any,
        jobs: Iterable[Job],
        step_s: Callable[[Any], float] = lambda output: 0.01,
    ) -> None:
        self.scheduler = scheduler
        self.jobs = list(jobs)
        self.run = Run()
        self.now_s = self._ahead_s = 0.0
        self._step_s = step_s
        self._depth = 2 if scheduler.scheduler_config.async_scheduling else 1
        self._to_come = deque(
            sorted(range(len(self.jobs)), key=lambda i: (self.jobs[i].arrival_s, i))
        )
        self._flying: deque[tuple[Any, list[str]]] = deque()
        self._hasher = None
        if scheduler.cache_config.enable_prefix_caching:
            self._hasher = get_request_block_hasher(scheduler.block_size, sha256)
        if hasattr(scheduler, "lengthwise"):
            scheduler.lengthwise.clock.follow(lambda: self.now_s)

    def set_clock(self, ahead_s: float) -> None:
        """Somebody sets the wall clock, by which vLLM stamps arrivals."""
        self._ahead_s = ahead_s
        self.scheduler.lengthwise.clock._wall = lambda: self.now_s + ahead_s

    def add(self, index: int) -> None:
        """A job arrives."""
        job = self.jobs[index]
        self.now_s = max(self.now_s, job.arrival_s)
        given = {
            "request_id": name(index),
            "prompt_token_ids": job.tokens
            or [OWN + (index << 16) + place for place in range(job.prompt)],
            "sampling_params": SamplingParams(
                max_tokens=job.output + (50 if job.stops else 0),
                ignore_eos=True,
                stop_token_ids=[_sampled(index, job.prompt + job.output - 1)] if job.stops else [],
                extra_args=job.extra or None,
            ),
            "pooling_params": None,
            "eos_token_id": None,
            "arrival_time": job.arrival_s + self._ahead_s,
            "block_hasher": self._hasher,
            "priority": job.priority,
        }
        request = Request(**keep(given, Request.__init__))
        request.sampling_params.max_tokens = job.limit  # what ends the answer is request.max_tokens
        self.scheduler.add_request(request)

    def schedule(self) -> Any:
        """Schedules one step, which is then under way."""
        scheduler, run = self.scheduler, self.run
        before = {request.request_id for request in scheduler.running}
        lost = {i: request.num_preemptions for i, request in scheduler.requests.items()}
        pending = {i: request.num_output_placeholders for i, request in scheduler.requests.items()}
        output = scheduler.schedule()
        run.steps.append(dict(output.num_scheduled_tokens))
        run.preempted.append(
            {i for i, r in scheduler.requests.items() if r.num_preemptions > lost[i]}
        )
        assert run.preempted[-1] <= set(output.preempted_req_ids or ()), "a preemption not told"
        run.admitted += [r.request_id for r in scheduler.running if r.request_id not in before]
        yields = [
            i
            for i in output.num_scheduled_tokens
            if (r := scheduler.requests[i]).num_output_placeholders > pending[i]
            or (self._depth == 1 and r.num_computed_tokens >= r.num_tokens)
        ]
        self._flying.append((output, yields))
        return output

    def land(self) -> list[str]:
        """The oldest step under way ends; who finished."""
        output, yields = self._flying.popleft()
        ids = list(output.num_scheduled_tokens)
        sampled: list[list[int]] = [[] for _ in ids]
        for i in yields:
            if i in self.scheduler.requests:
                tokens = self.scheduler.requests[i].num_tokens
                sampled[ids.index(i)] = [_sampled(int(i), tokens)]
        given = {
            "req_ids": ids, "req_id_to_index": {i: place for place, i in enumerate(ids)},
            "sampled_token_ids": sampled, "logprobs": None, "prompt_logprobs_dict": {},
            "pooler_output": [],
        }  # fmt: skip
        made = ModelRunnerOutput(**keep(given, ModelRunnerOutput))
        finished = []
        for outputs in self.scheduler.update_from_output(output, made).values():
            for out in outputs.outputs:
                i = out.request_id
                assert i not in self.run.finish_s, f"{i} has output after its end"
                self.run.generated[i] = self.run.generated.get(i, 0) + len(out.new_token_ids)
                if out.new_token_ids:
                    self.run.first_s.setdefault(i, self.now_s)
                if out.finish_reason is not None:
                    self.run.finish_s[i] = self.now_s
                    finished.append(i)
        return finished

    def abort(self, index: int) -> None:
        """A client disconnects."""
        if name(index) in self.scheduler.requests:
            self.scheduler.finish_requests(name(index), RequestStatus.FINISHED_ABORTED)
            self.run.aborted.add(name(index))

    def serve(self, most: int = 100_000) -> Run:
        """Runs until every job is done; raises ``AssertionError`` for what was lost or leaked."""
        aborts: dict[int, list[int]] = {}
        for index, job in enumerate(self.jobs):
            if job.abort_step is not None:
                aborts.setdefault(job.abort_step, []).append(index)
        for number in range(most):
            while self._to_come and self.jobs[self._to_come[0]].arrival_s <= self.now_s:
                self.add(self._to_come.popleft())
            for index in aborts.get(number, ()):
                self.abort(index)
            if self.scheduler.get_num_unfinished_requests() or self._flying:
                output = self.schedule()
                self.now_s += self._step_s(output)
                while len(self._flying) >= (self._depth if output.num_scheduled_tokens else 1):
                    self.land()
            elif self._to_come:
                self.now_s = self.jobs[self._to_come[0]].arrival_s
            else:
                break
        else:
            raise NotDone(f"not done after {most} steps")
        self.check()
        return self.run

    def check(self) -> None:
        """Every job finished once or was aborted, with all its tokens; every block is back."""
        scheduler, run = self.scheduler, self.run
        for index, job in enumerate(self.jobs):
            if name(index) not in run.aborted:
                assert name(index) in run.finish_s, f"{name(index)} was lost"
                assert run.generated[name(index)] == job.output, f"{name(index)}: wrong length"
        assert not scheduler.requests and not scheduler.running
        assert scheduler.get_request_counts() == (0, 0)
        pool = scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1, "a KV block leaked"
