"""From what a user writes to a predictor: ``oracle``, ``noisy-oracle:tau=0.5``, a saved folder.

Grammar: ``none``, ``NAME[:option=value,...]`` where NAME is a registered predictor, the folder
that ``save`` wrote, or ``hf:OWNER/NAME[@REVISION]``, one on the hub. A registered predictor that
learns comes unfitted.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError, LengthwiseError, UnknownNameError
from lengthwise.predictors import folder, hub
from lengthwise.predictors.sound import check_folder, check_predicts
from lengthwise.protocols import Predictor
from lengthwise.registry import load


def load_predictor(spec: str | Path | Predictor | None) -> Predictor | None:
    """The predictor of a spelling or a saved folder; ``"none"`` and None give None.

    A predictor is returned as it is. Raises ``InputError`` for a folder that is no predictor and
    ``UnknownNameError`` for an unknown name or option.
    """
    if spec is None or spec == "none":
        return None
    if not isinstance(spec, str | Path):
        # whoever only predicts need not learn or be saved
        if not (callable(getattr(spec, "predict", None)) and hasattr(spec, "needs")):
            raise InputError(f"not a predictor: {spec!r}; a predictor is a name or a folder")
        return spec
    if folder.is_saved(spec):
        return _restore(spec)
    text = str(spec)
    if isinstance(spec, str) and text.startswith(hub.PREFIX):
        return _restore(hub.fetched_spelling(text))
    if isinstance(spec, Path) or os.sep in text.partition(":")[0] or os.path.isdir(text):
        what = "has no predictor.json" if os.path.isdir(text) else "does not exist"
        raise InputError(f"{text!r} is no saved predictor: it {what}")
    name, _, options = text.partition(":")
    return make_predictor(name, **_options(options, text))


def make_predictor(name: str, **options: Any) -> Predictor:
    """A registered predictor, unfitted, with constructor ``options``; unknown ones are errors."""
    made = load("predictor", name)
    allowed = [p for p in inspect.signature(made).parameters if p != "self"]
    for option in options:
        if option not in allowed:
            raise UnknownNameError(f"option of predictor {name!r}", option, allowed)
    predictor: Predictor = made(**options)
    return predictor


def _restore(path: str | Path) -> Predictor:
    check_folder(Path(path))
    saved = folder.read(path)
    made = load("predictor", saved.name)
    try:
        predictor: Predictor = made.restore(saved, Path(path))
    except LengthwiseError:
        raise
    except KeyError as error:
        raise InputError(f"predictor {str(path)!r} is damaged: it has no {error}") from error
    except (TypeError, IndexError, AttributeError, ValueError, RuntimeError, ArithmeticError,
            AssertionError) as error:  # fmt: skip
        raise InputError(f"predictor {str(path)!r} is damaged: {error!r}") from error
    check_predicts(predictor, Path(path))
    return predictor


def _options(text: str, spec: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key or not value:
            raise InputError(f"{spec!r}: expected name=value, not {item!r}")
        given[key] = _value(value)
    return given


def _value(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
