"""``lengthwise profile``: measures a model's shape on the GPU at hand and writes its profile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lengthwise import __version__
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.serving.options import serve_batch
from lengthwise.serving.timing.config import ModelShape, model_shape
from lengthwise.serving.timing.roofline import GIB, GPU_MEMORY_UTILIZATION, gpus

ENGINES = ("vllm", "torch")
QUANTIZATIONS = ("fp8",)
KV_CACHE_DTYPES = ("fp8",)
TORCH_BATCH = (512, 2048)  # sequences and tokens that transformers is measured up to


def profile(
    engine: str = "vllm",
    model: str = "llama-3.1-8b",
    out: str | Path = "profile.json",
    *,
    name: str | None = None,
    seconds: float = 150.0,
    thoroughness: float = 1.0,
    tensor_parallel: int = 1,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    max_model_len: int | None = None,
    quantization: str | None = None,
    kv_cache_dtype: str | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Measures and writes ``out`` (JSON) and, beside it, the raw iterations (Parquet).

    ``model`` is a known shape or the path of a ``config.json``; its weights are random. ``seconds``
    limits the sweep, ``thoroughness`` scales it (1.0 takes about 90 s for an 8B model on an H200,
    after a start of a minute or two). Sequences and tokens of an iteration are by default what
    vLLM's API server chooses on this GPU. "vllm" drives vLLM; "torch" runs transformers, for
    machines without it. ``quantization`` ("fp8") and ``kv_cache_dtype`` ("fp8") are vLLM's, and
    stand in the profile's name.

    What vLLM has measured is kept in ``OUT.parts`` group by group until the profile is written: the
    same call goes on from there, another one is refused unless ``force``. ``progress`` is called
    with iterations, done and planned, and ``say`` with a line for each step. Raises ``InputError``
    in one line for a missing GPU or engine, a model too big, and an engine that does not start.
    """
    if engine not in ENGINES:
        raise UnknownNameError("profiling engine", engine, ENGINES)
    for what, value, known in (
        ("quantization", quantization, QUANTIZATIONS),
        ("KV cache dtype", kv_cache_dtype, KV_CACHE_DTYPES),
    ):
        if value is not None and value not in known:
            raise UnknownNameError(what, value, known)
        if value is not None and engine == "torch":
            raise InputError(f"--engine torch measures bfloat16, no {what} {value}: use vllm")
    out = Path(out)
    if not out.parent.is_dir():
        raise InputError(f"cannot write {out}: the folder {out.parent} does not exist")
    shape = model_shape(model)
    gpu, memory_gib = _gpu(shape, tensor_parallel, 2 if quantization is None else 1)
    served = TORCH_BATCH if engine == "torch" else serve_batch(memory_gib, "a100" in gpu.lower())
    max_num_batched_tokens = max_num_batched_tokens or max(served[1], max_num_seqs or 0)
    max_num_seqs = max_num_seqs or min(served[0], max_num_batched_tokens)
    if max_num_batched_tokens < max_num_seqs:
        raise InputError(
            f"max_num_batched_tokens ({max_num_batched_tokens}) must be at least max_num_seqs "
            f"({max_num_seqs}), as in vLLM"
        )
    arguments = {
        "seconds": seconds,
        "thoroughness": thoroughness,
        "tensor-parallel": tensor_parallel,
        "max-num-seqs": max_num_seqs,
        "max-num-batched-tokens": max_num_batched_tokens,
        "max-model-len": max_model_len,
        "quantization": quantization,
        "kv-cache-dtype": kv_cache_dtype,
    }
    options = " ".join(f"--{k} {v}" for k, v in arguments.items() if v is not None)
    command = f"lengthwise profile --engine {engine} --model {model} --out {out.name} {options}"
    facts = {"model": shape.name, "command": command}
    name = name or _name(gpu, shape, tensor_parallel, quantization, kv_cache_dtype)
    if engine == "torch":
        from lengthwise.serving.timing.measure_torch import profile_torch

        profile_torch(name, model, out, facts, max_num_seqs, max_num_batched_tokens)
        return out
    given = {
        "tensor_parallel_size": tensor_parallel, "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens, "max_model_len": max_model_len,
        "quantization": quantization, "kv_cache_dtype": kv_cache_dtype,
    }  # fmt: skip
    chosen = {key: value for key, value in given.items() if value is not None}
    _profile_vllm(
        name, model, out, facts | {"gpu": gpu}, seconds, thoroughness, chosen, force, progress, say
    )
    return out


def _name(
    gpu: str, shape: ModelShape, count: int, quantization: str | None, kv_cache_dtype: str | None
) -> str:
    """``h100/llama-3.1-8b``, ``2xh100/qwen2.5-32b-fp8-kv-fp8``."""
    known = (short for short in gpus() if short in gpu.lower())
    short = next(known, gpu.lower().removeprefix("nvidia ").replace(" ", "-"))
    device = f"{count}x{short}" if count > 1 else short
    more = "" if quantization is None else f"-{quantization}"
    more += "" if kv_cache_dtype is None else f"-kv-{kv_cache_dtype}"
    return f"{device}/{shape.name}{more}"


def _gpu(shape: ModelShape, count: int, weight_bytes: int = 2) -> tuple[str, float]:
    """The GPU's name and its memory in GiB; refuses a machine without enough GPUs, and a model
    that does not fit.
    """
    try:
        import torch
    except ImportError:
        raise InputError("profiling needs torch, which is not installed here") from None
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < count:
        raise InputError(f"profiling needs {count} GPU(s), and torch sees {found} on this machine")
    memory = torch.cuda.mem_get_info(0)[1] / GIB
    room = memory * GPU_MEMORY_UTILIZATION
    weights = shape.parameters * weight_bytes / count / GIB
    if weights > room:
        raise InputError(
            f"model {shape.name} does not fit: its weights take {weights:.1f} GiB a GPU, and vLLM "
            f"would use {room:.1f} GiB; give --tensor-parallel a larger number"
        )
    return torch.cuda.get_device_name(0), memory


def _profile_vllm(
    name: str,
    model: str,
    out: Path,
    facts: dict[str, Any],
    seconds: float,
    thoroughness: float,
    options: dict[str, Any],
    force: bool,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
) -> None:
    from lengthwise.serving.timing import measure_vllm
    from lengthwise.serving.timing.build import build_profile, write_profile
    from lengthwise.serving.timing.parts import Parts
    from lengthwise.serving.timing.vllm_model import model_folder
    from lengthwise.writing import whole_file

    parts = Parts.open(out, _identity(model, facts, thoroughness, options), force)
    if count := len(parts.done()):
        say(f"going on: {parts.folder} holds {count} measured groups of batches")
    with model_folder(model) as folder:
        engine = measure_vllm.start(folder, log=parts.folder / "vllm.log", **options)
        try:
            about = measure_vllm.about(engine)
            say(
                f"vLLM {about['engine']['version']} is up: {about['num_gpu_blocks']:,} KV blocks, "
                f"up to {about['max_num_seqs']:,} sequences and "
                f"{about['max_num_batched_tokens']:,} tokens an iteration"
            )
            rows, frontend, left = asyncio.run(
                measure_vllm.measure(engine, parts, seconds, thoroughness, progress)
            )
        finally:
            engine.shutdown()
    if left:
        say(f"{left} groups of batches were left out, as {seconds:g} s were over")
    say(f"fitting {len(rows):,} iterations")
    made = build_profile(name, rows, frontend, parts.engine(about) | facts)
    for kind, table in (("iterations", rows), ("frontend", frontend)):
        with whole_file(out.with_suffix(f".{kind}.parquet")) as fresh:
            table.to_parquet(fresh, compression="zstd", index=kind == "frontend")
    write_profile(made, out)
    parts.drop()


def _identity(
    model: str, facts: dict[str, Any], thoroughness: float, options: dict[str, Any]
) -> dict[str, Any]:
    """What parts of a profile must have in common."""
    from importlib.metadata import PackageNotFoundError, version

    from lengthwise.serving.timing.measure_torch import hf_config

    try:
        engine = version("vllm")
    except PackageNotFoundError:
        engine = "unknown"
    return {
        "model": facts["model"], "GPU": facts["gpu"], "vLLM": engine, "lengthwise": __version__,
        "thoroughness": thoroughness, **options, "config": hf_config(model),
    }  # fmt: skip
