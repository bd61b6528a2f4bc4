"""Dual randomized smoothing: one classifier a half of the coordinates, each smoothed in its own, lower dimension.

The coordinates are split in two halves l and r; a classifier on each half votes under noise on that half only, and

    g(x) = argmax_c  p^l_c + p^r_c,      p^l_c = P(f^l(x_l + s_l e) = c),   likewise p^r_c.

With lower bounds Phi(a) <= p^l_A and Phi(b) <= p^r_A, each at level alpha / 2, a change (d_l, d_r) of the input leaves
p^l_A + p^r_A > 1, hence the answer A, as long as |d_l| / s_l + |d_r| / s_r < a + b.  By Cauchy-Schwarz that covers the
L2 ball of radius

    R = (a + b) / sqrt(1 / s_l^2 + 1 / s_r^2)        (a + b > 0; otherwise the certificate abstains),

that is s (a + b) / sqrt 2 for equal noise.  One half may lose its own vote.  Linear halves attain it.

The radius in print, s sqrt(a^2 + b^2), is R when a = b and too large otherwise: it moves both probabilities to one half
each, and forgets that they may stand elsewhere with the same sum.  `published_radius` is here to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.inputs.smoothing.gaussian import SmoothedCertificate
from holdfast.inputs.smoothing.noise import Gaussian, noise_named
from holdfast.inputs.smoothing.sampling import Sampler, require_inputs, settle, streams_of
from holdfast.inputs.smoothing.stopping import Expected, FixedN, Reach, Stopping
from holdfast.inputs.smoothing.votes import VoteCounts, expected_lower

Quantile = Float[np.ndarray, " _"]
Mask = Bool[Tensor, "..."]
Fill = Literal["interpolate", "zero"]


def dual_radius(a: Quantile, b: Quantile, sigma_l: float, sigma_r: float) -> Quantile:
    """(a + b) / sqrt(1/sigma_l^2 + 1/sigma_r^2); `a` and `b` are normal quantiles of the halves' lower bounds.

    Negative where nothing is certified.
    """
    return (a + b) / np.sqrt(sigma_l**-2 + sigma_r**-2)


def published_radius(a: Quantile, b: Quantile, sigma_l: float, sigma_r: float) -> Quantile:
    """sqrt(sigma_l^2 a^2 + sigma_r^2 b^2) where a + b > 0, else 0: the radius in print, too large unless a = b."""
    return np.where(a + b > 0, np.hypot(sigma_l * a, sigma_r * b), 0.0)


def checkerboard(height: int, width: int) -> Bool[Tensor, "height width"]:
    """True where row + column is even: each block of 2x2 pixels gives one diagonal to each half."""
    return (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0


@dataclass(frozen=True)
class Half:
    """The entries of an input that one classifier sees, and how the others are filled in.

    `mask` has the shape of one input.  "interpolate" gives every hidden pixel of an image the mean of its known
    neighbours (above, below, left, right), nearest first, a ring at a time; "zero" leaves hidden entries 0.  What is
    filled in depends on the seen entries only.

    Raises InputError for a mask that is not boolean or empty (for "interpolate": in some channel), another filling, or
    "interpolate" where inputs are not images.
    """

    mask: Mask
    fill: Fill

    def __post_init__(self) -> None:
        _require_mask(self.mask)
        _require_fill(self.fill)
        shape = tuple(self.mask.shape)
        if self.fill == "interpolate" and len(shape) < 2:
            raise InputError(f"interpolation needs images, got inputs of shape {shape}; use fill='zero'")
        # Each image (each channel) is filled in from itself.
        parts = self.mask.flatten(-2).any(-1) if self.fill == "interpolate" else self.mask.any()
        if not bool(parts.all()):
            raise InputError("a half of the partition has nothing to see (in some channel); give it an entry")

    def seen(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch seen"]:
        """The half's own entries."""
        return x[:, self.mask.to(x.device)]

    def whole(self, seen: Float[Tensor, "batch seen"]) -> Float[Tensor, "batch *shape"]:
        """An input of full shape from the half's own entries."""
        mask = self.mask.to(seen.device)
        out = seen.new_zeros(len(seen), *mask.shape)
        out[:, mask] = seen
        return out if self.fill == "zero" else _interpolated(out, mask)


def _interpolated(x: Float[Tensor, "batch *rest h w"], mask: Mask) -> Float[Tensor, "batch *rest h w"]:
    known = mask.to(x.dtype)
    while not bool(known.all()):
        count = _neighbours(known)
        fresh = (known == 0) & (count > 0)
        x = torch.addcmul(x, _neighbours(x), fresh / count.clamp(min=1))
        known = known + fresh
    return x


def _neighbours(x: Float[Tensor, "*some h w"]) -> Float[Tensor, "*some h w"]:
    """Sum over the pixels above, below, left and right."""
    total = torch.zeros_like(x)
    total[..., 1:, :] += x[..., :-1, :]
    total[..., :-1, :] += x[..., 1:, :]
    total[..., 1:] += x[..., :-1]
    total[..., :-1] += x[..., 1:]
    return total


def partition_noise(
    x: Float[Tensor, "batch *shape"],
    mask: Mask,
    sigma: float,
    generator: torch.Generator,
    fill: Fill = "interpolate",
) -> Float[Tensor, "batch *shape"]:
    """`x` as the classifier of the half `mask` meets it: its own entries with Gaussian noise, the others filled in.

    Train that classifier on it with any loop.  `mask` is broadcast to the shape of one input.  Raises InputError for a
    mask that is not boolean, does not fit or is empty, sigma that is not positive, another filling, or "interpolate" on
    inputs that are not images.
    """
    noise, half = noise_named("gaussian", sigma), _half(mask, fill, tuple(x.shape[1:]))
    seen = half.seen(x)
    drawn = torch.empty(seen.shape, dtype=x.dtype, device=generator.device)
    noise.fill(drawn, generator)
    return half.whole(seen + drawn.to(x.device))


def _half(mask: Mask, fill: Fill, shape: tuple[int, ...]) -> Half:
    _require_mask(mask)
    try:
        return Half(mask.broadcast_to(shape), fill)
    except RuntimeError as error:
        raise InputError(f"a mask of shape {tuple(mask.shape)} does not fit inputs of shape {shape}") from error


def _require_mask(mask: object) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise InputError(f"a mask is a boolean tensor, True for what is seen, got {kind}; compare it: mask > 0.5")


def _require_partition(partition: object) -> None:
    if isinstance(partition, str) and partition != "checkerboard":
        raise InputError(f"a partition is 'checkerboard', a mask or a tuple of two masks, got {partition!r}")
    if isinstance(partition, tuple) and len(partition) != 2:
        raise InputError(f"a partition has a mask for each of the two halves, got {len(partition)} of them")
    if not isinstance(partition, str):
        for mask in partition if isinstance(partition, tuple) else (partition,):
            _require_mask(mask)


def _require_fill(fill: str) -> None:
    if fill not in get_args(Fill):
        raise InputError(f"hidden entries are filled in by {' or '.join(get_args(Fill))}, got {fill!r}")


@dataclass(frozen=True)
class DualCertificate(SmoothedCertificate):
    """And for each input the lower bounds of the label's probability in the left and in the right half."""

    halves: Float[Tensor, "batch 2"] = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.float64))


@dataclass(frozen=True)
class DualSmoothed:
    """Two classifiers, each smoothed on its half of the coordinates.

    Parameters
    ----------
    left, right : batch of inputs of full shape (hidden entries filled in) -> scores (batch, classes).
    sigma : standard deviation of the noise; or one for each half.
    partition : "checkerboard"; a mask, True for what `left` sees, which broadcasts to one input; or a mask for each
        half, which must not overlap (entries of neither are seen by no one, so that changing them changes nothing).
    fill : "interpolate" or "zero" (see `Half`).
    batch : noisy copies a call of a classifier.

    Raises InputError for noise that is neither one positive number nor a pair, a partition or a filling that is none of
    these, or a batch below 1.
    """

    left: Callable[[Tensor], Tensor]
    right: Callable[[Tensor], Tensor]
    sigma: float | tuple[float, float]
    partition: Literal["checkerboard"] | Mask | tuple[Mask, Mask] = "checkerboard"
    fill: Fill = "interpolate"
    batch: int = 1000

    def __post_init__(self) -> None:
        pair: object = self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, Real) for part in pair)):
            raise InputError(f"noise is one number, or a tuple (left, right) of two, got {self.sigma!r}")
        for sigma in self.sigmas:
            noise_named("gaussian", sigma)
        _require_fill(self.fill)
        _require_partition(self.partition)
        if self.batch < 1:
            raise InputError(f"a batch must be at least 1, got {self.batch}")

    @property
    def sigmas(self) -> tuple[float, float]:
        """Noise of the left and of the right half."""
        return self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)

    def certify(
        self,
        x: Float[Tensor, "batch *shape"],
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 1e-3,
        stop: Stopping | None = None,
        generator: torch.Generator | None = None,
    ) -> DualCertificate:
        """As `Smoothed.certify`, for L2 balls of the whole input; each half gets half of n0, n and alpha.

        `p_lower` is the mean of the halves' lower bounds; it is above one half where a + b > 0.

        Raises InputError as `Smoothed.certify` does (n0 and n at least 2), and for a partition that does not fit,
        overlaps or has an empty half, or classifiers that do not have the same classes.
        """
        require_inputs(x, n0, n, alpha, self.left, self.right, least=2)
        rule: Stopping = FixedN() if stop is None else stop
        halves = self.halves(tuple(x.shape[1:]))
        samplers = tuple(
            Sampler(_on_half(base, half), noise_named("gaussian", sigma), self.batch)
            for base, half, sigma in zip((self.left, self.right), halves, self.sigmas, strict=True)
        )
        seen = tuple(half.seen(x) for half in halves)
        tally = _DualVotes((samplers[0], samplers[1]), (seen[0], seen[1]), streams_of(x, generator), n0, n, alpha, rule)
        settle(tally, len(x), n // 2, self.batch, rule, "certifying by two halves")
        left, right = (count.lower for count in tally.counts)
        radius = dual_radius(ndtri(left), ndtri(right), *self.sigmas)
        used = 2 * (n0 // 2 + tally.draws)
        found = SmoothedCertificate.of(tally.label, radius, (left + right) / 2, used)
        bounds = torch.from_numpy(np.stack([left, right], 1))
        return DualCertificate(found.label, found.radius, found.p_lower, found.n_used, found.abstained, halves=bounds)

    def halves(self, shape: tuple[int, ...]) -> tuple[Half, Half]:
        """The two halves of inputs of this shape.  Raises InputError when they do not fit, overlap or are empty."""
        if isinstance(self.partition, tuple):
            left, right = (_half(mask, self.fill, shape) for mask in self.partition)
            if bool((left.mask & right.mask).any()):
                raise InputError("the halves overlap: an entry that both see would be smoothed twice; split it")
            return left, right
        if isinstance(self.partition, str):
            if len(shape) < 2:
                raise InputError(f"a checkerboard needs images, got inputs of shape {shape}; give a mask")
            mask = checkerboard(*shape[-2:])
        else:
            mask = self.partition
        return _half(mask, self.fill, shape), _half(~mask, self.fill, shape)


def _on_half(base: Callable[[Tensor], Tensor], half: Half) -> Callable[[Tensor], Tensor]:
    return lambda seen: base(half.whole(seen))


class _DualVotes:
    """Votes of both halves for the label that their first draws chose together."""

    def __init__(
        self,
        samplers: tuple[Sampler, Sampler],
        seen: tuple[Tensor, Tensor],
        streams: list[torch.Generator],
        n0: int,
        n: int,
        alpha: float,
        rule: Stopping,
    ) -> None:
        inputs = len(streams)
        self.samplers, self.seen, self.streams, self.rule = samplers, seen, streams, rule
        self.sigmas = samplers[0].noise.sigma, samplers[1].noise.sigma
        self.n0, self.n, self.alpha = n0 // 2, n // 2, alpha / 2
        self.counts = tuple(VoteCounts(inputs, self.alpha, rule.sequential) for _ in samplers)
        self.draws, self.cap = self.counts[0].draws, self.counts[0].cap
        self.label = np.zeros(inputs, dtype=np.int64)

    def admit(self, rows: Int[np.ndarray, " rows"]) -> None:
        left, right = self._votes(rows, np.full(len(rows), self.n0))
        if left.shape != right.shape:
            raise InputError(
                f"both classifiers must have the same classes, got {left.shape[1]} on the left and {right.shape[1]} on "
                "the right"
            )
        label = self.label[rows] = (left + right).argmax(1)
        chosen = [votes[np.arange(len(rows)), label] for votes in (left, right)]
        pairs = zip(*(votes.tolist() for votes in chosen), strict=True)
        caps = [self.rule.plan(self._expected(pair), self.n) for pair in pairs]
        for count, votes in zip(self.counts, chosen, strict=True):
            count.start(rows, np.array(caps), votes, self.n0)

    def _expected(self, votes: tuple[int, int]) -> Expected:
        def radius(sizes: Int[np.ndarray, " plans"]) -> Float[np.ndarray, " plans"]:
            a, b = (ndtri(expected_lower(one, self.n0, sizes, self.alpha)) for one in votes)
            return dual_radius(a, b, *self.sigmas)

        return radius

    def add(self, rows: Int[np.ndarray, " rows"], sizes: Int[np.ndarray, " rows"]) -> None:
        for count, votes in zip(self.counts, self._votes(rows, sizes), strict=True):
            count.add(rows, sizes, votes[np.arange(len(rows)), self.label[rows]])

    def done(self, rows: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        if not self.rule.sequential:
            return np.zeros(len(rows), dtype=bool)
        sigmas = self.sigmas
        left, right = self.counts
        now = dual_radius(ndtri(left.lower[rows]), ndtri(right.lower[rows]), *sigmas)
        highest = dual_radius(ndtri(left.eventual(rows)), ndtri(right.eventual(rows)), *sigmas)
        # A rule that counts in sigmas counts in those of the equal halves that would give the same radii.
        return self.rule.done(Reach(now, highest), Gaussian(np.sqrt(2 / (sigmas[0] ** -2 + sigmas[1] ** -2)).item()))

    def _votes(self, rows: np.ndarray, sizes: np.ndarray) -> list[Int[np.ndarray, "rows classes"]]:
        streams = [self.streams[row] for row in rows]
        return [
            sampler.votes(seen[rows], sizes.tolist(), streams)
            for sampler, seen in zip(self.samplers, self.seen, strict=True)
        ]
