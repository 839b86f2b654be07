"""``lengthwise check``: what is wrong with something of the user's own, before it is run."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from lengthwise.errors import InputError
from lengthwise.training.commands.options import Name, form_options
from lengthwise.training.groups import NamingGroup


@click.group(cls=NamingGroup)
def check() -> None:
    """Checks something of your own before it is run; exits with 2 where something is wrong."""


@check.command()
@click.argument("spec", metavar="FILE[:FUNCTION]")
@click.option("--router", is_flag=True, help="Check it as a router's score of replicas.")
@form_options
def policy(spec: str, router: bool, form: str | None) -> None:
    """Tries a score function on all that may run it: as arrays, as single numbers, compiled, in
    both simulated engines and in vLLM's own scheduler where its environment is made.

    \b
    lengthwise check policy my_policy.py
    lengthwise check policy my_policy.py:score --json
    """
    from lengthwise.eval.check import check_policy
    from lengthwise.eval.terminal import checked_view
    from lengthwise.training.commands.show import show

    found = check_policy(spec, router=router)
    if found.ok or form is not None:
        show(
            form, lambda width: checked_view(found), found.as_json,
            lambda: found.as_json()["checks"],
        )  # fmt: skip
    else:
        for line in found.lines:
            click.echo(f"lengthwise: {line}", err=True)
    if not found.ok:
        sys.exit(2)


@check.command()
@click.argument("settings", metavar="JSON|@FILE")
@click.option(
    "--engine", type=Name("engine of a plugin", ("vllm", "sglang")), default="vllm",
    show_default=True,
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Every setting that holds, as JSON.")
def config(settings: str, engine: str, as_json: bool) -> None:
    """Judges the settings of a plugin as it will itself when its server starts: names, values,
    what has no effect beside the others, whether the policy and the predictor load.

    \b
    lengthwise check config '{"lengthwise": {"policy": "srtf", "predictor": "./p"}}'
    lengthwise check config @settings.json --engine sglang
    """
    from lengthwise.policies.plugins.check import check_settings
    from lengthwise.training.commands.show import notices

    found = check_settings(_json(settings), engine)
    notices(found.notices)
    if as_json:
        held = dataclasses.asdict(found.settings)
        given = sorted(held.pop("given"))
        said = {"engine": engine, "ok": True, "runs": found.runs, "given": given, "settings": held}
        click.echo(json.dumps(said, indent=2))
    else:
        click.echo(f"{engine} will run {found.runs}")


def _json(text: str) -> Any:
    """What an argument spells: JSON, or a file of it after an @."""
    from lengthwise.reading import read_described

    if text.startswith("@"):
        return read_described(Path(text[1:]), "settings")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"settings {text!r} are not JSON: {error} (a file: @settings.json)"
        ) from None
