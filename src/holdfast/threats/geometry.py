"""Exact projections onto, and linear minima over, a norm ball cut by a box.

Everything here works on magnitudes: how far a coordinate wants to go (`magnitude` >= 0) and how far it may (`cap` >=
0, possibly infinite), along the last axis.  With r = radius:

    L2   scale t with || min(t m, cap) ||_2 = r          (the minimiser of <a, d> + (d - v)^2 terms is a clipped ray)
    L1   threshold s with sum_i clip(m_i - s, 0, cap_i) = r

Both are monotone in one unknown and are solved to rounding error, without sorting.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: Rounds after which halving alone has used up every bit of a bracket.
LONGEST_SEARCH = 100
#: Rounds of Newton steps before halving.
PATIENCE = 30


@torch.no_grad()
def l2_scale(
    magnitude: Float[Tensor, "*rows n"], cap: Float[Tensor, "*rows n"], radius: float
) -> Float[Tensor, "*rows"]:
    """t >= 0 with ||min(t m, cap)||_2 = radius; infinite when even the whole corner `cap` lies in the ball.

    Coordinates are fixed at their cap as soon as the ray passes it; every round raises t, and the set of fixed
    coordinates only grows, so the loop ends with the exact solution, usually within five rounds.
    """
    scale: Tensor = radius / torch.linalg.vector_norm(magnitude, dim=-1)
    fixed = torch.zeros_like(magnitude, dtype=torch.bool)
    while True:
        passed = (scale[..., None] * magnitude > cap) | fixed
        if torch.equal(passed, fixed):
            return scale
        fixed = passed
        left = radius**2 - torch.where(fixed, cap, 0).square().sum(-1)
        free = torch.where(fixed, 0, magnitude).square().sum(-1)
        solved = torch.where(free > 0, (left.clamp(min=0) / free).sqrt(), torch.inf)
        scale = torch.maximum(scale, solved)


@torch.no_grad()
def l1_threshold(
    magnitude: Float[Tensor, "*rows n"], cap: Float[Tensor, "*rows n"], radius: float
) -> Float[Tensor, "*rows"]:
    """s >= 0 with sum_i clip(m_i - s, 0, cap_i) = radius; 0 when the sum at s = 0 is within the radius already.

    The sum is piecewise linear and falls with s.  Newton's step is exact once its piece is found.  The sum is neither
    convex nor concave, so the steps alone can go to and fro between two points for ever: one that does not fall
    strictly inside the bracket seen so far is replaced by the bracket's middle.  That ends within about ten rounds,
    several times sooner than a sort would; what is unsettled after `PATIENCE` rounds is halved to the end.
    """
    travel = torch.minimum(cap, magnitude)
    arrival = magnitude - travel  # a coordinate moves freely while s lies between its arrival and its magnitude
    level = torch.zeros(magnitude.shape[:-1], dtype=torch.float64, device=magnitude.device)
    low, high = level, magnitude.amax(-1).double()
    settled = travel.sum(-1, dtype=torch.float64) <= radius
    tolerance = max(2 * torch.finfo(magnitude.dtype).eps, 1e-13)
    for rounds in range(PATIENCE + LONGEST_SEARCH):
        at = level[..., None].to(magnitude.dtype)
        excess = torch.minimum((magnitude - at).clamp(min=0), travel).sum(-1, dtype=torch.float64) - radius
        slope = ((magnitude > at) & (arrival <= at)).sum(-1)
        low, high = torch.where(excess > 0, level, low), torch.where(excess > 0, high, level)
        guess = level + excess / slope.clamp(min=1)
        found = (slope > 0) & ((guess - level).abs() <= tolerance * guess)
        steps = (slope > 0) & (guess > low) & (guess < high) if rounds < PATIENCE else found
        level = torch.where(found | steps, guess, (low + high) / 2)
        found |= high - low <= tolerance * high
        if bool((found | settled).all()):
            break
    return torch.where(settled, 0.0, level).to(magnitude.dtype)


def l1_fill(weight: Float[Tensor, "*rows n"], cap: Float[Tensor, "*rows n"], radius: float) -> Float[Tensor, "*rows"]:
    """Largest sum_i weight_i d_i over 0 <= d <= cap, sum d <= radius: a knapsack filled from the heaviest weight
    down.
    """
    heavy, order = weight.sort(dim=-1, descending=True)
    size = cap.clamp(max=radius).gather(-1, order)
    before = torch.cat([torch.zeros_like(size[..., :1]), size[..., :-1]], dim=-1).cumsum(-1)
    return (heavy * torch.minimum(size, (radius - before).clamp(min=0))).sum(-1)


def l2_reach(weight: Float[Tensor, "*rows n"], cap: Float[Tensor, "*rows n"], radius: float) -> Float[Tensor, "*rows"]:
    """Least upper bound of sum_i weight_i d_i over 0 <= d <= cap, ||d||_2 <= radius (`weight` >= 0).

    Value of the dual  sum_i max_{0<=d<=cap} (w_i d - mu d^2 / 2) + mu radius^2 / 2  at its best mu.  Every mu >= 0
    gives an upper bound, so an inexact mu loosens the number but never makes it wrong; mu is held fixed under
    differentiation (envelope theorem).
    """
    scale = l2_scale(weight, cap, radius)[..., None]
    steps = torch.where(weight > 0, torch.minimum(scale * weight, cap), 0).detach()
    mu = (1 / scale).squeeze(-1)
    return (weight * steps).sum(-1) + mu / 2 * (radius**2 - steps.square().sum(-1))
