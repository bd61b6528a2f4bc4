"""Norm balls and boxes around an input, cut by the valid range: `Linf`, `L2`, `L1`, `L0`, `Box`.

    S(x) = { x' : ||x' - x||_p <= eps,  low <= x' <= high }

Projections are Euclidean and exact on the cut set; `worst` is the exact minimum of a linear function over it.
Shapes: (batch, *shape).  Units: those of the input (pixels in [0, 1], or a feature's own unit).
Raises InputError for a size that is not positive and finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.threats.base import (
    Size,
    Threat,
    Valid,
    gaussian,
    per_example,
    room,
    uniform,
    valid_bounds,
    value_range,
)
from holdfast.threats.geometry import l1_fill, l1_threshold, l2_reach, l2_scale
from holdfast.threats.wording import number


def positive_size(value: Size, what: str, single: bool = False) -> float | Tensor:
    """`value` as a float, or (unless `single`) as a tensor of sizes of which at least one is positive."""
    if not isinstance(value, (Real, Tensor)) or (single and isinstance(value, Tensor)):
        wanted = "a number" if single else "a number, or a tensor with one for every input value"
        raise InputError(f"{what} must be {wanted}, got {value!r}; write e.g. 8/255 for pixels in [0, 1]")
    sizes = torch.as_tensor(value, dtype=torch.float64)
    if not bool(torch.isfinite(sizes).all()) or bool((sizes < 0).any()) or not bool((sizes > 0).any()):
        raise InputError(f"{what} must be positive and finite, got {value}; write e.g. 8/255 for pixels in [0, 1]")
    return value if isinstance(value, Tensor) else float(value)


def cut_rows(
    rows: Float[Tensor, "batch rows *shape"], x: Float[Tensor, "batch *shape"], valid: Valid
) -> tuple[Float[Tensor, "batch rows n"], Float[Tensor, "batch rows n"]]:
    """|row| and the room every coordinate has in the direction that lowers <row, d>."""
    down, up = (end.flatten(1)[:, None] for end in room(x, valid))
    flat = rows.flatten(2)
    return flat.abs(), torch.where(flat > 0, -down, up)


def box_worst(
    rows: Float[Tensor, "batch rows *shape"], down: Float[Tensor, "batch *shape"], up: Float[Tensor, "batch *shape"]
) -> Float[Tensor, "batch rows"]:
    """min over down <= d <= up of <row, d>: centre minus half width in the direction of every entry."""
    flat = rows.flatten(2)
    centre, half = ((up + down) / 2).flatten(1), ((up - down) / 2).flatten(1)
    return (flat @ centre[..., None] - flat.abs() @ half[..., None]).squeeze(-1)


@dataclass(frozen=True, eq=False)
class Linf(Threat):
    """All inputs within `eps` of the original in every coordinate.

    `eps` is a number, or a tensor that broadcasts against one example (its own size for every feature; 0 holds a
    feature fixed).
    """

    eps: Size

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", positive_size(self.eps, "eps of an L-infinity threat"))

    @property
    def radius(self) -> float:
        return float(self.eps.max()) if isinstance(self.eps, Tensor) else float(self.eps)

    def scaled(self, radius: float | int) -> Linf:
        return Linf(self.eps * (radius / self.radius) if isinstance(self.eps, Tensor) else radius)

    def describe(self) -> str:
        if isinstance(self.eps, Tensor):
            return f"every feature moved by at most its own allowance (the largest is {number(self.radius)})"
        return f"every value moved by at most {number(self.radius)}"

    def _size(self, like: Tensor) -> float | Tensor:
        return self.eps.to(like) if isinstance(self.eps, Tensor) else float(self.eps)

    def norm(self, delta: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        size = delta.abs()
        if isinstance(self.eps, Tensor):
            share = size * (self.radius / self._size(delta))
            size = torch.where(size > 0, share, 0.0)
        return size.flatten(1).amax(1)

    def interval(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        eps = self._size(x)
        if valid is None:
            return x - eps, x + eps
        low, high = valid_bounds(x, valid)
        return torch.maximum(x - eps, low), torch.minimum(x + eps, high)

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch *shape"]:
        low, high = self.interval(x, valid)
        return torch.clamp(x_adv, low, high)

    def random_start(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        return self.project(x + self._size(x) * (2 * uniform(x, generator) - 1), x, valid)

    def steepest(self, grad: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        return grad.sign() * (self._size(grad) / self.radius) if isinstance(self.eps, Tensor) else grad.sign()

    def worst(
        self, rows: Float[Tensor, "batch rows *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch rows"]:
        if valid is None and not isinstance(self.eps, Tensor):
            return -float(self.eps) * rows.flatten(2).abs().sum(-1)
        low, high = self.interval(x, valid)
        return box_worst(rows, low - x, high - x)


@dataclass(frozen=True, eq=False)
class Box(Threat):
    """All inputs x + d with `scale * low` <= d <= `scale * high` (low <= 0 <= high): every coordinate has its own two
    allowances.

    `low` and `high` are numbers or tensors that broadcast against one example; `scale` stretches the whole box and is
    its radius.
    """

    low: Size
    high: Size
    scale: float = 1.0

    def __post_init__(self) -> None:
        down, up = torch.as_tensor(self.low), torch.as_tensor(self.high)
        finite = bool(torch.isfinite(down).all()) and bool(torch.isfinite(up).all())
        if not finite or bool((down > 0).any()) or bool((up < 0).any()):
            raise InputError(
                "a Box takes how far each coordinate may move down (low <= 0) and up (high >= 0), "
                f"got {self.low} and {self.high}"
            )
        positive_size(self.scale, "scale of a Box")

    @property
    def radius(self) -> float:
        return float(self.scale)

    def scaled(self, radius: float | int) -> Box:
        return Box(self.low, self.high, radius)

    def describe(self) -> str:
        return f"every feature moved by at most {number(self.radius)} times its own allowance"

    def _reach(self, like: Tensor) -> tuple[Tensor, Tensor]:
        down, up = (torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in (self.low, self.high))
        return down * self.scale, up * self.scale

    def norm(self, delta: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Gauge of the box: the smallest `scale` that holds the perturbation."""
        down, up = self._reach(delta)
        share = torch.where(delta > 0, delta / up, delta / down) * self.scale
        return torch.where(delta == 0, 0.0, share).flatten(1).amax(1)

    def interval(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        down, up = self._reach(x)
        low, high = valid_bounds(x, valid)
        return torch.maximum(x + down, low), torch.minimum(x + up, high)

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch *shape"]:
        low, high = self.interval(x, valid)
        return torch.clamp(x_adv, low, high)

    def random_start(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        low, high = self.interval(x, valid)
        return torch.clamp(low + (high - low) * uniform(x, generator), low, high)

    def steepest(self, grad: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        down, up = self._reach(grad)
        return torch.where(grad > 0, up, torch.where(grad < 0, down, 0.0)) / self.scale

    def worst(
        self, rows: Float[Tensor, "batch rows *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch rows"]:
        low, high = self.interval(x, valid)
        return box_worst(rows, low - x, high - x)


@dataclass(frozen=True, eq=False)
class L2(Threat):
    """All inputs within Euclidean distance `eps` of the original."""

    eps: float | int

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", positive_size(self.eps, "eps of an L2 threat", single=True))

    @property
    def radius(self) -> float:
        return float(self.eps)

    def scaled(self, radius: float | int) -> L2:
        return L2(radius)

    def describe(self) -> str:
        return f"the whole input moved by at most {number(self.radius)} in Euclidean distance"

    def norm(self, delta: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        size: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return size

    def interval(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        return Linf(self.eps).interval(x, valid)

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch *shape"]:
        low, high = valid_bounds(x, valid)
        clipped = torch.clamp(x_adv, low, high)
        outside = self.norm(clipped - x) > self.radius
        if not bool(outside.any()):
            return clipped
        wanted = x_adv - x
        cap = torch.where(wanted > 0, high - x, x - low)
        scale = l2_scale(wanted.abs().flatten(1), cap.flatten(1), self.radius).clamp(max=1)
        shrunk = torch.clamp(x + per_example(scale, x) * wanted, low, high)
        return torch.where(per_example(outside, x), shrunk, clipped)

    def random_start(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """A point on the sphere, clipped to the valid range (which brings it closer, never further)."""
        low, high = valid_bounds(x, valid)
        return torch.clamp(x + self.radius * self.steepest(gaussian(x, generator)), low, high)

    def steepest(self, grad: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        # Divided by its largest entry first: squares of a small gradient underflow.
        grad = grad / per_example(grad.flatten(1).abs().amax(1).clamp(min=torch.finfo(grad.dtype).tiny), grad)
        length = torch.linalg.vector_norm(grad.flatten(1), dim=1)
        unit: Tensor = grad / per_example(torch.where(length > 0, length, 1.0), grad)
        return unit

    def worst(
        self, rows: Float[Tensor, "batch rows *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch rows"]:
        if valid is None:
            return -self.radius * torch.linalg.vector_norm(rows.flatten(2), dim=-1)
        return -l2_reach(*cut_rows(rows, x, valid), self.radius)


@dataclass(frozen=True, eq=False)
class L1(Threat):
    """All inputs whose absolute changes sum to at most `eps`."""

    eps: float | int

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", positive_size(self.eps, "eps of an L1 threat", single=True))

    @property
    def radius(self) -> float:
        return float(self.eps)

    def scaled(self, radius: float | int) -> L1:
        return L1(radius)

    def describe(self) -> str:
        return f"the values moved by at most {number(self.radius)} in all"

    def norm(self, delta: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        return delta.flatten(1).abs().sum(1)

    def interval(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        return Linf(self.eps).interval(x, valid)

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch *shape"]:
        low, high = valid_bounds(x, valid)
        wanted = x_adv - x
        cap = torch.where(wanted > 0, high - x, x - low)
        threshold = l1_threshold(wanted.abs().flatten(1), cap.flatten(1), self.radius)
        moved = wanted.sign() * (wanted.abs() - per_example(threshold, x)).clamp(min=0)
        return torch.clamp(x + moved, low, high)

    def random_start(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """A point of the L1 sphere (exponential magnitudes, random signs), clipped to the valid range."""
        low, high = valid_bounds(x, valid)
        size = -torch.log1p(-uniform(x, generator))
        size = size * per_example(self.radius / self.norm(size).clamp(min=torch.finfo(x.dtype).tiny), x)
        return torch.clamp(x + size * torch.where(uniform(x, generator) < 0.5, -1.0, 1.0), low, high)

    def steepest(self, grad: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """All of it on the coordinate with the largest gradient."""
        flat = grad.flatten(1)
        place = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, place, flat.gather(1, place).sign()).reshape(grad.shape)

    def worst(
        self, rows: Float[Tensor, "batch rows *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch rows"]:
        if valid is None:
            return -self.radius * rows.flatten(2).abs().amax(-1)
        return -l1_fill(*cut_rows(rows, x, valid), self.radius)


def sum_over_channels(values: Tensor, leading: int) -> Tensor:
    """(*leading, *shape) -> (*leading, pixels): an image's channels are summed; anything else has one channel."""
    if values.ndim - leading == 3:
        return values.sum(leading).flatten(leading)
    return values.flatten(leading)


def spread_over_channels(per_pixel: Tensor, like: Tensor) -> Tensor:
    """(batch, pixels) -> broadcastable to `like`."""
    if like.ndim == 4:
        return per_pixel.reshape(len(like), 1, *like.shape[2:])
    return per_pixel.reshape(like.shape)


@dataclass(frozen=True, eq=False)
class L0(Threat):
    """At most `pixels` pixels changed, each freely within the valid range; all channels of an image's pixel count
    once.
    """

    pixels: int

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise InputError(f"an L0 threat changes at least one pixel, got {self.pixels}")

    @property
    def radius(self) -> float:
        return float(self.pixels)

    def scaled(self, radius: float | int) -> L0:
        return L0(max(1, math.floor(radius + 0.5)))

    def describe(self) -> str:
        return (
            "one pixel or feature replaced" if self.pixels == 1 else f"up to {self.pixels} pixels or features replaced"
        )

    def stride(self, valid: Valid = None) -> float:
        return value_range(valid, self)

    def norm(self, delta: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        return (sum_over_channels(delta.abs(), 1) > 0).sum(1).to(delta.dtype)

    def interval(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        return valid_bounds(x, valid)

    def _largest(self, gain: Float[Tensor, "batch pixels"]) -> Tensor:
        keep = gain.topk(min(self.pixels, gain.shape[1]), dim=1).indices
        return torch.zeros_like(gain, dtype=torch.bool).scatter(1, keep, True)

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch *shape"]:
        low, high = valid_bounds(x, valid)
        clipped = torch.clamp(x_adv, low, high)
        gain = (x_adv - x).square() - (x_adv - clipped).square()
        keep = spread_over_channels(self._largest(sum_over_channels(gain, 1)), x)
        return torch.where(keep, clipped, x)

    def random_start(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        value_range(valid, self)
        low, high = valid_bounds(x, valid)
        order = uniform(x, generator, tuple(sum_over_channels(x, 1).shape))
        drawn = torch.clamp(low + (high - low) * uniform(x, generator), low, high)
        return torch.where(spread_over_channels(self._largest(order), x), drawn, x)

    def steepest(self, grad: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The sign of the gradient on the pixels where it is largest: every value of a changed pixel moves by one."""
        keep = self._largest(sum_over_channels(grad.abs(), 1))
        return grad.sign() * spread_over_channels(keep, grad).to(grad.dtype)

    def worst(
        self, rows: Float[Tensor, "batch rows *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch rows"]:
        value_range(valid, self)
        down, up = (end[:, None] for end in room(x, valid))
        lowest = sum_over_channels(torch.minimum(rows * down, rows * up), 2)
        return lowest.topk(min(self.pixels, lowest.shape[-1]), dim=-1, largest=False).values.sum(-1)
