"""Every score gives the same bits on scalars, on arrays and compiled."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from lengthwise import registry
from lengthwise.policies import load_policy
from lengthwise.policies.learned import MLP
from lengthwise.policy import Score
from lengthwise.serving.fast.compiler.score import (
    FEATURE_ROW,
    NotCompilable,
    compile_score,
    sample_rows,
)

REGISTERED = [(kind, name) for kind in ("policy", "router") for name in registry.names(kind)]


def three_ways(score, rows):
    """The score of each row as Python scalars, as one numpy array and as machine code."""
    table = {name: rows[name] for name in FEATURE_ROW.names}
    lists = {name: values.tolist() for name, values in table.items()}
    scalars = [
        float(score.evaluate({name: values[i] for name, values in lists.items()}))
        for i in range(len(rows))
    ]
    arrays = np.asarray(score.evaluate(table), np.float64)
    return np.array(scalars), arrays, compile_score(score).evaluate(rows)


@pytest.mark.parametrize(("kind", "name"), REGISTERED)
def test_registered_scores_agree_to_the_bit(kind, name):
    scalars, arrays, machine = three_ways(registry.load(kind, name).score, sample_rows(500, seed=1))
    assert scalars.tobytes() == arrays.tobytes() == machine.tobytes()


@pytest.mark.parametrize(("kind", "name"), REGISTERED)
def test_scores_agree_on_edges(kind, name):
    rows = np.zeros(6, FEATURE_ROW)
    for column in FEATURE_ROW.names:
        rows[column] = [0, 1, 2**31, 2**52, 5, 7]
    scalars, arrays, machine = three_ways(registry.load(kind, name).score, rows)
    assert scalars.tobytes() == arrays.tobytes() == machine.tobytes()


@pytest.mark.parametrize(
    "spec", ["mlfq:quantum=7,levels=3,skip_join=false", "hrrn:floor_tokens=3.7"]
)
def test_tunables_are_bound(spec):
    score = load_policy(spec).score
    scalars, arrays, machine = three_ways(score, sample_rows(300, seed=2))
    assert scalars.tobytes() == arrays.tobytes() == machine.tobytes()
    assert compile_score(score).stem != compile_score(load_policy(spec.split(":")[0]).score).stem


POLICY_FILE = """
import math
import numpy as np

WEIGHT = 0.3
LIMIT = math.inf

def clip(value, top):
    return np.minimum(np.maximum(value, 1.0), top)

def score(predicted_tokens, generated_tokens, prompt_tokens, *, top: float = 512.0):
    left: float = clip(predicted_tokens - generated_tokens, top)
    return np.where(prompt_tokens > LIMIT, 0.0, left + WEIGHT * np.sqrt(prompt_tokens))
"""


@pytest.fixture
def load_file(tmp_path):
    def load(text, name="score"):
        path = tmp_path / "mine.py"
        path.write_text(text)
        return load_policy(f"{path}:{name}").score

    return load


def test_a_user_file_with_helpers_and_globals_compiles(load_file):
    score = load_file(POLICY_FILE)
    scalars, arrays, machine = three_ways(score, sample_rows(300, seed=3))
    assert scalars.tobytes() == arrays.tobytes() == machine.tobytes()
    row = sample_rows(1, seed=4)
    row["predicted_tokens"], row["generated_tokens"], row["prompt_tokens"] = 100.0, 40, 25
    assert compile_score(score).evaluate(row)[0] == 60 + 0.3 * 5  # by hand


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return np.exp(predicted_tokens)", "np.exp, whose last bit differs"),
        ("return TABLE[0] + predicted_tokens", "reads TABLE, which is no number and no function"),
        ("import os\n    return predicted_tokens", "uses import"),
        ("return score(predicted_tokens)", "calls itself"),
        ("return predicted_tokens.real", "reads the attribute"),
        ("return predicted_tokens ** 1.1 if predicted_tokens > 1 else 'a'", "numba can't compile"),
    ],
)
def test_what_cannot_be_compiled_says_why(load_file, body, why):
    text = f"import numpy as np\nTABLE = [1.0]\ndef score(predicted_tokens):\n    {body}\n"
    with pytest.raises(NotCompilable, match=why):
        compile_score(load_file(text))


def test_a_learned_policy_is_not_a_plain_function():
    mlp = MLP(np.zeros(1), np.ones(1), np.zeros(1, bool), ((np.ones((1, 1)), np.zeros(1)),))
    with pytest.raises(NotCompilable, match="is a MLP, not a plain function"):
        compile_score(Score("learned", mlp, ("predicted_tokens",)))


def test_a_score_that_differs_from_python_is_found_by_sampling(load_file, monkeypatch):
    score = load_file("def score(predicted_tokens):\n    return predicted_tokens + 1\n")
    other = Score(score.name, score.function, score.features)
    monkeypatch.setattr(Score, "__call__", lambda self, *values: self.function(*values) + 1e-9)
    with pytest.raises(NotCompilable, match="as Python and"):
        compile_score(other)


def test_a_score_that_raises_is_reported_not_swallowed(load_file):
    text = "def score(generated_tokens):\n    return 1.0 / (generated_tokens - 123456)\n"
    compiled = compile_score(load_file(text))
    rows = np.zeros(3, FEATURE_ROW)
    assert compiled.evaluate(rows)[0] == 1 / -123456
    rows["generated_tokens"][1] = 123456
    with pytest.raises(Exception, match="raised"):
        compiled.evaluate(rows)


def test_machine_code_is_cached_between_processes(tmp_path):
    code = (
        "import time; from lengthwise.serving.fast.compiler import score as c\n"
        "from lengthwise.policies import load_policy\n"
        "c.compile_score(load_policy('sjf').score)\n"  # numba's own start
        "t = time.perf_counter(); made = c.compile_score(load_policy('mlfq').score)\n"
        "print(time.perf_counter() - t, made.stem)"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    seconds = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        spent, stem = done.stdout.split()
        seconds.append(float(spent))
        assert (tmp_path / "lengthwise" / "kernels" / f"{stem}.o").is_file()
    assert seconds[1] < 0.3 * seconds[0]


def test_importing_serving_loads_no_numba():
    assert importlib.util.find_spec("numba") is not None
    code = "import sys, lengthwise.serving; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
