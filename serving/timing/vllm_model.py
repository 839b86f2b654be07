"""A Hugging Face ``config.json`` for a known model shape, so that vLLM needs no download."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError
from lengthwise.serving.timing.config import known_configs

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "mistral": "MistralForCausalLM",
}
_ALWAYS: dict[str, Any] = {
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_bias": False,
    "mlp_bias": False,
}


@contextmanager
def model_folder(model: str) -> Iterator[Path]:
    """The folder of a model's ``config.json``: a known model's is written, a path is kept."""
    path = Path(model)
    if path.suffix == ".json" or path.is_dir():
        yield path.parent if path.suffix == ".json" else path
        return
    known = known_configs(model)
    kind = known.get("model_type", "llama")
    if kind not in _ARCHITECTURES:
        raise InputError(f"vLLM's config of {model} is not known here; give a path to config.json")
    config = _ALWAYS | known | {"model_type": kind, "architectures": [_ARCHITECTURES[kind]]}
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / model
        where.mkdir()
        (where / "config.json").write_text(json.dumps(config), "utf-8")
        yield where
