"""Which batches a sweep runs: designed shapes, drawn with a seed, most needed first."""

from __future__ import annotations

from typing import Any

import numpy as np

SIZES = (2048, 1792, 1536, 1280, 1024, 896, 768, 640, 576, 512, 448, 384, 320, 288, 272, 256, 248,
         240, 232, 224, 216, 208, 200, 192, 184, 176, 168, 160, 152, 144, 136, 128, 120, 112, 104,
         96, 88, 80, 72, 64, 60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 14, 12, 10, 8, 7,
         6, 5, 4, 3, 2, 1)  # fmt: skip
MIXED_SIZES = (768, 512, 384, 256, 224, 192, 160, 128, 96, 64, 48, 32, 16, 8, 4, 1)
CONTEXTS = (1024, 256, 3072, 8192, 24_000)
# Batches beyond the largest CUDA graph need contexts so short that their sequences fit.
GRAPHED, SHORT = 512, (64, 256)
USUAL = 2048  # tokens: most iterations of a plan have up to so many, whatever the budget allows


def sweep_plan(
    kv_tokens: int,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    max_model_len: int,
    *,
    seed: int = 0,
    thoroughness: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups for ``vllm_sweep.Sweep``; ``thoroughness`` scales the batches of each regime."""
    rng = np.random.default_rng(seed)
    # A burst first: it warms up the engine and fills the cache with real keys and values.
    plan: list[dict[str, Any]] = [_burst(rng, round(150 * thoroughness), max_model_len)]
    plan.append(_prefill(rng, max_num_batched_tokens, max_model_len, thoroughness))
    repeat = max(4, round(8 * thoroughness))
    for place, context in enumerate(CONTEXTS):
        if place == 1:
            plan += _decode_large(kv_tokens, max_num_seqs, repeat)
            plan += _mixed_large(rng, kv_tokens, max_num_batched_tokens, max_num_seqs)
        plan += _decode(rng, context, kv_tokens, max_num_seqs, max_model_len, repeat)
        if context <= 8192:
            plan += _mixed(
                rng, context, kv_tokens, max_num_batched_tokens, max_num_seqs, max_model_len,
                round(16 * thoroughness),
            )  # fmt: skip
    plan.append(_burst(rng, round(250 * thoroughness), max_model_len))
    return plan


def batches(group: dict[str, Any], max_num_batched_tokens: int) -> int:
    """How many iterations a group has; of a burst, about: its prompts and its longest answer."""
    if "requests" in group:
        prompts, answers = zip(*group["requests"], strict=True)
        return int(sum(prompts) // max_num_batched_tokens + max(answers))
    return int(sum(repeat for _, repeat, _ in group["steps"]))


def _burst(rng: np.random.Generator, requests: int, max_model_len: int) -> dict[str, Any]:
    prompt = np.exp(rng.uniform(np.log(16), np.log(min(4000, max_model_len // 4)), requests))
    output = np.exp(rng.uniform(np.log(4), np.log(400), requests))
    return {"requests": np.rint(np.column_stack([prompt, output])).astype(int).tolist()}


def _prefill(
    rng: np.random.Generator, budget: int, max_model_len: int, thoroughness: float
) -> dict[str, Any]:
    """Chunks alone: one of every size class, then several, then some late in a long prompt."""
    steps: list[Any] = []
    sizes = np.unique(
        np.concatenate(
            [
                [2, 4, 8, 16, 24, 32, 48],
                np.arange(64, 513, 32),
                np.arange(576, 2049, 128),
                np.arange(3072, budget + 1, 1024),
            ]
        )
    )
    steps += [[0, 3, [[int(size), 0]]] for size in sizes if size <= budget]
    for _ in range(round(60 * thoroughness)):
        total = int(np.exp(rng.uniform(np.log(16), np.log(min(USUAL, budget)))))
        steps.append([0, 2, _chunks(rng, total, max_model_len)])
    for _ in range(round(10 * thoroughness) if budget > USUAL else 0):
        steps.append([0, 2, _chunks(rng, _large(rng, budget), max_model_len)])
    for before in (2048, 8192, 16_384, 30_000):
        for tokens in (128, 512, 2048):
            if before + tokens < max_model_len and tokens <= budget:
                steps.append([0, 3, [[tokens, before]]])
    return {"context": [], "steps": steps}


def _decode(
    rng: np.random.Generator,
    context: int,
    kv_tokens: int,
    max_num_seqs: int,
    max_model_len: int,
    repeat: int,
) -> list[dict[str, Any]]:
    """Decoding alone, shrinking from the largest batch that fits; even and uneven contexts."""
    groups = []
    for uneven in (False, True):
        contexts = _contexts(rng, context, uneven, kv_tokens, max_num_seqs, max_model_len)
        sizes = [n for n in SIZES if n <= len(contexts)]
        if uneven:
            sizes = sizes[::3]
        groups.append({"context": contexts, "steps": [[n, repeat, []] for n in sizes]})
    return groups


def _decode_large(kv_tokens: int, max_num_seqs: int, repeat: int) -> list[dict[str, Any]]:
    """Decoding alone beyond the largest CUDA graph, as far as seats and KV cache go."""
    groups = []
    for context in SHORT:
        fits = int(min(max_num_seqs, kv_tokens * 0.9 // (context + 100)))
        sizes = [n for n in SIZES if GRAPHED < n <= fits]
        if sizes:
            steps = [[n, repeat, []] for n in (*sizes, GRAPHED)]
            groups.append({"context": [context] * fits, "steps": steps})
    return groups


def _mixed(
    rng: np.random.Generator,
    context: int,
    kv_tokens: int,
    budget: int,
    max_num_seqs: int,
    max_model_len: int,
    draws: int,
) -> list[dict[str, Any]]:
    """Decoding beside prefill chunks of every total, some of them late in a long prompt."""
    # chunks need some, and keep them for two iterations
    seats = max(max_num_seqs - 32, max_num_seqs // 2, 1)
    contexts = _contexts(rng, context, True, kv_tokens * 3 // 4, seats, max_model_len)
    most = min(budget, kv_tokens // 8)  # what a chunk takes of the cache is not the sequences'
    steps: list[Any] = []
    for n in (n for n in MIXED_SIZES if n <= len(contexts)):
        for _ in range(draws):
            low, high = np.log(n + 16), np.log(min(USUAL, budget))
            total = int(np.exp(rng.uniform(low, high))) - n
            steps.append([n, 2, _chunks(rng, total, max_model_len)])
        steps.append([n, 3, [[min(USUAL, budget) - n, 0]]])
        for _ in range(draws // 8 if most > 4096 and n in MIXED_SIZES[::3] else 0):
            steps.append([n, 2, _chunks(rng, _large(rng, most) - n, max_model_len)])
        if budget >= 4096:
            steps.append([n, 2, [[4096 - n, 0]]])
    return [{"context": contexts, "steps": steps}]


def _mixed_large(
    rng: np.random.Generator, kv_tokens: int, budget: int, max_num_seqs: int
) -> list[dict[str, Any]]:
    """Many decoding sequences of short contexts beside chunks that are not late."""
    grows = 30  # tokens that a sequence makes until the group ends
    room = int((kv_tokens * 0.9 - 3 * budget) // (SHORT[0] + grows))
    sizes = [n for n in MIXED_SIZES if 256 < n <= min(room, max_num_seqs - 32, budget // 2)]
    steps = [
        [n, 2, [[_large(rng, budget) - n if k % 3 == 2 else int(rng.integers(16, budget // 4)), 0]]]
        for n in sizes
        for k in range(5 if budget > USUAL else 2)
    ]
    return [{"context": [SHORT[0]] * sizes[0], "steps": steps}] if steps else []


def _large(rng: np.random.Generator, most: int) -> int:
    """A total between the usual largest and the budget."""
    return int(np.exp(rng.uniform(np.log(USUAL), np.log(most))))


def _contexts(
    rng: np.random.Generator,
    context: int,
    uneven: bool,
    kv_tokens: int,
    max_num_seqs: int,
    max_model_len: int,
) -> list[int]:
    """Contexts of as many sequences as fit, ``context`` on average."""
    fits = int(min(max_num_seqs, kv_tokens * 0.9 // (context + 600)))
    if not uneven:
        return [min(context, max_model_len - 1024)] * fits
    drawn = rng.lognormal(-0.32, 0.8, fits) * context  # mean 1, as ragged as a conversation mix
    drawn *= min(1.0, kv_tokens * 0.9 / max(drawn.sum() + 600 * fits, 1))
    return [int(c) for c in np.clip(drawn, 16, max_model_len - 1024)]


def _chunks(rng: np.random.Generator, total: int, max_model_len: int) -> list[list[int]]:
    """``total`` tokens in one to six chunks, every third late in its prompt."""
    pieces = min(int(rng.choice([1, 1, 1, 2, 3, 4, 6])), max(total // 8, 1))
    cuts = np.sort(rng.choice(np.arange(1, max(total, 2)), pieces - 1, replace=False))
    sizes = np.diff(np.concatenate([[0], cuts, [total]])).astype(int)
    chunks = []
    for size in sizes.tolist():
        before = 0
        if rng.random() < 1 / 3:
            before = int(np.exp(rng.uniform(np.log(64), np.log(8192))))
        chunks.append([size, min(before, max_model_len - 16 - size)])
    return chunks
