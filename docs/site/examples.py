"""An example of each command with what it printed, for the commands' pages.

They are run one after the other in a folder with the files that they name, by
``python -m docs.site.examples`` (or some, by name), and kept beside this file;
tests/test_docs_site.py runs those again that take a second or two.
"""

from __future__ import annotations

import json
import os
import platform
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

import lengthwise as lw
from lengthwise.serving.workload import generate_prompts
from lengthwise.writing import whole_file

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).with_name("examples.json")
PROGRAM = "from lengthwise.training.cli import main; main()"
# Command -> an example; they may use what earlier ones wrote.
EXAMPLES = {
    "list": "lengthwise list routers",
    "doctor": "lengthwise doctor",
    "simulate": "lengthwise simulate azure-conv-2023 --requests 1000 --rate 22 --policy sjf "
    "--predictor oracle --max-num-seqs 64",
    "compare": "lengthwise compare azure-conv-2023 --requests 1000 --rates 12,22 --policies "
    "fcfs,sjf --max-num-seqs 64 --seeds 3",
    "capacity": "lengthwise capacity azure-conv-2023 --requests 300 --policy sjf --slo ttft_p99=1 "
    "--predictor oracle --max-num-seqs 64 --seeds 2",
    "plan": "lengthwise plan fleet.yaml --rate 20 --out nodes.yaml",
    "tune": "lengthwise tune srtf azure-conv-2023 --rates 24 --predictor noisy-oracle:tau=0.5 "
    "--requests 300 --seeds 2 --budget 16 --max-num-seqs 64",
    "search": "lengthwise search azure-conv-2023 --rates 24 --predictor noisy-oracle:tau=0.5 "
    "--requests 300 --seeds 2 --budget 200 --max-num-seqs 64 --out found",
    "advise": "lengthwise advise trace.csv.gz --max-num-seqs 64",
    "train": "lengthwise train predictor responses.jsonl.gz --model ridge --out p",
    "evaluate": "lengthwise evaluate predictor p responses.jsonl.gz",
    "export": "lengthwise export jsew:b=0.1 --to my_router",
    "check": """lengthwise check config '{"lengthwise": {"policy": "srtf", "predictor": "./p"}}'""",
    "calibrate": "lengthwise calibrate bench.json --timing h200/llama-3.1-8b --max-num-seqs 64 "
    "--async-scheduling",
    "completion": "lengthwise completion bash",
    "mock-server": "lengthwise mock-server --timing h200/llama-3.1-8b --policy srtf --predictor "
    "./p --port 8000",
    "hint-proxy": "lengthwise hint-proxy --upstream http://127.0.0.1:8000 --predictor ./p",
    "serve-epp": "lengthwise serve-epp --endpoints 127.0.0.1:8000,127.0.0.1:8001 --router "
    "least-tokens",
}
SERVERS = ("mock-server", "hint-proxy", "serve-epp")  # they go on until they are told to end
# Those without an output here -> an example, and where to read what comes of it.
ELSEWHERE = {
    "demo": (
        "lengthwise demo",
        "It prints the tables that `compare` prints, of a predictor that it trained, and writes a "
        "report.",
    ),
    "profile": ("lengthwise profile --engine vllm --model llama-3.1-8b --out my.json",
                "It needs a GPU. [What comes of it](../timing.md#a-profile-of-your-own)."),
    "serve-latency": (
        "lengthwise serve-latency --timing h200/llama-3.1-8b --max-num-seqs 256 --port 8000",
        "It says where it listens. [Who asks it, and what](../gateways.md).",
    ),
    "reproduce": ("lengthwise reproduce clairvoyant",
                  "It takes up to a minute. [What comes of it](../papers/clairvoyant.md), and "
                  "[of the others](../papers/index.md)."),
}  # fmt: skip
MOST = 40  # lines of an output that are shown


def files(folder: Path) -> None:
    """What the examples name: a trace, answers, and a measured run."""
    workload = lw.Workload.preset("azure-conv-2023", requests=1000, rate=20.0, seed=3)
    trace = workload.to_frame()[["arrival_s", "prompt_tokens", "output_tokens"]]
    trace.to_csv(folder / "trace.csv.gz", index=False)
    made = generate_prompts(1000, seed=3)
    frame = pd.DataFrame({"prompt": made.prompt, "output_tokens": made.output_tokens})
    frame.to_json(folder / "responses.jsonl.gz", orient="records", lines=True)
    served = lw.simulate(
        workload, engine=lw.Engine(max_num_seqs=64, async_scheduling=True),
        timing=lw.timing("h200/llama-3.1-8b:gpu=1.05,cpu=1.5"),
    ).requests  # fmt: skip
    first, done, came = (served[f"{name}_s"] for name in ("first_token", "finish", "arrival"))
    measured = {
        "start_times": came, "input_lens": served["prompt_tokens"],
        "output_lens": served["output_tokens"], "ttfts": first - came,
        "itls": [[one] for one in done - first],
    }  # fmt: skip
    text = {name: np.asarray(column).tolist() for name, column in measured.items()}
    (folder / "bench.json").write_text(json.dumps(text))
    # one of the page on plans
    page = (ROOT / "docs" / "placement.md").read_text("utf-8")
    fleet = re.search(r"<!-- file: fleet.yaml -->\n```yaml\n(.*?)```", page, re.DOTALL)
    assert fleet is not None
    (folder / "fleet.yaml").write_text(fleet[1])


def printed(command: str, folder: Path) -> str:
    """What a command prints in a terminal of 100 columns; it must succeed.

    ``doctor`` gets 200, so that no line that is about this machine is broken.
    """
    words = shlex.split(command)[1:]
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (50, 200 if words[0] == "doctor" else 100))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with subprocess.Popen(
        [sys.executable, "-uc", PROGRAM, *words], cwd=folder, stdout=there,
        stderr=there if words[0] in SERVERS else None,
        env={**environment, "TERM": "xterm", "NO_COLOR": "1"},
    ) as process:  # fmt: skip
        os.close(there)
        text = b""
        with suppress(OSError):  # when everything is read
            while more := os.read(here, 4096):
                text += more
                if words[0] in SERVERS and b"\n" in text:
                    process.send_signal(signal.SIGTERM)
    os.close(here)
    if process.returncode:
        raise SystemExit(f"{command}: exit code {process.returncode}")
    said = re.sub(r"\x1b\[[0-9;]*m|\r", "", text.decode("utf-8"))
    for own, others in (
        (sys.prefix, ".venv"), (str(ROOT), "~/lengthwise"), (str(Path.home()), "~"),
        (platform.platform(), platform.system()),
    ):  # fmt: skip
        said = said.replace(own, others)
    lines = [line.rstrip() for line in said.strip("\n").splitlines()]
    left = [f"… and {len(lines) - MOST} lines more"] if len(lines) > MOST else []
    return "\n".join(lines[:MOST] + left)


def kept() -> dict[str, str]:
    """Command -> what its example printed."""
    found: dict[str, str] = json.loads(KEPT.read_text("utf-8"))
    return found


def main() -> None:
    """Runs the examples that are named, or all, and keeps what they print."""
    found = kept() if KEPT.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        files(Path(folder))
        for name, command in EXAMPLES.items():
            if name not in (sys.argv[1:] or EXAMPLES) and name != "train":  # whose `p` others use
                continue
            said = printed(command, Path(folder))
            print(f"$ {command}\n{said}\n", flush=True)
            if name in (sys.argv[1:] or EXAMPLES):
                found[name] = said
                ordered = {one: found[one] for one in EXAMPLES if one in found}
                with whole_file(KEPT) as fresh:
                    text = json.dumps(ordered, ensure_ascii=False, indent=1)
                    fresh.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
