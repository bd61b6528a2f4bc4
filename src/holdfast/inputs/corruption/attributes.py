"""Edits of one attribute of the object in an image: its background, size, position or direction.

An image x with an object mask m is taken apart: the object is cut out, the hole it leaves is filled from around it, the
object (or the background) is edited, and both are put together again,

    x' = m' * object' + (1 - m') * background'.

The complexity of a background is its mean spectral amplitude A(b) = mean |FFT2(b)|; `complexity` lambda moves the
background by gradient steps on -lambda * A, under a penalty on total variation and with the histogram it had; the
object's pixels are never touched.  Where a diffusion model is at hand, `blended_denoise` does the same
inside its sampler (ImageNet-E; Li et al., 2023).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.intervals import clopper_pearson, paired_difference
from holdfast.inputs.attack.loop import Model, forward
from holdfast.inputs.corruption.holes import biharmonic_fill
from holdfast.inputs.corruption.placement import bounds, resampled, turned_extent

Images = Float[Tensor, "n channels height width"]
Masks = Bool[Tensor, "n height width"]
#: At the doors, where shapes that differ are told in words.
GivenMasks = Bool[Tensor, "..."]
Backgrounds = Float[Tensor, "_ _ _ _"]
#: Maps images and masks (true where a pixel is missing) to images without holes.
Fill = Callable[[Tensor, Tensor], Tensor]
#: Maps images to one number each, which editing makes smaller.
Guidance = Callable[[Tensor], Tensor]


class SizeClampedWarning(UserWarning):
    """The object was asked to be larger than the frame, and was made as large as fits."""


@dataclass(frozen=True)
class ObjectEdit:
    """A change of one or several attributes; with none it takes the image apart and puts it together again.

    Parameters
    ----------
    size : share of the image's area that the object's pixels are to cover, in (0, 1); "full" as large as fits.
    position : "random", or the (row, column) of the middle of the object's bounding box, in shares of the image.
    angle : degrees counter-clockwise, or "random" for U(0, 360).
    background : images to show instead, one of them drawn for every image.
    complexity : lambda, the weight of the mean spectral amplitude: above 0 a busier background, below 0 a calmer one.
    fill : "biharmonic", or a callable on images and masks of what is missing.
    guidance : a loss added to -lambda * A, e.g. the log-probability of the right class for an adversarial background.
    steps, step_size : of the gradient descent for complexity and guidance.

    Raises InputError for values outside these, and when applied for an empty or full mask or shapes that do not fit.
    """

    size: float | int | str | None = None
    position: tuple[float | int, float | int] | str | None = None
    angle: float | int | str | None = None
    background: Backgrounds | None = None
    complexity: float = 0.0
    fill: Literal["biharmonic"] | Fill = "biharmonic"
    guidance: Guidance | None = None
    steps: int = 20
    step_size: float = 0.02

    def __post_init__(self) -> None:
        if isinstance(self.size, str) and self.size != "full":
            raise InputError(f"size is a share of the image's area in (0, 1), 'full' or None, got {self.size!r}")
        if not isinstance(self.size, str) and self.size is not None and not 0 < self.size < 1:
            raise InputError(f"size is a share of the image's area in (0, 1), 'full' or None, got {self.size}")
        if isinstance(self.position, str) and self.position != "random":
            raise InputError(f"position is (row, column), 'random' or None, got {self.position!r}")
        if isinstance(self.position, tuple) and not all(0 <= part <= 1 for part in self.position):
            raise InputError(f"a position is given in shares of the image, 0 to 1, got {self.position}")
        angled = self.angle == "random" if isinstance(self.angle, str) else math.isfinite(self.angle or 0.0)
        if not angled:
            raise InputError(f"angle is a finite number of degrees, 'random' or None, got {self.angle!r}")
        if self.steps < 1 or self.step_size <= 0:
            raise InputError(f"steps and step_size must be positive, got {self.steps} and {self.step_size}")

    def edit(self, x: Images, mask: GivenMasks, generator: torch.Generator) -> Images:
        """Edited images, in [0, 1] as they came."""
        return self.compose(x, mask, generator)[0]

    def compose(self, x: Images, mask: GivenMasks, generator: torch.Generator) -> tuple[Images, Masks]:
        """Edited images and the masks of the object in them."""
        _check(x, mask, self.background)
        moves = self.size is not None or self.position is not None or self.angle is not None
        ground = self._ground(x, mask, generator) if moves or self.background is not None else x
        pixels, shape = self._moved(x, mask, generator) if moves else (x, mask)
        if self.complexity or self.guidance is not None:
            ground = guided(
                torch.where(shape[:, None], pixels, ground),
                shape,
                self.complexity,
                self.guidance,
                self.steps,
                self.step_size,
            )
        return torch.where(shape[:, None], pixels, ground), shape

    def _ground(self, x: Images, mask: Masks, generator: torch.Generator) -> Images:
        if self.background is not None:
            drawn = torch.randint(len(self.background), (len(x),), generator=generator)
            return self.background[drawn].to(x)
        missing = F.max_pool2d(mask[:, None].to(x), 3, 1, 1)[:, 0] > 0  # an object's edge bleeds into its neighbours
        missing = torch.where(missing.all(2).all(1)[:, None, None], mask, missing)
        return biharmonic_fill(x, missing) if self.fill == "biharmonic" else self.fill(x, missing)

    def _moved(self, x: Images, mask: Masks, generator: torch.Generator) -> tuple[Images, Masks]:
        """The object scaled, turned and moved, read bilinearly from where it stood."""
        n, height, width = mask.shape
        angle = torch.zeros(n)
        if self.angle == "random":
            angle = torch.rand(n, generator=generator) * 360
        elif self.angle is not None:
            angle = torch.full((n,), float(self.angle))
        boxes = bounds(mask.cpu())
        middle = torch.stack([boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], 1) / 2
        extent = turned_extent(mask, middle, angle)
        scale = self._scale(mask, extent)
        half = extent * scale[:, None] / 2
        frame = torch.tensor([height, width], dtype=torch.float64)
        if self.position is None:
            goal = middle
        elif self.position == "random":
            goal = half + torch.rand(n, 2, generator=generator).double() * (frame - 2 * half).clamp(min=0)
        else:
            goal = torch.tensor(self.position, dtype=torch.float64) * frame
        goal = torch.minimum(torch.maximum(goal, half), (frame - half).clamp(min=0).maximum(half))
        return resampled(x, mask, middle, goal, scale, angle)

    def _scale(self, mask: Masks, extent: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
        height, width = mask.shape[1:]
        fits = (torch.tensor([height, width]) / extent).amin(1)
        if self.size is None:
            return fits.clamp(max=1.0)  # a turned object may need to shrink
        if self.size == "full":
            return fits
        scale = (float(self.size) * height * width / mask.sum((1, 2)).double().cpu()).sqrt()
        if (scale > fits * (1 + 1e-9)).any():
            large = int((scale > fits).sum())
            warnings.warn(
                f"{large} of {len(mask)} objects of size {self.size} do not fit the frame and were made as large as "
                "fits",
                SizeClampedWarning,
                stacklevel=4,
            )
        return torch.minimum(scale, fits)


def spectral_amplitude(x: Images, mask: Masks | None = None) -> Float[Tensor, " n"]:
    """Mean |FFT2| over channels and frequencies (orthonormal, mean of each channel removed).

    With a mask, of what lies outside it: the object's pixels are set to the mean of the others.
    """
    free = torch.ones_like(x[:, :1]) if mask is None else (~mask)[:, None].to(x)
    centred = (x - _mean(x, free)) * free
    return torch.fft.fft2(centred, norm="ortho").abs().mean((1, 2, 3))


def guided(
    x: Images, mask: Masks, complexity: float, guidance: Guidance | None, steps: int = 20, step_size: float = 0.02
) -> Images:
    """x with its background moved along -complexity * A + guidance; the object's pixels are returned as they were.

    A step moves the most moved pixel by `step_size` (less for a |complexity| below 20 without guidance), down the loss
    and a hundredth of the total variation.  After it every channel of the background gets back its own histogram, rank
    by rank, so that neither colour nor contrast changes, only the arrangement.
    """
    free = (~mask)[:, None].to(x)
    share = 1.0 if guidance is not None else min(1.0, abs(complexity) / 20)
    palette = _sorted_outside(x, mask)
    current = x.clone()
    for _ in range(steps):
        moved = current.detach().requires_grad_(True)
        loss = 0.01 * _variation(moved).sum() - complexity * spectral_amplitude(moved, mask).sum()
        if guidance is not None:
            loss = loss + guidance(torch.where(mask[:, None], x, moved)).sum()
        (gradient,) = torch.autograd.grad(loss, moved)
        gradient = gradient * free
        largest = gradient.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
        current = current.detach() - share * step_size * gradient / largest
        order = torch.where(mask[:, None], torch.inf, current).flatten(2).argsort(dim=2, stable=True)
        current = torch.where(mask[:, None], x, torch.empty_like(palette).scatter(2, order, palette).view_as(x))
    return current


def _sorted_outside(x: Images, mask: Masks) -> Float[Tensor, "n channels pixels"]:
    """Values of each channel outside the mask in rising order, then infinities."""
    return torch.where(mask[:, None], torch.inf, x).flatten(2).sort(2).values


def _mean(x: Images, free: Tensor) -> Tensor:
    return (x * free).sum((2, 3), keepdim=True) / free.sum((2, 3), keepdim=True)


def _variation(x: Images) -> Float[Tensor, " n"]:
    return x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3))


def blended_denoise(
    denoiser: Callable[[Tensor, float], Tensor],
    x: Images,
    mask: GivenMasks,
    loss: Guidance,
    schedule: Sequence[float],
    *,
    generator: torch.Generator,
    weight: float = 1.0,
) -> Images:
    """A new background from a diffusion model, steered by `loss`, around the object of x.

    At every level sigma_t of the falling `schedule`, with x_t = clean + sigma_t * noise: the object's pixels are
    overwritten by the original at that level, the clean image is predicted, moved by -weight * gradient of the loss at
    the prediction, and taken to the next level along the same noise; after the last level it is what remains.

    Parameters
    ----------
    denoiser : maps (x_t, sigma_t) to the expected clean image.
    loss : maps images to one number each; -lambda * spectral_amplitude, plus the log-probability of the right class for
        an adversarial background.

    Raises InputError for an empty schedule or one that does not fall, and masks that are empty, full or do not fit.
    """
    _check(x, mask, None)
    if not len(schedule) or any(later >= sooner for sooner, later in pairwise(schedule)) or schedule[-1] <= 0:
        raise InputError(f"the schedule must be noise levels that fall and stay above 0, got {list(schedule)}")
    kept = mask[:, None]
    current = x + schedule[0] * _normal(x, generator)
    for level, following in pairwise([*schedule, 0.0]):
        current = torch.where(kept, x + level * _normal(x, generator), current)
        with torch.no_grad():
            clean = denoiser(current, level)
        aim = clean.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(torch.where(kept, x, aim)).sum(), aim)
        noise = (current - clean) / level
        current = clean - weight * gradient + following * noise
    return torch.where(kept, x, current)


def _normal(x: Images, generator: torch.Generator) -> Images:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


@dataclass(frozen=True)
class AttributeReport:
    """Accuracy on the original images and, for every edit, the dropped rate: accuracy lost on the same images."""

    accuracy: Estimate
    dropped: Mapping[str, Estimate]
    correct: Mapping[str, Bool[np.ndarray, " n"]]

    def table(self) -> Table:
        """One row an edit."""
        rows = tuple(
            (name, clopper_pearson(int(self.correct[name].sum()), len(self.correct[name])), drop)
            for name, drop in self.dropped.items()
        )
        return Table(
            f"Accuracy {self.accuracy} under edits of one attribute", ("edit", "accuracy", "dropped rate"), rows
        )


def attribute_report(
    model: Model,
    x: Images,
    y: Int[Tensor, " n"],
    masks: GivenMasks,
    edits: Mapping[str, ObjectEdit],
    *,
    generator: torch.Generator,
    level: float = 0.95,
) -> AttributeReport:
    """Dropped rate DR = accuracy(original) - accuracy(edited) of each edit, paired over images.

    Raises InputError without edits, for the name "original", and for what `ObjectEdit.edit` refuses.
    """
    made = {name: edit.edit(x, masks, generator) for name, edit in edits.items()}
    return dropped_rates(model, x, y, made, level=level)


def dropped_rates(
    model: Model, x: Images, y: Int[Tensor, " n"], edited: Mapping[str, Images], *, level: float = 0.95
) -> AttributeReport:
    """The same for images edited before, so that several models are judged on one set.

    Raises InputError without edits and for the name "original".
    """
    if not edited or "original" in edited:
        raise InputError(f"give at least one edit, under names other than 'original'; got {sorted(edited)}")
    answers = {"original": x, **edited}
    with torch.no_grad():
        correct = {name: (forward(model, images).argmax(1) == y).cpu().numpy() for name, images in answers.items()}
    right = correct["original"]
    return AttributeReport(
        clopper_pearson(int(right.sum()), len(right), level),
        {name: paired_difference(correct[name], right, level) for name in edited},
        correct,
    )


def _check(x: Images, mask: GivenMasks, background: Backgrounds | None) -> None:
    if x.shape[0] != mask.shape[0] or x.shape[2:] != mask.shape[1:]:
        raise InputError(f"images {tuple(x.shape)} and masks {tuple(mask.shape)} differ in number or size")
    covered = mask.sum((1, 2))
    for bad, what in ((covered == 0, "is empty"), (covered == mask.shape[1] * mask.shape[2], "covers everything")):
        if bad.any():
            raise InputError(f"the mask of image {int(bad.int().argmax())} {what}; leave such images out")
    if background is not None and (len(background) == 0 or background.shape[1:] != x.shape[1:]):
        raise InputError(f"backgrounds must be images of shape {tuple(x.shape[1:])}, got {tuple(background.shape)}")
