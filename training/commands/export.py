"""``lengthwise export``: a trained policy as a bundle for the engines."""

from __future__ import annotations

import click


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--to", "to", required=True, metavar="BUNDLE", help="Folder of the bundle.")
def export(run: str, to: str) -> None:
    """Writes the policy of RUN (a training run's folder, or a policy such as mlfq:quantum=64).

    A bundle is policy.json and weights.safetensors: no pickle, no code.
    """
    from pathlib import Path

    if Path(run).is_dir():
        from lengthwise.training.policy import export_run

        click.echo(f"wrote {export_run(run, to)}")
        return
    from lengthwise.policies import load_policy
    from lengthwise.policies.bundle import write_bundle

    click.echo(f"wrote {write_bundle(load_policy(run), to)}")
