"""Symmetric stable laws: the standard Gaussian (alpha = 2), Cauchy (1), Holtsmark (3/2) and the rest of (0, 2).

For alpha < 2 the characteristic function is exp(-|t|^alpha), as in `scipy.stats.levy_stable(alpha, 0)`; alpha = 2 is
N(0, 1), whose stable scale is 1/sqrt 2.  Other cases by Zolotarev's integrals (Nolan, 1997), for x > 0

    1 - F(x)  or  F(x) - 1/2  =  1/pi int_0^{pi/2} exp(-h) dv      for alpha > 1 or alpha < 1
    f(x)  =  alpha / (pi |alpha - 1| x) int_0^{pi/2} h exp(-h) dv
    h     =  (x cos v / sin(alpha v))^{alpha/(alpha - 1)} cos((alpha - 1) v) / cos v,

with double-exponential nodes, which crowd at both ends as the integrand does.  The error is below 1e-9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from holdfast.core.errors import InputError, UnsupportedError

Values = Float[np.ndarray, "..."] | Int[np.ndarray, "..."] | float | int
_NODES = np.linspace(-4.2, 4.2, 2401)


@dataclass(frozen=True)
class SymmetricStable:
    """The law with index `alpha`.

    Raises InputError outside (0, 2], UnsupportedError nearer than 0.05 to 1 or 0.01 to 2 (but not there), and below
    0.1, where the integrals lose their digits.
    """

    alpha: float | int

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 2:
            raise InputError(f"a stable law has an index alpha in (0, 2], got {self.alpha}")
        near = 0 < abs(self.alpha - 1) < 0.05 or 0 < abs(self.alpha - 2) < 0.01
        if near or self.alpha < 0.1:
            raise UnsupportedError(
                f"the integrals are not accurate at alpha = {self.alpha}; take 1 or 2 itself, or an index further away"
            )

    def cdf(self, x: Values) -> Float[np.ndarray, "..."]:
        """P(X <= x)."""
        x = np.asarray(x, dtype=np.float64)
        if self.alpha == 2:
            return np.asarray(special.ndtr(x))
        if self.alpha == 1:
            return np.asarray(0.5 + np.arctan(x) / math.pi)
        part = self._integral(np.exp(-self._h(x))) / math.pi
        upper = 1 - part if self.alpha > 1 else 0.5 + part
        return np.where(x == 0, 0.5, np.where(x > 0, upper, 1 - upper))

    def pdf(self, x: Values) -> Float[np.ndarray, "..."]:
        """Density."""
        x = np.asarray(x, dtype=np.float64)
        if self.alpha == 2:
            return np.asarray(np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi))
        if self.alpha == 1:
            return np.asarray(1 / (math.pi * (1 + x**2)))
        h = self._h(x)
        size = np.where(x == 0, 1.0, np.abs(x))
        inner = self._integral(h * np.exp(-h)) * self.alpha / (math.pi * abs(self.alpha - 1) * size)
        return np.where(np.abs(x) < 1e-6, math.gamma(1 + 1 / self.alpha) / math.pi, inner)

    def sample(self, shape: tuple[int, ...], generator: np.random.Generator) -> Float[np.ndarray, "..."]:
        """Independent draws (Chambers, Mallows and Stuck, 1976)."""
        a = self.alpha
        if a == 2:
            return generator.standard_normal(shape)
        angle = generator.uniform(-math.pi / 2, math.pi / 2, shape)
        if a == 1:
            return np.tan(angle)
        waiting = generator.standard_exponential(shape)
        turned: np.ndarray = np.sin(a * angle) / np.cos(angle) ** (1 / a)
        return turned * (np.cos((1 - a) * angle) / waiting) ** ((1 - a) / a)

    def sample_isotropic(
        self, n: int, features: int, generator: np.random.Generator
    ) -> Float[np.ndarray, "n features"]:
        """Vectors of which every projection on a unit vector has this law: Gaussian ones of a random common scale."""
        normal = generator.standard_normal((n, features))
        a = self.alpha / 2
        if a == 1:
            return normal
        # E exp(-s A) = exp(-s^a), by Kanter (1975)
        angle, waiting = generator.uniform(0, math.pi, n), generator.standard_exponential(n)
        mixing = np.sin(a * angle) / np.sin(angle) ** (1 / a) * (np.sin((1 - a) * angle) / waiting) ** ((1 - a) / a)
        return np.sqrt(2 * mixing)[:, None] * normal

    @cached_property
    def _quadrature(self) -> tuple[np.ndarray, np.ndarray]:
        """log of h at x = 1 without its x, at every node, and the weights."""
        a, t = self.alpha, _NODES
        # v = pi/2 / (1 + exp(-pi sinh t)): both v and pi/2 - v keep their digits
        v, rest = (math.pi / 2 * special.expit(sign * math.pi * np.sinh(t)) for sign in (1, -1))
        weights = v * rest * 2 * np.cosh(t) * (t[1] - t[0])
        sine = np.where(a * v < math.pi / 2, np.sin(a * v), np.sin(math.pi - a * v))
        cosine = np.sin(rest)
        log_h = a / (a - 1) * (np.log(cosine) - np.log(sine)) + np.log(np.cos((a - 1) * v)) - np.log(cosine)
        return log_h, weights

    def _h(self, x: np.ndarray) -> np.ndarray:
        log_h, _ = self._quadrature
        log_x = np.log(np.where(x == 0, 1.0, np.abs(x)))[..., None]
        return np.exp(np.clip(self.alpha / (self.alpha - 1) * log_x + log_h, -700.0, 700.0))

    def _integral(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values @ self._quadrature[1])
