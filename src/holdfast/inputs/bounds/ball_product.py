"""Products of which one factor lies in an L2 ball and the other in a box: what perturbed weights make of their input.

The box around a ball of n weights is larger than the ball by a factor that grows like the root of n; what is known of
the ball as a whole is worth keeping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from holdfast.inputs.bounds.affine import Targets
from holdfast.inputs.bounds.operator import Box, Call, Pulled, Relaxation
from holdfast.inputs.bounds.patches import Patches
from holdfast.inputs.bounds.product import MatrixProductOfTwo


class BallProduct(MatrixProductOfTwo):
    """x @ y where one factor W lies in an L2 ball, centre W_0 and radius rho, and the other, v, in a box.

    Around the centre c of the box, with radius r: W v = W_0 v + (W - W_0) c + (W - W_0)(v - c), and for rows A on the
    product the last term is at least  -rho || |A| r^T ||_2,  a row's own bound.
    """

    targets: ClassVar[Targets] = ()  # type: ignore[assignment]
    freedoms = 0

    def __init__(self, call: Call, side: int, centre: Tensor, radius: float) -> None:
        super().__init__(call)
        self.side, self.centre, self.radius = side, centre, radius

    def other(self, boxes: tuple[Box, ...]) -> Box:
        """The box of the factor that is not the ball."""
        return boxes[self.positions[1 - self.side]]

    def at_centre(self, v: Tensor) -> Tensor:
        """W_0 v."""
        centre = self.centre.expand(len(v), *self.centre.shape)
        return self.product(v, centre) if self.side else self.product(centre, v)

    def onto_ball(self, rows: Tensor, v: Tensor) -> Tensor:
        """rows . (W v) as rows on W."""
        return self.right(rows, v) if self.side else self.left(rows, v)

    def onto_other(self, rows: Tensor) -> Tensor:
        """rows . (W_0 v) as rows on v."""
        centre = self.centre[None, None]
        return self.left(rows, centre) if self.side else self.right(rows, centre)

    def interval(self, *boxes: Box) -> Box:
        v = self.other(boxes)
        middle, half = (v.upper + v.lower) / 2, (v.upper - v.lower) / 2
        length = self._length(v.magnitude)
        spread = self.magnitude_at(half) + self.radius * length
        value = self.at_centre(middle)
        charge = 8 * torch.finfo(value.dtype).eps * self.radius * length
        return super().interval(*boxes).intersect(Box(value - spread - charge, value + spread + charge))

    def magnitude_at(self, v: Tensor) -> Tensor:
        """|W_0| v."""
        centre = self.centre.abs().expand(len(v), *self.centre.shape)
        return self.product(v, centre) if self.side else self.product(centre, v)

    def _length(self, v: Tensor) -> Tensor:
        """2-norms along the contracted axis, to broadcast against the product."""
        return torch.linalg.vector_norm(v, dim=-1 if self.side else -2, keepdim=True)

    def relax(self, *boxes: Box, free: Tensor | None = None) -> Relaxation:
        return AroundCentre(self, self.other(boxes))


@dataclass(frozen=True)
class AroundCentre:
    """The enclosure of a `BallProduct` over the box of its other factor."""

    operator: BallProduct
    box: Box

    def pull(self, rows: Tensor, examples: slice) -> Pulled:
        operator = self.operator
        lower, upper = (end[examples].unsqueeze(1) for end in self.box)
        middle, half = (upper + lower) / 2, (upper - lower) / 2
        on_ball, on_other = operator.onto_ball(rows, middle), operator.onto_other(rows)
        reach = torch.linalg.vector_norm(operator.onto_ball(rows.abs(), half).flatten(2), dim=2)
        bias = -self._constant(rows, middle)
        parts: list[Any] = [None, None]
        parts[operator.positions[operator.side]] = on_ball
        parts[operator.positions[1 - operator.side]] = on_other
        return tuple(parts), bias - operator.radius * reach

    def _constant(self, rows: Tensor, middle: Tensor) -> Tensor:
        """rows . (W_0 c)."""
        value = self.operator.at_centre(middle.squeeze(1))
        return (rows.flatten(2) @ value.flatten(1)[..., None]).squeeze(-1)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return 8 * self.operator.magnitude(*sizes)

    def pull_patches(self, patches: Patches, examples: slice) -> Pulled | None:
        return None
