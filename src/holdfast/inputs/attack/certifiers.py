"""Certifiers as one kind of thing: (inputs, labels) -> for which inputs the label is proven to stay.

`BoundCertifier` asks bounds of the network (IBP, CROWN, ...) over a threat's set, `SmoothingCertifier` asks votes under
Gaussian noise for an L2 radius.  Any callable of that signature is a certifier.  One that also has
`margin(inputs, labels)`, a differentiable number that is positive where the certificate succeeds, can be attacked by
gradients.

A system that answers only what it can prove certifies the label it *predicts*, whatever the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from scipy.special import ndtr
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.attack.losses import margin
from holdfast.inputs.bounds import Graph, Method, Region, bounds, capture, certify, margin_spec
from holdfast.inputs.smoothing.gaussian import Smoothed
from holdfast.inputs.smoothing.mean import SmoothedProbabilities
from holdfast.inputs.smoothing.stopping import RadiusTarget
from holdfast.threats.base import Threat, Valid


@runtime_checkable
class Certifier(Protocol):
    """Whether each label is proven to stay: bool (batch,)."""

    def __call__(self, x: Float[Tensor, "batch *shape"], label: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]: ...


@runtime_checkable
class GradedCertifier(Certifier, Protocol):
    """A certifier that says how near it was."""

    def margin(self, x: Float[Tensor, "batch *shape"], label: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Positive where the label is certified (up to rounding and sampling), with gradients."""
        ...


@dataclass(frozen=True, eq=False)
class BoundCertifier:
    """Bounds of `model` over `threat`: "ibp", "crown", or any other method of `holdfast.inputs.bounds.bounds`.

    The verdict uses float64 and outward rounding; the margin is the smallest lower bound of label minus rival, in the
    inputs' precision.  Errors as `certify` raises them.
    """

    model: nn.Module
    threat: Threat
    valid: Valid = (0, 1)
    method: Method = "ibp"
    _graphs: dict[tuple[int, ...], Graph] = field(default_factory=dict, repr=False)

    def __call__(self, x: Float[Tensor, "batch *shape"], label: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        return certify(self._graph(x), x, label, self.threat, self.valid, self.method).certified

    def margin(self, x: Float[Tensor, "batch *shape"], label: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """min over rivals of the lower bound of f_label - f_rival."""
        graph = self._graph(x)
        region = Region(x, self.threat, self.valid)
        rows = margin_spec(label, graph.outputs)
        return bounds(graph, region, method=self.method, spec=rows, upper=False).lower.amin(1)

    def _graph(self, x: Tensor) -> Graph:
        shape = tuple(x.shape[1:])
        if shape not in self._graphs:
            self._graphs[shape] = capture(self.model, x[:1].detach())
        return self._graphs[shape]


@dataclass(frozen=True, eq=False)
class SmoothingCertifier:
    """Votes of `base` under N(0, sigma^2 I): certified when the label wins with an L2 radius of at least `radius`.

    `n0` draws choose, at most `n` bound, each verdict is wrong with probability at most `alpha`; drawing stops when the
    radius is decided.  Every call draws from the stream of `seed`.  The margin is that of the mean probability over
    `copies` draws against the share of votes that the radius needs.
    """

    base: nn.Module
    sigma: float
    radius: float
    classes: int
    n0: int = 32
    n: int = 1000
    alpha: float = 1e-3
    copies: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.radius >= 0:
            raise InputError(f"the radius to certify must be at least 0, got {self.radius}")

    def __call__(self, x: Float[Tensor, "batch *shape"], label: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        smoothed = Smoothed(self.base, self.sigma, self.classes)
        stream = torch_generator(self.seed, "smoothing certifier")
        rule = RadiusTarget(self.radius)
        found = smoothed.certify(x.detach(), self.n0, self.n, self.alpha, rule, stream)
        enough = (found.radius >= self.radius) & ~found.abstained
        return (enough & (found.label.to(label.device) == label).to(enough.device)).to(label.device)

    def margin(self, x: Float[Tensor, "batch *shape"], label: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Mean probability of the label minus Phi(radius / sigma), at most its lead over the next class."""
        means = SmoothedProbabilities(self.base, self.sigma, self.copies, seed=self.seed)(x).exp()
        own = means.gather(1, label[:, None]).squeeze(1)
        return torch.minimum(own - float(ndtr(self.radius / self.sigma)), -margin(means, label))


def certified(certifier: Certifier, x: Tensor, label: Tensor, batch: int = 500) -> Bool[Tensor, " n"]:
    """The certifier's verdicts, `batch` inputs a call.  Raises InputError when they are not one bool an input."""
    verdicts = []
    for inputs, labels in zip(x.split(batch), label.split(batch), strict=True):
        found = certifier(inputs, labels)
        if not isinstance(found, Tensor) or found.dtype != torch.bool or found.shape != labels.shape:
            kind = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"a certifier must answer one bool an input, ({len(labels)},); this one gave {kind}")
        verdicts.append(found.to(label.device))
    return torch.cat(verdicts) if verdicts else torch.zeros(0, dtype=torch.bool)
