"""Which modality a classifier leans on and which brings it down: margin, steepness, radius, attack and removal of each.

`modality_report` measures a `MultimodalClassifier`; `JoinedViews` and `OneView` let any attack of the package at all of
its views together or at one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.intervals import clopper_pearson, paired_difference
from holdfast.inputs.attack.gradient import PGD
from holdfast.inputs.bounds.fusion import Views
from holdfast.inputs.bounds.multimodal import (
    Constants,
    MultimodalClassifier,
    Target,
    certified_lipschitz,
    check_constants,
    check_labels,
    check_views,
    empirical_lipschitz,
    multimodal_radius,
)
from holdfast.inputs.features import evaluating
from holdfast.threats.balls import L2
from holdfast.threats.base import Threat, Valid


@dataclass(frozen=True)
class ModalityRow:
    """One modality of a `ModalityReport`.

    `margin` is its mean part of the margin over the runner-up, `steepness` the mean of its term of the radius'
    denominator, `vulnerability` the median of the one over the whole margin (the inverse of the radius when it alone
    is attacked) among right examples.  `radius` is the mean radius when it alone is attacked, wrong examples counting
    0; `attacked` and `removed` are accuracies when it alone is attacked or its features are set to 0.
    """

    modality: int
    margin: float
    steepness: float
    vulnerability: float
    radius: Estimate
    attacked: Estimate
    removed: Estimate


@dataclass(frozen=True)
class ModalityReport:
    """How much a classifier leans on every modality, and how easily each brings it down.

    `constants` says what the radii rest on: "certified", or "empirical" and then they are estimates.
    """

    rows: tuple[ModalityRow, ...]
    accuracy: Estimate
    joint_radius: Estimate
    joint_attacked: Estimate
    eps: float
    constants: Constants

    def table(self) -> Table:
        """The report as an exhibit."""
        radius = "radius" if self.constants == "certified" else "radius (estimate)"
        columns = ("attacked", "margin", "steepness", "vulnerability", radius, f"accuracy, L2 {self.eps:g}", "removed")
        lines = [
            (
                f"view {row.modality}",
                row.margin,
                row.steepness,
                row.vulnerability,
                row.radius,
                row.attacked,
                row.removed,
            )
            for row in self.rows
        ]
        total = ("all views", None, None, None, self.joint_radius, self.joint_attacked, None)
        return Table("Robustness by modality", columns, (*lines, total), f"Accuracy unattacked: {self.accuracy}")


class JoinedViews(nn.Module):
    """A multi-modal classifier as a function of all views flattened and joined, (batch, values) -> logits."""

    def __init__(self, model: MultimodalClassifier, views: Views) -> None:
        super().__init__()
        self.model = model
        self.shapes = [tuple(view.shape[1:]) for view in views]
        self.train(model.training)

    @property
    def places(self) -> list[tuple[int, int]]:
        """First and last + 1 position of every view."""
        sizes = [math.prod(shape) for shape in self.shapes]
        return [(sum(sizes[:m]), sum(sizes[: m + 1])) for m in range(len(sizes))]

    def join(self, views: Views) -> Float[Tensor, "batch values"]:
        return torch.cat([view.flatten(1) for view in views], 1)

    def split(self, x: Float[Tensor, "batch values"]) -> list[Tensor]:
        return [x[:, i:j].unflatten(1, shape) for (i, j), shape in zip(self.places, self.shapes)]

    def forward(self, x: Float[Tensor, "batch values"]) -> Float[Tensor, "batch classes"]:
        return self.model(self.split(x)).logits


@dataclass(frozen=True, eq=False)
class OneView(Threat):
    """`threat` on the values `first` to `last` - 1 of joined views (batch, values); the others stay as they are."""

    threat: Threat
    first: int
    last: int

    @property
    def radius(self) -> float:
        return self.threat.radius

    def scaled(self, radius: float | int) -> OneView:
        return OneView(self.threat.scaled(radius), self.first, self.last)

    def describe(self) -> str:
        return f"{self.threat.describe()}, in values {self.first} to {self.last - 1} only"

    def norm(self, delta: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        elsewhere = torch.cat([delta[:, : self.first], delta[:, self.last :]], 1).abs().sum(1) > 0
        return torch.where(elsewhere, torch.inf, self.threat.norm(self._part(delta)))

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch *shape"]:
        return self._placed(self.threat.project(self._part(x_adv), self._part(x), valid), x)

    def random_start(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        return self._placed(self.threat.random_start(self._part(x), valid, generator=generator), x)

    def steepest(self, grad: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        return self._placed(self.threat.steepest(self._part(grad)), torch.zeros_like(grad))

    def _part(self, x: Tensor) -> Tensor:
        return x[:, self.first : self.last]

    def _placed(self, part: Tensor, x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.first], part, x[:, self.last :]], 1)


def modality_report(
    model: MultimodalClassifier,
    views: Views,
    y: Int[Tensor, " batch"],
    *,
    eps: float,
    steps: int = 20,
    lipschitz: Constants = "certified",
    valid: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
) -> ModalityReport:
    """Margin, steepness, radius, and accuracy under attack (PGD, L2 of `eps`, within `valid`) and removal.

    `lipschitz` says which constants the numbers rest on.  The model is measured in evaluation mode and put back in the
    mode that it came in.  Raises InputError for views or labels that do not fit or other constants than the two, and as
    the attack and the certificate do.
    """
    check_views(model, views)
    check_labels(y, len(views[0]), len(model.fusion.bias))
    check_constants(lipschitz)
    with evaluating(model):
        joined = JoinedViews(model, views)
        with torch.no_grad():
            right = model(views).logits.argmax(1) == y

        def attacked(threat: Threat) -> Estimate:
            attack = PGD(threat, steps=steps)
            return _share(right & ~attack.run(joined, joined.join(views), y, valid=valid, generator=generator).success)

        certified = lipschitz == "certified"
        tau = certified_lipschitz(model, views) if certified else empirical_lipschitz(model, views)
        radius, *alone = _mean_radii(model, views, y, None if certified else tau)
        rows = tuple(
            ModalityRow(
                m,
                *_leaning(model, views, y, m, tau),
                radius=alone[m],
                attacked=attacked(OneView(L2(eps), *place)),
                removed=_share(_without(model, views, m) == y),
            )
            for m, place in enumerate(joined.places)
        )
        return ModalityReport(rows, _share(right), radius, attacked(L2(eps)), eps, lipschitz)


@torch.no_grad()
def _leaning(model: MultimodalClassifier, views: Views, y: Tensor, m: int, tau: Tensor) -> tuple[float, float, float]:
    """Mean margin and steepness of modality m against the runner-up, and the median vulnerability of right examples."""
    fused = model(views)
    rival = fused.logits.scatter(1, y[:, None], -torch.inf).argmax(1)
    scores = model.fusion.scales[m] * fused.scores[:, m]
    steep = model.fusion.scales[m].abs() * tau[m].to(scores)
    term = steep[y] + steep[rival]
    margin = _picked(fused.logits, y) - _picked(fused.logits, rival)
    ratio = (term / margin)[margin > 0]
    vulnerability = float(ratio.median()) if len(ratio) else math.inf
    return float((_picked(scores, y) - _picked(scores, rival)).mean()), float(term.mean()), vulnerability


def _mean_radii(model: MultimodalClassifier, views: Views, y: Tensor, tau: Tensor | None) -> list[Estimate]:
    """Mean radius against a change of all views, then of each alone; certified without `tau`, estimated with it."""
    threats: list[Target] = ["joint", *range(len(views))]
    if tau is None:
        found = model.certified_radii(views, y, threats)
    else:
        fusion = model.fusion
        with torch.no_grad():
            scores = model(views).scores
            radii = [multimodal_radius(scores, fusion.scales, tau, fusion.bias, y, threat) for threat in threats]
        found = torch.stack(radii).clamp(min=0)
    arrays = found.double().cpu().numpy()
    return [paired_difference(np.zeros(len(array)), array) for array in arrays]


@torch.no_grad()
def _without(model: MultimodalClassifier, views: Views, m: int) -> Tensor:
    return model.without(views, m).argmax(1)


def _picked(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[:, None]).squeeze(1)


def _share(hits: Bool[Tensor, " batch"]) -> Estimate:
    return clopper_pearson(int(hits.sum()), len(hits))
