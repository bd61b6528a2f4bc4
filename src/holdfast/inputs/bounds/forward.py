"""Forward linear bounds: every value between two affine functions of the input, from the input to the output.

    A_l x + b_l <= v(x) <= A_u x + b_u                 for all x in the region
    affine  v' = J v + b     J+ A_l + J- A_u,  J+ b_l + J- b_u + b        (and with l and u exchanged)
    lines   s_l v + b_l'     s_l+ A_l + s_l- A_u,  ...

Values of an example are described by one column of coefficients an input entry, so the cost grows with the number of
input entries instead of the number of neurons to be bounded: the mode for few inputs and wide or deep networks.

Rounding.  With `outward` every step charges gamma times the absolute terms that made the coefficients, weighed by the
largest |x|, to the constants (module `rounding`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.inputs.bounds.graph import Bound
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.operator import Affine, Box, Lines, Relaxation
from holdfast.inputs.bounds.rows import dense

#: Columns of both functions of a value, their successors, and temporaries are alive at once.
_COPIES = 8
#: Unit rows that are carried through a relaxation that is not entrywise, at once.
_ROWS = 256


@dataclass(frozen=True)
class Functions:
    """Columns (examples, 1 + inputs, *event) of the two functions of a value: the constants, then the coefficients."""

    lower: Tensor
    upper: Tensor

    def raised(self, lower: Tensor | float, upper: Tensor | float) -> Functions:
        """With something added to the constants of either function."""
        below, above = self.lower.clone(), self.upper.clone()
        below[:, 0] += lower
        above[:, 0] += upper
        return Functions(below, above)


class Forward:
    """Functions of the values of a propagation, made alongside it; those that nothing needs any more are dropped."""

    def __init__(self, state: Propagation, intersect: bool = True) -> None:
        self.state, self.intersect = state, intersect
        box = state.boxes[0].lower
        identity = torch.eye(box[0].numel(), dtype=box.dtype, device=box.device)
        columns = torch.cat([torch.zeros_like(identity[:1]), identity]).reshape(-1, *box.shape[1:])
        columns = columns.expand(len(box), *columns.shape)
        self._functions = {0: Functions(columns, columns)}
        #: Largest absolute value of every input entry, (examples, inputs, 1).
        self._sizes = state.size(0).flatten(1)[..., None]

    def run(self, output: int) -> Functions:
        """Advance the propagation to its end; the functions of the value at `output`."""
        nodes = self.state.nodes
        last = {parent: place for place, node in enumerate(nodes) for parent in node.inputs}
        relaxed = {parent for node in nodes if not node.operator.affine for parent in node.inputs}
        for place, node in enumerate(nodes):
            position = self.state.advance()
            functions = self._push(position, node)
            self._functions[position] = functions
            if position in relaxed or position == output:
                found, known = self.ends(functions), self.state.boxes[position]
                self.state.boxes[position] = found.intersect(known) if self.intersect else found
            for parent in node.inputs:
                if last[parent] == place and parent != output:
                    self._functions.pop(parent, None)
        return self._functions[output]

    def of_rows(self, functions: Functions, rows: Tensor) -> Functions:
        """Functions of rows . value, `rows` (examples, rows, entries): columns (examples, 1 + inputs, rows)."""
        carried = _of_rows(functions, rows)
        if not self.state.rounding.outward:
            return carried
        size = self._weight(functions.lower) + self._weight(functions.upper)
        charge = (rows.abs() @ size.flatten(1)[..., None]).squeeze(-1)
        charge = self.state.rounding.gamma(charge.dtype) * charge + torch.finfo(charge.dtype).tiny
        return carried.raised(-charge, charge)

    def ends(self, functions: Functions) -> Box:
        """Range of the functions over the region, (examples, *event)."""
        return Box(self._least(functions.lower), -self._least(-functions.upper))

    def _least(self, columns: Tensor) -> Tensor:
        constants, slopes = columns[:, 0], columns[:, 1:].flatten(2)
        state = self.state
        if state.separable:
            low, high = (end.flatten(1)[:, None] for end in state.boxes[0])
            least = ((high + low) / 2) @ slopes - ((high - low) / 2) @ slopes.abs()
        else:
            x = state.region.x
            rows = slopes.mT.reshape(len(x), -1, *x.shape[1:])
            least = x.flatten(1)[:, None] @ slopes + state.region.threat.worst(rows, x, state.region.valid)[:, None]
        least = constants + least.reshape(constants.shape)
        if not state.rounding.outward:
            return least
        return least - state.rounding.gamma(least.dtype) * self._weight(columns) - torch.finfo(least.dtype).tiny

    def _weight(self, columns: Tensor) -> Tensor:
        """|constants| + sum of |coefficients| times the inputs' sizes, (examples, *event)."""
        slopes = columns[:, 1:].flatten(2).abs()
        return columns[:, 0].abs() + (slopes * self._sizes).sum(1).reshape(columns[:, 0].shape)

    def _push(self, position: int, node: Bound) -> Functions:
        below = [self._functions[parent] for parent in node.inputs]
        if isinstance(node.operator, Affine):
            pushed, charge = self._through_affine(node.operator, below)
        else:
            relaxation = self.state.relaxation(position)
            if isinstance(relaxation, Lines):
                pushed, charge = self._through_lines(relaxation, below[0])
            else:
                pushed, charge = self._through(relaxation, below, position)
        if charge is None:
            return pushed
        charge = self.state.rounding.gamma(charge.dtype) * charge + torch.finfo(charge.dtype).tiny
        return pushed.raised(-charge, charge)

    def _through_affine(self, operator: Affine, below: list[Functions]) -> tuple[Functions, Tensor | None]:
        examples, columns = below[0].lower.shape[:2]
        box = operator.interval(*(Box(part.lower.flatten(0, 1), part.upper.flatten(0, 1)) for part in below))
        lower, upper = (end.reshape(examples, columns, *end.shape[1:]) for end in box)
        if operator.has_offset:  # which belongs to the constants only
            offset = operator.offset()
            keep = lower.new_ones(columns)
            keep[0] = 0
            shift = keep.reshape(-1, *(1,) * offset.ndim) * offset
            lower, upper = lower - shift, upper - shift
        if not self.state.rounding.outward or not operator.terms:
            return Functions(lower, upper), None
        sizes = [self._weight(part.lower) + self._weight(part.upper) for part in below]
        charge = operator.magnitude(*sizes)
        if operator.has_offset:
            inputs = 1 + self._sizes.sum((1, 2)).reshape(-1, *(1,) * (charge.ndim - 1))
            charge = charge + 2 * inputs * operator.offset().abs()
        return Functions(lower, upper), charge

    def _through_lines(self, lines: Lines, below: Functions) -> tuple[Functions, Tensor | None]:
        low, high = lines.lower_slope[:, None], lines.upper_slope[:, None]
        lower = low.clamp(min=0) * below.lower + low.clamp(max=0) * below.upper
        upper = high.clamp(min=0) * below.upper + high.clamp(max=0) * below.lower
        shifts = (0.0 if bias is None else bias for bias in (lines.lower_bias, lines.upper_bias))
        charge = None
        if self.state.rounding.outward:
            charge = lines.magnitude(self._weight(below.lower) + self._weight(below.upper))
        return Functions(lower, upper).raised(*shifts), charge

    def _through(
        self, relaxation: Relaxation, below: list[Functions], position: int
    ) -> tuple[Functions, Tensor | None]:
        """Any relaxation, by what it makes of unit rows and their negatives."""
        like = self.state.boxes[position].lower
        entries = like[0].numel()
        sides: list[Tensor] = []
        charges = []
        for sign in (1.0, -1.0):
            pieces = []
            for first in range(0, entries, _ROWS):
                unit = torch.eye(entries, dtype=like.dtype, device=like.device)[first : first + _ROWS]
                rows = (sign * unit).expand(len(like), *unit.shape).reshape(len(like), len(unit), *like.shape[1:])
                parts, bias = relaxation.pull(rows, slice(None))
                flat = [dense(part).flatten(2) for part in parts]
                terms = [_of_rows(part, row).lower for part, row in zip(below, flat)]
                piece = sum(terms[1:], terms[0])
                if bias is not None:
                    piece[:, 0] += bias
                pieces.append(piece)
                if self.state.rounding.outward:
                    charges.append(self._charge_of(below, flat, bias))
            sides.append(sign * torch.cat(pieces, 2).reshape(*piece.shape[:2], *like.shape[1:]))
        functions = Functions(sides[0], sides[1])
        if not self.state.rounding.outward:
            return functions, None
        half = len(charges) // 2
        both = [torch.cat(part, 1).reshape(like.shape) for part in (charges[:half], charges[half:])]
        return functions, torch.maximum(*both) + self.state.size(position)

    def _charge_of(self, below: list[Functions], rows: list[Tensor], bias: Tensor | None) -> Tensor:
        total = torch.zeros(rows[0].shape[:2]).to(rows[0]) if bias is None else bias.abs()
        for part, row in zip(below, rows):
            size = (self._weight(part.lower) + self._weight(part.upper)).flatten(1)
            total = total + (row.abs() @ size[..., None]).squeeze(-1)
        return total


def _of_rows(functions: Functions, rows: Tensor) -> Functions:
    positive, negative = rows.clamp(min=0).mT, rows.clamp(max=0).mT
    lower, upper = functions.lower.flatten(2), functions.upper.flatten(2)
    return Functions(lower @ positive + upper @ negative, upper @ positive + lower @ negative)


def examples_at_once(nodes: Sequence[Bound], x: Tensor, memory: int) -> int:
    """How many examples' functions fit into `memory` bytes."""
    widest = max((math.prod(node.shape) for node in nodes), default=1)
    return max(1, memory // (_COPIES * (1 + x[0].numel()) * widest * x.element_size()))
