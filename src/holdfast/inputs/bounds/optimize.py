"""Optimised backward bounds: free relaxations (alpha-CROWN; Xu et al., 2021) and split constraints (beta-CROWN; Wang
et al., 2021).

A backward pass gives a lower bound for *any* values of the relaxations' free parameters alpha in [0, 1] (slopes,
tangent points; one set for every row) and, where a branch fixes the sign of a value, sigma_j z_j >= 0, for any
multipliers beta_j >= 0: rows that reach z get -sigma_j beta_j added to entry j, which changes the row's value by
-beta_j sigma_j z_j <= 0.  Both are found by projected Adam steps on the sum of the rows' bounds; every iterate is a
valid bound, and the best one of every row is kept.

Rounding.  Free parameters are what they are in floating point, so outward rounding charges the relaxation that they
really choose.  Adding beta rounds A - sigma beta to a number that is still on the same side of A (rounding is
monotone), that is, to A - sigma beta' with another beta' >= 0: nothing is to be charged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.inputs.bounds.backward import Carried, Pass, Units, refine
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.operator import Box, Lines, Relaxation
from holdfast.inputs.bounds.patches import Patches, Phases
from holdfast.inputs.bounds.rows import Columns, Rows, aligned, dense

#: Adam steps for one bound of many, as in branch and bound.
ITERATIONS = 20


@dataclass(frozen=True)
class Multipliers:
    """What makes a bound: with these numbers one backward pass gives it again.

    free : for the position of every value made by an operator with free parameters, (freedoms, examples, rows, *event)
        in [0, 1].
    beta : for the position of every value with split entries, (examples, rows, *event), not negative.

    For branch and bound, the multipliers of a parent start its children: index the axis of the examples.
    """

    free: Mapping[int, Tensor] = field(default_factory=dict)
    beta: Mapping[int, Tensor] = field(default_factory=dict)

    def examples(self, index: Tensor | slice) -> Multipliers:
        """Those of some of the examples, in the order of `index`."""
        free = {position: value[:, index] for position, value in self.free.items()}
        return Multipliers(free, {position: value[index] for position, value in self.beta.items()})

    def to(self, like: Tensor) -> Multipliers:
        """The same in another dtype or on another device."""
        free = {position: value.to(like) for position, value in self.free.items()}
        return Multipliers(free, {position: value.to(like) for position, value in self.beta.items()})


def minimise(
    state: Propagation,
    output: int,
    rows: Float[Tensor, "examples rows *event"],
    *,
    iterations: int = ITERATIONS,
    splits: Mapping[int, Tensor] | None = None,
    start: Multipliers | None = None,
    lr_free: float = 0.5,
    lr_beta: float = 0.1,
    decay: float = 0.9,
    stop_at: float | Tensor | None = None,
) -> tuple[Float[Tensor, "examples rows"], Multipliers]:
    """The best lower bound of rows . value that `iterations` steps find, and the multipliers that give it.

    Parameters
    ----------
    state : boxes of every value, already clamped to the splits.
    output : position of the value that `rows` act on; its entries may be flattened in `rows`.
    iterations : Adam steps; 0 evaluates `start` (or the default relaxation) once.
    splits : position of a value to a tensor like its box with entries in {-1, 0, 1}: 1 where the value is known to be
        at least 0, -1 where at most 0, 0 where nothing is known.
    start : where to begin; the result is never below the bound that it gives.  Missing parts begin at the default
        relaxation and at beta = 0.
    lr_free, lr_beta, decay : step sizes, and the factor on both after every step.
    stop_at : rows whose bound exceeds it (a number, or one for every example and row) are not improved further.

    Everything returned is detached.  Raises InputError when shapes or types do not fit the state.
    """
    if iterations < 0:
        raise InputError(f"iterations must not be negative, got {iterations}")
    box = state.boxes[output].lower
    if len(rows) != len(box) or rows.ndim < 3 or rows[0, 0].numel() != box[0].numel() or rows.dtype != box.dtype:
        raise InputError(
            f"rows on a value {tuple(box.shape)} in {box.dtype} must be (examples, rows, entries) of the same type, "
            f"got {tuple(rows.shape)} in {rows.dtype}"
        )
    for position, value in start.free.items() if start else ():
        if tuple(value.shape[1:3]) != tuple(rows.shape[:2]):
            raise InputError(
                f"the free parameters to start from at value {position} are for (examples, rows) "
                f"{tuple(value.shape[1:3])}, the rows are {tuple(rows.shape[:2])}; index them with Multipliers.examples"
            )
    search = Search(state.detached(), slice(0, len(rows)), rows.shape[1], _signs(state, splits or {}), start)
    rows = rows.detach().reshape(*rows.shape[:2], *box.shape[1:])

    def bound() -> Tensor:
        return search.backward(both=False).run(output, rows).lower

    lower = search.climb(bound, iterations, Steps(lr_free, lr_beta, decay), stop_at)
    return lower, search.best()


def _signs(state: Propagation, splits: Mapping[int, Tensor]) -> dict[int, Tensor]:
    signs = {}
    for position, sign in splits.items():
        box = state.boxes[position].lower
        if sign.shape != box.shape:
            raise InputError(f"splits of value {position} must have shape {tuple(box.shape)}, got {tuple(sign.shape)}")
        if bool((sign != 0).any()):
            signs[position] = sign.to(box)
    return signs


def sharpen(reference: Propagation, memory: int, iterations: int, intersect: bool = True) -> Propagation:
    """Boxes at least as tight as the reference's, by optimised passes for every value that a relaxation depends on.

    `reference` is a finished CROWN propagation.  `intersect` as in `bounds`.  Differentiable where the reference is.
    """
    state = Propagation.resume(reference.nodes, reference.region, reference.rounding, reference.boxes[:1])
    for _ in state.nodes:
        for position, wanted in state.demands():
            # Where nothing lies in between that could be chosen, the reference is as good as it gets.
            if not state.tight[position] and not state.affine(position):
                refine(state, position, wanted, memory, bound=_climber(state, position, iterations))
        found = state.boxes[state.advance()]
        known = reference.boxes[len(state.boxes) - 1]
        state.boxes[-1] = found.intersect(known) if intersect else known
    return state


def _climber(state: Propagation, position: int, iterations: int) -> Units:
    twin = state.detached(nearest=True)

    def climbed(examples: slice, index: Tensor) -> Box:
        def bound(search: Search) -> Tensor:
            return both_ends(search.backward(both=True).run_units(position, index))

        lower, _ = optimised(state, twin, examples, 2 * index.shape[1], bound, iterations)
        below, above = lower.chunk(2, 1)
        return Box(below, -above)

    return climbed


def optimised(
    state: Propagation,
    twin: Propagation,
    examples: slice,
    count: int,
    bound: Callable[[Search], Tensor],
    iterations: int,
) -> tuple[Tensor, Search]:
    """`bound` of `count` rows with the best parameters that are found on `twin`, evaluated on `state`.

    The two have the same boxes; `state` may round outward and may be differentiable.
    """
    search = Search(twin, examples, count)
    lower = search.climb(lambda: bound(search), iterations, Steps())
    search.settle(state)
    live = torch.is_grad_enabled()
    return (bound(search) if live or state.rounding.outward else lower), search


def both_ends(carried: Carried) -> Tensor:
    """Lower bounds of the rows and of the negated rows."""
    assert carried.upper is not None
    return torch.cat([carried.lower, -carried.upper], 1)


@dataclass(frozen=True)
class Steps:
    """Step sizes of Adam, and the factor on them after every step.

    With few steps long ones that shrink fast do best: ten of these give what twenty of length 0.1 that hardly shrink
    do (networks of the VNN-COMP).
    """

    free: float = 0.5
    beta: float = 0.1
    decay: float = 0.9


class Search:
    """Free parameters and multipliers of one stack of `count` rows, and the search for better ones.

    Parameters live where the rows' values do: for rows that are windows of an image, or some columns of a value, only
    entries of those have any.  They come into being when a backward pass first asks for them.
    """

    def __init__(
        self,
        state: Propagation,
        examples: slice,
        count: int,
        signs: Mapping[int, Tensor] | None = None,
        start: Multipliers | None = None,
    ) -> None:
        self.state, self.examples = state, examples
        self._start = start or Multipliers()
        self._free: dict[int, Tensor] = {}
        self._choices: dict[int, Callable[[Tensor], Relaxation]] = {}
        self._kinds: dict[int, Rows] = {}
        self._signs = {position: -sign[examples].unsqueeze(1) for position, sign in (signs or {}).items()}
        self._beta = {position: self._multiplier(position, count) for position in self._signs}
        self._climbing = False
        self._kept: dict[int, Tensor] = {}
        self._kept_beta: dict[int, Tensor] = {}

    def _multiplier(self, position: int, count: int) -> Tensor:
        sign, given = self._signs[position], self._start.beta.get(position)
        shape = (len(sign), count, *sign.shape[2:])
        return sign.new_zeros(shape) if given is None else given.detach().to(sign).clamp(min=0).clone()

    def backward(self, both: bool, keep: bool = False) -> Pass:
        """A pass that uses the present parameters."""
        extra = {position: self._signs[position] * beta for position, beta in self._beta.items()}
        return Pass(self.state, self.examples, both, keep=keep, choices=self, extra=extra)

    def relaxation(self, position: int, rows: Rows) -> Relaxation:
        """The relaxation that the present parameters choose for `rows` on the value."""
        if position not in self._choices:
            self._open(position, rows)
        chosen = self._choices[position](self._free[position])
        if isinstance(rows, Phases) and isinstance(chosen, Lines):
            return chosen.within(aligned(rows, torch.ones_like(self.state.boxes[position].lower[:1])) > 0)
        return chosen

    def _open(self, position: int, rows: Rows) -> None:
        node = self.state.nodes[position - 1]
        boxes = []
        for parent in node.inputs:
            lower, upper = (end[self.examples] for end in self.state.boxes[parent])
            unsqueezed = Box(lower.unsqueeze(1), upper.unsqueeze(1))
            boxes.append(_seen(rows, Box(lower, upper)) if node.operator.diagonal else unsqueezed)
        self._choices[position] = node.operator.choices(*boxes)
        if position in self._free:
            return
        given = self._start.free.get(position)
        if given is None:
            free = node.operator.start(*boxes).detach()
            free = free.expand(*free.shape[:2], _values(rows).shape[1], *free.shape[3:])
        else:
            free = torch.stack([_of_rows(rows, part) for part in given.detach().to(boxes[0].lower).clamp(0, 1)])
        self._free[position] = free.clone(memory_format=torch.contiguous_format)
        self._free[position].requires_grad_(self._climbing)
        self._kinds[position] = rows if isinstance(rows, Tensor) else replace(rows, values=rows.values[:1, :0])

    def settle(self, state: Propagation) -> None:
        """Fix the best parameters of every row, for use on another state of the same boxes."""
        self.state, self._choices = state, {}
        self._free, self._beta = dict(self._kept), dict(self._kept_beta)

    def climb(
        self, bound: Callable[[], Tensor], iterations: int, steps: Steps, stop_at: float | Tensor | None = None
    ) -> Tensor:
        """Best value of every row of `bound()` (examples, rows) over the iterates; remembers what gave it."""
        best, adam = None, None
        for step in range(iterations + 1):
            last = step == iterations
            self._climbing = not last
            with torch.set_grad_enabled(not last):
                for beta in self._beta.values():
                    beta.requires_grad_(not last)
                lower = bound()
            best = self._keep(lower.detach(), best)
            unsettled = None if stop_at is None else best <= stop_at
            if last or not (self._free or self._beta) or (unsettled is not None and not bool(unsettled.any())):
                break
            adam = adam or self._adam(steps)
            with torch.enable_grad():
                total = (lower if unsettled is None else lower[unsettled]).sum()
            self._advance(adam, total, steps.decay)
        assert best is not None
        return best

    def _adam(self, steps: Steps) -> torch.optim.Optimizer:
        groups = [
            {"params": list(part.values()), "lr": rate}
            for part, rate in ((self._free, steps.free), (self._beta, steps.beta))
            if part
        ]
        return torch.optim.Adam(groups, maximize=True, fused=True)

    def _advance(self, adam: torch.optim.Optimizer, total: Tensor, decay: float) -> None:
        """One projected step."""
        tensors = [*self._free.values(), *self._beta.values()]
        for tensor, gradient in zip(tensors, torch.autograd.grad(total, tensors, allow_unused=True)):
            tensor.grad = gradient
        adam.step()
        with torch.no_grad():
            for free in self._free.values():
                free.clamp_(0, 1)
            for beta in self._beta.values():
                beta.clamp_(min=0)
        for group in adam.param_groups:
            group["lr"] *= decay

    @torch.no_grad()
    def _keep(self, lower: Tensor, best: Tensor | None) -> Tensor:
        if best is None:
            self._kept = {position: free.detach().clone() for position, free in self._free.items()}
            self._kept_beta = {position: beta.detach().clone() for position, beta in self._beta.items()}
            return lower
        better = lower > best
        for position, free in self._free.items():
            mask = better.reshape(1, *better.shape, *(1,) * (free.ndim - 3))
            self._kept[position] = torch.where(mask, free, self._kept[position])
        for position, beta in self._beta.items():
            mask = better.reshape(*better.shape, *(1,) * (beta.ndim - 2))
            self._kept_beta[position] = torch.where(mask, beta, self._kept_beta[position])
        return torch.where(better, lower, best)

    def best(self) -> Multipliers:
        """What gave every row its best bound."""
        free = {
            position: torch.stack([self._whole(position, part) for part in value])
            for position, value in self._kept.items()
        }
        return Multipliers(free, dict(self._kept_beta))

    def _whole(self, position: int, part: Tensor) -> Tensor:
        kind = self._kinds[position]
        return part if isinstance(kind, Tensor) else dense(replace(kind, values=part))


def _values(rows: Rows) -> Tensor:
    return rows if isinstance(rows, Tensor) else rows.values


def _seen(rows: Rows, box: Box) -> Box:
    """The box of every entry of the rows' values; beyond the edge of an image any box of the value does."""
    seen = Box(aligned(rows, box.lower), aligned(rows, box.upper))
    if not isinstance(rows, (Patches, Phases)):
        return seen
    inside = aligned(rows, torch.ones_like(box.lower)) > 0
    return Box(*(torch.where(inside, end, full.flatten()[0]) for end, full in zip(seen, box)))


def _of_rows(rows: Rows, part: Tensor) -> Tensor:
    """`part` (examples, rows, *event), one value for every row, where the rows' values are."""
    if isinstance(rows, Columns):
        return part.flatten(2)[..., rows.index]
    if not isinstance(rows, (Patches, Phases)):
        return part
    alone = rows
    if isinstance(rows, Patches):
        alone = replace(rows, top=rows.top.reshape(-1, 1), left=rows.left.reshape(-1, 1))
    return alone.seen(part.flatten(0, 1).squeeze(1)).reshape(*part.shape[:2], *rows.values.shape[2:])
