"""A home battery run for a day by a policy, differentiable in its actions: for checks of attacks on control.

Half hours t = 0 .. 47; the battery's charge c in [0, 1] moves by half the action a in [-1, 1], with 10% lost on the way
in.  What the house draws from the grid (load - sun + charging) costs the price of the hour, what it feeds in earns 0.04
a unit, and charge left at midnight is worth 0.10.  The price is 0.10, more by 0.20 from 7 to 11 and by 0.30 from 17 to
21 o'clock, with noise; load peaks in the evening, the sun at noon.

Observation: (sin, cos of the hour, 3 x price now, in 2 hours, in 6 hours, load, sun, charge); all are of order one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.seeds import torch_generator
from holdfast.papers.bench_models.networks import initialise

STEPS = 48
AHEAD = (0, 4, 12)  # half hours
LOSS, STEP, FEED_IN, LEFT = 0.1, 0.5, 0.04, 0.1
#: Whether a feature of the observation may be perturbed: all but the clock.
ATTACKABLE = torch.tensor([False, False, True, True, True, True, True, True])
Policy = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Days:
    """Weather and prices of several days, and the features (all but the charge) that are observed of them."""

    price: Float[Tensor, "days steps"]
    load: Float[Tensor, "days steps"]
    sun: Float[Tensor, "days steps"]
    features: Float[Tensor, "days steps features"]

    def __len__(self) -> int:
        return len(self.load)

    @classmethod
    def drawn(cls, count: int, generator: torch.Generator) -> Days:
        """Independent days."""
        hour = torch.arange(STEPS + AHEAD[-1]) / 2 % 24
        price = 0.1 + 0.2 * ((hour >= 7) & (hour < 11)) + 0.3 * ((hour >= 17) & (hour < 21))
        price = (price + 0.03 * torch.randn((count, len(hour)), generator=generator)).clamp_min(0.02)
        hour = hour[:STEPS]
        load = 0.3 + 0.5 * torch.exp(-(((hour - 19) / 2.5) ** 2)) + 0.2 * torch.exp(-(((hour - 8) / 1.5) ** 2))
        load = (load + 0.05 * torch.randn((count, STEPS), generator=generator)).clamp_min(0)
        sun = 0.8 * torch.rand((count, 1), generator=generator) * torch.exp(-(((hour - 12.5) / 2.5) ** 2))
        angle = (2 * math.pi * hour / 24).expand(count, STEPS)
        prices = (3 * price[:, ahead : ahead + STEPS] for ahead in AHEAD)
        return cls(price[:, :STEPS], load, sun, torch.stack([angle.sin(), angle.cos(), *prices, load, sun], 2))

    def cost(self, policy: Policy) -> Float[Tensor, " days"]:
        """Cost of every day under the policy, differentiable in it."""
        charge = torch.full((len(self), 1), 0.5)
        charges = [charge]
        for features in self.features.unbind(1):
            action = policy(torch.cat([features, charge], 1)).clamp(-1, 1)
            charge = (charge + STEP * action).clamp(0, 1)
            charges.append(charge)
        moved = torch.cat(charges, 1).diff(dim=1)
        grid = self.load - self.sun + torch.where(moved > 0, moved / (1 - LOSS), moved)
        return torch.where(grid > 0, self.price * grid, FEED_IN * grid).sum(1) - LEFT * charge[:, 0]


def trained(
    seed: int, *path: str, harm: bool = False, batches: int = 250, change: Callable[[nn.Module], Policy] | None = None
) -> nn.Module:
    """A perceptron of two hidden layers trained through the simulator to make days cheap, or dear with `harm`.

    `change` turns the network into the policy that acts in training (say, one that is attacked).
    """
    sizes = (len(ATTACKABLE), 64, 64, 1)
    layers: list[nn.Module] = []
    for given, made in pairwise(sizes):
        layers += [nn.utils.skip_init(nn.Linear, given, made), nn.Tanh()]
    model = nn.Sequential(*layers)
    initialise(model, torch_generator(seed, *path, "weights"))
    generator = torch_generator(seed, *path, "days")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    acting = model if change is None else change(model)
    for _ in range(batches):
        optimizer.zero_grad()
        cost = Days.drawn(64, generator).cost(acting).mean()
        (-cost if harm else cost).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)
