"""Figures in points as text, the same in every table."""

from __future__ import annotations

import math


def signed(value: float) -> str:
    """+3.2, -0.4, +0.0; "n/a" where there is no figure."""
    if math.isnan(value):
        return "n/a"
    # -0.04 would print as -0.0, and differ from 0.0 for no reason.
    return f"{round(value, 1) + 0.0:+.1f}"


def plain(value: float, digits: int = 1) -> str:
    """93.2; "n/a" where there is no figure."""
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


def gain_text(gain: float, low: float, high: float) -> str:
    """A gain with its interval: +3.2 [+1.0, +5.4]. One label gives a figure and no interval."""
    if math.isnan(low) or math.isnan(high):
        return signed(gain)
    return f"{signed(gain)} [{signed(low)}, {signed(high)}]"
