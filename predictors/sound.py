"""What may lie in a predictor's folder: nothing that runs, leads elsewhere, or never ends."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.context import Context
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.protocols import Predictor

MOST_JSON_BYTES = 64 * 2**20
MOST_LAYERS, MOST_SIZE = 1000, 2**31 - 1  # of an encoder
MOST_BYTES = 8 * 2**30  # of one file
RUNS = frozenset({".py", ".pyc", ".so", ".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"})
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
PROBES = ("", "say a word of 3, 1 or 20", "写一首短诗。")


def check_folder(path: Path, *, own: bool = False) -> None:
    """Raises ``InputError`` for what no predictor or encoder needs.

    That is links and pipes, code and pickles, code that a configuration asks for (``auto_map``,
    attention kernels from the hub), shards outside the folder, and files beyond any sensible size.
    ``own`` says that the folder is the user's, of a model to train on, in which links and what is
    not read may lie.
    """
    for found in sorted(path.rglob("*")):
        name, mode = str(found.relative_to(path)), found.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode) and not own:
            kind = "a link" if stat.S_ISLNK(mode) else "no plain file"
            raise InputError(f"{str(path)!r} is refused: {name} is {kind}")
        if found.suffix in RUNS and not own:
            raise InputError(f"{str(path)!r} is refused: {name} may hold code, which is never run")
        size = found.stat().st_size
        if size > (MOST_JSON_BYTES if found.suffix == ".json" else MOST_BYTES):
            raise InputError(f"{str(path)!r} is refused: {name} has {size} bytes")
        if found.suffix == ".json":
            _check_json(path, name, found)


def check_predicts(predictor: Predictor, path: Path) -> None:
    """Raises ``InputError`` unless it says something finite of a few prompts, with and without
    context: what is damaged shows here, and not when it is asked.
    """
    if predictor.needs - {"prompt", "prompt_tokens"}:
        return
    context = Context.each(
        {"model": "m", "previous_answers": 2, "previous_log_tokens": 4.0, "previous_tokens": 80}
        for _ in PROBES
    )
    asked: list[dict[str, Any]] = [{}]
    if getattr(predictor, "uses", None):
        asked.append({"context": context})
    for more in asked:
        try:
            with np.errstate(over="raise", invalid="raise", divide="raise"):
                tokens = predictor.predict(PROBES, prompt_tokens=[1, 9, 6], **more).predicted_tokens
        except LengthwiseError as error:
            raise InputError(f"predictor {str(path)!r} is damaged: {error}") from error
        except Exception as error:  # of whatever its numbers lead to
            raise InputError(f"predictor {str(path)!r} is damaged: {error!r}") from error
        if tokens.shape != (len(PROBES),) or not np.isfinite(tokens).all():
            raise InputError(f"predictor {str(path)!r} is damaged: it predicts no lengths")


def _check_json(path: Path, name: str, file: Path) -> None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is damaged: {name} is no JSON: {error}") from error
    if not isinstance(content, dict):
        return
    if file.name == "config.json":
        for key, value in content.items():
            most = MOST_LAYERS if "layers" in key else MOST_SIZE
            if isinstance(value, int | float) and not abs(value) <= most:
                raise InputError(f"{str(path)!r} is refused: {key} of {name} is beyond {most}")
    if name.endswith("config.json"):
        for held in _dicts(content):
            if held.get("auto_map"):
                raise InputError(f"{str(path)!r} is refused: auto_map of {name} asks for code")
            for key in ATTENTION:
                if isinstance(held.get(key), str) and "/" in held[key]:
                    raise InputError(
                        f"{str(path)!r} is refused: {key} of {name} asks for code, {held[key]!r}"
                    )
    if name.endswith(".index.json"):
        shards = content.get("weight_map")
        for shard in set(map(str, shards.values())) if isinstance(shards, dict) else ():
            if Path(shard).name != shard or not (file.parent / shard).is_file():
                raise InputError(f"{str(path)!r} is refused: {name} names {shard!r}, no shard here")


def _dicts(content: Any) -> Iterator[dict[str, Any]]:
    if isinstance(content, dict):
        yield content
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _dicts(value)
