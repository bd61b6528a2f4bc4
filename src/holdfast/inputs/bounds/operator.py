"""What an operator of a network must know to be bounded: its value, its interval, and its backward linear rule.

Shapes.  A network is traced on one example, so a node's value there has the *event* shape of a batch of one.  Here
every value carries one more leading axis for the examples, (examples, *event), and stacks of rows carry two,
(examples, rows,
*event).  Boxes are pairs (lower, upper) of values.

An affine operator v_out = J v_in + b needs J's action, its adjoint, and |J|'s action (centre-radius intervals).  The
adjoint comes from `torch.func.vjp` unless a class writes a faster one.  A nonlinear operator is enclosed between two
linear functions of its inputs that are valid on their boxes (its *relaxation*).

Free parameters.  Where a relaxation has something to choose (the slope of a ReLU's lower line, the points where lines
touch a curve), the operator counts those choices in `freedoms`, and `relax(*boxes, free=...)` takes them as numbers in
[0, 1], one tensor (freedoms, examples, rows, *event): every row of a backward pass has choices of its own.  The boxes
then carry a rows axis of length one, (examples, 1, *event), so entrywise arithmetic broadcasts by itself, and the lines
come out as (examples, rows, *event) or anything that broadcasts to it.  Every value in [0, 1] must give a sound
relaxation, differentiable in `free` (it is optimised by gradient steps), and `start` names the values that give the
default relaxation.  `*event` may be a part of the event: entrywise operators (`diagonal`) are also asked for the
entries of a window, or a choice of entries, only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from holdfast.inputs.bounds.patches import Patches, Phases
from holdfast.inputs.bounds.rows import Active, Columns, Rows, aligned, dot


class Box(NamedTuple):
    """lower <= value <= upper, entry by entry; shape (examples, *event)."""

    lower: Tensor
    upper: Tensor

    @property
    def magnitude(self) -> Tensor:
        """Largest absolute value in the box."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def intersect(self, other: Box) -> Box:
        """Both hold.  Where rounding leaves the two disjoint by a hair, `other` wins."""
        lower, upper = torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper)
        crossed = lower > upper
        return Box(torch.where(crossed, other.lower, lower), torch.where(crossed, other.upper, upper))


@dataclass(frozen=True)
class Operand:
    """Stands for the i-th perturbed input among a call's arguments."""

    position: int


@dataclass(frozen=True)
class Call:
    """One call of the traced program: `target` with arguments, the perturbed ones replaced by `Operand`s.

    `item` selects one result of a target that returns several.  Constant tensors are already in the bound's dtype.
    `place` is a phrase like " at file:line" for messages.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_shapes: tuple[tuple[int, ...], ...]
    out_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    item: int | None = None
    place: str = ""

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The value for one example; inputs have their event shapes."""

        def substitute(part: Any) -> Any:
            return inputs[part.position] if isinstance(part, Operand) else part

        result = self.target(*map_aggregate(self.args, substitute), **map_aggregate(self.kwargs, substitute))
        return result if self.item is None else result[self.item]

    def argument(self, name: str, default: Any = None) -> Any:
        """The argument that the operator's schema calls `name`."""
        if name in self.kwargs:
            return self.kwargs[name]
        for position, declared in enumerate(self.target._schema.arguments):  # type: ignore[attr-defined]
            if declared.name == name:
                if position < len(self.args):
                    return self.args[position]
                return declared.default_value if declared.has_default_value() else default
        return default

    def with_constants(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call with every constant tensor or number among its tensor arguments changed."""

        def changed(part: Any) -> Any:
            return change(part) if isinstance(part, Tensor) else part

        return Call(
            self.target,
            map_aggregate(self.args, changed),
            map_aggregate(self.kwargs, changed),
            self.in_shapes,
            self.out_shape,
            self.dtype,
            self.device,
            self.item,
            self.place,
        )

    def zeros(self) -> tuple[Tensor, ...]:
        """A zero for every perturbed input."""
        return tuple(torch.zeros(shape, dtype=self.dtype, device=self.device) for shape in self.in_shapes)


Pulled = tuple[tuple[Rows, ...], Tensor | None]


@runtime_checkable
class Relaxation(Protocol):
    """Linear functions below an operator's output, ready to carry rows backwards."""

    def pull(self, rows: Tensor, examples: slice) -> Pulled:
        """Rows on the output to (rows on each input, bias of shape (examples, rows) or None) such that

        rows . output >= sum_i rows_i . input_i + bias     on the inputs' boxes, for the chosen examples.
        """
        ...

    def magnitude(self, *sizes: Tensor) -> Tensor:
        """Bound on the sum of the absolute terms of the linear functions, given bounds on the inputs' sizes."""
        ...

    def pull_patches(self, patches: Patches, examples: slice) -> Pulled | None:
        """`pull` for windowed rows, or None when they have to be written out first."""
        ...


class Operator(ABC):
    """One node's mathematics.  Subclasses name the calls they understand in `targets`."""

    targets: ClassVar[tuple[Callable[..., Any], ...]] = ()
    affine: ClassVar[bool] = False
    #: Every output entry depends on at most one input entry and no input entry is used twice.
    diagonal: ClassVar[bool] = False
    #: Its relaxation depends on bounds of an input only where they have zero between them.
    by_sign: ClassVar[bool] = False
    #: How many numbers in [0, 1] the relaxation may choose for every output entry and row (see the module's text).
    freedoms: ClassVar[int] = 0

    def __init__(self, call: Call) -> None:
        self.call = call

    @classmethod
    def objection(cls, call: Call) -> str | None:
        """Why this call is not covered, or None.  Tensors in `call` may be symbolic: look at shapes and options."""
        return None

    @property
    def terms(self) -> int:
        """Longest sum of products in the value or the adjoint (see `rounding`)."""
        return 4 + sum(math.prod(shape) for shape in self.call.in_shapes)

    def value(self, *inputs: Tensor) -> Tensor:
        """The operator on a batch: (examples, *event) -> (examples, *event)."""
        return torch.func.vmap(self.call)(*inputs)

    @abstractmethod
    def interval(self, *boxes: Box) -> Box:
        """Enclosing box of the output."""

    @abstractmethod
    def magnitude(self, *sizes: Tensor) -> Tensor:
        """Bound on the sum of the absolute terms that make up each output entry, given bounds on |inputs|."""

    def wanted(self, *boxes: Box) -> Sequence[Tensor | None]:
        """Per input, which entries' bounds a tighter relaxation would use (bool like the box), or None."""
        return [None] * len(boxes)

    @abstractmethod
    def relax(self, *boxes: Box, free: Tensor | None = None) -> Relaxation:
        """The linear enclosure on these boxes; with `free` the one it chooses, with a rows axis (module's text)."""

    def start(self, *boxes: Box) -> Tensor:
        """The free parameters of the default relaxation, (freedoms, *shape of the boxes)."""
        raise NotImplementedError(f"{type(self).__name__} has no free parameters")

    def choices(self, *boxes: Box) -> Callable[[Tensor], Relaxation]:
        """`relax` on fixed boxes as a function of `free`; override where most of the work needs doing once only."""
        return lambda free: self.relax(*boxes, free=free)


class Affine(Operator):
    """v_out = J v_in + b.  By default J is taken to have no negative entry, so intervals are mapped end by end."""

    affine = True

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._offset: Tensor | None = None

    def offset(self) -> Tensor:
        """b, of the output's event shape."""
        if self._offset is None:
            self._offset = self.call(*self.call.zeros())
        return self._offset

    #: Whether b can be other than zero; spares the inner product where it cannot.
    has_offset: ClassVar[bool] = False

    def interval(self, *boxes: Box) -> Box:
        return Box(self.value(*(box.lower for box in boxes)), self.value(*(box.upper for box in boxes)))

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return self.value(*sizes).abs()

    def relax(self, *boxes: Box, free: Tensor | None = None) -> Relaxation:
        return self

    def adjoint(self, rows: Tensor) -> tuple[Rows, ...]:
        """rows J for every input: (examples, rows, *out event) -> (examples, rows, *in event)."""
        pullback: Any = torch.func.vjp(self.call, *self.call.zeros())[1]
        flat = rows.flatten(0, 1).reshape(-1, *self.call.out_shape)
        pulled = torch.func.vmap(pullback)(flat)
        return tuple(part.reshape(rows.shape[0], rows.shape[1], *part.shape[1:]) for part in pulled)

    def pull(self, rows: Tensor, examples: slice) -> Pulled:
        bias = rows.flatten(2) @ self.offset().flatten() if self.has_offset else None
        return self.adjoint(rows), bias

    def pull_patches(self, patches: Patches, examples: slice) -> Pulled | None:
        parts = self.adjoint_patches(patches)
        if parts is None:
            return None
        return parts, patches.inner(self.offset().expand(len(patches.values), -1, -1, -1)) if self.has_offset else None

    def adjoint_patches(self, patches: Patches) -> tuple[Patches, ...] | None:
        """`adjoint` for windowed rows, where it keeps them windowed."""
        return None

    def unit_rows(self, index: Tensor) -> Rows | None:
        """Adjoint of one-hot rows at the flat positions `index` (examples, rows), when there is a shortcut."""
        return None


#: Share of active entries up to which only their columns are carried.
_WORTH_CHOOSING = 0.8


@dataclass(frozen=True, eq=False)
class Lines:
    """Entrywise lines: lower_slope z + lower_bias <= phi(z) <= upper_slope z + upper_bias; each (examples, *event).

    A bias of None is zero.  Lines that were chosen row by row are `seen`: shaped like the rows that they act on.
    """

    lower_slope: Tensor
    upper_slope: Tensor
    lower_bias: Tensor | None
    upper_bias: Tensor | None
    _active: dict[tuple[int | None, int | None], Active | None] = field(default_factory=dict, repr=False, compare=False)

    def pull(self, rows: Tensor, examples: slice) -> Pulled:
        active = self.active(examples)
        if active is not None:
            return self.pull_any(Columns(rows.flatten(2).index_select(2, active.index), active), examples)
        return self.pull_any(rows, examples)

    def pull_any(self, rows: Rows, examples: slice) -> Pulled:
        """`pull` for rows of any kind, which stay of that kind."""
        return self.seen(rows, examples).act(rows)

    def seen(self, rows: Rows, examples: slice) -> Lines:
        """The lines of every entry of the rows' values, as tensors that broadcast to them."""

        def seen() -> tuple[Tensor | None, ...]:
            lines = (self.lower_slope, self.upper_slope, self.lower_bias, self.upper_bias)
            return tuple(None if line is None else aligned(rows, line[examples]) for line in lines)

        parts: Any = rows.active.once(self, examples.start, seen) if isinstance(rows, Columns) else seen()
        return Lines(*parts)

    def act(self, rows: Rows) -> Pulled:
        """Rows carried through lines that are `seen`: A+ s_l + A- s_u, and A+ b_l + A- b_u."""
        values = rows if isinstance(rows, Tensor) else rows.values
        negative = values.clamp(max=0)
        terms = []
        if self.upper_bias is not None:
            terms.append(dot(negative, self.upper_bias))
        if self.lower_bias is not None:
            terms.append(dot(values - negative, self.lower_bias))
        # As few passes over the rows as it takes.
        carried = torch.addcmul(values * self.lower_slope, negative, self.upper_slope - self.lower_slope)
        moved = carried if isinstance(rows, Tensor) else replace(rows, values=carried)
        return (moved,), sum(terms[1:], terms[0]) if terms else None

    def within(self, inside: Tensor) -> Lines:
        """No bias where `inside` is false: entries that rows sorted by phase carry along beyond the edge."""
        lower, upper = (None if b is None else torch.where(inside, b, 0.0) for b in (self.lower_bias, self.upper_bias))
        return replace(self, lower_bias=lower, upper_bias=upper)

    def active(self, examples: slice) -> Active | None:
        """Flat positions of a flat event where some line is not zero, when few enough to be worth choosing."""
        key = (examples.start, examples.stop)
        if key not in self._active:
            self._active[key] = self._moving(examples)
        return self._active[key]

    def _moving(self, examples: slice) -> Active | None:
        if self.lower_slope.ndim != 3 or self.lower_slope.shape[1] != 1 or self.lower_bias is not None:
            return None
        moving = ((self.lower_slope[examples] != 0) | (self.upper_slope[examples] != 0)).flatten(1).any(0)
        index = moving.nonzero().squeeze(1)
        chosen = len(index) <= _WORTH_CHOOSING * len(moving)
        return Active(index, tuple(self.lower_slope.shape[1:])) if chosen else None

    def pull_patches(self, patches: Patches | Phases, examples: slice) -> Pulled | None:
        return self.pull_any(patches, examples) if self.lower_slope.ndim == 5 else None

    def magnitude(self, *sizes: Tensor) -> Tensor:
        size = torch.maximum(self.lower_slope.abs(), self.upper_slope.abs()) * sizes[0]
        for line in (self.lower_bias, self.upper_bias):
            size = size if line is None else size + line.abs()
        return size
