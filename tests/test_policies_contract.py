"""What breaks the contract of scores, told in the user's own lines: at load, in runs, by check."""

import json
from pathlib import Path

import numpy as np
import pytest

from lengthwise import contract, registry
from lengthwise.errors import InputError
from lengthwise.eval.check import check_policy
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.scorer import Scorer
from lengthwise.policy import Score
from lengthwise.serving import Engine, Node, System, run
from lengthwise.serving.timing import LinearTiming
from lengthwise.training.cli import main
from lengthwise.workload import Workload

# Each function with what is said of its line, counted from its ``def``, and what to write instead.
ALWAYS = {
    "exp": ("now_s, arrival_s", "return math.exp(arrival_s - now_s)", 1,
            "math.exp takes one number", "np.exp(arrival_s - now_s)"),
    "power": ("prompt_tokens", "return math.pow(prompt_tokens, 2)", 1,
              "math.pow takes one number", "np.power(prompt_tokens, 2)"),
    "branch": ("prompt_tokens, now_s", "a = 1\n    if 3 < prompt_tokens < 9 and now_s > 1:\n"
               "        a = 2\n    return a", 2, "`if 3 < prompt_tokens < 9 and now_s > 1`",
               "np.where((3 < prompt_tokens) & (prompt_tokens < 9) & (now_s > 1), ..., ...)"),
    "inline": ("prompt_tokens", "return 1 if prompt_tokens > 9 else 2", 1,
               "`if prompt_tokens > 9` on a feature", "np.where(prompt_tokens > 9, 1, 2)"),
    "largest": ("prompt_tokens", "return max(prompt_tokens, 5, 7)", 1, "`max` of a feature",
                "np.maximum(np.maximum(prompt_tokens, 5), 7)"),
    "whole": ("predicted_tokens", "return int(predicted_tokens)", 1, "`int` of a feature",
              "np.trunc(predicted_tokens)"),
    "writes": ("predicted_tokens", "predicted_tokens += 1\n    return predicted_tokens", 1,
               "`predicted_tokens += 1` writes into an argument",
               "predicted_tokens = predicted_tokens + 1"),
    "puts": ("prompt_tokens", "prompt_tokens[prompt_tokens > 5] = 5\n    return prompt_tokens", 1,
             "writes into prompt_tokens",
             "prompt_tokens = np.where(prompt_tokens > 5, 5, prompt_tokens)"),
    "draws": ("prompt_tokens", "return random.random()", 1, "random.random gives another value",
              "random_draw"),
    "clock": ("arrival_s", "now = time.time()\n    return arrival_s - now", 1,
              "time.time gives another value", "now_s"),
    "keeps": ("prompt_tokens", "KEPT.append(1)\n    return prompt_tokens + len(KEPT)", 2,
              "gives other scores for the same features", "of its features alone"),
    "says": ("prompt_tokens", "return 'first'", 1, "gives 'first', which is no number", ""),
    "none": ("prompt_tokens", "prompt_tokens + 1", 0, "gives None", "return and the score"),
    "some": ("prompt_tokens", "return prompt_tokens[:3]", 1, "gives an array of shape (3,)",
             "one number for each"),
    "mixes": ("prompt_tokens", "return prompt_tokens / np.max(prompt_tokens)", 1, "alone",
              "whoever is beside it"),
    "method": ("prompt_tokens", "return prompt_tokens.clip(1, 5)", 1,
               "asks prompt_tokens for .clip", "np.clip(prompt_tokens, ...)"),
    "helped": ("prompt_tokens", "x = 2 * prompt_tokens\n    return helper(x)", -5,
               "math.sqrt takes one number", "np.sqrt(x)"),
}  # fmt: skip
# What depends on the values: loaded, and told by check.
SOMETIMES = {
    "zero": ("generated_tokens", "return 1 / generated_tokens", 1,
             "divides by generated_tokens, which may be 0", "np.maximum(generated_tokens, 1)"),
    "nan": ("arrival_s", "return np.sqrt(arrival_s - 1)", 1, "gives NaN where arrival_s = 0", ""),
}  # fmt: skip
HEAD = "import math\nimport random\nimport time\nimport numpy as np\nKEPT = []\n"
HELPER = "def helper(x):\n    return math.sqrt(x)\n\n\n\n"


def written(folder: Path, name: str, reads: str, body: str) -> tuple[str, int]:
    """A policy's spelling, and the line of its ``def``."""
    begin = HEAD + HELPER
    path = folder / "mine.py"
    path.write_text(f"{begin}def {name}({reads}):\n    {body}\n")
    return f"{path}:{name}", begin.count("\n") + 1


@pytest.mark.parametrize("name", ALWAYS)
def test_what_is_wrong_is_told_at_load_and_by_check(name: str, tmp_path: Path) -> None:
    reads, body, below, what, instead = ALWAYS[name]
    spec, line = written(tmp_path, name, reads, body)
    at = f"mine.py:{line + below if below >= 0 else HEAD.count(chr(10)) + 2}"
    for load in (load_policy, load_router):
        with pytest.raises(InputError) as caught:
            load(spec)
        said = str(caught.value)
        assert f"{at}: " in said and what in said and instead in said and "\n" not in said
    found = check_policy(spec)
    assert not found.ok
    assert any(f"{at}: " in said and what in said and instead in said for said in found.lines)
    assert all(check.verdict == "not checked" for check in found.checks)


@pytest.mark.parametrize("name", SOMETIMES)
def test_what_depends_on_the_values_is_told_by_check(name: str, tmp_path: Path) -> None:
    reads, body, below, what, instead = SOMETIMES[name]
    spec, line = written(tmp_path, name, reads, body)
    load_policy(spec)
    (said,) = check_policy(spec).lines
    assert f"mine.py:{line + below}: {what}" in said and instead in said


def test_every_wrong_line_is_told_at_once(tmp_path: Path) -> None:
    body = (
        "wait = now_s - arrival_s\n    wait += 1\n    if wait > 3:\n        wait = 0\n"
        "    return min(wait, 5) + math.log(now_s) * (k if k > 1 else 2)"
    )
    spec, line = written(tmp_path, "score", "now_s, arrival_s, *, k=1.0", body)
    found = [problem.line - line for problem in check_policy(spec).problems]
    assert found == [3, 5, 5]  # not the sum of its own, nor what is asked of a tunable


def test_a_class_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("\nclass Score:\n    def __init__(self, alpha):\n        pass\n")
    with pytest.raises(InputError, match=r"mine.py:2: Score is a class; a policy is a function"):
        load_policy(f"{path}:Score")
    with pytest.raises(InputError, match="'Path' is a class"):
        load_policy(Path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k in ("policy", "router") for n in registry.names(k)]
)
def test_every_registered_score_keeps_the_contract(kind: str, name: str) -> None:
    assert contract.problems(registry.load(kind, name).score) == []


def test_policies_see_arrays_that_they_can_t_write_to() -> None:
    seen = []

    def score(prompt_tokens, now_s):  # type: ignore[no-untyped-def]
        seen.extend(v.flags.writeable for v in (prompt_tokens, now_s) if np.ndim(v))
        return np.log1p(prompt_tokens) + 0 * now_s  # not compiled

    columns = {"arrival_s": np.zeros(9), "prompt_tokens": np.arange(1, 10),
               "output_tokens": np.full(9, 3)}  # fmt: skip
    policy = load_policy(score)
    node = Node(Engine(max_num_seqs=2, num_gpu_blocks=9), LinearTiming(0.01), policy)
    for backend in ("reference", "fast"):
        system = System((node, node), load_router(score))
        run(Workload(columns), system, backend=backend)  # type: ignore[arg-type]
    assert len(seen) > 40 and not any(seen)


def test_a_policy_that_writes_leaves_the_plugin_s_queue_alone(tmp_path: Path) -> None:
    spec, _ = written(tmp_path, "score", "prompt_tokens", "prompt_tokens *= 2\n"
                      "    return prompt_tokens")  # fmt: skip
    counters = Counters()
    scorer = Scorer(load_policy(spec, tried=False).score, counters, 1.0)
    column = np.arange(3.0)
    np.testing.assert_array_equal(scorer.many({"prompt_tokens": column}, 3), [0, 2, 4])
    np.testing.assert_array_equal(column, [0, 1, 2])


def test_none_from_a_policy_is_called_none(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    counters = Counters()
    monkeypatch.setattr(counters, "warn", lambda kind, line: said.append(line))
    score = Score("mine", lambda prompt_tokens: None, ("prompt_tokens",))
    assert np.isnan(Scorer(score, counters, 1.0).many({"prompt_tokens": np.zeros(3)}, 3)).all()
    assert len(said) == 1 and "gave None for a score" in said[0]


def test_what_raises_in_a_run_is_one_line(tmp_path: Path) -> None:
    """Only one prompt is wrong: neither the trial nor most requests meet it."""
    body = "if np.any(np.asarray(prompt_tokens) == 77_777):\n        raise KeyError('no')\n"
    spec, line = written(tmp_path, "score", "prompt_tokens, now_s", body + "    return now_s")
    policy = load_policy(spec)
    columns = {"arrival_s": [0.0, 0.0], "prompt_tokens": [5, 77_777], "output_tokens": [1, 1]}
    node = Node(Engine(max_num_seqs=1, num_gpu_blocks=9000), LinearTiming(0.01), policy)
    for backend in ("reference", "fast"):
        with pytest.raises(InputError, match=rf"mine.py:{line + 2}: raises KeyError: 'no'"):
            run(Workload(columns), System((node,), load_router("jsq")), backend=backend)  # type: ignore[arg-type]


def test_the_command_says_yes_no_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fine.py").write_text("def mine(predicted_tokens):\n    return predicted_tokens * 2\n")
    Path("wrong.py").write_text(
        "def mine(predicted_tokens):\n    return abs(min(predicted_tokens, 2))\n"
    )
    monkeypatch.setattr("lengthwise.serving.vllm.environment.is_made", lambda *_: False)
    with pytest.raises(SystemExit) as ended:
        main(["check", "policy", "fine.py"])
    table = capsys.readouterr().out
    assert ended.value.code == 0
    assert "to the picosecond" in table and "not checked" in table and "compiled" in table
    with pytest.raises(SystemExit) as ended:
        main(["check", "policy", "wrong.py:mine"])
    shown = capsys.readouterr()
    assert ended.value.code == 2 and shown.out == ""
    assert shown.err.startswith("lengthwise: wrong.py:2: `min` of a feature")
    assert shown.err.count("\n") == 1
    with pytest.raises(SystemExit) as ended:
        main(["check", "policy", "wrong.py", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code == 2 and not found["ok"]
    assert found["problems"][0]["instead"] == "np.minimum(predicted_tokens, 2)"
    with pytest.raises(SystemExit) as ended:
        main(["check", "policies", "wrong.py"])
    assert ended.value.code == 2 and "did you mean 'policy'" in capsys.readouterr().err
