"""What a user writes to a policy: ``srtf``, ``mlfq:quantum=64``, ``./mine.py:score``, a bundle.

Grammar: ``NAME[:tunable=value,...][+PART[:field=value,...]]...`` where NAME is a registered policy,
``FILE.py:FUNCTION`` or the folder of an exported bundle, and PART is ``preempt``, ``admit`` or
``guard``.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from lengthwise import contract
from lengthwise.errors import InputError, LengthwiseError, UnknownNameError
from lengthwise.policies.bundle import is_bundle, read_bundle
from lengthwise.policy import Guard, RoutingPolicy, SchedulingPolicy, Score, Tunable
from lengthwise.registry import load

Policy = SchedulingPolicy | RoutingPolicy
# Policies of engines that are no score of one request, by their engines' names, and why.
NOT_CARRIED = {
    "dfs-weight": "SGLang's dfs-weight is not carried: it is an order of the whole queue, by how "
    "many requests wait below each node of the cache's tree, and a policy here is a score of one "
    "request; 'lpm' is its other order by the cache",
}


def load_policy(
    spec: str | os.PathLike[str] | SchedulingPolicy | Callable[..., Any], *, tried: bool = True
) -> SchedulingPolicy:
    """A scheduling policy from its spelling, a score function, or a policy (returned as it is).

    A user's own function is tried on sampled features: one that breaks the contract of scores
    (``lengthwise.contract``) is an ``InputError`` with its line, unless it is not to be ``tried``.
    """
    if isinstance(spec, SchedulingPolicy):
        return spec
    if callable(spec):
        return SchedulingPolicy(_sound(Score.from_function(spec), "policy", tried))
    if not isinstance(spec, str | os.PathLike):
        raise InputError(f"not a policy: {spec!r}; a policy is a name, a file or a score function")
    spec = os.fspath(spec)
    head, *extras = parts_of(spec)
    policy = _head(head, "policy", tried)
    if not isinstance(policy, SchedulingPolicy):
        raise InputError(f"{head!r} is a router, not a scheduling policy")
    for extra in extras:
        name, _, options = extra.partition(":")
        if name == "preempt":
            given = _options(options, extra)
            # naming preemption switches it on; sjf and fcfs have it off
            base = policy.preemption
            if base.mode == "none" and "mode" not in given:
                base = dataclasses.replace(base, mode="recompute")
            policy = dataclasses.replace(policy, preemption=_replace(base, given, "preempt"))
        elif name == "admit":
            changed = _replace(policy.admission, _options(options, extra), "admit")
            policy = dataclasses.replace(policy, admission=changed)
        elif name == "guard":
            rule = _replace(policy.guard or Guard(), _options(options, extra), "guard")
            policy = dataclasses.replace(policy, guard=rule)
        else:
            raise UnknownNameError("policy part", name, ("preempt", "admit", "guard"))
    return dataclasses.replace(policy, label=spec)


def load_router(
    spec: str | os.PathLike[str] | RoutingPolicy | Callable[..., Any], *, tried: bool = True
) -> RoutingPolicy:
    """A routing policy: ``jsq``, ``./file.py:score``, a bundle, a score function or a policy.

    ``NAME:choices=d`` samples d replicas first; ``tried`` is as for ``load_policy``.
    """
    if isinstance(spec, RoutingPolicy):
        return spec
    if callable(spec):
        return RoutingPolicy(_sound(Score.from_function(spec), "router", tried))
    if not isinstance(spec, str | os.PathLike):
        raise InputError(f"not a router: {spec!r}; a router is a name, a file or a score function")
    spec = os.fspath(spec)
    policy = _head(spec, "router", tried)
    if not isinstance(policy, RoutingPolicy):
        raise InputError(f"{spec!r} is a scheduling policy, not a router")
    return dataclasses.replace(policy, label=spec)


def parts_of(spec: str) -> list[str]:
    """``spec`` cut at its plus signs, but for those in the path of a bundle or of a file."""
    parts = spec.split("+")
    for end in range(2, len(parts) + 1):
        head = "+".join(parts[:end])
        path, py, function = head.partition(".py:")
        if is_bundle(head) or (py and "+" not in function and os.path.isfile(f"{path}.py")):
            return [head, *parts[end:]]
    return parts


def _head(head: str, kind: str, tried: bool) -> Policy:
    if is_bundle(head):
        return read_bundle(head)
    path, _, rest = head.partition(".py:")
    if rest:
        function, _, options = rest.partition(":")
        score = _sound(_from_file(f"{path}.py", function), kind, tried)
        return _apply(_whole(score, kind), options, head)
    if head.endswith(".py"):
        raise InputError(f"policy file {head!r} needs a function: {head}:score")
    name, _, options = head.partition(":")
    if os.sep in name:
        raise InputError(
            f"{head!r} is neither a bundle (a folder with policy.json) nor FILE.py:NAME"
        )
    if kind == "policy" and name in NOT_CARRIED:
        raise InputError(NOT_CARRIED[name])
    return _apply(load(kind, name), options, head)


def _whole(score: Score, kind: str) -> Policy:
    return SchedulingPolicy(score) if kind == "policy" else RoutingPolicy(score)


def _sound(score: Score, kind: str, tried: bool) -> Score:
    """A user's own score, tried: refused here rather than in the middle of a run."""
    if tried:
        contract.require(score, kind)
    return score


def _apply(policy: Policy, options: str, spec: str) -> Policy:
    given = _options(options, spec)
    if isinstance(policy, RoutingPolicy) and "choices" in given:
        choices = given.pop("choices")
        if not isinstance(choices, int) or isinstance(choices, bool) or choices < 0:
            raise InputError(f"choices takes a whole number of replicas, not {choices!r}")
        policy = dataclasses.replace(policy, choices=choices)
    return dataclasses.replace(policy, score=policy.score.with_tunables(given))


def _from_file(path: str, name: str) -> Score:
    module = _module(path)
    if name not in vars(module):
        raise UnknownNameError(f"function in {path}", name, functions_of(module))
    found = getattr(module, name)
    if inspect.isclass(found):
        lines = [node.lineno for node in ast.parse(Path(path).read_bytes()).body
                 if isinstance(node, ast.ClassDef) and node.name == name]  # fmt: skip
        at = f"{path}:{lines[-1]}" if lines else path
        raise InputError(f"{at}: {name} is a class; a policy is a function: def {name}(...)")
    return Score.from_function(found, name)


def only_function(path: str) -> str:
    """The function of a policy's file that is meant where none is named: ``score``, or its one."""
    own = functions_of(_module(path))
    if "score" in own:
        return "score"
    if len(own) == 1:
        return own[0]
    listed = ", ".join(f"{path}:{name}" for name in own) or "none"
    raise InputError(f"policy file {path!r} needs a function named: {listed}")


def functions_of(module: ModuleType) -> list[str]:
    """The functions that a file defines itself, but for those with a leading underscore."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__module__ == module.__name__
        and not name.startswith("_")
    ]  # fmt: skip


def _module(path: str) -> ModuleType:
    file = Path(path)
    if not os.path.isfile(file):
        raise InputError(f"policy file {path!r} does not exist")
    module_spec = importlib.util.spec_from_file_location(f"_policy_{file.stem}", file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except LengthwiseError:
        raise
    except Exception as error:
        raise InputError(f"policy file {path!r} failed: {type(error).__name__}: {error}") from error
    return module


def _options(text: str, spec: str) -> dict[str, Any]:
    """``a=1,b=true`` as a dict; numbers, true/false and bare words."""
    given: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key or not value:
            raise InputError(f"{spec!r}: expected name=value, not {item!r}")
        given[key] = _value(value)
    return given


def _value(text: str) -> Tunable | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if value != value:
            raise InputError("nan is no value for an option")
        return value
    return text


def _replace(options: Any, given: dict[str, Any], what: str) -> Any:
    fields = {f.name: f.type for f in dataclasses.fields(options)}
    for name, value in given.items():
        if name not in fields:
            raise UnknownNameError(f"{what} option", name, fields)
        wanted = type(getattr(options, name))
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            given[name] = float(value)
        elif type(value) is not wanted:
            raise InputError(f"{what} option {name} takes {wanted.__name__}, not {value!r}")
    return dataclasses.replace(options, **given)
