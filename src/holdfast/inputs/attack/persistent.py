"""Projected gradient ascent that spends all its steps, the attack that detectors should be tried on.

    x_{k+1} = P(x_k + step s(grad_x loss(x_k))),   x_0 a random point of the set            (Madry et al., 2018)

`PGD` leaves an example alone once it is fooled, on the far side of the decision boundary, where low confidence alone
gives it away.  This one goes on climbing, as the iterative attacks of the literature do, and returns where it ends; it
also climbs on examples that the model gets wrong already, so that every returned input has been perturbed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.inputs.attack.loop import Attack, AttackRun, Model, Search, ascend
from holdfast.inputs.attack.losses import Goal
from holdfast.threats.base import Threat, Valid


@dataclass(frozen=True)
class PersistentPGD(Attack):
    """See the module; a step is 2.5 radii over `steps`."""

    threat: Threat
    steps: int = 20
    loss: str = "ce"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"the attack needs at least one step, got {self.steps}")

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
        """The last iterates with the record of the search; `success` as for every attack, only from right to wrong."""
        search = Search.begin(model, self.threat, x, y, valid, goal, self.loss, clean_logits)
        point = self.threat.random_start(search.x, valid, generator=generator)
        step = 2.5 * self.threat.stride(valid) / self.steps
        for _ in range(self.steps if len(x) else 0):
            _, loss, grad = ascend(model, point, search.aim)
            search.best_loss = torch.maximum(search.best_loss, loss.to(search.best_loss.dtype))
            point = self.threat.project(point + step * self.threat.steepest(grad), search.x, valid)
        search.x_adv = point.detach()
        search.queries += self.steps
        return search.close()
