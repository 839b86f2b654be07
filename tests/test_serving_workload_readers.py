"""Readers: every layout on small files written here, every error, and the shared data pack."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.serving.workload import files, load_workload, parquet, read, read_prompts
from lengthwise.serving.workload.readers import read_table
from lengthwise.serving.workload.tokens import estimate_tokens
from lengthwise.workload import Workload

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the data pack is not beside the repository ({DATA})"
)
NATIVE = "arrival_s,prompt_tokens,output_tokens\n"


def write(path: Path, text: str) -> Path:
    """Writes a text file, gzipped if its name says so."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def jsonl(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["t.csv", "t.csv.gz", "t.tsv", "t.jsonl", "t.jsonl.gz", "t.json", "t.ndjson", "t.parquet"],
)
def test_every_format_reads_the_same(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame(
        {"arrival_s": [0.0, 0.5, 2.25], "prompt_tokens": [3, 4, 5], "output_tokens": [7, 8, 9],
         "prompt": ["a, b", 'say "x"', "línea\nnueva"], "priority": [1, 0, 2]}
    )  # fmt: skip
    path = tmp_path / name
    if ".parquet" in name:
        frame.to_parquet(path)
    elif ".csv" in name or ".tsv" in name:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
    else:
        frame.to_json(path, orient="records", lines=not name.endswith(".json"))
    workload = read(path)
    pd.testing.assert_frame_equal(workload.to_frame(), frame, check_like=True, check_dtype=False)
    assert workload.name == name
    pd.testing.assert_frame_equal(Workload.read(str(path)).to_frame(), workload.to_frame())


def test_gzip_is_found_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(gzip.compress((NATIVE + "0,1,1\n").encode()))
    assert len(read(path)) == 1


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "t.csv: the file is empty"),
        ("t.csv.gz", "", "t.csv.gz: the file is empty"),
        ("t.csv", NATIVE, "t.csv: no requests"),
        ("t.csv", NATIVE + "0,1,1\n1,2,0\n", "row 1: output_tokens is 0; it must be 1 or more; "
         r"drop such rows with drop_zero=True \(--drop-zero-output\)"),
        ("t.csv", NATIVE + "0,1,0\n1,2,0\n", r"row 0: output_tokens is 0.*\(and 1 more rows\)"),
        ("t.csv", NATIVE + "0,1,1\n1,-2,3\n", "row 1: prompt_tokens is -2; it must be 1 or more"),
        ("t.csv", NATIVE + "0,1,1\n1,2,-3\n", "row 1: output_tokens is -3; it must be 1 or more"),
        ("t.csv", NATIVE + "0,1,1\n1,2,\n", "row 1: output_tokens is nan; .*a finite number"),
        ("t.csv", NATIVE + "0,1,1\nNaN,2,3\n", "row 1: arrival_s is nan; .*a finite number"),
        ("t.csv", NATIVE + "0,1,1\n1,2,many\n", "row 1: output_tokens is 'many'; .*a number"),
        ("t.csv", NATIVE + "0,1,1,5\n0,1,1\n0,1,1,2,3\n", "t.csv: not a CSV table"),
        ("t.csv", "arrival_s,prompt_token,output_tokens\n0,1,1\n",
         "no column prompt_tokens or prompt .'prompt_token' is near 'prompt_tokens'"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedToken\n2023-11-16,1,1\n",
         "no column GeneratedTokens .'GeneratedToken' is near 'GeneratedTokens'.*layout azure"),
        ("t.csv", "a,b\n1,2\n", "no column .*; it has a, b; --columns .*: engine-record, azure"),
        ("t.csv", "prompt_tokens,output_tokens\n1,2\n", "has no arrival times; .*poisson:8"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nsoon,1,1\n",
         "row 0: TIMESTAMP is 'soon'; it must be a number, or a date such as 2024"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1,1\n5 s,1,1\n",
         "row 1: TIMESTAMP is '5 s'"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,1,1\n,1,1\n",
         "row 1: TIMESTAMP is missing"),
        ("t.jsonl", '{"arrival_s": 0}\n{"arr', "t.jsonl: line 2 is not JSON"),
        ("t.jsonl", "[1, 2]\n", "t.jsonl: row 0 is a JSON list, not an object"),
        ("t.json", "[{]", "t.json: the file is not JSON"),
        ("t.jsonl", jsonl({"prompt": None, "response": "x"}), "row 0: prompt is None, not a text"),
        ("t.jsonl", jsonl({"conversations": "hi"}), "row 0: conversations must be a list"),
        ("t.jsonl", jsonl({"conversations": []}), "no conversation has a question and an answer"),
        ("t.jsonl", jsonl({"timestamp": 0, "input_length": 100, "output_length": 5,
                           "hash_ids": [1, 2, 3]},
                          {"timestamp": 0, "input_length": 5000, "output_length": 5,
                           "hash_ids": [1]}), "hash_ids fit no block size"),
        ("t.jsonl", jsonl({"timestamp": 0, "input_length": 9, "output_length": 5, "hash_ids": 3}),
         "row 0: hash_ids is 3; it must be a list of whole numbers"),
        ("t.jsonl", jsonl({"prompt": "p", "output_tokens": 1, "hash_ids": [1]}),
         "hash_ids need prompt_tokens"),
        ("t.csv", NATIVE.replace("\n", ",prefix_hashes\n") + '0,9,1,"[1, x]"\n',
         "row 0: prefix_hashes is .1, x.; it must be a list of whole numbers"),
        ("t.csv", NATIVE.replace("\n", ",parent\n") + "0,1,1,-1\n", "parent needs .* think_s"),
        ("t.csv", NATIVE.replace("\n", ",parent,think_s\n") + "0,1,1,-1,0\n0,1,1,7,0\n",
         "row 1: parent is 7; it must be an earlier row, or -1"),
        ("t.csv", NATIVE.replace("\n", ",parent,think_s\n") + "0,1,1,-1,0\n0,1,1,,0\n",
         "row 1: parent is nan; it must be a finite number"),
        ("t.csv", "session_id,turn,prompt_tokens,output_tokens\na,first,1,1\n",
         "row 0: turn is 'first'; it must be a number"),
        ("t.csv", "session_id,turn,prompt_tokens,output_tokens\na,1,1,1\nb,0,1,1\na,0,1,-3\n",
         "row 2: output_tokens is -3"),
        ("t.jsonl", jsonl({"messages": []}, {"messages": [{"role": "user", "content": "a"},
                                                         {"role": "assistant", "content": ""}]}),
         "row 1: output_tokens is 0"),
        ("t.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        ("t.parquet", "not parquet", "t.parquet: not a Parquet file"),
        ("t.txt", "x", "unknown kind of file; it must end in .csv"),
    ],
)  # fmt: skip
def test_bad_files_are_one_clear_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(write(tmp_path / name, text))
    assert "\n" not in str(caught.value)


def test_damaged_gzip_files(tmp_path: Path) -> None:
    whole = gzip.compress((NATIVE + "0,1,1\n" * 1000).encode())
    for data, message in (
        (whole[: len(whole) // 2], "the gzip file is truncated"),
        (whole[:-8] + b"xxxx" + whole[-4:], "the gzip file is damaged"),
        (NATIVE.encode(), "not a gzip file, though its name ends in .gz"),
    ):
        (tmp_path / "t.csv.gz").write_bytes(data)
        with pytest.raises(InputError, match=message):
            read(tmp_path / "t.csv.gz")


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "trace.csv", NATIVE)
    with pytest.raises(InputError, match=r"no such file; did you mean .*trace\.csv\?"):
        read(tmp_path / "trase.csv")
    with pytest.raises(InputError, match="no such file; there is no folder"):
        read(tmp_path / "nowhere" / "trace.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"folder\.csv: a folder without Parquet files"):
        read(tmp_path / "folder.csv")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    for name in ("t.csv", "t.jsonl"):
        (tmp_path / name).write_bytes(b"arrival_s,\xff\xfe\n1,2\n")
        with pytest.raises(InputError, match=r"not UTF-8 text|not a CSV table"):
            read(tmp_path / name)


def test_options_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", NATIVE.replace("\n", ",model\n") + "0,1,1,m7b\n")
    with pytest.raises(UnknownNameError, match="layout 'azur'; did you mean 'azure'"):
        read(path, layout="azur")
    with pytest.raises(InputError, match=r"the layout needs azure .TIMESTAMP, ContextTokens"):
        read(path, layout="azure")
    with pytest.raises(UnknownNameError, match=r"unknown model 'm7' in t.csv; did you mean 'm7b'"):
        read(path, model="m7")
    with pytest.raises(InputError, match="limit must be 1 or more"):
        read(path, limit=0)
    with pytest.raises(UnknownNameError, match="unknown value 'last' of turns"):
        read(path, turns="last")
    with pytest.raises(
        UnknownNameError, match=r"unknown column 'modell' of t.csv; did you mean 'model'"
    ):
        read(path, columns={"tenant": "modell"})
    with pytest.raises(InputError, match="can't read a workload from int"):
        read(3)
    bare = write(tmp_path / "bare.csv", NATIVE + "0,1,1\n")
    with pytest.raises(InputError, match="has no model column"):
        read(bare, model="m")


# --- native columns --------------------------------------------------------------------------


def test_notices_say_what_was_ignored_sorted_and_together(tmp_path: Path) -> None:
    text = NATIVE.replace("\n", ",deadlines_s,colour\n") + "2,1,1,9,a\n1,2,2,9,a\n1,3,3,9,a\n"
    workload = read(write(tmp_path / "t.csv", text))
    assert list(workload["prompt_tokens"]) == [2, 3, 1]
    assert workload.notices == (
        "t.csv: ignored columns deadlines_s (did you mean deadline_s?), colour",
        "t.csv: 1 arrivals coincide with another; in file order",
        "t.csv: arrivals were not in order; sorted by arrival_s",
    )


def test_zero_output_rows_can_be_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", NATIVE + "0,1,0\n1,2,5\n2,3,0\n3,4,6\n")
    workload = read(path, drop_zero=True)
    assert list(workload["output_tokens"]) == [5, 6]
    assert workload.notices == ("t.csv: dropped 2 requests without output",)
    assert len(read(path, drop_zero=True, limit=1)) == 1


def test_errors_name_the_row_of_the_file_even_after_a_choice(tmp_path: Path) -> None:
    rows = "0,1,1,a\n1,2,0,b\n2,3,0,a\n"
    path = write(tmp_path / "t.csv", NATIVE.replace("\n", ",model\n") + rows)
    with pytest.raises(InputError, match="row 2: output_tokens is 0"):
        read(path, model="a")
    with pytest.raises(InputError, match="row 1: output_tokens is 0"):
        read(path, model="b")


def test_prefix_hashes_are_lists_or_their_text(tmp_path: Path) -> None:
    text = NATIVE.replace("\n", ",prefix_hashes,hash_block_tokens\n") + '0,40,1,"[1, 2]",16\n'
    assert read(write(tmp_path / "t.csv", text))["prefix_hashes"][0] == (1, 2)
    row = {"arrival_s": 0, "prompt_tokens": 40, "output_tokens": 1, "prefix_hashes": [1, 2],
           "hash_block_tokens": 16}  # fmt: skip
    assert read(write(tmp_path / "t.jsonl", jsonl(row)))["prefix_hashes"][0] == (1, 2)


def test_dates_as_arrival_seconds_count_from_the_first(tmp_path: Path) -> None:
    text = (
        NATIVE.replace("\n", ",deadline_s\n")
        + "1700000000,1,1,1700000004\n1700000002.5,1,1,1700000009\n"
    )
    workload = read(write(tmp_path / "t.csv", text))
    assert list(workload["arrival_s"]) == [0.0, 2.5]
    assert list(workload["deadline_s"]) == [4.0, 9.0]
    assert "counted from its first" in workload.notices[0]


def test_columns_may_be_renamed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", jsonl({"question": "Why?", "answer": "Because of it."}))
    prompts = read_prompts(path, columns={"prompt": "question", "response": "answer"})
    assert list(prompts.prompt) == ["Why?"]
    assert list(prompts.prompt_tokens) == [2]
    assert list(prompts.output_tokens) == [4]
    assert prompts.notices == ("t.jsonl: prompt_tokens and output_tokens estimated from the texts",)


def test_censored_answers_are_marked(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "output_tokens": 4, "ended_with_eos": e} for e in (1, 0, -1)]
    assert list(read_prompts(write(tmp_path / "t.jsonl", jsonl(*rows))).censored) == [0, 1, 0]
    rows = [{"prompt": "p", "output_tokens": 4, "finish_reason": r} for r in ("stop", "length")]
    assert list(read_prompts(write(tmp_path / "u.jsonl", jsonl(*rows))).censored) == [0, 1]


def test_texts_are_joined_by_prompt_id(tmp_path: Path) -> None:
    lengths = write(tmp_path / "l.csv", "prompt_id,model,output_tokens\nb,m,7\na,m,5\nb,n,9\n")
    texts = write(
        tmp_path / "p.jsonl",
        jsonl(*({"prompt_id": i, "prompt": f"text {i}", "prompt_tokens": 2} for i in "ab")),
    )
    prompts = read_prompts(lengths, prompts=texts)
    assert list(prompts.prompt) == ["text b", "text a", "text b"]
    assert list(prompts.output_tokens) == [7, 5, 9]
    with pytest.raises(InputError, match="texts are joined by prompt_id with prompts=FILE"):
        read_prompts(lengths)
    write(tmp_path / "l.csv", "prompt_id,output_tokens\nc,7\n")
    with pytest.raises(InputError, match=r"row 0: p.jsonl has no prompt 'c'"):
        read_prompts(lengths, prompts=texts)


def test_prompts_need_texts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no prompt texts"):
        read_prompts(write(tmp_path / "t.csv", NATIVE + "0,1,1\n"))


# --- published layouts -----------------------------------------------------------------------


def test_azure(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
    )
    workload = read(write(tmp_path / "t.csv", text))
    assert workload["arrival_s"] == pytest.approx([0, 4.314579], abs=1e-9)
    assert list(workload["prompt_tokens"]) == [374, 396]
    # the traces of 2024 carry a time zone
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,1,5\n"
    )
    assert read(write(tmp_path / "u.csv", text))["arrival_s"][1] == pytest.approx(0.99007)


def test_burstgpt(tmp_path: Path) -> None:
    text = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,Conversation log\n"
        "46,ChatGPT,10,0,10,API log\n"
    )
    path = write(tmp_path / "t.csv", text)
    workload = read(path, drop_zero=True)
    assert list(workload["arrival_s"]) == [0, 40]
    assert list(workload["output_tokens"]) == [18, 230]
    assert list(read(path, model="GPT-4")["prompt_tokens"]) == [1087]
    with pytest.raises(InputError, match="row 2: output_tokens is 0"):
        read(path)


def test_mooncake(tmp_path: Path) -> None:
    rows = (
        {"timestamp": 27482, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]},
        {"timestamp": 30535, "input_length": 512, "output_length": 26, "hash_ids": [46]},
    )
    workload = read(write(tmp_path / "t.jsonl", jsonl(*rows)))
    assert workload["arrival_s"] == pytest.approx([0, 3.053])
    # 1100 tokens fill two blocks of 512; the third id stands for a part of one
    assert list(workload["prefix_hashes"]) == [(46, 47), (46,)]
    assert list(workload["hash_block_tokens"]) == [512, 512]


def test_servegen(tmp_path: Path) -> None:
    text = (
        "request_id,timestamp,input_tokens,output_tokens,client_id\n0,3.5,10,20,7\n1,4.0,11,21,8\n"
    )
    workload = read(write(tmp_path / "t.csv", text))
    assert list(workload["arrival_s"]) == [0, 0.5]
    assert list(workload["tenant"]) == [7, 8]


CONVERSATION = [
    {"from": "human", "value": "What is SRPT?"},
    {"from": "gpt", "value": "Shortest remaining time first."},
    {"from": "human", "value": "Is it fair?"},
    {"from": "gpt", "value": "No."},
]


def test_sharegpt(tmp_path: Path) -> None:
    unanswered = {"id": "b", "conversations": CONVERSATION[1:3]}
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"id": "a", "conversations": CONVERSATION}, unanswered]))
    prompts = read_prompts(path)
    assert list(prompts.prompt) == ["What is SRPT?"]
    assert list(prompts.output_tokens) == [5]
    with pytest.raises(InputError, match="has no arrival times"):
        read(path)
    every = read(path, turns="all")
    assert list(every["session_id"]) == ["a", "a"]
    assert list(every["parent"]) == [-1, 0]
    assert every["prompt"][1] == "What is SRPT?\nShortest remaining time first.\nIs it fair?"


def test_openai_messages_and_lmsys_chat(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
    ]
    for column in ("messages", "conversation"):
        path = write(tmp_path / f"{column}.jsonl", jsonl({column: turns, "model": "m"}))
        prompts = read_prompts(path, model="m")
        assert list(prompts.prompt) == ["Hi"]  # what predictors read, here and in an engine
        assert list(prompts.output_tokens) == [2]
        assert list(read_table(path).columns["prompt"]) == ["Be terse.\nHi"]
        assert list(prompts.prompt_tokens) == [5]  # of all of it


def test_wildchat_has_a_clock(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [
        {"conversation": said, "model": "m", "timestamp": f"2023-04-09T00:00:0{second}+00:00"}
        for second in (4, 1)
    ]
    (tmp_path / "w.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read(tmp_path / "w.jsonl")
    assert found["arrival_s"].tolist() == [0, 3]
    assert "w.jsonl: read timestamp as arrival_s" in found.notices


def test_instructions(tmp_path: Path) -> None:
    rows = (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hello there"},
    )
    prompts = read_prompts(write(tmp_path / "t.jsonl", jsonl(*rows)))
    assert list(prompts.prompt) == ["Add.\n\n1 2", "Greet."]


AGENTS = (
    "session_id,agent,idx,arrival_s,prompt_tokens,output_tokens,parent_idx,shared_blocks,n_blocks,"
    "think_time_s\n"
    "s,main,0,0,200,10,-1,0,3,0\n"  # 3 full blocks of 64 tokens
    "s,main,1,5,330,0,0,3,5,4\n"  # shares all 3
    "s,sub,2,6,130,9,0,1,2,2\n"  # shares 1
    "s,main,3,9,400,8,1,5,6,3\n"
    "t,main,0,0,64,7,-1,0,1,0\n"
)


def test_sessions_named_by_lists_are_joined_to_arrivals(tmp_path: Path) -> None:
    rows = [
        {"session_id": [name], "idx": i, "arrival_s": i, "prompt_tokens": 64, "output_tokens": 5,
         "parent_idx": -1, "shared_blocks": 0, "n_blocks": 1, "think_time_s": 1.0}
        for name in "ab"
        for i in range(2)
    ]  # fmt: skip
    path = write(tmp_path / "t.jsonl", jsonl(*rows))
    assert len(load_workload(path, arrivals="burst", requests=1)) == 2  # a session, both requests


@pytest.mark.parametrize("odd", [["a"], {"a": 1}])
@pytest.mark.parametrize("column", ["session_id", "agent", "idx"])
def test_agents_with_odd_names(tmp_path: Path, column: str, odd: Any) -> None:
    rows = [
        {"session_id": "s", "agent": "a", "idx": i, "arrival_s": i, "prompt_tokens": 64,
         "output_tokens": 5, "parent_idx": -1, "shared_blocks": 0, "n_blocks": 1,
         "think_time_s": 1.0, column: odd}
        for i in range(2)
    ]  # fmt: skip
    path = write(tmp_path / "t.jsonl", jsonl(*rows))
    workload = load_workload(path, arrivals="burst", closed_loop=True)
    assert list(workload["parent"]) == [-1, 0]  # one session, one agent


def test_agent_sessions(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", AGENTS)
    table = read_table(path, drop_zero=True)
    assert table.session_clock
    first, sub, third, other = table.columns["prefix_hashes"]
    assert first == (0, 1, 2)
    assert sub == (0, 5)
    assert third == (0, 1, 2, 3, 4, 6)
    assert not set(other) & set(third)
    workload = load_workload(path, drop_zero=True, arrivals=[100.0, 200.0])
    assert list(workload["arrival_s"]) == [0.0, 6.0, 9.0, 100.0]
    assert any("every session starts at 0 s" in notice for notice in table.workload().notices)


def test_agent_sessions_in_a_closed_loop(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", AGENTS), drop_zero=True, closed_loop=True)
    # row 1 had no output and is gone: its child waits for row 0, and thinks for both
    assert list(table.columns["parent"]) == [-1, 0, 0, -1]
    assert list(table.columns["think_s"]) == [0, 2 + 4, 3 + 4, 0]


def test_session_turns(tmp_path: Path) -> None:
    text = (
        "session_id,turn,prompt_tokens,new_tokens,output_tokens\n"
        "b,1,200,20,30\na,0,64,64,5\nb,0,150,150,40\na,1,140,10,6\n"
    )
    workload = read(write(tmp_path / "t.csv", text))
    assert list(workload["session_id"]) == ["b", "b", "a", "a"]
    assert list(workload["prompt_tokens"]) == [150, 200, 64, 140]
    assert list(workload["parent"]) == [-1, 0, -1, 2]
    hashes = workload["prefix_hashes"]
    assert [len(h) for h in hashes] == [2, 3, 1, 2]
    assert hashes[1][:2] == hashes[0]
    assert hashes[3][:1] == hashes[2]
    assert not set(hashes[0]) & set(hashes[2])
    staggered = load_workload(tmp_path / "t.csv", arrivals="constant:0.5")
    assert list(staggered["arrival_s"]) == [0, 0, 2, 2]


# --- Hugging Face datasets -------------------------------------------------------------------


def test_hugging_face_folders_and_objects(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"prompt {i}", "response": " ".join(["word"] * (i + 1))} for i in range(4)]
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub" / "train.jsonl", jsonl(*rows[:3]))
    write(tmp_path / "hub" / "test.jsonl", jsonl(*rows[3:]))
    assert len(read_prompts(f"hf:{tmp_path / 'hub'}:train")) == 3
    assert list(read_prompts(f"hf:{tmp_path / 'hub'}:test").prompt) == ["prompt 3"]
    with pytest.raises(
        UnknownNameError, match=r"unknown split 'tset' of hf:.*; did you mean 'test'"
    ):
        read_prompts(f"hf:{tmp_path / 'hub'}:tset")

    made = datasets.Dataset.from_list(rows)
    assert list(read_prompts(made).output_tokens) == [1, 2, 3, 4]
    made.save_to_disk(tmp_path / "saved")
    assert len(read_prompts(f"hf:{tmp_path / 'saved'}")) == 4
    datasets.DatasetDict(train=made, test=made.select([0])).save_to_disk(tmp_path / "both")
    assert len(read_prompts(f"hf:{tmp_path / 'both'}:test")) == 1
    workload = load_workload(made, arrivals="poisson:2", seed=1)
    assert sorted(workload["output_tokens"]) == [1, 2, 3, 4]

    with pytest.raises(InputError, match="the data set can't be loaded"):
        read_prompts(f"hf:{tmp_path / 'missing'}")


# --- token counts ----------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("alpaca_eval", 0.06), ("mmlu_pro", 0.1), ("oasst_sampling", 0.06), ("zeroeval_gsm", 0.06)],
)
def test_estimated_tokens_are_near_a_real_tokenizers(name: str, tolerance: float) -> None:
    """The pack's counts are cl100k_base's; ours need no tokenizer."""
    columns = read_table(
        DATA / "prompts" / f"{name}_responses.jsonl.gz", limit=1500, drop_zero=True
    )
    ours = estimate_tokens(columns.columns["prompt"])
    assert ours.sum() / columns.columns["prompt_tokens"].sum() == pytest.approx(1, abs=tolerance)


# --- the data pack ---------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(
    ("name", "rows", "prompt_mean", "output_mean"),
    [
        ("lengths/arxiv_summarization.csv.gz", 28_257, 2588.1, 291.4),
        ("lengths/lmsys_nanoflow_a.csv.gz", 50_000, 92.4, 208.1),
        ("lengths/sharegpt_nanoflow_a.csv.gz", 29_393, 301.5, 323.0),
        ("sessions/mint_turns.csv.gz", 59_178, 1353.8, 160.5),
        ("traces/agent_miniswe.csv.gz", 402, 6169.5, 109.7),
        ("traces/azure2023_code_a.csv.gz", 5_353, 2028.4, 27.5),
        ("traces/azure2023_conv_a.csv.gz", 13_828, 1202.9, 200.9),
        ("traces/mooncake_arxiv_toolagent_a.csv.gz", 11_159, 8984.9, 181.3),
        ("traces/mooncake_conversation_a.jsonl.gz", 7_689, 12449.1, 347.7),
        ("traces/servegen_deepseek_r1_day.csv.gz", 97_095, 960.4, 3067.8),
        ("traces/servegen_m_large.csv.gz", 83_127, 938.3, 68.1),
        ("prompts/gpteacher_codegen_responses.jsonl.gz", 3_611, 34.0, 68.0),
        ("prompts/arena_hard_responses.jsonl.gz", 1_803, None, 596.0),
        ("prompts/gsm8k_example_solutions_responses.jsonl.gz", 5_325, 59.4, 103.3),
    ],
)
def test_files_of_the_pack_have_their_published_means(
    name: str, rows: int, prompt_mean: float | None, output_mean: float
) -> None:
    table = read_table(DATA / name)
    assert len(table) == rows
    if prompt_mean is not None:
        assert table.columns["prompt_tokens"].mean() == pytest.approx(prompt_mean, abs=0.051)
    assert table.columns["output_tokens"].mean() == pytest.approx(output_mean, abs=0.051)


@needs_data
def test_arrivals_of_the_pack_have_their_published_rates() -> None:
    for name, rate, cv in (
        ("azure2023_conv_a.csv.gz", 5.925, 1.08), ("azure2023_code_a.csv.gz", 3.138, 13.64),
        ("mooncake_conversation_a.jsonl.gz", 3.261, 2.96),
    ):  # fmt: skip
        workload = read(DATA / "traces" / name)
        gaps = np.diff(workload["arrival_s"])
        assert workload.rate == pytest.approx(rate, abs=0.002)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=0.01)


@needs_data
def test_agent_sessions_of_the_pack() -> None:
    path = DATA / "traces" / "claude_code_sessions_a.csv.gz"
    table = read_table(path, drop_zero=True, limit=3000)
    assert table.notices == (f"{path.name}: dropped 17 requests without output",)
    assert table.session_clock
    assert set(table.columns["hash_block_tokens"]) == {64}
    assert hit_share(table.columns["prefix_hashes"]) > 0.9


@needs_data
def test_prefixes_of_the_mooncake_trace_hit_as_published() -> None:
    workload = read(DATA / "traces" / "mooncake_conversation_a.jsonl.gz")
    # published: 0.35 of all blocks, the last partial one of each request counted as well
    assert hit_share(workload["prefix_hashes"]) == pytest.approx(0.35, abs=0.02)


def hit_share(hashes: Any) -> float:
    """The share of blocks that an infinite prefix cache would hold."""
    seen: set[int] = set()
    hits = total = 0
    for entry in hashes:
        total += len(entry)
        for block in entry:
            if block not in seen:
                break
            hits += 1
        seen.update(entry)
    return hits / total


@needs_data
@pytest.mark.slow
def test_every_file_of_the_pack_is_read_or_refused_clearly() -> None:
    refused = {}
    for path in sorted(DATA.glob("*/*.gz")):
        options: dict[str, Any] = {"drop_zero": True, "limit": 500}
        if path.name.endswith("_lengths.csv.gz"):
            texts = path.with_name(path.name.replace("_lengths.csv", "_prompts.jsonl"))
            options["prompts"] = texts
        try:
            assert len(read_table(path, **options)) > 200
        except InputError as error:
            refused[path.name] = str(error)
    # texts without answers, and lengths without prompts
    assert all("no column" in message for message in refused.values())
    assert {name.removesuffix("_prompts.jsonl.gz") for name in refused} == {
        "alpaca_eval", "arena_hard", "creative_writing_2025", "gpteacher_codegen",
        "gsm8k_example_solutions", "mmlu_pro", "oasst_sampling", "self_instruct_eval",
        "zeroeval_gsm", "zeroeval_math_l5", "lmsys_vicuna13b_bert_predictions_a.csv.gz",
    }  # fmt: skip


@needs_data
def test_conversations_of_the_pack_become_closed_loop_sessions() -> None:
    path = DATA / "sessions" / "mint_messages.jsonl.gz"
    table = read_table(path, turns="all", model="gpt-4-0613", drop_zero=True)
    parents = table.columns["parent"]
    assert (parents < 0).sum() > 300
    # up to five turns a session, and every prompt begins with the one before it
    assert 1.5 < len(table) / (parents < 0).sum() <= 5
    prompts = table.columns["prompt"]
    assert all(prompts[i].startswith(prompts[p]) for i, p in enumerate(parents) if p >= 0)


@needs_data
def test_one_model_of_several() -> None:
    path = DATA / "prompts" / "alpaca_eval_responses.jsonl.gz"
    both = read_prompts(path, drop_zero=True)
    assert "answers of 14 models together" in both.notices[-1]
    one = read_prompts(path, model="Mistral-7B-Instruct-v0.2", drop_zero=True)
    assert len(one) == len(set(one.prompt)) == 457
    train, test = one.split("train"), one.split("test")
    assert len(train) + len(test) == 457
    assert not set(train.prompt) & set(test.prompt)


# Nothing guessed without a word


def test_bailian_times_are_seconds_and_mooncakes_are_milliseconds(tmp_path: Path) -> None:
    def row(time: float, **more: Any) -> str:
        given = {"timestamp": time, "input_length": 40, "output_length": 5, "hash_ids": [1, 2, 3]}
        return json.dumps(given | more) + "\n"

    turns = row(0, chat_id=7, turn=1) + row(2, chat_id=8, turn=1)
    bailian = read(write(tmp_path / "b.jsonl", turns))
    assert list(bailian["arrival_s"]) == [0, 2] and bailian["hash_block_tokens"][0] == 16
    assert any("read as s, 0.5 requests/s" in notice for notice in bailian.notices)
    halves = read(write(tmp_path / "h.jsonl", row(0) + row(0.5)))
    assert list(halves["arrival_s"]) == [0, 0.5]
    plain = write(tmp_path / "m.jsonl", row(0) + row(2000))
    assert list(read(plain)["arrival_s"]) == [0, 2]
    assert list(read(plain, time_unit="s")["arrival_s"]) == [0, 2000]
    assert any("blocks of 16 tokens" in notice for notice in read(plain).notices)
    with pytest.raises(InputError, match="unknown time unit 'sec'; did you mean 's'"):
        read(plain, time_unit="sec")


def test_blocks_that_fit_twice_are_the_published_size_or_an_error(tmp_path: Path) -> None:
    mooncake = {"timestamp": 0, "input_length": 200, "output_length": 5, "hash_ids": [1]}
    workload = read(write(tmp_path / "m.jsonl", json.dumps(mooncake)))
    assert workload["hash_block_tokens"][0] == 512 and workload["prefix_hashes"][0] == ()
    native = {"arrival_s": 0, "prompt_tokens": 200, "output_tokens": 5, "hash_ids": [1]}
    with pytest.raises(InputError, match="fit blocks of 128, 256, 512, 1024, 2048 tokens"):
        read(write(tmp_path / "n.jsonl", json.dumps(native)))
    said = read(write(tmp_path / "s.jsonl", json.dumps(native | {"hash_block_tokens": 128})))
    assert said["hash_block_tokens"][0] == 128 and said["prefix_hashes"][0] == (1,)


def test_dates_in_any_unit_are_seconds_with_the_rate_said(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", NATIVE + "1700000000000,5,5\n1700000001500,5,5\n")
    found = read(path)
    assert list(found["arrival_s"]) == [0, 1.5]
    assert "t.csv: arrival_s read as ms, 0.667 requests/s; time_unit (--time-unit) says" in (
        " ".join(found.notices)
    )
    for unit, factor in (("us", 10**6), ("ns", 10**9)):
        rows = f"{1_700_000_000 * factor},5,5\n{1_700_000_003 * factor // 2 * 2},5,5\n"
        fine = read(write(tmp_path / f"{unit}.csv", NATIVE + rows))
        assert fine["arrival_s"].tolist() == pytest.approx([0, 3], abs=1e-6)
        assert f"arrival_s read as {unit}, 0.333 requests/s" in " ".join(fine.notices)
    dates = "2023-11-14T22:13:20Z,5,5\n2023-11-14 22:13:21.25+00:00,5,5\n"
    assert list(read(write(tmp_path / "d.csv", NATIVE + dates))["arrival_s"]) == [0, 1.25]
    assert list(read(path, time_unit="ms")["arrival_s"]) == [0, 1.5]
    texts = write(
        tmp_path / "a.jsonl",
        '{"TIMESTAMP": "1234", "ContextTokens": 1, "GeneratedTokens": 1}\n'
        '{"TIMESTAMP": "1236.5", "ContextTokens": 1, "GeneratedTokens": 1}\n',
    )
    assert list(read(texts)["arrival_s"]) == [0, 2.5]  # numbers, not the years


def test_a_cell_is_what_stands_in_it(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "prompt,response\na,None\nb,N/A\nc,12\nnull,NaN\n")
    table = read_table(path)
    assert list(table.columns["prompt"]) == ["a", "b", "c", "null"]
    assert len(table) == 4
    blank = write(tmp_path / "b.csv", "instruction,input,output\nadd,,5\nadd,7,8\n")
    assert list(read_table(blank).columns["prompt"]) == ["add", "add\n\n7"]
    models = write(
        tmp_path / "m.csv",
        "prompt_tokens,output_tokens,model,tenant,priority\n5,5,7,x,9007199254740993\n6,6,8,,1\n",
    )
    assert list(read_table(models, model="7").columns["prompt_tokens"]) == [5]
    both = read_table(models).columns
    assert list(both["tenant"]) == ["x", ""] and both["priority"][0] == 2**53 + 1


def test_a_row_longer_than_the_header_shifts_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 1 has 4 fields for 3 columns"):
        read(write(tmp_path / "t.csv", NATIVE + "0,100,5\n1,200,6,7\n"))
    comma = read(write(tmp_path / "c.csv", NATIVE + "0,100,5,\n1,200,6,\n"))
    assert list(comma["prompt_tokens"]) == [100, 200] and list(comma["output_tokens"]) == [5, 6]
    with pytest.raises(InputError, match="two columns are called 'prompt_tokens'"):
        read(write(tmp_path / "d.csv", "arrival_s,prompt_tokens,prompt_tokens\n0,1,2\n"))


def test_whoever_answers_has_answered(tmp_path: Path) -> None:
    def talk(*said: tuple[str, str]) -> str:
        messages = [{"from": who, "value": text} for who, text in said]
        return json.dumps({"conversations": messages}) + "\n"

    rows = talk(("user", "q"), ("claude", "a b"), ("user", "q2"), ("gpt4", "last"))
    rows += talk(("user", "never answered")) + talk(("user", "q"), ("oracle of delphi", "?"))
    table = read_table(write(tmp_path / "t.jsonl", rows), turns="all")
    assert list(table.columns["prompt"]) == ["q", "q\na b\nq2"]
    assert any(
        "2 of 3 conversations passed over: no question and answer (unknown roles: oracle of delphi)"
        in notice
        for notice in table.notices
    )
    merged = {"from": None, "value": None, "role": "user", "content": "one"}
    answer = {"from": None, "value": None, "role": "assistant", "content": "two"}
    path = write(tmp_path / "m.jsonl", json.dumps({"conversations": [merged, answer]}))
    assert list(read_table(path).columns["prompt"]) == ["one"]


def test_whether_an_answer_was_cut_off(tmp_path: Path) -> None:
    text = "prompt,prompt_tokens,output_tokens,censored\na,1,1,false\nb,1,1,true\nc,1,1,\n"
    assert list(read_prompts(write(tmp_path / "t.csv", text)).censored) == [False, True, False]
    with pytest.raises(InputError, match="row 0: censored is 'perhaps'"):
        read_prompts(write(tmp_path / "u.csv", text.replace("false", "perhaps")))
    reasons = [
        {"prompt": "a", "prompt_tokens": 1, "output_tokens": 1, "finish_reason": reason}
        for reason in ("stop", "length", "MAX_TOKENS", "max_tokens", None, "tool_calls")
    ]
    lines = "\n".join(map(json.dumps, reasons))
    censored = read_prompts(write(tmp_path / "r.json", lines)).censored  # lines, though .json
    assert list(censored) == [False, True, True, True, False, False]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", NATIVE + "0,9223372036854775000,5\n", "must be 1073741824 or less"),
        ("t.csv", NATIVE + "0,10000000000000000000,5\n", "must be 1073741824 or less"),
        ("t.jsonl", '{"arrival_s":0,"prompt_tokens":1' + "0" * 400 + ',"output_tokens":5}',
         "prompt_tokens is beyond"),
        ("t.jsonl", '{"arrival_s":0,"prompt_tokens":1' + "0" * 9000 + ',"output_tokens":5}',
         "line 1 is not JSON"),
        ("t.jsonl", "[" * 100_000, "line 1 is not JSON: it is nested too deeply"),
        ("t.jsonl", '{"session_id":"s","idx":0,"arrival_s":0,"prompt_tokens":64,"output_tokens":5,'
         '"parent_idx":-1,"shared_blocks":0,"n_blocks":1000000000}', "n_blocks is 1000000000"),
    ],
)  # fmt: skip
def test_absurd_sizes_are_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(write(tmp_path / name, content))


def test_a_gzip_file_that_explodes_is_refused(tmp_path: Path) -> None:
    bomb = gzip.compress(NATIVE.encode() + b"0,1,1\n" * 20_000_000)
    assert len(bomb) < 500_000
    path = tmp_path / "t.csv.GZ"
    path.write_bytes(bomb)
    with pytest.raises(InputError, match=r"expand to more than 67108864; .*--max-expanded"):
        read(path)


@pytest.mark.parametrize("name", ["t.csv.gz", "t.parquet"])
def test_what_files_expand_to_is_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As arrivals too; the limit is 10^6 bytes a unit, and lifted where it is too low."""
    frame = pd.DataFrame({"arrival_s": np.arange(1000.0), "prompt_tokens": 1, "output_tokens": 1})
    path = tmp_path / name
    frame.to_parquet(path) if name == "t.parquet" else write(path, frame.to_csv(index=False))
    for options in ({}, {"arrivals": str(path)}):
        with pytest.raises(InputError, match="more than 2000"):
            load_workload(str(path), max_expanded_mb=0.002, **options)  # type: ignore[arg-type]
        assert len(load_workload(str(path), max_expanded_mb=0.1, **options)) == 1000  # type: ignore[arg-type]
    monkeypatch.setattr(files, "EXPANDED_BYTES", 2000)
    monkeypatch.setattr(files, "EXPANSION", 0)
    with pytest.raises(InputError, match="more than 2000"):
        read(path)
    assert len(read(path, max_expanded_mb=1)) == 1000
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="max_expanded_mb must be above 0"):
            read(path, max_expanded_mb=wrong)


def test_a_parquet_file_of_nothing_times_a_billion_is_refused(tmp_path: Path) -> None:
    """17 KB for ten million rows without a value, which Arrow holds in no bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"arrival_s": pa.nulls(70_000_000)}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 1_000_000
    with pytest.raises(InputError, match="holds 70000000 values, which are more than 67108864"):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", "decoding it ends in SIGABRT"),
        ("import sys; sys.exit('no memory')", "decoding it ends with code 1: no memory"),
        ("import os; os.write(1, b'+' + bytes([200]) * 3)", "decoding it ends with code 0"),
    ],
)
def test_a_decoder_that_crashes_costs_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setattr(parquet, "CHILD", tmp_path / "child.py")
    pd.DataFrame({"prompt_tokens": [1]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=f"t.parquet: not a Parquet file, .*{message}"):
        read(tmp_path / "t.parquet")


def test_a_pipe_in_a_folder_of_parquet_files_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a pipe or a device, not a file"):
        read(tmp_path)


def test_arrivals_are_a_folder_or_a_file_in_capitals(tmp_path: Path) -> None:
    """As the workload itself may be."""
    (tmp_path / "log").mkdir()
    frame = pd.DataFrame({"arrival_s": [0.0, 7.0], "prompt_tokens": 1, "output_tokens": 1})
    frame.to_parquet(tmp_path / "log" / "part-1.parquet")
    own = write(tmp_path / "t.csv", NATIVE + "0,5,5\n1,6,6\n")
    shouted = tmp_path / "A.CSV.GZ"
    shouted.write_bytes(gzip.compress((NATIVE + "0,1,1\n7,1,1\n").encode()))
    for arrivals in (tmp_path / "log", shouted):
        assert list(load_workload(str(own), arrivals=str(arrivals))["arrival_s"]) == [0, 7]


def test_sessions_may_have_any_name(tmp_path: Path) -> None:
    row = '{"session_id":[1],"turn":%d,"prompt_tokens":64,"output_tokens":5}\n'
    workload = read(write(tmp_path / "t.jsonl", row % 0 + row % 1))
    assert list(workload["parent"]) == [-1, 0]


def test_no_damaged_parquet_escapes_as_anything_but_one_line(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"arrival_s": [0.1 * i for i in range(9)], "prompt_tokens": list(range(1, 10)),
               "output_tokens": [3] * 9, "tenant": list("abcabcabc")}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(40):  # a process each
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 5)):
            damaged[place] = rng.integers(256)
        path = tmp_path / "t.parquet"
        path.write_bytes(damaged)
        try:
            assert len(read(path)) >= 1
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 10 < refused


def test_a_parquet_page_that_is_not_what_was_written_is_refused(tmp_path: Path) -> None:
    """Of which the file has a checksum: a number that became another one is no number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, marked = tmp_path / "t.parquet", 0x0123456789ABCD
    columns = {"arrival_s": [0.0, 1.0], "prompt_tokens": [5, 6], "output_tokens": [7, 8],
               "priority": [marked, 1]}  # fmt: skip
    pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False,
                   write_statistics=False, write_page_checksum=True)  # fmt: skip
    assert read(path)["priority"].tolist() == [marked, 1]
    whole = path.read_bytes()
    assert whole.count(marked.to_bytes(8, "little")) == 1
    path.write_bytes(
        whole.replace(marked.to_bytes(8, "little"), (marked + 1).to_bytes(8, "little"))
    )
    with pytest.raises(InputError, match=r"t\.parquet: not a Parquet file, .*damaged one: .*CRC"):
        read(path)


def test_one_long_cell_costs_what_it_is_long(tmp_path: Path) -> None:
    """Not that for each row: 3,000 cells as wide as one of a million would be 12 GB."""
    rows = "".join(f"{i},5,5,{'x' * 10**6 if i == 7 else 'a'}\n" for i in range(3000))
    assert len(read(write(tmp_path / "t.csv", NATIVE[:-1] + ",notes\n" + rows))) == 3000


def test_a_null_byte_behind_a_number_is_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 0: prompt_tokens is '5\\x00'"):
        read(write(tmp_path / "t.csv", NATIVE + "0,5\0,5\n"))


def test_numbers_as_texts_have_the_unit_of_numbers_and_it_is_said(tmp_path: Path) -> None:
    rows = [{"timestamp": str(250 * i), "input_length": 9, "output_length": 2} for i in range(9)]
    found = read_table(write(tmp_path / "t.jsonl", jsonl(*rows)))
    assert list(found.columns["arrival_s"]) == [i / 4 for i in range(9)]
    assert any("timestamp read as ms, 4 requests/s" in notice for notice in found.notices)
    azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n0,9,2\n500,9,2\n"
    (said,) = read_table(write(tmp_path / "a.csv", azure)).notices
    assert "TIMESTAMP read as s, 0.002 requests/s" in said
    assert read(tmp_path / "a.csv", time_unit="ms").rate == 2


def test_an_empty_cell_is_not_censored_and_a_number_is_0_or_1(tmp_path: Path) -> None:
    head = "prompt,output_tokens,censored\n"
    found = read_prompts(write(tmp_path / "t.csv", head + "a,5,1\nb,5,0\nc,5,\n"))
    assert list(found.censored) == [True, False, False]
    with pytest.raises(InputError, match=r"row 1: censored is 2.*must be true or false"):
        read_prompts(write(tmp_path / "t.csv", head + "a,5,1\nb,5,2\n"))


def test_semicolons_and_tabs_are_told_by_the_header(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = "arrival_s,prompt_tokens,output_tokens\n0.5,1,2\n1,3,4\n"
    for mark in ";\t":
        path.write_text(table.replace(",", mark))
        assert Workload.read(path)["prompt_tokens"].tolist() == [1, 3]
    path.write_text("when;prompt_tokens;output_tokens;who\n0,5;1;2;a\n1,0;3;4;b\n")
    with pytest.raises(
        InputError, match=r"ignored columns when, who: is one the time\? --columns arrival_s=NAME"
    ):
        Workload.read(path)
