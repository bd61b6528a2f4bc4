"""The nearest point of a hyperplane inside a box, in the L-infinity, L2 or L1 norm.

Given a point t, a plane <w, .> = b and a box low <= . <= high that holds t, find the smallest delta with
<w, t + delta> = b and t + delta in the box.  Every coordinate moves towards the plane by at most its room in the box:

    L-infinity  |delta_i| = min(lambda, room_i)
    L2          |delta_i| = min(lambda |w_i|, room_i)
    L1          coordinates are spent whole, in order of falling |w_i|, the last one in part

<w, delta> is piecewise linear and rising in lambda, so lambda comes from one sort and one cumulative sum.  Where the
box ends before the plane is reached, the answer is the corner nearest to it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.errors import UnsupportedError
from holdfast.threats.balls import L1, L2, Linf
from holdfast.threats.base import Threat

Flat = Float[Tensor, "batch values"]


def towards_plane(
    threat: Threat, point: Flat, normal: Flat, offset: Float[Tensor, " batch"], low: Flat, high: Flat
) -> Flat:
    """delta for every row.  Raises UnsupportedError for a threat that is none of the three balls."""
    excess = (normal * point).sum(1) - offset
    downhill = -normal * excess.sign()[:, None]
    room = torch.where(downhill > 0, high - point, point - low).clamp(min=0)
    weight, wanted = normal.abs(), excess.abs()
    room = torch.where(weight > 0, room, 0.0)
    if isinstance(threat, L1):
        moved = _greedy(weight, room, wanted)
    elif isinstance(threat, (Linf, L2)):
        speed = weight if isinstance(threat, L2) else torch.ones_like(weight)
        moved = _level(weight, speed, room, wanted)
    else:
        raise UnsupportedError(f"no nearest point of a hyperplane is known for {threat!r}; use Linf, L2 or L1")
    return downhill.sign() * moved


def _level(weight: Flat, speed: Flat, room: Flat, wanted: Tensor) -> Flat:
    """min(lambda speed, room) with sum of weight times that equal to `wanted`."""
    tiny = torch.finfo(weight.dtype).tiny
    ends = torch.where(weight > 0, room / speed.clamp(min=tiny), 0.0)
    ends, order = ends.sort(1)
    spent = (weight * room).gather(1, order).cumsum(1)
    rate = (weight * speed).gather(1, order)
    left = rate.flip(1).cumsum(1).flip(1)  # of the coordinates from here on
    before = torch.nn.functional.pad(spent[:, :-1], (1, 0))
    reached = torch.where(torch.isfinite(ends), before + ends * left, torch.inf)
    first = (reached < wanted[:, None]).sum(1, keepdim=True)
    place = first.clamp(max=weight.shape[1] - 1)
    level = (wanted[:, None] - before.gather(1, place)) / left.gather(1, place).clamp(min=tiny)
    level = torch.where(first == weight.shape[1], torch.inf, level.clamp(min=0))
    return torch.where(torch.isfinite(level), torch.minimum(level * speed, room), room)


def _greedy(weight: Flat, room: Flat, wanted: Tensor) -> Flat:
    """Rooms spent in order of falling weight until `wanted` is reached."""
    heavy, order = weight.sort(1, descending=True)
    gains = (weight * room).gather(1, order)
    before = torch.nn.functional.pad(gains.cumsum(1)[:, :-1], (1, 0))
    need = (wanted[:, None] - before).clamp(min=0) / heavy.clamp(min=torch.finfo(weight.dtype).tiny)
    spent = torch.minimum(need, room.gather(1, order))
    return torch.zeros_like(room).scatter(1, order, spent)
