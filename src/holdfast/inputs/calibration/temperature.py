"""Temperature scaling: one number that makes a network as confident as it is right (Guo et al., 2017).

    T* = argmin_T  -(1/n) sum_i log softmax(z_i / T)[y_i]

The loss is convex in b = 1/T; its derivative  mean_i (E_softmax(b z_i)[z_i] - z_i[y_i])  rises in b, so the minimum is
its only root.  Dividing logits by T > 0 leaves every prediction as it is.  z (n, classes), y (n,) class indices.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.special import softmax
from torch import Tensor, nn

from holdfast.core.errors import InputError

#: Temperatures outside [1/1000, 1000] mean that there is no minimum worth speaking of.
_EXTREME = 1000.0


def fit_temperature(logits: Float[np.ndarray, "n classes"], y: Int[np.ndarray, " n"]) -> float:
    """The temperature that minimises the cross-entropy of softmax(logits / T) on held-out examples.

    Clipped to [0.001, 1000]: the lower end when every example is right (sharper is always better), the upper when the
    logits tell nothing.  Raises InputError on logits that are not finite, lengths that differ or labels outside.
    """
    if len(logits) != len(y) or len(y) == 0:
        raise InputError(f"temperature needs one label for every row of logits, got {len(y)} and {len(logits)}")
    if not np.isfinite(logits).all():
        raise InputError("logits hold NaN or infinity")
    if y.min() < 0 or y.max() >= logits.shape[1]:
        raise InputError(f"labels must lie in 0..{logits.shape[1] - 1}, got {y.min()}..{y.max()}")
    # Softmax does not see a shift of a row; small numbers lose fewer digits.
    z = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    reached = z[np.arange(len(y)), y].mean()

    def slope(log_inverse: float) -> float:
        weights = softmax(math.exp(log_inverse) * z, axis=1)
        return float(np.mean(np.sum(weights * z, axis=1)) - reached)

    end = math.log(_EXTREME)
    if slope(-end) >= 0:
        return _EXTREME
    if slope(end) <= 0:
        return 1 / _EXTREME
    return math.exp(-brentq(slope, -end, end, xtol=1e-10))


class TemperatureScaled(nn.Module):
    """A model whose logits are divided by a fixed temperature."""

    temperature: Tensor

    def __init__(self, model: nn.Module, temperature: float):
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"a temperature must be positive and finite, got {temperature}")
        self.model = model
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        logits: Tensor = self.model(x)
        return logits / self.temperature.to(logits.dtype)
