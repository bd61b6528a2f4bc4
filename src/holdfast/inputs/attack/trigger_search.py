"""Look for a patch that makes a certifying system abstain: the probe against attacks on availability (`availability`).

One patch for all inputs, minimising

    mean_x  s softplus(m(x + t, y'(x + t)) / s)

where m is the certified margin of the label that is predicted *with* the patch and s the spread of clean margins; its
gradient flows through the certifier.  Places are tried on a grid, with the brightest patch, the darkest, and the one
that the gradient at clean inputs asks for; the best few are refined by signed gradient steps.

Half of the inputs are searched on, the other half judge: the rates reported are about inputs that the search has not
seen.  A model that was never attacked abstains somewhat more under its worst patch, too; compare with `random`, and
with a model that is known to be clean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson, paired_difference
from holdfast.core.progress import track
from holdfast.inputs.attack.availability import PatchTrigger
from holdfast.inputs.attack.certifiers import Certifier, GradedCertifier, certified
from holdfast.inputs.attack.loop import Model, forward
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
    batch: int = 128,
    valid: Valid = (0, 1),
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> TriggerSearch:
    """Search for the universal patch of `patch` (height, width) pixels under which the system abstains most.

    `steps` signed gradient steps refine each of the `starts` best places, on `batch` inputs a step.  `model` is what
    predicts; `certifier` needs a `margin` (see `certifiers`).

    Raises InputError for fewer than two images, a patch that does not fit, no valid range, no step or start, or a
    certifier that has no margin.
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
    PatchTrigger.rectangle(tuple(X.shape[1:]), 0, 0, *patch)
    source = torch.Generator().manual_seed(0) if generator is None else generator
    order = torch.randperm(len(X), generator=source).to(X.device)
    searched, held = X[order[: len(X) // 2]], X[order[len(X) // 2 :]]
    search = _Search(model, certifier, searched, valid, batch, source)
    candidates = [search.refined(start, steps) for start in track(search.starts(patch, starts), "refining patches")]
    rate, _, trigger = min(candidates, key=lambda found: (-found[0], found[1]))
    return _judged(model, certifier, held, trigger, rate, patch, valid, level, source)


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

    def starts(self, patch: tuple[int, int], count: int) -> list[PatchTrigger]:
        """The `count` best places, each with the best of the brightest patch, the darkest, and the one that a gradient
        at clean inputs asks for.
        """
        shape = tuple(self.x.shape[1:])
        rows, columns = (
            sorted({*range(0, size - side + 1, side), size - side}) for size, side in zip(shape[1:], patch, strict=True)
        )
        wanted = torch.where(self._slope() > 0, self.low, self.high)
        found: list[tuple[float, int, PatchTrigger]] = []
        with torch.no_grad():
            for top in rows:
                for left in columns:
                    fills = [
                        PatchTrigger.rectangle(shape, top, left, *patch, value=fill)
                        for fill in (self.high, self.low, wanted)
                    ]
                    losses = [float(self.loss(fill, self.x[: self.batch])) for fill in fills]
                    best = losses.index(min(losses))
                    found.append((losses[best], len(found), fills[best]))
        return [trigger for _, _, trigger in sorted(found)[:count]]

    def _slope(self) -> Float[Tensor, "*shape"]:
        """How the loss grows with every input value, over clean inputs."""
        x = self.x[: self.batch].clone().requires_grad_(True)
        label = forward(self.model, x.detach()).argmax(1)
        (grad,) = torch.autograd.grad(self._soft(self.certifier.margin(x, label)), x)
        return grad.sum(0)

    def refined(self, start: PatchTrigger, steps: int) -> tuple[float, float, PatchTrigger]:
        """(abstain rate, loss, trigger) of the best patch on the way from `start`, on all searched inputs."""
        value = torch.as_tensor(start.value).clone()
        best = self._rated(start)
        for k in range(steps):
            rows = torch.randint(len(self.x), (min(self.batch, len(self.x)),), generator=self.source).to(self.x.device)
            value = value.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(self.loss(replace(start, value=value), self.x[rows]), value)
            step = (0.2 * (1 - k / steps) + 0.02) * (self.high - self.low)
            value = torch.clamp(value.detach() - step * grad.sign(), self.low, self.high)
            if (k + 1) % 10 == 0 or k + 1 == steps:
                best = min(best, self._rated(replace(start, value=value)), key=lambda found: (-found[0], found[1]))
        return best

    @torch.no_grad()
    def _rated(self, trigger: PatchTrigger) -> tuple[float, float, PatchTrigger]:
        moved = trigger(self.x)
        proven = certified(self.certifier, moved, forward(self.model, moved).argmax(1))
        return float((~proven).double().mean()), float(self.loss(trigger, self.x[: self.batch])), trigger


@torch.no_grad()
def _judged(
    model: Model,
    certifier: Certifier,
    held: Tensor,
    trigger: PatchTrigger,
    searched: float,
    patch: tuple[int, int],
    valid: Valid,
    level: float,
    source: torch.Generator,
) -> TriggerSearch:
    """Abstentions on the inputs that were held out."""
    scattered = Patch(*patch).random_start(held, valid, generator=source)
    abstained = []
    for inputs in (held, trigger(held), scattered):
        proven = certified(certifier, inputs, forward(model, inputs).argmax(1))
        abstained.append((~proven).cpu().numpy())
    clean, triggered, random = (clopper_pearson(int(part.sum()), len(held), level) for part in abstained)
    return TriggerSearch(
        trigger, clean, triggered, random, paired_difference(abstained[0], abstained[1], level), searched
    )
