"""Steps a real vLLM ``Scheduler`` on the CPU with a fake model runner, in simulated time.

Runs inside the environment that holds vLLM's Python files; imports nothing of the test suite.
"""

from __future__ import annotations

import inspect
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm import SamplingParams
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from lengthwise.policies.plugins.vllm import scheduler as lengthwise_scheduler

MODEL = Path(__file__).parent / "model"
BLOCK = 16


@dataclass
class Job:
    """A request to be served; ``abort_step`` ends it early."""

    arrival_s: float
    prompt: int
    output: int
    predicted: float | None = None
    tokens: list[int] | None = None  # the prompt's token ids; drawn from its id otherwise
    abort_step: int | None = None
    priority: int = 0


@dataclass
class Run:
    """What happened: one entry a step, and each request's times."""

    steps: list[dict[str, int]] = field(default_factory=list)  # id -> tokens scheduled
    preempted: list[set[str]] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)  # in order, resumptions included
    finished: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    tokens: dict[str, int] = field(default_factory=dict)  # generated


def keep(given: dict[str, Any], callable_: Any) -> dict[str, Any]:
    """The arguments that this version of vLLM knows."""
    known = inspect.signature(callable_).parameters
    return {name: value for name, value in given.items() if name in known}


def make_config(
    *,
    seqs: int,
    tokens: int,
    blocks: int,
    prefix_caching: bool = False,
    asynchronous: bool = False,
    policy: str = "fcfs",
    lengthwise: dict[str, Any] | None = None,
    max_model_len: int = 2048,
) -> VllmConfig:
    """vLLM's own configuration, for a tiny model on the CPU."""
    model = ModelConfig(
        model=str(MODEL), tokenizer=str(MODEL), skip_tokenizer_init=True, dtype="float32", seed=0,
        max_model_len=max_model_len,
    )  # fmt: skip
    scheduling = SchedulerConfig(
        **keep(
            dict(
                max_num_seqs=seqs, max_num_batched_tokens=tokens, max_model_len=max_model_len,
                enable_chunked_prefill=True, async_scheduling=asynchronous, policy=policy,
                is_encoder_decoder=False, watermark=0.0,
            ),
            SchedulerConfig,
        )
    )  # fmt: skip
    cache = CacheConfig(
        **keep(
            dict(
                block_size=BLOCK, gpu_memory_utilization=0.9, swap_space=0, cache_dtype="auto",
                enable_prefix_caching=prefix_caching,
            ),
            CacheConfig,
        )
    )  # fmt: skip
    cache.num_gpu_blocks = blocks
    extra = {} if lengthwise is None else {"additional_config": {"lengthwise": lengthwise}}
    return VllmConfig(
        model_config=model, scheduler_config=scheduling, cache_config=cache,
        parallel_config=ParallelConfig(), device_config=DeviceConfig("cpu"), **extra,
    )  # fmt: skip


def make_scheduler(config: VllmConfig, make: Callable[..., Any] | None = None) -> Any:
    """A scheduler: ours if the configuration names a policy, else vLLM's own."""
    spec = FullAttentionSpec(
        **keep(
            dict(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32,
                 use_mla=False),
            FullAttentionSpec,
        )
    )  # fmt: skip
    kv = KVCacheConfig(
        num_blocks=config.cache_config.num_gpu_blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
    )
    if make is None:
        ours = (config.additional_config or {}).get("lengthwise") is not None
        make = lengthwise_scheduler if ours else config.scheduler_config.get_scheduler_cls()
    return make(
        vllm_config=config, kv_cache_config=kv, block_size=BLOCK, log_stats=True,
        structured_output_manager=StructuredOutputManager(config),
    )  # fmt: skip


class Engine:
    """Feeds jobs to a scheduler and plays the model runner; time passes by ``step_s``."""

    def __init__(
        self,
        scheduler: Any,
        jobs: Iterable[Job],
        step_s: Callable[[Any], float] | None = None,
        depth: int = 1,
    ) -> None:
        self.scheduler = scheduler
        self.jobs = dict(enumerate(jobs))
        self.step_s = step_s or (lambda output: 0.01)
        self.depth = depth  # 2: a step is scheduled before the one before it is known
        self.now_s = 0.0
        self.run = Run()
        self._to_come = deque(sorted(self.jobs, key=lambda i: self.jobs[i].arrival_s))
        self._flying: deque[tuple[Any, Any]] = deque()
        self._prefix_caching = bool(scheduler.cache_config.enable_prefix_caching)
        self._hasher = None
        if self._prefix_caching:
            init_none_hash(sha256)
            self._hasher = get_request_block_hasher(BLOCK, sha256)
        if hasattr(scheduler, "lengthwise"):
            scheduler.lengthwise.clock = lambda: self.now_s
            scheduler.lengthwise.origin_s = 0.0

    def arrive(self) -> None:
        """Adds the requests that are due."""
        while self._to_come and self.jobs[self._to_come[0]].arrival_s <= self.now_s:
            index = self._to_come.popleft()
            job = self.jobs[index]
            extra = None if job.predicted is None else {"predicted_tokens": job.predicted}
            params = SamplingParams(max_tokens=job.output, ignore_eos=True, extra_args=extra)
            prompt = job.tokens or [(index * 31 + i) % 500 for i in range(job.prompt)]
            given = dict(
                request_id=f"{index:06d}", prompt_token_ids=prompt, sampling_params=params,
                pooling_params=None, eos_token_id=None, arrival_time=job.arrival_s,
                block_hasher=self._hasher, priority=job.priority,
            )  # fmt: skip
            self.scheduler.add_request(Request(**keep(given, Request.__init__)))

    def step(self) -> Any:
        """One iteration; returns its output, or None when nothing could be scheduled."""
        scheduler, run = self.scheduler, self.run
        before = set(r.request_id for r in scheduler.running)
        output = scheduler.schedule()
        run.steps.append(dict(output.num_scheduled_tokens))
        run.preempted.append(set(output.preempted_req_ids or ()))
        run.admitted += [r.request_id for r in scheduler.running if r.request_id not in before]
        ids = list(output.num_scheduled_tokens)
        sampled = []
        for i in ids:
            request = scheduler.requests[i]
            done = request.num_computed_tokens >= request.num_tokens
            sampled.append([7] if done else [])
        made = ModelRunnerOutput(
            **keep(
                dict(
                    req_ids=ids, req_id_to_index={i: n for n, i in enumerate(ids)},
                    sampled_token_ids=sampled, logprobs=None, prompt_logprobs_dict={},
                    pooler_output=[], kv_connector_output=None,
                ),
                ModelRunnerOutput,
            )
        )  # fmt: skip
        self._flying.append((output, made))
        self.now_s += self.step_s(output)
        while len(self._flying) >= (self.depth if ids else 1):
            self.land()
        return output

    def land(self) -> None:
        """The oldest iteration under way ends."""
        output, made = self._flying.popleft()
        for outputs in self.scheduler.update_from_output(output, made).values():
            for out in outputs.outputs:
                i = out.request_id
                self.run.tokens[i] = self.run.tokens.get(i, 0) + len(out.new_token_ids)
                if out.new_token_ids:
                    self.run.first.setdefault(i, self.now_s)
                if out.finish_reason is not None:
                    assert i not in self.run.finished, f"{i} finished twice"
                    self.run.finished[i] = self.now_s

    def serve(self, most: int = 100_000) -> Run:
        """Runs until every job is done; raises ``AssertionError`` on any lost or leaked thing."""
        for number in range(most):
            self.arrive()
            for index, job in self.jobs.items():
                i = f"{index:06d}"
                if job.abort_step == number and i in self.scheduler.requests:
                    self.scheduler.finish_requests(i, RequestStatus.FINISHED_ABORTED)
                    self.run.aborted.add(i)
            if self.scheduler.get_num_unfinished_requests() or self._flying:
                self.step()
            elif self._to_come:
                self.now_s = self.jobs[self._to_come[0]].arrival_s
            else:
                break
        else:
            raise AssertionError(f"not done after {most} steps")
        self.check()
        return self.run

    def check(self) -> None:
        """Every job finished once or was aborted, with all its tokens; every block is back."""
        for index, job in self.jobs.items():
            i = f"{index:06d}"
            if i in self.run.aborted or i not in self.run.finished:
                assert i in self.run.aborted or job.abort_step is not None, f"{i} was lost"
            else:
                assert self.run.tokens[i] == job.output, (i, self.run.tokens[i], job.output)
        scheduler = self.scheduler
        assert not scheduler.requests and not scheduler.running and not len(scheduler.waiting)
        pool = scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1, "a KV block leaked"
