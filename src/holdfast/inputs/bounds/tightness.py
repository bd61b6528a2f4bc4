"""How much interval propagation over-estimates, and which layer loses it (Mao et al., 2024).

For a deep linear network W = W_L ... W_1 and a box of radii eps, the best box of the output over the one that intervals
give layer by layer is, output by output,

    tau = (|W_L ... W_1| eps) / (|W_L| ... |W_1| eps)        in (0, 1]

A ReLU network is linear near an input: every ReLU is the 0/1 mask that it applies there, every max pooling the choice
that it makes there.  `propagation_tightness` evaluates tau of that linear network, which is what the ratio tends to as
eps goes to 0, with the box cut by the valid range.  At an eps where masks change it is *not* the tightness of the
network itself.

The numerator takes one backward pass of a row for every output; the denominator one forward pass of radii.  With labels
the rows are margins e_y - e_k folded into the last layer, as certification does it.

At initialisation, with independent Gaussian weights (expectation over expectation, exact for any depth):

    tau = prod over hidden layers of  sqrt(pi) Gamma((d+1)/2) / (d Gamma(d/2))  ~  sqrt(pi / (2 d))

because every hidden layer of width d multiplies the norm of a column by a chi variable with d degrees of freedom, and
the sum of absolute values by d sqrt(2/pi).  With ReLUs a hidden unit is masked with probability 1/2, independently of
the absolute values of its weights, so chi has Binomial(d, 1/2) degrees and d becomes d/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special, stats
from torch import Tensor, nn

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import paired_difference
from holdfast.inputs.bounds.activation import LeakyReLU
from holdfast.inputs.bounds.graph import Bound, Graph, capture
from holdfast.inputs.bounds.operator import Affine, Box
from holdfast.inputs.bounds.pooling import MaxPool, Selected
from holdfast.inputs.bounds.region import Region, margin_spec
from holdfast.inputs.bounds.rows import added, dense
from holdfast.threats.balls import Linf

Relu = Literal["local", "linear"]
_EVERY = slice(None)
#: Numbers in the rows that one part of a batch may take.
_LARGEST = 1 << 25


@dataclass(frozen=True)
class TightnessReport:
    """Tightness of interval propagation around every example.

    per_output : (batch, outputs), or (batch, classes - 1) margins when labels were given, rivals in ascending order.
        An output that nothing reaches (every path masked) loses nothing: 1.
    mean : over outputs, then examples, with Student's interval over examples.
    per_layer_loss : factor lost at the box that is formed behind each layer, in (0, 1], in order.  Factor k is
        tau of the network from layer k on over tau of the network after layer k, both fed with the radii that intervals
        give there; their product is the mean tau.  Keys are the paths of the layers in the model, or the tracer's names
        for operations outside a layer (a residual sum) and for layers that are used several times.
    """

    per_output: Float[Tensor, "batch outputs"]
    mean: Estimate
    per_layer_loss: Mapping[str, float]


def propagation_tightness(
    model: nn.Module | Graph,
    x: Float[Tensor, "batch *shape"],
    eps: float | int | Float[Tensor, "..."],
    y: Int[Tensor, " batch"] | None = None,
    valid: tuple[float | int, float | int] | None = (0, 1),
    relu: Relu = "local",
) -> TightnessReport:
    """Optimal box over layer-wise box of the network's linear map at each `x`.

    Parameters
    ----------
    model : in evaluation mode, or its `capture`.
    eps : radius in every coordinate, or one for each (a tensor that broadcasts against one example).
    y : labels; the outputs are then the margins to every other class.
    valid : range that cuts the box, or None.
    relu : "local" takes the masks at x; "linear" leaves ReLUs out, which needs a network without max pooling.

    Raises InputError for a radius that is not positive, an empty valid range, inputs outside it and labels that do not
    fit; UnsupportedError, naming them, for layers other than affine ones, (leaky) ReLU and max pooling.
    """
    if valid is not None and not valid[0] < valid[1]:
        raise InputError(f"the valid range [{valid[0]}, {valid[1]}] is empty; give its lowest and highest value")
    region = Region(x.detach().double(), Linf(eps), valid)
    if y is not None and len(y) != len(x):
        raise InputError(f"got {len(x)} inputs but {len(y)} labels; give one label an input")
    graph = model if isinstance(model, Graph) else capture(model, x)
    spec = None if y is None else margin_spec(y, graph.outputs)
    if relu not in ("local", "linear"):
        raise InputError(f"ReLUs are taken 'local' or 'linear', got {relu!r}")
    places, reach = _reached(graph, spec, region, relu)
    whole = reach[0].where(reach[0] > 0, torch.ones_like(reach[0]))
    tau = [torch.where(reach[0] > 0, part / whole, 1.0).clamp(max=1) for part in reach]
    values = tau[-1].mean(1).cpu().numpy()
    mean = paired_difference(np.zeros_like(values), values)
    return TightnessReport(tau[-1], mean, _lost(graph, places, [float(part.mean()) for part in tau]))


def _reached(graph: Graph, spec: Tensor | None, region: Region, relu: Relu) -> tuple[list[int], list[Tensor]]:
    """Positions of the boxes dropped one after the other, from the output on, and the radii of the rows then."""
    with torch.no_grad():
        nodes = graph.bind(torch.float64, region.x.device)[: graph.output]
        _check_layers(graph, nodes, relu)
        low, high = region.interval()
        size = max([math.prod(node.shape) for node in nodes] + [region.x[0].numel()])
        together = max(1, _LARGEST // (size * graph.outputs))
        found = []
        for first in range(0, len(region), together):
            part = slice(first, first + together)
            local = _Local.at(nodes, region.x[part], (high - low)[part] / 2, relu)
            found.append(local.reaches(_rows(graph, spec, part, low)))
    places = list(found[0])
    return places, [torch.cat([part[place] for part in found]) for place in places]


def _lost(graph: Graph, places: Sequence[int], means: Sequence[float]) -> dict[str, float]:
    """Factors of the mean from one place to the next, in the order of the network; 1 where nothing was left to lose."""
    steps = [place - 1 for place in places]
    paths = [_path(graph, step) for step in steps]
    names = [
        path if path and paths.count(path) == 1 else graph.steps[step].node.name for path, step in zip(paths, steps)
    ]
    return {names[k]: means[k] / means[k - 1] if means[k - 1] else 1.0 for k in range(len(names) - 1, 0, -1)}


def _rows(graph: Graph, spec: Tensor | None, run: slice, like: Tensor) -> Tensor:
    shape = graph.out_shape
    if spec is not None:
        return spec[run].reshape(-1, spec.shape[1], *shape)
    unit = torch.eye(graph.outputs, dtype=torch.float64, device=like.device).reshape(1, -1, *shape)
    return unit.expand(len(like[run]), *unit.shape[1:])


def _check_layers(graph: Graph, nodes: Sequence[Bound], relu: Relu) -> None:
    known: tuple[type, ...] = (Affine, LeakyReLU, MaxPool) if relu == "local" else (Affine, LeakyReLU)
    strange = [
        f"{type(node.operator).__name__} ({_path(graph, k) or node.name})"
        for k, node in enumerate(nodes)
        if not isinstance(node.operator, known)
    ]
    if strange:
        layers = "affine layers, ReLU and max pooling" if relu == "local" else "affine layers and ReLU"
        raise UnsupportedError(f"tightness is defined for {layers}; the path also has {', '.join(strange)}")


def _path(graph: Graph, step: int) -> str:
    """Path of the layer that made the call; empty where no single layer did."""
    stack = list((graph.steps[step].node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path if path and not list(graph.model.get_submodule(path).children()) else ""


@dataclass(frozen=True)
class _Local:
    """The network as a linear map around each example: how every node moves radii forwards and rows backwards."""

    nodes: Sequence[Bound]
    radii: list[Tensor]  # at the input and behind every node
    pulls: list[Callable[[Tensor], Sequence[Tensor]]]

    @classmethod
    def at(cls, nodes: Sequence[Bound], x: Tensor, radius: Tensor, relu: Relu) -> _Local:
        values, radii = [x.unsqueeze(1)], [radius.unsqueeze(1) / radius.max()]
        pulls: list[Callable[[Tensor], Sequence[Tensor]]] = []
        for node in nodes:
            value, reach = [values[i] for i in node.inputs], [radii[i] for i in node.inputs]
            operator = node.operator
            if isinstance(operator, LeakyReLU) and relu == "linear":
                values.append(value[0])
                radii.append(reach[0])
                pulls.append(lambda rows: [rows])
                continue
            values.append(operator.value(*value))
            if isinstance(operator, LeakyReLU):
                slope = torch.where(value[0] > 0, 1.0, operator.slope)
                radii.append(reach[0] * slope)
                pulls.append(partial(_masked, slope))
            elif isinstance(operator, MaxPool):
                chosen = operator.relax(Box(value[0], value[0]))
                assert isinstance(chosen, Selected)
                radii.append(reach[0].flatten(1).gather(1, chosen.winner).reshape(values[-1].shape))
                pulls.append(partial(_pulled, chosen))
            else:
                box = operator.interval(*(Box(-r, r) for r in reach))
                radii.append((box.upper - box.lower) / 2)
                assert isinstance(operator, Affine)
                pulls.append(partial(_pulled, operator))
        return cls(nodes, radii, pulls)

    def reaches(self, rows: Tensor) -> dict[int, Tensor]:
        """Radius of rows . output, (examples, rows), with boxes formed ever further towards the input only.

        Keyed by position of the value whose box was dropped last; the first entry has every box but the last layer's,
        the last entry none but the input's.
        """
        pending: dict[int, Tensor] = {len(self.nodes): rows}
        found: dict[int, Tensor] = {}
        for position in range(len(self.nodes), 0, -1):
            arriving = pending.pop(position, None)
            if arriving is None:
                continue
            node = self.nodes[position - 1]
            for parent, part in zip(node.inputs, self.pulls[position - 1](arriving)):
                pending[parent] = dense(added(pending[parent], part)) if parent in pending else part
            if not (node.operator.diagonal and len(node.inputs) == 1):
                found[position] = self._radius(pending)
        return found or {0: self._radius(pending)}

    def _radius(self, pending: Mapping[int, Tensor]) -> Tensor:
        parts = [(r.flatten(2).abs() @ self.radii[k].flatten(1)[..., None]).squeeze(-1) for k, r in pending.items()]
        return sum(parts[1:], parts[0])


def _masked(slope: Tensor, rows: Tensor) -> Sequence[Tensor]:
    return [rows * slope[:, None]]


def _pulled(linear: Affine | Selected, rows: Tensor) -> Sequence[Tensor]:
    return [dense(part) for part in linear.pull(rows, _EVERY)[0]]


def gaussian_tightness(widths: Sequence[int], relu: bool = False) -> float:
    """Expected optimal radius over expected layer-wise radius of a Gaussian network with these hidden widths.

    One width is the two-layer network.  `relu` takes local masks.  Raises InputError for a width below 1.
    """
    if not widths or min(widths) < 1:
        raise InputError(f"hidden widths must be whole numbers from 1, got {list(widths)}")
    return math.prod(_kept(int(width), relu) for width in widths)


def _kept(width: int, relu: bool) -> float:
    if not relu:
        return math.sqrt(math.pi) * float(_gamma_ratio(np.array(width))) / width
    active = np.arange(1, width + 1)
    share = stats.binom.pmf(active, width, 0.5)
    return math.sqrt(math.pi) * float(share @ _gamma_ratio(active)) / (width / 2)


def _gamma_ratio(d: np.ndarray) -> np.ndarray:
    """Gamma((d + 1) / 2) / Gamma(d / 2)."""
    return np.asarray(np.exp(special.gammaln((d + 1) / 2) - special.gammaln(d / 2)))


class Growth(NamedTuple):
    """By what factor the radius of a box grows, on average over coordinates."""

    layerwise: float
    optimal: float


def embedding_growth(k: int, d: int | None = None) -> Growth:
    """Growth of a unit box under x -> U U' x with a random orthonormal U (d x k): by intervals, and at best.

    2k/pi and sqrt(2k/pi) for 1 << k << d (`d` None).  With `d` the exact expectations:

        layerwise   (k/d) (1 + 2 (d-1) / pi)                          as E|u_i u_j| = 2 / (pi d) on the sphere
        optimal     k/d + E sqrt(p(1-p)) (d-1) E|v_1|

    where p = (U U')_ii ~ Beta(k/2, (d-k)/2) and v is uniform on the sphere of the other d-1 coordinates.

    Raises InputError unless 1 <= k (and k < d).
    """
    if k < 1 or (d is not None and d <= k):
        raise InputError(f"an embedding needs 1 <= k < d, got k = {k} and d = {d}")
    if d is None:
        return Growth(2 * k / math.pi, math.sqrt(2 * k / math.pi))
    log_beta = special.betaln((k + 1) / 2, (d - k + 1) / 2) - special.betaln(k / 2, (d - k) / 2)
    aside = (d - 1) / (math.sqrt(math.pi) * float(_gamma_ratio(np.array(d - 1))))
    return Growth(k / d * (1 + 2 * (d - 1) / math.pi), k / d + math.exp(float(log_beta)) * aside)


@dataclass(frozen=True)
class Invariance:
    """`holds`: intervals are exact for every box; `fraction`: share of entries (output, input) where no products
    cancel.
    """

    holds: bool
    fraction: float

    def __bool__(self) -> bool:
        return self.holds


def is_propagation_invariant(weights: Sequence[Float[Tensor, "_ _"]], tol: float = 1e-9) -> Invariance:
    """Whether |W_L ... W_1| = |W_L| ... |W_1| entry by entry, to a relative `tol`.

    `weights` in the order in which they are applied, W_1 first.  For two layers entry (i, j) satisfies it exactly when
    the products W_2[i, k] W_1[k, j] over k have no two opposite signs.

    Raises InputError for fewer than two matrices, shapes that do not chain, and entries that are not finite.
    """
    if len(weights) < 2:
        raise InputError(f"one matrix is always exact; give at least two, got {len(weights)}")
    for first, second in pairwise(weights):
        if first.shape[0] != second.shape[1]:
            raise InputError(
                f"a matrix {tuple(second.shape)} cannot follow one of shape {tuple(first.shape)}; order them as they "
                "are applied, each (out, in)"
            )
    if not all(bool(torch.isfinite(weight).all()) for weight in weights):
        raise InputError("the weights hold NaN or infinity; tightness needs finite ones")
    signed = weights[0].detach().double()
    absolute = signed.abs()
    for weight in weights[1:]:
        signed, absolute = weight.detach().double() @ signed, weight.detach().double().abs() @ absolute
    exact = signed.abs() >= (1 - tol) * absolute
    return Invariance(bool(exact.all()), float(exact.double().mean()))
