"""The shape of a transformer: its parameters, and the KV cache that a token takes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.reading import read_described

_NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)
_OPTIONAL = ("num_key_value_heads", "head_dim", "max_position_embeddings")
_MOST = 2**31 - 1  # of each number


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder-only transformer in 16-bit numbers, by the fields of its ``config.json``."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool = False
    gated_mlp: bool = True  # SwiGLU has three matrices, a plain MLP two
    max_position_embeddings: int | None = None

    @property
    def layer_parameters(self) -> int:
        """Parameters of the matrices of one layer: attention and MLP."""
        q = self.hidden_size * self.num_attention_heads * self.head_dim
        kv = self.hidden_size * self.num_key_value_heads * self.head_dim
        mlp = self.hidden_size * self.intermediate_size
        return 2 * q + 2 * kv + (3 if self.gated_mlp else 2) * mlp

    @property
    def parameters(self) -> int:
        """Parameters in all, without norms and biases (under 0.1%)."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * self.layer_parameters + embeddings

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token leaves in the cache."""
        return 2 * self.num_key_value_heads * self.head_dim * 2 * self.num_hidden_layers


def model_shape(name: str) -> ModelShape:
    """The shape of a known model, or of the ``config.json`` (or its folder) at a path."""
    known = _known()
    if name in known:
        return _from_config(name, known[name])
    path = Path(name)
    if os.path.isdir(path):
        path = path / "config.json"
    if path.suffix == ".json":
        return _from_config(path.parent.name or path.stem, _read(path))
    raise UnknownNameError("model", name, known)


def known_configs(name: str) -> dict[str, Any]:
    """The ``config.json`` fields of a known model; ``UnknownNameError`` for another."""
    if name not in _known():
        raise UnknownNameError("model", name, _known())
    return _known()[name]


def model_names() -> list[str]:
    """The models whose shapes are known by name."""
    return list(_known())


@cache
def _known() -> dict[str, dict[str, Any]]:
    text = files("lengthwise.serving.timing").joinpath("data/models.json").read_text("utf-8")
    known: dict[str, dict[str, Any]] = json.loads(text)
    return known


def _read(path: Path) -> dict[str, Any]:
    config = read_described(path, "model config")
    if not isinstance(config, dict):
        raise InputError(f"the model config {path} must be a JSON object")
    return config


def _from_config(name: str, config: dict[str, Any]) -> ModelShape:
    if "num_experts" in config or "num_local_experts" in config:
        raise InputError(f"model {name!r} is a mixture of experts; a roofline knows dense models")
    missing = [key for key in _NEEDED if config.get(key) is None]
    if missing:
        raise InputError(f"the config of model {name!r} lacks {', '.join(missing)}")
    for key in (*_NEEDED, *_OPTIONAL):
        value = config.get(key)
        whole = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST
        if not whole and (key in _NEEDED or value is not None):
            raise InputError(
                f"the config of model {name!r}: {key} must be a whole number from 1 to {_MOST}, "
                f"not {value!r}"
            )
    heads = config["num_attention_heads"]
    return ModelShape(
        name=name,
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        gated_mlp=bool(config.get("gated_mlp", True)),
        max_position_embeddings=config.get("max_position_embeddings"),
    )
