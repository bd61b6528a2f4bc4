"""First-order attacks: one steepest step (FGSM) and projected gradient ascent (PGD).

    FGSM   x' = P(x + eps s(g)),   g = grad_x loss(x)                                     (Goodfellow et al., 2015)
    PGD    x_{k+1} = P(x_k + step s(g_k)),   x_0 = x or a random point of the set          (Madry et al., 2018)

s is the threat's steepest direction, P its projection (the valid range included).
`attack(model, x, y)` returns adversarial inputs, `attack.run(...)` everything that was found out on the way.
x (batch, *shape) lies in `valid`; y int64 (batch,); model maps x to logits (batch, classes) and contains its own
normalisation. Raises InputError for inputs, labels or a model that do not fit (see `loop.check_batch`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.inputs.attack.loop import Attack, AttackRun, Model, Search, ascend, forward
from holdfast.inputs.attack.losses import Goal
from holdfast.threats.base import Threat, Valid


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of the threat's full size along its steepest direction, from the input itself."""

    threat: Threat
    loss: str = "ce"

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
        """Adversarial inputs with the record of the search; `generator` is not used, the attack is deterministic."""
        search = Search.begin(model, self.threat, x, y, valid, goal, self.loss, clean_logits)
        rows = search.standing()
        if len(rows):
            start = search.x[rows]
            _, _, grad = ascend(model, start, search.aim.take(rows))
            moved = start + self.threat.stride(valid) * self.threat.steepest(grad)
            search.x_adv[rows] = self.threat.project(moved, start, valid)
            search.queries[rows] += 1
        return search.close()


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent; stops touching an example once it is fooled.

    `step_size` defaults to 2.5 radii over `steps`.  Returned is the first iterate that fools, else the one of highest
    loss over all steps and restarts; only survivors are restarted.
    """

    threat: Threat
    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    loss: str = "ce"
    random_start: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise InputError(f"PGD needs at least one step and one restart, got {self.steps} and {self.restarts}")
        if self.step_size is not None and not self.step_size > 0:
            raise InputError(f"the step size of PGD must be positive, got {self.step_size}")

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
        """Adversarial inputs with the record of the search; `clean_logits` saves a pass where they are known."""
        search = Search.begin(model, self.threat, x, y, valid, goal, self.loss, clean_logits)
        for _ in range(self.restarts):
            rows = search.standing()
            if not len(rows):
                break
            start = search.x[rows]
            point = start
            if self.random_start:
                point = self.threat.random_start(start, valid, generator=generator).to(start.dtype)
            self._climb(search, rows, start, point)
        return search.close()

    def _climb(self, search: Search, rows: Tensor, start: Tensor, point: Tensor) -> None:
        step = 2.5 * self.threat.stride(search.valid) / self.steps if self.step_size is None else self.step_size
        for _ in range(self.steps):
            logits, loss, grad = ascend(search.model, point, search.aim.take(rows))
            fooled = search.note(rows, point, logits, loss)
            if bool(fooled.any()):
                keep = ~fooled
                rows, start, point, grad = rows[keep], start[keep], point[keep], grad[keep]
                if not len(rows):
                    return
            point = self.threat.project(point + step * self.threat.steepest(grad), start, search.valid)
        logits = forward(search.model, point)
        search.note(rows, point, logits, search.aim.take(rows).value(logits))
