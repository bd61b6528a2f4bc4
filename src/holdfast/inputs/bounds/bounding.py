"""`bounds` and `certify`: from a model and a region to proven bounds on its outputs.

Methods:

    "ibp"               intervals throughout; fast and loose
    "forward"           linear functions of the input, carried forwards; for inputs of few entries
    "crown-ibp"         intervals inside, backward linear bounds for the output
    "forward+backward"  forward functions inside, backward linear bounds for the output
    "crown"             backward linear bounds for every value that a relaxation depends on
    "alpha-crown"       those, then again with the relaxations' free parameters optimised for every row: never looser
                        than "crown", tens of times its work

`bounds` computes in the dtype of the region's inputs.  With `rounding="nearest"` it returns what floating point gives,
which can be off by rounding like any computed number; with `rounding="outward"` the bounds hold for the exact
real-number function of the stored weights (module `rounding` says how).  `certify` always uses float64 and outward
rounding, and certifies a label only where the model as it runs gives it.  The rounding of a float32 forward pass at the
other points of the region is covered when `deployed="float32"` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.bounds.activation import LeakyReLU
from holdfast.inputs.bounds.backward import Pass, refine
from holdfast.inputs.bounds.deciding import DecidingPass
from holdfast.inputs.bounds.extrema import Clamp
from holdfast.inputs.bounds.forward import Forward, examples_at_once
from holdfast.inputs.bounds.graph import Bound, Graph, capture
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.moves import LARGE
from holdfast.inputs.bounds.operator import Box
from holdfast.inputs.bounds.optimize import ITERATIONS, sharpen
from holdfast.inputs.bounds.output import Wish, conclude, conclude_forward, conclude_optimised, merged
from holdfast.inputs.bounds.pooling import MaxPool
from holdfast.inputs.bounds.region import BoundCertificates, Bounds, Region, margin_spec
from holdfast.inputs.bounds.rounding import Rounding
from holdfast.inputs.bounds.search import Deadline
from holdfast.threats.base import Threat, Valid

Method = Literal["ibp", "forward", "crown-ibp", "forward+backward", "crown", "alpha-crown"]
METHODS: tuple[Method, ...] = ("ibp", "forward", "crown-ibp", "forward+backward", "crown", "alpha-crown")

#: How boxes inside the network are found by `propagate`.
Inside = Literal["ibp", "crown-ibp", "crown"]

#: What a time budget is spent on first, and how many examples are bounded between two looks at the clock.
_LADDER: tuple[Method, ...] = ("ibp", "crown-ibp", "crown")
AT_ONCE = 16

#: Memory that the rows of one backward pass may take, in bytes.
MEMORY = 1 << 26


def bounds(
    model: nn.Module | Graph,
    region: Region,
    *,
    method: Method = "alpha-crown",
    spec: Float[Tensor, "batch rows outputs"] | None = None,
    targets: Int[Tensor, "batch picks"] | None = None,
    rounding: Literal["nearest", "outward"] = "nearest",
    upper: bool = True,
    linear: bool = False,
    intersect: bool = True,
    memory: int = MEMORY,
    iterations: int = ITERATIONS,
    deployed: Literal["float32"] | None = None,
) -> Bounds:
    """Bounds of C f(x') over the region.

    Parameters
    ----------
    model : in evaluation mode; or its `capture`, which saves tracing when many regions are bounded.
    spec : rows C, for example `margin_spec`; the outputs themselves when None.
    targets : instead of `spec`, which outputs to bound for each example.
    upper : whether upper bounds are wanted; without them the last pass costs half.
    linear : also return the linear functions of the input (all methods but "ibp").
    intersect : keep, entry by entry, the tighter of interval and backward bound; False gives the published algorithm,
        whose bounds inside the network are the backward ones alone.
    memory : bytes that the rows of one backward pass may take.
    iterations : gradient steps on the free parameters of every bound ("alpha-crown" only).
    deployed : "float32" for bounds on what the network computes in float32, with "outward" and float64 inputs only.

    Raises
    ------
    InputError for a specification that does not fit, a layer in training mode or parameters that are not finite;
    UnsupportedError for operators without a rule.
    """
    if method not in METHODS:
        raise InputError(f"unknown bounding method {method!r}; choose from {', '.join(METHODS)}")
    if spec is not None and targets is not None:
        raise InputError("give `spec` or `targets`, not both: targets are rows that pick single outputs")
    if iterations < 0:
        raise InputError(f"iterations must not be negative, got {iterations}")
    charged = _rounding(rounding, deployed, region)
    graph = model if isinstance(model, Graph) else capture(model, _fed(model, region.x))
    _check_shape(graph, region)
    rows = _rows(graph, region, spec, targets)
    x = region.x
    charged = replace(charged, terms=graph.longest_sum if charged.outward else 0)
    nodes = graph.bind(x.dtype, x.device)
    if charged.deployed is not None:
        _check_sums(nodes)
    wish = Wish(method != "ibp", upper, linear, intersect, memory, iterations)
    if linear and method == "ibp":
        raise InputError("method 'ibp' has no linear functions of the input; every other method has")
    together = examples_at_once(nodes, x, memory) if method in ("forward", "forward+backward") else len(x)
    found = []
    for first in range(0, len(x), together):
        part = slice(first, first + together)
        state = Propagation(nodes, region.part(part), charged)
        found.append(_bounded(state, graph, None if rows is None else rows[part], method, wish))
    return merged(found)


def _rounding(rounding: str, deployed: str | None, region: Region) -> Rounding:
    if rounding not in ("nearest", "outward"):
        raise InputError(f'unknown rounding {rounding!r}; choose "nearest" or "outward"')
    if deployed is None:
        return Rounding(rounding == "outward", 0)
    if deployed != "float32" or rounding != "outward" or region.x.dtype != torch.float64:
        raise InputError(
            f'the rounding of a deployed network is covered for deployed="float32" with rounding="outward" and float64 '
            f"inputs, got {deployed!r}, {rounding!r} and {region.x.dtype}"
        )
    return Rounding(True, 0, torch.float32)


def _check_sums(nodes: Sequence[Bound]) -> None:
    """UnsupportedError for operators whose float32 evaluation is not a sum of products or a comparison."""
    plain = (LeakyReLU, MaxPool, Clamp)
    strange = sorted(
        {type(n.operator).__name__ for n in nodes if not (n.operator.affine or isinstance(n.operator, plain))}
    )
    if strange:
        raise UnsupportedError(
            f"float32's rounding is covered for sums of products, ReLUs, clamping and max pooling; the model also has "
            f"{', '.join(strange)}"
        )


def _bounded(state: Propagation, graph: Graph, rows: Tensor | None, method: Method, wish: Wish) -> Bounds:
    output = graph.output
    if method == "forward" or method == "forward+backward":
        forward = Forward(state, wish.intersect)
        functions = forward.run(output)
        _check_finite(graph, state.boxes[output])
        if method == "forward":
            return conclude_forward(forward, functions, output, rows, wish)
        return conclude(state, output, rows, wish)
    unoptimised: Inside = "crown" if method == "alpha-crown" else method
    propagate(state, unoptimised, wish.memory, wish.intersect)
    _check_finite(graph, state.boxes[output])
    found = conclude(state, output, rows, wish)
    if method != "alpha-crown":
        return found
    sharper = sharpen(state, wish.memory, wish.iterations, wish.intersect)
    return conclude_optimised(sharper, output, rows, wish, found)


def propagate(state: Propagation, method: Inside, memory: int, intersect: bool = True) -> None:
    """Boxes of every value, without optimisation.  Refines, before a nonlinear node is reached, what its relaxation
    depends on.
    """
    refined: dict[int, Tensor] = {}
    for _ in state.nodes:
        if method != "crown" and state.separable:
            state.advance()
            continue
        for position, wanted in state.demands():
            if state.tight[position]:
                continue
            if not state.separable and state.affine(position):
                # The first affine layer of a ball: its exact reach (dual norm) instead of its enclosing box.
                if position not in refined:
                    refined[position] = torch.ones_like(wanted)
                    refine(state, position, refined[position], memory)
            elif method == "crown":
                # Not again what another user of the value wanted.
                fresh = wanted & ~refined.get(position, torch.zeros_like(wanted))
                refine(state, position, fresh, memory, intersect, passes=_passes(state, position))
                refined[position] = wanted | refined.get(position, wanted)
        state.advance()


def _passes(state: Propagation, position: int) -> type[Pass]:
    """The kind of pass for a value: one that stops at signs where no user asks for more, outside of differentiation."""
    return DecidingPass if _signs_only(state, position) and not torch.is_grad_enabled() else Pass


def _signs_only(state: Propagation, position: int) -> bool:
    """Whether no relaxation uses more of a value, or of an activation's value made of it, than its signs."""
    users = ((place, node.operator) for place, node in enumerate(state.nodes, 1) if position in node.inputs)
    return all(operator.affine or (operator.by_sign and _signs_only(state, place)) for place, operator in users)


def _check_finite(graph: Graph, box: Box) -> None:
    """NaN anywhere in the weights reaches the intervals of the output, where one look finds it."""
    if not bool((box.magnitude < LARGE / 10).all()):  # infinite masks are held as LARGE
        broken = graph.not_finite()
        what = f"{', '.join(broken)} of the model holds NaN or infinity" if broken else "the bounds overflow"
        raise InputError(f"{what}; bounds need finite parameters and activations")


def _check_shape(graph: Graph, region: Region) -> None:
    if tuple(region.x.shape[1:]) != graph.shape[1:]:
        raise InputError(
            f"the model was captured for inputs of shape {graph.shape[1:]}, the region has "
            f"{tuple(region.x.shape[1:])}; capture the model with an example of that shape"
        )


def _rows(graph: Graph, region: Region, spec: Tensor | None, targets: Tensor | None) -> Tensor | None:
    if targets is not None:
        if targets.is_floating_point() or targets.ndim != 2:
            raise InputError(
                f"targets must be integers of shape (batch, rows), got {targets.dtype} of shape {tuple(targets.shape)}"
            )
        if len(targets) != len(region) or not bool(((targets >= 0) & (targets < graph.outputs)).all()):
            raise InputError(
                f"targets must be (batch, rows) positions among the {graph.outputs} outputs, got {tuple(targets.shape)}"
            )
        spec = torch.eye(graph.outputs, device=targets.device)[targets]
    if spec is None:
        return None
    if spec.shape[0] != len(region) or spec.shape[2] != graph.outputs or spec.shape[1] == 0:
        raise InputError(
            f"the specification must have shape ({len(region)}, rows, {graph.outputs}) for this model and region, "
            f"got {tuple(spec.shape)}"
        )
    return spec.to(region.x)


@torch.no_grad()
def certify(
    model: nn.Module | Graph,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, " batch"],
    threat: Threat,
    valid: Valid = None,
    method: Method = "alpha-crown",
    memory: int = MEMORY,
    iterations: int = ITERATIONS,
    *,
    budget_s: float | int | None = None,
    deployed: Literal["float32"] | None = None,
) -> BoundCertificates:
    """Whether no admissible change of `x` moves the label `y`, proven in float64 with outward rounding.

    The proof is about the exact arithmetic of the stored weights; with `deployed="float32"` it covers what the network
    computes in float32 as well.  Where the model, run as it is on x itself, gives another label nothing is certified.

    Parameters
    ----------
    budget_s : seconds of wall time; cheaper methods than `method` are then tried first on all examples, dearer ones on
        what they leave open for as long as the time lasts, and the best of what was found comes back.

    Raises InputError as `bounds` does, for labels that the model does not have and a budget that is not positive.
    """
    if budget_s is not None and not budget_s > 0:
        raise InputError(f"the time budget must be positive, got {budget_s} seconds")
    region = Region(x.double(), threat, valid)
    graph = model if isinstance(model, Graph) else capture(model, _fed(model, x))
    if len(y) != len(x):
        raise InputError(f"got {len(x)} inputs but {len(y)} labels; give one label an input")
    rows = margin_spec(y, graph.outputs)

    def margins(part: Tensor | slice, chosen: Method) -> Tensor:
        found = bounds(
            graph,
            region.part(part),
            method=chosen,
            spec=rows[part],
            rounding="outward",
            upper=False,
            memory=memory,
            iterations=iterations,
            deployed=deployed,
        )
        return found.lower.amin(1)

    margin = margins(slice(None), method) if budget_s is None else _within(margins, region, method, Deadline(budget_s))
    return BoundCertificates((margin > 0) & (_answers(graph.model, x) == y), margin)


def _within(margins: Callable[[Tensor, Method], Tensor], region: Region, method: Method, clock: Deadline) -> Tensor:
    """The best margins that methods up to `method` find while the clock runs, cheapest first."""
    best = region.x.new_full((len(region),), -torch.inf)
    cheaper = (m for m in _LADDER if METHODS.index(m) < METHODS.index(method))
    for chosen in (*cheaper, method):
        for part in (best <= 0).nonzero().squeeze(1).split(AT_ONCE):
            if clock.left <= 0:
                return best
            best[part] = torch.maximum(best[part], margins(part, chosen))
    return best


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    """Labels as the model runs."""
    return model(_fed(model, x)).flatten(1).argmax(1)


def _fed(model: nn.Module, x: Tensor) -> Tensor:
    """Inputs in the model's own dtype."""
    parameter = next(model.parameters(), None)
    return x if parameter is None else x.to(parameter.dtype)
