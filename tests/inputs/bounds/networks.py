"""Small networks of many shapes for testing bounds, with weights drawn from a named stream."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Graph, capture


def drawn(model: nn.Module, seed: int, scale: float = 1.0) -> nn.Module:
    """`model` in evaluation mode with random weights and random stored statistics."""
    generator = torch_generator(seed, "tests", "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            spread = scale / max(1, parameter[0].numel() if parameter.ndim > 1 else 4) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
            elif name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return model.eval()


class Normalised(nn.Module):
    """(x - mean) / std in front of a body, as models for pixels have it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, 1, 1), 0.3))
        self.std = torch.tensor([0.7])
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.std)


class Residual(nn.Module):
    """In-place additions and activations, a strided shortcut, and one value with three users."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2)
        self.head = nn.Linear(6, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        y = self.second(F.relu(self.norm(self.first(x)), inplace=True))
        y += self.shortcut(x)
        y = torch.relu(y) - 0.1 * y
        return self.head(self.drop(F.adaptive_avg_pool2d(y, 1).flatten(1)))


class Viewed(nn.Module):
    """`view` with the batch size, slices, assignment into a slice, concatenation, permutation, padding, means and
    sums.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, dilation=2, padding=2, groups=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding="same", groups=2)
        self.linear = nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv(x), 0.1)
        x = torch.relu(self.grouped(F.pad(x, (1, 0, 0, 1), value=0.5)))
        rows = x.permute(0, 2, 3, 1).mean(2)
        rows = rows.contiguous().view(x.size(0), -1)
        rows[:, :3] *= 2.0
        joined = torch.cat([rows[:, :10], 1.5 - rows[:, 10:]], dim=1)
        return self.linear(torch.relu(joined[:, :20])) + joined.sum(dim=1, keepdim=True) * 0.1


def multilayer() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 12),
        nn.ReLU(),
        nn.Linear(12, 9),
        nn.LeakyReLU(0.2),
        nn.BatchNorm1d(9),
        nn.Linear(9, 4),
    )


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.Conv2d(3, 4, 2),
        nn.ReLU(),
        nn.AvgPool2d(2, stride=1),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def sequence() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(2),
        nn.Unflatten(2, (64,)),
        nn.Conv1d(1, 3, 5, stride=3),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(30, 4),
    )


def networks(seed: int = 0) -> dict[str, nn.Module]:
    """Name to network; every one maps (batch, 1, 8, 8) to a few outputs."""
    parts = {
        "multilayer": multilayer(),
        "pooled": Normalised(pooled()),
        "residual": Residual(),
        "viewed": Viewed(),
        "sequence": sequence(),
    }
    return {name: drawn(model, seed + place) for place, (name, model) in enumerate(parts.items())}


@cache
def captured(name: str, seed: int = 0) -> Graph:
    """One of `networks` with its trace; tests that change its weights must put them back."""
    return capture(networks(seed)[name], torch.rand(1, 1, 8, 8, generator=torch_generator(0, "tests", "example")))


NAMES = sorted(networks())
