"""What a chat template, a system prompt and an earlier turn around a question cost a predictor.

``python benchmarks/chat_turns.py DATA/prompts --model ridge``

Trains on half of the prompts of AlpacaEval (answers of one model), as they are, and asks it about
the other half: as they are, and as an engine gets them. The formats are written out as published.
Prints Kendall's tau and the mean absolute error of each, and how many of the questions are read as
they were asked. ``--unread`` reads the rendered text itself, as was done before chats were.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from predictor_transfer import half, sources

from lengthwise.eval.prediction_metrics import kendall_tau
from lengthwise.predictors import make_predictor
from lengthwise.served_text import capped_text, served_text

Chat = Sequence[tuple[str, str]]
SYSTEM = "You are a helpful assistant. Answer concisely, and say when you don't know."
EARLIER = (
    ("user", "What is the capital of France?"),
    ("assistant", "Paris is the capital of France. It lies on the Seine."),
)


def chatml(chat: Chat) -> str:
    """Qwen and others."""
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in chat)
    return f"{said}<|im_start|>assistant\n"


def llama_3(chat: Chat) -> str:
    """Llama 3."""
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    said = "".join(f"{head.format(role)}{text}<|eot_id|>" for role, text in chat)
    return f"<|begin_of_text|>{said}{head.format('assistant')}"


def llama_2(chat: Chat) -> str:
    """Llama 2: the system's text within the first question, between marks of its own."""
    return _inst(chat, "<<SYS>>\n{}\n<</SYS>>\n\n", "<s>")


def mistral(chat: Chat) -> str:
    """Mistral's first versions: the system's text is the first question's first paragraph."""
    return _inst(chat, "{}\n\n", "")


def gemma(chat: Chat) -> str:
    """Gemma: the system's text is the first question's first paragraph."""
    said, system = "<bos>", ""
    for role, text in chat:
        if role == "system":
            system = f"{text}\n\n"
            continue
        said += f"<start_of_turn>{'model' if role == 'assistant' else role}\n{system}{text}"
        said, system = f"{said}<end_of_turn>\n", ""
    return f"{said}<start_of_turn>model\n"


def phi_3(chat: Chat) -> str:
    """Phi 3."""
    return "".join(f"<|{role}|>\n{text}<|end|>\n" for role, text in chat) + "<|assistant|>\n"


def deepseek(chat: Chat) -> str:
    """DeepSeek."""
    marks = {
        "system": "{}",
        "user": "<｜User｜>{}",
        "assistant": "<｜Assistant｜>{}<｜end▁of▁sentence｜>",
    }
    said = "".join(marks[role].format(text) for role, text in chat)
    return f"<｜begin▁of▁sentence｜>{said}<｜Assistant｜>"


def vicuna(chat: Chat) -> str:
    """Vicuna, as FastChat writes it."""
    marks = {"system": "{} ", "user": "USER: {} ", "assistant": "ASSISTANT: {}</s>"}
    return "".join(marks[role].format(text) for role, text in chat) + "ASSISTANT:"


def _inst(chat: Chat, wrapped: str, begin: str) -> str:
    said, system = "" if begin else "<s>", ""
    for role, text in chat:
        if role == "system":
            system = wrapped.format(text)
        elif role == "user":
            said, system = f"{said}{begin}[INST] {system}{text} [/INST]", ""
        else:
            said += f" {text}</s>"
    return said


FORMATS: tuple[Callable[[Chat], str], ...] = (
    chatml, llama_3, llama_2, mistral, gemma, phi_3, deepseek, vicuna,
)  # fmt: skip
AROUND: dict[str, Chat] = {
    "question": (), "system": (("system", SYSTEM),), "turn": EARLIER,
    "system, turn": (("system", SYSTEM), *EARLIER),
}  # fmt: skip


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="ridge")
    parser.add_argument("--unread", action="store_true", help="ask about the rendered text")
    arguments = parser.parse_args()
    rows = sources(arguments.folder)["alpaca_eval"]
    train, test = half(rows, 0), half(rows, 1)
    predictor = make_predictor(arguments.model)
    predictor.fit(list(train["prompt"]), train["output_tokens"].to_numpy())
    questions, length = list(test["prompt"]), test["output_tokens"].to_numpy(float)
    read = capped_text if arguments.unread else served_text

    def asked(texts: list[str]) -> str:
        said = predictor.predict(texts)
        error = np.abs(said.predicted_tokens - length).mean()
        return f"{kendall_tau(said.order, length):.3f}, {error:.1f}"

    print(f"{arguments.model}, as they are: τ, mean absolute error {asked(questions)}")
    print(f"| format | {' | '.join(AROUND)} |\n|---|{'---:|' * len(AROUND)}")
    for form in FORMATS:
        cells = []
        for before in AROUND.values():
            texts = [read(form([*before, ("user", question)])) for question in questions]
            same = np.mean([one == other for one, other in zip(texts, questions, strict=True)])
            cells.append(f"{asked(texts)} ({same:.0%} read)")
        print(f"| {form.__name__} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
