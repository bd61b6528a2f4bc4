"""Small networks for scores and denoisers.  They claim nothing; any network of the same signature fits."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from holdfast.core.errors import InputError


class ConvScore(nn.Module):
    """`depth` convolutions of 3x3 with ReLU between: (n, channels, height, width) to the same shape, no normalisation.

    No layer mixes examples or depends on image size, so one net serves images of any size.  Weights are He-normal drawn
    from `generator`; the last layer starts at zero, so the first guess is a score (or a residual) of zero.
    """

    def __init__(self, channels: int = 1, width: int = 24, depth: int = 5, *, generator: torch.Generator | None = None):
        super().__init__()
        if channels < 1 or width < 1 or depth < 2:
            raise InputError(f"ConvScore needs channels, width >= 1 and depth >= 2, got {channels}, {width}, {depth}")
        sizes = [channels, *[width] * (depth - 1), channels]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            # skip_init: the default initialisation would draw from torch's global stream.
            layers += [skip_init(nn.Conv2d, inputs, outputs, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # these layers have a bias
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]  # the last layer is a convolution

    def forward(self, x: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n channels height width"]:
        return self.layers(x)
