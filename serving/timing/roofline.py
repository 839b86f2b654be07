"""Iteration times from a model's shape and a GPU's datasheet: an estimate, for what has no profile.

The roofline model (Williams et al. 2009) says that a kernel runs at the lower of what arithmetic
and memory allow. The matrices of an iteration are read once and multiplied with each token;
attention reads each attended token's keys and values (decoding) or multiplies with them (prefill).
What shares of the datasheet's rates are reached, and what hosts take, was fitted to the profiles.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import numpy as np

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.protocols import Batch
from lengthwise.serving.timing.config import ModelShape, model_shape
from lengthwise.serving.timing.model import Pipeline, TimingTables
from lengthwise.serving.timing.profile import ProfileTiming, check_factors

ALL_REDUCE_LATENCY_S = 10e-6
LARGEST = 16_384  # tokens of an iteration up to which curves are drawn; straight on from there

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
class Constants:
    """What ``benchmarks.roofline_fit`` found over all measured profiles.

    Shares of the datasheet's rates: ``bandwidth`` and ``compute`` of products of matrices, which
    lie between the two as their ``sharpness``-norm; ``decode_attention``, and ``mixed_attention``
    beside prefill, of the bandwidth; ``prefill_attention`` of the arithmetic. Seconds beside them:
    ``layer_s`` a layer, ``sequence_s`` a sequence and 2^17 words of vocabulary (sampling),
    ``prefill_sequence_s`` a sequence that prefills.
    """

    bandwidth: float
    compute: float
    sharpness: float
    layer_s: float
    decode_attention: float
    mixed_attention: float
    prefill_attention: float
    sequence_s: float
    prefill_sequence_s: float


VOCABULARY = 2**17


@dataclass(frozen=True)
class Estimates:
    """Constants of GPUs, and of hosts: ``terms`` of ``timing.terms``, the mean of the profiles', at
    the CPU's best; those that grow with the layers are ``(seconds, seconds a layer)``. ``cpu`` is
    how much longer the CPU took on average. ``error`` is the mean, and ``worst`` the largest error
    of mean end-to-end latencies up to load 0.9 of profiles that were left out of the fit; ``gpus``
    are those that any was measured on.
    """

    gpu: Constants
    terms: Mapping[str, float]
    by_layer: Mapping[str, tuple[float, float]]
    cpu: float
    error: float
    worst: float
    profiles: tuple[str, ...]

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs whose profiles were fitted."""
        devices = [name.partition("/")[0].rpartition("x")[2] for name in self.profiles]
        return tuple(dict.fromkeys(devices))


@dataclass(frozen=True)
class Error:
    """Shares by which an estimate was off: the mean of their absolutes, and the largest."""

    mean: float
    worst: float


@cache
def estimates() -> Estimates:
    """What ships, in ``data/roofline.json``."""
    path = files("lengthwise.serving.timing").joinpath("data/roofline.json")
    data = json.loads(path.read_text("utf-8"))
    return Estimates(
        gpu=Constants(**data["gpu"]),
        terms=data["terms"],
        by_layer={name: (line[0], line[1]) for name, line in data["by_layer"].items()},
        cpu=data["cpu"],
        error=data["error"],
        worst=data["worst"],
        profiles=tuple(data["profiles"]),
    )


def products_s(
    model: ModelShape, gpu: Gpu, tokens: Any, constants: Constants, tensor_parallel: int = 1
) -> Any:
    """Seconds of an iteration's products of matrices, sequences apart, for (padded) tokens, (n,).

    Weights are read once, and multiplied with each token; of the head, whose products are few,
    only the reading counts. With several GPUs, each holds a share, and two all-reduces a layer
    exchange the hidden states.
    """
    bandwidth = gpu.bandwidth_bytes_s * constants.bandwidth * tensor_parallel
    flops = gpu.bf16_flops * constants.compute * tensor_parallel
    read = 2 * model.layer_parameters / bandwidth
    multiplied = 2 * model.layer_parameters * np.asarray(tokens, np.float64) / flops
    p = constants.sharpness
    layer = (read**p + multiplied**p) ** (1 / p) + constants.layer_s
    if tensor_parallel > 1:
        share = (tensor_parallel - 1) / tensor_parallel
        message = 2 * np.asarray(tokens) * model.hidden_size * 2 * share / gpu.link_bytes_s
        layer = layer + 2 * (ALL_REDUCE_LATENCY_S + message)
    return model.num_hidden_layers * layer + 2 * model.vocab_size * model.hidden_size / bandwidth


def gpu_terms(
    model: ModelShape, gpu: Gpu, constants: Constants, tensor_parallel: int = 1
) -> dict[str, float]:
    """Seconds of the GPU's terms (``timing.terms``), and ``context``: an attended token's alone."""
    read = model.kv_bytes_per_token / gpu.bandwidth_bytes_s / tensor_parallel
    pair = 4 * model.num_attention_heads * model.head_dim * model.num_hidden_layers
    return {
        "context": read / constants.decode_attention,
        "mixed_context": read / constants.mixed_attention,
        "chunk_context": pair / gpu.bf16_flops / constants.prefill_attention / tensor_parallel,
        "decode_seq": constants.sequence_s * model.vocab_size / VOCABULARY,
        "prefill_seq": constants.prefill_sequence_s,
    }


@dataclass(frozen=True)
class RooflineTiming:
    """The estimate for ``model`` on ``tensor_parallel`` GPUs of one kind.

    ``gpu_factor`` and ``cpu`` are as a profile's: of the GPU's times, and of those that a CPU at
    its best takes to launch an iteration (None: what CPUs took on average).
    """

    model: ModelShape
    gpu: Gpu
    tensor_parallel: int = 1
    name: str = "roofline"
    gpu_factor: float = 1.0
    cpu: float | None = None
    known: Estimates | None = None  # None: what ships

    @property
    def error(self) -> Error:
        """Of mean end-to-end latencies, by profiles that the fit of the others did not see."""
        known = self.known or estimates()
        return Error(known.error, known.worst)

    @property
    def expected_error(self) -> str:
        """The same in a line, for whoever reads a result."""
        known = self.known or estimates()
        device = self.name.removeprefix("roofline:").partition("/")[0].rpartition("x")[2]
        told = "" if device in known.gpus else f", and no {device} was measured"
        return (
            f"{self.name} is an estimate: of measured profiles that were left out of its fit, mean "
            f"end-to-end latencies up to load 0.9 were off by {known.error:.0%}, at most "
            f"{known.worst:.0%}{told}"
        )

    def with_factors(self, *, gpu: float = 1.0, cpu: float | None = None) -> RooflineTiming:
        """Another host; as ``ProfileTiming.with_factors``."""
        said = ([] if gpu == 1 else [f"gpu={gpu:g}"]) + ([] if cpu is None else [f"cpu={cpu:g}"])
        plain = ":".join(self.name.split(":")[:2])
        name = f"{plain}:{','.join(said)}" if said else plain
        check_factors(gpu=gpu, cpu=1.0 if cpu is None else cpu)
        return replace(self, name=name, gpu_factor=gpu, cpu=cpu)

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

    @cached_property
    def _profile(self) -> ProfileTiming:
        """The same as a profile, whose tables and clocks it has."""
        model, known = self.model, self.known or estimates()
        sizes = np.unique(
            np.concatenate([[1, 2, 4], np.arange(8, 512, 8), np.arange(512, LARGEST + 1, 128)])
        )
        base = products_s(model, self.gpu, sizes, known.gpu, self.tensor_parallel)
        terms = gpu_terms(model, self.gpu, known.gpu, self.tensor_parallel)
        context = terms.pop("context")
        layers = model.num_hidden_layers
        terms |= known.terms
        terms |= {name: once + each * layers for name, (once, each) in known.by_layer.items()}
        return ProfileTiming(
            self.name, self.num_gpu_blocks,
            decode=list(zip(sizes, base + terms["decode_seq"] * sizes, strict=True)),
            decode_context=[(1, context)],
            mixed=list(zip(sizes, base, strict=True)),
            terms=terms, about={}, gpu=self.gpu_factor,
            cpu=known.cpu if self.cpu is None else self.cpu,
        )  # fmt: skip

    def pipeline(self, max_num_batched_tokens: int, max_num_seqs: int) -> Pipeline:
        """The two clocks, for batches up to the given sizes."""
        return self._profile.pipeline(max_num_batched_tokens, max_num_seqs)

    def tables(self, max_num_batched_tokens: int, max_num_seqs: int) -> TimingTables:
        """The same on one clock, for batches up to the given sizes."""
        return self._profile.tables(max_num_batched_tokens, max_num_seqs)

    def iteration_time(self, batch: Batch) -> float:
        """Seconds that an iteration with this batch takes."""
        return self._profile.iteration_time(batch)


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
