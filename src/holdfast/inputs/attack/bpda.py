"""Gradients through a defence that has none of use (BPDA; Athalye, Carlini and Wagner, 2018).

A model f behind a defence d (rounding, JPEG, a purifier) answers f(d(x)).  Where d is flat or cannot be differentiated,
its derivative is taken from another function g with d(x) near g(x):

    forward   f(d(x))                    backward   J_f(d(x)) J_g(x),      g(x) = x when nothing better is known

`Purified` is the model behind its defence as a module, so every attack that takes a model takes it.  For a defence that
draws random numbers, average over passes as well: `APGD(..., eot=20)`, or the ensemble's version "rand".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.errors import InputError

Defence = Callable[[Tensor], Tensor]


class _Straight(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, stand_in: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


class Purified(nn.Module):
    """`model` behind `defence`, whose derivative is taken from `backward`: "identity" or any differentiable callable.

    x (batch, *shape) to logits (batch, classes), exactly those of model(defence(x)).  Raises InputError where the
    stand-in and the defence give different shapes.
    """

    def __init__(self, model: nn.Module, defence: Defence, backward: str | Defence = "identity"):
        super().__init__()
        if not callable(backward) and backward != "identity":
            raise InputError(f'backward is "identity" or a differentiable callable, got {backward!r}')
        self.model = model
        self.defence = defence
        self.backward = backward
        self.train(model.training)

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Tensor:
        with torch.no_grad():
            cleaned = self.defence(x)
        if not torch.is_grad_enabled():
            return self.model(cleaned)
        stand_in = self.backward(x) if callable(self.backward) else x
        if stand_in.shape != cleaned.shape:
            raise InputError(
                f"the defence gives shape {tuple(cleaned.shape)} and its stand-in {tuple(stand_in.shape)}; pass a "
                "differentiable callable as `backward` that gives the same shape"
            )
        return self.model(_Straight.apply(cleaned, stand_in))


@torch.no_grad()
def share_fooled(
    model: Callable[[Tensor], Tensor], x: Float[Tensor, "batch *shape"], y: Tensor, passes: int = 20
) -> Float[Tensor, " batch"]:
    """Share of `passes` in which each example gets a wrong answer: what one pass of a random model cannot tell."""
    if passes < 1:
        raise InputError(f"at least one pass is needed, got {passes}")
    wrong = torch.zeros(len(x), device=x.device)
    for _ in range(passes):
        wrong += (model(x).argmax(1) != y).to(wrong.dtype)
    return wrong / passes
