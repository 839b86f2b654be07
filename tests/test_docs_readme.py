"""What README.md and docs/start/ show, runs: policy files, Python, and every command, in order.

A command runs as it is written, with ``SHORTER`` behind it so that it takes little time; where an
option stands twice the last counts. What is not ours (git, pip, curl) is not run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

import lengthwise as lw
from lengthwise.serving.workload import generate_prompts
from lengthwise.training.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "start").glob("*.md"))]
NOT_OURS = ("git", "cd", "pip", "source", "python3", "curl")
# Commands by how they begin, the longest first that fits -> what makes them short.
SHORTER = {
    "advise": "--requests 200 --seeds 2",
    "calibrate": "",
    "capacity": "--requests 200 --seeds 2",
    "check policy": "",
    "compare": "--requests 60 --seeds 2 --processes 1 --force",
    "compare ./log": None,  # what a server recorded: there is none here
    "evaluate policy": "--requests 50 --seeds 2",
    "evaluate predictor": "",
    "export": "",
    "mock-server": "--port 0",
    "serve-epp": "--port 0 --metrics-port 0",
    "hint-proxy": "--port 0",
    "serve-latency": "--port 0",
    "simulate": "--requests 60",
    "train policy": "--steps 2048 --set rollout=2048 --env-set requests=30",
    "train predictor": "",
    "tune": "--requests 60 --seeds 1 --budget 8",
}
SERVERS = ("mock-server", "serve-epp", "hint-proxy", "serve-latency")
PROGRAM = "from lengthwise.training.cli import main; main()"


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each block of code of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a block, with continued lines as one."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            if words := shlex.split(part, comments=True):
                yield words


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages call by name."""
    folder = tmp_path_factory.mktemp("data")
    preset = lw.Workload.preset("azure-conv-2023", requests=1000, seed=3)
    trace = preset.to_frame()
    trace[["arrival_s", "prompt_tokens", "output_tokens"]].to_csv(
        folder / "trace.csv.gz", index=False
    )
    served = lw.simulate(preset.head(100)).requests
    bench = {
        "start_times": served["arrival_s"].tolist(),
        "input_lens": served["prompt_tokens"].tolist(),
        "output_lens": served["output_tokens"].tolist(),
        "ttfts": (served["first_token_s"] - served["arrival_s"]).tolist(),
        "itls": [[one] for one in (served["finish_s"] - served["first_token_s"]).tolist()],
    }  # fmt: skip
    (folder / "bench.json").write_text(json.dumps(bench))
    made = generate_prompts(400, seed=3)
    frame = pd.DataFrame({"prompt": made.prompt, "output_tokens": made.output_tokens})
    frame.to_json(folder / "responses.jsonl.gz", orient="records", lines=True)
    return folder


def run(words: list[str]) -> str:
    """What a command of ours prints; it must succeed."""
    heard = StringIO()
    with pytest.raises(SystemExit) as ended, redirect_stdout(heard):
        main(words)
    assert not ended.value.code, shlex.join(words)
    return heard.getvalue()


def serves(words: list[str], folder: Path) -> None:
    """A server starts, says where, and ends when it is told to."""
    with subprocess.Popen(
        [sys.executable, "-uc", PROGRAM, *words], cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert process.returncode == 0, said + rest
    assert ":" in said


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_what_a_page_shows_runs(
    page: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in data.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    # starting vLLM takes half a minute: tests/test_eval_parts.py holds what is said of it
    monkeypatch.setattr("lengthwise.eval.check._vllm", lambda policy: iter(()))
    for language, text in blocks(page):
        if language == "python":
            if text.startswith("# my_policy.py"):
                Path("my_policy.py").write_text(text, "utf-8")
            code = text.replace("requests=2_000", "requests=100")
            exec(compile(code, page.name, "exec"), {})
            continue
        assert language == "", f"{page.name}: nobody runs a block of {language!r}"
        for words in commands(text):
            follow(words, tmp_path)


def follow(words: list[str], folder: Path) -> None:
    """Does what a line of a page says, shortly."""
    program, *given = words
    if program == "make":
        target = (ROOT / "Makefile").read_text("utf-8")
        assert re.search(rf"^{given[0]}:", target, re.MULTILINE), given
    elif program == "vllm":  # its own options are vLLM's to know; ours are judged
        settings = given[given.index("--additional-config") + 1]
        assert "lengthwise.policies.plugins.vllm.scheduler" in given
        run(["check", "config", settings])
    elif program == "lengthwise":
        named = [name for name in SHORTER if " ".join(given).startswith(name)]
        assert named, f"tell SHORTER how to run lengthwise {given[0]} in little time"
        more = SHORTER[max(named, key=len)]
        if given[0] in SERVERS:
            serves([*given, *shlex.split(more or "")], folder)
        elif more is not None:
            run([*given, *shlex.split(more)])
    else:
        assert program in NOT_OURS, words


def test_what_the_pages_say_of_their_example_is_so() -> None:
    """README: sjf has two thirds of the mean and 3 to 4 times the P99, srtf is the same run."""
    workload = lw.Workload.preset("azure-conv-2023", requests=2_000, rate=22.0, seed=0)
    engine = lw.Engine(max_num_seqs=64)
    found = {
        policy: lw.simulate(workload, policy=policy, predictor="oracle", engine=engine).summary()
        for policy in ("fcfs", "sjf", "srtf")
    }
    assert 0.6 < found["sjf"]["e2e_mean_s"] / found["fcfs"]["e2e_mean_s"] < 0.73
    assert 3 < found["sjf"]["e2e_p99_s"] / found["fcfs"]["e2e_p99_s"] < 4
    assert found["srtf"]["e2e_mean_s"] == found["sjf"]["e2e_mean_s"]


def test_what_five_minutes_says_of_its_comparison_is_so() -> None:
    """No queue at 12 requests/s; at 22 three quarters of the mean, more than twice the P99."""
    ratios = {}
    for rate in (12.0, 22.0):
        mean, tail = [], []
        for seed in range(5):
            workload = lw.Workload.preset("azure-conv-2023", requests=1000, rate=rate, seed=seed)
            first, second = (
                lw.simulate(
                    workload, policy=policy, predictor="oracle", engine=lw.Engine(max_num_seqs=64)
                ).summary()
                for policy in ("fcfs", "sjf")
            )
            mean.append(second["e2e_mean_s"] / first["e2e_mean_s"])
            tail.append(second["e2e_p99_s"] / first["e2e_p99_s"])
        ratios[rate] = sum(mean) / 5, sum(tail) / 5
    assert ratios[12.0] == pytest.approx((1, 1), abs=0.01)
    assert 0.7 < ratios[22.0][0] < 0.8
    assert 2 < ratios[22.0][1] < 3


def test_every_linked_file_is_there() -> None:  # those of docs/: mkdocs, strictly
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"):
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text("utf-8")):
            if "://" not in target:
                assert (ROOT / target).exists(), f"{name} links to {target}"
