"""GREAT score: one number for a classifier's robustness from generated samples, without an attack (Li et al., 2023).

For class probabilities f and n labelled samples of a generative model,

    g(x, y) = sqrt(pi/2) max(f_y(x) - max_{k != y} f_k(x), 0),      score = mean of g

A wrongly classified sample counts 0.  The factor is a radius: where f is the mean of a [0, 1]-valued classifier under
Gaussian noise N(0, s^2 I), each difference of two probabilities changes by at most sqrt(2/pi)/s per unit of L2
distance, so no change smaller than s g(x, y) moves the answer.  Hence two readings, and every result says which:

    sigma=s      *certificate*: f is smoothed with that noise; the mean certified L2 radius over the generator's samples
    sigma=None   *score*: f is an ordinary classifier; the number ranks models, no input is certified

The interval is about the generator's distribution: it covers the mean over all samples that it could draw, not over
real data.  Only probabilities are used, so access to scores suffices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from scipy.special import expit, softmax
from scipy.stats import spearmanr
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.sequences import anytime_mean

#: Largest score of one sample at sigma 1: the margin is 1.
LARGEST = math.sqrt(math.pi / 2)
#: Samples that go through a model together.
BATCH = 512

Outputs = Float[np.ndarray, "n classes"] | Float[Tensor, "n classes"]
Samples = Tensor | Shaped[np.ndarray, "n ..."]
Labels = Int[Tensor, " n"] | Int[np.ndarray, " n"]
Model = Callable[[Any], Any]
Sampler = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]
Squashing = Literal["softmax", "sigmoid", "softmax of sigmoid", "sigmoid of softmax"]
SQUASHINGS: tuple[Squashing, ...] = ("softmax", "sigmoid", "softmax of sigmoid", "sigmoid of softmax")


@dataclass(frozen=True)
class Calibration:
    """How logits z become confidences in [0, 1], with temperature T:

    softmax(z/T), sigmoid(z/T), softmax(sigmoid(z)/T), sigmoid(softmax(z)/T).

    `fitted_on` counts the models that the temperature was tuned on (0: none); results name it.
    Raises InputError for another name, or a temperature that is not positive and finite.
    """

    squashing: Squashing = "softmax"
    temperature: float = 1.0
    fitted_on: int = 0

    def __post_init__(self) -> None:
        if self.squashing not in SQUASHINGS:
            raise InputError(f"unknown squashing {self.squashing!r}; choose from {', '.join(SQUASHINGS)}")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"the temperature must be positive and finite, got {self.temperature}")

    def __call__(self, logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
        """Confidences of the logits."""
        T = self.temperature
        if self.squashing == "softmax":
            return softmax(logits / T, axis=1)
        if self.squashing == "sigmoid":
            return expit(logits / T)
        if self.squashing == "softmax of sigmoid":
            return softmax(expit(logits) / T, axis=1)
        return expit(softmax(logits, axis=1) / T)

    def __str__(self) -> str:
        return f"{self.squashing} at temperature {self.temperature:.4g}"


@dataclass(frozen=True)
class GreatScore:
    """`estimate` is the mean local score with an anytime-valid interval; `local` has one entry a sample.

    `per_class` and `per_group` hold the same for the samples of each label and each group; their intervals are not
    corrected for looking at many.  `kind` is "certificate" for a smoothed classifier, else "score"; `exact` says that
    its probabilities were taken at their word, not by bounds.
    """

    estimate: Estimate
    per_class: Mapping[int, Estimate]
    local: Float[np.ndarray, " n"]
    kind: Literal["score", "certificate"]
    sigma: float | None = None
    calibration: Calibration | None = None
    per_group: Mapping[Any, Estimate] | None = None
    exact: bool = True

    def __str__(self) -> str:
        """One sentence that says what the number is."""
        if self.kind == "certificate":
            return (
                f"mean certified L2 radius {self.estimate} of the classifier smoothed with sigma {self.sigma:g}, over "
                f"generated samples{' (its probabilities taken as exact)' if self.exact else ''}"
            )
        words = f"GREAT score {self.estimate} over generated samples: ranks models, certifies no radius"
        if self.calibration is None:
            return words
        tuned = self.calibration.fitted_on
        return f"{words} (confidences: {self.calibration}" + (f", tuned on {tuned} models)" if tuned else ")")


def great_score(
    probabilities_or_model: Model | Outputs | tuple[Outputs, Outputs],
    samples: Samples | None,
    labels: Labels,
    *,
    sigma: float | None = None,
    calibration: Calibration | None = None,
    groups: Shaped[np.ndarray, " n"] | None = None,
    level: float = 0.95,
) -> GreatScore:
    """The score of a classifier on generated `samples` with `labels`.

    Parameters
    ----------
    probabilities_or_model : a model, called on batches of samples, or its outputs (n, classes), with which `samples`
        may be None.  Outputs are probabilities, or logits when there is a `calibration`.  With `sigma`, a pair of
        lower and upper bounds of the probabilities (such as `SmoothedProbabilities.interval` gives) is taken too.
    sigma : noise that the classifier was smoothed with, in input units.  Give it only for probabilities of the
        smoothed classifier.  Single probabilities are taken as exact; where they were estimated by sampling, give
        bounds.  Not to be combined with a calibration, which would change them.
    groups : an attribute of every sample, to score by.

    Raises InputError for no sample, labels that are not whole numbers or out of range, outputs that are no array,
    outside [0, 1] or (without calibration) not summing to one, lengths that differ, or a sigma that is not positive.
    """
    if sigma is not None and not 0 < sigma < math.inf:
        raise InputError(f"sigma must be positive and finite, got {sigma}; leave it out for an unsmoothed classifier")
    if sigma is not None and calibration is not None:
        raise InputError("a calibrated classifier is no longer the mean under noise: give sigma or calibration")
    y = _labels(labels)
    scale = LARGEST if sigma is None else LARGEST * float(sigma)
    if isinstance(probabilities_or_model, tuple):
        if len(probabilities_or_model) != 2:
            raise InputError(f"bounds are a pair (lower, upper), got {len(probabilities_or_model)} arrays")
        lower, upper = (_outputs(part, samples, len(y)) for part in probabilities_or_model)
        _require_bounds(lower, upper, y, sigma)
        local = scale * _margins(lower, upper, y)
    else:
        outputs = _outputs(probabilities_or_model, samples, len(y))
        confidences = outputs if calibration is None else calibration(outputs)
        _require_confidences(confidences, y, summing=calibration is None)
        local = scale * _margins(confidences, confidences, y)
    if groups is not None and len(groups) != len(y):
        raise InputError(f"{len(y)} samples but {len(groups)} groups; give one a sample")
    return GreatScore(
        _mean(local, scale, level),
        {int(label): _mean(local[y == label], scale, level) for label in np.unique(y)},
        local,
        "score" if sigma is None else "certificate",
        sigma,
        calibration,
        None if groups is None else {g: _mean(local[groups == g], scale, level) for g in np.unique(groups).tolist()},
        not isinstance(probabilities_or_model, tuple),
    )


def sampled_great_score(
    model: Model,
    sampler: Sampler,
    *,
    generator: np.random.Generator,
    precision: float = 0.05,
    most: int = 20_000,
    sigma: float | None = None,
    calibration: Calibration | None = None,
    level: float = 0.95,
) -> GreatScore:
    """Draw samples until the interval of the score is at most `precision` wide, or `most` are drawn.

    `sampler(n, generator)` gives n labelled samples: `ClassGaussianPCA.sample`, or any generative model.  The interval
    holds at every sample size at once, so stopping when it is short is allowed.  Raises InputError as `great_score`.
    """
    if not precision > 0 or most < 1:
        raise InputError(f"a positive precision and at least one sample are wanted, got {precision} and {most}")
    outputs: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    drawn, wanted = 0, min(64, most)
    while True:
        samples, y = sampler(wanted, generator)
        outputs.append(_outputs(model, samples, len(y)))
        labels.append(_labels(y))
        drawn += wanted
        score = great_score(
            np.concatenate(outputs), None, np.concatenate(labels), sigma=sigma, calibration=calibration, level=level
        )
        if score.estimate.width <= precision or drawn >= most:
            return score
        wanted = min(drawn // 4, most - drawn)


def required_samples(eps: float, delta: float, bound: Literal["paper", "hoeffding"] = "hoeffding") -> int:
    """Samples after which the score (sigma 1) is within `eps` of its mean with probability 1 - `delta`.

    "hoeffding": (pi/4) log(2/delta) / eps^2, since a local score lies in [0, sqrt(pi/2)]; "paper": 32 e log(2/delta) /
    eps^2, a hundred times as many.  The intervals of `great_score` need no such number beforehand.
    Raises InputError unless eps > 0, 0 < delta < 1 and the bound is one of the two.
    """
    if not (eps > 0 and 0 < delta < 1):
        raise InputError(f"eps must be positive and delta in (0, 1), got {eps} and {delta}")
    constants = {"paper": 32 * math.e, "hoeffding": math.pi / 4}
    if bound not in constants:
        raise InputError(f"unknown bound {bound!r}; choose from {', '.join(constants)}")
    return math.ceil(constants[bound] * math.log(2 / delta) / eps**2)


@dataclass(frozen=True)
class CalibrationFit:
    """The calibration with the highest rank correlation, that correlation, and the one of every setting tried."""

    calibration: Calibration
    correlation: float
    tried: Mapping[tuple[Squashing, float], float]


def calibrate(
    models: Sequence[Model | Float[np.ndarray, "n classes"]],
    samples: Samples | None,
    labels: Labels,
    reference: Sequence[float] | Float[np.ndarray, " models"],
    *,
    squashings: Sequence[Squashing] = SQUASHINGS,
    temperatures: Sequence[float] | None = None,
) -> CalibrationFit:
    """Squashing and temperature for which scores of `models` (logits) rank best like `reference` distances (Spearman).

    Temperatures are 61 steps from 10^-3 to 10^3 when None; of equal correlations the one nearest temperature 1 wins.
    The correlation found is about the models it was tuned on and says nothing about how others will be ranked: judge
    it on other models.  Raises InputError for fewer than three models, or a reference of another length.
    """
    if len(models) < 3 or len(models) != len(reference):
        raise InputError(
            f"calibration ranks at least three models against as many distances, got {len(models)} and {len(reference)}"
        )
    y = _labels(labels)
    logits = [_outputs(model, samples, len(y)) for model in models]
    grid = np.geomspace(1e-3, 1e3, 61).tolist() if temperatures is None else [float(t) for t in temperatures]
    tried: dict[tuple[Squashing, float], float] = {}
    for squashing in squashings:
        for temperature in grid:
            squash = Calibration(squashing, temperature)
            scores = [float(_margins(z, z, y).mean()) for z in map(squash, logits)]
            tried[squashing, temperature] = _rank_correlation(scores, reference)
    best = max(tried, key=lambda setting: (round(tried[setting], 12), -abs(math.log(setting[1]))))
    return CalibrationFit(Calibration(*best, fitted_on=len(models)), tried[best], tried)


def _rank_correlation(scores: Sequence[float], reference: Sequence[float] | np.ndarray) -> float:
    """Spearman's; 0 where all scores are equal, which rank nothing."""
    if np.ptp(scores) == 0 or np.ptp(reference) == 0:
        return 0.0
    return float(spearmanr(scores, reference).statistic)


def _margins(
    lower: Float[np.ndarray, "n classes"], upper: Float[np.ndarray, "n classes"], y: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """max(lower_y - max_{k != y} upper_k, 0)."""
    own = np.take_along_axis(lower, y[:, None], 1)[:, 0]
    others = upper.copy()
    np.put_along_axis(others, y[:, None], -np.inf, 1)
    return np.clip(own - others.max(1), 0.0, 1.0)


def _mean(local: Float[np.ndarray, " some"], scale: float, level: float) -> Estimate:
    return anytime_mean(local, level=level, bounds=(0.0, scale))


def _labels(labels: Tensor | np.ndarray) -> Int[np.ndarray, " n"]:
    y = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if y.ndim != 1 or (len(y) and y.dtype.kind not in "iu"):
        raise InputError(f"labels are whole numbers, one a sample, got {y.dtype} of shape {y.shape}")
    if len(y) == 0:
        raise InputError("a score needs at least one sample, got none")
    return y.astype(np.int64)


@torch.no_grad()
def _outputs(given: Any, samples: Tensor | np.ndarray | None, n: int) -> Float[np.ndarray, "n classes"]:
    """What the model says, or what was given, in float64."""
    if isinstance(given, (np.ndarray, Tensor)):
        if samples is not None and len(samples) != len(given):
            raise InputError(f"outputs of {len(given)} samples, but {len(samples)} samples; pass None or the same ones")
        outputs = _array(given)
    else:
        if not callable(given):
            raise InputError(
                f"a model or its outputs as an array (n, classes) are wanted, got a {type(given).__name__}; "
                "pass np.asarray of it"
            )
        if samples is None or len(samples) == 0:
            raise InputError("a model needs samples to be called on, got none")
        if isinstance(given, nn.Module) and isinstance(samples, np.ndarray):
            samples = torch.from_numpy(samples)
        parts = range(0, len(samples), BATCH)
        outputs = np.concatenate([_array(given(samples[first : first + BATCH])) for first in parts])
    if outputs.ndim != 2 or outputs.shape[1] < 2 or len(outputs) != n:
        raise InputError(f"outputs of shape ({n}, classes) for {n} labels are wanted, got {outputs.shape}")
    if not np.isfinite(outputs).all():
        raise InputError("the model's outputs hold NaN or infinity")
    return outputs


def _array(values: Any) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return array.astype(np.float64)


def _require_classes(y: np.ndarray, classes: int) -> None:
    if y.min() < 0 or y.max() >= classes:
        raise InputError(f"labels span {y.min()} to {y.max()}, but there are {classes} classes")


def _require_bounds(lower: np.ndarray, upper: np.ndarray, y: np.ndarray, sigma: float | None) -> None:
    if sigma is None:
        raise InputError("bounds of probabilities are for a smoothed classifier: give its sigma, or probabilities")
    _require_classes(y, lower.shape[1])
    if lower.shape != upper.shape or not ((lower >= 0) & (lower <= upper) & (upper <= 1)).all():
        raise InputError("a pair of bounds must have one shape and satisfy 0 <= lower <= upper <= 1")


def _require_confidences(confidences: np.ndarray, y: np.ndarray, *, summing: bool) -> None:
    _require_classes(y, confidences.shape[1])
    hint = "for logits pass calibration=Calibration('softmax')"
    if confidences.min() < -1e-6 or confidences.max() > 1 + 1e-6:
        raise InputError(
            f"confidences must lie in [0, 1], got {confidences.min():.4g} to {confidences.max():.4g}; {hint}"
        )
    worst = float(np.abs(confidences.sum(1) - 1).max())
    if summing and worst > 1e-3:
        raise InputError(f"probabilities must sum to 1, one row is off by {worst:.3g}; {hint}")
