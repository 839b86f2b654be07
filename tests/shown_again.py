"""``python -m tests.shown_again`` writes ``tests/data/shown_again.json``: what commands say.

Each command is run on a few requests, and of all that it says and writes the numbers are kept as
sums: of tables at two widths, of JSON and CSV, of files and of what is drawn. Like
``tests.same_again`` it says that something became another thing, and not which is right. Words and
their order are free to change; who changes a number that is shown means it, and writes the file.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lengthwise.eval import output, panels, plots
from lengthwise.training.cli import cli

FILE = Path(__file__).parent / "data" / "shown_again.json"
NUMBER = re.compile(r"(?<![\w.-])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?(?!\w)")
# What is of the place and the time: who ran it, where, how long it took, on what.
UNTOLD = {"provenance", "command", "version", "versions", "created", "python", "machine", "time",
          "seconds_taken", "lengthwise", "processes"}  # fmt: skip
BESIDE = "--processes 1 --seeds 2"
TRAIN = "train policy --workload t.csv --out r --max-num-seqs 3 --n-envs 2"
TINY = "--env-set requests=24,rate=9"
PPO = f"--steps 48 --set rollout=12,batch_size=12,n_epochs=2 {TINY}"
ROUTED = "requests=24,rate=20,replicas=3"

FLEET = """
gpus:
- {name: small, timing: roofline:l4/llama-3.1-8b, price: 0.8, max_num_seqs: 6}
- {name: large, timing: h200/llama-3.1-8b, price: 4, max_num_seqs: 6}
workload: t.csv
slo: {e2e: 4}
buckets: {prompt: [200, 2000], output: [2000]}
"""

LINES = {
    "simulate": "simulate t.csv --policy srtf --predictor noisy-oracle:sigma=0.5 --seed 3 "
    "--slo ttft=0.2,tpot=0.02 --max-num-seqs 6 --log-iterations --out o --trace trace.json",
    "simulate, a fleet": "simulate t.csv --policy mlfq --replicas 3 --router least-load:choices=2 "
    "--max-num-seqs 4 --json --log-iterations --failures f.csv --metrics-interval 0.2",
    "simulate, unequal": "simulate t.csv --policy vtc --nodes 1xh200/llama-3.1-8b,"
    "2xroofline:l40s/llama-3.1-8b --router jsew --predictor oracle --deadlines 2 "
    "--max-num-seqs 3 --num-gpu-blocks 120 --csv",
    "compare": f"compare t.csv {BESIDE} --policies sjf,mlfq --predictors noisy-oracle:sigma=1 "
    "--rates 4,30 --max-num-seqs 6 --slo ttft=0.5 --out o",
    "compare, wide": f"compare t.csv {BESIDE} --policies srtf,vtc --deadlines 3 --wide "
    "--max-num-seqs 5 --num-gpu-blocks 130 --slo e2e=2 --rates auto",
    "compare, JSON": f"compare t.csv {BESIDE} --routers jsq,least-tokens --replicas 3 "
    "--max-num-seqs 3 --json",
    "compare, CSV": f"compare t.csv {BESIDE} --policies sjf --rates 8 --max-num-seqs 3 --csv",
    "compare, tuned": f"compare t.csv {BESIDE} --policies mlfq --rates 9 --max-num-seqs 3 --tune "
    "--budget 6 --show e2e_mean,ttft_p95,jain_index",
    "compare, hosts": f"compare t.csv {BESIDE} --policies sjf --rates 7 --max-num-seqs 6 "
    "--host-uncertainty",
    "capacity": f"capacity t.csv {BESIDE} --policies fcfs,sjf --predictors oracle --slo "
    "ttft_p90=1,e2e_p99=9 --tolerance 0.2 --max-num-seqs 6 --requests 25 --out o",
    "capacity, JSON": f"capacity t.csv {BESIDE} --slo e2e_mean=1 --tolerance 0.1 "
    "--max-num-seqs 6 --json",
    "plan": "plan fleet.yaml --processes 1 --rate 9 --out nodes.yaml",
    "plan, JSON": "plan fleet.yaml --processes 1 --seed 2 --routers jsq,plan --json",
    "advise": f"advise t.csv {BESIDE} --max-num-seqs 6 --slo e2e=1 --json --requests 30",
    "tune": "tune mlfq t.csv --requests 25 --budget 8 --seeds 2 --max-num-seqs 6 --rates 9",
    "tune, JSON": "tune least-load t.csv --requests 25 --budget 8 --seeds 1 --max-num-seqs 3 "
    "--replicas 3 --json",
    "search": "search t.csv --requests 25 --budget 40 --size 7 --seeds 2 --max-num-seqs 6 --json "
    "--out o",
    "evaluate a policy": "evaluate policy b t.csv --requests 30 --seeds 2 --load 0.8,1.2 "
    "--baselines fcfs,sjf --max-num-seqs 4 --wide",
    "evaluate a router": "evaluate policy w t.csv --requests 30 --seeds 2 --rate 30 "
    "--max-num-seqs 4 --replicas 3 --json",
    "evaluate a tuned policy": "evaluate policy b t.csv --requests 30 --seeds 1 --load 0.9 "
    "--baselines fcfs,mlfq --tune --budget 6 --max-num-seqs 4 --csv",
    "train, a router": f"{TRAIN} --env lengthwise/Routing-v1 --env-set {ROUTED} --steps 48 "
    "--set rollout=12,batch_size=12,n_epochs=2 --baselines jsq,round-robin",
    "train, guided": f"{TRAIN} --env lengthwise/Routing-v1 --env-set {ROUTED} --steps 48 "
    "--set rollout=12,batch_size=12,n_epochs=2,clone_epochs=2,demonstrations=3 --guide jsq",
    "train, dqn": f"{TRAIN} --env lengthwise/Routing-v1 --env-set {ROUTED} --algo dqn --steps 60 "
    "--set learning_starts=20,batch_size=8,train_freq=4",
    "train, masked": f"{TRAIN} --env lengthwise/Scheduling-v1 --algo maskable-ppo {PPO}",
    "train, es": f"{TRAIN} --env lengthwise/Routing-v1 --env-set {ROUTED} --algo es "
    "--set evaluations=8,population=4",
    "train, a plan": f"{TRAIN} --env lengthwise/Scheduling-v1 {PPO} --dry-run",
    "train a predictor": "train predictor synthetic-chat --max-rows 130 --out o",
    "train, buckets": "train predictor synthetic-chat --max-rows 120 --target bucket --set "
    "buckets=4 --out o --json --seed 2",
    "train, quantiles": "train predictor synthetic-chat --max-rows 120 --target quantile --out o "
    "--csv --test-share 0.3",
    "evaluate a predictor": "evaluate predictor prompt-length synthetic-chat --max-rows 200",
    "evaluate one, JSON": "evaluate predictor constant synthetic-chat --max-rows 150 --json "
    "--split train",
    "calibrate": "calibrate m.csv --max-num-seqs 6 --json",
    "export": "export srtf --to o",
}  # fmt: skip
FITTED = {"train", "evaluate"}  # first words of those that rest on a processor's sums


def files() -> None:
    """What the commands are given, in the working directory."""
    rng = np.random.default_rng(4)
    arrival = np.sort(rng.uniform(0, 6, 60)).round(6)
    pd.DataFrame({
        "arrival_s": arrival, "prompt_tokens": rng.integers(3, 900, 60),
        "output_tokens": rng.integers(1, 300, 60), "tenant": rng.choice(["a", "b"], 60),
    }).to_csv("t.csv", index=False)  # fmt: skip
    Path("fleet.yaml").write_text(FLEET)
    Path("f.csv").write_text("kind,node,at_s,until_s,factor\nfail,1,2,4,\nslow,0,1,5,2.5\n")


def beforehand(line: str) -> None:
    """Bundles and measured runs, for those that ask for them."""
    if "policy b " in line:
        said("export sjf --to b")
    if "policy w " in line:
        said("export jsq --to w")
    if "m.csv" in line:
        said("simulate t.csv --max-num-seqs 6 --timing h200/llama-3.1-8b:gpu=1.1,cpu=1.6 --out m")
        kept = pd.read_parquet("m/requests.parquet")
        names = ["arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "finish_s"]
        kept[names].to_csv("m.csv", index=False)


def said(line: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.main(args=shlex.split(line), standalone_mode=False, obj=f"lengthwise {line}")
    return out.getvalue()


def leaves(value: Any) -> Iterator[float]:
    """Numbers in JSON, in their order."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key not in UNTOLD:
                yield from leaves(one)
    elif isinstance(value, list):
        for one in value:
            yield from leaves(one)
    elif isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, str):
        yield from of_text(value)


def of_text(text: str) -> Iterator[float]:
    for number in NUMBER.findall(text):
        yield float(number.rstrip("%,").replace(",", ""))


def of_path(path: Path) -> Iterator[float]:
    match path.suffix:
        case ".json":
            yield from leaves(json.loads(path.read_text()))
        case ".parquet":
            table = pd.read_parquet(path)
            for name in sorted(table.select_dtypes("number")):
                yield from table[name].astype(float).tolist()
        case ".html":
            text = re.sub(r"<(style|script)\b.*?</\1>", " ", path.read_text(), flags=re.S)
            data = re.findall(r'<script type="application/json">(.*?)</script>', path.read_text())
            yield from of_text(re.sub(r"<[^>]*>", " ", text))
            for one in data:
                yield from leaves(json.loads(one))
        case ".md" | ".csv":
            yield from of_text(path.read_text())


def of_figure(figure: Any) -> Iterator[float]:
    """What is drawn in it, in the data's units: lines, bars, dots and the ends of the axes."""
    for axes in figure.axes:
        yield from (*axes.get_xlim(), *axes.get_ylim())
        yield float(axes.get_xscale() == "log") + 2 * float(axes.get_yscale() == "log")
        for line in axes.lines:
            yield from np.asarray(line.get_xydata(), float).ravel().tolist()
        for patch in axes.patches:
            yield from patch.get_path().vertices.ravel().tolist()
        for many in axes.collections:
            yield from np.asarray(many.get_offsets(), float).ravel().tolist()
            for path in many.get_paths():
                yield from path.vertices.ravel().tolist()


def sums(numbers: Iterator[float]) -> list[float]:
    """How many, their sum, and one that sees an exchange."""
    found = np.array([one for one in numbers if math.isfinite(one)])
    places = np.sin(np.arange(len(found)) + 1.0)
    return [len(found), float(found.sum()), float(places @ found), float(np.abs(found).sum())]


def of_command(line: str) -> dict[str, list[float]]:
    """Sums of what a command says, of what it draws, and of each file that it writes."""
    drawn: dict[str, list[float]] = {}

    def write(figure: Any, folder: Path, name: str) -> None:
        drawn[f"drawn {name}"] = sums(of_figure(figure))

    before = Path.cwd()
    quiet = {"COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, quiet), \
         mock.patch.object(plots, "write", write), \
         mock.patch.object(output, "_versions", dict), \
         mock.patch("platform.python_version", lambda: "installed"), \
         mock.patch.object(panels, "_svg", lambda *given: ""), \
         mock.patch.object(Figure, "draw_without_rendering"):  # fmt: skip
        os.chdir(folder)
        try:
            files()
            beforehand(line)
            there = set(Path().rglob("*"))
            found = {"said": sums(of_text(said(line)))}
            for path in sorted(set(Path().rglob("*")) - there):
                told = list(of_path(path)) if path.is_file() else []
                if told and path.name != "config.json":
                    found[str(path)] = sums(iter(told))
        finally:
            os.chdir(before)
    return {**found, **drawn}


def main() -> None:
    rows = (f" {json.dumps(name)}: {json.dumps(of_command(line))}" for name, line in LINES.items())
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
