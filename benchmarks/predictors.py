"""The whole table of predictors: every form on every source, in and out of what it was trained on.

``python benchmarks/predictors.py DATA/prompts --cache embeddings.npz --out predictors --jobs 16``

Forms: one length for all, the prompt's length, ridge, boosting, MiniLM, the base with no rows, the
base with rows; the base is always trained without the source. Answers of one model (the middle name
of the complete ones), halves of the prompts by a hash of their text, default settings.

new prompts    trained on one half, tested on the other
new models     trained on other models' answers to one half (with the model's name), tested on a
               model that was never seen, on the other half; mean, least and most of three models
left out       trained on all other sources, tested on this one
N rows         trained on so many rows of the source; mean of draws
upper          what the mean log length of the other models' answers to the same prompt says

Each source and form is a file in --out: what is there is not run again. SJF's mean latency is a
ratio to FCFS's as in predictor_transfer.py. tau of "left out" and "N rows" is that of all prompts,
abstention switched off; coverage, SJF and the share abstained from are as by default.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from predictor_transfer import coverage, half, latency_ratios, remembered, sources, tau_interval

from lengthwise.context import Context, given
from lengthwise.eval.pool import over_cores
from lengthwise.eval.prediction_metrics import kendall_tau
from lengthwise.prediction import Prediction
from lengthwise.predictors import folder, load_predictor, make_predictor
from lengthwise.training.base import SOURCES, embedded, read, train
from lengthwise.writing import whole_file

Table = pd.DataFrame
FORMS = ("constant", "prompt-length", "ridge", "gbdt", "minilm", "base", "base+local")
SAME = {"gsm8k_example_solutions": "zeroeval_gsm", "zeroeval_gsm": "gsm8k_example_solutions"}
SIZES = (30, 100, 1000)
DRAWS = {"minilm": 1}  # of so many rows, else three
OTHERS = 250  # prompts of each other source
FLEET = 4000  # rows of other models
MOST = 2000  # prompts of a source to train on
LEFT = 3  # models left out, one at a time


def made(form: str, base: Path) -> Any:
    """A predictor of that form that has seen no rows."""
    return load_predictor(base) if form.startswith("base") else make_predictor(form)


def fit(predictor: Any, form: str, rows: Table, context: Context | None = None) -> Any:
    """The same, fitted to rows, unless it takes none."""
    if form != "base":
        predictor.fit(
            list(rows["prompt"]), rows["output_tokens"].to_numpy(),
            prompt_tokens=rows["prompt_tokens"].to_numpy(), **given(predictor, context),
        )  # fmt: skip
    return predictor


def ask(predictor: Any, rows: Table, context: Context | None = None) -> Prediction:
    """What it says of rows, in their order, each by itself."""
    said: Prediction = predictor.predict(
        list(rows["prompt"]), prompt_tokens=rows["prompt_tokens"].to_numpy(),
        **given(predictor, context),
    )  # fmt: skip
    return said


def blind(predictor: Any, rows: Table) -> Prediction:
    """What it says when it abstains from nothing."""
    kept = getattr(predictor, "novelty_", None)
    if kept is not None:
        predictor.novelty_ = None
    said = ask(predictor, rows)
    if kept is not None:
        predictor.novelty_ = kept
    return said


def used(predictor: Any, rows: Table) -> dict[str, Any]:
    """As the simulator uses it: order, coverage, latency, abstention."""
    length = rows["output_tokens"].to_numpy(float)
    stream = getattr(predictor, "stream", None)
    with remembered(predictor, list(rows["prompt"])):
        said = ask(predictor if stream is None else stream(), rows)
        return {
            "tau": tau_interval(blind(predictor, rows), length), "coverage": coverage(said, length),
            **latency_ratios(rows, predictor, 3, 1.0),
        }  # fmt: skip


def one_model(rows: Table) -> Table:
    """At most ``MOST`` of them."""
    return rows.sample(min(len(rows), MOST), random_state=0).reset_index(drop=True)


def answers(data: Path, name: str) -> Table:
    """Every model's answers to a source's prompts, one of each pair."""
    lengths = pd.read_csv(data / f"{name}_lengths.csv.gz", keep_default_na=False)
    prompts = pd.read_json(data / f"{name}_prompts.jsonl.gz", lines=True)
    for table in (lengths, prompts):
        table["prompt_id"] = table["prompt_id"].astype(str)
    rows = lengths[lengths["output_tokens"] > 0].drop_duplicates(["model", "prompt_id"])
    return rows.merge(prompts[["prompt_id", "prompt", "prompt_tokens"]], on="prompt_id")


def left_models(rows: Table) -> list[str]:
    """Up to ``LEFT`` models with whole answers, spread over their names."""
    counts = rows["model"].value_counts()
    whole = sorted(counts[counts >= 0.8 * counts.max()].index)
    places = np.linspace(0, len(whole) - 1, LEFT + 2).round().astype(int)[1:-1]
    return list(dict.fromkeys(whole[k] for k in places)) if len(whole) > 2 else []


def cell(name: str, form: str, data: Path, out: Path, cache: Path | None) -> None:
    """Measures one form on one source, and writes ``out``/SOURCE.FORM.json."""
    table = sources(data)
    rows = table[name]
    own, test = one_model(half(rows, 0)), half(rows, 1)
    test = test.sample(min(len(test), 400), random_state=0).reset_index(drop=True)
    length = test["output_tokens"].to_numpy(float)
    found: dict[str, Any] = {"rows": len(own), "tested": len(test)}
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        if form.startswith("base"):
            _base(name, data, base, cache)
        if form != "base":
            begun = time.perf_counter()
            predictor = fit(made(form, base), form, own)
            found["seconds"] = time.perf_counter() - begun
            found["new prompts"] = used(predictor, test)
            found["new models"] = _new_models(name, form, data, base)
        else:
            predictor = made(form, base)
        found["ms"] = _latency(predictor, test)
        if form == "base":
            found["left out"] = used(predictor, test)
        elif form != "base+local":
            others = [
                half(other, 0).sample(min(OTHERS, len(half(other, 0))), random_state=0)
                for key, other in table.items()
                if key not in (name, SAME.get(name))
            ]
            pooled = pd.concat(others, ignore_index=True)
            found["left out"] = used(fit(made(form, base), form, pooled), test)
        for n in SIZES if form != "base" else ():
            if n <= 1.2 * len(own):
                draws = DRAWS.get(form, 3)
                taus = [
                    kendall_tau(blind(fit(made(form, base), form, drawn), test).order, length)
                    for drawn in (
                        own.sample(min(n, len(own)), random_state=s) for s in range(draws)
                    )
                ]
                found[f"{n} rows"] = float(np.mean(taus))
    if form == "constant":  # of the source, once
        found["upper"] = _upper(answers(data, name), test)
    with whole_file(out / f"{name}.{form}.json") as fresh:
        fresh.write_text(json.dumps(found))


def _base(name: str, data: Path, out: Path, cache: Path | None) -> None:
    """The base, trained without a source and what has the same prompts."""
    rows = read(data, name if name in SOURCES else None)
    rows = rows[rows["source"] != SAME.get(name)].reset_index(drop=True)
    state, arrays = train(rows, embedded(list(rows["prompt"]), cache))
    folder.write(folder.Saved("base", {"target": "exact"}, state, arrays), out)


def _new_models(name: str, form: str, data: Path, base: Path) -> list[float] | None:
    rows = answers(data, name)
    taus = []
    for model in left_models(rows):
        others = half(rows[rows["model"] != model], 0)
        others = others.sample(min(len(others), FLEET), random_state=0).reset_index(drop=True)
        test = half(rows[rows["model"] == model], 1)
        test = test.sample(min(len(test), 400), random_state=0)
        predictor = fit(made(form, base), form, others, Context(model=others["model"].to_numpy()))
        if hasattr(predictor, "novelty_"):
            predictor.novelty_ = None
        said = ask(predictor, test, Context(model=test["model"].to_numpy()))
        taus.append(kendall_tau(said.order, test["output_tokens"].to_numpy(float)))
    return [float(np.mean(taus)), min(taus), max(taus)] if taus else None


def _upper(rows: Table, test: Table) -> list[float] | None:
    """Tau of the mean log length of the other models' answers to the same prompt."""
    model = test["model"].iloc[0]
    others = rows[rows["model"] != model]
    logs = np.log(others["output_tokens"])
    centred = logs - logs.groupby(others["model"]).transform("mean")
    mean = centred.groupby(others["prompt"]).mean()
    known = test[test["prompt"].isin(mean.index)]
    if len(known) < 20:
        return None
    said = Prediction.exact(np.exp(mean[known["prompt"]].to_numpy()))
    return tau_interval(said, known["output_tokens"].to_numpy(float))


def _latency(predictor: Any, rows: Table) -> dict[str, float]:
    """Milliseconds a prompt, median, one at a time and 32 at a time."""
    found = {}
    for batch in (1, 32):
        times = []
        for start in range(0, min(len(rows), 40 * batch), batch):
            part = rows.iloc[start : start + batch]
            begun = time.perf_counter()
            ask(predictor, part)
            times.append((time.perf_counter() - begun) / len(part))
        found[str(batch)] = 1e3 * float(np.median(times))
    return found


def printed(out: Path, names: list[str], forms: list[str]) -> None:
    """Both tables, in Markdown."""
    cells = {
        (name, form): json.loads((out / f"{name}.{form}.json").read_text())
        for name in names for form in forms if (out / f"{name}.{form}.json").is_file()
    }  # fmt: skip
    heads = ("source", "form", "new prompts: τ", "coverage", "SJF × FCFS", "new models: τ",
             "left out: τ", "abstained", "SJF × FCFS", "coverage",
             *(f"{n} rows: τ" for n in SIZES))  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|---|---|{'---:|' * (len(heads) - 2)}")
    for (name, form), c in cells.items():
        new, left = c.get("new prompts"), c.get("left out")
        row = [name, form, _tau(new), _share(new, "coverage"), _ratio(new), _range(c, "new models"),
               _tau(left), _share(left, "abstained"), _ratio(left), _share(left, "coverage"),
               *(f"{c[f'{n} rows']:.2f}" if f"{n} rows" in c else "" for n in SIZES)]  # fmt: skip
        print(f"| {' | '.join(row)} |")
        if c.get("upper"):
            tau, low, high = c["upper"]
            told = f"{tau:.2f} ({low:.2f} to {high:.2f})"
            print(f"| {name} | upper: other models' mean | {told} |{' |' * (len(heads) - 3)}")
    print("\n| form | training, s (of rows) | ms, batch 1 | ms a prompt, batch 32 |")
    print("|---|---:|---:|---:|")
    for form in forms:
        its = [c for (_, other), c in cells.items() if other == form]
        if not its:
            continue
        largest = max(its, key=lambda c: c["rows"])
        fitted = f"{largest['seconds']:.1f} ({largest['rows']:,})" if "seconds" in largest else "-"
        one, many = (np.median([c["ms"][b] for c in its]) for b in ("1", "32"))
        print(f"| {form} | {fitted} | {one:.2f} | {many:.2f} |")


def _tau(found: Any) -> str:
    return "" if not found else "{:.2f} ({:.2f} to {:.2f})".format(*found["tau"])


def _share(found: Any, key: str) -> str:
    return "" if not found or np.isnan(found[key]) else f"{found[key]:.0%}"


def _ratio(found: Any) -> str:
    return (
        "" if not found else "{:.3f} ({:.3f} to {:.3f})".format(found["mean"], *found["interval"])
    )


def _range(found: Any, key: str) -> str:
    return "" if not found.get(key) else "{:.2f} ({:.2f} to {:.2f})".format(*found[key])


def main() -> None:
    """Runs what is missing in --out, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("predictors-table"))
    parser.add_argument("--cache", type=Path, help="FILE.npz of embeddings, kept between calls")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--sources", help="names, with commas; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes, which are as many as cores
    forms = arguments.forms.split(",")
    names = arguments.sources.split(",") if arguments.sources else list(sources(arguments.folder))
    if arguments.cache is not None and any(form.startswith("base") for form in forms):
        embedded(list(read(arguments.folder)["prompt"]), arguments.cache)  # once, for all processes
    slow = sorted(forms, key=lambda form: form != "minilm")  # the longest first
    todo = [
        (name, form, arguments.folder, arguments.out, arguments.cache)
        for form in slow for name in names
        if not (arguments.out / f"{name}.{form}.json").is_file()
    ]  # fmt: skip
    for _ in over_cores(cell, todo, arguments.jobs):
        pass
    printed(arguments.out, names, forms)


if __name__ == "__main__":
    main()
