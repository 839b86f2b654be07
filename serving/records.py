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

    Of a request that lost its node, times but for the arrival and cached tokens are of the stay in
    which it was served; preemptions and recomputed tokens are of all stays.

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
    lost: Ints | None = None  # (visits, LOST): stays at nodes that failed, by request and time
    moved: Ints | None = None  # (transfers, TRANSFER): of KV between nodes, by request

    @cached_property
    def retries(self) -> Ints:
        """How often each request lost its node and went back to the router, (n,)."""
        return np.bincount(self._lost[:, 0], minlength=len(self.replica))

    @cached_property
    def lost_tokens(self) -> Ints:
        """Tokens of each request that were generated and lost with a node, (n,)."""
        return lost_sums(self._lost, "lost_tokens", len(self.replica))

    @property
    def _lost(self) -> Ints:
        return no_visits() if self.lost is None else self.lost

    @cached_property
    def visits(self) -> Visits:
        """Where each request was: one visit where it was served, and one before for each node that
        failed while it was there. One that was handed over has two, of stages prefill and decode.

        A request that was preempted, or held at the router, has no more visits for it.
        """
        if self.moved is not None:
            return self._stages(self.moved)
        count, lost = len(self.replica), self._lost
        request = np.concatenate((np.arange(count), lost[:, 0]))
        finish_ps = np.concatenate((self.finish_ps, lost[:, 3]))
        order = np.lexsort((finish_ps, np.arange(len(request)) < count, request))
        ends = np.arange(len(request)) < count
        return Visits(
            request=request[order], node=np.concatenate((self.replica, lost[:, 1]))[order],
            stage=np.zeros(len(request), dtype=np.int8),
            start_ps=np.concatenate((self.scheduled_ps, lost[:, 2]))[order],
            finish_ps=finish_ps[order], finished=ends[order],
            lost_tokens=np.concatenate((np.zeros(count, np.int64), lost[:, 4]))[order],
        )  # fmt: skip

    def _stages(self, moved: Ints) -> Visits:
        """The visits where prefill and decode have nodes of their own, and none fails."""
        count, columns = len(self.replica), transfer_columns(moved)
        start_ps, stage = self.scheduled_ps.copy(), np.zeros(count, dtype=np.int8)
        start_ps[columns["request"]] = columns["decode_ps"]
        stage[columns["request"]] = STAGES.index("decode")
        request = np.concatenate((np.arange(count), columns["request"]))
        order = np.lexsort((np.arange(len(request)) < count, request))
        return Visits(
            request=request[order],
            node=np.concatenate((self.replica, columns["source"]))[order],
            stage=np.concatenate(
                (stage, np.full(len(moved), STAGES.index("prefill"), dtype=np.int8))
            )[order],
            start_ps=np.concatenate((start_ps, self.scheduled_ps[columns["request"]]))[order],
            finish_ps=np.concatenate((self.finish_ps, columns["ready_ps"]))[order],
            finished=np.ones(len(request), dtype=np.bool_),
            lost_tokens=np.zeros(len(request), np.int64),
        )

    def transfers_frame(self) -> pd.DataFrame:
        """A DataFrame of KV transfers, times in seconds: as ``Result.transfers`` documents."""
        import pandas as pd

        rows = np.zeros((0, len(TRANSFER)), np.int64) if self.moved is None else self.moved
        columns = transfer_columns(rows)
        return pd.DataFrame(
            {
                "request_id": columns["request"],
                "source": columns["source"],
                "target": columns["target"],
                "ready_s": columns["ready_ps"] / PS,
                "start_s": columns["start_ps"] / PS,
                "end_s": columns["end_ps"] / PS,
                "bytes": columns["bytes"],
            }
        )

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
                "retries": self.retries,
                "lost_tokens": self.lost_tokens,
            }
        )


STAGES = ("both", "prefill", "decode")  # both: prefill and decode in one place


@dataclass(frozen=True)
class Visits:
    """One entry a stay of a request at a node, by request and then time; times in picoseconds."""

    request: Ints
    node: Ints
    stage: NDArray[np.int8]  # place in ``STAGES``
    start_ps: Ints  # start of the first iteration there that computed any of its tokens; -1: none
    finish_ps: Ints  # when it was done, or when the router knew that the node had failed
    finished: NDArray[np.bool_]  # its stage was done there, rather than lost
    lost_tokens: Ints  # generated there, and lost as it failed

    def to_frame(self) -> pd.DataFrame:
        """A DataFrame with times in seconds: the columns that ``Result.visits`` documents."""
        import pandas as pd

        return pd.DataFrame(
            {
                "request_id": self.request,
                "node": self.node,
                "stage": pd.Categorical.from_codes(self.stage, categories=pd.Index(STAGES)),
                "start_s": np.where(self.start_ps < 0, np.nan, self.start_ps / PS),
                "finish_s": self.finish_ps / PS,
                "finished": self.finished,
                "lost_tokens": self.lost_tokens,
            }
        )


# A stay at a node that failed: what the engines write down of it.
LOST = (
    "request", "node", "start_ps", "finish_ps", "lost_tokens", "preemptions", "recomputed_tokens",
)  # fmt: skip


# A transfer of KV: what the engines write down of it. Its prefill ended at ``ready_ps``;
# ``decode_ps`` is the start of the first iteration at the target that computed any of its tokens.
TRANSFER = (
    "request", "source", "target", "ready_ps", "start_ps", "end_ps", "bytes", "decode_ps",
)  # fmt: skip


def transfer_columns(moved: Ints) -> dict[str, Ints]:
    """The columns of (transfers, TRANSFER) by name."""
    return dict(zip(TRANSFER, moved.T, strict=True))


def no_visits() -> Ints:
    """(0, LOST)"""
    return np.zeros((0, len(LOST)), np.int64)


def with_lost(found: Ints, lost: Ints, column: str) -> Ints:
    """What was counted of each request where it was served, and of its stays before, (n,)."""
    return found + lost_sums(lost, column, len(found)) if len(lost) else found


def lost_sums(lost: Ints, column: str, requests: int) -> Ints:
    """A column of ``LOST`` summed over each request's stays at nodes that failed, (requests,)."""
    sums = np.zeros(requests, np.int64)
    np.add.at(sums, lost[:, 0], lost[:, LOST.index(column)])
    return sums


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
