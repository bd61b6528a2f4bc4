"""Robustness judged by oracles: how far an image can go towards a model's failure before better models disagree.

A generator g (encode, decode) holds the images; the oracles are other classifiers, whose vote stands for the
true label.  From x_0 = x, z_0 = encode(x), for t = 1 .. T

    z_t = z_{t-1} + eta grad_z loss(model(g(z)), y) / ||grad||        x_t = g(z_t)

as long as the vote on x_t still is y; the last image accepted is the test image of that model.  With SA the accuracy on
the x_0 and PA that on the last accepted images,

    FMR = PA / SA.

Only examples on whose label the oracles agree to begin with are judged.  The measure is no better than the oracles, and
a model that is one of its own oracles has FMR 1 under a unanimous vote: keep one oracle aside and look at `validity`.
See `oracle-robustness` in the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import bootstrap, clopper_pearson
from holdfast.inputs.attack.loop import CHUNK, Model, check_batch, forward
from holdfast.threats.base import Threat, Valid, gaussian, per_example

#: Maps a batch to logits (batch, classes) or to labels (batch,).
Oracle = Callable[[Tensor], Tensor]


@runtime_checkable
class Generator(Protocol):
    """Codes of images and back.  A `project(z, x, valid)`, where there is one, is called after every step."""

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...


class Identity:
    """Pixels are their own code; steps stay within `threat`, if there is one."""

    def __init__(self, threat: Threat | None = None) -> None:
        self.threat = threat

    def encode(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        return x.clone()

    def decode(self, z: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        return z

    def project(
        self, z: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid
    ) -> Float[Tensor, "batch *shape"]:
        """The nearest admissible code."""
        return z if self.threat is None else self.threat.project(z, x, valid)


class PCAGenerator:
    """Codes are the first principal components of the training images, each in units of its standard deviation.

    Decoded images are clipped to the range of the training images.
    """

    def __init__(self, components: int = 32) -> None:
        self.components = components

    def fit(self, x: Float[Tensor, "examples *shape"]) -> PCAGenerator:
        """Raises InputError for more components than pixels or examples allow."""
        flat = x.flatten(1).double()
        if not 1 <= self.components < min(flat.shape) + 1:
            raise InputError(
                f"{self.components} components cannot be had of {len(flat)} images of {flat.shape[1]} pixels"
            )
        self.shape_, mean = x.shape[1:], flat.mean(0)
        self.range_ = (float(x.min()), float(x.max()))
        values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
        top = values.argsort(descending=True)[: self.components]
        self.scale_ = values[top].clamp_min(1e-12).sqrt().to(x)
        self.mean_, self.axes_ = mean.to(x), vectors[:, top].to(x)
        return self

    def encode(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch code"]:
        return (x.flatten(1) - self.mean_) @ self.axes_ / self.scale_

    def decode(self, z: Float[Tensor, "batch code"]) -> Float[Tensor, "batch *shape"]:
        return (self.mean_ + (z * self.scale_) @ self.axes_.T).clamp(*self.range_).unflatten(1, self.shape_)


class ConvAutoencoder(nn.Module):
    """Codes of `code` numbers for images whose sides divide by 4; untrained: fit it to reconstruct, then `.eval()`.

    Weights are He-uniform from `generator`, so no global random state is touched.
    """

    def __init__(
        self, shape: tuple[int, int, int] = (1, 28, 28), code: int = 32, width: int = 16, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        channels, height, side = shape
        if height % 4 or side % 4:
            raise InputError(f"the sides of the images must divide by 4, got {shape}; pad them")
        inner = (2 * width, height // 4, side // 4)
        flat = inner[0] * inner[1] * inner[2]
        skip = nn.utils.skip_init
        self.encoder = nn.Sequential(
            skip(nn.Conv2d, channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            skip(nn.Conv2d, width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            skip(nn.Linear, flat, code),
        )
        self.decoder = nn.Sequential(
            skip(nn.Linear, code, flat),
            nn.ReLU(),
            nn.Unflatten(1, inner),
            skip(nn.ConvTranspose2d, 2 * width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            skip(nn.ConvTranspose2d, width, channels, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_uniform_(parameter, a=1.0, generator=generator)
            else:
                nn.init.zeros_(parameter)

    def encode(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch code"]:
        return self.encoder(x)

    def decode(self, z: Float[Tensor, "batch code"]) -> Float[Tensor, "batch channels height width"]:
        return self.decoder(z)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """The reconstruction."""
        return self.decode(self.encode(x))


@dataclass(frozen=True, eq=False)
class OracleRun:
    """`x_adv` are the last accepted images, `accepted` counts the steps taken, `eligible` says whose label the oracles
    share to begin with (the others are returned as they are)."""

    x_adv: Float[Tensor, "batch *shape"]
    accepted: Int[Tensor, " batch"]
    eligible: Bool[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class OracleBoundedAttack:
    """Ascend a model's loss in the code of a generator while the oracles still see the label.

    Parameters
    ----------
    oracles : maps from images to logits or labels; at least one.
    generator : has `encode` and `decode` (see `Generator`).
    steps, step_size : at most so many steps of this Euclidean length in code; the images are clipped to `valid`.
    vote : "all" oracles, or a "majority" (more than half), must say y.
    mode : "gradient" of the model's cross-entropy, or "random" directions (for models without gradients).

    Raises InputError for no oracle, steps below 1, a step size that is not positive, an unknown vote or mode, and, when
    called, for inputs that do not fit or a generator that changes the shape of images, makes them infinite or leaves
    `valid`: clipping would hide that its images are on another scale.
    """

    oracles: Sequence[Oracle]
    generator: Generator
    steps: int = 50
    step_size: float = 0.1
    vote: str = "all"
    mode: str = "gradient"

    def __post_init__(self) -> None:
        if not self.oracles:
            raise InputError("at least one oracle is wanted: a classifier whose answer stands for the label")
        if self.steps < 1 or not self.step_size > 0:
            raise InputError(f"at least one step of positive length is wanted, got {self.steps} of {self.step_size}")
        if self.vote not in ("all", "majority") or self.mode not in ("gradient", "random"):
            raise InputError(
                f"vote is 'all' or 'majority' and mode 'gradient' or 'random', got {self.vote!r} and {self.mode!r}"
            )

    def __call__(
        self,
        model: Model,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """The last accepted image of every example."""
        return self.run(model, x, y, valid=valid, generator=generator).x_adv

    def run(
        self,
        model: Model,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
    ) -> OracleRun:
        """The same with the record; `generator` draws the random directions."""
        check_batch(model, x, y, valid)
        x = x.detach()
        self._check_generator(x[:16], valid)
        eligible = self.agreed(x, y)
        x_adv, accepted = x.clone(), torch.zeros_like(y)
        for rows in eligible.nonzero()[:, 0].split(CHUNK):
            code = self._encode(x[rows])
            for _ in range(self.steps):
                code = self._step(model, code, x[rows], y[rows], valid, generator)
                image = self._image(code, valid)
                kept = self.agreed(image, y[rows])
                if not bool(kept.any()):
                    break
                rows, code = rows[kept], code[kept]
                x_adv[rows] = image[kept]
                accepted[rows] += 1
        return OracleRun(x_adv, accepted, eligible)

    def agreed(self, x: Float[Tensor, "batch *shape"], y: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Whether the vote on each image is y."""
        votes = torch.stack([labels_of(oracle, x) == y for oracle in self.oracles])
        return votes.all(0) if self.vote == "all" else votes.double().mean(0) > 0.5

    def reconstructed(self, x: Float[Tensor, "batch *shape"], valid: Valid = (0, 1)) -> Float[Tensor, "batch *shape"]:
        """g(x), clipped: what the generator alone does to the images."""
        return self._image(self._encode(x), valid)

    @torch.no_grad()
    def _encode(self, x: Tensor) -> Tensor:
        return torch.cat([self.generator.encode(part).detach() for part in x.split(CHUNK)])

    @torch.no_grad()
    def _image(self, code: Tensor, valid: Valid) -> Tensor:
        return _clipped(torch.cat([self.generator.decode(part) for part in code.split(CHUNK)]), valid)

    def _step(
        self, model: Model, code: Tensor, x: Tensor, y: Tensor, valid: Valid, generator: torch.Generator | None
    ) -> Tensor:
        if self.mode == "random":
            direction = gaussian(code, generator)
        else:
            with torch.enable_grad():
                leaf = code.detach().requires_grad_(True)
                loss = F.cross_entropy(model(_clipped(self.generator.decode(leaf), valid)), y, reduction="sum")
                if not loss.requires_grad:
                    raise InputError("the model gives no gradient with respect to its input; use mode='random'")
                (direction,) = torch.autograd.grad(loss, leaf)
        length = torch.linalg.vector_norm(direction.flatten(1), dim=1).clamp_min(1e-12)
        moved = code + self.step_size * direction / per_example(length, code)
        project = getattr(self.generator, "project", None)
        return moved if project is None else project(moved, x, valid)

    def _check_generator(self, x: Tensor, valid: Valid) -> None:
        with torch.no_grad():
            image = self.generator.decode(self.generator.encode(x))
        if image.shape != x.shape or not bool(torch.isfinite(image).all()):
            raise InputError(
                f"the generator turns images of shape {tuple(x.shape[1:])} into {tuple(image.shape[1:])}, or makes "
                "them infinite; encode and decode must give images of the same shape back"
            )
        beyond = float((image - _clipped(image, valid)).abs().max()) if image.numel() else 0.0
        if beyond > 1e-3 * (float(x.max() - x.min()) or 1.0):
            raise InputError(
                f"the generator gives values from {float(image.min()):.4g} to {float(image.max()):.4g} for images "
                f"within {float(x.min()):.4g} to {float(x.max()):.4g}, which leaves the valid range by {beyond:.3g}; "
                "rescale or clip in its decode, or pass the range as valid"
            )


def labels_of(oracle: Oracle, x: Float[Tensor, "batch *shape"]) -> Int[Tensor, " batch"]:
    """Labels that an oracle gives, whether it answers with labels or with logits."""
    answer = forward(oracle, x)
    labels = answer.argmax(1) if answer.ndim == 2 else answer
    if labels.shape != (len(x),):
        raise InputError(f"an oracle maps {len(x)} images to shape {tuple(answer.shape)}; logits or labels were wanted")
    return labels.long()


def _clipped(image: Tensor, valid: Valid) -> Tensor:
    if valid is None:
        return image
    low, high = (torch.as_tensor(end, dtype=image.dtype, device=image.device) for end in valid)
    return torch.clamp(image, low, high)


@dataclass(frozen=True)
class FMRReport:
    """A model under an oracle-bounded attack, on the examples whose label the oracles share.

    `fmr` is perturbed over standard accuracy.  `reconstructed_accuracy` is that on g(x), before any step;
    `full_budget` the share that used all steps, `distance` the mean Euclidean distance of the last accepted images,
    `validity` the share of them on which an oracle that had no vote says y (None: no such oracle was given).
    """

    standard_accuracy: Estimate
    perturbed_accuracy: Estimate
    fmr: Estimate
    reconstructed_accuracy: Estimate
    full_budget: Estimate
    validity: Estimate | None
    distance: float
    correct: Bool[np.ndarray, " judged"]
    held: Bool[np.ndarray, " judged"]


def fmr(
    model: Model,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, " batch"],
    attack: OracleBoundedAttack,
    *,
    held_out: Oracle | None = None,
    valid: Valid = (0, 1),
    level: float = 0.95,
    generator: torch.Generator | None = None,
    resampling: np.random.Generator,
) -> FMRReport:
    """Accuracy of `model` before and after the attack, and their ratio with a paired bootstrap interval.

    `resampling` draws the bootstrap.  Raises InputError when the oracles agree on no label, so that nothing can be
    judged, or the model is right on none of the examples.
    """
    run = attack.run(model, x, y, valid=valid, generator=generator)
    if int(run.eligible.sum()) < 2:
        raise InputError(
            f"the oracles agree with the label on {int(run.eligible.sum())} of {len(x)} examples, so nothing is "
            "judged; bring better oracles or vote='majority'"
        )
    x, y, x_adv = x[run.eligible], y[run.eligible], run.x_adv[run.eligible]
    judged = (x, attack.reconstructed(x, valid), x_adv)
    correct, rebuilt, held = ((forward(model, images).argmax(1) == y).cpu().numpy() for images in judged)
    if not correct.any():
        raise InputError("the model is right on none of the examples, so the ratio has no meaning")
    ratio = bootstrap(
        lambda before, after: after.mean(-1) / np.maximum(before.mean(-1), 0.5 / before.shape[-1]),
        correct.astype(np.float64),
        held.astype(np.float64),
        generator=resampling,
        level=level,
        vectorized=True,
    )
    full = (run.accepted[run.eligible] == attack.steps).cpu().numpy()
    shares = [clopper_pearson(int(part.sum()), len(part), level) for part in (correct, held, rebuilt, full)]
    validity = None
    if held_out is not None:
        validity = clopper_pearson(int((labels_of(held_out, x_adv) == y).sum()), len(y), level)
    distance = float(torch.linalg.vector_norm((x_adv - x).flatten(1), dim=1).mean())
    return FMRReport(shares[0], shares[1], ratio, shares[2], shares[3], validity, distance, correct, held)
