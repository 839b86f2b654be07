"""Prompts trained bare and served in a chat template are predicted as the bare ones are.

The templates are those of the published formats, written out; tokenizers are trained here.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from lengthwise.chat import Message, asked, flat, messages
from lengthwise.chat_template import of_tokenizer
from lengthwise.policies.plugins.calls import call_of
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.predicting import command
from lengthwise.policies.plugins.predictor_process import PredictorProcess
from lengthwise.policies.plugins.prompt_lengths import PromptLengths
from lengthwise.predictors import make_predictor
from lengthwise.protocols import Predictor
from lengthwise.served_text import PromptReader, messages_of, served_text
from lengthwise.serving.workload import read_prompts
from lengthwise.serving.workload.prompts import generate_prompts
from lengthwise.workload import Workload

LOOP = "{% for m in messages %}"
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Qwen, created by Alibaba "
    "Cloud. You are a helpful assistant.<|im_end|>\n{% endif %}"
    + LOOP
    + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set s = '<<SYS>>\n' + messages[0]['content'] + "
    "'\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    + LOOP
    + "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (s if loop.first else '') "
    "+ m['content'] | trim + ' [/INST]' }}{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token "
    "}}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December "
    "2023\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n{% if messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] | trim }}{% set messages = messages[1:] %}{% endif %}<|eot_id|>"
    + LOOP
    + "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}[SYSTEM_PROMPT] {{ "
    "messages[0]['content'] }}[/SYSTEM_PROMPT]{% set messages = messages[1:] %}{% endif %}"
    + LOOP
    + "{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]{% else %} {{ m['content'] }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}"
    + LOOP
    + "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI_3 = (
    LOOP + "<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set messages = "
    "messages[1:] %}{% else %}A chat between a curious user and an artificial intelligence "
    "assistant.{% endif %}"
    + LOOP
    + "{% if m['role'] == 'user' %} USER: {{ m['content'] }}{% else %} ASSISTANT: {{ m['content'] "
    "}}</s>{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
TEMPLATES: dict[str, tuple[str, list[str]]] = {
    "qwen": (QWEN, ["<|im_start|>", "<|im_end|>"]),
    "llama-2": (LLAMA_2, []),
    "llama-3": (LLAMA_3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "mistral": (MISTRAL, ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]),
    "gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"]),
    "phi-3": (PHI_3, ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]),
    "vicuna": (VICUNA, []),
}
DATA = generate_prompts(600, seed=3)
TRAIN, TEST = DATA.select(slice(0, 400)), DATA.select(slice(400, 600))
SHORT = [
    {"role": "user", "content": "Name three rivers."},
    {"role": "assistant", "content": "Rhine, Po, Ebro."},
    {"role": "user", "content": "Which is the longest?\nOne word."},
]


@cache
def tokenizer(name: str) -> Any:
    """A byte-level BPE of the prompts' own text, with the format's special tokens and template."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    template, special = TEMPLATES[name]
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<s>", "</s>", *special], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(TRAIN.prompt, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", additional_special_tokens=special
    )
    fast.chat_template = template
    return fast


@cache
def ridge() -> Predictor:
    return make_predictor("ridge").fit(list(TRAIN.prompt), TRAIN.output_tokens)


def served(name: str, chat: list[dict[str, str]]) -> list[int]:
    """The token ids that an engine is given."""
    text = tokenizer(name).apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(name)(text, add_special_tokens=False)["input_ids"]
    return ids


def answers(folder: Path, tokens: Path, prompts: list[list[int]]) -> np.ndarray:
    """What the plugin's own process predicts."""
    process = PredictorProcess(command(str(folder), tokenizer=str(tokens)), Counters())
    found: dict[int, float] = {}
    try:
        for sequence, prompt in enumerate(prompts):
            process.send(sequence, prompt)
        deadline = time.monotonic() + 60
        while len(found) < len(prompts) and time.monotonic() < deadline:
            # below zero where it abstained
            found.update((each.sequence, abs(each.tokens)) for each in process.received())
            time.sleep(0.01)
    finally:
        process.close()
    return np.array([found[i] for i in range(len(prompts))])


@pytest.mark.parametrize("name", ["qwen", "llama-2", "llama-3", "mistral", "gemma"])
def test_the_plugin_predicts_of_a_chat_what_training_saw(name: str, tmp_path: Path) -> None:
    ridge().save(tmp_path / "p")
    tokenizer(name).save_pretrained(tmp_path / "tokenizer")
    chats = [served(name, [{"role": "user", "content": text}]) for text in TEST.prompt]
    bare = ridge().predict(list(TEST.prompt)).predicted_tokens
    told = answers(tmp_path / "p", tmp_path / "tokenizer", chats)
    np.testing.assert_allclose(told, bare, rtol=1e-9)
    truth = TEST.output_tokens
    assert kendalltau(told, truth).statistic == pytest.approx(
        kendalltau(bare, truth).statistic, rel=0.02
    )
    assert np.abs(told - truth).mean() == pytest.approx(np.abs(bare - truth).mean(), rel=0.02)


def test_the_template_as_text_would_have_shifted_what_is_predicted() -> None:
    """What the marks cost a predictor that reads them: the reason for all this."""
    wrapped = [
        tokenizer("qwen").decode(served("qwen", [{"role": "user", "content": text}]), True)
        for text in TEST.prompt
    ]
    bare = ridge().predict(list(TEST.prompt)).predicted_tokens
    shifted = ridge().predict(wrapped).predicted_tokens
    assert abs(shifted.mean() / bare.mean() - 1) > 0.05


@pytest.mark.parametrize("own", [True, False], ids=["own", "known"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_roles_are_kept_apart(name: str, own: bool) -> None:
    """By the tokenizer's template and, where the server was given another, by the format."""
    system = [] if name == "gemma" else [{"role": "system", "content": "Be brief, always."}]
    chat = system + SHORT
    text = tokenizer(name).apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    template = of_tokenizer(tokenizer(name)) if own else None
    assert not own or template is not None
    found = messages_of(text, template)
    assert found is not None
    said = [message for message in found if message.role != "system"]
    assert said == [Message(m["role"], m["content"]) for m in SHORT]
    assert asked(found) == SHORT[-1]["content"]
    if name not in ("gemma", "vicuna"):  # one has no system's texts, the other does not mark them
        assert found[0].role == "system" and found[0].text.endswith("Be brief, always.")


@pytest.mark.parametrize("name", TEMPLATES)
def test_token_ids_are_read_as_what_was_asked(name: str) -> None:
    reader = PromptReader(tokenizer(name))
    assert reader.asked(served(name, SHORT)) == SHORT[-1]["content"]
    bare = tokenizer(name)("<s>Tell me [more] about USER: rights", add_special_tokens=False)
    assert reader.asked(bare["input_ids"]) == "Tell me [more] about USER: rights"


def test_a_tokenizer_without_a_template_or_with_a_broken_one_leaves_the_known_formats() -> None:
    from copy import copy

    ids = served("qwen", SHORT)
    for template in (None, "{{ raise_exception('no') }}", "{{ messages[0]['content'] }}"):
        other = copy(tokenizer("qwen"))
        other.chat_template = template
        assert PromptReader(other).asked(ids) == SHORT[-1]["content"]


def test_vicuna_s_turns_end_without_a_blank() -> None:
    """As FastChat writes them: its second separator is </s> and nothing more."""
    text = "A chat. USER: Name a river. ASSISTANT: The Rhine.</s>USER: How long is it? ASSISTANT:"
    assert served_text(text) == "How long is it?"
    assert [one.role for one in messages_of(text) or ()] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    "text",
    [
        "Say ASSISTANT: and USER: in a sentence.",
        "### Instruction: is a heading",
        "What does [INST] mean?",
        "a <|im_end|> b",
        "",
    ],
)
def test_a_question_about_templates_is_no_template(text: str) -> None:
    assert served_text(text) == text


def test_content_comes_as_text_parts_or_nothing() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, "b"]
    assert (flat("a"), flat(parts), flat(None), flat(3)) == ("a", "a\nb", "", "")
    chat = messages([{"role": "developer", "content": "s"}, {"from": "human", "value": parts}])
    assert chat == [Message("system", "s"), Message("user", "a\nb")]
    assert asked([*chat, Message("assistant", "x"), Message("tool", "y")]) == "a\nb"


def test_routers_ask_the_predictor_what_training_saw() -> None:
    parts = [{"type": "text", "text": SHORT[-1]["content"]}]
    body = {"messages": [*SHORT[:2], {"role": "user", "content": parts}], "max_tokens": 10}
    call = call_of(body)
    assert call.asked == SHORT[-1]["content"] and call.limit == 10
    assert call.text == "\n".join(m["content"] for m in SHORT)
    rendered = tokenizer("qwen").apply_chat_template(SHORT, tokenize=False)
    assert call_of({"prompt": rendered}).asked == SHORT[-1]["content"]
    assert call_of(rendered).text == rendered
    other = call_of({"prompt": "Hi", "max_completion_tokens": 7, "max_tokens": 99,
                     "vllm_xargs": {"predicted_tokens": 30}})  # fmt: skip
    assert (other.asked, other.told, other.limit) == ("Hi", 30, 7)


async def _lengths(lengths: PromptLengths, *bodies: dict[str, Any]) -> list[float]:
    return [(await lengths.of(call_of(body)))[1] for body in bodies]


def test_no_length_at_a_router_exceeds_the_client_s_limit() -> None:
    import asyncio

    counters = Counters()
    said = PromptLengths(lambda text: 145.0, 5.0, 256.0, counters)
    bodies = [
        {"prompt": "a", "max_tokens": 10}, {"prompt": "a"},
        {"prompt": "a", "max_tokens": 20, "vllm_xargs": {"predicted_tokens": 50}},
    ]  # fmt: skip
    assert asyncio.run(_lengths(said, *bodies)) == [10, 145, 20]
    silent = PromptLengths(None, 5.0, 256.0, counters)
    assert asyncio.run(_lengths(silent, *bodies)) == [10, 256, 20]


def test_files_of_rendered_prompts_and_of_messages_train_on_the_same(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    rendered = [
        tokenizer("llama-3").apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in TEST.prompt[:20]
    ]
    lengths = TEST.output_tokens[:20]
    frame = pd.DataFrame({"prompt": rendered, "output_tokens": lengths})
    frame.to_parquet(tmp_path / "rendered.parquet")
    assert list(read_prompts(tmp_path / "rendered.parquet").prompt) == list(TEST.prompt[:20])
    logged = pd.DataFrame(
        {
            "request_id": [f"r{i}" for i in range(20)], "arrival_s": np.arange(20.0),
            "prompt_id": [f"p{i}" for i in range(20)], "prompt_tokens": 9,
            "output_tokens": lengths, "finish_reason": "stop", "model": "m",
            "tokenizer": str(tmp_path / "tokenizer"),
            "prompt_token_ids": [
                served("llama-3", [{"role": "user", "content": text}]) for text in TEST.prompt[:20]
            ],
        }
    )  # fmt: skip
    tokenizer("llama-3").save_pretrained(tmp_path / "tokenizer")
    logged.to_parquet(tmp_path / "log.parquet")
    assert list(read_prompts(tmp_path / "log.parquet").prompt) == list(TEST.prompt[:20])
    workload = Workload.read(str(tmp_path / "log.parquet"))
    assert list(workload["asked"]) == list(TEST.prompt[:20])
    assert "Cutting Knowledge Date" in workload["prompt"][0]
