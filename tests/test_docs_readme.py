"""What the README shows, runs: its Python, its policy file, and every command it names."""

import re
from pathlib import Path

import pytest

from lengthwise.training.cli import main

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)
PYTHON = [code for kind, code in BLOCKS if kind == "python"]
COMMANDS = sorted(
    {
        " ".join(filter(None, words))
        for kind, code in BLOCKS
        if kind == ""
        for words in re.findall(r"^lengthwise ([\w-]+)(?: (predictor|policy)\b)?", code, re.M)
    }
)


def run(arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert not ended.value.code


def test_the_policy_file_works_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_policy.py").write_text(PYTHON[0], "utf-8")
    monkeypatch.chdir(tmp_path)
    run(
        "compare azure-conv-2023 --rates 24 --policies fcfs,./my_policy.py:score "
        "--requests 60 --seeds 2 --processes 1"
    )
    assert "my_policy.py:score" in capsys.readouterr().out


def test_the_library_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = PYTHON[1].replace("requests=2_000", "requests=100")
    exec(compile(code, "README.md", "exec"), {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in printed] == ["fcfs", "sjf", "srtf"]
    assert all(float(mean) > 0 for _, mean in printed)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"{command} --help")
    assert capsys.readouterr().out.startswith("Usage: ")


def test_every_linked_file_is_there() -> None:  # those of docs/: mkdocs, strictly
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"):
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text("utf-8")):
            if "://" not in target:
                assert (ROOT / target).exists(), f"{name} links to {target}"
