"""Prompts with answer lengths, as the command line spells them."""

from __future__ import annotations

from lengthwise.errors import InputError
from lengthwise.serving.workload import Prompts, generate_prompts, read_prompts

GENERATED = "synthetic-chat"
GENERATED_ROWS = 4000


def prompts_of(
    data: str, max_rows: int | None, seed: int, max_expanded_mb: float | None = None
) -> str | Prompts:
    """Generated prompts for "synthetic-chat"; anything else is a file's name and stays one.

    But for a file that may expand to more than others: that is read now.
    """
    if data != GENERATED and max_expanded_mb is None:
        return data
    if data != GENERATED:  # without an answer there is nothing to learn
        return read_prompts(data, drop_zero=True, max_expanded_mb=max_expanded_mb)
    return generate_prompts(max_rows or GENERATED_ROWS, seed)


def weights_of(text: str | None) -> list[float] | None:
    """Numbers with commas between them."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--source-weights takes numbers such as 2,1,1, not {text!r}") from None
