"""When requests arrive: by themselves in order, or from a calendar of those that others let arrive.

Requests that the router holds or sends once more stand in the calendar too, at that time.
"""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

from lengthwise.serving.fast.compiler.jit import hot, kernel
from lengthwise.serving.fast.flags import EVENTS, MORE, STOPS
from lengthwise.serving.fast.state import NONE


@hot
def reaches(S: Any, id: int) -> int:
    """When the router sees a request, or sees it again."""
    if (STOPS or EVENTS) and S.asked[id] > 0:
        return S.asked[id]
    return S.arrival[id] + S.reach_ps[id] if len(S.reach_ps) else S.arrival[id]


@hot
def earlier(S: Any, id: int, other: int) -> bool:
    """Whether a request comes before another, in time or else by id."""
    time, other_time = reaches(S, id), reaches(S, other)
    return time < other_time if time != other_time else id < other


@hot
def next_arrival(S: Any) -> int:
    """The request that arrives next, NONE if none does before another finishes."""
    run = S.run
    if not (MORE and run.closed_loop):
        root = run.next_root if run.next_root < run.requests else NONE
    else:
        root = S.roots[run.next_root] if run.next_root < len(S.roots) else NONE
    if not MORE or run.children == 0:
        return root
    child = S.calendar[0]
    return child if root == NONE or earlier(S, child, root) else root


@kernel
def push_child(S: Any, id: int) -> None:
    """A request is put on the calendar, a heap by (time, id)."""
    run = S.run
    place = run.children
    run.children += 1
    while place > 0:
        up = S.calendar[(place - 1) >> 1]
        if earlier(S, up, id):
            break
        S.calendar[place] = up
        place = (place - 1) >> 1
    S.calendar[place] = id


@kernel
def pop_child(S: Any) -> None:
    """The first request leaves the calendar."""
    run = S.run
    run.children -= 1
    last = S.calendar[run.children]
    place = 0
    while True:
        down = 2 * place + 1
        if down >= run.children:
            break
        if down + 1 < run.children and earlier(S, S.calendar[down + 1], S.calendar[down]):
            down += 1
        if not earlier(S, S.calendar[down], last):
            break
        S.calendar[place] = S.calendar[down]
        place = down
    S.calendar[place] = last


@hot
def take_arrival(S: Any, id: int) -> None:
    """An arrival leaves the calendar, or the order of those that arrive by themselves."""
    run = S.run
    if MORE and run.children > 0 and S.calendar[0] == id:
        pop_child(S)
    else:
        run.next_root += 1
