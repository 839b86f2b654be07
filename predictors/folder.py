"""A saved predictor: a folder with ``predictor.json``, a card and, if any, ``arrays.safetensors``.

No pickle and no code: reading an untrusted folder runs nothing of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.predictors.card import CARD, card
from lengthwise.writing import whole_folder

FORMAT = 1
DESCRIPTION, ARRAYS = "predictor.json", "arrays.safetensors"


@dataclass(frozen=True)
class Saved:
    """What a folder holds: the registered name, constructor options, learned state and arrays."""

    name: str
    options: Mapping[str, Any]
    state: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def is_saved(folder: str | Path) -> bool:
    """Whether ``folder`` holds a saved predictor."""
    return os.path.isfile(os.path.join(folder, DESCRIPTION))


def check_absent(spec: str | Path) -> None:
    """Raises ``InputError`` for what is a path and can be no name on the hub."""
    text = str(spec)
    if isinstance(spec, Path) or os.path.isdir(text) or text.startswith((".", "~", os.sep)):
        what = f"has no {DESCRIPTION}" if os.path.isdir(text) else "does not exist"
        raise InputError(f"{text!r} is no saved predictor: it {what}")


def write(saved: Saved, folder: str | Path, extra: Callable[[Path], None] | None = None) -> None:
    """Writes the folder atomically; an older one of the same name is replaced whole.

    ``extra(path)`` may add files before the folder takes its place. Raises ``InputError`` when the
    place can't be written, or holds a folder that is no predictor.
    """
    from safetensors.numpy import save_file

    target = Path(folder)
    if target.exists() and not is_saved(target) and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{str(target)!r} exists and is no predictor; it is left as it is")
    described = {
        "format": FORMAT,
        "predictor": saved.name,
        "options": dict(saved.options),
        "state": dict(saved.state),
    }
    try:
        with whole_folder(target) as here:
            (here / DESCRIPTION).write_text(
                json.dumps(described, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
            if saved.arrays:
                arrays = {key: np.ascontiguousarray(value) for key, value in saved.arrays.items()}
                save_file(arrays, here / ARRAYS)
            if extra is not None:
                extra(here)
            (here / CARD).write_text(card(saved.name, saved.options), encoding="utf-8")
    except OSError as error:
        raise InputError(f"can't write the predictor {str(target)!r}: {error.strerror}") from error


def read(folder: str | Path) -> Saved:
    """What the folder holds; raises ``InputError`` for anything but a well-formed predictor."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(folder)
    try:
        described = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        arrays = load_file(path / ARRAYS) if (path / ARRAYS).is_file() else {}
    except OSError as error:  # safetensors' own has no strerror
        why = error.strerror or error
        raise InputError(f"can't read the predictor {str(path)!r}: {why}") from error
    except (ValueError, SafetensorError) as error:
        raise InputError(f"predictor {str(path)!r} is damaged: {error}") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        found = described.get("format") if isinstance(described, dict) else described
        raise InputError(
            f"predictor {str(path)!r} has format {found!r}; this version reads {FORMAT}"
        )
    try:
        return Saved(
            str(described["predictor"]),
            dict(described["options"]),
            dict(described["state"]),
            arrays,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"predictor {str(path)!r}: malformed {DESCRIPTION}: {error!r}") from error


def under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays whose names begin so, without that."""
    return {
        key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)
    }
