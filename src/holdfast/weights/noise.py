"""Gaussian noise on the weights, relative to the size of each layer.

    W' = W + sigma rms(W) N(0, 1),     rms(W)^2 = mean of W_ij^2 over the layer

so one sigma means the same for every layer, whatever its scale: analogue hardware, drift, or training with another seed
move weights by such a share.
"""

from __future__ import annotations

import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.weights.quantise import Weights, weight_names


def noisy_weights(model: nn.Module, sigma: float, *, generator: torch.Generator) -> Weights:
    """All weights of `model` (see `quantise.weight_names`) with relative noise, by name; the model is not touched.

    Random numbers are drawn on the generator's device, so a CPU generator gives the same weights on every device.
    Raises InputError for a sigma that is negative or not finite.
    """
    if not 0 <= sigma < float("inf"):
        raise InputError(f"the relative noise of weights must be a finite number of at least 0, got {sigma}")
    noisy: Weights = {}
    for name in weight_names(model):
        weight = model.get_parameter(name).detach()
        drawn = torch.randn(weight.shape, generator=generator, device=generator.device).to(weight)
        noisy[name] = weight + sigma * weight.square().mean().sqrt() * drawn
    return noisy
