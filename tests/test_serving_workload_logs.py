"""Logs and benchmarks' results as workloads: small files as each tool writes them, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.serving.workload import read_prompts
from lengthwise.serving.workload.logs import LOGS
from lengthwise.serving.workload.readers import read, read_table

START_NS = 1_760_000_000_000_000_000  # 2025-10-09T08:53:20Z


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shown(workload: Any, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(workload[name].tolist() for name in names), strict=True))


BASIC = ("arrival_s", "prompt_tokens", "output_tokens")


def chat_response(created: int, prompt: int, answer: int, reason: str = "stop") -> dict[str, Any]:
    """As api.openai.com/v1/chat/completions answers."""
    message = {"role": "assistant", "content": "Hi."}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": created, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {
            "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer,
        },
    }  # fmt: skip


def test_responses_of_openai_s_api(tmp_path: Path) -> None:
    rows = [chat_response(1_700_000_000, 9, 4), chat_response(1_700_000_003, 20, 7, "length")]
    path = lines(tmp_path / "r.jsonl", *rows, {"error": {"message": "no"}, "usage": None})
    table = read_table(path)
    workload = table.workload()
    assert shown(workload, *BASIC, "model") == [(0, 9, 4, "m"), (3, 20, 7, "m")]
    assert table.columns["censored"].tolist() == [False, True]
    assert "r.jsonl: 1 of 3 records passed over: 1 failed" in workload.notices
    assert any("created read as s, 0.333 requests/s" in line for line in workload.notices)
    responses = {
        "object": "response", "created_at": 1_700_000_000, "model": "m", "max_output_tokens": 50,
        "usage": {"input_tokens": 30, "output_tokens": 50},
        "incomplete_details": {"reason": "max_output_tokens"},
    }  # fmt: skip
    found = read_table(lines(tmp_path / "s.jsonl", responses))
    assert shown(found.workload(), *BASIC, "max_tokens") == [(0, 30, 50, 50)]
    assert found.columns["censored"].tolist() == [True]


def test_a_proxy_s_log_and_a_batch_s_output(tmp_path: Path) -> None:
    def call(time: str, text: str, **more: Any) -> dict[str, Any]:
        messages = [{"role": "system", "content": "S"}, {"role": "user", "content": text}]
        request = {"model": "m", "messages": messages, "temperature": 0.5, "max_tokens": 64, **more}
        return {"timestamp": time, "request": request, "response": chat_response(1, 5, 6)}

    path = lines(
        tmp_path / "p.jsonl",
        call("2026-01-01T00:00:00.5Z", "one", tools=[{"type": "function"}]),
        call("2026-01-01T00:00:02Z", "two", tools=[]),
    )
    workload = read(path)
    assert shown(workload, *BASIC, "temperature", "tools", "max_tokens", "asked") == [
        (0, 5, 6, 0.5, 1, 64, "one"), (1.5, 5, 6, 0.5, 0, 64, "two"),
    ]  # fmt: skip
    assert read_prompts(path).prompt.tolist() == ["one", "two"]
    batch = [
        {"id": "b1", "custom_id": "a", "error": None,
         "response": {"status_code": 200, "request_id": "r", "body": chat_response(50, 3, 2)}},
        {"id": "b2", "custom_id": "b", "error": None,
         "response": {"status_code": 429, "request_id": "r", "body": {"error": {}}}},
        {"id": "b3", "custom_id": "c", "error": None,
         "response": {"status_code": 200, "request_id": "r", "body": chat_response(52, 4, 1)}},
    ]  # fmt: skip
    workload = read(lines(tmp_path / "b.jsonl", *batch))
    assert shown(workload, *BASIC) == [(0, 3, 2), (2, 4, 1)]
    question = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}
    with pytest.raises(InputError, match="without answers; give the batch's output file"):
        read(lines(tmp_path / "q.jsonl", question))


def test_other_lists_of_answers_and_prompts_that_a_cache_had(tmp_path: Path) -> None:
    rows = [chat_response(1_700_000_000, 9, 4), chat_response(1_700_000_003, 20, 7)]
    stored = tmp_path / "stored.json"  # as GET /v1/chat/completions lists them
    stored.write_text(json.dumps({"object": "list", "data": rows, "has_more": False}))
    assert shown(read(stored), *BASIC) == [(0, 9, 4), (3, 20, 7)]
    nested = tmp_path / "nested.json"  # lengths in an object of their own
    nested.write_text(json.dumps([
        {"request_id": row, "timestamp": row / 2, "data": {"input_tokens": 7, "output_tokens": 3}}
        for row in range(2)
    ]))  # fmt: skip
    assert shown(read(nested), *BASIC) == [(0, 7, 3), (0.5, 7, 3)]
    usage = {"input_tokens": 10, "cache_read_input_tokens": 90, "output_tokens": 5}
    other = {"input_tokens": 10, "output_tokens": 6}
    path = lines(tmp_path / "a.jsonl", {"ts": 1, "usage": usage}, {"ts": 2, "usage": other})
    found = read(path)  # Anthropic's input_tokens leave out what its cache had
    assert shown(found, *BASIC) == [(0, 100, 5), (1, 10, 6)]
    assert any("cache_read_input_tokens" in line for line in found.notices)


def test_litellm_s_payloads(tmp_path: Path) -> None:
    row = {
        "id": "1", "call_type": "acompletion", "status": "success", "prompt_tokens": 11,
        "completion_tokens": 6, "total_tokens": 17, "startTime": 1_700_000_000.25,
        "endTime": 1_700_000_001.0, "model": "m", "model_group": "g", "end_user": "u1",
        "trace_id": "t", "model_parameters": {"max_tokens": 6, "temperature": 0.1},
        "messages": [{"role": "user", "content": "hello"}],
        "response": {"choices": [{"finish_reason": "length"}]},
    }  # fmt: skip
    failed = {**row, "status": "failure", "completion_tokens": 0}
    later = {**row, "startTime": 1_700_000_002.25, "end_user": "u2"}
    table = read_table(lines(tmp_path / "l.jsonl", row, failed, later))
    assert shown(table.workload(), *BASIC, "tenant", "session_id", "max_tokens", "asked") == [
        (0, 11, 6, "u1", "t", 6, "hello"), (2, 11, 6, "u2", "t", 6, "hello"),
    ]  # fmt: skip
    assert table.columns["censored"].tolist() == [True, True]
    assert "l.jsonl: 1 of 3 records passed over: 1 failed" in table.notices
    spend = tmp_path / "spend.csv"
    spend.write_text(
        "request_id,startTime,endTime,prompt_tokens,completion_tokens,model,status\n"
        "1,2026-01-01T00:00:00,2026-01-01T00:00:01,8,2,m,success\n"
        "2,2026-01-01T00:00:04,2026-01-01T00:00:05,9,3,m,success\n"
    )
    assert shown(read(spend), *BASIC) == [(0, 8, 2), (4, 9, 3)]


def test_what_vllm_bench_serve_saves(tmp_path: Path) -> None:
    run = {
        "date": "20260101-000000", "backend": "vllm", "model_id": "m", "num_prompts": 3,
        "duration": 2.0, "completed": 2, "total_input_tokens": 30, "request_throughput": 1.0,
        "input_lens": [10, 20, 30], "output_lens": [5, 0, 7], "ttfts": [0.1, 0.0, 0.2],
        "itls": [[0.1], [], [0.1]], "start_times": [100.5, 100.75, 101.5],
        "generated_texts": ["a", "", "b"], "errors": ["", "timeout", ""],
    }  # fmt: skip
    path = tmp_path / "vllm-inf.json"
    path.write_text(json.dumps(run))
    workload = read(path)
    assert shown(workload, *BASIC, "model") == [(0, 10, 5, "m"), (1, 30, 7, "m")]
    assert "vllm-inf.json: 1 of 3 records passed over: 1 failed" in workload.notices
    older = {key: value for key, value in run.items() if key != "start_times"}
    path.write_text(json.dumps(older))
    table = read_table(path)
    assert table.columns["output_tokens"].tolist() == [5, 7] and "arrival_s" not in table.columns
    path.write_text(json.dumps({**run, "start_times": [1.0]}))
    with pytest.raises(InputError, match="start_times has 1 entries, for 3 requests"):
        read(path)
    path.write_text(json.dumps({key: run[key] for key in ("num_prompts", "request_throughput")}))
    with pytest.raises(InputError, match="--save-result --save-detailed"):
        read(path)
    with pytest.raises(InputError, match="holds 2 benchmark runs"):
        read(lines(tmp_path / "two.jsonl", run, run))


def test_aiperf_s_records(tmp_path: Path) -> None:
    def record(after_ns: int, prompt: int, answer: int, **more: Any) -> dict[str, Any]:
        about = {
            "session_num": 1, "x_correlation_id": "c", "turn_index": 0,
            "request_start_ns": START_NS + after_ns, "benchmark_phase": "profiling",
            "was_cancelled": False, **more,
        }  # fmt: skip
        told = {
            "input_sequence_length": {"value": prompt, "unit": "tokens"},
            "output_sequence_length": {"value": answer, "unit": "tokens"},
        }
        return {"metadata": about, "metrics": told, "error": None}

    path = lines(
        tmp_path / "profile_export.jsonl",
        record(0, 550, 9, benchmark_phase="warmup"), record(1_000_000_000, 100, 10),
        {**record(1_200_000_000, 1, 1), "metrics": {}, "error": {"code": 499}},
        record(3_500_000_000, 200, 20),
    )  # fmt: skip
    workload = read(path)
    assert shown(workload, *BASIC, "session_id") == [(0, 100, 10, "c"), (2.5, 200, 20, "c")]
    said = " ".join(workload.notices)
    assert "2 of 4 records passed over: 1 of the phase warmup, 1 failed" in said
    assert "request_start_ns read as ns, 0.4 requests/s" in said
    inputs = tmp_path / "inputs.json"
    inputs.write_text(json.dumps({"data": [{"session_id": "c", "payloads": [{}]}]}))
    with pytest.raises(InputError, match=r"questions without answers; give profile_export.jsonl"):
        read(inputs)


def test_genai_perf_s_profiles(tmp_path: Path) -> None:
    def chunk(**told: Any) -> dict[str, str]:
        return {"response": f"data: {json.dumps(told)}\n\n"}

    def request(time: int, *outputs: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Is this a test?"}]
        payload = json.dumps({"model": "m", "messages": messages, "max_tokens": 9})
        return {
            "timestamp": time, "request_inputs": {"payload": payload},
            "response_timestamps": [time + 1] * len(outputs), "response_outputs": list(outputs),
        }  # fmt: skip

    words = [chunk(choices=[{"index": 0, "delta": {"content": word}}]) for word in ("Yes", ", it")]
    usage = chunk(choices=[], usage={"prompt_tokens": 12, "completion_tokens": 4})
    done = {"response": "data: [DONE]\n\n"}
    requests = [
        request(START_NS, *words, usage, done),
        request(START_NS + 5 * 10**8, *words, usage, done),
    ]
    path = tmp_path / "profile_export.json"
    run = {"experiment": {"mode": "concurrency", "value": 1}, "requests": requests}
    path.write_text(json.dumps({"service_kind": "openai", "experiments": [run, run]}))
    workload = read(path)
    assert shown(workload, *BASIC, "max_tokens", "asked") == [
        (0, 12, 4, 9, "Is this a test?"), (0.5, 12, 4, 9, "Is this a test?"),
    ]  # fmt: skip
    assert "profile_export.json: the first of 2 experiments" in workload.notices
    bare = {"experiments": [{"requests": [request(1, *words), request(2)]}]}
    path.write_text(json.dumps(bare))
    workload = read(path)
    assert len(workload) == 1 and workload["output_tokens"][0] >= 2  # of "Yes, it", estimated
    assert any("output_tokens estimated from the texts" in line for line in workload.notices)


def test_spans_of_opentelemetry(tmp_path: Path) -> None:
    def value(item: Any) -> dict[str, Any]:
        if isinstance(item, list):
            return {"arrayValue": {"values": [value(one) for one in item]}}
        kinds = {int: "intValue", float: "doubleValue", str: "stringValue"}
        return {kinds[type(item)]: str(item) if isinstance(item, int) else item}

    def attributes(prompt: int, answer: int) -> dict[str, Any]:
        return {
            "gen_ai.operation.name": "chat", "gen_ai.request.model": "m",
            "gen_ai.request.max_tokens": 100, "gen_ai.request.temperature": 0.7,
            "gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": answer,
            "gen_ai.response.finish_reasons": ["stop"], "gen_ai.conversation.id": "c1",
        }  # fmt: skip

    def otlp(after_ns: int, told: dict[str, Any]) -> dict[str, Any]:
        typed = [{"key": key, "value": value(item)} for key, item in told.items()]
        return {
            "traceId": "5b8e", "spanId": "eee1", "name": "chat m", "kind": 3,
            "startTimeUnixNano": str(START_NS + after_ns), "attributes": typed,
        }  # fmt: skip

    def export(*spans: Any) -> dict[str, Any]:
        return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}

    expected = [(0, 10, 5, 100, 0.7, "c1", "m"), (0.5, 20, 8, 100, 0.7, "c1", "m")]
    names = (*BASIC, "max_tokens", "temperature", "session_id", "model")
    path = lines(
        tmp_path / "traces.jsonl",
        export(otlp(0, attributes(10, 5)), otlp(1, {"http.request.method": "POST"})),
        export(otlp(500_000_000, attributes(20, 8))),
    )
    workload = read(path)
    assert shown(workload, *names) == expected
    assert "1 of 3 records passed over: 1 no call of a model" in " ".join(workload.notices)
    console = [  # as the SDK's ConsoleSpanExporter prints them
        {"name": "chat m", "start_time": time, "attributes": told}
        for time, told in (
            ("2026-01-01T00:00:00.250000Z", attributes(10, 5)),
            ("2026-01-01T00:00:00.750000Z", attributes(20, 8)),
        )
    ]
    assert shown(read(lines(tmp_path / "console.jsonl", *console)), *names) == expected
    old = {"gen_ai.usage.prompt_tokens": 3, "gen_ai.usage.completion_tokens": 2}  # vLLM's own
    found = read(lines(tmp_path / "vllm.jsonl", export(otlp(0, old))))
    assert shown(found, *BASIC) == [(0, 3, 2)]
    with pytest.raises(InputError, match=r"no record is a request \(1 no call of a model\)"):
        read(lines(tmp_path / "none.jsonl", export(otlp(0, {"a": "b"}))))


@pytest.mark.parametrize(
    ("head", "rows", "said"),
    [
        ("arrived_at,num_prefill_tokens,num_decode_tokens", "0.5,32,8\n2,16,4",
         "read num_prefill_tokens as prompt_tokens, num_decode_tokens as output_tokens, "
         "arrived_at as arrival_s"),  # Vidur
        ("prompt_len,output_len,timestamp", "32,8,1700000000000\n16,4,1700000001500",
         "timestamp read as ms, 0.667 requests/s"),
        ("Timestamp,Prompt Tokens,Completion Tokens", "2026-01-01 10:00:00,32,8\n"
         "2026-01-01 10:00:01.5,16,4", "Prompt Tokens as prompt_tokens"),
        ("isl,osl,request_start_time", "32,8,7\n16,4,8.5", "isl as prompt_tokens"),
    ],
)  # fmt: skip
def test_common_names_of_columns_are_read_and_said(
    head: str, rows: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{head}\n{rows}\n")
    workload = read(path)
    assert shown(workload, *BASIC) == [(0, 32, 8), (1.5, 16, 4)]
    assert said in " ".join(workload.notices)


@pytest.mark.parametrize(
    "head",
    [
        "request_created_at,tokens_prompt,tokens_completion",
        "requestTimestamp,inputTokens,tokens_out",
        "Arrived at,request_num_prefill_tokens,request_num_decode_tokens",
    ],
)
def test_names_in_any_spelling_and_what_is_left_out(tmp_path: Path, head: str) -> None:
    (tmp_path / "t.csv").write_text(f"{head},delay\n1,30,4,x\n3,31,5,x\n")
    found = read(tmp_path / "t.csv")
    assert shown(found, *BASIC) == [(0, 30, 4), (2, 31, 5)]
    assert any(line.endswith("; ignored columns delay") for line in found.notices)


def test_json_over_many_lines_without_a_list_and_spans_in_snake_case(tmp_path: Path) -> None:
    spans = [
        {"name": "chat", "start_time": f"2025-10-09T08:53:2{row}.5Z",
         "attributes": {"gen_ai.usage.input_tokens": 30, "gen_ai.usage.output_tokens": 4 + row}}
        for row in range(3)
    ]  # fmt: skip
    path = tmp_path / "console.jsonl"  # as OpenTelemetry's console exporter prints spans
    path.write_text("\n".join(json.dumps(span, indent=4) for span in spans))
    assert shown(read(path), *BASIC) == [(0, 30, 4), (1, 30, 5), (2, 30, 6)]
    path.write_text(path.read_text()[:-30])
    with pytest.raises(InputError, match="line 1 is not JSON"):
        read(path)
    counts = (("input", 30), ("output", 4))
    span = {
        "start_time_unix_nano": str(START_NS),
        "attributes": [
            {"key": f"gen_ai.usage.{name}_tokens", "value": {"int_value": str(count)}}
            for name, count in counts
        ],
    }
    path = lines(tmp_path / "s.jsonl", {"resource_spans": [{"scope_spans": [{"spans": [span]}]}]})
    assert shown(read(path), *BASIC) == [(0, 30, 4)]


def test_litellm_s_log_without_the_lengths_of_answers_is_told_what_is_missing(
    tmp_path: Path,
) -> None:
    row = {"status": "success", "prompt_tokens": 11, "total_tokens": 17, "startTime": 1.7e9}
    whole = {**row, "completion_tokens": 6, "startTime": 1.7e9 + 1}
    for rows, count in (
        ((whole, row), "1 of 2"),
        (({**row, "completion_tokens": None},), "1 of 1"),
    ):
        with pytest.raises(InputError) as told:
            read(lines(tmp_path / "l.jsonl", *rows))
        assert str(told.value) == (
            f"l.jsonl: row {len(rows) - 1}: no completion_tokens, which says how "
            f"long its answer is ({count} requests have none), and not every answer has a text to "
            "count"
        )
    with pytest.raises(InputError) as told:
        read(lines(tmp_path / "l.jsonl", row))
    line = str(told.value)
    assert "nothing says how many tokens its answers have: no column completion_tokens" in line
    assert "which the layout litellm needs" in line and "'total_tokens' is near" not in line
    assert "nearest: --columns arrival_s=startTime,output_tokens=NAME" in line


def test_an_unknown_layout_is_told_the_nearest_mapping(tmp_path: Path) -> None:
    path = tmp_path / "u.csv"
    path.write_text("when,in_tok,out_tok,who\n0,10,5,a\n1,20,6,b\n")
    with pytest.raises(InputError) as told:
        read(path)
    line = str(told.value)
    assert "it has when, in_tok, out_tok, who" in line
    mapping = "output_tokens=out_tok,prompt_tokens=in_tok,arrival_s=when"
    assert f"nearest: --columns {mapping}" in line and "\n" not in line
    columns = dict(item.split("=") for item in mapping.split(","))
    assert shown(read(path, columns=columns), *BASIC) == [(0, 10, 5), (1, 20, 6)]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="--columns renames columns"):
        read(path)


def test_odd_records_are_one_line(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    with pytest.raises(InputError, match="row 1: no time; others have one"):
        read(lines(tmp_path / "a.jsonl", {"created": 1, "usage": usage}, {"usage": usage}))
    with pytest.raises(InputError, match=r"row 0: no usage\.prompt_tokens.*how long its prompt is"):
        read(lines(tmp_path / "b.jsonl", {"created": 1, "usage": {"completion_tokens": 2}}))
    with pytest.raises(InputError, match=r"c.jsonl: row 0: not as its layout has it"):
        read(lines(tmp_path / "c.jsonl", {"experiments": [{"requests": ["x"]}]}))
    with pytest.raises(InputError, match=r"d.jsonl: not as the layout otlp has it"):
        read(lines(tmp_path / "d.jsonl", {"resourceSpans": [3]}))
    bad = {"created": 1, "usage": {"prompt_tokens": "many", "completion_tokens": 2}}
    with pytest.raises(InputError, match="prompt_tokens is 'many'"):
        read(lines(tmp_path / "d.jsonl", bad))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_stands_in_records_is_a_workload_or_one_line(data: st.DataObject) -> None:
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    names = st.sampled_from(
        ["value", "usage", "requests", "scopeSpans", "spans", "attributes", "key", "intValue",
         "prompt_tokens", "completion_tokens", "response_outputs", "body", "choices", "response"]
    )  # fmt: skip
    anything = st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=8,
    )  # fmt: skip
    layout = data.draw(st.sampled_from(LOGS))
    columns = {options[0]: data.draw(st.lists(anything, min_size=2, max_size=2))
               for options in layout.needs}  # fmt: skip
    try:
        read(columns, layout=layout.name)
    except InputError as error:
        assert "\n" not in str(error)
