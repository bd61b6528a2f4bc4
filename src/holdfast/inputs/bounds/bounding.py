"""`bounds` and `certify`: from a model and a region to proven bounds on its outputs.

Methods: `"ibp"` (intervals throughout; fast and loose), `"crown-ibp"` (intervals inside, backward linear bounds for the
output), `"crown"` (backward linear bounds for every value that a relaxation depends on), `"alpha-crown"` (those, then
again with the relaxations' free parameters optimised for every row; never looser than `"crown"`, tens of times its
work).

`bounds` computes in the dtype of the region's inputs.  With `rounding="nearest"` it returns what floating point gives,
which can be off by rounding like any computed number; with `rounding="outward"` the bounds hold for the exact
real-number function of the stored weights (module `rounding` says how).  `certify` always uses float64 and outward
rounding.  Neither speaks of the rounding that the model's own float32 forward pass adds at inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.inputs.bounds.backward import Pass, refine, rows_at_once
from holdfast.inputs.bounds.graph import Graph, capture
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.operator import Box
from holdfast.inputs.bounds.optimize import ITERATIONS, Search, both_ends, optimised, sharpen
from holdfast.inputs.bounds.region import BoundCertificates, Bounds, Region, margin_spec
from holdfast.inputs.bounds.rounding import Rounding
from holdfast.threats.base import Threat, Valid

Method = Literal["ibp", "crown-ibp", "crown", "alpha-crown"]
METHODS: tuple[Method, ...] = ("ibp", "crown-ibp", "crown", "alpha-crown")

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
) -> Bounds:
    """Bounds of C f(x') over the region.

    Parameters
    ----------
    model : in evaluation mode; or its `capture`, which saves tracing when many regions are bounded.
    spec : rows C, for example `margin_spec`; the outputs themselves when None.
    targets : instead of `spec`, which outputs to bound for each example.
    upper : whether upper bounds are wanted; without them the last pass costs half.
    linear : also return the linear functions of the input (backward methods only).
    intersect : keep, entry by entry, the tighter of interval and backward bound; False gives the published algorithm,
        whose bounds inside the network are the backward ones alone.
    memory : bytes that the rows of one backward pass may take.
    iterations : gradient steps on the free parameters of every bound ("alpha-crown" only).

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
    graph = model if isinstance(model, Graph) else capture(model, region.x)
    _check_shape(graph, region)
    rows = _rows(graph, region, spec, targets)
    x = region.x
    terms = graph.longest_sum if rounding == "outward" else 0
    state = Propagation(graph.bind(x.dtype, x.device), region, Rounding(rounding == "outward", terms))
    wish = _Wish(method, upper, linear, intersect, memory, iterations)
    propagate(state, wish.reference, memory, intersect)
    _check_finite(graph, state.boxes[graph.output])
    found = _conclude(state, graph.output, rows, wish)
    if method != "alpha-crown":
        return found
    return _sharper(sharpen(state, memory, iterations, intersect), graph.output, rows, wish, found)


@dataclass(frozen=True)
class _Wish:
    """How the output is to be bounded."""

    method: Method
    upper: bool
    linear: bool
    intersect: bool
    memory: int
    iterations: int

    @property
    def reference(self) -> Method:
        """The method without optimisation."""
        return "crown" if self.method == "alpha-crown" else self.method

    @property
    def through(self) -> bool:
        return self.method != "ibp"


def propagate(state: Propagation, method: Method, memory: int, intersect: bool = True) -> None:
    """Boxes of every value, without optimisation.  Refines, before a nonlinear node is reached, what its relaxation
    depends on.
    """
    refined: dict[int, Tensor] = {}
    for node in state.nodes:
        if method != "crown" and state.separable:
            state.advance()
            continue
        for parent, wanted in zip(node.inputs, node.operator.wanted(*(state.boxes[i] for i in node.inputs))):
            if wanted is None or state.tight[parent]:
                continue
            if method == "crown":
                # Not again what another user of the value wanted.
                refine(state, parent, wanted & ~refined.get(parent, torch.zeros_like(wanted)), memory, intersect)
                refined[parent] = wanted | refined.get(parent, wanted)
            elif not state.separable and state.affine(parent):
                # The first affine layer of a ball: its exact reach (dual norm) instead of its enclosing box.
                refine(state, parent, torch.ones_like(wanted), memory)
        state.advance()


def _conclude(state: Propagation, output: int, rows: Tensor | None, wish: _Wish) -> Bounds:
    box = state.boxes[output]
    if wish.linear and not wish.through:
        raise InputError("method 'ibp' has no linear functions of the input; use 'crown' or 'crown-ibp'")
    if not wish.through and rows is None and (state.separable or not state.affine(output)):
        return Bounds(box.lower.flatten(1), box.upper.flatten(1))
    rows = _every(box) if rows is None else rows
    limit = rows_at_once(state, output, wish.memory)
    return _merged([_pass(state, output, part, wish) for part in _parts(rows, limit)])


def _every(box: Box) -> Tensor:
    """Rows that pick every entry."""
    outputs = box.lower[0].numel()
    return torch.eye(outputs, dtype=box.lower.dtype, device=box.lower.device).expand(len(box.lower), -1, -1)


def _parts(rows: Tensor, limit: int) -> list[tuple[slice, Tensor]]:
    """Runs of examples with at most `limit` rows, as far as single examples allow."""
    together = max(1, limit // rows.shape[1])
    return [
        (slice(first, min(first + together, len(rows))), rows[first : first + together])
        for first in range(0, len(rows), together)
    ]


def _merged(found: list[Bounds]) -> Bounds:
    lower, upper = (torch.cat(pieces) for pieces in zip(*((b.lower, b.upper) for b in found)))
    functions = tuple(torch.cat(pieces) for pieces in zip(*(b.linear for b in found if b.linear is not None)))
    return Bounds(lower, upper, functions or None)  # type: ignore[arg-type]


def _sharper(state: Propagation, output: int, rows: Tensor | None, wish: _Wish, known: Bounds) -> Bounds:
    """Bounds with optimised parameters, intersected with those known."""
    rows = _every(state.boxes[output]) if rows is None else rows
    limit = rows_at_once(state, output, wish.memory, differentiated=True)
    twin = state.detached(nearest=True)
    found = _merged([_climbed(state, twin, output, part, wish) for part in _parts(rows, limit)])
    best = Box(found.lower, found.upper).intersect(Box(known.lower, known.upper))
    return Bounds(best.lower, best.upper, found.linear)


def _climbed(state: Propagation, twin: Propagation, output: int, part: tuple[slice, Tensor], wish: _Wish) -> Bounds:
    examples, rows = part
    shaped = rows.reshape(*rows.shape[:2], *state.boxes[output].lower.shape[1:])

    def bound(search: Search) -> Tensor:
        carried = search.backward(wish.upper).run(output, shaped)
        return both_ends(carried) if wish.upper else carried.lower

    count = rows.shape[1] * (2 if wish.upper else 1)
    ends, search = optimised(state, twin, examples, count, bound, wish.iterations)
    lower, upper = (ends, torch.full_like(ends, -torch.inf)) if not wish.upper else ends.chunk(2, 1)
    functions = None
    if wish.linear:
        carried = search.backward(wish.upper, keep=True).run(output, shaped)
        assert carried.rows is not None
        functions = _functions(carried.rows.squeeze(2), carried.bias, rows.shape[1])
    return Bounds(lower, -upper, functions)


def _pass(state: Propagation, output: int, part: tuple[slice, Tensor], wish: _Wish) -> Bounds:
    examples, rows = part
    shaped = rows.reshape(*rows.shape[:2], *state.boxes[output].lower.shape[1:])
    carried = Pass(state, examples, wish.upper, wish.through, keep=wish.linear).run(output, shaped)
    above = torch.full_like(carried.lower, torch.inf) if carried.upper is None else carried.upper
    result = Box(carried.lower, above)
    if wish.through and wish.intersect:
        # Intervals with the last affine layers folded into the rows; now and then they are the tighter of the two.
        plain = Pass(state, examples, wish.upper, through=False).run(output, shaped)
        result = result.intersect(Box(plain.lower, above if plain.upper is None else plain.upper))
    functions = None
    if wish.linear and carried.rows is not None:
        functions = _functions(carried.rows.squeeze(2), carried.bias, rows.shape[1])
    return Bounds(result.lower, result.upper, functions)


def _functions(A: Tensor, b: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(A_l, b_l, A_u, b_u) from the rows that reached the input; trivial upper ones where they were not asked for."""
    if A.shape[1] == rows:
        return A, b, torch.zeros_like(A), torch.full_like(b, torch.inf)
    return A[:, :rows], b[:, :rows], -A[:, rows:], -b[:, rows:]


def _check_finite(graph: Graph, box: Box) -> None:
    """NaN anywhere in the weights reaches the intervals of the output, where one look finds it."""
    if not bool(torch.isfinite(box.upper - box.lower).all()):
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
) -> BoundCertificates:
    """Whether no admissible change of `x` moves the label `y`, proven in float64 with outward rounding.

    Raises InputError as `bounds` does, and for labels that the model does not have.
    """
    graph = model if isinstance(model, Graph) else capture(model, x)
    if len(y) != len(x):
        raise InputError(f"got {len(x)} inputs but {len(y)} labels; give one label an input")
    rows = margin_spec(y, graph.outputs)
    region = Region(x.double(), threat, valid)
    found = bounds(
        graph,
        region,
        method=method,
        spec=rows,
        rounding="outward",
        upper=False,
        memory=memory,
        iterations=iterations,
    )
    margin = found.lower.amin(1)
    return BoundCertificates(margin > 0, margin)
