"""What README.md, CONTRIBUTING.md, SECURITY.md and docs/ show, runs: Python, and every command.

A command runs as it is written, with ``SHORTER`` behind it so that it takes little time; where an
option stands twice the last counts. What is not ours (git, pip, curl) is not run. Of a block that
can't be run here a comment above it says why, in the words of ``REASONS``, and what can be judged
without running it still is: imports, options, settings.
"""

from __future__ import annotations

import ast
import gzip
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest

import lengthwise as lw
from lengthwise.policies.plugins.part import Part
from lengthwise.serving.workload import generate_prompts
from lengthwise.training.cli import cli, main
from tests.test_eval_trace import asked

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NAMED = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
ALL = [*NAMED, *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in ALL if FENCE.search(page.read_text("utf-8"))]
# Why a block is not run here, in the comment above it: <!-- not run: it needs a GPU -->.
REASONS = (
    "it needs a GPU",
    "it needs an engine that runs",
    "it needs a model of yours",
    "it needs the network",
    "it takes minutes",
    "an engine logs it",
)
NOT_OURS = (
    "git",
    "cd",
    "pip",
    "source",
    "python3",
    "curl",
    "envoy",
    "export",
    "openevolve-run",
    ".venv/bin/pre-commit",
)
# Commands by how they begin, the longest first that fits -> what makes them short.
SHORTER = {
    "advise": "--requests 200 --seeds 2",
    "calibrate": "",
    "capacity": "--requests 200 --seeds 2",
    "check config": "",
    "check policy": "",
    "compare": "--requests 60 --seeds 2 --processes 1 --force",
    "compare chats.jsonl": "--dry-run",  # loading the encoder takes its time
    "doctor": "",
    "evaluate policy": "--requests 50 --seeds 2",
    "evaluate policy hb": "--requests 50 --seeds 2 --budget 4",
    "evaluate policy rb": "--requests 50 --seeds 2 --budget 4",
    "evaluate policy runs/seed0": "--requests 50 --seeds 2 --budget 4",
    "evaluate predictor": "",
    "export": "",
    "list": "",
    "mock-server": "--port 0",
    "plan": "--requests 40 --processes 1",
    "search": "--requests 60 --seeds 1 --budget 60 --force",
    "serve-epp": "--port 0 --metrics-port 0",
    "hint-proxy": "--port 0",
    "serve-latency": "--port 0",
    "simulate": "--requests 60",
    "train policy": "--steps 2048 --set rollout=2048 --env-set requests=30",
    "train policy --env": "--dry-run",
    "train policy --scenarios": "--dry-run",
    "train predictor": "--force",
    "train predictor chats.jsonl": "--force --dry-run",
    "tune": "--requests 60 --seeds 1 --budget 8",
    "tune mlfq": "--requests 60 --seeds 1 --budget 8 --force",
    "compare azure-conv-2023 --rates auto --policies sjf,srtf,mlfq,work --tune": "--dry-run",
}
SERVERS = ("mock-server", "serve-epp", "hint-proxy", "serve-latency")
PROGRAM = "from lengthwise.training.cli import main; main()"
REAL = ROOT.parent / "shared" / "data"  # public prompts and traces: what pages call $DATA
MODEL = "gpt-4o-mini-2024-07-18"  # of the answers that a page learns from
ANSWERS_BY = ("Qwen1.5-72B-Chat", "Mixtral-8x22B-Instruct-v0.1")


@dataclass(frozen=True)
class Block:
    """A block of code of a page, and what the comment above it says."""

    said: str
    language: str
    text: str


@dataclass
class Shown:
    """What came of a page so far."""

    page: Path
    folder: Path
    names: dict[str, Any] = field(default_factory=dict)  # of its Python
    printed: str = ""  # by its last command
    left_out: list[str] = field(default_factory=list)  # commands whose data are not here


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(page.read_text("utf-8"))]


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
    trace = preset.to_frame()[["arrival_s", "prompt_tokens", "output_tokens"]]
    for name in ("trace", "chat", "code"):
        trace.to_csv(folder / f"{name}.csv.gz", index=False)
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
    frame["model"] = MODEL
    for name in ("responses.jsonl.gz", "chats.jsonl"):
        frame.to_json(folder / name, orient="records", lines=True)
    frame["model"] = "NAME"
    frame.to_json(folder / "answers.jsonl.gz", orient="records", lines=True)
    (folder / "fleet.yaml").write_text(
        "- {address: 127.0.0.1:8000, timing: h200/llama-3.1-8b, max_num_seqs: 8}\n"
        "- {address: 127.0.0.2:8000, timing: 'roofline:l40s/llama-3.1-8b', max_num_seqs: 8}\n"
    )
    settings = {"lengthwise": {"policy": "srtf", "predictor": "./p"}}
    (folder / "settings.json").write_text(json.dumps(settings))
    run(["train", "predictor", str(folder / "responses.jsonl.gz"), "--out", str(folder / "p")])
    for name in ("bundle", "my_router", "runs/seed0", "runs/seed1", "runs/seed2"):
        run(["export", "jsq", "--to", str(folder / name)])
    _record(folder / "log", trace, made.prompt)
    return folder


def _record(folder: Path, trace: pd.DataFrame, prompts: list[str]) -> None:
    """What a server's plugin writes."""
    part = Part(folder, True, {"engine": "vllm", "model": MODEL, "tokenizer": ""})
    folder.mkdir()
    for n, (row, prompt) in enumerate(zip(trace.itertuples(), prompts, strict=False)):
        part.add({
            "request_id": str(n), "arrival_s": row.arrival_s, "finish_s": row.arrival_s + 2.0,
            "prompt_tokens": row.prompt_tokens, "output_tokens": row.output_tokens,
            "predicted_tokens": 100.0, "predicted_by": "predictor", "finish_reason": "stop",
            "prompt": prompt, "max_tokens": 4096,
        })  # fmt: skip
    part.write()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The first rows of the public data that pages name, or None where it is not here."""
    if not REAL.is_dir():
        return None
    folder = tmp_path_factory.mktemp("real")
    named = {name for page in PAGES for name in re.findall(
        r"\$(?:DATA|T)/([\w/]+\.(?:csv|jsonl)\.gz)", page.read_text("utf-8"))}  # fmt: skip
    for name in named:
        source = next(REAL.rglob(Path(name).name))
        target = folder / source.relative_to(REAL)
        target.parent.mkdir(exist_ok=True)
        with gzip.open(source, "rt") as rows, gzip.open(target, "wt") as kept:
            if "prompts" in source.parts:
                rows = (row for row in rows if any(by in row for by in ANSWERS_BY))
            kept.writelines(islice(rows, 1500 if "traces" in source.parts else 500))
    return folder


def run(words: list[str]) -> str:
    """What a command of ours prints; it must succeed."""
    heard, amiss = StringIO(), StringIO()
    with pytest.raises(SystemExit) as ended, redirect_stdout(heard), redirect_stderr(amiss):
        main(words)
    assert not ended.value.code, f"{shlex.join(words)}: {amiss.getvalue()[-1000:]}"
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
@pytest.mark.parametrize(
    "page", PAGES, ids=[str(page.relative_to(ROOT).with_suffix("")) for page in PAGES]
)
def test_what_a_page_shows_runs(
    page: Path, data: Path, real: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page.read_text("utf-8")
    for file in data.iterdir():
        # what the page's own commands write is not there before
        written = re.search(rf"--(?:out|to) (?:\./)?{re.escape(file.name)}(?![\w./-])", text)
        if file.is_dir() and (file.name == "p" or not written):  # p is trained anew by some
            shutil.copytree(file, tmp_path / file.name)
        elif not file.is_dir():
            (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    if real is not None:
        monkeypatch.setenv("DATA", str(real))
        monkeypatch.setenv("T", str(real / "traces"))
    # starting vLLM takes half a minute: tests/test_eval_parts.py holds what is said of it
    monkeypatch.setattr("lengthwise.eval.check._vllm", lambda policy: iter(()))
    shown = Shown(page, tmp_path)
    found = blocks(page)
    for block, follows in zip_longest(found, found[1:]):
        try:
            done(
                block,
                shown,
                follows is not None and (follows.said, follows.language) == ("", "text"),
            )
        except Exception as error:
            error.add_note(f"in {page.name}:\n{block.text}")
            raise
    # tables of comparisons have today's headings
    made = {head for table in tmp_path.glob("*/table.md") for head in heads(table)}
    there = heads(page)
    assert not made or there <= made, there - made
    if shown.left_out:
        pytest.skip(f"all but what needs {REAL}: {'; '.join(shown.left_out)}")


def heads(page: Path) -> set[str]:
    """The headings of the tables that `compare` writes."""
    rows = re.findall(r"^\| policy \| predictor \|(.*)\|$", page.read_text("utf-8"), re.MULTILINE)
    return {head.strip() for row in rows for head in row.split("|")}


def done(block: Block, shown: Shown, whole: bool) -> None:
    """Runs a block, or judges it as far as that goes where it says that it can't be run.

    ``whole``: what it prints is shown too, so that commands are not shortened.
    """
    how, _, about = block.said.partition(": ")
    assert how in ("", "not run", "file", "run by"), block.said
    if how == "not run":
        assert about in REASONS, f"no reason that counts: {about}"
        judged(block)
    elif how == "run by":
        assert shown.page.name in (ROOT / about).read_text("utf-8"), f"{about} reads no such page"
    elif how == "file":
        Path(about).write_text(local(block.text), "utf-8")
    elif block.language == "python":
        executed(block.text, shown)
    elif block.language == "text":  # what the last command prints
        if not shown.left_out:
            printed = said(shown.printed)
            for words, numbers in said(block.text).items():
                assert printed.get(words) == pytest.approx(numbers, rel=0.1, abs=0.02), words
    elif block.language == "sql":  # asked of the last trace that was written
        ((*rows,),) = asked(max(shown.folder.glob("*.json.gz"), key=os.path.getmtime), block.text)
        assert rows
    elif block.language == "mermaid":
        pass  # tests/test_docs_site.py draws it
    else:
        assert block.language == "", f"nobody runs a block of {block.language!r}"
        for words in commands(block.text):
            follow(words, shown, whole)


def local(text: str) -> str:
    """Addresses of a page's fleet as such of this machine: nobody else is asked anything."""
    return text.replace("10.0.0.", "127.0.0.")


def said(text: str) -> dict[str, list[float]]:
    """The words of each line -> the numbers beside them."""
    found = {}
    for line in filter(lambda line: line.strip(" ─"), text.splitlines()):
        number = r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?"
        words = " ".join(re.sub(number, "", line).split())
        found[words] = [float(one.replace(",", "")) for one in re.findall(number, line)]
    return found


def executed(text: str, shown: Shown) -> None:
    """Runs Python; where a comment begins with a number, the expression before it is about that."""
    if found := re.match(r"# (\w+\.py)\n", text):
        Path(found[1]).write_text(text, "utf-8")
    lines = text.splitlines()
    code = text.replace("requests=2_000", "requests=  100")
    for node in ast.parse(code).body:
        if isinstance(node, ast.Expr):
            value = eval(compile(ast.Expression(node.value), shown.page.name, "eval"), shown.names)
            comment = lines[(node.end_lineno or 0) - 1].partition("#")[2]
            if number := re.match(r" (-?\d[\d.,]*)", comment):
                assert value == pytest.approx(float(number[1].strip(",.")), rel=0.05), comment
        else:
            module = ast.Module([node], [])
            exec(compile(module, shown.page.name, "exec"), shown.names)


def follow(words: list[str], shown: Shown, whole: bool = False) -> None:
    """Does what a line of a page says, shortly; ``whole``: as it is."""
    program, *given = words
    if program == "make":
        target = (ROOT / "Makefile").read_text("utf-8")
        assert re.search(rf"^{given[0]}:", target, re.MULTILINE), given
    elif program == "vllm" or program.startswith("LENGTHWISE_"):
        judged_settings(words)
    elif program == "printf":
        *text, arrow, file = given
        assert arrow == ">"
        Path(file).write_text("".join(text).replace("\\n", "\n"))
    elif program == "lengthwise":
        named = [name for name in SHORTER if " ".join(given).startswith(name)]
        assert named, f"tell SHORTER how to run lengthwise {given[0]} in little time"
        more = [] if whole else shlex.split(SHORTER[max(named, key=len)])
        given = [os.path.expandvars(local(word)) for word in given]
        if any(word.startswith("$") for word in given):
            shown.left_out.append(shlex.join(words))
        elif given[0] in SERVERS:
            serves([*given, *more], shown.folder)
        else:
            shown.printed = run([*given, *more])
    else:
        assert program in NOT_OURS, words


# What is judged without being run


def judged(block: Block) -> None:
    """Its Python compiles and imports what there is; its commands have the options that they name.

    What an engine logs is judged where the plugin that says it is tested.
    """
    if block.language == "python":
        tree = compile(
            block.text, "block", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )
        ours: dict[str, Any] = {}  # what is imported of ours
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ours
            ):
                takes = inspect.signature(ours[node.func.id]).parameters
                assert {keyword.arg for keyword in node.keywords} <= set(takes), ast.unparse(node)
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lengthwise"):
                try:
                    module = import_module(str(node.module))
                except ImportError as error:  # of an engine
                    assert "lengthwise" not in str(error.name)
                    continue
                ours |= {alias.name: getattr(module, alias.name) for alias in node.names}
    elif block.language == "":
        for words in commands(block.text):
            judged_command(words)
    else:
        assert block.language == "text", f"nobody judges a block of {block.language!r}"


def judged_command(words: list[str]) -> None:
    """The options that a command is given are among those that it has."""
    program, *given = words
    options = {word.partition("=")[0] for word in given if re.match(r"--\w", word)}
    if program == "lengthwise":
        command: click.Command = cli
        context = click.Context(cli)
        while isinstance(command, click.Group) and given and not given[0].startswith("-"):
            found = command.get_command(context, given[0])
            assert found is not None, f"no such command: {shlex.join(words)}"
            command, given = found, given[1:]
        inner = [command]
        if isinstance(command, click.Group):  # `train --config FILE`: of one of them
            inner += filter(
                None, (command.get_command(context, n) for n in command.list_commands(context))
            )
        has = {o for c in inner for p in c.params for o in (*p.opts, *p.secondary_opts)} | {
            "--help"
        }
        assert options <= has, f"lengthwise has no {options - has}"
    elif program == "python" and given[0] == "-m" and not given[1].startswith("sglang"):
        spec = find_spec(given[1])
        assert spec is not None and spec.origin is not None, f"no module {given[1]}"
        if ".plugins." in given[1]:  # its other options are the router's that it starts
            options &= {"--lengthwise"}
        name = spec.origin.replace("__init__.py", "__main__.py")
        judged_program(Path(name), given[2:], options)
    elif program == "python" and given[0].endswith(".py"):
        judged_program(ROOT / given[0], given[1:], options)
    elif program == "vllm" or program.startswith("LENGTHWISE_"):
        judged_settings(words)
    elif program == "make":
        assert re.search(rf"^{given[0]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def judged_program(file: Path, given: list[str], options: set[str]) -> None:
    """argparse is not asked, for it would want the program to run: its source names the options."""
    source = file.read_text("utf-8")
    for imported in re.findall(
        r"^from ((?:benchmarks|tests)[.\w]* import \w+)", source, re.MULTILINE
    ):
        module, _, name = imported.partition(" import ")
        for one in (f"{module}.{name}", module):
            if (path := (ROOT / one.replace(".", "/")).with_suffix(".py")).exists():
                source += path.read_text("utf-8")
    names = {option: option.removeprefix("--").replace("-", "_") for option in options}
    missing = [one for one, name in names.items()
               if f'"{one}"' not in source and f'"{name}"' not in source]  # fmt: skip
    assert not missing, f"{file.name} has no {missing}"


def judged_settings(words: list[str]) -> None:
    """An engine's own options are the engine's to know; the plugin's settings are ours."""
    program, *given = words
    if program.startswith("LENGTHWISE_SGLANG="):
        given = ["--engine", "sglang", program.partition("=")[2]]
    elif "--additional-config" in given:
        assert "lengthwise.policies.plugins.vllm.scheduler" in given
        given = [given[given.index("--additional-config") + 1]]
    elif program.startswith("LENGTHWISE_LITELLM="):  # tests/test_plugins_routers.py starts it
        lw.load_router(json.loads(program.partition("=")[2])["policy"])
        return
    else:
        return
    if "./p" not in given[-1] or Path("p").exists():
        run(["check", "config", *given])


@pytest.mark.parametrize("page", ALL, ids=[str(page.relative_to(ROOT)) for page in ALL])
def test_commands_in_a_page_s_prose_are_there(page: Path) -> None:
    prose = FENCE.sub("", page.read_text("utf-8"))
    for code in re.findall(r"`((?:lengthwise|python|make) [^`]+)`", prose):
        judged_command(shlex.split(" ".join(code.split())))
    # what is shown to be typed stands in a fence, where it is run
    typed = re.findall(r"^    (?:lengthwise|python|make|vllm|pip) .*", prose, re.MULTILINE)
    assert typed == []


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=str)
def test_commands_in_a_notebook_s_text_are_there(notebook: Path) -> None:
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "markdown":
            for text in re.findall(r"^```bash\n(.*?)^```", "".join(cell["source"]), re.S | re.M):
                for words in commands(text):
                    judged_command(words)


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


def test_what_the_readme_says_of_its_router_is_so(tmp_path: Path) -> None:
    """Trained as it says: 7 times better than round robin, better than jsq, as good as jsew."""
    (train,) = [
        words for block in blocks(ROOT / "README.md") if not block.language
        for words in commands(block.text) if words[1:3] == ["train", "policy"]
    ]  # fmt: skip
    run([*train[1:], "--out", str(tmp_path / "router")])
    nodes = train[train.index("--nodes") + 1]
    mean: dict[str, float] = {}
    for router in (str(tmp_path / "router" / "bundle"), "round-robin", "jsq", "jsew"):
        mean[router] = sum(
            lw.simulate(
                lw.Workload.preset("azure-conv-2023", requests=500, rate=14.0, seed=seed),
                router=router, predictor="oracle", nodes=nodes, engine=lw.Engine(max_num_seqs=8),
            ).summary()["e2e_mean_s"]
            for seed in range(100, 116)
        )  # fmt: skip
    learned, turns, shortest, expected = mean.values()
    assert 6 < turns / learned < 8
    assert learned < 0.97 * shortest
    assert 0.95 < learned / expected < 1.05


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


def test_what_results_say_of_their_tables_is_so() -> None:
    """docs/results.md, in words and in figures: the same."""
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    found: dict[str, dict[tuple[str, str], tuple[float, ...]]] = {}  # mean and P99 over fcfs's
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        for title, table in re.findall(r"^\*\*(.*)\*\*\n\n((?:\|.*\n)+)", section, re.MULTILINE):
            rows = [[cell.strip() for cell in row[1:-1].split("|")] for row in table.splitlines()]
            mean, tail = rows[0].index("mean × fcfs"), rows[0].index("P99 × fcfs")
            found[f"{section.split()[0]} {title}"] = {
                (policy, predictor.strip()): tuple(float(row[n].split()[0]) for n in (mean, tail))
                for row in rows[2:] if row[0] != "lower bound"
                for policy in row[0].split(" = ") for predictor in row[1].split(",")
            }  # fmt: skip
    idle = [rows for title, rows in found.items() if "no queue forms" in title]
    assert len(idle) == 3
    assert {mean for rows in idle for mean, _ in rows.values()} == {1.0}
    busy = {
        t: rows for t, rows in found.items() if "no queue" not in t and ("sjf", "oracle") in rows
    }
    gains = sorted(round(1 - rows["sjf", "oracle"][0], 2) for rows in busy.values())
    assert gains[0] == 0.06 and gains[1] == 0.15 and gains[-1] == 0.44
    tails = [
        row[1] for rows in busy.values() for (policy, _), row in rows.items() if policy == "sjf"
    ]
    assert 1.8 <= min(tails) and max(tails) <= 6
    for name, predictor, least, most in (
        ("MMLU", "p-mmlu", 0.7, 0.8), ("AlpacaEval", "p-alpaca", 0.4, 0.5),
    ):  # fmt: skip
        (*_, rows) = (rows for title, rows in busy.items() if title.startswith(name))
        assert least < (1 - rows["sjf", predictor][0]) / (1 - rows["sjf", "oracle"][0]) < most
    guarded = [rows for title, rows in found.items() if title.startswith("What")]
    assert len(guarded) == 2
    for rows in guarded:
        whole = 1 - rows["srtf", "oracle"][0]
        mean, tail = rows["srtf+guard", "oracle"]
        assert tail < 1.5 and 0.75 < (1 - mean) / whole < 0.95
        mean, tail = rows["srtf+guard:ratio=1.1", "oracle"]
        assert 1.05 < tail < 1.2 and (1 - mean) / whole < 0.5


def test_every_linked_file_is_there() -> None:  # those of docs/: mkdocs, strictly
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"):
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text("utf-8")):
            if "://" not in target:
                assert (ROOT / target).exists(), f"{name} links to {target}"


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    told = set(re.findall(r"(?:lengthwise |make |`)([a-z-]+)", text))
    assert set(cli.commands) - told == set()
