"""Threats from the words a person types: `linf:8/255`, `l2:0.5`, `l1:12`, `l0:10`, `patch:5x5`, `translation:2`,
`corruption:fog:3`.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.errors import InputError
from holdfast.threats.balls import L0, L1, L2, Linf
from holdfast.threats.base import Threat
from holdfast.threats.corruption import Corruption
from holdfast.threats.places import Patch, Translation

EXAMPLES = "linf:8/255, l2:0.5, l1:12, l0:10, patch:5x5, translation:2, corruption:fog:3"


def parse(text: str) -> Threat:
    """The threat that `text` names.

    >>> parse("linf:8/255").describe()
    'every value moved by at most 8/255'
    >>> parse("patch:5x5")
    Patch(height=5, width=5)

    Raises InputError on an unknown kind, a missing or malformed size.
    """
    kind, _, size = text.strip().lower().partition(":")
    make = _KINDS.get(kind)
    if make is None:
        raise InputError(
            f"unknown threat {text!r}: the kind {kind!r} is not one of {', '.join(_KINDS)} (for example {EXAMPLES})"
        )
    if not size:
        raise InputError(f"the threat {text!r} has no size; write for example {EXAMPLES}")
    try:
        return make(size)
    except InputError as error:
        raise InputError(f"threat {text!r}: {error}") from None


def _fraction(text: str) -> float:
    """A number or a quotient of two: `8/255`."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{text!r} is not a number; write 0.1 or 8/255") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{text!r} is not a whole number") from None


def _patch(size: str) -> Patch:
    height, _, width = size.partition("x")
    return Patch(_whole(height), _whole(width or height))


def _translation(size: str) -> Translation:
    pixels, _, edge = size.partition(":")
    return Translation(_whole(pixels), edge or "zeros")


def _corruption(size: str) -> Corruption:
    name, _, severity = size.partition(":")
    if not severity:
        raise InputError("a corruption needs a severity from 1 to 5, as in corruption:fog:3")
    return Corruption(name, _whole(severity))


_KINDS: dict[str, Callable[[str], Threat]] = {
    "linf": lambda size: Linf(_fraction(size)),
    "l2": lambda size: L2(_fraction(size)),
    "l1": lambda size: L1(_fraction(size)),
    "l0": lambda size: L0(_whole(size)),
    "patch": _patch,
    "translation": _translation,
    "corruption": _corruption,
}
