"""Representations that do not change along a diffusion path (rRCM; Lei et al., 2025), and classifiers on top of them.

Levels fall from sigma_max to sigma_min (Karras et al., 2022),

    t_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho,    i = 0 .. N-1,

the encoder sees x / sqrt(t^2 + sigma_data^2) and log t, and pre-training adds two terms, both InfoNCE with the other
examples of the batch as negatives, and both without gradient into their targets:

    semantic       NCE(h(x' + t z), H(x'' + t z)) + NCE(h(x'' + t z), H(x' + t z))     t = t_{N-1}, H: moving average
    consistency    NCE(u(x + t_i z, t_i), u(x + t_{i+1} z, t_{i+1}))                   the same z: two points of a path

u is projector o encoder and h = predictor o u.  A classifier then reads the representation at the level of the noise it
is smoothed with, in one forward pass a draw, where denoising first takes at least two.

Everything public here is in the units of the data: `data_range` says which interval becomes [-1, 1], the units of the
levels.  Noise of sigma on pixels in [0, 1] is the level 2 sigma.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.progress import track
from holdfast.inputs.smoothing.levels import LevelSchedule, Units

Augment = Callable[[Tensor, torch.Generator | None], Tensor]

#: How fast the moving average slows down: tanh(_EMA_RAMP progress / 2) of the way.
_EMA_RAMP = 10.0


def info_nce(
    online: Float[Tensor, "batch features"], target: Float[Tensor, "batch features"], tau: float = 0.2
) -> Float[Tensor, " batch"]:
    """-log softmax_j(<a_i, b_j> / tau) at j = i, for a and b of unit length; the target gets no gradient.

    Raises InputError for one example, which has no negatives.
    """
    if len(online) < 2:
        raise InputError("a contrast needs negatives: give batches of at least 2 examples (drop a short last batch)")
    a, b = F.normalize(online, dim=1), F.normalize(target.detach(), dim=1)
    return F.cross_entropy(a @ b.T / tau, torch.arange(len(a), device=a.device), reduction="none")


class Terms(NamedTuple):
    """Both parts of the pre-training loss, per example."""

    semantic: Float[Tensor, " batch"]
    consistency: Float[Tensor, " batch"]


class NoiseConsistencyPretrainer(nn.Module):
    """Pre-train an encoder so that points of one diffusion path get one representation.

    Parameters
    ----------
    encoder : (x, log_level) -> features; `level_conditioning.LevelConditioned` makes one of a plain module.
    projector, predictor : features -> projection -> projection.
    levels : LevelSchedule
    tau : temperature of the contrast.
    ema : decay of the target's moving average, from the first to the last step.
    sigma_data : spread of clean data in units of the levels, for the encoder's input scale.
    data_range : the interval of the data that becomes [-1, 1].
    consistency_weight : weight of the second term; 0 leaves it out (and its cost).

    Attributes
    ----------
    target_encoder, target_projector : moving averages, without gradients.
    losses_ : {"semantic", "consistency"} -> (steps,) after `fit`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        levels: LevelSchedule | None = None,
        tau: float = 0.2,
        ema: tuple[float, float] = (0.99, 0.9999),
        *,
        sigma_data: float = 0.5,
        data_range: tuple[float, float] = (0.0, 1.0),
        consistency_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not tau > 0 or not 0 <= ema[0] <= ema[1] < 1 or not consistency_weight >= 0:
            raise InputError(
                "pre-training needs tau > 0, 0 <= ema[0] <= ema[1] < 1 and consistency_weight >= 0, got "
                f"{tau}, {ema} and {consistency_weight}"
            )
        self.encoder, self.projector, self.predictor = encoder, projector, predictor
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(projector).requires_grad_(False)
        self.levels = LevelSchedule() if levels is None else levels
        self.tau, self.ema, self.consistency_weight = tau, ema, consistency_weight
        self.units = Units(*data_range, sigma_data)

    def terms(
        self,
        x: Float[Tensor, "batch *shape"],
        view1: Float[Tensor, "..."],
        view2: Float[Tensor, "..."],
        generator: torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Terms:
        """Both terms per example; `progress` in [0, 1] sets the number of levels.

        Raises InputError for a single example, views of another shape, or data outside `data_range`.
        """
        if view1.shape != x.shape or view2.shape != x.shape:
            raise InputError(
                f"views must have the shape {tuple(x.shape)}, got {tuple(view1.shape)}, {tuple(view2.shape)}"
            )
        clean, first, second = (self.units.checked(part) for part in (x, view1, view2))
        levels = self.levels.levels(progress).to(x.device)
        device = x.device if generator is None else generator.device
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
        semantic = self._semantic(first, second, z, levels[-1:].expand(len(x)))
        if self.consistency_weight == 0:
            return Terms(semantic, torch.zeros_like(semantic))
        i = torch.randint(len(levels) - 1, (len(x),), generator=generator, device=device).to(x.device)
        online = self._project(_noised(clean, levels[i], z), levels[i])
        with torch.no_grad():
            target = self._project(_noised(clean, levels[i + 1], z), levels[i + 1])
        return Terms(semantic, info_nce(online, target, self.tau))

    def loss(
        self,
        x: Float[Tensor, "batch *shape"],
        view1: Float[Tensor, "..."],
        view2: Float[Tensor, "..."],
        generator: torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Float[Tensor, ""]:
        """Mean of semantic + consistency_weight * consistency; see `terms`."""
        terms = self.terms(x, view1, view2, generator, progress)
        return (terms.semantic + self.consistency_weight * terms.consistency).mean()

    def fit(
        self,
        loader: Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]],
        steps: int,
        augment: Augment | None = None,
        lr: float = 1e-4,
        warmup: int | None = None,
        clip: float = 2.0,
        generator: torch.Generator | None = None,
    ) -> NoiseConsistencyPretrainer:
        """Train by Adam for `steps` batches, going through `loader` as often as that takes; ends in eval mode.

        A batch is x, or (x,), or (x, view1, view2).  `augment(x, generator)` makes the views where they are not given;
        None takes x itself.  The step size rises over `warmup` steps (a twentieth when None) and stays; gradients
        longer than `clip` are cut.

        Raises InputError for an empty loader, a loss that is not finite, or what `terms` refuses; warns when the
        encoder gives the same features whatever the level.
        """
        if steps < 1 or not lr > 0 or not clip > 0:
            raise InputError(f"training needs steps >= 1, lr > 0 and clip > 0, got {steps}, {lr} and {clip}")
        rise = max(1, steps // 20 if warmup is None else warmup)
        trained = [*self.encoder.parameters(), *self.projector.parameters(), *self.predictor.parameters()]
        optimizer = torch.optim.Adam(trained, lr=lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / rise))
        self.losses_ = {name: np.empty(steps) for name in Terms._fields}
        batches = _views(loader, augment, generator)
        for step in track(range(steps), "pre-training along diffusion paths", steps):
            x, first, second = next(batches)
            if step == 0:
                self._warn_if_level_is_ignored(x)
                self.train()
            progress = step / max(steps - 1, 1)
            terms = self.terms(x, first, second, generator, progress)
            optimizer.zero_grad()
            (terms.semantic + self.consistency_weight * terms.consistency).mean().backward()
            nn.utils.clip_grad_norm_(trained, clip)
            optimizer.step()
            schedule.step()
            self.update_target(progress)
            for name, term in zip(Terms._fields, terms):
                value = self.losses_[name][step] = term.detach().mean().item()
                if not math.isfinite(value):
                    raise InputError(f"the {name} term became {value} at step {step}; use a smaller lr than {lr:g}")
        self.eval()
        return self

    def decay(self, progress: float) -> float:
        """The moving average's decay after this share of training."""
        first, last = self.ema
        return first + (last - first) * math.tanh(_EMA_RAMP * progress / 2)

    @torch.no_grad()
    def update_target(self, progress: float = 1.0) -> None:
        """target <- decay target + (1 - decay) online; buffers are copied."""
        decay = self.decay(progress)
        for target, online in ((self.target_encoder, self.encoder), (self.target_projector, self.projector)):
            for mean, value in zip(target.parameters(), online.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
            for kept, buffer in zip(target.buffers(), online.buffers(), strict=True):
                kept.copy_(buffer)

    def _project(self, x: Tensor, level: Tensor) -> Tensor:
        return self.projector(self.units.encode(self.encoder, x, level))

    def _semantic(self, first: Tensor, second: Tensor, z: Tensor, level: Tensor) -> Tensor:
        views = [_noised(x, level, z) for x in (first, second)]
        online = [self.predictor(self._project(x, level)) for x in views]
        with torch.no_grad():
            target = [self.target_projector(self.units.encode(self.target_encoder, x, level)) for x in views]
        return info_nce(online[0], target[1], self.tau) + info_nce(online[1], target[0], self.tau)

    @torch.no_grad()
    def _warn_if_level_is_ignored(self, x: Tensor) -> None:
        self.eval()
        inside = self.units.inward(x[:2])
        log = torch.tensor([self.levels.sigma_min, self.levels.sigma_max], dtype=x.dtype, device=x.device).log()
        low, high = (self.encoder(inside, value.expand(len(inside))) for value in log)
        if torch.equal(low, high):
            warnings.warn(
                "the encoder gives the same features at the lowest and the highest level; it seems to ignore its "
                "second argument (level_conditioning.LevelConditioned adds it to a plain module)",
                stacklevel=3,
            )


class ConsistencyRegularizer(nn.Module):
    """Agreement of predictions under several draws of noise (Jeong and Shin, 2020): lam mean_j KL(p || p_j) + eta H(p).

    p_j are the softmax of the logits under draw j and p is their mean.  (draws, batch, classes) to a scalar, to be
    added to the classification loss.  `towards="mean"` takes KL(p_j || p) instead.

    Raises InputError for negative weights or fewer than two draws.
    """

    def __init__(self, lam: float = 10.0, eta: float = 0.5, towards: str = "draws") -> None:
        super().__init__()
        if not lam >= 0 or not eta >= 0 or towards not in ("draws", "mean"):
            raise InputError(f"lam and eta must be >= 0 and towards 'draws' or 'mean', got {lam}, {eta}, {towards!r}")
        self.lam, self.eta, self.towards = lam, eta, towards

    def forward(self, logits: Float[Tensor, "draws batch classes"]) -> Float[Tensor, ""]:
        if len(logits) < 2:
            raise InputError(f"consistency compares at least 2 draws of noise, got {len(logits)}")
        log_each = logits.log_softmax(2)
        log_mean = log_each.logsumexp(0) - math.log(len(logits))
        mean = log_mean.exp()
        gap = log_mean - log_each
        divergence = (mean * gap if self.towards == "draws" else -log_each.exp() * gap).sum(2).mean(0)
        entropy = -(mean * log_mean).sum(1)
        return (self.lam * divergence + self.eta * entropy).mean()


class NoiseClassifier(nn.Module):
    """head(encoder(x)) for inputs that carry Gaussian noise of `sigma`: a base for `gaussian.Smoothed` at that sigma.

    `sigma` and x are in the units of the data; the encoder is told the level of `levels` that is nearest.  Give
    `levels`, `sigma_data` and `data_range` as the encoder was pre-trained with.

    Raises InputError when sigma lies outside the levels, or the ranges of `Units`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        sigma: float,
        levels: LevelSchedule | None = None,
        *,
        sigma_data: float = 0.5,
        data_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.units = Units(*data_range, sigma_data)
        self.level = (LevelSchedule() if levels is None else levels).nearest(self.units.level(sigma))
        self.encoder, self.head, self.sigma = encoder, head, float(sigma)

    def features(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch features"]:
        """The representation of inputs that carry the noise already."""
        level = torch.full((len(x),), self.level, dtype=torch.float64, device=x.device)
        return self.units.encode(self.encoder, self.units.inward(x), level)

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        return self.head(self.features(x))


def _noised(x: Tensor, level: Tensor, z: Tensor) -> Tensor:
    return x + level.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * z


def _views(
    loader: Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]],
    augment: Augment | None,
    generator: torch.Generator | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    while True:
        empty = True
        for batch in loader:
            empty = False
            parts = (batch,) if isinstance(batch, Tensor) else tuple(batch)
            if len(parts) == 3:
                yield parts[0], parts[1], parts[2]
            elif len(parts) == 1:
                x = parts[0]
                yield (x, x, x) if augment is None else (x, augment(x, generator), augment(x, generator))
            else:
                raise InputError(
                    f"a batch must be x, (x,) or (x, view1, view2), got {len(parts)} parts; drop the labels"
                )
        if empty:
            raise InputError(
                "the loader gave no batch (an exhausted generator?); give one that can be gone through again"
            )
