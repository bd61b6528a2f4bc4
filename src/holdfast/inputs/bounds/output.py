"""The last pass: bounds of the rows that were asked for, once every value inside the network has its box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.inputs.bounds.backward import Pass, rows_at_once
from holdfast.inputs.bounds.forward import Forward, Functions
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.operator import Box
from holdfast.inputs.bounds.optimize import Search, both_ends, optimised
from holdfast.inputs.bounds.region import Bounds


@dataclass(frozen=True)
class Wish:
    """How the output is to be bounded."""

    #: Whether rows are carried through nonlinear nodes, rather than meeting their boxes.
    through: bool
    upper: bool
    linear: bool
    intersect: bool
    memory: int
    iterations: int


def conclude(state: Propagation, output: int, rows: Tensor | None, wish: Wish) -> Bounds:
    """Bounds of rows . value (every entry when None) by one backward pass, or the box itself where it is as good."""
    box = state.boxes[output]
    if not wish.through and rows is None and (state.separable or not state.affine(output)):
        return Bounds(box.lower.flatten(1), box.upper.flatten(1))
    rows = _every(box) if rows is None else rows
    limit = rows_at_once(state, output, wish.memory)
    return merged([_pass(state, output, part, wish) for part in _parts(rows, limit)])


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


def merged(found: list[Bounds]) -> Bounds:
    """Bounds of runs of examples as one."""
    lower, upper = (torch.cat(pieces) for pieces in zip(*((b.lower, b.upper) for b in found)))
    functions = tuple(torch.cat(pieces) for pieces in zip(*(b.linear for b in found if b.linear is not None)))
    return Bounds(lower, upper, functions or None)  # type: ignore[arg-type]


def conclude_optimised(state: Propagation, output: int, rows: Tensor | None, wish: Wish, known: Bounds) -> Bounds:
    """Bounds with optimised parameters, intersected with those known."""
    rows = _every(state.boxes[output]) if rows is None else rows
    limit = rows_at_once(state, output, wish.memory, differentiated=True)
    twin = state.detached(nearest=True)
    found = merged([_climbed(state, twin, output, part, wish) for part in _parts(rows, limit)])
    best = Box(found.lower, found.upper).intersect(Box(known.lower, known.upper))
    return Bounds(best.lower, best.upper, found.linear)


def _climbed(state: Propagation, twin: Propagation, output: int, part: tuple[slice, Tensor], wish: Wish) -> Bounds:
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


def _pass(state: Propagation, output: int, part: tuple[slice, Tensor], wish: Wish) -> Bounds:
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


def conclude_forward(forward: Forward, functions: Functions, output: int, rows: Tensor | None, wish: Wish) -> Bounds:
    """Bounds of rows . value from its functions of the input."""
    box, x = forward.state.boxes[output], forward.state.region.x
    rows = _every(box) if rows is None else rows
    functions = forward.of_rows(functions, rows)
    found = forward.ends(functions)
    if wish.intersect:
        plain = Pass(forward.state, slice(0, len(rows)), both=True, through=False)
        carried = plain.run(output, rows.reshape(*rows.shape[:2], *box.lower.shape[1:]))
        assert carried.upper is not None
        found = found.intersect(Box(carried.lower, carried.upper))
    linear = None
    if wish.linear:
        A_l, A_u = (
            part[:, 1:].mT.reshape(*rows.shape[:2], *x.shape[1:]) for part in (functions.lower, functions.upper)
        )
        linear = (A_l, functions.lower[:, 0], A_u, functions.upper[:, 0])
    return Bounds(found.lower, found.upper if wish.upper else torch.full_like(found.upper, torch.inf), linear)
