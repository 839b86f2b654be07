"""The workload: what its columns may hold, and what its methods keep."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.workload import Workload

GOOD = {"arrival_s": [0.0, 1.0, 4.0], "prompt_tokens": [5, 6, 7], "output_tokens": [1, 2, 3]}


def changed(**columns: object) -> dict[str, object]:
    return {**GOOD, **columns}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (changed(output_tokens=[1, 0, 3]), "w: row 1: output_tokens is 0; it must be 1 or more"),
        (changed(output_tokens=[0, 0, 0]), "row 0: output_tokens is 0.*and 2 more rows"),
        (changed(prompt_tokens=[5, 6, -7]), "row 2: prompt_tokens is -7; it must be 1 or more"),
        (changed(prompt_tokens=[5, 6.5, 7]), "row 1: prompt_tokens is 6.5; .* a whole number"),
        (changed(arrival_s=[0, np.nan, 1]), "row 1: arrival_s is nan; .* a finite number"),
        (changed(arrival_s=[0, np.inf, 1]), "row 1: arrival_s is inf; .* a finite number"),
        (changed(arrival_s=[-1, 0, 1]), "row 0: arrival_s is -1; it must be 0 or more"),
        (changed(prompt_tokens=[5, "six", 7]), "row 1: prompt_tokens is 'six'; .* a number"),
        (changed(prompt_tokens=[5, None, 7]), "row 1: prompt_tokens is (None|nan); it must be"),
        (changed(output_tokens=[1, 2]), "column 'output_tokens' has 2 rows, not 3"),
        (changed(parent=[-1, 2, -1]), "row 1: parent must be an earlier request"),
        (changed(hash_block_tokens=[16, 0, 16]), "row 1: hash_block_tokens is 0"),
        ({"arrival_s": [0.0], "prompt_tokens": [1]}, "no column 'output_tokens'; it has arrival_s"),
        ({"arrival_s": [], "prompt_tokens": [], "output_tokens": []}, "w: the workload is empty"),
    ],
)
def test_bad_columns_are_one_clear_line(columns: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Workload(columns, name="w")
    assert "\n" not in str(caught.value)


def test_an_unknown_column_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'deadline'; did you mean 'deadline_s'"):
        Workload(changed(deadline=[1, 2, 3]))


def test_unsorted_arrivals_are_sorted_with_a_notice() -> None:
    workload = Workload(changed(arrival_s=[3.0, 1.0, 2.0], prompt=["a", "b", "c"]), name="w")
    assert list(workload["prompt"]) == ["b", "c", "a"]
    assert list(workload["output_tokens"]) == [2, 3, 1]
    assert workload.notices == ("w: arrivals were not in order; sorted by arrival_s",)
    assert Workload(GOOD).notices == ()


def test_sorting_moves_parents_along() -> None:
    workload = Workload(
        changed(arrival_s=[5.0, 6.0, 0.0], parent=[-1, 0, -1], prompt=["a", "b", "c"])
    )
    assert list(workload["prompt"]) == ["c", "a", "b"]
    assert list(workload["parent"]) == [-1, -1, 1]


def test_ties_keep_their_order() -> None:
    workload = Workload(changed(arrival_s=[1.0, 0.0, 0.0], prompt=["a", "b", "c"]))
    assert list(workload["prompt"]) == ["b", "c", "a"]


def test_columns_are_read_only_and_leave_the_input_alone() -> None:
    tokens = np.array([5, 6, 7])
    workload = Workload(changed(prompt_tokens=tokens))
    with pytest.raises(ValueError, match="read-only"):
        workload["prompt_tokens"][0] = 1
    tokens[0] = 99
    assert workload["prompt_tokens"][0] == 5


def test_object_columns_hold_tuples_of_equal_length() -> None:
    workload = Workload(changed(prefix_hashes=[(1, 2), (1, 3), (4, 5)]))
    assert list(workload["prefix_hashes"]) == [(1, 2), (1, 3), (4, 5)]


@given(
    gaps=st.lists(st.floats(0.001, 1e4), min_size=2, max_size=20),
    rate=st.floats(1e-3, 1e3),
    start=st.floats(0, 100),
)
def test_at_rate_gives_the_rate_and_keeps_the_shape(
    gaps: list[float], rate: float, start: float
) -> None:
    arrival = start + np.cumsum(gaps)
    ones = np.ones(len(gaps))
    workload = Workload(
        {"arrival_s": arrival, "prompt_tokens": ones, "output_tokens": ones,
         "deadline_s": arrival + 3.0}
    )  # fmt: skip
    scaled = workload.at_rate(rate)
    assert scaled.rate == pytest.approx(rate)
    assert scaled["arrival_s"][0] == 0
    ratio = np.diff(scaled["arrival_s"]) / np.diff(arrival)
    assert ratio == pytest.approx(workload.rate / rate, rel=1e-4)
    # a deadline stays as far from its arrival as it was
    assert scaled["deadline_s"] - scaled["arrival_s"] == pytest.approx(3.0, abs=1e-6)


@pytest.mark.parametrize("rate", [0, -1, np.nan, np.inf])
def test_at_rate_refuses_what_is_no_rate(rate: float) -> None:
    with pytest.raises(InputError, match="rate must be a positive number"):
        Workload(GOOD).at_rate(rate)


def test_at_rate_of_a_burst_is_an_error_and_of_one_request_nothing() -> None:
    burst = Workload(changed(arrival_s=[0, 0, 0]))
    assert burst.rate == np.inf
    with pytest.raises(InputError, match="arrive at once"):
        burst.at_rate(2)
    one = Workload(GOOD).head(1)
    assert one.at_rate(2) is one


def test_rate_is_gaps_over_span() -> None:
    assert Workload(GOOD).rate == pytest.approx(2 / 4)


def test_replace_adds_changes_and_drops_columns() -> None:
    workload = Workload(changed(tenant=["a", "b", "c"]), notices=["seen"])
    other = workload.replace(name="new", priority=[2, 1, 0], tenant=None, output_tokens=[9, 9, 9])
    assert other.name == "new"
    assert "tenant" not in other
    assert list(other["priority"]) == [2, 1, 0]
    assert list(other["output_tokens"]) == [9, 9, 9]
    assert list(workload["output_tokens"]) == [1, 2, 3]
    assert other.notices == ("seen",)
    with pytest.raises(InputError, match="needs arrival_s"):
        workload.replace(arrival_s=None)


def test_select_and_head_keep_times_and_order() -> None:
    workload = Workload(GOOD)
    assert list(workload.select([True, False, True])["arrival_s"]) == [0.0, 4.0]
    assert list(workload.head(2)["arrival_s"]) == [0.0, 1.0]
    assert len(workload.head(99)) == 3
    with pytest.raises(InputError, match="empty"):
        workload.select(np.zeros(3, dtype=bool))


def test_a_closed_loop_is_cut_by_head_alone() -> None:
    workload = Workload(changed(parent=[-1, 0, 1], think_s=[0, 1, 1]))
    assert list(workload.head(2)["parent"]) == [-1, 0]
    with pytest.raises(InputError, match="closed-loop"):
        workload.select([0, 2])


def test_frames_go_there_and_back() -> None:
    frame = pd.DataFrame(changed(prompt=["a", "b", "c"]))
    workload = Workload.from_frame(frame)
    pd.testing.assert_frame_equal(workload.to_frame(), frame, check_dtype=False)
    with pytest.raises(UnknownNameError, match="did you mean 'prompt_tokens'"):
        Workload.from_frame(frame.rename(columns={"prompt_tokens": "prompt_token"}))


def test_a_missing_column_names_those_there() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown column 'promt_tokens' of workload; did you mean"
    ):
        Workload(GOOD)["promt_tokens"]
