"""Fixed patches stamped on inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.core.errors import InputError


@dataclass(frozen=True, eq=False)
class PatchTrigger:
    """Inputs with the entries under `mask` moved the share `blend` of the way to `value`; 1 replaces them.

    `mask` (*shape) is bool like one input, `value` a number or a tensor that broadcasts against one.
    A trigger that changes no value by more than the certifier's eps is one of the changes that it certifies against.
    Raises InputError for an empty mask, values that are not finite, or a blend outside (0, 1].
    """

    mask: Bool[Tensor, "*shape"]
    value: float | Tensor = 1.0
    blend: float = 1.0

    def __post_init__(self) -> None:
        if not bool(self.mask.any()):
            raise InputError("the trigger's mask is empty: it would change nothing")
        if not bool(torch.isfinite(torch.as_tensor(self.value)).all()) or not 0 < self.blend <= 1:
            raise InputError(f"a trigger needs finite values and a blend in (0, 1], got blend {self.blend}")

    @classmethod
    def rectangle(
        cls,
        shape: tuple[int, ...],
        top: int,
        left: int,
        height: int,
        width: int,
        value: float | Tensor = 1.0,
        blend: float = 1.0,
    ) -> PatchTrigger:
        """A rectangle in images of `shape` (..., rows, columns).  Raises InputError where it leaves the image."""
        rows, columns = shape[-2:]
        if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
            raise InputError(
                f"a {height}x{width} patch at ({top}, {left}) does not lie in an image of {rows}x{columns}"
            )
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[..., top : top + height, left : left + width] = True
        return cls(mask, value, blend)

    def __call__(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Triggered inputs.  Raises InputError for inputs of another shape."""
        if x.shape[1:] != self.mask.shape:
            raise InputError(f"the trigger is for inputs of shape {tuple(self.mask.shape)}, got {tuple(x.shape[1:])}")
        value = torch.as_tensor(self.value, dtype=x.dtype, device=x.device)
        return torch.where(self.mask.to(x.device), x + self.blend * (value - x), x)
