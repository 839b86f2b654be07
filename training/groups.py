"""Groups of commands: loaded on demand, and unknown names are told the nearest."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from lengthwise.errors import UnknownNameError


class NamingGroup(click.Group):
    """A group that answers an unknown command with the nearest name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        allowed = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in allowed:
            raise UnknownNameError(f"command of {ctx.command_path!r}", args[0], allowed)
        return super().resolve_command(ctx, args)


class LazyGroup(NamingGroup):
    """A group that imports a command when it is asked for.

    ``commands_in`` maps a name to ("module:attribute" in lengthwise.training.commands, one line).
    """

    def __init__(self, *args: Any, commands_in: Mapping[str, tuple[str, str]], **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.commands_in = commands_in

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the table's order."""
        return list(self.commands_in)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command; None for an unknown name."""
        if cmd_name not in self.commands_in:
            return None
        module, _, attribute = self.commands_in[cmd_name][0].partition(":")
        found = getattr(import_module(f"lengthwise.training.commands.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names and lines from the table: importing every command would take a second a key."""
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [
            CompletionItem(name, help=line)
            for name, (_, line) in self.commands_in.items()
            if name.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes names and lines without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.commands_in.items()])
