"""Bounds on a network's outputs when its *weights* move (and, if asked, its inputs too).

The parameters become inputs of the traced graph: one vector that holds every perturbed tensor W_k, each inside a set of
its own around the stored values.  With a fixed input the first layer y = W x is affine in W, so what an L2 ball of
weights does to it is exact (dual norm); further on both factors of W x move, and McCormick's planes enclose the
product (`product`).  Rows that reach the vector are charged layer by layer,

    min over the sets of <A, W' - W> = sum_k min over set k of <A_k, W_k' - W_k>.

By default set k is the L2 ball of radius eps ||W_k||_2, ||.||_2 the norm of the tensor as a vector.

Paper: Xu et al., 2020 (auto_LiRPA), section 3.4 and the experiment on flat minima.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.inputs.bounds.affine import Pick, Reshape
from holdfast.inputs.bounds.ball_product import BallProduct
from holdfast.inputs.bounds.bounding import Method, bounds
from holdfast.inputs.bounds.graph import Bound, Graph, capture
from holdfast.inputs.bounds.product import MatrixProductOfTwo
from holdfast.inputs.bounds.region import Bounds, Region
from holdfast.threats.balls import L2, Box, Linf
from holdfast.threats.base import Threat, Valid

aten = torch.ops.aten


@dataclass(frozen=True)
class WeightPerturbation:
    """How far parameters may move.

    eps : size; with `relative` (the default) times the tensor's own norm of the same kind, so that layers of any scale
        are treated alike.
    norm : "l2", every tensor inside a ball; "linf", every entry by itself.
    names : parameters to perturb, as `model.named_parameters()` calls them; None: all with two axes or more.

    Raises InputError for a size that is not positive and finite.
    """

    eps: float
    norm: Literal["l2", "linf"] = "l2"
    relative: bool = True
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise InputError(f"eps of a weight perturbation must be positive and finite, got {self.eps}")
        if self.norm not in ("l2", "linf"):
            raise InputError(f"weights are perturbed in the norms l2 or linf, got {self.norm!r}")

    def radius(self, weight: Tensor) -> float:
        """Size of the set around one tensor."""
        if not self.relative:
            return self.eps
        size = weight.abs().amax() if self.norm == "linf" else torch.linalg.vector_norm(weight)
        return self.eps * float(size)

    def chosen(self, model: nn.Module) -> dict[str, Tensor]:
        """The perturbed parameters.  Raises InputError for names that the model does not have, or when none is left."""
        parameters = dict(model.named_parameters())
        if self.names is None:
            found: dict[str, Tensor] = {
                name: parameter for name, parameter in parameters.items() if parameter.ndim >= 2
            }
        else:
            unknown = [name for name in self.names if name not in parameters]
            if unknown:
                raise InputError(f"the model has no parameters {', '.join(unknown)}; it has {', '.join(parameters)}")
            found = {name: parameters[name] for name in self.names}
        if not found:
            raise InputError("no parameter to perturb: none has two axes; name those you mean")
        return found


#: Number of entries, what may happen to them (None: nothing), and their valid range.
Part = tuple[int, Threat | None, Valid]


@dataclass(frozen=True, eq=False)
class Product(Threat):
    """One threat for every run of entries of a vector; `parts` in the order of the vector.

    Entries of a part without a threat do not move.
    """

    parts: tuple[Part, ...]

    @property
    def radius(self) -> float:
        return max(threat.radius for _, threat, _ in self.parts if threat is not None)

    def scaled(self, radius: float | int) -> Product:
        factor = radius / self.radius
        return Product(
            tuple(
                (n, None if threat is None else threat.scaled(factor * threat.radius), valid)
                for n, threat, valid in self.parts
            )
        )

    def describe(self) -> str:
        return "; ".join(threat.describe() for _, threat, _ in self.parts if threat is not None)

    def _split(self, x: Tensor) -> Sequence[Tensor]:
        return x.split([n for n, _, _ in self.parts], -1)

    def interval(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        ends = [
            (part, part) if threat is None else threat.interval(part, limits)
            for part, (_, threat, limits) in zip(self._split(x), self.parts)
        ]
        lower, upper = (torch.cat(side, -1) for side in zip(*ends))
        return lower, upper

    def worst(
        self, rows: Float[Tensor, "batch rows *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch rows"]:
        total = torch.zeros(rows.shape[:2], dtype=rows.dtype, device=rows.device)
        for row, part, (_, threat, limits) in zip(self._split(rows), self._split(x), self.parts):
            if threat is not None:
                total = total + threat.worst(row, part, limits)
        return total

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch *shape"]:
        moved = zip(self._split(x_adv), self._split(x), self.parts)
        return torch.cat(
            [b if threat is None else threat.project(a, b, limits) for a, b, (_, threat, limits) in moved], -1
        )

    def random_start(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        parts = zip(self._split(x), self.parts)
        return torch.cat(
            [
                p if threat is None else threat.random_start(p, limits, generator=generator)
                for p, (_, threat, limits) in parts
            ],
            -1,
        )

    def steepest(self, grad: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Every part in its own direction, scaled to its own radius over the largest one."""
        parts = zip(self._split(grad), self.parts)
        return torch.cat(
            [
                torch.zeros_like(p) if threat is None else threat.steepest(p) * (threat.radius / self.radius)
                for p, (_, threat, _) in parts
            ],
            -1,
        )


class OfWeights(nn.Module):
    """The model as a function of one vector (batch of one): its input, then its perturbed parameters."""

    def __init__(self, model: nn.Module, shape: Sequence[int], names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names, self.shape = model, tuple(names), tuple(shape)
        parameters = dict(model.named_parameters())
        self.shapes = [parameters[name].shape for name in self.names]

    def forward(self, flat: Tensor) -> Tensor:
        sizes = [math.prod(self.shape), *(shape.numel() for shape in self.shapes)]
        x, *parts = flat[0].split(sizes)
        weights = {name: part.reshape(shape) for name, part, shape in zip(self.names, parts, self.shapes)}
        result: Tensor = torch.func.functional_call(self.model, weights, (x.reshape(1, *self.shape),))
        return result


class PerturbedWeights:
    """A model as a function of one vector, its input and then its perturbed parameters; traced once.

    `model` in evaluation mode; `example` has the shape of its inputs (batch, *shape).  The bounds follow the model's
    present parameters and are differentiable in them; the radii of the sets are not.

    Raises InputError and UnsupportedError as `capture` does, and InputError for parameters that the model does not
    have.
    """

    def __init__(
        self, model: nn.Module, example: Float[Tensor, "batch *shape"], perturbation: WeightPerturbation
    ) -> None:
        if model.training:
            raise InputError("the model is in training mode; call model.eval()")
        self.model, self.perturbation = model, perturbation
        self.names = list(perturbation.chosen(model))
        wrapped = OfWeights(model, example.shape[1:], self.names).eval()
        self.graph = capture(wrapped, self._vector(example[:1]).detach(), also=WRITTEN_OUT)

    def bounds(self, x: Float[Tensor, "batch *shape"] | Region, **options: Any) -> Bounds:
        """Bounds of the outputs over all admissible weights, at fixed inputs or over a region; options: `bounds`."""
        graph, region = self.region(x)
        return bounds(graph, region, **options)

    def region(self, x: Float[Tensor, "batch *shape"] | Region) -> tuple[Graph, Region]:
        """The graph and the region of its input vector that stand for `x`."""
        inputs = x.x if isinstance(x, Region) else x
        flat = self._vector(inputs)
        parts = self._parts(x)
        whole = Product(parts)
        if self.perturbation.norm == "l2":
            known = {field.name: getattr(self.graph, field.name) for field in fields(self.graph)}
            return BallGraph(**known, parts=parts, centre=flat[0]), Region(flat, whole)
        if not isinstance(x, Region) or isinstance(x.threat, (Linf, Box)):
            lower, upper = (end - flat for end in whole.interval(flat.detach()))
            if bool((lower == lower[0]).all()) and bool((upper == upper[0]).all()):
                # A product of intervals, which boxes describe without loss.
                return self.graph, Region(flat, Box(lower[0].detach(), upper[0].detach()))
        return self.graph, Region(flat, whole)

    def _vector(self, inputs: Tensor) -> Tensor:
        chosen = self.perturbation.chosen(self.model)
        weights = torch.cat([chosen[name].to(inputs).flatten() for name in self.names])
        return torch.cat([inputs.flatten(1), weights.expand(len(inputs), -1)], 1)

    def _parts(self, x: Tensor | Region) -> tuple[Part, ...]:
        shape = tuple((x.x if isinstance(x, Region) else x).shape[1:])
        parts: list[Part] = [(math.prod(shape), None, None)]
        if isinstance(x, Region):
            parts = [(math.prod(shape), _Shaped(x.threat, shape), x.valid)]
        kind = Linf if self.perturbation.norm == "linf" else L2
        for weight in self.perturbation.chosen(self.model).values():
            radius = self.perturbation.radius(weight.detach().double())
            parts.append((weight.numel(), kind(radius) if radius > 0 else None, None))
        return tuple(parts)


def weight_bounds(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"] | Region,
    perturbation: WeightPerturbation,
    *,
    method: Method = "crown",
    spec: Float[Tensor, "batch rows outputs"] | None = None,
    rounding: Literal["nearest", "outward"] = "nearest",
    **options: Any,
) -> Bounds:
    """Bounds of C f(x; W') over all admissible weights W', and over the region when `x` is one.

    Parameters
    ----------
    model : in evaluation mode.
    x : fixed inputs (batch, *shape), or a `Region` of inputs.
    perturbation : the sets around the parameters; every example is bounded over all of them.
    method, spec, rounding, **options : as in `bounds`.

    For many calls on one model trace it once, with `PerturbedWeights`.  Raises what that does.
    """
    traced = PerturbedWeights(model, x.x if isinstance(x, Region) else x, perturbation)
    return traced.bounds(x, method=method, spec=spec, rounding=rounding, **options)


@dataclass(frozen=True)
class BallGraph(Graph):
    """A graph whose input vector has L2 balls as `parts`; products with a whole ball know that it is one."""

    parts: tuple[Part, ...] = ()
    centre: Tensor | None = None

    def bind(self, dtype: torch.dtype, device: torch.device) -> list[Bound]:
        """As in `Graph`, with `BallProduct` where a factor is the tensor of one part."""
        nodes = super().bind(dtype, device)
        origins = self._origins(nodes)
        for place, node in enumerate(nodes):
            if type(node.operator) is not MatrixProductOfTwo:
                continue
            for side in (1, 0):
                ball = self._ball(origins.get(node.inputs[node.operator.positions[side]]))
                if ball is not None:
                    operator = BallProduct(node.operator.call, side, ball[0].to(device, dtype), ball[1])
                    nodes[place] = replace(node, operator=operator)
                    break
        return nodes

    def _origins(self, nodes: Sequence[Bound]) -> dict[int, Tensor]:
        """For values that are entries of the vector moved around: which entries."""
        found = {0: torch.arange(self.shape[1], dtype=torch.float64)[None]}
        for position, node in enumerate(nodes, 1):
            if isinstance(node.operator, (Reshape, Pick)) and not node.operator.has_offset and node.inputs[0] in found:
                call = node.operator.call
                found[position] = type(node.operator)(replace(call, dtype=torch.float64)).value(
                    found[node.inputs[0]].reshape(1, *call.in_shapes[0])
                )
        return {position: value.reshape(value.shape[1:]).long() for position, value in found.items()}

    def _ball(self, entries: Tensor | None) -> tuple[Tensor, float] | None:
        """Centre (shaped like `entries`) and radius of the ball that these entries, all different, lie in."""
        if entries is None or self.centre is None or entries.unique().numel() < entries.numel():
            return None
        first = 0
        for size, threat, _ in self.parts:
            if first <= int(entries.min()) and int(entries.max()) < first + size:
                return (self.centre[entries], threat.radius) if isinstance(threat, L2) else None
            first += size
        return None


@dataclass(frozen=True, eq=False)
class _Shaped(Threat):
    """A threat of inputs of some shape, on inputs that were flattened."""

    inner: Threat
    shape: tuple[int, ...]

    @property
    def radius(self) -> float:
        return self.inner.radius

    def scaled(self, radius: float | int) -> _Shaped:
        return _Shaped(self.inner.scaled(radius), self.shape)

    def describe(self) -> str:
        return self.inner.describe()

    def _image(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], *self.shape)

    def interval(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        lower, upper = self.inner.interval(self._image(x), valid)
        return lower.flatten(1), upper.flatten(1)

    def worst(
        self, rows: Float[Tensor, "batch rows *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch rows"]:
        return self.inner.worst(self._image(rows), self._image(x), valid)

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch *shape"]:
        return self.inner.project(self._image(x_adv), self._image(x), valid).flatten(1)

    def random_start(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        return self.inner.random_start(self._image(x), valid, generator=generator).flatten(1)

    def steepest(self, grad: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        return self.inner.steepest(self._image(grad)).flatten(1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = x @ weight.t()
    return product if bias is None else product + bias


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if groups != 1 or isinstance(padding, str):
        return NotImplemented
    kernel = list(weight.shape[2:])
    stride, padding, dilation = (_pair(part) for part in (stride, padding, dilation))
    columns = aten.im2col.default(x, kernel, dilation, padding, stride)
    reach = [dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i] for i in (0, 1)]
    sizes = [(x.shape[2 + i] - reach[i]) // stride[i] + 1 for i in (0, 1)]
    product = (weight.flatten(1) @ columns).reshape(x.shape[0], -1, *sizes)
    return product if bias is None else product + bias.reshape(1, -1, 1, 1)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


#: Layers as products of matrices, of which either factor may move.
WRITTEN_OUT = {aten.linear.default: _linear, aten.conv2d.default: _convolution}
