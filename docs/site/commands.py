"""One page a command of the command line, from click's own description of it."""

from __future__ import annotations

import inspect
import re

import click

from docs.site import examples
from lengthwise.training.cli import COMMANDS, cli


def pages() -> dict[str, str]:
    """Page -> text; the first lists the others."""
    rows = [f"| [{name}]({name}.md) | {line} |" for name, (_, line) in COMMANDS.items()]
    first = "# Commands\n\n`lengthwise COMMAND --help` says the same in a terminal.\n\n"
    found = {
        "commands/index.md": first
        + "| command | what it does |\n|---|---|\n"
        + "\n".join(rows)
        + "\n"
    }
    context = click.Context(cli, info_name="lengthwise")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        text = "\n".join([*_described(command, name, context, "#"), *_example(name)])
        found[f"commands/{name}.md"] = text
    return found


def _example(name: str) -> list[str]:
    """A command as somebody would give it, and what it printed."""
    if name in examples.ELSEWHERE:
        typed, about = examples.ELSEWHERE[name]
        return ["## An example", "", "```", typed, "```", "", about, ""]
    if name not in examples.EXAMPLES:  # a test says so
        return []
    typed, printed = examples.EXAMPLES[name], examples.kept()[name]
    return [
        "## An example",
        "",
        "```",
        typed,
        "```",
        "",
        "prints",
        "",
        "```text",
        printed,
        "```",
        "",
    ]


def _described(command: click.Command, name: str, parent: click.Context, level: str) -> list[str]:
    """The lines on a command, and below it those on the commands of a group."""
    context = click.Context(command, info_name=name, parent=parent)
    lines = [f"{level} lengthwise {context.command_path.removeprefix('lengthwise ')}", ""]
    lines += ["```", context.get_usage().removeprefix("Usage: "), "```", ""]
    lines += [_prose(inspect.cleandoc(command.help or "")), ""]
    options = [found for one in command.params if (found := one.get_help_record(context))]
    if options:
        lines += ["| option | what it does |", "|---|---|"]
        lines += [f"| `{_cell(option)}` | {_escaped(_cell(about))} |" for option, about in options]
        lines += [""]
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found_command = command.get_command(context, inner)
            assert found_command is not None
            lines += _described(found_command, inner, context, level + "#")
    return lines


def _prose(text: str) -> str:
    """Help as Markdown: click's ``\\b`` keeps the lines of a paragraph as they are."""
    parts = re.split(r"\n\s*\n", text)
    said = []
    for part in parts:
        if part.startswith("\b"):
            said.append("```\n" + part.removeprefix("\b").strip("\n") + "\n```")
        else:
            said.append(_escaped(part))
    return "\n\n".join(said)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Brackets and stars stand for themselves; a URL stays what it is."""
    return re.sub(r"([\[\]*_>])", r"\\\1", text).replace("<", "&lt;")
