"""``live`` timing: runs each batch on the device at hand, with a transformers model of the shape.

The model has random weights. A batch runs as vLLM would split it: the prefill chunks, then one
token of each decoding sequence; keys and values before them are random. Durations are measured
with CUDA events (on a CPU with the clock), the median of a few runs after a warm-up, and kept for a
grid of batches, so that a simulation pays for each grid point once.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lengthwise.errors import InputError
from lengthwise.protocols import Batch
from lengthwise.serving.timing.config import ModelShape, model_shape
from lengthwise.writing import whole_file

STEP = 2**0.25  # ratio of neighbouring grid sizes: a batch is at most 9% from its grid point
RUNS = 3


@dataclass(frozen=True, order=True)
class Point:
    """A grid point: the sizes of a batch, rounded."""

    chunk_tokens: int = 0
    chunks: int = 0
    chunk_before: int = 0  # computed tokens before each chunk
    decode_seqs: int = 0
    context: int = 0  # attended tokens of each decoding sequence


def grid_point(batch: Batch) -> Point:
    """The grid point that stands for a batch."""
    tokens, chunks = batch.prefill_tokens, max(batch.prefill_seqs, 1)
    each = _rounded(tokens / chunks) if tokens else 0
    before = 0
    if tokens:  # chunk_context is tokens x (before + half a chunk)
        before = _rounded(max(batch.chunk_context / tokens - tokens / chunks / 2, 0.0))
    context = batch.context_tokens / batch.decode_seqs if batch.decode_seqs else 0.0
    return Point(
        each, _rounded(chunks) if tokens else 0, before if before >= 32 else 0,
        _rounded(batch.decode_seqs), _rounded(context),
    )  # fmt: skip


def _rounded(size: float) -> int:
    """The nearest size of the grid; small sizes are exact."""
    if size <= 4:
        return round(size)
    return round(STEP ** round(math.log(size, STEP)))


class Runner:
    """A transformers model of a shape, on a device, that runs batches."""

    def __init__(self, shape: ModelShape, config: dict[str, Any], device: str) -> None:
        try:
            import torch
            from transformers import AutoConfig, AutoModelForCausalLM
        except ImportError as error:
            raise InputError(f"live timing needs lengthwise[bert]: {error}") from None
        self.torch: Any = torch
        self.shape = shape
        self.device = device
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config), "utf-8")
            hf_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with _defaults(torch, device, dtype):
            make: Any = AutoModelForCausalLM.from_config
            self.model = make(hf_config).eval()
        self._generator = torch.Generator(device).manual_seed(0)

    def seconds(self, point: Point) -> float:
        """How long one batch takes; the median of a few runs."""
        torch = self.torch
        parts = []
        if point.chunks:
            parts.append(self._part(point.chunks, point.chunk_tokens, point.chunk_before))
        if point.decode_seqs:
            parts.append(self._part(point.decode_seqs, 1, max(point.context - 1, 0)))
        with torch.inference_mode():
            self._run(parts)
            return statistics.median(self._timed(parts) for _ in range(RUNS))

    def _part(self, sequences: int, tokens: int, before: int) -> tuple[Any, Any]:
        """Token ids (sequences, tokens), and a cache of ``before`` tokens for each sequence."""
        from transformers import DynamicCache

        torch, shape = self.torch, self.shape
        ids = torch.randint(
            0, shape.vocab_size, (sequences, tokens), device=self.device, generator=self._generator
        )
        cache: Any = DynamicCache()
        size = (sequences, shape.num_key_value_heads, before, shape.head_dim)
        for layer in range(shape.num_hidden_layers if before else 0):
            keys, values = (
                torch.randn(size, device=self.device, dtype=self.model.dtype) for _ in range(2)
            )
            cache.update(keys, values, layer)
        return ids, cache

    def _run(self, parts: list[tuple[Any, Any]]) -> None:
        for ids, cache in parts:
            self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.crop(-ids.shape[1])

    def _timed(self, parts: list[tuple[Any, Any]]) -> float:
        torch = self.torch
        if self.device != "cuda":
            begin = time.perf_counter()
            self._run(parts)
            return time.perf_counter() - begin
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        self._run(parts)
        last.record()
        torch.cuda.synchronize()
        return float(first.elapsed_time(last)) / 1e3


@contextlib.contextmanager
def _defaults(torch: Any, device: str, dtype: Any) -> Iterator[None]:
    """New parameters are made on the device, in the dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@dataclass
class LiveTiming:
    """A timing model that measures; ``measured`` holds the grid points that were asked for."""

    runner: Runner
    name: str
    num_gpu_blocks: int | None
    measured: dict[Point, float] = field(default_factory=dict)

    def iteration_time(self, batch: Batch) -> float:
        """Seconds that an iteration with this batch takes, measured at its grid point."""
        point = grid_point(batch)
        if point not in self.measured:
            self.measured[point] = self.runner.seconds(point)
        return self.measured[point]


def live(spec: str) -> LiveTiming:
    """``MODEL`` on the GPU at hand, or ``MODEL@cpu``; MODEL as for a roofline."""
    model, _, device = spec.partition("@")
    runner = Runner(model_shape(model), hf_config(model), _device(device or "cuda"))
    return LiveTiming(runner, f"live:{spec}", _blocks(runner))


def hf_config(model: str) -> dict[str, Any]:
    """The ``config.json`` of a known shape, or of the one at a path."""
    from lengthwise.serving.timing.vllm_model import model_folder

    with model_folder(model) as folder:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return config


def _device(wanted: str) -> str:
    if wanted not in ("cuda", "cpu"):
        raise InputError(f"live timing runs on a GPU or with @cpu, not @{wanted}")
    if wanted == "cuda":
        try:
            import torch
        except ImportError:
            raise InputError("live timing needs torch, which is not installed here") from None
        if not torch.cuda.is_available():
            raise InputError("live timing needs a GPU, and torch sees none; MODEL@cpu runs without")
    return wanted


def _blocks(runner: Runner) -> int | None:
    """KV blocks of 16 tokens in nine tenths of the GPU's free memory; None on a CPU."""
    if runner.device != "cuda":
        return None
    free, _ = runner.torch.cuda.mem_get_info()
    return int(free * 0.9 / (16 * runner.shape.kv_bytes_per_token))


def profile_torch(
    name: str,
    model: str,
    out: Path,
    facts: dict[str, Any],
    max_num_seqs: int,
    max_num_batched_tokens: int,
    device: str = "cuda",
) -> None:
    """Measures a grid of batches and writes a profile with one clock: no CPU beside the GPU."""
    from lengthwise.serving.timing.build import write_profile

    runner = Runner(model_shape(model), hf_config(model), device)
    points = _design(max_num_seqs, max_num_batched_tokens, runner.shape)
    rows = pd.DataFrame([{**vars(point), "seconds": runner.seconds(point)} for point in points])
    with whole_file(out.with_suffix(".iterations.parquet")) as fresh:
        rows.to_parquet(fresh, compression="zstd", index=False)
    torch = runner.torch
    about = {
        "engine": {"name": "transformers", "version": _version("transformers")},
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(0) if device == "cuda" else "none",
        "date": time.strftime("%Y-%m-%d"),
        "num_gpu_blocks": _blocks(runner),
        "iterations": len(rows),
    }
    write_profile(_direct_profile(name, rows, facts | about), out)


def _design(max_num_seqs: int, max_num_batched_tokens: int, shape: ModelShape) -> list[Point]:
    """Prefill alone, decoding alone at two contexts, and prefill late in a prompt."""
    longest = min(shape.max_position_embeddings or 4096, 4096)
    sizes = [2**k for k in range(4, 20) if 2**k <= max_num_batched_tokens]
    points = [Point(tokens, 1) for tokens in sizes if tokens < longest]
    points += [Point(tokens, 1, longest - tokens) for tokens in sizes[-3:] if tokens < longest // 2]
    for seqs in (2**k for k in range(12) if 2**k <= max_num_seqs):
        points += [Point(decode_seqs=seqs, context=c) for c in (longest // 16, longest // 4)]
    return points


def _direct_profile(name: str, rows: pd.DataFrame, about: dict[str, Any]) -> dict[str, Any]:
    """Tables straight from the measured points; slopes from pairs that differ in context alone."""
    from lengthwise.serving.timing.profile import FORMAT, FORMAT_VERSION, MEASURED

    decode = rows[rows["decode_seqs"] > 0].sort_values(["decode_seqs", "context"])
    bases, slopes = [], []
    for seqs in np.unique(decode["decode_seqs"]).tolist():
        pair = decode[decode["decode_seqs"] == seqs]
        context = seqs * pair["context"].to_numpy(dtype=np.float64)
        slope = max(float(np.diff(pair["seconds"])[0] / np.diff(context)[0]), 0.0)
        slopes.append((seqs, slope))
        bases.append((seqs, float(pair["seconds"].iloc[0] - slope * context[0])))
    prefill = rows[rows["chunks"] > 0]
    pairs = prefill["chunk_tokens"] * (prefill["chunk_before"] + prefill["chunk_tokens"] / 2)
    late = prefill[prefill["chunk_before"] > 0].merge(
        prefill[prefill["chunk_before"] == 0], on="chunk_tokens", suffixes=("", "_alone")
    )
    extra = late["chunk_tokens"] * late["chunk_before"]
    per_pair = 0.0
    if len(late):
        per_pair = float(np.median((late["seconds"] - late["seconds_alone"]) / extra))
    per_pair = max(per_pair, 0.0)
    alone = prefill["chunk_before"] == 0
    mixed = [
        (int(tokens), max(float(took - per_pair * pair), 1e-6))
        for tokens, took, pair in zip(
            prefill["chunk_tokens"][alone], prefill["seconds"][alone], pairs[alone], strict=True
        )
    ]
    terms = dict.fromkeys(MEASURED, 0.0)
    terms |= {"chunk_context": per_pair, "mixed_context": float(np.median([s for _, s in slopes]))}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": name,
        **about,
        "fit": {"decode": bases, "decode_context": slopes, "mixed": mixed, "terms": terms},
    }


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
