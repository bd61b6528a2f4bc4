"""Adversarial patches: a rectangle whose pixels are free, the rest of the image untouched.

    PatchAttack      x' = x outside the patch, p inside;  p <- clip(p + step sign(grad_p loss), low, high)
    UniversalPatch   one p for many images, wherever it lies, however it is scaled and turned  (Brown et al., 2017)

Where the patch lies decides more than how long it is optimised, so `PatchAttack` takes several places an image and
keeps the worst: those where the gradient is large over the whole window ("saliency:k"), random ones, all, or given
ones.  Shapes, ranges and errors as in `gradient`; images (batch, channels, height, width).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.inputs.attack.loop import Attack, AttackRun, Model, Search, ascend, check_batch, check_logits, forward
from holdfast.inputs.attack.losses import Aim, Goal, Targeted
from holdfast.inputs.attack.trigger import PatchTrigger
from holdfast.threats.base import Valid, uniform, valid_bounds, value_range
from holdfast.threats.places import Patch

#: (top, left) of the patch, one row an example.
Places = Int[Tensor, "batch 2"]


@dataclass(frozen=True, eq=False)
class PatchAttack(Attack):
    """The worst patch of an image, at the worst of several places.

    Parameters
    ----------
    threat : the patch's size.
    steps, step_size : signed gradient steps at every place; the size is a share of the valid range.
    restarts : optimisations at each place, from uniform pixels; only what still stands is tried again.
    locations : "saliency:k", the k windows of largest summed |gradient| x range at the clean image, no two of which
        overlap by more than half a side (k may not fit; then there are fewer); "random:k"; "all", by falling
        saliency; or an int64 tensor (batch, 2) with the row and column of each image's patch.
    loss : "margin", "ce" or "dlr".
    eot : passes that the gradient of a random model is averaged over.

    Raises InputError for counts below one, an unknown way to choose places, and places that leave the image.
    """

    threat: Patch
    steps: int = 100
    step_size: float = 0.05
    restarts: int = 1
    locations: str | Places = "saliency:3"
    loss: str = "margin"
    eot: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts, self.eot) < 1 or not self.step_size > 0:
            raise InputError(
                "a patch attack needs steps, restarts and eot of at least 1 and a positive step size, got "
                f"{self.steps}, {self.restarts}, {self.eot} and {self.step_size}"
            )
        if isinstance(self.locations, str):
            way, _, count = self.locations.partition(":")
            if self.locations != "all" and not (way in ("saliency", "random") and count.isdigit() and int(count) > 0):
                raise InputError(
                    f"unknown locations {self.locations!r}; write saliency:3, random:3 or all, or give a (batch, 2) "
                    "tensor of rows and columns"
                )

    def run(
        self,
        model: Model,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
        goal: Goal | None = None,
        clean_logits: Float[Tensor, "batch classes"] | None = None,
    ) -> AttackRun:
        """Patched inputs with the record of the search; an image that is never fooled keeps its worst patch."""
        value_range(valid, self.threat)
        search = Search.begin(model, self.threat, x, y, valid, goal, self.loss, clean_logits)
        if len(search.standing()):
            for top_left, there in self._places(search, generator):
                for _ in range(self.restarts):
                    standing = search.standing()
                    rows = standing[there[standing]]
                    if len(rows):
                        self._climb(search, rows, top_left[rows], generator)
        return search.close()

    def _places(
        self, search: Search, generator: torch.Generator | None
    ) -> Iterator[tuple[Places, Bool[Tensor, " batch"]]]:
        """Places to try in turn, and which images have one."""
        x, threat = search.x, self.threat
        everyone = torch.ones(len(x), dtype=torch.bool, device=x.device)
        down, across = threat.places(x)
        if isinstance(self.locations, Tensor):
            yield checked_places(self.locations, threat, x), everyone
            return
        way, _, count = self.locations.partition(":")
        if way == "random":
            for _ in range(int(count)):
                yield threat.random_places(x, generator=generator), everyone
            return
        sums = self._saliency(search)
        if way == "all":
            for place in sums.flatten(1).argsort(1, descending=True).T:
                yield torch.stack([place // across, place % across], 1), everyone
            return
        rows, columns = (torch.arange(length, device=x.device) for length in (down, across))
        for _ in range(int(count)):
            best, place = sums.flatten(1).max(1)
            top, left = place // across, place % across
            yield torch.stack([top, left], 1), torch.isfinite(best)
            near = ((rows - top[:, None]).abs() * 2 < threat.height)[:, :, None]
            near = near & ((columns - left[:, None]).abs() * 2 < threat.width)[:, None]
            sums = sums.masked_fill(near, -torch.inf)

    def _saliency(self, search: Search) -> Float[Tensor, "batch down across"]:
        """|gradient| x range of the clean images, summed over every window; zero for those not attacked."""
        rows = search.standing()
        gain = torch.zeros_like(search.x)
        _, _, grad = ascend(search.model, search.x[rows], search.aim.take(rows), self.eot)
        low, high = valid_bounds(search.x[rows], search.valid)
        gain[rows] = grad.abs() * (high - low)
        search.queries[rows] += self.eot
        return self.threat.window_sums(gain.sum(1))

    def _climb(self, search: Search, rows: Tensor, places: Tensor, generator: torch.Generator | None) -> None:
        start = search.x[rows]
        low, high = valid_bounds(start, search.valid)
        mask = self.threat.mask(places[:, 0], places[:, 1], *start.shape[2:])
        drawn = torch.clamp(low + (high - low) * uniform(start, generator), low, high)
        point = torch.where(mask, drawn, start)
        for _ in range(self.steps):
            logits, loss, grad = ascend(search.model, point, search.aim.take(rows), self.eot)
            fooled = search.note(rows, point, logits, loss)
            if bool(fooled.any()):
                kept = (~fooled).nonzero().squeeze(1)
                rows, point, grad, mask, low, high = (part[kept] for part in (rows, point, grad, mask, low, high))
                if not len(rows):
                    return
            moved = torch.clamp(point + self.step_size * (high - low) * grad.sign(), low, high)
            point = torch.where(mask, moved, point)
        logits = forward(search.model, point)
        search.note(rows, point, logits, search.aim.take(rows).value(logits))


def checked_places(places: Shaped[Tensor, "..."], threat: Patch, x: Float[Tensor, "batch *shape"]) -> Places:
    """The places on the device of x.  Raises InputError unless they are one (row, column) an image and inside it."""
    down, across = threat.places(x)
    if places.dtype != torch.int64 or places.shape != (len(x), 2):
        raise InputError(
            f"places must be int64 of shape ({len(x)}, 2), got {places.dtype} of shape {tuple(places.shape)}"
        )
    limit = torch.tensor([down, across], device=places.device)
    if bool(((places < 0) | (places >= limit)).any()):
        raise InputError(
            f"a {threat.height}x{threat.width} patch leaves images of {x.shape[2]}x{x.shape[3]} unless its row is "
            f"below {down} and its column below {across}"
        )
    return places.to(x.device)


@dataclass(frozen=True, eq=False)
class LearntPatch:
    """One patch for any image: `values` (channels, height, width), to be stuck on in any place, size and turn."""

    values: Float[Tensor, "channels height width"]

    def stamp(
        self,
        x: Float[Tensor, "batch channels high wide"],
        centre: Float[Tensor, "batch 2"],
        scale: Float[Tensor, " batch"] | None = None,
        degrees: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels high wide"]:
        """Images with the patch's middle at `centre` (row, column, in pixels; pixel k spans k to k + 1).

        Bilinear in the patch, whole pixels at its edge: a pixel whose middle falls within the patch is replaced.  Each
        new value is a mean of the patch's, so the valid range is kept up to rounding.  Scale 1 and 0 degrees copy the
        patch where its corner lies on whole pixels.
        """
        scale = torch.ones_like(centre[:, 0]) if scale is None else scale
        turn = torch.zeros_like(scale) if degrees is None else degrees * (math.pi / 180)
        rows = torch.arange(x.shape[2], device=x.device, dtype=x.dtype) + 0.5 - centre[:, :1]
        columns = torch.arange(x.shape[3], device=x.device, dtype=x.dtype) + 0.5 - centre[:, 1:]
        rows, columns = rows[:, :, None], columns[:, None, :]
        cosine, sine, scale = (part[:, None, None] for part in (turn.cos(), turn.sin(), scale))
        # Where each pixel of the image lies in the patch, -1 to 1 from edge to edge.
        down = (cosine * rows - sine * columns) / scale / (self.values.shape[1] / 2)
        across = (sine * rows + cosine * columns) / scale / (self.values.shape[2] / 2)
        grid = torch.stack([across, down], -1)
        patch = self.values.to(x.dtype).to(x.device).expand(len(x), -1, -1, -1)
        drawn = F.grid_sample(patch, grid, padding_mode="border", align_corners=False)
        inside = (down.abs() < 1) & (across.abs() < 1)
        return torch.where(inside[:, None], drawn, x)

    def scattered(
        self,
        x: Float[Tensor, "batch channels high wide"],
        *,
        scale: tuple[float, float] = (0.8, 1.2),
        degrees: float = 20.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch channels high wide"]:
        """Images with the patch wherever it fits, scaled uniformly within `scale`, turned by up to +-`degrees`."""
        return self.stamp(x, *self._drawn(x, scale, degrees, generator))

    def _drawn(
        self, x: Tensor, scale: tuple[float, float], degrees: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        drawn = uniform(x, generator, (4, len(x)))
        size = scale[0] + (scale[1] - scale[0]) * drawn[0]
        half = [size * side / 2 for side in self.values.shape[1:]]
        centre = [h + drawn[1 + k] * (x.shape[2 + k] - 2 * h).clamp(min=0) for k, h in enumerate(half)]
        return torch.stack(centre, 1), size, (2 * drawn[3] - 1) * degrees

    def trigger(self, shape: tuple[int, ...], top: int, left: int) -> PatchTrigger:
        """The patch fixed at one place, as the trigger that other modules take."""
        height, width = self.values.shape[1:]
        value = torch.zeros(shape, dtype=self.values.dtype, device=self.values.device)
        value[..., top : top + height, left : left + width] = self.values
        return PatchTrigger.rectangle(shape, top, left, height, width, value)


@dataclass(frozen=True)
class UniversalPatch:
    """Learns one patch that fools a model on many images, under random place, scale and turn.

    Ascends the mean loss over batches of randomly patched images by signed steps that shrink linearly to zero;
    `step_size` is a share of the valid range.  With a `Targeted` goal every image is pulled to its target.  A scale
    above 1 makes the patch larger than `threat`, whose size is the patch's own.
    Raises InputError for counts below one, scales that are not positive and rising, or a patch that does not fit.
    """

    threat: Patch
    steps: int = 200
    step_size: float = 0.1
    batch: int = 64
    loss: str = "ce"
    scale: tuple[float, float] = (0.8, 1.2)
    degrees: float = 20.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or not self.step_size > 0:
            raise InputError(
                f"a universal patch needs steps and batch of at least 1 and a positive step size, got {self.steps}, "
                f"{self.batch} and {self.step_size}"
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"the patch's scale must rise from a positive number, got {self.scale}")

    def learn(
        self,
        model: Model,
        x: Float[Tensor, "examples channels height width"],
        y: Int[Tensor, " examples"],
        *,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
        goal: Goal | None = None,
    ) -> LearntPatch:
        """The patch; judge it on other images than it was learnt on."""
        check_batch(model, x, y, valid)
        self.threat.places(x)
        value_range(valid, self.threat)
        if not len(x):
            raise InputError("no image was given to learn a patch on")
        check_logits(forward(model, x[: self.batch]), x[: self.batch], y[: self.batch])
        # The model's own errors are worth climbing too, so the loss is of the label, not of the prediction.
        aim = Aim.of(self.loss, y, goal)
        aim = aim.pulled(goal.target.to(y.device)) if isinstance(goal, Targeted) else aim
        low, high = self._limits(x, valid)
        values = low + (high - low) * uniform(x[0, :, : self.threat.height, : self.threat.width], generator)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(self.steps):
            if len(order) < min(self.batch, len(x)):
                order = torch.randperm(len(x), generator=generator, device=generator.device if generator else "cpu")
            rows, order = order[: self.batch].to(x.device), order[self.batch :]
            leaf = values.clone().requires_grad_(True)
            patched = LearntPatch(leaf).scattered(x[rows], scale=self.scale, degrees=self.degrees, generator=generator)
            (grad,) = torch.autograd.grad(aim.take(rows).value(model(patched)).mean(), leaf)
            size = self.step_size * (1 - step / self.steps)
            values = torch.clamp(values + size * (high - low) * grad.sign(), low, high)
        return LearntPatch(values.detach())

    def _limits(self, x: Tensor, valid: Valid) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of each channel (channels, 1, 1) that is valid at every pixel."""
        assert valid is not None  # `value_range` has refused that
        low, high = (torch.as_tensor(end, dtype=x.dtype, device=x.device).expand(x.shape[1:]) for end in valid)
        return low.amax((1, 2), keepdim=True), high.amin((1, 2), keepdim=True)
