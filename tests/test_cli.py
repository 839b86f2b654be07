"""The command line: each command once, and each bad input as one line with exit code 2."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lengthwise import registry
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.bundle import write_bundle
from lengthwise.serving.timing import timing_names
from lengthwise.serving.workload import preset_names
from lengthwise.training.cli import COMMANDS, main
from lengthwise.training.commands.options import split_specs

TRACE = "arrival_s,prompt_tokens,output_tokens\n0,10,5\n0.5,20,6\n1.5,30,7\n"


class Run:
    """What a command said, and how it ended."""

    def __init__(self, line: str, capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(shlex.split(line))
        self.code = end.value.code
        self.out, self.err = capsys.readouterr()


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> object:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trace.csv").write_text(TRACE)
    return lambda line: Run(line, capsys)


def test_help_is_quick_and_lists_every_command() -> None:
    code = "import sys; from lengthwise.training.cli import main; main(['--help'])"
    taken = []  # processor time, which does not grow when the machine is busy
    for _ in range(3):
        before = os.times()
        shown = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        after = os.times()
        used = after.children_user - before.children_user
        taken.append(used + after.children_system - before.children_system)
    assert min(taken) < 0.3
    for name in COMMANDS:
        assert f"  {name} " in shown
    code = "import sys; from lengthwise.training import cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert not {"numpy", "pandas", "numba", "torch", "rich"} & set(loaded.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, run: object) -> None:
    found = run(f"{name} --help")  # type: ignore[operator]
    assert found.code == 0
    assert "Usage: lengthwise" in found.out


# (command, what its one line says)
REFUSED = [
    ("simulat", "did you mean 'simulate'"),
    ("train predictr", "did you mean 'predictor'"),
    ("simulate trace.csv --polcy fcfs", "did you mean '--policy'"),
    ("simulate", "missing argument 'WORKLOAD'"),
    ("simulate trace.csv --seed x", "'x' is not a valid integer"),
    ("simulate azure-conv-2023 --seed -1", "-1 is not in the range"),
    ("simulate trace.csv --replicas 1000000", "have 256000000 seats"),
    ("simulate azure-conv-2023 --requests 1000000000000", "requests must be 1 to 100000000"),
    ("simulate trace.csv --policy mlfq:quantum=12345678901234567890123", "takes numbers up to"),
    ("simulate trace.csv --policy srft --predictor oracle", "did you mean 'srtf'"),
    ("simulate trace.csv --policy mlfq:quantm=8", "did you mean 'quantum'"),
    ("simulate trace.csv --policy mlfq:quantum=x", "takes int"),
    ("simulate trace.csv --policy wrong.py:score", "did you mean 'arrival_s'"),
    ("simulate trace.csv --policy sjf", "--predictor oracle"),
    ("simulate trace.csv --policy sjf --predictor orcle", "did you mean 'oracle'"),
    ("simulate trace.csv --policy sjf --predictor ./none", "does not exist"),
    ("simulate trace.csv --policy sjf --predictor ridge", "text of prompts"),
    ("simulate trace.csv --policy bundle", "did you mean 'prompt_tokens'"),
    ("simulate trace.csv --timing h200/llama-3.1-8", "h200/llama-3.1-8b, "),
    ("simulate trace.csv --timing h20/llama", "h200/llama-3.1-8b"),
    ("simulate trace.csv --router jqs", "did you mean 'jsq'"),
    ("simulate trace.csv --backend quick", "allowed: auto, fast, reference, vllm"),
    ("simulate trace.csv --slo tft=1", "did you mean 'ttft'"),
    ("simulate trace.csv --rate 0", "positive"),
    ("simulate trace.csv --max-num-seqs 0", "at least 1"),
    ("simulate trace.csv --max-model-len 30", "max_model_len is 30"),
    ("simulate trace.csv --num-gpu-blocks 2", "KV cache"),
    ("simulate azure-conv-2032", "did you mean 'azure-conv-2023'"),
    ("simulate none.csv", "none.csv"),
    ("simulate missing.csv", "output_tokens"),
    ("simulate nan.csv", "row 1"),
    ("simulate negative.csv", "must be 1 or more"),
    ("simulate zero.csv", "--drop-zero-output"),
    ("simulate empty.csv", "empty.csv"),
    ("simulate truncated.csv.gz", "truncated.csv.gz"),
    ("simulate plain.csv.gz", "plain.csv.gz"),
    ("simulate whole.csv.gz --max-expanded 0.0005", "expand to more than 500; allow it"),
    ("train predictor whole.csv.gz --max-expanded 0.0005 --out p", "expand to more than 500"),
    ("evaluate predictor prompt-length whole.csv.gz --max-expanded 0.0005", "more than 500"),
    ("evaluate policy bundle whole.csv.gz --max-expanded 0.0005", "expand to more than 500"),
    ("simulate trace.csv --out trace.csv/below", "can't write"),
    ("compare trace.csv --out others", "holds other files"),
    ("compare trace.csv --rates 4,x", "--rates takes numbers"),
    ("compare trace.csv --rates 4,4", "names a rate twice"),
    ("compare trace.csv --seeds 100000000", "100000000 is not in the range 1<=x<=10000"),
    ("compare trace.csv --policies fcfs,srft", "did you mean 'srtf'"),
    ("compare trace.csv --routers jsq", "two nodes or more"),
    ("compare trace.csv --replicas 2 --routers jqs", "did you mean 'jsq'"),
    ("capacity trace.csv --slo ttft_p98=1", "did you mean 'ttft_p99'"),
    ("train predictor trace.csv --target exct --out p", "did you mean 'exact'"),
    ("train predictor trace.csv --model rigde --out p", "did you mean 'ridge'"),
    ("train predictor trace.csv --out trace.csv/p", "can't write"),
    ("train predictor trace.csv --set alpha=nan --out p", "alpha must be a number of 0 or more"),
    ("train predictor trace.csv --set alpha=low --out p", "alpha must be a number of 0 or more"),
    ("train policy --set learning_rate=nan --out r", "learning_rate of ppo is a number of 0"),
    ("evaluate predictor ./none trace.csv", "does not exist"),
    ("train policy --env lengthwise/Routing-v2 --out r", "did you mean 'lengthwise/Routing-v1'"),
    ("evaluate policy bundle", "no workload after 'bundle'"),
    ("evaluate policy ./none trace.csv", "neither a bundle"),
    ("evaluate policy bundle trace.csv --load 0.8,x", "--load takes numbers of shares"),
    ("evaluate policy bundle trace.csv --baselines fcfs,srft", "did you mean"),
    ("export ./none --to b", "neither a bundle"),
    ("export jsew:b=-1 --to b", "tunable jsew:b takes 0 to 100, not -1"),
    ("profile --engine vlm --out p.json", "did you mean 'vllm'"),
    ("profile --out p.json", "GPU"),
    ("list polices", "did you mean 'policies'"),
    ("reproduce ssfj", "did you mean 'ssjf'"),
    ("reproduce ssjf --small", "--small is of intelligent-router"),
]


@pytest.fixture
def bad_files(tmp_path: Path) -> None:
    """Every broken input of ``REFUSED``."""
    head = "arrival_s,prompt_tokens,output_tokens\n"
    (tmp_path / "wrong.py").write_text("def score(arival_s):\n    return arival_s\n")
    (tmp_path / "missing.csv").write_text("arrival_s,prompt_tokens\n0,10\n")
    (tmp_path / "nan.csv").write_text(f"{head}0,10,5\n1,,5\n")
    (tmp_path / "negative.csv").write_text(f"{head}0,10,-5\n")
    (tmp_path / "zero.csv").write_text(f"{head}0,10,0\n1,10,5\n")
    (tmp_path / "empty.csv").write_text(head)
    packed = gzip.compress(TRACE.encode() * 50)
    (tmp_path / "truncated.csv.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "whole.csv.gz").write_bytes(packed)
    (tmp_path / "plain.csv.gz").write_text(TRACE)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.tex").write_text("years of work")
    bundle = write_bundle(load_policy("mlfq"), tmp_path / "bundle")
    described = json.loads((bundle / "policy.json").read_text())
    described["features"][1]["name"] = "promt_tokens"
    (bundle / "policy.json").write_text(json.dumps(described))


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize(("line", "said"), REFUSED, ids=[line for line, _ in REFUSED])
def test_bad_input_is_one_line_and_exit_code_2(line: str, said: str, run: object) -> None:
    found = run(line)  # type: ignore[operator]
    assert found.code == 2
    assert found.err.count("\n") == 1
    assert found.err.startswith("lengthwise: ")
    assert said in found.err
    assert found.out == ""


def test_refused_without_a_traceback_from_outside(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from lengthwise.training.cli import main; main()"]
    ended = subprocess.run(
        [*command, "simulate", "azure-conv-2023", "--policy", "srft"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "Traceback" not in ended.stderr


def test_what_a_plain_install_lacks_is_named(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'matplotlib'): sys.modules[name] = None\n"
        "from lengthwise.training.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    for line, extra in (
        ("train policy --env lengthwise/Routing-v0 --workload azure-conv-2023 --out p", "all"),
        ("compare azure-conv-2023 --requests 20 --rates 5 --seeds 1 --out c", "plot"),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", code, *line.split()],
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert ended.returncode == 2
        assert f"pip install 'lengthwise[{extra}]'" in ended.stderr
        assert (ended.stderr.count("\n"), ended.stdout) == (1, "")


def test_a_bundle_is_judged_by_a_plain_install(tmp_path: Path) -> None:
    write_bundle(load_policy("hrrn"), tmp_path / "b")
    code = (
        "import sys\n"
        "for name in ('torch', 'gymnasium', 'stable_baselines3'): sys.modules[name] = None\n"
        "from lengthwise.training.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    line = "evaluate policy b lmsys-chat --requests 30 --seeds 2 --rate 30 --max-num-seqs 4"
    ended = subprocess.run(
        [sys.executable, "-c", code, *line.split()], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert "mean × fcfs" in ended.stdout


def test_a_list_says_whole_sentences(run: object) -> None:
    found = run("list policies --csv")  # type: ignore[operator]
    assert "who has waited starved_s and has generated fewer than quantum tokens" in found.out
    found = run("list routers --csv")  # type: ignore[operator]
    assert "Others: the most, where a seat is free" in found.out


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    from lengthwise.training.commands import listing

    monkeypatch.setitem(listing.KINDS, "policies", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["list", "policies"])


def test_unsorted_arrivals_are_sorted_with_a_notice(run: object, tmp_path: Path) -> None:
    lines = TRACE.splitlines()
    (tmp_path / "unsorted.csv").write_text("\n".join([lines[0], lines[3], lines[1], lines[2]]))
    found = run("simulate unsorted.csv")  # type: ignore[operator]
    assert found.code == 0
    assert "note: unsorted.csv: arrivals were not in order; sorted" in found.err
    assert "end-to-end latency" in found.out


def test_zero_outputs_are_dropped_when_asked(run: object, tmp_path: Path) -> None:
    (tmp_path / "zero.csv").write_text(TRACE + "2,10,0\n")
    found = run("simulate zero.csv --drop-zero-output")  # type: ignore[operator]
    assert found.code == 0
    assert "dropped 1 request" in found.err
    assert "3 requests" in found.out


def test_simulate_writes_the_same_bytes_twice(run: object, tmp_path: Path) -> None:
    line = (
        "simulate lmsys-chat --requests 60 --rate 30 --policy sjf --seed 3 --log-iterations "
        "--predictor noisy-oracle:tau=0.5 --max-num-seqs 8 --slo ttft=1"
    )
    for name in ("a", "b"):
        found = run(f"{line} --out {name}")  # type: ignore[operator]
        assert found.code == 0, found.err
        assert f"wrote {name}" in found.out
    for file in ("requests.parquet", "iterations.parquet", "summary.json", "timeline.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["command"] == f"lengthwise {line} --out a"
    assert config["engine"]["max_num_seqs"] == 8
    assert "goodput" in found.out


def test_compare(run: object, tmp_path: Path) -> None:
    found = run(  # type: ignore[operator]
        "compare lmsys-chat --requests 80 --rates 4,30 --seeds 2 --max-num-seqs 8 --processes 1 "
        "--policies sjf,mlfq:quantum=8,levels=4 --out out --slo ttft=0.5"
    )
    assert found.code == 0, found.err
    assert "mlfq:quantum=8,levels=4" in found.out
    assert "meet SLO" in found.out
    assert (tmp_path / "out" / "report.html").is_file()
    assert len(pd.read_parquet(tmp_path / "out" / "runs.parquet")) == 2 * 2 * 4


def test_compare_routers(run: object) -> None:
    found = run(  # type: ignore[operator]
        "compare lmsys-chat --requests 60 --rates 30 --seeds 2 --max-num-seqs 4 --processes 1 "
        "--routers jsq,jsew:b=0.1,crowding=0.3 --replicas 2"
    )
    assert found.code == 0, found.err
    for name in ("round-robin", "jsq", "jsew:b=0.1,crowding=0.3", "× best"):
        assert name in found.out
    assert "srtf" not in found.out


def test_capacity(run: object, tmp_path: Path) -> None:
    found = run(  # type: ignore[operator]
        "capacity lmsys-chat --requests 80 --seeds 2 --max-num-seqs 4 --processes 1 "
        "--slo ttft_p99=1.0 --tolerance 0.1 --out out"
    )
    assert found.code == 0, found.err
    assert "requests/s with ttft_p99 ≤ 1 s" in found.out
    assert (tmp_path / "out" / "probes.parquet").is_file()


def test_capacities_of_several_policies(
    run: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lengthwise.eval.capacity.CURVE", 2)
    line = (
        "capacity lmsys-chat --requests 80 --seeds 2 --max-num-seqs 4 --processes 1 "
        "--slo ttft_p99=1.0 --tolerance 0.1 --policies fcfs,sjf --predictors oracle"
    )
    planned = run(f"{line} --dry-run")  # type: ignore[operator]
    assert planned.out.splitlines()[-1] == "all of it for each of fcfs, sjf · oracle"
    found = run(f"{line} --out out --json")  # type: ignore[operator]
    assert found.code == 0, found.err
    document = json.loads(found.out)
    assert [row["policy"] for row in document["rows"]] == ["fcfs", "sjf"]
    assert "with ttft_p99 ≤ 1 s" in document["verdicts"][0]
    report = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert report.index(document["verdicts"][0]) < report.index('id="capacity"')
    assert (tmp_path / "out" / "capacity.png").is_file()
    probes = pd.read_parquet(tmp_path / "out" / "probes.parquet")
    assert set(probes["predictor"]) == {"none", "oracle"}
    assert not (tmp_path / "out.cells").exists()
    shown = run(f"{line} --csv")  # type: ignore[operator]
    assert len(shown.out.splitlines()) == 1 + 2 * 2


def test_train_evaluate_and_use_a_predictor(run: object, tmp_path: Path) -> None:
    trained = run("train predictor synthetic-chat --max-rows 400 --out p")  # type: ignore[operator]
    assert trained.code == 0, trained.err
    assert "Kendall tau-b" in trained.out
    judged = run("evaluate predictor p synthetic-chat --max-rows 400")  # type: ignore[operator]
    assert judged.code == 0, judged.err
    # the same unseen half of the same prompts; and then, how it went over the file
    first, over_the_file = (x for x in judged.out.splitlines() if "Kendall" in x)
    assert [x for x in trained.out.splitlines() if "Kendall" in x] == [first]
    assert over_the_file.split()[0] == "answers"
    used = run(  # type: ignore[operator]
        "simulate synthetic-chat --requests 40 --split test --policy sjf --predictor p"
    )
    assert used.code == 0, used.err


def test_train_evaluate_and_export_a_policy(run: object, tmp_path: Path) -> None:
    trained = run(  # type: ignore[operator]
        "train policy --env lengthwise/Routing-v0 --steps 64 --n-envs 2 --out r "
        "--set rollout=64,batch_size=32 "
        "--env-set requests=40,rate=40,replicas=2 --max-num-seqs 8"
    )
    assert trained.code == 0, trained.err
    exported = run("export r --to b")  # type: ignore[operator]
    assert exported.code == 0, exported.err
    judged = run("evaluate policy b lmsys-chat --requests 40 --seeds 2")  # type: ignore[operator]
    assert judged.code == 0, judged.err
    assert "round-robin" in judged.out
    assert "mean × best" in judged.out
    several = run(  # type: ignore[operator]
        "evaluate policy b r lmsys-chat azure-code-2023 --requests 20 --seeds 2 --load 0.7,1.1 "
        "--baselines round-robin,least-load --tune --budget 16 --max-num-seqs 4 --replicas 2 "
        "--wide"
    )
    assert several.code == 0, several.err
    assert several.out.count("mean of 2 has") == several.out.count("best baseline: ") == 4
    assert several.out.count("least-load:penalty=") == 4 or "least-load: nothing" in several.err
    routed = run("simulate trace.csv --replicas 2 --router b --predictor oracle")  # type: ignore[operator]
    assert routed.code == 0, routed.err


def test_a_named_policy_or_router_is_exported(run: object) -> None:
    assert run("export mlfq:quantum=64 --to b").code == 0  # type: ignore[operator]
    assert run("simulate trace.csv --policy b").code == 0  # type: ignore[operator]
    assert run("export least-load:penalty=2.0 --to r").code == 0  # type: ignore[operator]
    assert load_router("r").score == load_router("least-load:penalty=2.0").score
    wrong = run("export least-loda --to w")  # type: ignore[operator]
    assert wrong.code == 2 and "did you mean 'least-load'" in wrong.err


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("policies", registry.names("policy")),
        ("routers", registry.names("router")),
        ("predictors", registry.names("predictor")),
        ("envs", registry.names("env")),
        ("timings", timing_names()),
        ("workloads", preset_names()),
    ],
)
def test_list_names_everything_with_a_line_each(kind: str, names: list[str], run: object) -> None:
    found = run(f"list {kind}")  # type: ignore[operator]
    assert found.code == 0
    lines = [line.split() for line in found.out.splitlines()[2:] if not line.startswith(" ")]
    said = {name: words for name, *words in lines}
    assert list(said) == names
    assert all(said.values())


def test_specs_between_commas() -> None:
    assert split_specs("fcfs,mlfq:quantum=64,levels=6,./p.py:f,sjf+preempt:margin=2,price=0") == (
        "fcfs", "mlfq:quantum=64,levels=6", "./p.py:f", "sjf+preempt:margin=2,price=0",
    )  # fmt: skip
