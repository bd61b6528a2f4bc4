"""How adversarial error grows with the radius: a power law with exponent near 1 (Cubuk et al., 2017).

Sort logits h_1 >= h_2 >= ...; gaps D_j = h_1 - h_j.  To first order a step of size eps moves the gap by at most
eps ||grad(h_1 - h_j)||_dual, so the answer flips where

    min_j D_j / ||grad(h_1 - h_j)||_dual < eps

and, because the density of gaps is finite and positive at zero, error(eps) ~ A eps^B with B = 1.  Error is counted
against the model's own answer to the clean input, so error(0) = 0 whatever the accuracy.

For K logits drawn independently from N(0, scale^2) (density f, distribution function F) the gap to the j-th largest
has the density

    p(d) = K! / ((j-2)! (K-j)!)  int f(h) f(h-d) [F(h) - F(h-d)]^(j-2) F(h-d)^(K-j) dh   ~  d^(j-2)  near 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lgamma

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import log_ndtr
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.inputs.attack.loop import CHUNK, Model, forward
from holdfast.threats.base import Threat, Valid

#: An attack: (model, x, y, valid=...) -> x_adv
Attack = Callable[..., Tensor]
#: Points enter the fit where the error lies in this range: not lost in single examples, not saturated.
FITTED = (0.002, 0.30)


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """Adversarial error at every radius, and the power law through it.

    `flipped` (radii, n) says which examples changed their answer; `error` = prefactor * radius^exponent where `fitted`.
    """

    radii: Float[np.ndarray, " radii"]
    error: Float[np.ndarray, " radii"]
    exponent: Estimate
    prefactor: float
    fitted: Bool[np.ndarray, " radii"]
    flipped: Bool[np.ndarray, "radii n"]


def adversarial_error_curve(
    model: Model,
    x: Float[Tensor, "n *shape"],
    attack_factory: Callable[[float], Attack],
    radii: Sequence[float],
    bounds: tuple[float, float] = (0.0, 1.0),
    *,
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> ErrorCurve:
    """Error of `attack_factory(radius)(model, x, answer, valid=bounds)` against the model's own clean answers.

    Model and x may be float64, which small radii need.  The exponent's interval is a percentile bootstrap over examples
    (`generator`, `resamples`).  Raises InputError when radii do not increase or fewer than 4 points are usable.
    """
    radius = np.asarray(radii, dtype=np.float64)
    if radius.ndim != 1 or len(radius) < 4 or (radius <= 0).any() or (np.diff(radius) <= 0).any():
        raise InputError(f"radii must be at least 4 positive numbers in increasing order, got {list(radii)}")
    answer = forward(model, x).argmax(1)
    flipped = []
    for size in radius:
        attack = attack_factory(float(size))
        made = [attack(model, part, own, valid=bounds) for part, own in zip(x.split(CHUNK), answer.split(CHUNK))]
        flipped.append((forward(model, torch.cat(made)).argmax(1) != answer).cpu().numpy())
    return fit_power_law(radius, np.stack(flipped), generator=generator, resamples=resamples, level=level)


def fit_power_law(
    radii: Float[np.ndarray, " radii"],
    flipped: Bool[np.ndarray, "radii n"],
    *,
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> ErrorCurve:
    """Least squares of log error on log radius, over the points with error in `FITTED`."""
    error = flipped.mean(axis=1)
    fitted = (error >= FITTED[0]) & (error <= FITTED[1])
    if fitted.sum() < 4:
        raise InputError(
            f"a power law needs at least 4 radii with error from {FITTED[0]:.1%} to {FITTED[1]:.0%}, got "
            f"{int(fitted.sum())} (errors {np.round(error, 4).tolist()}); choose other radii or more examples"
        )
    exponent, prefactor = _line(radii[fitted], error[fitted])
    n = flipped.shape[1]
    # examples that flip at the same radii are alike, so resampling the few patterns resamples the examples
    patterns, times = np.unique(flipped[fitted], axis=1, return_counts=True)
    again = generator.multinomial(n, times / n, size=resamples) @ patterns.T.astype(np.float64) / n
    usable = (again > 0).all(axis=1)
    slopes = np.array([_line(radii[fitted], row)[0] for row in again[usable]])
    low, high = np.quantile(slopes, [(1 - level) / 2, (1 + level) / 2])
    estimate = Estimate(exponent, min(low, exponent), max(high, exponent), level, n, "bootstrap")
    return ErrorCurve(radii, error, estimate, prefactor, fitted, flipped)


def _line(radii: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    slope, intercept = np.polyfit(np.log(radii), np.log(error), 1)
    return float(slope), float(np.exp(intercept))


def logit_gaps(logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n others"]:
    """D_j = h_1 - h_j for j = 2 .. K, increasing.  Raises InputError for fewer than two logits."""
    if logits.shape[1] < 2:
        raise InputError(f"gaps need at least two logits, got {logits.shape[1]}")
    ordered = logits.sort(1, descending=True).values
    return ordered[:, :1] - ordered[:, 1:]


def gap_density(
    K: int, j: int, d: Float[np.ndarray, " points"], scale: float | int = 1.0
) -> Float[np.ndarray, " points"]:
    """Density at gaps d >= 0 of the difference between the largest and the j-th largest of K Gaussian logits.

    `scale` is the logits' standard deviation.  Trapezoid rule on 401 points over 10 standard deviations either side,
    exact to about 1e-12 because the integrand is smooth and vanishes at the ends.
    Raises InputError unless 2 <= j <= K.
    """
    if not 2 <= j <= K:
        raise InputError(f"the gap to the j-th of K logits needs 2 <= j <= K, got j={j}, K={K}")
    gap = np.asarray(d, dtype=np.float64)[:, None] / scale
    h = np.linspace(-10, 10, 401)[None, :]
    log_constant = lgamma(K + 1) - lgamma(j - 1) - lgamma(K - j + 1)
    log_value = log_constant - np.log(2 * np.pi) - (h**2 + (h - gap) ** 2) / 2 + (K - j) * log_ndtr(h - gap)
    if j > 2:
        upper, lower = log_ndtr(h), log_ndtr(h - gap)
        with np.errstate(divide="ignore"):
            log_value = log_value + (j - 2) * (upper + np.log(-np.expm1(lower - upper)))
    density: np.ndarray = np.trapezoid(np.exp(log_value), h, axis=1) / scale
    return np.where(gap[:, 0] >= 0, density, 0.0)


def predict_small_radius_error(
    model: Model, x: Float[Tensor, "n *shape"], radii: Sequence[float], threat: Threat, valid: Valid = None
) -> Float[np.ndarray, " radii"]:
    """Share of examples whose linearised answer changes within each radius: no attack, one gradient a class.

    `threat` (rescaled to each radius) gives the set; its support function, cut by the `valid` range, is what a step can
    gain.  Without a range the condition is min_j D_j / ||grad(h_1 - h_j)||_dual < radius.
    """
    flips = [_linear_flips(model, part, radii, threat, valid) for part in x.split(CHUNK)]
    return torch.cat(flips, 1).double().mean(1).cpu().numpy()


def _linear_flips(
    model: Model, x: Tensor, radii: Sequence[float], threat: Threat, valid: Valid
) -> Bool[Tensor, "radii n"]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        ordered = model(leaf).sort(1, descending=True).values
        gaps = ordered[:, :1] - ordered[:, 1:]
        grads = [torch.autograd.grad(gap.sum(), leaf, retain_graph=True)[0] for gap in gaps.unbind(1)]
    rows, gaps = torch.stack(grads, 1), gaps.detach()
    return torch.stack([(gaps + threat.scaled(float(r)).worst(rows, x, valid) < 0).any(1) for r in radii])


class EntropyRegularized(nn.Module):
    """base_loss + weight * H(p), H = -sum_k p_k log p_k of the softmax p: prefers confident, wide-gapped answers.

    `base_loss(logits, target)` returns the mean over the batch, as `torch.nn.CrossEntropyLoss` does.
    Raises InputError for a negative weight.
    """

    def __init__(self, base_loss: nn.Module, weight: float = 0.1) -> None:
        super().__init__()
        if weight < 0:
            raise InputError(f"the weight of the entropy must be at least 0, got {weight}")
        self.base_loss = base_loss
        self.weight = weight

    def forward(self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        log_p = logits.log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        loss: Tensor = self.base_loss(logits, target) + self.weight * entropy
        return loss
