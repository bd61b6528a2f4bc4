"""Inputs that do not belong, made from examples that do; one for every example of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.audit.probe import Batch
from holdfast.subject.subject import Subject

IMAGE_KINDS = ("random pixels", "shuffled pixels", "heavy noise")
ROW_KINDS = ("shuffled columns", "far away")
SPREADS_AWAY = 5.0


def foreign_inputs(kind: str, subject: Subject, reference: Tensor, batch: Batch) -> Tensor:
    """Pixels replaced by noise, shuffled, or drowned in noise; features drawn from different rows, or moved far out.

    `reference` (examples, *shape) are typical inputs, for the values and spreads of features.
    """
    x, generator = batch.x.cpu(), batch.generator
    low, high = value_range(subject, reference)
    if kind == "shuffled pixels":
        flat = x.flatten(2)
        order = torch.rand(len(x), 1, flat.shape[2], generator=generator).argsort(-1)
        made = flat.gather(2, order.expand_as(flat)).reshape(x.shape)
    elif kind == "shuffled columns":
        pool = reference.flatten(1)
        rows = torch.randint(len(pool), (len(x), pool.shape[1]), generator=generator)
        made = pool.gather(0, rows).reshape(x.shape)
    elif kind == "far away":
        sign = torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
        made = x + SPREADS_AWAY * sign * reference.double().std(dim=0, correction=0).float()
    elif kind == "random pixels":
        made = low + (high - low) * torch.rand(x.shape, generator=generator)
    else:
        made = x + 0.5 * (high - low) * torch.randn(x.shape, generator=generator)
    if subject.valid is not None and subject.modality == "image":
        made = torch.minimum(torch.maximum(made, low), high)
    return made.to(batch.x.device)


def value_range(subject: Subject, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The declared range, else that of the reference."""
    if subject.valid is None:
        return reference.min(), reference.max()
    low, high = (torch.as_tensor(bound, dtype=torch.float32).cpu() for bound in subject.valid)
    return low, high
