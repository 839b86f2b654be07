"""Folders of results: who may write where, what an interrupted run left, and how one is run again.

One rule: a folder that holds another run, and a file that is there, are refused until ``--force``
is given; the same command replaces its own. What a command was is in the folder's ``config.json``,
and in a trace; of other files nobody knows.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from lengthwise.errors import InputError

Command = TypeVar("Command", bound=Callable[..., Any])
# where results go, how they are shown and how fast they come: the same run with others
ASIDE = frozenset("out to trace force config dry_run resume processes form show shown wide".split())

force_option = click.option(
    "--force", is_flag=True, help="Replace another run's results, and discard what it left."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Check everything and say what would run; write nothing."
)


def config_option(command: Command) -> Command:
    """``--config``: the options of an earlier run, for those that are not given here."""
    option = click.option(
        "--config", metavar="FILE", is_eager=True, expose_value=False, callback=_of_config,
        help="A run's config.json: its arguments, where none are given here; --out is not taken.",
    )  # fmt: skip
    return option(command)


def claim(command: str, out: str | Path | None, force: bool) -> None:
    """Raises ``InputError`` if ``out`` holds the results of another command and not ``force``."""
    from lengthwise.eval.output import CONFIG
    from lengthwise.reading import read_described

    if out is None or force or not (Path(out) / CONFIG).is_file():
        return
    found = read_described(Path(out) / CONFIG, "results' configuration")
    theirs = found.get("command") if isinstance(found, dict) else None
    if isinstance(theirs, str) and same_run(theirs, command):
        return
    what = f"those of `{theirs}`" if isinstance(theirs, str) else "others"
    raise InputError(
        f"{str(out)!r} holds results already, {what}: name a new folder, or --force replaces them"
    )


def claim_file(command: str, path: str | Path | None, force: bool) -> None:
    """Raises ``InputError`` if there is a file already, of another command, and not ``force``."""
    from lengthwise.eval.trace import command_of

    if path is None or force or not Path(path).is_file():
        return
    theirs = command_of(Path(path))
    if theirs is None or not same_run(theirs, command):
        of = "" if theirs is None else f", of `{theirs}`"
        raise InputError(
            f"{str(path)!r} is there already{of}: name another file, or --force replaces it"
        )


def claim_bundle(write: Callable[[Path], Path], to: str | Path, force: bool) -> None:
    """Raises ``InputError`` if ``to`` holds another bundle than ``write`` makes, not ``force``."""
    from lengthwise.policies.bundle import POLICY, WEIGHTS, is_bundle

    def content(folder: Path) -> list[bytes]:
        files = (folder / POLICY, folder / WEIGHTS)
        return [file.read_bytes() if file.is_file() else b"" for file in files]

    if force or not is_bundle(str(to)):
        return
    with tempfile.TemporaryDirectory() as made:
        if content(write(Path(made) / "bundle")) == content(Path(to)):
            return
    raise InputError(
        f"{str(to)!r} holds another policy's bundle: name a new folder, or --force replaces it"
    )


def same_run(one: str, other: str) -> bool:
    """Whether two command lines ask for the same results, defaults spelled out or not."""
    if one == other:
        return True
    try:
        return _asked(one) == _asked(other)
    except (InputError, click.ClickException, click.exceptions.Exit, ValueError):
        return False  # a command of another version, or of no command line


def cells_of(command: str, out: str | Path | None, force: bool) -> Any:
    """``Cells`` beside ``out``, in which a run keeps what is finished until all of it is.

    None without ``out``. Those of an interrupted run of the same command are gone on with, as long
    as no file that it reads has changed; ``force`` discards others.
    """
    from lengthwise.eval.cells import FILES, Cells, digests
    from lengthwise.training.commands.show import notices

    if out is None:
        return None
    folder = cells_folder(out)
    if force and folder.is_dir():
        shutil.rmtree(folder)
    path, options = _asked(command)
    plain = _plain(options)
    cells = Cells.open(folder, {"command": path, **plain, FILES: digests(plain)})
    if count := len(cells):
        notices([f"going on: {folder} holds {count} finished cells of an interrupted run"])
    return cells


def cells_folder(out: str | Path) -> Path:
    """Where a run that writes to ``out`` keeps what is finished."""
    path = Path(out)
    return path.with_name(f"{path.name}.cells")


def _asked(line: str) -> tuple[str, dict[str, Any]]:
    """The command's name and its options, parsed, but for those that change no result."""
    name, command, tokens = _command(line)
    with command.make_context(name, tokens, obj=line) as ctx:
        return name, {key: value for key, value in ctx.params.items() if key not in ASIDE}


def _command(line: str) -> tuple[str, click.Command, list[str]]:
    """The command of a line such as "lengthwise train policy --out r", and what it is given."""
    from lengthwise.training.cli import cli

    program, *tokens = shlex.split(line)
    if program != "lengthwise":
        raise InputError(f"not made by a command of lengthwise: {line!r}")
    found: click.Command = cli
    names: list[str] = []
    while isinstance(found, click.Group) and tokens:
        names.append(tokens.pop(0))
        ctx = click.Context(found, info_name="lengthwise")
        inner = found.get_command(ctx, names[-1])
        if inner is None:
            raise InputError(f"no command of lengthwise: {line!r}")
        found = inner
    return " ".join(names), found, tokens


def _of_config(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Takes the arguments of the command that a ``config.json`` holds as defaults."""
    from lengthwise.reading import read_described

    if value is None:
        return
    config = read_described(Path(value), "run's config.json")
    line = config.get("command") if isinstance(config, dict) else None
    if not isinstance(line, str):
        raise InputError(
            f"--config takes a run's config.json, which holds a command; {value!r} has none"
        )
    name, command, tokens = _command(line)
    if command is not ctx.command:
        raise InputError(f"{value!r} is of `lengthwise {name}`, not of `{ctx.command_path}`")
    theirs = _spelled(ctx, tokens)
    ctx.default_map = {key: text for key, text in theirs.items() if key not in ASIDE}
    if isinstance(ctx.obj, str):  # what is noted as the command says all of it
        ours = _spelled(ctx, _command(ctx.obj)[2])
        del ours["config"]
        ctx.obj = shlex.join(
            ["lengthwise", *name.split(), *_line(command, {**ctx.default_map, **ours})]
        )


def _spelled(ctx: click.Context, tokens: list[str]) -> dict[str, Any]:
    """What a command is given, by the names of its parameters, as it is spelled."""
    given, _, _ = ctx.command.make_parser(ctx).parse_args(list(tokens))
    return {
        key: text
        for key, text in given.items()
        if isinstance(text, str | bool) or (isinstance(text, tuple | list) and text)
    }


def _line(command: click.Command, given: Mapping[str, Any]) -> list[str]:
    """The words that spell ``given``."""
    words: list[str] = []
    for parameter in command.params:
        value = given.get(parameter.name or "")
        if value is None:
            continue
        if isinstance(parameter, click.Argument):
            words += [value] if isinstance(value, str) else list(value)
        elif isinstance(value, bool):
            words += (parameter.opts if value else parameter.secondary_opts)[:1]
        elif isinstance(parameter, click.Option) and parameter.is_flag:  # one of several values
            words += parameter.opts[:1] if value == parameter.flag_value else []
        else:
            words += [parameter.opts[0], value]
    return words


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
