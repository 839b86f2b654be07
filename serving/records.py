"""What a run returns: flat records, one row a request; metrics are functions of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lengthwise.picoseconds import PS as PS

if TYPE_CHECKING:
    import pandas as pd


Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Records:
    """One entry a request, in the order of the workload; times in integer picoseconds.

    ``iterations`` is the log of engine iterations, kept only when it was asked for.
    """

    replica: Ints
    arrival_ps: Ints
    scheduled_ps: Ints  # start of the first iteration that computed any of its tokens
    first_token_ps: Ints
    finish_ps: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    predicted_tokens: Floats  # NaN where nothing was predicted
    preemptions: Ints
    recomputed_tokens: Ints  # tokens computed again after preemptions
    cached_tokens: Ints  # prompt tokens found in the prefix cache at first admission
    backend: str  # which engine ran it, "reference" or "fast" or "vllm"
    backend_reason: str = ""  # why, where the user left the choice
    iterations: Iterations | None = None

    @cached_property
    def visits(self) -> Visits:
        """Where each request was served: one visit a request, as no engine moves one between nodes.

        A request that was preempted, or held at the router, has one visit all the same.
        """
        count = len(self.replica)
        return Visits(
            request=np.arange(count), node=self.replica, stage=np.zeros(count, dtype=np.int8),
            start_ps=self.scheduled_ps, finish_ps=self.finish_ps,
        )  # fmt: skip

    def to_frame(self) -> pd.DataFrame:
        """A DataFrame with times in seconds: the columns that ``Result.requests`` documents."""
        import pandas as pd

        return pd.DataFrame(
            {
                "request_id": np.arange(len(self.replica)),
                "replica": self.replica,
                "arrival_s": self.arrival_ps / PS,
                "scheduled_s": self.scheduled_ps / PS,
                "first_token_s": self.first_token_ps / PS,
                "finish_s": self.finish_ps / PS,
                "prompt_tokens": self.prompt_tokens,
                "output_tokens": self.output_tokens,
                "predicted_tokens": self.predicted_tokens,
                "preemptions": self.preemptions,
                "recomputed_tokens": self.recomputed_tokens,
                "cached_tokens": self.cached_tokens,
            }
        )


STAGES = ("both",)  # prefill and decode in one place


@dataclass(frozen=True)
class Visits:
    """One entry a stay of a request at a node, by request and then time; times in picoseconds."""

    request: Ints
    node: Ints
    stage: NDArray[np.int8]  # place in ``STAGES``
    start_ps: Ints  # start of the first iteration there that computed any of its tokens
    finish_ps: Ints

    def to_frame(self) -> pd.DataFrame:
        """A DataFrame with times in seconds: the columns that ``Result.visits`` documents."""
        import pandas as pd

        return pd.DataFrame(
            {
                "request_id": self.request,
                "node": self.node,
                "stage": pd.Categorical.from_codes(self.stage, categories=pd.Index(STAGES)),
                "start_s": self.start_ps / PS,
                "finish_s": self.finish_ps / PS,
            }
        )


@dataclass(frozen=True)
class Iterations:
    """One entry an engine iteration, in the order in which they started; times in picoseconds."""

    replica: Ints
    start_ps: Ints
    duration_ps: Ints
    prefill_tokens: Ints
    decode_seqs: Ints
    running: Ints  # requests in the batch once it was scheduled
    waiting: Ints
    used_blocks: Ints
    preempted: Ints

    def to_frame(self) -> pd.DataFrame:
        """A DataFrame of the log, times in seconds."""
        import pandas as pd

        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("start", "duration"):
            columns[f"{name}_s"] = columns.pop(f"{name}_ps") / PS
        return pd.DataFrame(columns)
