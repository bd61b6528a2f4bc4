"""What every search of a verifier shares: the question, the clock, the best point, and a pool of open subproblems.

A property's disjuncts on one box form a `Query`.  With rows A_d, b_d of disjunct d its *margin* at x is

    m(x) = min over d of max over rows r of d of (A_d f(x) - b_d)_r

A point with m(x) <= 0 is a counterexample, and the property holds on the box when m > 0 throughout.  Searches split the
box or the network into subproblems and close one when its proven lower bound of m exceeds the `Incumbent`'s threshold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.inputs.bounds.graph import Bound, Graph
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.operator import Box, Relaxation
from holdfast.inputs.bounds.region import Region
from holdfast.inputs.bounds.rounding import Rounding
from holdfast.inputs.bounds.vnnlib import Disjunct
from holdfast.threats.balls import Linf


class OutOfTime(Exception):
    """The deadline passed in the middle of a bounding pass; what was under way is thrown away."""


class Deadline:
    """A moment of the monotonic clock."""

    def __init__(self, seconds: float | int) -> None:
        self.began = time.monotonic()
        self.end = self.began + seconds

    @property
    def spent(self) -> float:
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def check(self) -> None:
        if self.left <= 0:
            raise OutOfTime


class TimedPropagation(Propagation):
    """A propagation that looks at the clock at every nonlinear and affine node that rows are carried through.

    `lower` and `upper`, shaped (examples, *input shape), take the place of a threat: they are the region's exact ends.
    """

    def __init__(
        self, nodes: Sequence[Bound], lower: Tensor, upper: Tensor, rounding: Rounding, deadline: Deadline
    ) -> None:
        self.deadline = deadline
        super().__init__(nodes, Region(lower, Linf(1.0)), rounding)
        self.boxes[0] = Box(lower.unsqueeze(1), upper.unsqueeze(1))

    @classmethod
    def timed(cls, state: Propagation, deadline: Deadline) -> TimedPropagation:
        """The same boxes under a clock."""
        watched = cls.resume(state.nodes, state.region, state.rounding, state.boxes)
        assert isinstance(watched, cls)
        watched.deadline = deadline
        return watched

    def detached(self, nearest: bool = False) -> TimedPropagation:
        return self.timed(super().detached(nearest), self.deadline)

    def relaxation(self, position: int) -> Relaxation:
        self.deadline.check()
        return super().relaxation(position)


@dataclass(frozen=True)
class Query:
    """The disjuncts that share one box.

    `matrix` (disjuncts, rows, outputs) and `offset` (disjuncts, rows); a disjunct with fewer rows than another repeats
    its last one, which changes nothing.
    """

    lower: Float[Tensor, " inputs"]
    upper: Float[Tensor, " inputs"]
    matrix: Float[Tensor, "disjuncts rows outputs"]
    offset: Float[Tensor, "disjuncts rows"]

    def values(self, outputs: Float[Tensor, "points outputs"]) -> Float[Tensor, "points disjuncts"]:
        """max over rows of A_d y - b_d, for every disjunct."""
        rows = outputs @ self.matrix.to(outputs).flatten(0, 1).T
        return (rows.reshape(-1, *self.offset.shape) - self.offset.to(outputs)).amax(-1)


def queries(disjuncts: Sequence[Disjunct], outputs: int, device: torch.device) -> list[Query]:
    """Disjuncts grouped by their boxes, in order of first appearance."""
    groups: dict[bytes, list[Disjunct]] = {}
    for part in disjuncts:
        groups.setdefault(part.lower.tobytes() + part.upper.tobytes(), []).append(part)
    return [_query(parts, outputs, device) for parts in groups.values()]


def _query(parts: Sequence[Disjunct], outputs: int, device: torch.device) -> Query:
    rows = max(1, *(len(part.offset) for part in parts))
    matrix, offset = np.zeros((len(parts), rows, outputs)), np.zeros((len(parts), rows))
    for place, part in enumerate(parts):
        # A disjunct without rows is unsafe wherever its box is: 0 . y <= 0.
        repeated = np.minimum(np.arange(rows), len(part.offset) - 1)
        if len(part.offset):
            matrix[place], offset[place] = part.matrix[repeated], part.offset[repeated]
    ends = (torch.from_numpy(np.array(end, dtype=np.float64)) for end in (parts[0].lower, parts[0].upper))
    lower, upper = (end.to(device) for end in ends)
    return Query(lower, upper, torch.from_numpy(matrix).to(device), torch.from_numpy(offset).to(device))


@dataclass
class Program:
    """The network as it runs: inputs cast to its own dtype, outputs as it gives them.

    `deployed` is a second program that computes the same network (say, in another runtime); a counterexample has to
    convince both, one example at a time.
    """

    model: nn.Module
    shape: tuple[int, ...]
    deployed: Callable[[Tensor], Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        floating = (p.dtype for p in (*self.model.parameters(), *self.model.buffers()) if p.is_floating_point())
        return next(floating, torch.float32)

    @torch.no_grad()
    def outputs(self, points: Float[Tensor, "points inputs"]) -> Float[Tensor, "points outputs"]:
        """float64 outputs at float64 points, flattened."""
        return self._run(self.model, points)

    @torch.no_grad()
    def margin(self, query: Query, point: Float[Tensor, " inputs"]) -> float:
        """The margin at one point, the larger of what the programs say."""
        programs: list[Callable[[Tensor], Tensor]] = [self.model]
        programs += [] if self.deployed is None else [self.deployed]
        found = torch.stack([query.values(self._run(program, point[None])).amin() for program in programs])
        return float(found.nan_to_num(torch.inf).amax())

    def representable(self, query: Query, points: Float[Tensor, "points inputs"]) -> Float[Tensor, "points inputs"]:
        """The points moved into the query's box, and to numbers of the network's own precision that lie in it.

        A coordinate whose range holds no such number takes the nearest one, as the network would if it were fed.
        """
        inside = torch.clamp(points.double(), query.lower, query.upper)
        nearest = inside.to(self.dtype)
        infinity = torch.full_like(nearest, torch.inf)
        moved = torch.where(nearest.double() > query.upper, torch.nextafter(nearest, -infinity), nearest)
        moved = torch.where(nearest.double() < query.lower, torch.nextafter(nearest, infinity), moved)
        fits = (moved.double() >= query.lower) & (moved.double() <= query.upper)
        return torch.where(fits, moved, nearest).double()

    def _run(self, program: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
        given = points.to(self.dtype).reshape(len(points), *self.shape)
        return program(given).flatten(1).double()


@dataclass
class Incumbent:
    """The point with the smallest margin so far, and what a lower bound must exceed to close a subproblem.

    Deciding a property, the threshold is zero and the first confirmed counterexample ends the search.  Looking for the
    minimum to within `gap`, it is the smallest margin found less `gap`, and the search ends when nothing is open.
    """

    program: Program
    gap: float | int | None = None
    value: float = torch.inf
    point: Tensor | None = None

    @property
    def threshold(self) -> float:
        return 0.0 if self.gap is None else self.value - self.gap

    @property
    def found(self) -> bool:
        """Whether a counterexample ends the search."""
        return self.gap is None and self.point is not None and self.value <= 0

    def offer(self, query: Query, points: Float[Tensor, "points inputs"]) -> None:
        """Run the program on points, made `representable`, and keep the best if it is better."""
        points = self.program.representable(query, points)
        margins = query.values(self.program.outputs(points)).amin(1).nan_to_num(torch.inf)
        place = int(margins.argmin())
        if float(margins[place]) < self.value:
            confirmed = self.program.margin(query, points[place])
            if confirmed < self.value:
                self.value, self.point = confirmed, points[place].clone()


class Pool:
    """Open subproblems: named tensors with one leading axis, of which the ones with the lowest `bound` come first."""

    def __init__(self, **fields: Tensor) -> None:
        self.fields: Mapping[str, Tensor] = fields

    def __len__(self) -> int:
        return len(self.fields["bound"])

    @property
    def lower(self) -> float:
        """The lowest bound; +inf when nothing is open."""
        return float(self.fields["bound"].amin()) if len(self) else torch.inf

    @contextmanager
    def taking(self, count: int) -> Iterator[dict[str, Tensor]]:
        """Remove the `count` subproblems with the lowest bounds; they are open again if the work on them is broken off.

        What was put in the meantime stays: a part that is open twice does no harm, one that is lost would.
        """
        taken = self._take(count)
        try:
            yield taken
        except BaseException:
            self.put(**taken)
            raise

    def _take(self, count: int) -> dict[str, Tensor]:
        if count >= len(self):
            chosen = dict(self.fields)
            self.fields = {name: value[:0] for name, value in self.fields.items()}
            return chosen
        worst = self.fields["bound"].topk(count, largest=False).indices
        rest = torch.ones(len(self), dtype=torch.bool, device=worst.device).index_fill(0, worst, False)
        chosen = {name: value[worst] for name, value in self.fields.items()}
        self.fields = {name: value[rest] for name, value in self.fields.items()}
        return chosen

    def put(self, **fields: Tensor) -> None:
        """Add subproblems."""
        self.fields = {name: torch.cat([value, fields[name]]) for name, value in self.fields.items()}

    def prune(self, threshold: float) -> float:
        """Drop what is above `threshold`; the lowest bound among the dropped."""
        done = self.fields["bound"] > threshold
        if not bool(done.any()):
            return torch.inf
        lowest = float(self.fields["bound"][done].amin())
        self.fields = {name: value[~done] for name, value in self.fields.items()}
        return lowest


def lowest(values: Tensor) -> float:
    """The smallest entry, +inf without any."""
    return float(values.amin()) if len(values) else torch.inf


@runtime_checkable
class Search(Protocol):
    """Something that makes progress in steps of well under a second."""

    @property
    def open(self) -> int:
        """Subproblems that are not closed yet."""
        ...

    @property
    def lower(self) -> float:
        """Proven lower bound of the margin on the whole box."""
        ...

    @property
    def subproblems(self) -> int:
        """How many have been bounded."""
        ...

    def advance(self) -> None:
        """Bound and split some subproblems.  May raise OutOfTime."""
        ...


@dataclass
class Setting:
    """What the searches of one verification share."""

    graph: Graph
    program: Program
    incumbent: Incumbent
    deadline: Deadline
    generator: torch.Generator | None = None
    _bound: dict[torch.dtype, list[Bound]] = field(default_factory=dict)

    def nodes(self, dtype: torch.dtype) -> list[Bound]:
        """The network's operators in `dtype`."""
        if dtype not in self._bound:
            device = next((p.device for p in self.graph.model.parameters()), torch.device("cpu"))
            self._bound[dtype] = self.graph.bind(dtype, device)
        return self._bound[dtype]

    def propagation(self, lower: Tensor, upper: Tensor) -> TimedPropagation:
        """Boxes of flat ends (examples, inputs), rounded outward when they are float64."""
        shape = (len(lower), *self.graph.shape[1:])
        outward = lower.dtype == torch.float64
        rounding = Rounding(outward, self.graph.longest_sum if outward else 0)
        nodes = self.nodes(lower.dtype)
        return TimedPropagation(nodes, lower.reshape(shape), upper.reshape(shape), rounding, self.deadline)
