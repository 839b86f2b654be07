"""Trains an output-length predictor on prompts and answer lengths, and evaluates it on unseen ones.

Prompts are split by a hash of their text, so no prompt is both trained and tested on.
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise import registry
from lengthwise.context import given
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval.output import check_writable, provenance, replaced_folder
from lengthwise.eval.prediction_metrics import prediction_metrics
from lengthwise.eval.prediction_windows import PredictionWindow, verdict, window_of, windowed
from lengthwise.prediction import Prediction
from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.predictors.card import CARD
from lengthwise.predictors.card import card as card_text
from lengthwise.predictors.columns import resampled
from lengthwise.predictors.folder import Saved
from lengthwise.predictors.folder import read as read_folder
from lengthwise.predictors.learned import Learned
from lengthwise.predictors.targets import bucket_edges, check_target
from lengthwise.protocols import Predictor
from lengthwise.serving.workload import Prompts, read_prompts
from lengthwise.serving.workload.readers import models_together
from lengthwise.serving.workload.split import in_split
from lengthwise.training.sources import (
    merged,
    row_weights,
    shares_prompts,
    sketch,
    together,
    with_answers,
)
from lengthwise.writing import whole_file

CONFIG, REPORT = "config.json", "report.json"
ALL = "all"  # of ``answers_by``: every model's answers
UNTRAINED = ("oracle", "noisy-oracle")

# of a report, not of the configuration
OF_DATA = ("metrics", "by_source", "edges", "sketch", "baselines", "fitted_baselines")

Report = dict[str, Any]


def train_predictor(
    data: str | Path | Prompts | Sequence[str | Path | Prompts],
    *,
    target: str = "exact",
    model: str = "ridge",
    out: str | Path | None = None,
    seed: int = 0,
    test_share: float = 0.5,
    max_rows: int | None = None,
    answers_by: str | None = None,
    source_weights: Sequence[float] | None = None,
    options: Mapping[str, Any] | None = None,
    command: str | None = None,
    recalibrate: str | Path | None = None,
    dry_run: bool = False,
) -> Report:
    """Trains on the train split of ``data``, evaluates on the test split, saves to ``out``.

    ``recalibrate`` is a predictor that was trained before: its lengths and intervals are set right
    on the train split in place of training (``Learned.recalibrated``); ``model``, ``target`` and
    ``options`` are then its own.

    ``data`` is what ``read_prompts`` reads (a file, ``hf:NAME``) or what it returns, or several of
    these, which then count alike or as ``source_weights`` say, whatever their numbers of rows;
    ``model`` a registered predictor, or a folder or hub name of a pretrained encoder;
    ``answers_by`` the model whose answers to learn, in data of several ("all" for every one's, each
    with an effect of its own); ``max_rows`` draws so many rows of each at random; ``options`` are
    more arguments of the predictor, such as ``buckets`` or ``epochs``. With a ``test_share`` of 0
    all prompts are trained on, and none tested.

    A predictor that trains in epochs keeps checkpoints in ``out``.checkpoint until it is done: the
    same call after an interruption goes on from there.

    Returns the report that is also written to ``out``, with ``seconds`` (not written, so that the
    same seed writes the same bytes). A ``dry_run`` reads and checks everything, trains and writes
    nothing, and reports what would be trained and tested on. Raises ``InputError`` for bad data or
    names.
    """
    if not 0 <= test_share < 1:
        raise InputError(f"test_share must lie in [0, 1), not {test_share!r}")
    if out is not None:
        check_writable(out)
    settings = dict(options or {})
    before: Learned | None = None
    if recalibrate is not None:
        before = _trained_before(recalibrate, settings, source_weights)
        model, target = before.name, before.target
        answers_by = answers_by or _trained(recalibrate).get("answers_by")
    predictor = before or _unfitted(model, target, seed, settings)
    if before is None and out is not None and getattr(predictor, "checkpoint", "") is None:
        predictor = _unfitted(model, target, seed, {**settings, "checkpoint": f"{out}.checkpoint"})
    given_sources = [data] if isinstance(data, str | Path | Prompts) else list(data)
    if not given_sources:
        raise InputError("there are no data to train on")
    parts = [_rows(source, answers_by, max_rows, seed) for source in given_sources]
    rows, source = together(parts)
    seen = np.ones(len(rows), bool)
    if test_share > 0:
        seen = in_split(rows.prompt, "train", test_share)
    train, test = rows.select(seen), rows.select(~seen)
    if not len(train):
        raise InputError(f"{rows.name}: no prompt falls into the train split")

    weights = None if before else row_weights(source[seen], source_weights, len(parts))
    if dry_run:
        return {
            "data": rows.name, "notices": list(rows.notices), "model": model, "target": target,
            "train": _counts(train), "test": _counts(test),
        }  # fmt: skip
    started = time.perf_counter()
    if before is None:
        _fit(predictor, train, weights, seed)
    else:
        predictor = before.recalibrated(
            list(train.prompt), train.output_tokens, censored=train.censored, context=train.context
        )
    fitted = time.perf_counter()
    edges = _edges(train)
    report: Report = {
        "data": rows.name,
        "notices": list(rows.notices),
        "answers_by": answers_by,
        "model": model,
        "target": target,
        "seed": seed,
        "test_share": test_share,
        "train": _counts(train),
        "test": _counts(test),
        "edges": edges,
        "sketch": sketch(rows.prompt),
    }
    if before is not None:
        report |= _recalibration(recalibrate, before, test)
        report["sketch"] = merged(report["sketch"], _trained(str(recalibrate)).get("sketch", ()))
    if len(parts) > 1:
        report["sources"] = {part.name: _counts(part) for part in parts}
        report["source_weights"] = None if source_weights is None else list(source_weights)
    predicted_s = 0.0
    if (~test.censored).sum() >= 2:  # fewer make no metrics
        begun = time.perf_counter()
        prediction = _predict(predictor, test)
        predicted_s = time.perf_counter() - begun
        report["metrics"] = _metrics(prediction, test, edges, seed)
        if before is not None:
            report["recalibrated"]["after"] = asdict(_all_rows(prediction, test))
        if len(parts) > 1:
            report["by_source"] = _by_source(prediction, test, source[~seen], parts, edges, seed)
        baselines = _baselines(train)
        report["baselines"] = {
            name: _metrics(_predict(one, test), test, edges, seed)
            for name, one in baselines.items()
        }
        report["fitted_baselines"] = _described(baselines)
    if out is not None:
        with replaced_folder(out) as fresh:
            predictor.save(fresh)
            _write(fresh / REPORT, report)
            _write_card(fresh, report)
            config = {**report, "options": settings, "max_rows": max_rows}
            config = {k: v for k, v in config.items() if k not in OF_DATA}
            _write(fresh / CONFIG, provenance(config, command))
        report["folder"] = str(out)
    return {**report, "seconds": {"fit": fitted - started, "predict": predicted_s}}


def evaluate_predictor(
    folder: str | Path | Predictor,
    data: str | Path | Prompts,
    *,
    split: str | None = None,
    test_share: float | None = None,
    max_rows: int | None = None,
    answers_by: str | None = None,
    seed: int = 0,
    card: bool = False,
) -> Report:
    """Evaluates a saved predictor (or one by its spelling) on a split of ``data``.

    ``split`` is "train", "test" or "all": by default "all" of data that share no prompt with those
    that the predictor was trained on, and otherwise "test", which it has not seen; ``test_share``
    defaults to what it was trained with. Rows whose length was cut short are left out, and counted.
    ``windows`` of the report are those of ``eval.prediction_windows``, over the rows in their
    order, ``verdict`` what they come to; ``baselines`` are the metrics of what any predictor must
    beat, trained on what this one was trained on (none, of one that has no report).

    ``card``: the result goes into the folder's report and model card, beside those of baselines
    that were trained on what the predictor was trained on.
    """
    predictor = load_predictor(folder)
    if predictor is None:
        raise InputError("there is no predictor to evaluate: 'none'")
    trained = _trained(folder)
    share = float(trained.get("test_share", 0.5)) if test_share is None else test_share
    if split not in (None, "train", "test", ALL):
        raise UnknownNameError("split", str(split), ("train", "test", ALL))
    by = answers_by or trained.get("answers_by")
    rows = _rows(data, by, max_rows, seed, trained="answers_by" in trained and not answers_by)
    held = trained.get("sketch")
    # older reports know the name alone
    known = bool(trained) and trained.get("data") == rows.name
    if held is not None:
        known = shares_prompts(rows.prompt, held)
    if split is None:
        split = "test" if known and share > 0 else ALL
    seen = known and split != "test"
    if card and seen:
        other = "another file" if share == 0 else "--split test, or another file"
        raise InputError(
            f"{rows.name} holds prompts that {folder!s} was trained on: its card takes results on "
            f"others; give {other}"
        )
    if share == 0 and split != ALL:
        raise InputError(f"the predictor was trained on all prompts: there is no {split} split")
    rows = rows if split == ALL else rows.split(split, share)
    if (~rows.censored).sum() < 2:
        raise InputError(
            f"{rows.name}: metrics need 2 whole answers; the {split} split has "
            f"{int((~rows.censored).sum())}, and {int(rows.censored.sum())} that were cut short"
        )
    begun = time.perf_counter()
    prediction = _predict(predictor, rows)
    predicted_s = time.perf_counter() - begun
    edges = trained.get("edges") or _edges(rows)
    metrics = _metrics(prediction, rows, edges, seed)
    windows = windowed(*_whole(prediction, rows), _abstained(predictor, rows))
    baselines = {
        name: _metrics(_predict(one, rows), rows, edges, seed)
        for name, one in _restored(trained.get("fitted_baselines", {})).items()
    }
    if card:
        _note(folder, trained, rows, metrics, baselines)
    return {
        "predictor": str(folder) if isinstance(folder, str | Path) else type(folder).__name__,
        "data": rows.name,
        "split": split,
        "test_share": share,
        "trained_on": seen,
        "notices": list(rows.notices),
        "test": _counts(rows),
        "metrics": metrics,
        "baselines": baselines,
        "windows": [asdict(window) for window in windows],
        "verdict": verdict(windows),
        "seconds": {"predict": predicted_s},
    }


def _trained_before(
    path: str | Path, settings: Mapping[str, Any], source_weights: Sequence[float] | None
) -> Learned:
    """The predictor to recalibrate; raises ``InputError`` for one that has nothing to set right."""
    found = load_predictor(path)
    if not isinstance(found, Learned):
        raise InputError(
            f"{str(path)!r} is no predictor that learned from text: to recalibrate takes one; "
            "others are trained anew as fast"
        )
    if settings or source_weights is not None:
        raise InputError("a predictor that is recalibrated keeps its options: give none")
    return found


def _recalibration(path: str | Path | None, before: Learned, test: Prompts) -> Report:
    """What the report says of where the predictor is from, and what it was worth as it was."""
    told: Report = {"from": Path(str(path)).name, "trained_on": _trained(str(path)).get("data")}
    if (~test.censored).sum() >= 2:
        told["before"] = asdict(_all_rows(_predict(before, test), test))
    return {"recalibrated": told}


def _all_rows(prediction: Prediction, rows: Prompts) -> PredictionWindow:
    said, actual = _whole(prediction, rows)
    return window_of(said, actual)


def _whole(prediction: Prediction, rows: Prompts) -> tuple[Prediction, NDArray[np.int64]]:
    """Predictions and lengths of the rows that were not cut short."""
    whole = ~rows.censored
    return prediction.select(whole), rows.output_tokens[whole]


def _abstained(predictor: Predictor, rows: Prompts) -> NDArray[np.bool_] | None:
    """Which of the rows that were not cut short are left in their order, were they to come so."""
    if not isinstance(predictor, Learned):
        return None
    found = _predict(predictor.stream(), rows).abstained
    return None if found is None else found[~rows.censored]


def _unfitted(model: str, target: str, seed: int, options: Mapping[str, Any]) -> Predictor:
    """The predictor that ``model`` names: registered, or on a pretrained encoder at a path."""
    check_target(target)
    names = [name for name in registry.names("predictor") if name not in UNTRAINED]
    if model in UNTRAINED:
        raise InputError(f"{model!r} learns nothing; predictors to train: {', '.join(names)}")
    if model in ("constant", "prompt-length"):
        if target != "exact":
            raise InputError(f"{model!r} has the target exact alone, not {target!r}")
        return make_predictor(model, **options)
    if model in names:
        return make_predictor(model, target=target, seed=seed, **options)
    if os.sep in model or Path(model).is_dir():  # a folder, or a hub name such as org/encoder
        return make_predictor("transformer", target=target, seed=seed, model=model, **options)
    raise UnknownNameError("predictor model", model, names)


def _fit(
    predictor: Predictor, train: Prompts, weights: NDArray[np.float64] | None, seed: int
) -> None:
    """Fits it, with weights of the rows; one that knows none gets rows as often as they weigh."""
    more: dict[str, Any] = {}
    if weights is not None and "weights" in inspect.signature(predictor.fit).parameters:
        more["weights"] = weights
    elif weights is not None:
        train = train.select(resampled(weights, seed))
    predictor.fit(
        list(train.prompt), train.output_tokens,
        prompt_tokens=train.prompt_tokens, censored=train.censored,
        **given(predictor, train.context), **more,
    )  # fmt: skip


def _rows(
    data: str | Path | Prompts, answers_by: str | None, max_rows: int | None, seed: int,
    *, trained: bool = False,
) -> Prompts:  # fmt: skip
    """The rows of one source; ``trained`` says that ``answers_by`` is only what was learned from,
    and that others may be asked about where it has no answers.
    """
    if max_rows is not None and max_rows < 1:
        raise InputError(f"max_rows must be 1 or more, not {max_rows}")
    by = None if answers_by == ALL else answers_by
    rows = data
    if not isinstance(rows, Prompts):
        rows = read_prompts(rows, drop_zero=True)  # no answer, nothing to learn
    held = [] if rows.model is None else sorted({str(name) for name in rows.model})
    if by is not None and (by in held or not trained):
        if not held:
            raise InputError(f"{rows.name} does not say which model answered: no {by!r} to pick")
        if by not in held:
            raise UnknownNameError(f"model in {rows.name}", by, held)
        assert rows.model is not None
        others = models_together(rows.name, held)  # which are not learned
        its = np.array([str(name) == by for name in rows.model])
        rows = replace(rows, notices=tuple(told for told in rows.notices if told != others))
        rows = rows.select(its)
        held = [by]
    elif by is not None and held:
        told = f"{rows.name}: has no answers of {by}, which were learned; all others are scored"
        rows = replace(rows, notices=(*rows.notices, told))
    rows = with_answers(rows)
    if len(held) > 1 and answers_by is None:
        raise InputError(
            f"{rows.name} holds answers of {len(held)} models ({', '.join(held)}); name the "
            f"one to learn, or {ALL}"
        )
    if max_rows is not None and max_rows < len(rows):
        drawn = np.random.default_rng(seed).permutation(len(rows))[:max_rows]
        rows = rows.select(np.sort(drawn))
    return rows


def _predict(predictor: Predictor, rows: Prompts) -> Prediction:
    return predictor.predict(
        list(rows.prompt),
        prompt_tokens=rows.prompt_tokens,
        output_tokens=rows.output_tokens if "output_tokens" in predictor.needs else None,
        **given(predictor, rows.context),
    )


def _by_source(
    prediction: Prediction,
    rows: Prompts,
    source: NDArray[np.int64],
    parts: Sequence[Prompts],
    edges: list[float] | None,
    seed: int,
) -> dict[str, Any]:
    """Metrics within each source that has enough whole answers to make them."""
    found = {}
    for number, part in enumerate(parts):
        its = source == number
        if (~rows.censored[its]).sum() >= 2:
            chosen = prediction.select(its), rows.select(its)
            found[part.name] = _metrics(*chosen, edges, seed)
    return found


def _metrics(
    prediction: Prediction, rows: Prompts, edges: list[float] | None, seed: int
) -> dict[str, dict[str, float]]:
    said, actual = _whole(prediction, rows)
    groups = list(rows.prompt[~rows.censored])
    found = prediction_metrics(said, actual, edges=edges, groups=groups, seed=seed)
    return {
        name: {"value": interval.mean, "low": interval.low, "high": interval.high}
        for name, interval in found.items()
    }


def _counts(rows: Prompts) -> dict[str, int]:
    return {
        "rows": len(rows),
        "prompts": len(set(rows.prompt)),
        "censored": int(rows.censored.sum()),
    }


def _edges(rows: Prompts) -> list[float] | None:
    """Edges at the default percentiles of the lengths; None if they are too few or too equal."""
    lengths = rows.output_tokens.astype(np.float64)
    return bucket_edges(lengths).tolist() if len(np.unique(lengths)) > 1 else None


def _baselines(train: Prompts) -> dict[str, Predictor]:
    """What any predictor must beat, trained on the same rows."""
    return {
        name: make_predictor(name).fit(
            [], train.output_tokens, prompt_tokens=train.prompt_tokens, censored=train.censored
        )
        for name in ("constant", "prompt-length")
    }


def _described(baselines: Mapping[str, Predictor]) -> dict[str, dict[str, Any]]:
    """What they learned, for a report; ``_restored`` reads it."""
    with tempfile.TemporaryDirectory() as made:
        found = {}
        for name, one in baselines.items():
            one.save(Path(made) / name)
            found[name] = dict(read_folder(Path(made) / name).state)
        return found


def _restored(described: Mapping[str, Mapping[str, Any]]) -> dict[str, Predictor]:
    return {
        name: registry.load("predictor", name).restore(Saved(name, {}, state), Path())
        for name, state in described.items()
    }


def _note(
    folder: str | Path | Predictor,
    trained: Report,
    rows: Prompts,
    metrics: Mapping[str, Any],
    baselines: Mapping[str, Any],
) -> None:
    """Adds metrics on other data to a saved predictor's report and card; the last of a name stay.

    Raises ``InputError`` where there is no report to add to.
    """
    if not isinstance(folder, str | Path) or "fitted_baselines" not in trained:
        raise InputError(f"{folder!s} holds no {REPORT} with baselines: it has no card to add to")
    kept = [row for row in trained.get("elsewhere", ()) if row["data"] != rows.name]
    row = {"data": rows.name, "rows": len(rows), "metrics": metrics, "baselines": baselines}
    report = {**trained, "elsewhere": [*kept, row]}
    with whole_file(Path(folder) / REPORT) as fresh:
        _write(fresh, report)
    _write_card(Path(folder), report)


def _write_card(folder: Path, report: Report) -> None:
    saved = read_folder(folder)
    with whole_file(folder / CARD) as fresh:
        fresh.write_text(card_text(saved.name, saved.options, report), encoding="utf-8")


def _trained(folder: str | Path | Predictor) -> Report:
    """The report beside a saved predictor, or an empty one."""
    if not isinstance(folder, str | Path) or not (Path(folder) / REPORT).is_file():
        return {}
    try:
        report: Report = json.loads((Path(folder) / REPORT).read_text())
    except ValueError as error:
        raise InputError(f"{str(folder)!r}: {REPORT} is not JSON: {error}") from error
    return report


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
