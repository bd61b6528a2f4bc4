"""Layers that compute something else in training than in use."""

from __future__ import annotations

from torch import nn


def training_parts(model: nn.Module) -> list[str]:
    """Such layers of the model that are in training mode, each by its kind and name."""
    return [
        f"{type(part).__name__} '{name}'" if name else type(part).__name__
        for name, part in model.named_modules()
        if part.training and _acts_apart(part)
    ]


def _acts_apart(module: nn.Module) -> bool:
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, nn.MultiheadAttention)
    return isinstance(module, kinds)
