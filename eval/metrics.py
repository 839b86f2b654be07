"""Metrics of a run by their standard names: pure functions of its records.

Times are in seconds. Percentiles interpolate linearly between order statistics (numpy's default).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.serving.records import PS, Iterations, Records, transfer_columns
from lengthwise.workload import Workload

Floats = NDArray[np.float64]

PERCENTILES = (50, 90, 95, 99)
STATISTICS = ("mean", *(f"p{p}" for p in PERCENTILES), "max")


def ttft_s(records: Records) -> Floats:
    """Time to first token: arrival to the end of the iteration that gave it, shape (n,)."""
    return (records.first_token_ps - records.arrival_ps) / PS


def e2e_s(records: Records) -> Floats:
    """End-to-end latency: arrival to last token, shape (n,)."""
    return (records.finish_ps - records.arrival_ps) / PS


def tpot_s(records: Records) -> Floats:
    """Time per output token after the first, shape (n,); NaN for answers of one token."""
    steps = (records.output_tokens - 1).astype(np.float64)
    decoding = (records.finish_ps - records.first_token_ps) / PS
    tpot: Floats = np.full(len(steps), np.nan)
    np.divide(decoding, steps, out=tpot, where=steps > 0)
    return tpot


def normalized_latency_s(records: Records) -> Floats:
    """End-to-end latency per output token, s/token (Orca, OSDI 2022), shape (n,)."""
    return e2e_s(records) / records.output_tokens


def wait_s(records: Records) -> Floats:
    """Queueing delay: arrival to the start of the first iteration that computed a token, (n,)."""
    return (records.scheduled_ps - records.arrival_ps) / PS


def makespan_s(records: Records) -> float:
    """First arrival to last finish: the time that throughput at 100% completion divides by."""
    return float(records.finish_ps.max() - records.arrival_ps.min()) / PS


PER_REQUEST = {
    "ttft": ttft_s,
    "tpot": tpot_s,
    "e2e": e2e_s,
    "normalized_latency": normalized_latency_s,
    "wait": wait_s,
}
# One number of a run, e.g. "ttft_p99": the statistic of a metric over requests, in its unit.
OF_REQUESTS = tuple(f"{name}_{statistic}" for name in PER_REQUEST for statistic in STATISTICS)

# Every name that ``summary`` may find, without its unit; of tasks with an SLO there are more.
OF_RUNS = (
    *(f"{name}_{statistic}" for name in (*PER_REQUEST, "slowdown", "itl")
      for statistic in STATISTICS),
    "requests", "makespan", "throughput_requests_per_s", "throughput_tokens_per_s", "preemptions",
    "recomputed_tokens", "downtime", "retries", "lost_tokens", "jain_index", "slo_attainment",
    "goodput", "deadline_attainment", "deadline_goodput", "lateness_max", "service_gap_mean",
    "service_gap_max", "tenant_slowdown_max", "tenant_jain_index", "kv_utilization_mean",
    "kv_utilization_max", "transfers", "transferred_gb", "transfer_mean", "transfer_max",
)  # fmt: skip


def itl_s(iterations: Iterations) -> tuple[Floats, Floats]:
    """Inter-token latencies: iteration durations (s) and how many tokens each one spaces.

    A decoding request receives one token an iteration, so the gap before it lasts that iteration.
    Gaps of preempted requests, which span the iterations they sat out, are not among them.
    """
    decoding = iterations.decode_seqs > 0
    return iterations.duration_ps[decoding] / PS, iterations.decode_seqs[decoding].astype(float)


def weighted_percentile(values: ArrayLike, weights: ArrayLike, percent: float) -> float:
    """The smallest value with at least ``percent`` of the weight at or below it."""
    order = np.argsort(np.asarray(values), kind="stable")
    cumulative = np.cumsum(np.asarray(weights, dtype=np.float64)[order])
    at = np.searchsorted(cumulative, percent / 100 * cumulative[-1] * (1 - 1e-12))
    return float(np.asarray(values)[order][min(at, len(order) - 1)])


def describe(name: str, values: Floats) -> dict[str, float]:
    """``name_mean``, ``name_p50`` ... ``name_max`` over the values that are not NaN."""
    known = values[~np.isnan(values)]
    if not len(known):
        return {f"{name}_{statistic}": float("nan") for statistic in STATISTICS}
    percentiles = np.percentile(known, PERCENTILES)
    return dict(
        zip(
            (f"{name}_{statistic}" for statistic in STATISTICS),
            map(float, (known.mean(), *percentiles, known.max())),
            strict=True,
        )
    )


def of_requests(name: str, records: Records) -> float:
    """One of ``OF_REQUESTS``, over the requests that have the metric; NaN where none has."""
    metric, _, statistic = name.rpartition("_")
    values = PER_REQUEST[metric](records)
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan")
    if statistic == "mean":
        return float(known.mean())
    return float(np.percentile(known, 100 if statistic == "max" else int(statistic[1:])))


def jain_index(values: ArrayLike) -> float:
    """Jain's fairness index, (sum x)^2 / (n sum x^2): 1 is equal, 1/n is one takes all."""
    x = np.asarray(values, dtype=np.float64)
    squares = float(np.square(x).sum())
    return float(x.sum() ** 2 / (len(x) * squares)) if squares > 0 else 1.0


def parse_slo(text: str, allowed: tuple[str, ...]) -> dict[str, float]:
    """``ttft=1.0,tpot=0.05`` as a dict of limits in seconds; names must be in ``allowed``.

    ``chat.ttft=0.5`` is a limit of the requests whose ``task`` is chat.
    """
    limits: dict[str, float] = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        if name.rpartition(".")[2] not in allowed:
            raise UnknownNameError("SLO metric", name, allowed)
        try:
            limits[name] = float(value)
        except ValueError:
            raise InputError(f"SLO {item!r}: expected {name}=SECONDS") from None
        if not limits[name] > 0:
            raise InputError(f"SLO {item!r}: the limit must be a positive number of seconds")
    if not limits:
        raise InputError(f"an SLO needs at least one NAME=SECONDS of {', '.join(allowed)}")
    return limits


def meets_slo(
    records: Records, slo: Mapping[str, float], tasks: NDArray[Any] | None = None
) -> NDArray[np.bool_]:
    """Which requests meet every limit that is theirs, shape (n,).

    ``chat.ttft`` is a limit of the requests whose task, (n,), is chat, and of no others. An answer
    of one token has no TPOT to miss. Raises ``InputError`` for a task that no request has.
    """
    met = np.ones(len(records.output_tokens), dtype=bool)
    for name, limit in slo.items():
        task, _, metric = name.rpartition(".")
        if metric not in PER_REQUEST:
            raise UnknownNameError("SLO metric", name, PER_REQUEST)
        values = PER_REQUEST[metric](records)
        met &= np.isnan(values) | (values <= limit) | ~_of_task(task, tasks, len(met))
    return met


def _of_task(task: str, tasks: NDArray[Any] | None, count: int) -> NDArray[np.bool_]:
    """The requests of a task, (n,); all of them for the task ""."""
    if not task:
        return np.ones(count, dtype=bool)
    if tasks is None:
        raise InputError(f"an SLO of task {task!r}: the workload has no column task")
    named = np.array([str(one) for one in tasks])
    if not (named == task).any():
        raise UnknownNameError("task of an SLO", task, sorted(set(named.tolist())))
    mine: NDArray[np.bool_] = named == task
    return mine


def kv_utilization(iterations: Iterations, num_gpu_blocks: ArrayLike) -> dict[str, float]:
    """Share of KV blocks in use: the mean over time and blocks (idle time counts as 0), the max.

    ``num_gpu_blocks`` (nodes,) are the blocks that each node has. The mean runs from the first
    iteration's start to the last one's end.
    """
    blocks, start = np.atleast_1d(np.asarray(num_gpu_blocks)), iterations.start_ps
    span = float((start + iterations.duration_ps).max() - start.min())
    used = float((iterations.used_blocks * (iterations.duration_ps / span)).sum())
    return {
        "kv_utilization_mean": used / int(blocks.sum()),
        "kv_utilization_max": float((iterations.used_blocks / blocks[iterations.replica]).max()),
    }


def service_gap(
    records: Records,
    tenants: NDArray[Any],
    *,
    window_s: float = 60.0,
    input_weight: float = 1.0,
    output_weight: float = 2.0,
    shares: Floats | None = None,
) -> dict[str, float]:
    """How unevenly tenants that all have work are served, in weighted tokens a window.

    VTC (Sheng et al., OSDI 2024, section 5.1): service is ``input_weight`` per prompt token plus
    ``output_weight`` per output token; the gap of a window is the difference between the most and
    the least served of the tenants that had unfinished requests throughout it. A request's service
    is spread evenly over its prefill and over its decoding. NaN where no window had two such
    tenants. With ``shares`` (n,), the weights of requests' tenants, service is over the weight.
    """
    arrival, finish = records.arrival_ps / PS, records.finish_ps / PS
    scheduled, first = records.scheduled_ps / PS, records.first_token_ps / PS
    edges = np.arange(arrival.min(), finish.max() + window_s, window_s)
    # names as text: as they are, NaN is nobody's and a list has no hash
    row_of = {name: row for row, name in enumerate(sorted({str(name) for name in tenants}))}
    rows = np.array([row_of[str(name)] for name in tenants])
    served = np.full((len(row_of), len(edges) - 1), np.nan)
    for row in row_of.values():
        mine = rows == row
        prompt = _served(
            scheduled[mine], first[mine], input_weight * records.prompt_tokens[mine], edges
        )
        output = _served(
            first[mine], finish[mine], output_weight * records.output_tokens[mine], edges
        )
        backlogged = _covered(arrival[mine], finish[mine], edges)
        share = 1.0 if shares is None else float(shares[mine][0])
        served[row, backlogged] = np.diff(prompt + output)[backlogged] / share
    several = (~np.isnan(served)).sum(axis=0) >= 2
    if not several.any():
        return {"service_gap_mean": float("nan"), "service_gap_max": float("nan")}
    gaps = np.nanmax(served[:, several], axis=0) - np.nanmin(served[:, several], axis=0)
    return {"service_gap_mean": float(gaps.mean()), "service_gap_max": float(gaps.max())}


def by_tenant(slowdown: Floats, tenants: NDArray[Any]) -> dict[str, float]:
    """How unevenly tenants are slowed down: from requests' slowdowns, (n,).

    ``tenant_slowdown_max`` is the mean slowdown of the tenant that has the largest, and
    ``tenant_jain_index`` Jain's index of all tenants' mean slowdowns.
    """
    named = np.array([str(name) for name in tenants])
    means = np.array([slowdown[named == name].mean() for name in sorted(set(named.tolist()))])
    return {
        "tenant_slowdown_max": float(means.max()), "tenant_jain_index": jain_index(means),
    }  # fmt: skip


def deadlines(records: Records, deadline_s: Floats) -> dict[str, float]:
    """How many answers are whole by their deadline (n,), s, how many a second, and how late."""
    late = records.finish_ps / PS - deadline_s
    met = int((late <= 0).sum())
    return {
        "deadline_attainment": met / len(late),
        "deadline_goodput_requests_per_s": met / makespan_s(records),
        "lateness_max_s": float(late.max()),
    }


def told_by(workload: Workload) -> dict[str, Any]:
    """What ``summary`` takes of a workload's columns: tenants, shares, deadline_s and tasks."""
    names = {
        "tenants": "tenant", "shares": "tenant_weight", "deadline_s": "deadline_s", "tasks": "task",
    }  # fmt: skip
    return {key: workload[name] for key, name in names.items() if name in workload}


def _served(start: Floats, end: Floats, amount: Floats, at: Floats) -> Floats:
    """Total service given until each time in ``at``, each request's spread over [start, end]."""
    end = np.maximum(end, start + 1e-9)
    rate = amount / (end - start)
    when = np.concatenate((start, end))
    order = np.argsort(when, kind="stable")
    when, slope = when[order], np.cumsum(np.concatenate((rate, -rate))[order])
    total = np.concatenate(([0.0], np.cumsum(slope[:-1] * np.diff(when))))
    return np.interp(at, when, total)


def _covered(start: Floats, end: Floats, edges: Floats) -> NDArray[np.bool_]:
    """Which windows between ``edges`` lie wholly inside the union of [start, end]."""
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    last = np.searchsorted(start, edges[:-1], side="right") - 1
    covered = np.zeros(len(edges) - 1, dtype=bool)
    for window in np.flatnonzero(last >= 0):
        until, nxt = reach[last[window]], last[window] + 1
        while until < edges[window + 1] and nxt < len(start) and start[nxt] <= until:
            until, nxt = reach[nxt], nxt + 1
        covered[window] = until >= edges[window + 1]
    return covered


def _transferred(moved: NDArray[np.int64]) -> dict[str, float]:
    """What rows of ``records.TRANSFER`` come to."""
    of = transfer_columns(moved)
    found = {"transfers": float(len(moved)), "transferred_gb": float(of["bytes"].sum()) / 1e9}
    if len(moved):
        took_s = (of["end_ps"] - of["ready_ps"]) / PS
        found |= {"transfer_mean_s": float(took_s.mean()), "transfer_max_s": float(took_s.max())}
    return found


def summary(
    records: Records,
    *,
    alone_s: Floats | None = None,
    slo: Mapping[str, float] | None = None,
    tenants: NDArray[Any] | None = None,
    shares: Floats | None = None,
    deadline_s: Floats | None = None,
    tasks: NDArray[Any] | None = None,
    num_gpu_blocks: ArrayLike | None = None,
    downtime_s: float | None = None,
) -> dict[str, float]:
    """Every metric of a run as one flat dict; what the arguments can't give is left out.

    ``alone_s`` (n,) are the latencies of the same requests on an idle replica, for slowdown;
    ``slo`` maps per-request metrics to limits in seconds, for goodput, and those of one task
    (``meets_slo``) for that task's attainment too; ``told_by`` has what a workload says; KV
    utilisation needs the iteration log and ``num_gpu_blocks`` (nodes,), those of each node.
    ``downtime_s`` is how long nodes were down, where any fails: retries and lost tokens stand
    beside it. Where prefill and decode have nodes of their own there are the transfers of KV, and
    the time from the end of a prefill until its KV is at the node that decodes.
    """
    span, count = makespan_s(records), len(records.output_tokens)
    found: dict[str, float] = {"requests": float(count), "makespan_s": span}
    for name, metric in PER_REQUEST.items():
        found |= {f"{key}_s": value for key, value in describe(name, metric(records)).items()}
    found["throughput_requests_per_s"] = count / span
    found["throughput_tokens_per_s"] = float(records.output_tokens.sum()) / span
    found["preemptions"] = float(records.preemptions.sum())
    found["recomputed_tokens"] = float(records.recomputed_tokens.sum())
    if downtime_s is not None:
        found["downtime_s"] = downtime_s
        found["retries"] = float(records.retries.sum())
        found["lost_tokens"] = float(records.lost_tokens.sum())
    if records.moved is not None:
        found |= _transferred(records.moved)
    if alone_s is not None:
        slowdown = e2e_s(records) / alone_s
        found |= describe("slowdown", slowdown)
        found["jain_index"] = jain_index(slowdown)
    if slo is not None:
        met = meets_slo(records, slo, tasks)
        found["slo_attainment"] = float(met.mean())
        found["goodput_requests_per_s"] = float(met.sum()) / span
        for task in dict.fromkeys(name.rpartition(".")[0] for name in slo):
            if task:
                found[f"slo_attainment_{task}"] = float(met[_of_task(task, tasks, count)].mean())
    if deadline_s is not None and np.isfinite(deadline_s).any():
        found |= deadlines(records, deadline_s)
    if tenants is not None:
        found |= service_gap(records, tenants, shares=shares)
        if alone_s is not None:
            found |= by_tenant(e2e_s(records) / alone_s, tenants)
    if records.iterations is not None:
        gaps, tokens = itl_s(records.iterations)
        if len(gaps):
            found["itl_mean_s"] = float((gaps * tokens).sum() / tokens.sum())
            for p in PERCENTILES:
                found[f"itl_p{p}_s"] = weighted_percentile(gaps, tokens, p)
            found["itl_max_s"] = float(gaps.max())
        if num_gpu_blocks is not None:
            found |= kv_utilization(records.iterations, num_gpu_blocks)
    return found
