"""Corners by hand: a limit just met, the least size, who is told nothing, what is left undone."""

from __future__ import annotations

import asyncio
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest

from lengthwise.context import Context
from lengthwise.errors import InputError
from lengthwise.eval import (
    advise,
    alike,
    calibrate,
    capacity,
    charts,
    evaluate_child,
    prediction_windows,
    search,
    trace,
)
from lengthwise.eval.bound import _Needs
from lengthwise.eval.compare import PIECES, Comparison, Contender, _pieces, compare
from lengthwise.eval.latency import LatencyModel
from lengthwise.eval.plan import compare_plan, tuning_plan
from lengthwise.eval.source import Fixed
from lengthwise.eval.terminal import papers_view
from lengthwise.picoseconds import PS
from lengthwise.policies import load_policy
from lengthwise.policies.bundle import read_bundle, write_bundle
from lengthwise.policies.formula import Node, feature, number
from lengthwise.policies.formula_file import source as file_text
from lengthwise.policies.plugins import litellm, transformers
from lengthwise.policies.plugins.gateways import picker
from lengthwise.policies.plugins.gateways.waiting import Waiting
from lengthwise.policies.plugins.litellm import RoutingStrategy
from lengthwise.policies.plugins.scorer import Scorer
from lengthwise.policies.plugins.vllm import driver
from lengthwise.policies.plugins.vllm.lengths import Lengths
from lengthwise.policies.units import unit_of_feature
from lengthwise.serving import Engine, Fail
from lengthwise.serving.timing import LinearTiming
from lengthwise.serving.workload import Prompts
from lengthwise.training import doctor, evolution, judging
from lengthwise.training import policy as training
from lengthwise.training.commands import calibrate as calibrating
from lengthwise.training.commands import folders, show
from lengthwise.training.masked_dqn import MaskedDQN
from lengthwise.training.predictor import evaluate_predictor, train_predictor
from lengthwise.training.sources import together
from lengthwise.workload import Workload
from tests.engines.odd_requests import litellm_modules

TIMING = LinearTiming(base_s=0.01, per_sequence_s=0.001, num_gpu_blocks=1000)


def requests(n: int) -> Workload:
    place = np.arange(n)
    return Workload({
        "arrival_s": 0.1 * place, "prompt_tokens": 5 + place % 7, "output_tokens": 2 + place % 11,
    }, name="some")  # fmt: skip


@pytest.fixture(scope="module")
def compared() -> Comparison:
    return compare(
        requests(20), ["sjf"], ["oracle"], [9.0, 30.0], 1, Engine(max_num_seqs=2), timing=TIMING
    )


# Evaluation


@pytest.mark.parametrize(("policies", "predictors", "said"), [
    ("srtf srtf", "oracle p", "all predicted lengths gave one order"),
    ("fcfs srtf", "none oracle", "nothing was preempted by score"),
    ("sjf srtf", "oracle oracle", "nothing was preempted by score"),
])  # fmt: skip
def test_rows_are_alike_for_what_differs_in_them(policies: str, predictors: str, said: str) -> None:
    named = zip(policies.split(), predictors.split(), strict=True)
    told = alike._reason([Contender(one, other, one, other) for one, other in named])
    assert said in told.replace("no preemption paid", "nothing was preempted by score")
    assert ("preempt" in told) == ("preempt" in said)


def test_a_session_s_trace_and_a_short_one_run_whole_on_two_seeds() -> None:
    whole: Any = {"parent": None}
    assert advise._native(whole, 5) == (Fixed(whole), 2)
    source, seeds = advise._native(requests(30), 5)
    assert (len(source.load(None, 0)), seeds) == (30, 2)


@pytest.mark.parametrize(("tokens", "pieces"), [
    (0, []), (7, [7]), (10, [10]), (20, [10, 10]), (23, [10, 10, 3]),
])  # fmt: skip
def test_a_prompt_is_computed_in_whole_budgets_and_a_rest(tokens: int, pieces: list[int]) -> None:
    def iteration_ps(batch: Any) -> int:
        assert (batch.prefill_seqs, batch.decode_seqs, batch.context_tokens) == (1, 3, 8)
        assert batch.chunk_context == batch.prefill_tokens * max(9, batch.prefill_tokens) // 2
        return (100 + int(batch.prefill_tokens)) * PS

    model: Any = SimpleNamespace(
        engine=Engine(max_num_batched_tokens=13, max_num_seqs=9),
        _clock=SimpleNamespace(iteration_ps=iteration_ps),
    )
    took = LatencyModel._prefill(model, tokens, 9, 3, 8.2)
    assert took == sum(100 + piece for piece in pieces)


def test_a_plan_says_what_it_would_run() -> None:
    source, engine = Fixed(requests(40)), Engine(max_num_seqs=2)
    system: dict[str, Any] = {"timing": TIMING, "replicas": 1}
    rows, what, *rest = compare_plan(
        source, ["sjf", "mlfq"], ["oracle"], (9.0, 12.0, 20.0), 2, engine, **system
    )
    assert rows.startswith("would compare 3 rows: fcfs, sjf · oracle, mlfq")
    assert what == "on some (40 requests) at 9, 12, 20 requests/s, 2 seeds: 6 cells, 18 runs"
    assert len(rest) == 1
    *_, told = compare_plan(source, ["sjf"], ["oracle"], "auto", 2, engine, **system)
    assert told.startswith("rates: 10 (its own), ")
    runs = {}
    for rates in ("auto", (9.0,), (9.0, 12.0, 20.0), ()):
        said = tuning_plan(source, ["mlfq", "fcfs"], (), rates, 1)  # type: ignore[arg-type]
        assert said.startswith("before that, would tune mlfq ")
        runs[rates] = int(said.rpartition(", ")[2].split()[0])
    assert runs["auto"] == runs[(9.0,)] == runs[()] == runs[(9.0, 12.0, 20.0)] / 3
    assert runs["auto"] % 4 == 0


def test_an_interval_holds_its_ends() -> None:
    told: Any = SimpleNamespace(interval=lambda level: (np.array([1.0, 2, 3, 4]), np.full(4, 5.0)))
    assert prediction_windows._coverage(told, np.array([1.0, 5.0, 2.9, 5.1])) == 0.5


def test_a_search_has_a_budget_for_its_beginning_and_one_brood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "_Evolution", lambda *rest: SimpleNamespace(run=lambda: "ran"))
    seeds: Any = {"a": None, "b": None}
    enough = 3 * (2 + search.BROOD)
    trials: Any = [None, None, None]
    assert search.search(seeds, trials, {}, budget=enough) == "ran"  # type: ignore[comparison-overlap]
    with pytest.raises(InputError, match=f"budget of {enough - 1} runs"):
        search.search(seeds, trials, {}, budget=enough - 1)


def test_papers_are_named_beside_what_is_reproduced() -> None:
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(papers_view({"one": "its second table"}))
    head = next(filter(str.strip, console.export_text().splitlines()))
    assert head.split() == ["paper", "what", "is", "reproduced"]


def test_pieces_of_a_workload_are_whole_and_as_far_apart() -> None:
    whole = requests(10 * PIECES + 3)
    taken = _pieces(whole, 3 * PIECES + 2)
    assert np.allclose(taken["arrival_s"].reshape(PIECES, 3) * 10,
                       10 * np.arange(PIECES)[:, None] + np.arange(3))  # fmt: skip
    assert _pieces(whole, len(whole)) is whole


def test_a_prompt_of_one_token_is_decoded_if_that_is_cheaper() -> None:
    zeros = np.zeros(3)
    needs = _Needs(np.array([1.0, 2.0, 3.0]), zeros, zeros, np.array([0.0, 0.0, 4.0]))
    assert needs.first_s(a=1.0, e=10.0, b=2.0, f=0.5).tolist() == [2.5, 12.0, 17.0]
    assert needs.first_s(a=1.0, e=1.0, b=2.0, f=0.5).tolist() == [2.0, 3.0, 8.0]


def test_an_iteration_ends_where_its_node_fails() -> None:
    second = 10**12
    batch = SimpleNamespace(prefill_seqs=1, decode_seqs=2, prefill_tokens=9, context_tokens=4)
    steps: Any = [
        (1, SimpleNamespace(start_ps=a * second, end_ps=b * second, batch=batch, preempted=(),
                            scheduled={}))
        for a, b in ((0, 2), (2, 5), (5, 6), (8, 9))
    ]  # fmt: skip
    system: Any = SimpleNamespace(events=(Fail("b", 3.0, 7.0),), names=("a", "b"))
    records: Any = SimpleNamespace(finish_ps=np.array([9 * second]))
    down, *found = trace.iterations(system, records, steps)
    assert [(one.start_ps, one.end_ps) for one in found] == [
        (0, 2 * second), (2 * second, 3 * second), (8 * second, 9 * second),
    ]  # fmt: skip
    assert (down.start_ps, down.end_ps) == (3 * second, 7 * second)


@pytest.mark.parametrize(("told", "named"), [
    ((True, True), []), ((True, False), ["CPU"]), ((False, True), ["GPU"]),
])  # fmt: skip
def test_who_is_hardly_told_is_named(
    told: tuple[bool, bool], named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, cpu = (calibrate.Factor(1.0, 0.9, 1.2, one) for one in told)

    class Fit:
        def __init__(self, *given: Any) -> None: ...

        def search(self, *given: Any) -> Any:
            return SimpleNamespace(gpu=gpu, cpu=cpu, values=(1.0, 1.0))

        def met(self, *given: Any) -> tuple[int, int]:
            return 10, 5

        def rows(self, *given: Any) -> list[Any]:
            return []

    monkeypatch.setattr(calibrate, "_Fit", Fit)
    found = calibrate.calibrate([], "h200/llama-3.1-8b", Engine())
    hardly = [line for line in found.notices if "hardly tell" in line]
    assert [line.split("the ")[1].split("'")[0] for line in hardly] == named


def test_points_of_a_distribution_lie_at_the_share_that_they_tell(compared: Comparison) -> None:
    from matplotlib.figure import Figure

    told = 0
    for panel in charts.latency_cdf(compared).panels:
        for point in panel.draw(Figure().subplots()):
            assert point.text.split("\n")[1].startswith(f"{round(100 * point.y)}% of requests")
            told += 1
    assert told >= 8


def test_a_bound_is_drawn_where_one_is_known(
    compared: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    for means, drawn in (((math.nan, 1.0), True), ((math.nan, math.nan), False)):
        at = dict(zip(compared.rates, means, strict=True))
        monkeypatch.setattr(
            Comparison, "bound", lambda self, rate, at=at: SimpleNamespace(mean=at[rate])
        )
        series = [one.key for one in charts.latency_by_rate(compared).series]
        assert ("bound" in series) == drawn


def test_a_latency_is_above_0_where_all_is_free() -> None:
    model = LatencyModel(Engine(max_num_seqs=4), LinearTiming(base_s=0.0, num_gpu_blocks=100))
    seen: Any = SimpleNamespace(
        running_requests=1, waiting_requests=0, kv_utilization=0.0, prompt_tokens=5, role="",
        cached_share=0.0, generated_tokens=1, prefill_tokens=0, decode_tokens=3,
    )  # fmt: skip
    assert model.plain(seen) == (1e-6, 1e-6)


@pytest.mark.parametrize(
    ("seeds", "tolerance"), [(0, 0.5), (1, 0.0), (1, 1.0), (2, -0.1), (-1, 0.5), (0, 2.0)]
)
def test_a_capacity_is_of_a_seed_and_within_a_share(seeds: int, tolerance: float) -> None:
    with pytest.raises(InputError, match="1 seed or more and a tolerance between 0 and 1"):
        capacity.capacity(
            requests(4), "fcfs", {"e2e_mean": 1.0}, seeds=seeds, tolerance=tolerance, timing=TIMING
        )


def test_a_program_gets_as_much_as_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    set_: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "setrlimit", lambda what, most: set_.update({what: most}))
    monkeypatch.setattr(resource, "getrlimit", lambda what: (0, resource.RLIM_INFINITY))
    monkeypatch.setattr(evaluate_child, "ctypes", SimpleNamespace())
    evaluate_child._limit(300, 2.5)
    assert set_[resource.RLIMIT_CPU] == (4, 4)  # whole seconds, and one for the parent's word
    assert set_[resource.RLIMIT_AS] == (300 * 2**20,) * 2
    assert set_[resource.RLIMIT_CORE] == (0, 0)


# Training


def test_a_line_spells_switches_as_they_are() -> None:
    @click.command()
    @click.argument("names", nargs=-1)
    @click.option("--fast/--slow", default=None)
    @click.option("--dry", is_flag=True)
    @click.option("--rate")
    def command(**given: Any) -> None: ...

    def line(**given: Any) -> list[str]:
        return folders._line(command, given)

    assert line(fast=True, dry=True) == ["--fast", "--dry"]
    assert line(fast=False, dry=False) == ["--slow"]
    assert line(names=("a", "b"), rate="3") == ["a", "b", "--rate", "3"]


def test_what_is_left_is_told_by_the_pace_since_the_count_began(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, say = [100.0], []
    waits = iter([False, True])
    event = SimpleNamespace(wait=lambda wait_s: next(waits), set=lambda: None)
    thread = SimpleNamespace(start=lambda: None, join=lambda: None)
    made = lambda target, daemon: say.append(target) or thread  # noqa: E731
    monkeypatch.setattr(show, "threading", SimpleNamespace(Event=lambda: event, Thread=made))
    monkeypatch.setattr(show, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with show._lines("work") as moved:
        now[0] = 104.0
        moved(10, 30)  # what was kept of a run before
        now[0] = 114.0
        moved(15, 30)
        say[0]()
    assert capsys.readouterr().err == "work: 15 of 30 done, 14 s, about 30 s left\n"


def test_what_the_package_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=1.26,<3", 'lengthwise[rl]; extra == "all"', "torch (>= 2.4) ; extra == 'rl'"]
    monkeypatch.setattr(doctor, "metadata", SimpleNamespace(
        requires=lambda name: asked, PackageNotFoundError=LookupError))  # fmt: skip
    assert doctor._requirements() == {"": {"numpy": ">=1.26,<3"}, "rl": {"torch": ">=2.4"}}


@pytest.mark.parametrize(("wrong", "verdict"), [("", "ok"), ("is another's", "note")])
def test_a_cache_that_is_not_trusted_is_said(
    wrong: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "cache", SimpleNamespace(trusted=lambda: (tmp_path, wrong)))
    first = next(doctor._caches())
    assert first.verdict == verdict
    assert first.said == (
        f"{tmp_path} {wrong}: no machine code is kept" if wrong else f"{tmp_path}"
    )


def test_a_worker_runs_the_episode_that_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolution, "_episodes", [])
    monkeypatch.setattr(evolution, "costs_of", lambda episode, policy: [episode, policy])
    policy: Any = "policy"
    evolution._give(["first", "second"])  # type: ignore[list-item]
    assert evolution._one((policy, 1)) == ["second", "policy"]


def test_cells_of_an_evaluation_are_counted_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    monkeypatch.setattr(judging, "once", lambda cells, name, make: named.append(name) or make())
    told: list[tuple[int, int]] = []
    work = judging._Work(None, lambda done, total: told.append((done, total)), 3)
    for _ in range(4):
        assert work._kept(lambda: {"a": 1}) == {"a": 1}
    assert (named, told) == (["0", "1", "2", "3"], [(1, 3), (2, 3), (3, 3), (4, 4)])


def test_nothing_follows_the_end_of_an_episode() -> None:
    import torch

    values = torch.tensor([[1.0, 5.0], [2.0, 7.0]])
    learner: Any = SimpleNamespace(
        q_net=lambda seen: -values, q_net_target=lambda seen: values, gamma=0.5
    )
    replay = SimpleNamespace(
        next_observations=None, dones=torch.tensor([[0.0], [1.0]]), discounts=None,
        rewards=torch.tensor([[10.0], [20.0]]),
    )  # fmt: skip
    assert MaskedDQN.targets(learner, replay).flatten().tolist() == [10.5, 20.0]


TINY: dict[str, Any] = {
    "workload": requests(30), "timing": TIMING, "n_envs": 2, "eval_seeds": 1, "progress": False,
    "settings": {"rollout": 12, "batch_size": 12, "n_epochs": 1}, "algo": "ppo",
    "env_options": {"requests": 12, "replicas": 2},
}  # fmt: skip


class Called(Exception):
    """Training came so far."""


def test_a_run_is_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def opened(folder: Path, config: dict[str, Any], **given: bool) -> None:
        kept[:] = [folder.name, config, given]

    monkeypatch.setattr(training, "check_run", opened)
    run = training.train_policy(
        out=tmp_path / "r",
        steps=24,
        guide="jsq",
        force=True,
        dry_run=True,
        seed=5,
        **{**TINY, "settings": {"rollout": 12, "batch_size": 12, "clone_epochs": 1}},
    )
    assert (run.evaluations, kept[0], kept[2]) == ([], "r", {"resume": False, "force": True})
    asked = {"guide": "jsq", "steps": 24, "n_envs": 2, "seed": 5, "algo": "ppo"}
    assert asked.items() <= kept[1].items()
    kept.clear()
    training.train_policy(out=tmp_path / "r", steps=24, dry_run=True, **TINY)
    assert "guide" not in kept[1]


@pytest.mark.parametrize(
    ("given", "asked"), [({}, (5, 5)), ({"eval_every": 9, "save_every": 4}, (9, 4))]
)
def test_a_run_is_saved_and_judged_twenty_times_or_as_asked(
    given: dict[str, int], asked: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch  # noqa: F401

    seen: list[dict[str, Any]] = []

    def watch(**rest: Any) -> None:
        seen.append(rest)
        raise Called

    monkeypatch.setattr(training, "Watch", watch)
    with pytest.raises(Called):
        training.train_policy(out=tmp_path / "r", steps=119, **TINY, **given)
    found = seen[0]["evaluate_every"], seen[0]["save_every"]
    assert found == asked
    assert all(type(one) is int for one in found)


def answers(n: int, cut: int = 0, **columns: Any) -> Prompts:
    texts = np.array([f"question {k} of many" for k in range(n)], object)
    return Prompts(
        prompt=texts, prompt_tokens=np.full(n, 5), output_tokens=np.arange(n) + 3,
        censored=np.arange(n) < cut, model=None, name="some", notices=(),
        context=Context(**columns) if columns else None,
    )  # fmt: skip


def test_a_predictor_needs_data_and_two_whole_answers() -> None:
    with pytest.raises(InputError, match="no data to train on"):
        train_predictor([])
    with pytest.raises(
        InputError, match="metrics need 2 whole answers; the all split has 1, and 2"
    ):
        evaluate_predictor("prompt-length", answers(3, cut=2))
    found = evaluate_predictor("prompt-length", answers(4, cut=2))
    assert found["test"]["rows"] == 4


def test_what_one_source_lacks_is_missing_by_its_kind() -> None:
    parts = [answers(2, tenant=np.array(["a", "b"], object)), answers(3, max_tokens=np.ones(3))]
    rows, source = together(parts)
    assert rows.context is not None and rows.context.tenant is not None
    assert rows.context.tenant.tolist() == ["a", "b", None, None, None]
    limits = np.asarray(rows.context.max_tokens, float)
    assert np.isnan(limits[:2]).all() and limits[2:].tolist() == [1.0, 1.0, 1.0]
    assert source.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(("rate", "seconds", "sent"), [
    (2.0, 49.5, None), (2.0, 50.0, 100), (1.0, 100.4, 100), (0.99, 100.0, None), (5.0, 30.0, 150),
])  # fmt: skip
def test_a_hundred_requests_are_the_fewest_to_calibrate_on(
    rate: float, seconds: float, sent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measured(url: str, model: Any, workload: Workload, *rest: Any) -> int:
        return len(workload)

    monkeypatch.setattr("lengthwise.eval.measure_server.measure_server", measured)

    def run() -> Any:
        return calibrating._measured("http://x", None, "", Engine(), rate, seconds, 0)

    if sent is None:
        with pytest.raises(InputError, match="are 99 requests; 100 are the fewest"):
            run()
    else:
        assert run() == sent


@pytest.mark.parametrize(("verdicts", "ok"), [
    ((), True), (("ok", "note", "absent"), True), (("ok", "wrong"), False), (("wrong",) * 2, False),
])  # fmt: skip
def test_all_is_well_if_nothing_is_wrong(verdicts: tuple[Any, ...], ok: bool) -> None:
    found = [doctor.Finding("a", "b", "c", one) for one in verdicts]
    assert doctor.as_json(found)["ok"] is ok


# Policies and plugins


@pytest.mark.parametrize(("interval_s", "timeout_s"), [(0.05, 0.2), (1.0, 1.0), (9.0, 2.0)])
def test_an_endpoint_answers_within_its_interval(
    interval_s: float, timeout_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def scraper(*args: Any, **more: Any) -> None:
        given.extend((args, more))
        raise Called

    monkeypatch.setattr(picker, "Scraper", scraper)
    made: Any = SimpleNamespace(
        options=SimpleNamespace(metrics_path="/m", scrape_interval_s=interval_s)
    )
    with pytest.raises(Called):
        asyncio.run(picker.Picker.__aenter__(made))
    assert given == [("/m",), {"timeout_s": timeout_s}]


@pytest.mark.parametrize("body", [b"", b"[1]", b"7", b"null", b'"text"', b"{", b"[" * 9000])
def test_a_body_that_is_no_call_is_a_call_without_words(body: bytes) -> None:
    call, priority, due = picker._read(body, {"x-request-id": "r"})
    assert (bool(call.text), bool(call.tokens), priority) == (False, False, 0.0)
    assert due(100.0) == math.inf


def test_who_waits_keeps_the_order_of_arrival_if_a_score_is_none() -> None:
    rows = [SimpleNamespace(features=lambda now_s, k=k: {"x": k}) for k in (5.0, 1.0, 3.0)]

    def asked(scores: list[float]) -> list[int]:
        scorer = SimpleNamespace(names=("x",), many=lambda values, n: np.array(scores))
        waiting: Any = SimpleNamespace(_waiting=rows, _scorer=scorer)
        return [rows.index(one) for one in Waiting._by_score(waiting, 0.0)]  # type: ignore[arg-type]

    assert asked([5.0, 1.0, 3.0]) == [1, 2, 0]
    assert asked([5.0, math.nan, 3.0]) == asked([math.nan] * 3) == [0, 1, 2]


def test_what_lies_beyond_training_is_said_once() -> None:
    said: list[str] = []
    trained = SimpleNamespace(
        ranges=(("prompt_tokens", 1.0, 9.0),),
        notice=lambda who, seen: "beyond" if seen["prompt_tokens"][1] > 9 else "",
    )
    scorer: Any = SimpleNamespace(
        _trained_on=trained, score=SimpleNamespace(name="p"),
        _counters=SimpleNamespace(warn=lambda key, text: said.append(text)),
    )  # fmt: skip
    for most in (3.0, 10.0, 11.0):
        Scorer._look(scorer, {"prompt_tokens": np.array([1.0, most])})
    assert said == ["beyond"]


@pytest.mark.parametrize(("name", "unit"), [
    ("predicted_tokens", (1, 0, 0)), ("arrival_s", (0, 1, 0)), ("kv_utilization", (0, 0, 0)),
])  # fmt: skip
def test_units_of_features(name: str, unit: tuple[float, ...]) -> None:
    assert unit_of_feature(name) == unit


def test_units_of_features_are_those_that_they_spell() -> None:
    from lengthwise import features

    for name in features.FEATURES:
        up, _, down = features.get(name).unit.partition("/")
        found = [up.count("token") - down.count("token"), (up == "s") - (down == "s"),
                 up.count("request") - down.count("request")]  # fmt: skip
        assert list(unit_of_feature(name)) == found, name


@pytest.mark.parametrize(("format_", "ratio", "kept"), [(1, 0.0, False), (1, 3.0, True)])
def test_a_guard_of_no_ratio_said_nothing_in_the_first_format(
    format_: int, ratio: float, kept: bool, tmp_path: Path
) -> None:
    write_bundle(load_policy("sjf+guard:ratio=2"), tmp_path / "b")
    file = tmp_path / "b" / "policy.json"
    described = json.loads(file.read_text())
    described["format"] = format_
    described["guard"]["ratio"] = ratio
    file.write_text(json.dumps(described))
    found = read_bundle(tmp_path / "b")
    assert (found.guard is not None) == kept  # type: ignore[union-attr]


def test_numbers_of_one_unit_have_names_of_their_own(tmp_path: Path) -> None:
    tree = feature("predicted_tokens")
    for value in (3.0, 5.0, 7.0):
        tree = Node("+", (Node("min", (tree, number(value))), feature("prompt_tokens")))
    text = file_text(tree, "score", "of tokens", "tokens")
    (tmp_path / "p.py").write_text(text)
    found = load_policy(f"{tmp_path / 'p.py'}:score").score
    assert sorted(found.tunables.values()) == [3.0, 5.0, 7.0]


# Plugins, on fakes


def of_litellm(hook: Any = None) -> tuple[RoutingStrategy, list[dict[str, Any]]]:
    asked: list[dict[str, Any]] = []

    async def healthy(**given: Any) -> Any:
        asked.append(given)
        return [{"model_info": {"id": name}} for name in ("a", "b")]

    async def iterate(**rest: Any) -> Any: ...

    router = SimpleNamespace(
        async_get_healthy_deployments=healthy, _acompletion_streaming_iterator=iterate
    )
    if hook is not None:
        router.async_pre_routing_hook = hook
    with litellm_modules():
        return RoutingStrategy(router, "least-tokens"), asked


@pytest.mark.parametrize("says", [None, ("other", [{"role": "user", "content": "in its place"}])])
def test_litellm_s_plugins_may_say_another_model(says: Any) -> None:
    async def hook(**given: Any) -> Any:
        assert given["model"] == "m" and given["specific_deployment"] is False
        return says and SimpleNamespace(model=says[0], messages=says[1])

    messages = [{"role": "user", "content": "as it was asked"}]
    strategy, asked = of_litellm(hook)
    asyncio.run(strategy.async_get_available_deployment("m", messages=messages, request_kwargs={}))
    assert (asked[0]["model"], asked[0]["messages"]) == (says or ("m", messages))


def test_what_a_stream_placed_is_its_own() -> None:
    strategy, _ = of_litellm()

    async def original() -> str:
        assert litellm._placed.get() == []
        return "no stream"

    async def run() -> None:
        before = litellm._placed.get()
        assert await strategy._watched(original) == "no stream"
        assert litellm._placed.get() is before

    asyncio.run(run())


@pytest.mark.parametrize(("by_progress", "values"), [(True, [11.0, 12.0]), (False, [5.0, 6.0])])
def test_scores_that_follow_progress_are_made_of_it(by_progress: bool, values: list[float]) -> None:
    entries = [SimpleNamespace(score=5.0 + k, arrival_s=float(k)) for k in range(2)]
    seen: dict[str, Any] = {}

    def many(given: dict[str, Any], n: int) -> Any:
        seen.update(given)
        return given["kv_utilization"] + given["arrival_s"]

    made: Any = SimpleNamespace(
        scheduler=SimpleNamespace(running=[SimpleNamespace(lengthwise=one) for one in entries]),
        _view={"kv_utilization": 11.0},
        _scorer=SimpleNamespace(
            by_progress=by_progress, names=("kv_utilization", "arrival_s"), many=many
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "VALUES", {"arrival_s": lambda entry: entry.arrival_s})
        found = driver.Driver._running_scores(made)
    assert found.tolist() == values
    assert sorted(seen) == (["arrival_s", "kv_utilization"] if by_progress else [])


def test_who_ends_without_its_answer_is_counted_and_not_failed() -> None:
    counted: list[str] = []
    lengths: Any = SimpleNamespace(
        _asked={3: "asked"}, _counters=SimpleNamespace(
            add=lambda name, why: counted.append(why), warn=lambda *given: None),
    )  # fmt: skip
    lengths._fail = lambda *given, **named: Lengths._fail(lengths, *given, **named)
    entry: Any = SimpleNamespace(
        sequence=3, state="pending",
        request=SimpleNamespace(status=SimpleNamespace(name="FINISHED_ABORTED_BY_ALL")),
    )  # fmt: skip
    Lengths.finished(lengths, entry)
    assert (counted, entry.state, lengths._asked) == (["predictor-timeout"], "pending", {})
    Lengths.finished(lengths, entry)
    assert counted == ["predictor-timeout"]


@pytest.mark.parametrize(("pick", "refusal", "told"), [
    (None, None, []), ("p", None, ["pick"]), (None, "r", ["refusal"]), ("p", "r", ["pick"]),
])  # fmt: skip
@pytest.mark.parametrize("logged", ["dry_run", "log_requests", ""])
def test_a_stream_tells_its_pick_or_why_there_is_none(
    pick: str | None, refusal: str | None, told: list[str], logged: str
) -> None:
    said: list[str] = []
    options = SimpleNamespace(**{name: name == logged for name in ("dry_run", "log_requests")})
    picker_ = SimpleNamespace(
        options=options, ended=lambda pick: said.append("ended"),
        tell=lambda pick, name: said.append("pick"),
        tell_refused=lambda refusal, name: said.append("refusal"),
    )  # fmt: skip
    stream: Any = SimpleNamespace(
        _drop=lambda: None, _pick=pick, _refusal=refusal, _picker=picker_, _headers=None
    )
    pytest.importorskip("grpc")
    from lengthwise.policies.plugins.gateways.ext_proc import _Stream

    _Stream.close(stream)
    assert said == ["ended"] * (pick is not None) + (told if logged else [])


@pytest.mark.parametrize(
    ("done", "limit", "left"), [(2, 50, 9.0), (2, 5, 3.0), (5, 5, 1.0), (7, 5, 1.0)]
)
def test_a_curve_says_no_more_than_the_limit_leaves(done: int, limit: int, left: float) -> None:
    state = SimpleNamespace(
        generated_tokens=[0] * done, lengthwise_limit=limit, lengthwise_predicted=6.0,
        lengthwise_curves={"x": SimpleNamespace(at=lambda tokens: 9.0)},
    )  # fmt: skip
    assert transformers._left(state, "x") == left
    assert transformers._left(state, "y") == max(6.0 - done, 1.0)
