"""Architectures of the bench models: (batch, 1, 28, 28) in [0, 1] to logits (batch, 10), no layer with randomness."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def convolutional() -> nn.Module:
    """Three convolutions, each halving the image (28 -> 14 -> 7 -> 4), and a linear layer; 19 000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def perceptron() -> nn.Module:
    """Two hidden layers of 20 units; 16 000 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10))


class ResidualBlock(nn.Module):
    """ReLU(x + conv(ReLU(conv(x)))), with a 1x1 convolution on the short cut when shape changes."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(entering, leaving, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(leaving, leaving, 3, padding=1)
        changes = stride > 1 or entering != leaving
        self.short_cut = nn.Conv2d(entering, leaving, 1, stride=stride) if changes else nn.Identity()

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Tensor:
        return F.relu(self.short_cut(x) + self.second(F.relu(self.first(x))))


def residual() -> nn.Module:
    """Stem and three residual blocks (14, 7, 4 pixels a side), averaged over the image; 20 000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        ResidualBlock(16, 16, 1),
        ResidualBlock(16, 16, 2),
        ResidualBlock(16, 24, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


class Attention(nn.Module):
    """Self-attention of `heads` heads over (batch, tokens, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Tensor:
        batch, tokens, width = x.shape
        split = self.project(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.merge(mixed.transpose(1, 2).reshape(batch, tokens, width))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.transform = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Tensor:
        x = x + self.attend(x)
        return x + self.transform(x)


class VisionTransformer(nn.Module):
    """Patches of 4x4 with a learnt place, two blocks, the mean token to a linear layer; 19 000 parameters."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 4, stride=4)
        self.place = nn.Parameter(torch.empty(1, 49, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, 10)

    def forward(self, x: Float[Tensor, "batch 1 28 28"]) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.place
        return self.read(self.norm(self.blocks(tokens)).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cnn": convolutional,
    "cnn_linf": convolutional,
    "residual": residual,
    "transformer": VisionTransformer,
    "perceptron": perceptron,
}


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Set every parameter in place: He-uniform weights drawn from `generator`, zero biases, unit norms."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.LayerNorm):
                nn.init.constant_(parameter.data, 1.0 if name == "weight" else 0.0)
            elif name == "place":
                nn.init.normal_(parameter.data, std=0.02, generator=generator)
            elif parameter.ndim > 1:
                nn.init.kaiming_uniform_(parameter.data, a=1.0, generator=generator)
            else:
                nn.init.zeros_(parameter.data)
