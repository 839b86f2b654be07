"""What an agent sees, as a picture: a column a candidate, a row a feature."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CELL = 24  # pixels
LOW, MIDDLE, HIGH = (
    np.array(rgb, float) for rgb in ((33, 102, 172), (247, 247, 247), (178, 24, 43))
)
NOBODY, LINE = 200, 120  # greys


def picture(seen: NDArray[np.floating], there: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pixels (F * CELL, slots * CELL, 3) of normalised columns (slots, F).

    A cell is white at 0, bluer below and redder above; grey where nobody is ``there`` (slots,).
    """
    pixels = np.full((seen.shape[1], len(there), 3), NOBODY, dtype=np.float64)
    share = np.tanh(seen.T)[..., None]  # (F, slots, 1)
    towards = np.where(share < 0, LOW, HIGH)
    pixels[:, there] = (MIDDLE + np.abs(share) * (towards - MIDDLE))[:, there]
    drawn = pixels.round().astype(np.uint8).repeat(CELL, axis=0).repeat(CELL, axis=1)
    drawn[::CELL] = LINE
    drawn[:, ::CELL] = LINE
    return drawn
