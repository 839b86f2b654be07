"""What is said of lengths and of workloads: every kind and column by hand, at both its ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest

import lengthwise as lw
from lengthwise import remaining
from lengthwise import spread as spreads
from lengthwise.curves import BETWEEN, Curve, RequestCurve
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.prediction import (
    ANY_LENGTH,
    ANY_LEVELS,
    CURVES,
    EDGES,
    Prediction,
    Predictions,
    Tabulated,
)
from lengthwise.protocols import Batch
from lengthwise.remaining import Pieces
from lengthwise.spread import Spread
from lengthwise.workload import MAY_LACK, OPTIONAL, REQUIRED, Workload, check_column


def line_of(make: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        make()
    return str(caught.value)


# Predictions


def test_each_kind_says_what_it_is() -> None:
    exact = Prediction.exact([0.5, 3])
    assert (exact.kind, len(exact), exact.certain) == ("exact", 2, True)
    assert exact.order.tolist() == [1, 3] == exact.predicted_tokens.tolist()
    rank = Prediction.ranked([5.0, -1.0])
    assert (rank.kind, len(rank), rank.order.tolist()) == ("rank", 2, [5, -1])
    both = Prediction.ranked([5.0, -1.0], [9.0, 0.0])
    assert both.order.tolist() == [5, -1] and both.predicted_tokens.tolist() == [9, 1]
    bucket = Prediction.bucketed([[0.25, 0.75]], [0, 4, 8])
    assert (bucket.kind, len(bucket), bucket.certain) == ("bucket", 1, False)
    quantile = Prediction.distribution([[1, 2]], [0.4, 0.6])
    assert (quantile.kind, len(quantile), quantile.certain) == ("quantile", 1, False)
    assert len(Prediction()) == 0


def test_what_is_refused_at_its_ends() -> None:
    fine = Prediction.bucketed([[0.5, 0.5 + 9e-7]], [0, 5, 9], [0, 9])  # means at the ends
    assert fine.means is not None and fine.means.tolist() == [0, 9]
    for given, said in (
        (([[0.5, 0.50002]], [0, 5, 9]), "sum to 1"),
        (([[-0.5, 1.5]], [0, 5, 9]), "must be 0 or more"),
        (([[0.5, 0.5]], [0, 5, 9], [-0.1, 7]), "within their buckets"),
        (([[0.5, 0.5]], [0, 5, 9], [1, 9.1]), "within their buckets"),
        (([[0.5, 0.5]], [0, 5, 9], [1]), "within their buckets"),
        (([[0.5, 0.5]], [0, 5, 4]), "must ascend"),
        (([[0.5, 0.5]], [0, 5]), "2 buckets need 3 edges, not 2"),
        (([0.5, 0.5], [0, 5, 9]), r"probabilities must have 2 dimension(s), not 1"),
    ):
        assert said in line_of(lambda given=given: Prediction.bucketed(*given))
    for levels in ([0.0, 0.5], [0.5, 1.0], [0.6, 0.5], [0.5]):
        assert "levels must ascend within (0, 1)" in line_of(
            lambda levels=levels: Prediction.distribution([[1, 2]], levels)
        )
    assert Prediction.distribution([[1, 2]], [1e-9, 1 - 1e-9]).tokens == pytest.approx([1.5])
    assert line_of(lambda: Prediction.exact([1, math.inf, math.nan])) == (
        "tokens hold 2 NaN or infinite values"
    )


def test_who_abstains_says_what_is_neutral() -> None:
    own = Prediction.bucketed([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], [0, 10, 30])
    neutral = Prediction.bucketed([[0.75, 0.25]], [0, 10, 30])
    made = own.abstaining([True, False, True], neutral)
    assert made.tokens is not None and made.tokens.tolist() == [8.75, 20.0, 8.75]
    assert made.probabilities is not None and made.probabilities[2].tolist() == [0.75, 0.25]
    assert made.bucket is not None and made.bucket.tolist() == [0, 1, 0] and made.rank is None
    assert made.abstained is not None and made.abstained.tolist() == [True, False, True]
    assert made.of_run().abstained_share == pytest.approx(2 / 3)
    assert own.of_run().abstained_share == 0
    ranks = Prediction.ranked([1.0, 2.0]).abstaining([False, True], Prediction.ranked([7.0]))
    assert ranks.order.tolist() == [1, 7]
    assert line_of(lambda: own.abstaining([True], neutral)) == (
        "mask has shape (1,), the predictions (3,)"
    )


def test_intervals_by_hand() -> None:
    """Uniform from 100 to 200: a level leaves half of what is missing at either end."""
    made = Prediction.bucketed([[0.0, 1.0]], [0, 100, 200])
    low, high = made.interval(0.8)
    assert (low[0], high[0]) == (pytest.approx(110), pytest.approx(190))
    low, high = made.interval()
    assert (low[0], high[0]) == (pytest.approx(105), pytest.approx(195))
    # one like no other widens all the way to any length; one half so, half of the way in log
    for unfamiliar in (1.0, 0.5):
        far = Prediction(
            tokens=made.tokens, edges=made.edges, probabilities=made.probabilities,
            means=made.means, unfamiliar=np.array([unfamiliar]),
        )  # fmt: skip
        low, high = far.interval(0.9)
        least, most = (float(np.interp(at, ANY_LEVELS, ANY_LENGTH)) for at in (0.05, 0.95))
        assert (least, most) == (13, 1699)
        assert low[0] == pytest.approx(105 ** (1 - unfamiliar) * least**unfamiliar)
        assert high[0] == pytest.approx(195 ** (1 - unfamiliar) * most**unfamiliar)
    # and never becomes narrower
    wide = Prediction(
        tokens=np.array([5000.0]), edges=np.array([0.0, 10_000.0]), probabilities=np.ones((1, 1)),
        means=np.array([5000.0]), unfamiliar=np.array([1.0]),
    )  # fmt: skip
    assert wide.interval(0.9)[1][0] == pytest.approx(9500) and wide.interval(0.9)[0][
        0
    ] == pytest.approx(13)
    # what a client allows ends both ways: of 100 to 200, at most 150 and at most 102
    held = Prediction(
        tokens=np.repeat(made.tokens, 3), edges=made.edges, means=made.means,
        probabilities=np.repeat(made.probabilities, 3, axis=0),
        limits=np.array([math.inf, 150.0, 102.0]),
    )  # fmt: skip
    low, high = held.interval(0.8)
    assert low == pytest.approx([110, 110, 102]) and high == pytest.approx([190, 150, 102])
    for level in (0, 1, -0.1, 1.1):
        assert "level must lie in (0, 1)" in line_of(lambda level=level: made.interval(level))
    assert "no interval is known" in line_of(lambda: Prediction.exact([3]).interval())


def test_any_length_is_a_distribution() -> None:
    assert len(ANY_LEVELS) == len(ANY_LENGTH) and (np.diff(ANY_LENGTH) > 0).all()
    assert ANY_LEVELS == pytest.approx(1 - ANY_LEVELS[::-1]) and (np.diff(ANY_LEVELS) > 0).all()
    assert (ANY_LENGTH[6], ANY_LENGTH[0], ANY_LENGTH[-1]) == (156, 1, 3225)
    steps = np.diff(EDGES)
    assert EDGES[0] == 0 and EDGES[-1] == 32_768 and steps[:4].tolist() == [16] * 4
    assert set(np.round(EDGES[5:-1] / EDGES[4:-2], 9)) == {1.5, round(4 / 3, 9)}


def test_a_run_s_predictions_are_checked_and_chosen_from() -> None:
    assert Predictions.given(None, 3) is None
    made = Predictions.given([3.0, 40.0], 2)
    assert made is not None and Predictions.given(made, 2) is made and len(made) == 2
    assert made.features == {"predicted_tokens", *CURVES} and made.abstained_share == 0
    assert "have shape (2,); there are 3" in line_of(lambda: Predictions.given(made, 3))
    assert made.at("predicted_tokens", [1], [9]).tolist() == [40]
    assert Predictions({"predicted_tokens": np.zeros(2)}).predicted_tokens.tolist() == [0, 0]
    tokens = np.array([3.0, 40.0])
    mask = np.array([True, False])
    curve = Curve.table([0.0, 10.0], [[5.0, 1.0], [50.0, 30.0]])
    whole = Predictions({"predicted_tokens": tokens}, {"gittins_index": curve}, abstained=mask)
    some = whole.capped([9, 20]).select([1])
    assert some.predicted_tokens.tolist() == [20] and some.at("gittins_index", [0], [10]) == [10]
    assert some.max_tokens is not None and some.max_tokens.tolist() == [20]
    assert some.abstained is not None and some.abstained.tolist() == [False]
    assert whole.select([0]).at("gittins_index", [0], [5]).tolist() == [3]
    for given, said in (
        (({"predicted_tokens": tokens}, {}, None, mask[:1]), "abstained has shape (1,), not (2,)"),
        (({"predicted_tokens": tokens, "x": tokens[:1]},), "x have shape (1,), not (2,)"),
        (({"predicted_tokens": np.array([-0.1])},), "must be finite and 0 or more"),
        (({"predicted_tokens": np.array([1.0, np.inf])},), "must be finite and 0 or more"),
        (({"predicted_tokens": ["a"]},), "predicted_tokens must be numbers: could not convert"),
        (({"predicted_tokens": tokens}, {"gittins": curve}), "did you mean 'gittins_index'"),
        (({"predicted_tokens": tokens[:1]}, {"gittins_index": curve}), "of 2 requests, not 1"),
    ):
        assert said in line_of(lambda given=given: Predictions(*given))


@pytest.mark.parametrize("backend", ["reference", "fast"])
def test_lengths_may_be_a_column_of_a_table_or_whole_numbers(
    backend: Literal["reference", "fast"],
) -> None:
    table = np.arange(1, 41).reshape(20, 2)
    workload = lw.Workload.preset("azure-conv-2023", requests=20, rate=50.0)
    engine = lw.Engine(max_num_seqs=2)

    def served(told: object) -> list[float]:
        known = Predictions({"predicted_tokens": told})  # type: ignore[dict-item]
        result = lw.simulate(
            workload, "sjf", engine=engine, predicted_tokens=known, backend=backend
        )
        assert result.requests["predicted_tokens"].tolist() == list(range(1, 40, 2))
        return result.requests["finish_s"].tolist()

    plain = served(table[:, 0].astype(float).copy())
    assert served(table[:, 0]) == served(table[:, 0].tolist()) == plain
    assert served(table.astype(float)[:, 0]) == plain


def test_curves_are_made_once_and_by_name() -> None:
    made = Tabulated(Prediction.bucketed([[0.5, 0.5]], [0, 50, 100]))
    assert list(made) == list(CURVES) and len(made) == 3
    assert "gittins_index" in made and "now_s" not in made
    assert made["gittins_index"] is made["gittins_index"]
    with pytest.raises(KeyError):
        made["now_s"]
    p90 = made["remaining_tokens_p90"].at([0, 0], [0, 64])
    assert p90 == pytest.approx([90, 64 + 0.9 * 36 - 64])
    own = made.prediction.curve("expected_remaining_tokens", [0.0, 50.0])
    assert own.edges.tolist() == [0, 50] and own.values.tolist() == [[50, 25]]
    none = Prediction.bucketed(np.empty((0, 2)), [0, 50, 100]).curve("gittins_index")
    assert len(none) == 0


# What is still to come


def pieces(*rows: tuple[float, float, float]) -> Pieces:
    low, high, mass = np.array(rows).T
    return Pieces(low[None], high[None], mass[None])


def at(done: float) -> Any:
    return np.array([done])


def test_uniform_pieces_by_hand() -> None:
    """A quarter from 0 to 10, the rest from 20 to 40."""
    two = pieces((0, 10, 0.25), (20, 40, 0.75))
    low, high, mass = (part[0].tolist() for part in two.left(at(5)))
    assert (low, high, mass) == ([0, 15], [5, 35], [0.125, 0.75])
    assert remaining.expected(two, at(0))[0] == pytest.approx(0.25 * 5 + 0.75 * 30)
    assert remaining.expected(two, at(30))[0] == pytest.approx(5)
    assert remaining.expected(two, at(41))[0] == 1
    for level, value in ((0.125, 5), (0.25, 10), (0.625, 30), (1.0, 40), (0.01, 1)):
        assert remaining.quantile(two, at(0), level)[0] == pytest.approx(value)
    assert remaining.quantile(two, at(50), 0.5)[0] == 1
    # by 10 a quarter is done after (0.25 x 5 + 0.75 x 10); by 40 all after the mean
    assert remaining.gittins(two, at(0))[0] == pytest.approx(min(8.75 / 0.25, 23.75))
    assert remaining.gittins(two, at(50))[0] == 1
    # exactly at a length it is outlived
    one = pieces((7, 7, 1.0))
    assert remaining.expected(one, at(7))[0] == 1 and remaining.expected(one, at(6))[0] == 1
    assert remaining.expected(one, at(4))[0] == 3


def test_equal_rows_are_kept_once() -> None:
    low, high = np.array([[0.0], [1.0], [0.0]]), np.array([[5.0], [5.0], [5.0]])
    made, row = Pieces(low, high, np.ones((3, 1))).distinct()
    assert len(made.mass) == 2 and row[0] == row[2] != row[1] and row.dtype == np.int32
    assert made.low[row].tolist() == low.tolist()
    shared, row = Pieces(low[:1], high[:1], np.array([[0.5], [1.0], [0.5]])).distinct()
    assert len(shared.low) == 1 and shared.mass[row].tolist() == [[0.5], [1.0], [0.5]]
    two, row = Pieces(low[[0, 2]], high[:2], np.ones((2, 1))).distinct()
    assert two.mass.shape == two.low.shape == (1, 1) and row.tolist() == [0, 0]
    alone = Pieces(low[:1], high[:1], np.ones((1, 1)))
    assert alone.distinct()[0] is alone and alone.distinct()[1].tolist() == [0]


# Spreads


def test_a_tail_s_cells_by_hand() -> None:
    assert spreads.TAIL_MASS.tolist() == [0.5, 0.3, 0.15, 0.05]
    assert spreads.TAIL_ABOVE.tolist() == [1, 0.5, 0.2, 0.05, 0.005] and spreads.BEYOND == 1e-9
    assert spreads.tail_ratios(1.0) == pytest.approx([1, 2, 5, 20, 200])
    assert spreads.tail_ratios(0.5) == pytest.approx(np.sqrt([1, 2, 5, 20, 200]))


def cells(made: Pieces, row: int = 0) -> list[tuple[float, float, float]]:
    """The cells of one request but for its tail."""
    many = made.mass.shape[1] - 4
    low, high = (np.broadcast_to(part, made.mass.shape)[row] for part in (made.low, made.high))
    return [
        (round(float(a), 9), round(float(b), 9), round(float(m), 6))
        for a, b, m in zip(low[:many], high[:many], made.mass[row][:many], strict=True)
    ]


def test_spreads_around_within_and_between_by_hand() -> None:
    ratios = Spread(np.array([0.5, 1.0, 2.0]), np.array([0.6, 0.4]), longest=150.0, tail=1.0)
    made = ratios.around(np.array([50.0, 100.0]))
    assert cells(made) == [(25, 50, 0.6), (50, 100, 0.4)]
    assert cells(made, 1) == [(50, 100, 0.6), (100, 150, 0.4)]  # nothing longer was seen
    assert made.low[0, 2:] == pytest.approx(150 * np.array([1, 2, 5, 20]))
    assert made.high[0, 2:] == pytest.approx(150 * np.array([2, 5, 20, 200]))
    assert made.mass[0, 2:] == pytest.approx(1e-9 * spreads.TAIL_MASS)
    assert made.mass[0].sum() == pytest.approx(1, abs=1e-15)
    inside = Spread(np.array([[0.0, 5.0, 10.0], [10.0, 12.0, 30.0]]), np.array([0.25, 0.75]), 99, 1)
    assert cells(inside.within(np.array([[0.4, 0.6]]))) == [
        (0, 5, 0.1), (5, 10, 0.3), (10, 12, 0.15), (12, 30, 0.45),
    ]  # fmt: skip
    above = Spread(np.array([1.0, 1.5, 3.0]), np.array([0.5, 0.5]), 1000, 1)
    # below the first quantile as far, in log, as the second lies above it: 20 x 20 / 40
    assert cells(above.between(np.array([[20.0, 40.0]]), np.array([0.2, 0.6]))) == [
        (10, 20, 0.2), (20, 40, 0.4), (40, 60, 0.2), (60, 120, 0.2),
    ]  # fmt: skip
    assert cells(above.between(np.array([[20.0]]), np.array([0.2])))[0] == (10, 20, 0.2)
    three = above.between(np.array([[20.0, 40.0, 50.0]]), np.array([0.2, 0.6, 0.7]))
    assert cells(three)[:3] == [(10, 20, 0.2), (20, 40, 0.4), (40, 50, 0.1)]
    # not below one token, and not above the first quantile
    assert cells(above.between(np.array([[2.0, 40.0]]), np.array([0.2, 0.6])))[0] == (1, 2, 0.2)
    assert cells(above.between(np.array([[0.5, 4.0]]), np.array([0.2, 0.6])))[0] == (0.5, 0.5, 0.2)


def test_predictions_with_a_spread_are_distributed_by_it() -> None:
    ratios = Spread(np.array([0.5, 1.5]), np.array([1.0]), 1e6, 1.0)
    around = Prediction.exact([100.0], spread=ratios)
    assert not around.certain and cells(around.pieces) == [(50, 150, 1)]
    assert around.refresh([100])[0] == pytest.approx(25, rel=1e-3)
    inside = Spread(np.array([[0.0, 10.0], [10.0, 30.0]]), np.array([1.0]), 1e6, 1.0)
    bucket = Prediction.bucketed([[0.5, 0.5]], [0, 10, 30], spread=inside)
    assert cells(bucket.pieces) == [(0, 10, 0.5), (10, 30, 0.5)]
    above = Spread(np.array([1.0, 2.0]), np.array([1.0]), 1e6, 1.0)
    quantile = Prediction.distribution([[20.0, 40.0]], [0.2, 0.6], spread=above)
    assert cells(quantile.pieces)[1:] == [(20, 40, 0.4), (40, 80, 0.4)]
    plain = Prediction.distribution([[20.0, 40.0]], [0.2, 0.6]).pieces
    assert plain.low.tolist() == [[20, 40]] == plain.high.tolist()
    assert plain.mass.tolist() == [pytest.approx([0.4, 0.6])]
    ranks = Prediction.ranked([3.0], [100.0], spread=ratios)
    assert cells(ranks.pieces) == [(50, 150, 1)]


# Curves


def test_curves_are_checked_at_their_ends() -> None:
    assert BETWEEN == ("step", "linear", "falling")
    assert len(Curve.table([0], np.empty((0, 1)))) == 0
    made = Curve.table([0, 5], [[9, 4], [7, 3]], [1, 0, 1])
    assert len(made) == 3 and made.row.dtype == np.int32 and made.between == "linear"
    assert Curve.table([0], [[3.0]]).row.tolist() == [0]
    for given, said in (
        (([], np.empty((1, 0))), "must ascend from 0"),
        (([[0]], [[1]]), "must ascend from 0"),
        (([0, 5, 3], [[1, 2, 3]]), "must ascend from 0"),
        (([0, 5], [1, 2]), "values (n, 2), not (2,)"),
        (([0, math.inf], [[1, 2]]), "must be finite"),
        (([0], [[1]], [-1]), "rows must lie in 0 to 0"),
        (([0], [[1]], [[0]]), "rows must lie in 0 to 0"),
        (([0], [[1], [2]], [2]), "rows must lie in 0 to 1"),
        (([0], [[1], [2]], [-1, 1]), "rows must lie in 0 to 1"),
    ):
        assert said in line_of(lambda given=given: Curve.table(*given))


def test_one_request_s_curve_by_hand() -> None:
    made = RequestCurve([0.0, 10.0, 30.0], [100.0, 50.0, 0.5])
    assert list(made.values) == [100, 50, 0.5]
    assert [made.at(done) for done in (0, 5, 10, 20, 30, 99)] == [100, 75, 50, 25.25, 1, 1]


# Batches


def test_a_batch_s_sequences_are_all_that_compute() -> None:
    assert Batch(prefill_seqs=2, decode_seqs=3).sequences == 5
    none = Batch()
    assert (none.prefill_tokens, none.prefill_seqs, none.decode_seqs) == (0, 0, 0)
    assert (none.context_tokens, none.chunk_context, none.sequences) == (0, 0, 0)


# Workloads

GOOD = {"arrival_s": [1.0, 2.0, 5.0], "prompt_tokens": [5, 6, 7], "output_tokens": [1, 2, 3]}
MANY = 2**30  # tokens of one request
FAR = 2**62


def held(name: str, values: list[Any]) -> list[Any]:
    return check_column("w", name, values).tolist()


@pytest.mark.parametrize("name", ["prompt_tokens", "output_tokens", "max_tokens"])
def test_tokens_are_whole_and_within_their_ends(name: str) -> None:
    assert held(name, [1, MANY]) == [1, MANY]
    assert check_column("w", name, [1.0]).dtype == np.int64
    assert f"row 1: {name} is 0; it must be 1 or more" in line_of(lambda: held(name, [1, 0]))
    assert "is 1.07374e+09; it must be 1073741824 or less" in line_of(
        lambda: held(name, [MANY + 1])
    )
    assert "is 1.5; it must be a whole number (and 1 more rows)" in line_of(
        lambda: held(name, [1.5, 2.5])
    )
    assert "must be a whole number" in line_of(lambda: held(name, [1.5])).split(" (and")[0]
    assert "(and" not in line_of(lambda: held(name, [1.5]))


@pytest.mark.parametrize("name", ["priority", "parent"])
def test_whole_numbers_keep_their_last_digit(name: str) -> None:
    exact = [2**53 + 1, -(2**53) - 1, FAR, -FAR]
    assert held(name, exact) == exact
    assert held(name, [*exact, 1.0]) == [*exact, 1]  # of mixed types
    assert held(name, [3.0, -4.0]) == [3, -4]
    assert "beyond" in line_of(lambda: held(name, [0, 10**400]))
    assert line_of(lambda: held(name, [0, -(10**400)])) == f"w: row 1: {name} is beyond {FAR}"
    assert f"must be {FAR} or less" in line_of(lambda: held(name, [FAR * 2]))


@pytest.mark.parametrize("name", ["temperature", "top_p", "tools", "json_schema"])
def test_what_clients_may_leave_out_is_nan(name: str) -> None:
    assert held(name, [0, 2.5]) == [0, 2.5] and math.isnan(held(name, [math.nan])[0])
    for value in (-0.1, math.inf, -math.inf):
        assert "must be 0 or more, or NaN" in line_of(lambda value=value: held(name, [value]))


@pytest.mark.parametrize("name", ["arrival_s", "think_s", "deadline_s"])
def test_times_are_finite_and_some_not_below_zero(name: str) -> None:
    assert held(name, [0, 2.5]) == [0, 2.5]
    if name == "deadline_s":
        assert held(name, [-1, math.inf]) == [-1, math.inf]  # of who has none
        for value in (-math.inf, math.nan):
            said = line_of(lambda value=value: held(name, [value]))
            assert "must be a number, or inf for none" in said
    else:
        assert "is -1; it must be 0 or more" in line_of(lambda: held(name, [-1]))
        assert "must be a finite number" in line_of(lambda: held(name, [math.inf]))
    assert "must be one-dimensional, not (1, 2)" in line_of(lambda: held(name, [[1, 2]]))
    assert f"row 1: {name} is 'x'; it must be a number" in line_of(lambda: held(name, [1, "x"]))


# All columns of numbers that may not be left out: who adds one is reminded here.
FINITE = sorted(
    name for name in (*REQUIRED, *OPTIONAL)
    if OPTIONAL.get(name, "") != "object" and name not in (*MAY_LACK, "deadline_s")
)  # fmt: skip


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite_in_every_column(name: str, value: float) -> None:
    said = line_of(lambda: held(name, [1, value, value]))
    assert said == f"w: row 1: {name} is {value}; it must be a finite number (and 1 more rows)"


def test_errors_call_rows_by_their_own_numbers() -> None:
    rows = np.array([7, 9])
    for values, name, said in (
        ([1, 0], "prompt_tokens", "row 9: prompt_tokens is 0"),
        ([1, "x"], "prompt_tokens", "row 9: prompt_tokens is 'x'"),
        (["a", {}], "tenant", "row 9: tenant is {}; it must be a name or a number"),
        ([1, 10**400], "priority", "row 9: priority is beyond"),
    ):
        given: Any = (values, name)
        assert said in line_of(lambda given=given: check_column("w", given[1], given[0], rows))
    for strange in ([1], {}, set(), np.zeros(1)):
        assert "it must be a name" in line_of(
            lambda strange=strange: check_column("w", "tenant", ["a", strange])
        )
    assert check_column("w", "tenant", ["a", 3, None]).tolist() == ["a", 3, None]


def test_columns_have_the_types_that_are_promised() -> None:
    numbers = {name for name, kind in OPTIONAL.items() if kind != "object"}
    assert numbers == {
        "hash_block_tokens", "deadline_s", "priority", "temperature", "top_p", "tools",
        "json_schema", "max_tokens", "parent", "think_s", "tenant_weight",
    }  # fmt: skip
    for name in numbers:
        assert check_column("w", name, [2]).dtype == OPTIONAL[name]


def test_no_answer_is_longer_than_its_limit_and_no_parent_later() -> None:
    made = Workload({**GOOD, "max_tokens": [1, 2, 3], "parent": [-1, 0, 0]})
    assert made["max_tokens"].tolist() == [1, 2, 3]
    assert line_of(lambda: Workload({**GOOD, "max_tokens": [1, 1, 3]}, name="w")) == (
        "w: row 1: output_tokens is 2, beyond its max_tokens, 1"
    )
    for parent in ([0, -1, -1], [-1, 1, -1], [-2, -1, -1]):
        assert "parent must be an earlier request" in line_of(
            lambda parent=parent: Workload({**GOOD, "parent": parent})
        )


def test_rows_in_order_are_left_alone() -> None:
    made = Workload({**GOOD, "arrival_s": [0.0, 0.0, 0.5]})
    assert made.notices == () and made["prompt_tokens"].tolist() == [5, 6, 7]
    assert len(Workload.preset("azure-conv-2023")) == 1000
    assert (
        line_of(lambda: held("priority", [FAR, 10**400])) == f"w: row 1: priority is beyond {FAR}"
    )


def test_workloads_are_cut_stretched_and_shown() -> None:
    made = Workload({**GOOD, "deadline_s": [2.0, 3.5, 9.0]}, name="w", notices=["n"])
    assert repr(made) == "<Workload 'w': 3 requests, 0.5 requests/s>" and len(made) == 3
    assert "deadline_s" in made and "tenant" not in made
    window = made.window(1, 3)
    assert window["arrival_s"].tolist() == [0, 3] and window["deadline_s"].tolist() == [1.5, 7]
    assert window.name == "w" and window.notices == ("n",)
    twice = made.at_rate(1.0)
    assert twice["arrival_s"].tolist() == [0, 0.5, 2]
    assert twice["deadline_s"].tolist() == [1, 2, 6] and twice.rate == 1
    assert made.select([2, 0])["arrival_s"].tolist() == [1, 5]
    assert made.head(1).rate == math.inf and made.head(1).at_rate(9)["arrival_s"].tolist() == [1]
    assert made.replace(name="").name == "w"
    for rate in (0, math.inf, 10**400):
        assert "rate must be a positive number" in line_of(lambda rate=rate: made.at_rate(rate))
    assert made.at_rate(1.7e308)["arrival_s"].tolist() == pytest.approx([0, 0, 0], abs=1e-300)
    with pytest.raises(UnknownNameError, match="unknown column 'tenent' of w"):
        made["tenent"]
    assert line_of(lambda: Workload({}, name="w")) == (
        "w: no column 'arrival_s'; it has no columns and needs arrival_s, prompt_tokens, "
        "output_tokens"
    )
