"""Certified radii of sums of radial kernels.

A network f_c(x) = sum_k v_ck d_k(x) + b_c with d_k(x) = phi(||x - w_k|| / s_k), phi(t) = exp(-t) ("exponential") or
exp(-t^2) ("gaussian"): RBF networks, and the component classifiers of module `components`.

Moving x by at most rho changes every distance by at most rho (triangle inequality, in whatever norm the distances
have), so with q_k = v_yk - v_ck and C = b_y - b_c the margin of class y over class c is at least

    m(rho) = sum_{q_k > 0} q_k phi((dist_k + rho) / s_k) - sum_{q_k < 0} |q_k| phi(max(0, dist_k - rho) / s_k) + C,

which falls with rho; the radius is its root, found by bisection.  Where one width s serves all exponential kernels and
rho reaches no component, A = sum_{q_k>0} q_k d_k, B = sum_{q_k<0} |q_k| d_k and t = exp(rho / s) turn it into
A / t - B t + C, whose root has the closed form of `exponential_radius` (never larger than the bisection's).

Rounding.  Radii are computed in float64 and rounded outward: every distance is replaced by an interval that holds it,
every kernel value by its worse end, and the sums are charged gamma_n times their absolute terms (module `rounding`),
so the margin is positive in exact arithmetic everywhere within the radius.  As elsewhere this speaks of the
real-number function of the stored parameters, not of the rounding that a float32 forward pass adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.inputs.bounds.rounding import Rounding

RadialKernel = Literal["exponential", "gaussian"]
Widths = float | int | Float[Tensor, "..."]

UNIT = torch.finfo(torch.float64).eps / 2
_TINY = torch.finfo(torch.float64).tiny
#: Beyond this many widths a kernel underflows to 0.
_REACH = {"exponential": 750.0, "gaussian": 28.0}
#: Distances that one step of the bisection works on, in entries.
_ENTRIES = 1 << 22


def rbf_certified_radius(
    weights: Float[Tensor, "classes components"],
    centres: Float[Tensor, "components features"],
    widths: Widths,
    x: Float[Tensor, "batch features"],
    *,
    bias: Float[Tensor, " classes"] | None = None,
    kernel: RadialKernel = "exponential",
    norm: float | int = 2,
    y: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Certified radius of an existing RBF network f_c(x) = sum_k weights_ck phi(||x - centres_k|| / widths_k) + bias_c.

    float64, sound, possibly infinite; 0 where two classes tie or the prediction is not `y`.
    Raises InputError for shapes that do not fit, widths that are not positive, or values that are not finite.
    """
    check_kernel(kernel, norm, get_args(RadialKernel))
    check_centres(centres, widths)
    check_finite(x)
    offset = torch.zeros_like(weights[:, 0]) if bias is None else bias
    if not (bool(torch.isfinite(weights).all()) and bool(torch.isfinite(offset).all())):
        raise InputError("weights and bias of the network must be finite, got NaN or infinity")
    width = torch.as_tensor(widths, dtype=torch.float64, device=centres.device).expand(len(centres))
    slack = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    expansion = Expansion(weights.detach().double(), offset.detach().double(), width, kernel, slack)
    with torch.no_grad():
        return expansion_radius(expansion, distance_interval(x.double(), centres.double(), norm), y)


def exponential_radius(
    gain: Float[Tensor, "*shape"], loss: Float[Tensor, "*shape"], offset: Float[Tensor, "*shape"], width: float | Tensor
) -> Float[Tensor, "*shape"]:
    """Root of gain / t - loss t + offset at t = exp(R / width): s log[(C + sqrt(C^2 + 4AB)) / (2B)], at least 0.

    The closed form for one exponential width; differentiable, rounded to nearest (`certified_radius` rounds outward).
    With loss = 0 the margin falls to `offset`: infinite where that is not negative, else s log(-A / C).
    `gain` and `loss` are not negative.
    """
    root = (offset.square() + 4 * gain * loss).sqrt()
    # Either form of the quadratic's root cancels for one sign of C.
    above = torch.where(offset > 0, offset + root, 2 * gain)
    below = torch.where(offset > 0, 2 * loss, root - offset)
    ratio = torch.where(below > 0, above / torch.where(below > 0, below, 1.0), torch.inf)
    ratio = torch.where((below <= 0) & (above <= 0), 1.0, ratio)
    return width * ratio.clamp(min=1.0).log()


@dataclass(frozen=True)
class Expansion:
    """f_c = sum_k weights_ck phi(dist_k / widths_k) + bias_c in float64; f_c is known to within slack_c."""

    weights: Tensor
    bias: Tensor
    widths: Tensor
    kernel: RadialKernel
    slack: Tensor

    def values(self, distance: Tensor) -> Tensor:
        """f (batch, classes), rounded to nearest."""
        return bump(distance / self.widths, self.kernel) @ self.weights.T + self.bias

    def part(self, nearest: Tensor, farthest: Tensor, label: int) -> _Rivals:
        """Examples that are predicted to be `label`, against every other class."""
        q = self.weights[label] - self.weights
        rivals = torch.arange(len(q), device=q.device) != label
        q = q[rivals]
        return _Rivals(
            self,
            nearest,
            farthest,
            q.clamp(min=0).T,
            (-q).clamp(min=0).T,
            (self.bias[label] - self.bias)[rivals],
            (self.bias[label].abs() + self.bias.abs())[rivals],
            (self.slack[label] + self.slack)[rivals],
        )


@dataclass(frozen=True)
class _Rivals:
    """Examples of one predicted label against all other classes."""

    expansion: Expansion
    nearest: Tensor  # (rows, components): lower and upper ends of the distances
    farthest: Tensor
    gain: Tensor  # (components, rivals)
    loss: Tensor
    offset: Tensor  # (rivals,)
    offset_size: Tensor
    slack: Tensor

    def margin(self, rho: Tensor) -> Tensor:
        """Largest number that is certainly below every margin within `rho` (rows,) of the examples."""
        low = self._kernel(self.farthest + rho[:, None], -1)
        high = self._kernel((self.nearest - rho[:, None]).clamp(min=0), 1).clamp(max=1)
        support, opposition = low @ self.gain, high @ self.loss
        gamma = Rounding(True, 2 * len(self.gain) + 16).gamma(torch.float64)
        charge = gamma * (support + opposition + self.offset_size) + self.slack + _TINY
        return (support - opposition + self.offset - charge).amin(1)

    def _kernel(self, distance: Tensor, side: int) -> Tensor:
        """Kernel values rounded down (side -1) or up (+1): an exponent carries a few roundings, exp one or two."""
        t = distance / self.expansion.widths
        exponent = t if self.expansion.kernel == "exponential" else t.square()
        error = UNIT * (16 * exponent + 8)
        return (torch.exp(-exponent) * (1 + side * error) + side * _TINY).clamp(min=0)

    def radius(self) -> Tensor:
        """Bisection between what is certain and what is not; infinite where the margin stays positive at any rho."""
        top = self.farthest.amax(1) + _REACH[self.expansion.kernel] * self.expansion.widths.max()
        low, high = torch.zeros_like(top), top.clone()
        for _ in range(64):
            middle = (low + high) / 2
            certain = self.margin(middle) > 0
            low, high = torch.where(certain, middle, low), torch.where(certain, high, middle)
        return torch.where(self.margin(top) > 0, torch.inf, low)


def expansion_radius(expansion: Expansion, interval: tuple[Tensor, Tensor], y: Tensor | None) -> Tensor:
    """Certified radius (batch,) of the predicted label, given lower and upper ends of the distances."""
    nearest, farthest = interval
    values = expansion.values(nearest)
    predicted = values.argmax(1)
    found = torch.zeros(len(nearest), dtype=torch.float64, device=nearest.device)
    wanted = torch.ones_like(predicted, dtype=torch.bool)
    if y is not None:
        if y.shape != predicted.shape or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < values.shape[1]):
            raise InputError(f"labels must be one an input, in 0..{values.shape[1] - 1}, got shape {tuple(y.shape)}")
        wanted = y == predicted
    together = max(1, _ENTRIES // nearest.shape[1])
    for label in predicted[wanted].unique().tolist():
        for rows in ((predicted == label) & wanted).nonzero().squeeze(1).split(together):
            found[rows] = expansion.part(nearest[rows], farthest[rows], label).radius()
    return found


def distance_interval(features: Tensor, centres: Tensor, norm: float | int) -> tuple[Tensor, Tensor]:
    """Lower and upper ends of the exact distances."""
    distance = distances(features, centres, norm)
    error = Rounding(True, centres.shape[1] + 16).gamma(torch.float64)
    tiny = _TINY**0.5 * centres.shape[1]  # squares below it underflow
    return (distance * (1 - error) - tiny).clamp(min=0), distance * (1 + error) + tiny


def distances(points: Tensor, centres: Tensor, norm: float | int) -> Tensor:
    """Distance of every point to every centre, each difference formed before it is squared."""
    # The default for many points expands |x - w|^2 into inner products, which cancel.
    return torch.cdist(points, centres, p=float(norm), compute_mode="donot_use_mm_for_euclid_dist")


def bump(t: Tensor, kernel: str) -> Tensor:
    """phi(t)."""
    return torch.exp(-t if kernel == "exponential" else -t.square())


def norm_factor(x: Tensor, own: float | int, asked: float | int | None) -> float:
    """1 / the largest ratio of the classifier's norm to the one asked for."""
    if asked is None:
        return 1.0
    if asked not in (1, 2, math.inf):
        raise InputError(f"the norm must be 1, 2 or infinity, got {asked}")
    return float(x[0].numel()) ** -max(0.0, 1 / own - 1 / asked)


def rounded_down(factor: float) -> float:
    """A factor with its roundings taken off; exact ones stay."""
    return factor if factor == 1.0 else factor * (1 - 32 * UNIT)


def check_kernel(kernel: str, norm: float | int, known: tuple[str, ...]) -> None:
    if kernel not in known:
        raise InputError(f"unknown kernel {kernel!r}; choose from {', '.join(known)}")
    if norm not in (1, 2, math.inf):
        raise InputError(f"the norm of the distances must be 1, 2 or infinity, got {norm}")


def check_centres(centres: Tensor, widths: Widths) -> None:
    if not bool(torch.isfinite(centres).all()):
        raise InputError("components must be finite, got NaN or infinity")
    width = torch.as_tensor(widths, dtype=torch.float64)
    if width.numel() not in (1, len(centres)):
        raise InputError(f"give one width, or one for each of {len(centres)} components, got {width.numel()}")
    if not bool(((width > 1e-100) & (width < 1e100)).all()):
        raise InputError(f"widths of kernels must be positive and finite, got {float(width.min())}")


def check_finite(x: Tensor) -> None:
    if not bool(torch.isfinite(x).all()):
        raise InputError("inputs to certify must be finite, got NaN or infinity")
