"""Telling a plain network how noisy its input is: an embedding of the log level, and a scale and shift a layer (FiLM).

e = MLP([cos(250 log t w_k), sin(250 log t w_k)]),    w_k = 10000^(-k/K)     Karras et al. (2022), EDM's time feature
h <- h (1 + A e) + B e                                                        Perez et al. (2018), after every layer
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from holdfast.core.errors import InputError
from holdfast.inputs.smoothing.dense import perceptron

_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
#: Factor of the log level: a quarter of the thousand steps that such embeddings were made for.
_STRETCH = 250.0


def sinusoids(log_level: Float[Tensor, " batch"], width: int) -> Float[Tensor, "batch width"]:
    """Cosines and sines of 250 times the log level at width / 2 frequencies from 1 down to 1/10000."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=log_level.device) / half)
    angle = _STRETCH * log_level[:, None].double() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1).to(log_level.dtype)


class LevelEmbedding(nn.Module):
    """(batch,) log levels to (batch, width): sinusoids, then one hidden layer."""

    def __init__(self, width: int = 64, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise InputError(f"an embedding of cosines and sines needs an even width of at least 2, got {width}")
        self.width = width
        self.mix = perceptron((width, width, width), generator)

    def forward(self, log_level: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        return self.mix(sinusoids(log_level, self.width))


class LevelConditioned(nn.Module):
    """A plain `nn.Sequential` with the noise level told to every layer but the last: (x, log_level) -> its output.

    The scale and shift follow each linear or convolutional layer (after its normalisation, if one follows).  `module`
    is used as it is, not copied.  New weights are drawn from `generator`: those of the scales and shifts are small, so
    that at first the network is nearly what it was.

    Raises InputError unless the module is a sequence (nested ones count) with at least two such layers.
    """

    def __init__(self, module: nn.Module, width: int = 64, generator: torch.Generator | None = None) -> None:
        super().__init__()
        layers = list(_flat(module))
        affine = [place for place, layer in enumerate(layers) if isinstance(layer, _AFFINE)]
        if not isinstance(module, nn.Sequential) or len(affine) < 2:
            raise InputError(
                "level conditioning needs an nn.Sequential with at least two linear or convolutional layers, got "
                f"{type(module).__name__} with {len(affine)}; for another network take (x, log_level) in its forward"
            )
        self.embed = LevelEmbedding(width, generator)
        self.stages = nn.ModuleList()
        self.films = nn.ModuleList()
        start = 0
        for place in affine[:-1]:
            end = place + 1
            while end < len(layers) and isinstance(layers[end], _NORMS):
                end += 1
            self.stages.append(nn.Sequential(*layers[start:end]))
            self.films.append(_Film(layers[place], width, generator))
            start = end
        self.stages.append(nn.Sequential(*layers[start:]))

    def forward(self, x: Float[Tensor, "batch *shape"], log_level: Float[Tensor, " batch"]) -> Tensor:
        level = self.embed(log_level.to(x.dtype))
        for stage, film in zip(self.stages, self.films):
            x = film(stage(x), level)
        return self.stages[-1](x)


class _Film(nn.Module):
    """h (1 + A e) + B e along the channels that `layer` gives."""

    def __init__(self, layer: nn.Module, width: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.last = isinstance(layer, nn.Linear)
        self.channels = int(layer.out_features if self.last else layer.out_channels)  # type: ignore[arg-type]
        self.project = skip_init(nn.Linear, width, 2 * self.channels)
        nn.init.normal_(self.project.weight, std=0.1 / math.sqrt(width), generator=generator)
        nn.init.zeros_(self.project.bias)

    def forward(self, h: Tensor, level: Float[Tensor, "batch width"]) -> Tensor:
        scale, shift = self.project(level).chunk(2, dim=1)
        beside = [1] * (h.ndim - 2)
        shape = (len(h), *beside, self.channels) if self.last else (len(h), self.channels, *beside)
        return h * (1 + scale.reshape(shape)) + shift.reshape(shape)


def _flat(module: nn.Module) -> list[nn.Module]:
    if not isinstance(module, nn.Sequential):
        return [module]
    return [layer for part in module for layer in _flat(part)]
