"""Elementary functions: accurate beside an arbitrary-precision library, the same everywhere."""

import numpy as np
import pytest

from lengthwise.exact import symlog, tanh
from lengthwise.policy import Score
from lengthwise.serving.fast import shown
from lengthwise.serving.fast.compiler.score import compile_score
from lengthwise.serving.fast.state import FEATURE_ROW

RNG = np.random.default_rng(0)
SIZES = np.concatenate(
    [
        10.0 ** RNG.uniform(-300, 300, 500), 10.0 ** RNG.uniform(-9, 9, 2000),
        RNG.uniform(0, 25, 2000), RNG.uniform(0, 2, 1000), 2.0 ** np.arange(-60, 70),
        2.0 ** np.arange(-60, 70) - 1, [1e-308, 19.06, 20.0, np.nextafter(20, 30), 1.7e308],
    ]
)  # fmt: skip
VALUES = np.concatenate([SIZES, -SIZES])
VALUES = VALUES[np.abs(VALUES) > 1e-307]
ODD = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324])


@pytest.mark.parametrize(("ours", "name"), [(tanh, "tanh"), (symlog, "log1p")])
def test_functions_are_within_three_units_of_the_last_place(ours, name):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workprec(1100):
        exact = getattr(mpmath, name)
        right = [exact(abs(mpmath.mpf(x))) * (1 if x > 0 else -1) for x in VALUES.tolist()]
        found = map(mpmath.mpf, ours(VALUES).tolist())
        wrong = [abs(a / b - 1) for a, b in zip(found, right, strict=True)]
    assert max(wrong) < 3 * 2.0**-52


@pytest.mark.parametrize(("ours", "theirs"), [(tanh, np.tanh), (symlog, None)])
def test_functions_are_those_of_numpy(ours, theirs):
    theirs = theirs or (lambda x: np.sign(x) * np.log1p(np.abs(x)))
    np.testing.assert_allclose(ours(VALUES), theirs(VALUES), rtol=1e-15)
    assert np.array_equal(ours(-VALUES), -ours(VALUES))


def test_what_is_no_common_number():
    assert tanh(ODD).tolist()[:4] == [0, 0, 1, -1] and np.isnan(tanh(np.nan))
    largest = np.log(np.finfo(float).max)
    assert symlog(ODD)[:4] == pytest.approx([0, 0, largest, -largest]) and np.isnan(symlog(np.nan))
    assert symlog(5e-324) == 5e-324
    for zero in (0.0, -0.0):  # one 0, for whoever looks at the bits
        assert np.float64(symlog(zero)).tobytes() == bytes(8)


def test_what_agents_are_shown_is_the_same_to_the_last_bit(monkeypatch):
    monkeypatch.setattr(shown, "bits_of", lambda x: int(np.float64(x).view(np.int64)))
    monkeypatch.setattr(shown, "float_of", lambda bits: float(np.int64(bits).view(np.float64)))
    values = np.concatenate([VALUES[::3], ODD[~np.isnan(ODD)], [-5e-324, 1.7976931348623157e308]])
    ours = np.array([shown.symlog(float(x)) for x in values])
    assert ours.tobytes() == symlog(values).tobytes()


def scored(deadline_s):
    return symlog(deadline_s)


def squashed(deadline_s):
    return tanh(deadline_s)


@pytest.mark.parametrize("function", [scored, squashed])
def test_a_score_may_use_them_and_compiles(function):
    rows = np.zeros(len(VALUES) + len(ODD), FEATURE_ROW)
    rows["deadline_s"] = np.concatenate([VALUES, ODD])
    arrays = function(rows["deadline_s"])
    scalars = np.array([float(function(x)) for x in rows["deadline_s"].tolist()])
    machine = compile_score(Score.from_function(function)).evaluate(rows)
    assert arrays.tobytes() == scalars.tobytes() == machine.tobytes()
