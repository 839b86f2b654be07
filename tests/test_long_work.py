"""Long work: what a stop leaves, going on, who may write where, running again, plans."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from lengthwise.errors import InputError
from lengthwise.eval import compare as comparing
from lengthwise.eval.cells import Cells, digests
from lengthwise.eval.compare import compare
from lengthwise.policies import load_policy
from lengthwise.policies.bundle import write_bundle
from lengthwise.training import judging
from lengthwise.training.cli import main
from lengthwise.training.commands import show
from lengthwise.training.commands.folders import same_run

TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
    f"{k * 0.05},{100 + 13 * k % 70},{20 + 37 * k % 90}\n" for k in range(60)
)
GRID = "compare t.csv --rates 8,20 --seeds 2 --policies fcfs,sjf --processes 1"
Run = Callable[[str], tuple[Any, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(TRACE)

    def ran(line: str) -> tuple[Any, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(shlex.split(line))
        return end.value.code, *capsys.readouterr()

    return ran


# Stops, and going on


def stop_after(cells: int, monkeypatch: pytest.MonkeyPatch, how: Callable[[], None]) -> None:
    """Has the work stopped in the cell after so many of them."""
    real, done = comparing._one_cell, [0]

    def one(*given: Any) -> Any:
        if done[0] == cells:
            how()
        done[0] += 1
        return real(*given)

    monkeypatch.setattr(comparing, "_one_cell", one)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_stopped_grid_goes_on_to_the_same_result(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(f"{GRID} --out whole")[0] == 0
    assert not Path("whole.cells").exists()
    with monkeypatch.context() as patched:
        stop_after(3, patched, interrupt)
        code, _, err = run(f"{GRID} --out r")
    assert code == 130
    assert err == (
        "lengthwise: SIGINT: 3 finished cells kept in r.cells; the same command goes on from "
        "there\n"
    )
    assert not Path("r").exists()
    asked = []
    with monkeypatch.context() as patched:
        real = comparing._one_cell
        patched.setattr(comparing, "_one_cell", lambda *g: (asked.append(g[1]), real(*g))[1])
        code, _, err = run(f"{GRID} --out r")
    assert (code, asked) == (0, [20.0])
    assert err == "note: going on: r.cells holds 3 finished cells of an interrupted run\n"
    assert not Path("r.cells").exists()
    pd.testing.assert_frame_equal(
        pd.read_parquet("r/runs.parquet"), pd.read_parquet("whole/runs.parquet"), check_exact=True
    )
    assert Path("r/table.md").read_text() == Path("whole/table.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_grid_and_its_processes_in_one_line(
    number: signal.Signals, tmp_path: Path
) -> None:
    # the reference engine on a long workload: no cell is finished before the signal comes
    line = (
        "compare azure-conv-2023 --requests 20000 --rates 8 --seeds 2 --backend reference "
        "--processes 2 --out r"
    )
    code = f"from lengthwise.training.cli import main; main({shlex.split(line)!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "r.cells" / "work.json").exists() and time.monotonic() < until:
            time.sleep(0.05)
        workers: list[int] = []
        while len(workers) < 3 and time.monotonic() < until:  # the tracker of resources among them
            listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            workers = list(map(int, listed))
            time.sleep(0.05)
        if number == signal.SIGINT:  # as a terminal does: to everybody
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert err.splitlines()[-1] == (
        f"lengthwise: {number.name}: 0 finished cells kept in r.cells; the same command goes on "
        "from there"
    )
    assert "Traceback" not in err
    until = time.monotonic() + 10
    while any(map(lives, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(lives, workers))


def lives(process: int) -> bool:
    """Whether it runs; what waits to be collected does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_cells_of_other_work_are_refused_until_forced(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.py").write_text("def score(arrival_s):\n    return arrival_s\n")
    line = GRID.replace("fcfs,sjf", "fcfs,./mine.py:score")
    with monkeypatch.context() as patched:
        stop_after(1, patched, interrupt)
        assert run(f"{line} --out r")[0] == 130
    code, _, err = run(f"{GRID} --out r")
    assert code == 2 and "interrupted run whose policies is ['fcfs', './mine.py:score']" in err
    Path("mine.py").write_text("def score(arrival_s):\n    return -arrival_s\n")
    code, _, err = run(f"{line} --out r")
    assert (
        code == 2
        and "interrupted run of before ./mine.py changed" in err
        and "--force discards them" in err
    )
    assert run(f"{line} --out r --force")[0] == 0
    assert Path("r/config.json").exists() and not Path("r.cells").exists()


def test_a_stopped_search_of_capacity_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from lengthwise.eval import capacity as searching

    line = (
        "capacity t.csv --slo e2e_p99=1.5 --seeds 2 --processes 1 --tolerance 0.2 --max-num-seqs 4"
    )
    real, done = searching.simulate_on, [0]

    def counted(*given: Any, **more: Any) -> Any:
        done[0] += 1
        return real(*given, **more)

    def stopped(*given: Any, **more: Any) -> Any:
        if done[0] == 4:
            raise KeyboardInterrupt
        return counted(*given, **more)

    monkeypatch.setattr(searching, "simulate_on", counted)
    code, whole, _ = run(f"{line} --out whole")
    in_all, done[0] = done[0], 0
    monkeypatch.setattr(searching, "simulate_on", stopped)
    code, _, err = run(f"{line} --out r")
    assert code == 130 and "4 finished cells kept in r.cells" in err
    monkeypatch.setattr(searching, "simulate_on", counted)
    done[0] = 0
    code, out, _ = run(f"{line} --out r")
    assert (code, done[0]) == (0, in_all - 4)
    assert out.replace("wrote r", "wrote whole") == whole
    assert Path("r/probes.parquet").read_bytes() == Path("whole/probes.parquet").read_bytes()


def test_stopped_advice_goes_on_to_the_same_advice(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "advise t.csv --seeds 2 --processes 1 --max-num-seqs 4"
    code, whole, _ = run(line)
    assert code == 0
    monkeypatch.setattr("lengthwise.eval.publish.publish", lambda *given, **more: "report")
    monkeypatch.setattr("lengthwise.eval.publish.pick_timelines", lambda *given, **more: [])
    with monkeypatch.context() as patched:
        stop_after(4, patched, interrupt)  # two of the own rate's, two of the loads'
        code, _, err = run(f"{line} --out r")
    assert code == 130 and "4 finished cells kept in r.cells" in err
    code, out, err = run(f"{line} --out r")
    assert code == 0 and "holds 4 finished cells" in err
    assert out == f"{whole}wrote report\n"
    assert not Path("r.cells").exists()


def test_a_stopped_evaluation_of_a_policy_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (
        "evaluate policy b t.csv --requests 10 --seeds 2 --max-num-seqs 2 --rate 20 --tune "
        "--budget 16 --baselines fcfs,hrrn --json"
    )
    assert run("export sjf --to b")[0] == 0
    code, whole, err = run(f"{line} --out whole")
    assert code == 0 and "wrote whole" in err
    asked: list[str] = []
    measured = judging.measured

    def stops(policy: Any, trials: Any) -> Any:
        if len(asked) == 2:
            interrupt()
        asked.append(policy.name)
        return measured(policy, trials)

    with monkeypatch.context() as patched:
        patched.setattr(judging, "measured", stops)
        code, _, err = run(f"{line} --out j")
    # what was tuned of two baselines, and the runs of two policies
    assert code == 130 and err.splitlines()[-1] == (
        "lengthwise: SIGINT: 4 finished cells kept in j.cells; the same command goes on from there"
    )
    with monkeypatch.context() as patched:
        patched.setattr(judging, "tune", lambda *given, **more: pytest.fail("tuned again"))
        code, out, err = run(f"{line} --out j")
    assert code == 0 and "going on: j.cells holds 4 finished cells" in err
    assert json.loads(out) == json.loads(whole)
    rows = pd.read_parquet("j/policies.parquet")
    pd.testing.assert_frame_equal(rows, pd.read_parquet("whole/policies.parquet"))
    assert rows["policy"].tolist()[:2] == ["fcfs", "hrrn"] and rows["trained"].tolist()[-1]
    assert not Path("j.cells").exists()
    code, _, err = run(f"{line} --out j --seeds 1")
    assert code == 2 and "'j' holds results already" in err


def test_cells_come_back_to_the_bit(tmp_path: Path) -> None:
    cells = Cells.open(tmp_path / "c", {"a": 1})
    value = {"rows": [{"x": 0.1 + 0.2, "nan": float("nan"), "n": 3, "s": "é"}], "e": [1e-300]}
    cells.write("k", value)
    back = Cells.open(tmp_path / "c", {"a": 1}).read("k")
    assert str(back) == str(value) and len(cells) == 1 and cells.read("other") is None
    with pytest.raises(InputError, match="whose a is 1, not 2; --force"):
        Cells.open(tmp_path / "c", {"a": 2})
    (tmp_path / "full").mkdir()
    with pytest.raises(InputError, match="holds something else"):
        Cells.open(tmp_path / "full", {})
    result = compare(
        "azure-conv-2023", ("fcfs",), rates=(5.0,), seeds=1, cells=cells,
    )  # fmt: skip
    assert len(cells) == 2
    again = compare("azure-conv-2023", ("fcfs",), rates=(5.0,), seeds=1, cells=cells)
    pd.testing.assert_frame_equal(again.runs, result.runs, check_exact=True)
    cells.drop()
    assert not (tmp_path / "c").exists()


def test_what_a_run_reads_is_told_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.json").write_text("1")
    (tmp_path / "f.py").write_text("x")
    asked = {"policies": ["fcfs", "./f.py:score:ageing=2"], "predictors": ["p", "oracle"], "n": 3}
    first = digests(asked)
    assert set(first) == {"./f.py", "p"}
    (tmp_path / "p" / "a.json").write_text("2")
    second = digests(asked)
    assert second["./f.py"] == first["./f.py"] and second["p"] != first["p"]
    assert set(digests("2xa,./f.py")) == {"./f.py"} and digests("hf:no/name") == {}


# Who may write where


@pytest.mark.parametrize(
    "line",
    ["simulate t.csv --policy {}", "compare t.csv --seeds 1 --policies fcfs,{} --processes 1",
     "capacity t.csv --slo e2e_p99=1.5 --seeds 1 --tolerance 0.5 --max-num-seqs 4 --policy {}"],
)  # fmt: skip
def test_another_run_s_folder_is_refused_until_forced(line: str, run: Run) -> None:
    mine, other = line.format("fcfs"), line.format("mlfq")
    assert run(f"{mine} --out r")[0] == 0
    before = Path("r/config.json").read_text()
    code, out, err = run(f"{other} --out r")
    assert (code, out) == (2, "")
    assert f"'r' holds results already, those of `lengthwise {mine} --out r`" in err
    assert Path("r/config.json").read_text() == before
    assert run(f"{mine} --out r")[0] == 0  # its own
    assert run(f"{other} --out r --force")[0] == 0
    assert json.loads(Path("r/config.json").read_text())["command"] == (
        f"lengthwise {other} --out r --force"
    )


def test_the_same_run_is_known_however_it_is_spelled() -> None:
    one = "lengthwise compare t.csv --rates 8,20 --seeds 5"
    assert same_run(one, "lengthwise compare --seeds 5 t.csv --rates 8.0,20 --processes 3 --out b")
    assert same_run(one, "lengthwise compare t.csv --rates 8,20")  # 5 is the default
    assert not same_run(one, "lengthwise compare t.csv --rates 8,21")
    assert not same_run(one, "lengthwise compare u.csv --rates 8,20")
    assert not same_run(one, "lengthwise simulate t.csv")
    assert not same_run(one, "python mine.py") and not same_run(one, "lengthwise compare --nope")
    assert not same_run(one, "lengthwise compare t.csv --rates x")


def test_a_predictor_s_and_a_training_s_folders_are_kept(run: Run) -> None:
    train = "train predictor synthetic-chat --max-rows 60 --model prompt-length"
    assert run(f"{train} --out p")[0] == 0
    code, _, err = run(f"{train} --seed 1 --out p")
    assert code == 2 and "'p' holds results already" in err
    assert run(f"{train} --seed 1 --out p --force")[0] == 0
    (Path("r")).mkdir()
    Path("r/config.json").write_text("{}")
    Path("r/notes").write_text("mine")
    code, _, err = run("train policy --out r --dry-run --steps 10")
    assert code == 2 and "or --force replaces it" in err
    code, out, _ = run("train policy --out r --dry-run --steps 10 --force --baselines jsq")
    assert (code, Path("r/notes").exists()) == (0, True)
    assert out == (
        "would train ppo on lengthwise/Routing-v1, beside jsq, and write r\n"
        "16,384 steps in 64 environments, evaluated and saved every twentieth of them\n"
    )
    Path("prof.json").write_text("{}")
    code, _, err = run("profile --out prof.json")
    assert code == 2 and "'prof.json' is there already" in err
    assert "GPU" in run("profile --out prof.json --force")[2]


def test_a_file_is_refused_until_forced_and_the_same_run_writes_its_trace_again(run: Run) -> None:
    line = "simulate t.csv --requests 20 --trace t.json.gz"
    assert run(line)[0] == 0
    written = Path("t.json.gz").read_bytes()
    assert run("simulate t.csv --requests 20 --policy fcfs --trace t.json.gz")[0] == 0
    code, _, err = run(f"{line} --policy sjf --predictor oracle")
    assert code == 2 and Path("t.json.gz").stat().st_size
    assert f"'t.json.gz' is there already, of `lengthwise {line} --policy fcfs" not in err
    assert "'t.json.gz' is there already, of `lengthwise simulate t.csv" in err
    assert run(f"{line} --policy sjf --predictor oracle --force")[0] == 0
    assert Path("t.json.gz").read_bytes() != written
    for name in ("t.json", "x.csv"):
        Path(name).write_text("[1, 2]\n")
    for line in (
        "simulate t.csv --trace t.json", "mock-server --log x.csv",
        "calibrate --live http://127.0.0.1:1 --save x.csv",
    ):  # fmt: skip
        code, _, err = run(line)
        assert code == 2 and "is there already: name another file, or --force" in err
    assert Path("x.csv").read_text() == "[1, 2]\n"


def test_a_bundle_is_refused_until_forced_unless_it_says_the_same(run: Run) -> None:
    assert run("export mlfq:quantum=8 --to b")[0] == 0
    assert run("export mlfq:quantum=8 --to b")[0] == 0
    code, _, err = run("export mlfq:quantum=16 --to b")
    assert code == 2 and "'b' holds another policy's bundle: name a new folder, or --force" in err
    assert '"quantum": 8' in Path("b/policy.json").read_text()
    assert run("export mlfq:quantum=16 --to b --force")[0] == 0
    assert '"quantum": 16' in Path("b/policy.json").read_text()
    Path("mine").mkdir()
    Path("mine/notes").write_text("mine")
    for to, said in (("mine", "it holds other files"), ("t.csv", "it is a file, not a folder")):
        code, _, err = run(f"export mlfq --to {to} --force")
        assert code == 2 and said in err
    assert Path("mine/notes").read_text() == "mine"


# Running again


def test_a_run_is_run_again_from_its_config(run: Run) -> None:
    first = "simulate t.csv --policy mlfq:quantum=32 --predictor oracle --rate 9 --max-num-seqs 4"
    assert run(f"{first} --out a")[0] == 0
    assert run("simulate --config a/config.json --out b")[0] == 0
    assert Path("b/requests.parquet").read_bytes() == Path("a/requests.parquet").read_bytes()
    command = json.loads(Path("b/config.json").read_text())["command"]
    assert "--config" not in command and same_run(command, f"lengthwise {first}")
    assert run("simulate --config b/config.json --rate 5 --policy fcfs --out c")[0] == 0
    command = json.loads(Path("c/config.json").read_text())["command"]
    changed = first.replace("--rate 9", "--rate 5").replace("mlfq:quantum=32", "fcfs")
    assert same_run(command, f"lengthwise {changed}")
    assert run(f"{changed} --out d")[0] == 0
    assert Path("c/requests.parquet").read_bytes() == Path("d/requests.parquet").read_bytes()
    for line, said in (
        ("compare --config a/config.json", "'a/config.json' is of `lengthwise simulate`"),
        ("simulate --config none.json", "No such file"),
        ("simulate --config t.csv", "can't be read"),
    ):
        code, _, err = run(line)
        assert code == 2 and said in err and err.count("\n") == 1
    Path("other.json").write_text('{"command": 3}')
    assert "which holds a command" in run("simulate --config other.json")[2]


# Plans


def test_plans_say_what_would_run_and_write_nothing(run: Run) -> None:
    code, out, err = run(f"{GRID} --predictors noisy-oracle:tau=0.5 --out r --dry-run")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == ("would compare 3 rows: fcfs, sjf · noisy-oracle:tau=0.5, sjf · oracle")
    assert lines[1] == "on t.csv (60 requests) at 8, 20 requests/s, 2 seeds: 4 cells, 12 runs"
    assert re.match(r"about \d+ s in 1 processes \(a run of fcfs took \d", lines[2])
    assert {path.name for path in Path().iterdir()} == {"t.csv"}
    assert "did you mean 'sjf'" in run(f"{GRID.replace('sjf', 'sjff')} --dry-run")[2]
    code, out, _ = run("capacity t.csv --slo e2e_p99=1.5 --tolerance 0.01 --dry-run")
    # ln 2 / ln 1.01 = 69.7: seven halvings of the logarithm
    assert code == 0 and "7 runs a seed for a tolerance of 0.01" in out
    code, out, _ = run("train predictor synthetic-chat --max-rows 400 --out p --dry-run")
    assert code == 0 and not Path("p").exists()
    assert out.startswith("would train ridge (exact) on ")


def test_plans_of_what_is_tuned_searched_and_judged(run: Run) -> None:
    write_bundle(load_policy("srtf"), Path("b"))
    there = {path.name for path in Path().iterdir()}
    given = "t.csv --requests 10 --seeds 2 --max-num-seqs 2"
    code, out, err = run(f"tune work {given} --budget 4 --rates 8,20 --out r --dry-run")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == "would tune work (b) for a small e2e_mean"
    assert lines[1] == (  # 4 runs on each of two windows at two rates, 3 policies on 4 + 4
        "on t.csv at 8, 20 requests/s: 16 runs on 2 windows of 10 requests to tune, and 24 to "
        "judge it beside two others on those and on 2 more"
    )
    assert re.match(r"about \d+ s \(a run of fcfs took \d", lines[2])
    assert lines[3] == "4 windows to tune on: 16 runs, not 4"
    code, out, _ = run(f"search {given} --budget 99 --start sjf,work --features prompt_tokens "
                       "--out r --dry-run")  # fmt: skip
    lines = out.splitlines()
    assert code == 0 and lines[0] == "would search a score for a small e2e_mean, of prompt_tokens"
    assert lines[1] == "beginning with sjf, work"
    assert lines[2].startswith("on t.csv at its own rate: 99 runs on 2 windows of 10 requests")
    code, out, _ = run(f"evaluate policy b {given} --rate 20 --tune --budget 9 --out r --dry-run "
                       "--baselines fcfs,work")  # fmt: skip
    lines = out.splitlines()
    assert code == 0 and lines[0] == "would judge fcfs, work, b"
    assert lines[1] == "and, tuned by 9 runs each on other windows, work"
    assert lines[2].startswith("on 2 windows of t.csv at ")
    # fcfs, work, b and the tuned work on 2 windows, 9 runs to tune
    assert re.match(r"17 runs, about \d+ s \(a run of fcfs took \d", lines[3])
    assert {path.name for path in Path().iterdir()} == there
    assert "did you mean 'srtf'" in run(f"tune srft {given} --dry-run")[2]
    assert "did you mean 'prompt_tokens'" in run(f"search {given} --features prompt_token "
                                                 "--dry-run")[2]  # fmt: skip


# Progress


def test_without_a_terminal_lines_say_how_far_work_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "LINE_AFTER_S", 0.01)
    monkeypatch.setattr(show, "LINE_EVERY_S", 0.01)
    monkeypatch.setattr(show, "time", SimpleNamespace(monotonic=lambda: 5.0))  # however busy
    # not read back from capsys while the thread writes: what comes in between is lost there
    lines: list[str] = []

    def echo(text: str, err: bool = False) -> None:
        lines.append(text if err else f"on standard output: {text}")

    with monkeypatch.context() as heard:
        heard.setattr(show.click, "echo", echo)
        with show.progress("comparing") as moved:
            while len(lines) < 2:
                time.sleep(0.01)
            moved(3, 1500)
            while "3 of" not in lines[-1]:
                time.sleep(0.01)
    assert lines[0] == "comparing: 0 s"
    assert lines[-1] == "comparing: 3 of 1,500 done, 0 s"
    with show.progress("hidden", shown=False) as moved:
        moved(1, 2)
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
