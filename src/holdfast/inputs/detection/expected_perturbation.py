"""Expected perturbation score: adversarial inputs by how a diffusion model would move them (Zhang et al., 2023).

With x_t = s(t) x + sqrt(1 - s(t)²) ε on the variance-preserving path and a model of the score ∇ log p_t,

    S(x) = 1/T Σ_i  ∇ log p_{t_i}(x_{t_i}),   fresh ε at every level t_i,

has the shape of x.  An input is compared with natural ones R by the squared maximum mean discrepancy of the single
point S(x) and the sample {S(r)}; the score is its negative, so that higher is more natural.  For data N(μ, τ² I) and
their exact score, E S(x) = -(x - μ) mean_i s_i / (s_i² τ² + 1 - s_i²): linear in x - μ, and averaged over levels.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.detection.mmd import DeepKernel, GaussianKernel, Kernel, fit_kernel, mmd_to_reference
from holdfast.noise.schedule import VP

ScoreFunction = Callable[[Tensor, Tensor], Tensor]

#: The authors' levels for small images.
LEVELS = tuple(step / 1000 for step in range(1, 21))
SMALLEST_REFERENCE = 20


class ExpectedPerturbationScore(BaseEstimator):
    """Detector of adversarial inputs by the expected score of perturbed copies.

    Parameters
    ----------
    score_fn : callable (x_t, t) -> scores of the shape of x_t
        Gets float32 tensors (batch, *shape) and (batch,); for a denoiser of this package, `PathScore(denoiser, VP())`.
    levels : times in (0, 1]
    kernel : "gaussian", "deep" or a DeepKernel
        A deep kernel is learnt by `fit_kernel`, on natural inputs and on attacked ones of a *known* attack.
    reference_size : natural inputs that new ones are compared with, at least 20
    repeats : draws of ε at every level
    valid : range of the inputs, that of the data the score model was trained on
    schedule : the path of the score model
    contamination : share of the reference that `predict` would call not natural
    batch, device : how many noisy inputs `score_fn` gets at once, and where
    random_state : seed of the noise and of the choice of references

    The noise of an input depends on `random_state` and its own values only, so an input has one score, whatever it is
    scored with.

    Attributes
    ----------
    reference_ : (references, features) float64, S of the natural inputs
    kernel_ : the kernel in use
    offset_ : threshold of `predict`
    """

    def __init__(
        self,
        score_fn: ScoreFunction,
        levels: Sequence[float] | np.ndarray = LEVELS,
        kernel: str | DeepKernel = "gaussian",
        reference_size: int = 500,
        repeats: int = 1,
        valid: tuple[float, float] = (-1.0, 1.0),
        schedule: VP = VP(),  # noqa: B008  # frozen
        contamination: float = 0.05,
        batch: int = 512,
        device: str = "cpu",
        random_state: int = 0,
    ):
        self.score_fn = score_fn
        self.levels = levels
        self.kernel = kernel
        self.reference_size = reference_size
        self.repeats = repeats
        self.valid = valid
        self.schedule = schedule
        self.contamination = contamination
        self.batch = batch
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: Any = None) -> ExpectedPerturbationScore:
        """Remember S of `reference_size` natural inputs (all, if fewer), drawn at random; `y` is ignored."""
        self.__dict__.pop("_shape", None)
        x = self._checked(X)
        if min(len(x), self.reference_size) < SMALLEST_REFERENCE:
            raise InputError(
                f"the reference needs at least {SMALLEST_REFERENCE} natural inputs, got {len(x)} inputs and "
                f"reference_size {self.reference_size}"
            )
        chosen = numpy_generator(self.random_state, "eps", "reference").permutation(len(x))[: self.reference_size]
        self._set_reference(self._transformed(x[np.sort(chosen)]))
        return self

    def fit_kernel(
        self,
        X_natural: ArrayLike | Tensor,
        X_adversarial: ArrayLike | Tensor,
        *,
        epochs: int = 200,
        batch: int = 128,
        lr: float = 2e-4,
    ) -> ExpectedPerturbationScore:
        """Learn the deep kernel from natural inputs and attacked ones (the authors': FGSM); none may be test data."""
        check_is_fitted(self, "reference_")
        if isinstance(self.kernel, str) and self.kernel != "deep":
            raise InputError(f'only a deep kernel is learnt; build with kernel="deep", not {self.kernel!r}')
        natural, adversarial = (
            self._transformed(self._checked(X)).flatten(1).float() for X in (X_natural, X_adversarial)
        )
        generator = torch_generator(self.random_state, "eps", "kernel")
        start = (
            DeepKernel.perceptron(natural.shape[1], generator=generator)
            if isinstance(self.kernel, str)
            else copy.deepcopy(self.kernel)
        )
        fit_kernel(start, natural, adversarial, epochs=epochs, batch=batch, lr=lr, generator=generator)
        self.kernel_: Kernel = start.double()
        self._set_offset()
        return self

    def transform(self, X: ArrayLike | Tensor) -> Float[np.ndarray, "n *shape"]:
        """S(x) of every input, of its shape, as float64."""
        return self._transformed(self._checked(X)).numpy()

    def score_samples(self, X: ArrayLike | Tensor) -> Float[np.ndarray, " n"]:
        """-MMD² of every input against the natural ones; higher is more natural."""
        check_is_fitted(self, "reference_")
        return self._scored(self._transformed(self._checked(X)).flatten(1))

    def predict(self, X: ArrayLike | Tensor) -> np.ndarray:
        """+1 for inputs that look natural, -1 for others; shape (n,)."""
        return np.where(self.score_samples(X) >= self.offset_, 1, -1)

    def _scored(self, points: Tensor) -> Float[np.ndarray, " n"]:
        with torch.no_grad():
            kernel = self._kernel()
            parts = [mmd_to_reference(part, self._reference, kernel) for part in points.split(2048)]
        return -torch.cat(parts).numpy()

    def _set_reference(self, scores: Tensor) -> None:
        self._reference = scores.flatten(1)
        self.reference_ = self._reference.numpy()
        self.n_features_in_ = self._reference.shape[1]
        self._shape = tuple(scores.shape[1:])
        self.__dict__.pop("kernel_", None)
        if self.kernel == "gaussian":
            self.kernel_ = GaussianKernel(self._reference)
            self._set_offset()
        elif isinstance(self.kernel, str) and self.kernel != "deep":
            raise InputError(f'the kernel must be "gaussian", "deep" or a DeepKernel, got {self.kernel!r}')

    @torch.no_grad()
    def _set_offset(self) -> None:
        """Threshold at a quantile of what every reference scores against the others."""
        values = self._kernel()(self._reference, self._reference)
        others = (values.sum(1) - values.diagonal()) / (len(values) - 1)
        scores = 2 * others - 1 - values.mean()
        self.offset_ = float(torch.quantile(scores, self.contamination))

    def _kernel(self) -> Kernel:
        if not hasattr(self, "kernel_"):
            raise InputError("a deep kernel has to be learnt first: call fit_kernel with natural and attacked inputs")
        return self.kernel_

    @torch.no_grad()
    def _transformed(self, x: Tensor) -> Tensor:
        levels = torch.as_tensor(np.asarray(self.levels, dtype=np.float32)).repeat(self.repeats)
        scale, sigma = self.schedule.scale(levels), self.schedule.sigma(levels)
        per_input = len(levels)
        parts = []
        for part in x.split(max(1, self.batch // per_input)):
            noise = torch.stack([self._noise(example, per_input) for example in part])
            noisy = _per_level(scale, part) * (part[:, None] + _per_level(sigma, part) * noise)
            at = noisy.flatten(0, 1).to(self.device)
            found = self.score_fn(at, levels.repeat(len(part)).to(self.device))
            if found.shape != at.shape:
                raise InputError(
                    f"score_fn gave {tuple(found.shape)} for inputs {tuple(at.shape)}; a score must have their shape"
                )
            parts.append(found.double().cpu().reshape(noisy.shape).mean(1))
        return torch.cat(parts)

    def _noise(self, example: Tensor, count: int) -> Tensor:
        # Keyed by the input: as fresh as any, and the same whatever else is scored with it.
        key = hashlib.blake2b(example.numpy().tobytes(), digest_size=8).hexdigest()
        return torch.randn(count, *example.shape, generator=torch_generator(self.random_state, "eps", key))

    def _checked(self, X: ArrayLike | Tensor) -> Tensor:
        levels = np.asarray(self.levels, dtype=np.float64)
        if levels.ndim != 1 or not len(levels) or not ((levels > 0) & (levels <= 1)).all() or self.repeats < 1:
            raise InputError(f"levels must lie in (0, 1] and repeats be at least 1, got {levels} and {self.repeats}")
        x = (X.detach().cpu() if isinstance(X, Tensor) else torch.from_numpy(np.asarray(X))).float().contiguous()
        if x.ndim < 2 or len(x) == 0:
            raise InputError(f"inputs must have shape (examples, ...), at least one example, got {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            raise InputError("inputs hold NaN or infinite values; a detector cannot place them")
        low, high = self.valid
        slack = 1e-4 * (high - low)
        if x.min() < low - slack or x.max() > high + slack:
            raise InputError(
                f"inputs span [{x.min():.4g}, {x.max():.4g}] but the score model takes [{low:g}, {high:g}]; rescale "
                "them, or say in `valid` what the model was trained on"
            )
        if hasattr(self, "_shape") and tuple(x.shape[1:]) != self._shape:
            raise InputError(f"fitted on inputs of shape {self._shape}, got {tuple(x.shape[1:])}")
        return x


def _per_level(values: Tensor, examples: Tensor) -> Tensor:
    return values.reshape(1, -1, *(1,) * (examples.ndim - 1))
