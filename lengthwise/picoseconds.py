"""Time as the engines count it: integer picoseconds, which add and compare exactly."""

from __future__ import annotations

PS = 10**12  # in a second
LONGEST_S = 9.2e6  # 64-bit integers reach 106 days


def picoseconds(seconds: float) -> int:
    """Seconds of some other clock, rounded to the nearest picosecond."""
    return round(seconds * PS)
