"""Effects of who answers and of what came before, against what the data were made of."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from lengthwise.context import Context
from lengthwise.errors import InputError
from lengthwise.predictors import load_predictor
from lengthwise.predictors.effects import Effects
from lengthwise.predictors.load import make_predictor
from lengthwise.predictors.text import Design

RNG = np.random.default_rng(0)
WORDS = {"briefly": 3.0, "normally": 4.5, "detail": 6.0}
TRUE = {f"m{i}": shift for i, shift in enumerate(RNG.normal(0, 0.6, 12))}


def rows(n: int, seed: int, own_words: bool = False) -> tuple[list[str], np.ndarray, Context]:
    """Prompts whose word says the mean log length; models that shift it, not all equally often."""
    rng = np.random.default_rng(seed)
    words = rng.choice(list(WORDS), n)
    models = rng.choice(list(TRUE), n, p=np.r_[0.01, np.full(11, 0.09)])
    prompts = [f"answer {w} number {rng.integers(60)}" for w in words]
    logs = np.array([WORDS[w] for w in words]) + [TRUE[m] for m in models]
    logs += rng.normal(0, 0.3, n)
    return prompts, np.exp(logs).clip(1).round(), Context(model=models)


def test_intercepts_are_the_shrunken_means_of_one_way_analysis_of_variance():
    rng, each = np.random.default_rng(1), 8
    names = np.repeat(list(TRUE), each)
    logs = 5 + np.array([TRUE[m] for m in names]) + rng.normal(0, 0.8, len(names))
    found = Effects.fit(
        logs, Context(model=names), lambda y: np.full(len(y), y.mean()), np.ones(len(names))
    ).intercepts["model"]
    table = logs.reshape(len(TRUE), each)
    means = table.mean(axis=1)
    noise = table.var(axis=1, ddof=1).mean()
    between = means.var(ddof=1) - noise / each
    shrunk = (means - means.mean()) * between / (between + noise / each)
    np.testing.assert_allclose([found[name] for name in TRUE], shrunk, atol=0.06)
    assert abs(shrunk).max() > 0.5


def test_intercepts_are_found_and_shrunk():
    prompts, length, context = rows(1500, 2)
    unseen = Design.of(prompts, 0).held_out_mean
    found = Effects.fit(np.log(length), context, unseen, np.ones(len(length))).intercepts["model"]
    told = np.array([found[name] for name in TRUE])
    true = np.array(list(TRUE.values()))
    np.testing.assert_allclose(told - told.mean(), true - true.mean(), atol=0.1)
    few = Effects.fit(  # the rarest name, on noise alone, is drawn to the mean
        np.random.default_rng(0).normal(0, 1, 60), Context(model=["a", "a", *["b", "c"] * 29]),
        np.zeros_like, np.ones(60),
    ).intercepts["model"]  # fmt: skip
    assert abs(few["a"]) < 0.5


@pytest.mark.parametrize(
    ("name", "target"),
    [*(("ridge", target) for target in ("exact", "bucket", "rank", "quantile")), ("gbdt", "exact")],
)
def test_a_model_tells_what_prompts_do_not(name, target, tmp_path):
    prompts, length, context = rows(700, 3)
    asked, came, whose = rows(400, 4)
    alone = make_predictor(name, target=target).fit(prompts, length).predict(asked)
    made = make_predictor(name, target=target).fit(prompts, length, context=context)
    assert made.uses == {"model", "max_tokens"}
    said = made.predict(asked, context=whose)
    gain = kendalltau(said.predicted_tokens, came)[0] - kendalltau(alone.predicted_tokens, came)[0]
    assert gain > 0.08
    # in tokens, not in what is left without the model
    assert 0.75 < said.predicted_tokens.mean() / came.mean() < 1.25

    made.save(tmp_path / "p")
    again = load_predictor(tmp_path / "p")
    np.testing.assert_array_equal(
        again.predict(asked, context=whose).predicted_tokens, said.predicted_tokens
    )
    assert again.uses == made.uses
    # one row alone, and a model that nobody knows: the mean of the others
    one = again.predict(asked[:1], context=whose.select([0])).predicted_tokens
    np.testing.assert_allclose(one, said.predicted_tokens[:1], rtol=1e-12)
    unknown = again.predict(asked[:1], context=Context(model=["new"])).predicted_tokens
    np.testing.assert_array_equal(unknown, again.predict(asked[:1]).predicted_tokens)
    if target == "quantile":
        inside = (came >= said.quantiles[:, 1]) & (came <= said.quantiles[:, 5])
        assert 0.7 < inside.mean() < 0.9  # levels 0.1 and 0.9
    if target == "bucket":
        assert np.allclose(said.probabilities.sum(axis=1), 1)
        reached = np.searchsorted(said.edges[1:-1], came)
        share = np.bincount(reached, minlength=len(said.means)) / len(came)
        np.testing.assert_allclose(said.probabilities.mean(axis=0), share, atol=0.08)


def test_earlier_answers_of_a_session_draw_the_next_one():
    rng = np.random.default_rng(5)
    prompts, length, n = [], [], 900
    style = rng.normal(0, 0.8, n)
    before = np.exp(4.5 + style + rng.normal(0, 0.3, n))
    for row in range(n):
        word = rng.choice(list(WORDS))
        prompts.append(f"answer {word} number {row % 60}")
        length.append(np.exp(WORDS[word] + style[row] + rng.normal(0, 0.3)))
    length = np.maximum(length, 1)
    asked = np.arange(n) % 2 == 0
    columns = {
        "previous_answers": np.where(asked, 1.0, 0.0),
        "previous_log_tokens": np.where(asked, np.log(before), np.nan),
        "previous_tokens": np.where(asked, before, np.nan),
    }
    context, half = Context(**columns), np.arange(n) < n // 2
    made = make_predictor("ridge").fit(
        [p for p, h in zip(prompts, half, strict=True) if h], length[half],
        context=context.select(half),
    )  # fmt: skip
    test = ~half & asked
    some = [p for p, t in zip(prompts, test, strict=True) if t]
    known = made.predict(some, context=context.select(test)).predicted_tokens
    blind = made.predict(some).predicted_tokens
    assert kendalltau(known, length[test])[0] > kendalltau(blind, length[test])[0] + 0.1


def test_no_prediction_exceeds_max_tokens():
    prompts, length, context = rows(300, 6)
    for target in ("exact", "bucket", "rank", "quantile"):
        made = make_predictor("ridge", target=target).fit(prompts, length, context=context)
        said = made.predict(prompts, context=Context(max_tokens=np.full(300, 40)))
        assert said.predicted_tokens.max() <= 40
        assert said.quantiles is None or said.quantiles.max() <= 40
        low, high = said.select(slice(0, 9)).interval(0.9)
        assert (low <= high).all() and high.max() <= 40
        assert said.refresh(np.full(300, 30)).max() <= 10  # of a chat that may not go on for more
        assert said.refresh(np.full(300, 50)).max() == 1


def test_weights_count_as_repetition():
    prompts, length, _ = rows(200, 7)
    heavy = np.where(np.arange(200) < 50, 3, 1)
    times = np.repeat(np.arange(200), heavy)
    a = make_predictor("ridge", alpha=1.0).fit(prompts, length, weights=heavy)
    b = make_predictor("ridge", alpha=1.0).fit([prompts[i] for i in times], length[times])
    np.testing.assert_allclose(
        a.predict(prompts).predicted_tokens, b.predict(prompts).predicted_tokens, rtol=0.02
    )


def test_bad_context_and_weights_are_one_clear_line():
    prompts, length, context = rows(50, 8)
    with pytest.raises(InputError, match="context has 49 rows, the prompts 50"):
        make_predictor("ridge").fit(prompts, length, context=context.select(slice(49)))
    with pytest.raises(InputError, match="weights must be finite numbers, 0 or more"):
        make_predictor("ridge").fit(prompts, length, weights=np.full(50, -1.0))
