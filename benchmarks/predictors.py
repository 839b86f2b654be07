"""The whole table of predictors: every form on every source, in and out of what it was trained on.

``python benchmarks/predictors.py DATA/prompts --cache embeddings.npz --out predictors --jobs 16``

Forms: one length for all, the prompt's length, ridge, boosting, MiniLM (frozen, as on a CPU), the
base with no rows, the base with rows; the base is always trained without the source. If asked for:
MiniLM fine-tuned (minilm-tuned, on a GPU). Answers of one model (the middle name of the complete
ones), halves of the prompts by a hash of their text, default settings.

new prompts    trained on one half, tested on the other
new models     trained on other models' answers to one half (with the model's name), tested on a
               model that was never seen, on the other half; mean, least and most of three models
left out       trained on all other sources, tested on this one
N rows         trained on so many rows of the source; mean of draws
upper          what the mean log length of the other models' answers to the same prompt says

Each source and form is a file in --out, written after each of its parts: what is there is not run
again, and after --limit seconds no part is begun; --parts names some, --draws how many draws of
rows there are. SJF's mean latency is a ratio to FCFS's as in
predictor_transfer.py. tau of "left out" and "N rows" is that of all prompts, abstention switched
off; coverage, SJF and the share abstained from are as by default. With --cache the frozen MiniLM
embeds each prompt once, on a GPU where there is one; latency is that of embedding on the CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from predictor_transfer import (
    SAME,
    coverage,
    half,
    latency_ratios,
    remembered,
    sources,
    tau_interval,
)

from lengthwise.context import Context, given
from lengthwise.eval.pool import over_cores
from lengthwise.eval.prediction_metrics import kendall_tau
from lengthwise.prediction import Prediction
from lengthwise.predictors import folder, load_predictor, make_predictor
from lengthwise.training.base import SOURCES, embedded, read, train
from lengthwise.writing import whole_file

Table = pd.DataFrame
FORMS = ("constant", "prompt-length", "ridge", "gbdt", "minilm", "base", "base+local")
TUNED = "minilm-tuned"
ENCODERS = ("minilm", "base", "base+local")  # that read the frozen MiniLM
SIZES = (30, 100, 1000)
DRAWS = {"minilm": 1, TUNED: 1}  # of so many rows, else as --draws says
OTHERS = 250  # prompts of each other source
FLEET = 4000  # rows of other models
MOST = 2000  # prompts of a source to train on
LEFT = 3  # models left out, one at a time


def made(form: str, base: Path) -> Any:
    """A predictor of that form that has seen no rows."""
    if form in ("minilm", TUNED):  # which of them it is does not depend on the machine
        return make_predictor("minilm", frozen=form == "minilm", device=_device(form))
    return load_predictor(base) if form.startswith("base") else make_predictor(form)


def fit(predictor: Any, form: str, rows: Table, context: Context | None = None) -> Any:
    """The same, fitted to rows, unless it takes none."""
    if form != "base":
        predictor.fit(
            list(rows["prompt"]), rows["output_tokens"].to_numpy(),
            prompt_tokens=rows["prompt_tokens"].to_numpy(), **given(predictor, context),
        )  # fmt: skip
    if form == TUNED:  # which learning left on the CPU
        predictor.encoder_.backbone.to(_device(form))
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


def cell(
    name: str, form: str, data: Path, out: Path, cache: Path | None, until: float = float("inf"),
    only: Sequence[str] | None = None, draws: int = 3,
) -> None:  # fmt: skip
    """Measures what of one form on one source is not in ``out``/SOURCE.FORM.json, part by part.

    No part is begun after ``until``, in seconds since the epoch, and none but ``only`` these.
    """
    file = out / f"{name}.{form}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if time.time() > until:
        return
    with tempfile.TemporaryDirectory() as place:
        for key, part in _parts(name, form, data, Path(place) / "base", cache, draws).items():
            asked = only is None or key in only
            if asked and key not in found and time.time() <= until:
                with looked_up(cache if form in ENCODERS and key != "ms" else None):
                    found |= {key: part()}
                with whole_file(file) as fresh:
                    fresh.write_text(json.dumps(found))


def _parts(
    name: str, form: str, data: Path, base: Path, cache: Path | None, draws: int
) -> dict[str, Callable[[], Any]]:
    """What is measured of one form on one source."""
    table = sources(data)
    rows = table[name]
    own, test = one_model(half(rows, 0)), half(rows, 1)
    test = test.sample(min(len(test), 400), random_state=0).reset_index(drop=True)
    length = test["output_tokens"].to_numpy(float)

    def new() -> Any:
        if form.startswith("base") and not base.is_dir():
            with looked_up(cache):
                _base(name, data, base)
        return made(form, base)

    def on_own() -> dict[str, Any]:
        begun = time.perf_counter()
        predictor = fit(new(), form, own)
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, **used(predictor, test)}

    def left_out() -> dict[str, Any]:
        if form == "base":
            return used(new(), test)
        others = [
            half(other, 0).sample(min(OTHERS, len(half(other, 0))), random_state=0)
            for key, other in table.items()
            if key not in (name, SAME.get(name))
        ]
        return used(fit(new(), form, pd.concat(others, ignore_index=True)), test)

    def of_rows(n: int) -> float:
        taus = []
        for seed in range(DRAWS.get(form, draws)):
            drawn = own.sample(min(n, len(own)), random_state=seed)
            taus.append(kendall_tau(blind(fit(new(), form, drawn), test).order, length))
        return float(np.mean(taus))

    parts: dict[str, Callable[[], Any]] = {
        "rows": lambda: len(own), "tested": lambda: len(test),
    }  # fmt: skip
    if form == "constant":  # of the source, once
        parts["upper"] = lambda: _upper(answers(data, name), test)
    if form != "base":
        parts["new prompts"] = on_own
        parts["new models"] = lambda: _new_models(name, form, data, new)
    if form != "base+local":
        parts["left out"] = left_out
    if form != "base":
        parts |= {f"{n} rows": partial(of_rows, n) for n in SIZES if n <= 1.2 * len(own)}
    few = own[:100] if form in (*ENCODERS, TUNED) else own  # what is learned costs as much
    parts["ms"] = lambda: _latency(fit(new(), form, few), test)
    return parts


@contextmanager
def looked_up(cache: Path | None) -> Iterator[None]:
    """The frozen MiniLM's embeddings of prompts in ``cache``, by their tokens, come from there."""
    if cache is None:
        yield
        return
    import torch

    from lengthwise.predictors import encoder

    patched: Any = encoder.Encoder
    with np.load(cache) as kept:
        place, rows = {key: row for row, key in enumerate(kept["keys"].tolist())}, kept["rows"]
    computed = patched.embedded

    def embedded(self: Any, ids: Sequence[Sequence[int]], *more: Any) -> torch.Tensor:
        if not all(_key(one) in place for one in ids):  # prompts that loading asks
            said: torch.Tensor = computed(self, ids, *more)
            return said
        return torch.tensor(rows[[place[_key(one)] for one in ids]])

    patched.embedded = embedded
    try:
        yield
    finally:
        patched.embedded = computed


def embed(data: Path, cache: Path, device: str) -> None:
    """Writes the frozen MiniLM's embeddings of all prompts into ``cache``, unless it is there."""
    if cache.is_file():
        return
    from lengthwise.predictors.base import MAX_TOKENS
    from lengthwise.predictors.encoder import pretrained

    begun = time.perf_counter()
    encoder = pretrained("minilm", max_tokens=MAX_TOKENS, drop_layers=1)
    prompts = pd.concat(
        pd.read_json(path, lines=True)["prompt"] for path in sorted(data.glob("*_prompts.jsonl.gz"))
    )
    ids = {_key(one): one for one in encoder.tokens(prompts.unique())}
    some = list(ids.values())[:: max(1, len(ids) // 64)]
    slow = encoder.embedded(some).numpy()
    encoder.backbone.to(device)
    with whole_file(cache) as fresh, fresh.open("wb") as stream:
        rows = encoder.embedded(list(ids.values())).numpy()
        np.savez(stream, keys=np.array(list(ids)), rows=rows)
    far = np.abs(encoder.embedded(some).numpy() - slow).max() / slow.std()
    print(
        f"{len(ids):,} prompts embedded on {device} in {time.perf_counter() - begun:.0f} s; "
        f"{len(some)} of them differ by at most {far:.1e} standard deviations on the CPU",
        flush=True,
    )


def _key(ids: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).hexdigest()


def _device(form: str) -> str:
    import torch

    return "cuda" if form != "minilm" and torch.cuda.is_available() else "cpu"


def _base(name: str, data: Path, out: Path) -> None:
    """The base, trained without a source and what has the same prompts."""
    rows = read(data, name if name in SOURCES else None)
    rows = rows[rows["source"] != SAME.get(name)].reset_index(drop=True)
    state, arrays = train(rows, embedded(list(rows["prompt"]), None))
    folder.write(folder.Saved("base", {"target": "exact"}, state, arrays), out)


def _new_models(name: str, form: str, data: Path, new: Callable[[], Any]) -> list[float] | None:
    rows = answers(data, name)
    taus = []
    for model in left_models(rows):
        others = half(rows[rows["model"] != model], 0)
        others = others.sample(min(len(others), FLEET), random_state=0).reset_index(drop=True)
        test = half(rows[rows["model"] == model], 1)
        test = test.sample(min(len(test), 400), random_state=0)
        predictor = fit(new(), form, others, Context(model=others["model"].to_numpy()))
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
    """Milliseconds a prompt on the CPU, median, one at a time and 32 at a time."""
    if hasattr(predictor, "encoder_"):
        predictor.encoder_.backbone.cpu()
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
        its = [c for (_, other), c in cells.items() if other == form and "ms" in c]
        if not its:
            continue
        one, many = (np.median([c["ms"][b] for c in its]) for b in ("1", "32"))
        print(f"| {form} | {_training(its)} | {one:.2f} | {many:.2f} |")


def _training(cells: list[dict[str, Any]]) -> str:
    found = [(c["rows"], c["new prompts"]["seconds"]) for c in cells if "new prompts" in c]
    return "{1:.1f} ({0:,})".format(*max(found)) if found else "-"


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
    parser.add_argument("--forms", default=",".join(FORMS), help=f"these, and {TUNED}")
    parser.add_argument("--sources", help="names, with commas; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds; none is begun")
    parser.add_argument("--parts", help="such as 30 rows,100 rows; all by default")
    parser.add_argument("--draws", type=int, default=3, help="of so many rows")
    arguments = parser.parse_args()
    until = time.time() + arguments.limit
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes, which are as many as cores
    forms = arguments.forms.split(",")
    names = arguments.sources.split(",") if arguments.sources else list(sources(arguments.folder))
    if arguments.cache is not None and any(form in ENCODERS for form in forms):
        embed(arguments.folder, arguments.cache, _device("base"))  # once, for all processes
    slow = sorted(forms, key=lambda form: form not in ("minilm", TUNED))  # the longest first
    todo = [
        (name, form, arguments.folder, arguments.out, arguments.cache, until,
         arguments.parts and arguments.parts.split(","), arguments.draws)
        for form in slow for name in names
    ]  # fmt: skip
    for _ in over_cores(cell, todo, arguments.jobs):
        pass
    printed(arguments.out, names, forms)


if __name__ == "__main__":
    main()
