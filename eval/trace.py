"""A run as a Chrome trace: what every node did when, for Perfetto and chrome://tracing.

A node is a process. Its threads are its iterations, its seats, in which requests are computed, and
places in its queue; its counters are the requests that run and wait, and the KV blocks in use. What
a request goes through are slices: ``queued``, ``prefill`` (of all chunks, and of what a preemption
lost), ``decode`` and ``preempted``, and ``transfer`` where its KV comes from another node.

The format is the Trace Event Format's, an object with complete ("X"), counter ("C") and metadata
("M") events, times in microseconds (Google, "Trace Event Format", 2016).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lengthwise.errors import InputError, InvariantError
from lengthwise.picoseconds import PS
from lengthwise.serving.events import Fail, place_of
from lengthwise.serving.records import Records
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.reference.timeline import Step
from lengthwise.writing import whole_file

if TYPE_CHECKING:
    from lengthwise.eval.simulate import Result
    from lengthwise.serving.system import System

SUFFIXES = (".json", ".json.gz")
QUEUED, PREFILL, DECODE, PREEMPTED = "queued", "prefill", "decode", "preempted"
TRANSFER = "transfer"  # of its KV to the node that decodes, where a seat is kept
WAITS = (QUEUED, PREEMPTED)  # a request then has a place in the queue, else a seat
MOST_HEAD = 2**16  # bytes of a trace's first line, which says what wrote it
NS = PS // 10**9  # a nanosecond: what viewers count in
COUNTERS = {"requests": ("running", "waiting"), "KV blocks": ("used_blocks",)}


@dataclass(frozen=True)
class Slice:
    """Something that took from ``start_ps`` to ``end_ps`` at a node; ``args`` are told with it."""

    node: int
    kind: str
    name: str
    start_ps: int
    end_ps: int
    args: dict[str, Any]


def check_trace(path: str | Path, backend: str = "auto") -> Path:
    """The path of a trace that can be written; called before the run whose trace it is.

    Raises ``InputError`` for a suffix that is not in ``SUFFIXES``, for a folder that isn't there,
    and for vLLM's own scheduler, of which no steps are kept.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"a trace is written to .json or .json.gz, not to {str(path)!r}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {str(path.parent)!r}"
        raise InputError(f"can't write a trace to {str(path)!r}: {why}")
    if backend == "vllm":
        raise InputError("there is no trace of a run by vLLM's own scheduler: take backend fast")
    return path


def write_trace(path: str | Path, result: Result, seed: int, command: str | None = None) -> Path:
    """Writes the trace of a run with its ``seed``, compressed where the name ends in ``.gz``.

    ``command``, if given, is kept in it as what made it.

    The reference engine runs it again and tells its steps; both engines take the same ones. The
    same run twice is the same bytes. Raises ``InputError`` as ``check_trace`` does.
    """
    path = check_trace(path, result.records.backend)
    records, steps = steps_of(result, seed)
    try:
        with whole_file(path) as fresh, fresh.open("wb") as raw:
            plain = path.suffix != ".gz"
            file = raw if plain else gzip.GzipFile("", "wb", fileobj=raw, mtime=0)
            said = json.dumps({} if command is None else {"command": command})
            file.write(f'{{"otherData":{said},"displayTimeUnit":"ms","traceEvents":[\n'.encode())
            for index, event in enumerate(events(result.system, records, steps)):
                line = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
                file.write(f"{',' * (index > 0)}{line}\n".encode())
            file.write(b"]}\n")
            if not plain:
                file.close()
    except OSError as error:
        raise InputError(f"can't write a trace to {str(path)!r}: {error.strerror}") from error
    return path


def command_of(path: Path) -> str | None:
    """The command that wrote a trace; None for a trace that doesn't say, and for other files."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            said = json.loads(file.readline(MOST_HEAD).rstrip() + b"]}")
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    found = said.get("otherData", {}).get("command") if isinstance(said, dict) else None
    return found if isinstance(found, str) else None


def steps_of(result: Result, seed: int) -> tuple[Records, list[tuple[int, Step]]]:
    """The run again on the reference engine: its records, and its steps by node, as they began."""
    made = ReferenceRun(
        result.workload, result.system, result.predictions, seed=seed, log_iterations=True
    )
    made.steps = []
    made.advance()
    records = made.records()
    if (records.finish_ps != result.records.finish_ps).any():
        raise InvariantError("the trace is another run's: requests finish at other times")
    return records, made.steps


def events(
    system: System, records: Records, steps: Sequence[tuple[int, Step]]
) -> Iterator[dict[str, Any]]:
    """The events of a trace: first each node's name, then its threads, then its counters."""
    found = phases(records, steps)
    kinds = {
        "iterations": iterations(system, records, steps),
        "seat": [each for each in found if each.kind not in WAITS],
        "place in the queue": [each for each in found if each.kind in WAITS],
    }
    threads = count(len(system.nodes) + 1)  # no number that a process has
    for node in range(len(system.nodes)):
        yield _named("process_name", node, 0, system.label(node))
        for kind, slices in kinds.items():
            for lane, row in enumerate(_rows([each for each in slices if each.node == node])):
                thread = next(threads)
                only = kind == "iterations" and lane == 0
                yield _named("thread_name", node, thread, kind if only else f"{kind} {lane + 1}")
                order = {"sort_index": thread}
                yield {"ph": "M", "name": "thread_sort_index", "pid": node + 1, "tid": thread,
                       "args": order}  # fmt: skip
                for each in row:
                    begin, end = each.start_ps // NS, each.end_ps // NS
                    yield {
                        "ph": "X", "name": each.name, "cat": each.kind, "pid": node + 1,
                        "tid": thread, "ts": begin / 1000, "dur": (end - begin) / 1000,
                        "args": each.args,
                    }  # fmt: skip
    yield from _counters(records)


def phases(records: Records, steps: Sequence[tuple[int, Step]]) -> list[Slice]:
    """What each request went through at each node that it was at, by request and time.

    A stay begins with ``queued``: at the arrival, or when the node before failed. A phase begins
    with the iteration that schedules or preempts the request; ``decode`` when its token is seen.
    """
    turns, found = _turns(steps), []
    moved = {} if records.moved is None else {row[0]: row for row in records.moved.tolist()}
    for request, node, start, begin, end in _stays(records):
        args: dict[str, float] = {
            "request": request,
            "prompt_tokens": int(records.prompt_tokens[request]),
            "output_tokens": int(records.output_tokens[request]),
        }
        if records.predicted_tokens[request] >= 0:  # NaN where nothing was predicted
            args["predicted_tokens"] = float(records.predicted_tokens[request])
        phase, changes = QUEUED, turns[request, node, start]
        if request in moved and node == moved[request][2]:
            changes = _handed_over(moved[request], changes)
        for at_ps, then in [*changes, (end, "")]:
            until = min(max(at_ps, begin), end)
            if until // NS > begin // NS:
                found.append(Slice(node, phase, f"{phase} {request}", begin, until, args))
            begin, phase = until, then
    return found


def _handed_over(row: Sequence[int], changes: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """What a stay at the node that decodes goes through; ``row`` is one of ``Records.moved``.

    The token that is first computed there is decoded, though it is the first of the stay.
    """
    if [then for _, then in changes[:2]] == [PREFILL, DECODE]:
        changes = changes[2:]
    return [(row[4], TRANSFER), (row[5], DECODE), *changes]


def _stays(records: Records) -> Iterator[tuple[int, int, int, int, int]]:
    """Each stay at a node: request, node, start of its first iteration there, from, until (ps)."""
    visits, before = records.visits, (-1, 0)
    columns = (visits.request, visits.node, visits.start_ps, visits.finish_ps)
    for request, node, start, end in zip(*(c.tolist() for c in columns), strict=True):
        begin = before[1] if before[0] == request else int(records.arrival_ps[request])
        before = (request, end)
        yield request, node, start, begin, end


def _turns(
    steps: Sequence[tuple[int, Step]],
) -> defaultdict[tuple[int, int, int], list[tuple[int, str]]]:
    """When each stay enters another phase, by request, node and the start of its first iteration.

    A request is another object at each node that it is sent to.
    """
    first: dict[int, tuple[int, int, int]] = {}
    phase: dict[int, str] = {}
    found: defaultdict[tuple[int, int, int], list[tuple[int, str]]] = defaultdict(list)
    for node, step in steps:
        changes = [(request, step.start_ps, PREEMPTED) for request in step.preempted]
        changes += [
            (request, step.start_ps, PREFILL)
            for request in step.scheduled
            if phase.get(id(request), PREEMPTED) == PREEMPTED
        ]
        changes += [(request, step.seen_ps, DECODE) for request in step.yields]
        for request, at_ps, then in changes:
            stay = first.setdefault(id(request), (request.id, node, step.start_ps))
            if phase.get(id(request)) != then:
                found[stay].append((at_ps, then))
                phase[id(request)] = then
    return found


def iterations(system: System, records: Records, steps: Sequence[tuple[int, Step]]) -> list[Slice]:
    """What each node computed, iteration by iteration, and when it was down.

    What was under way when a node failed is cut there.
    """
    last_ps = int(records.finish_ps.max())
    downs: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for event in system.events:
        if isinstance(event, Fail) and (begin := round(event.at_s * PS)) < last_ps:
            node = place_of(event.node, system.names)
            downs[node].append((begin, min(event.ends_ps, last_ps)))
    found = [
        Slice(node, "down", "down", begin, end, {})
        for node, windows in downs.items()
        for begin, end in windows
    ]
    for node, step in steps:
        end = step.end_ps
        for begin, until in downs[node]:
            if begin <= step.start_ps < until:
                end = step.start_ps  # never begun
            elif step.start_ps < begin < end:
                end = begin
        if end // NS > step.start_ps // NS:
            batch = step.batch
            what = " + ".join(
                f"{number} {name}"
                for number, name in ((batch.prefill_seqs, PREFILL), (batch.decode_seqs, DECODE))
                if number
            )
            args = {
                "prefill_tokens": batch.prefill_tokens, "decode_seqs": batch.decode_seqs,
                "context_tokens": batch.context_tokens, "preempted": len(step.preempted),
            }  # fmt: skip
            found.append(Slice(node, "iteration", what or "nothing", step.start_ps, end, args))
    return found


def _rows(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Slices in as few rows as hold them without overlap, each in the first row that is free.

    What follows at once on another slice of the same request stays in its row.
    """
    stretches: list[list[Slice]] = []
    for each in slices:
        before = stretches[-1][-1] if stretches else None
        follows = before is not None and before.end_ps == each.start_ps
        if follows and before is not None and before.args is each.args:
            stretches[-1].append(each)
        else:
            stretches.append([each])
    rows: list[list[Slice]] = []
    free: list[int] = []  # heap of rows
    busy: list[tuple[int, int]] = []  # heap of (until when, row)
    for stretch in sorted(stretches, key=lambda s: s[0].start_ps):
        while busy and busy[0][0] <= stretch[0].start_ps:
            heappush(free, heappop(busy)[1])
        if not free:
            free.append(len(rows))
            rows.append([])
        row = heappop(free)
        rows[row] += stretch
        heappush(busy, (stretch[-1].end_ps, row))
    return rows


def _counters(records: Records) -> Iterator[dict[str, Any]]:
    """The state of each node from each iteration on, and nothing while no request is there."""
    log = records.iterations
    assert log is not None  # ``steps_of`` keeps it
    columns = {name: getattr(log, name).tolist() for names in COUNTERS.values() for name in names}
    nodes, starts = log.replica.tolist(), log.start_ps.tolist()
    for node, at_ps in _emptied(records):
        nodes.append(node)
        starts.append(at_ps)
        for values in columns.values():
            values.append(0)
    for row, (node, at_ps) in enumerate(zip(nodes, starts, strict=True)):
        for name, parts in COUNTERS.items():
            yield {
                "ph": "C", "name": name, "pid": node + 1, "ts": at_ps // NS / 1000,
                "args": {part: columns[part][row] for part in parts},
            }  # fmt: skip


def _emptied(records: Records) -> list[tuple[int, int]]:
    """When the last request that is at a node leaves it: node and time, ps."""
    until: dict[int, int] = {}
    found: list[tuple[int, int]] = []
    for _, node, _, begin, end in sorted(_stays(records), key=lambda stay: stay[3]):
        if node in until and begin > until[node]:
            found.append((node, until[node]))
        until[node] = max(end, until.get(node, 0))
    return found + list(until.items())


def _named(what: str, node: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": node + 1, "tid": thread, "args": {"name": name}}
