"""How the size of a threat is written."""

from __future__ import annotations


def number(value: float) -> str:
    """`value` as people in the field write it: a whole number of 255ths as k/255, anything else to four digits."""
    levels = value * 255
    if 0.5 <= levels < 128 and abs(levels - round(levels)) < 1e-6 and abs(value - round(value, 2)) > 1e-9:
        return f"{round(levels)}/255"
    return f"{value:.4g}"
