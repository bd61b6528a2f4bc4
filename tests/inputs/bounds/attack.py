"""Points of a region that try to leave proven bounds: random ones, and gradient steps towards either end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Bounds, Region
from holdfast.threats import WordSwap


def excess(
    model: nn.Module, region: Region, bounds: Bounds, samples: int = 200, steps: int = 10, seed: int = 0
) -> float:
    """The furthest that any attacked output lies outside its bounds (negative: all inside), evaluated in float64."""
    generator = torch_generator(seed, "tests", "attack")
    threat, valid = region.threat, region.valid
    x = region.x.double()
    model = model.double()
    try:
        worst = -torch.inf
        for _ in range(samples):
            worst = max(worst, _outside(model(threat.random_start(x, valid, generator=generator)), bounds))
        worst = max(worst, _outside(model(x), bounds))
        outputs = bounds.lower.shape[1]
        for output in range(outputs):
            for sign in (1.0, -1.0):
                point = threat.random_start(x, valid, generator=generator)
                for step in range(steps):
                    point = point.detach().requires_grad_()
                    (gradient,) = torch.autograd.grad(sign * model(point).flatten(1)[:, output].sum(), point)
                    if isinstance(threat, WordSwap):
                        # The nearest substitute to a point far along the gradient is the one that gains most.
                        far = gradient * (1e3 / gradient.abs().amax().clamp(min=1e-12))
                    else:
                        far = 2 * threat.radius / (1 + step) * threat.steepest(gradient)
                    point = threat.project(point + far, x, valid)
                    worst = max(worst, _outside(model(point.detach()), bounds))
    finally:
        model.float()
    return worst


@torch.no_grad()
def _outside(outputs: Tensor, bounds: Bounds) -> float:
    flat = outputs.flatten(1)
    return float(torch.maximum(bounds.lower - flat, flat - bounds.upper).max())
