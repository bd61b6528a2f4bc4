"""Leaves: parts where every neuron is decided, so that the network is one linear function on a polytope.

There the margin's minimum is a linear program,

    min t  such that  a_r . x + c_r <= t  for the rows r,  sigma_j (g_j . x + h_j) >= 0  for the splits j,  x in the box

whose dual gives weights of the rows and multipliers beta of the splits.  The program is solved in floating point
(HiGHS); what counts is the bound that its multipliers give in one backward pass, which holds for any multipliers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import OptimizeResult, linprog
from torch import Tensor

from holdfast.inputs.bounds.backward import Pass
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.optimize import Multipliers
from holdfast.inputs.bounds.parts import evaluated

#: How far beyond the threshold an infeasible leaf's multipliers are scaled.
_BEYOND = 2.0


@dataclass(frozen=True)
class Leaf:
    """The proven bound of one leaf, and the minimiser when the polytope is not empty."""

    bound: float
    point: Float[Tensor, " inputs"] | None


@dataclass(frozen=True)
class _Halfspaces:
    """normals . x + levels >= 0, one for every imposed sign; `places` are (position of the value, flat entry)."""

    places: list[tuple[int, int]]
    normals: Float[np.ndarray, "signs inputs"]
    levels: Float[np.ndarray, " signs"]


def settle(
    state: Propagation,
    output: int,
    imposed: Mapping[int, Tensor],
    rows: Float[Tensor, "1 rows outputs"],
    offset: Float[Tensor, "1 rows"],
    threshold: float,
) -> Leaf:
    """Bound the margin max over rows of rows . y - offset on a leaf.

    `state` (float64, outward, one example) has no undecided neuron, and `imposed` says which signs are not
    consequences of the box: position -> entries in {-1, 0, 1}, shaped like the value.
    """
    backward = Pass(state, slice(None), both=False, keep=True)
    carried = backward.run(output, rows.reshape(*rows.shape[:2], *state.boxes[output].lower.shape[1:]))
    assert carried.rows is not None
    slopes, constants = carried.rows[0].flatten(1).cpu().numpy(), (carried.bias - offset)[0].cpu().numpy()
    halfspaces = _halfspaces(state, imposed)
    ends = np.stack([end.flatten().cpu().numpy() for end in state.boxes[0]], 1)
    solved = _minimum(slopes, constants, halfspaces, ends)
    even = np.full(len(slopes), 1 / len(slopes))
    if solved.status == 0:
        duals = np.maximum(-solved.ineqlin.marginals, 0)
        weights, beta = duals[: len(slopes)], duals[len(slopes) :]
        weights = weights / weights.sum() if weights.sum() > 0 else even
        point = torch.from_numpy(solved.x[:-1])
    else:
        # Empty, as far as the solver can tell: some combination of the splits is violated throughout the box.
        violated = _violation(halfspaces, ends)
        size = abs(threshold) + np.abs(constants).max() + (np.abs(slopes) @ np.abs(ends).max(1)).max() + 1.0
        beta = np.maximum(-violated.ineqlin.marginals, 0) * _BEYOND * size / max(violated.fun, 1e-12)
        weights, point = even, None
    combined = torch.from_numpy(weights).to(rows)[None, None]
    multipliers = Multipliers({}, _shaped(state, halfspaces.places, beta))
    with torch.no_grad():
        found, _ = evaluated(state, output, combined @ rows, imposed, multipliers)
    level = float((combined @ offset[..., None]).sum())
    # The weights and the level were rounded too; both are as many ulps off as there are rows.
    unit = (len(slopes) + 2) * torch.finfo(torch.float64).eps
    scale = float(rows.abs().sum(2).amax() * state.boxes[output].magnitude.amax() + offset.abs().amax())
    return Leaf(float(found.lower) - level - unit * scale, point)


def _halfspaces(state: Propagation, imposed: Mapping[int, Tensor]) -> _Halfspaces:
    inputs = state.boxes[0].lower[0].numel()
    places: list[tuple[int, int]] = []
    normals, levels = [np.zeros((0, inputs))], [np.zeros(0)]
    for position, sign in imposed.items():
        flat = sign[0].flatten()
        index = flat.nonzero().squeeze(1)
        carried = Pass(state, slice(None), both=False, keep=True).run_units(position, index[None])
        assert carried.rows is not None
        normals.append((flat[index, None] * carried.rows[0].flatten(1)).cpu().numpy())
        levels.append((flat[index] * carried.bias[0]).cpu().numpy())
        places += [(position, int(entry)) for entry in index]
    return _Halfspaces(places, np.concatenate(normals), np.concatenate(levels))


def _minimum(slopes: np.ndarray, constants: np.ndarray, halfspaces: _Halfspaces, ends: np.ndarray) -> OptimizeResult:
    inputs = slopes.shape[1]
    below = -halfspaces.normals
    matrix = np.block([[slopes, -np.ones((len(slopes), 1))], [below, np.zeros((len(below), 1))]])
    limits = np.concatenate([-constants, halfspaces.levels])
    free = np.concatenate([ends, [[-np.inf, np.inf]]])
    return linprog(np.eye(inputs + 1)[-1], A_ub=matrix, b_ub=limits, bounds=free, method="highs")


def _violation(halfspaces: _Halfspaces, ends: np.ndarray) -> OptimizeResult:
    """min s >= 0 such that every halfspace, relaxed by s, meets the box."""
    matrix = np.concatenate([-halfspaces.normals, -np.ones((len(halfspaces.normals), 1))], 1)
    free = np.concatenate([ends, [[0.0, np.inf]]])
    cost = np.eye(matrix.shape[1])[-1]
    return linprog(cost, A_ub=matrix, b_ub=halfspaces.levels, bounds=free, method="highs")


def _shaped(state: Propagation, places: list[tuple[int, int]], beta: np.ndarray) -> dict[int, Tensor]:
    """Multipliers of the signs, each with the shape of its value."""
    found: dict[int, Tensor] = {}
    for (position, entry), value in zip(places, beta):
        like = state.boxes[position].lower
        found.setdefault(position, like.new_zeros(1, 1, like[0].numel()))[0, 0, entry] = float(value)
    return {p: flat.reshape(1, 1, *state.boxes[p].lower.shape[1:]) for p, flat in found.items()}
