"""Prompts with answer lengths, as the command line spells them."""

from __future__ import annotations

from typing import Any

from lengthwise.errors import InputError
from lengthwise.serving.workload import Prompts, generate_prompts, read_prompts

GENERATED = "synthetic-chat"
GENERATED_ROWS = 4000


def prompts_of(data: str, max_rows: int | None, seed: int, **reading: Any) -> str | Prompts:
    """Generated prompts for "synthetic-chat"; anything else is a file's name and stays one.

    But for a file that is to be read in another way than others: that is read now. ``reading`` are
    options of ``read_prompts``, None where nothing was said.
    """
    if data == GENERATED:
        return generate_prompts(max_rows or GENERATED_ROWS, seed)
    said = {name: value for name, value in reading.items() if value is not None}
    if not said:
        return data
    return read_prompts(data, drop_zero=True, **said)  # no answer: nothing to learn


def weights_of(text: str | None) -> list[float] | None:
    """Numbers with commas between them."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--source-weights takes numbers such as 2,1,1, not {text!r}") from None
