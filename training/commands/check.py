"""``lengthwise check``: what is wrong with something of the user's own, before it is run."""

from __future__ import annotations

import json
import sys

import click

from lengthwise.training.groups import NamingGroup


@click.group(cls=NamingGroup)
def check() -> None:
    """Checks something of your own before it is run; exits with 2 where something is wrong."""


@check.command()
@click.argument("spec", metavar="FILE[:FUNCTION]")
@click.option("--router", is_flag=True, help="Check it as a router's score of replicas.")
@click.option("--json", "as_json", is_flag=True, help="Everything that was found, as JSON.")
def policy(spec: str, router: bool, as_json: bool) -> None:
    """Tries a score function on all that may run it: as arrays, as single numbers, compiled, in
    both simulated engines and in vLLM's own scheduler where its environment is made.

    \b
    lengthwise check policy my_policy.py
    lengthwise check policy my_policy.py:score --json
    """
    from lengthwise.eval.check import check_policy
    from lengthwise.eval.terminal import checked_view, console

    found = check_policy(spec, router=router)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    elif found.ok:
        console().print(checked_view(found))
    else:
        for line in found.lines:
            click.echo(f"lengthwise: {line}", err=True)
    if not found.ok:
        sys.exit(2)
