"""Linear layers and perceptrons whose initial weights come from a generator that is passed, not from torch's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils import skip_init


def drawn_linear(given: int, made: int, generator: torch.Generator | None = None) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and no bias to start with; None draws from torch's own generator."""
    layer = skip_init(nn.Linear, given, made)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def perceptron(
    sizes: Sequence[int], generator: torch.Generator | None = None, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Linear layers of these sizes with activations between."""
    layers: list[nn.Module] = []
    for given, made in pairwise(sizes):
        layers += [drawn_linear(given, made, generator), activation()]
    return nn.Sequential(*layers[:-1])
