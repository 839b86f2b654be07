"""Every score gives the same bits on scalars, on arrays and compiled."""

import importlib.util
import os
import subprocess
import sys
from itertools import pairwise

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
    ("spec", "same_code"),
    [("mlfq:quantum=7,levels=3,skip_join=false", False), ("hrrn:floor_tokens=3.7", True)],
)
def test_tunables_are_bound(spec, same_code):
    """Fractions are data, so that other values of them need no other code."""
    score, plain = load_policy(spec).score, load_policy(spec.split(":")[0]).score
    rows = sample_rows(300, seed=2)
    scalars, arrays, machine = three_ways(score, rows)
    assert scalars.tobytes() == arrays.tobytes() == machine.tobytes()
    others = three_ways(plain, rows)
    assert others[0].tobytes() == others[2].tobytes() != machine.tobytes()
    # the first keeps its own numbers beside the second
    assert compile_score(score).evaluate(rows).tobytes() == machine.tobytes()
    assert (compile_score(score).stem == compile_score(plain).stem) is same_code


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


NAMES = ("predicted_tokens", "now_s", "prompt_tokens", "arrival_s", "outstanding_tokens")


def network(*hidden, seed=0):
    """A random network over ``NAMES``."""
    rng = np.random.default_rng(seed)
    return MLP(
        rng.normal(size=5), rng.uniform(0.5, 9, size=5), np.array([1, 0, 1, 0, 1], bool),
        tuple(
            (rng.normal(size=(outputs, inputs)) / np.sqrt(inputs), rng.normal(size=outputs))
            for inputs, outputs in pairwise((5, *hidden, 1))
        ),
    )  # fmt: skip


@pytest.mark.parametrize("hidden", [(), (1,), (8,), (32, 32), (64, 64), (33, 7, 100)])
def test_a_network_gives_the_same_bits_everywhere(hidden):
    score, rows = Score("net", network(*hidden), NAMES), sample_rows(700, seed=5)
    rows["outstanding_tokens"][:3] = 0.0, -0.0, 1e300
    scalars, arrays, machine = three_ways(score, rows)
    assert scalars.tobytes() == arrays.tobytes() == machine.tobytes()
    alone = [compile_score(score).evaluate(rows[i : i + 1])[0] for i in range(20)]
    assert alone == machine[:20].tolist()


def test_networks_of_a_shape_share_their_code_and_nothing_else():
    first, second = (Score("net", network(16, seed=seed), NAMES) for seed in range(2))
    compiled = compile_score(first), compile_score(second)
    assert compiled[0].stem == compiled[1].stem != compile_score(
        Score("net", network(17), NAMES)).stem  # fmt: skip
    rows = sample_rows(50, seed=6)
    for made, score in zip(compiled, (first, second), strict=True):
        assert made.evaluate(rows).tobytes() == score.evaluate(rows).tobytes()


def test_a_network_that_is_too_wide_stays_numpy_s():
    with pytest.raises(NotCompilable, match="5000 neurons side by side; more than 4096"):
        compile_score(Score("net", network(5000), NAMES))


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
