"""How numbers are written for a person: as many digits as the interval can carry, shares as percentages."""

from __future__ import annotations

import math

from holdfast.core.estimate import Estimate

MINUS = "−"
DASH = "–"


def plain_number(value: float | int, digits: int = 4) -> str:
    """`value` in at most `digits` significant digits, with a true minus sign, thin groups and ∞ for infinity."""
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", MINUS)


def decimals(width: float) -> int:
    """Decimal places that show an interval of this `width` with about two digits (0 to 6)."""
    if not math.isfinite(width) or width <= 0:
        return 2
    return int(min(6, max(0, 1 - math.floor(math.log10(width)))))


def _fixed(value: float, places: int) -> str:
    if not math.isfinite(value):
        return plain_number(value)
    text = f"{value:.{places}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    return text.replace("-", MINUS)


def is_share(unit: str) -> bool:
    """Whether numbers of this unit are fractions that a person reads as percentages."""
    return unit in ("share", "share of examples", "fraction", "probability", "AUROC")


def bare_text(estimate: Estimate, unit: str = "share") -> str:
    """The point value without the words of its unit: "94.1%", "2.31"."""
    if is_share(unit):
        return f"{_fixed(100 * estimate.value, _share_places(estimate))}%"
    return plain_number(estimate.value) if estimate.width == 0 else _fixed(estimate.value, decimals(estimate.width))


def unit_text(unit: str) -> str:
    """The words of a unit; empty for shares and plain numbers."""
    return "" if is_share(unit) or unit in ("", "number", "ratio", "score") else unit


def value_text(estimate: Estimate, unit: str = "share") -> str:
    """The point value with its unit: "94.1%", "2.31 classes"."""
    return f"{bare_text(estimate, unit)} {unit_text(unit)}".rstrip()


def interval_text(estimate: Estimate, unit: str = "share") -> str:
    """The interval: "93.0 – 95.0%", "−0.2 to 0.4"; empty when the number is exact."""
    if estimate.width == 0:
        return ""
    joint = DASH if estimate.low >= 0 else "to"
    if is_share(unit):
        places = _share_places(estimate)
        return f"{_fixed(100 * estimate.low, places)} {joint} {_fixed(100 * estimate.high, places)}%"
    places = decimals(estimate.width)
    return f"{_fixed(estimate.low, places)} {joint} {_fixed(estimate.high, places)}"


def _share_places(estimate: Estimate) -> int:
    """Percentages get one decimal, and more only when the interval is that narrow."""
    exact = estimate.width == 0
    return 1 if exact else min(3, max(1, decimals(100 * estimate.width) - 1))


def estimate_text(estimate: Estimate, unit: str = "share") -> str:
    """Value and interval in one line: "94.1% [93.0 – 95.0%]"."""
    interval = interval_text(estimate, unit)
    return f"{value_text(estimate, unit)} [{interval}]" if interval else value_text(estimate, unit)


def duration_text(seconds: float) -> str:
    """ "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 1:
        return f"{seconds:.1f} s"
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    parts = ((hours, "h"), (minutes, "min"), (0 if hours else rest, "s"))
    return " ".join(f"{amount} {unit}" for amount, unit in parts if amount) or "0 s"
