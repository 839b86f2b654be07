"""Time as the engines count it: integer picoseconds, which add and compare exactly."""

from __future__ import annotations

PS = 10**12  # in a second
LONGEST_S = 9.2e6  # 64-bit integers reach 106 days
LAST_PS = 9_200_000 * PS  # the same; what an iteration takes beyond still fits
MOST_PS = 2**53  # of one iteration: two and a half hours


def picoseconds(seconds: float) -> int:
    """Seconds of some other clock, rounded to the nearest picosecond."""
    return round(seconds * PS)
