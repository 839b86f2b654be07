"""The main job, end to end: learn lengths, schedule by them, compare; nothing is downloaded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lengthwise.eval.compare import Comparison, compare
from lengthwise.eval.output import copy_into
from lengthwise.eval.pool import kept_workers
from lengthwise.eval.publish import check_publishable, pick_timelines, publish
from lengthwise.eval.report import table
from lengthwise.eval.source import Cut, Spelled
from lengthwise.eval.tables import heading
from lengthwise.eval.terminal import PREDICTION_ROWS, plain_metric
from lengthwise.eval.verdict import verdicts
from lengthwise.serving import Engine
from lengthwise.serving.workload import generate_prompts
from lengthwise.training.predictor import train_predictor

WORKLOAD = "synthetic-chat"
TRAINING_PROMPTS = 2000  # half of them are kept for testing
TRAINING_SEED = 1_000_000  # not among the seeds of the comparison
REQUESTS = 2000
POLICIES = ("fcfs", "sjf", "srtf", "mlfq")
# The same traffic on both: where it never waits, and where it does.
SEATS = 64
ENGINES: dict[str, Engine] = {
    "As vllm serve starts on an H200 (1,024 seats)": Engine.like("vllm-serve", "h200"),
    f"With --max-num-seqs {SEATS}": Engine(max_num_seqs=SEATS),
}
RATES = (21.0, 30.0)  # requests/s: 95% and 135% of what 64 seats can serve
SEEDS = 3


@dataclass(frozen=True)
class Demo:
    """What the demo found, a comparison an engine of ``ENGINES``, and where its report lies."""

    training: dict[str, Any]
    comparisons: Mapping[str, Comparison]
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

    They are compared on each of ``ENGINES``. ``trained`` is called with the training's report as
    soon as there is one, ``progress`` with (seeds done, seeds in all).
    """
    check_publishable(out)
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
        drawn = Cut(source.name, tuple(source.load(rates[0], seed) for seed in range(seeds)))
        found: dict[str, Comparison] = {}
        with kept_workers(processes):
            for label, engine in ENGINES.items():
                before = len(found) * seeds

                def moved(done: int, total: int, before: int = before) -> None:
                    if progress is not None:
                        progress(before + done, len(ENGINES) * total)

                found[label] = compare(
                    drawn, POLICIES, (folder,), rates, seeds, engine,
                    processes=processes, progress=moved,
                )  # fmt: skip
        (served, idle), (few, queued) = found.items()

        def keep_more(fresh: Path) -> None:
            copy_into(folder, fresh)
            idle.runs.to_parquet(fresh / "runs-vllm-serve.parquet", index=False)

        said = "".join(f"<li>{escape(sentence)}</li>" for sentence in verdicts(idle))
        sections = [(f"{served}: {heading(idle, rate)}", table(idle, rate)) for rate in idle.rates]
        report = publish(
            queued,
            out,
            title="lengthwise demo: what knowing answer lengths is worth",
            timelines=pick_timelines(queued, drawn, ENGINES[few]),
            config={"training": {k: v for k, v in training.items() if k != "seconds"}},
            command=command,
            lead=f'<h3>{escape(served)}</h3><ul class="verdicts">{said}</ul><h3>{escape(few)}</h3>',
            sections=[*sections, ("The predictor", _predictor_section(training))],
            extra=keep_more,
        )
    return Demo(training, found, report)


def _predictor_section(training: dict[str, Any]) -> str:
    """How well the predictor does on unseen prompts, beside what needs no learning."""
    baselines: dict[str, Any] = training.get("baselines", {})

    def beside(name: str) -> str:
        return "".join(
            f"<td>{plain_metric(name, one[name]['value']) if name in one else '–'}</td>"
            for one in baselines.values()
        )

    rows = "".join(
        f'<tr><td class="name">{escape(label)}</td>'
        f"<td>{plain_metric(name, found['value'])}</td>"
        f"<td>{plain_metric(name, found['low'])} to {plain_metric(name, found['high'])}</td>"
        f'{beside(name)}<td class="name predictor">{escape(unit)}</td></tr>'
        for label, name, unit in PREDICTION_ROWS
        if (found := training["metrics"].get(name)) is not None
    )
    heads = "".join(f"<th>{escape(name)}</th>" for name in baselines)
    return (
        f"<p>{escape(training['model'])}, trained on answers to {training['train']['prompts']:,} "
        f"prompts and tested on {training['test']['prompts']:,} others. No policy sees the true "
        "lengths, except where the table says oracle.</p>"
        '<div class="scroll"><table><thead><tr><th class="name">on unseen prompts</th>'
        f"<th>{escape(training['model'])}</th><th>95% interval</th>{heads}"
        f'<th class="name">unit</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
