"""Small networks for scores and denoisers.  They claim nothing; any network of the same signature fits."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from holdfast.core.errors import InputError

#: Sines and cosines that tell a network its noise level.
_NOISE_FEATURES = 32


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
        """One value for every entry of the images."""
        return self.layers(x)


class MLPDenoiser(nn.Module):
    """`depth` hidden layers of `width` SiLU units over flattened examples, told the noise level in every layer.

    Called as net(x, noise, condition=...): x (n, *shape) with `features` coordinates an example, `noise` (n,) whatever
    the preconditioning gives, `condition` (n, condition_features) or None for zeros.  Weights are He-normal drawn from
    `generator`; the last layer starts at zero.
    """

    def __init__(
        self,
        features: int,
        width: int = 256,
        depth: int = 3,
        condition_features: int = 0,
        *,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if features < 1 or width < 1 or depth < 1 or condition_features < 0:
            raise InputError(
                "MLPDenoiser needs features, width, depth >= 1 and condition_features >= 0, got "
                f"{features}, {width}, {depth} and {condition_features}"
            )
        self.condition_features = condition_features
        told = _NOISE_FEATURES + condition_features
        sizes = [features, *[width] * depth]
        self.hidden = nn.ModuleList(skip_init(nn.Linear, given, made) for given, made in pairwise(sizes))
        self.told = nn.ModuleList(skip_init(nn.Linear, told, width) for _ in range(depth))
        self.read = skip_init(nn.Linear, width, features)
        for layer in (*self.hidden, *self.told):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)

    def forward(
        self, x: Float[Tensor, "n *shape"], noise: Float[Tensor, " n"], *, condition: Float[Tensor, "n _"] | None = None
    ) -> Float[Tensor, "n *shape"]:
        told = noise_features(noise)
        if self.condition_features:
            given = x.new_zeros(len(x), self.condition_features) if condition is None else condition
            told = torch.cat([told, given], dim=1)
        elif condition is not None:
            raise InputError("this network takes no condition; build it with condition_features > 0")
        hidden = x.flatten(1)
        for layer, shift in zip(self.hidden, self.told, strict=True):
            hidden = F.silu(layer(hidden) + shift(told))
        return self.read(hidden).reshape(x.shape)


def noise_features(noise: Float[Tensor, " n"]) -> Float[Tensor, "n features"]:
    """Cosines and sines of `noise` at frequencies from 1 down to 1/10 000, evenly spaced in the logarithm."""
    exponent = torch.linspace(0, 1, _NOISE_FEATURES // 2, dtype=noise.dtype, device=noise.device)
    angle = noise[:, None] * 10_000**-exponent
    return torch.cat([angle.cos(), angle.sin()], dim=1)
