"""Auto-PGD (Croce and Hein, 2020; the L1 form: Croce and Hein, 2021): ascent that sets its own step size.

    u       = P(x_k + eta s(g_k))
    x_{k+1} = P(x_k + a (u - x_k) + (1 - a) (x_k - x_{k-1})),     a = 0.75, and 1 at the first step

eta starts at twice the radius.  At checkpoints it is halved, per example, when too few steps of the window raised the
loss, or when it was not halved last time and the best loss has not moved since; the example then goes on from its
best point.  In the L1 ball the step is the sign of the gradient on a fraction of the coordinates that follows the
sparsity of the best point, and the radius shrinks towards eps in three stages.

`targets` > 0 runs once for each of the classes with the 2nd, 3rd, ... largest clean logit, pulling towards it with
the targeted difference-of-logits ratio (APGD-T); the win is still any error.  With a `hope`, an example is given up
towards a class when what its margin has left is beyond it (see `hope`), and when it withstood a larger L1 ball; what
was given up is not restarted.  Shapes, ranges and errors as in `gradient`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.inputs.attack.hope import check_hope, given_up
from holdfast.inputs.attack.loop import Attack, AttackRun, Model, Search, ascend
from holdfast.inputs.attack.losses import Aim, Goal
from holdfast.threats.balls import L1, Linf
from holdfast.threats.base import Threat, Valid, gaussian, per_example, uniform

MOMENTUM = 0.75
#: A step in the L1 ball moves this many times fewer coordinates than the best point has moved.
FEWER = 1.5
#: Share of the steps after which an example may first be given up, and between one look and the next.
FIRST_LOOK, LOOK_EVERY = 0.1, 0.05


@dataclass(eq=False)
class Climb:
    """Per-example state of an ascent; every field has one entry an example."""

    rows: Tensor
    start: Tensor
    point: Tensor
    previous: Tensor
    grad: Tensor
    loss: Tensor
    best_point: Tensor
    best_grad: Tensor
    best_loss: Tensor
    checked_loss: Tensor  # best loss at the last checkpoint
    step: Tensor
    rises: Tensor  # steps of this window that raised the loss
    halved: Tensor  # at the last checkpoint
    sparsity: Tensor  # share of coordinates a step moves (L1)
    changed: Tensor  # share of coordinates the best point had moved at the last checkpoint (L1)
    clean_gap: Tensor  # of the input (see `Aim.gap`)
    best_gap: Tensor  # the largest so far

    def keep(self, chosen: Tensor) -> None:
        """Drop the other examples."""
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name)[chosen])

    def back_to_best(self, chosen: Tensor) -> None:
        """Continue the chosen examples from their best point."""
        self.point = torch.where(per_example(chosen, self.point), self.best_point, self.point)
        self.grad = torch.where(per_example(chosen, self.grad), self.best_grad, self.grad)


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD with `steps` iterations; `eot` averages the gradient of a random model over that many passes; `hope`
    None goes on to the last step with every example that is not fooled.
    """

    threat: Threat
    steps: int = 100
    loss: str = "ce"
    targets: int = 0
    restarts: int = 1
    rho: float = 0.75
    eot: int = 1
    hope: float | None = None

    def __post_init__(self) -> None:
        check_hope(self.hope)
        if self.steps < 1 or self.restarts < 1 or self.eot < 1 or self.targets < 0:
            raise InputError(
                f"APGD needs steps, restarts and eot of at least 1 and targets of at least 0, got steps={self.steps}, "
                f"restarts={self.restarts}, eot={self.eot}, targets={self.targets}"
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
        search = Search.begin(model, self.threat, x, y, valid, goal, self.loss, clean_logits)
        aims = self._aims(search)
        rows = search.standing()
        while aims and len(rows):
            now = search.together(rows, len(aims), hopeful=self.hope is not None)
            pairs = search.pairs(rows, aims[:now])
            self._restarts(pairs, generator)
            search.absorb(rows, pairs, torch.where(pairs.fooled, torch.inf, pairs.best_loss))
            aims, rows = aims[now:], search.standing()
        return search.close()

    def _restarts(self, search: Search, generator: torch.Generator | None) -> None:
        """Climb with every pair; what was given up is not restarted."""
        hopeful = torch.ones_like(search.fooled)
        for _ in range(self.restarts):
            rows = search.standing()
            rows = rows[hopeful[rows]]
            if not len(rows):
                return
            if isinstance(self.threat, L1):
                self._narrowing(search, rows, hopeful, generator)
            else:
                self._climb(search, rows, self.threat, self.steps, None, hopeful, generator)

    def _aims(self, search: Search) -> list[Aim]:
        """The losses to climb, one run each."""
        if not self.targets or search.aim.exact:
            return [search.aim]
        others = search.logits.scatter(1, search.aim.y[:, None], -torch.inf).argsort(1, descending=True)
        count = min(self.targets, search.logits.shape[1] - 1)
        return [search.aim.pulled(others[:, rank], "dlr") for rank in range(count)]

    def _narrowing(self, search: Search, rows: Tensor, hopeful: Tensor, generator: torch.Generator | None) -> None:
        """The L1 schedule: most of the way in larger balls, each run's best point projected onto the next."""
        point: Tensor | None = None
        first = int(0.3 * self.steps)
        stages = ((3, first), (2, first), (1, self.steps - 2 * first))
        for factor, steps in stages:
            if steps < 1:
                continue
            ball = self.threat.scaled(factor * self.threat.radius)
            if point is not None:
                point = ball.project(point, search.x[rows], search.valid)
            point = self._climb(search, rows, ball, steps, point, hopeful, generator, final=factor == 1)
            if factor > 1 and self.hope is not None:
                kept = hopeful[rows]
                rows, point = rows[kept], point[kept]
            if not len(rows):
                return

    def _climb(
        self,
        search: Search,
        rows: Tensor,
        threat: Threat,
        steps: int,
        point: Tensor | None,
        hopeful: Tensor,
        generator: torch.Generator | None,
        final: bool = True,
    ) -> Tensor:
        """One ascent in `threat`; only a `final` one records what it finds.  Returns the best points (when not
        final); `hopeful` (batch,) loses what is given up.
        """
        start = search.x[rows]
        point = begin(threat, start, search.valid, generator) if point is None else point
        state = open_climb(rows, start, point, 2.0 * threat.stride(search.valid))
        if self.hope is not None:
            state.clean_gap = search.aim.take(rows).gap(search.logits[rows])
        sparse = isinstance(threat, L1)
        if sparse:
            state.step /= 2
            state.changed = share_changed(state)
            state.sparsity = state.changed / FEWER
        window = max(int((0.04 if sparse else 0.22) * steps), 1)
        look, look_every = max(int(FIRST_LOOK * steps), 1), max(int(LOOK_EVERY * steps), 1)
        since = 0
        taken = search.aim.take(state.rows)
        for iteration in range(steps + 1):
            logits, loss, grad = ascend(search.model, state.point, taken, self.eot)
            if final:
                leaving = search.note(state.rows, state.point, logits, loss)
                search.queries[state.rows] += self.eot - 1
            else:
                leaving = torch.zeros_like(state.halved)
                search.queries[state.rows] += self.eot
            rise(state, loss, grad, first=iteration == 0)
            if self.hope is not None:
                state.best_gap = torch.maximum(state.best_gap, taken.gap(logits))
                if final and iteration >= look and (iteration - look) % look_every == 0:
                    done = state.best_gap - state.clean_gap
                    beyond = given_up(-state.best_gap, done, iteration / steps, self.hope) & ~leaving
                    hopeful[state.rows[beyond]] = False
                    leaving = leaving | beyond
            if bool(leaving.any()):
                state.keep(~leaving)
                if not len(state.rows):
                    break
                taken = search.aim.take(state.rows)
            if iteration == steps:
                break
            since += iteration > 0
            if iteration and since == window:
                since = 0
                if sparse:
                    resparsify(state, threat.radius)
                else:
                    halve(state, window, self.rho)
                    window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            advance(state, threat, search.valid, first=iteration == 0)
        if not final and self.hope is not None:
            hopeful[state.rows[state.best_gap <= 0]] = False
        return state.best_point


def rise(state: Climb, loss: Tensor, grad: Tensor, first: bool) -> None:
    """Take one pass at the current points into the state."""
    if not first:
        state.rises += loss > state.loss
    better = loss > state.best_loss
    shape = per_example(better, state.point)
    state.best_point = torch.where(shape, state.point, state.best_point)
    state.best_grad = torch.where(shape, grad, state.best_grad)
    state.best_loss = torch.where(better, loss, state.best_loss)
    state.grad, state.loss = grad, loss
    if first:
        state.checked_loss = state.best_loss


def begin(threat: Threat, start: Tensor, valid: Valid, generator: torch.Generator | None) -> Tensor:
    """A random point; in the L-infinity ball one whose largest change is the whole radius, in the L1 ball projected
    noise.
    """
    if isinstance(threat, L1):
        return threat.project(start + gaussian(start, generator), start, valid)
    if isinstance(threat, Linf):
        noise = 2 * uniform(start, generator) - 1
        largest = noise.flatten(1).abs().amax(1).clamp(min=torch.finfo(start.dtype).tiny)
        eps = -threat.steepest(-torch.ones_like(start)) * threat.radius
        return threat.project(start + eps * noise / per_example(largest, start), start, valid)
    return threat.random_start(start, valid, generator=generator)


def open_climb(rows: Tensor, start: Tensor, point: Tensor, step: float) -> Climb:
    """The state before the first pass."""
    one = torch.ones(len(rows), dtype=start.dtype, device=start.device)
    blank = torch.zeros_like(start)
    return Climb(
        rows=rows,
        start=start,
        point=point,
        previous=point,
        grad=blank,
        loss=-torch.inf * one,
        best_point=point,
        best_grad=blank,
        best_loss=-torch.inf * one,
        checked_loss=-torch.inf * one,
        step=step * one,
        rises=0 * one,
        halved=one > 0,
        sparsity=one,
        changed=one,
        clean_gap=-torch.inf * one,
        best_gap=-torch.inf * one,
    )


def advance(state: Climb, threat: Threat, valid: Valid, first: bool) -> None:
    """One step of every example."""
    step = per_example(state.step, state.point)
    if isinstance(threat, L1):
        direction = sparse_sign(state.grad, state.sparsity)
        moved = threat.project(state.point + step * direction, state.start, valid)
    else:
        moved = threat.project(state.point + step * threat.steepest(state.grad), state.start, valid)
        if not first:
            carried = (1 - MOMENTUM) * (state.point - state.previous)
            moved = threat.project(state.point + MOMENTUM * (moved - state.point) + carried, state.start, valid)
    state.previous, state.point = state.point, moved


def sparse_sign(grad: Tensor, share: Float[Tensor, " batch"]) -> Tensor:
    """Sign of the gradient on its largest entries, a share of all, divided by how many they are."""
    size = grad.flatten(1).abs()
    # Rounded down, so that few features can narrow to one; 1e-4 takes back what floating point lost of whole numbers.
    count = (share * size.shape[1] + 1e-4).long().clamp(1, size.shape[1])
    threshold = size.sort(1, descending=True).values.gather(1, count[:, None] - 1)
    direction = grad.flatten(1).sign() * (size >= threshold)
    return (direction / direction.abs().sum(1, keepdim=True).clamp(min=1)).reshape(grad.shape)


def halve(state: Climb, window: int, rho: float) -> None:
    """A checkpoint: halve the step where the ascent oscillates or stands still."""
    stuck = ~state.halved & (state.checked_loss >= state.best_loss)
    state.halved = (state.rises <= rho * window) | stuck
    state.step = torch.where(state.halved, state.step / 2, state.step)
    state.checked_loss = state.best_loss
    state.rises = torch.zeros_like(state.rises)
    state.back_to_best(state.halved)


def share_changed(state: Climb) -> Float[Tensor, " batch"]:
    """Share of its coordinates that each best point has moved."""
    return ((state.best_point - state.start).flatten(1) != 0).to(state.step.dtype).mean(1)


def resparsify(state: Climb, radius: float) -> None:
    """An L1 checkpoint: follow the sparsity of the best point; where it still shrinks start again from there at full
    step.
    """
    changed = share_changed(state)
    shrunk = changed < 0.95 * state.changed
    state.sparsity = changed / FEWER
    state.step = torch.where(shrunk, radius, state.step / 1.5).clamp(radius / 10, radius)
    state.changed = changed
    state.rises = torch.zeros_like(state.rises)
    state.back_to_best(shrunk)
