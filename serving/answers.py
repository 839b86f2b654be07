"""What a caller may answer to a stop, checked alike by both engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.serving.system import HOLD, Stop


def node(choice: int | Sequence[int] | NDArray[Any], due: Stop) -> int:
    """The node that an answer to "route" names, or ``HOLD``."""
    if np.size(choice) != 1:
        raise InputError(f"a route takes one node, not {np.size(choice)}")
    chosen = int(np.asarray(choice).item())  # an array of one is a node too
    if chosen != HOLD and not 0 <= chosen < due.candidates:
        raise InputError(f"node {chosen} is not one of 0 to {due.candidates - 1}, nor HOLD (-1)")
    if chosen in due.closed:
        raise InputError(f"node {chosen} is down, as nodes {due.closed} are: it takes no request")
    return chosen


def places(choice: int | Sequence[int] | NDArray[Any], due: Stop) -> list[int]:
    """The places among the candidates that an answer to any other stop names."""
    chosen = [int(place) for place in np.atleast_1d(np.asarray(choice)).tolist()]
    if len(set(chosen)) < len(chosen) or not all(0 <= at < due.candidates for at in chosen):
        raise InputError(
            f"{due.kind} at node {due.node}: {chosen[:8]} is no answer; each must be one of "
            f"0 to {due.candidates - 1}, once"
        )
    return chosen
