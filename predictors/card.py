"""The model card of a saved predictor: README.md, as the Hugging Face hub reads it.

Front matter is YAML (huggingface.co/docs/hub/model-cards); what follows is for people. A card says
what was measured and no more: a predictor that was saved without a report says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

CARD = "README.md"
TAGS = ["lengthwise", "output-length-prediction", "llm-serving"]
METRICS = {
    "kendall_tau": "Kendall τ_b",
    "mae": "mean absolute error, tokens",
    "r2_log": "R² of log length",
    "within_100": "within 100 tokens",
    "bucket_accuracy": "bucket accuracy",
}
SHOWN = ("kendall_tau", "mae")  # on other data than it was trained on
TARGETS = {
    "exact": "The length of the answer in tokens, about its conditional median.",
    "bucket": "Which of a few intervals the length of the answer falls into.",
    "rank": "Which answers are longer than which, calibrated to tokens.",
    "quantile": "Quantiles of the length of the answer.",
}

Report = Mapping[str, Any]


def card(name: str, options: Mapping[str, Any], report: Report | None = None) -> str:
    """The text of the card of a predictor of that registered name, with its options.

    ``report`` is what ``train_predictor`` reports: data, counts, metrics, those of baselines, and
    metrics on other data.
    """
    parts = [_front(name, options, report), f"# Output-length predictor: {name}\n"]
    target = str(options.get("target", "exact"))
    parts.append(
        f"{TARGETS.get(target, TARGETS['exact'])} It reads the prompt, before the answer is "
        "written. A predictor of [lengthwise](https://pypi.org/project/lengthwise/).\n"
    )
    parts += ["## Data\n", _data(report), "## How good it is\n", _metrics(report)]
    parts += ["## Use\n", USE, "## Intended use and limits\n", LIMITS]
    if options:
        told = "\n".join(f"- `{key}`: `{value!r}`" for key, value in options.items())
        parts += ["## Options\n", told + "\n"]
    return "\n".join(parts)


USE = """\
```python
import lengthwise as lw

predictor = lw.load_predictor("DIR")  # or "hf:OWNER/NAME"
predictor.predict(["Write a haiku"]).predicted_tokens
```

In an engine: `--additional-config '{"lengthwise": {"policy": "srtf", "predictor": "DIR"}}'` (vLLM).
"""
LIMITS = """\
For ordering and placing the requests of an LLM server by how long their answers will be. It is no
statement about a single answer, and none about its content.

- Lengths depend on the model that answers, its sampling and its limits: predictions hold for those
  that it was trained on, and for prompts like those it was trained on.
- On other sources the order can be worse than none: measure it there first
  (`lengthwise evaluate predictor DIR FILE --card` adds a row above).
- The folder holds JSON and safetensors: loading it runs no code of it.
"""


def _front(name: str, options: Mapping[str, Any], report: Report | None) -> str:
    title = f"lengthwise-{name}-{options.get('target', 'exact')}"
    front: dict[str, Any] = {"library_name": "lengthwise", "tags": TAGS}
    base = options.get("model")
    if isinstance(base, str) and base.count("/") == 1 and not base.startswith((".", "/", "~")):
        front["base_model"] = base
    results = []
    if report is not None and report.get("metrics"):
        results.append(_result(str(report["data"]), report["metrics"]))
    results += [_result(str(row["data"]), row["metrics"]) for row in _elsewhere(report)]
    if results:
        front["model-index"] = [{"name": title, "results": results}]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"


def _result(data: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": {"type": "text-regression", "name": "output length"},
        "dataset": {"type": data, "name": data},
        "metrics": [
            {"type": key, "name": METRICS[key], "value": float(metrics[key]["value"])}
            for key in METRICS
            if key in metrics
        ],
    }


def _elsewhere(report: Report | None) -> list[Report]:
    return [] if report is None else list(report.get("elsewhere", ()))


def _data(report: Report | None) -> str:
    if report is None:
        return "Not recorded: it was saved without a training report.\n"
    train, by, again = report["train"], report.get("answers_by"), report.get("recalibrated")
    did = "trained" if again is None else "recalibrated"
    lines = [
        f"- source: {report['data']}",
        f"- answers by: {by or 'one model, or one that is not named'}",
        f"- {did} on {train['rows']:,} answers to {train['prompts']:,} prompts, "
        f"{train['censored']:,} of them cut short and counted as at least so long",
        f"- no prompt is both trained and tested on; seed {report['seed']}",
    ]
    if again is not None:
        lines.append(
            f"- what was recalibrated, lengths and intervals but not the order: {again['from']}, "
            f"trained on {again['trained_on'] or 'data that its folder does not name'}"
        )
    return "\n".join([*lines, *(f"- {notice}" for notice in report.get("notices", ()))]) + "\n"


def _metrics(report: Report | None) -> str:
    if report is None or not report.get("metrics"):
        return "Not measured.\n"
    columns = {"this predictor": report["metrics"], **report.get("baselines", {})}
    text = (
        f"On the test split ({report['test']['rows']:,} answers to {report['test']['prompts']:,} "
        "other prompts), with 95% bootstrap intervals, beside one length for all and a power law "
        "of the prompt's length, trained on the same rows:\n\n"
    )
    text += _table(["metric", *columns], [
        [METRICS[key], *(_cell(found.get(key)) for found in columns.values())]
        for key in METRICS if key in report["metrics"]
    ])  # fmt: skip
    again = report.get("recalibrated", {})
    if "before" in again and "after" in again:
        text += "\nBefore and after it was recalibrated, on the same split:\n\n"
        text += _table(["", "answers in 90% intervals", "actual / predicted"], [
            [when, "-" if again[when]["coverage"] is None else f"{again[when]['coverage']:.0%}",
             f"{again[when]['factor']:.2f}"] for when in ("before", "after")
        ])  # fmt: skip
    if report.get("by_source"):
        text += "\nOf that by source:\n\n" + _table(["source", "metric", "this predictor"], [
            [name, METRICS[key], _cell(found.get(key))]
            for name, found in report["by_source"].items() for key in SHOWN
        ])  # fmt: skip
    elsewhere = _elsewhere(report)
    if not elsewhere:
        return text + "\nOn other sources it was not measured.\n"
    text += "\nOn data that it was not trained on, beside the same baselines:\n\n"
    return text + _table(["data", "metric", *columns], [
        [str(row["data"]), METRICS[key], _cell(row["metrics"].get(key)),
         *(_cell(row["baselines"].get(name, {}).get(key)) for name in list(columns)[1:])]
        for row in elsewhere for key in SHOWN if key in row["metrics"]
    ])  # fmt: skip


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cell(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    return f"{found['value']:.3g} ({found['low']:.3g} to {found['high']:.3g})"
