"""HopSkipJump (Chen, Jordan and Wainwright, 2020): walk along the decision boundary knowing predicted labels only.

From a misclassified point (one that is given, or uniform noise over the valid range, else noise in balls of growing
size), bisect to the boundary; there estimate the boundary's normal from the labels of B random probes at distance
delta,

    g = mean_b (phi_b - mean phi) u_b,     phi_b = +1 if x_t + delta u_b is adversarial, else -1

step along it (its sign in L-infinity) by dist / sqrt(t), halved until the point is adversarial, and bisect again.  With
d values the bisection leaves a share theta = gamma / d^(3/2) (L2) or gamma / d^2 of the way open, as far as floats tell
such shares apart: delta is dist / d for either norm, so a point left further from the boundary would not see it.  It
minimises the distance, so it wins where that ends within the threat's radius.  All probes of all examples go through
the model together.

Threats: L2, Linf and Box (where every feature has allowances of its own).  Errors as in `gradient`; UnsupportedError
for other threats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.attack.loop import Attack, AttackRun, Model, Search, forward
from holdfast.inputs.attack.losses import Goal
from holdfast.threats.balls import L2, Box, Linf
from holdfast.threats.base import Threat, Valid, gaussian, per_example, uniform, valid_bounds, within

#: Radii, in units of the threat's, of the balls in which a first adversarial point is looked for.
STARTS = (1, 3, 10, 30, 100)
#: Input values of the probes that are made together; bounds memory.
PROBE_ELEMENTS = 1 << 24
#: Shortest probe, in units in the last place of the point that is probed.
PROBE_UNITS = 16


@dataclass(frozen=True)
class HopSkipJump(Attack):
    """`iterations` boundary steps with `initial_evals` * sqrt(t) probes, at most `max_evals`, at step t.

    At most `tries` draws of uniform noise, then as many in balls, look for a point to begin with.
    """

    threat: Threat
    iterations: int = 64
    initial_evals: int = 100
    max_evals: int = 10_000
    gamma: float = 1.0
    tries: int = 100

    def __post_init__(self) -> None:
        if not isinstance(self.threat, (Linf, Box, L2)):
            raise UnsupportedError(f"HopSkipJump attacks L-infinity, Box and L2 threats, not {self.threat!r}")
        if min(self.iterations, self.initial_evals, self.max_evals, self.tries) < 1:
            raise InputError("HopSkipJump needs at least one iteration, one probe and one try")

    def __call__(
        self,
        model: Model,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
        goal: Goal | None = None,
        start: Float[Tensor, "batch *shape"] | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Adversarial inputs like `x`, sought from `start` (see `run`)."""
        return self.run(model, x, y, valid=valid, generator=generator, goal=goal, start=start).x_adv

    def run(
        self,
        model: Model,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
        goal: Goal | None = None,
        clean_logits: Float[Tensor, "batch classes"] | None = None,
        start: Float[Tensor, "batch *shape"] | None = None,
    ) -> AttackRun:
        """Admissible adversarial inputs; an example whose boundary was not brought within the radius keeps its clean
        input.

        `start` gives an adversarial point for every example, at any distance: images of the class wanted where the
        goal is targeted, which noise seldom finds.  Raises InputError for a start that does not fit or is not
        adversarial.
        """
        search = Search.begin(model, self.threat, x, y, valid, goal, "margin", clean_logits)
        rows, point = self.minimise(search, generator, start)
        within = self.threat.contains(point, search.x[rows], valid)
        search.x_adv[rows[within]] = point[within]
        search.fooled[rows[within]] = True
        return search.close()

    def minimise(
        self, search: Search, generator: torch.Generator | None, start_points: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rows for which an adversarial point was found, and the nearest one found, at any distance."""
        if start_points is None:
            rows, point = self._misclassified(search, generator)
        else:
            rows, point = self._given(search, start_points)
        if not len(rows):
            return rows, point
        start = search.x[rows]
        size = start[0].numel()
        theta = self.gamma / (size * math.sqrt(size) if isinstance(self.threat, L2) else size**2)
        theta = max(theta, torch.finfo(start.dtype).eps)  # halves of shares below that are the same number
        point = self._to_boundary(search, rows, start, point, theta)
        for t in range(1, self.iterations + 1):
            distance = self.threat.norm(point - start)
            delta = self._probe_distance(search, point, distance, theta, t)
            direction = self._normal(
                search, rows, point, delta, min(int(self.initial_evals * t**0.5), self.max_evals), generator
            )
            moved = self._step(search, rows, start, point, direction, distance / t**0.5)
            nearer = self._to_boundary(search, rows, start, moved, theta)
            improved = self.threat.norm(nearer - start) < distance
            point = torch.where(per_example(improved, point), nearer, point)
        return rows, point

    def _adversarial(self, search: Search, rows: Tensor, points: Tensor) -> Tensor:
        """Whether each point (probes, examples, *shape) or (examples, *shape) has a wrong label; counts the queries."""
        if points.ndim == search.x.ndim:
            search.queries[rows] += 1
            return search.aim.take(rows).reached(forward(search.model, points))
        probes = len(points)
        search.queries[rows] += probes
        logits = forward(search.model, points.flatten(0, 1))
        return search.aim.take(rows.repeat(probes)).reached(logits).reshape(probes, len(rows))

    def _given(self, search: Search, points: Tensor) -> tuple[Tensor, Tensor]:
        """The starting points a caller gave, of the examples that are attacked."""
        x, rows = search.x, search.standing()
        if points.shape != x.shape or points.dtype != x.dtype:
            raise InputError(
                f"starting points must be like the inputs, {x.dtype} of shape {tuple(x.shape)}, got {points.dtype} of "
                f"shape {tuple(points.shape)}"
            )
        points = points.detach().to(x.device)[rows]
        inside = within(points, x[rows], search.valid, 1e-6) & torch.isfinite(self.threat.norm(points - x[rows]))
        if not bool(inside.all()):
            raise InputError(
                f"starting points of examples {rows[~inside].tolist()[:10]} leave the valid range {search.valid}, or "
                f"change what {self.threat!r} holds fixed"
            )
        wrong = self._adversarial(search, rows, points) if len(rows) else inside
        if not bool(wrong.all()):
            raise InputError(
                f"starting points of examples {rows[~wrong].tolist()[:10]} are not adversarial: give inputs to which "
                "the model answers as the attack wants"
            )
        return rows, points

    def _misclassified(self, search: Search, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """A first adversarial point by uniform noise over the valid range, where that is known, then by noise in balls
        of growing size; examples for which none is found are left out.
        """
        rows = search.standing()
        found_rows, found = [rows[:0]], [search.x[:0]]
        balls = [self.threat.scaled(factor * self.threat.radius) for factor in STARTS]
        known = search.valid is not None and all(bool(torch.as_tensor(end).isfinite().all()) for end in search.valid)
        anywhere = [None] * self.tries if known else []
        for ball in [*anywhere, *(ball for ball in balls for _ in range(max(self.tries // len(STARTS), 1)))]:
            if not len(rows):
                break
            if ball is None:
                low, high = self._limits(search.x[rows], search.valid)
                noise = low + (high - low) * uniform(low, generator)
            else:
                noise = ball.random_start(search.x[rows], search.valid, generator=generator)
            wrong = self._adversarial(search, rows, noise)
            found_rows.append(rows[wrong])
            found.append(noise[wrong])
            rows = rows[~wrong]
        return torch.cat(found_rows), torch.cat(found)

    def _limits(self, x: Tensor, valid: Valid) -> tuple[Tensor, Tensor]:
        """The valid range of every coordinate, shut in the directions in which the threat lets it not move at all."""
        low, high = valid_bounds(x, valid)
        if isinstance(self.threat, L2):
            return low, high
        up, down = self._ways(x)
        return torch.where(down < 0, low, x), torch.where(up > 0, high, x)

    def _ways(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The largest moves of size one, of all coordinates up and down."""
        one = torch.ones_like(like[:1])
        return self.threat.steepest(one), self.threat.steepest(-one)

    def _allowance(self, like: Tensor) -> Tensor:
        """Relative size of every coordinate's move: one, or a feature's own allowance."""
        if isinstance(self.threat, L2):
            return torch.ones_like(like[:1])
        up, down = self._ways(like)
        return (up - down) / 2

    def _blend(self, start: Tensor, point: Tensor, share: Tensor) -> Tensor:
        """The point brought closer: along the line (L2), or clipped to a smaller box."""
        if isinstance(self.threat, L2):
            return start + per_example(share, start) * (point - start)
        reach = per_example(share * self.threat.norm(point - start), start)
        up, down = self._ways(start)
        return torch.clamp(point, start + reach * down, start + reach * up)

    def _to_boundary(self, search: Search, rows: Tensor, start: Tensor, point: Tensor, theta: float) -> Tensor:
        """Bisect between the input and an adversarial point; what is returned was seen to be adversarial."""
        low = torch.zeros_like(point.flatten(1)[:, 0])
        high = torch.ones_like(low)
        best = point
        for _ in range(max(1, math.ceil(-math.log2(min(theta, 0.5))))):
            middle = (low + high) / 2
            candidate = self._blend(start, point, middle)
            wrong = self._adversarial(search, rows, candidate)
            best = torch.where(per_example(wrong, best), candidate, best)
            high, low = torch.where(wrong, middle, high), torch.where(wrong, low, middle)
        return best

    def _probe_distance(self, search: Search, point: Tensor, distance: Tensor, theta: float, t: int) -> Tensor:
        """Euclidean length of the probes: a tenth of the valid range at first, later what the bisection leaves open,
        spread over all values; at least `PROBE_UNITS` units in the last place of the point, below which probes are
        rounded away.
        """
        if t == 1 and search.valid is not None:
            low, high = (torch.as_tensor(end).double() for end in search.valid)
            return torch.full_like(distance, 0.1 * float((high - low).max()))
        size = point[0].numel()
        rounded = PROBE_UNITS * torch.finfo(point.dtype).eps * point.flatten(1).norm(dim=1)
        return torch.maximum(distance * theta * (math.sqrt(size) if isinstance(self.threat, L2) else size), rounded)

    def _normal(
        self,
        search: Search,
        rows: Tensor,
        point: Tensor,
        delta: Tensor,
        probes: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Estimated direction into the adversarial side.

        With S the sum of all u_b and S_phi that of phi_b u_b, sum_b (phi_b - mean phi) u_b = S_phi - mean phi S, so
        probes are made a few at a time (`PROBE_ELEMENTS`) and only their sums are kept.
        """
        at_once = max(1, min(probes, PROBE_ELEMENTS // max(1, point.numel())))
        plain, signed = torch.zeros_like(point), torch.zeros_like(point)
        total = torch.zeros_like(delta)
        for done in range(0, probes, at_once):
            taken, phi = self._probed(search, rows, point, delta, min(at_once, probes - done), generator)
            plain += taken.sum(0)
            signed += torch.einsum("pb,pbn->bn", phi, taken.flatten(2)).reshape(point.shape)
            total += phi.sum(0)
        mean = total / probes
        return self.threat.steepest(
            torch.where(per_example(mean.abs() == 1, point), signed, signed - per_example(mean, point) * plain)
        )

    def _probed(
        self,
        search: Search,
        rows: Tensor,
        point: Tensor,
        delta: Tensor,
        probes: int,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Directions that were probed, (probes, batch, *shape), and +1 where adversarial, -1 elsewhere."""
        many = point.expand(probes, *point.shape)
        noise = gaussian(many, generator) if isinstance(self.threat, L2) else 2 * uniform(many, generator) - 1
        noise = noise * self._allowance(point)
        flat = noise.flatten(2)
        noise = (flat / flat.norm(dim=2, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)).reshape(noise.shape)
        spread = per_example(delta, point)
        low, high = valid_bounds(point, search.valid)
        probed = torch.clamp(point + spread * noise, low, high)
        return (probed - point) / spread, 2.0 * self._adversarial(search, rows, probed).to(point.dtype) - 1

    def _step(
        self, search: Search, rows: Tensor, start: Tensor, point: Tensor, direction: Tensor, length: Tensor
    ) -> Tensor:
        """Move along the direction as far as the point stays adversarial, halving at most thirty times."""
        low, high = valid_bounds(start, search.valid)
        best, pending = point.clone(), torch.arange(len(rows), device=rows.device)
        length = length.clone()
        for _ in range(30):
            there = point[pending] + per_example(length[pending], start) * direction[pending]
            candidate = torch.clamp(there, low[pending], high[pending])
            wrong = self._adversarial(search, rows[pending], candidate)
            best[pending[wrong]] = candidate[wrong]
            pending = pending[~wrong]
            if not len(pending):
                break
            length[pending] /= 2
        return best
