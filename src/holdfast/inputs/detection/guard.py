"""A model that abstains on what does not look like its data, at a false-alarm rate that is guaranteed.

A guard answers where the score of an input reaches a threshold and abstains elsewhere.  The threshold is an order
statistic of the scores s_(1) <= ... <= s_(n) of n held-out typical inputs; abstaining below s_(k), for a new input from
the same source (exchangeable with the n),

    marginal          P(false alarm) <= k / (n + 1) <= level,    k = floor(level (n + 1))
    with confidence   P(false-alarm rate <= level) >= confidence, the largest k with P(Bin(n, level) >= k) >= confidence

The first averages over calibration sets: the rate of one guard scatters around it (Vovk, Gammerman and Shafer, 2005).
The second holds for the guard in hand, except with probability 1 - confidence (Wilks, 1941; Vovk, 2012).  Ties and any
distribution are allowed.  Neither says anything about what is not typical: how much of that is caught depends on the
detector.  Neither holds when the typical inputs themselves drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor, nn

from holdfast.analysis.conformal import conformal_quantile
from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson
from holdfast.inputs.detection.scores import LOGIT_SCORES
from holdfast.inputs.features import Features, Pool, evaluating

Scores = Float[np.ndarray, " n"]


class Guarded(NamedTuple):
    """What a guard says of every input."""

    logits: Float[Tensor, "batch classes"]
    answered: Bool[Tensor, " batch"]  # False: the guard abstains, and the logits should not be used
    score: Float[Tensor, " batch"]  # float64, higher more typical

    @property
    def prediction(self) -> Int[Tensor, " batch"]:
        """The predicted class, -1 where the guard abstains."""
        return torch.where(self.answered, self.logits.argmax(1), -1)


@dataclass(frozen=True)
class Guarantee:
    """What was promised, on how many held-out typical inputs, and the order statistic that keeps it."""

    level: float
    confidence: float | None
    n: int
    rank: int

    def __str__(self) -> str:
        if self.confidence is None:
            return (
                f"A typical input is refused with probability at most {self.level:.3g}, on average over calibration "
                f"sets of {self.n}."
            )
        return (
            f"With confidence {self.confidence:.3g} over the {self.n} calibration inputs, this guard refuses at most "
            f"{self.level:.3g} of typical inputs."
        )


class Guard(nn.Module):
    """`model` that abstains where `detector` finds an input untypical; calibrate before use.

    Parameters
    ----------
    model : nn.Module, inputs (batch, *shape) to logits (batch, classes)
    detector :
        the name of a score of logits (`holdfast.inputs.detection.scores.LOGIT_SCORES`);
        an estimator with `score_samples(array)`, higher more typical: those here and scikit-learn's;
        a pytorch-ood detector, whose outlier score (of the logits or features at hand, if it takes them) is negated;
        or any function of the inputs to scores (batch,), higher more typical.
    level : allowed share of typical inputs that are refused
    confidence : None for the marginal guarantee of the module, or a probability for the one that holds for this guard
    layer : when given, the detector gets the features at this layer, from the same forward pass as the logits
    at, pool : which features, as for `Features`

    `threshold` is a buffer, so it is saved with the weights; the detector is not.  It stays in float64 under `half` and
    the like, as rounding would break the promise.  A NaN score abstains.  Raises InputError for a model that is no
    nn.Module, a detector that is none of these, and a level or confidence outside (0, 1).
    """

    threshold: Tensor

    def __init__(
        self,
        model: Any,
        detector: str | Any,
        level: float = 0.05,
        *,
        confidence: float | None = None,
        layer: str | None = None,
        at: Literal["output", "input"] = "input",
        pool: Pool = "mean",
    ):
        super().__init__()
        _check_promise(level, confidence)
        if not isinstance(model, nn.Module):
            raise InputError(
                f"a guard needs a torch.nn.Module, whose evaluation mode it sets, got {type(model).__name__}; wrap a "
                "function in a module whose forward calls it"
            )
        self.model: nn.Module = model
        self.level = level
        self.confidence = confidence
        self.guarantee: Guarantee | None = None
        self._features = None if layer is None else Features(model, (layer,), pool=pool, at=at)
        # In a tuple: a pytorch-ood detector or a score that is a module must not be registered and trained along.
        self._detector = (detector,)
        self._score = _score_function(detector, self._features is not None)
        self.register_buffer("threshold", torch.tensor(math.nan, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Guard:
        """The threshold goes along to another device, not to another type."""
        exact = self.threshold
        super()._apply(fn, recurse)
        self.threshold = exact.to(self.threshold.device)
        return self

    @property
    def detector(self) -> Any:
        """As given."""
        return self._detector[0]

    @torch.no_grad()
    def calibrate(self, x: Float[Tensor, "n *shape"], batch: int = 512) -> Guard:
        """Set the threshold on typical inputs that trained neither the model nor the detector.

        Raises InputError when they are too few for the promise (saying how many it takes) or a score is NaN.
        """
        scores = np.concatenate([self._outputs(part)[1] for part in x.split(batch)])
        threshold, self.guarantee = calibrated_threshold(scores, self.level, self.confidence)
        self.threshold.fill_(threshold)
        return self

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Guarded:
        """Logits, whether they may be used, and the score.  Raises InputError before calibration."""
        if bool(self.threshold.isnan()):
            raise InputError("the guard has no threshold yet: call calibrate with typical inputs that trained nothing")
        logits, scores = self._outputs(x)
        score = torch.from_numpy(scores).to(logits.device)
        return Guarded(logits, score >= self.threshold.to(logits.device), score)

    @torch.no_grad()
    def refused(self, x: Float[Tensor, "n *shape"], level: float = 0.95, batch: int = 512) -> Estimate:
        """Share of `x` on which the guard abstains, exact interval: false alarms on fresh typical inputs."""
        answered = torch.cat([self(part).answered for part in x.split(batch)])
        return clopper_pearson(int((~answered).sum()), len(answered), level)

    def _outputs(self, x: Tensor) -> tuple[Tensor, np.ndarray]:
        with evaluating(self.model):
            if self._features is None:
                logits, seen = self.model(x), x
            else:
                (seen,), logits = self._features.tensors(x)
            scores = self._score(seen, logits)
        if scores.shape != (len(x),):
            raise InputError(
                f"the detector gave scores of shape {scores.shape} for {len(x)} inputs; one each is needed"
            )
        return logits, scores


def calibrated_threshold(scores: Scores, level: float, confidence: float | None = None) -> tuple[float, Guarantee]:
    """The largest threshold that keeps the promise of the module on these held-out typical scores.

    Raises InputError when the scores are too few or hold NaN.
    """
    _check_promise(level, confidence)
    if np.isnan(scores).any():
        raise InputError(f"{int(np.isnan(scores).sum())} of the calibration scores are NaN; mend the detector first")
    n = len(scores)
    if confidence is None:
        threshold = -conformal_quantile(-scores, level) if n else -math.inf
        rank = math.floor(level * (n + 1) + 1e-9)
    else:
        ranks = np.arange(1, n + 1)
        rank = int((stats.binom.sf(ranks - 1, n, level) >= confidence).sum())
        threshold = float(np.partition(scores, rank - 1)[rank - 1]) if rank else -math.inf
    if rank == 0:
        raise InputError(
            f"{n} typical inputs cannot promise a false-alarm rate of {level:g}"
            f"{'' if confidence is None else f' with confidence {confidence:g}'}; it takes {needed(level, confidence)}"
        )
    return float(threshold), Guarantee(level, confidence, n, rank)


def needed(level: float, confidence: float | None = None) -> int:
    """Fewest calibration inputs with which the promise can be kept by a guard that abstains at all."""
    _check_promise(level, confidence)
    if confidence is None:
        return math.ceil(1 / level - 1 - 1e-9)
    return math.ceil(math.log1p(-confidence) / math.log1p(-level) - 1e-9)


def _check_promise(level: float, confidence: float | None) -> None:
    if not 0 < level < 1:
        raise InputError(f"level is the share of typical inputs that may be refused, in (0, 1); got {level}")
    if confidence is not None and not 0 < confidence < 1:
        raise InputError(f"confidence must lie in (0, 1), or be None for the marginal guarantee; got {confidence}")


def _score_function(detector: Any, on_features: bool) -> Callable[[Tensor, Tensor], Scores]:
    """(inputs or features, logits) to scores, higher more typical, for every kind of detector."""
    if isinstance(detector, str):
        if detector not in LOGIT_SCORES:
            raise InputError(f"no score of logits is called {detector!r}; there are {', '.join(LOGIT_SCORES)}")
        score = LOGIT_SCORES[detector]
        return lambda seen, logits: score(_array(logits))
    if hasattr(detector, "score_samples"):
        return lambda seen, logits: _array(detector.score_samples(_array(seen)))
    if any(base.__module__.partition(".")[0] == "pytorch_ood" for base in type(detector).__mro__):
        if on_features:
            return lambda seen, logits: -_array(detector.predict_features(seen))
        if hasattr(detector, "predict_logits"):
            return lambda seen, logits: -_array(detector.predict_logits(logits))
        return lambda seen, logits: -_array(detector.predict(seen))
    if callable(detector):
        return lambda seen, logits: _array(detector(seen))
    raise InputError(
        f"{type(detector).__name__} is no detector: give the name of a score of logits, something with score_samples, "
        "a pytorch-ood detector or a function"
    )


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
