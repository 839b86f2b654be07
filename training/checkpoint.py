"""Checkpoints of a training run: tensors and numbers only, written whole or not at all."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from lengthwise.errors import InputError
from lengthwise.writing import whole_file


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Saves ``state`` (tensors, numbers, strings, lists, dicts) in place of an earlier one."""
    content = io.BytesIO()  # torch hides what the system says of a full disk
    torch.save(state, content)
    try:
        with whole_file(path) as fresh:
            fresh.write_bytes(content.getbuffer())
    except OSError as error:
        raise InputError(f"can't write checkpoint {str(path)!r}: {error.strerror}") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What ``write_checkpoint`` saved; loading runs no code of the file."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"no checkpoint at {str(path)!r}: {error.strerror}") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise InputError(f"checkpoint {str(path)!r} is damaged: {error}") from error
    return state
