"""What every score function keeps to, and the trial that says whether one does.

A score is a pure function: it gets arrays of requests that it may not write to, or single numbers,
and gives one number for each, the same for the same features. An engine that asks for one request
and one that asks for all of them must hear the same, or they schedule differently.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.blame import Problem, at_return, blamed, suspects
from lengthwise.errors import InputError
from lengthwise.policy import Layered, Score, Stepwise, Weighted, wrong_score
from lengthwise.sampled import with_edges

TRIED = 16  # values of each feature when a policy is loaded: some slow ones are called for each
SEED = 13  # of the values
CLOSE = 1e-6  # of a score: numpy's last bits differ between a number and an array
ONCE = (Exception, SystemExit)  # what a user's function raises


def require(score: Score, kind: str = "policy") -> None:
    """Raises ``InputError``, one line, for a score that breaks the contract whatever it is given.

    What depends on the values (NaN, a division by 0) is told by ``problems`` and by runs.
    """
    for problem in _tried(score, TRIED):
        if problem.kind not in ("zero", "nan"):
            raise InputError(f"{kind} {score.name!r}: {problem}")


def problems(score: Score, rows: int = 256) -> list[Problem]:
    """All that is wrong with a score, line by line: what its text shows, and what trying it does.

    ``rows`` is how many values of each feature it is tried on, those at the edges among them.
    """
    found = suspects(score.function, score.features)
    for problem in _tried(score, rows):
        if all(problem.line != other.line or not problem.line for other in found):
            found.append(problem)
    return found


def _tried(score: Score, rows: int) -> Iterable[Problem]:
    """The first thing that goes wrong with arrays, then with numbers; what is data is not tried."""
    if isinstance(score.function, Layered | Weighted | Stepwise):
        return
    values = {name: array for name, array in with_edges(rows, seed=SEED).items()
              if name in score.features}  # fmt: skip
    with np.errstate(all="ignore"):
        first = _called(score, values, rows)
        if isinstance(first, Problem):
            yield first
            return
        again = _called(score, values, rows)
        if isinstance(again, Problem) or first.tobytes() != again.tobytes():
            yield _impure(score)
            return
        yield from _one_by_one(score, values, first)
        if np.isnan(first).any():
            at = int(np.isnan(first).argmax())
            given = ", ".join(f"{name} = {array[at]:.6g}" for name, array in values.items())
            yield at_return(score.function, f"gives NaN where {given}", kind="nan")


def _called(score: Score, values: dict[str, Any], count: int) -> NDArray[np.float64] | Problem:
    try:
        found = score.evaluate(values)
    except ONCE as error:
        return blamed(error, score.function)
    problem = wrong_score(score.function, found, count)
    return problem or np.array(np.broadcast_to(np.asarray(found, np.float64), (count,)))


def _one_by_one(
    score: Score, values: dict[str, NDArray[Any]], together: NDArray[np.float64]
) -> Iterable[Problem]:
    """The same for one request at a time: as Python numbers, as engines' plugins give them."""
    columns = [array.tolist() for array in values.values()]
    rows: Any = zip(*columns, strict=True) if columns else [()]
    for at, row in enumerate(rows):
        alone = _called(score, dict(zip(values, row, strict=True)), 1)
        if isinstance(alone, Problem):
            yield alone
            if alone.kind != "zero":
                return
        elif not np.isclose(alone[0], together[at], rtol=CLOSE, atol=CLOSE, equal_nan=True):
            given = ", ".join(f"{name} = {value:.6g}" for name, value in
                              zip(values, row, strict=True))  # fmt: skip
            what = f"gives {together[at]:.6g} among others and {alone[0]:.6g} alone, where {given}"
            yield at_return(
                score.function, what, "a score of the request's own features, whoever is beside it"
            )
            return


def _impure(score: Score) -> Problem:
    """Other scores for the same features: the line that makes them, if the text shows it."""
    for problem in suspects(score.function, score.features):
        if problem.kind == "impure":
            return problem
    return at_return(
        score.function, "gives other scores for the same features",
        "a function of its features alone, which keeps nothing", "impure",
    )  # fmt: skip
