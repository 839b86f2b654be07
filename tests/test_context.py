"""What requests are known by beside their prompts, and that nothing of it comes from the future."""

import numpy as np
import pytest

from lengthwise.context import MOST_TOKENS, Context, given
from lengthwise.errors import InputError
from lengthwise.predictors.load import make_predictor
from lengthwise.sessions import SECONDS_PER_TOKEN, earlier_answers


def closed(lengths: list[int]) -> dict[str, np.ndarray]:
    """Two sessions whose turns wait for each other, one after the other in the file."""
    return {
        "parent": np.array([-1, 0, 1, -1, 3]),
        "output_tokens": np.array(lengths),
        "model": np.array(["a", "a", None, "b", ""], dtype=object),
    }


def test_a_closed_loop_knows_the_answers_that_it_waited_for():
    made = Context.of(closed([10, 1000, 5, 7, 9]))
    assert made.previous_answers.tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_allclose(
        made.previous_log_tokens[[1, 2, 4]], [np.log(10), np.log([10, 1000]).mean(), np.log(7)]
    )
    assert np.isnan(made.previous_tokens[[0, 3]]).all()
    assert made.model.tolist() == ["a", "a", None, "b", None]


def test_on_a_clock_an_answer_counts_once_it_must_have_been_written():
    done_s = 100 * SECONDS_PER_TOKEN
    found = earlier_answers(
        {
            "session_id": ["s", "s", None, "s", "t"],
            "arrival_s": [0.0, done_s - 0.01, done_s, done_s + 0.01, done_s + 0.01],
            "output_tokens": [100, 50, 1, 1, 1],
        }
    )
    assert found["previous_answers"].tolist() == [0, 0, 0, 1, 0]
    assert found["previous_tokens"][3] == 100


@pytest.mark.parametrize("clock", [True, False])
def test_answers_to_come_have_no_influence(clock):
    rng = np.random.default_rng(0)
    n = 300
    columns = {
        "output_tokens": rng.integers(1, 400, n),
        "session_id": rng.integers(0, 12, n).astype(str),
        "arrival_s": np.sort(rng.uniform(0, 200, n)),
    }
    if not clock:
        columns["parent"] = np.array([rng.integers(-1, i) if i else -1 for i in range(n)])
    before = earlier_answers(columns)
    cut = n // 2
    shuffled = columns["output_tokens"].copy()
    shuffled[cut:] = rng.permutation(shuffled[cut:]) + 7
    after = earlier_answers({**columns, "output_tokens": shuffled})
    for name in before:  # the request at the cut itself is the last that can't tell
        np.testing.assert_array_equal(before[name][: cut + 1], after[name][: cut + 1])
    assert any((before[name][cut + 1 :] != after[name][cut + 1 :]).any() for name in before)


def test_select_and_rows_keep_what_is_known():
    made = Context.each([{"model": "m", "max_tokens": 5}, {"temperature": 0.5}])
    assert made.row(0) | {"temperature": None} == {
        "model": "m", "max_tokens": 5.0, "temperature": None,
    }  # fmt: skip
    assert len(made) == 2 and len(made.select([1])) == 1 and made.top_p is None
    assert Context.each([made.row(1)]).temperature.tolist() == [0.5]
    assert Context(max_tokens=[MOST_TOKENS, np.nan, 8]).limits().tolist() == [np.inf, np.inf, 8]


def test_bad_context_is_one_clear_line():
    with pytest.raises(InputError, match="did you mean 'temperature'"):
        Context.each([{"temprature": 1}])
    with pytest.raises(InputError, match="'top_p' has 1 rows, not 2"):
        Context(model=["a", "b"], top_p=[0.5])
    with pytest.raises(InputError, match="'top_p' holds values that are not numbers"):
        Context(top_p=["much"])


def test_who_declares_no_use_is_asked_as_ever():
    class Old:
        needs = frozenset({"prompt"})

    context = Context(max_tokens=[3])
    assert given(Old(), context) == {} == given(make_predictor("constant"), None)
    said = make_predictor("constant", tokens=50.0)
    assert said.predict(["x"], **given(said, context)).predicted_tokens.tolist() == [3]
