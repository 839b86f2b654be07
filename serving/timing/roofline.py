"""Iteration times from a model's shape and a GPU's datasheet: an estimate, for what has no profile.

The roofline model (Williams et al. 2009) says that a kernel runs at the lower of what arithmetic
and memory allow. The matrices of an iteration are read once and multiplied with each token;
attention reads each attended token's keys and values (decoding) or multiplies with them (prefill).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.protocols import Batch
from lengthwise.serving.records import PS
from lengthwise.serving.timing.config import ModelShape, model_shape
from lengthwise.serving.timing.model import TimingTables, whole_ps

# Shares of the datasheet's rates that large kernels reach, and what an iteration costs beside them.
COMPUTE_EFFICIENCY = 0.70
BANDWIDTH_EFFICIENCY = 0.85
PREFILL_ATTENTION_EFFICIENCY = 0.45
STEP_OVERHEAD_S = 1.5e-3
LAYER_OVERHEAD_S = 15e-6
ALL_REDUCE_LATENCY_S = 10e-6

GPU_MEMORY_UTILIZATION = 0.92  # vLLM's default since 0.26
ENGINE_GIB = 1.3  # activations and buffers beside weights and cache, per GPU
BLOCK_SIZE = 16
GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU by its datasheet; ``link_bytes_s`` is one direction of its link to the others."""

    name: str
    bf16_flops: float  # dense
    bandwidth_bytes_s: float
    memory_gib: float  # as the driver reports it
    link_bytes_s: float


@cache
def gpus() -> dict[str, Gpu]:
    """The GPUs whose datasheets are known, by short name."""
    text = files("lengthwise.serving.timing").joinpath("data/gpus.json").read_text("utf-8")
    return {key: Gpu(**value) for key, value in json.loads(text).items()}


@dataclass(frozen=True)
class RooflineTiming:
    """The estimate for ``model`` on ``tensor_parallel`` GPUs of one kind."""

    model: ModelShape
    gpu: Gpu
    tensor_parallel: int = 1
    name: str = "roofline"

    @property
    def num_gpu_blocks(self) -> int:
        """KV blocks of 16 tokens that fit beside the weights at vLLM's default utilisation."""
        weights = self.model.parameters * 2 / self.tensor_parallel
        room = (self.gpu.memory_gib * GPU_MEMORY_UTILIZATION - ENGINE_GIB) * GIB - weights
        per_block = BLOCK_SIZE * self.model.kv_bytes_per_token / self.tensor_parallel
        blocks = math.floor(room / per_block)
        if blocks < 1:
            raise InputError(
                f"model {self.model.name} does not fit: its weights take {weights / GIB:.1f} GiB a "
                f"GPU, and {self.gpu.name} offers "
                f"{self.gpu.memory_gib * GPU_MEMORY_UTILIZATION - ENGINE_GIB:.1f} GiB"
            )
        return blocks

    def tables(self, max_num_batched_tokens: int, max_num_seqs: int) -> TimingTables:
        """The integer form, for batches up to the given sizes."""
        model, gpu, tp = self.model, self.gpu, self.tensor_parallel
        flops = gpu.bf16_flops * COMPUTE_EFFICIENCY * tp
        bandwidth = gpu.bandwidth_bytes_s * BANDWIDTH_EFFICIENCY * tp
        tokens = np.arange(max(max_num_batched_tokens, max_num_seqs) + 1)
        layers = model.num_hidden_layers * model.layer_parameters
        head = model.vocab_size * model.hidden_size
        overhead = STEP_OVERHEAD_S + LAYER_OVERHEAD_S * model.num_hidden_layers
        head_s = 2 * head / bandwidth
        body_s = np.maximum(2 * layers * tokens / flops, 2 * layers / bandwidth)
        if tp > 1:
            exchanged = 2 * tokens * model.hidden_size * 2 * (tp - 1) / tp / gpu.link_bytes_s
            body_s = body_s + 2 * model.num_hidden_layers * (ALL_REDUCE_LATENCY_S + exchanged)
        iteration_ps = whole_ps((overhead + head_s + body_s) * PS, self.name)
        attention_flops = 4 * model.num_attention_heads * model.head_dim * model.num_hidden_layers
        prefill = gpu.bf16_flops * PREFILL_ATTENTION_EFFICIENCY * tp
        context = round(model.kv_bytes_per_token / bandwidth * PS)
        return TimingTables(
            decode_ps=iteration_ps[: max_num_seqs + 1],
            mixed_ps=iteration_ps[: max_num_batched_tokens + 1],
            terms={
                "context": context, "mixed_context": context,
                "chunk_context": round(attention_flops / prefill * PS),
            },
        )  # fmt: skip

    def iteration_time(self, batch: Batch) -> float:
        """Seconds that an iteration with this batch takes."""
        tokens = batch.prefill_tokens + batch.decode_seqs
        return self.tables(tokens, batch.decode_seqs).iteration_ps(batch) / PS


def roofline(spec: str) -> RooflineTiming:
    """``GPU/MODEL`` or ``NxGPU/MODEL``, where MODEL is a known name or a path to a config.json."""
    device, slash, model = spec.partition("/")
    if not slash or not model:
        raise InputError(f"a roofline is spelled roofline:GPU/MODEL, not {spec!r}")
    count, short = 1, device
    if match := re.fullmatch(r"(\d+)x(.+)", device):
        count, short = int(match[1]), match[2]
    if short not in gpus():
        raise UnknownNameError("GPU", short, gpus())
    shape = model_shape(model)
    if count < 1 or shape.num_attention_heads % count:
        raise InputError(
            f"{shape.num_attention_heads} attention heads of {shape.name} do not divide over "
            f"{count} GPUs"
        )
    timing = RooflineTiming(shape, gpus()[short], count, f"roofline:{spec}")
    _ = timing.num_gpu_blocks  # refuses a model that does not fit
    return timing
