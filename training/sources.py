"""Data to train predictors on: files put together, what each counts for, and what they held."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.context import COLUMNS, NAMES, Context
from lengthwise.errors import InputError
from lengthwise.serving.workload import Prompts

SKETCH = 256  # hashes that stand for a file's prompts: the smallest


def together(parts: Sequence[Prompts]) -> tuple[Prompts, NDArray[np.int64]]:
    """The rows of all sources, and of each row the number of its source, (n,)."""
    source = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    if len(parts) == 1:
        return parts[0], source
    contexts = [part.context or Context() for part in parts]
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        if any(getattr(context, name) is not None for context in contexts):
            missing = None if name in NAMES else np.nan
            columns[name] = np.concatenate(
                [
                    np.full(len(part), missing, dtype=object)
                    if getattr(context, name) is None
                    else getattr(context, name)
                    for part, context in zip(parts, contexts, strict=True)
                ]
            )
    models = [
        np.full(len(part), None, dtype=object) if part.model is None else part.model
        for part in parts
    ]
    return Prompts(
        prompt=np.concatenate([part.prompt for part in parts]),
        prompt_tokens=np.concatenate([part.prompt_tokens for part in parts]),
        output_tokens=np.concatenate([part.output_tokens for part in parts]),
        censored=np.concatenate([part.censored for part in parts]),
        model=None if all(part.model is None for part in parts) else np.concatenate(models),
        name=" + ".join(part.name for part in parts),
        notices=tuple(dict.fromkeys(notice for part in parts for notice in part.notices)),
        context=Context(**columns),
    ), source


def row_weights(
    source: NDArray[np.int64], weights: Sequence[float] | None, sources: int
) -> NDArray[np.float64] | None:
    """What each row counts, (n,), so that sources together count as ``weights``; equally if None.

    None for a single source.
    """
    given = np.ones(sources) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(given) != sources:
        raise InputError(f"source_weights has {len(given)} numbers, for {sources} sources")
    if not (np.isfinite(given) & (given > 0)).all():
        raise InputError("source_weights must be numbers above 0, one for each source")
    if sources == 1:
        return None
    counts = np.bincount(source, minlength=sources)
    return np.asarray((given / np.maximum(counts, 1))[source])


def with_answers(rows: Prompts) -> Prompts:
    """Those that were answered; the others are left out with a notice."""
    empty = rows.output_tokens < 1
    if not empty.any():
        return rows
    notice = f"{rows.name}: left out {empty.sum()} empty answers"
    return replace(rows, notices=(*rows.notices, notice)).select(~empty)


def sketch(prompts: Iterable[str]) -> list[str]:
    """The ``SKETCH`` smallest hashes of the prompts, as text."""
    return sorted({_hash(prompt) for prompt in prompts})[:SKETCH]


def merged(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """The sketch of the prompts of two sketches together."""
    return sorted({*one, *other})[:SKETCH]


def shares_prompts(prompts: Iterable[str], held: Sequence[str]) -> bool:
    """Whether any of the prompts is among those that ``held`` is the sketch of.

    Of files that share many prompts that is certain; of few it may go unseen.
    """
    known = set(held)
    return any(_hash(prompt) in known for prompt in prompts)


def _hash(prompt: str) -> str:
    return blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
