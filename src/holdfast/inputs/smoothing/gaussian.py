"""Randomized smoothing by votes (Cohen, Rosenfeld & Kolter, 2019).

The smoothed classifier answers what the base classifier f answers most often under noise,

    g(x) = argmax_c P(f(x + e) = c),    e ~ N(0, sigma^2 I),

and if p_lower <= P(f(x + e) = A) then g is A on the whole L2 ball of radius

    R = sigma Phi^-1(p_lower)      (p_lower > 1/2; otherwise the certificate abstains).

The label is chosen from n0 draws and the bound comes from fresh ones, so it holds with probability 1 - alpha for each
input. The guarantee is about g, not about f, and about L2 changes only (L1 with the other noises of `noise`).  Nothing
is assumed about f: it may be any callable batch -> scores.  Stopping rules (`stopping`) save draws where the answer is
clear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Series
from holdfast.core.intervals import clopper_pearson
from holdfast.core.sequences import anytime_mean
from holdfast.inputs.features import require_evaluation
from holdfast.inputs.smoothing.noise import Name, Noise, noise_named
from holdfast.inputs.smoothing.sampling import Sampler, require_inputs, settle, streams_of
from holdfast.inputs.smoothing.stopping import Expected, FixedN, Reach, Stopping
from holdfast.inputs.smoothing.votes import VoteCounts, expected_lower


@dataclass(frozen=True)
class SmoothedCertificate:
    """Per input: label, certified radius (0 where abstained), the bound it came from, and its cost in draws.

    `norm` says which ball the radius is of: 2 for Gaussian noise, 1 for Laplace and uniform noise.
    """

    label: Int[Tensor, " batch"]
    radius: Float[Tensor, " batch"]
    p_lower: Float[Tensor, " batch"]
    n_used: Int[Tensor, " batch"]
    abstained: Bool[Tensor, " batch"]
    norm: float = 2.0

    @classmethod
    def of(
        cls,
        label: Int[np.ndarray, " batch"],
        radius: Float[np.ndarray, " batch"],
        p_lower: Float[np.ndarray, " batch"],
        n_used: Int[np.ndarray, " batch"],
        norm: float = 2.0,
    ) -> SmoothedCertificate:
        """From signed radii: what is not positive is an abstention."""
        abstained = torch.from_numpy(~(radius > 0))
        kept = torch.from_numpy(np.where(radius > 0, radius, 0.0))
        return cls(torch.from_numpy(label), kept, torch.from_numpy(p_lower), torch.from_numpy(n_used), abstained, norm)


@dataclass(frozen=True)
class Smoothed:
    """The smoothed version of `base`.

    Parameters
    ----------
    base : batch -> scores of shape (batch, classes); only the largest counts.
    sigma : standard deviation of the noise, in input units.
    classes : number of classes.
    batch : noisy copies a call of `base`; copies of several inputs share a call.
    noise : "gaussian" (radii in L2), "laplace" or "uniform" (radii in L1).
    """

    base: Callable[[Tensor], Tensor]
    sigma: float
    classes: int
    batch: int = 1000
    noise: Name = "gaussian"

    def __post_init__(self) -> None:
        noise_named(self.noise, self.sigma)
        if self.classes < 2 or self.batch < 1:
            raise InputError(
                f"smoothing needs at least 2 classes and a batch of 1, got {self.classes} and {self.batch}"
            )

    def certify(
        self,
        x: Float[Tensor, "batch *shape"],
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 1e-3,
        stop: Stopping | None = None,
        generator: torch.Generator | None = None,
    ) -> SmoothedCertificate:
        """A certificate for every input, each of which is wrong with probability at most `alpha`.

        `n0` draws choose the label, at most `n` fresh ones bound its probability, `stop` (`FixedN()` when None) says
        when they suffice; `n_used` counts both.

        Every input has a stream of noise of its own, seeded from `generator`, so its certificate does not depend on
        what stands beside it.  Noise is made on the generator's device: give one of the model's device for speed.
        Without a generator the stream of seed 0 on the device of `x` is used.

        Raises InputError for counts below one, alpha outside (0, 1), inputs that are not finite or not (batch, *shape),
        a base with batch normalisation or dropout in training mode, or one whose scores do not have shape (batch,
        classes) or are NaN.
        """
        require_inputs(x, n0, n, alpha, self.base)
        rule: Stopping = FixedN() if stop is None else stop
        tally = _Votes(self._sampler(), x, streams_of(x, generator), n0, n, alpha, rule)
        settle(tally, len(x), n, self.batch, rule, "certifying by votes")
        noise = self._sampler().noise
        lower = tally.counts.lower
        return SmoothedCertificate.of(tally.label, noise.radius(lower), lower, n0 + tally.draws, noise.norm)

    def predict(
        self,
        x: Float[Tensor, "batch *shape"],
        n: int = 1000,
        alpha: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, " batch"]:
        """The smoothed label of every input, wrong with probability at most `alpha`; -1 where two are too close."""
        require_inputs(x, n, n, alpha, self.base)
        labels = []
        for counts in self._sampler().votes(x, [n] * len(x), streams_of(x, generator)):
            first = int(counts.argmax())
            second = int(np.delete(counts, first).max())
            clear = binomtest(int(counts[first]), int(counts[first]) + second, 0.5).pvalue <= alpha
            labels.append(first if clear else -1)
        return torch.tensor(labels)

    def votes(self, x: Float[Tensor, " *shape"], n: int, generator: torch.Generator) -> Int[Tensor, " classes"]:
        """How often `base` answers each class on `n` noisy copies of one input."""
        require_evaluation(self.base)
        return torch.from_numpy(self._sampler().votes(x[None], [n], [generator])[0])

    def _sampler(self) -> Sampler:
        return Sampler(self.base, noise_named(self.noise, self.sigma), self.batch, self.classes)


class _Votes:
    """Votes of every input for the label that its first draws chose."""

    def __init__(
        self,
        sampler: Sampler,
        x: Tensor,
        streams: list[torch.Generator],
        n0: int,
        n: int,
        alpha: float,
        rule: Stopping,
    ) -> None:
        self.sampler, self.x, self.streams = sampler, x, streams
        self.n0, self.n, self.rule = n0, n, rule
        self.counts = VoteCounts(len(x), alpha, rule.sequential)
        self.draws, self.cap = self.counts.draws, self.counts.cap
        self.label = np.zeros(len(x), dtype=np.int64)

    def admit(self, rows: Int[np.ndarray, " rows"]) -> None:
        votes = self._votes(rows, np.full(len(rows), self.n0))
        self.label[rows], most = votes.argmax(1), votes.max(1)
        cap = np.array([self.rule.plan(self._expected(int(count)), self.n) for count in most])
        self.counts.start(rows, cap, most, self.n0)

    def add(self, rows: Int[np.ndarray, " rows"], sizes: Int[np.ndarray, " rows"]) -> None:
        votes = self._votes(rows, sizes)
        self.counts.add(rows, sizes, votes[np.arange(len(rows)), self.label[rows]])

    def done(self, rows: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        if not self.rule.sequential:
            return np.zeros(len(rows), dtype=bool)
        radius, highest = (self.noise.radius(p) for p in (self.counts.lower[rows], self.counts.eventual(rows)))
        return self.rule.done(Reach(radius, highest), self.noise)

    def _expected(self, votes: int) -> Expected:
        return lambda sizes: self.noise.radius(expected_lower(votes, self.n0, sizes, self.counts.alpha))

    @property
    def noise(self) -> Noise:
        return self.sampler.noise

    def _votes(self, rows: np.ndarray, sizes: np.ndarray) -> Int[np.ndarray, "rows classes"]:
        return self.sampler.votes(self.x[rows], sizes.tolist(), [self.streams[row] for row in rows])


def certified_accuracy(
    radius: Float[np.ndarray, " examples"],
    correct: Bool[np.ndarray, " examples"],
    radii: Sequence[float],
    level: float = 0.95,
) -> list[Estimate]:
    """Share of examples that are right and certified at each of `radii`, with exact intervals over examples.

    The intervals are about which examples were drawn; each certificate's own error of alpha comes on top.
    """
    n = len(radius)
    return [clopper_pearson(int((correct & (radius >= r) & (radius > 0)).sum()), n, level) for r in radii]


def certified_curve(
    certificates: Mapping[str, tuple[Float[np.ndarray, " examples"], Bool[np.ndarray, " examples"]]],
    points: int = 60,
    level: float = 0.95,
    title: str = "Certified accuracy by radius",
) -> Curve:
    """Certified accuracy over radii from 0 to the largest found, one named line a (radius, correct), with intervals."""
    largest = max(float(radius.max()) for radius, _ in certificates.values())
    radii = np.linspace(0, largest, points).tolist()
    series = []
    for name, (radius, correct) in certificates.items():
        shares = certified_accuracy(radius, correct, radii, level)
        columns = (tuple(getattr(share, part) for share in shares) for part in ("value", "low", "high"))
        series.append(Series(name, tuple(radii), *columns))
    return Curve(title, "radius", "right and certified", tuple(series), y_limits=(0.0, 1.0))


def average_certified_radius(
    radius: Float[np.ndarray, " examples"],
    correct: Bool[np.ndarray, " examples"],
    largest: float,
    level: float = 0.95,
) -> Estimate:
    """Mean certified radius, wrong or abstained examples counting 0; no certificate may exceed `largest`."""
    return anytime_mean(np.where(correct, radius, 0.0), level=level, bounds=(0.0, largest))
