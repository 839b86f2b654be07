"""What a probe on hidden states costs a model at size: of random weights, whose accuracy is none.

    python -m benchmarks.gpu_probe [--model 8b|3b|tiny] [--batch 32] [--context 1024] [--steps 64]

A decoder of a real architecture's shape (Llama 3.1 8B, Llama 3.2 3B) generates token by token with
its cache; the same steps run with a hook on the middle layer and a probe of TRAIL's size that looks
every 1, 8 and 32 tokens, in turns. Printed are medians in ms a step and what is added, and one
JSON line a row; of "probe" alone, the network and the update of the belief.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import transformers

from lengthwise.predictors.probe import Probe, Watch

SHAPES: dict[str, dict[str, int]] = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
           "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512},
}  # fmt: skip
EVERY = (1, 8, 32)
ROUNDS = 5


def main() -> None:
    """Prints rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_probe")
    parser.add_argument("--model", choices=SHAPES, default="8b")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=64)
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPES[given.model], max_position_embeddings=16384)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        made: Any = transformers.AutoModelForCausalLM
        model = made.from_config(config, dtype=dtype).eval()
    width = SHAPES[given.model]["hidden_size"]
    probe = Probe(width).to(device)
    prompts = torch.randint(0, 512, (given.batch, given.context), device=device)
    watches: dict[str, Callable[[], Any]] = {"none": nullcontext}
    for every in EVERY:
        watches[f"every {every}"] = lambda every=every: Watch(model, probe, every=every)
    took: dict[str, list[float]] = {name: [] for name in watches}
    for turn in range(ROUNDS + 1):
        for name, watch in watches.items():
            found = _steps(model, prompts, given.steps, watch)
            if turn:  # the first warms up
                took[name] += found
    plain = float(np.median(took["none"]))
    print(f"{given.model}, batch {given.batch}, context {given.context}, {device} "
          f"{torch.cuda.get_device_name() if device == 'cuda' else ''}")  # fmt: skip
    for name, times in took.items():
        mean, median = float(np.mean(times)), float(np.median(times))
        row = {"probe": name, "median_ms": median, "mean_ms": mean,
               "added": mean / float(np.mean(took["none"])) - 1}  # fmt: skip
        print(f"{name:10}{median:9.3f} ms a step, mean added {row['added']:+.2%}")
        print(json.dumps(row))
    states = torch.randn(given.batch, width, device=device, dtype=dtype)
    alone = []
    belief = probe.probabilities(states)
    for _ in range(200):
        begun = _now(device)
        belief = probe.after(belief, 1) * probe.probabilities(states)
        belief = belief / belief.sum(dim=1, keepdim=True)
        alone.append(1e3 * (_now(device) - begun))
    share = float(np.median(alone)) / plain
    print(json.dumps({"probe": "alone", "median_ms": float(np.median(alone)), "of_a_step": share}))


def _steps(model: Any, prompts: Any, steps: int, watch: Callable[[], Any]) -> list[float]:
    """Milliseconds of each decode step after the prompts."""
    took = []
    with watch(), torch.inference_mode():
        out = model(prompts, use_cache=True, logits_to_keep=1)
        for _ in range(steps):
            token = out.logits[:, -1:].argmax(dim=-1)
            begun = _now(prompts.device.type)
            out = model(token, past_key_values=out.past_key_values, logits_to_keep=1)
            took.append(1e3 * (_now(prompts.device.type) - begun))
    return took


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
