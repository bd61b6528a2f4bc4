"""Bounds on the margins m_k = f_k - f_y of a batch, in the form that certified training wants them.

Training computes them at every step, so they follow the cheapest route and stay differentiable.

*Intervals.*  The affine layers at the end are folded into the rows of the margin: with f = R h + b and h in a box of
centre c and radius r, m_k <= (R_k - R_y) c + b_k - b_y + |R_k - R_y| r.  R is the same for every example, so no stack
of classes x classes rows is formed.

*Fusion* (Xu et al., 2020).  Cross-entropy is the logarithm of S = sum_k exp(m_k), and the logarithm is monotone, so a
bound on the single number S bounds it.  On l_k <= m_k <= u_k the chord lies above the exponential,

    S <= sum_k e^{u_k} + s_k (m_k - u_k),       s_k = (e^{u_k} - e^{l_k}) / (u_k - l_k),

and sum_k s_k m_k is one row, bounded by one backward pass whatever the number of classes.  The pass treats the sum as a
whole, so its bound is at most the sum of the bounds s_k max m_k of separate passes, and the fused bound at most
sum_k exp(max m_k) whenever the chords end there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.inputs.bounds.backward import Pass
from holdfast.inputs.bounds.graph import Bound
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.operator import Box
from holdfast.inputs.bounds.region import margin_spec
from holdfast.inputs.bounds.rows import added, dense

_EVERY = slice(None)


def interval_margins(state: Propagation, output: int, y: Int[Tensor, " batch"]) -> Box:
    """Interval bounds on f_k - f_y for every class k, (batch, classes) each; exactly 0 for k = y."""
    starts, bias = folded(state.nodes, output, state.boxes[output].lower)
    own = y[:, None]
    if not state.separable and 0 in starts:
        # An affine network on a ball: the exact reach of every margin, by the dual norm.
        unit = torch.eye(bias.shape[1], dtype=bias.dtype, device=bias.device)
        rows = (unit - unit[own]).reshape(len(y), -1, *state.boxes[output].lower.shape[1:])
        reached = Pass(state, _EVERY, both=True, through=False).run(output, rows)
        assert reached.upper is not None
        return Box(reached.lower, reached.upper)
    centre, radius = bias.expand(len(y), -1), torch.zeros_like(bias)
    for position, rows in starts.items():
        box, flat = state.boxes[position], rows[0].flatten(1)
        centre = centre + ((box.upper + box.lower) / 2).flatten(1) @ flat.T
        apart = (flat - flat[own]).abs()
        radius = radius + (apart @ ((box.upper - box.lower) / 2).flatten(1)[..., None]).squeeze(-1)
    centre = centre - centre.gather(1, own)
    return Box(centre - radius, centre + radius)


def folded(nodes: Sequence[Bound], output: int, like: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """The output as an affine function of the last nonlinear values (or the input) behind it.

    Returns rows (1, classes, *event) on each of their positions, and the bias (1, classes).  `like` is the output's
    box, whose shape, dtype and device count.
    """
    classes = like[0].numel()
    rows = {output: torch.eye(classes, dtype=like.dtype, device=like.device).reshape(1, classes, *like.shape[1:])}
    bias = like.new_zeros(1, classes)
    starts: dict[int, Tensor] = {}
    for position in range(output, -1, -1):
        arriving = rows.pop(position, None)
        if arriving is None:
            continue
        if position == 0 or not nodes[position - 1].operator.affine:
            starts[position] = arriving
            continue
        parts, offset = nodes[position - 1].operator.pull(arriving, _EVERY)  # type: ignore[attr-defined]
        bias = bias if offset is None else bias + offset
        for parent, part in zip(nodes[position - 1].inputs, parts):
            rows[parent] = dense(added(rows[parent], part) if parent in rows else part)
    return starts, bias


def backward_margins(state: Propagation, output: int, y: Int[Tensor, " batch"]) -> Float[Tensor, "batch rivals"]:
    """Backward lower bounds on f_y - f_k for every rival k, in ascending order of k."""
    like = state.boxes[output].lower
    rows = margin_spec(y, like[0].numel()).to(like)
    return Pass(state, _EVERY, both=False).run(output, rows.reshape(*rows.shape[:2], *like.shape[1:])).lower


def fused_log_sum(state: Propagation, output: int, y: Int[Tensor, " batch"], margins: Box) -> Float[Tensor, " batch"]:
    """Upper bound on log sum_k exp(f_k - f_y) by one backward row; `margins` bound f_k - f_y, (batch, classes).

    Never above logsumexp(margins.upper), which holds as well.
    """
    # Everything is scaled by exp(-largest): early in training margins overflow.
    largest = margins.upper.detach().amax(1, keepdim=True)
    top, bottom = (margins.upper - largest).exp(), (margins.lower - largest).exp()
    width = margins.upper - margins.lower
    flat = width <= 1e-3
    # The tangent at the upper end where a chord would be a quotient of rounding errors: it lies below the exponential
    # at the lower end, by less than width^2 / 2 of its height; raised by that much it does not.
    slope = torch.where(flat, top, (top - bottom) / torch.where(flat, 1.0, width))
    raised = torch.where(flat, top * width.square(), 0.0)
    weights = slope - slope.sum(1, keepdim=True) * torch.nn.functional.one_hot(y, slope.shape[1])
    row = -weights.reshape(len(y), 1, *state.boxes[output].lower.shape[1:])
    linear = -Pass(state, _EVERY, both=False).run(output, row).lower.squeeze(1)
    total = linear + (top - slope * margins.upper + raised).sum(1)
    return largest.squeeze(1) + torch.minimum(total, top.sum(1)).clamp(min=torch.finfo(top.dtype).tiny).log()
