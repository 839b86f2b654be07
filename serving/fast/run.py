"""The fast twin of the reference engine: the same records, bit for bit, from compiled code.

``supports`` says what it can't run. Scores reach it as machine code (``compile``) where they can,
else it calls them as Python with the arrays that the reference would pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError, InvariantError
from lengthwise.prediction import Predictions
from lengthwise.serving import answers
from lengthwise.serving.fast import state as ks
from lengthwise.serving.fast.calls import ScoreCalls, why_python
from lengthwise.serving.fast.compiler.build import compiled
from lengthwise.serving.fast.features import ACCESSORS, mask
from lengthwise.serving.fast.nodes import Kinds, kinds_of
from lengthwise.serving.fast.prefixes import NUMBERING
from lengthwise.serving.fast.setup import allocate, grow, with_rows
from lengthwise.serving.inputs import Inputs, prepare
from lengthwise.serving.records import LOST, Iterations, Records, with_lost
from lengthwise.serving.reference.replica import endless, too_late
from lengthwise.serving.scoring import ADMISSION, Features
from lengthwise.serving.system import HOLD, Node, Stop, Stops, System, Totals
from lengthwise.serving.transfer import Transfers
from lengthwise.workload import Workload

TO_THE_END = Stops()
_KINDS: dict[int, Any] = {ks.ROUTE: "route", ks.PREEMPT: "preempt", ks.ADMIT: "admit"}
LONGEST = 2**30  # tokens of a request: the kernel keeps them in 32 bits
MOST_BLOCKS = 2**24  # of a request, with prefix caching: part of a block's key


def supports(workload: Workload, system: System) -> str | None:
    """Why the fast engine can't run this; None if it can."""
    longest = int((workload["prompt_tokens"] + workload["output_tokens"]).max())
    if longest >= LONGEST:
        return f"the fast engine takes requests of fewer than {LONGEST} tokens"
    nodes, _ = kinds_of(system.nodes)
    lacking = ACCESSORS.lacks(
        system.routing.score.features, f"router {system.routing.score.name!r}"
    )
    for node in nodes:
        lacking = lacking or _lacks(workload, node, longest)
    return lacking or (None if system.kv_transfer is None else _lacks_apart(system))


def _lacks_apart(system: System) -> str | None:
    """Why the fast engine can't run prefill and decode on nodes of their own; None if it can."""
    routers = [system.routing]
    if system.kv_transfer is not None and system.kv_transfer.decode_routing is not None:
        routers.append(system.kv_transfer.decode_routing)
    lacking = None
    for router in routers:
        lacking = lacking or ACCESSORS.lacks(router.score.features, f"router {router.name!r}")
    scores = [router.score for router in routers] + [node.policy.score for node in system.nodes]
    for score in scores:
        if "oldest_request_s" in score.features:
            return (
                f"{score.name!r} reads oldest_request_s, which the fast engine doesn't keep "
                "across roles prefill and decode: the reference engine does"
            )
    if any(node.policy.acting_guard is not None for node in system.nodes):
        return (
            "the fast engine has no starvation guard across roles prefill and decode: the "
            "reference engine has"
        )
    return lacking


def _lacks(workload: Workload, node: Node, longest: int) -> str | None:
    """Why the fast engine can't run a node; None if it can."""
    policy, engine, timing = node.policy, node.engine, node.timing
    clock = "pipeline" if engine.async_scheduling and hasattr(timing, "pipeline") else "tables"
    if not hasattr(timing, clock):
        return f"timing {timing.name!r} has no integer tables, which the fast engine needs"
    if engine.enable_prefix_caching:
        if longest // engine.block_size >= MOST_BLOCKS:
            return f"with prefix caching the fast engine takes fewer than {MOST_BLOCKS} blocks"
        if "hash_block_tokens" in workload and np.ptp(workload["hash_block_tokens"]):
            return "the fast engine needs one hash_block_tokens for the whole workload"
    lacking = ACCESSORS.lacks(policy.score.features, f"policy {policy.score.name!r}")
    if lacking is None and engine.async_scheduling and policy.queue == "priority":
        why = why_python(policy.score)
        if why is not None:
            lacking = f"with asynchronous scheduling the fast engine needs compiled scores: {why}"
    return lacking


def run(
    workload: Workload,
    system: System,
    predictions: Predictions | ArrayLike | None = None,
    *,
    seed: int = 0,
    log_iterations: bool = False,
) -> Records:
    """Simulates a workload; what ``supports`` refuses is an ``InputError``."""
    refused = supports(workload, system)
    if refused is not None:
        raise InputError(refused)
    state, inputs, calls, _ = begin_run(workload, system, predictions, seed, log_iterations)
    state, entries = _entries(state, stops=False)
    state, code = _advance(state, entries["run_until"], calls)
    if code != ks.DONE:
        raise InvariantError(f"the fast engine stopped with code {code}")
    return records_of(state, inputs, log=log_iterations)


class FastRun:
    """A ``Run`` in compiled code, equal to the reference's to the bit.

    What ``supports`` refuses is an ``InputError``.
    """

    def __init__(
        self,
        workload: Workload,
        system: System,
        predictions: Predictions | ArrayLike | None = None,
        *,
        seed: int = 0,
        log_iterations: bool = False,
    ) -> None:
        refused = supports(workload, system)
        if refused is not None:
            raise InputError(refused)
        self.system = system
        self._log = log_iterations
        self._state, self._inputs, self._calls, self._features = begin_run(
            workload, system, predictions, seed, log_iterations, stops=True
        )
        self._state, self._entries = _entries(self._state, stops=True)
        self._due: Stop | None = None  # what ``answer`` answers
        self._chosen: list[int] | None = None  # places, where it was answered
        self._hold_ps = TO_THE_END.hold_ps

    def advance(self, stops: Stops = TO_THE_END) -> Stop:
        """Goes on to the next stop that was asked for, or to the end."""
        run = self._state.run[0]
        if self._due is not None and self._due.kind == "route":
            raise InputError(f"request {self._due.request} waits for a node: call answer() first")
        if self._chosen is not None:
            self._show((), 0)
            self._state.candidate[: len(self._chosen)] = self._state.candidate[self._chosen]
            run["chosen"] = len(self._chosen)
        self._due, self._chosen, self._hold_ps = None, None, stops.hold_ps
        run["at_route"], run["at_preempt"] = stops.route, stops.preempt
        run["at_admit"] = stops.admit
        run["horizon"] = ks.NEVER if stops.horizon_ps is None else stops.horizon_ps
        self._state, code = _advance(self._state, self._entries["run_until"], self._calls)
        if code == ks.DONE:
            return Stop("done")
        if code == ks.HORIZON:
            return Stop("horizon")
        if code != ks.STOP:
            raise InvariantError(f"the fast engine stopped with code {code}")
        run = self._state.run[0]
        node, request, candidates = (
            int(run[name]) for name in ("due_node", "due_request", "candidates")
        )
        down = self._state.replica["down"] == ks.KNOWN
        closed = tuple(np.flatnonzero(down).tolist()) if run["due"] == ks.ROUTE else ()
        self._due = Stop(_KINDS[int(run["due"])], node, request, candidates, closed)
        return self._due

    def features(self, names: Sequence[str], out: NDArray[Any]) -> int:
        """Writes features of the candidates of the stop that is due to ``out``; see ``Run``."""
        due = self._asked()
        reader = "a router" if due.kind == "route" else "a policy"
        self._features.require(names, reader)
        lacking = ACCESSORS.lacks(names, reader)
        if lacking is not None:
            raise InputError(lacking)
        rows = min(due.candidates, len(out))
        self._state = with_rows(self._state, rows)
        self._show(names, rows)
        for column, name in enumerate(names):
            out[:rows, column] = self._state.rows[name][:rows]
        return rows

    def answer(self, choice: int | Sequence[int] | NDArray[Any]) -> None:
        """Answers the stop that is due; see ``Stop``."""
        due, state = self._asked(), self._state
        run = state.run[0]
        if due.kind != "route":
            self._chosen = answers.places(choice, due)
            return
        node = answers.node(choice, due)
        run["answer"], self._due = node, None
        if node == HOLD:
            state.asked[due.request] = run["now"] + self._hold_ps

    @property
    def totals(self) -> Totals:
        """The integrals up to now."""
        return totals_of(self._state.run[0])

    def records(self) -> Records:
        """The records of a finished run; raises ``InvariantError`` before every request is done."""
        finished, requests = self.totals.finished, len(self._state.where)
        if finished != requests:
            raise InvariantError(f"{finished} of {requests} requests have finished")
        return records_of(self._state, self._inputs, log=self._log)

    def _asked(self) -> Stop:
        if self._due is None:
            raise InputError("nothing waits for an answer: call advance() first")
        return self._due

    def _show(self, names: Sequence[str], rows: int) -> None:
        """Has the candidates listed, and features of the first of them written to the rows."""
        state = self._state
        run, node = state.run[0], state.node
        run["shown"] = rows
        # what the iteration's scores are to see, and what scores read
        at, reads, routing_reads = run["due_node"], node["reads"].copy(), run["routing_reads"]
        seen = state.seen[at].copy()
        node["reads"] |= mask(names)
        run["routing_reads"] |= mask(names)
        self._calls.bind(state)
        table = ks.address_table(state)
        code = self._entries["show_candidates"](table.ctypes.data)
        state.seen[at], node["reads"], run["routing_reads"] = seen, reads, routing_reads
        raise_for(code, state, self._calls)


def _prepare(
    workload: Workload,
    system: System,
    kinds: Sequence[Node],
    of: Sequence[int],
    predictions: Predictions | ArrayLike | None,
) -> Inputs:
    """The run's inputs without the identities of blocks, which are the fast engine's own."""
    plain = [
        dataclasses.replace(
            node, engine=dataclasses.replace(node.engine, enable_prefix_caching=False)
        )
        for node in kinds
    ]
    nodes = tuple(
        alike if alike.name == node.name else dataclasses.replace(alike, name=node.name)
        for alike, node in zip((plain[kind] for kind in of), system.nodes, strict=True)
    )
    return prepare(workload, dataclasses.replace(system, nodes=nodes), predictions)


def begin_run(
    workload: Workload,
    system: System,
    predictions: Predictions | ArrayLike | None,
    seed: int,
    log: bool = False,
    *,
    stops: bool = False,
    shown: Sequence[str] | None = None,
) -> tuple[ks.State, Inputs, ScoreCalls, Features]:
    """A run that is about to begin, its inputs, its scores and its features."""
    first, of = kinds_of(system.nodes)
    inputs = _prepare(workload, system, first, of, predictions)
    kinds = Kinds(first, tuple(inputs.nodes[of.index(kind)] for kind in range(len(first))), of)
    features = Features(workload, inputs.predictions, seed)
    for node in first:
        features.require(node.policy.score.features, f"policy {node.policy.score.name!r}")
        features.require(node.policy.admission.reads, ADMISSION)
    routing = system.routing
    features.require(routing.score.features, f"router {routing.score.name!r}")
    apart = inputs.transfers
    if stops and apart is not None:
        raise InputError("a run with roles prefill and decode can't be asked on its way yet")
    calls = ScoreCalls(
        [node.policy for node in first], routing, len(of),
        None if apart is None else apart.routing,
    )  # fmt: skip
    state = allocate(
        workload,
        inputs,
        kinds,
        routing,
        calls,
        features,
        seed,
        log,
        system.interval_ps,
        stops,
        shown,
    )
    return state, inputs, calls, features


def _entries(state: ks.State, *, stops: bool) -> tuple[ks.State, dict[str, Callable[[int], int]]]:
    """The compiled functions that a run needs; prefixes are numbered by one of them, at once."""
    flags = flags_of(state, stops=stops)
    return numbered(state, flags), compiled(**flags)


def flags_of(state: ks.State, *, stops: bool) -> dict[str, bool]:
    """What ``flags`` says of a run: the machine code that it needs."""
    row, node = state.run[0], state.node
    happens = bool(len(state.slow) or len(state.turn))
    clustered = row["replicas"] > 1 or row["closed_loop"] or stops or happens
    return {
        "MORE": bool(clustered or node["by_score"].any() or (node["reserve"] > 0).any()),
        "POLICY": bool(node["scored"].any() or node["preemption"].any()),
        "PREFIX": bool(node["caching"].any()),
        "GUARD": bool(node["guarded"].any()),
        "ASYNC": bool((node["depth"] > 1).any()),
        "STOPS": stops,
        "ROLES": bool(len(state.move)),
        "EVENTS": happens,
    }


def numbered(state: ks.State, flags: dict[str, bool]) -> ks.State:
    """The state with its prompts' prefixes numbered, if no run of these prompts has done so."""
    with NUMBERING:
        if len(state.chain) and state.chain[0] == ks.NONE:
            size = 1 << (2 * len(state.chain) + 2).bit_length()
            scratch = state._replace(prefix=np.full((size, 3), ks.NONE, np.int64))
            table = ks.address_table(scratch)
            compiled(**flags)["number_prefixes"](table.ctypes.data)
    return state._replace(hashes=state.hashes[:0])


def _advance(
    state: ks.State, run_until: Callable[[int], int], calls: ScoreCalls
) -> tuple[ks.State, int]:
    """Goes on to a stop or to the end; arrays grow on the way where they must."""
    while True:
        calls.bind(state)
        table = ks.address_table(state)
        code = run_until(table.ctypes.data)
        if code != ks.GROW:
            raise_for(code, state, calls)
            return state, code
        state = grow(state)


def totals_of(row: Any) -> Totals:
    """The integrals in a row that has the fields ``state.TOTALS``."""
    run = {name: int(row[name]) for name in ks.TOTALS}
    return Totals(
        run["now"], run["in_system"],
        (run["request_high"] << ks.HALF) + run["request_low"],
        (run["waiting_high"] << ks.HALF) + run["waiting_low"],
        run["finished"], run["generated"], run["preempted"], run["recomputed"],
        run["lost_rows"], run["lost_tokens"],
    )  # fmt: skip


def raise_for(code: int, state: ks.State, calls: ScoreCalls) -> None:
    """Raises what a code says went wrong, if it does."""
    if code == ks.ENDLESS:
        row = state.run[0]
        at = int(row["at_replica"])
        requests = int(state.replica[at]["running"] + state.replica[at]["waiting"])
        raise endless(requests, at, int(row["now"]))
    if code == ks.LATE:
        raise too_late()
    if code == ks.NAN:
        raise InputError(f"policy or router {calls.names} gave NaN for a score")
    if code == ks.RAISED:
        calls.reraise()
    if code == ks.FAULT:
        raise InvariantError("the fast engine stopped with a fault")


def records_of(state: ks.State, inputs: Inputs, *, log: bool) -> Records:
    """One row a request."""
    iterations = None
    if log:
        rows = state.log[: state.run[0]["log_rows"]]
        iterations = Iterations(*(np.ascontiguousarray(rows[name]) for name in ks.LOG.names or ()))
    predicted, requests = inputs.predicted, len(state.where)
    lost = np.sort(state.lost[: state.run[0]["lost_rows"]])
    lost = lost.view(np.int64).reshape(-1, len(LOST))
    return Records(
        replica=state.where, arrival_ps=state.arrival, scheduled_ps=state.scheduled,
        first_token_ps=state.first_token, finish_ps=state.finish,
        prompt_tokens=state.prompt, output_tokens=state.output,
        predicted_tokens=np.full(requests, np.nan) if predicted is None else predicted,
        preemptions=with_lost(state.preemptions, lost, "preemptions"),
        recomputed_tokens=with_lost(state.recomputed, lost, "recomputed_tokens"),
        cached_tokens=state.cached, backend="fast", iterations=iterations, lost=lost,
        moved=None if inputs.transfers is None else _moved(state, inputs.transfers),
    )  # fmt: skip


def _moved(state: ks.State, apart: Transfers) -> NDArray[np.int64]:
    """The transfers of a run, (transfers, TRANSFER)."""
    request = np.flatnonzero(state.move["target"] != ks.NONE)
    move = state.move[request]
    size = state.node["block_size"][state.replica["node"][move["source"]]]
    carried = -(-state.prompt[request] // size) * np.array(apart.block_bytes)[move["source"]]
    return np.stack(
        (
            request, move["source"], move["target"], move["ready"], move["start"], move["end"],
            carried, move["decode"],
        ),
        axis=1,
    )  # fmt: skip
