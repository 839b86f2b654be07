"""Layouts of logs and of benchmarks' results, whose records are nested, and of common names.

Each reads what its tool writes (versions beside the functions) into the project's columns. Calls
that failed, and records that are no calls, are passed over and counted in a notice.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lengthwise import chat
from lengthwise.errors import InputError
from lengthwise.serving.workload.bench import bench_requests
from lengthwise.serving.workload.files import Columns
from lengthwise.serving.workload.layout import (
    CUT,
    ROW,
    Layout,
    Options,
    objects,
    unit_seconds,
)
from lengthwise.workload import MOST_TOKENS

Record = dict[str, Any]
# what code raises that meets a number or a text where a record or a list belongs
ODD = (TypeError, ValueError, LookupError, AttributeError, RecursionError, OverflowError)


class Skipped(Exception):
    """A record that is no request; the message says what it is."""


# OpenAI's API, and proxies and gateways that log its calls


def _openai(columns: Columns, name: str, options: Options) -> Columns:
    """Responses of OpenAI's API with their ``usage`` (Chat Completions, Completions, Responses),
    one a line, alone or as a proxy logs them: {"timestamp", "request": {...}, "response": {...}};
    and the output files of its Batch API ({"custom_id", "response": {"status_code", "body"}}).
    """

    def of(row: Record) -> Record:
        answer = row
        if isinstance(row.get("response"), dict):
            answer = row["response"]
            if answer.get("status_code") not in (None, 200):
                raise Skipped("failed")
            answer = answer["body"] if isinstance(answer.get("body"), dict) else answer
        asked = next((r for k in ("request", "body") if isinstance(r := row.get(k), dict)), row)
        if isinstance(asked.get("body"), dict):
            asked = asked["body"]
        usage = answer.get("usage") or row.get("usage")
        if not isinstance(usage, dict):
            raise Skipped("failed" if row.get("error") or answer.get("error") else "no usage")
        times = ((row, ("timestamp", "time", "ts", "created_at", "created", "start_time",
                        "startTime", "request_time")),
                 (answer, ("created", "created_at")))  # fmt: skip
        limit = _first(asked, "max_completion_tokens", "max_tokens", "max_output_tokens")
        if limit is None and asked is not answer:
            limit = answer.get("max_output_tokens")
        prompt_tokens = _count(_first(usage, "prompt_tokens", "input_tokens"))
        if "prompt_tokens" not in usage and isinstance(prompt_tokens, int):  # Anthropic's: the rest
            cached = sum(usage.get(name) or 0 for name in CACHED)
            cached_tokens.append(cached)
            prompt_tokens += cached
        return {
            "arrival_s": next((t for r, k in times if (t := _first(r, *k)) is not None), None),
            "prompt_tokens": prompt_tokens,
            "output_tokens": _count(_first(usage, "completion_tokens", "output_tokens")),
            "model": _first(answer, "model") or asked.get("model"),
            "finish_reason": _ending(answer),
            "max_tokens": limit,
            "session_id": _first(row, "session_id", "conversation_id") or asked.get("user"),
            **_sampling(asked),
            **_asked(asked),
        }

    cached_tokens: list[int] = []
    counts = ("usage.prompt_tokens", "usage.completion_tokens")
    table = _read(columns, name, options, of, "s", "created", counts)
    if any(cached_tokens):
        options.notices.append(
            f"{name}: prompts are input_tokens, {' and '.join(CACHED)} together, as Anthropic "
            "counts"
        )
    return table


# Anthropic's ``input_tokens`` are those that its prompt cache neither had nor took in; OpenAI's
# ``prompt_tokens``, and its ``input_tokens``, are all.
CACHED = ("cache_read_input_tokens", "cache_creation_input_tokens")


def _inputs(columns: Columns, name: str, options: Options) -> Columns:
    """Files of questions: AIPerf's and GenAI-Perf's inputs.json, input files of OpenAI's Batch API.

    Raises ``InputError``: how long answers are is in other files. Other files have ``data`` too:
    OpenAI's lists of stored answers, and records with their lengths in an object of that name.
    """
    if "data" in columns:
        rows = [row for given in columns["data"] if isinstance(given, list) for row in given]
        if rows and all(isinstance(row, dict) and "usage" in row for row in rows):
            return _openai(_turned(rows), name, options)
        if all(isinstance(row, dict) for row in columns["data"]):
            outer = {key: values for key, values in columns.items() if key != "data"}
            flat = outer | _turned(columns["data"])
            if BY_NAME.fits(flat):
                return _names(flat, name, options)
    if "body" in columns:
        raise InputError(
            f"{name}: a batch's requests, without answers; give the batch's output file"
        )
    raise InputError(
        f"{name}: questions without answers; give profile_export.jsonl (AIPerf) or "
        "profile_export.json (GenAI-Perf) of the run"
    )


def _litellm(columns: Columns, name: str, options: Options) -> Columns:
    """LiteLLM 1.106: its StandardLoggingPayload (docs/proxy/logging_spec) in JSON lines, and rows
    of its table of spend logs.
    """

    def of(row: Record) -> Record:
        if str(row.get("status") or "success").lower() not in ("success", "200"):
            raise Skipped("failed")
        sent = row.get("model_parameters")
        asked: Record = sent if isinstance(sent, dict) else {}
        about = row.get("metadata")
        about = about if isinstance(about, dict) else {}
        return {
            "arrival_s": row.get("startTime"),
            "prompt_tokens": _count(row.get("prompt_tokens")),
            "output_tokens": _count(row.get("completion_tokens")),
            "model": row.get("model"),
            "finish_reason": _ending(row.get("response")),
            "max_tokens": _first(asked, "max_completion_tokens", "max_tokens"),
            "session_id": _first(row, "session_id", "trace_id"),
            "tenant": _first(row, "end_user", "team_id") or about.get("user_api_key_team_id"),
            **_sampling(asked),
            **_asked(row),
        }

    counts = ("prompt_tokens", "completion_tokens")
    return _read(columns, name, options, of, "s", "startTime", counts)


# Benchmarks


def _vllm_bench(columns: Columns, name: str, options: Options) -> Columns:
    """What ``bench_requests`` reads: lists with an entry a request."""
    runs = len(next(iter(columns.values())))
    if runs != 1:
        raise InputError(f"{name}: holds {runs} benchmark runs; give a file of one")
    run = {key: values[0] for key, values in columns.items()}
    rows = {key: objects(values) for key, values in bench_requests(name, run).items()}

    def of(row: Record) -> Record:
        if row.get("errors") or not row["output_lens"]:
            raise Skipped("failed")
        return {
            "arrival_s": row.get("start_times"), "prompt_tokens": _count(row["input_lens"]),
            "output_tokens": _count(row["output_lens"]), "model": run.get("model_id"),
        }  # fmt: skip

    return _read(rows, name, options, of, "s", "start_times")


def _aiperf(columns: Columns, name: str, options: Options) -> Columns:
    """AIPerf 0.14: ``profile_export.jsonl``, a record a request, times in nanoseconds."""

    def of(row: Record) -> Record:
        about, told = row.get("metadata"), row.get("metrics")
        if not isinstance(about, dict) or not isinstance(told, dict):
            raise Skipped("no request")
        if row.get("error") or about.get("was_cancelled"):
            raise Skipped("failed")
        if about.get("benchmark_phase") not in (None, "profiling"):
            raise Skipped(f"of the phase {about['benchmark_phase']}")
        return {
            "arrival_s": about.get("request_start_ns"),
            "prompt_tokens": _count(_value(told.get("input_sequence_length"))),
            "output_tokens": _count(
                _value(told.get("output_sequence_length") or told.get("output_token_count"))
            ),
            "session_id": about.get("x_correlation_id"),
        }

    return _read(columns, name, options, of, "ns", "request_start_ns")


def _genai_perf(columns: Columns, name: str, options: Options) -> Columns:
    """GenAI-Perf (Perf Analyzer's ``profile_export.json``): requests with the chunks of their
    answers; lengths are those of ``usage`` where chunks tell it, else estimated from the texts.
    """
    runs = [run for given in columns["experiments"] for run in given]
    if len(runs) > 1:
        options.notices.append(f"{name}: the first of {len(runs)} experiments")
    requests = runs[0].get("requests", []) if runs else []
    rows = {"request": objects(list(requests))}

    def of(row: Record) -> Record:
        request = row["request"]
        payload = _json(_first(request.get("request_inputs") or {}, "payload", "text_input"))
        asked = payload if isinstance(payload, dict) else {"prompt": payload}
        said, usage, reason = [], None, None
        for chunk in request.get("response_outputs") or ():
            for part in _chunks(chunk):
                usage = part.get("usage") or usage
                reason = _ending(part) or reason
                said.append(_said(part))
        answer = "".join(said)
        if not answer and usage is None:
            raise Skipped("failed")
        told: Record = usage if isinstance(usage, dict) else {}
        asking = _asked(asked)
        if "prompt_tokens" not in told and not asking:
            raise Skipped("no prompt")
        return {
            "arrival_s": request.get("timestamp"), "finish_reason": reason,
            "prompt_tokens": _count(told.get("prompt_tokens")),
            "output_tokens": _count(told.get("completion_tokens")), "response": answer,
            "max_tokens": _first(asked, "max_completion_tokens", "max_tokens"),
            "model": asked.get("model"), **_sampling(asked), **asking,
        }  # fmt: skip

    return _read(rows, name, options, of, "ns", "timestamp")


# OpenTelemetry


def _turned(rows: Iterable[Record]) -> Columns:
    """Records as columns, None where one lacks a key."""
    rows = list(rows)
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: objects([row.get(key) for row in rows]) for key in keys}


def _otlp(columns: Columns, name: str, options: Options) -> Columns:
    """OTLP's JSON lines, as the collector's file exporter writes them: ``resourceSpans``."""
    spans = [
        span
        for line in columns.get("resourceSpans", columns.get("resource_spans", ()))
        for resource in line or ()
        for scope in resource.get("scopeSpans") or resource.get("scope_spans") or ()
        for span in scope.get("spans") or ()
    ]
    return _read({"span": objects(spans)}, name, options, lambda r: _span(r["span"]), "ns", "spans")


def _spans(columns: Columns, name: str, options: Options) -> Columns:
    """Spans alone, one a line: the SDKs' console exporters, exports of Jaeger-like stores."""
    return _read(columns, name, options, _span, "ns", "start time")


def _span(span: Record) -> Record:
    """A span of a call by the GenAI semantic conventions (1.37 and before: prompt_tokens,
    completion_tokens, which vLLM's own spans have, and input_tokens, output_tokens).
    """
    told = _attributes(span.get("attributes"))
    out = _first(told, "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
    if out is None:
        raise Skipped("no call of a model")
    reasons = _first(told, "gen_ai.response.finish_reasons", "gen_ai.response.finish_reason")
    if isinstance(reasons, list):
        reasons = next(iter(reasons), None)
    return {
        "arrival_s": _first(span, "startTimeUnixNano", "start_time_unix_nano", "start_time",
                            "startTime"),
        "prompt_tokens": _count(
            _first(told, "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
        ),
        "output_tokens": _count(out),
        "model": _first(told, "gen_ai.response.model", "gen_ai.request.model"),
        "session_id": _first(told, "gen_ai.conversation.id", "session.id"),
        "max_tokens": told.get("gen_ai.request.max_tokens"),
        "temperature": told.get("gen_ai.request.temperature"),
        "top_p": told.get("gen_ai.request.top_p"),
        "finish_reason": reasons,
    }  # fmt: skip


def _attributes(given: Any) -> Record:
    """A span's attributes, from an object or from OTLP's list of keys and typed values."""
    if isinstance(given, dict):
        return given
    found: Record = {}
    for item in given or ():
        if isinstance(item, dict) and isinstance(item.get("value"), dict):
            found[str(item.get("key"))] = _typed(item["value"])
    return found


def _typed(value: Record) -> Any:
    listed, whole = (
        _first(value, "arrayValue", "array_value"),
        _first(value, "intValue", "int_value"),
    )
    if listed is not None:
        return [_typed(one) for one in listed.get("values") or ()]
    if whole is not None:
        return int(whole)
    return next(iter(value.values()), None)


# Common names of the same columns

NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt_tokens": (
        "prompt_tokens", "prompt_len", "prompt_length", "input_tokens", "input_len",
        "input_length", "num_prompt_tokens", "num_input_tokens", "num_prefill_tokens",
        "request_num_prefill_tokens", "prefill_tokens", "context_tokens", "request_tokens",
        "input_sequence_length", "isl",
        "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "usage.prompt_tokens",
        "tokens_prompt", "tokens_in",
    ),
    "output_tokens": (
        "output_tokens", "output_len", "output_length", "completion_tokens", "completion_len",
        "generated_tokens", "num_output_tokens", "num_generated_tokens", "num_completion_tokens",
        "num_decode_tokens", "request_num_decode_tokens", "decode_tokens", "response_tokens",
        "response_len",
        "output_sequence_length", "osl", "gen_ai.usage.output_tokens",
        "gen_ai.usage.completion_tokens", "usage.completion_tokens", "tokens_completion",
        "tokens_out",
    ),
    "arrival_s": (
        "arrival_s", "arrived_at", "arrival_time", "arrival_timestamp", "arrival", "timestamp",
        "time", "ts", "start_time", "starttime", "request_time", "request_start_time",
        "request_timestamp", "request_created_at", "created_at", "created", "datetime",
    ),
}  # fmt: skip


def named(columns: Iterable[str]) -> dict[str, str]:
    """Our names of columns that are called by a common name of theirs, whatever the case:
    ``inputTokens`` and ``Input tokens`` are ``input_tokens``.
    """
    listed = list(columns)[::-1]
    held = {HUMP.sub("_", column).lower(): column for column in listed}
    held |= {column.lower().replace(" ", "_"): column for column in listed}
    return {
        ours: held[name]
        for ours, names in NAMES.items()
        if (name := next((n for n in names if n in held), None)) is not None
    }


HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def nearest(columns: Iterable[str]) -> dict[str, str]:
    """What columns of unknown names most likely are, by the words in them; for a hint alone."""
    found = named(columns)
    for ours, words in WORDS.items():
        for column in columns:
            low = column.lower()
            if ours not in found and column not in found.values() and any(w in low for w in words):
                found[ours] = column
    return found


# in this order: "output" holds "put", so what is sure of an answer comes before a prompt
WORDS = {
    "output_tokens": ("output", "out", "completion", "generat", "decode", "response", "answer"),
    "prompt_tokens": ("prompt", "input", "in_", "in", "context", "prefill", "request", "query"),
    "arrival_s": ("time", "arriv", "stamp", "date", "when", "created", "start", "at"),
}


class ByName(Layout):
    """The layout of tables whose columns have common names."""

    def fits(self, columns: Columns) -> bool:
        """Whether a prompt's and an answer's lengths are there by some name."""
        return {"prompt_tokens", "output_tokens"} <= named(columns).keys()


# what has one name everywhere
ALSO = ("prompt", "model", "session_id", "tenant", "task", "max_tokens", "finish_reason")


def _names(columns: Columns, name: str, options: Options) -> Columns:
    """Vidur's traces (num_prefill_tokens, num_decode_tokens, arrived_at), ``prompt_len`` and
    ``output_len`` of many benchmarks, exports of logs: the first name that is known counts.
    """
    taken = named(columns)
    said = ", ".join(f"{theirs} as {ours}" for ours, theirs in taken.items() if ours != theirs)
    known = {*taken.values(), *ALSO}
    left = ", ".join(column for column in columns if column not in known)
    options.notices.append(f"{name}: read {said}" + (f"; ignored columns {left}" if left else ""))
    table = {ours: columns[theirs] for ours, theirs in taken.items()}
    if "arrival_s" in table:
        table["arrival_s"] = unit_seconds(
            name, taken["arrival_s"], table["arrival_s"], "s", options
        )
    for key in ALSO:
        if key in columns:
            table[key] = columns[key]
    return _tidied(table)


# What these have in common


def _read(
    columns: Columns, name: str, options: Options, of: Callable[[Record], Record], unit: str,
    clock: str, lengths: tuple[str, str] = ("prompt_tokens", "output_tokens"),
) -> Columns:  # fmt: skip
    """Columns of what ``of`` makes of each record; ``unit`` and ``clock`` are those of times,
    ``lengths`` what the file calls a prompt's and an answer's.
    """
    count = len(next(iter(columns.values())))
    found: list[Record] = []
    rows: list[int] = []
    passed: Counter[str] = Counter()
    for row in range(count):
        try:
            found.append(of({key: values[row] for key, values in columns.items()}))
        except Skipped as why:
            passed[str(why)] += 1
        except ODD as error:
            odd = f"{type(error).__name__}: {error}"
            raise InputError(f"{name}: row {row}: not as its layout has it ({odd})") from None
        else:
            rows.append(row)
    listed = ", ".join(f"{number} {why}" for why, number in passed.items())
    if not found:
        raise InputError(f"{name}: no record is a request ({listed or 'it has none'})")
    if passed:
        options.notices.append(f"{name}: {passed.total()} of {count} records passed over: {listed}")
    table: Columns = {}
    for key in dict.fromkeys(key for record in found for key in record):
        values = [record.get(key) for record in found]
        if all(value is None for value in values):
            continue
        whole = all(isinstance(value, int | float) for value in values)
        table[key] = np.array(values) if whole else objects(values)
    for key in (
        "prompt",
        "response",
        "prompt_tokens",
        "output_tokens",
    ):  # texts stand in where all have them
        if key in table and any(value is None for value in table[key]):
            del table[key]
    if "arrival_s" in table:
        missing = [row for row, t in zip(rows, table["arrival_s"], strict=True) if t is None]
        if missing:
            raise InputError(f"{name}: row {missing[0]}: no time; others have one ({clock})")
        table["arrival_s"] = unit_seconds(name, clock, table["arrival_s"], unit, options)
    for theirs, text, tokens, whose in zip(
        lengths, ("prompt", "response"), ("prompt_tokens", "output_tokens"), ("prompt", "answer"),
        strict=True,
    ):  # fmt: skip
        if text not in table and tokens not in table:
            without = [
                row for row, record in zip(rows, found, strict=True) if record.get(tokens) is None
            ]
            raise InputError(
                f"{name}: row {without[0]}: no {theirs}, which says how long its {whose} is "
                f"({len(without)} of {len(rows)} requests have none), and not every {whose} has a "
                "text to count"
            )
    if "prompt" not in table:
        for key in ("asked", "system_hash"):
            table.pop(key, None)
    return _tidied(table) | {ROW: np.array(rows)}


def _tidied(table: Columns) -> Columns:
    """Limits and ends as columns of a workload."""
    if "max_tokens" in table:
        table["max_tokens"] = np.array(
            [MOST_TOKENS if value is None or value != value else value
             for value in table["max_tokens"]]
        )  # fmt: skip
    if "finish_reason" in table:
        reasons = table.pop("finish_reason")
        table["censored"] = np.array([str(reason).lower() in CUT for reason in reasons])
    return table


def _first(record: Any, *names: str) -> Any:
    """The first of these that a record holds."""
    if not isinstance(record, dict):
        return None
    return next((record[name] for name in names if record.get(name) is not None), None)


def _count(value: Any) -> Any:
    """A number of tokens, from a number or its text; anything else as it is, to be refused."""
    return int(value) if isinstance(value, str) and value.strip().isdigit() else value


def _value(metric: Any) -> Any:
    return metric.get("value") if isinstance(metric, dict) else metric


def _sampling(asked: Record) -> Record:
    """What a call says of sampling."""
    said: Record = {name: asked.get(name) for name in ("temperature", "top_p")}
    if isinstance(asked.get("tools"), list):
        said["tools"] = float(bool(asked["tools"]))
    return said


def _asked(call: Record) -> Record:
    """The texts of a call: its messages, its prompt, or the Responses API's input."""
    for key in ("messages", "prompt", "input"):
        given = call.get(key)
        if isinstance(given, str) and given:
            return {"prompt": given, "asked": given}
        if isinstance(given, list) and given and all(isinstance(one, dict) for one in given):
            said = chat.messages(given)
            return {
                "prompt": "\n".join(text for _, text in said), "asked": chat.asked(said),
                "system_hash": chat.system_hash(said),
            }  # fmt: skip
    return {}


def _ending(answer: Any) -> Any:
    """Why an answer of OpenAI's API ended."""
    if not isinstance(answer, dict):
        return None
    choices = answer.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0].get("finish_reason")
    cut = answer.get("incomplete_details")  # of the Responses API
    return cut.get("reason") if isinstance(cut, dict) else None


def _said(part: Record) -> str:
    """The text of an answer or of a chunk of one."""
    choices = part.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        first = choices[0]
        inner = first.get("delta") or first.get("message") or first
        text = inner.get("content") if "content" in inner else inner.get("text")
        return text if isinstance(text, str) else ""
    text = part.get("text_output")  # Triton's own
    return text if isinstance(text, str) else ""


def _chunks(chunk: Any) -> Iterator[Record]:
    """The objects in a chunk of a stream: server-sent events, or plain."""
    if isinstance(chunk, dict) and isinstance(chunk.get("response"), str):
        for line in chunk["response"].splitlines():
            part = _json(line.removeprefix("data:").strip())
            if isinstance(part, dict):
                yield part
    elif isinstance(chunk, dict):
        yield chunk


def _json(text: Any) -> Any:
    """What a text spells in JSON; the text itself where it spells nothing."""
    if isinstance(text, str):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


@dataclass(frozen=True)
class Nested(Layout):
    """A layout of nested records, in which anything may stand where another thing belongs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "read", partial(_guarded, self.read, self.name))


def _guarded(
    read: Callable[[Columns, str, Options], Columns], layout: str, columns: Columns, name: str,
    options: Options,
) -> Columns:  # fmt: skip
    try:
        return read(columns, name, options)
    except InputError:
        raise
    except ODD as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"{name}: not as the layout {layout} has it ({why})") from None


LOGS = (
    Nested(
        "litellm", (("startTime",), ("prompt_tokens",), ("completion_tokens",)), _litellm
    ),
    Nested("otlp", (("resourceSpans", "resource_spans"),), _otlp),
    Nested(
        "otel-spans",
        (("attributes",),
         ("startTimeUnixNano", "start_time_unix_nano", "start_time", "startTime")),
        _spans,
    ),
    Nested("aiperf", (("metadata",), ("metrics",)), _aiperf),
    Nested("genai-perf", (("experiments",),), _genai_perf),
    Nested(
        "vllm-bench",
        (("input_lens", "request_throughput"), ("output_lens", "request_throughput")),
        _vllm_bench,
    ),
    Nested("inputs", (("data", "custom_id"), ("data", "body")), _inputs),
    Nested("openai", (("usage", "custom_id", "request"), ("usage", "response")), _openai),
)  # fmt: skip
BY_NAME = ByName(
    "names", (("prompt_tokens or a common name of it",), ("output_tokens or one",)), _names
)
