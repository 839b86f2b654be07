"""A saved predictor for a plugin: one that reads what engines and routers know."""

from __future__ import annotations

import os

from lengthwise.errors import InputError
from lengthwise.protocols import Predictor
from lengthwise.registry import loader


def saved_predictor(folder: str | os.PathLike[str]) -> Predictor:
    """The predictor in a folder; raises ``InputError`` for one that reads more than prompts."""
    predictor: Predictor | None = loader("predictor")(os.fspath(folder))
    if predictor is None:
        raise InputError(f"predictor {os.fspath(folder)!r} is none")
    unmet = predictor.needs - {"prompt", "prompt_tokens"}
    if unmet:
        raise InputError(
            f"predictor {os.fspath(folder)!r} needs {', '.join(sorted(unmet))}, which no engine "
            "knows"
        )
    return predictor
