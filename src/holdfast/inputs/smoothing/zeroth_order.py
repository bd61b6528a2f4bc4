"""Gradients of functions that only answer questions (Liu et al., 2020; used by Zhang et al., 2022).

For a function h of z in R^d, from differences of its values:

    coordinates (cge)   g = sum_i (h(z + mu e_i) - h(z - mu e_i)) / (2 mu) e_i                2 d queries
    directions (rge)    g = d / (mu q) sum_{j <= q} (h(z + mu u_j) - h(z)) u_j                q + 1 queries

with u_j uniform on the unit sphere.  Coordinates are exact for quadratics and have no variance; directions are unbiased
as mu -> 0 for any q, with a variance that grows with d.

Every row of z is a point of its own: h gets points (rows, *shape) and answers (rows,).  Where h needs something that
belongs to a row (its label), that goes into `context`, whose tensors are repeated along with the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from holdfast.core.errors import InputError

Function = Callable[..., Tensor]

#: Most random directions by default: the paper's q.
_DIRECTIONS = 192


@dataclass(frozen=True)
class FiniteDifferences:
    """How a gradient is guessed: `method`, number of random `directions` (rge), step `mu`, `batch` points a call.

    `directions=None` means the smaller of 192 and 2 d.  Raises InputError unless mu is positive and finite,
    directions at least 1 (and given for rge alone), batch at least 2.
    """

    method: str = "cge"
    directions: int | None = None
    mu: float = 5e-3
    batch: int = 8192

    def __post_init__(self) -> None:
        if self.method not in ("cge", "rge"):
            raise InputError(f"the method must be 'cge' (coordinates) or 'rge' (directions), got {self.method!r}")
        if not (self.mu > 0 and math.isfinite(self.mu)):
            raise InputError(f"mu, the step of the differences, must be positive and finite, got {self.mu}")
        if self.method == "cge" and self.directions is not None:
            raise InputError(
                f"cge asks along every coordinate, so directions={self.directions} has no meaning; leave it out or "
                "take method='rge'"
            )
        if (self.directions is not None and self.directions < 1) or self.batch < 2:
            raise InputError(
                f"directions must be at least 1 and batch at least 2, got {self.directions} and {self.batch}"
            )

    def probes(self, dimension: int) -> int:
        """Points away from z that one gradient in R^dimension takes."""
        if self.method == "cge":
            return 2 * dimension
        return self.directions if self.directions is not None else min(_DIRECTIONS, 2 * dimension)

    def queries(self, dimension: int) -> int:
        """Points that one gradient takes in all: rge also needs the value at z itself."""
        return self.probes(dimension) + (self.method == "rge")

    @torch.no_grad()
    def gradient(
        self,
        function: Function,
        z: Float[Tensor, "batch *shape"],
        generator: torch.Generator | None = None,
        context: Sequence[Tensor] = (),
        cotangent: Tensor | None = None,
        value: Tensor | None = None,
        refuse_constant: bool = True,
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, " batch"]]:
        """Gradient of <cotangent, function> at every row, and the mean of <cotangent, function> over what was asked.

        `cotangent` has the shape of the function's answers (ones when None, for functions with one number a row);
        `value` are the answers at z where they are known already (saves rge's extra query).  Raises InputError when
        the answers are not finite or of the wrong length, or, with `refuse_constant`, when none of them differs from
        its partner.
        """
        rows, shape = len(z), z.shape
        flat = z.detach().reshape(rows, -1)
        if rows == 0 or flat.shape[1] == 0:
            raise InputError(f"a gradient needs at least one row and one coordinate, got z of shape {tuple(shape)}")
        ask = _Asking(function, shape, tuple(context), cotangent)
        estimate = self._by_coordinates if self.method == "cge" else self._by_directions
        gradient, mean, changed = estimate(ask, flat, generator, value)
        if refuse_constant and not changed:
            raise InputError(
                f"the black box gave the same answer at every point within mu={self.mu:g} of each of {rows} inputs: it "
                "is piecewise constant there (trees, votes, rounded or saturated scores), and differences say nothing; "
                "use a larger mu, or a model with continuous scores"
            )
        return gradient.to(z.dtype).reshape(shape), mean

    def _by_coordinates(
        self, ask: _Asking, z: Tensor, generator: torch.Generator | None, value: Tensor | None
    ) -> tuple[Tensor, Tensor, bool]:
        rows, dimension = z.shape
        width = ((z + self.mu) - (z - self.mu)).double()  # the step that floating point really took
        gradient, total, changed = torch.zeros_like(width), torch.zeros_like(width[:, 0]), False
        for row, pair in _pieces(rows, dimension, max(1, self.batch // 2), z.device):
            points = z[row][:, None].repeat(1, 2, 1)
            places = torch.arange(len(row), device=z.device)
            points[places, 0, pair] += self.mu
            points[places, 1, pair] -= self.mu
            answers, weighted = ask(points.flatten(0, 1), row.repeat_interleave(2))
            ahead, behind = weighted.reshape(-1, 2).unbind(1)
            gradient[row, pair] = (ahead - behind) / width[row, pair]
            total.index_add_(0, row, ahead + behind)
            sides = answers.reshape(len(row), 2, -1)
            changed = changed or bool((sides[:, 0] != sides[:, 1]).any())
        return gradient, total / (2 * dimension), changed

    def _by_directions(
        self, ask: _Asking, z: Tensor, generator: torch.Generator | None, value: Tensor | None
    ) -> tuple[Tensor, Tensor, bool]:
        rows, dimension = z.shape
        count = self.probes(dimension)
        here, base = ask.all(z, self.batch) if value is None else ask.weigh(value, torch.arange(rows, device=z.device))
        gradient, changed = torch.zeros_like(z), False
        for row, _ in _pieces(rows, count, self.batch, z.device):
            u = unit_directions(len(row), dimension, generator, z.device, z.dtype)
            answers, weighted = ask(z[row] + self.mu * u, row)
            slope = (weighted - base[row]) * (dimension / (self.mu * count))
            gradient.index_add_(0, row, slope.to(z.dtype)[:, None] * u)
            changed = changed or bool((answers.reshape(len(row), -1) != here.reshape(rows, -1)[row]).any())
        return gradient, base, changed


def unit_directions(
    count: int,
    dimension: int,
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "count dimension"]:
    """Uniform on the unit sphere; drawn on the generator's device."""
    source = generator.device if generator is not None else device
    u = torch.randn((count, dimension), generator=generator, dtype=dtype, device=source).to(device)
    return u / u.norm(dim=1, keepdim=True)


class _Asking:
    """A function with what belongs to its rows: (points, row) -> answers, and <cotangent, answers> in float64."""

    def __init__(
        self, function: Function, shape: torch.Size, context: tuple[Tensor, ...], cotangent: Tensor | None
    ) -> None:
        self.function, self.shape, self.context = function, shape, context
        self.cotangent = cotangent
        if any(len(part) != shape[0] for part in context):
            raise InputError(
                f"every tensor of the context must have one entry a row, {shape[0]}, got {[len(p) for p in context]}"
            )

    def __call__(self, points: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        answers = self.function(points.reshape(-1, *self.shape[1:]), *(part[row] for part in self.context))
        if not isinstance(answers, Tensor) or answers.ndim == 0 or len(answers) != len(row):
            got = tuple(answers.shape) if isinstance(answers, Tensor) else type(answers).__name__
            raise InputError(f"the function must answer a tensor of one entry for each of {len(row)} points, got {got}")
        if not bool(torch.isfinite(answers).all()):
            raise InputError("the function gave NaN or infinite answers; clip what its loss takes the logarithm of")
        return self.weigh(answers.to(points.device), row)

    def weigh(self, answers: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        values = answers.reshape(len(answers), -1).double()
        if self.cotangent is None:
            if values.shape[1] != 1:
                raise InputError(
                    f"a loss must give one number a point, got answers of shape {tuple(answers.shape)}; reduce them, "
                    "or wrap the function as ZerothOrder and put any loss behind it"
                )
            return answers, values[:, 0]
        return answers, (values * self.cotangent.reshape(len(self.cotangent), -1).double()[row]).sum(1)

    def all(self, z: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        parts = [self(z[row], row) for row in torch.arange(len(z), device=z.device).split(batch)]
        return torch.cat([answers for answers, _ in parts]), torch.cat([weighted for _, weighted in parts])


def _pieces(rows: int, each: int, most: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(row, index) of `each` things a row, at most `most` at a time."""
    for start in range(0, rows * each, most):
        flat = torch.arange(start, min(start + most, rows * each), device=device)
        yield flat // each, flat % each


def zeroth_order_gradient(
    loss: Function,
    z: Float[Tensor, "batch *shape"],
    method: str = "cge",
    directions: int | None = None,
    mu: float = 5e-3,
    generator: torch.Generator | None = None,
    *,
    context: Sequence[Tensor] = (),
    batch: int = 8192,
) -> Float[Tensor, "batch *shape"]:
    """Gradient of `loss` at every row of z by queries alone; no graph is built and none is followed.

    `loss(points, *context)` gets (rows, *shape), at most `batch` rows a call, and answers (rows,).  See
    `FiniteDifferences` for the settings and the errors; `ZerothOrder` does the same behind `backward()`.
    """
    gradient, _ = FiniteDifferences(method, directions, mu, batch).gradient(loss, z, generator, context)
    return gradient


class ZerothOrder(nn.Module):
    """Any Python callable as a layer: forward asks it, backward asks it again to guess the gradient.

    `function(points, *context)` gets tensors (rows, *shape) without a graph and answers (rows, *out).  So
    `loss(ZerothOrder(function)(z), target).backward()` trains whatever made z.  The gradient is that of the function,
    contracted with what comes from behind, so the loss itself is differentiated exactly.

    Attributes
    ----------
    queries : points asked so far.
    """

    def __init__(
        self,
        function: Function,
        method: str = "cge",
        directions: int | None = None,
        mu: float = 5e-3,
        generator: torch.Generator | None = None,
        batch: int = 8192,
    ) -> None:
        super().__init__()
        self.function = function
        self.differences = FiniteDifferences(method, directions, mu, batch)
        self.generator = generator
        self.queries = 0

    def forward(self, z: Float[Tensor, "batch *shape"], *context: Tensor) -> Tensor:
        return _Differenced.apply(self, z, *context)

    def ask(self, points: Tensor, *context: Tensor) -> Tensor:
        """The function's answers, counted and cut from any graph."""
        self.queries += len(points)
        return self.function(points.detach(), *context).detach()


class _Differenced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: ZerothOrder, z: Tensor, *context: Tensor) -> Tensor:
        answers = layer.ask(z, *context)
        ctx.layer, ctx.inputs = layer, len(context)
        ctx.save_for_backward(z, answers, *context)
        return answers.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        z, answers, *context = ctx.saved_tensors
        layer = ctx.layer
        gradient, _ = layer.differences.gradient(layer.ask, z, layer.generator, context, cotangent, answers)
        return (None, gradient, *[None] * ctx.inputs)


@torch.no_grad()
def linear_share(
    function: Function,
    z: Float[Tensor, "batch *shape"],
    mu: float,
    generator: torch.Generator | None = None,
) -> float:
    """How well the first half of a step of length mu predicts the second: 1 for a slope, about 0 for jumps.

    With a = f(z + mu/2 u) - f(z) and b = f(z + mu u) - f(z + mu/2 u) in random directions u this is the cosine of all a
    with all b; 0 when nothing changes.  Three queries a row.  A small value says that differences at this mu are no
    derivative: the function is piecewise constant, or too coarse for so small a step.
    """
    flat = z.detach().reshape(len(z), -1)
    u = unit_directions(len(flat), flat.shape[1], generator, flat.device)
    points = torch.stack([flat.double() + length * mu * u for length in (0.0, 0.5, 1.0)])
    answers = function(points.to(z.dtype).reshape(-1, *z.shape[1:])).double().reshape(3, len(z), -1)
    first, second = answers[1] - answers[0], answers[2] - answers[1]
    size = float(first.norm() * second.norm())
    return float((first * second).sum()) / size if size > 0 else 0.0
