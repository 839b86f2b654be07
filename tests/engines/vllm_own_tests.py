"""Runs vLLM's own scheduler tests with the plugin's class in place of theirs.

    python -m tests.engines.vllm_own_tests [--version 0.33.0]

Its source distribution, which holds the tests, is fetched once from the package index, to the cache
folder of the other environments. The tests run twice, with vLLM's own classes and with ours: what
fails with both (it wants a GPU, or a model from the network) says nothing. Exits with 1 if a test
fails with ours alone and ``EXPLAINED`` doesn't name it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from lengthwise.serving.vllm import environment as made
from tests.engines.environments import VERSIONS, _packages, variables

INDEX = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
HERE = Path(__file__).resolve().parent
FILES = (
    "test_scheduler.py", "test_async_scheduler.py", "test_priority_scheduler_random.py",
    "test_priority_preemption_bug.py", "test_deferred_block_free.py",
)  # fmt: skip
PYTEST = ("pytest==9.1.0", "pluggy==1.6.0", "iniconfig==2.3.0", "pygments==2.20.0")
# Tests that fail with our class, by name, and why that is right
EXPLAINED = {
    "::test_scheduler_reset_prefix_cache": "reads vLLM's FCFS deque by index; a heap has none",
    "::test_scheduler_stats_waiting_queues": "puts requests into a queue behind add_request",
    "::test_abort_request_when_structured_output_fsm_cannot_advance": "never calls __init__",
    "::test_allocation_retry_waits_for_fence_then_succeeds": "requests that arrived at one time: "
    "FCFS by score preempts as vLLM's priority queue does, not the last in the batch",
}
# As far as vLLM's configuration reads them; no weights
MODELS: dict[str, dict[str, Any]] = {
    "facebook/opt-125m": {
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072,
        "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": 768,
        "torch_dtype": "float16", "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1,
    },
    "llava-hf/llava-1.5-7b-hf": {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
        "image_token_index": 32000, "torch_dtype": "float16", "vocab_size": 32064,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "text_config": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32064,
            "max_position_embeddings": 4096, "torch_dtype": "float16",
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
            "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
            "patch_size": 14, "projection_dim": 768,
        },
    },
}  # fmt: skip


def tests_of(version: str) -> Path:
    """The folder that holds vLLM's package ``tests``, fetched now if it is not there."""
    folder = made.cache_folder() / f"vllm-{version}-tests"
    if folder.exists():
        return folder
    with made._locked(made.cache_folder() / "lock-tests"):
        accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
        request = urllib.request.Request(f"{INDEX}/vllm/", headers=accept)
        with urllib.request.urlopen(request, timeout=60) as answer:
            listed = json.load(answer)["files"]
        wanted = f"vllm-{version}.tar.gz"
        (source,) = (file for file in listed if file["filename"] == wanted)
        with tempfile.TemporaryDirectory(dir=folder.parent) as root:
            archive = Path(root) / wanted
            urllib.request.urlretrieve(source["url"], archive)
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            assert found == source["hashes"]["sha256"], "the download is damaged"
            with tarfile.open(archive) as opened:
                kept = [m for m in opened if "/tests/" in m.name and m.name.endswith(".py")]
                opened.extractall(root, members=kept, filter="data")
            (Path(root) / f"vllm-{version}").rename(folder)
    return folder


def hub(folder: Path) -> Path:
    """A cache of the hub that holds ``MODELS``' configurations."""
    for name, config in MODELS.items():
        at = folder / "hub" / f"models--{name.replace('/', '--')}"
        (at / "refs").mkdir(parents=True)
        (at / "refs" / "main").write_text("0")
        (at / "snapshots" / "0").mkdir(parents=True)
        (at / "snapshots" / "0" / "config.json").write_text(json.dumps(config))
    return folder


def run(version: str, replaced: bool) -> dict[str, str]:
    """Each test's outcome: "passed", "skipped", or the first line of why it failed."""
    tests = tests_of(version)
    python, environment = variables(version)
    packages = _packages(made.cache_folder(), Path(python), "packages-pytest", PYTEST)
    with tempfile.TemporaryDirectory() as root:
        report = Path(root) / "report.xml"
        environment |= {
            "PYTHONPATH": f"{environment['PYTHONPATH']}:{packages}:{tests}:{HERE}",
            "HF_HOME": str(hub(Path(root))),
            "LENGTHWISE_REPLACE": str(int(replaced)),
        }
        files = [tests / "tests" / "v1" / "core" / name for name in FILES]
        line = [python, "-m", "pytest", "-q", "--noconftest", "-p", "replace_scheduler",
                "-p", "no:cacheprovider", f"--rootdir={root}", f"--junitxml={report}",
                *(str(file) for file in files if file.exists())]  # fmt: skip
        done = subprocess.run(
            line, env=environment, cwd=root, capture_output=True, text=True, check=False
        )
        if not report.exists():
            raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
        outcomes: dict[str, str] = {}
        for case in ET.parse(report).iter("testcase"):
            name = f"{case.get('classname', '').rsplit('.', 1)[-1]}::{case.get('name')}"
            bad = [c for c in case if c.tag in ("failure", "error")]
            outcomes[name] = "skipped" if case.find("skipped") is not None else "passed"
            if bad:
                outcomes[name] = (bad[0].get("message") or "failed").splitlines()[0]
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engines.vllm_own_tests")
    parser.add_argument("--version", action="append", choices=VERSIONS)
    given = parser.parse_args()
    bad = 0
    for version in given.version or VERSIONS:
        stock, ours = run(version, replaced=False), run(version, replaced=True)
        meant = [name for name, outcome in stock.items() if outcome == "passed"]
        failed = [name for name in meant if ours.get(name) != "passed"]
        unexplained = [name for name in failed if name.partition("[")[0] not in EXPLAINED]
        bad += len(unexplained)
        print(
            f"vLLM {version}: {len(stock)} tests, {len(meant)} pass here with vLLM's own classes; "
            f"with ours {len(meant) - len(failed)}, {len(failed) - len(unexplained)} explained, "
            f"{len(unexplained)} not",
            flush=True,
        )
        for name in failed:
            why = EXPLAINED.get(name.partition("[")[0], "not explained")
            print(f"  {name}: {ours.get(name, 'not run')} ({why})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
