"""A recorder's rows from an engine whose every time is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lengthwise.serving.timing.columns import COLUMNS
from lengthwise.serving.timing.profile import capture_sizes, padded

GRAPHS = capture_sizes(256, 2048)
BASE, PER_SEQ, CONTEXT = 5e-3, 15e-6, 29e-9
MIXED_BASE, PER_TOKEN, MIXED_CONTEXT, PAIR = 5e-3, 22e-6, 31e-9, 0.9e-9
LAUNCH_DECODE, LAUNCH_GRAPH, LAUNCH_EAGER = 2.3e-3, 6e-3, 16e-3


def recorded(
    plan: list[dict[str, Any]], seed: int = 0, slow_cpu: bool = False, began_s: float = 0.0
) -> pd.DataFrame:
    """What the recorder would write for an engine with known times, with 1% of noise.

    Of the plan's designed batches; bursts are left out.
    """
    rng = np.random.default_rng(seed)
    rows, done, free = [], began_s, began_s
    shapes = []
    for label, group in enumerate(plan):
        for n, repeat, chunks in group.get("steps", []):
            for _ in range(repeat):
                context = sum(group["context"][:n]) + n
                pairs = sum(t * b + t * (t + 1) // 2 for t, b in chunks)
                longest = max([*group["context"][:n], *(t + b for t, b in chunks)])
                shapes.append((label, n, context, chunks, pairs, longest))
    pending: tuple[int, float] | None = None
    for k, (label, n, context, chunks, pairs, longest) in enumerate(shapes):
        tokens = sum(t for t, _ in chunks)
        size = int(padded(np.array([n + tokens]), GRAPHS)[0])
        slow = 1.5 if slow_cpu and (k // 60) % 2 else 1.0
        if chunks:
            work = MIXED_BASE + PER_TOKEN * size + MIXED_CONTEXT * context + PAIR * pairs
            launch = (LAUNCH_GRAPH if size <= GRAPHS[-1] else LAUNCH_EAGER) * slow
        else:
            work = BASE + PER_SEQ * size + CONTEXT * context
            launch = LAUNCH_DECODE * slow
        work *= rng.lognormal(0, 0.01)
        scheduled = done + 3e-4
        start = max(free, scheduled + min(1.5e-3 * slow, launch))
        ends = max(start + work, scheduled + launch + 5e-4)
        if pending is not None:
            done = max(free, scheduled + launch)
            rows[pending[0]][2:4] = [done, done + 2e-4]
            done += 2e-4
        rows.append(
            [scheduled - 2e-4, scheduled, -1.0, -1.0, tokens, len(chunks), n, context, pairs,
             longest, n + len(chunks), 0, 0, len(chunks), 0, label]
        )  # fmt: skip
        free, pending = ends, (k, ends)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    for column in ("schedule_ns", "scheduled_ns", "done_ns", "updated_ns"):
        frame[column] = (frame[column] * 1e9).round().astype(np.int64)
    return frame
