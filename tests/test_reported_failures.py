"""What users of such tools report: small inputs that lie in ``shared/cases``, each now right.

They are not part of the repository: they lie beside it, or the tests skip.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lengthwise.errors import InputError
from lengthwise.serving.vllm import VllmUnavailable
from lengthwise.serving.workload import load_workload, read
from lengthwise.serving.workload.readers import read_table
from lengthwise.training.cli import main
from tests.engines import router_environment

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


def result_of(command: list[str], **environment: str) -> list[str]:
    """The lines that a process prints, which ends well."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.timeout(3000)  # the first test that needs the environment makes it
def test_streams_that_are_broken_off_count_no_more() -> None:
    """The case's own script, in LiteLLM itself; ours are in ``engines/litellm_checks.py``."""
    try:
        found = str(router_environment.python())
    except VllmUnavailable as error:
        pytest.skip(f"PyPI can't be reached, and the environment is not there yet: {error}")
    *left, read = result_of(
        [found, str(case("05", "check.py"))], PYTHONPATH=str(router_environment.ROOT)
    )
    assert len(left) == 6
    assert [line.rsplit(" ", 1)[1] for line in left] == ["0"] * 6, left
    assert read == "predictor saw 'a long question a long questio'"


def test_damaged_machine_code_in_the_cache(tmp_path: Path) -> None:
    """The case's own steps; more kinds of damage are in ``test_serving_cache.py``."""
    run = "from lengthwise.training.cli import main; main()"
    command = [sys.executable, "-c", run, "simulate", str(case("12", "tr.csv"))]
    fresh = result_of(command, XDG_CACHE_HOME=str(tmp_path))
    made = list((tmp_path / "lengthwise" / "kernels").glob("run_*.o"))
    assert made
    for path in made:
        path.write_bytes(b"")
    for _ in range(2):
        assert result_of(command, XDG_CACHE_HOME=str(tmp_path)) == fresh
    assert all(path.stat().st_size for path in made)


@pytest.mark.filterwarnings("ignore:.*The environment lengthwise/Routing-v0 is out of date")
def test_stable_baselines3_makes_vector_environments(capsys: Any) -> None:
    """The case's own script; what may be done with them is in ``test_envs_sb3.py``."""
    pytest.importorskip("stable_baselines3")
    runpy.run_path(str(case("14", "check.py")))
    assert capsys.readouterr().out == "odict_keys(['candidates', 'mask', 'state'])\n"
