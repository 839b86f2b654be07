"""The command line: ``lengthwise COMMAND``. Commands are imported only when they are asked for."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from typing import NoReturn

import click

from lengthwise import __version__
from lengthwise.errors import InputError
from lengthwise.training.commands.stopped import Stopped
from lengthwise.training.groups import LazyGroup

# name -> ("module:attribute", one line for --help)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo:demo", "Train, simulate, compare and report; nothing to download."),
    "advise": ("advise:advise", "Say whether length-aware scheduling pays for some traffic."),
    "simulate": ("simulate:simulate", "Run one workload under one policy."),
    "compare": ("compare:compare", "Compare policies and predictors at several rates and seeds."),
    "capacity": ("capacity:capacity", "Find the largest arrival rate that meets an SLO."),
    "plan": ("plan:plan", "Find the cheapest mix of nodes that serves a workload within an SLO."),
    "tune": ("tune:tune", "Find the numbers of a policy that serve best on a workload."),
    "search": ("search:search", "Evolve a score function that serves a workload well."),
    "train": ("train:train", "Train a predictor or a policy."),
    "evaluate": ("evaluate:evaluate", "Evaluate a trained predictor or policy."),
    "export": ("export:export", "Export a trained policy as a bundle for the engines."),
    "profile": ("profile:profile", "Measure an engine's iteration times on this machine's GPU."),
    "calibrate": (
        "calibrate:calibrate",
        "Fit a profile to this GPU and CPU from one measured run.",
    ),
    "reproduce": ("reproduce:reproduce", "Reproduce a published table, ours beside theirs."),
    "mock-server": (
        "mock_server:mock_server",
        "Serve OpenAI's API as vLLM would, timed by the simulated engine.",
    ),
    "serve-epp": ("serve_epp:serve_epp", "Serve a routing policy as Envoy's endpoint picker."),
    "serve-latency": (
        "serve_latency:serve_latency",
        "Predict TTFT and TPOT for llm-d's endpoint picker.",
    ),
    "hint-proxy": (
        "hint_proxy:hint_proxy",
        "Tell an engine how long answers will be, in front of its server.",
    ),
    "check": ("check:check", "Check a policy of your own, or the settings of a plugin."),
    "doctor": ("doctor:doctor", "Say what is installed and found here, and what would be refused."),
    "list": ("listing:listing", "List policies, predictors, routers, timings, workloads, envs."),
    "completion": ("completion:completion", "Print what completes commands in bash, zsh or fish."),
}
# Packages that a plain install leaves out, and the extra that brings them.
EXTRA_OF = {
    "aiohttp": "gateway", "prometheus_client": "gateway", "grpc": "gateway", "envoy": "gateway",
    "grpc_health": "gateway",
    "torch": "all", "transformers": "bert", "datasets": "bert", "matplotlib": "plot", "cma": "rl",
    "gymnasium": "rl", "stable_baselines3": "rl", "sb3_contrib": "rl", "tensorboard": "rl",
}  # fmt: skip


@click.group(
    cls=LazyGroup, commands_in=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="lengthwise")
def cli() -> None:
    """Trainable scheduling policies and output-length predictors for LLM serving.

    Try `lengthwise demo` first; `lengthwise COMMAND --help` tells a command's options.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line and exits: 0, or 2 with one line on stderr for bad input.

    Any other exception is a bug and keeps its traceback.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        cli.main(
            args=given,
            prog_name="lengthwise",
            standalone_mode=False,
            obj=shlex.join(["lengthwise", *given]),
        )
    except InputError as error:
        _refuse(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        _refuse(f"this needs {package}: pip install 'lengthwise[{EXTRA_OF[package]}]'")
    except click.UsageError as error:
        _refuse(usage_line(error))
    except click.ClickException as error:
        _refuse(error.format_message())
    except Stopped as stop:
        click.echo(f"lengthwise: {stop}", err=True)
        sys.exit(128 + stop.number)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # `lengthwise list policies | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(0)


def usage_line(error: click.UsageError) -> str:
    """A usage error as one line: what came, the nearest name, and where all are told."""
    where = error.ctx.command_path if error.ctx is not None else "lengthwise"
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        options = sorted(
            option
            for parameter in error.ctx.command.get_params(error.ctx)
            for option in (*parameter.opts, *parameter.secondary_opts)
            if option.startswith("--")
        )
        near = difflib.get_close_matches(error.option_name, options, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown option {error.option_name!r} of {where!r}{hint} (see {where} --help)"
    message = error.format_message().rstrip(".")
    return f"{where}: {message[:1].lower()}{message[1:]} (see {where} --help)"


def _refuse(message: str) -> NoReturn:
    click.echo(f"lengthwise: {' '.join(message.split())}", err=True)
    sys.exit(2)
