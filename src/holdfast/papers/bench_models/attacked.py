"""Adversarial training for checks: `fitting.fit` on examples attacked as the network stands."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from holdfast.core.seeds import torch_generator
from holdfast.papers.bench_models.fitting import fit
from holdfast.papers.bench_models.train import adversarial
from holdfast.threats.balls import L2, Linf


def fit_attacked(
    model: nn.Module,
    x: Float[Tensor, "examples *shape"],
    y: Int[Tensor, " examples"],
    threat: Linf | L2 | None,
    *path: str | int,
    seed: int,
    epochs: int,
    batch: int = 100,
    peak: float = 4e-3,
) -> nn.Module:
    """Train in place on four-step attacks within `threat` (None: on the examples as they are); see `fit`."""
    generator = torch_generator(seed, *path, "attack")

    def attacked(places: Tensor) -> Tensor:
        rows = places.long()
        return x[rows] if threat is None else adversarial(model, x[rows], y[rows], threat, generator)

    # `fit` shuffles places instead of inputs: an attack needs the label of every input as well.
    places = torch.arange(len(x), dtype=torch.float64)
    return fit(model, places, y, attacked, *path, seed=seed, epochs=epochs, batch=batch, peak=peak)
