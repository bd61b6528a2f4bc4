"""One training loop for checks and benchmarks that train on changed inputs (noise, a half of the pixels, ...)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.seeds import torch_generator
from holdfast.papers.bench_models.networks import initialise


def perceptron(*sizes: int) -> nn.Module:
    """Flattened inputs through linear layers of these sizes with ReLUs between; weights yet to be set."""
    layers: list[nn.Module] = [nn.Flatten()]
    for given, made in pairwise(sizes):
        layers += [nn.utils.skip_init(nn.Linear, given, made), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fit(
    model: nn.Module,
    x: Float[Tensor, "examples *shape"],
    y: Int[Tensor, " examples"],
    change: Callable[[Tensor], Tensor],
    *path: str | int,
    seed: int,
    epochs: int,
    batch: int = 100,
    peak: float = 4e-3,
) -> nn.Module:
    """Cross-entropy on `change(batch of x)` by Adam under a one-cycle step; weights and order from the named streams.

    The model is changed in place and given back in evaluation mode.
    """
    initialise(model, torch_generator(seed, *path, "weights"))
    order = torch_generator(seed, *path, "order")
    optimizer = torch.optim.Adam(model.parameters(), lr=peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=epochs * -(-len(x) // batch))
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=order).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(change(x[index])), y[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()
