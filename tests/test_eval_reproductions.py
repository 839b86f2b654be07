"""Published tables in a short form: theirs as the papers print them, ours in the direction that
they claim, or in the one that its page says is ours."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from lengthwise.eval.cells import Cells
from lengthwise.eval.reproduce import PAPERS, about, reproduce
from lengthwise.eval.reproductions import hrrn as hrrn_module
from lengthwise.eval.reproductions import mc_sf, past_future, sarathi, table, tie, uniboost, vtc
from lengthwise.eval.reproductions.sources import Within
from lengthwise.eval.reproductions.table import NONE, Case, Reproduction, Row
from lengthwise.eval.reproductions.vllm_ltr import shuffled
from lengthwise.eval.source import Fixed, Spelled
from lengthwise.serving.timing import LinearTiming
from lengthwise.workload import Workload

PAGES = Path(__file__).resolve().parent.parent / "docs" / "papers"
# what makes a paper's runner short, and leaves its claims
SHORT: dict[str, dict[str, Any]] = {
    "vllm-ltr": {"requests": 900}, "ssjf": {"requests": 300}, "fastserve": {"requests": 400},
    "trail": {"requests": 1200}, "hrrn": {"turns": 4}, "clairvoyant": {"requests": 200},
    "uniboost": {"requests": 1500}, "vtc": {}, "tie": {"requests": 700},
    "sarathi": {"requests": 60}, "mc-sf": {"requests": 5, "instances": 2},
    "past-future": {"rounds": 4}, "pars": {"requests": 700},
    "melange": {"requests": 150, "settings": ("short (chat)",)},
}  # fmt: skip


@cache
def short(paper: str) -> Reproduction:
    """The paper's table on two seeds."""
    return reproduce(paper, seeds=2, processes=1, **SHORT[paper])


def ours(paper: str, setting: str, policy: str) -> float:
    """Our ratio in the one line of this setting, or of one that begins so."""
    rows = [line for line in short(paper).lines if line.policy == policy]
    (line,) = [line for line in rows if line.setting == setting] or [
        line for line in rows if line.setting.startswith(setting)
    ]
    assert line.our_ratio is not None
    return line.our_ratio.mean


@pytest.mark.parametrize("paper", PAPERS)
def test_each_table_says_where_theirs_stands_what_differs_and_why(paper: str) -> None:
    found = short(paper)
    assert found.source and found.why and found.differs
    number = re.compile(
        rf"{NONE}|not stated|no gain|((at|up) (best|most|to) )?-?\d[\d.,]*( to \d[\d.]*)?%?"
    )
    for line in found.lines:
        assert number.fullmatch(line.theirs), line
        assert number.fullmatch(line.their_ratio), line
        assert line.ours is not None and np.isfinite(line.ours.mean), line
    firsts = {line.setting: line for line in reversed(found.lines)}.values()
    assert all(line.our_ratio is None or line.our_ratio.mean == 1 for line in firsts)
    assert any(re.search(r"\d", line.theirs + line.their_ratio) for line in found.lines)


@pytest.mark.parametrize("paper", PAPERS)
def test_each_table_has_its_page(paper: str) -> None:
    text = (PAGES / f"{paper}.md").read_text("utf-8")
    found = short(paper)
    assert f"lengthwise reproduce {paper}\n" in text
    for said in (found.title, found.source, found.why, *found.differs):
        assert said in text, said
    printed = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert printed is not None
    for line in found.lines:  # theirs are printed as they stand here
        assert line.policy in printed[1] and line.their_ratio in printed[1], line
    assert f"| [{paper}]({paper}.md) | {about()[paper]} |" in (PAGES / "index.md").read_text()


def test_pages_are_of_papers() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == {*PAPERS, "index"}


# What papers claim, and what comes of it here


def test_ltr_gains_in_a_burst_and_one_tau_has_two_latencies() -> None:
    for setting in ("8B, ShareGPT", "8B, LMSYS", "70B, ShareGPT", "70B, LMSYS"):
        tau = next(line for line in short("vllm-ltr").lines
                   if line.setting == setting and line.policy.startswith("LTR"))  # fmt: skip
        assert tau.our_ratio is not None and tau.our_ratio.mean < 0.7
    pair = [line for line in short("vllm-ltr").lines if "one tau" in line.setting]
    fcfs, among_long, among_short = (line.ours.mean for line in pair if line.ours)
    assert 1.15 * among_long < among_short < fcfs


def test_both_orders_of_the_pair_have_one_tau() -> None:
    work = Spelled("sharegpt", {"requests": 1000, "arrivals": "burst"}).load(None, 3)
    truth = work["output_tokens"]
    for longer in (True, False):
        found = shuffled(longer, work, 3).predicted_tokens
        assert kendalltau(truth, found).statistic == pytest.approx(0.75, abs=0.03)
        assert sorted(found) == sorted(truth)
        median = np.median(truth)
        same = truth < median if longer else truth > median
        assert (found[same] == truth[same]).all()


def test_ssjf_gains_more_the_higher_the_load() -> None:
    gains = [ours("ssjf", f"load {load}", "oracle") for load in (0.5, 0.7, 0.9)]
    assert 1 > gains[0] > gains[1] > gains[2]
    assert ours("ssjf", "load 0.9", "oracle") < ours("ssjf", "load 0.9", "SSJF (tau 0.635)")


def test_fastserve_gains_where_few_run_at_once_and_by_swapping() -> None:
    assert ours("fastserve", "16 seats, load 1.2", "FastServe, swap") < 0.6
    assert ours("fastserve", "16 seats, load 1.2", "FastServe, swap") < 0.8 * ours(
        "fastserve", "16 seats, load 1.2", "FastServe, recompute"
    )
    assert ours("fastserve", "256 seats, load 0.95", "FastServe, swap") == pytest.approx(
        1, abs=0.02
    )
    assert ours("fastserve", "16 seats, load 1.2, mean latency", "FastServe, swap") > 1.05


def test_trail_gains_with_swapping_and_loses_where_contexts_are_computed_again() -> None:
    assert ours("trail", "mean latency, KV", "TRAIL, c = 0.8, swap") < 0.9
    assert ours("trail", "mean TTFT, KV", "TRAIL, c = 0.8, swap") < 0.57  # theirs
    recomputed = ours("trail", "mean latency, 256", "TRAIL, c = 0.8")
    assert recomputed > ours("trail", "mean latency, 256", "TRAIL, c = 0.8, swap")
    assert recomputed >= ours("trail", "mean latency, 256", "TRAIL, c = 0.2")


def test_hrrn_halves_the_mean_and_conversations_have_their_prefixes_left() -> None:
    assert ours("hrrn", "mean TTFT, new prompts", "HRRN") < 0.85
    assert ours("hrrn", "mean TTFT, conversations", "HRRN") < 0.6
    assert ours("hrrn", "P99 TTFT, conversations", "HRRN") < 1
    assert ours("hrrn", "P99 TTFT, new prompts", "HRRN") > 1


def test_a_conversation_s_prompt_begins_with_the_one_before() -> None:
    work = hrrn_module.Conversations(3).load(None, 1)
    for row in range(100, 300):
        parent = int(work["parent"][row])
        assert parent == row - 100
        before, now = work["prefix_hashes"][parent], work["prefix_hashes"][row]
        assert now[: len(before)] == before
        assert work["prompt_tokens"][row] > work["prompt_tokens"][parent] or len(now) == 234
        assert len(now) == work["prompt_tokens"][row] // 512


def test_clairvoyant_gains_on_a_serial_backend_alone() -> None:
    serial = ours("clairvoyant", "serial, 100 at once", "SJF, 96% of pairs")
    assert serial < 0.3 < ours("clairvoyant", "serial, 100 at once", "SJF, 62% of pairs") < 0.9
    assert ours("clairvoyant", "batching, load 0.74", "SJF, 96% of pairs") == pytest.approx(
        1, abs=0.02
    )


def test_a_boost_lies_between_first_come_and_shortest_first() -> None:
    tail = [ours("uniboost", "P99 latency", f"boost, gamma {gamma:g}/s") for gamma in (0.01, 1.0)]
    mean = [ours("uniboost", "mean latency", f"boost, gamma {gamma:g}/s") for gamma in (0.01, 1.0)]
    assert tail[1] < tail[0] < 1 <= mean[0] * 1.001 < mean[1] * 1.001
    seconds = np.array([1.0, 2.0])  # by hand: log(1 / (1 - exp(-s))) at gamma 1
    found = uniboost.boost(np.zeros(2), seconds, gamma=1.0, token_s=1.0)
    assert found == pytest.approx([-0.45868, -0.14541], abs=1e-5)


def test_vtc_serves_alike_and_fcfs_as_they_ask() -> None:
    by = {(line.setting, line.policy): line.ours.mean for line in short("vtc").lines if line.ours}
    assert by["overload, service ratio", "FCFS"] == pytest.approx(2, abs=0.05)
    assert by["overload, service ratio", "VTC"] == pytest.approx(1, abs=0.02)
    assert by["overload, largest gap", "VTC"] < vtc.BOUND < by["overload, largest gap", "FCFS"]
    assert by["dist_shift, service ratio", "VTC"] == pytest.approx(1, abs=0.02)


def test_dist_shift_has_its_phases() -> None:
    work = vtc.DistShift().load(None, 1)
    minute = (work["arrival_s"] // 60).astype(int)
    first, second = (work["tenant"] == f"client-{k}" for k in (0, 1))
    assert not (first & np.isin(minute, (1, 3))).any()
    for begin, end, rates in ((6, 10, (1, 1)), (11, 15, (0.5, 1.5))):
        inside = (minute >= begin) & (minute < end)
        for mine, rate in zip((first, second), rates, strict=True):
            assert (inside & mine).sum() == pytest.approx(60 * (end - begin) * rate, abs=2)


def test_tie_s_expectation_beats_one_sample_and_its_tail_does_not_pay() -> None:
    assert ours("tie", "s/token", "expectation alone") < ours("tie", "s/token", "LTR") < 0.8
    assert ours("tie", "s/token", "expectation alone") < ours("tie", "s/token", "TIE")
    assert ours("tie", "mean", "exact lengths") < ours("tie", "mean", "expectation alone") < 1


def test_tie_s_score_is_that_of_many_samples() -> None:
    source = tie.LogT(3)
    mu, sigma, _ = source.drawn(5)
    found = tie.foretold("0.5", 3, source.load(None, 5), 5).predicted_tokens
    drawn = np.random.default_rng(1).standard_t(3.5, 200_000)
    for row in range(3):
        lengths = np.minimum(np.exp(mu[row] + sigma[row] * drawn), 2048)
        worst = np.sort(lengths)[180_000:]
        assert found[row] == pytest.approx(lengths.mean() + 0.5 * worst.mean(), rel=0.02)


def test_sarathi_s_chunks_raise_the_capacity_under_a_strict_limit() -> None:
    for data in sarathi.DATA:
        assert ours("sarathi", f"{data}, strict", "chunks of 512") > 1.3


def test_mc_sf_is_near_the_optimum_and_nothing_is_below_it() -> None:
    values = {(line.setting, line.policy): line.ours for line in short("mc-sf").lines}
    for setting in mc_sf.THEIRS:
        own = [found.mean for name in mc_sf.NAMES if (found := values[setting, name])]
        assert min(own) >= 1 - 1e-9
        assert own[0] < 1.2 and own[0] <= own[2]


def test_the_engine_s_admission_by_the_peak_is_mc_sf_s() -> None:
    for seed in range(12):
        for arriving in (False, True):
            case = mc_sf.instance(seed, arriving, 6)
            by_hand = mc_sf.latency(*case, np.argsort(case[2], kind="stable"))
            assert mc_sf.engine_latency(*case, mc_sf.ENGINES[0]) == by_hand


def test_past_future_admits_more_than_the_careful_and_preempts_less_than_the_bold() -> None:
    for clients in past_future.LOADS[1:]:
        drawn = "Past-Future, drawn"
        assert ours("past-future", f"{clients} clients, goodput", "conservative (max_tokens)") < 0.5
        assert ours("past-future", f"{clients} clients, goodput", drawn) > 0.8
        assert ours("past-future", f"{clients} clients, goodput by TPOT", drawn) < 1
        assert ours("past-future", f"{clients} clients, preemptions a request", drawn) < 0.7


def test_pars_gains_by_what_it_ranks_right_and_nothing_where_no_queue_forms() -> None:
    for workload in ("lmsys-chat", "reasoning"):
        by_tau = [
            ours("pars", f"{workload}, burst", name)
            for name in ("oracle", "PARS: margin, BERT (tau 0.60)", "ten classes (tau 0.19)")
        ]
        assert by_tau == sorted(by_tau) and by_tau[-1] < 0.9
        assert ours("pars", f"{workload}, load 0.95", "oracle") == pytest.approx(1, abs=0.02)


def test_what_past_future_draws_is_longer_than_what_was_generated() -> None:
    given = past_future.Clients(4, 40).load(None, 0)
    made = past_future.drawn(given, 0)
    low, high = past_future.ANSWER
    assert ((made.predicted_tokens >= low) & (made.predicted_tokens <= high)).all()
    at = made.at("expected_remaining_tokens", slice(None), np.full(40, 3072.0))
    assert ((at >= 1) & (at <= high - 3072)).all()
    assert abs(at.mean() - (high - 3072) / 2) < 200  # uniform lengths stay so


def test_the_optimum_of_three_requests_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory of 6: two of (prompt 1, answer 2) end in round 2 together; the third, of 4, holds
    5 tokens at its end and waits for them."""
    monkeypatch.setattr(mc_sf, "MEMORY", 6)
    case = np.zeros(3, dtype=int), np.array([1, 1, 1]), np.array([2, 2, 4])
    assert mc_sf.hindsight(*case) == 2 + 2 + 6
    assert mc_sf.latency(*case, np.arange(3)) == 10
    assert mc_sf.latency(*case, np.array([2, 0, 1])) > 10


# What all of them share


def two(gap_s: float = 10.0) -> Workload:
    return Workload({"arrival_s": [0.0, gap_s], "prompt_tokens": [5, 5], "output_tokens": [3, 4]})


ONE = LinearTiming(base_s=1.0, num_gpu_blocks=100)


def test_rows_are_their_runs_and_ratios_are_to_the_first_of_the_setting() -> None:
    plain = Case(Fixed(two()), timing=ONE)
    rows = [
        Row("a", "x", "1", "1", plain),
        Row("a", "y", "1", "1", plain, lambda records, work: 2.0 * len(work)),
        Row("b", "x", "1", "1", plain, "makespan_s"),
    ]
    first, second, third = table.lines(rows, 2, 1)
    assert first.ours is not None and first.ours.mean == 3.5  # 3 and 4 iterations of a second
    assert second.our_ratio is not None and second.our_ratio.mean == pytest.approx(4 / 3.5)
    assert third.ours is not None and third.ours.mean == 14.0
    assert third.our_ratio is not None and third.our_ratio.mean == 1


def test_a_load_is_a_share_of_what_the_engine_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "saturation_rate", lambda work, system: 5.0)
    row = Row("a", "x", "1", "1", Case(Fixed(two()), timing=ONE, load=0.5),
              lambda records, work: work.rate)  # fmt: skip
    (line,) = table.lines([row], 1, 1)
    assert line.ours is not None and line.ours.mean == pytest.approx(2.5)


def test_a_seed_that_is_kept_is_not_run_again(tmp_path: Path) -> None:
    cells = Cells.open(tmp_path / "cells", {"paper": "x"})
    moved: list[tuple[int, int]] = []
    rows = [Row("a", "x", "1", "1", Case(Fixed(two()), timing=ONE))]
    found = table.lines(rows, 2, 1, lambda *step: moved.append(step), cells)
    assert moved == [(1, 2), (2, 2)] and len(cells) == 2
    cells.write("seed-1", [100.0])
    again = table.lines(rows, 2, 1, None, cells)
    assert found[0].ours is not None and again[0].ours is not None
    assert again[0].ours.mean == (found[0].ours.mean + 100.0) / 2


def test_what_is_longer_than_a_context_is_cut() -> None:
    source = Within(Spelled("sharegpt", {"requests": 500, "arrivals": "burst"}), 100, 300)
    whole, cut = source.source.load(None, 1), source.load(None, 1)
    assert cut["prompt_tokens"].max() == 100
    assert (cut["prompt_tokens"] + cut["output_tokens"]).max() == 300
    short_ones = whole["prompt_tokens"] + whole["output_tokens"] < 100
    assert short_ones.any()
    assert (cut["output_tokens"] == whole["output_tokens"])[short_ones].all()


def test_a_mix_is_never_dearer_than_one_type_and_saves_most_against_the_dearest() -> None:
    found = {line.policy: line.ours for line in short("melange").lines if "120 ms" in line.setting}
    least, most = found["least saved"], found["most saved"]
    alone = [found[f"{gpu} alone, mean"] for gpu in ("l4", "a10g", "a100", "h100")]
    assert least is not None and most is not None and least.mean >= -1e-6
    means = [one.mean for one in alone if one is not None]
    assert len(means) == 4 and means == sorted(means) and most.mean > 60
