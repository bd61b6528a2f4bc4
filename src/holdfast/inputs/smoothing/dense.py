"""Small dense networks for smoothing on flat arrays.  They claim nothing; any network of the same signature fits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from holdfast.core.errors import InputError


def perceptron(
    sizes: Sequence[int], generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """Linear layers of the given sizes with ReLU between: (n, sizes[0]) to (n, sizes[-1]).

    Weights are He-normal drawn from `generator`, biases zero.  Raises InputError for fewer than two sizes.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise InputError(f"a perceptron needs at least an input and an output size, each positive, got {list(sizes)}")
    layers: list[nn.Module] = []
    for entering, leaving in pairwise(sizes):
        # skip_init: the default initialisation would draw from torch's global stream.
        linear = skip_init(nn.Linear, entering, leaving, dtype=dtype)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class DenseDenoiser(nn.Module):
    """x + net(x) with a perceptron of one or more hidden layers whose last layer starts at zero: at first the identity.

    (n, features) to the same shape.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (256, 256),
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.net = perceptron((features, *hidden, features), generator, dtype)
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]  # the last layer is linear

    def forward(self, x: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:
        return x + self.net(x)


def dense_autoencoder(
    features: int,
    latent: int,
    hidden: Sequence[int] = (128,),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder (n, features) to (n, latent), and decoder back to (n, features) in [0, 1] through a sigmoid."""
    encoder = perceptron((features, *hidden, latent), generator, dtype)
    decoder = perceptron((latent, *reversed(hidden), features), generator, dtype)
    return encoder, decoder.append(nn.Sigmoid())
