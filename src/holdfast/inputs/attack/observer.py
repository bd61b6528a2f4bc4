"""A peripheral observer: which images can be told apart at an eccentricity, by texture statistics pooled over regions.

Vision away from the fixation keeps statistics of regions that grow with eccentricity (Freeman & Simoncelli, 2011).
Here an image becomes its luminance and the energies of 3 scales x 4 orientations (analytic band-pass filters: the
modulus is that of a quadrature pair); over every region each map's mean, variance and skew are taken, and the
correlations of energies between orientations of a scale and between neighbouring scales.  Regions are smooth, overlap
by half, and have a diameter of `scaling` x eccentricity in both directions of log-polar coordinates.  With statistics
mu, the population's variance v of each, and internal noise of nu standard deviations,

    d'(a, b) = sqrt( sum_k (mu_a - mu_b)_k^2 / (nu^2 (v_k + jitter_k)) ).

The tasks are simulated with the best decision rule given d' (Macmillan & Creelman, 2005).  The observer is no part of
the networks it judges.  Images are (n, channels, height, width), channels averaged to luminance.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson, paired_difference

Images = Float[np.ndarray, "n channels height width"]
#: Centres of the pass bands in cycles per pixel, an octave apart, and the orientations of each.
FREQUENCIES = (0.25, 0.125, 0.0625)
ORIENTATIONS = 4
#: Eccentricities below this many degrees count as this: the fovea pools no finer.
FOVEA = 0.5


class PeripheralObserver(BaseEstimator):
    """Tells images apart by pooled statistics; `fit` learns how much each statistic varies between images.

    Parameters
    ----------
    scaling : diameter of a region over its eccentricity; 0.5 is the value fitted to people.
    noise : standard deviation nu of the internal noise, in standard deviations of each statistic over images.
    degrees : width of an image in degrees of visual angle.
    jitter : what is added to each statistic's variance, as a share of the mean variance of that statistic over all
        regions, so that regions that never vary are not infinitely sharp.

    Attributes
    ----------
    maps_ : (images, maps, height, width) of the images given to `fit`.
    """

    def __init__(self, scaling: float = 0.5, noise: float = 8.0, degrees: float = 7.0, jitter: float = 0.01) -> None:
        self.scaling = scaling
        self.noise = noise
        self.degrees = degrees
        self.jitter = jitter

    def fit(self, X: Images, y: None = None) -> PeripheralObserver:
        """Keep the population's maps.  Raises InputError for fewer than two images or parameters out of range."""
        if not (0 < self.scaling < 2 and self.noise > 0 and self.degrees > 0 and self.jitter >= 0):
            raise InputError(
                "the observer needs a scaling in (0, 2), positive noise and degrees and a jitter of at least 0, got "
                f"{self.scaling}, {self.noise}, {self.degrees} and {self.jitter}"
            )
        if len(X) < 2:
            raise InputError(f"the spread of statistics needs at least two images, got {len(X)}")
        self.maps_ = feature_maps(X)
        return self

    def dprime(
        self,
        a: Float[np.ndarray, "n _ _ _"],
        b: Float[np.ndarray, "_ _ _ _"],
        eccentricity: float,
    ) -> Float[np.ndarray, " n"]:
        """Discriminability of each pair of images whose centres lie `eccentricity` degrees from the fixation.

        Raises InputError for an eccentricity that is not positive, images of another size than those fitted, or
        unequal numbers.
        """
        check_is_fitted(self)
        if not 0 < eccentricity < math.inf:
            raise InputError(f"the eccentricity must be positive and finite, got {eccentricity} degrees")
        return self._between(a, b, log_polar_regions(*self._size, eccentricity, self.scaling, self.degrees))

    def dprime_of_squares(
        self, a: Float[np.ndarray, "n _ _ _"], b: Float[np.ndarray, "_ _ _ _"], side: int
    ) -> Float[np.ndarray, " n"]:
        """The same with regions that are squares of `side` pixels everywhere: one pooling size instead of a place."""
        check_is_fitted(self)
        return self._between(a, b, square_regions(*self._size, side))

    @property
    def _size(self) -> tuple[int, int]:
        return self.maps_.shape[2], self.maps_.shape[3]

    def _between(self, a: np.ndarray, b: np.ndarray, regions: np.ndarray) -> Float[np.ndarray, " n"]:
        for images in (a, b):
            if images.shape[2:] != self._size or len(images) != len(a):
                raise InputError(
                    f"pairs of {self._size[0]}x{self._size[1]} images were wanted, got shapes {a.shape} and {b.shape}"
                )
        floor = self.maps_.var((0, 2, 3)) * 1e-3
        variance = pooled(self.maps_, regions, floor).var(0)
        variance = variance + self.jitter * variance.mean(1, keepdims=True)
        seen = variance > 0  # a statistic that is the same for all images says nothing
        gap = pooled(feature_maps(a), regions, floor) - pooled(feature_maps(b), regions, floor)
        squared = np.divide(gap**2, self.noise**2 * variance, out=np.zeros_like(gap), where=seen)
        return np.sqrt(squared.sum((1, 2)))


def feature_maps(images: Float[np.ndarray, "n _ _ _"]) -> Float[np.ndarray, "n maps height width"]:
    """Luminance, then the oriented energies, coarse scales last; borders are mirrored."""
    light = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float64)).mean(1)
    height, width = light.shape[1:]
    down, across = height // 2, width // 2
    wide = torch.nn.functional.pad(light[:, None], (across, across, down, down), mode="reflect")
    spectrum = torch.fft.fft2(wide)
    maps = [light]
    for kernel in _filters(*wide.shape[2:]):
        answer = torch.fft.ifft2(spectrum * kernel).abs()[:, 0]
        maps.append(answer[:, down : down + height, across : across + width])
    return torch.stack(maps, 1).numpy()


def _filters(height: int, width: int) -> list[torch.Tensor]:
    """Analytic band-pass filters in the Fourier domain: an octave wide, one side of the plane, cos^2 in angle."""
    down = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    across = torch.fft.fftfreq(width, dtype=torch.float64)[None, :]
    radius = torch.hypot(down, across)
    radius[0, 0] = 1.0
    angle = torch.atan2(down, across)
    filters = []
    for centre in FREQUENCIES:
        octaves = torch.log2(radius / centre)
        radial = torch.where(octaves.abs() < 1, torch.cos(math.pi / 2 * octaves), 0.0)
        radial[0, 0] = 0.0
        for orientation in range(ORIENTATIONS):
            turned = torch.remainder(angle - orientation * math.pi / ORIENTATIONS + math.pi, 2 * math.pi) - math.pi
            filters.append(2 * radial * torch.where(turned.abs() < math.pi / 2, turned.cos() ** 2, 0.0))
    return filters


def _pairs() -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Energy maps whose correlation counts: orientations of one scale, and one orientation at neighbouring scales."""
    first: list[int] = []
    second: list[int] = []
    for scale in range(len(FREQUENCIES)):
        base = 1 + scale * ORIENTATIONS
        for one in range(ORIENTATIONS):
            first += [base + one] * (ORIENTATIONS - 1 - one)
            second += range(base + one + 1, base + ORIENTATIONS)
            if scale + 1 < len(FREQUENCIES):
                first.append(base + one)
                second.append(base + ORIENTATIONS + one)
    return np.array(first), np.array(second)


def pooled(
    maps: Float[np.ndarray, "n maps height width"],
    regions: Float[np.ndarray, "regions height width"],
    floor: Float[np.ndarray, " maps"],
) -> Float[np.ndarray, "n statistics regions"]:
    """Mean, variance and skew of every map and correlations of pairs, over every region.

    `regions` are weights that sum to one; `floor` (a variance a map) keeps skew and correlation quiet where nothing
    varies.
    """
    flat, weights = maps.reshape(*maps.shape[:2], -1), regions.reshape(len(regions), -1).T
    mean = flat @ weights
    square = (flat**2) @ weights
    variance = np.maximum(square - mean**2, 0.0)
    third = (flat**3) @ weights - 3 * mean * square + 2 * mean**3
    spread = np.sqrt(variance + floor[:, None])
    first, second = _pairs()
    joint = (flat[:, first] * flat[:, second]) @ weights - mean[:, first] * mean[:, second]
    return np.concatenate([mean, variance, third / spread**3, joint / (spread[:, first] * spread[:, second])], 1)


def log_polar_regions(
    height: int, width: int, eccentricity: float, scaling: float, degrees: float
) -> Float[np.ndarray, "regions height width"]:
    """Smooth regions around a fixation `eccentricity` degrees to the left of the image's centre, one centred there.

    cos^2 windows in log eccentricity and angle, half overlapping, as wide at half height as `scaling` x eccentricity;
    each sums to one.  Of the others those are left out of which less than a quarter lies inside the image.
    """
    pixel = degrees / width
    rows = (np.arange(height) - (height - 1) / 2) * pixel
    columns = (np.arange(width) - (width - 1) / 2) * pixel + eccentricity
    centre = max(eccentricity, FOVEA)
    step = math.log((1 + scaling / 2) / (1 - scaling / 2))
    rings = np.log(np.maximum(np.hypot(rows[:, None], columns), FOVEA) / centre) / step
    # A whole number of sectors, so that the first and the last meet.
    sectors = max(round(2 * math.pi / scaling), 1)
    turns = np.arctan2(rows[:, None], columns) / (2 * math.pi) * sectors
    regions = []
    for ring in range(math.floor(rings.min()), math.ceil(rings.max()) + 1):
        along = _window(rings - ring)
        whole = (centre * math.exp(step * ring) / pixel) ** 2 * step * 2 * math.pi / sectors  # its area in pixels
        for sector in range(sectors):
            away = (turns - sector + sectors / 2) % sectors - sectors / 2
            weights = along * (_window(away) if sectors > 1 else 1.0)
            if weights.sum() > whole / 4 or (ring, sector) == (0, 0):
                regions.append(weights / weights.sum())
    return np.array(regions)


def _window(distance: np.ndarray) -> np.ndarray:
    return np.where(np.abs(distance) < 1, np.cos(math.pi / 2 * distance) ** 2, 0.0)


def square_regions(height: int, width: int, side: int) -> Float[np.ndarray, "regions height width"]:
    """Squares of `side` pixels from the top left, cut at the far borders.  Raises InputError for a side below 1."""
    if side < 1:
        raise InputError(f"a region has a side of at least one pixel, got {side}")
    down, across = np.arange(height) // side, np.arange(width) // side
    inside = (down == np.arange(down[-1] + 1)[:, None])[:, None, :, None]
    inside = inside & (across == np.arange(across[-1] + 1)[:, None])[None, :, None, :]
    weights = inside.reshape(-1, height, width).astype(np.float64)
    return weights / weights.sum((1, 2), keepdims=True)


def oddity_accuracy(
    dprime: Float[np.ndarray, " n"] | float, trials: int = 1000, *, generator: np.random.Generator, level: float = 0.95
) -> Estimate:
    """Accuracy in picking the odd one of three images, chance 1/3; which of the two occurs twice is not known.

    Each image gives a number, N(0, 1) or N(d', 1); the most likely odd one is named.  For several d' (one a pair of
    images) the interval is over pairs.
    """
    return _accuracy(_oddity, dprime, trials, generator, level)


def twoafc_accuracy(
    dprime: Float[np.ndarray, " n"] | float, trials: int = 1000, *, generator: np.random.Generator, level: float = 0.95
) -> Estimate:
    """Accuracy in matching a sample to one of two images, chance 1/2; as `oddity_accuracy`.

    Expected: Phi(d'/sqrt 2) Phi(d'/2) + Phi(-d'/sqrt 2) Phi(-d'/2).
    """
    return _accuracy(_match_to_sample, dprime, trials, generator, level)


Trial = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _accuracy(
    task: Trial, dprime: np.ndarray | float, trials: int, generator: np.random.Generator, level: float
) -> Estimate:
    distances = np.atleast_1d(np.asarray(dprime, dtype=np.float64))
    if not len(distances) or not (np.isfinite(distances).all() and (distances >= 0).all()) or trials < 1:
        raise InputError(f"d' must be finite and at least 0 and trials at least 1, got {distances} and {trials}")
    right = task(np.repeat(distances[:, None], trials, 1), generator)
    if len(distances) == 1:
        return clopper_pearson(int(right.sum()), trials, level)
    share = right.mean(1)
    return paired_difference(np.zeros_like(share), share, level)


def _oddity(distance: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Whether the odd one of three is found, one trial an entry."""
    odd = generator.integers(0, 3, distance.shape)
    twice = generator.integers(0, 2, distance.shape)  # which of the two images occurs twice
    is_odd = odd[..., None] == np.arange(3)
    means = distance[..., None] * np.where(is_odd, 1 - twice[..., None], twice[..., None])
    seen = means + generator.standard_normal(means.shape)
    # log-likelihood of "k is the odd one" up to a constant, both ways round
    gain = distance[..., None] * (seen - distance[..., None] / 2)
    return np.logaddexp(gain, gain.sum(-1, keepdims=True) - gain).argmax(-1) == odd


def _match_to_sample(distance: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Whether the sample (third) is matched to the right one of a and b, one trial an entry."""
    sample = generator.integers(0, 2, distance.shape)
    means = distance[..., None] * np.stack([np.zeros_like(sample), np.ones_like(sample), sample], -1)
    order = generator.integers(0, 2, distance.shape)  # whether b stands first
    seen = means + generator.standard_normal(means.shape)
    first = np.where(order == 1, seen[..., 1], seen[..., 0])
    second = np.where(order == 1, seen[..., 0], seen[..., 1])
    # The observer knows the two images but not which comes first: compare "same as first" with "same as second".
    gain = [distance * (part - distance / 2) for part in (first, second, seen[..., 2])]
    same_first = np.logaddexp(gain[0] + gain[2], gain[1])
    same_second = np.logaddexp(gain[1] + gain[2], gain[0])
    guess = generator.integers(0, 2, distance.shape) == 1
    said = np.where(same_first == same_second, guess, same_first > same_second)
    return said == (sample == order)
