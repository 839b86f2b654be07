"""Formulas and the search for them: units, bounds, and what is known to be best on one seat."""

from __future__ import annotations

import inspect
import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise import registry
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval import search as searching
from lengthwise.eval import searched as searched_module
from lengthwise.eval.cells import Cells
from lengthwise.eval.search import Candidate, Variation
from lengthwise.eval.searched import search_policy
from lengthwise.policies import load_policy
from lengthwise.policies.bundle import write_bundle
from lengthwise.policies.formula import Formula, Node, feature, number, of_ast, read
from lengthwise.policies.formula_file import source
from lengthwise.policies.limits import limits
from lengthwise.policies.units import spelled_unit, unit_of, units_of_numbers
from lengthwise.policy import Preemption
from lengthwise.serving.fast.compiler.score import compile_score, sample_rows
from lengthwise.training.cli import cli, main
from lengthwise.workload import Workload
from tests.one_seat import SEAT, SLOW_PREFILL, burst

FORMULAS = [
    name
    for name in registry.names("policy")
    if read(registry.load("policy", name).score.function) is not None
]


def tree(text: str, **numbers: float) -> Node:
    import ast

    return of_ast(ast.parse(text, mode="eval").body, numbers)


def found(**given: Any) -> Any:
    given = {"seeds": 2, "budget": 200, "start": ("fcfs", "sjf"), **given}
    return search_policy(burst(240), requests=60, engine=SEAT, timing=SLOW_PREFILL, **given)


# Formulas


def test_the_registry_s_simple_scores_are_formulas() -> None:
    assert {"fcfs", "sjf", "srtf", "work", "hrrn", "ageing", "llf", "tie", "las"} <= set(FORMULAS)
    assert "mlfq" not in FORMULAS and "niyama" not in FORMULAS


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_is_the_function_that_it_was_read_from(name: str, tmp_path: Path) -> None:
    """Step by step in the engine, on arrays, on single numbers, and written as a file again."""
    score = registry.load("policy", name).score
    formula = read(score.function, score.tunables)
    assert formula is not None and formula.features == score.features
    rows = sample_rows(300, seed=4)
    values = {key: rows[key] for key in score.features}
    theirs = np.asarray(score.evaluate(values), np.float64)
    assert compile_score(formula.score()).evaluate(rows).tobytes() == theirs.tobytes()
    assert np.asarray(formula.score().evaluate(values)).tobytes() == theirs.tobytes()
    one = {key: array[7].item() for key, array in values.items()}
    assert formula.score().evaluate(one) == theirs[7]
    file = tmp_path / "again.py"
    file.write_text(source(formula.tree, "score", "It.", "any"))
    again = load_policy(f"{file}:score").score
    assert np.asarray(again.evaluate(values), np.float64).tobytes() == theirs.tobytes()
    assert read(again.function, again.tunables) == formula or score.tunables


EVERY = (
    "np.sqrt(np.maximum(predicted_tokens - prompt_tokens, 0.0)) * w - np.minimum(-prompt_tokens, "
    "v * generated_tokens / (predicted_tokens + (prompt_tokens - 3.0)))"
)


def test_every_operation_is_ieee_754_s(tmp_path: Path) -> None:
    """As Python computes it, which numpy and the engine's steps have to the bit."""
    formula = Formula(tree(EVERY, w=0.3, v=7.0))
    rows = sample_rows(400, seed=5)
    rows["predicted_tokens"] += 4.0
    by_hand = []
    for row in rows:
        p, q = float(row["predicted_tokens"]), int(row["prompt_tokens"])
        g = 7.0 * int(row["generated_tokens"])
        root = math.sqrt(max(p - q, 0.0)) * 0.3
        by_hand.append(root - min(-q, g / (p + (q - 3.0))))
    assert compile_score(formula.score()).evaluate(rows).tolist() == by_hand
    assert formula(*(rows[name] for name in formula.features)).tolist() == by_hand
    file = tmp_path / "every.py"
    file.write_text(source(formula.tree, "score", "It.", "any"))
    score = load_policy(f"{file}:score").score
    assert compile_score(score).evaluate(rows).tolist() == by_hand
    assert inspect.getsource(score.function).count("\n") <= 8


def test_what_is_no_formula_is_not_read() -> None:
    def branches(predicted_tokens: Any) -> Any:
        if predicted_tokens > 3:
            return 0
        return predicted_tokens

    def power(predicted_tokens: Any) -> Any:
        return predicted_tokens**2

    def switched(predicted_tokens: Any, *, on: bool = True) -> Any:
        return predicted_tokens * on

    assert [read(one) for one in (branches, power, switched, len)] == [None] * 4
    with pytest.raises(InputError, match=r"'np.exp\(prompt_tokens\)' is no formula"):
        tree("np.exp(prompt_tokens)")
    with pytest.raises(UnknownNameError, match="did you mean 'prompt_tokens'"):
        tree("promt_tokens + 1")


# Units


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("predicted_tokens + prompt_tokens", "tokens"),
        ("predicted_tokens + w * arrival_s", "tokens"),
        ("predicted_tokens / prompt_tokens", "1"),
        ("(now_s - arrival_s) / (predicted_tokens + w)", "s/token"),
        ("np.sqrt(predicted_tokens * prompt_tokens)", "tokens"),
        ("predicted_tokens * prompt_tokens", "token^2"),
        ("predicted_tokens * waiting_requests / running_requests", "tokens"),
        ("w * predicted_tokens", "any"),
        ("arrival_s / predicted_tokens + w", "s/token"),
    ],
)
def test_units(text: str, unit: str) -> None:
    assert spelled_unit(unit_of(tree(text, w=2.0))) == unit


@pytest.mark.parametrize(
    "text",
    [
        "predicted_tokens + arrival_s", "np.minimum(now_s, prompt_tokens)",
        "predicted_tokens - kv_utilization", "w * (prompt_tokens + now_s)",
        "waiting_requests + prompt_tokens", "predicted_tokens / prompt_tokens + prompt_tokens",
    ],
)  # fmt: skip
def test_tokens_are_not_added_to_seconds(text: str) -> None:
    with pytest.raises(InputError, match="beside"):
        unit_of(tree(text, w=2.0))


def test_a_free_number_has_the_unit_that_makes_the_sum_right() -> None:
    made = tree("predicted_tokens + w * (now_s - arrival_s) / (v + kv_utilization)", w=2.0, v=1.0)
    units = units_of_numbers(made)
    said = {node.name: spelled_unit(units[id(node)]) for node in made if node.op == "number"}
    assert said == {"w": "tokens/s", "v": "1"}
    text = source(made, "score", "About.", "tokens")
    assert "tokens_per_s=2.0,  # tokens/s" in text and "weight=1.0,  # 1" in text
    inverse = tree("predicted_tokens / w - arrival_s", w=20.0)
    assert spelled_unit(units_of_numbers(inverse)[id(inverse.args[0].args[1])]) == "tokens/s"


# Bounds


def test_bounds_hold_whatever_features_are() -> None:
    assert limits(tree("-(2.0 * kv_utilization - 3.0)")) == (1.0, 3.0)
    assert limits(tree("np.maximum(kv_utilization, 0.5) / 0.5")) == (1.0, 2.0)
    assert limits(tree("np.minimum(np.sqrt(kv_utilization + 3.0), 9.0)"))[1] == 2.0
    for text in ("1.0 / kv_utilization", "1.0 / (arrival_s - now_s)", "1.0 / prompt_tokens"):
        with pytest.raises(InputError, match="a division by what may be 0"):
            limits(tree(text))
    with pytest.raises(InputError, match="root of what may be below 0"):
        limits(tree("np.sqrt(arrival_s - now_s)"))
    far = "*".join(["prompt_tokens"] * 40)
    with pytest.raises(InputError, match="may be infinite"):
        limits(tree(far))


def rows() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrival = rng.uniform(0, 500, 200)
    return {
        "predicted_tokens": np.floor(rng.lognormal(5, 1, 200)) + 1,
        "prompt_tokens": np.floor(rng.lognormal(5, 1, 200)),
        "kv_utilization": rng.random(200),
        "arrival_s": arrival, "now_s": arrival + rng.uniform(0, 30, 200),
    }  # fmt: skip


def test_what_is_not_sound_is_refused() -> None:
    variation = Variation(rows(), 9, np.random.default_rng(0))

    def sound(text: str, *, preempts: bool = False, **numbers: float) -> bool:
        how = Preemption(mode="recompute") if preempts else Preemption()
        return variation.sound(Candidate(tree(text, **numbers), how))

    assert sound("predicted_tokens + prompt_tokens")
    assert not sound("predicted_tokens + now_s")  # units
    assert not sound("predicted_tokens / prompt_tokens")  # by 0
    assert not sound("+".join(["prompt_tokens"] * 6))  # too large
    assert not sound("np.minimum(predicted_tokens, 400.0)")  # flat beyond what was seen
    assert sound("np.maximum(predicted_tokens, prompt_tokens)")
    assert not sound("arrival_s * predicted_tokens")  # another order tomorrow
    assert sound("(now_s - arrival_s) * predicted_tokens")
    assert sound("predicted_tokens + w * arrival_s", w=3.0)
    assert not sound("w * v", w=1.0, v=2.0)  # nothing is read
    assert not sound("(now_s - arrival_s) / (predicted_tokens + w)", preempts=True, w=1.0)
    assert sound("predicted_tokens + prompt_tokens", preempts=True)


def test_mended_trees_keep_units_and_divide_by_no_0() -> None:
    variation = Variation(rows(), 40, np.random.default_rng(1))
    mended = variation.mended(tree("predicted_tokens + arrival_s / kv_utilization"))
    unit_of(mended), limits(mended)
    guarded = Formula(variation.mended(tree("1.0 * predicted_tokens / kv_utilization")))
    assert "max(kv_utilization, 0.001)" in str(guarded)
    rooted = Formula(variation.mended(tree("np.sqrt(predicted_tokens - prompt_tokens)")))
    assert str(rooted) == "sqrt(max(predicted_tokens - prompt_tokens, 0.0))"
    one = variation.mended(tree("w * (v * prompt_tokens)", w=2.0, v=3.0))
    assert str(Formula(one)) == "6 * prompt_tokens"
    # a number between tokens and seconds makes them as large as each other
    scaled = variation.mended(Node("+", (feature("prompt_tokens"), feature("arrival_s"))))
    by = scaled.args[1].args[0].value
    medians = [np.median(rows()[name]) for name in ("prompt_tokens", "arrival_s")]
    assert by == pytest.approx(medians[0] / medians[1], rel=0.01)


@pytest.mark.parametrize("by", ["prompt_tokens + 1.0", "-1.0 - prompt_tokens"])
def test_what_is_never_near_0_is_divided_by_as_it_is(by: str) -> None:
    mended = Variation(rows(), 40, np.random.default_rng(1)).mended(tree(f"arrival_s / ({by})"))
    assert "max(" not in str(Formula(mended)) and "0.001" not in str(Formula(mended))


def test_children_are_sound() -> None:
    variation = Variation(rows(), 15, np.random.default_rng(2))
    parents = [
        Candidate(tree("predicted_tokens + w * prompt_tokens", w=0.1)),
        Candidate(tree("-(now_s - arrival_s) / (predicted_tokens + w)", w=1.0)),
    ]
    made = [variation.child(parents[k % 2], parents[1 - k % 2]) for k in range(400)]
    some = [one for one in made if one is not None]
    assert len(some) > 100 and len({one.key for one in some}) > 80
    assert any(one.preempts for one in some)
    for one in some:
        unit_of(one.tree), limits(one.tree)
        assert one.tree.size <= 15


def test_scores_that_order_alike_are_run_once() -> None:
    variation = Variation(rows(), 15, np.random.default_rng(2))
    mark = variation.fingerprint
    one, two = tree("predicted_tokens"), tree("2.0 * predicted_tokens + 5.0")
    assert mark(Candidate(one)) == mark(Candidate(two)) != mark(Candidate(tree("prompt_tokens")))
    preempts = Preemption(mode="recompute")  # then differences matter
    assert mark(Candidate(one, preempts)) != mark(Candidate(two, preempts))


# The search


def test_what_is_found_is_near_the_best_on_requests_that_were_not_seen() -> None:
    """On one seat, shortest processing time first is optimal, and it is in no policy to begin
    with: predicted + 0.5 prompt."""
    got = found(budget=220, size=7)
    assert got.policy == "sjf" and got.runs <= 220
    assert got.ratio("train", got.tuned, "sjf").mean < 0.97
    assert got.ratio("test", got.tuned, "sjf").mean < 0.97
    best = search_policy(
        burst(240), requests=60, seeds=2, engine=SEAT, timing=SLOW_PREFILL, budget=1,
        start=("work:b=0.5",), features=("predicted_tokens",),
    )  # fmt: skip
    exact = best.values["test", "work:b=0.5"]
    assert got.values["test", got.tuned] / exact == pytest.approx([1.0] * 2, abs=0.03)


def test_the_result_is_no_worse_than_what_it_began_with_and_the_file_is_what_was_run(
    tmp_path: Path,
) -> None:
    got = found(budget=90, start=("sjf", "work:b=0.5", "fcfs"), seed=3)
    assert got.ratio("train", got.tuned, got.policy).mean <= 1.0
    assert min(level for _, level in got.history) == pytest.approx(
        np.log(got.values["train", got.tuned]).mean(), abs=2e-3
    )
    again = found(budget=90, start=("sjf", "work:b=0.5", "fcfs"), seed=3)
    assert again.text == got.text and again.history == got.history
    file = tmp_path / "policy.py"
    file.write_text(got.text)
    policy = load_policy(f"{tmp_path}/{got.spelled}")
    assert policy.score.name == "score"
    ratio = got.ratio("test", got.tuned, "fcfs")
    assert f"{ratio.mean:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) times that of fcfs" in got.text


def test_a_stopped_search_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found(budget=120)
    cells = Cells.open(tmp_path / "cells", {})
    with pytest.raises(KeyboardInterrupt):
        found(budget=120, cells=cells, progress=stopping(90))
    assert len(cells) > 1
    run = searching.records_of
    ran: list[Any] = []
    monkeypatch.setattr(
        searching, "records_of", lambda case, policy: (ran.append(policy), run(case, policy))[1]
    )
    told: list[tuple[int, int]] = []
    again = found(budget=120, cells=cells, progress=lambda *at: told.append(at))
    assert again.text == whole.text and again.history == whole.history
    assert 0 < len(ran) < 80 and told[-1][1] == 120


def stopping(at: int) -> Any:
    def moved(done: int, total: int) -> None:
        if done > at:
            raise KeyboardInterrupt

    return moved


def test_what_can_not_be_searched_is_said_in_one_line() -> None:
    with pytest.raises(InputError, match="can't begin with mlfq: it is no formula"):
        found(start=("mlfq",))
    with pytest.raises(InputError, match="can't begin with edf: it reads deadline_s, which this"):
        found(start=("edf",))
    with pytest.raises(UnknownNameError, match="did you mean 'prompt_tokens'"):
        found(features=("promt_tokens",))
    with pytest.raises(InputError, match="this run has no deadline_s"):
        found(features=("deadline_s",))
    with pytest.raises(UnknownNameError, match="did you mean 'e2e_mean'"):
        found(metric="e2e_meen")


@pytest.mark.parametrize(
    ("name", "least", "less"), [("seeds", 1, 0), ("size", 1, 0), ("parsimony", 0.0, -0.001)]
)
def test_the_least_of_each_is_taken_and_less_is_not(name: str, least: float, less: float) -> None:
    with pytest.raises(UnknownNameError, match="promt_tokens"):  # which is looked at next
        found(features=("promt_tokens",), **{name: least})
    with pytest.raises(InputError, match="searching needs"):
        found(features=("promt_tokens",), **{name: less})


def test_where_no_queue_forms_it_says_so() -> None:
    alone = burst(40)
    alone = Workload({"arrival_s": np.arange(40) * 100.0, **{
        name: alone[name] for name in ("prompt_tokens", "output_tokens")}})  # fmt: skip
    idle = search_policy(
        alone, requests=10, seeds=2, engine=SEAT, timing=SLOW_PREFILL, budget=60, start=("sjf",)
    )
    assert any("no queue forms" in notice for notice in idle.notices)


LINE = (
    "search t.csv --requests 60 --seeds 1 --budget 40 --start sjf,work --max-num-seqs 1 "
    "--num-gpu-blocks 500"
)


def test_the_command_writes_a_policy_that_others_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    burst(120).to_frame().to_csv("t.csv", index=False)

    def run(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(line))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    code, out, _ = run(f"{LINE} --out found")
    assert code == 0 and "held out" in out and out.startswith(("def score(", "import numpy"))
    document = json.loads(Path("found/searched.json").read_text())
    assert Path("found/policy.py").read_text() == document["source"]
    assert out.splitlines()[-1] == f"wrote found; run it as found/{document['runs_as']}"
    assert not Path("found.cells").exists()
    code, out, _ = run(f"{LINE} --json")
    assert json.loads(out)["source"] == document["source"]
    code, out, _ = run(f"{LINE} --csv")
    assert out.startswith("workload,set,policy,predictor,runs,e2e_mean_s,") and "to_start" in out
    code, out, _ = run(f"simulate t.csv --policy found/{document['runs_as']} --predictor oracle")
    assert code == 0
    code, _, err = run(f"{LINE} --out found --seed 2")
    assert code == 2 and err.count("\n") == 1 and "--force" in err


def test_a_formula_is_exported_as_data(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n\ndef score(predicted_tokens, kv_utilization, *, w=0.1):\n"
        "    return np.sqrt(predicted_tokens) - -w / np.maximum(kv_utilization, 0.001)\n"
        "def loop(predicted_tokens):\n    return predicted_tokens ** 2\n"
        "def bare(predicted_tokens, prompt_tokens):\n    return predicted_tokens / prompt_tokens\n"
    )
    own = load_policy(f"{file}:score:w=0.3+preempt:price=0.02")
    folder = write_bundle(own, tmp_path / "bundle")
    told = json.loads((folder / "policy.json").read_text())
    text = "np.sqrt(predicted_tokens) - -0.3 / np.maximum(kv_utilization, 0.001)"
    assert told["score"] == {"type": "formula", "text": text}
    assert "the formula `sqrt(predicted_tokens)" in (folder / "README.md").read_text()
    again = load_policy(str(folder))
    assert again.preemption == own.preemption and again.score.features == own.score.features
    rows = sample_rows(200, seed=3)
    scores = [compile_score(one.score).evaluate(rows).tobytes() for one in (own, again)]
    assert scores[0] == scores[1]
    assert write_bundle(again, tmp_path / "twice").joinpath("policy.json").read_text() == (
        folder / "policy.json"
    ).read_text().replace(own.name, again.name)
    with pytest.raises(InputError, match="bundle holds no code"):
        write_bundle(load_policy(f"{file}:loop"), tmp_path / "no")
    with pytest.raises(InputError, match="a division by what may be 0"):
        write_bundle(load_policy(f"{file}:bare"), tmp_path / "no")
    for bad, said in (
        ("__import__('os').system('true')", "no formula"), ("predicted_tokens **", "no formula"),
        ("predicted_tokens / kv_utilization", "may be 0"), ("(" * 3000, "no formula"),
        ("predicted_tokens" * 300, "up to 4000"), (3, "up to 4000"),
        ("prompt_tokens", "reads prompt_tokens, not"), ("promt_tokens", "did you mean"),
    ):  # fmt: skip
        changed = {**told, "score": {"type": "formula", "text": bad}}
        (folder / "policy.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=said):
            load_policy(str(folder))


def test_options_reach_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def called(*given: Any, **more: Any) -> Any:
        calls.append((given, more))
        raise KeyError

    monkeypatch.setattr(searched_module, "search_policy", called)

    def of(line: str) -> dict[str, Any]:
        with pytest.raises(KeyError):
            cli.main(args=shlex.split(line), standalone_mode=False, obj=f"lengthwise {line}")
        return dict(calls[-1][1])

    plain = of("search w")
    names = ("metric", "budget", "size", "parsimony", "features", "start", "requests", "seeds")
    assert [plain[name] for name in names] == [
        "e2e_mean", searching.BUDGET, searching.SIZE, searching.PARSIMONY, (), (), 1000, 5,
    ]  # fmt: skip
    for text, (name, value) in {
        "--metric ttft_p99": ("metric", "ttft_p99"), "--budget 9": ("budget", 9),
        "--size 5": ("size", 5), "--parsimony 0.1": ("parsimony", 0.1),
        "--features now_s,arrival_s": ("features", ("now_s", "arrival_s")),
        "--start sjf,work:b=2": ("start", ("sjf", "work:b=2")), "--seed 7": ("seed", 7),
        "--rates 2,4": ("rates", (2.0, 4.0)), "--requests 70": ("requests", 70),
        "--predictor ./p": ("predictor", "./p"), "--replicas 3": ("replicas", 3),
    }.items():  # fmt: skip
        changed = of(f"search w {text}")
        differ = {key for key in plain if key != "progress" and plain[key] != changed[key]}
        assert (differ, changed[name]) == ({name}, value), text


def test_numbers_are_those_that_a_file_can_say() -> None:
    assert number(2).value == 2.0 and Candidate(number(1.0)).beside == ""
    priced = Candidate(number(1.0), Preemption(mode="recompute", price=0.03, margin=2.0))
    assert priced.beside == "+preempt:price=0.03,margin=2.0"
    assert Candidate(number(1.0), Preemption(mode="recompute")).beside == "+preempt"
    assert load_policy("sjf" + priced.beside).preemption == priced.preemption
