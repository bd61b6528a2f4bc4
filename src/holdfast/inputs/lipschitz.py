"""Lipschitz constants in the Euclidean norm: of one layer (`spectral_norm`) and of a network (`lipschitz_bound`).

    ||f(x) - f(x')||_2 <= L ||x - x'||_2

The constant of an affine map x -> J x + b is the largest singular value of J.  Power iteration

    v <- J'J v / ||J'J v||,     sigma = ||J v||

comes close from *below*: right for penalties and for watching training, never for a certificate.  `exact=True` takes
the largest eigenvalue of J'J or JJ', whichever is smaller, in float64.

A network is cut at its nonlinear nodes.  Each stretch of affine nodes between them (convolution, batch normalisation,
pooling, residual sum, ...) counts as one map with its exact norm; stretches in a row multiply.  A stretch that starts
from several values v_a of constants L_a, as behind a residual sum, has constant

    min( sum_a ||J_a|| L_a,   sqrt(m) ||[L_1 J_1 ... L_m J_m]|| ).

ReLU and leaky ReLU have constant 1, max pooling the square root of the most windows that share one input.  Every factor
is enlarged by what rounding may have taken from it, so the product is a bound (Szegedy et al., 2014, for products of
layer norms).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds.activation import LeakyReLU
from holdfast.inputs.bounds.graph import Bound, Graph, capture
from holdfast.inputs.bounds.pooling import MaxPool

#: An affine map on a batch, (batch, *in) -> (batch, *out).
Map = Callable[[Tensor], Tensor]

#: Largest side of a matrix whose eigenvalues are computed.
LARGEST = 6144
#: Numbers in one block of unit vectors and their images.
_BLOCK = 1 << 24

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


def spectral_norm(
    layer: nn.Module | Tensor,
    input_shape: tuple[int, ...] | None = None,
    exact: bool = False,
    *,
    iterations: int = 200,
    tolerance: float = 1e-7,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Largest singular value of a layer, as a scalar tensor that can be differentiated; `.item()` reads it.

    Parameters
    ----------
    layer : `nn.Linear`, a (transposed) convolution of one to three dimensions, or a matrix (out, in).
    input_shape : shape of one input, such as (channels, height, width); needed by convolutions, whose norm depends on
        the size of the image and on padding and stride.
    exact : the singular value itself, in float64.  Otherwise power iteration in the layer's dtype: an estimate from
        below.
    iterations, tolerance : power iteration stops when the estimate changes by less than this share, or after so many.
    generator : where the first vector comes from; a fixed stream when None.

    Raises InputError for other layers, a missing or wrong `input_shape`, and weights that are not finite;
    UnsupportedError when `exact` is asked of a map with more than `LARGEST` inputs and outputs.
    """
    weight = layer if isinstance(layer, Tensor) else getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not isinstance(layer, (Tensor, nn.Linear, *_CONVOLUTIONS)):
        raise InputError(
            f"the spectral norm is that of a linear layer, a convolution or a matrix, got {type(layer).__name__}; "
            "lipschitz_bound takes whole networks"
        )
    if not bool(torch.isfinite(weight).all()):
        raise InputError("the weights hold NaN or infinity; a norm needs finite ones")
    if isinstance(layer, (Tensor, nn.Linear)):
        if weight.ndim != 2:
            raise InputError(
                f"a matrix (out, in) is wanted, got shape {tuple(weight.shape)}; pass a convolution itself"
            )
        if exact:
            return torch.linalg.matrix_norm(weight.double(), 2)
        return _climbed(lambda v: v @ weight.T, (weight.shape[1],), weight, iterations, tolerance, generator)
    assert isinstance(layer, nn.Module)
    shape = _image_shape(layer, input_shape)
    if not exact:
        return _climbed(_linear_part(layer), shape, weight, iterations, tolerance, generator)
    double = {name: parameter.double() for name, parameter in layer.named_parameters()}
    image = partial(torch.func.functional_call, layer, double)
    return _largest(image, shape, weight.new_empty(0, dtype=torch.float64))[0]


def _image_shape(layer: nn.Module, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    axes, channels = layer.weight.ndim - 2, layer.in_channels  # type: ignore[operator]
    if shape is None or len(shape) != axes + 1 or shape[0] != channels or min(shape) < 1:
        raise InputError(
            f"a convolution's norm depends on the size of its input: give input_shape with {channels} channels and "
            f"{axes} sizes, got {shape}"
        )
    return tuple(shape)


def _linear_part(affine: Map) -> Map:
    def linear(v: Tensor) -> Tensor:
        return affine(v) - affine(torch.zeros_like(v[:1]))

    return linear


def _climbed(
    image: Map,
    shape: tuple[int, ...],
    like: Tensor,
    iterations: int,
    tolerance: float,
    generator: torch.Generator | None,
) -> Tensor:
    """||J v|| after power iteration; gradients pass through J, not through v."""
    if iterations < 1:
        raise InputError(f"power iteration needs at least one iteration, got {iterations}")
    stream = torch_generator(0, "lipschitz", "start") if generator is None else generator
    v = torch.randn((1, *shape), generator=stream, dtype=torch.float64).to(like)
    v, before = v / v.norm(), -math.inf
    for _ in range(iterations):
        pushed: Any = torch.func.vjp(image, v.detach())
        u, pullback = pushed
        size = float(u.detach().norm())
        if size == 0 or size - before <= tolerance * size:
            break
        before = size
        with torch.no_grad():
            (v,) = pullback(u.detach())
            v = v / v.norm()
    return image(v.detach()).norm()


def _largest(affine: Map, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, int, int]:
    """Largest singular value of an affine map's linear part, and how many outputs and inputs the map has."""
    out_shape = affine(like.new_zeros(1, *shape)).shape[1:]
    inputs, outputs = math.prod(shape), out_shape.numel()
    if min(inputs, outputs) > LARGEST:
        raise UnsupportedError(
            f"an affine stretch with {inputs} inputs and {outputs} outputs is too large for exact singular values "
            f"(up to {LARGEST} on the smaller side)"
        )

    def adjoint(u: Tensor) -> Tensor:
        pulled: Tensor = torch.func.vjp(affine, like.new_zeros(len(u), *shape))[1](u)[0]
        return pulled

    def image(v: Tensor) -> Tensor:
        # The adjoint of the adjoint: no constant part to subtract, so none to lose digits to.
        pushed: Tensor = torch.func.vjp(adjoint, like.new_zeros(len(v), *out_shape))[1](v)[0]
        return pushed

    # Rows of J'J or JJ', some unit vectors at a time.
    small, there, back = (shape, image, adjoint) if inputs <= outputs else (out_shape, adjoint, image)
    unit = torch.eye(min(inputs, outputs), dtype=like.dtype, device=like.device)
    blocks = unit.split(max(1, _BLOCK // (inputs + outputs)))
    gram = torch.cat([back(there(block.reshape(-1, *small))).flatten(1) for block in blocks])
    return torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt(), outputs, inputs


def lipschitz_bound(model: nn.Module | Graph, example: Float[Tensor, "batch *shape"]) -> float:
    """A number L with ||model(x) - model(x')||_2 <= L ||x - x'||_2 for all x, x'; exact for affine networks.

    `model` in evaluation mode, or its `capture`; `example` shows the shape of its input, values do not matter.  Float64
    throughout, rounding charged.

    Raises UnsupportedError for operators other than affine ones, (leaky) ReLU and max pooling, naming them, and for
    stretches of affine layers with more than `LARGEST` inputs and outputs; InputError for a layer in training mode.
    """
    graph = model if isinstance(model, Graph) else capture(model, example)
    broken = graph.not_finite()
    if broken:
        raise InputError(f"{', '.join(broken)} of the model holds NaN or infinity; a norm needs finite parameters")
    with torch.no_grad():
        nodes = graph.bind(torch.float64, example.device)
        constants = {0: 1.0}
        for position, node in enumerate(nodes, start=1):
            if not node.operator.affine:
                behind = _stretch(nodes, node.inputs[0], constants, graph.shape, example)
                constants[position] = behind * _steepest(node)
        return _stretch(nodes, graph.output, constants, graph.shape, example)


def _steepest(node: Bound) -> float:
    """Constant of a nonlinear node."""
    operator = node.operator
    if isinstance(operator, LeakyReLU):
        return 1.0
    if isinstance(operator, MaxPool):
        uses = torch.bincount(operator.table[~operator.absent].flatten())
        return math.sqrt(int(uses.max())) * (1 + 4 * torch.finfo(torch.float64).eps)
    raise UnsupportedError(
        f"no Lipschitz constant is known for {type(operator).__name__} ({node.name}); affine layers, (leaky) ReLU and "
        "max pooling are covered"
    )


def _stretch(
    nodes: list[Bound], position: int, constants: dict[int, float], shape: tuple[int, ...], example: Tensor
) -> float:
    """Constant of the value at `position`, from those of the nonlinear values (and the input) behind it."""
    if position in constants:
        return constants[position]
    starts, between = _behind(nodes, position, constants)
    shapes = {start: shape if start == 0 else nodes[start - 1].shape for start in starts}
    sizes = [math.prod(shapes[start]) for start in starts]

    def placed(flat: Tensor, scales: list[float]) -> dict[int, Tensor]:
        parts = flat.split(sizes, 1)
        return {s: scale * part.reshape(-1, *shapes[s]) for s, part, scale in zip(starts, parts, scales)}

    def value(flat: Tensor, scales: list[float]) -> Tensor:
        known = placed(flat, scales)
        for k in between:
            known[k] = nodes[k - 1].operator.value(*(known[i] for i in nodes[k - 1].inputs))
        return known[position]

    def norm(scales: list[float]) -> float:
        empty = torch.empty(0, dtype=torch.float64, device=example.device)
        sigma, rows, columns = _largest(lambda v: value(v, scales), (sum(sizes),), empty)
        # ||J'|| of absolute terms is at most the root of the number of rows times the largest sum of a row's terms.
        sums = placed(empty.new_ones(1, sum(sizes)), scales)
        for k in between:
            sums[k] = nodes[k - 1].operator.magnitude(*(sums[i] for i in nodes[k - 1].inputs))
        terms = rows + columns + sum(nodes[k - 1].operator.terms for k in between)
        charge = 4 * terms * torch.finfo(torch.float64).eps
        return math.sqrt(float(sigma) ** 2 * (1 + charge) + charge * rows * float(sums[position].max()) ** 2)

    reaches = [constants[start] for start in starts]
    together = math.sqrt(len(starts)) * norm(reaches)
    if len(starts) == 1:
        return together
    apart = [norm([reach if k == place else 0.0 for k in range(len(starts))]) for place, reach in enumerate(reaches)]
    return min(together, sum(apart)) * (1 + 4 * len(starts) * torch.finfo(torch.float64).eps)


def _behind(nodes: list[Bound], position: int, constants: dict[int, float]) -> tuple[list[int], list[int]]:
    """The nonlinear values that affine nodes connect to `position`, and those affine nodes, both in order."""
    starts: set[int] = set()
    between: set[int] = set()
    waiting = [position]
    while waiting:
        k = waiting.pop()
        if k in constants:
            starts.add(k)
        elif k not in between:
            between.add(k)
            waiting.extend(nodes[k - 1].inputs)
    return sorted(starts), sorted(between)
