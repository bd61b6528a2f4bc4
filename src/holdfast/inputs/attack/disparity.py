"""What a robustness constraint and class imbalance do to the accuracy of each class.

`class_disparity` compares the classes (or groups) of any model, clean and under attack.  `TwoClassMixture` is the case
that can be solved: x = y theta + sigma xi with y = +1 (majority, ratio : 1) or -1, xi symmetric stable, and linear
rules sgn(<w, x> + b).  Under perturbations ||d||_p <= eps the risk

    sum_y P(y) Pr[y (<w, x> + b) <= eps ||w||_q]

depends on w through the margin (<w, theta> - eps ||w||_q) / |w| only, |w| the scale of <w, xi>, so that (isotropic xi)

    z* = argmin_{||z||_p <= eps} ||theta - z||_2,     w = (theta - z*) / g,     g = ||theta - z*||_2.

The bias solves P_+ f(b + g) = P_- f(b - g) (in units of sigma, f the density).  Gaussian: b = ln(ratio) / (2 g), so a
smaller margin means a larger bias, and the classes drift apart.  Heavier tails: f(b - g) / f(b + g) is bounded, and
from some ratio on it is best to call everything majority (b = inf), with or without robustness.
"Understanding the Impact of Adversarial Robustness on Accuracy Disparity" (see `accuracy-disparity`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from scipy import optimize

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.core.estimate import Estimate
from holdfast.core.shares import Shares, shares
from holdfast.inputs.attack.stable import SymmetricStable, Values
from holdfast.threats.balls import Linf
from holdfast.threats.base import Threat


@dataclass(frozen=True, eq=False)
class LinearRule:
    """sgn(<w, x> + b); `margin` is that of w under the threat it was made for.  b = inf answers +1 always."""

    w: Float[np.ndarray, " features"]
    b: float
    margin: float


@dataclass(frozen=True, eq=False)
class TwoClassMixture:
    """x = y theta + sigma xi, with `ratio` examples of y = +1 for each of y = -1.

    Parameters
    ----------
    theta : (features,) half the way between the class centres; any sequence of numbers, kept as a float64 array.
    sigma : standard deviation of the noise in every direction for alpha = 2, else its stable scale.
    ratio : of majority to minority, at least 1.
    alpha : index of the noise (see `SymmetricStable`).
    isotropic : whether the noise is alike in all directions; otherwise its coordinates are independent.

    Raises InputError for a theta that is no vector, zero or not finite, a sigma that is not positive, a ratio below 1
    (name the other class the majority), or an alpha outside (0, 2].
    """

    theta: Any  # once made, Float[np.ndarray, " features"]
    sigma: float | int
    ratio: float | int
    alpha: float | int = 2.0
    isotropic: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "theta", np.asarray(self.theta, dtype=np.float64))
        if self.theta.ndim != 1 or not len(self.theta):
            raise InputError(f"theta is a vector of one number a feature, got shape {self.theta.shape}")
        if not np.isfinite(self.theta).all() or not (self.theta != 0).any() or not self.sigma > 0:
            raise InputError(f"theta must be finite and not zero, sigma positive, got {self.theta} and {self.sigma}")
        if not 1 <= self.ratio < math.inf:
            raise InputError(f"the ratio of majority to minority is at least 1, got {self.ratio}; swap the classes")
        _ = self.law

    @cached_property
    def law(self) -> SymmetricStable:
        """Law of one coordinate of xi."""
        return SymmetricStable(self.alpha)

    def sample(
        self, n: int, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, "n features"], Int[np.ndarray, " n"]]:
        """Inputs, and labels 1 (majority) and -1."""
        y = np.where(generator.random(n) < self.ratio / (1 + self.ratio), 1, -1)
        return self.sample_class(y, generator), y

    def sample_class(self, y: Int[np.ndarray, " n"], generator: np.random.Generator) -> Float[np.ndarray, "n features"]:
        """Inputs of the classes `y`."""
        shape = (len(y), len(self.theta))
        noise = self.law.sample_isotropic(*shape, generator) if self.isotropic else self.law.sample(shape, generator)
        return y[:, None] * self.theta + self.sigma * noise

    def standard_optimum(self) -> LinearRule:
        """The linear rule of highest accuracy on this mixture."""
        return self._optimum(self.theta)

    def robust_optimum(self, threat: Threat) -> LinearRule:
        """The linear rule of highest accuracy under the worst perturbation within a norm ball (Linf, L2 or L1).

        Raises InputError when the threat can move one class centre on the other (no rule is better than chance), and
        UnsupportedError for independent heavy-tailed coordinates under a threat that is not Linf.
        """
        theta = torch.from_numpy(np.asarray(self.theta, dtype=np.float64))[None]
        zero = torch.zeros_like(theta)
        if bool(threat.contains(theta, zero, tolerance=0.0)):
            raise InputError(
                f"{threat!r} reaches from a class centre (size {float(threat.norm(theta)):.4g}) to the middle: no rule "
                "is robust; take a smaller radius"
            )
        if not self.isotropic and self.alpha < 2 and not isinstance(threat, Linf):
            raise UnsupportedError("with independent heavy-tailed coordinates only Linf threats have a closed form")
        return self._optimum((theta - threat.project(theta, zero))[0].numpy())

    def accuracies(self, rule: LinearRule, threat: Threat | None = None) -> tuple[float, float]:
        """Accuracy of `rule` on majority and minority; under the worst perturbation within `threat` if there is one."""
        scale = self._scale(rule.w)
        lost = 0.0 if threat is None else dual_norm(threat, rule.w)
        found = (self.law.cdf((float(rule.w @ self.theta) + y * rule.b - lost) / scale) for y in (1, -1))
        major, minor = (float(part) for part in found)
        return major, minor

    def disparity_gap(self, threat: Threat) -> float:
        """Accuracy gap (majority minus minority) on clean inputs of the robust rule, minus that of the standard one."""
        robust, standard = (self.accuracies(rule) for rule in (self.robust_optimum(threat), self.standard_optimum()))
        return (robust[0] - robust[1]) - (standard[0] - standard[1])

    def _scale(self, w: np.ndarray) -> float:
        power = 2.0 if self.isotropic else self.alpha
        largest = float(np.abs(w).max())
        return self.sigma * largest * float((np.abs(w / largest) ** power).sum()) ** (1 / power)

    def _optimum(self, centre: np.ndarray) -> LinearRule:
        """Best rule for classes at +-centre (theta less what the threat takes)."""
        if self.isotropic or self.alpha == 2:
            w = centre.copy()
        elif self.alpha > 1:
            w = np.sign(centre) * (np.abs(centre) / np.abs(centre).max()) ** (1 / (self.alpha - 1))
        else:  # the scale of a sum of coordinates exceeds what they add, so the best one stands alone
            w = np.where(np.arange(len(centre)) == np.abs(centre).argmax(), np.sign(centre), 0.0)
        w = w / np.linalg.norm(w)
        scale = self._scale(w)
        margin = float(w @ centre)
        return LinearRule(w, scale * self._bias(margin / scale), margin)

    def _bias(self, g: float) -> float:
        """The b >= 0 of least risk at margin g, both in units of the scale; inf where calling all majority is best."""
        if self.ratio == 1:
            return 0.0
        if self.alpha == 2:
            return math.log(self.ratio) / (2 * g)
        # The likelihood ratio rises from 1 to its peak near g and falls back to 1: the minimum is the first crossing.
        grid = np.concatenate(
            [np.linspace(0, 2 * g, 400), g * np.geomspace(2, 1e3, 400), g + np.geomspace(0.01, 20, 400)]
        )
        grid.sort()
        peak = grid[int(np.argmax(self._log_ratio(grid, g)))]
        wanted = math.log(self.ratio)
        if self._log_ratio(peak, g) <= wanted:
            return math.inf
        b = float(optimize.brentq(lambda t: float(self._log_ratio(t, g)) - wanted, 0.0, float(peak), xtol=1e-14))
        share = self.ratio / (1 + self.ratio)
        risk = share * float(self.law.cdf(-g - b)) + (1 - share) * float(self.law.cdf(b - g))
        return b if risk < 1 - share else math.inf

    def _log_ratio(self, b: Values, g: float) -> np.ndarray:
        return np.asarray(np.log(self.law.pdf(b - g)) - np.log(self.law.pdf(b + g)))


def dual_norm(threat: Threat, w: Float[np.ndarray, " features"]) -> float:
    """max of <w, d> over the threat's perturbations d: eps ||w||_q for a norm ball."""
    row = torch.from_numpy(np.asarray(w, dtype=np.float64))[None]
    return -float(threat.worst(row[:, None], torch.zeros_like(row)))


@dataclass(frozen=True)
class DisparityReport:
    """Accuracy of every class or group, clean and (when it was measured) under attack, with simultaneous intervals."""

    clean: Shares
    attacked: Shares | None = None

    @classmethod
    def of(
        cls,
        correct: Bool[np.ndarray, " n"],
        groups: Shaped[np.ndarray, " n"],
        held: Bool[np.ndarray, " n"] | None = None,
        *,
        level: float = 0.95,
        count: int | None = None,
    ) -> DisparityReport:
        """From whether each example is right, and whether it is still right under attack; see `class_disparity`."""
        sides = [correct] if held is None else [correct, held]
        return cls(*(shares(side, groups, level, of=count) for side in sides))

    @property
    def gap(self) -> Estimate:
        """Best minus worst accuracy on clean inputs."""
        return self.clean.gap

    @property
    def attacked_gap(self) -> Estimate | None:
        """Best minus worst accuracy under attack."""
        return None if self.attacked is None else self.attacked.gap


def class_disparity(
    predictions: Int[np.ndarray, " _"],
    y: Int[np.ndarray, " _"],
    attacked: Int[np.ndarray, " _"] | None = None,
    *,
    groups: Shaped[np.ndarray, " _"] | None = None,
    level: float = 0.95,
    count: int | None = None,
) -> DisparityReport:
    """Accuracy per class of a model's predictions, and of those `attacked` (same examples, after an attack).

    `groups` (n,) replaces the classes; `count` is the number of classes or groups there are in all (those seen, if
    unknown).  Intervals hold for all groups together and at every sample size; for a fair comparison use a test set
    that has enough of every class, not one that shares the training set's imbalance.
    Raises InputError on no example or lengths that differ.
    """
    members = y if groups is None else groups
    lengths = {len(part) for part in (predictions, y, members, y if attacked is None else attacked)}
    if lengths != {len(y)} or not len(y):
        raise InputError(
            f"predictions, labels and groups must have one entry an example, got lengths {sorted(lengths)}"
        )
    held = None if attacked is None else attacked == y
    return DisparityReport.of(predictions == y, members, held, level=level, count=count)
