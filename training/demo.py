"""The main job, end to end: learn lengths, schedule by them, compare; nothing is downloaded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lengthwise.eval.compare import Comparison, compare
from lengthwise.eval.output import copy_into
from lengthwise.eval.publish import check_publishable, pick_timelines, publish
from lengthwise.eval.source import Spelled
from lengthwise.eval.terminal import PREDICTION_ROWS, plain_metric
from lengthwise.serving import Engine
from lengthwise.serving.workload import generate_prompts
from lengthwise.training.predictor import train_predictor

WORKLOAD = "synthetic-chat"
TRAINING_PROMPTS = 4000  # half of them are kept for testing
TRAINING_SEED = 1_000_000  # not among the seeds of the comparison
REQUESTS = 3000
POLICIES = ("fcfs", "sjf", "srtf", "mlfq")
# requests/s on vLLM's default engine: no queue, about saturation, above it
RATES = (30.0, 50.0, 60.0)
SEEDS = 5


@dataclass(frozen=True)
class Demo:
    """What the demo found, and where its report lies."""

    training: dict[str, Any]
    comparison: Comparison
    report: Path


def run_demo(
    out: str | Path,
    *,
    model: str = "ridge",
    seeds: int = SEEDS,
    requests: int = REQUESTS,
    rates: tuple[float, ...] = RATES,
    prompts: int = TRAINING_PROMPTS,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = print,
    trained: Callable[[dict[str, Any]], None] | None = None,
    command: str | None = None,
) -> Demo:
    """Trains ``model`` on generated prompts, compares policies on others, publishes to ``out``.

    ``trained`` is called with the training's report as soon as there is one.
    """
    check_publishable(out)
    engine = Engine()
    source = Spelled(WORKLOAD, {"split": "test", "requests": requests})
    with tempfile.TemporaryDirectory(prefix="lengthwise-demo-") as made:
        folder = Path(made) / model
        say(f"1. Learning how long answers will be, from {prompts:,} generated prompts ...")
        training = train_predictor(
            generate_prompts(prompts, TRAINING_SEED), model=model, out=folder, command=command
        )
        if trained is not None:
            trained(training)
        say(f"2. Serving other prompts on a simulated H200, {seeds} times at each load ...")
        comparison = compare(
            source, POLICIES, (folder,), rates, seeds, engine,
            processes=processes, progress=progress,
        )  # fmt: skip
        timelines = pick_timelines(comparison, source, engine)

        def keep_predictor(fresh: Path) -> None:
            copy_into(folder, fresh)

        report = publish(
            comparison,
            out,
            title="lengthwise demo: what knowing answer lengths is worth",
            timelines=timelines,
            config={"training": {k: v for k, v in training.items() if k != "seconds"}},
            command=command,
            sections=[("The predictor", _predictor_section(training))],
            extra=keep_predictor,
        )
    return Demo(training, comparison, report)


def _predictor_section(training: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><td class="name">{escape(label)}</td>'
        f"<td>{plain_metric(name, found['value'])}</td>"
        f"<td>{plain_metric(name, found['low'])} to {plain_metric(name, found['high'])}</td>"
        f'<td class="name predictor">{escape(unit)}</td></tr>'
        for label, name, unit in PREDICTION_ROWS
        if (found := training["metrics"].get(name)) is not None
    )
    return (
        f"<p>{escape(training['model'])}, trained on {training['train']['rows']:,} prompts and "
        f"tested on {training['test']['rows']:,} others. No policy sees the true lengths, except "
        "where the table says oracle.</p>"
        '<div class="scroll"><table><thead><tr><th class="name">on unseen prompts</th>'
        '<th>value</th><th>95% interval</th><th class="name">unit</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
