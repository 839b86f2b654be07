"""What shells are given to complete, and the citation file: what it names is the package's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lengthwise import __version__, registry

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "from lengthwise.training.cli import main; main()"


def completed(*words: str) -> list[str]:
    """What bash is offered for the last of the words."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "_LENGTHWISE_COMPLETE": "bash_complete",
             "COMP_WORDS": " ".join(("lengthwise", *words)), "COMP_CWORD": str(len(words))},
    )  # fmt: skip
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_commands_options_and_names_are_completed() -> None:
    assert completed("comp") == ["compare", "completion"]
    assert completed("train", "policy", "--alg") == ["--algo"]
    kinds = completed("list", "")
    assert {"policies", "routers", "predictors"} <= set(kinds)
    assert completed("train", "policy", "--algo", "ma") == ["maskable-ppo"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_accept_their_script(shell: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "completion", shell], cwd=ROOT, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert f"_LENGTHWISE_COMPLETE={shell}_complete" in done.stdout
    if (program := shutil.which(shell)) is not None:
        script = tmp_path / "script"
        script.write_text(done.stdout, "utf-8")
        subprocess.run([program, "-n", str(script)], check=True)


def test_the_citation_names_this_version_and_licence() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["version"] == __version__
    assert cited["license"] == "Apache-2.0"
    assert cited["cff-version"] == "1.2.0" and cited["authors"] and cited["message"]


def test_every_registered_name_is_one_word() -> None:  # completion splits at blanks
    names = [name for table in registry.TABLES for name in registry.names(table)]
    assert [name for name in names if " " in name] == []
