"""What a plugin keeps about one request, beside what the engine keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(slots=True, eq=False)
class Entry:
    """One request: its features that the engine doesn't hold, its score and its waiting."""

    request: Any  # the engine's own object
    sequence: int  # order of arrival in this scheduler
    arrival_s: float
    priority: float
    deadline_s: float
    predicted_tokens: float  # the default until a prediction comes
    # "ready" is scored by the policy; "pending" awaits its prediction; "failed" is served FCFS
    state: Literal["ready", "pending", "failed"] = "ready"
    predicted: bool = False  # whether predicted_tokens is anything but the default
    score: float = 0.0
    ahead: bool = False  # the starvation guard sent it to the front, until it runs
    turn: bool = False  # FCFS would have started it by now
    running: bool = False
    waiting_since_s: float = 0.0
    waited_s: float = 0.0  # before waiting_since_s
    version: int = 0  # of its place in the queue
    column: int = -1  # its place in the arrays of a queue whose scores change with the clock
    work: int = 0  # tokens, as the guard counts them; 0 until it is needed
    owed: int = 0  # of these, when it last joined or left the batch
    admissions: int = 0

    @property
    def gone(self) -> bool:
        """Whether the engine is done with the request."""
        return bool(self.request.is_finished())

    @property
    def rank(self) -> float:
        """Its place in the waiting queue, lowest first: the score, but for FCFS and the guard."""
        if self.ahead or (self.turn and self.state != "ready"):
            return float("-inf")
        return self.score if self.state == "ready" else float("inf")
