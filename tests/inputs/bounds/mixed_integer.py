"""The oracle for small ReLU networks: minima by the big-M mixed-integer program (HiGHS), with interval bounds."""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn


def least(
    model: nn.Sequential, row: np.ndarray, lower: np.ndarray, upper: np.ndarray, signs: np.ndarray | None = None
) -> float:
    """min of row . f over the box, where `signs` (neurons,) in {-1, 0, 1} imposes z >= 0 or z <= 0; inf where empty.

    Variables are x, then for every hidden layer its outputs y and switches d: z <= y <= z - (1 - d) l, 0 <= y <= d u.
    A switch that is fixed is a sign that is imposed.
    """
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    weights = [layer.weight.detach().double().numpy() for layer in layers]
    biases = [layer.bias.detach().double().numpy() for layer in layers]
    hidden = [len(bias) for bias in biases[:-1]]
    signs = np.zeros(sum(hidden)) if signs is None else signs
    ends = np.zeros(len(lower) + 2 * sum(hidden)), np.ones(len(lower) + 2 * sum(hidden))
    ends[0][: len(lower)], ends[1][: len(lower)] = lower, upper
    constraints, integral = [], np.zeros(len(ends[0]))
    before, start, neuron = slice(0, len(lower)), len(lower), 0
    for weight, bias in zip(weights, biases[:-1]):
        size = len(bias)
        y, d = slice(start, start + size), slice(start + size, start + 2 * size)
        middle, radius = (ends[0][before] + ends[1][before]) / 2, (ends[1][before] - ends[0][before]) / 2
        reach = np.abs(weight) @ radius
        low, high = weight @ middle + bias - reach, weight @ middle + bias + reach
        ends[1][y], integral[d] = np.maximum(high, 0), 1
        sign = signs[neuron : neuron + size]
        ends[0][d], ends[1][d] = sign > 0, sign >= 0
        above, below, off = (np.zeros((size, len(integral))) for _ in range(3))
        above[:, y], above[:, before] = np.eye(size), -weight
        below[:, y], below[:, before], below[:, d] = np.eye(size), -weight, -np.diag(np.minimum(low, 0))
        off[:, y], off[:, d] = np.eye(size), -np.diag(np.maximum(high, 0))
        # y <= z - (1 - d) min(l, 0)  <=>  y - W x - d min(l, 0) <= b - min(l, 0)
        constraints += [
            LinearConstraint(above, bias, np.inf),
            LinearConstraint(below, -np.inf, bias - np.minimum(low, 0)),
            LinearConstraint(off, -np.inf, 0),
        ]
        before, start, neuron = y, start + 2 * size, neuron + size
    cost = np.zeros(len(integral))
    cost[before] = row @ weights[-1]
    found = milp(cost, constraints=constraints, bounds=Bounds(*ends), integrality=integral, options={"mip_rel_gap": 0})
    if found.status == 2:
        return np.inf
    assert found.success
    return float(found.fun + row @ biases[-1])
