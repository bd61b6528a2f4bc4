"""Verifying activation patterns as specifications (Geng et al., 2023).

With P the inputs that follow the pattern of class c, proven or refuted are

    robustness            every x in the valid range with x in P has label c            verify_pattern(.., region=None)
    augmented robustness  every x in a region with x in P has label c                   verify_pattern(.., region)
    no misclassification  none of those gets label k                                    verify_pattern(.., rival=k)
    non-ambiguity         no x in the valid range follows two patterns                  ambiguous

The pattern turns its neurons into linear constraints before the search begins (module `pattern_search`), so properties
are provable that are out of reach, or false, without it.  What is proven of P holds in exact arithmetic of the stored
weights for all x with sigma_j z_j(x) >= 0, followers and their border (float64, outward rounding).  A counterexample
follows, and is misclassified, in the network's own precision.

Nothing follows an infeasible pattern, so everything is true of it.  Such a verdict is `Infeasible`, never `Verified`;
and `PatternVerified` shows an input that follows where one was found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.inputs.bounds.activation_patterns import (
    ActivationPattern,
    Activations,
    contradict,
    infeasible,
)
from holdfast.inputs.bounds.graph import Graph, capture
from holdfast.inputs.bounds.pattern_search import Following, PatternDescent, PatternIncumbent, PatternSearch
from holdfast.inputs.bounds.region import Region
from holdfast.inputs.bounds.search import Deadline, OutOfTime, Program, Query, Setting, queries
from holdfast.inputs.bounds.verify import DESCENT_SHARE, Counterexample, Unknown, Verdict, Verified
from holdfast.inputs.bounds.vnnlib import Disjunct, Margin
from holdfast.inputs.features import evaluating
from holdfast.threats.balls import Box, Linf

#: Rounds of descent before proofs begin, and share of the time for asking first whether anything follows.
FIRST_ROUNDS, FEASIBILITY_SHARE = 2, 0.3
#: Rounds of descent when nothing is left to split.
LAST_ROUNDS = 4


@dataclass(frozen=True)
class Infeasible(Verdict):
    """Proven: no input of the region follows the pattern, so whatever is asked of its followers is true of nothing."""

    status: ClassVar[str] = "infeasible"  # type: ignore[assignment]


@dataclass(frozen=True)
class PatternVerified(Verified):
    """The property holds of every input of the region that follows the pattern.

    `witness` is one such input, in the network's own type; None when none was found though none of them was excluded,
    so that the proof may still be one about nothing.
    """

    witness: Tensor | None = None


def verify_pattern(
    model: nn.Module | Graph,
    pattern: ActivationPattern,
    label: int,
    region: Region | None = None,
    *,
    budget_s: float | int = 60,
    rival: int | None = None,
    valid: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Verdict:
    """Decide whether everything that follows the pattern has the label, within about `budget_s` seconds.

    Parameters
    ----------
    model : in evaluation mode; or its `capture`.
    region : one example's box (`Linf` or `Box`); None asks about the whole input space, every entry within `valid`,
        whose shape the model (`input_shape`) or the pattern has to know unless it is captured: mined patterns do.
    rival : ask only that this class does not reach the label.

    Returns
    -------
    `PatternVerified`, `Infeasible`, `Counterexample` (which follows) or `Unknown`.  Ties count as misclassified.

    Raises
    ------
    InputError for a budget that is not positive, a pattern of another network, a region that is not one box, a label or
    rival that the model does not have, or parameters that are not finite.
    """
    run = _Run.start(model, pattern, region, valid, budget_s, generator)
    outputs = run.graph.outputs
    if rival is not None and (rival == label or not 0 <= rival < outputs):
        raise InputError(f"the rival must be another of the {outputs} classes, got {rival} against label {label}")
    parts = Margin(*run.box, label).disjuncts(outputs)
    if rival is not None:
        parts = (parts[rival - (rival > label)],)
    return run.decide(parts)


def ambiguous(
    model: nn.Module | Graph,
    p: ActivationPattern,
    q: ActivationPattern,
    valid: tuple[float, float] | Region = (0.0, 1.0),
    budget_s: float | int = 60,
    generator: torch.Generator | None = None,
) -> Verdict:
    """Whether some input with every entry within `valid` (or of a region) follows both patterns.

    `Infeasible`: none does, which is immediate when one neuron is on in the one and off in the other.
    `Counterexample`: its `counterexample` follows both.  Raises InputError as `verify_pattern` does.
    """
    region = valid if isinstance(valid, Region) else None
    joined = p if contradict(p, q) else p.joined(q)
    run = _Run.start(model, joined, region, (0.0, 1.0) if isinstance(valid, Region) else valid, budget_s, generator)
    if contradict(p, q):
        return Infeasible(torch.inf, None, 0, run.setting.deadline.spent)
    return run.find_follower()


@dataclass
class _Run:
    """One question about the followers of a pattern in a box."""

    graph: Graph
    pattern: ActivationPattern
    region: Region
    setting: Setting
    following: Following

    @classmethod
    def start(
        cls,
        model: nn.Module | Graph,
        pattern: ActivationPattern,
        region: Region | None,
        valid: tuple[float, float],
        budget_s: float | int,
        generator: torch.Generator | None,
    ) -> _Run:
        if not budget_s > 0:
            raise InputError(f"the time budget must be positive, got {budget_s} seconds")
        deadline = Deadline(budget_s)
        graph = _captured(model, region, pattern)
        region = _whole(graph, valid) if region is None else region
        if len(region) != 1 or not isinstance(region.threat, (Linf, Box)):
            raise InputError(
                f"a pattern is verified in the box of one example, got {len(region)} examples and "
                f"{type(region.threat).__name__}; use Linf or Box and Region.part"
            )
        if tuple(region.x.shape[1:]) != graph.shape[1:]:
            raise InputError(f"the model takes inputs of shape {graph.shape[1:]}, the region has {region.x.shape[1:]}")
        activations = Activations.of(graph, region.x)
        activations.check(pattern)
        broken = graph.not_finite()
        if broken:
            raise InputError(
                f"{', '.join(broken)} of the model holds NaN or infinity; nothing can be verified about it"
            )
        program = Program(graph.model, graph.shape[1:])
        following = Following(activations, pattern, program.dtype, region.x.device)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        incumbent = PatternIncumbent(program, following=following)
        setting = Setting(graph, program, incumbent, deadline, generator)
        return cls(graph, pattern, Region(region.x.double(), region.threat, region.valid), setting, following)

    @property
    def box(self) -> tuple[Float[np.ndarray, " inputs"], Float[np.ndarray, " inputs"]]:
        lower, upper = (end.flatten().cpu().numpy() for end in self.region.interval())
        return lower, upper

    def decide(self, parts: Sequence[Disjunct]) -> Verdict:
        """The verdict on "no follower is in any of the parts"."""
        if bool(infeasible(self.graph, self.pattern, self.region)):
            return Infeasible(torch.inf, None, 0, self.setting.deadline.spent)
        question, anyone = self._contest(parts), self._contest(self._anyone())
        question.descend(FIRST_ROUNDS)
        if question.incumbent.follower is None:
            anyone.go(FEASIBILITY_SHARE, roots_only=True)
        if not anyone.proven:
            question.go()
        if question.proven and question.incumbent.follower is None and anyone.incumbent.follower is None:
            anyone.go()  # proven, but perhaps of nothing
        return self._verdict(question, anyone)

    def find_follower(self) -> Verdict:
        """The verdict on "nothing follows"."""
        if bool(infeasible(self.graph, self.pattern, self.region)):
            return Infeasible(torch.inf, None, 0, self.setting.deadline.spent)
        anyone = self._contest(self._anyone())
        anyone.descend(FIRST_ROUNDS)
        anyone.go()
        return self._verdict(anyone, anyone)

    def _verdict(self, question: Contest, anyone: Contest) -> Verdict:
        spent = self.setting.deadline.spent
        subproblems = question.subproblems + (anyone.subproblems if anyone is not question else 0)
        best = question.incumbent
        if best.found:
            assert best.point is not None
            output = self.setting.program.outputs(best.point[None])[0]
            lower = min(question.lower, best.value)
            return Counterexample(lower, self._shaped(best.point), subproblems, spent, output)
        if anyone.proven:
            return Infeasible(torch.inf, None, subproblems, spent)
        if question.proven:
            seen = best.follower if best.follower is not None else anyone.incumbent.follower
            witness = None if seen is None else self._shaped(seen)
            return PatternVerified(question.lower, None, subproblems, spent, None, witness)
        return Unknown(question.lower, None, subproblems, spent, timed_out=question.open)

    def _contest(self, parts: Sequence[Disjunct]) -> Contest:
        incumbent = PatternIncumbent(self.setting.program, following=self.following)
        (query,) = queries(parts, self.graph.outputs, self.region.x.device)
        # A box that was cut by the valid range is not centred on its example, which is the likeliest follower.
        incumbent.offer(query, self.region.x.reshape(1, -1))
        return Contest(replace(self.setting, incumbent=incumbent), query, incumbent, self.following.signs)

    def _anyone(self) -> list[Disjunct]:
        """Every follower is "unsafe": a part without rows."""
        return [Disjunct(*self.box, np.zeros((0, self.graph.outputs)), np.zeros(0))]

    def _shaped(self, point: Tensor) -> Tensor:
        return point.reshape(self.graph.shape[1:]).to(self.setting.program.dtype)


class Contest:
    """Proof and counterexample of one query, each looked for by turns."""

    def __init__(self, setting: Setting, query: Query, incumbent: PatternIncumbent, signs: Int8[Tensor, " neurons"]):
        self.setting, self.incumbent = setting, incumbent
        self._search = PatternSearch(setting, query, signs)
        self._descent = PatternDescent(setting, query, incumbent)
        self._began = False

    @property
    def lower(self) -> float:
        return self._search.lower

    @property
    def proven(self) -> bool:
        return self.lower > 0 and not self.incumbent.found

    @property
    def open(self) -> bool:
        return self._search.open > 0

    @property
    def subproblems(self) -> int:
        return self._search.subproblems

    def descend(self, rounds: int) -> None:
        """Look for a counterexample only; stops early at one."""
        try:
            for _ in range(rounds):
                if not self.incumbent.found:
                    self._descent.advance()
        except OutOfTime:
            pass  # what was found by now counts

    def go(self, share: float = 1.0, roots_only: bool = False) -> None:
        """Until decided, nothing is left to split, or `share` of the time left has passed; or the root is bounded."""
        clock = self.setting.deadline
        began, limit, descended = clock.spent, share * clock.left, 0.0
        try:
            while self.open and not self.incumbent.found and clock.spent - began < limit:
                clock.check()
                started = clock.spent
                if descended < DESCENT_SHARE * (started - began):
                    self._descent.advance()
                    descended += clock.spent - started
                elif roots_only and not self._search.at_root:
                    return
                else:
                    with torch.no_grad():
                        self._search.advance()
            if not self.open and not self.proven:
                # The leaves' programs end on the border of the pattern; a few steps lead inside.
                self.descend(LAST_ROUNDS)
        except OutOfTime:
            pass  # the verdict is made of what is known by now


def _captured(model: nn.Module | Graph, region: Region | None, pattern: ActivationPattern) -> Graph:
    if isinstance(model, Graph):
        return model
    if region is not None:
        return capture(model, region.x.to(_like(model, region.x)))
    told = getattr(model, "input_shape", None)
    shape = pattern.shape if told is None else tuple(told)
    if shape is None:
        raise InputError(
            "neither the model nor the pattern says what inputs look like; pass `capture(model, x)` or a region"
        )
    example = _like(model, torch.zeros(1)).new_zeros(1, *shape)
    try:
        with torch.no_grad(), evaluating(model):
            model(example)
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            f"the model does not take inputs of shape {shape}, as the network of the pattern does: mine it from "
            f"this model ({str(error).splitlines()[0]})"
        ) from error
    return capture(model, example)


def _like(model: nn.Module, otherwise: Tensor) -> Tensor:
    """A tensor of the type and on the device that the model computes in."""
    return next((parameter for parameter in model.parameters() if parameter.is_floating_point()), otherwise)


def _whole(graph: Graph, valid: tuple[float, float]) -> Region:
    """Every input with entries within `valid`, both ends included."""
    low, high = valid
    if not low < high:
        raise InputError(f"the valid range must be (low, high) with low < high, got {valid}")
    device = _like(graph.model, torch.zeros(1)).device
    corner = torch.full(graph.shape, low, dtype=torch.float64, device=device)
    # low + (high - low) may round to less than high; with the next larger width it cannot, and the range cuts the rest.
    return Region(corner, Linf(math.nextafter(high - low, math.inf)), valid)
