"""Mixing an accurate classifier and a robust one (Bai, Anderson, Kim & Sojoudi, 2024; with certificates 2023).

Of a standard model g and a robust model h the mixture answers

    f(x)_i = log( (1 - a) softmax(T_g g(x))_i + a softmax(T_h h(x))_i ),    1/2 <= a <= 1.

A robust model is sure where it is right and unsure where it is wrong, also under attack; where it is unsure g decides,
where it is sure g cannot outvote it.  Write h_i for the robust probabilities.  Whatever g does,

    h_y(x') - h_i(x') > (1 - a) / a  for all i != y    implies    f(x') answers y,

so three certificates need nothing but h:

    Lipschitz     h_i moves by at most L_i ||d||:     R = min_i (a (h_y - h_i) + a - 1) / (a (L_y + L_i))
    smoothed      h_i is a mean under N(0, s^2 I):    the largest R with
                  Phi(Phi^-1(h_y) - R/s) - Phi(Phi^-1(h_i) + R/s) >= (1 - a) / a
    bounds        over any threat, from lower bounds m_i of the logits' margins T_h (z_y - z_i):
                  h_y - h_i >= (1 - exp(-m_i)) / (1 + sum_j exp(-m_j))   where m_i >= 0, else tanh(m_i / 2)

The paper states for smoothed h the smaller (s/2) (Phi^-1(a h_y) - Phi^-1(a h_i + 1 - a)): `published_radius`.
A policy (module `policy`) may choose a(x) >= a_0 for each input; the certificates then hold with a = a_0, since the gap
that is asked for shrinks with a.

Gradients flow through both models and the policy, so an attack on the mixture sees all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Series
from holdfast.core.intervals import clopper_pearson
from holdfast.core.progress import track
from holdfast.inputs.attack.loop import Attack, forward
from holdfast.inputs.bounds import BoundCertificates, Method, Region, bounds, capture, margin_spec
from holdfast.inputs.features import require_evaluation
from holdfast.inputs.smoothing.policy import MixingLoss, MixingPolicy
from holdfast.threats.base import Threat, Valid

Scalar = float | int
Column = Float[np.ndarray, " n"]

_HALVINGS = 100
#: Shrinks the bound that the bisection compares with, so that rounding of Phi cannot lengthen a radius.
_SHY = 1 - 1e-14


@dataclass(frozen=True)
class MixtureCertificate:
    """Per input the label of the robust model and the radius within which the mixture keeps it.

    A radius of 0 certifies nothing, not even that the mixture answers `label` at the input itself.
    """

    label: Int[Tensor, " batch"]
    radius: Float[Tensor, " batch"]


@dataclass(frozen=True)
class AlphaChoice:
    """The weight that was chosen, and the accuracy at every weight that was tried."""

    alpha: float
    alphas: tuple[float, ...]
    accuracy: tuple[Estimate, ...]


@dataclass(frozen=True)
class Mixture:
    """One pass: log-probabilities of the mixture, the weight of the robust model, and the policy's raw score if any."""

    log_probabilities: Float[Tensor, "batch classes"]
    alpha: Float[Tensor, " batch"]
    gamma: Float[Tensor, " batch"] | None = None


class MixedClassifier(nn.Module):
    """Log-probabilities of the mixture of `standard` and `robust`, both maps to logits (batch, classes).

    Parameters
    ----------
    standard, robust : models in evaluation mode, with the same classes in the same order.
    alpha : weight of the robust model, in [0, 1]; certificates need at least 1/2.  Not used when a policy is given.
    scale_standard, scale_robust : factors on the logits (inverse temperatures); a sharper robust model is easier to
        certify, a blunter one leaves more to the standard model.
    policy : a `MixingPolicy`, which chooses the weight from features of both models.

    Raises InputError for a weight outside [0, 1], scales that are not positive and finite, models whose classes differ
    in number, or a policy that answers below its own floor.
    """

    def __init__(
        self,
        standard: nn.Module,
        robust: nn.Module,
        alpha: Scalar = 0.8,
        scale_standard: Scalar = 1.0,
        scale_robust: Scalar = 1.0,
        policy: MixingPolicy | None = None,
    ) -> None:
        super().__init__()
        _require_weight(alpha, 0.0)
        for name, scale in (("scale_standard", scale_standard), ("scale_robust", scale_robust)):
            if not 0 < scale < float("inf"):
                raise InputError(f"{name} must be positive and finite, got {scale}; 1 leaves the logits as they are")
        self.standard, self.robust, self.policy = standard, robust, policy
        self.alpha = float(alpha)
        self.scale_standard, self.scale_robust = float(scale_standard), float(scale_robust)

    @property
    def least_alpha(self) -> float:
        """The smallest weight that the robust model can have: the policy's floor, or `alpha`."""
        return self.alpha if self.policy is None else self.policy.least

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        """log f(x); argmax is the answer."""
        return self.mix(x).log_probabilities

    def mix(self, x: Float[Tensor, "batch *shape"]) -> Mixture:
        """One pass with everything that the policy's training needs."""
        if self.policy is None:
            ours, theirs = self.standard(x), self.robust(x)
            weight = torch.full_like(theirs[:, 0], self.alpha)
            return Mixture(self._mixed(ours, theirs, weight), weight)
        features, ours, theirs = self.policy.look(self.standard, self.robust, x)
        gamma = self.policy.score(features)
        weight = self.policy.weight(gamma)
        if len(x) and not self.policy.least - 1e-6 <= (lowest := float(weight.detach().min())) <= 1:
            raise InputError(
                f"the policy chose a weight of {lowest:.4g}; its own floor is {self.policy.least} and certificates "
                "rely on it"
            )
        return Mixture(self._mixed(ours, theirs, weight), weight, gamma)

    def _mixed(self, standard: Tensor, robust: Tensor, weight: Tensor) -> Tensor:
        _require_same_classes(standard, robust)
        ours = torch.log_softmax(self.scale_standard * standard, 1)
        theirs = torch.log_softmax(self.scale_robust * robust, 1)
        return torch.logaddexp(torch.log1p(-weight)[:, None] + ours, weight.log()[:, None] + theirs)

    @torch.no_grad()
    def certify_lipschitz(
        self, x: Float[Tensor, "batch *shape"], L: Scalar | Float[Tensor, " classes"]
    ) -> MixtureCertificate:
        """Radii from Lipschitz constants of the robust *probabilities* (one a class, or one for all).

        `L` bounds |h_i(x') - h_i(x)| / ||x' - x|| in the norm that the radius is meant in, `scale_robust` included.
        From a constant K of the logits in L2, L = scale_robust K sqrt(2) / 4 will do: no probability of a softmax
        moves faster than sqrt(2) / 4 times its logits.  The robust model is evaluated in float64.

        Raises InputError for a weight below 1/2, a layer in training mode, constants that are not positive, or inputs
        or answers of the robust model that are not finite.
        """
        alpha = self._certifiable()
        h = self._robust_probabilities(x)
        constants = torch.as_tensor(L, dtype=h.dtype, device=h.device).expand(h.shape[1])
        if not bool(((constants > 0) & torch.isfinite(constants)).all()):
            raise InputError(f"Lipschitz constants must be positive and finite, got {L}")
        label = h.argmax(1)
        reach = alpha * (h.gather(1, label[:, None]) - h) + alpha - 1
        radius = reach / (alpha * (constants[label][:, None] + constants))
        radius = radius.scatter(1, label[:, None], torch.inf).amin(1).clamp(min=0)
        return MixtureCertificate(label, radius)

    def certify_smoothed(
        self,
        x: Float[Tensor, "batch *shape"],
        sigma: Scalar,
        p_lower: Float[Tensor, "batch classes"],
        p_upper: Float[Tensor, "batch classes"],
    ) -> MixtureCertificate:
        """L2 radii for a robust model that is a mean under Gaussian noise of standard deviation `sigma`.

        `p_lower` and `p_upper` are *confidence bounds* of the robust probabilities at `x`, for example
        `SmoothedProbabilities.interval`; point estimates certify nothing.  The certificate holds where the bounds do.

        Raises InputError for a weight below 1/2, a layer in training mode, `scale_robust` other than 1 (scale the
        logits inside the mean: scaling the mean's logarithm is another model, about which the bounds say nothing),
        bounds of another shape than (batch, classes), outside [0, 1], crossing, or not about probabilities that can sum
        to one.
        """
        alpha = self._certifiable()
        if self.scale_robust != 1:
            raise InputError(
                f"scale_robust is {self.scale_robust}: it acts on the mean under noise, which the bounds are not "
                "about; scale the logits inside the mean (SmoothedProbabilities has `scale`) and leave it at 1"
            )
        lower, upper = (part.detach().double().cpu() for part in (p_lower, p_upper))
        _require_probability_bounds(lower, upper, len(x))
        label = lower.argmax(1, keepdim=True)
        own = lower.gather(1, label).squeeze(1)
        rival = upper.scatter(1, label, 0.0).amax(1)
        radius = smoothed_radius(own.numpy(), rival.numpy(), np.full(len(x), alpha), sigma)
        return MixtureCertificate(label.squeeze(1).to(x.device), torch.from_numpy(radius).to(x.device))

    @torch.no_grad()
    def certify_bounds(
        self,
        x: Float[Tensor, "batch *shape"],
        threat: Threat,
        valid: Valid = None,
        method: Method = "crown",
    ) -> BoundCertificates:
        """Whether the mixture keeps the robust model's answer on the whole threat set, proven by bounds of `robust`.

        `margin` is the proven lower bound on a (h_y - h_i) - (1 - a) over the set and all rivals: how far the mixed
        probability of the answer stays above any other.  Float64 with outward rounding.
        Raises InputError for a weight below 1/2 or a layer in training mode, and whatever
        `holdfast.inputs.bounds.bounds` raises.
        """
        alpha = self._certifiable()
        graph = capture(self.robust, x)
        h = self._robust_probabilities(x)
        region = Region(x.double(), threat, valid)
        rows = margin_spec(h.argmax(1), h.shape[1])
        found = bounds(graph, region, method=method, spec=rows, rounding="outward", upper=False)
        gap = _least_gaps(self.scale_robust * found.lower).amin(1)
        # A dozen roundings of numbers no larger than one, where the bounds above already look outwards.
        margin = alpha * gap - (1 - alpha) - 64 * torch.finfo(gap.dtype).eps
        return BoundCertificates(margin > 0, margin)

    @torch.no_grad()
    def choose_alpha(
        self,
        X: Float[Tensor, "examples *shape"],
        y: Int[Tensor, " examples"],
        target_accuracy: float,
        alphas: Sequence[float] | None = None,
    ) -> AlphaChoice:
        """Set `alpha` to the largest of `alphas` that reaches the clean accuracy on held-out data, and report all.

        The largest, because `alpha` is the weight of the *robust* model: every certificate grows with it, and what it
        costs is clean accuracy, of which the target says how much must be left.  The smallest that reaches the target
        would be the first of `alphas` whenever the standard model is the more accurate one.  `alphas` are 1/2, 0.51,
        ..., 1 when None.

        Raises InputError when none reaches the target (the message has the best), with a policy or a layer in training
        mode, or on bad arguments.
        """
        require_evaluation(self)
        if self.policy is not None:
            raise InputError("this mixture has a policy, which chooses the weight itself; choose alpha without one")
        if not 0 <= target_accuracy <= 1 or len(X) == 0 or len(X) != len(y):
            raise InputError(
                f"a target in [0, 1] and as many labels as inputs are wanted, got {target_accuracy}, "
                f"{len(X)} inputs and {len(y)} labels"
            )
        tried = tuple(sorted(np.linspace(0.5, 1, 51).tolist() if alphas is None else map(float, alphas)))
        for alpha in tried:
            _require_weight(alpha, 0.0)
        standard, robust = forward(self.standard, X), forward(self.robust, X)
        shares = []
        for alpha in tried:
            mixed = self._mixed(standard, robust, torch.full_like(robust[:, 0], alpha))
            shares.append(clopper_pearson(int((mixed.argmax(1) == y).sum()), len(y)))
        reached = [alpha for alpha, share in zip(tried, shares, strict=True) if share.value >= target_accuracy]
        if not reached:
            best = max(share.value for share in shares)
            raise InputError(f"no weight reaches a clean accuracy of {target_accuracy}; the best is {best:.4f}")
        self.alpha = reached[-1]
        return AlphaChoice(self.alpha, tried, tuple(shares))

    def _certifiable(self) -> float:
        require_evaluation(self)
        _require_weight(self.least_alpha, 0.5)
        return self.least_alpha

    def _robust_probabilities(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """softmax(T_h h(x)) in float64.  Raises InputError where it is not finite."""
        if not bool(torch.isfinite(x).all()):
            raise InputError("the inputs to certify must be finite, got NaN or infinity")
        state = (*self.robust.named_parameters(), *self.robust.named_buffers())
        double = {name: value.double() if value.is_floating_point() else value for name, value in state}
        logits = torch.func.functional_call(self.robust, double, (x.double(),))
        if not bool(torch.isfinite(logits).all()):
            raise InputError(
                "the robust model gives NaN or infinite logits; look for damaged weights or a division in it"
            )
        return torch.softmax(self.scale_robust * logits.double(), 1)


def train_policy(
    mixed: MixedClassifier,
    X: Float[Tensor, "examples *shape"],
    y: Int[Tensor, " examples"],
    attack: Attack,
    *,
    epochs: int = 3,
    batch: int = 128,
    step: float = 1e-3,
    loss: MixingLoss | None = None,
    valid: Valid = (0, 1),
    generator: torch.Generator | None = None,
) -> list[float]:
    """Fit the policy of `mixed` in place by AdamW, half of every batch attacked anew; returns the mean loss an epoch.

    The two models are left as they are; the mixture is in evaluation mode afterwards.  The paper fine-tunes with steps
    of 5e-5 on a network with convolutions of its own; this policy is small and starts from nothing, hence the default.
    Raises InputError when the mixture has no policy.
    """
    policy = mixed.policy
    if policy is None:
        raise InputError("this mixture has no policy to train; build it with policy=MixingPolicy.between(...)")
    source = torch.Generator().manual_seed(0) if generator is None else generator
    objective = MixingLoss() if loss is None else loss
    optimizer = torch.optim.AdamW(policy.parameters(), lr=step)
    means = []
    for _ in track(range(epochs), "training the policy", epochs):
        total = 0.0
        for rows in torch.randperm(len(X), generator=source).split(batch):
            inputs, labels = X[rows], y[rows]
            mixed.eval()
            attacked = attack(mixed, inputs, labels, valid=valid, generator=source)
            policy.train()
            moved = (attacked != inputs).flatten(1).any(1)  # what was wrong already comes back as it was
            adversarial = torch.cat([torch.zeros_like(moved), moved])
            mixture = mixed.mix(torch.cat([inputs, attacked]))
            assert mixture.gamma is not None
            value = objective(mixture.log_probabilities, mixture.gamma, torch.cat([labels, labels]), adversarial)
            optimizer.zero_grad()
            value.backward(inputs=list(policy.parameters()))
            optimizer.step()
            total += float(value.detach()) * len(rows)
        means.append(total / len(X))
    mixed.eval()
    return means


def smoothed_radius(p_label: Column, p_rival: Column, alpha: Column, sigma: Scalar | Column) -> Column:
    """Largest R with Phi(Phi^-1(p_label) - R/s) - Phi(Phi^-1(p_rival) + R/s) >= (1 - a)/a, from below; 0 if none.

    Tight: a half-space attains it when p_rival = 1 - p_label.  `p_rival` above 1 - p_label is lowered to it, since both
    cannot be true.  Solved by bisection on  Phi(t - A) + Phi(t + B) <= (2a - 1)/a,  a sum of small numbers where the
    difference would round to nothing.
    """
    if not ((np.asarray(sigma) > 0) & np.isfinite(sigma)).all():
        raise InputError(f"sigma must be positive and finite, got {sigma}")
    A = ndtri(p_label)
    B = np.minimum(ndtri(p_rival), -A)
    allowed = (2 * alpha - 1) / alpha * _SHY
    with np.errstate(invalid="ignore"):
        ceiling = np.where(np.isneginf(B), A + ndtri(np.minimum(allowed, 1.0)), (A - B) / 2)
        low, high = np.zeros(len(A)), np.maximum(ceiling, 0.0)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            holds = ndtr(middle - A) + ndtr(middle + B) <= allowed
            low, high = np.where(holds, middle, low), np.where(holds, high, middle)
    certain = np.isposinf(A) & (allowed > 0)
    return np.asarray(sigma) * np.where(certain, np.inf, low)


def published_radius(p_label: Column, p_rival: Column, alpha: Column, sigma: Scalar | Column) -> Column:
    """(s/2) (Phi^-1(a p_label) - Phi^-1(a p_rival + 1 - a)), at least 0: the paper's radius, never above ours."""
    own, rival = alpha * p_label, alpha * p_rival + 1 - alpha
    return np.where(own > rival, np.asarray(sigma) / 2 * (ndtri(own) - ndtri(rival)), 0.0)


def mixing_curve(
    mixed: MixedClassifier,
    X: Float[Tensor, "examples *shape"],
    y: Int[Tensor, " examples"],
    attack: Attack,
    alphas: Sequence[float],
    *,
    valid: Valid = (0, 1),
    generator: torch.Generator | None = None,
) -> Curve:
    """Clean accuracy and accuracy under `attack` with every constant weight; each of the mixtures is attacked anew."""
    found: dict[str, list[Estimate]] = {"clean": [], "under attack": []}
    for alpha in alphas:
        model = MixedClassifier(mixed.standard, mixed.robust, alpha, mixed.scale_standard, mixed.scale_robust).eval()
        right = forward(model, X).argmax(1) == y
        run = attack.run(model, X, y, valid=valid, generator=generator)
        found["clean"].append(clopper_pearson(int(right.sum()), len(y)))
        found["under attack"].append(clopper_pearson(int((right & ~run.success).sum()), len(y)))
    series = tuple(
        Series(
            name,
            tuple(map(float, alphas)),
            *(tuple(getattr(e, part) for e in line) for part in ("value", "low", "high")),
        )
        for name, line in found.items()
    )
    return Curve("Accuracy by weight of the robust model", "alpha", "accuracy", series, y_limits=(0.0, 1.0))


def _least_gaps(margins: Float[Tensor, "batch rivals"]) -> Float[Tensor, "batch rivals"]:
    """Least h_y - h_i for every rival i when the margins of the scaled logits are at least these; -1 where NaN.

    With odds o_j = exp(-margin_j) it is (1 - o_i) / (1 + o_i + s), s the odds of the others: falling in o_i, and in s
    only while o_i < 1.  A rival that may overtake is worst where the others have no odds at all.
    """
    odds = torch.exp(-margins)
    ahead = (1 - odds) / (1 + odds.sum(1, keepdim=True))
    return torch.where(margins >= 0, ahead, torch.tanh(margins / 2)).nan_to_num(nan=-1.0)


def _require_weight(alpha: Scalar, least: float) -> None:
    if not least <= alpha <= 1:
        purpose = (
            "the weight of the robust model" if least == 0 else "a certificate needs a weight of the robust model that"
        )
        raise InputError(f"{purpose} must lie in [{least:g}, 1], got {alpha}")


def _require_same_classes(standard: Tensor, robust: Tensor) -> None:
    if standard.shape != robust.shape or standard.ndim != 2:
        raise InputError(
            f"the standard model gives {tuple(standard.shape)}, the robust one {tuple(robust.shape)}; both must give "
            "logits (batch, classes) of the same classes"
        )


def _require_probability_bounds(lower: Tensor, upper: Tensor, examples: int) -> None:
    if lower.shape != upper.shape or lower.ndim != 2 or len(lower) != examples or lower.shape[1] < 2:
        raise InputError(
            f"bounds of shape ({examples}, classes) are wanted, got {tuple(lower.shape)} and {tuple(upper.shape)}"
        )
    if not bool(((lower >= 0) & (lower <= upper) & (upper <= 1)).all()):
        raise InputError("bounds of probabilities must satisfy 0 <= p_lower <= p_upper <= 1")
    if bool((lower.sum(1) > 1 + 1e-6).any()) or bool((upper.sum(1) < 1 - 1e-6).any()):
        raise InputError("no probabilities that sum to one lie between p_lower and p_upper; were logits passed?")
