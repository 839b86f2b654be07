"""One page a policy, router, predictor and environment, from the registry and the docstrings."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docs.site import pictures
from lengthwise import registry
from lengthwise.features import FEATURES, changes, reads_prediction
from lengthwise.policy import Preemption, RoutingPolicy, SchedulingPolicy, Score

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "https://github.com/lengthwise/lengthwise/blob/main/"
# Where a policy may run: provider -> how people call it. A router's places are others.
SCHEDULERS = {
    "reference": "the readable engine (`--backend reference`)",
    "fast": "the compiled engine (`--backend fast`)",
    "vllm": "vLLM's scheduler",
    "sglang": "SGLang's scheduler",
    "transformers": "transformers continuous batching",
    "priority": "any engine that takes an integer priority, when a request arrives",
}
ROUTERS = {
    "reference": SCHEDULERS["reference"],
    "fast": SCHEDULERS["fast"],
    "router": "Ray Serve, LiteLLM, and Envoy by `lengthwise serve-epp`",
}
CHANGES = {
    "token": "as tokens are generated",
    "clock": "as time passes",
    "state": "with the state of the replica",
}


def policies() -> dict[str, str]:
    """Pages of the scheduling policies."""
    return _folder("policies", "policy", "Policies", POLICIES, _scored)


def routers() -> dict[str, str]:
    """Pages of the routers."""
    return _folder("routers", "router", "Routers", ROUTING, _scored)


def predictors() -> dict[str, str]:
    """Pages of the predictors."""
    return _folder("predictors", "predictor", "Predictors", PREDICTING, _predictor)


def environments() -> dict[str, str]:
    """Pages of the environments."""
    return _folder("environments", "env", "Environments", ENVIRONMENTS, _environment)


POLICIES = (
    "Which waiting request enters the batch next: the one with the lowest score. `--policy NAME` "
    "or `NAME:tunable=value`; add `+guard` for a bound on waiting. "
    "[Write your own](../contributing.md)."
)
ROUTING = (
    "Which replica takes a request: the one with the lowest score. `--router NAME`, or several by "
    "`--routers A,B`. [Systems](../systems.md) says what a router sees and how old it may be."
)
PREDICTING = (
    "How long an answer will be. `--predictor NAME` for those that need no training, "
    "`lengthwise train predictor DATA --model NAME --out DIR` for the others. "
    "[How good they are on real prompts](../predictors.md#how-good-they-are-on-real-prompts)."
)
ENVIRONMENTS = (
    'Decisions to learn, by `gymnasium.make("lengthwise.envs:NAME")`. '
    "[Observation, action, reward](../environments.md)."
)


def _folder(
    folder: str, kind: str, title: str, about: str, page: Callable[[str, str], list[str]]
) -> dict[str, str]:
    found, rows = {}, []
    for name in registry.names(kind):
        file = name.replace("lengthwise/", "").lower()
        text = "\n".join([f"# {name}", "", *page(kind, name)]) + "\n"
        found[f"{folder}/{file}.md"] = text
        rows.append(f"| [{name}]({file}.md) | {_first_line(_doc(kind, name))} |")
    table = "\n".join(["| name | what it does |", "|---|---|", *rows])
    return {f"{folder}/index.md": f"# {title}\n\n{about}\n\n{table}\n", **found}


def _scored(kind: str, name: str) -> list[str]:
    """A policy or a router: what it reads, what can be tuned, where it runs, and a picture."""
    thing: SchedulingPolicy | RoutingPolicy = registry.load(kind, name)
    score = thing.score
    about, source = _module(kind, name)
    lines = [_prose(inspect.getdoc(score.function)), "", "## Where it comes from", "", about, ""]
    picture = pictures.policy(name) if kind == "policy" else pictures.router(name)
    lines += [f"[{source}]({SOURCE}{source})", "", "## On one small run", "", picture, ""]
    lines += ["## The score", ""]
    lines += ["```python", inspect.getsource(score.function).rstrip(), "```", ""]
    lines += ["The lowest goes first; ties by arrival." if kind == "policy" else
              "The lowest is taken; ties go to the replica listed first.", ""]  # fmt: skip
    if isinstance(thing, RoutingPolicy) and thing.choices:
        lines += [f"It looks at {thing.choices} replicas drawn at random, and at no others.", ""]
    lines += ["## What it reads", "", *_table(
        ("feature", "unit", "of", "what it is"),
        ((f"`{f.name}`", f.unit, f.of, f.meaning) for f in (FEATURES[n] for n in score.features)),
    ), "", _when(score), ""]  # fmt: skip
    if score.tunables:
        lines += ["## Tunables", "", *_table(("name", "default", "takes"), (
            (f"`{n}`", f"{v}", str(score.ranges.get(n, "True or False")))
            for n, v in score.tunables.items()
        )), ""]  # fmt: skip
    if isinstance(thing, SchedulingPolicy):
        lines += _preemption(thing)
    places = SCHEDULERS if kind == "policy" else ROUTERS
    lines += ["## Where it runs", "", *_table(("place", "runs", "what is missing there"), (
        (label, "no" if (short := _missing(name, score, provider)) else "yes", short)
        for provider, label in places.items()
    )), ""]  # fmt: skip
    return lines


def _when(score: Score) -> str:
    found = [CHANGES[one] for one in sorted(changes(score.features)) if one in CHANGES]
    needs = "It reads predicted lengths: name a predictor." if reads_prediction(
        score.features
    ) else "It needs no predictor."  # fmt: skip
    if not found:
        return f"The score of a request never changes. {needs}"
    return f"The score changes {' and '.join(found)}. {needs}"


def _missing(name: str, score: Score, provider: str) -> str:
    told = registry.load("provider", provider)
    if name == "fcfs":  # the engine's own order: no feature is asked for
        return ""
    return ", ".join(f"`{feature}`" for feature in score.features if feature not in told)


def _preemption(policy: SchedulingPolicy) -> list[str]:
    preemption = policy.preemption
    lines = ["## Preemption", ""]
    if preemption.mode == "none":
        return [*lines, "None by the policy: a request that runs goes on until it is done, or "
                "until the KV cache is full.", ""]  # fmt: skip
    said = {k: v for k, v in asdict(preemption).items()}
    usual = {field.name: field.default for field in fields(Preemption)}
    rows = ((f"`{k}`", str(v), "" if v == usual[k] else f"{usual[k]}")
            for k, v in said.items())  # fmt: skip
    return [*lines, "A waiting request may take a running one's place, where what the exchange "
            "saves is more than what it costs "
            "([the rule](../decisions/0002-preemption-price.md)).", "",
            *_table(("setting", "here", "by default"), rows), ""]  # fmt: skip


def _predictor(kind: str, name: str) -> list[str]:
    made = registry.load(kind, name)
    about, source = _module(kind, name)
    needs = ", ".join(f"`{one}`" for one in sorted(made.needs)) or "nothing"
    lines = [_prose(inspect.getdoc(made)), "", "## Where it comes from", "", about, ""]
    lines += [f"[{source}]({SOURCE}{source})", "", "## What it reads", ""]
    uses = ", ".join(f"`{one}`" for one in sorted(getattr(made, "uses", ())))
    lines += [f"Of each request: {needs}." + (f" Where it is given, also: {uses}." if uses else "")]
    if "output_tokens" in made.needs:
        lines += ["", "It reads the answer's true length: for simulations only."]
    options = [p for p in inspect.signature(made).parameters.values() if p.name != "self"]
    if options:
        lines += ["", "## Options", "", *_table(("name", "default"), (
            (f"`{p.name}`", "must be given" if p.default is p.empty else f"`{p.default!r}`")
            for p in options
        ))]  # fmt: skip
    return [*lines, "", "## On generated prompts", "", pictures.predictor(name), ""]


def _environment(kind: str, name: str) -> list[str]:
    made = registry.load(kind, name)
    vector, task = made.vector_type, made.task
    about, source = _module(kind, name)
    env: Any = made()
    lines = [_prose(inspect.getdoc(made)), "", _prose(vector.__doc__), ""]
    if name.endswith("-v0"):
        newer = name.replace("-v0", "-v1")
        page = newer.removeprefix("lengthwise/").lower()
        lines += [f"Kept for runs of before; [{newer}]({page}.md) is what to use.", ""]
    lines += ["## Where it comes from", "", about, "", f"[{source}]({SOURCE}{source})", ""]
    lines += ["## Spaces, as it comes", ""]
    spaces = {"action": env.action_space, **env.observation_space.spaces}
    lines += [*_table(("of", "space"), ((n, f"`{space}`") for n, space in spaces.items())), ""]
    lines += ["Of each candidate the agent sees, in this order: "
              + ", ".join(f"`{column}`" for column in env.columns.names) + ".", ""]  # fmt: skip
    lines += ["## Options", "", _prose(task.__doc__), "", *_table(("name", "default"), (
        (f"`{p.name}`", f"`{_short(p.default)}`")
        for p in inspect.signature(task).parameters.values()
    )), ""]  # fmt: skip
    return [*lines, "## On a few episodes", "", pictures.environment(name), ""]


def _short(default: Any) -> str:
    """A default as one would type it: of a dataclass, the fields that differ from its own."""
    if not is_dataclass(default) or isinstance(default, type):
        return repr(default)
    own = ", ".join(
        f"{field.name}={value!r}"
        for field in fields(default)
        if (value := getattr(default, field.name)) != field.default
    )
    return f"{type(default).__name__}({own})"


@cache
def _parsed(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text("utf-8"))


def _module(kind: str, name: str) -> tuple[str, str]:
    """What the module's docstring says, and its path from the root of the repository."""
    found = find_spec(registry.TABLES[kind][name].partition(":")[0])
    assert found is not None and found.origin is not None
    doc = ast.get_docstring(_parsed(found.origin)) or ""
    return _prose(doc), str(Path(found.origin).resolve().relative_to(ROOT))


def _doc(kind: str, name: str) -> str:
    thing = registry.load(kind, name)
    scored = isinstance(thing, SchedulingPolicy | RoutingPolicy)
    return inspect.getdoc(thing.score.function if scored else thing) or ""


def _first_line(doc: str) -> str:
    return _prose(doc.strip().split("\n\n")[0].replace("\n", " ")).rstrip(".")


def _prose(doc: str | None) -> str:
    """A docstring as Markdown: two backticks are one; what is indented stays a block."""
    return inspect.cleandoc(doc or "").replace("``", "`").replace("|", "\\|")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [
        f"| {' | '.join(head)} |", "|" + "---|" * len(head),
        *(f"| {' | '.join(' '.join(cell.split()) for cell in row)} |" for row in rows),
    ]  # fmt: skip
