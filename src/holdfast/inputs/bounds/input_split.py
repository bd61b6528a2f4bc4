"""Branch and bound over the input box, for networks with few inputs (Bunel et al., 2018; Wang et al., 2018).

A batch of boxes is bounded at once, inside the network by CROWN and at the output with optimised slopes, in float64
with outward rounding throughout, so a box is closed only on a bound that holds for exact arithmetic.  The last backward
pass gives every row r of a disjunct a linear function below it, g_r(x) = a_r x + c_r; the disjunct is infeasible on the
box when for some w >= 0 with sum w = 1

    min over x of sum_r w_r g_r(x) > 0,

which is what one row alone proves (w a unit vector) or several together (w found by exponentiated gradient steps; any w
is sound).  An open box is halved along the coordinate that makes the bounds of its worst disjunct loose (`reach`), or
along which the disjunct's rows disagree.  Children inherit the signs of neurons that are decided.  Once a few neurons
are all that is left, it pays to split those instead: a neuron that costs more than what halving a coordinate promises
gets one sign in one child and the other in the other (see `parts`), and a box without undecided neurons is a linear
program (`leaf`), so that the search ends.  The minimiser of the linear function and the centre of every box are tried
as counterexamples.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from holdfast.inputs.bounds.bounding import MEMORY
from holdfast.inputs.bounds.leaf import settle
from holdfast.inputs.bounds.optimize import minimise
from holdfast.inputs.bounds.parts import evaluated
from holdfast.inputs.bounds.reach import Reach
from holdfast.inputs.bounds.search import Pool, Query, Setting, lowest
from holdfast.inputs.bounds.signs import Signs

#: Inputs up to which splitting the box beats splitting neurons.
FEW_INPUTS = 20
#: Seconds that one batch aims at.
SLICE = 0.3
LARGEST_BATCH = 512
#: Steps on the weights of a disjunct's rows.
WEIGHT_STEPS = 12
#: What the disagreement of a disjunct's rows counts beside the looseness of the bounds.
DISAGREEMENT = 0.125
#: A coordinate is split no further than this share of the whole box's width.
FINEST = 1e-13
#: Adam steps on the slopes under the output's rows.
STEPS = 3
#: Undecided neurons up to which splitting one of them may beat halving a coordinate.
FEW_NEURONS = 2


class Bounded(NamedTuple):
    """A batch of bounded boxes.

    `parts` bounds every disjunct; `corner` is where the linear function of the worst disjunct is smallest; `gain` what
    halving a coordinate promises; `loss` what an undecided neuron costs; `signs` which neurons are decided.
    """

    parts: Float[Tensor, "boxes disjuncts"]
    corner: Float[Tensor, "boxes inputs"]
    gain: Float[Tensor, "boxes inputs"]
    loss: Float[Tensor, "boxes neurons"]
    signs: Int8[Tensor, "boxes neurons"]


class Combined(NamedTuple):
    """The best combination of each disjunct's rows: its lower bound, its slope, and the weights."""

    lower: Float[Tensor, "boxes disjuncts"]
    slope: Float[Tensor, "boxes disjuncts inputs"]
    weights: Float[Tensor, "boxes disjuncts rows"]


class InputSearch:
    """Branch and bound on the input box of one query."""

    def __init__(self, setting: Setting, query: Query) -> None:
        self.setting, self.query = setting, query
        self.subproblems = 0
        self.batch = 32
        self._closed = torch.inf
        self._stuck = torch.inf
        self._signs = Signs(setting.nodes(torch.float64))
        unknown = torch.full((1, len(query.matrix)), -torch.inf, dtype=torch.float64, device=query.lower.device)
        self._pool = Pool(
            lower=query.lower[None],
            upper=query.upper[None],
            parts=unknown,
            bound=unknown.amin(1),
            signs=self._signs.unknown(1, query.lower.device),
            imposed=self._signs.unknown(1, query.lower.device),
        )

    @property
    def open(self) -> int:
        return len(self._pool)

    @property
    def lower(self) -> float:
        """Proven lower bound of the margin on the whole box."""
        return min(self._closed, self._stuck, self._pool.lower)

    def advance(self) -> None:
        """Bound one batch of boxes, close what can be closed, halve the rest."""
        began = time.monotonic()
        with self._pool.taking(self.batch) as taken:
            # A block of rows is as long as its neediest box wants: those with as many undecided neurons side by side.
            order = (taken["signs"] == 0).sum(1).argsort()
            boxes = {name: value[order] for name, value in taken.items()}
            bounded = self._bounded(boxes)
            centre = (boxes["lower"] + boxes["upper"]) / 2
            self.setting.incumbent.offer(self.query, torch.cat([bounded.corner, centre]))
            self._settle(boxes, bounded)
        self.subproblems += len(order)
        self._pace(len(order), time.monotonic() - began)

    def _bounded(self, boxes: dict[str, Tensor]) -> Bounded:
        """CROWN for the disjuncts that are still open on some box of the batch, each box its own."""
        lower, upper, parts = boxes["lower"], boxes["upper"], boxes["parts"]
        state = self.setting.propagation(lower, upper)
        reach = Reach(state)
        self._signs.propagate(state, boxes["signs"], MEMORY, reach.units)
        still = parts <= self.setting.incumbent.threshold
        most = int(still.sum(1).amax())
        index = still.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        matrix, offset = self.query.matrix[index], self.query.offset[index]
        output, imposed = self.setting.graph.output, self._signs.shaped(boxes["imposed"], state)
        spec, enough = matrix.flatten(1, 2), offset.flatten(1) + self.setting.incumbent.threshold
        nearest = state.detached(nearest=True)
        _, found = minimise(nearest, output, spec, iterations=STEPS, splits=imposed, stop_at=enough)
        carried, backward = evaluated(state, output, spec, imposed, found)
        assert carried.rows is not None
        rows = carried.rows.reshape(*offset.shape, -1)
        values = carried.lower.reshape(offset.shape) - offset
        values = values - torch.finfo(values.dtype).eps * (values.abs() + offset.abs())
        combined = combine(values, rows, lower, upper)
        parts = parts.scatter_reduce(1, index, combined.lower, "amax")
        # From here on only each box's worst disjunct matters; where that was not bounded just now, any other will do.
        worst = (index == parts.argmin(1, keepdim=True)).to(torch.int8).argmax(1)
        example = torch.arange(len(worst), device=worst.device)
        slope, weights, rows = combined.slope[example, worst], combined.weights[example, worst], rows[example, worst]
        recorded = {
            position: found.reshape(*offset.shape, *found.shape[2:])[example, worst]
            for position, found in backward.recorded.items()
        }
        apart = (weights[..., None] * (rows - slope[:, None]).abs()).sum(1) * (upper - lower)
        loss = self._signs.losses(state, recorded, weights)
        charges = reach.charges(recorded, weights)
        # Halving a coordinate saves half of its share in the whole loss.
        share = charges / charges.sum(1, keepdim=True).clamp(min=torch.finfo(charges.dtype).tiny)
        gain = share * loss.sum(1, keepdim=True) / 2 + DISAGREEMENT * apart
        return Bounded(parts, torch.where(slope > 0, lower, upper), gain, loss, self._signs.read(state))

    def _settle(self, boxes: dict[str, Tensor], bounded: Bounded) -> None:
        """Close what is proven, solve what has no undecided neuron, split the rest."""
        bound = bounded.parts.amin(1)
        closed = bound > self.setting.incumbent.threshold
        self._closed = min(self._closed, lowest(bound[closed]))
        fields = boxes | {"parts": bounded.parts, "bound": bound, "signs": bounded.signs}
        leaf = ~closed & (bounded.signs != 0).all(1)
        for place in leaf.nonzero().flatten().tolist():
            self._solve({name: value[place : place + 1] for name, value in fields.items()})
        width = boxes["upper"] - boxes["lower"]
        finest = (
            FINEST * (self.query.upper - self.query.lower) + 4 * torch.finfo(width.dtype).eps * boxes["upper"].abs()
        )
        gain = torch.where(width > finest, bounded.gain + torch.finfo(width.dtype).tiny * width, -1.0)
        best, axis = gain.max(1)
        loss, neuron = bounded.loss.max(1) if bounded.loss.shape[1] else (torch.zeros_like(best), axis)
        undecided = (bounded.signs == 0).sum(1)
        sided = ((loss > best) & (undecided <= FEW_NEURONS)) | (best < 0)
        stuck = ~closed & ~leaf & ~sided & (best < 0)
        self._stuck = min(self._stuck, lowest(bound[stuck]))
        going = ~closed & ~leaf & ~stuck
        for chosen, split, which in ((going & sided, _with_signs, neuron), (going & ~sided, _halved, axis)):
            kept = {name: value[chosen] for name, value in fields.items()}
            for child in split(kept, which[chosen]):
                self._pool.put(**child)
        self._closed = min(self._closed, self._pool.prune(self.setting.incumbent.threshold))

    def _solve(self, box: dict[str, Tensor]) -> None:
        """A box on which every neuron is decided: each of its open disjuncts is a linear program."""
        threshold = self.setting.incumbent.threshold
        state = self.setting.propagation(box["lower"], box["upper"])
        self._signs.propagate(state, box["signs"], MEMORY)
        imposed = self._signs.shaped(box["imposed"], state)
        bound = torch.inf
        for disjunct, known in enumerate(box["parts"][0].tolist()):
            if known <= threshold:
                query = self.query
                matrix, offset = query.matrix[disjunct][None], query.offset[disjunct][None]
                leaf = settle(state, self.setting.graph.output, imposed, matrix, offset, threshold)
                known = max(known, leaf.bound)
                if leaf.point is not None:
                    self.setting.incumbent.offer(query, leaf.point[None])
            bound = min(bound, known)
        if bound > self.setting.incumbent.threshold:
            self._closed = min(self._closed, bound)
        else:
            self._stuck = min(self._stuck, bound)

    def _pace(self, count: int, seconds: float) -> None:
        if seconds > 1.5 * SLICE:
            self.batch = max(1, self.batch // 2)
        elif seconds < SLICE / 2 and count == self.batch:
            self.batch = min(LARGEST_BATCH, 2 * self.batch)


Fields = dict[str, Tensor]


def _halved(boxes: Fields, axis: Tensor) -> tuple[Fields, Fields]:
    """Both halves along one coordinate each."""
    lower, upper, axis = boxes["lower"], boxes["upper"], axis[:, None]
    middle = ((lower + upper) / 2).gather(1, axis)
    low = boxes | {"upper": upper.scatter(1, axis, middle)}
    return low, boxes | {"lower": lower.scatter(1, axis, middle)}


def _with_signs(boxes: Fields, neuron: Tensor) -> tuple[Fields, Fields]:
    """The same boxes with either sign of one neuron each."""
    first, second = (
        boxes | {name: boxes[name].scatter(1, neuron[:, None], sign) for name in ("signs", "imposed")}
        for sign in (1, -1)
    )
    return first, second


def combine(
    values: Float[Tensor, "boxes disjuncts rows"],
    rows: Float[Tensor, "boxes disjuncts rows inputs"],
    lower: Float[Tensor, "boxes inputs"],
    upper: Float[Tensor, "boxes inputs"],
) -> Combined:
    """The best lower bound of max_r g_r over each box that a few steps on the weights find.

    `values` are the minima of the single functions g_r(x) = rows_r x + c_r over the box.
    """
    radius = ((upper - lower) / 2)[:, None, None]
    reach = (rows.abs() * radius).sum(-1)
    centred = values + reach  # g_r at the centre of the box
    best, place = values.max(-1)
    weights = torch.nn.functional.one_hot(place, values.shape[-1]).to(values)
    slope = rows.gather(2, place[..., None, None].expand(-1, -1, 1, rows.shape[-1])).squeeze(2)
    found = Combined(best, slope, weights)
    if values.shape[-1] == 1:
        return found
    # Sums of rows * (inputs + 4) products; their rounding is charged twice over.
    terms = 2.0 * values.shape[-1] * (rows.shape[-1] + 4) * torch.finfo(values.dtype).eps
    charge = terms * (values.abs() + 2 * reach).amax(-1)
    weights = torch.softmax(weights, -1)
    for step in range(WEIGHT_STEPS):
        mixed = (weights[..., None] * rows).sum(2)
        value = (weights * centred).sum(-1) - (mixed.abs() * radius.squeeze(2)).sum(-1) - charge
        better = value > found.lower
        found = Combined(
            torch.where(better, value, found.lower),
            torch.where(better[..., None], mixed, found.slope),
            torch.where(better[..., None], weights, found.weights),
        )
        # Supergradient: the single functions at the combination's minimiser, in units of their spread.
        ascent = centred - (rows * mixed.sign()[:, :, None] * radius).sum(-1)
        spread = (ascent.amax(-1, keepdim=True) - ascent.amin(-1, keepdim=True)).clamp(min=1e-30)
        weights = torch.softmax(weights.clamp(min=1e-30).log() + 4.0 / (1 + step) ** 0.5 * ascent / spread, -1)
    return found
