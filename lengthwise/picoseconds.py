"""Time as the engines count it: integer picoseconds, which add and compare exactly."""

from __future__ import annotations

PS = 10**12  # in a second


def picoseconds(seconds: float) -> int:
    """Seconds of some other clock, rounded to the nearest picosecond."""
    return round(seconds * PS)
