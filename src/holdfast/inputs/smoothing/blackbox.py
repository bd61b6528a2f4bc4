"""Denoised smoothing, and how to train the denoiser when the classifier only answers queries.

Denoised smoothing (Salman et al., 2020) puts a denoiser D before a classifier f that was never trained on noise and
smooths the two together, so f need not be touched.  D is trained so that f's answer survives the noise:

    l(theta) = E CE(f(D_theta(x + sigma e)), y(x)),    y(x) = argmax f(x)   (no true label is used)

Zhang et al. (2022) train it with queries alone.  The gradient at f's input z is guessed from differences
(`zeroth_order`) and enters as the surrogate <z, g>, g held fixed:

    ZO-DS       z = D(x + sigma e)                 black box f                 directions: d is large
    ZO-AE-DS    z = encoder(D(x + sigma e))        black box f o decoder       coordinates: d_z is small

The auto-encoder is trained first, by reconstruction; then the decoder is frozen: it belongs to the black box.  A query
is one example shown to f, and their number is a budget that is never exceeded.  Certification is the smoothing core's;
its guarantee is about f o D (o the auto-encoder) under noise, and does not rest on how well training went.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.progress import track
from holdfast.core.seeds import torch_generator
from holdfast.inputs.smoothing.dense import DenseDenoiser
from holdfast.inputs.smoothing.gaussian import Smoothed, SmoothedCertificate
from holdfast.inputs.smoothing.queries import AnswerLoss, BlackBox, Scored, loss_named
from holdfast.inputs.smoothing.stopping import Stopping
from holdfast.inputs.smoothing.zeroth_order import (
    FiniteDifferences,
    ZerothOrder,
    linear_share,
    zeroth_order_gradient,
)
from holdfast.noise.matching import fit as fit_by_samples

__all__ = ["BlackBoxDefence", "DenoisedSmoothing", "Reconstruction", "ZerothOrder", "zeroth_order_gradient"]

#: Rows that are asked, three queries each, whether differences at this mu are slopes at all.
_PROBED = 64
_SLOPE = 0.5
#: Examples a call when the clean answers are asked.
_ANSWERS = 4096


class DenoisedSmoothing(nn.Module):
    """model(denoiser(x)), to be smoothed at `sigma`: `smoothed(classes).certify(x)`.

    `model` is an `nn.Module`, through which gradients flow, or any callable array -> scores, through which none do
    (wrap it as `ZerothOrder` to guess them).  `sigma` is in the units of x.
    """

    def __init__(self, denoiser: nn.Module, model: nn.Module | Callable[..., Any], sigma: float) -> None:
        super().__init__()
        if not (sigma > 0 and math.isfinite(sigma)):
            raise InputError(f"sigma must be positive and finite, got {sigma}")
        self.denoiser = denoiser
        self.model = model if isinstance(model, nn.Module) else BlackBox(model)
        self.sigma = float(sigma)

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Tensor:
        return self.model(self.denoiser(x))

    def smoothed(self, classes: int, batch: int = 1000) -> Smoothed:
        """The smoothed classifier, as it stands: put it in eval mode first."""
        return Smoothed(self, self.sigma, classes, batch)


class Reconstruction(nn.Module):
    """Squared error of model(x + sigma e) to x, mean over coordinates: the pre-training loss; sigma may be 0."""

    def __init__(self, sigma: float = 0.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *shape"],
        *,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        return (model(_noisy(x, self.sigma, generator)) - x).square().flatten(1).mean(1)


class BlackBoxDefence(BaseEstimator):
    """Train a denoiser (and an encoder) before a model that only answers queries, and certify the whole.

    Parameters
    ----------
    model : callable array -> scores, e.g. a scikit-learn classifier's `predict_proba`, or an `nn.Module`
        NumPy arrays of the shape of X's batches go in; a module gets tensors, without gradients.
    encoder, decoder : nn.Module or None
        Both or neither.  With them (ZO-AE-DS) queries go along the coordinates of the code; without (ZO-DS) along
        random directions of the input.  They are copied, trained by reconstruction, and the decoder is then frozen.
    denoiser : nn.Module or None
        Same shape out as in; None takes `dense.DenseDenoiser` for X of shape (n, features).
    sigma : float
        Noise, in units of X.
    query_budget : int
        Most queries that `fit` may spend.
    method : "cge", "rge", "autograd" or None
        None: "cge" with an auto-encoder, "rge" without.  "autograd" takes true gradients of an `nn.Module` (one query
        an example and step), to see what the missing gradients cost.
    directions, mu : see `zeroth_order.FiniteDifferences`
        mu is a length in the space that is asked: the code, or the input.
    loss : "cross-entropy", "squared" or "vote"
        "squared" is for regression and reconstruction models, against their clean answer; "vote" for models that answer
        labels alone: it counts changed labels, and needs a mu as long as the way to the decision boundary.
    scores : "probabilities" or "logits"
        What the model's scores are; used by "cross-entropy" alone.
    reconstruction_weight : float
        Weight of the denoiser's own squared error, which costs no query, beside the loss above.
    reconstruction_steps, denoiser_steps : int
        Steps of pre-training of the auto-encoder on clean X and of the denoiser on noisy X.  The paper finds that the
        latter traps what follows, so it is 0.
    batch, lr, random_state : examples a step, Adam's first step size (a tenth in the second half), and the seed.

    Attributes
    ----------
    denoiser_, encoder_, decoder_ : trained copies, in eval mode.
    queries_ : int, what `fit` spent.  Certificates count their own draws.
    classes_ : columns of the scores, 0 to K - 1; not with "squared".
    losses_ : (steps,) mean loss over the points that were asked, near enough the loss at z.
    """

    # scikit-learn wants every check of a setting in `fit`, none here.
    def __init__(
        self,
        model: Any,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        denoiser: nn.Module | None = None,
        sigma: float = 0.25,
        query_budget: int = 1_000_000,
        *,
        method: str | None = None,
        directions: int | None = None,
        mu: float = 5e-3,
        loss: str = "cross-entropy",
        scores: str = "probabilities",
        reconstruction_weight: float = 0.0,
        reconstruction_steps: int = 2000,
        denoiser_steps: int = 0,
        batch: int = 64,
        lr: float = 1e-3,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.decoder = decoder
        self.denoiser = denoiser
        self.sigma = sigma
        self.query_budget = query_budget
        self.method = method
        self.directions = directions
        self.mu = mu
        self.loss = loss
        self.scores = scores
        self.reconstruction_weight = reconstruction_weight
        self.reconstruction_steps = reconstruction_steps
        self.denoiser_steps = denoiser_steps
        self.batch = batch
        self.lr = lr
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> BlackBoxDefence:
        """Train on unlabelled X, (n, *shape); `y` is ignored, the model's own clean answers stand in for labels.

        Raises InputError when a setting is out of range, the decoder does not give back X's shape, the model answers
        labels or scores of another kind than announced, the budget does not last for one batch, or the model is
        piecewise constant at this mu.
        """
        self._check_settings()
        self._copy_networks(np.asarray(X))
        x = self._tensor(X)
        self._pretrain(x)
        box = BlackBox(self.model, most=self.query_budget)
        loss = loss_named(self.loss, self.scores)
        cost = self._cost(x)
        fixed = len(x) + (3 * min(_PROBED, len(x)) if self._is_probed else 0)
        size = min(self.batch, len(x))
        steps = (self.query_budget - fixed) // (size * cost)
        if steps < 1:
            raise InputError(
                f"query_budget={self.query_budget} does not last for one batch: {fixed} queries find the clean answers "
                f"and try the model, and a batch of {size} takes {size * cost}; raise it, or lower batch or directions"
            )
        clean = box.split(x, _ANSWERS)
        target = loss.target(clean)
        if self.loss != "squared":
            self.classes_ = np.arange(loss.classes(clean))
        if self._is_probed:
            self._refuse_jumps(box, x)
        self._train(box, loss, x, target, int(steps), size)
        self.queries_ = box.queries
        return self

    def certify(
        self,
        X: Any,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 1e-3,
        stop: Stopping | None = None,
        generator: torch.Generator | None = None,
        batch: int = 1000,
    ) -> SmoothedCertificate:
        """Certificates of the smoothed defended model; see `gaussian.Smoothed.certify`.  A draw is a query."""
        return self._smoothed(batch).certify(self._tensor(X), n0, n, alpha, stop, generator)

    def predict(
        self, X: Any, n: int = 1000, alpha: float = 1e-3, generator: torch.Generator | None = None
    ) -> np.ndarray:
        """The smoothed label of every row, -1 where two are too close to tell; with "squared", f(D(x))."""
        check_is_fitted(self, "denoiser_")
        if self.loss == "squared":
            with torch.no_grad():
                return self._defended()(self._tensor(X)).cpu().numpy()
        return self._smoothed(1000).predict(self._tensor(X), n, alpha, generator).numpy()

    def _smoothed(self, batch: int) -> Smoothed:
        check_is_fitted(self, "denoiser_")
        if self.loss == "squared":
            raise InputError("votes certify classifiers; this defence was fitted with loss='squared'")
        return self._defended().smoothed(len(self.classes_), batch)

    def _defended(self) -> DenoisedSmoothing:
        parts = [part for part in (self.denoiser_, self.encoder_, self.decoder_) if part is not None]
        answering = Scored(BlackBox(self.model), loss_named(self.loss, self.scores), len(getattr(self, "classes_", ())))
        return DenoisedSmoothing(nn.Sequential(*parts), answering, self.sigma)

    @property
    def _is_probed(self) -> bool:
        return self.loss != "vote" and self.method != "autograd"

    @property
    def _method(self) -> str:
        return self.method if self.method is not None else ("rge" if self.encoder is None else "cge")

    def _differences(self) -> FiniteDifferences:
        return FiniteDifferences("cge" if self._method == "cge" else "rge", self.directions, self.mu)

    def _check_settings(self) -> None:
        if (self.encoder is None) != (self.decoder is None):
            raise InputError("give an encoder and a decoder, or neither")
        if self._method not in ("cge", "rge", "autograd"):
            raise InputError(f"method must be 'cge', 'rge', 'autograd' or None, got {self.method!r}")
        if self._method == "autograd" and not isinstance(self.model, nn.Module):
            raise InputError("method='autograd' needs an nn.Module with gradients; a black box takes 'cge' or 'rge'")
        if self._method == "autograd" and self.loss == "vote":
            raise InputError("votes have no gradient; method='autograd' needs loss='cross-entropy' or 'squared'")
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise InputError(f"sigma must be positive and finite, got {self.sigma}")
        if self.batch < 1 or not self.lr > 0 or not self.reconstruction_weight >= 0:
            raise InputError(
                "batch must be at least 1, lr positive and reconstruction_weight not negative, got "
                f"{self.batch}, {self.lr} and {self.reconstruction_weight}"
            )
        if self.reconstruction_steps < 0 or self.denoiser_steps < 0:
            raise InputError(f"steps cannot be negative, got {self.reconstruction_steps} and {self.denoiser_steps}")
        self._differences()
        loss_named(self.loss, self.scores)

    def _copy_networks(self, X: np.ndarray) -> None:
        if X.ndim < 2 or len(X) == 0:
            raise InputError(f"X must have shape (n, *shape) with at least one row, got {X.shape}")
        denoiser = self.denoiser
        if denoiser is None:
            if X.ndim != 2:
                raise InputError(f"X has shape {X.shape}; give a denoiser for such data, the default takes flat rows")
            generator = torch_generator(self.random_state, "black box", "denoiser")
            denoiser = DenseDenoiser(X.shape[1], generator=generator)
        if next(denoiser.parameters(), None) is None:
            raise InputError(f"the denoiser, {type(denoiser).__name__}, has no parameters to train")
        self.denoiser_ = copy.deepcopy(denoiser)
        self.encoder_, self.decoder_ = copy.deepcopy(self.encoder), copy.deepcopy(self.decoder)
        self.denoiser_.eval()
        with torch.no_grad():
            one = self._tensor(X[:1])
            denoised = self.denoiser_(one)
            _same_shape("denoiser", denoised, one)
            if self.encoder_ is not None and self.decoder_ is not None:
                _same_shape("decoder", self.decoder_.eval()(self.encoder_.eval()(denoised)), one)

    def _tensor(self, X: Any) -> Tensor:
        parameter = next(self.denoiser_.parameters())
        x = torch.as_tensor(X if isinstance(X, Tensor) else np.asarray(X)).to(parameter.device, parameter.dtype)
        if not bool(torch.isfinite(x).all()):
            raise InputError("X holds NaN or infinite values; remove or mend them first")
        return x

    def _pretrain(self, x: Tensor) -> None:
        def reconstruct(net: nn.Module, sigma: float, steps: int, name: str) -> None:
            stream = torch_generator(self.random_state, "black box", name)
            fit_by_samples(net, Reconstruction(sigma), x, steps=steps, batch=self.batch, lr=self.lr, generator=stream)

        if self.encoder_ is not None and self.decoder_ is not None and self.reconstruction_steps:
            both = nn.Sequential(self.encoder_, self.decoder_)
            reconstruct(both, 0.0, self.reconstruction_steps, "auto-encoder")
        if self.denoiser_steps:
            reconstruct(self.denoiser_, self.sigma, self.denoiser_steps, "pre-training")

    def _code(self, denoised: Tensor) -> Tensor:
        return denoised if self.encoder_ is None else self.encoder_(denoised)

    def _input(self, z: Tensor) -> Tensor:
        return z if self.decoder_ is None else self.decoder_(z)

    def _cost(self, x: Tensor) -> int:
        """Queries of one example in one step."""
        if self._method == "autograd":
            return 1
        with torch.no_grad():
            return self._differences().queries(self._code(x[:1]).numel())

    def _refuse_jumps(self, box: BlackBox, x: Tensor) -> None:
        stream = torch_generator(self.random_state, "black box", "probe")
        with torch.no_grad():
            z = self._code(self.denoiser_(_noisy(x[:_PROBED], self.sigma, stream)))
        share = linear_share(lambda points: box(self._input(points)), z, self.mu, stream)
        if share < _SLOPE:
            raise InputError(
                f"the second half of a step of length mu={self.mu:g} repeats only {share:.2f} of the first: at this mu "
                "the model is piecewise constant or too coarse (trees, votes, rounded scores), so differences are no "
                "gradient; use a larger mu, a model with continuous scores, or loss='vote'"
            )

    def _train(self, box: BlackBox, loss: AnswerLoss, x: Tensor, target: Tensor, steps: int, size: int) -> None:
        stream = torch_generator(self.random_state, "black box", "training")
        parts = [part.train() for part in (self.denoiser_, self.encoder_) if part is not None]
        trained = [parameter for part in parts for parameter in part.parameters()]
        if self.decoder_ is not None:
            self.decoder_.requires_grad_(False)
        optimizer = torch.optim.Adam(trained, lr=self.lr)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [max(1, steps // 2)])
        self.losses_ = np.empty(steps)
        order = torch.empty(0, dtype=torch.int64)
        for step in track(range(steps), "training before the black box", steps):
            while len(order) < size:
                order = torch.cat([order, torch.randperm(len(x), generator=stream)])
            index, order = order[:size].to(x.device), order[size:]
            denoised = self.denoiser_(_noisy(x[index], self.sigma, stream))
            # Votes are not probed beforehand, so the first batch must show a difference; later ones need not.
            strict = step == 0 and self.loss == "vote"
            value, surrogate = self._stability(box, loss, self._code(denoised), target[index], stream, strict)
            if self.reconstruction_weight:
                surrogate = surrogate + self.reconstruction_weight * (denoised - x[index]).square().mean()
            # Not backward(): with method="autograd" that would leave gradients in the caller's model.
            gradients = torch.autograd.grad(surrogate, trained, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
            self.losses_[step] = value
        for part in parts:
            part.eval()
        if not np.isfinite(self.losses_).all():
            raise InputError(f"training diverged (loss {self.losses_[-1]}); use a smaller lr than {self.lr:g}")

    def _stability(
        self, box: BlackBox, loss: AnswerLoss, z: Tensor, target: Tensor, stream: torch.Generator, strict: bool
    ) -> tuple[float, Tensor]:
        """Mean loss, and what to differentiate for its gradient."""
        if self._method == "autograd":
            value = loss.loss(box.with_gradient(self._input(z)), target).mean()
            return value.item(), value

        def ask(points: Tensor, target: Tensor) -> Tensor:
            return loss.loss(box(self._input(points)), target)

        gradient, mean = self._differences().gradient(ask, z, stream, (target,), refuse_constant=strict)
        return float(mean.mean()), (z * gradient).flatten(1).sum(1).mean()


def _same_shape(name: str, given: Tensor, wanted: Tensor) -> None:
    if given.shape != wanted.shape:
        raise InputError(
            f"the {name} gives {tuple(given.shape[1:])} an example and the model takes {tuple(wanted.shape[1:])}; "
            f"change the {name}'s last layer"
        )


def _noisy(x: Tensor, sigma: float, generator: torch.Generator | None) -> Tensor:
    if sigma == 0:
        return x
    device = x.device if generator is None else generator.device
    return x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
