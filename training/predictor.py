"""Trains an output-length predictor on prompts and answer lengths, and evaluates it on unseen ones.

Prompts are split by a hash of their text, so no prompt is both trained and tested on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise import registry
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval.output import check_writable, provenance, replaced_folder
from lengthwise.eval.prediction_metrics import prediction_metrics
from lengthwise.prediction import Prediction
from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.predictors.targets import bucket_edges, check_target
from lengthwise.protocols import Predictor
from lengthwise.serving.workload import Prompts, read_prompts

CONFIG, REPORT = "config.json", "report.json"
ALL = "all"  # of ``answers_by``: every model's answers
UNTRAINED = ("oracle", "noisy-oracle")

Report = dict[str, Any]


def train_predictor(
    data: str | Path | Prompts,
    *,
    target: str = "exact",
    model: str = "ridge",
    out: str | Path | None = None,
    seed: int = 0,
    test_share: float = 0.5,
    max_rows: int | None = None,
    answers_by: str | None = None,
    options: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> Report:
    """Trains on the train split of ``data``, evaluates on the test split, saves to ``out``.

    ``data`` is what ``read_prompts`` reads (a file, ``hf:NAME``) or what it returns; ``model`` a
    registered predictor, or a folder or hub name of a pretrained encoder; ``answers_by`` the model
    whose answers to learn, in data of several ("all" for every one's); ``max_rows`` draws
    so many rows at random; ``options`` are more arguments of the predictor, such as ``buckets``
    or ``epochs``.

    A predictor that trains in epochs keeps checkpoints in ``out``.checkpoint until it is done: the
    same call after an interruption goes on from there.

    Returns the report that is also written to ``out``, with ``seconds`` (not written, so that the
    same seed writes the same bytes). Raises ``InputError`` for bad data or names.
    """
    if not 0 <= test_share < 1:
        raise InputError(f"test_share must lie in [0, 1), not {test_share!r}")
    if out is not None:
        check_writable(out)
    given = dict(options or {})
    predictor = _unfitted(model, target, seed, given)
    if out is not None and getattr(predictor, "checkpoint", "") is None:
        predictor = _unfitted(model, target, seed, {**given, "checkpoint": f"{out}.checkpoint"})
    rows = _rows(data, answers_by, max_rows, seed)
    train = rows.split("train", test_share)
    test = rows.split("test", test_share)
    if not len(train):
        raise InputError(f"{rows.name}: no prompt falls into the train split")

    started = time.perf_counter()
    predictor.fit(
        list(train.prompt), train.output_tokens,
        prompt_tokens=train.prompt_tokens, censored=train.censored,
    )  # fmt: skip
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
    }
    predicted_s = 0.0
    if (~test.censored).sum() >= 2:  # fewer make no metrics
        begun = time.perf_counter()
        prediction = _predict(predictor, test)
        predicted_s = time.perf_counter() - begun
        report["metrics"] = _metrics(prediction, test, edges, seed)
    if out is not None:
        with replaced_folder(out) as fresh:
            predictor.save(fresh)
            _write(fresh / REPORT, report)
            config = {**report, "options": given, "max_rows": max_rows}
            config = {k: v for k, v in config.items() if k not in ("metrics", "edges")}
            _write(fresh / CONFIG, provenance(config, command))
        report["folder"] = str(out)
    return {**report, "seconds": {"fit": fitted - started, "predict": predicted_s}}


def evaluate_predictor(
    folder: str | Path | Predictor,
    data: str | Path | Prompts,
    *,
    split: str = "test",
    test_share: float | None = None,
    max_rows: int | None = None,
    answers_by: str | None = None,
    seed: int = 0,
) -> Report:
    """Evaluates a saved predictor (or one by its spelling) on a split of ``data``.

    ``split`` is "train", "test" or "all"; ``test_share`` defaults to what it was trained with, so
    that on the data it was trained on the test split is what it has not seen. Rows whose length
    was cut short are left out, and counted.
    """
    predictor = load_predictor(folder)
    if predictor is None:
        raise InputError("there is no predictor to evaluate: 'none'")
    trained = _trained(folder)
    share = float(trained.get("test_share", 0.5)) if test_share is None else test_share
    if split not in ("train", "test", ALL):
        raise UnknownNameError("split", split, ("train", "test", ALL))
    rows = _rows(data, answers_by or trained.get("answers_by"), max_rows, seed)
    rows = rows if split == ALL else rows.split(split, share)
    if (~rows.censored).sum() < 2:
        raise InputError(
            f"{rows.name}: metrics need 2 whole answers; the {split} split has "
            f"{int((~rows.censored).sum())}, and {int(rows.censored.sum())} that were cut short"
        )
    begun = time.perf_counter()
    prediction = _predict(predictor, rows)
    predicted_s = time.perf_counter() - begun
    return {
        "predictor": str(folder) if isinstance(folder, str | Path) else type(folder).__name__,
        "data": rows.name,
        "split": split,
        "test_share": share,
        "test": _counts(rows),
        "metrics": _metrics(prediction, rows, trained.get("edges") or _edges(rows), seed),
        "seconds": {"predict": predicted_s},
    }


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


def _rows(
    data: str | Path | Prompts, answers_by: str | None, max_rows: int | None, seed: int
) -> Prompts:
    if max_rows is not None and max_rows < 1:
        raise InputError(f"max_rows must be 1 or more, not {max_rows}")
    by = None if answers_by == ALL else answers_by
    if not isinstance(data, Prompts):
        rows = read_prompts(data, model=by, drop_zero=True)  # no answer, nothing to learn
    else:
        rows = data
        if by is not None:
            held = [] if rows.model is None else sorted({str(name) for name in rows.model})
            if by not in held:
                raise UnknownNameError(f"model in {rows.name}", by, held)
            rows = rows.select(np.flatnonzero(rows.model == by))
    if answers_by is None and rows.model is not None:
        held = sorted({str(name) for name in rows.model})
        if len(held) > 1:
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
    )


def _metrics(
    prediction: Prediction, rows: Prompts, edges: list[float] | None, seed: int
) -> dict[str, dict[str, float]]:
    whole = ~rows.censored
    found = prediction_metrics(
        prediction.select(whole), rows.output_tokens[whole],
        edges=edges, groups=list(rows.prompt[whole]), seed=seed,
    )  # fmt: skip
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
