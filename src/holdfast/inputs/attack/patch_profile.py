"""How often one patch fools a model, by what fills it and by where it lies on the model's grid of tokens.

    FR = #(right on the clean image and wrong on the patched one) / #(right on the clean image)

A patch is "natural" when the same window is filled from a corrupted copy of the image, and adversarial when it is
optimised (`PatchAttack`).  A vision transformer cuts its image into tokens of p x p pixels: a patch on the grid takes
one token whole, a patch moved off it by o pixels takes parts of up to four (Gu, Tresp & Qin, 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.intervals import clopper_pearson
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.attack.loop import Model, forward
from holdfast.inputs.attack.patch import PatchAttack
from holdfast.inputs.corruption import FAMILIES, LABELS, corrupt
from holdfast.threats.base import Valid, value_range
from holdfast.threats.places import Patch

KINDS = ("adversarial", "natural", "noise", "blank", *FAMILIES)


def token_places(
    patch: Patch,
    x: Float[Tensor, "batch *shape"],
    *,
    offset: int = 0,
    align: bool = True,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "batch 2"]:
    """(top, left) of a random patch an image; on the grid of patch-sized tokens moved down and right by `offset`.

    With `align` the patch lies on one token of the interior, away from the border by at least one token where the
    image is that large.  Without it every place of the image is as likely.  Raises InputError for a patch that does
    not fit or divide the image, and an offset outside [0, side).
    """
    patch.places(x)
    if not align:
        return patch.random_places(x, generator=generator)
    sides = (patch.height, patch.width)
    if x.shape[2] % sides[0] or x.shape[3] % sides[1]:
        raise InputError(
            f"a {sides[0]}x{sides[1]} patch does not divide images of {x.shape[2]}x{x.shape[3]}, so there is no grid "
            "to align it with; pass align=False or the size of the model's tokens"
        )
    if not 0 <= offset < min(sides):
        raise InputError(f"an offset from the grid lies in [0, {min(sides)}), got {offset}")
    corners = []
    device = x.device if generator is None else generator.device
    for axis, side in enumerate(sides):
        tokens = x.shape[2 + axis] // side
        first, last = (1, tokens - 2) if tokens > 2 else (0, tokens - 1 - (offset > 0 and tokens > 1))
        token = torch.randint(first, last + 1, (len(x),), generator=generator, device=device)
        corners.append((token * side + offset).clamp(max=x.shape[2 + axis] - side))
    return torch.stack(corners, 1).to(x.device)


def filled_from(
    other: Float[Tensor, "batch channels height width"],
    x: Float[Tensor, "batch channels height width"],
    patch: Patch,
    places: Int[Tensor, "batch 2"],
) -> Float[Tensor, "batch channels height width"]:
    """x with the window at `places` taken from `other`."""
    mask = patch.mask(places[:, 0], places[:, 1], *x.shape[2:])
    return torch.where(mask, other, x)


def corrupted(
    x: Float[Tensor, "batch channels height width"],
    family: str,
    severity: int,
    generator: np.random.Generator,
    valid: Valid = (0, 1),
) -> Float[Tensor, "batch channels height width"]:
    """Whole images under one corruption, in the valid range; a window of them is a natural patch.

    Blurs and compression look beyond a window's edge, as they would on a real image.  Raises InputError for a range
    with no ends, and as `corrupt`.
    """
    low, high = _ends(x, valid)
    unit = ((x - low) / (high - low)).clamp(0, 1).cpu().numpy()
    made = corrupt(unit, family, severity, generator=generator, layout="channels_first")
    return low + (high - low) * torch.from_numpy(made).to(x)


def patched(
    model: Model,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    patch: Patch,
    places: Int[Tensor, "batch 2"],
    kind: str = "adversarial",
    *,
    severity: int = 3,
    steps: int = 30,
    step_size: float = 0.1,
    valid: Valid = (0, 1),
    seed: int = 0,
) -> Float[Tensor, "batch channels height width"]:
    """Images with one patch of a kind at the given places.

    "adversarial" (cross-entropy, signed steps), a family of corruption, "natural" (a family drawn for each image),
    "noise" (uniform) or "blank" (the middle of the range).  An image the model gets wrong gets no adversarial patch.
    Raises InputError for a kind that is not one of `KINDS`.
    """
    stream = torch_generator(seed, "patch", kind, device=x.device)
    if kind == "adversarial":
        attack = PatchAttack(patch, steps=steps, step_size=step_size, locations=places, loss="ce")
        return attack(model, x, y, valid=valid, generator=stream)
    if kind in FAMILIES:
        return filled_from(corrupted(x, kind, severity, numpy_generator(seed, "patch", kind), valid), x, patch, places)
    if kind == "natural":
        drawn = torch.randint(len(FAMILIES), (len(x),), generator=stream, device=x.device)
        found = x.clone()
        for index in drawn.unique().tolist():
            rows = (drawn == index).nonzero().squeeze(1)
            other = corrupted(x[rows], FAMILIES[index], severity, numpy_generator(seed, "patch", kind, index), valid)
            found[rows] = filled_from(other, x[rows], patch, places[rows])
        return found
    low, high = _ends(x, valid)
    if kind == "noise":
        share = torch.rand(x.shape, generator=stream, dtype=x.dtype, device=x.device)
    elif kind == "blank":
        share = torch.full_like(x, 0.5)
    else:
        raise InputError(f"unknown kind of patch {kind!r}; choose from {', '.join(KINDS)}")
    return filled_from(low + (high - low) * share, x, patch, places)


def _ends(x: Tensor, valid: Valid) -> tuple[Tensor, Tensor]:
    value_range(valid, Patch(1, 1))
    assert valid is not None
    low, high = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in valid)
    return low, high


def fooling_rate(right: Bool[Tensor, " batch"], wrong: Bool[Tensor, " batch"], level: float = 0.95) -> Estimate:
    """Share of the images a model gets `right` clean on which it is `wrong` patched, with its exact interval.

    Raises InputError when no image is right.
    """
    if not bool(right.any()):
        raise InputError("the model gets no clean image right, so no image can be fooled")
    return clopper_pearson(int((right & wrong).sum()), int(right.sum()), level)


def patch_profile(
    model: Model,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    patch: Patch,
    kinds: Sequence[str] = ("adversarial", "natural"),
    offsets: Sequence[int] = (0,),
    *,
    align: bool = True,
    severity: int = 3,
    steps: int = 30,
    step_size: float = 0.1,
    valid: Valid = (0, 1),
    seed: int = 0,
) -> Table:
    """Fooling rates of one patch at random places by kind and by offset from the grid of tokens.

    The first row is the accuracy on clean images: rates of models of different accuracy are not alike, since each is
    a share of what that model gets right.  Raises InputError as `token_places`, `patched` and `fooling_rate`.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"unknown kind of patch {unknown[0]!r}; choose from {', '.join(KINDS)}")
    right = forward(model, x).argmax(1) == y
    rows: list[tuple[str, int | None, Estimate]] = [("clean accuracy", None, clopper_pearson(int(right.sum()), len(x)))]
    for offset in offsets:
        places = token_places(patch, x, offset=offset, align=align, generator=torch_generator(seed, "places"))
        for kind in kinds:
            made = patched(
                model,
                x,
                y,
                patch,
                places,
                kind,
                severity=severity,
                steps=steps,
                step_size=step_size,
                valid=valid,
                seed=seed,
            )
            rate = fooling_rate(right, forward(model, made).argmax(1) != y)
            rows.append((LABELS.get(kind, kind), offset if align else None, rate))
    return Table(
        f"Images fooled by one {patch.height}x{patch.width} patch",
        ("patch", "pixels off the grid", "fooling rate"),
        tuple(rows),
        "Of the images that were right without it, the share that is wrong with it.",
    )
