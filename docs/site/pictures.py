"""Small pictures for the catalogue, as SVG in the page: each of one stated small run, made here.

What was measured is kept in build/site-cache under a hash of all code that it depends on, so that
a second build measures nothing again. Training predictors takes minutes: theirs is kept beside this
file, and ``python -m docs.site.pictures`` (with names, or for all) measures it anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import lengthwise as lw
from lengthwise import registry
from lengthwise.features import reads_prediction
from lengthwise.predictors import make_predictor
from lengthwise.serving.workload import generate_prompts
from lengthwise.writing import whole_file

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "site-cache"
READ = ("lengthwise", "serving", "predictors", "policies", "envs", "eval")
WORKLOAD, SEEDS = "azure-conv-2023", range(5)
NODES = "2xh200/llama-3.1-8b,2xroofline:l40s/llama-3.1-8b"
METRICS = {
    "mean latency": "e2e_mean_s",
    "P99 latency": "e2e_p99_s",
    "mean TTFT": "ttft_mean_s",
}
PREDICTED = Path(__file__).with_name("predicted.json")
Ratios = dict[str, list[list[float]]]  # series -> metric -> one ratio a seed


@cache
def _key() -> str:
    """A hash of the code and data that a measurement may depend on."""
    told = hashlib.sha256(Path(__file__).read_bytes())
    for folder in READ:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".json", ".parquet") and "__pycache__" not in path.parts:
                told.update(path.name.encode() + path.read_bytes())
    return told.hexdigest()[:16]


def _kept(name: str, measure: Callable[[], Any]) -> Any:
    """What ``measure`` gives, from the cache where it lies there."""
    path = CACHE / _key() / f"{name.replace('/', '-')}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as fresh:
            fresh.write_text(json.dumps(measure()))
    return json.loads(path.read_text())


# Policies and routers: what they make of the same requests


@cache
def _workload(seed: int, rate: float, requests: int) -> lw.Workload:
    made = lw.Workload.preset(WORKLOAD, requests=requests, rate=rate, seed=seed)
    # no trace has priorities, deadlines or tenants: these are drawn
    rng = np.random.default_rng(seed)
    priority, due_in_s = rng.integers(0, 4, len(made)), rng.choice([2.0, 10.0, 60.0], len(made))
    # one of three tenants sends two thirds
    tenant = rng.choice(["a", "b", "c"], len(made), p=[2 / 3, 1 / 6, 1 / 6]).astype(object)
    return made.replace(priority=priority, deadline_s=made["arrival_s"] + due_in_s, tenant=tenant)


@cache
def _scheduled(policy: str, predictor: str, seed: int) -> list[float]:
    result = lw.simulate(
        _workload(seed, 22.0, 1000), policy=policy, predictor=predictor, seed=seed,
        engine=lw.Engine(max_num_seqs=64),
    )  # fmt: skip
    return [result.summary()[name] for name in METRICS.values()]


@cache
def _routed(router: str, predictor: str, seed: int) -> list[float]:
    result = lw.simulate(
        _workload(seed, 14.0, 500), router=router, predictor=predictor, seed=seed, nodes=NODES,
        engine=lw.Engine(max_num_seqs=8),
    )  # fmt: skip
    return [result.summary()[name] for name in METRICS.values()]


def policy(name: str) -> str:
    """The policy's latencies in those of fcfs, on the same requests."""
    return _ratios(
        name, "fcfs", _scheduled, lw.load_policy(name).score.features,
        f"1,000 requests of `{WORKLOAD}` at 22 requests/s, where a queue forms, on one simulated "
        "H200 with 64 seats; five seeds, a dot each. Left of the line is better than `fcfs`.",
    )  # fmt: skip


def router(name: str) -> str:
    """The router's latencies in those of round-robin, on the same requests."""
    cached = "cached_tokens" in lw.load_router(name).score.features
    return _ratios(
        name, "round-robin", _routed, lw.load_router(name).score.features,
        f"500 requests of `{WORKLOAD}` at 14 requests/s, on two simulated H200 and two L40S (a "
        "roofline) with 8 seats each; five seeds, a dot each. Left of the line is better than "
        "`round-robin`." + (" Nothing is cached in these runs: no two requests share a prefix."
                            if cached else ""),
    )  # fmt: skip


def _ratios(
    name: str, base: str, run: Callable[[str, str, int], list[float]], reads: Sequence[str],
    about: str,
) -> str:  # fmt: skip
    if name == base:
        return (
            f"It is what the others are compared with: `{base}` is the line at 1 in their pictures."
        )
    predictors = {"exact lengths": "oracle"}
    if reads_prediction(reads):
        predictors["lengths of Kendall's τ 0.5"] = "noisy-oracle:tau=0.5"
    found: Ratios = _kept(f"{base}-{name}", lambda: {
        series: [
            [run(name, predictor, s)[m] / run(base, "oracle", s)[m] for s in SEEDS]
            for m in range(len(METRICS))
        ]
        for series, predictor in predictors.items()
    })  # fmt: skip
    if len(found) == 1:
        found = {"": next(iter(found.values()))}
    return _figure(_dots(name, base, found), about) + "\n\n" + "\n".join([
        "| " + " | ".join(["lengths", *METRICS]) + " |", "|---|" + "---:|" * len(METRICS),
        *(f"| {series or name} | "
          + " | ".join(f"{np.mean(row):.2f} × {base}" for row in rows) + " |"
          for series, rows in found.items()),
    ])  # fmt: skip


def _dots(name: str, base: str, found: Ratios) -> str:
    """Rows of dots on a logarithmic axis of ratios, a row a metric and series."""
    values = [value for rows in found.values() for row in rows for value in row]
    low, high = min(0.5, *values) / 1.1, max(2.0, *values) * 1.1
    left, width, step = 130, 420, 22
    rows = [(m, s) for m in range(len(METRICS)) for s in range(len(found))]
    height = step * len(rows) + 34 + (18 if len(found) > 1 else 0)

    def x(value: float) -> float:
        return left + width * math.log(value / low) / math.log(high / low)

    parts = []
    for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        if low <= tick <= high:
            kind = "one" if tick == 1 else "tick"
            parts.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="6" '
                         f'y2="{step * len(rows) + 8}"/>'
                         f'<text x="{x(tick):.1f}" y="{step * len(rows) + 22}" '
                         f'text-anchor="middle">{tick:g} ×</text>')  # fmt: skip
    series = list(found)
    for row, (metric, s) in enumerate(rows):
        y = step * row + 18
        if s == 0:
            parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">'
                         f"{list(METRICS)[metric]}</text>")  # fmt: skip
        for value in found[series[s]][metric]:
            parts.append(f'<circle class="s{s}" cx="{x(value):.1f}" cy="{y}" r="4"/>')
    if len(found) > 1:
        at = left
        for s, label in enumerate(series):
            y = height - 10
            parts.append(f'<circle class="s{s}" cx="{at + 4}" cy="{y}" r="4"/>'
                         f'<text x="{at + 14}" y="{y + 4}">{label}</text>')  # fmt: skip
            at += 160
    said = ", ".join(
        f"{metric} {np.mean(found[series[0]][m]):.2f}" for m, metric in enumerate(METRICS)
    )
    return _svg(left + width + 20, height, parts, f"{name} in {base}: {said}")


# Predictors


@cache
def _prompts(count: int, seed: int) -> Any:
    return generate_prompts(count, seed)


def predictor(name: str) -> str:
    """Predicted against true lengths of prompts that were not trained on."""
    measured = json.loads(PREDICTED.read_text())
    if name not in measured:
        return f"Not measured yet: `python -m docs.site.pictures {name}` does it."
    found = measured[name]
    lengths, predicted = np.array(found["true"]), np.array(found["predicted"])
    low, high = 1.0, 3000.0
    size, left, top = 240, 60, 8

    def at(value: float) -> float:
        return size * math.log(min(max(value, low), high) / low) / math.log(high / low)

    parts = [f'<line class="one" x1="{left}" y1="{top + size}" x2="{left + size}" y2="{top}"/>']
    for tick in (1, 10, 100, 1000):
        parts.append(f'<text x="{left + at(tick):.1f}" y="{top + size + 16}" '
                     f'text-anchor="middle">{tick:,}</text>'
                     f'<text x="{left - 8}" y="{top + size - at(tick) + 4:.1f}" '
                     f'text-anchor="end">{tick:,}</text>')  # fmt: skip
    parts += [
        f'<circle class="s0" cx="{left + at(a):.1f}" cy="{top + size - at(b):.1f}" r="2.5"/>'
        for a, b in zip(lengths, predicted, strict=True)
    ]
    parts.append(f'<text x="{left + size / 2}" y="{top + size + 34}" text-anchor="middle">'
                 "true tokens, predicted upwards</text>")  # fmt: skip
    said = f"Kendall's τ {found['tau']:.2f}" if found["tau"] is not None else "no order at all"
    picture = _svg(left + size + 20, top + size + 42, parts, f"{name}: {said} with the truth")
    return _figure(
        picture,
        f"{said[:1].upper()}{said[1:]} with the true lengths, on 200 generated prompts"
        + (f", {found['how']}." if found["how"] else ".")
        + " The line is where both agree. Generated prompts say what they want, and real ones are "
        "harder.",
    )


def _predicted(name: str) -> dict[str, Any]:
    from scipy.stats import kendalltau

    made = make_predictor(name, **({"tau": 0.5} if name == "noisy-oracle" else {}))
    test = _prompts(200, 7)
    how = "after training on 1,000 others"
    if "output_tokens" in made.needs:
        how = "which it is told" if name == "oracle" else "which it is told, with `tau=0.5`"
        given = {"output_tokens": test.output_tokens}
    else:
        train = _prompts(1000, 1_000_000)
        made.fit(train.prompt, train.output_tokens, prompt_tokens=train.prompt_tokens)
        given = {}
    predicted = made.predict(
        test.prompt, prompt_tokens=test.prompt_tokens, **given
    ).predicted_tokens
    tau = float(kendalltau(predicted, test.output_tokens).statistic)
    return {
        "true": np.asarray(test.output_tokens).tolist(),
        "predicted": np.asarray(predicted, dtype=float).round(1).tolist(),
        "tau": None if math.isnan(tau) else round(tau, 4),
        "how": how,
    }


# Environments


def environment(name: str) -> str:
    """The cost of episodes under agents that anybody can write."""
    found: Mapping[str, list[float]] = _kept(f"env-{name}", lambda: _played(name))
    left, width, step = 190, 360, 24
    high = max(max(costs) for costs in found.values()) * 1.08
    parts = []
    for row, (label, costs) in enumerate(found.items()):
        y, mean = step * row + 8, float(np.mean(costs))
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{label}</text>'
                     f'<rect class="s0" x="{left}" y="{y}" width="{width * mean / high:.1f}" '
                     f'height="16"/><text x="{left + width * mean / high + 6:.1f}" '
                     f'y="{y + 13}">{mean:.2f} s</text>')  # fmt: skip
    said = ", ".join(f"{label} {np.mean(costs):.2f} s" for label, costs in found.items())
    picture = _svg(left + width + 80, step * len(found) + 12, parts, f"{name}: {said}")
    return _figure(picture, ABOUT[name.rpartition("/")[2].partition("-")[0]])


ABOUT = {
    "Routing": f"Mean latency of three episodes of 300 requests of `{WORKLOAD}` at 14 requests/s, "
    "to two simulated H200 and two L40S (a roofline) with 8 seats each.",
    "Scheduling": f"Mean latency of three episodes of 300 requests of `{WORKLOAD}` at 16 "
    "requests/s, on one simulated H200 with 16 seats.",
    "Preemption": f"Mean latency of three episodes of 300 requests of `{WORKLOAD}` at 16 "
    "requests/s, on one simulated H200 with 16 seats, the queue in the order of `sjf`. Naive "
    "preemption throws away more than it saves; see "
    "[the price](../decisions/0002-preemption-price.md).",
}
# name of an agent -> what it takes of the candidates' raw columns, (n, F) by name
Agent = Callable[[Any, np.random.Generator], int]
AGENTS: dict[str, dict[str, Agent]] = {
    "Routing": {
        "any replica": lambda c, rng: int(rng.integers(len(c["running_requests"]))),
        "the first replica": lambda c, rng: 0,
        "the shortest queue": lambda c, rng: int(
            (c["running_requests"] + c["waiting_requests"]).argmin()
        ),
    },
    "Scheduling": {
        "any request": lambda c, rng: int(rng.integers(len(c["predicted_tokens"]))),
        "the head of the queue": lambda c, rng: 0,
        "the shortest answer": lambda c, rng: int(c["predicted_tokens"].argmin()),
    },
    "Preemption": {
        "anybody gives way": lambda c, rng: int(rng.integers(len(c["predicted_tokens"]))),
        "nobody gives way": lambda c, rng: -1,
        "the longest, if longer": lambda c, rng: int(c["predicted_tokens"].argmax()),
    },
}


def _played(name: str) -> dict[str, list[float]]:
    made = registry.load("env", name)
    kind = name.rpartition("/")[2].partition("-")[0]
    options: dict[str, Any] = {"rate": 16.0, "engine": {"max_num_seqs": 16}}
    if kind == "Routing":
        options = {"rate": 14.0, "engine": {"max_num_seqs": 8}, "nodes": NODES}
    found = {}
    for label, agent in AGENTS[kind].items():
        env = made(workload=WORKLOAD, requests=300, **options)
        columns = env.columns.names
        rng = np.random.default_rng(0)
        found[label] = []
        for seed in range(3):
            env.reset(seed=seed, options={"workload_seed": seed})
            done, info = False, {}
            while not done:
                seen = dict(zip(columns, env.candidates().T, strict=True))
                choice = agent(seen, rng)
                legal = np.flatnonzero(env.action_masks())
                _, _, done, _, info = env.step(legal[choice])
            found[label].append(float(info["mean_latency_s"]))
    return found


# Drawing


LARGEST = 1.3  # times its own size: a narrow picture's text stays about as large as the page's


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    told = title.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f'<svg class="small" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="max-width: {LARGEST * width:.0f}px" role="img" '
        f'aria-label="{told.replace(chr(34), "")}"><title>{told}</title>{"".join(parts)}</svg>'
    )


def _figure(svg: str, about: str) -> str:
    return f'<figure class="small">{svg}</figure>\n\n{about}'


def main() -> None:
    """Measures the named predictors, or all; ``predicted.json`` keeps the others as they are."""
    measured = json.loads(PREDICTED.read_text()) if PREDICTED.exists() else {}
    for name in sys.argv[1:] or registry.names("predictor"):
        measured[name] = _predicted(name)
        print(name, measured[name]["tau"], flush=True)
        rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(m)}" for name, m in measured.items())
        with whole_file(PREDICTED) as fresh:
            fresh.write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
