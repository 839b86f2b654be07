"""Each option of each command: its default, its range, and whether it is a switch or required."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import click
import pytest

from lengthwise.serving import Engine
from lengthwise.training.cli import cli


def commands(group: click.Group, *before: str) -> Iterator[tuple[str, click.Command]]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        found = group.get_command(ctx, name)
        if isinstance(found, click.Group):
            yield from commands(found, *before, name)
        elif found is not None:
            yield " ".join((*before, name)), found


COMMANDS = dict(commands(cli))


def spelled(one: click.Parameter) -> str:
    """``int [1, 9] = 5``, ``switch``, ``on or off``, ``text = fcfs``, ``text, required``."""
    if isinstance(one, click.Option) and one.is_flag:
        return "on or off" if one.secondary_opts else "switch"
    kind, said = one.type, one.type.name
    if isinstance(kind, click.IntRange | click.FloatRange):
        low = "" if kind.min is None else kind.min
        high = "" if kind.max is None else kind.max
        said = f"{said.split()[0]} {'(' if kind.min_open else '['}{low}, {high}]"
    said = {"integer": "int"}.get(said, said).replace("integer", "int")
    if one.required:
        return f"{said}, required"
    given = one.to_info_dict()["default"]
    return f"{said} = {given}" if given not in (None, ()) else said


SEEDS, SEED = "int [1, 10000] = 5", f"int [0, {2**63 - 1}] = 0"
TIMING = {"timing": "text = h200/llama-3.1-8b"}
FORM = {"form": "switch"}
WORKLOAD = {
    "workload": "text, required", "arrivals": "text", "requests": "int", "model": "text",
    "split": "name = all", "drop_zero_output": "switch", "time_unit": "name",
    "max_expanded_mb": "float", "deadlines": "TASK=S,...|S",
}  # fmt: skip
SYSTEM = {
    **TIMING, "replicas": "int [1, ] = 1", "nodes": "text", "metrics_interval_s": "float = 0.0",
    "failures": "text", "router": "text = round-robin", "backend": "name = auto",
}  # fmt: skip
ENGINE = {
    one.name: {"bool": "on or off", "float": "float"}.get(str(one.type), "int")
    for one in fields(Engine)
}
ENGINE["like"] = "name"
GRID = {**WORKLOAD, **SYSTEM, **ENGINE, "out": "text", "force": "switch"}
OPTIONS: dict[str, dict[str, str]] = {
    "demo": {"out": "text = runs/demo", "seeds": "int [1, ] = 3", "requests": "int [20, ] = 2000",
             "force": "switch"},
    "advise": {**GRID, **FORM, "predictor": "text", "slo": "text", "seeds": SEEDS},
    "simulate": {**GRID, **FORM, "policy": "text = fcfs", "predictor": "text", "rate": "float",
                 "seed": SEED, "slo": "text", "log_iterations": "switch", "trace": "text"},
    "compare": {**GRID, **FORM, "policies": "A,B,...", "routers": "A,B,...",
                "predictors": "A,B,... = oracle", "rates": "R,R,...", "seeds": SEEDS,
                "slo": "text", "wide": "switch", "dry_run": "switch", "tuning": "switch",
                "budget": "int [4, ] = 64", "metric": "text = e2e_mean"},
    "capacity": {**GRID, **FORM, "policies": "A,B,... = fcfs", "predictors": "A,B,...",
                 "slo": "text, required", "tolerance": "float = 0.01", "seeds": SEEDS,
                 "dry_run": "switch"},
    "plan": {**FORM, "file": "text, required", "rate": "float", "requests": "int [1, ]",
             "routers": "A,B,... = plan,least-requests", "seed": SEED,
             "out": "text", "force": "switch", "dry_run": "switch"},
    "tune": {
        **{name: said for name, said in GRID.items() if name != "backend"}, **FORM,
        "policy": "text, required", "metric": "text = e2e_mean", "budget": "int [4, ] = 64",
        "predictor": "text = oracle", "rates": "R,R,...", "seeds": SEEDS, "seed": SEED,
        "dry_run": "switch",
    },
    "search": {
        **{name: said for name, said in GRID.items() if name != "backend"}, **FORM,
        "metric": "text = e2e_mean", "budget": "int [1, ] = 2000", "size": "int [1, 60] = 15",
        "parsimony": "float [0, 1] = 0.0005", "features": "A,B,...", "start": "A,B,...",
        "predictor": "text = oracle", "rates": "R,R,...", "seeds": SEEDS, "seed": SEED,
        "dry_run": "switch",
    },
    "train policy": {
        **TIMING, **ENGINE, "env": "name = lengthwise/Routing-v1", "algo": "name = ppo",
        "workload": "text = azure-conv-2023", "out": "text, required",
        "steps": "int [1, ] = 500000", "n_envs": "int [1, 16384] = 64", "nodes": "text",
        "scenarios": "text", "features": "A,B,...", "baseline_names": "A,B,...", "guide": "text",
        "seed": SEED, "resume": "switch", "env_set": "NAME=VALUE,... = {}",
        "settings": "NAME=VALUE,... = {}", "force": "switch", "dry_run": "switch",
    },
    "train predictor": {
        **FORM, "data": "text, required", "target": "name = exact", "model": "text = ridge",
        "base": "switch", "recalibrate": "text", "out": "text, required", "answers_by": "text",
        "test_share": "float = 0.5", "max_rows": "int", "source_weights": "text", "seed": SEED,
        "max_expanded_mb": "float", "settings": "NAME=VALUE,... = {}", "force": "switch",
        "dry_run": "switch",
    },
    "evaluate policy": {
        **TIMING, **ENGINE, **FORM, "items": "text, required", "requests": "int [1, ] = 1000",
        "rate": "float", "loads": "R,R,...", "baseline_names": "A,B,...", "tuning": "switch",
        "budget": "int [4, ] = 64", "predictor": "text = oracle", "replicas": "int [1, ]",
        "nodes": "text", "metrics_interval_s": "float = 0.0", "failures": "text", "seeds": SEEDS,
        "wide": "switch", "out": "text", "force": "switch", "dry_run": "switch",
    },
    "evaluate predictor": {
        **FORM, "folder": "text, required", "data": "text, required", "split": "name",
        "answers_by": "text", "max_rows": "int", "max_expanded_mb": "float", "card": "switch",
    },
    "export": {"run": "text, required", "to": "text, required", "force": "switch"},
    "profile": {
        "engine": "name = vllm", "model": "text = llama-3.1-8b", "out": "text, required",
        "name": "text", "seconds": "float = 150.0", "thoroughness": "float = 1.0",
        "tensor_parallel": "int [1, ] = 1", "max_num_seqs": "int [1, ]",
        "max_num_batched_tokens": "int [1, ]",
    },
    "calibrate": {
        **TIMING, **ENGINE, **FORM, "policy": "text = fcfs", "live": "text", "model": "text",
        "rate": "float (0, ]", "seconds": "float [1, 3600] = 60.0", "seed": SEED,
        "force": "switch",
    },
    "reproduce": {**FORM, "paper": "text", "seeds": SEEDS, "small": "switch",
                  "out": "text", "force": "switch"},
    "mock-server": {
        **TIMING, **ENGINE, "force": "switch", "policy": "text = fcfs", "predictor": "text",
        "replicas": "int [1, ] = 1", "nodes": "text", "model": "text = mock",
        "host": "text = 127.0.0.1", "port": "int [0, 65535] = 8000", "speed": "float = 1.0",
        "output_tokens": "text = lognormal:200,cv=1", "enable_force_include_usage": "switch",
        "drain_timeout": "float [0, ] = 30.0", "log": "text", "seed": SEED,
    },
    "serve-epp": {
        "endpoints": "text, required", "router": "text = least-tokens", "predictor": "text",
        "default_tokens": "float [1, ] = 256.0", "host": "text = 127.0.0.1",
        "port": "int [0, 65535] = 9002", "metrics_port": "int [0, 65535]",
        "scrape_interval": "float [0.02, ] = 0.5", "metrics_path": "text = /metrics",
        "shed_above": "int [0, ] = 0", "fallbacks": "int [0, ] = 0", "record": "text",
        "shed": "text = ", "hold": "text = ", "hold_above": "int [0, ] = 0",
        "queue": "int [0, ] = 1000", "queue_timeout": "float (0, ] = 30.0", "order": "text = ",
        "fair": "switch", "sticky": "float [0, ]", "session_cookie": "text = ",
        "log_requests": "switch", "log_format": "choice = text",
        "record_prompts": "switch", "dry_run": "switch", "max_body": f"int [1, ] = {16 * 2**20}",
        "max_streams": "int [1, ] = 2048", "drain_timeout": "float [0, ] = 30.0", "seed": SEED,
    },
    "serve-latency": {
        **TIMING, **ENGINE, "host": "text = 127.0.0.1", "port": "int [0, 65535] = 8000",
        "objective": "choice = quantile", "quantile": "float [0.01, 0.99] = 0.9",
        "answer_tokens": "float [1, ] = 256.0",
    },
    "hint-proxy": {
        "upstream": "text, required", "predictor": "text, required", "fill": "name = vllm",
        "policy": "text = sjf", "priority_scale": "float (0, ] = 1.0", "lowest_first": "switch",
        "predict_timeout": "float (0, ] = 0.1", "host": "text = 127.0.0.1",
        "port": "int [0, 65535] = 8080", "metrics_port": "int [0, 65535]",
        "max_body": f"int [1, ] = {16 * 2**20}", "max_requests": "int [1, ] = 2048",
        "drain_timeout": "float [0, ] = 30.0",
    },
    "check config": {"settings": "text, required", "engine": "name = vllm"},
    "check policy": {**FORM, "spec": "text, required", "router": "switch"},
    "doctor": FORM, "list": {**FORM, "kind": "name"},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options_have_the_defaults_and_ranges_that_they_say(name: str) -> None:
    found = {str(one.name): spelled(one) for one in COMMANDS[name].params}
    assert {option: found.get(option) for option in OPTIONS[name]} == OPTIONS[name]


def test_processes_are_all_cores_by_default_and_1024_at_most() -> None:
    import os

    for name in ("demo", "advise", "compare", "capacity", "reproduce"):
        (one,) = [each for each in COMMANDS[name].params if each.name == "processes"]
        assert spelled(one) == f"int [1, 1024] = {os.cpu_count()}"


@pytest.mark.parametrize("name", [name for name in OPTIONS if "form" in OPTIONS[name]])
def test_results_are_json_or_csv_where_that_is_asked_for(name: str) -> None:
    given: dict[Any, str] = {
        one.flag_value: one.opts[0]
        for one in COMMANDS[name].params
        if isinstance(one, click.Option) and one.name == "form"
    }
    assert given == {"json": "--json", "csv": "--csv"}
