"""Every score gives the same bits on scalars, on arrays and compiled."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from lengthwise import registry
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.blend import Blend, blend
from lengthwise.policies.learned import MLP
from lengthwise.policies.terms import TERMS
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
        return load_policy(f"{path}:{name}", tried=False).score

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


def test_a_network_with_a_linear_part_gives_the_same_bits_and_has_no_bound():
    net = dataclasses.replace(network(8), skip=np.array([1.0, 0, 0.5, 0, 0.25]))
    score, rows = Score("net", net, NAMES), sample_rows(700, seed=5)
    scalars, arrays, machine = three_ways(score, rows)
    assert scalars.tobytes() == arrays.tobytes() == machine.tobytes()
    parts = arrays - three_ways(Score("net", network(8), NAMES), rows)[1]
    seen = net.normalise(np.stack([rows[name].astype(float) for name in NAMES], axis=1))
    np.testing.assert_allclose(parts, seen @ net.skip, rtol=1e-9, atol=1e-9)
    assert net != network(8)
    rows = sample_rows(3, seed=5)
    rows[:] = rows[0]
    rows["predicted_tokens"] = 3e3, 3e4, 3e5
    with_skip = compile_score(score).evaluate(rows)
    assert with_skip[0] < with_skip[1] < with_skip[2]


@pytest.mark.parametrize("seed", range(2))
def test_a_blend_of_all_terms_gives_the_same_bits_everywhere(seed):
    weights = np.random.default_rng(seed).normal(size=len(TERMS))
    score, rows = Blend(tuple(TERMS), tuple(weights.tolist())).score(), sample_rows(700, seed=seed)
    rows["max_seats"][:5] = 0
    scalars, arrays, machine = three_ways(score, rows)
    assert scalars.tobytes() == arrays.tobytes() == machine.tobytes()
    by_hand = sum(w * TERMS[name].evaluate(rows) for w, name in zip(weights, TERMS, strict=True))
    np.testing.assert_allclose(arrays, by_hand, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "spec"),
    [
        ({"predicted": 1.0}, "sjf"),
        ({"predicted": 1.0, "prompt": 0.3}, "work:b=0.3"),
        ({"arrival": 1.0}, "fcfs"),
        ({"requests": 1.0}, "jsq"),
        ({"outstanding": 1.0}, "least-tokens"),
        ({"turn": 1.0}, "weighted-round-robin"),
        ({"prefill_s": 0.3, "seat_wait_s": 1.0, "decode_s": 0.1}, "jsew:b=0.3,crowding=0.1"),
    ],
)
def test_strong_baselines_are_blends(weights, spec):
    """Another order of operations moves the last bit, no more; the order of requests follows."""
    baseline = (load_router if set(weights) & ROUTING else load_policy)(spec).score
    rows = sample_rows(500, seed=7)
    mine, theirs = blend(weights).evaluate(rows), np.asarray(baseline.evaluate(rows), float)
    scale = 1000.0 if "turn" in weights else 1.0
    np.testing.assert_allclose(mine, scale * theirs, rtol=1e-12, atol=1e-9)


ROUTING = {"requests", "outstanding", "turn", "prefill_s"}


def test_blends_of_the_same_terms_share_their_code_and_say_what_is_wrong():
    first, second = (compile_score(blend({"predicted": 1, "prompt": b})) for b in (0.1, 0.2))
    assert first.stem == second.stem
    rows = sample_rows(50, seed=6)
    assert first.evaluate(rows).tobytes() != second.evaluate(rows).tobytes()
    assert first.stem != compile_score(blend({"predicted": 1, "footprint": 0.1})).stem
    with pytest.raises(UnknownNameError, match="predicted"):
        blend({"predicte": 1.0})
    with pytest.raises(InputError, match="finite number"):
        blend({"predicted": float("nan")})
    with pytest.raises(InputError, match="2 terms can't have 1 weights"):
        Blend(("predicted", "prompt"), (1.0,))


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
