"""One run: a workload under a policy on simulated replicas, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError
from lengthwise.eval import metrics
from lengthwise.eval.alone import Alone
from lengthwise.eval.ground import beyond_measured, beyond_training, estimated
from lengthwise.eval.output import CONFIG, provenance, replaced_folder, write_json
from lengthwise.eval.predict import check_prediction
from lengthwise.eval.setting import Loaded, PolicyLike, RouterLike, Setting
from lengthwise.eval.trace import write_trace
from lengthwise.policies import load_policy
from lengthwise.prediction import Predictions
from lengthwise.predictors.predict import (
    PredictorLike,
    abstention_notice,
    predict,
    predictor_label,
)
from lengthwise.protocols import TimingModel
from lengthwise.serving import Engine, Node, Records, System, run
from lengthwise.serving.events import EventsLike
from lengthwise.serving.inputs import node_blocks
from lengthwise.serving.nodes import NodesLike
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.serving.run import Backend
from lengthwise.serving.saturation import saturation_rate
from lengthwise.workload import Workload

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Result:
    """What a run returns; ``config`` names everything that went into it.

    ``notices`` are lines to be said once, such as how many requests the predictor did not order;
    ``predictions`` are what the run was given.
    """

    workload: Workload
    records: Records
    system: System
    config: Mapping[str, Any]
    notices: tuple[str, ...] = ()
    predictions: Predictions | ArrayLike | None = field(default=None, repr=False)

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row a request: request_id, replica, arrival_s, scheduled_s, first_token_s, finish_s,
        prompt_tokens, output_tokens, predicted_tokens, preemptions, recomputed_tokens,
        cached_tokens, retries, lost_tokens; and what those come to: ttft_s (arrival to first
        token, s), tpot_s (s a token after the first, NaN for an answer of one), e2e_s (arrival to
        last token, s), normalized_s (e2e_s a token, s). Of a request that lost its node, times are
        of the stay in which it was served.
        """
        records = self.records
        return records.to_frame().assign(
            ttft_s=metrics.ttft_s(records), tpot_s=metrics.tpot_s(records),
            e2e_s=metrics.e2e_s(records), normalized_s=metrics.normalized_latency_s(records),
        )  # fmt: skip

    @cached_property
    def visits(self) -> pd.DataFrame:
        """One row a stay of a request at a node: request_id, node, stage, start_s (NaN where
        nothing of it was computed there), finish_s, finished, lost_tokens.
        """
        return self.records.visits.to_frame()

    @cached_property
    def transfers(self) -> pd.DataFrame:
        """One row a transfer of KV from a prefill node to one that decodes: request_id, source,
        target, ready_s (the prefill's end), start_s, end_s, bytes. None without such nodes.
        """
        return self.records.transfers_frame()

    @cached_property
    def iterations(self) -> pd.DataFrame | None:
        """One row an engine iteration, or None where ``log_iterations`` was not asked for."""
        return None if self.records.iterations is None else self.records.iterations.to_frame()

    @cached_property
    def alone_s(self) -> NDArray[np.float64] | None:
        """Latency of each request alone on the node that served it, s, (n,); None if some node
        schedules ahead.
        """
        alone = Alone.of(self.workload, self.system)
        return None if alone is None else alone.where_served(self.records.replica)

    @property
    def engine(self) -> Engine:
        """The engine options of all nodes; ``InputError`` where nodes differ."""
        return self._node.engine

    @property
    def timing(self) -> TimingModel:
        """The timing of all nodes; ``InputError`` where nodes differ."""
        return self._node.timing

    @property
    def _node(self) -> Node:
        if not self.system.uniform:
            raise InputError("nodes differ: ask system.nodes[i] for its engine or timing")
        return self.system.nodes[0]

    @property
    def num_gpu_blocks(self) -> NDArray[np.int64]:
        """KV blocks of each node, (nodes,)."""
        return node_blocks(self.system)

    @cached_property
    def capacity(self) -> float:
        """What the system serves at most of this mix while no node fails, requests/s.

        NaN where it is not known: of a closed loop, where who waits sends no more, and where the
        compiled engine didn't run this.
        """
        if self.records.backend != "fast" or "parent" in self.workload:
            return float("nan")
        return saturation_rate(self.workload, dataclasses.replace(self.system, events=()))

    def summary(self, slo: Mapping[str, float] | None = None) -> dict[str, float]:
        """The metrics by their standard names (see ``lengthwise.eval.metrics``).

        ``slo`` maps ttft, tpot, e2e, normalized_latency or wait to a limit in seconds, for
        goodput; ``chat.ttft`` is a limit of the requests whose task is chat. Inter-token latency
        and KV utilisation need ``log_iterations``; slowdowns are left out with asynchronous
        scheduling.
        """
        return metrics.summary(
            self.records,
            alone_s=self.alone_s,
            slo=slo,
            **metrics.told_by(self.workload),
            num_gpu_blocks=self.num_gpu_blocks,
            downtime_s=self.system.downtime_s(int(self.records.finish_ps.max())),
        )

    def __repr__(self) -> str:
        """What ran, and what came of it in a line."""
        e2e, ttft = metrics.e2e_s(self.records), metrics.ttft_s(self.records)
        return (
            f"<Result: {self._ran}; mean latency {e2e.mean():.3g} s, P99 "
            f"{np.percentile(e2e, 99):.3g} s, TTFT P99 {np.percentile(ttft, 99):.3g} s, longest "
            f"wait {metrics.wait_s(self.records).max():.3g} s>"
        )

    def _repr_html_(self) -> str:
        """The same as a table, for notebooks."""
        heads = "".join(f"<th>{name}</th>" for name in ("", *metrics.STATISTICS))
        rows = ""
        for name, of in metrics.PER_REQUEST.items():
            found = metrics.describe(name, of(self.records)).values()
            label = f"{name.replace('_', ' ')}, s{'/token' if 'normalized' in name else ''}"
            rows += f"<tr><th>{label}</th>{''.join(f'<td>{v:.3g}</td>' for v in found)}</tr>"
        return f"<p>{escape(self._ran)}</p><table><tr>{heads}</tr>{rows}</table>"

    @property
    def _ran(self) -> str:
        config = self.config
        lengths = "" if config["predictor"] == "none" else f", {config['predictor']}"
        rate = f" at {self.workload.rate:.3g}/s" if np.isfinite(self.workload.rate) else ""
        return (
            f"{config['policy']}{lengths} on {self.workload.name}, {len(self.workload):,} "
            f"requests{rate}, {config['replicas']} x {config['timing']}"
        )

    def save(self, folder: str | Path, command: str | None = None) -> Path:
        """Writes requests.parquet, summary.json, config.json (and iterations.parquet) at once.

        An earlier result in ``folder`` is replaced, anything else there is an ``InputError``.
        """
        with replaced_folder(folder) as fresh:
            self.requests.to_parquet(fresh / "requests.parquet", index=False)
            if self.iterations is not None:
                self.iterations.to_parquet(fresh / "iterations.parquet", index=False)
            write_json(fresh / "summary.json", self.summary())
            write_json(fresh / CONFIG, provenance(self.config, command))
        return Path(folder)

    def trace(self, path: str | Path, command: str | None = None) -> Path:
        """Writes what every node and request did when, for Perfetto (see ``eval.trace``).

        The run is made again for it, on the reference engine. ``command``, if given, is kept in
        it. ``InputError`` for a path that ends in neither ``.json`` nor ``.json.gz``, and for the
        backend "vllm".
        """
        return write_trace(path, self, self.config["seed"], command)


def simulate(
    workload: Workload,
    policy: PolicyLike = "fcfs",
    predictor: PredictorLike = None,
    engine: Engine | None = None,
    timing: str | TimingModel = DEFAULT_TIMING,
    replicas: int = 1,
    router: RouterLike = "round-robin",
    backend: Backend = "auto",
    seed: int = 0,
    log_iterations: bool = False,
    predicted_tokens: Predictions | ArrayLike | None = None,
    nodes: NodesLike | None = None,
    metrics_interval_s: float = 0.0,
    failures: EventsLike | None = None,
) -> Result:
    """Runs a workload and returns a ``Result``.

    ``predictor`` is a name, a saved folder or an object; ``predicted_tokens`` gives its
    ``Predictions`` or plain lengths (n,), where they were made before. ``nodes`` are nodes that may
    differ, in place of ``replicas`` equal ones:
    ``"2xh200/llama-3.1-8b,roofline:l40s/llama-3.1-8b"``, a YAML or JSON file, or a sequence of
    ``Node``; ``engine``, ``timing`` and ``policy`` hold for what they leave out. With
    ``metrics_interval_s`` the router sees nodes as they were at its last multiple. ``failures`` is
    what happens to nodes in the run: a YAML, JSON or CSV file, or a sequence of ``Slow`` and
    ``Fail`` (see ``lengthwise.serving.events``). Raises ``InputError`` where a policy reads
    predicted lengths and there are none.
    """
    setting = Setting(
        engine or Engine(), timing, replicas, router, nodes, metrics_interval_s, failures
    )
    loaded = setting.load()
    if predicted_tokens is None:
        predicted_tokens = predict(predictor, workload, seed)
    found = simulate_on(
        workload, loaded, policy, predicted_tokens, seed=seed, backend=backend,
        log_iterations=log_iterations,
    )  # fmt: skip
    label = predictor_label(predictor)
    config, notices = {**found.config, "predictor": label}, found.notices
    share = predicted_tokens.abstained_share if isinstance(predicted_tokens, Predictions) else 0.0
    if said := abstention_notice(share, label):
        config["abstained_share"], notices = share, (*notices, said)
    return dataclasses.replace(found, config=config, notices=notices)


def simulate_on(
    workload: Workload,
    loaded: Loaded,
    policy: PolicyLike,
    predicted_tokens: Predictions | ArrayLike | None,
    *,
    seed: int,
    backend: Backend,
    log_iterations: bool = False,
) -> Result:
    """``simulate`` with a setting that is loaded and predictions that were made before."""
    scheduling = load_policy(policy)
    system = loaded.system(scheduling)
    for own in {id(node.policy): node.policy for node in system.nodes}.values():
        check_prediction(own, system.routing, predicted=predicted_tokens is not None)
    records = run(
        workload, system, predicted_tokens, seed=seed, backend=backend,
        log_iterations=log_iterations,
    )  # fmt: skip
    config = {
        "workload": workload.name,
        "requests": len(workload),
        "rate_requests_per_s": workload.rate,
        "policy": scheduling.name,
        "preemption": dataclasses.asdict(scheduling.preemption),
        "admission": dataclasses.asdict(scheduling.admission),
        "guard": scheduling.guard and dataclasses.asdict(scheduling.guard),
        "predictor": "none",
        **loaded.config(),
        "backend": records.backend,
        "backend_reason": records.backend_reason,
        "seed": seed,
    }
    known = predicted_tokens if isinstance(predicted_tokens, Predictions) else None
    said = (
        *estimated(system), *beyond_measured(system, workload),
        *beyond_training(workload, system, known),
    )  # fmt: skip
    return Result(workload, records, system, config, said, predicted_tokens)
