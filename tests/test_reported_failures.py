"""What users of such tools report: small inputs that lie in ``shared/cases``, each now right.

They are not part of the repository: they lie beside it, or the tests skip.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lengthwise.errors import InputError
from lengthwise.serving.workload import load_workload, read
from lengthwise.serving.workload.readers import read_table
from lengthwise.training.cli import main

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="shared/cases is not beside it")


def case(number: str, name: str) -> Path:
    (folder,) = CASES.glob(f"{number}_*")
    return folder / name


def test_the_clock_of_a_trace_that_has_seconds() -> None:
    found = read(case("01", "trace.jsonl"))
    assert found.rate == pytest.approx(2.0)
    assert set(found["hash_block_tokens"]) == {16}


def test_a_row_longer_than_the_header() -> None:
    with pytest.raises(InputError, match="row 0 has 4 fields for 3 columns"):
        read(case("02", "extra.csv"))
    found = read(case("02", "trailing_comma.csv"))
    assert list(found["arrival_s"]) == [0, 1]
    assert list(found["prompt_tokens"]) == [100, 200]
    assert list(found["output_tokens"]) == [5, 6]


@pytest.mark.parametrize(
    ("number", "name", "prompts", "answers"),
    [
        ("03", "chat.jsonl", ["name three rivers"], [5]),
        ("19", "roles.jsonl", ["first question", "second question"], [5, 2]),
        ("19", "garbled.jsonl", ["q"], [2]),
        ("19", "merged.jsonl", ["question one", "question two"], [2, 2]),
    ],
)
def test_conversations(number: str, name: str, prompts: list[str], answers: list[int]) -> None:
    found = read_table(case(number, name)).columns
    assert list(found["prompt"]) == prompts
    assert list(found["output_tokens"]) == answers


def test_answers_that_pandas_takes_for_missing() -> None:
    assert len(load_workload(str(case("07", "answers.csv")), arrivals="burst")) == 3


def ran(capsys: Any, *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(list(words))
        raise SystemExit(0)
    told = capsys.readouterr()
    return int(end.value.code or 0), told.out + told.err


def test_an_empty_answer_leaves_training_going(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    shutil.copy(case("10", "alpaca.json"), tmp_path)
    monkeypatch.chdir(tmp_path)
    code, told = ran(capsys, "train", "predictor", "alpaca.json", "--out", "p")
    assert code == 0, told
    assert (tmp_path / "p").is_dir()
    assert "dropped 1 requests without output" in told


def test_capacity_of_one_token_answers(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def told(slo: str) -> tuple[int, str]:
        labels = str(case("11", "labels.csv"))
        return ran(capsys, "capacity", labels, "--slo", slo, "--seeds", "1", "--processes", "1")

    monkeypatch.setenv("COLUMNS", "200")
    alone, both = told("ttft_p99=1.0"), told("ttft_p99=1.0,tpot_p99=0.05")
    assert alone[0] == both[0] == 0
    first = [text.partition(" requests/s")[0] for text in (alone[1], both[1])]
    assert first[0] == first[1]
    never = told("ttft_p99=0.0001")[1]
    assert "106 days" not in never
    assert "SLO" in never


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bitrot.parquet", "not a Parquet file, or a damaged one"),
        ("nblocks.jsonl", "n_blocks is 1000000000; its 64 prompt tokens fill 1 blocks of 64"),
        ("overflow.jsonl", "prompt_tokens is beyond"),
        ("wrap_tokens.csv", "prompt_tokens is 9.22337e[+]18; it must be 1073741824 or less"),
    ],
)
def test_damaged_inputs(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        read(CASES / "40_damaged_inputs" / name)
    assert "\n" not in str(told.value)


def test_a_session_that_is_a_list_is_a_name() -> None:
    assert len(read(CASES / "40_damaged_inputs" / "listsession.jsonl"))
