"""Exact projections onto, and linear minima over, a norm ball cut by a box.

Everything here works on magnitudes: how far a coordinate wants to go (`magnitude` >= 0) and how far it may (`cap` >=
0, possibly infinite), along the last axis.  With r = radius:

    L2   scale t with || min(t m, cap) ||_2 = r          (the minimiser of <a, d> + (d - v)^2 terms is a clipped ray)
    L1   threshold s with sum_i clip(m_i - s, 0, cap_i) = r

Both are monotone in one unknown and are solved to rounding error, without bisection.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


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

    The sum is piecewise linear and falls with s; it bends at m_i (a coordinate begins to move) and at m_i - cap_i (it
    arrives). O(n log n): sort the bends from above and accumulate.
    """
    wanted = magnitude.double()
    travel = torch.minimum(cap.double(), wanted)
    bends = torch.cat([wanted, wanted - travel], dim=-1)
    turns = torch.cat([torch.ones_like(wanted), -torch.ones_like(wanted)], dim=-1)
    bends, order = bends.sort(dim=-1, descending=True)
    slope = turns.gather(-1, order).cumsum(-1)
    gained = (slope[..., :-1] * (bends[..., :-1] - bends[..., 1:])).cumsum(-1)
    total = torch.cat([torch.zeros_like(gained[..., :1]), gained], dim=-1)
    found = (total < radius).sum(-1, keepdim=True).clamp(1, bends.shape[-1] - 1)
    threshold = bends.gather(-1, found) + (total.gather(-1, found) - radius) / slope.gather(-1, found - 1).clamp(min=1)
    threshold = torch.where(total[..., -1:] <= radius, 0.0, threshold.clamp(min=0))
    return threshold.squeeze(-1).to(magnitude.dtype)


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
