"""The answers of a session that were finished when its next request arrived."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# An answer on a trace's clock counts as finished after so many seconds a token: slower than what
# is served, so that none counts that was still being written.
SECONDS_PER_TOKEN = 0.05
# Sessions that are remembered online, of which a name has at most a few hundred characters.
MOST_SESSIONS = 10_000


class Answers:
    """The lengths of a session's finished answers, kept as what a predictor reads of them."""

    __slots__ = ("count", "last", "log_sum")

    def __init__(self, count: int = 0, log_sum: float = 0.0, last: float = np.nan) -> None:
        self.count, self.log_sum, self.last = count, log_sum, last

    def then(self, tokens: float) -> Answers:
        """With one more, the last."""
        return Answers(self.count + 1, self.log_sum + float(np.log(tokens)), float(tokens))

    def row(self) -> dict[str, float]:
        """As columns of ``Context``, for one request."""
        mean = self.log_sum / self.count if self.count else np.nan
        return {
            "previous_answers": float(self.count),
            "previous_log_tokens": mean,
            "previous_tokens": self.last,
        }


class Sessions:
    """The finished answers of sessions as they come, of the ``most`` that were used last.

    A session is named by ``session_id``, within its ``tenant``, of what is known of a request (as
    columns of ``Context``). Neither method costs more than a look-up.
    """

    def __init__(self, most: int = MOST_SESSIONS) -> None:
        self._most = most
        self._answers: OrderedDict[tuple[Any, Any], Answers] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def before(self, known: Mapping[str, Any]) -> dict[str, float]:
        """The columns ``previous_*`` of a request that arrives; none for one of no session."""
        if (key := _session(known)) is None:
            return {}
        if (answers := self._answers.get(key)) is None:
            return Answers().row()
        self._answers.move_to_end(key)
        return answers.row()

    def finished(self, known: Mapping[str, Any], tokens: float) -> None:
        """An answer of so many tokens ended by itself."""
        if (key := _session(known)) is None or not tokens > 0:
            return
        self._answers[key] = self._answers.get(key, Answers()).then(tokens)
        self._answers.move_to_end(key)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)


def _session(known: Mapping[str, Any]) -> tuple[Any, Any] | None:
    name = known.get("session_id")
    return None if name is None else (known.get("tenant"), name)


def earlier_answers(columns: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """The columns ``previous_*`` of ``Context`` for the n requests of a workload, or none.

    In a closed loop (``parent``) a request knows the answers of those that it waited for, directly
    or not. On a clock it knows those of its session (``session_id``) that arrived so long before
    that they were finished at ``SECONDS_PER_TOKEN``. No other answer's length has any influence.
    """
    if "output_tokens" not in columns:
        return {}
    tokens = np.asarray(columns["output_tokens"], dtype=np.float64)
    if "parent" in columns:
        found = _of_parents(np.asarray(columns["parent"]), tokens)
    elif "session_id" in columns and "arrival_s" in columns:
        found = _of_clock(columns["session_id"], np.asarray(columns["arrival_s"]), tokens)
    else:
        return {}
    rows = [answers.row() for answers in found]
    return {name: np.array([row[name] for row in rows]) for name in Answers().row()}


def _of_parents(parent: NDArray[Any], tokens: NDArray[np.float64]) -> list[Answers]:
    found: list[Answers] = []
    for up in parent.tolist():  # parents come first
        found.append(found[up].then(tokens[up]) if up >= 0 else Answers())
    return found


def _of_clock(
    sessions: Any, arrival_s: NDArray[np.float64], tokens: NDArray[np.float64]
) -> list[Answers]:
    found = [Answers()] * len(tokens)
    known: dict[Any, Answers] = {}
    unfinished: dict[Any, list[tuple[float, int]]] = {}
    for row in np.argsort(arrival_s, kind="stable").tolist():
        session = sessions[row]
        if session is None or session != session or session == "":
            continue
        session = str(session)
        waiting = unfinished.setdefault(session, [])
        while waiting and waiting[0][0] <= arrival_s[row]:
            before = heapq.heappop(waiting)[1]
            known[session] = known.get(session, Answers()).then(tokens[before])
        found[row] = known.get(session, Answers())
        done_s = float(arrival_s[row] + SECONDS_PER_TOKEN * tokens[row])
        heapq.heappush(waiting, (done_s, row))
    return found
