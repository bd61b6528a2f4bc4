"""What an attack pushes up, and when it has won.

Logits z (batch, classes), sorted z_(1) >= z_(2) >= ...; label y, class t that the attack pulls towards.

    ce      untargeted  -log softmax(z)_y                     targeted  log softmax(z)_t
    margin  untargeted  max_{j != y} z_j - z_y                targeted  z_t - max_{j != t} z_j
    dlr     untargeted  (max_{j != y} z_j - z_y) / (z_(1) - z_(3))
            targeted    (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)

The difference-of-logits ratio (Croce and Hein, 2020) is free of the logits' scale and shift, so it does not saturate
as cross-entropy does.  With three classes the targeted denominator is z_(1) - z_(3); with two the plain margin is
used, whose direction is the same. Raises InputError for a loss that is not one of these, and for models with a single
output column.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import InputError

LossName = Literal["ce", "margin", "dlr"]
LOSSES: tuple[LossName, ...] = ("ce", "margin", "dlr")
_TINY = 1e-12


def cross_entropy(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"], target: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, " batch"]:
    """-log softmax(z)_y, or log softmax(z)_t when a target is given."""
    if target is None:
        return F.cross_entropy(logits, y, reduction="none")
    return -F.cross_entropy(logits, target, reduction="none")


def margin(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"], target: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, " batch"]:
    """Largest other logit minus that of y (Carlini and Wagner, 2017); with a target, z_t minus the largest other."""
    own = y if target is None else target
    value = logits.gather(1, own[:, None]).squeeze(1)
    other = logits.scatter(1, own[:, None], -torch.inf).amax(1)
    return other - value if target is None else value - other


def difference_of_logits_ratio(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"], target: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, " batch"]:
    """Margin divided by the spread of the largest logits."""
    classes = logits.shape[1]
    own = logits.gather(1, y[:, None]).squeeze(1)
    if target is None:
        gap = logits.scatter(1, y[:, None], -torch.inf).amax(1) - own
    else:
        gap = logits.gather(1, target[:, None]).squeeze(1) - own
    if classes == 2:
        return gap
    top = logits.topk(min(4, classes), dim=1).values
    third = top[:, 2] if target is None or classes == 3 else (top[:, 2] + top[:, 3]) / 2
    return gap / (top[:, 0] - third + _TINY)


_FUNCTIONS = {"ce": cross_entropy, "margin": margin, "dlr": difference_of_logits_ratio}


@dataclass(frozen=True)
class Untargeted:
    """Any class but the label."""


@dataclass(frozen=True, eq=False)
class Targeted:
    """Exactly the class `target` (batch,) of every example; whole numbers of any type, from 0 below the number of
    classes.
    """

    target: Int[Tensor, " batch"]


Goal = Untargeted | Targeted


def checked_goal(goal: Goal | None, y: Int[Tensor, " batch"], classes: int | None = None) -> Goal | None:
    """The goal with targets as int64 on the device of y.  Raises InputError for targets that are no tensor of whole
    numbers, one an example, each one of the `classes` where their number is known.
    """
    if not isinstance(goal, Targeted):
        return goal
    target: object = goal.target
    if not isinstance(target, Tensor):
        raise InputError(
            f"the target is of type {type(target).__name__}; a tensor with one class an example was wanted: "
            f"torch.full(({len(y)},), 1), for example"
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool or target.shape != y.shape:
        raise InputError(
            f"{len(y)} examples but targets of shape {tuple(target.shape)} and {target.dtype}; whole numbers of shape "
            f"({len(y)},) were wanted, one an example"
        )
    if len(target) and (int(target.min()) < 0 or (classes is not None and int(target.max()) >= classes)):
        has = "" if classes is None else f", but the model has {classes} classes"
        raise InputError(f"targets span {int(target.min())} to {int(target.max())}{has}; classes count from 0")
    return Targeted(target.to(y.device, torch.int64))


@dataclass(frozen=True, eq=False)
class Aim:
    """Loss and winning condition of a batch.

    `towards` (batch,) is the class the loss pulls to (None: away from y); with `exact` only that class counts as a win,
    otherwise every class but y does.
    """

    loss: str
    y: Int[Tensor, " batch"]
    towards: Int[Tensor, " batch"] | None = None
    exact: bool = False

    @classmethod
    def of(cls, loss: str, y: Tensor, goal: Goal | None, classes: int | None = None) -> Aim:
        """The aim that a goal means.  Raises InputError on an unknown loss, or targets that do not fit (see
        `checked_goal`).
        """
        if loss not in LOSSES:
            raise InputError(f"unknown loss {loss!r}; choose from {', '.join(LOSSES)}")
        goal = checked_goal(goal, y, classes)
        if isinstance(goal, Targeted):
            return cls(loss, y, goal.target, exact=True)
        return cls(loss, y)

    def take(self, rows: Tensor) -> Aim:
        """The aim of some examples."""
        return replace(self, y=self.y[rows], towards=None if self.towards is None else self.towards[rows])

    def repeated(self, many: int) -> Aim:
        """The aim of the batch `many` times over."""
        return replace(self, y=self.y.repeat(many), towards=None if self.towards is None else self.towards.repeat(many))

    def pulled(self, towards: Int[Tensor, " batch"], loss: str | None = None) -> Aim:
        """The same winning condition with a loss that pulls to another class."""
        return replace(self, towards=towards.long(), loss=loss or self.loss)

    def value(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
        """The loss of every example; the attack raises it."""
        return _FUNCTIONS[self.loss](logits, self.y, self.towards)

    def gap(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
        """How far the prediction is from the class that is pulled to: the margin whose sign tells who wins, negative
        before.
        """
        if self.towards is None or self.exact:
            return margin(logits, self.y, self.towards)
        return (logits.gather(1, self.towards[:, None]) - logits.gather(1, self.y[:, None])).squeeze(1)

    def reached(self, logits: Float[Tensor, "batch classes"]) -> Bool[Tensor, " batch"]:
        """Whether the prediction is what the attack wants; outputs that are not finite never count."""
        predicted = logits.argmax(1)
        won = predicted == self.towards if self.exact and self.towards is not None else predicted != self.y
        return won & torch.isfinite(logits).all(1)
