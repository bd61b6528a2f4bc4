"""Robustness of classifiers that fuse several modalities, and training that raises it (Yang et al., 2024).

Encoders phi^m turn the views x^m into features, and the logits are

    h_k(x) = sum_m a_k^m zeta_k^m(x^m) + b_k,        zeta_k^m = <W_k^m, phi^m(x^m)>,

where `OrthogonalFusion` makes the rows W^m orthonormal (centred first) and learns scales a.  If tau_k^m is a Lipschitz
constant of zeta_k^m, no joint change of all views of Euclidean size below

    r(x) = min_{k != y} [h_y(x) - h_k(x)] / sqrt(sum_m (|a_y^m| tau_y^m + |a_k^m| tau_k^m)^2)

moves the label y (Cauchy-Schwarz over modalities); where only modality m is attacked the denominator is its own term.
A modality whose term is large against the margin is where the classifier can be broken.

A constant c_yk^m of the whole difference a_y zeta_y - a_k zeta_k may take the place of a term.  For an encoder with
constant L^m, c_yk^m = ||a_y W_y - a_k W_k|| L^m, which for orthonormal rows is sqrt(a_y^2 + a_k^2) L^m: the certificate
of `MultimodalClassifier.certified_radius` uses it.  It is computed in float64 with outward rounding for the rows as
float64 computes them from the stored weights.  The largest gradient seen on data is a constant from *below*:
`empirical_lipschitz` is an estimate, good for training, and a radius made with it is no certificate.

Training (`CertifiableFusionLoss`, then `optimise_integration`) first raises the margins of each modality alone,

    CE(h, y) + rho mean log(sum_m sum_{k != y} exp(zeta_k^m - zeta_y^m) + 1e-5),

then freezes encoders and rows and maximises the mean of r over the scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.inputs.bounds.enclosure import enclosed
from holdfast.inputs.bounds.fusion import ConcatenationFusion, Fused, OrthogonalFusion, Views
from holdfast.inputs.bounds.graph import capture
from holdfast.inputs.bounds.rounding import Rounding
from holdfast.inputs.features import evaluating
from holdfast.inputs.lipschitz import lipschitz_bound

__all__ = [
    "CertifiableFusionLoss",
    "ConcatenationFusion",
    "Fused",
    "MultimodalClassifier",
    "OrthogonalFusion",
    "certified_lipschitz",
    "empirical_lipschitz",
    "multimodal_radius",
    "optimise_integration",
]

Constants = Literal["empirical", "certified"]
#: What an attacker moves: all views together, or the one of this position.
Target = Literal["joint"] | int


class MultimodalClassifier(nn.Module):
    """Encoders, one a modality, and a fusion of their features; `forward` takes the views in order and gives `Fused`.

    Every encoder maps (batch, *shape) to features, which are flattened.
    """

    def __init__(self, encoders: Iterable[nn.Module], fusion: ConcatenationFusion) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.fusion = fusion
        if len(self.encoders) != len(fusion.dims):
            raise InputError(f"{len(self.encoders)} encoders for a fusion of {len(fusion.dims)} modalities")

    def features(self, views: Views) -> list[Tensor]:
        """phi^m(x^m) of every view."""
        _require_one_a_modality(self, views)
        return [encoder(view).flatten(1) for encoder, view in zip(self.encoders, views)]

    def forward(self, views: Views) -> Fused:
        return self.fusion(self.features(views))

    def without(self, views: Views, missing: int) -> Float[Tensor, "batch classes"]:
        """Logits when the features of modality `missing` are set to 0."""
        features = self.features(views)
        features[missing] = torch.zeros_like(features[missing])
        return self.fusion(features).logits

    def certified_radius(
        self, views: Views, y: Int[Tensor, " batch"] | None = None, threat: Target = "joint"
    ) -> Float[Tensor, " batch"]:
        """L2 radius, float64 and sound, within which no change of all views (or of view `threat`) moves the label.

        With labels `y` it is 0 where the prediction is another.  Raises InputError for a view that is missing or not
        finite and for labels that do not fit, UnsupportedError for encoders with operators that have no bounding rule.
        """
        return self.certified_radii(views, y, (threat,))[0]

    @torch.no_grad()
    def certified_radii(
        self, views: Views, y: Int[Tensor, " batch"] | None, threats: Sequence[Target]
    ) -> Float[Tensor, "threats batch"]:
        """`certified_radius` for several threats at the price of one."""
        check_views(self, views)
        if y is not None:
            check_labels(y, len(views[0]), len(self.fusion.bias))
        graphs = [capture(encoder, view) for encoder, view in zip(self.encoders, views)]
        steepness = [lipschitz_bound(graph, view) for graph, view in zip(graphs, views)]
        parts, errors = zip(*(enclosed(graph, view) for graph, view in zip(graphs, views)))
        rows = [
            scale[:, None] * row for scale, row in zip(self.fusion.scales.double(), self.fusion.rows(torch.float64))
        ]
        bias = self.fusion.bias.double()
        logits = torch.stack([part @ row.T for part, row in zip(parts, rows)]).sum(0) + bias
        label = logits.argmax(1)
        gamma = Rounding(True, sum(row.shape[1] for row in rows) + 64).gamma(torch.float64)
        gaps = torch.stack([_distances(row) for row in rows])  # (modalities, classes, classes)
        lengths = torch.stack([torch.linalg.vector_norm(row, dim=1) for row in rows])  # scaling rounds every row
        gaps = (gaps + gamma * (lengths[:, :, None] + lengths[:, None, :])) * (1 + gamma)
        sizes = torch.stack([part.abs() @ row.abs().T for part, row in zip(parts, rows)]).sum(0) + bias.abs()
        margin = logits.gather(1, label[:, None]) - logits - gamma * (sizes.gather(1, label[:, None]) + sizes)
        margin -= (1 + gamma) * sum(error[:, None] * gap[label] for error, gap in zip(errors, gaps))
        terms = gaps * torch.tensor(steepness, dtype=torch.float64, device=gaps.device)[:, None, None]
        steep = [_denominator(terms, label, threat) * (1 + gamma) for threat in threats]
        radii = torch.stack([_smallest(margin, part, label).clamp(min=0) * (1 - gamma) for part in steep])
        return radii if y is None else torch.where(label == y, radii, 0.0)


class CertifiableFusionLoss(nn.Module):
    """Cross-entropy of the joint logits plus `rho` times the log-sum of every modality's own margins (step 1).

    Raises InputError for a negative rho, and for labels that do not fit the logits.
    """

    def __init__(self, rho: float = 2.0) -> None:
        super().__init__()
        if not 0 <= rho < math.inf:
            raise InputError(f"rho weighs the modalities' own margins and must be at least 0, got {rho}")
        self.rho = rho

    def forward(self, fused: Fused, y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        check_labels(y, *fused.logits.shape)
        own = y[:, None, None].expand(-1, fused.scores.shape[1], 1)
        gaps = (fused.scores - fused.scores.gather(2, own)).scatter(2, own, -torch.inf).flatten(1)
        floor = gaps.new_full((len(gaps), 1), math.log(1e-5))
        return F.cross_entropy(fused.logits, y) + self.rho * torch.cat([gaps, floor], 1).logsumexp(1).mean()


def multimodal_radius(
    scores: Float[Tensor, "batch modalities classes"],
    scales: Float[Tensor, "modalities classes"],
    lipschitz: Tensor,
    bias: Float[Tensor, " classes"],
    y: Int[Tensor, " batch"],
    threat: Target = "joint",
) -> Float[Tensor, " batch"]:
    """r(x) of the module's description: differentiable, rounded to nearest, negative where y is not the prediction.

    Parameters
    ----------
    scores : zeta, before scaling.
    lipschitz : tau (modalities, classes) of the unscaled scores; or c (modalities, classes, classes) of the scaled
        differences, c[m, y, k] for class y over k.
    threat : "joint" for a change of all modalities together, or the one modality that changes.

    Raises InputError for labels out of range, shapes that do not fit, a modality that is not there, or constants that
    are negative or NaN.
    """
    modalities, classes = scales.shape
    check_labels(y, len(scores), classes)
    if lipschitz.shape not in ((modalities, classes), (modalities, classes, classes)):
        raise InputError(
            f"Lipschitz constants must have shape ({modalities}, {classes}) or ({modalities}, {classes}, {classes}), "
            f"got {tuple(lipschitz.shape)}"
        )
    if not bool((lipschitz >= 0).all()):
        raise InputError("Lipschitz constants must not be negative or NaN")
    terms = lipschitz
    if lipschitz.ndim == 2:
        weighed = scales.abs() * lipschitz
        terms = weighed[:, :, None] + weighed[:, None, :]
    logits = (scales * scores).sum(1) + bias
    return _smallest(logits.gather(1, y[:, None]) - logits, _denominator(terms, y, threat), y)


def empirical_lipschitz(model: MultimodalClassifier, views: Views) -> Float[Tensor, "modalities classes"]:
    """Largest gradient norm of zeta_k^m over the given views: an *estimate* of tau from below, never a bound."""
    check_views(model, views)
    leaves = [view.detach().requires_grad_() for view in views]
    with torch.enable_grad():
        scores = model(leaves).scores
        norms = [
            [_gradient_norm(scores[:, m, k], leaf) for k in range(scores.shape[2])] for m, leaf in enumerate(leaves)
        ]
    return torch.stack([torch.stack(row) for row in norms])


def certified_lipschitz(model: MultimodalClassifier, views: Views) -> Float[Tensor, "modalities classes"]:
    """tau_k^m = ||W_k^m|| times the encoder's bound from `lipschitz_bound`; `views` only give the shapes."""
    check_views(model, views)
    steepness = [lipschitz_bound(encoder, view) for encoder, view in zip(model.encoders, views)]
    with torch.no_grad():
        norms = torch.stack([torch.linalg.vector_norm(row, dim=1) for row in model.fusion.rows(torch.float64)])
    return norms * (1 + 1e-9) * torch.tensor(steepness, dtype=torch.float64)[:, None]


def optimise_integration(
    model: MultimodalClassifier,
    loader: Iterable[tuple[Views, Tensor]],
    *,
    epochs: int = 10,
    learning_rate: float = 3e-4,
    lipschitz: Constants = "empirical",
) -> tuple[float, ...]:
    """Step 2: maximise the mean of r over the fusion's scales, everything else frozen; `model` is changed in place.

    `loader` gives ((views), labels) batches and is gone through once an epoch (SGD, momentum 0.9, weight decay 0.01).
    The paper's learning rate is 0.03 times that of step 1.  Constants are found once: they do not depend on scales.
    The model is looked at in evaluation mode and put back in the mode that it came in.
    Returns the mean of r before the first and after every epoch.

    Raises InputError for an empty loader, a fusion whose scales are not learnt, other constants than the two, and views
    or labels that do not fit.
    """
    batches = [(list(views), y) for views, y in loader]
    if not batches or epochs < 1:
        raise InputError(f"integration needs at least one batch and one epoch, got {len(batches)} and {epochs}")
    scales = model.fusion.scales
    if not isinstance(scales, nn.Parameter):
        raise InputError("this fusion has no scales to learn; use OrthogonalFusion")
    check_constants(lipschitz)
    with evaluating(model):
        if lipschitz == "certified":
            tau = certified_lipschitz(model, batches[0][0])
        else:
            tau = torch.stack([empirical_lipschitz(model, views) for views, _ in batches]).amax(0)
        with torch.no_grad():
            known = [(model(views).scores, y) for views, y in batches]
    bias, tau = model.fusion.bias.detach(), tau.to(scales)
    optimizer = torch.optim.SGD([scales], lr=learning_rate, momentum=0.9, weight_decay=1e-2)

    @torch.no_grad()
    def mean_radius() -> float:
        return float(torch.cat([multimodal_radius(scores, scales, tau, bias, y) for scores, y in known]).mean())

    history = [mean_radius()]
    for _ in range(epochs):
        for scores, y in known:
            optimizer.zero_grad()
            (-multimodal_radius(scores, scales, tau, bias, y).mean()).backward()
            optimizer.step()
        history.append(mean_radius())
    return tuple(history)


def check_views(model: MultimodalClassifier, views: Views) -> None:
    """Raises InputError unless there is one view a modality, all finite and of the same number of examples."""
    _require_one_a_modality(model, views)
    if len({len(view) for view in views}) != 1:
        raise InputError(f"views must hold the same examples, got {[len(view) for view in views]} of them")
    broken = [m for m, view in enumerate(views) if not bool(torch.isfinite(view).all())]
    if broken:
        raise InputError(f"view {broken[0]} holds NaN or infinity; a missing view is one whose features are 0")


def _require_one_a_modality(model: MultimodalClassifier, views: Views) -> None:
    if len(views) != len(model.encoders):
        raise InputError(f"{len(views)} views for {len(model.encoders)} encoders; give one a modality, in order")


def check_labels(y: Tensor, examples: int, classes: int) -> None:
    """Raises InputError unless there is one label an example, each of the classes."""
    if len(y) != examples:
        raise InputError(f"{len(y)} labels for {examples} examples; give one an example")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise InputError(f"labels must lie in 0..{classes - 1}, got {int(y.min())}..{int(y.max())}")


def check_constants(lipschitz: str) -> None:
    """Raises InputError for other constants than the two."""
    if lipschitz not in get_args(Constants):
        raise InputError(f"Lipschitz constants are {' or '.join(get_args(Constants))}, got {lipschitz!r}")


def _distances(rows: Float[Tensor, "classes dim"]) -> Float[Tensor, "classes classes"]:
    """||row_y - row_k||, differences formed before they are squared."""
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def _denominator(terms: Tensor, y: Tensor, threat: Target) -> Tensor:
    """(batch, classes) from c (modalities, classes, classes)."""
    if threat == "joint":
        return torch.linalg.vector_norm(terms, dim=0)[y]
    if not 0 <= threat < len(terms):
        raise InputError(f"there is no modality {threat}: give 0..{len(terms) - 1} or 'joint'")
    return terms[threat][y]


def _smallest(margin: Tensor, steep: Tensor, y: Tensor) -> Tensor:
    """Smallest margin over steepness among the rivals of y."""
    ratio = margin / steep.clamp(min=torch.finfo(steep.dtype).tiny)
    return ratio.scatter(1, y[:, None], torch.inf).amin(1)


def _gradient_norm(score: Tensor, leaf: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(score.sum(), leaf, retain_graph=True)
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1).amax()
