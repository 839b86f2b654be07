"""A sweep of designed batches, generated inside vLLM's scheduler, one batch an iteration.

Decoding sequences start with their context marked as computed already, so that a batch of any
size and context stands after one iteration; their KV cache holds whatever was there.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.v1.request import Request, RequestStatus


class Sweep:
    """Runs a plan: a list of groups.

    A group ``{"context": [c, ...], "steps": [[n, repeat, [[tokens, before], ...]], ...]}`` starts
    one decoding sequence for each context; each step runs the first n of them ``repeat`` times,
    each time beside new prefill chunks of ``tokens`` tokens after ``before`` computed ones (n must
    not grow within a group). A group ``{"requests": [[prompt, output], ...]}`` is a burst that the
    scheduler batches as it likes. No group starts after ``seconds``.
    """

    def __init__(self, scheduler: Any, command: dict[str, Any]) -> None:
        self.done = False
        self._scheduler = scheduler
        self._groups = json.loads(Path(command["sweep"]).read_text("utf-8"))
        self._deadline = time.monotonic() + command["seconds"]
        self._sampling = command.get("sampling", {})
        self._seed = command.get("seed", 0)
        rng = np.random.default_rng(self._seed)
        vocabulary = scheduler.vllm_config.model_config.get_vocab_size()
        self._tokens = rng.integers(0, vocabulary, 1 << 18).tolist()
        self._group = self._step = self._count = self._made = 0
        self._decoders: list[str] = []
        self._burst: set[str] = set()
        self._ours: set[str] = set()
        self._caching = scheduler.kv_cache_manager.enable_caching
        scheduler.kv_cache_manager.enable_caching = False  # these requests carry no block hashes
        # from 0.30 or so on, what was computed is cached without a look at that flag
        self._coordinator = scheduler.kv_cache_manager.coordinator
        self._coordinator.cache_blocks = lambda *_, **__: None

    def before_schedule(self) -> int:
        """Puts the next batch together; returns its group's number, or -1."""
        while not self.done:
            if self._group == len(self._groups) or time.monotonic() > self._deadline:
                # all of them: the cache manager must not see one of these requests again
                self._abort([name for name in self._scheduler.requests if name in self._ours])
                self._scheduler.kv_cache_manager.enable_caching = self._caching
                del self._coordinator.cache_blocks  # the class's own again
                self.done = True
                return -1
            group = self._groups[self._group]
            if "requests" in group:
                if self._step == 0:
                    self._burst = {self._add(0, p, n) for p, n in group["requests"]}
                    self._step = 1
                self._burst &= self._scheduler.requests.keys()
                if len(self._burst) > 2:
                    return self._group
                self._abort(list(self._burst))
                self._burst = set()
            elif self._next_step(group):
                return self._group
            self._group, self._step, self._count = self._group + 1, 0, 0
        return -1

    def _next_step(self, group: dict[str, Any]) -> bool:
        if self._step == len(group["steps"]):
            self._abort(self._decoders)
            self._decoders = []
            return False
        sequences, repeat, chunks = group["steps"][self._step]
        if self._step == 0 and self._count == 0:
            self._decoders = [self._add(c, 1, 1 << 14) for c in group["context"][:sequences]]
        if len(self._decoders) > sequences:
            self._abort(self._decoders[sequences:])
            del self._decoders[sequences:]
        for tokens, before in chunks:
            self._add(before, tokens, 1)
        self._count += 1
        if self._count >= repeat:
            self._step, self._count = self._step + 1, 0
        return True

    def _add(self, computed: int, tokens: int, output: int) -> str:
        """A request with ``computed`` tokens in the cache and ``tokens`` of its prompt to go."""
        self._made += 1
        length = computed + tokens
        start = (self._made * 7919) % (len(self._tokens) - length)
        name = f"sweep{self._seed}n{self._made}"
        request = Request(
            request_id=name,
            prompt_token_ids=self._tokens[start : start + length],
            sampling_params=SamplingParams(
                max_tokens=output, ignore_eos=True, detokenize=False, **self._sampling
            ),
            pooling_params=None,
        )
        self._ours.add(name)
        self._scheduler.add_unrecorded(request)
        request.num_computed_tokens = computed
        return name

    def _abort(self, names: list[str]) -> None:
        if names:
            self._scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)
