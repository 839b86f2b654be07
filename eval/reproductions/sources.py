"""Workloads that papers describe and no preset is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lengthwise.eval.source import Spelled
from lengthwise.workload import Workload


@dataclass(frozen=True)
class Within:
    """A source's requests, but prompts of at most ``prompt`` tokens and, with their answers, of at
    most ``total``: what is longer is cut, as a model's context or a benchmark's limit does.
    """

    source: Spelled
    prompt: int
    total: int

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    def load(self, rate: float | None, seed: int) -> Workload:
        """Draws it."""
        whole = self.source.load(rate, seed)
        prompt = np.minimum(whole["prompt_tokens"], self.prompt)
        output = np.minimum(whole["output_tokens"], self.total - prompt)
        return whole.replace(prompt_tokens=prompt, output_tokens=output)
