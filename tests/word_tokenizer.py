"""A tokenizer of whole words, for tests that need one and may fetch none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest


def save(folder: Path, words: Sequence[str]) -> Path:
    """Saves it as transformers does; a word's id is its place, and the first stands for others."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)
    return folder
