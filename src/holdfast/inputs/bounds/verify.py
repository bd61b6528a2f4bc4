"""Complete verification: decide a property, with a proof or with a counterexample, or say how far it got.

Three things take turns until the property is decided or the time is up: gradient descent for a counterexample
(`falsify`), and for every box of the property a branch and bound, over the box itself when the network has few inputs
(`input_split`) and over the signs of its neurons otherwise (`branch`).

What is proven is proven for the exact real-number function of the stored weights, in float64 with outward rounding.
A counterexample is a statement about the network as it runs: its own forward pass, in its own precision, lands in the
unsafe set.  So near a tie the two may both be right; a verdict says which of them it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.inputs.bounds.branch import BranchSearch
from holdfast.inputs.bounds.falsify import Descent
from holdfast.inputs.bounds.graph import Graph, capture
from holdfast.inputs.bounds.input_split import FEW_INPUTS, InputSearch
from holdfast.inputs.bounds.search import Deadline, Incumbent, OutOfTime, Program, Query, Search, Setting, queries
from holdfast.inputs.bounds.vnnlib import Property

Status = Literal["verified", "counterexample", "unknown"]

#: Share of the time that goes into looking for counterexamples while proofs are under way.
DESCENT_SHARE = 0.15


@dataclass(frozen=True)
class Verdict:
    """What is known when the search ends.

    `lower` is a proven lower bound of the property's margin (see `search`) over its boxes: the property holds when it
    is positive.  `subproblems` counts boxes and network parts that were bounded.  `counterexample` has the shape of one
    input and the network's own type, and `output` is what the network gives there; both are None without one.
    """

    status: ClassVar[Status]
    lower: float
    counterexample: Tensor | None
    subproblems: int
    seconds: float
    output: Tensor | None = None


@dataclass(frozen=True)
class Verified(Verdict):
    """The property holds: no input of any box is in the unsafe set."""

    status: ClassVar[Status] = "verified"


@dataclass(frozen=True)
class Counterexample(Verdict):
    """The property is violated at `counterexample`, as the network itself confirms."""

    status: ClassVar[Status] = "counterexample"


@dataclass(frozen=True)
class Unknown(Verdict):
    """Neither was found.  `timed_out` says whether more time could help, or the search met the limits of float64."""

    status: ClassVar[Status] = "unknown"
    timed_out: bool = True


@dataclass(frozen=True)
class Progress:
    """A glance at a running verification; `upper` is the smallest margin seen at a point."""

    lower: float
    upper: float
    subproblems: int
    open: int
    seconds: float


Observer = Callable[[Progress], None]


@dataclass(frozen=True)
class Minimum:
    """lower <= min of the margin over the property's boxes <= upper; `upper` is the margin at `point`."""

    lower: float
    upper: float
    point: Tensor
    subproblems: int
    seconds: float


def verify(
    model: nn.Module | Graph,
    property: Property,
    *,
    budget_s: float | int = 60,
    generator: torch.Generator | None = None,
    deployed: Callable[[Tensor], Tensor] | None = None,
    observer: Observer | None = None,
) -> Verdict:
    """Decide whether the property holds, within about `budget_s` seconds of wall time.

    Parameters
    ----------
    model : in evaluation mode; or its `capture`.  Inputs have the property's shape where it knows one, else the
        model's `input_shape`, else they are flat.
    generator : for the starts of the descent; a fixed seed when None.
    deployed : another program for the same network (for example the ONNX session it came from) that must confirm a
        counterexample too.
    observer : told about progress several times a second.

    Raises
    ------
    InputError for a budget that is not positive, a property with other numbers of inputs or outputs than the model, a
    layer in training mode or parameters that are not finite; UnsupportedError for operators without a bounding rule.
    """
    run = _Run.start(model, property, budget_s, generator, deployed, None, observer)
    run.go()
    return run.verdict()


def minimum(
    model: nn.Module | Graph,
    property: Property,
    *,
    gap: float | int = 1e-4,
    budget_s: float | int = 60,
    generator: torch.Generator | None = None,
) -> Minimum:
    """The smallest margin of the property, to within `gap` when the time allows: the same search as `verify`.

    Raises InputError for a gap that is not positive, a property without disjuncts, and as `verify` does.
    """
    if not gap > 0:
        raise InputError(f"the gap must be positive, got {gap}; write e.g. 1e-4 in units of the property's rows")
    run = _Run.start(model, property, budget_s, generator, None, gap, None)
    if not run.queries:
        raise InputError("the property has no disjuncts, so it has no margin to minimise")
    run.go()
    best = run.setting.incumbent
    assert best.point is not None
    point = best.point.reshape(run.setting.graph.shape[1:]).to(run.setting.program.dtype)
    spent = run.setting.deadline.spent
    return Minimum(min(run.lower, best.value), best.value, point, run.subproblems, spent)


@dataclass
class _Run:
    """One verification under way."""

    setting: Setting
    queries: list[Query]
    descents: list[Descent]
    observer: Observer | None
    searches: list[Search] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        model: nn.Module | Graph,
        property: Property,
        budget_s: float | int,
        generator: torch.Generator | None,
        deployed: Callable[[Tensor], Tensor] | None,
        gap: float | int | None,
        observer: Observer | None,
    ) -> _Run:
        if not budget_s > 0:
            raise InputError(f"the time budget must be positive, got {budget_s} seconds")
        deadline = Deadline(budget_s)
        graph = _captured(model, property)
        program = Program(graph.model, graph.shape[1:], deployed)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        setting = Setting(graph, program, Incumbent(program, gap), deadline, generator)
        device = next((p.device for p in graph.model.parameters()), torch.device("cpu"))
        asked = queries(property.unsafe(graph.outputs), graph.outputs, device)
        return cls(setting, asked, [Descent(setting, query) for query in asked], observer)

    @property
    def lower(self) -> float:
        if len(self.searches) < len(self.queries):
            return -torch.inf
        return min((search.lower for search in self.searches), default=torch.inf)

    @property
    def subproblems(self) -> int:
        return sum(search.subproblems for search in self.searches)

    @property
    def open(self) -> int:
        return sum(search.open for search in self.searches)

    def go(self) -> None:
        """Take turns until decided, out of time, or out of anything to split."""
        clock = self.setting.deadline
        descent_spent = 0.0
        for query in self.queries:
            self.setting.incumbent.offer(query, ((query.lower + query.upper) / 2)[None])
        try:
            for descent in self.descents:
                self._step(descent)
            descent_spent = clock.spent
            self.searches = [self._search(query) for query in self.queries]
            spent = [0.0] * len(self.searches)
            while not self.setting.incumbent.found and self.open:
                clock.check()
                if descent_spent < DESCENT_SHARE * clock.spent:
                    began = clock.spent
                    self._step(min(self.descents, key=lambda descent: descent.rounds))
                    descent_spent += clock.spent - began
                    continue
                began = clock.spent
                turn = min((k for k, search in enumerate(self.searches) if search.open), key=lambda k: spent[k])
                self._step(self.searches[turn])
                spent[turn] += clock.spent - began
        except OutOfTime:
            pass  # the verdict is made of what is known by now

    def _step(self, part: Search | Descent) -> None:
        if self.setting.incumbent.found:
            return
        with torch.no_grad():
            part.advance()
        if self.observer is not None:
            best, clock = self.setting.incumbent, self.setting.deadline
            self.observer(Progress(self.lower, best.value, self.subproblems, self.open, clock.spent))

    def _search(self, query: Query) -> Search:
        few = len(query.lower) <= FEW_INPUTS
        return InputSearch(self.setting, query) if few else BranchSearch(self.setting, query)

    def verdict(self) -> Verdict:
        best, clock = self.setting.incumbent, self.setting.deadline
        known = (self.lower, None, self.subproblems)
        if best.found:
            assert best.point is not None
            point = best.point.reshape(self.setting.graph.shape[1:]).to(self.setting.program.dtype)
            output = self.setting.program.outputs(best.point[None])[0]
            return Counterexample(min(self.lower, best.value), point, self.subproblems, clock.spent, output)
        if self.lower > 0:
            return Verified(*known, clock.spent)
        return Unknown(*known, clock.spent, timed_out=self.open > 0 or not self.searches)


def _captured(model: nn.Module | Graph, property: Property) -> Graph:
    """The model's graph, checked against the property."""
    if isinstance(model, Graph):
        graph = model
    else:
        shape = property.shape or getattr(model, "input_shape", None)
        if shape is None:
            if property.inputs is None:
                raise InputError(
                    "a property without disjuncts does not say what inputs look like; pass `capture(model, x)`"
                )
            shape = (property.inputs,)
        tensor = next(model.parameters(), None)
        dtype, device = (torch.float32, "cpu") if tensor is None else (tensor.dtype, tensor.device)
        graph = capture(model, torch.zeros(1, *shape, dtype=dtype, device=device))
    entries = torch.Size(graph.shape[1:]).numel()
    if property.inputs not in (None, entries):
        raise InputError(
            f"the property speaks of {property.inputs} inputs, the model takes {entries} "
            f"(shape {tuple(graph.shape[1:])}); is it a property of another network?"
        )
    if property.outputs not in (None, graph.outputs):
        raise InputError(
            f"the property speaks of {property.outputs} outputs, the model gives {graph.outputs}; "
            "is it a property of another network?"
        )
    broken = graph.not_finite()
    if broken:
        raise InputError(f"{', '.join(broken)} of the model holds NaN or infinity; nothing can be verified about it")
    return graph
