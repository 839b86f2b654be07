"""Advice: its capacity beside what must come out, and its sentences beside the runs they are of."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import scipy.stats

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.eval.advise import advise, windows_of
from lengthwise.eval.compare import capacity_of, compare
from lengthwise.eval.ground import beyond_measured
from lengthwise.eval.setting import Setting
from lengthwise.serving import Engine
from lengthwise.serving.options import differences
from lengthwise.serving.timing.load import gpu_of
from lengthwise.training.cli import main
from lengthwise.training.commands.options import take_engine
from lengthwise.workload import Workload

FEW = Engine(max_num_seqs=8)


def trace(requests: int, rate: float, seed: int = 0) -> lw.Workload:
    rng = np.random.default_rng(seed)
    return lw.Workload(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate, requests)),
            "prompt_tokens": rng.integers(50, 400, requests),
            "output_tokens": rng.geometric(1 / 100, requests),
        },
        name="mine",
    )


def test_more_than_the_capacity_arrives_where_the_queue_grows():
    work = trace(2000, 10.0)
    capacity = capacity_of(work, Setting(FEW).load())

    def last_waits(share: float) -> float:
        run = lw.simulate(work.at_rate(share * capacity), engine=FEW)
        waits = (run.requests["scheduled_s"] - run.requests["arrival_s"]).to_numpy()
        return float(waits[-200:].mean() / waits[200:400].mean())

    assert last_waits(1.2) > 3  # it grows as long as the run lasts
    busy = lw.simulate(work.at_rate(3 * capacity), engine=FEW).summary()
    assert busy["throughput_requests_per_s"] == pytest.approx(capacity, rel=0.05)


def test_two_nodes_serve_twice_as_much():
    work = trace(2000, 10.0)
    one, two = (capacity_of(work, Setting(FEW, replicas=n).load()) for n in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.05)


def test_windows_of_a_trace_share_nothing():
    work = trace(1003, 5.0)
    cut = windows_of(work, 4)
    windows = [cut.load(None, seed)["prompt_tokens"] for seed in range(4)]
    whole = work["prompt_tokens"]
    assert [len(w) for w in windows] == [250] * 4
    np.testing.assert_array_equal(np.concatenate(windows), whole[:1000])
    assert cut.load(7.0, 1).rate == pytest.approx(7.0)


def test_what_is_said_is_what_a_comparison_finds():
    work = trace(3000, 6.0)
    capacity = capacity_of(work, Setting(FEW).load())
    found = advise(work.at_rate(0.97 * capacity), engine=FEW, slo={"ttft": 2.0})
    first, second, third = found.sentences
    assert first.startswith("A queue forms") and "are 97% of what 1 × h200/llama-3.1-8b" in first
    assert found.policy != "fcfs" and "--scheduler-cls" in found.command

    rate = found.rate
    by_hand = compare(
        work.at_rate(rate), ("fcfs", found.policy), ("noisy-oracle:tau=0.5",), engine=FEW, seeds=2,
        slo={"ttft": 2.0},
    )  # fmt: skip
    lengths = "none" if found.policy == "mlfq" else "noisy-oracle:tau=0.5"
    who = next(
        w for w in by_hand.contenders
        if (w.policy_name, w.predictor_name) == (found.policy, lengths)
    )  # fmt: skip
    ratio = by_hand.ratio(math.nan, who, "e2e_mean_s").mean
    told = re.search(r"mean latency to (\d+)%", second)
    assert told is not None and int(told[1]) == pytest.approx(100 * ratio, abs=0.6)
    p99 = by_hand.ratio(math.nan, who, "e2e_p99_s").mean
    assert f"a P99 latency of {p99:.0%} of fcfs's" in second
    assert "TTFT 2 s" in second and f"serve with {found.policy}" in third


def test_no_queue_is_no_reason():
    found = advise(trace(600, 0.5), engine=FEW)
    assert found.sentences[0].startswith("No queue forms")
    assert found.policy == "fcfs" and "leave the order as it is" in found.sentences[2]
    assert found.command.startswith("vllm serve MODEL    # leave the order as it is")


def test_too_much_traffic_needs_more_nodes_first():
    work = trace(1500, 6.0)
    capacity = capacity_of(work, Setting(FEW).load())
    found = advise(work.at_rate(3.1 * capacity), engine=FEW)
    assert found.sentences[0].startswith("More arrives than can be served")
    assert "4 times as many are needed first" in found.sentences[0]  # ceil(3.1 / 0.8)
    assert found.rate == pytest.approx(0.95 * capacity, rel=0.01)  # what pays is judged there


def test_traffic_without_a_rate_is_refused():
    work = trace(10, 1.0)
    with pytest.raises(InputError, match="has no rate"):
        advise(work.replace(arrival_s=np.zeros(10)))


def test_an_engine_like_the_server_s_defaults():
    # vllm/engine/arg_utils.py, get_batch_defaults: 70 GiB and no A100
    large, small = Engine.like("vllm-serve", "h100"), Engine.like("vllm-serve", "l40s")
    assert (large.max_num_seqs, large.max_num_batched_tokens) == (1024, 8192)
    assert (small.max_num_seqs, small.max_num_batched_tokens) == (256, 2048)
    assert Engine.like("vllm-serve", "a100") == small
    assert large.async_scheduling and large.enable_prefix_caching
    few = Engine.like("vllm-serve", "h200", max_num_batched_tokens=512)
    assert few.max_num_seqs == 512  # no more seats than tokens
    old = Engine.like("vllm-serve", "h200", "0.26.0")
    assert old == dataclasses.replace(Engine.of_vllm("0.26.0"), **{
        name: getattr(large, name)
        for name in ("max_num_seqs", "max_num_batched_tokens", "async_scheduling",
                     "enable_prefix_caching")
    })  # fmt: skip
    for wrong in (
        ("vllm", "h200", None),
        ("vllm-serve", "h201", None),
        ("vllm-serve", "h200", "9"),
    ):
        with pytest.raises(InputError, match="unknown"):
            Engine.like(*wrong)


def test_the_gpu_of_a_timing():
    names = ("h200/llama-3.1-8b", "roofline:l40s/llama-3.1-8b", "roofline:2xh100/llama-3.1-70b",
             "h200/llama-3.1-8b@0.26.0", "live:tiny@cpu")  # fmt: skip
    assert [gpu_of(name) for name in names] == ["h200", "l40s", "h100", "h200", None]


def test_a_profile_used_beyond_what_it_measured_is_said_once():
    system = Setting(Engine.like("vllm-serve", "h200"), replicas=3).load().system("fcfs")
    (line,) = beyond_measured(system)
    assert "up to 512 sequences and 2,048 tokens" in line and "1,024 and 8,192" in line
    assert not beyond_measured(Setting(Engine()).load().system("fcfs"))


def test_contexts_longer_than_were_measured_are_said():
    def said(tokens: int) -> int:
        columns = {"arrival_s": [0.0], "prompt_tokens": [tokens], "output_tokens": [1]}
        return len(beyond_measured(Setting(Engine()).load().system("fcfs"), Workload(columns)))

    assert (said(100), said(10_000_000)) == (0, 1)


def test_two_requests_have_a_rate_and_one_has_none(monkeypatch):
    def asked(*given):
        raise KeyError  # what it is asked for next

    monkeypatch.setattr("lengthwise.eval.advise.capacity_of", asked)
    for count, error in ((1, InputError), (2, KeyError)):
        columns = {"arrival_s": np.arange(count), "prompt_tokens": [9] * count}
        with pytest.raises(error):
            advise(Workload({**columns, "output_tokens": [9] * count}))


def test_each_command_that_has_an_engine_can_be_like_one():
    given = dict.fromkeys(field.name for field in dataclasses.fields(Engine))
    like = {**given, "like": "vllm-serve"}
    server = Engine.like("vllm-serve", "h200")
    assert take_engine({**like}) == take_engine({**like, "timing": "h200/qwen2.5-14b"}) == server
    small = take_engine({**like, "max_num_seqs": 64}, timing="roofline:l40s/llama-3.1-8b")
    assert small == Engine.like("vllm-serve", "l40s", max_num_seqs=64)
    with pytest.raises(InputError, match="which --timing live:tiny doesn't name"):
        take_engine({**like, "timing": "live:tiny"})
    with pytest.raises(InputError, match="one kind of GPU"):
        take_engine({**like}, nodes="2xh200/llama-3.1-8b")


def test_what_an_engine_chose_is_said(capsys):
    given = dict.fromkeys(field.name for field in dataclasses.fields(Engine))
    take_engine({**given, "like": "vllm-serve", "max_num_seqs": 64}, timing="h200/llama-3.1-8b")
    assert capsys.readouterr().err == (
        "note: like vllm-serve on h200: max_num_seqs 64, max_num_batched_tokens 8,192, "
        "enable_prefix_caching, async_scheduling\n"
    )
    assert differences(Engine()) == ""
    assert differences(Engine(enable_chunked_prefill=False)) == "no enable_chunked_prefill"


def test_another_engine_is_refused_by_name():
    with pytest.raises(InputError, match="can't be like sglang: SGLang runs prefill"):
        Engine.like("sglang", "h200")
    with pytest.raises(SystemExit) as end:
        main(["simulate", "azure-conv-2023", "--like", "sglang"])
    assert end.value.code == 2


def test_by_command(tmp_path, capsys):
    from lengthwise.training.cli import main

    out = tmp_path / "advice"
    with pytest.raises(SystemExit) as ended:
        main(["advise", "azure-conv-2023", "--requests", "600", "--max-num-seqs", "16", "--seeds",
              "2", "--json", "--processes", "1", "--out", str(out)])  # fmt: skip
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["sentences"]) == 3 and found["capacity_requests_per_s"] > 0
    assert set(found["mean_latency_ratio_by_tau"]) <= {"0.3", "0.5", "0.7", "1"}
    page = (out / "report.html").read_text()
    assert found["sentences"][0].split(":")[0] in page and (out / "runs.parquet").exists()
    for wrong, said in (
        (["--like", "vllm-serve", "--nodes", "2xh200/llama-3.1-8b"], "--like"),
        (["--failures", "x.yaml"], "failures"),
        (["--like", "sglang"], "vllm-serve"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["advise", "azure-conv-2023", "--requests", "50", *wrong])
        assert ended.value.code == 2 and said in capsys.readouterr().err


def geometric(values, to, confidence=0.95):
    """A paired ratio by scipy: its mean, and the ends of its interval."""
    logs = np.log(values / to)
    half = scipy.stats.t.ppf(0.5 + confidence / 2, len(logs) - 1) * scipy.stats.sem(logs)
    return np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])


@pytest.mark.parametrize("share", [0.3, 0.96, 1.3])
def test_the_three_sentences_hold_on_a_full_grid(share):
    """Every policy with every predictor at every load, run again; each claim is looked up there."""
    work = trace(2500, 6.0, seed=3)
    capacity = capacity_of(work, Setting(FEW).load())
    work = work.at_rate(share * capacity)
    found = advise(work, engine=FEW, slo={"ttft": 2.0})
    first, second, third = found.sentences
    lengths = tuple(f"noisy-oracle:tau={tau}" for tau in (0.3, 0.5, 0.7))
    given = {"policies": ("fcfs", "sjf", "srtf+guard", "mlfq"), "predictors": lengths,
             "engine": FEW, "slo": {"ttft": 2.0}}  # fmt: skip
    own = compare(work, seeds=2, **given).runs
    rates = [float(f"{part * capacity:.3g}") for part in (0.8, 0.95, 1.1)]
    runs = compare(windows_of(work, 5), rates=rates, seeds=5, **given).runs

    def queue(at):
        fcfs = at[at.policy == "fcfs"]
        return fcfs.wait_mean_s.mean() > 0.05 * fcfs.e2e_mean_s.mean()

    # the first: whether a queue forms, and where the first one does
    assert f"are {share:.0%} of what 1 × h200/llama-3.1-8b can serve" in first
    said = next(
        w for w in ("No queue forms", "A queue forms", "More arrives") if first.startswith(w)
    )
    assert said == ("More arrives" if share > 1 else ("A" if queue(own) else "No") + " queue forms")
    forming = [rate for rate in rates if queue(runs[runs.rate == rate])]
    told = re.search(r"one forms at (\d+(?:\.\d+)?)", first)
    if said == "No queue forms":
        assert told is not None and float(told[1]) == pytest.approx(forming[0], rel=0.005)

    # the second: at the load that is judged, what the best policy has, and what it costs
    judged = own if said == "A queue forms" else runs[runs.rate == rates[1]]
    table = {
        key: part.sort_values("seed").reset_index(drop=True)
        for key, part in judged.groupby(["policy", "predictor"])
    }
    fcfs = table["fcfs", "none"]

    def ratio(policy, predictor, metric="e2e_mean_s"):
        return geometric(table[policy, predictor][metric], fcfs[metric])

    able = [("sjf", lengths[1]), ("srtf+guard", lengths[1]), ("mlfq", "none")]
    sure = [who for who in able if ratio(*who)[2] < 0.98 and ratio(*who, "e2e_p99_s")[0] <= 1.5]
    best = min(sure or able, key=lambda who: ratio(*who)[0])
    mean, _, high = ratio(*best)
    pays = high < 0.98
    assert pays != second.startswith("Nothing is gained for sure")
    if pays:
        assert f"takes the mean latency to {mean:.0%}" in second and best[0] in second
        p99 = ratio(*best, "e2e_p99_s")[0]
        assert f"it costs a P99 latency of {p99:.0%} of fcfs's" in second
        waits = [float(x) for x in re.findall(r"([\d.]+) s in place of ([\d.]+) s", second)[0]]
        mine = table[best]
        assert waits == pytest.approx([mine.wait_max_s.mean(), fcfs.wait_max_s.mean()], rel=0.005)
        goods = [float(x) for x in re.findall(r"from ([\d.]+) to ([\d.]+) requests/s", second)[0]]
        name = "goodput_requests_per_s"
        assert goods == pytest.approx([fcfs[name].mean(), mine[name].mean()], rel=0.005)
    else:
        assert f"has {mean:.0%}" in second

    # the third: which predictor is enough, and whether to serve so
    policy = best[0] if best[0] != "mlfq" else "srtf+guard"
    for tau, predictor in zip((0.3, 0.5, 0.7), lengths, strict=True):
        assert f"τ {tau} {ratio(policy, predictor)[0]:.2f}" in third
    assert f"exact lengths {ratio(policy, 'oracle')[0]:.2f}" in third
    if best[0] != "mlfq" and pays:
        enough = next(t for t, p in zip((0.3, 0.5, 0.7), lengths, strict=True)
                      if ratio(policy, p)[2] < 0.98)  # fmt: skip
        assert f"A predictor of Kendall τ {enough} is enough" in third
    assert ("serve with" in third) == (pays and said != "No queue forms")
    assert found.command.startswith("vllm serve MODEL --scheduler-cls") == ("serve with" in third)
