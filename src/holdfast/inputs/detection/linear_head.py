"""The last linear layer of a classifier as two arrays, for detectors that look at what enters it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.features import last_linear


@dataclass(frozen=True)
class LinearHead:
    """logits = features Wᵀ + b, in float64."""

    weight: Float[np.ndarray, "classes features"]
    bias: Float[np.ndarray, " classes"]

    @classmethod
    def of(cls, model: nn.Module, layer: str | None = None) -> LinearHead:
        """Copied from the layer of this name, by default the last linear one.  Raises InputError if there is none."""
        name = last_linear(model) if layer is None else layer
        module = dict(model.named_modules()).get(name) if name is not None else None
        if not isinstance(module, nn.Linear):
            raise InputError(
                f"the model has no linear layer {'' if layer is None else repr(layer)} to take a head from"
            )
        weight = module.weight.detach().double().cpu().numpy().copy()
        bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().double().cpu().numpy().copy()
        return cls(weight, bias)

    def logits(self, features: Float[np.ndarray, "n features"]) -> Float[np.ndarray, "n classes"]:
        """Raises InputError when the features are not those that enter this layer."""
        if features.shape[1] != self.weight.shape[1]:
            raise InputError(f"the head takes {self.weight.shape[1]} features, got {features.shape[1]}")
        return features @ self.weight.T + self.bias
