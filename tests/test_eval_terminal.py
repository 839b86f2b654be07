"""Tables in a terminal by hand: blocks of columns that fit, advice, calibrations, checks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from lengthwise.eval.advise import Advice
from lengthwise.eval.calibrate import Calibration, Factor, Half
from lengthwise.eval.check import Check, Checked
from lengthwise.eval.compare import SAME, Contender
from lengthwise.eval.statistics import paired_ratio
from lengthwise.eval.tables import number, ratio_cell
from lengthwise.eval.terminal import (
    Blocks,
    advice_view,
    calibration_view,
    checked_view,
    console,
    prediction_view,
)
from tests.test_eval_shown import METRICS, cells_of, comparison, of, shown


def line(names: str, cells: str) -> Any:
    return [Text(one) for one in names.split("/")], [Text(one) for one in cells.split("/")]


LINES = [line("fcfs", "1.00/10.5 ± 0.3/2.50"), line("mlfq", "2.00/9/–")]
HEADS = ["mean latency, s", "P99", "x"]
# three more than the longest of each: 3 + 6 of a name; 18, 13 and 7, the first one 13 on two lines
WHOLE = 9 + 18 + 13 + 7


@pytest.mark.parametrize(
    ("width", "split", "two_lines"),
    [
        (None, [[0, 1, 2]], False),
        (WHOLE, [[0, 1, 2]], False),
        (WHOLE - 1, [[0, 1, 2]], True),
        (WHOLE - 5, [[0, 1, 2]], True),
        (WHOLE - 6, [[0, 1], [2]], True),
        (30, [[0], [1, 2]], True),
        (28, [[0], [1], [2]], True),
        (5, [[0], [1], [2]], True),
    ],
)
def test_columns_go_into_as_few_blocks_as_fit(width: int, split: Any, two_lines: bool) -> None:
    made = Blocks.of(["policy"], HEADS, LINES, width)
    assert (made.split, made.left) == (split, [])
    assert made.columns[0] == ("mean\nlatency, s" if two_lines else "mean latency, s")
    few = Blocks.of(["policy"], HEADS, LINES, width, 1)
    assert few.split == split[:1]
    assert few.left == [HEADS[i] for block in split[1:] for i in block]


def test_wide_terminals_keep_headings_on_one_line() -> None:
    many, cells = ["mean latency, s"] * 6, "/".join(["1"] * 6)
    for width, kept in ((99, "mean\nlatency, s"), (100, "mean latency, s")):
        made = Blocks.of(["policy"], many, [line("fcfs", cells)], width)
        assert set(made.columns) == {kept}
    assert [len(block) for block in made.split] == [5, 1]  # (100 - 9) / 18


@pytest.mark.parametrize(
    ("names", "width", "most"),
    [
        (["a" * 40], 200, 40),
        (["a" * 40], 86, 40),
        (["a" * 40], 85, 39),
        (["a" * 40], 60, 27),
        (["a" * 40, "b" * 10], 60, 14),
        (["a" * 40], 20, 12),  # however narrow
        (["a" * 40], None, None),
    ],
)
def test_names_take_half_of_the_width(names: list[str], width: int, most: int) -> None:
    heads = ["policy", "predictor"][: len(names)]
    made = Blocks.of(heads, ["x"], [line("/".join(names), "1")], width)
    assert made.most == most


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(20, 200), st.integers(0, 4)
)
def test_every_column_is_in_a_block_that_fits_or_is_named(
    wide: list[int], width: int, most: int
) -> None:
    heads = [f"{i}" + "h" * (n - 1) for i, n in enumerate(wide)]
    made = Blocks.of(["policy"], heads, [line("fcfs", "/".join("1" for _ in wide))], width, most)
    there = [heads[i] for block in made.split for i in block]
    assert there + list(made.left) == heads
    for block, following in zip(made.split, [*made.split[1:], None], strict=True):
        used = 9 + sum(max(4, 3 + len(heads[i])) for i in block)
        assert used <= width or len(block) == 1
        if following is not None:  # and the next one found no room
            assert used + max(4, 3 + len(heads[following[0]])) > width
    assert not most or len(made.split) <= most


def test_lines_that_say_nothing_are_left_out_of_a_block() -> None:
    made = Blocks.of(["policy"], HEADS, LINES, 30)
    first, between, second = ([text for text in shown(part) if text] for part in made.tables(LINES))
    assert not between
    assert [cells_of(text)[0] for text in first[-2:]] == ["fcfs", "mlfq"]
    assert [cells_of(text) for text in second[-2:]] == [
        ["fcfs", "10.5 ± 0.3", "2.50"], ["mlfq", "9", "–"],
    ]  # fmt: skip
    narrow = Blocks.of(["policy"], HEADS, LINES, 28).tables(LINES)
    assert [text.split()[0] for text in shown(narrow[-1])[2:]] == ["fcfs"]
    (whole,) = Blocks.of(["policy"], ["x"], [line("mlfq", "–")], 30).tables([line("mlfq", "–")])
    assert cells_of(shown(whole)[-1]) == ["mlfq", "–"]  # one block has all


def test_a_pipe_is_wide_and_wide_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert console().width == 160 and console(wide=True).width == 100_000


def test_advice_has_a_row_for_each_load_with_ratios_to_fcfs() -> None:
    who = (
        Contender("fcfs", None, "fcfs", "none"),
        Contender("mlfq", None, "mlfq", "none"),
        Contender("sjf", "noisy-oracle:tau=0.5", "sjf", "noisy-oracle:tau=0.5"),
        Contender("sjf", "noisy-oracle:tau=0.3", "sjf", "noisy-oracle:tau=0.3"),
    )
    own = comparison(rates=(float("nan"),), contenders=who, metrics=METRICS)
    loads = comparison(rates=(2.0, 8.0), contenders=who, metrics=METRICS)
    own = dataclasses.replace(own, notices=("of both", f"one: {SAME}"))
    loads = dataclasses.replace(loads, notices=("of both", "of loads"))
    found = Advice(
        ("First.", "Second.", "Third."), 10.0, 5.0, 8.0, "mlfq", "vllm serve --x", {}, {},
        own, loads, None,  # type: ignore[arg-type]
    )  # fmt: skip
    lines = shown(advice_view(found, 200), 200)
    assert lines[:7] == ["First.", "", "Second.", "", "Third.", "", "vllm serve --x"]
    head = next(i for i, text in enumerate(lines) if "requests/s" in text)
    assert cells_of(lines[head]) == [
        "load", "requests/s", "fcfs waits, s", "fcfs mean, s",
        "mean mlfq", "mean sjf", "P99 mlfq", "P99 sjf",
    ]  # fmt: skip
    rows = [("own", own, float("nan"), 5.0), ("20%", loads, 2.0, 2.0), ("80%", loads, 8.0, 8.0)]
    for text, (label, made, rate, offered) in zip(lines[head + 2 :], rows, strict=False):
        mean = [of(made, rate, who[0], f"{m}_mean_s").mean() for m in ("wait", "e2e")]
        ratios = [
            paired_ratio(of(made, rate, one, metric), of(made, rate, who[0], metric))
            for metric in ("e2e_mean_s", "e2e_p99_s")
            for one in who[1:3]
        ]
        assert cells_of(text) == [
            label, number(offered), *map(number, mean), *(ratio_cell(one).text for one in ratios),
        ]  # fmt: skip
    assert [text for text in lines if text.startswith("note")] == [
        "note: of both",
        "note: of loads",
    ]


def test_a_calibration_says_its_factors_and_what_they_mend() -> None:
    rows = (
        {"run": "a.json", "figure": "mean latency", "measured_s": 2.5, "plain": -0.123,
         "calibrated": 0.004},
        {"run": "b.json", "figure": "P99 latency", "measured_s": 0.5, "plain": 0.25,
         "calibrated": -0.01},
    )  # fmt: skip
    found = Calibration(
        "h200/x:gpu=1.1", Factor(1.1, 1.05, 1.15, True), Factor(0.9, 0.8, 1.0, False),
        Half(6, 1, 5), rows, (1.1, 1.0), ("the CPU is hardly told",),
    )  # fmt: skip
    lines = shown(calibration_view(found))
    assert lines[0] == "--timing h200/x:gpu=1.1"
    assert lines[1] == (
        "GPU 1.1 of the profile's time (1.05 to 1.15); CPU 0.9 of the profile's time (0.80 to 1.00)"
    )
    assert "the factors meet 5 of the 6 figures of the second within 5%" in lines[2]
    assert lines[2].endswith("the profile as it is, 1.")
    assert cells_of(lines[4]) == ["run", "figure", "measured, s", "profile", "calibrated"]
    assert cells_of(lines[6]) == ["a.json", "mean latency", "2.50", "-12.3%", "+0.4%"]
    assert cells_of(lines[7]) == ["b.json", "P99 latency", "0.500", "+25.0%", "-1.0%"]
    assert lines[8] == "note: the CPU is hardly told"


def test_a_checked_policy_has_a_line_for_each_check() -> None:
    checks = (Check("reads", "ok", "two features"), Check("numba", "note", "runs as Python"))
    found = Checked("mine", "policy", "mine.py", ("now_s", "arrival_s"), (), checks)
    lines = shown(checked_view(found))
    assert lines[0] == "mine (policy) reads now_s, arrival_s"
    assert [cells_of(text) for text in lines[2:]] == [
        ["reads", "ok", "two features"], ["numba", "note", "runs as Python"],
    ]  # fmt: skip
    none = shown(checked_view(dataclasses.replace(found, reads=())))
    assert none[0] == "mine (policy) reads nothing"


def test_a_predictor_on_what_it_was_trained_on_says_so() -> None:
    metrics = {"mae": {"value": 120.25, "low": 100.0, "high": 140.0}}
    report: dict[str, Any] = {
        "predictor": "./p", "data": "x.jsonl", "metrics": metrics, "trained_on": True,
        "test": {"rows": 1556, "prompts": 1200, "censored": 1003},
    }  # fmt: skip
    lines = shown(prediction_view(report))
    assert lines[1] == (
        "measured on 1,556 answers to 1,200 prompts, 1,003 of them cut short and left out"
    )
    assert lines[2].startswith("it was trained on prompts among these")
    train = {"rows": 9, "prompts": 7, "censored": 2}
    lines = shown(prediction_view(report | {"trained_on": False, "train": train}))
    assert lines[1:3] == [
        "trained on 9 answers to 7 prompts, 2 of them cut short and counted as at least so long",
        "tested on 1,556 answers to 1,200 others, 1,003 of them cut short and left out",
    ]
