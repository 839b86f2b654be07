"""``lengthwise profile``: measures a model's shape on the GPU at hand and writes its profile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.serving.timing.config import ModelShape, model_shape
from lengthwise.serving.timing.roofline import GIB, GPU_MEMORY_UTILIZATION

ENGINES = ("vllm", "torch")


def profile(
    engine: str = "vllm",
    model: str = "llama-3.1-8b",
    out: str | Path = "profile.json",
    *,
    name: str | None = None,
    seconds: float = 150.0,
    thoroughness: float = 1.0,
    tensor_parallel: int = 1,
    max_num_seqs: int = 512,
    max_num_batched_tokens: int = 2048,
) -> Path:
    """Measures and writes ``out`` (JSON) and, beside it, the raw iterations (Parquet).

    ``model`` is a known shape or the path of a ``config.json``; its weights are random. ``seconds``
    limits the sweep, ``thoroughness`` scales it (1.0 takes about 90 s for an 8B model on an H200,
    after a start of a minute or two). "vllm" drives vLLM; "torch" runs transformers, for machines
    without it. Raises ``InputError`` in one line for a missing GPU or engine, or a model too big.
    """
    if engine not in ENGINES:
        raise UnknownNameError("profiling engine", engine, ENGINES)
    out = Path(out)
    if not out.parent.is_dir():
        raise InputError(f"cannot write {out}: the folder {out.parent} does not exist")
    shape = model_shape(model)
    gpu = _gpu(shape, tensor_parallel)
    name = name or f"{gpu.split()[-1].lower()}/{shape.name}"
    arguments = {
        "seconds": seconds,
        "thoroughness": thoroughness,
        "tensor-parallel": tensor_parallel,
        "max-num-seqs": max_num_seqs,
        "max-num-batched-tokens": max_num_batched_tokens,
    }
    options = " ".join(f"--{key} {value}" for key, value in arguments.items())
    command = f"lengthwise profile --engine {engine} --model {model} --out {out.name} {options}"
    facts = {"model": shape.name, "command": command}
    if engine == "torch":
        from lengthwise.serving.timing.measure_torch import profile_torch

        profile_torch(name, model, out, facts, max_num_seqs, max_num_batched_tokens)
        return out
    _profile_vllm(
        name, model, out, facts, seconds, thoroughness,
        tensor_parallel_size=tensor_parallel, max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )  # fmt: skip
    return out


def _gpu(shape: ModelShape, count: int) -> str:
    """The GPU's name; refuses a machine without enough GPUs, and a model that does not fit."""
    try:
        import torch
    except ImportError:
        raise InputError("profiling needs torch, which is not installed here") from None
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < count:
        raise InputError(f"profiling needs {count} GPU(s), and torch sees {found} on this machine")
    room = torch.cuda.mem_get_info(0)[1] / GIB * GPU_MEMORY_UTILIZATION
    weights = shape.parameters * 2 / count / GIB
    if weights > room:
        raise InputError(
            f"model {shape.name} does not fit: its weights take {weights:.1f} GiB a GPU, and vLLM "
            f"would use {room:.1f} GiB; give --tensor-parallel a larger number"
        )
    return torch.cuda.get_device_name(0)


def _profile_vllm(
    name: str,
    model: str,
    out: Path,
    facts: dict[str, Any],
    seconds: float,
    thoroughness: float,
    **options: Any,
) -> None:
    from lengthwise.serving.timing import measure_vllm
    from lengthwise.serving.timing.build import build_profile, write_profile
    from lengthwise.serving.timing.vllm_model import model_folder

    with model_folder(model) as folder:
        engine = measure_vllm.start(folder, **options)
        try:
            about = measure_vllm.about(engine)
            rows, frontend = asyncio.run(
                measure_vllm.measure(engine, seconds, thoroughness, out.with_suffix(".part"))
            )
        finally:
            engine.shutdown()
    rows.to_parquet(out.with_suffix(".iterations.parquet"), compression="zstd", index=False)
    frontend.to_parquet(out.with_suffix(".frontend.parquet"), compression="zstd")
    write_profile(build_profile(name, rows, frontend, facts | about), out)
