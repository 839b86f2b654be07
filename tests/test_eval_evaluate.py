"""Programs that others write: judged in a process of their own, whatever they do."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import lengthwise as lw
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval import evaluate as module
from lengthwise.eval.evaluate import Evaluator, evaluate
from lengthwise.serving import Engine

PAGE = Path(__file__).resolve().parent.parent / "docs" / "openevolve.md"
SYSTEM: dict[str, Any] = {"engine": Engine(max_num_seqs=16), "rates": (12.0,)}
HEAD = "def score(predicted_tokens):\n"


@pytest.fixture(scope="module")
def judge() -> Evaluator:
    return Evaluator("azure-conv-2023", requests=60, seeds=2, timeout_s=60, **SYSTEM)


def test_a_score_is_the_baseline_s_latency_over_its_own(judge: Evaluator, tmp_path: Path) -> None:
    """As ``simulate`` has both, geometric over the windows."""
    file = tmp_path / "mine.py"
    file.write_text(HEAD + "    print('{\"values\": [1e-9, 1e-9]}')\n    return predicted_tokens\n")
    found = judge.evaluate(file)
    assert found.ok and found == judge.evaluate(str(file))
    ratios = []
    for trial in judge.trials:
        mean = [
            lw.simulate(trial.workload, policy=policy, predictor="oracle", seed=trial.seed,
                        engine=Engine(max_num_seqs=16)).summary()["e2e_mean_s"]
            for policy in ("fcfs", "sjf")
        ]  # fmt: skip
        ratios.append(mean[0] / mean[1])
    assert found.score == pytest.approx(np.exp(np.log(ratios).mean())) and found.score > 1.0
    assert found.low < found.score < found.high and len(found.values) == 2


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def score(predicted_tokens:\n", "SyntaxError"),
        ("x = 3\n", "needs a function"),
        ("def score(promt_tokens):\n    return promt_tokens\n", "did you mean 'prompt_tokens'"),
        (HEAD + "    return predicted_tokens / 0\n", r"program.py:2: .*divi"),
        ("def score(generated_tokens):\n    return 1 / generated_tokens\n", "may be 0"),
        ("import numpy as np\n\n" + HEAD + "    return predicted_tokens * np.nan\n", "NaN"),
        (HEAD + "    return 'first'\n", "which is no number"),
        ("import random\n" + HEAD + "    return random.random()\n", "random"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("import os\nos.abort()\n", "ended in SIGABRT"),
        ("import os\nos._exit(0)\n", "ended without an answer"),
        ("import numpy as np\nnp.ones(10**12)\n", "MemoryError"),
        ("import os\nos.system('true')\n", "may not use os.system"),
        ("import subprocess\nsubprocess.run(['true'])\n", "may not use"),
        ("import ctypes\nctypes.CDLL(None)\n", "may not use ctypes.dlopen"),
        ("x" * (module.LONGEST + 1), "more than 1048576"),
    ],
)  # fmt: skip
def test_a_broken_program_is_0_and_a_reason(judge: Evaluator, program: str, reason: str) -> None:
    found = judge.evaluate(program)
    assert (found.score, found.ok, found.values) == (0.0, False, ())
    assert re.search(reason, found.reason), found.reason
    assert "\n" not in found.reason and len(found.reason) <= module.SHOWN


def test_a_program_that_does_not_end_is_ended(judge: Evaluator) -> None:
    patient = judge.timeout_s
    judge.timeout_s = 3.0
    began = time.monotonic()
    try:
        found = judge.evaluate(HEAD + "    while True:\n        pass\n")
    finally:
        judge.timeout_s = patient
    assert found.score == 0.0 and found.reason == "it took more than 3 s"
    assert time.monotonic() - began < 60


def test_a_program_reaches_no_server(judge: Evaluator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        port = server.getsockname()[1]
        found = judge.evaluate(
            f"import socket\nsocket.create_connection(('127.0.0.1', {port}))\n{HEAD}"
            "    return predicted_tokens\n"
        )
        assert "may not use socket" in found.reason
        with pytest.raises(TimeoutError):
            server.accept()


def test_what_stands_beside_and_which_windows_are_chosen() -> None:
    program = HEAD + "    return predicted_tokens\n"
    given: dict[str, Any] = {"requests": 40, "seeds": 1, **SYSTEM}
    plain = evaluate(program, "azure-conv-2023", **given)
    beside = evaluate(program, "azure-conv-2023", beside="+preempt:price=0", **given)
    other = evaluate(program, "azure-conv-2023", on="test", baseline="sjf", **given)
    assert plain.ok and beside.ok and plain.values != beside.values
    assert other.score == 1.0 and other.values != plain.values


def test_what_can_not_be_judged_is_said() -> None:
    for given, said in (
        ({"metric": "e2e_meen"}, "did you mean 'e2e_mean'"), ({"on": "tset"}, "'test'"),
        ({"baseline": "fcsf"}, "did you mean 'fcfs'"), ({"beside": "+premept"}, "'preempt'"),
    ):  # fmt: skip
        with pytest.raises(UnknownNameError, match=said):
            Evaluator("azure-conv-2023", requests=10, seeds=1, **{**SYSTEM, **given})
    with pytest.raises(InputError, match="time and memory"):
        Evaluator("azure-conv-2023", timeout_s=0)
    found = Evaluator("azure-conv-2023", requests=10, seeds=1, **SYSTEM).evaluate("none.py")
    assert (found.score, "none.py" in found.reason) == (0.0, True)


# The page's files, with a scripted model behind OpenAI's API


@dataclass
class Result:
    """OpenEvolve's EvaluationResult, as far as the page uses it."""

    metrics: dict[str, float]
    artifacts: dict[str, str] = field(default_factory=dict)


class Model(BaseHTTPRequestHandler):
    """Answers with one program after the other."""

    asked: list[str]
    programs: list[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).asked.append(body["messages"][-1]["content"])
        text = f"Try this:\n```python\n{type(self).programs.pop(0)}\n```"
        said = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def model() -> Iterator[tuple[str, type[Model]]]:
    class Scripted(Model):
        asked: list[str] = []  # noqa: RUF012
        programs = [  # noqa: RUF012
            "def score(predicted_tokens, generated_tokens):\n"
            "    return predicted_tokens / generated_tokens",
            "def score(predicted_tokens, prompt_tokens):\n"
            "    return predicted_tokens + prompt_tokens",
        ]

    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/chat/completions", Scripted
        server.shutdown()


def test_the_page_s_evaluator_guides_a_scripted_model(
    model: tuple[str, type[Model]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict(re.findall(r"<!-- file: (\S+) -->\n```\n(.*?)^```", PAGE.read_text(), re.M | re.S))
    assert set(files) == {"initial_program.py", "evaluator.py", "config.yaml"}
    stub = ModuleType("openevolve.evaluation_result")
    stub.EvaluationResult = Result  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openevolve", ModuleType("openevolve"))
    monkeypatch.setitem(sys.modules, "openevolve.evaluation_result", stub)
    names: dict[str, Any] = {}
    exec(compile(files["evaluator.py"].replace("requests=300", "requests=100"), "e", "exec"), names)
    url, scripted = model

    def ask(told: str) -> str:
        body = json.dumps({"model": "any", "messages": [{"role": "user", "content": told}]})
        asked = urllib.request.Request(url, body.encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(asked) as answer:
            text = json.load(answer)["choices"][0]["message"]["content"]
        return str(re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)[0])

    scores, program = [], files["initial_program.py"]
    told = ""
    for _ in range(3):
        file = tmp_path / "program.py"
        file.write_text(program)
        found = names["evaluate"](str(file))
        scores.append(found.metrics["combined_score"])
        told = f"{program}\n{found.metrics}\n{found.artifacts}"
        if scripted.programs:
            program = ask(told)
    assert scores[0] > 0.9 and scores[1] == 0.0 and scores[2] > 0.9
    assert "which may be 0" in scripted.asked[1]
