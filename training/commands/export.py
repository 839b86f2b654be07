"""``lengthwise export``: a trained policy as a bundle for the engines."""

from __future__ import annotations

import click


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--to", "to", required=True, metavar="BUNDLE", help="Folder of the bundle.")
def export(run: str, to: str) -> None:
    """Writes the policy of RUN as a bundle.

    RUN is a training run's folder, or a policy or router by name, such as mlfq:quantum=64 or jsew.

    A bundle is policy.json, weights.safetensors and a card (README.md): no pickle, no code.
    """
    from pathlib import Path

    if Path(run).is_dir():
        from lengthwise.training.policy import export_run

        click.echo(f"wrote {export_run(run, to)}")
        return
    from lengthwise import registry
    from lengthwise.errors import UnknownNameError
    from lengthwise.policies import load_policy, load_router
    from lengthwise.policies.bundle import write_bundle

    name = run.partition("+")[0].partition(":")[0]
    policies, routers = registry.names("policy"), registry.names("router")
    if name.replace("-", "_").isidentifier() and name not in (*policies, *routers):
        raise UnknownNameError("policy or router", name, (*policies, *routers))
    policy = load_router(run) if name in routers else load_policy(run)
    click.echo(f"wrote {write_bundle(policy, to)}")
