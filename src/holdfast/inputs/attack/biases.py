"""Does a model go by shape or by texture?  Images that set the two against each other, or take one of them away.

    shape bias = #(says the shape's class) / #(says the shape's or the texture's class)

on images whose outline is of one class and whose surface is of another (Geirhos et al., 2019); `scramble` keeps local
texture and destroys shape, `silhouette` does the opposite.  Adversarially trained models go more by shape than their
standard twins on natural images (Chen, Agarwal & Nguyen, 2020); what each of their channels answers to is measured in
`channels`.  Images are (n, channels, height, width), masks bool (n, 1, height, width), true on the object.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Cell, Table
from holdfast.core.intervals import clopper_pearson
from holdfast.inputs.attack.loop import Model, forward
from holdfast.threats.base import uniform

Images = Float[Tensor, "n channels height width"]
#: Shapes that must agree with the images' and are checked at the door.
Others = Float[Tensor, "_ _ _ _"]
Masks = Bool[Tensor, "_ _ _ _"]


class CroppedWarning(UserWarning):
    """Images were cropped so that their sides divide."""


@dataclass(frozen=True, eq=False)
class CueConflicts:
    """Images with the outline of class `shape` and the surface of class `texture`, which always differ.

    Raises InputError for lengths that differ or a conflict of a class with itself.
    """

    images: Images
    shape: Int[Tensor, " _"]
    texture: Int[Tensor, " _"]

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.shape) == len(self.texture):
            raise InputError(
                f"{len(self.images)} images, {len(self.shape)} shapes and {len(self.texture)} textures; one each is "
                "needed"
            )
        if same := int((self.shape == self.texture).sum()):
            raise InputError(f"{same} images have shape and texture of one class, which is no conflict; leave them out")


def cue_conflict(
    shapes: Images,
    textures: Others,
    masks: Masks,
    generator: torch.Generator | None = None,
    *,
    texture_masks: Masks | None = None,
    tile: int = 8,
    background: float = 0.0,
) -> Images:
    """The outlines of `shapes` filled with the surface of `textures`, one pair an image.

    A square of side `tile` is cut at random from each texture image, from where `texture_masks` covers it most, and
    repeated with mirroring so that no seam is a new edge; outside `masks` (of the shapes) is `background`.
    Raises InputError for shapes that differ or a tile larger than the image.
    """
    _same_images(shapes, textures, "textures")
    _fitting(masks, shapes)
    height, width = shapes.shape[2:]
    if not 1 <= tile <= min(height, width):
        raise InputError(f"a tile of {tile} pixels cannot be cut from images of {height}x{width}")
    if texture_masks is not None:
        _fitting(texture_masks, textures)
    surface = _tiled(textures, _cuts(textures, texture_masks, tile, generator), tile)
    return torch.where(masks, surface, torch.full_like(shapes, background))


def _cuts(textures: Tensor, masks: Tensor | None, tile: int, generator: torch.Generator | None) -> Int[Tensor, "n 2"]:
    """(top, left) of a random square among those that hold most of the object."""
    down, across = (side - tile + 1 for side in textures.shape[2:])
    worth = uniform(textures[:, 0].double(), generator)[:, :down, :across]
    if masks is not None:
        held = masks.double().unfold(2, tile, 1).unfold(3, tile, 1).sum((4, 5))[:, 0]
        worth = worth + (held >= held.amax((1, 2), keepdim=True))
    best = worth.flatten(1).argmax(1)
    return torch.stack([best // across, best % across], 1)


def _tiled(textures: Tensor, cuts: Tensor, tile: int) -> Tensor:
    """The square at each cut, mirrored at its edges without end."""
    index = []
    for axis in range(2):
        place = torch.arange(textures.shape[2 + axis], device=textures.device) % (2 * tile)
        place = torch.minimum(place, 2 * tile - 1 - place)
        index.append(cuts[:, axis, None].to(textures.device) + place)
    row = torch.arange(len(textures), device=textures.device)[:, None, None]
    return textures.permute(0, 2, 3, 1)[row, index[0][:, :, None], index[1][:, None, :]].permute(0, 3, 1, 2)


def silhouette(masks: Masks, like: Images, *, value: float = 1.0, background: float = 0.0) -> Images:
    """Outlines alone: `value` on the object, `background` elsewhere.  Raises InputError for masks that do not fit."""
    _fitting(masks, like)
    return torch.where(masks, value, background).to(like.dtype).expand_as(like).contiguous()


def scramble(x: Images, k: int, generator: torch.Generator | None = None) -> Others:
    """Every image cut into k x k tiles that are put back in random order, its own for each image.

    Sides that k does not divide are cropped at the right and below, with a CroppedWarning.  Raises InputError when k
    is not positive or exceeds a side.
    """
    height, width = x.shape[2:]
    if not 1 <= k <= min(height, width):
        raise InputError(f"images of {height}x{width} cannot be cut into {k}x{k} tiles")
    if height % k or width % k:
        warnings.warn(
            f"{height}x{width} pixels do not divide into {k}x{k} tiles; images were cropped to {height // k * k}x"
            f"{width // k * k}",
            CroppedWarning,
            stacklevel=2,
        )
    high, wide = height // k, width // k
    tiles = x[:, :, : high * k, : wide * k].reshape(*x.shape[:2], k, high, k, wide).permute(0, 2, 4, 1, 3, 5)
    tiles = tiles.flatten(1, 2)
    order = uniform(x, generator, (len(x), k * k)).argsort(1)
    mixed = tiles[torch.arange(len(x), device=x.device)[:, None], order]
    return (
        mixed.reshape(len(x), k, k, x.shape[1], high, wide)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(len(x), x.shape[1], high * k, wide * k)
    )


def shape_bias(model: Model, conflicts: CueConflicts, level: float = 0.95) -> Estimate:
    """Share of answers by shape among answers by shape or texture; other answers do not count.

    Raises InputError when no answer is either.
    """
    said = forward(model, conflicts.images).argmax(1)
    by_shape = said == conflicts.shape
    either = by_shape | (said == conflicts.texture)
    if not bool(either.any()):
        raise InputError(
            f"none of {len(said)} answers is the class of the shape or of the texture, so there is no bias to measure; "
            "are labels and model of the same classes?"
        )
    return clopper_pearson(int(by_shape.sum()), int(either.sum()), level)


def recognition(
    models: Mapping[str, Model],
    x: Images,
    y: Int[Tensor, " n"],
    changed: Mapping[str, Others],
    level: float = 0.95,
) -> Table:
    """Accuracy of every model on changed versions of the images that all of them get right unchanged.

    Rows are the versions (scrambled, silhouettes, ...), columns the models; images that one model gets wrong from the
    start would count against it everywhere.  Raises InputError when versions differ in number or none is left.
    """
    if wrong := [name for name, images in changed.items() if len(images) != len(x)]:
        raise InputError(f"{wrong[0]!r} holds {len(changed[wrong[0]])} images, the originals are {len(x)}")
    right = torch.stack([forward(model, x).argmax(1) == y for model in models.values()]).all(0)
    count = int(right.sum())
    if not count:
        raise InputError("no image is right under every model, so there is nothing to change")
    rows: list[tuple[Cell, ...]] = []
    for name, images in changed.items():
        kept = [int((forward(model, images[right]).argmax(1) == y[right]).sum()) for model in models.values()]
        rows.append((name, *(clopper_pearson(answers, count, level) for answers in kept)))
    return Table(
        "Accuracy on changed images",
        ("images", *models),
        tuple(rows),
        f"Of the {count} images that every model gets right unchanged.",
    )


def _same_images(x: Tensor, other: Tensor, name: str) -> None:
    if x.shape != other.shape:
        raise InputError(f"{name} have shape {tuple(other.shape)}, the images {tuple(x.shape)}; they must be alike")


def _fitting(masks: Tensor, x: Tensor) -> None:
    wanted = (len(x), 1, *x.shape[2:])
    if masks.shape != wanted:
        raise InputError(f"masks have shape {tuple(masks.shape)}; {wanted} was wanted for these images")
