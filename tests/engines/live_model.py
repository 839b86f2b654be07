"""A folder that a server can serve: a tiny random model, a tokenizer of bytes, a chat template.

Every text has tokens, so that chats, stop conditions and JSON schemas work; what the model says is
noise.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.engines.whole_engine import MODEL

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make(folder: Path) -> Path:
    """Fills the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<s>", "</s>", *letters]
    bare = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**MODEL, "vocab_size": len(words)}))
    return folder
