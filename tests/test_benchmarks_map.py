"""The map of when an order pays: what its cells say, and that the page says what the table says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import when_it_pays as map_of
from lengthwise.eval.statistics import paired_ratio

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    return pd.read_csv(DOCS / "when-it-pays.csv")


def test_every_place_load_and_row_stands_in_the_table_once(found: pd.DataFrame) -> None:
    keys = ["timing", "prompt_tokens", "kv", "cv", "load", "policy", "lengths"]
    assert not found.duplicated(keys).any()
    assert len(found) == len(map_of.PLACES) * len(map_of.LOADS) * len(map_of.ROWS)
    assert (found.mean_low <= found["mean"]).all()
    assert (found["mean"] <= found.mean_high).all()


def test_the_page_says_what_the_table_says(found: pd.DataFrame) -> None:
    text = (DOCS / "when-it-pays.md").read_text("utf-8")
    rows = found.to_dict("records")
    below = [row for row in rows if row["kv"] == "ample" and row["load"] <= 0.85]
    assert f"not one of {len(below)} cells" in text
    assert all(math.isnan(map_of.shown(row, "mean")) for row in below)
    at_95 = found[(found.kv == "ample") & (found.load == 0.95)]["mean"].min()
    assert f"At 95% the most is {100 * (1 - at_95):.1f}%" in text
    beyond = found[(found.policy == "sjf") & (found.load > 1)]
    exact = beyond[(beyond.kv == "ample") & (beyond.lengths == "oracle")]["mean"]
    assert f"takes {100 * (1 - exact.max()):.0f} to {100 * (1 - exact.min()):.0f}% off" in text
    mlfq = found[found.policy == "mlfq"]["mean"].max()
    assert f"up to {mlfq:.1f} times\n  FCFS's mean" in text
    assert 7.0 < beyond[beyond.lengths == "0.5"].p99.max() < 7.5
    gained = beyond[beyond.kv == "ample"].pivot_table(
        index=["timing", "prompt_tokens", "cv", "load"], columns="lengths", values="mean"
    )
    shares = (1 - gained).div(1 - gained["oracle"], axis=0).median()
    assert shares["0.5"] == pytest.approx(0.8, abs=0.05)
    assert shares["0.3"] == pytest.approx(0.55, abs=0.06)


def test_a_cell_is_blank_where_its_interval_has_1_or_nothing_to_speak_of() -> None:
    def row(value: float, low: float, high: float) -> dict[str, float]:
        return {"mean": value, "mean_low": low, "mean_high": high}

    assert map_of.shown(row(0.8, 0.7, 0.9), "mean") == 0.8
    assert map_of.shown(row(1.3, 1.1, 1.5), "mean") == 1.3
    assert math.isnan(map_of.shown(row(0.8, 0.6, 1.1), "mean"))
    assert math.isnan(map_of.shown(row(0.994, 0.993, 0.995), "mean"))
    assert math.isnan(map_of.shown(row(math.nan, math.nan, math.nan), "mean"))


def test_a_row_is_paired_by_seed_and_what_a_policy_is_for_stands_beside_it() -> None:
    rng = np.random.default_rng(0)
    shape = (3, len(map_of.LOADS), 1 + len(map_of.ROWS), len(map_of.MEASURES))
    values = rng.uniform(0.1, 0.9, shape)
    values[:, 0, 0, 3] = 0  # at the first load fcfs misses no deadline
    table = map_of.table([values.tolist()], map_of.PLACES[:1])
    last = {row["policy"]: row for row in table[table.load == map_of.LOADS[-1]].to_dict("records")}
    own, base = values[:, -1, len(map_of.ROWS)], values[:, -1, 0]  # edf is the last row
    assert last["edf"]["mean"] == round(paired_ratio(own[:, 0], base[:, 0]).mean, 3)
    assert last["edf"]["aim"] == round(own[:, 3].mean() / base[:, 3].mean(), 3)
    light = values[:, -1, len(map_of.ROWS) - 1, 2], values[:, -1, 0, 2]
    assert last["vtc"]["aim"] == round(paired_ratio(*light).mean, 3)
    assert math.isnan(last["sjf"]["aim"])
    first = table[(table.policy == "edf") & (table.load == map_of.LOADS[0])]
    assert first.aim.isna().all()


def test_workloads_have_the_lengths_that_were_asked_for() -> None:
    for place in map_of.PLACES[:12]:
        drawn = map_of.workload_of(place, 20_000, seed=1)
        output = drawn["output_tokens"]
        assert output.mean() == pytest.approx(map_of.MEAN_OUTPUT, rel=0.06)
        assert output.std() / output.mean() == pytest.approx(place.cv, rel=0.25)
        assert drawn["prompt_tokens"].mean() == pytest.approx(place.prompt_tokens, rel=0.03)
        engine = map_of.system_of(place).nodes[0].engine
        if place.kv == "tight":
            longest = int((drawn["prompt_tokens"] + output).max())
            assert engine.num_gpu_blocks is not None
            assert 16 * engine.num_gpu_blocks > longest
            filled = map_of.SEATS * (place.prompt_tokens + map_of.MEAN_OUTPUT) / 16
            assert engine.num_gpu_blocks < 0.5 * filled
        else:
            assert engine.num_gpu_blocks is None


def test_the_picture_says_each_ratio_in_its_cell(found: pd.DataFrame) -> None:
    figure = map_of.drawn(found)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    cells = len(map_of.PANEL_ROWS) * len(map_of.CVS) * len(map_of.SHOWN) * len(map_of.LOADS)
    assert len(texts) == cells
    corner = found[
        (found.timing == map_of.SHOWN_TIMING) & (found.prompt_tokens == 2048)
        & (found.kv == "tight") & (found.cv == 2) & (found.load == 1.2) & (found.policy == "sjf")
        & (found.lengths == "oracle")
    ]  # fmt: skip
    written = figure.axes[-1].texts[len(map_of.LOADS) - 1].get_text()
    assert written == f"{corner['mean'].item():.2f}".removeprefix("0")
