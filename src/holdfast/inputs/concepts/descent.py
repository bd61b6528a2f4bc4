"""Inference by descent: class and concepts relaxed to mixtures, each input with logits of its own, by Adam."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from holdfast.inputs.concepts.joint import ConceptPosterior
from holdfast.inputs.features import evaluating

if TYPE_CHECKING:
    from holdfast.inputs.concepts.energy import EnergyConceptModel

_STEP = 0.1
_MOST_STEPS = 200
_PATIENCE = 10
_GAIN = 1e-4  # a smaller fall of the energy counts as none


def descend(model: EnergyConceptModel, x: Float[Tensor, "n ..."], held: Int[Tensor, "n concepts"]) -> ConceptPosterior:
    """Descend from the verdicts of the single parts until no input's energy has fallen for ten steps.

    Every input keeps its lowest point.  Concepts that are held (0 or 1; -1 is free) stay where they are.
    """
    with evaluating(model):
        with torch.no_grad():
            energies = model.energies(x)
            parts = tuple(part.detach() for part in model.projections(x))
        fixed = held != -1
        sure = F.one_hot(held.clamp(min=0), 2).to(energies.classes.dtype)
        classes = (-energies.classes).clone().requires_grad_(True)
        concepts = (energies.concepts[..., 0] - energies.concepts[..., 1]).clone().requires_grad_(True)

        def mixed(logits: Tensor) -> Tensor:
            free = torch.stack([(-logits).sigmoid(), logits.sigmoid()], dim=2)
            return torch.where(fixed[..., None], sure, free)

        best = torch.full((len(x),), torch.inf, dtype=classes.dtype, device=x.device)
        kept = [classes.detach().clone(), concepts.detach().clone()]
        optimizer = torch.optim.Adam([classes, concepts], lr=_STEP)
        idle = 0
        for _ in range(_MOST_STEPS):
            with torch.enable_grad():
                energy = model.relaxed_energy((parts[0], parts[1]), mixed(concepts), classes.softmax(1))
                grads = torch.autograd.grad(energy.sum(), (classes, concepts), allow_unused=True)
            fell = energy.detach() < best - _GAIN
            for old, new in zip(kept, (classes, concepts), strict=True):
                old[fell] = new.detach()[fell]
            best = torch.where(fell, energy.detach(), best)
            idle = 0 if bool(fell.any()) else idle + 1
            if idle >= _PATIENCE:
                break
            for leaf, grad in zip((classes, concepts), grads, strict=True):
                leaf.grad = grad
            optimizer.step()
        with torch.no_grad():
            shares = mixed(kept[1])
            state, label = shares.argmax(2), kept[0].argmax(1)
            energy = model.joint_energy(energies, state, label).double()
        return ConceptPosterior(kept[0].softmax(1).double(), shares[..., 1].double(), state, label, energy)
