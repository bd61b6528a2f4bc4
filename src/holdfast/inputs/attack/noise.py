"""Random noise of the same size as an attack: the floor below which no attack should fall.

Draws random points of the threat's set and keeps the first that fools, else the one of highest loss.  An attack that
fools fewer examples than this is broken, or is being misled.  Shapes and errors as in `gradient`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.inputs.attack.loop import Attack, AttackRun, Model, Search, forward
from holdfast.inputs.attack.losses import Goal
from holdfast.threats.base import Threat, Valid


@dataclass(frozen=True)
class RandomNoise(Attack):
    """`draws` random admissible points an example; needs labels only."""

    threat: Threat
    draws: int = 10

    def run(
        self,
        model: Model,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
        goal: Goal | None = None,
        clean_logits: Float[Tensor, "batch classes"] | None = None,
    ) -> AttackRun:
        """Noisy inputs with the record of the search."""
        search = Search.begin(model, self.threat, x, y, valid, goal, "margin", clean_logits)
        for _ in range(self.draws):
            rows = search.standing()
            if not len(rows):
                break
            point = self.threat.random_start(search.x[rows], valid, generator=generator).to(x.dtype)
            logits = forward(model, point)
            search.note(rows, point, logits, search.aim.take(rows).value(logits))
        return search.close()
