"""``python -m tests.numbers`` writes ``tests/data/numbers.json``: what was chosen once, by module.

A module's own numbers and tables of numbers, the defaults of its functions, the numbers and
defaults of its classes, and all that the options of its commands take. Sentences in a table are
left out: they are said, not reckoned with.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import json
import os
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import click
import numpy as np

from lengthwise.training.commands.options import Typed
from tests.mutants.plant import files

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).parent / "data" / "numbers.json"
MOST = 64  # numbers of an array that are written out
WIDEST = 120  # a longer table has a line for each of its rows
NOT_SOUGHT = ("__init__", "__main__", "cli", "registry")
SHOWN_ONLY = {"name", "help", "param_type", "param_type_name"}  # of an option
NOTHING = ("None", "False", "()", "Sentinel.UNSET")
# These run inside vLLM, and the last takes over the output of its process.
OTHERS = ("serving.timing.vllm_recorder", "serving.timing.vllm_sweep", "serving.vllm.server")


def text(value: Any) -> str:
    """A value as it is written in the file; floats to twelve digits."""
    match value:
        case np.ndarray() if value.size > MOST:
            ends = f"{text(value.flat[0])} ... {text(value.flat[-1])}"
            return f"{value.dtype}{value.shape}: {ends}, {text(value.astype(float).sum())} together"
        case np.ndarray() | np.generic():
            return text(value.tolist())
        case enum.Enum():
            return str(value)
        case float():
            return f"{value:.12g}"
        case str():
            return "..." if " " in value else repr(value)
        case tuple() | list():
            return f"({', '.join(map(text, value))})"
        case set() | frozenset():
            return f"{{{', '.join(sorted(map(text, value)))}}}"
        case dict():
            return f"{{{', '.join(f'{text(k)}: {text(v)}' for k, v in value.items())}}}"
        case bool() | int() | None | bytes() | complex() | range():
            return repr(value)
        case partial():
            given = [*map(text, value.args), *(f"{k}={text(v)}" for k, v in value.keywords.items())]
            return f"{value.func.__name__}({', '.join(given)})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        some = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return f"{type(value).__name__}({', '.join(f'{k}={text(v)}' for k, v in some)})"
    return "..."


def _holds_a_number(value: Any) -> bool:
    match value:
        case np.ndarray() | np.generic() | bool() | int() | float() | range():
            return True
        case tuple() | list() | set() | frozenset():
            return any(map(_holds_a_number, value))
        case dict():
            return any(map(_holds_a_number, [*value, *value.values()]))
        case partial():
            return any(map(_holds_a_number, [*value.args, *value.keywords.values()]))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(_holds_a_number(getattr(value, f.name)) for f in dataclasses.fields(value))
    return False


def _of_function(name: str, function: FunctionType) -> Iterator[tuple[str, str]]:
    for key, one in inspect.signature(function).parameters.items():
        if one.default is not inspect.Parameter.empty and one.default is not None:
            yield f"{name}({key})", text(one.default)


def _of_table(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and len(text(value)) > WIDEST:
        for key, one in value.items():
            yield f"{name}[{key}]", text(one)
    else:
        yield name, text(value)


def _of_class(cls: type) -> Iterator[tuple[str, str]]:
    made = dataclasses.is_dataclass(cls)
    fields = {}
    for field in dataclasses.fields(cls) if made else ():
        lazily = field.default_factory is not dataclasses.MISSING
        fields[field.name] = field.default_factory() if lazily else field.default
    for name, value in vars(cls).items():
        full = f"{cls.__qualname__}.{name}"
        one = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if isinstance(one, FunctionType) and one.__module__ == cls.__module__:
            yield from _of_function(full, one) if not (made and name == "__init__") else ()
        elif not name.startswith(("__", "_is_")) and name not in fields and _holds_a_number(one):
            yield from _of_table(full, one)
    own = vars(cls).get("__annotations__", {})
    for name, default in fields.items():
        if name in own and default is not None and default is not dataclasses.MISSING:
            yield f"{cls.__qualname__}.{name}", text(default)


def _of_command(command: click.Command) -> Iterator[tuple[str, str]]:
    """Each option: what it is called, what it may be, and what it is where nothing is said."""
    for one in command.params:
        told = one.to_info_dict()
        kind = {**told.pop("type"), **(vars(one.type) if isinstance(one.type, Typed) else {})}
        if one.name == "processes":  # as many as there are cores
            assert told.pop("default") == os.cpu_count()
        told["callback"] = getattr(one.callback, "__name__", None)
        seen = {k: text(v) for k, v in {**told, **kind}.items() if k not in SHOWN_ONLY}
        said = ", ".join(f"{k}={v}" for k, v in sorted(seen.items()) if v not in NOTHING)
        yield f"{command.name} {one.name}", f"{type(one.type).__name__}: {said}"


def of_module(name: str) -> dict[str, str]:
    """What was chosen in a module (``serving.options``): its name there, and the value as text."""
    module = import_module(name if name.startswith("lengthwise.") else f"lengthwise.{name}")
    return dict(_of_module(module))


def _of_module(module: ModuleType) -> Iterator[tuple[str, str]]:
    tree = ast.parse(inspect.getsource(module))
    imports = [one for one in ast.walk(tree) if isinstance(one, ast.Import | ast.ImportFrom)]
    others = {one.asname or one.name for node in imports for one in node.names}
    for name, value in vars(module).items():
        if name in others or name.startswith("__"):
            continue
        if isinstance(value, click.Command):
            if value.callback is not None and value.callback.__module__ == module.__name__:
                yield from _of_command(value)
        elif isinstance(value, type | FunctionType):
            if value.__module__ == module.__name__:
                one = _of_class if isinstance(value, type) else None
                yield from one(value) if one else _of_function(name, value)
        elif _holds_a_number(value):
            yield from _of_table(name, value)


def modules() -> list[str]:
    found = (path.removesuffix(".py").replace("/", ".") for path in files(ROOT))
    last = ((name, name.rpartition(".")[2]) for name in found)
    return [name for name, one in last if one not in NOT_SOUGHT and name not in OTHERS]


def main() -> None:
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    found = {}
    for name in modules():
        try:
            found[name] = of_module(name)
        except ImportError as error:  # what is not installed here stays as it was
            found[name] = known.get(name, {})
            print(f"{name} stays as it was: it needs {error.name}")
    FILE.write_text(json.dumps({k: v for k, v in found.items() if v}, indent=1) + "\n")


if __name__ == "__main__":
    main()
