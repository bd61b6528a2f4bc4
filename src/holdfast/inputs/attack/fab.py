"""FAB: fast adaptive boundary attack (Croce and Hein, 2020), which looks for the nearest point that fools.

At x_k the boundary towards class c is linearised, z_c - z_y = <w, .> - b.  With d_k and d the shortest ways from x_k
and from x to that plane inside the valid range (`hyperplane`),

    x_{k+1} = P((1 - alpha)(x_k + eta d_k) + alpha (x + eta d)),    alpha = min(|d_k| / (|d_k| + |d|), alpha_max)

and a point that fools is pulled back, x + beta (x_{k+1} - x).  With `targets` = m > 0 (FAB-T) there is one run for
each of the m classes that come next after the label on the clean input; with 0 every step goes to the boundary that is
nearest in the dual norm, at the cost of one gradient a class.

`run` stops with an example as soon as a fooling point lies in the threat's set; `nearest` spends all its steps on
bringing fooling points closer, draws the nearest to the boundary along the segment from x, and says how near they came.
With a `hope`, `run` gives an example up towards a class when the nearest point that fooled lies too far outside (see
`hope`).  Shapes, ranges and errors as in `gradient`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.attack.hope import check_hope, given_up
from holdfast.inputs.attack.hyperplane import towards_plane
from holdfast.inputs.attack.loop import Attack, AttackRun, Model, Search, forward, pieces
from holdfast.inputs.attack.losses import Aim, Goal
from holdfast.threats.balls import L1, L2, Linf
from holdfast.threats.base import Threat, Valid, gaussian, per_example, valid_bounds

_TINY = 1e-8
#: Share of the steps after which an example may first be given up, and between one look and the next.
FIRST_LOOK, LOOK_EVERY = 0.1, 0.05
#: Secants that bring the nearest point found to the boundary, and by what share of the rest of the bracket each goes
#: beyond it.
FINAL_STEPS, OVERSHOOT = 3, 0.01


@dataclass(eq=False)
class _Walk:
    """Examples still walking: their places in the batch, where they started, where they are, the nearest success of
    all walks and of this one.
    """

    rows: Tensor
    start: Tensor
    point: Tensor
    nearest: Tensor  # (rows,) size of the smallest change that fooled, inf for none
    reached: Tensor  # the same of this walk alone

    def keep(self, chosen: Tensor) -> None:
        """Go on with some of them."""
        self.rows, self.start = self.rows[chosen], self.start[chosen]
        self.point, self.nearest, self.reached = self.point[chosen], self.nearest[chosen], self.reached[chosen]


@dataclass(frozen=True)
class FAB(Attack):
    """FAB-T with `targets` > 0, FAB with 0; `threat` must be an Linf, L2 or L1 ball of one radius."""

    threat: Threat
    steps: int = 100
    targets: int = 9
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    hope: float | None = None

    def __post_init__(self) -> None:
        check_hope(self.hope)
        if not isinstance(self.threat, (Linf, L2, L1)) or isinstance(getattr(self.threat, "eps", None), Tensor):
            raise UnsupportedError(f"FAB needs an Linf, L2 or L1 ball of one radius, got {self.threat!r}")
        if self.steps < 1 or self.restarts < 1 or self.targets < 0:
            raise InputError(
                f"FAB needs steps and restarts of at least 1 and targets of at least 0, got steps={self.steps}, "
                f"restarts={self.restarts}, targets={self.targets}"
            )
        if not (0 <= self.alpha_max <= 1 and self.eta >= 1 and 0 < self.beta <= 1):
            raise InputError(
                f"FAB needs 0 <= alpha_max <= 1, eta >= 1 and 0 < beta <= 1, got {self.alpha_max}, {self.eta} and "
                f"{self.beta}"
            )

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
    ) -> AttackRun:
        """Adversarial inputs with the record of the search; `clean_logits` saves a pass where they are known."""
        search = Search.begin(model, self.threat, x, y, valid, goal, "margin", clean_logits)
        self._walks(search, search.standing(), generator, until=self.threat.radius)
        return search.close()

    def nearest(
        self,
        model: Model,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
        goal: Goal | None = None,
    ) -> AttackRun:
        """The nearest fooling point found for every example, however far (`norm` inf: none was found).

        Points need not lie in the threat's set; `norm` is 0 where the clean input is wrong already.
        """
        search = Search.begin(model, self.threat, x, y, valid, goal, "margin", None)
        nearest = self._walks(search, search.attacked.nonzero().squeeze(1), generator, until=0.0)
        nearest = torch.where(search.attacked, nearest, 0.0)
        found = search.attacked & torch.isfinite(nearest)
        rows = found.nonzero().squeeze(1)
        if len(rows):
            self._draw_in(search, rows)
            nearest[rows] = self.threat.norm(search.x_adv[rows] - search.x[rows])
        return AttackRun(search.x_adv.detach(), found, search.queries, nearest, search.best_loss)

    def _draw_in(self, search: Search, rows: Tensor) -> None:
        """Bring fooling points to the boundary along the segment from the input: `FINAL_STEPS` secants of the margin,
        each a little beyond where it vanishes; kept is the last point that was seen to fool.
        """
        aim = search.aim.take(rows)
        aim = aim if aim.exact else replace(aim, towards=None)
        start, change = search.x[rows], search.x_adv[rows] - search.x[rows]
        below, above = aim.value(search.logits[rows]), search.best_loss[rows]
        low, high = torch.zeros_like(above), torch.ones_like(above)
        for _ in range(FINAL_STEPS):
            share = torch.nan_to_num(below / (below - above), nan=0.5)
            middle = low + (share + OVERSHOOT * (1 - share)) * (high - low)
            point = start + per_example(middle, start) * change
            logits = forward(search.model, point)
            search.queries[rows] += 1
            fooled, value = aim.reached(logits), aim.value(logits).to(above.dtype)
            search.x_adv[rows[fooled]], search.best_loss[rows[fooled]] = point[fooled], value[fooled]
            low, below = torch.where(fooled, low, middle), torch.where(fooled, below, value)
            high, above = torch.where(fooled, middle, high), torch.where(fooled, value, above)

    def _aims(self, search: Search) -> list[Aim]:
        """The classes to walk to, one run each; without one: to whichever is nearest."""
        if search.aim.exact or not self.targets:
            return [search.aim]
        others = search.logits.scatter(1, search.aim.y[:, None], -torch.inf).argsort(1, descending=True)
        return [search.aim.pulled(others[:, rank]) for rank in range(min(self.targets, search.logits.shape[1] - 1))]

    def _walks(self, search: Search, rows: Tensor, generator: torch.Generator | None, until: float) -> Tensor:
        """Every walk of `rows`; the sizes of the smallest changes that fooled, (batch,), inf for none."""
        nearest = torch.full_like(search.best_loss, torch.inf)
        aims = self._aims(search)
        while aims and len(rows):
            now = search.together(rows, len(aims), hopeful=self.hope is not None)
            pairs = search.pairs(rows, aims[:now])
            sizes = torch.full_like(pairs.best_loss, torch.inf)
            for restart in range(self.restarts):
                walking = pairs.standing() if until > 0 else torch.arange(len(sizes), device=sizes.device)
                self._walk(pairs, walking, restart, sizes, generator, until)
            search.absorb(rows, pairs, torch.where(sizes < nearest[rows].repeat(now), -sizes, -torch.inf))
            nearest[rows] = torch.minimum(nearest[rows], sizes.reshape(now, -1).amin(0))
            aims, rows = aims[now:], search.standing() if until > 0 else rows
        return nearest

    def _walk(
        self,
        search: Search,
        rows: Tensor,
        restart: int,
        nearest: Tensor,
        generator: torch.Generator | None,
        until: float,
    ) -> None:
        """One run; `nearest` (batch,) and the search are brought up to date in place."""
        if not len(rows):
            return
        start = search.x[rows]
        point = self._begin(start, nearest[rows], search.valid, restart, generator)
        walk = _Walk(rows, start, point, nearest[rows], torch.full_like(nearest[rows], torch.inf))
        look, look_every = max(int(FIRST_LOOK * self.steps), 1), max(int(LOOK_EVERY * self.steps), 1)
        for step in range(1, self.steps + 1):
            walk.point = self._step(walk, *self._plane(search, walk), search.valid)
            logits = forward(search.model, walk.point)
            self._record(search, walk, logits, until)
            nearest[walk.rows] = walk.nearest
            leaving = (walk.nearest <= until) | (search.decided()[walk.rows] & (until > 0))
            if self.hope is not None and until > 0 and step >= look and (step - look) % look_every == 0:
                beyond = given_up(walk.reached - until, until, step / self.steps, self.hope)
                leaving = leaving | (beyond & torch.isfinite(walk.reached))
            if bool(leaving.any()):
                walk.keep(~leaving)
                if not len(walk.rows):
                    return

    def _begin(
        self, start: Tensor, nearest: Tensor, valid: Valid, restart: int, generator: torch.Generator | None
    ) -> Tensor:
        """The input itself; for later restarts a random point at half the smaller of radius and best distance."""
        if not restart:
            return start
        size = torch.minimum(nearest, torch.full_like(nearest, self.threat.radius)) / 2
        noise = gaussian(start, generator)
        noise = noise / per_example(self.threat.norm(noise).clamp(min=_TINY), noise)
        low, high = valid_bounds(start, valid)
        return torch.minimum(torch.maximum(start + per_example(size, noise) * noise, low), high)

    def _plane(self, search: Search, walk: _Walk) -> tuple[Tensor, Tensor]:
        """Normal (rows, values) and offset (rows,) of the linearised boundary to cross."""
        search.queries[walk.rows] += 1
        aim, parts = search.aim.take(walk.rows), pieces(walk.point)
        if parts <= 1:
            value, normal = self._slope(search.model, walk.point, aim)
        else:
            places = torch.arange(len(walk.rows), device=walk.rows.device).tensor_split(parts)
            seen = [self._slope(search.model, walk.point[rows], aim.take(rows)) for rows in places]
            value, normal = (torch.cat(part) for part in zip(*seen))
        normal = torch.nan_to_num(normal, nan=0.0, posinf=0.0, neginf=0.0)
        return normal, (normal * walk.point.flatten(1)).sum(1) - value

    def _slope(self, model: Model, point: Tensor, aim: Aim) -> tuple[Tensor, Tensor]:
        """Value (rows,) and gradient (rows, values) of the gap z_c - z_y to the class walked to."""
        with torch.enable_grad():
            leaf = point.detach().requires_grad_(True)
            logits = model(leaf)
            gaps = logits - logits.gather(1, aim.y[:, None])
            if aim.towards is None:
                return self._nearest_boundary(gaps, leaf, aim.y)
            gap = gaps.gather(1, aim.towards[:, None]).squeeze(1)
            (slope,) = torch.autograd.grad(gap.sum(), leaf)
        return gap.detach(), slope.flatten(1)

    def _nearest_boundary(self, gaps: Tensor, leaf: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient of the gap to the class whose linearised boundary is nearest in the dual norm."""
        dual = {Linf: 1.0, L2: 2.0, L1: torch.inf}[type(self.threat)]
        value, normal, least = (
            gaps.new_zeros(len(y)),
            gaps.new_zeros(leaf.flatten(1).shape),
            gaps.new_full(y.shape, torch.inf),
        )
        for label in range(gaps.shape[1]):
            (slope,) = torch.autograd.grad(gaps[:, label].sum(), leaf, retain_graph=label + 1 < gaps.shape[1])
            flat = slope.flatten(1)
            size = torch.linalg.vector_norm(flat, ord=dual, dim=1).clamp(min=_TINY)
            far = torch.where(y == label, torch.inf, gaps[:, label].detach().abs() / size)
            nearer = far < least
            least = torch.where(nearer, far, least)
            value = torch.where(nearer, gaps[:, label].detach(), value)
            normal = torch.where(nearer[:, None], flat, normal)
        return value, normal

    def _step(self, walk: _Walk, normal: Tensor, offset: Tensor, valid: Valid) -> Tensor:
        shape = walk.point.shape
        low, high = (end.flatten(1) for end in valid_bounds(walk.start, valid))
        point, start = walk.point.flatten(1), walk.start.flatten(1)
        here, there = (towards_plane(self.threat, from_, normal, offset, low, high) for from_ in (point, start))
        near, far = (self.threat.norm(way.reshape(shape)).clamp(min=_TINY) for way in (here, there))
        alpha = (near / (near + far)).clamp(max=self.alpha_max)[:, None]
        moved = (1 - alpha) * (point + self.eta * here) + alpha * (start + self.eta * there)
        return torch.minimum(torch.maximum(moved, low), high).reshape(shape)

    def _record(self, search: Search, walk: _Walk, logits: Tensor, until: float) -> None:
        """Note fooling points that are nearer than the ones known; inside the set they count as wins.  What fools is
        then pulled back.
        """
        search.queries[walk.rows] += 1
        aim = search.aim.take(walk.rows)
        size = self.threat.norm(walk.point - walk.start)
        fooled = aim.reached(logits)
        walk.reached = torch.where(fooled, torch.minimum(size, walk.reached), walk.reached)
        better = fooled & (size < walk.nearest)
        walk.nearest = torch.where(better, size, walk.nearest)
        wins = better if until == 0.0 else better & (size <= until)
        chosen = walk.rows[wins]
        search.x_adv[chosen] = walk.point[wins]
        margin = aim if aim.exact else replace(aim, towards=None)
        search.best_loss[chosen] = margin.value(logits)[wins].to(search.best_loss.dtype)
        if until > 0:
            search.win(chosen)
        else:
            search.fooled[chosen] = True
        pulled = walk.start + self.beta * (walk.point - walk.start)
        walk.point = torch.where(per_example(fooled, pulled), pulled, walk.point)
