"""``lengthwise completion``: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lengthwise.training.commands.options import Name

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_LENGTHWISE_COMPLETE"  # the name that click derives from the program's


@click.command()
@click.argument("shell", type=Name("shell", SHELLS), metavar=f"[{'|'.join(SHELLS)}]")
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Prints the script that completes commands, options and names in a shell.

    \b
    bash: eval "$(lengthwise completion bash)"     in ~/.bashrc
    zsh:  eval "$(lengthwise completion zsh)"      in ~/.zshrc
    fish: lengthwise completion fish > ~/.config/fish/completions/lengthwise.fish
    """
    made = get_completion_class(shell)
    assert made is not None
    found = made(context.find_root().command, {}, "lengthwise", VARIABLE)
    # not source(): for bash that starts one, to look at its version
    click.echo(found.source_template % found.source_vars())
