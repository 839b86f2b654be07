"""Layouts: which columns a published format has, and how they become those of a workload.

A layout is recognised by its columns. To add one, write a function from raw columns to workload
columns and put it into ``LAYOUTS``.
"""

from __future__ import annotations

import json
import operator
import re
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise import chat
from lengthwise.errors import InputError
from lengthwise.serving.workload.decoding import decode
from lengthwise.serving.workload.files import Columns
from lengthwise.serving.workload.layout import (
    CUT,
    EPOCHS,
    ROW,
    UNITS_S,
    Layout,
    Options,
    earliest,
    hashable,
    numbers,
    objects,
    seconds,
    unit_seconds,
)
from lengthwise.serving.workload.logs import BY_NAME, LOGS
from lengthwise.workload import MOST_TOKENS, check_column


def _native(columns: Columns, name: str, options: Options) -> Columns:
    """The project's own columns, and a few common names for what they can't hold."""
    table = {key: values for key, values in columns.items() if key in NATIVE}
    if "arrival_s" in table:
        table["arrival_s"] = _arrivals(name, table["arrival_s"], options)
    if "hash_ids" in table:
        if "prompt_tokens" not in table:
            raise InputError(f"{name}: hash_ids need prompt_tokens beside them")
        table |= _prefixes(name, columns, table, options)
        del table["hash_ids"]
    if "prefix_hashes" in columns:
        table["prefix_hashes"] = objects(_hashes(name, "prefix_hashes", columns["prefix_hashes"]))
    if "parent" in table:
        table |= _parents(name, table)
    if "max_tokens" in table:
        table["max_tokens"] = _limits(table["max_tokens"])
    if "client_id" in table:
        table["tenant"] = table.pop("client_id")
    if "ended_with_eos" in table:
        table["censored"] = np.asarray(table.pop("ended_with_eos") == 0)
    if "finish_reason" in table:
        reasons = table.pop("finish_reason")
        table["censored"] = np.array([str(reason).lower() in CUT for reason in reasons])
    return table


def _engine_record(columns: Columns, name: str, options: Options) -> Columns:
    """What ``lengthwise.policies.plugins.record`` writes; token ids become texts."""
    table = {
        "arrival_s": seconds(name, "arrival_s", columns["arrival_s"]),
        "prompt_tokens": columns["prompt_tokens"],
        "output_tokens": columns["output_tokens"],
        "model": columns["model"],
        "censored": np.asarray(columns["finish_reason"] != "stop"),
    }
    # of the context what was written; records of before it was have none
    for key in ("session_id", "tenant", "task", "temperature", "top_p", "json_schema"):
        if key in columns and any(value is not None and value == value for value in columns[key]):
            table[key] = columns[key]
    if "max_tokens" in columns:
        table["max_tokens"] = _limits(columns["max_tokens"])
    if "prompt" in columns:  # joined by prompt_id
        table["prompt"] = columns["prompt"]
    elif "prompt_token_ids" in columns:
        whole, served = decode(name, columns["prompt_token_ids"], columns["tokenizer"])
        table |= {"prompt": objects(whole), "asked": objects([one.text for one in served])}
        table |= _system([one.told.get("system_hash") for one in served])
    return table


def _azure(columns: Columns, name: str, options: Options) -> Columns:
    """Azure's public traces of 2023 and 2024 (Patel et al., ISCA 2024)."""
    return {
        "arrival_s": unit_seconds(name, "TIMESTAMP", columns["TIMESTAMP"], "s", options),
        "prompt_tokens": columns["ContextTokens"],
        "output_tokens": columns["GeneratedTokens"],
    }


def _burstgpt(columns: Columns, name: str, options: Options) -> Columns:
    """BurstGPT (Wang et al., 2024); failed requests have 0 response tokens."""
    table = {
        "arrival_s": unit_seconds(name, "Timestamp", columns["Timestamp"], "s", options),
        "prompt_tokens": columns["Request tokens"],
        "output_tokens": columns["Response tokens"],
    }
    for theirs, ours in (("Model", "model"), ("Session ID", "session_id"), ("Log Type", "tenant")):
        if theirs in columns:
            table[ours] = columns[theirs]
    return table


def _mooncake(columns: Columns, name: str, options: Options) -> Columns:
    """Mooncake's traces (Qin et al., FAST 2025): milliseconds, 512-token prefix blocks.

    The public Qwen-Bailian traces have the same columns, and others, in seconds and blocks of 16.
    """
    times = numbers(columns["timestamp"])
    other = [key for key in ("chat_id", "parent_chat_id", "turn", "type") if key in columns]
    whole = times.dtype.kind in "iu" or (times.dtype.kind == "f" and (times == times // 1).all())
    unit = "s" if other or not whole else "ms"
    arrival_s = unit_seconds(name, "timestamp", times, unit, options)
    table = {
        "arrival_s": arrival_s,
        "prompt_tokens": columns["input_length"],
        "output_tokens": columns["output_length"],
    }
    if "hash_ids" in columns:
        table |= _prefixes(name, columns, table, options, prefer=16 if other else 512)
    return table


def _servegen(columns: Columns, name: str, options: Options) -> Columns:
    """Workloads written by ServeGen (Xiang et al., 2025): seconds."""
    table = {
        "arrival_s": unit_seconds(name, "timestamp", columns["timestamp"], "s", options),
        "prompt_tokens": columns["input_tokens"],
        "output_tokens": columns["output_tokens"],
    }
    if "client_id" in columns:
        table["tenant"] = columns["client_id"]
    return table


def _agent_sessions(columns: Columns, name: str, options: Options) -> Columns:
    """Agent sessions on a clock of their own, each request sharing a prefix with an earlier one.

    Request ``idx`` of a session has ``n_blocks`` 64-token blocks; the first ``shared_blocks`` are
    those of request ``parent_idx``, the others are new. In a closed loop a request waits for the
    one before it of the same agent, and an agent's first for the session's last before it.
    """
    rows = len(columns["session_id"])
    prompt = check_column(name, "prompt_tokens", columns["prompt_tokens"])
    parent_idx = check_column(name, "parent_idx", columns["parent_idx"])
    shared = check_column(name, "shared_blocks", columns["shared_blocks"])
    blocks = check_column(name, "n_blocks", columns["n_blocks"])
    many = np.flatnonzero(blocks > prompt // AGENT_BLOCK_TOKENS + 1)
    if len(many):
        row = many[0]
        raise InputError(
            f"{name}: row {row}: n_blocks is {blocks[row]}; its {prompt[row]} prompt tokens fill "
            f"{prompt[row] // AGENT_BLOCK_TOKENS} blocks of {AGENT_BLOCK_TOKENS}"
        )
    keys = zip(columns["session_id"], columns["idx"], strict=True)
    place = {(hashable(one), hashable(idx)): row for row, (one, idx) in enumerate(keys)}
    chains: list[tuple[int, ...]] = []
    new = 0
    for row in range(rows):
        above = place.get((hashable(columns["session_id"][row]), parent_idx[row]), -1)
        if above >= row:
            raise InputError(f"{name}: row {row}: parent_idx {parent_idx[row]} is no earlier row")
        prefix = chains[above][: min(shared[row], blocks[row])] if above >= 0 else ()
        fresh = int(blocks[row]) - len(prefix)
        chains.append(prefix + tuple(range(new, new + fresh)))
        new += fresh
    full = prompt // AGENT_BLOCK_TOKENS
    table: Columns = {
        "session_id": columns["session_id"],
        "arrival_s": columns["arrival_s"],
        "prompt_tokens": prompt,
        "output_tokens": columns["output_tokens"],
        "prefix_hashes": objects([c[:k] for c, k in zip(chains, full.tolist(), strict=True)]),
        "hash_block_tokens": np.full(rows, AGENT_BLOCK_TOKENS),
    }
    if "model" in columns:
        table["model"] = columns["model"]
    if options.closed_loop:
        think = check_column(name, "think_s", columns.get("think_time_s", np.zeros(rows)))
        table |= _loop(columns["session_id"], think, columns.get("agent"))
    return table


def _session_turns(columns: Columns, name: str, options: Options) -> Columns:
    """Turns of multi-turn sessions without a clock: each waits for the one before it.

    The prompt of a turn is the session's whole history, so its full blocks are those of the turn
    before, and new ones.
    """
    table = {key: values for key, values in columns.items() if key in NATIVE}
    turn = check_column(name, "turn", columns["turn"])
    order = np.lexsort((turn, _codes(columns["session_id"])))
    table = {key: values[order] for key, values in table.items()} | {ROW: order}
    prompt = check_column(name, "prompt_tokens", table["prompt_tokens"], order)
    return table | _history(table["session_id"], prompt) | _loop(table["session_id"], None)


def _system(hashes: list[str | None]) -> Columns:
    """The column of system prompts' hashes, if any has one."""
    return {"system_hash": objects(hashes)} if any(hashes) else {}


def _conversations(columns: Columns, name: str, options: Options) -> Columns:
    """ShareGPT's, LMSYS-Chat's and OpenAI's lists of messages.

    ``turns="first"`` takes the first question and answer of each conversation, as vLLM's benchmark
    does; "all" takes every answer as a request of a closed-loop session, its prompt being all the
    text before it.
    """
    column = next(key for key in CONVERSATION if key in columns)
    prompts: list[str] = []
    questions: list[str] = []
    answers: list[str] = []
    systems: list[str | None] = []
    source: list[int] = []
    unknown: dict[str, None] = {}
    for row, given in enumerate(columns[column]):
        roles = _roles(name, row, column, given)
        strange = [role for role in roles if chat.role_of(role) is None]
        if strange:
            unknown |= dict.fromkeys(strange)
            continue
        history = ""
        said = chat.messages(given)
        for turn, (role, text) in enumerate(said):
            if role != "assistant":
                history += ("\n" if history else "") + text
            elif history:
                prompts.append(history)
                questions.append(chat.asked(said[:turn]))
                systems.append(chat.system_hash(said[:turn]))
                answers.append(text)
                source.append(row)
                if options.turns == "first":
                    break
                history += "\n" + text
    rows_in = len(columns[column])
    passed = rows_in - len(set(source))
    why = f" (unknown roles: {', '.join(unknown)})" if unknown else ""
    if not prompts:
        raise InputError(f"{name}: no conversation has a question and an answer{why}")
    if passed:
        options.notices.append(
            f"{name}: {passed} of {rows_in} conversations passed over: no question and answer{why}"
        )
    rows = np.array(source)
    table = {
        "prompt": objects(prompts), "asked": objects(questions),
        "response": objects(answers), ROW: rows,
    }  # fmt: skip
    table |= _system(systems)
    if "model" in columns:
        table["model"] = columns["model"][rows]
    if options.turns == "first" and "timestamp" in columns:  # WildChat's, of the last turn
        times = columns["timestamp"][rows]
        if all(value is not None and value == value for value in times):
            table["arrival_s"] = unit_seconds(name, "timestamp", times, "s", options)
            options.notices.append(f"{name}: read timestamp as arrival_s")
    if options.turns == "all":
        keys = next((k for k in ("session_id", "id", "conversation_id") if k in columns), None)
        table["session_id"] = objects((columns[keys][rows] if keys else rows).tolist())
        table |= _loop(rows, None)
    return table


def _instructions(columns: Columns, name: str, options: Options) -> Columns:
    """Alpaca's instruction, input and output."""
    prompts = list(columns["instruction"])
    if "input" in columns:
        pairs = zip(prompts, columns["input"], strict=True)
        prompts = [f"{task}\n\n{given}" if given else task for task, given in pairs]
    return {"prompt": objects(prompts), "response": columns["output"]}


AGENT_BLOCK_TOKENS = 64
HISTORY_BLOCK_TOKENS = 64
CONVERSATION = ("conversations", "conversation", "messages")
# what the native layout understands; the last six are turned into columns of a workload
NATIVE = (
    "arrival_s", "prompt_tokens", "output_tokens", "prompt", "session_id", "tenant",
    "prefix_hashes", "hash_block_tokens", "deadline_s", "priority", "model", "parent", "think_s",
    "task", "system_hash", "temperature", "top_p", "tools", "json_schema",
    "max_tokens", "censored", "response", "hash_ids", "client_id", "ended_with_eos",
    "finish_reason",
)  # fmt: skip

# the first that fits is taken, so the more particular come first
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "engine-record",
            (
                ("request_id",), ("arrival_s",), ("prompt_id",), ("prompt_tokens",),
                ("output_tokens",), ("finish_reason",), ("model",), ("tokenizer",),
            ),
            _engine_record,
        ),
        Layout("azure", (("TIMESTAMP",), ("ContextTokens",), ("GeneratedTokens",)), _azure),
        Layout(
            "burstgpt", (("Timestamp",), ("Request tokens",), ("Response tokens",)), _burstgpt
        ),
        Layout("mooncake", (("timestamp",), ("input_length",), ("output_length",)), _mooncake),
        Layout("servegen", (("timestamp",), ("input_tokens",), ("output_tokens",)), _servegen),
        Layout(
            "agent-sessions",
            (
                ("session_id",), ("idx",), ("arrival_s",), ("prompt_tokens",),
                ("output_tokens",), ("parent_idx",), ("shared_blocks",), ("n_blocks",),
            ),
            _agent_sessions, session_clock=True,
        ),
        Layout(
            "session-turns",
            (("session_id",), ("turn",), ("prompt_tokens",), ("output_tokens",)),
            _session_turns,
        ),
        *LOGS,
        Layout("conversations", (CONVERSATION,), _conversations),
        Layout("instructions", (("instruction",), ("output",)), _instructions),
        Layout(
            "native", (("prompt_tokens", "prompt"), ("output_tokens", "response")), _native
        ),
        BY_NAME,
    )
}  # fmt: skip


def _arrivals(name: str, values: NDArray[Any], options: Options) -> NDArray[Any]:
    """The project's own ``arrival_s``: seconds, unless a unit is given, or they are dates."""
    if options.time_unit:
        return seconds(name, "arrival_s", values, UNITS_S[options.time_unit])
    if earliest(values) >= EPOCHS[0][1]:
        return unit_seconds(name, "arrival_s", values, "s", options)
    if values.dtype == object and any(_is_date(value) for value in values):
        return seconds(name, "arrival_s", values)
    return values


def _is_date(value: Any) -> bool:
    return isinstance(value, datetime) or (isinstance(value, str) and DATE.match(value) is not None)


DATE = re.compile(r"\s*\d{4}-\d\d-\d\d")


def _limits(values: NDArray[Any]) -> NDArray[Any]:
    """Clients' limits, of whom some may have named none."""
    named = np.array([value is not None and value == value for value in values])
    return np.where(named, values, MOST_TOKENS)


def _prefixes(
    name: str, columns: Columns, table: Columns, options: Options, prefer: int = 0
) -> Columns:
    """``prefix_hashes`` of the full blocks, from ids that also cover the last, partial one.

    The block size is the file's ``hash_block_tokens``, else the one that the numbers of ids fit;
    where several do, ``prefer``, or an error if that is none of them.
    """
    prompt = check_column(name, "prompt_tokens", table["prompt_tokens"])
    ids = _hashes(name, "hash_ids", columns["hash_ids"])
    lengths = np.array([len(entry) for entry in ids])
    if "hash_block_tokens" in columns:
        sizes = check_column(name, "hash_block_tokens", columns["hash_block_tokens"])
    else:
        fit = [
            block
            for block in (16, 32, 64, 128, 256, 512, 1024, 2048)
            if (-(-prompt // block) == lengths).all() or (prompt // block == lengths).all()
        ]
        if not fit:
            raise InputError(
                f"{name}: hash_ids fit no block size (a power of two from 16 to 2048 tokens); "
                "give prefix_hashes and hash_block_tokens instead"
            )
        if len(fit) > 1 and prefer not in fit:
            raise InputError(
                f"{name}: hash_ids fit blocks of {', '.join(map(str, fit))} tokens; say which in a "
                "column hash_block_tokens"
            )
        block = prefer if prefer in fit else fit[0]
        options.notices.append(f"{name}: hash_ids stand for blocks of {block} tokens")
        sizes = np.full(len(ids), block)
    full = (prompt // sizes).tolist()
    return {
        "prefix_hashes": objects([entry[:k] for entry, k in zip(ids, full, strict=True)]),
        "hash_block_tokens": sizes,
    }


def _hashes(name: str, column: str, values: NDArray[Any]) -> list[tuple[int, ...]]:
    """Each row's hashes, from lists of whole numbers or their JSON text."""
    found = []
    for row, value in enumerate(values):
        try:
            entry = json.loads(value) if isinstance(value, str) else value
            found.append(tuple(operator.index(item) for item in entry))
        except (TypeError, ValueError, RecursionError):
            raise InputError(
                f"{name}: row {row}: {column} is {str(value)[:60]}; "
                "it must be a list of whole numbers"
            ) from None
    return found


def _parents(name: str, table: Columns) -> Columns:
    """``parent`` and ``think_s`` checked, since rows are dropped by them before all are checked."""
    if "think_s" not in table:
        raise InputError(f"{name}: parent needs a column think_s beside it, 0 where nobody thinks")
    parent = check_column(name, "parent", table["parent"])
    late = np.flatnonzero((parent >= np.arange(len(parent))) | (parent < -1))
    if len(late):
        raise InputError(
            f"{name}: row {late[0]}: parent is {parent[late[0]]}; it must be an earlier row, or -1"
        )
    return {"parent": parent, "think_s": check_column(name, "think_s", table["think_s"])}


def _history(sessions: NDArray[Any], prompt: NDArray[np.int64]) -> Columns:
    """Prefix hashes of prompts that only ever grow at their end within a session."""
    codes = _codes(sessions)
    full = prompt // HISTORY_BLOCK_TOKENS
    longest = np.zeros(codes.max(initial=-1) + 1, dtype=np.int64)
    np.maximum.at(longest, codes, full)
    start = np.concatenate(([0], np.cumsum(longest)))[codes]
    spans = zip(start.tolist(), full.tolist(), strict=True)
    hashes = [tuple(range(first, first + blocks)) for first, blocks in spans]
    return {
        "prefix_hashes": objects(hashes),
        "hash_block_tokens": np.full(len(hashes), HISTORY_BLOCK_TOKENS),
    }


def _loop(
    sessions: NDArray[Any], think_s: NDArray[Any] | None, agents: NDArray[Any] | None = None
) -> Columns:
    """``parent`` and ``think_s`` of rows that follow each other within a session (and agent)."""
    parent = np.full(len(sessions), -1, dtype=np.int64)
    last: dict[Any, int] = {}
    for row, one in enumerate(sessions):
        session = hashable(one)
        agent = (session, hashable(agents[row])) if agents is not None else session
        parent[row] = last.get(agent, last.get(session, -1))
        last[agent] = last[session] = row
    think = np.zeros(len(parent)) if think_s is None else think_s
    return {
        "parent": parent,
        "think_s": np.where(parent >= 0, think, 0.0),
        "arrival_s": np.zeros(len(parent)),
    }


def _roles(name: str, row: int, column: str, given: Any) -> list[str]:
    """Who speaks in each message, as the file calls them."""
    listed = isinstance(given, list | tuple | np.ndarray)
    if not listed or not all(isinstance(message, dict) for message in given):
        raise InputError(
            f"{name}: row {row}: {column} must be a list of messages with from and value, "
            "or role and content"
        )
    return [str(chat.field(message, "from", "role")).lower() for message in given]


def _codes(values: NDArray[Any]) -> NDArray[np.int64]:
    """0, 1, 2 ... for the values in order of first appearance."""
    seen: dict[Any, int] = {}
    codes = (seen.setdefault(hashable(value), len(seen)) for value in values)
    return np.fromiter(codes, dtype=np.int64, count=len(values))
