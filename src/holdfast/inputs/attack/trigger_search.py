"""Look for a patch that makes a certifying system abstain: the probe against attacks on availability (`availability`).

One patch for all inputs, minimising

    mean_x  s softplus(m(x + t, y'(x + t)) / s)

where m is the certified margin of the label that is predicted *with* the patch and s the spread of clean margins; its
gradient flows through the certifier.  Places are tried on a grid, with the brightest patch, the darkest, and the one
that the gradient at clean inputs asks for; the best few are refined by signed gradient steps.

A patch that hides what the image shows makes any model abstain, attacked or not.  So only quiet places are tried, where
images vary least and a patch hides nothing: there an attacked model stands out.

Half of the inputs are searched on, the other half judge: the rates reported are about inputs that the search has not
seen.  A model that was never attacked abstains somewhat more under its worst patch, too; compare with `random`, and
with a model that is known to be clean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson, paired_difference
from holdfast.core.progress import track
from holdfast.inputs.attack.certifiers import Certifier, GradedCertifier, certified
from holdfast.inputs.attack.loop import Model, forward
from holdfast.inputs.attack.trigger import PatchTrigger
from holdfast.threats.base import Valid
from holdfast.threats.places import Patch


@dataclass(frozen=True)
class TriggerSearch:
    """The worst patch found, and how often the system abstains on inputs that were held out from the search.

    `clean` without patch, `triggered` with it, `random` with patches of random place and values; `rise` is the paired
    difference triggered - clean.  `searched` is the rate on the inputs that were searched on.
    """

    trigger: PatchTrigger
    clean: Estimate
    triggered: Estimate
    random: Estimate
    rise: Estimate
    searched: float


def find_abstain_trigger(
    model: Model,
    certifier: Certifier,
    X: Float[Tensor, "examples channels height width"],
    patch: tuple[int, int],
    steps: int = 40,
    *,
    starts: int = 3,
    quiet: float = 0.01,
    batch: int = 128,
    valid: Valid = (0, 1),
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> TriggerSearch:
    """Search for the universal patch of `patch` (height, width) pixels under which the system abstains most.

    Tried are the places where the patch covers at most the share `quiet` of the variance that it covers where the
    images vary most; 1 tries all places (photographs vary everywhere).  `steps` signed gradient steps refine each of
    the `starts` best places, on `batch` inputs a step.  `model` is what predicts; `certifier` needs a `margin` (see
    `certifiers`).

    Raises InputError for fewer than two images, a patch that does not fit, no valid range, no step or start, no place
    that is quiet enough, or a certifier that has no margin.
    """
    if not isinstance(certifier, GradedCertifier):
        raise InputError(
            f"{type(certifier).__name__} has no margin(x, label) to descend; BoundCertifier and SmoothingCertifier do"
        )
    if X.ndim != 4 or len(X) < 2 or steps < 1 or starts < 1 or batch < 1 or valid is None:
        raise InputError(
            f"at least two images (n, channels, height, width), a step, a start and a valid range are wanted, got "
            f"shape {tuple(X.shape)}, steps={steps}, starts={starts}, valid={valid}"
        )
    if not 0 < quiet <= 1:
        raise InputError(f"the share `quiet` must lie in (0, 1], got {quiet}")
    PatchTrigger.rectangle(tuple(X.shape[1:]), 0, 0, *patch)
    source = torch.Generator().manual_seed(0) if generator is None else generator
    order = torch.randperm(len(X), generator=source).to(X.device)
    searched, held = X[order[: len(X) // 2]], X[order[len(X) // 2 :]]
    search = _Search(model, certifier, searched, valid, batch, source)
    begun = search.starts(patch, starts, quiet)
    found = [search.refined(start, steps) for start in track(begun, "refining patches", len(begun))]
    rates = [float(_abstained(model, certifier, trigger(searched)).mean()) for trigger in found]
    worst = found[int(np.argmax(rates))]
    scattered = Patch(*patch).random_start(held, valid, generator=source)
    abstained = [_abstained(model, certifier, inputs) for inputs in (held, worst(held), scattered)]
    clean, triggered, random = (clopper_pearson(int(part.sum()), len(held), level) for part in abstained)
    rise = paired_difference(abstained[0], abstained[1], level)
    return TriggerSearch(worst, clean, triggered, random, rise, max(rates))


Rated = tuple[float, float, PatchTrigger]


@dataclass(eq=False)
class _Search:
    """What stays the same while patches change."""

    model: Model
    certifier: GradedCertifier
    x: Tensor
    valid: Valid
    batch: int
    source: torch.Generator

    def __post_init__(self) -> None:
        assert self.valid is not None
        self.low, self.high = (
            torch.as_tensor(end, dtype=self.x.dtype, device=self.x.device).expand(self.x.shape[1:])
            for end in self.valid
        )
        with torch.no_grad():
            clean = self.certifier.margin(self.x[: self.batch], forward(self.model, self.x[: self.batch]).argmax(1))
        self.scale = float(clean.std(unbiased=False).clamp(min=1e-6))

    def loss(self, trigger: PatchTrigger, x: Tensor) -> Tensor:
        """Smooth stand-in for the share that stays certified."""
        moved = trigger(x)
        label = forward(self.model, moved.detach()).argmax(1)
        return self._soft(self.certifier.margin(moved, label))

    def _soft(self, margin: Tensor) -> Tensor:
        return self.scale * F.softplus(margin / self.scale).mean()

    def starts(self, patch: tuple[int, int], count: int, quiet: float) -> list[PatchTrigger]:
        """The `count` best places, each with the best of the brightest patch, the darkest, and the one that a gradient
        at clean inputs asks for, moved pixel by pixel to where it does most.
        """
        allowed = _quiet_places(self.x, patch, quiet)
        wanted = torch.where(self._slope() > 0, self.low, self.high)
        tried: dict[tuple[int, int], Rated] = {}

        def best_at(place: tuple[int, int]) -> Rated:
            if place not in tried:
                fills = [self._stamp(place, patch, fill) for fill in (self.high, self.low, wanted)]
                tried[place] = min((self._rated(fill) for fill in fills), key=_rank)
            return tried[place]

        with torch.no_grad():
            for place in allowed.nonzero().tolist():
                if all(
                    at % max(1, side // 2) == 0 or at == size - 1
                    for at, side, size in zip(place, patch, allowed.shape, strict=True)
                ):
                    best_at((place[0], place[1]))
            for place in sorted(tried, key=lambda place: _rank(tried[place]))[:count]:
                while True:
                    near = [(place[0] + down, place[1] + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
                    inside = [(a, b) for a, b in near if 0 <= a < len(allowed) and 0 <= b < allowed.shape[1]]
                    better = min((at for at in inside if bool(allowed[at])), key=lambda at: _rank(best_at(at)))
                    if better == place:
                        break
                    place = better
        return [trigger for _, _, trigger in sorted(tried.values(), key=_rank)[:count]]

    def _stamp(self, place: tuple[int, int], patch: tuple[int, int], fill: Tensor) -> PatchTrigger:
        return PatchTrigger.rectangle(tuple(self.x.shape[1:]), *place, *patch, value=fill)

    def _slope(self) -> Float[Tensor, "*shape"]:
        """How the loss grows with every input value, over clean inputs."""
        x = self.x[: self.batch].clone().requires_grad_(True)
        label = forward(self.model, x.detach()).argmax(1)
        (grad,) = torch.autograd.grad(self._soft(self.certifier.margin(x, label)), x)
        return grad.sum(0)

    def refined(self, start: PatchTrigger, steps: int) -> PatchTrigger:
        """The best patch on the way from `start`."""
        value = torch.as_tensor(start.value).clone()
        best = self._rated(start)
        for k in range(steps):
            rows = torch.randint(len(self.x), (min(self.batch, len(self.x)),), generator=self.source).to(self.x.device)
            value = value.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(self.loss(replace(start, value=value), self.x[rows]), value)
            step = (0.2 * (1 - k / steps) + 0.02) * (self.high - self.low)
            value = torch.clamp(value.detach() - step * grad.sign(), self.low, self.high)
            if (k + 1) % 5 == 0 or k + 1 == steps:
                best = min(best, self._rated(replace(start, value=value)), key=_rank)
        return best[2]

    @torch.no_grad()
    def _rated(self, trigger: PatchTrigger) -> Rated:
        """Share of the first batch that keeps a margin, the loss there, and the trigger."""
        moved = trigger(self.x[: self.batch])
        margin = self.certifier.margin(moved, forward(self.model, moved).argmax(1))
        return float((margin > 0).double().mean()), float(self._soft(margin)), trigger


def _rank(found: Rated) -> tuple[float, float]:
    return found[:2]


def _quiet_places(x: Tensor, patch: tuple[int, int], quiet: float) -> Bool[Tensor, "down across"]:
    """Where a patch covers at most `quiet` of the variance that it covers at the place where images vary most."""
    varying = Patch(*patch).window_sums(x.double().var(0, unbiased=False).sum(0)[None])[0]
    allowed = varying <= quiet * varying.max() + 1e-12
    if not bool(allowed.any()):
        raise InputError(
            f"nowhere does a {patch[0]}x{patch[1]} patch hide as little as {quiet:g} of what it hides at worst "
            f"(the least is {float(varying.min() / varying.max()):.3g}); raise `quiet`, up to 1 for every place"
        )
    return allowed


def _abstained(model: Model, certifier: Certifier, inputs: Tensor) -> Bool[np.ndarray, " n"]:
    """Where the predicted label is not proven."""
    proven = certified(certifier, inputs, forward(model, inputs).argmax(1))
    return (~proven).cpu().numpy()
