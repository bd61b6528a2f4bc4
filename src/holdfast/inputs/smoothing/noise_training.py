"""Training a classifier on the noise it will be smoothed with, with several draws an example and a rate a layer.

    mean_j CE(f(x + sigma e_j), y) + regularizer(f(x + sigma e_1), ..., f(x + sigma e_m))      e_j ~ N(0, I)

Cohen et al. (2019) train with m = 1; consistency (Jeong and Shin, 2020) compares m = 2.  When a pre-trained encoder is
fine-tuned, layers far from the output may learn slower: each step down multiplies the rate by `layer_decay`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.progress import track


def layerwise_rates(model: nn.Module, lr: float, decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: the last layer learns at `lr`, each one before it at `decay` times the next.

    A layer is a module with parameters of its own that want gradients, in order of registration.
    """
    layers = [
        parameters
        for module in model.modules()
        if (parameters := [p for p in module.parameters(recurse=False) if p.requires_grad])
    ]
    return [
        {"params": parameters, "lr": lr * decay**depth}
        for depth, parameters in zip(range(len(layers) - 1, -1, -1), layers)
    ]


def train_under_noise(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    y: Int[Tensor, " n"],
    sigma: float,
    *,
    steps: int,
    batch: int = 256,
    draws: int = 1,
    regularizer: nn.Module | None = None,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[np.ndarray, " steps"]:
    """Train `model` in place by AdamW with a cosine schedule, and leave it in eval mode.

    Parameters that want no gradient stay as they are.  `regularizer` gets logits (draws, batch, classes); `sigma` is in
    units of x.  Returns the loss of every step.
    Raises InputError for settings out of range, a model without trainable parameters, or a loss that is not finite.
    """
    if min(steps, batch, draws) < 1 or len(x) == 0 or len(x) != len(y):
        raise InputError(
            f"training needs labelled examples, and steps, batch and draws of at least 1; got {len(x)} examples with "
            f"{len(y)} labels, and {steps}, {batch}, {draws}"
        )
    if not (sigma >= 0 and math.isfinite(sigma)) or not 0 < layer_decay <= 1:
        raise InputError(f"sigma must be >= 0 and layer_decay in (0, 1], got {sigma} and {layer_decay}")
    groups = layerwise_rates(model, lr, layer_decay)
    if not groups:
        raise InputError("no parameter of the model wants a gradient; unfreeze the head at least")
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    device = x.device if generator is None else generator.device
    losses = np.empty(steps)
    model.train()
    for step in track(range(steps), "training under noise", steps):
        index = torch.randint(len(x), (min(batch, len(x)),), generator=generator, device=device).to(x.device)
        copies = x[index].repeat(draws, *[1] * (x.ndim - 1))
        noise = torch.randn(copies.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
        logits = model(copies + sigma * noise)
        loss = F.cross_entropy(logits, y[index].repeat(draws))
        if regularizer is not None:
            loss = loss + regularizer(logits.reshape(draws, -1, logits.shape[-1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses[step] = loss.item()
        if not np.isfinite(losses[step]):
            raise InputError(f"training diverged at step {step} (loss {losses[step]}); use a smaller lr than {lr:g}")
    model.eval()
    return losses
