"""The smallest change that an attack needs: bisection over the radius of its threat.

Every example has its own bracket on a grid of radii; examples whose middle is the same are attacked together at that
radius.  What is returned is the smallest change that was *found* (an upper bound on the smallest there is): the size of
the successful change itself, which may be well inside the radius it was looked for in.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.inputs.attack.loop import Attack, Model, check_batch, check_logits, forward
from holdfast.threats.base import Threat, Valid


@dataclass(frozen=True, eq=False)
class DistanceRun:
    """`distance` (batch,): size of the smallest successful change in the threat's measure; 0 for what is wrong already,
    infinite where nothing was found.  `x_adv` is the input it leads to, `queries` what it cost.
    """

    distance: Float[Tensor, " batch"]
    x_adv: Float[Tensor, "batch *shape"]
    queries: Int[Tensor, " batch"]


def smallest_changes(
    attack: Attack,
    model: Model,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, " batch"],
    *,
    largest: float,
    levels: int = 64,
    valid: Valid = (0, 1),
    generator: torch.Generator | None = None,
) -> DistanceRun:
    """Bisect the radius of `attack` (any with a `threat`) between 0 and `largest`, on a grid of `levels` radii.

    An attack that fails at one radius is not asked at a smaller one, so a failure where there was something to find
    costs up to half the bracket; strong attacks give smaller distances.  Raises InputError for an attack without a
    threat, a radius that is not positive, levels that are not a power of two, and as the attack does.
    """
    if "threat" not in {part.name for part in fields(cast(Any, attack))}:
        raise InputError(f"{type(attack).__name__} has no threat whose radius could be bisected")
    if not largest > 0 or levels < 2 or levels & (levels - 1):
        raise InputError(f"a positive radius and a power of two of levels are wanted, got {largest} and {levels}")
    threat: Threat = cast(Any, attack).threat
    check_batch(model, x, y, valid)
    logits = forward(model, x)
    check_logits(logits, x, y)
    right = logits.argmax(1) == y
    failed = torch.zeros_like(y)
    reached = torch.where(right, levels, 0)
    run = DistanceRun(torch.where(right, torch.inf, 0.0).to(x.dtype), x.clone(), torch.ones_like(y))
    first = True
    while True:
        middle = torch.full_like(y, levels) if first else torch.div(failed + reached, 2, rounding_mode="floor")
        open_ = right if first else (reached - failed > 1) & torch.isfinite(run.distance)
        if not bool(open_.any()):
            return run
        for level in middle[open_].unique().tolist():
            rows = (open_ & (middle == level)).nonzero().squeeze(1)
            scaled = replace(cast(Any, attack), threat=threat.scaled(largest * level / levels))
            found = scaled.run(model, x[rows], y[rows], valid=valid, generator=generator, clean_logits=logits[rows])
            _note(run, rows, found.x_adv, found.success, found.norm, found.queries)
            # A change that turned out small moves the bracket as far as it reaches.
            size = torch.ceil(run.distance[rows[found.success]] / largest * levels).long().clamp(max=level)
            reached[rows[found.success]] = size
            failed[rows[~found.success]] = level
        failed = torch.minimum(failed, reached)
        first = False


def _note(run: DistanceRun, rows: Tensor, x_adv: Tensor, success: Tensor, norm: Tensor, queries: Tensor) -> None:
    run.queries[rows] += queries
    nearer = success & (norm < run.distance[rows])
    run.distance[rows[nearer]] = norm[nearer].to(run.distance.dtype)
    run.x_adv[rows[nearer]] = x_adv[nearer]
