"""How far a pattern's property holds, and what it costs in coverage.

`verified_radius` looks for the largest ball by bisection, with the pattern or without; `delta_sweep` mines, covers and
verifies at several relaxations, of which `pareto` keeps those that nothing beats in coverage and proofs at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson
from holdfast.inputs.bounds.activation_patterns import ActivationPattern, Activations, coverage, mine_patterns
from holdfast.inputs.bounds.graph import Graph, capture
from holdfast.inputs.bounds.pattern_verification import Infeasible, verify_pattern
from holdfast.inputs.bounds.region import Region
from holdfast.inputs.bounds.search import Deadline
from holdfast.inputs.bounds.verify import Counterexample, Verdict, Verified, verify
from holdfast.inputs.bounds.vnnlib import Property
from holdfast.threats.balls import Linf


@dataclass(frozen=True)
class VerifiedRadius:
    """The largest radius that was verified, and the smallest at which the property is known to fail (inf: none).

    `queries` counts verdicts.  Between the two nothing is known: the time was up, or the steps were.
    """

    eps: float
    refuted: float
    queries: int
    seconds: float


def verified_radius(
    model: nn.Module | Graph,
    x: Float[Tensor, "*shape"],
    label: int,
    pattern: ActivationPattern | None = None,
    *,
    valid: tuple[float, float] = (0.0, 1.0),
    start: float | int = 0.02,
    tolerance: float | int = 0.05,
    budget_s: float | int = 60,
    query_s: float | int | None = None,
) -> VerifiedRadius:
    """The largest L-infinity ball around `x` in which followers of the pattern (None: all inputs) have the label.

    Doubles from `start` until a query fails, then bisects until the ends are within a factor of 1 + `tolerance` or
    the time is up.  A query that ends undecided counts as failed; a counterexample bounds the radius by its distance.
    `query_s` limits one query (default: a fifth of the budget).

    Raises InputError when `x` is misclassified or does not follow the pattern: then no ball is verified or every small
    one holds of nothing.
    """
    graph = model if isinstance(model, Graph) else capture(model, x[None])
    if not start > 0 or not tolerance > 0:
        raise InputError(f"start and tolerance must be positive, got {start} and {tolerance}")
    _check_centre(graph, x, label, pattern)
    clock = Deadline(budget_s)
    limit = budget_s / 5 if query_s is None else query_s
    whole = float(torch.maximum(x - valid[0], valid[1] - x).max())
    low, high, refuted, asked = 0.0, torch.inf, torch.inf, 0
    eps = min(float(start), whole)
    while clock.left > 0.05 * limit and low < whole and high > low * (1 + tolerance) and high > 1e-6:
        verdict = _ball(graph, x, label, pattern, eps, valid, min(limit, clock.left))
        asked += 1
        if isinstance(verdict, (Verified, Infeasible)):
            low = eps
        else:
            high = eps
        if isinstance(verdict, Counterexample):
            assert verdict.counterexample is not None
            distance = float((verdict.counterexample - x).abs().max())
            refuted, high = min(refuted, distance), min(high, distance)
        eps = min(2 * low, whole) if high == torch.inf else (low * high) ** 0.5 if low > 0 else high / 4
    return VerifiedRadius(low, refuted, asked, clock.spent)


def _check_centre(graph: Graph, x: Tensor, label: int, pattern: ActivationPattern | None) -> None:
    activations = Activations.of(graph, x[None])
    _, outputs = activations(x[None])
    if int(outputs.argmax(1)) != label:
        raise InputError(f"the model gives class {int(outputs.argmax(1))} to x, not {label}; no ball around it holds")
    if pattern is not None and coverage(graph, pattern, x[None]).value == 0:
        raise InputError("x does not follow the pattern, so every small ball around it would hold of nothing")


def _ball(
    graph: Graph,
    x: Tensor,
    label: int,
    pattern: ActivationPattern | None,
    eps: float | int,
    valid: tuple[float, float],
    budget_s: float | int,
) -> Verdict:
    if pattern is None:
        return verify(graph, Property.margin(x, label, Linf(eps), valid), budget_s=budget_s)
    return verify_pattern(graph, pattern, label, Region(x[None], Linf(eps), valid), budget_s=budget_s)


@dataclass(frozen=True)
class DeltaPoint:
    """One relaxation: how many neurons its pattern fixes, the share of held-out inputs of the class that follow it, and
    the share of regions in which it is verified; `vacuous` counts those where nothing follows, which are not."""

    delta: float
    fixed: int
    coverage: Estimate
    verified: Estimate
    vacuous: int


def delta_sweep(
    model: nn.Module | Graph,
    X: Float[Tensor, "examples *shape"],
    y: Int[Tensor, " examples"],
    held_out: Float[Tensor, "held *shape"],
    label: int,
    region: Region,
    *,
    deltas: Sequence[float] = (0.95, 0.97, 0.98, 0.99, 0.995, 1.0),
    budget_s: float | int = 10,
) -> list[DeltaPoint]:
    """What relaxing the pattern of `label` buys: mined from (X, y), covered on `held_out` inputs of that class, and
    verified in the region of every example of `region`, each within `budget_s` seconds.

    Raises InputError as `mine_patterns`, `coverage` and `verify_pattern` do.
    """
    graph = model if isinstance(model, Graph) else capture(model, X)
    members = y == label
    points = []
    for delta in deltas:
        pattern = mine_patterns(graph, X[members], y[members], delta)[label]
        parts = [region.part(slice(i, i + 1)) for i in range(len(region))]
        verdicts = [verify_pattern(graph, pattern, label, part, budget_s=budget_s) for part in parts]
        verified = clopper_pearson(sum(isinstance(v, Verified) for v in verdicts), len(verdicts))
        vacuous = sum(isinstance(v, Infeasible) for v in verdicts)
        points.append(DeltaPoint(float(delta), pattern.fixed, coverage(graph, pattern, held_out), verified, vacuous))
    return points


def pareto(points: Sequence[DeltaPoint]) -> list[DeltaPoint]:
    """Those that no other point matches in both coverage and verified share and beats in one."""

    def beaten(point: DeltaPoint, other: DeltaPoint) -> bool:
        gains = (other.coverage.value - point.coverage.value, other.verified.value - point.verified.value)
        return min(gains) >= 0 and max(gains) > 0

    return [point for point in points if not any(beaten(point, other) for other in points)]
