"""The nearest point of a hyperplane inside a box, in the L-infinity, L2 or L1 norm.

Given a point t, a plane <w, .> = b and a box low <= . <= high that holds t, find the smallest delta with
<w, t + delta> = b and t + delta in the box.  Every coordinate moves towards the plane by at most its room in the box:

    L-infinity  |delta_i| = min(lambda, room_i)
    L2          |delta_i| = min(lambda |w_i|, room_i)
    L1          coordinates are spent whole, in order of falling |w_i|, the last one in part

<w, delta> is piecewise linear, rising and concave in lambda, so Newton's iteration from below is exact after a few
rounds.  In L1 few coordinates are spent as a rule, so only the heaviest are sorted.  Where the box ends before the
plane is reached, the answer is the corner nearest to it.
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
    """min(lambda speed, room) with sum of weight times that equal to `wanted`.

    A coordinate that is at the end of its room stays there as lambda rises, so every round solves for lambda among the
    others; the set of those at their end only grows, and when it stands still lambda is exact.
    """
    tiny = torch.finfo(weight.dtype).tiny
    rate, gain = weight * speed, weight * room
    level = wanted / rate.sum(1).clamp(min=tiny)
    moved = torch.minimum(level[:, None] * speed, room)
    ended = -1
    for _ in range(weight.shape[1] + 1):
        at_end = moved >= room
        count = int(at_end.sum())
        if count == ended:
            break
        ended = count
        left = wanted - torch.where(at_end, gain, 0.0).sum(1)
        free = torch.where(at_end, 0.0, rate).sum(1)
        # Without a coordinate left to move the plane is out of reach, and what was wanted is not there.
        level = torch.maximum(level, torch.where(free > 0, left / free.clamp(min=tiny), level))
        moved = torch.minimum(level[:, None] * speed, room)
    return moved


#: Coordinates looked at first in L1.
HEAVIEST = 64


def _greedy(weight: Flat, room: Flat, wanted: Tensor) -> Flat:
    """Rooms spent in order of falling weight until `wanted` is reached."""
    spent = torch.zeros_like(room)
    heaviest = min(HEAVIEST, weight.shape[1])
    heavy, order = weight.topk(heaviest, dim=1)
    enough = (heavy * room.gather(1, order)).sum(1) >= wanted
    rows = (~enough).nonzero().squeeze(1)
    spent.scatter_(1, order, _spend(heavy, room.gather(1, order), wanted))
    if len(rows) and heaviest < weight.shape[1]:
        heavy, order = weight[rows].sort(1, descending=True)
        spent[rows] = spent[rows].scatter(1, order, _spend(heavy, room[rows].gather(1, order), wanted[rows]))
    return spent


def _spend(weight: Flat, room: Flat, wanted: Tensor) -> Flat:
    """Rooms spent from left to right until `wanted` is reached."""
    gains = (weight * room).cumsum(1)
    before = torch.nn.functional.pad(gains[:, :-1], (1, 0))
    need = (wanted[:, None] - before).clamp(min=0) / weight.clamp(min=torch.finfo(weight.dtype).tiny)
    return torch.minimum(need, room)
