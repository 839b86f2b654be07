"""Every option of every command reaches what it names, and nothing is given that was not asked."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest

from lengthwise import registry
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval.compare import Comparison, Contender
from lengthwise.eval.reproduce import PAPERS
from lengthwise.eval.source import Spelled
from lengthwise.eval.statistics import Interval
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.bundle import read_bundle
from lengthwise.serving import Engine
from lengthwise.serving.options import DEFAULT_TIMING
from lengthwise.training import cli, demo
from lengthwise.training.cli import main
from lengthwise.training.commands import data, evaluate, listing, show
from lengthwise.training.commands.options import (
    Name,
    Rates,
    Renames,
    Settings,
    Specs,
    split_specs,
)
from lengthwise.training.commands.stopped import Interrupted
from lengthwise.workload import Workload


class Called(Exception):
    """A command came to its work, with these arguments."""


def asked(
    monkeypatch: pytest.MonkeyPatch, target: str, line: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a command line calls ``target`` with."""
    found: list[Any] = []

    def called(*given: Any, **more: Any) -> Any:
        found.append((given, more))
        raise Called

    monkeypatch.setattr(target, called)
    with pytest.raises(Called):
        cli.cli.main(
            args=shlex.split(line), standalone_mode=False, obj=shlex.join(["lengthwise", line])
        )
    return found[0]  # type: ignore[no-any-return]


SYSTEM = {
    "--timing roofline:h100/llama-3.1-8b": ("timing", "roofline:h100/llama-3.1-8b"),
    "--replicas 3": ("replicas", 3), "--nodes 2xh200/a": ("nodes", "2xh200/a"),
    "--metrics-interval 0.5": ("metrics_interval_s", 0.5), "--failures f": ("failures", "f"),
    "--router jsq": ("router", "jsq"), "--backend reference": ("backend", "reference"),
}  # fmt: skip
SYSTEM_DEFAULTS = {
    "timing": DEFAULT_TIMING, "replicas": 1, "nodes": None, "metrics_interval_s": 0.0,
    "failures": None, "router": "round-robin", "backend": "auto",
}  # fmt: skip
SOURCE = {
    "--arrivals poisson:3": ("arrivals", "poisson:3"), "--requests 7": ("requests", 7),
    "--model m": ("model", "m"), "--answers-by m": ("model", "m"),
    "--split train": ("split", "train"),
    "--drop-zero-output": ("drop_zero", True), "--time-unit ms": ("time_unit", "ms"),
    "--max-expanded 5": ("max_expanded_mb", 5.0),
    "--deadlines chat=2,batch=60": ("deadlines", {"chat": 2.0, "batch": 60.0}),
    "--deadlines 30": ("deadlines", {"": 30.0}),
    "--columns 'prompt_tokens=Request tokens,arrival_s=when'": (
        "columns", {"prompt_tokens": "Request tokens", "arrival_s": "when"},
    ),
}  # fmt: skip
ENGINE = {
    "--max-num-seqs 9": ("max_num_seqs", 9), "--num-gpu-blocks 77": ("num_gpu_blocks", 77),
    "--enable-prefix-caching": ("enable_prefix_caching", True),
    "--async-scheduling": ("async_scheduling", True), "--block-size 32": ("block_size", 32),
    "--max-num-batched-tokens 999": ("max_num_batched_tokens", 999),
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "target"),
    [("compare w", "lengthwise.eval.compare.compare"),
     ("capacity w --slo ttft_p99=1", "lengthwise.eval.capacity.capacity")],
)  # fmt: skip
def test_systems_workloads_and_engines_are_read_by_commands_alike(
    command: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source, *_), given = asked(monkeypatch, target, command)
    assert source == Spelled("w", {})
    assert {name: given[name] for name in SYSTEM_DEFAULTS} == SYSTEM_DEFAULTS
    for text, (name, value) in SYSTEM.items():
        _, changed = asked(monkeypatch, target, f"{command} {text}")
        differ = {key for key in given if key != "progress" and given[key] != changed[key]}
        assert (differ, changed[name]) == ({name}, value)
    for text, (name, value) in SOURCE.items():
        (source, *_), _ = asked(monkeypatch, target, f"{command} {text}")
        assert source == Spelled("w", {name: value}), text
    for text, (name, value) in ENGINE.items():
        args, _ = asked(monkeypatch, target, f"{command} {text}")
        (engine,) = [one for one in args if isinstance(one, Engine)]
        assert engine == Engine(**{name: value}), text


def test_compare_s_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "lengthwise.eval.compare.compare"

    def of(line: str) -> dict[str, Any]:
        args, given = asked(monkeypatch, target, f"compare w {line}")
        names = ("source", "policies", "predictors", "rates", "seeds", "engine")
        return {**dict(zip(names, args, strict=True)), **given}

    plain = of("")
    assert plain["policies"] == ("fcfs", "sjf", "srtf", "mlfq")
    assert plain["predictors"] == ("oracle",)
    assert (plain["rates"], plain["seeds"], plain["slo"], plain["routers"]) == ((), 5, None, ())
    assert plain["processes"] == (os.cpu_count() or 1)
    assert plain["progress"](1, 2) is None
    assert (plain["tuning"], plain["budget"], plain["metric"]) == (False, 64, "e2e_mean")
    tuned = of("--tune --budget 12 --metric ttft_p95")
    assert (tuned["tuning"], tuned["budget"], tuned["metric"]) == (True, 12, "ttft_p95")
    assert of("--policies fcfs,mlfq:quantum=64,levels=6")["policies"] == (
        "fcfs", "mlfq:quantum=64,levels=6",
    )  # fmt: skip
    assert of("--routers jsq")["policies"] == ("fcfs",)
    routed = of("--routers jsq,least-load:choices=2,penalty=1 --policies sjf")
    assert routed["routers"] == ("jsq", "least-load:choices=2,penalty=1")
    assert routed["policies"] == ("sjf",)
    changed = of("--predictors ./p,oracle --rates 2,4.5 --seeds 3 --slo ttft=1 --processes 2")
    assert changed["predictors"] == ("./p", "oracle")
    assert changed["rates"] == (2.0, 4.5)
    assert (changed["seeds"], changed["slo"], changed["processes"]) == (3, {"ttft": 1.0}, 2)


def test_capacity_s_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "lengthwise.eval.capacity.capacity"
    args, given = asked(monkeypatch, target, "capacity w --slo ttft_p99=1")
    assert args[1:6] == ("fcfs", {"ttft_p99": 1.0}, None, 5, 0.01)
    assert given["processes"] == (os.cpu_count() or 1)
    args, given = asked(
        monkeypatch, target,
        "capacity w --slo ttft_p99=1,e2e_mean=9 --policy srtf --predictor oracle --tolerance 0.05 "
        "--seeds 2 --processes 1",
    )  # fmt: skip
    assert args[1:6] == ("srtf", {"ttft_p99": 1.0, "e2e_mean": 9.0}, "oracle", 2, 0.05)
    assert given["processes"] == 1


def test_simulate_s_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Any] = []

    def load(self: Any, rate: Any, seed: Any) -> Workload:
        drawn.append((self, rate, seed))
        return Workload({"arrival_s": [0.0], "prompt_tokens": [1], "output_tokens": [1]})

    monkeypatch.setattr(Spelled, "load", load)
    target = "lengthwise.eval.simulate.simulate"
    args, given = asked(monkeypatch, target, "simulate w")
    assert args[1:] == ("fcfs", None, Engine())
    assert given == {**SYSTEM_DEFAULTS, "seed": 0, "log_iterations": False}
    assert drawn[-1] == (Spelled("w", {}), None, 0)
    line = "simulate w --policy srtf --predictor oracle --rate 3 --seed 4 --log-iterations"
    args, given = asked(monkeypatch, target, f"{line} --max-num-seqs 9 --requests 7")
    assert args[1:] == ("srtf", "oracle", Engine(max_num_seqs=9))
    assert given == {**SYSTEM_DEFAULTS, "seed": 4, "log_iterations": True}
    assert drawn[-1] == (Spelled("w", {"requests": 7}), 3.0, 4)
    for text, (name, value) in SYSTEM.items():
        _, given = asked(monkeypatch, target, f"simulate w {text}")
        assert given == {**SYSTEM_DEFAULTS, "seed": 0, "log_iterations": False, name: value}


def test_a_simulated_run_is_shown_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens\n"
        + "".join(f"{i / 9},10,{30 + i}\n" for i in range(99))
    )

    def run(line: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(shlex.split(line))
        assert end.value.code == 0
        return capsys.readouterr().out

    shown = run("simulate t.csv --policy srtf --predictor oracle --slo e2e=99 --out a")
    assert shown.startswith("srtf on t")
    assert ": 99 requests" in shown.splitlines()[0]
    assert "requests that meet the SLO" in shown
    assert shown.endswith("wrote a\n")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "config.json", "requests.parquet", "summary.json",
    ]  # fmt: skip
    assert "meet the SLO" not in run("simulate t.csv")
    run("simulate t.csv --log-iterations --out b")
    assert {"timeline.svg", "iterations.parquet"} <= {p.name for p in (tmp_path / "b").iterdir()}
    assert '"command": "lengthwise simulate t.csv --log-iterations --out b"' in (
        tmp_path / "b" / "config.json"
    ).read_text()  # fmt: skip
    shown = run("compare t.csv --policies sjf --seeds 1 --processes 1 --out c")
    assert "wrote c/report.html" in shown
    assert (tmp_path / "c" / "iterations-1.parquet").is_file()
    shown = run(
        "capacity t.csv --slo e2e_mean=0.5 --max-num-seqs 4 --seeds 1 --processes 1 "
        "--tolerance 0.5 --out d"
    )
    assert shown.startswith("fcfs: ")
    assert "wrote d" in shown
    config = (tmp_path / "d" / "config.json").read_text()
    for said in ('"slo": {', '"policy": "fcfs"', '"workload": "t.csv"', '"seeds": 1'):
        assert said in config


def test_train_predictor_s_options(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "lengthwise.training.predictor.train_predictor"

    def of(line: str) -> tuple[Any, dict[str, Any]]:
        (rows,), given = asked(monkeypatch, target, f"train predictor {line} --out p")
        return rows, given

    rows, plain = of("a.jsonl b.jsonl")
    assert rows == ["a.jsonl", "b.jsonl"]
    assert {k: v for k, v in plain.items() if k != "command"} == {
        "target": "exact", "model": "ridge", "out": "p", "seed": 0, "test_share": 0.5,
        "max_rows": None, "answers_by": None, "source_weights": None, "options": {},
        "recalibrate": None, "dry_run": False,
    }  # fmt: skip
    assert plain["command"].startswith("lengthwise ")
    for text, changed in (
        ("--target rank", {"target": "rank"}), ("--model gbdt", {"model": "gbdt"}),
        ("--base", {"model": "base"}), ("--base --model base", {"model": "base"}),
        ("--answers-by m", {"answers_by": "m"}), ("--test-share 0.2", {"test_share": 0.2}),
        ("--max-rows 9", {"max_rows": 9}), ("--source-weights 2,1", {"source_weights": [2.0, 1.0]}),
        ("--seed 3", {"seed": 3}), ("--recalibrate q", {"recalibrate": "q"}),
        ("--dry-run", {"dry_run": True}),
        ("--set buckets=8,rate=0.5,on=true,off=false,word=x",
         {"options": {"buckets": 8, "rate": 0.5, "on": True, "off": False, "word": "x"}}),
    ):  # fmt: skip
        _, given = of(f"a.jsonl {text}")
        assert {**given, "command": ""} == {**plain, **changed, "command": ""}, text
    for text, said in (
        ("--base --model gbdt", "--base or --model gbdt, not both"),
        ("--recalibrate q --base", "keeps the model and the target"),
        ("--recalibrate q --model gbdt", "keeps the model and the target"),
        ("--recalibrate q --target rank", "keeps the model and the target"),
    ):
        with pytest.raises(InputError, match=said):
            cli.cli.main(
                args=shlex.split(f"train predictor a.jsonl {text} --out p"), standalone_mode=False
            )
    (generated,), _ = of("synthetic-chat --max-rows 12 --seed 5")
    assert len(generated) == 12
    again = data.prompts_of("synthetic-chat", 12, 5)
    assert list(generated.prompt) == list(again.prompt)  # type: ignore[union-attr]
    other = data.prompts_of("synthetic-chat", 12, 6)
    assert list(generated.prompt) != list(other.prompt)  # type: ignore[union-attr]
    monkeypatch.setattr(data, "generate_prompts", lambda rows, seed: (rows, seed))
    assert data.prompts_of("synthetic-chat", None, 1) == (4000, 1)
    monkeypatch.setattr(data, "read_prompts", lambda *given, **more: (given, more))
    expanded: Any = data.prompts_of("a.jsonl", 3, 1, max_expanded_mb=5.0, columns=None)
    assert expanded == (("a.jsonl",), {"drop_zero": True, "max_expanded_mb": 5.0})
    (named,), _ = of("a.jsonl --columns prompt=question,response=answer")
    assert named == (
        ("a.jsonl",),
        {"drop_zero": True, "columns": {"prompt": "question", "response": "answer"}},
    )
    assert data.prompts_of("a.jsonl", 3, 1) == "a.jsonl"
    assert data.weights_of(None) is None
    with pytest.raises(InputError, match="numbers such as 2,1,1"):
        data.weights_of("2,x")


def test_train_policy_s_options(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "lengthwise.training.policy.train_policy"

    def of(line: str) -> dict[str, Any]:
        (env,), given = asked(monkeypatch, target, f"train policy --out r {line}")
        return {"env": env, **given, "command": ""}

    plain = of("")
    assert plain == {
        "env": "lengthwise/Routing-v1", "out": "r", "algo": "ppo", "workload": "azure-conv-2023",
        "timing": DEFAULT_TIMING, "steps": 500_000, "n_envs": 64, "scenarios": None,
        "baseline_names": None, "guide": None, "seed": 0, "resume": False,
        "env_options": {"engine": Engine()}, "settings": {}, "command": "", "force": False,
        "dry_run": False,
    }  # fmt: skip
    for text, changed in (
        ("--env lengthwise/Scheduling-v0", {"env": "lengthwise/Scheduling-v0"}),
        ("--algo dqn", {"algo": "dqn"}), ("--workload w", {"workload": "w"}),
        ("--timing t", {"timing": "t"}), ("--steps 9", {"steps": 9}), ("--n-envs 3", {"n_envs": 3}),
        ("--scenarios s", {"scenarios": "s"}), ("--baselines a,b", {"baseline_names": ("a", "b")}),
        ("--guide jsq", {"guide": "jsq"}), ("--seed 7", {"seed": 7}),
        ("--resume", {"resume": True}), ("--force", {"force": True}),
        ("--dry-run", {"dry_run": True}),
        ("--set gamma=0.9", {"settings": {"gamma": 0.9}}),
        ("--nodes 2xa", {"env_options": {"engine": Engine(), "nodes": "2xa"}}),
        ("--features a,b", {"env_options": {"engine": Engine(), "features": ("a", "b")}}),
        ("--max-num-seqs 9", {"env_options": {"engine": Engine(max_num_seqs=9)}}),
        ("--env-set rate=24,replicas=2",
         {"env_options": {"engine": Engine(), "rate": 24, "replicas": 2}}),
    ):  # fmt: skip
        assert of(text) == {**plain, **changed}, text


def test_train_policy_says_what_came_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = "lengthwise.training.policy.train_policy"
    run = SimpleNamespace(
        baselines={"jsq": 1.23456, "sjf": 20.0}, cost=0.98765, best_baseline="jsq",
        ratio=Interval(0.9, 0.85, 0.95, 4), bundle="r/bundle",
    )  # fmt: skip
    monkeypatch.setattr(target, lambda *given, **more: run)
    cli.cli.main(args=["train", "policy", "--out", "r"], standalone_mode=False, obj="c")
    assert capsys.readouterr().out.splitlines() == [
        "held-out cost 0.9877 (baselines: jsq 1.235, sjf 20)",
        "on workloads that nothing was chosen on: 0.900 of jsq, the best baseline (95% 0.850 to "
        "0.950)",
        "wrote r/bundle",
    ]
    for raised, said, code in (
        (Interrupted("SIGTERM: saved", signal.SIGTERM), "SIGTERM: saved", 128 + signal.SIGTERM),
        (KeyboardInterrupt(), "SIGINT: nothing is saved in r before the first step", 130),
    ):

        def stopped(*given: Any, raised: BaseException = raised, **more: Any) -> Any:
            raise raised

        monkeypatch.setattr(target, stopped)
        with pytest.raises(SystemExit) as end:
            main(["train", "policy", "--out", "r"])
        assert end.value.code == code
        assert capsys.readouterr().err == f"lengthwise: {said}\n"


def test_evaluate_s_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = "lengthwise.training.predictor.evaluate_predictor"
    args, plain = asked(monkeypatch, target, "evaluate predictor p d.jsonl")
    assert args == ("p", "d.jsonl")
    assert plain == {"split": None, "answers_by": None, "max_rows": None, "card": False}
    for text, changed in (
        ("--split train", {"split": "train"}), ("--answers-by m", {"answers_by": "m"}),
        ("--max-rows 3", {"max_rows": 3}), ("--card", {"card": True}),
    ):  # fmt: skip
        _, given = asked(monkeypatch, target, f"evaluate predictor p d.jsonl {text}")
        assert given == {**plain, **changed}
    target = "lengthwise.training.judging.evaluate_policy"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    args, plain = asked(monkeypatch, target, "evaluate policy a b w x")
    assert args == (["a", "b"], ["w", "x"])
    beside = ("say", "progress")
    assert {k: v for k, v in plain.items() if k not in beside} == {
        "cells": None,
        "requests": 1000, "rate": None, "loads": (), "baseline_names": None, "tuning": False,
        "budget": 64, "predictor": "oracle", "replicas": None, "nodes": None,
        "metrics_interval_s": 0.0, "failures": None, "timing": DEFAULT_TIMING, "seeds": 5,
        "engine": Engine(),
    }  # fmt: skip
    for text, changed in (
        ("--requests 9", {"requests": 9}), ("--rate 2", {"rate": 2.0}),
        ("--load 0.8,1", {"loads": (0.8, 1.0)}),
        ("--baselines jsq,b", {"baseline_names": ("jsq", "b")}),
        ("--tune", {"tuning": True}), ("--budget 8", {"budget": 8}),
        ("--predictor p", {"predictor": "p"}), ("--replicas 2", {"replicas": 2}),
        ("--nodes n", {"nodes": "n"}), ("--metrics-interval 0.5", {"metrics_interval_s": 0.5}),
        ("--failures f", {"failures": "f"}), ("--timing t", {"timing": "t"}),
        ("--seeds 2", {"seeds": 2}),
        ("--max-num-seqs 9", {"engine": Engine(max_num_seqs=9)}),
    ):  # fmt: skip
        _, given = asked(monkeypatch, target, f"evaluate policy a w {text}")
        given |= {name: plain[name] for name in beside}
        assert given == {**plain, **changed}, text
    with pytest.raises(InputError, match="no workload after 'b'"):
        evaluate._sorted(("a", "b"))
    assert evaluate._sorted(("bundle", "w")) == (["bundle"], ["w"])
    assert evaluate._allowed("none.csv", 5.0) == "none.csv"
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n1,1,1\n")
    assert evaluate._allowed("t.csv", None) == "t.csv"
    assert len(evaluate._allowed("t.csv", 5.0)) == 2


def test_other_commands_options(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "lengthwise.serving.timing.measure.profile"
    args, plain = asked(monkeypatch, target, "profile --out p.json")
    assert args == ("vllm", "llama-3.1-8b", "p.json")
    assert plain == {
        "name": None, "seconds": 150.0, "thoroughness": 1.0, "tensor_parallel": 1,
        "max_num_seqs": None, "max_num_batched_tokens": None, "max_model_len": None,
        "quantization": None, "kv_cache_dtype": None, "force": False,
        "progress": plain["progress"], "say": plain["say"],
    }  # fmt: skip
    args, given = asked(
        monkeypatch, target,
        "profile --engine torch --model m --out q --name n --seconds 9 --thoroughness 2 "
        "--tensor-parallel 2 --max-num-seqs 3 --max-num-batched-tokens 4 --max-model-len 5 "
        "--quantization fp8 --kv-cache-dtype fp8 --force",
    )  # fmt: skip
    assert args == ("torch", "m", "q")
    assert list(given.values())[:10] == ["n", 9.0, 2.0, 2, 3, 4, 5, "fp8", "fp8", True]
    target = "lengthwise.eval.reproduce.reproduce"
    args, given = asked(monkeypatch, target, "reproduce ssjf --seeds 2 --processes 1")
    assert args[:3] == ("ssjf", 2, 1)
    assert set(given) == {"papers"}
    assert set(given["papers"]) == {*PAPERS, "intelligent-router"}
    _, given = asked(monkeypatch, target, "reproduce intelligent-router --small")
    assert {k: v for k, v in given.items() if k != "papers"} == {"requests": 500, "steps": 8000}
    target = "lengthwise.training.demo.run_demo"
    args, given = asked(monkeypatch, target, "demo")
    assert args == ("runs/demo",)
    assert (given["seeds"], given["requests"]) == (3, 2000)
    args, given = asked(monkeypatch, target, "demo --out o --seeds 2 --requests 20 --processes 1")
    assert args == ("o",)
    assert (given["seeds"], given["requests"], given["processes"]) == (2, 20, 1)
    target = "lengthwise.training.policy.export_run"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "is_dir", lambda self: True)
        args, _ = asked(patched, target, "export r --to b")
    assert args == ("r", Path("b"))


def test_a_named_policy_or_router_is_exported(tmp_path: Path) -> None:
    for spec, kind in (("mlfq:quantum=8", load_policy), ("jsew:b=0.5", load_router)):
        to = tmp_path / spec[:4]
        cli.cli.main(args=["export", spec, "--to", str(to)], standalone_mode=False)
        assert read_bundle(to).score == kind(spec).score
    with pytest.raises(UnknownNameError, match="did you mean 'mlfq'"):
        cli.cli.main(args=["export", "mlfk:quantum=8", "--to", "x"], standalone_mode=False)


# How values are read


def test_values_of_options_are_read_and_refused() -> None:
    def rates(value: Any, **named: Any) -> Any:
        return Rates(**named).convert(value, None, None)

    assert rates("4,8.5") == (4.0, 8.5)
    assert rates((1.0,)) == (1.0,)
    for wrong in ("0,1", "-1", "inf", "nan"):
        with pytest.raises(InputError, match=r"positive numbers of requests/s"):
            rates(wrong)
    with pytest.raises(InputError, match="--load takes numbers of shares between commas, not 'x'"):
        rates("x", option="--load", unit="shares", one="load")
    with pytest.raises(InputError, match="--rates names a rate twice"):
        rates("1,2,1")
    assert split_specs("a,b:x=1,y=2,c") == ("a", "b:x=1,y=2", "c")
    assert split_specs("x=1,a,,b") == ("x=1", "a", "b")
    assert split_specs("a,1x=2") == ("a", "1x=2")
    assert Specs().convert(("a",), None, None) == ("a",)
    assert Settings().convert({"a": 1}, None, None) == {"a": 1}
    assert Settings().convert("a=1,b=0.5,c=TRUE,d=x=y", None, None) == {
        "a": 1, "b": 0.5, "c": True, "d": "x=y",
    }  # fmt: skip
    for wrong in ("a", "a=", "=1"):
        with pytest.raises(InputError, match="expected NAME=VALUE"):
            Settings().convert(wrong, None, None)
    assert Renames().convert(" a = b c ,d=e=f", None, None) == {"a": "b c", "d": "e=f"}
    for wrong, said in (("prompt", "OURS=THEIRS"), ("a=", "OURS=THEIRS"), ("a=b,a=c", "'a' twice")):
        with pytest.raises(InputError, match=said):
            Renames().convert(wrong, None, None)
    name: Any = Name("thing", ("a", "b"))
    assert name.convert("a", None, None) == "a"
    with pytest.raises(UnknownNameError):
        name.convert("c", None, None)
    assert name.get_metavar(None, None) == "[a|b]"


def test_usage_errors_are_one_line_with_the_nearest_option() -> None:
    @click.command(name="do")
    @click.option("--policy")
    @click.option("--on/--off")
    def do(policy: str, on: bool) -> None: ...

    context = click.Context(do, info_name="lengthwise do")
    error = click.NoSuchOption("--polcy", ctx=context)
    assert cli.usage_line(error) == (
        "unknown option '--polcy' of 'lengthwise do'; did you mean '--policy'? (see lengthwise do "
        "--help)"
    )
    far = click.NoSuchOption("--zzzzzz", ctx=context)
    assert "did you mean" not in cli.usage_line(far)
    assert cli.usage_line(click.UsageError("Missing it.", ctx=context)) == (
        "lengthwise do: missing it (see lengthwise do --help)"
    )
    assert cli.usage_line(click.UsageError("X")) == "lengthwise: x (see lengthwise --help)"


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [(KeyboardInterrupt(), 130, "interrupted\n"), (click.Abort(), 130, "interrupted\n"),
     (InputError("a\n  b"), 2, "lengthwise: a b\n"),
     (click.ClickException("worse"), 2, "lengthwise: worse\n"),
     (ModuleNotFoundError(name="torch.nn"), 2,
      "lengthwise: this needs torch: pip install 'lengthwise[all]'\n")],
)  # fmt: skip
def test_how_commands_end(
    raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fails(*given: Any, **more: Any) -> None:
        raise raised

    monkeypatch.setattr(cli.cli, "main", fails)
    with pytest.raises(SystemExit) as end:
        main(["x"])
    assert (end.value.code, capsys.readouterr().err) == (code, said)
    raised = ModuleNotFoundError(name="somebody's")
    with pytest.raises(ModuleNotFoundError):
        main(["x"])


# Listings


def test_lists_name_everything_with_what_it_reads() -> None:
    heads, rows = listing.policies()
    assert len(heads) == 5
    assert [row[0] for row in rows] == list(registry.names("policy"))
    by_name = {row[0]: row for row in rows}
    for name in registry.names("policy"):
        policy = load_policy(name)
        assert by_name[name][2] == ", ".join(policy.score.features)
        mode = policy.preemption.mode
        assert by_name[name][4] == ("" if mode == "none" else mode)
        for tunable, value in policy.score.tunables.items():
            assert f"{tunable}={value}" in by_name[name][3]
    assert by_name["srtf"][4] == "recompute"
    heads, rows = listing.routers()
    assert len(heads) == 4
    assert [row[0] for row in rows] == list(registry.names("router"))
    for name, about, reads, _ in rows:
        router = load_router(name)
        assert reads == ", ".join(router.score.features)
        assert about.startswith(f"Of {router.choices} random") == bool(router.choices)
    assert "(" in next(row[3] for row in rows if row[0] == "jsew")
    for kind in ("predictors", "envs"):
        heads, rows = listing.KINDS[kind]()
        assert [row[0] for row in rows] == list(registry.TABLES[kind.removesuffix("s")])
        assert all(len(row) == 2 and row[1] and not row[1].endswith(".") for row in rows)
    _, rows = listing.workloads()
    conv = {row[0]: row for row in rows}["azure-conv-2023"]
    drawn = Workload.preset("azure-conv-2023", requests=2000)
    assert conv[2] == f"{drawn.rate:.2g}"
    assert conv[3] == f"{drawn['prompt_tokens'].mean():,.0f}"
    assert conv[4] == f"{drawn['output_tokens'].mean():,.0f}"
    assert all(row[1] for row in rows)
    assert listing._about("  ``A`` b\n more. Then.\n\nLater.") == "A b more. Then"
    assert listing._about(None) == ""


def test_numbers_stand_to_the_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("a", "1,234.5", "x1"), ("b", "7", "y")]
    monkeypatch.setitem(listing.KINDS, "envs", lambda: (("name", "number", "text"), rows))
    cli.cli.main(args=["list", "envs"], standalone_mode=False)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].split() == ["name", "number", "text"]
    assert lines[2].index("1,234.5") + 7 == lines[3].index("7") + 1
    assert lines[2].index("x1") == lines[3].index("y")


# What is said beside tables


def test_notices_and_progress_go_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show.notices(["a", "b"])
    assert capsys.readouterr() == ("", "note: a\nnote: b\n")
    with show.progress("what") as moved:
        moved(1, 2)
    assert capsys.readouterr() == ("", "")
    made: list[Any] = []

    class Bar:
        def __init__(self, *columns: Any, **given: Any) -> None:
            made.append(("made", given["transient"], given["console"].stderr))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *given: Any) -> None: ...

        def add_task(self, what: str, total: Any) -> int:
            made.append((what, total))
            return 5

        def update(self, task: int, **given: Any) -> None:
            made.append((task, given))

    monkeypatch.setattr("rich.progress.Progress", Bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with show.progress("what") as moved:
        moved(1, 2)
    assert made == [("made", True, True), ("what", None), (5, {"completed": 1, "total": 2})]


# The demo


def test_the_demo_trains_compares_and_publishes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: dict[str, Any] = {}
    metrics = {
        "kendall_tau": {"value": 0.5, "low": 0.4, "high": 0.6},
        "mae": {"value": 80.0, "low": 70.0, "high": 90.0},
    }
    report = {
        "model": "r<idge", "metrics": metrics, "train": {"prompts": 2000}, "seconds": 3,
        "test": {"prompts": 1900}, "baselines": {"const<ant": {"mae": {"value": 95.0}}},
    }  # fmt: skip

    def trained(prompts: Any, **given: Any) -> Any:
        Path(given["out"]).mkdir()
        (Path(given["out"]) / "weights").write_text("w")
        calls["train"] = (len(prompts), given)
        return report

    found = Comparison(
        "x", pd.DataFrame({"rate": [2.0]}), (Contender("fcfs", None, "fcfs", "none"),), {}, {}
    )

    def compared(source: Any, policies: Any, predictors: Any, rates: Any, seeds: Any, engine: Any,
                 **given: Any) -> Any:  # fmt: skip
        calls.setdefault("compare", []).append(engine)
        spelled = Spelled("synthetic-chat", {"split": "test", "requests": 50})
        for seed in range(2):  # drawn once for both engines
            drawn, asked = source.load(21.0, seed), spelled.load(21.0, seed)
            assert (drawn["prompt"] == asked["prompt"]).all()
            assert drawn["arrival_s"] == pytest.approx(asked["arrival_s"])
        assert policies == ("fcfs", "sjf", "srtf", "mlfq")
        assert predictors == (calls["train"][1]["out"],)
        assert (rates, seeds, given.pop("processes")) == ((21.0, 30.0), 2, 3)
        given["progress"](1, 2)
        return found

    def published(comparison: Any, out: Any, **given: Any) -> Any:
        fresh = tmp_path / "fresh"
        fresh.mkdir()
        given["extra"](fresh)
        calls["publish"] = (comparison, out, given, sorted(p.name for p in fresh.rglob("*")))
        return "report"

    monkeypatch.setattr(demo, "train_predictor", trained)
    monkeypatch.setattr(demo, "compare", compared)
    monkeypatch.setattr(demo, "pick_timelines", lambda *given: ["timeline", given])
    monkeypatch.setattr(demo, "publish", published)
    monkeypatch.setattr(demo, "verdicts", lambda comparison: ["no <queue> forms."])
    monkeypatch.setattr(demo, "heading", lambda comparison, rate: f"{rate:g} requests/s")
    monkeypatch.setattr(demo, "table", lambda comparison, rate: f"<table>{rate:g}</table>")
    said: list[Any] = []
    at: list[tuple[int, int]] = []
    made = demo.run_demo(
        tmp_path / "out", prompts=30, seeds=2, requests=50, processes=3, say=said.append,
        trained=said.append, command="cmd", progress=lambda *done: at.append(done),
    )  # fmt: skip
    count, given = calls["train"]
    assert (count, given["model"], given["command"]) == (30, "ridge", "cmd")
    assert calls["compare"] == [Engine.like("vllm-serve", "h200"), Engine(max_num_seqs=64)]
    assert calls["compare"][0].max_num_seqs == 1024 and at == [(1, 4), (3, 4)]
    comparison, out, publishing, kept = calls["publish"]
    assert (comparison, out) == (found, tmp_path / "out")
    assert kept == ["ridge", "runs-vllm-serve.parquet", "weights"]
    assert publishing["lead"] == (
        "<h3>As vllm serve starts on an H200 (1,024 seats)</h3>"
        '<ul class="verdicts"><li>no &lt;queue&gt; forms.</li></ul><h3>With --max-num-seqs 64</h3>'
    )
    assert "seconds" not in publishing["config"]["training"]
    assert publishing["config"]["training"]["metrics"] == metrics
    timed, source, engine = publishing["timelines"][1]
    assert (timed, source.name, engine) == (found, "synthetic-chat", Engine(max_num_seqs=64))
    served, (name, html) = publishing["sections"]
    assert served[0].endswith("(1,024 seats): 2 requests/s") and served[1] == "<table>2</table>"
    assert name == "The predictor"
    assert "r&lt;idge, trained on answers to 2,000 prompts and tested on 1,900 others" in html
    rows = html.split("<tr>")[2:]
    assert len(rows) == 2
    assert "<th>95% interval</th><th>const&lt;ant</th>" in html
    assert "<td>0.500</td><td>0.400 to 0.600</td><td>–</td>" in rows[0]
    assert "<td>80.0</td><td>70.0 to 90.0</td><td>95.0</td>" in rows[1]
    assert said[0].startswith("1. Learning") and "30 generated prompts" in said[0]
    assert said[1] == report
    assert "2 times at each load" in said[2]
    assert (made.training, made.report) == (report, "report")
    assert list(made.comparisons.values()) == [found, found]


def test_the_demo_command_shows_what_it_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        {"rate": 2.0, "offered_rate": 2.0, "seed": 0, "policy": policy, "predictor": "none",
         "requests": 5.0, **dict.fromkeys(
             ("e2e_mean_s", "e2e_p99_s", "ttft_mean_s", "normalized_latency_mean_s", "wait_max_s",
              "wait_mean_s", "throughput_tokens_per_s", "preemptions"), 1.5)}
        for policy in ("fcfs", "lower bound")
    ]  # fmt: skip
    found = Comparison(
        "x", pd.DataFrame(runs), (Contender("fcfs", None, "fcfs", "none"),), {},
        {"replicas": 1, "router": "round-robin", "timing": "t"},
    )  # fmt: skip

    def run(out: str, **given: Any) -> Any:
        given["say"]("1. ...")
        given["trained"]({"predictor": "p", "data": "d"})
        each = {"Many seats": found, "Few seats": found}
        return SimpleNamespace(comparisons=each, report="o/report.html")

    monkeypatch.setattr(demo, "run_demo", run)
    cli.cli.main(args=["demo", "--out", "o"], standalone_mode=False, obj="c")
    shown = capsys.readouterr().out
    order = [
        "1. ...",
        "p on d",
        "3. What it is worth:",
        "Many seats:\n",
        "Few seats:\n",
        "mean latency, s",
        "Report, figures and every",
    ]
    assert [shown.index(text) for text in order] == sorted(shown.index(text) for text in order)
    assert "Report, figures and every run: o/report.html" in shown
    assert np.isfinite(found.runs.e2e_mean_s).all()


def test_the_mock_server_s_options(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "lengthwise.eval.mock.fleet"

    def of(line: str) -> dict[str, Any]:
        args, _ = asked(monkeypatch, target, f"mock-server {line}")
        setting, policy, predictor, serving = args
        said = {"policy": policy, "predictor": predictor, **vars(serving)}
        return {
            **said,
            **{n: getattr(setting, n) for n in ("engine", "timing", "replicas", "nodes")},
        }

    plain = of("")
    assert plain["engine"] == Engine()
    for text, changed in (
        ("--timing t", {"timing": "t"}), ("--policy srtf", {"policy": "srtf"}),
        ("--predictor oracle", {"predictor": "oracle"}), ("--replicas 3", {"replicas": 3}),
        ("--nodes 2xa", {"nodes": "2xa"}), ("--model m", {"model": "m"}),
        ("--host 0.0.0.0", {"host": "0.0.0.0"}), ("--port 7", {"port": 7}),
        ("--speed 2", {"speed": 2.0}),
        ("--output-tokens constant:5", {"output_tokens": "constant:5"}),
        ("--enable-force-include-usage", {"force_usage": True}), ("--seed 5", {"seed": 5}),
        ("--max-num-seqs 9", {"engine": Engine(max_num_seqs=9)}),
    ):  # fmt: skip
        assert of(text) == {**plain, **changed}, text
    assert (plain["port"], plain["speed"], plain["replicas"], plain["seed"]) == (8000, 1.0, 1, 0)
    assert (plain["model"], plain["host"], plain["force_usage"]) == ("mock", "127.0.0.1", False)
    served: list[Any] = []

    async def serve(*given: Any) -> None:
        served.append(given)

    monkeypatch.setattr(target, lambda *given: "servers")
    monkeypatch.setattr("lengthwise.eval.mock.serve", serve)
    cli.cli.main(args=["mock-server"], standalone_mode=False)
    cli.cli.main(
        args=["mock-server", "--drain-timeout", "3", "--log", "a.csv"], standalone_mode=False
    )
    assert served == [
        ("servers", 30.0, click.echo, None), ("servers", 3.0, click.echo, "a.csv"),
    ]  # fmt: skip


def test_the_endpoint_picker_s_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lengthwise.policies.plugins.gateways import endpoints, picker, server
    from lengthwise.training.commands.serve_epp import described

    made: dict[str, Any] = {}

    async def serve(one: Any, ended: Any, drain: float, say: Any) -> None:
        made["drain"] = drain

    monkeypatch.setattr(
        endpoints, "Endpoints", lambda given, told: made.update(endpoints=given, told=told)
    )
    monkeypatch.setattr(picker, "Picker", lambda at, options, log: made.update(options=options))
    monkeypatch.setattr(server, "PickerServer", lambda one, serving: made.update(serving=serving))
    monkeypatch.setattr(server, "serve", serve)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def of(line: str) -> dict[str, Any]:
        cli.cli.main(args=shlex.split(f"serve-epp {line}"), standalone_mode=False)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
        found = {**vars(made["options"]), "at": made["endpoints"], "drain": made["drain"]}
        serving = dict(vars(made["serving"]))
        return {**found, **serving, **vars(serving.pop("limits"))}

    given = "--endpoints 10.0.0.1:8000,10.0.0.2:8000"
    plain = of(given)
    assert plain["at"] == ["10.0.0.1:8000", "10.0.0.2:8000"]
    assert made["told"] is described
    for text, name, value in (
        ("--router jsq", "policy", "jsq"), ("--predictor p", "predictor", "p"),
        ("--default-tokens 9", "default_tokens", 9.0), ("--host h", "host", "h"),
        ("--port 7", "port", 7), ("--metrics-port 8", "metrics_port", 8),
        ("--scrape-interval 2", "scrape_interval_s", 2.0),
        ("--metrics-path /m", "metrics_path", "/m"),
        ("--shed-above 3", "shed_above", 3), ("--fallbacks 2", "fallbacks", 2),
        ("--shed f.py:s", "shed", "f.py:s"), ("--hold f.py:h", "hold", "f.py:h"),
        ("--hold-above 4", "hold_above", 4), ("--queue 5", "queue", 5),
        ("--queue-timeout 6", "queue_timeout_s", 6.0), ("--order sjf", "order", "sjf"),
        ("--fair", "fair", True), ("--sticky inf", "sticky", float("inf")),
        ("--log-requests", "log_requests", True),
        ("--record d", "record", "d"), ("--dry-run", "dry_run", True), ("--max-body 9", "body", 9),
        ("--max-streams 9", "streams", 9), ("--drain-timeout 3", "drain", 3.0),
        ("--seed 4", "seed", 4),
    ):  # fmt: skip
        found = of(f"{given} {text}")
        differ = {key for key in plain if plain[key] != found[key] and key != "limits"}
        assert (differ, found[name]) == ({name}, value), text
    assert (plain["port"], plain["drain"], plain["streams"]) == (9002, 30.0, 2048)
    assert plain["metrics_port"] is None
    file = tmp_path / "fleet.yaml"
    assert of(f"--endpoints {file}")["at"] == file
    with pytest.raises(InputError, match="no effect without --record"):
        of(f"{given} --record-prompts")
    assert of(f"{given} --record d --record-prompts")["record_prompts"] is True
    with pytest.raises(InputError, match="no effect without --sticky"):
        of(f"{given} --session-cookie c")
    assert of(f"{given} --sticky 9 --session-cookie c")["session_cookie"] == "c"
    with pytest.raises(InputError, match="no effect in a --dry-run"):
        of(f"{given} --dry-run --hold-above 3")
    assert described({}) == {}
    assert described({"max_num_seqs": 9})["max_seats"] == 9.0
    timed = described({"timing": "h200/llama-3.1-8b", "decode_tokens_per_s": 5})
    assert (timed["max_seats"], timed["decode_tokens_per_s"]) == (256.0, 5.0)
    assert described({"timing": "h200/llama-3.1-8b"})["decode_tokens_per_s"] > 100


def test_the_hint_proxy_s_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from lengthwise.policies.plugins.gateways import hints, proxy

    made: dict[str, Any] = {}

    async def serve(one: Any, ended: Any, drain: float, say: Any) -> None:
        made["drain"] = drain

    monkeypatch.setattr(
        hints, "Hints",
        lambda fill, policy, per_unit, lowest_first: made.update(
            fill=fill, policy=policy, per_unit=per_unit, lowest_first=lowest_first
        ),
    )  # fmt: skip
    monkeypatch.setattr(
        proxy, "HintProxy",
        lambda upstream, told, predictor, options: made.update(
            upstream=upstream, predictor=predictor, options=options
        ),
    )  # fmt: skip
    monkeypatch.setattr(proxy, "serve", serve)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def of(line: str) -> dict[str, Any]:
        cli.cli.main(
            args=shlex.split(f"hint-proxy --upstream http://a --predictor p {line}"),
            standalone_mode=False,
        )
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
        serving = dict(vars(made["options"]))
        return {**made, **serving, **vars(serving.pop("limits"))}

    plain = of("")
    assert (plain["upstream"], plain["predictor"]) == ("http://a", "p")
    for text, name, value in (
        ("--fill dynamo", "fill", "dynamo"), ("--policy srtf", "policy", "srtf"),
        ("--priority-scale 10", "per_unit", 10.0), ("--lowest-first", "lowest_first", True),
        ("--predict-timeout 2", "predict_timeout_s", 2.0), ("--host h", "host", "h"),
        ("--port 7", "port", 7), ("--metrics-port 8", "metrics_port", 8),
        ("--max-body 9", "body", 9), ("--max-requests 9", "requests", 9),
        ("--drain-timeout 3", "drain", 3.0),
    ):  # fmt: skip
        found = of(text)
        differ = {key for key in plain if plain[key] != found[key]} - {"options", "limits"}
        assert (differ, found[name]) == ({name}, value), text
    assert (plain["port"], plain["drain"], plain["requests"]) == (8080, 30.0, 2048)


def test_results_are_shown_with_what_was_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = {"model": "m", "target": "exact", "data": "d", "notices": ["look"]}
    monkeypatch.setattr("lengthwise.training.predictor.train_predictor", lambda *a, **k: report)
    monkeypatch.setattr("lengthwise.training.predictor.evaluate_predictor", lambda *a, **k: report)
    for line in ("train predictor d --out p", "evaluate predictor p d"):
        cli.cli.main(args=shlex.split(line), standalone_mode=False, obj="c")
        out, err = capsys.readouterr()
        assert err == "note: look\n"
        assert out.startswith("m (exact) on d\n")
        assert out.endswith("wrote p\n") == line.startswith("train")
    interval = {
        f"{name}{end}": 1.0
        for name in ("mean_latency_s", "p99_latency_s", "mean_ttft_s", "mean_normalized_latency_s",
                     "max_wait_s", "p50_ttft_s", "p99_ttft_s", "p50_tpot_s", "p99_tpot_s",
                     "ratio", "ratio_best", "p99_latency_s_ratio_best",
                     "mean_normalized_latency_s_ratio_best")
        for end in ("", "_low", "_high")
    }  # fmt: skip
    row = {"workload": "w", "load": None, "rate_requests_per_s": 2.0, "best": "sjf",
           "policy": "fcfs", "trained": False, **interval}  # fmt: skip

    def judged(*given: Any, say: Any, **more: Any) -> Any:
        say("careful")
        return [row]

    monkeypatch.setattr("lengthwise.training.judging.evaluate_policy", judged)
    cli.cli.main(args=["evaluate", "policy", "a", "w"], standalone_mode=False)
    out, err = capsys.readouterr()
    assert out.startswith("w, 2 requests/s; best baseline: sjf\n")
    assert err == "note: careful\n"
