"""Lipschitz-variance-margin smoothing: certify by the mean of a simplex map of the logits instead of by votes.

    p(x) = E s(F(x + e)),    e ~ N(0, sigma^2 I),    g(x) = argmax_c p_c(x),

s one of the maps of `simplex`.  From n draws with mean m_c and unbiased variance v_c of every class, each at level
d = alpha / K (Maurer & Pontil, 2009),

    |m_c - p_c| <= sqrt(2 v_c log(2/d) / n) + 7 log(2/d) / (3 (n - 1)),

from below for the label A and from above for all others (none of which exceeds 1 - p_A either).  With p_lower for A and
p_upper for the largest of the others, g answers A within L2 distance

    R = max( sigma/2 (Phi^-1(p_lower) - Phi^-1(p_upper)),  (p_lower - p_upper) / L~ ),
    L~ = L erf(1 / (sqrt 2 L sigma)),

L the Lipschitz constant of every difference s_a(F) - s_b(F), infinite when none is known.  (Then L~ = sqrt(2/pi)/sigma
and the second radius never exceeds the first, which has at least that slope everywhere.)  Hard votes keep their exact
binomial bound at level alpha and R = sigma Phi^-1(p_lower).

Which map is best for an input is read off the n0 draws that choose the label: the one that would certify most from n
draws.  Taking the best of many maps on the draws that certify, as has been published, has no guarantee
(`best_of_maps_radius`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.core.sequences import BernsteinSequence
from holdfast.inputs.smoothing.gaussian import SmoothedCertificate
from holdfast.inputs.smoothing.margins import (
    Moments,
    bernstein_radius,
    best_of_maps_radius,
    default_maps,
    map_radii,
    margin_ends,
    margin_radius,
    moments,
    smoothed_lipschitz,
)
from holdfast.inputs.smoothing.noise import noise_named
from holdfast.inputs.smoothing.sampling import Sampler, require_inputs, settle, streams_of
from holdfast.inputs.smoothing.simplex import SimplexMap
from holdfast.inputs.smoothing.stopping import Expected, FixedN, Reach, Stopping
from holdfast.inputs.smoothing.votes import EARLY, VoteCounts

__all__ = [
    "MarginCertificate",
    "MarginSmoothed",
    "bernstein_radius",
    "best_of_maps_radius",
    "default_maps",
    "margin_radius",
    "smoothed_lipschitz",
]

Selection = Literal["draws", "union"]
#: Imagined draws that the choice of a map adds to those it has.
_PRIOR = 1.0
_ONLY = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True)
class MarginCertificate(SmoothedCertificate):
    """And for each input the place (in `maps`) of the simplex map whose smoothed classifier is certified."""

    map_index: Int[Tensor, " batch"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))


@dataclass(frozen=True)
class MarginSmoothed:
    """`base` smoothed through a simplex map of its logits.

    Parameters
    ----------
    base : batch -> logits (batch, classes).
    sigma : standard deviation of the Gaussian noise, in input units.
    maps : what to choose from.  One map makes one smoothed classifier; with several, the answer certified for an input
        is that of the map named by its `map_index`, chosen by the first n0 draws, not by what comes out.
    lipschitz : bound on |F(x) - F(x')| / |x - x'| for the logits F as a vector (L2 both), if known.
    batch : noisy copies a call of `base`.
    selection : "draws" certifies with the one map that the n0 draws favour; "union" splits alpha evenly over all of
        `maps` and certifies with the best (for a short list).
    """

    base: Callable[[Tensor], Tensor]
    sigma: float
    maps: tuple[SimplexMap, ...] = field(default_factory=default_maps)
    lipschitz: float | None = None
    batch: int = 1000
    selection: Selection = "draws"

    def __post_init__(self) -> None:
        noise_named("gaussian", self.sigma)
        if self.selection not in get_args(Selection):
            raise InputError(f"no selection is called {self.selection!r}; there are {', '.join(get_args(Selection))}")
        if not self.maps or self.batch < 1:
            raise InputError(f"a batch of at least 1 and a map are needed, got {self.batch} and {len(self.maps)} maps")
        if self.lipschitz is not None and not 0 < self.lipschitz < math.inf:
            raise InputError(
                f"a Lipschitz constant must be positive and finite, got {self.lipschitz}; None for unknown"
            )

    def certify(
        self,
        x: Float[Tensor, "batch *shape"],
        n0: int = 400,
        n: int = 100_000,
        alpha: float = 1e-3,
        stop: Stopping | None = None,
        generator: torch.Generator | None = None,
    ) -> MarginCertificate:
        """As `Smoothed.certify`; `n0` draws choose the map and the label, fresh ones certify.

        Rules that look early use the empirical Bernstein sequence (`core.sequences.BernsteinSequence`) at alpha / 2,
        and the fixed-n bound at alpha / 2 after the last draw.

        Raises InputError as `Smoothed.certify` does (n0 and n at least 2), and for logits that are NaN or infinite or
        of one class.
        """
        require_inputs(x, n0, n, alpha, self.base, least=2)
        rule: Stopping = FixedN() if stop is None else stop
        sampler = Sampler(self.base, noise_named("gaussian", self.sigma), self.batch)
        tally = _Margins(self, sampler, x, streams_of(x, generator), n0, n, alpha, rule)
        settle(tally, len(x), n, self.batch, rule, "certifying by margins")
        plain = SmoothedCertificate.of(tally.label, tally.radius, tally.p_lower, n0 + tally.draws)
        return MarginCertificate(
            plain.label,
            plain.radius,
            plain.p_lower,
            plain.n_used,
            plain.abstained,
            map_index=torch.from_numpy(tally.chosen),
        )


class _Margins:
    """The maps of every input, chosen by its first draws, and what they certify."""

    def __init__(
        self,
        smoothed: MarginSmoothed,
        sampler: Sampler,
        x: Tensor,
        streams: list[torch.Generator],
        n0: int,
        n: int,
        alpha: float,
        rule: Stopping,
    ) -> None:
        self.smoothed, self.sampler, self.x, self.streams = smoothed, sampler, x, streams
        self.n0, self.n, self.alpha, self.rule = n0, n, alpha, rule
        inputs = len(x)
        self.draws, self.cap, self.label, self.chosen = (np.zeros(inputs, dtype=np.int64) for _ in range(4))
        self.radius, self.p_lower = np.full(inputs, -math.inf), np.zeros(inputs)
        self.bounds: dict[int, list[_VoteBound | _MeanBound]] = {}

    def admit(self, rows: Int[np.ndarray, " rows"]) -> None:
        maps, sigma = self.smoothed.maps, self.smoothed.sigma
        for row, logits in zip(rows.tolist(), self._logits(rows, np.full(len(rows), self.n0)), strict=True):
            if logits.shape[1] < 2:
                raise InputError("a margin needs logits of at least 2 classes, got 1")
            found = moments(maps, logits, _PRIOR)
            alpha = self.alpha / (len(maps) if self.smoothed.selection == "union" else 1)
            radii, _ = map_radii(maps, found, self.n, sigma, alpha, self._lipschitz)
            best = int(radii.argmax())
            self.label[row], self.chosen[row] = found.label[best], best
            # A variance takes two draws.
            self.cap[row] = max(2, self.rule.plan(self._expected(best, found, alpha), self.n))
            self.bounds[row] = [
                self._bound(place, int(found.label[place]), int(self.cap[row]), alpha, logits)
                for place in (range(len(maps)) if self.smoothed.selection == "union" else (best,))
            ]

    def _bound(self, place: int, label: int, cap: int, alpha: float, logits: Tensor) -> _VoteBound | _MeanBound:
        one = self.smoothed.maps[place]
        if one.kind != "hardmax":
            slope = one.margin_lipschitz * self._lipschitz
            sequential = self.rule.sequential
            return _MeanBound(place, one, label, cap, alpha, self.smoothed.sigma, slope, logits.shape[1], sequential)
        counts = VoteCounts(1, alpha, self.rule.sequential)
        votes = int((logits.argmax(1) == label).sum())
        counts.start(_ONLY, np.array([cap]), np.array([votes]), len(logits))
        return _VoteBound(place, label, self.smoothed.sigma, counts)

    def add(self, rows: Int[np.ndarray, " rows"], sizes: Int[np.ndarray, " rows"]) -> None:
        for row, logits in zip(rows.tolist(), self._logits(rows, sizes), strict=True):
            self.draws[row] += len(logits)
            for bound in self.bounds[row]:
                bound.add(logits)
                if bound.radius > self.radius[row]:
                    self.radius[row], self.p_lower[row] = bound.radius, bound.lower
                    self.label[row], self.chosen[row] = bound.label, bound.place

    def done(self, rows: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        if not self.rule.sequential:
            return np.zeros(len(rows), dtype=bool)
        highest = np.array([max(bound.highest() for bound in self.bounds[row]) for row in rows.tolist()])
        return self.rule.done(Reach(self.radius[rows], highest), self.sampler.noise)

    @property
    def _lipschitz(self) -> float:
        return math.inf if self.smoothed.lipschitz is None else self.smoothed.lipschitz

    def _expected(self, best: int, found: Moments, alpha: float) -> Expected:
        one = (self.smoothed.maps[best],)
        part = Moments(found.mean[[best]], found.variance[[best]], found.label[[best]])

        def radius(sizes: Int[np.ndarray, " plans"]) -> Float[np.ndarray, " plans"]:
            each = [map_radii(one, part, int(n), self.smoothed.sigma, alpha, self._lipschitz)[0] for n in sizes]
            return np.concatenate(each)

        return radius

    def _logits(self, rows: np.ndarray, sizes: np.ndarray) -> list[Float[Tensor, "draws classes"]]:
        parts: list[list[Tensor]] = [[] for _ in rows]
        for copies, scores in self.sampler.draw(
            self.x[rows], sizes.tolist(), [self.streams[row] for row in rows.tolist()]
        ):
            logits = scores.double().cpu()
            if not bool(torch.isfinite(logits).all()):
                raise InputError("logits must be finite; margins of infinite ones mean nothing")
            for part in copies:
                parts[part.row].append(logits[part.place])
        return [torch.cat(part) for part in parts]


@dataclass
class _VoteBound:
    """What the votes of one input certify: hardmax keeps its exact bound."""

    place: int
    label: int
    sigma: float
    counts: VoteCounts

    def add(self, logits: Float[Tensor, "draws classes"]) -> None:
        votes = int((logits.argmax(1) == self.label).sum())
        self.counts.add(_ONLY, np.array([len(logits)]), np.array([votes]))

    @property
    def lower(self) -> float:
        return float(self.counts.lower[0])

    @property
    def radius(self) -> float:
        return self.sigma * float(ndtri(self.lower))

    def highest(self) -> float:
        return self.sigma * float(ndtri(self.counts.eventual(_ONLY)[0]))


class _MeanBound:
    """What the means of one input through one map certify."""

    def __init__(
        self,
        place: int,
        one: SimplexMap,
        label: int,
        cap: int,
        alpha: float,
        sigma: float,
        slope: float,
        classes: int,
        sequential: bool,
    ) -> None:
        self.place, self.map, self.label, self.cap, self.sigma, self.slope = place, one, label, cap, sigma, slope
        self.alpha = (1 - EARLY) * alpha if sequential else alpha
        self.sequence = BernsteinSequence(classes, EARLY * alpha / classes) if sequential else None
        self.n, self.radius, self.lower = 0, -math.inf, 0.0
        self.sums, self.squares = np.zeros(classes), np.zeros(classes)

    def add(self, logits: Float[Tensor, "draws classes"]) -> None:
        values = self.map(logits).numpy()
        self.n += len(values)
        self.sums += values.sum(0)
        self.squares += np.square(values).sum(0)
        if self.sequence is not None:
            self.sequence.add(values)
            lower, upper = margin_ends(self.sequence.low, self.sequence.high, self.label)
            self._keep(margin_radius(lower, upper, self.sigma, self.slope), lower)
        if self.n == self.cap:
            self._keep(*self._after(self.sums / self.n))

    def highest(self) -> float:
        """The radius after all draws, if from now on all means are the best for the label that the sequence allows."""
        assert self.sequence is not None
        is_label = np.arange(len(self.sums)) == self.label
        ahead = np.where(is_label, self.sequence.high, self.sequence.low)
        radius, _ = self._after((self.sums + (self.cap - self.n) * ahead) / self.cap)
        return max(self.radius, float(radius))

    def _after(self, mean: Float[np.ndarray, " classes"]) -> tuple[np.ndarray, np.ndarray]:
        """Radius and lower bound that `cap` draws of this mean and of the variance so far certify."""
        variance = np.maximum(self.squares - self.sums**2 / self.n, 0) / max(1, self.n - 1)
        return bernstein_radius(mean, variance, self.cap, self.sigma, self.alpha, self.label, self.slope)

    def _keep(self, radius: np.ndarray, lower: np.ndarray) -> None:
        if float(radius) > self.radius:
            self.radius, self.lower = float(radius), float(lower)
