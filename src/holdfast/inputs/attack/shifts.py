"""Every whole-pixel move of a `Translation`, tried one after the other: exhaustive, so a survivor is certified.

Shapes (batch, channels, height, width); errors as in `gradient`.  A model without gradients or scores will do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.inputs.attack.loop import AttackRun, Model, Search, forward
from holdfast.inputs.attack.losses import Goal
from holdfast.threats.base import Valid
from holdfast.threats.places import Translation


@dataclass(frozen=True)
class ShiftAttack:
    """The first of the (2 pixels + 1)^2 - 1 moves that fools, smallest first."""

    threat: Translation

    def __call__(
        self,
        model: Model,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
        goal: Goal | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        return self.run(model, x, y, valid=valid, generator=generator, goal=goal).x_adv

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
        """Adversarial views with the record of the search; `norm` is the Euclidean size of the change."""
        self.threat.project(x[:0], x[:0])  # names the reason when the views are not of the image's own size
        search = Search.begin(model, self.threat, x, y, valid, goal, "margin", clean_logits)
        for move in list(self.threat.moves())[1:]:
            rows = search.standing()
            if not len(rows):
                break
            point = self.threat.moved(search.x[rows], move)
            logits = forward(model, point)
            search.note(rows, point, logits, search.aim.take(rows).value(logits))
        return search.close()
