"""Options that several commands share, and the types that read them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.serving.options import DEFAULT_TIMING, LIKE, UNLIKE, Engine, differences

Command = TypeVar("Command", bound=Callable[..., Any])


class Typed(click.ParamType):  # type: ignore[type-arg]  # generic in click's newest versions alone
    """Base of the types below."""


class Name(Typed):
    """One of several names; an unknown one is told the nearest."""

    name = "name"

    def __init__(self, kind: str, allowed: Iterable[str]) -> None:
        self.kind, self.allowed = kind, tuple(allowed)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.allowed:
            asked = "" if not isinstance(param, click.Option) else f" of {param.opts[0]}"
            raise UnknownNameError(f"{self.kind}{asked}", str(value), self.allowed)
        return str(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(self.allowed)}]"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self.allowed if name.startswith(incomplete)]


class Rates(Typed):
    """``4,8,12``: positive numbers, of requests a second where nothing else is said."""

    name = "R,R,..."

    def __init__(
        self, option: str = "--rates", unit: str = "requests/s", one: str = "rate",
        auto: bool = False,
    ):  # fmt: skip
        self.option, self.unit, self.one, self.auto = option, unit, one, auto

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...] | str:
        if isinstance(value, tuple) or (self.auto and value == "auto"):
            return value  # type: ignore[no-any-return]
        try:
            rates = tuple(float(item) for item in str(value).split(","))
        except ValueError:
            raise InputError(
                f"{self.option} takes numbers of {self.unit} between commas, not {value!r}"
            ) from None
        for rate in rates:
            if not 0 < rate < float("inf"):
                raise InputError(
                    f"{self.option} takes positive numbers of {self.unit}, not {rate:g}"
                )
        if len(set(rates)) < len(rates):
            raise InputError(f"{self.option} names a {self.one} twice: {value!r}")
        return rates


class Specs(Typed):
    """``fcfs,mlfq:quantum=64,levels=6,srtf``: names between commas, each with its options.

    What stands between two commas belongs to the name before it if it is ``word=value``.
    """

    name = "A,B,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else split_specs(str(value))


def split_specs(text: str) -> tuple[str, ...]:
    """The specs in a list between commas."""
    found: list[str] = []
    for item in text.split(","):
        if found and item.partition("=")[0].isidentifier() and "=" in item:
            found[-1] += f",{item}"
        elif item:
            found.append(item)
    return tuple(found)


class Settings(Typed):
    """``name=value,...``: numbers, true, false and words."""

    name = "NAME=VALUE,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        option = param.opts[0] if isinstance(param, click.Option) else ""
        return dict(_setting(item, option) for item in str(value).split(","))


def _setting(item: str, option: str = "") -> tuple[str, Any]:
    name, equals, value = item.partition("=")
    if not (name and equals and value):
        raise InputError(f"{option}: expected NAME=VALUE, not {item!r}".removeprefix(": "))
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


class Renames(Typed):
    """``prompt=question,response=answer``: our names of a file's columns."""

    name = "OURS=THEIRS,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, str]:
        if isinstance(value, dict):
            return value
        found: dict[str, str] = {}
        for item in str(value).split(","):
            ours, _, theirs = map(str.strip, item.partition("="))
            if not (ours and theirs):
                raise InputError(
                    f"--columns takes OURS=THEIRS between commas, as in prompt_tokens=prompt_len, "
                    f"not {item!r}"
                )
            if ours in found:
                raise InputError(f"--columns names {ours!r} twice")
            found[ours] = theirs
        return found


class Deadlines(Typed):
    """``chat=2,batch=60``, or ``30`` for all: seconds by task."""

    name = "TASK=S,...|S"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, float]:
        if isinstance(value, dict):
            return value
        found: dict[str, float] = {}
        for item in str(value).split(","):
            task, _, seconds = item.rpartition("=")
            try:
                found[task] = float(seconds)
            except ValueError:
                raise InputError(
                    f"--deadlines takes TASK=SECONDS between commas, or seconds, not {item!r}"
                ) from None
        return found


columns_option = click.option(
    "--columns", type=Renames(),
    help="Names of columns in a file: arrival_s=when,prompt_tokens=prompt_len.",
)  # fmt: skip
max_expanded_option = click.option(
    "--max-expanded", "max_expanded_mb", type=float, metavar="MB",
    help="What a gzip or Parquet file may expand to. Default: 67, or 100 times the file.",
)  # fmt: skip


def workload_options(command: Command) -> Command:
    """WORKLOAD and how it is drawn; the command receives ``workload`` (a ``Spelled`` source)."""
    for decorate in reversed(
        (
            click.argument("workload", metavar="WORKLOAD"),
            click.option(
                "--arrivals",
                metavar="SPEC",
                help="Arrival times: a trace file, or poisson:RATE, gamma:RATE,cv=2, "
                "bursty:RATE, constant:RATE, burst. Default: the workload's own.",
            ),
            click.option("--requests", type=int, metavar="N", help="How many requests."),
            click.option(
                "--model",
                "--answers-by",
                "model",
                metavar="NAME",
                help="Whose answers, in a file of several models.",
            ),
            click.option(
                "--split",
                type=Name("split", ("all", "train", "test")),
                default="all",
                show_default=True,
                help="Half of the prompts, by a hash of their text.",
            ),
            click.option(
                "--drop-zero-output", is_flag=True, help="Drop requests without output tokens."
            ),
            click.option(
                "--time-unit",
                type=Name("time unit", ("s", "ms", "us", "ns")),
                help="Of the file's numeric times, where its layout has another or none.",
            ),
            columns_option,
            click.option(
                "--deadlines",
                type=Deadlines(),
                help="Seconds in which answers are due, by the request's task, or for all: "
                "chat=2,batch=60 or 30.",
            ),
            max_expanded_option,
        )
    ):
        command = decorate(command)
    return command


# Off here, because textbooks and most published simulators have neither.
SERVE_HAS_ON = ("async_scheduling", "enable_prefix_caching")


def engine_options(command: Command) -> Command:
    """One option per field of ``Engine``, by vLLM's names; None where it was not given."""
    for option in reversed(fields(Engine)):
        flag = option.name.replace("_", "-")
        if option.type == "bool":
            spelled = f"--{flag}/--no-{flag}"
            default = "on" if option.default else "off"
            there = " (`vllm serve` has it on)" if option.name in SERVE_HAS_ON else ""
            decorate = click.option(
                spelled, option.name, default=None, help=f"Default here: {default}{there}."
            )
        else:
            what = option.default if option.default is not None else "the profile's, or none"
            kind = float if option.type == "float" else int
            decorate = click.option(f"--{flag}", type=kind, metavar="N", help=f"Default: {what}.")
        command = decorate(command)
    like = click.option(
        "--like",
        type=Name("engine to be like", (*LIKE, *UNLIKE)),
        help="What that engine chooses by itself on the timing's GPU, for options not given here.",
    )
    return like(command)


def system_options(command: Command) -> Command:
    """The simulated system beside the engine: timing, replicas or nodes, router, backend."""
    backend = click.option(
        "--backend", type=Name("backend", ("auto", "fast", "reference", "vllm")),
        default="auto", show_default=True,
    )  # fmt: skip
    return served_options(backend(command))


def served_options(command: Command) -> Command:
    """The same where the engine is always the one that is fastest."""
    for decorate in reversed(
        (
            click.option(
                "--timing", default=DEFAULT_TIMING, show_default=True, metavar="NAME",
                help="How long iterations take (`lengthwise list timings`).",
            ),
            click.option("--replicas", type=click.IntRange(1), default=1, show_default=True),
            click.option(
                "--nodes", metavar="SPEC|FILE",
                help="Nodes that differ: 2xh200/llama-3.1-8b,roofline:l40s/llama-3.1-8b, or a YAML "
                "or JSON file with their timing, engine options, policy and name.",
            ),
            click.option(
                "--metrics-interval", "metrics_interval_s", type=float, default=0.0,
                metavar="S", help="How old the router's view of nodes gets; 0 is always new.",
            ),
            click.option(
                "--failures", metavar="FILE",
                help="What happens to nodes in the run: YAML, JSON or CSV with kind, node, at_s, "
                "until_s, factor.",
            ),
            click.option(
                "--router", default="round-robin", show_default=True, metavar="SPEC",
                help="Who gets a request (`lengthwise list routers`).",
            ),
        )
    ):  # fmt: skip
        command = decorate(command)
    return command


def form_options(command: Command) -> Command:
    """``form``: "json" or "csv" where standard output holds that and nothing else, or None."""
    for decorate in (
        click.option(
            "--csv", "form", flag_value="csv", help="The table as CSV, alone on standard output."
        ),
        click.option(
            "--json", "form", flag_value="json", help="All of it as JSON, alone on standard output."
        ),
    ):
        command = decorate(command)
    return command


def table_options(command: Command) -> Command:
    """``shown`` and ``wide``: which columns a table in the terminal has."""
    for decorate in (
        click.option(
            "--wide", is_flag=True, help="One table with every column, however wide it gets."
        ),
        click.option(
            "--show", "shown", type=Specs(), default=(), metavar="COLUMN,...",
            help="These columns alone in the table: e2e_mean,e2e_p99_ratio,ttft_p99, ... "
            "--json and --csv have all.",
        ),
    ):  # fmt: skip
        command = decorate(command)
    return command


processes_option = click.option(
    "--processes", type=click.IntRange(1, 1024), default=os.cpu_count() or 1,
    show_default="all cores",
)  # fmt: skip
seeds_option = click.option(
    "--seeds",
    type=click.IntRange(1, 10_000),
    default=5,
    show_default=True,
    metavar="N",
    help="Repetitions with different random numbers, for the confidence intervals.",
)
# What a choice among policies is made by.
metric_option = click.option(
    "--metric", default="e2e_mean", show_default=True, metavar="METRIC_STATISTIC",
    help="What is made small: e2e_mean, e2e_p99, ttft_p95, normalized_latency_mean, ...",
)  # fmt: skip
predictor_option = click.option(
    "--predictor", default="oracle", show_default=True, metavar="SPEC",
    help="A name (oracle) or a trained predictor's folder.",
)  # fmt: skip
rates_option = click.option(
    "--rates", type=Rates(auto=True), default=(), metavar="R,R,...|auto",
    help="Arrival rates in requests/s, all of which count alike; auto: the workload's own, and 80, "
    "95 and 110% of what can be served. Default: the workload's own.",
)  # fmt: skip
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, metavar="N",
    help="Of the random numbers: the same gives the same.",
)  # fmt: skip
out_option = click.option("--out", metavar="DIR", help="Folder for the results.")


def take_engine(options: dict[str, Any], **beside: Any) -> Engine:
    """The engine from a command's options, which are taken out of ``options``.

    ``timing`` and ``nodes``, of which ``--like`` is, are left there, or given in ``beside``.
    """
    from lengthwise.serving.timing.load import gpu_of

    given = {f.name: options.pop(f.name) for f in fields(Engine)}
    chosen = {name: value for name, value in given.items() if value is not None}
    like = options.pop("like")
    if like is None:
        return Engine(**chosen)
    where = {"timing": DEFAULT_TIMING, "nodes": None, **options, **beside}
    if where["nodes"] is not None:
        raise InputError("--like is of one kind of GPU: give --nodes' engine options in its file")
    gpu = gpu_of(str(where["timing"]))
    if gpu is None:
        raise InputError(
            f"--like {like} depends on the GPU, which --timing {where['timing']} doesn't name; "
            "give the engine's options one by one"
        )
    engine = Engine.like(like, gpu, **chosen)
    click.echo(f"note: like {like} on {gpu}: {differences(engine)}", err=True)
    return engine


def take_source(options: dict[str, Any]) -> Any:
    """The workload's source from a command's options, which are taken out of ``options``."""
    from lengthwise.eval.source import Spelled

    names = (
        "arrivals", "requests", "model", "split", "drop_zero_output", "time_unit", "columns",
        "max_expanded_mb", "deadlines",
    )  # fmt: skip
    given = {name: options.pop(name) for name in names}
    drop = given.pop("drop_zero_output")
    chosen = {k: v for k, v in given.items() if v is not None and (k, v) != ("split", "all")}
    return Spelled(options.pop("workload"), {**chosen, **({"drop_zero": True} if drop else {})})
