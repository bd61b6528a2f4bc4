"""When an iterative attack gives an example up.

An attack with a budget of N passes has used a share s of them.  What is still to go is measured in units of what is
done: for an ascent, the margin that is left over the margin that was gained; for a minimum-norm walk, the excess of the
nearest fooling point over the radius.  Progress slows down, so the rest would take more than left / done * s of the
budget; an example is given up when that exceeds `hope`:

    left * s > hope * done

With hope = 0.1, an example that has not come half the way after a tenth of the budget is given up, and one that has
not come five sixths of the way after half of it.  On networks trained with and without perturbations, every example
that broke later was within a third of that (`docs/guides/attacks.md` shows how to measure it on a model of your own).
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.core.errors import InputError


def given_up(
    left: Float[Tensor, " batch"], done: Float[Tensor, " batch"] | float, share: float, hope: float
) -> Bool[Tensor, " batch"]:
    """Whether each example is beyond hope after a `share` in (0, 1] of the budget; `done` is of at least 0."""
    return left * share > hope * (done.clamp(min=0) if isinstance(done, Tensor) else done)


def check_hope(hope: float | None) -> None:
    """Raises InputError unless `hope` is positive, or None (never give up)."""
    if hope is not None and not hope > 0:
        raise InputError(f"hope is the share of the budget granted to what is left, a positive number, got {hope}")
