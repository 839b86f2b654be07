"""``lengthwise export``: a trained policy as a bundle for the engines."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from lengthwise.training.commands.folders import claim_bundle, force_option


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--to", "to", required=True, metavar="BUNDLE", help="Folder of the bundle.")
@force_option
def export(run: str, to: str, force: bool) -> None:
    """Writes the policy of RUN as a bundle.

    RUN is a training run's folder, a policy or router by name, such as mlfq:quantum=64 or jsew, or
    FILE.py:FUNCTION of a function that returns one formula of features and numbers.

    A bundle is policy.json, weights.safetensors and a card (README.md): no pickle, no code.
    """
    claim_bundle(partial(_exported, run), to, force)
    click.echo(f"wrote {_exported(run, Path(to))}")


def _exported(run: str, to: Path) -> Path:
    """The bundle in ``to``."""
    if Path(run).is_dir():
        from lengthwise.training.policy import export_run

        return export_run(run, to)
    from lengthwise import registry
    from lengthwise.errors import UnknownNameError
    from lengthwise.policies import load_policy, load_router
    from lengthwise.policies.bundle import write_bundle

    name = run.partition("+")[0].partition(":")[0]
    policies, routers = registry.names("policy"), registry.names("router")
    if name.replace("-", "_").isidentifier() and name not in (*policies, *routers):
        raise UnknownNameError("policy or router", name, (*policies, *routers))
    policy = load_router(run) if name in routers else load_policy(run)
    return write_bundle(policy, to)
