"""Branch and bound below an activation pattern: the pattern's neurons are splits that were made in advance.

Over the inputs that follow a pattern its neurons are linear, and sigma_j z_j >= 0 holds for each.  So a fixed neuron is
not relaxed, its box ends at zero, and it enters every bound with a multiplier beta_j >= 0 (see `optimize`): the bounds
of the free neurons, which makes their relaxations narrower (`narrowed`), and the margin's.  What is left are the signs
of the free neurons, and those `BranchSearch` splits.

The margin of a query without rows is 0 everywhere.  A positive lower bound of it, which only multipliers can give, says
that the set it was taken over is empty: with that query the same search decides whether anything follows at all.

A counterexample has to follow, so a point is judged by the larger of its margin and max_j -sigma_j z_j.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn.functional import one_hot

from holdfast.inputs.bounds.activation import LeakyReLU
from holdfast.inputs.bounds.activation_patterns import ActivationPattern, Activations
from holdfast.inputs.bounds.backward import Units, refine
from holdfast.inputs.bounds.bounding import MEMORY
from holdfast.inputs.bounds.branch import BranchSearch
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.operator import Box
from holdfast.inputs.bounds.optimize import Multipliers, Search, Steps, both_ends
from holdfast.inputs.bounds.parts import Parts
from holdfast.inputs.bounds.rounding import Rounding
from holdfast.inputs.bounds.search import Incumbent, Query, Setting
from holdfast.inputs.bounds.signs import Signs, clamped

#: Times that the boxes of free neurons are narrowed, and Adam steps each time.
SWEEPS, NARROW_STEPS = 2, 20
#: Adam steps for a child at least.
CHILD_STEPS = 40
#: Share of the time left that narrowing may take.
NARROW_SHARE = 0.4

#: Descent: steps, length of the first and the last one as a share of the box's width, starts of a round, first leak.
DESCENT_STEPS, FIRST, LAST, STARTS, LEAK = 60, 0.25, 1e-3, 24, 0.1
#: Share of the steps over which the leak goes away.
LEAKING = 0.7
#: What breaking the pattern costs against reaching the unsafe set, by turns of the starts.
WEIGHTS = (0.1, 1.0, 10.0)
#: How far beyond zero the descent aims, in neurons and in margins.
SLACK = 1e-3


class Following:
    """How far points are from following a pattern, as the network computes in its own precision."""

    def __init__(self, activations: Activations, pattern: ActivationPattern, dtype: torch.dtype, device: torch.device):
        self.activations, self.dtype = activations, dtype
        self.signs = pattern.signs.to(device)
        fixed = self.signs.nonzero().squeeze(1)
        self._fixed, self._sign = fixed, self.signs[fixed].to(dtype)
        self._nodes = activations.graph.bind(dtype, device)
        self._leaking = activations.graph.bind(dtype, device)
        units = (node.operator for node in self._leaking)
        self._slopes = [(unit, unit.slope) for unit in units if isinstance(unit, LeakyReLU)]

    def run(self, points: Float[Tensor, "points inputs"], leak: float = 0.0) -> tuple[Tensor, Tensor]:
        """-sigma_j z_j of every fixed neuron (points, fixed), and the outputs; differentiable.

        With a leak every unit has at least that slope below zero.  A neuron that has to be on but hears only dead ones
        gives no gradient; through a leak it does.
        """
        for unit, slope in self._slopes:
            unit.slope = max(slope, leak)
        nodes = self._leaking if leak else self._nodes
        shape = self.activations.graph.shape[1:]
        layers, outputs = self.activations.preactivations(nodes, points.to(self.dtype).reshape(-1, *shape))
        return -self._sign * torch.cat(layers, 1)[:, self._fixed], outputs

    @torch.no_grad()
    def gap(self, points: Float[Tensor, "points inputs"]) -> Float[Tensor, " points"]:
        """The largest of -sigma_j z_j; at most 0 exactly for followers, for whom "on" means above zero."""
        broken, _ = self.run(points)
        if not broken.shape[1]:
            return torch.full((len(points),), -torch.inf, dtype=torch.float64, device=points.device)
        tie = (broken == 0) & (self._sign > 0)
        return torch.where(tie, torch.finfo(self.dtype).tiny, broken).double().nan_to_num(torch.inf).amax(1)


@dataclass
class PatternIncumbent(Incumbent):
    """The best point so far, judged by margin and pattern; `follower` is the first point seen to follow."""

    following: Following | None = None
    follower: Tensor | None = None

    def offer(self, query: Query, points: Float[Tensor, "points inputs"]) -> None:
        """As `Incumbent.offer`, of points that need not follow."""
        assert self.following is not None
        points = self.program.representable(query, points)
        gaps = self.following.gap(points)
        if self.follower is None and bool((gaps <= 0).any()):
            point = points[gaps.argmin()]
            self.follower = point.clone() if float(self.following.gap(point[None])) <= 0 else None
        margins = query.values(self.program.outputs(points)).amin(1).nan_to_num(torch.inf)
        place = int(torch.maximum(margins, gaps).argmin())
        if max(float(margins[place]), float(gaps[place])) < self.value:
            point = points[place]
            confirmed = max(self.program.margin(query, point), float(self.following.gap(point[None])))
            if confirmed < self.value:
                self.value, self.point = confirmed, point.clone()


@dataclass
class PatternDescent:
    """Sign descent on margin and broken neurons, from the centre of the box, random points and near the best one."""

    setting: Setting
    query: Query
    incumbent: PatternIncumbent
    rounds: int = 0

    def advance(self) -> None:
        """One round.  Offers what it starts from, and the best point of every start."""
        share = self._starts()
        disjuncts = len(self.query.matrix)
        turn = torch.arange(len(share), device=share.device)
        weight = torch.tensor(WEIGHTS, device=share.device)[(turn // disjuncts) % len(WEIGHTS)]
        self.rounds += 1
        self.incumbent.offer(self.query, self._points(share))
        if not self.incumbent.found:
            self.incumbent.offer(self.query, self._descended(share, turn % disjuncts, weight))

    def _points(self, share: Tensor) -> Tensor:
        """Points of the box from how far they lie along its width."""
        return self.query.lower + (self.query.upper - self.query.lower) * share.double()

    def _starts(self) -> Tensor:
        source, best = self.setting.generator, self.incumbent
        count, entries = max(STARTS, 3 * len(self.query.matrix)), len(self.query.lower)
        device = torch.device("cpu") if source is None else source.device
        share = torch.rand(count, entries, generator=source, dtype=torch.float64, device=device)
        share = share.to(self.query.lower.device)
        anchor = best.point if best.follower is None else best.follower
        if self.rounds == 0:
            share = 0.5 + 0.1 * (share - 0.5)
            share[0] = 0.5
        elif anchor is not None:
            width = (self.query.upper - self.query.lower).clamp(min=torch.finfo(torch.float64).tiny)
            known = ((anchor - self.query.lower) / width).clamp(0, 1)
            for first, spread in ((0, 0.3), (1, 0.01)):
                share[first::3] = known + spread * (share[first::3] - known)
        return share

    def _descended(self, share: Tensor, disjunct: Tensor, weight: Tensor) -> Tensor:
        following = self.incumbent.following
        assert following is not None
        lower, width = (end.to(following.dtype) for end in (self.query.lower, self.query.upper - self.query.lower))
        weight = weight.to(following.dtype)
        # A leak leads to followers, and away from counterexamples once followers are known.
        first = LEAK if self.incumbent.follower is None and self.rounds % 2 == 0 else 0.0
        free = share.detach().clone().to(following.dtype).requires_grad_()
        best, values = share, torch.full((len(share),), torch.inf, dtype=torch.float64, device=share.device)
        for step in range(DESCENT_STEPS):
            self.setting.deadline.check()
            leak = max(0.0, first * (1 - step / (LEAKING * DESCENT_STEPS)))
            with torch.enable_grad():
                broken, outputs = following.run(lower + width * free, leak)
                margin = self.query.values(outputs).gather(1, disjunct[:, None]).squeeze(1)
                loss = (margin + SLACK).relu() + weight * (broken + SLACK).relu().sum(1)
                (slope,) = torch.autograd.grad(loss.sum(), free)
            if leak == 0:
                worst = torch.cat([margin[:, None], broken], 1).detach().double().amax(1)
                better = worst < values
                best = torch.where(better[:, None], free.detach().double(), best)
                values = torch.where(better, worst, values)
                if bool((values <= min(0.0, self.incumbent.value)).any()):
                    self.incumbent.offer(self.query, self._points(best))
                    if self.incumbent.found:
                        break
            length = FIRST * (LAST / FIRST) ** (step / DESCENT_STEPS)
            free = (free.detach() - length * slope.sign()).clamp(0, 1).requires_grad_()
        return self._points(best)


class PatternSearch(BranchSearch):
    """Branch and bound on the free neurons of one query, over the inputs that follow `signs` (neurons,)."""

    def __init__(self, setting: Setting, query: Query, signs: Int8[Tensor, " neurons"]) -> None:
        super().__init__(setting, query)
        self.signs = signs
        self._narrow_seconds = 0.0

    @property
    def at_root(self) -> bool:
        """Whether nothing has been split yet and the root can still be bounded better."""
        return bool(self._stages)

    def _crown(self) -> None:
        began = time.monotonic()
        state = self.setting.propagation(self.query.lower[None], self.query.upper[None])
        self.signs = below(state, self.signs)
        self._crown_seconds = time.monotonic() - began
        self._parts = Parts(self.setting, self.query, state)
        count, device = len(self.query.matrix), self.query.lower.device
        splits = self.signs.to(device).expand(count, -1).clone()
        self._bound_anew(splits, torch.arange(count, device=device), None, 0)

    def _sharpen(self) -> None:
        """Narrower boxes of the free neurons, when the time allows, and the open disjuncts once more."""
        assert self._pool is not None
        assert self._parts is not None
        for _ in range(SWEEPS):
            expected = max(self._narrow_seconds, NARROW_STEPS * self._crown_seconds)
            if not len(self._pool) or expected > NARROW_SHARE * self.setting.deadline.left:
                return
            began = time.monotonic()
            state = narrowed(self.setting, self._parts.root, self.signs)
            self._narrow_seconds = time.monotonic() - began
            if state is None:
                with self._pool.taking(len(self._pool)):
                    return  # nothing follows, so nothing is open
            self._parts = Parts(self.setting, self.query, state)
            self._optimise()

    def _tried(self, taken: dict[str, Tensor]) -> Tensor:
        """The neuron whose relaxation costs most: what a trial without steps says is misled by multipliers that belong
        to the pattern's constraints (seen: several times the subproblems)."""
        return taken["candidates"][:, 0]

    def _bounded(self, splits: Tensor, disjunct: Tensor, start: Multipliers | None, steps: int) -> dict[str, Tensor]:
        """As below, with steps enough for the multipliers of a pattern."""
        return super()._bounded(splits, disjunct, start, max(steps, CHILD_STEPS) if steps else 0)


def below(state: Propagation, signs: Int8[Tensor, " neurons"]) -> Int8[Tensor, " neurons"]:
    """Propagate boxes by CROWN, every one cut to its imposed signs before it is used; the signs that cut something.

    A sign that the box implies by itself needs no multiplier and no constraint.
    """
    known = Signs(state.nodes)
    imposed = {position: part.clone() for position, part in known.split(signs[None]).items()}
    done: set[int] = set()
    for node in state.nodes:
        for parent in node.inputs:
            box = state.boxes[parent]
            if parent in imposed and parent not in done:
                done.add(parent)
                if not state.tight[parent]:
                    refine(state, parent, (box.lower < 0) & (box.upper > 0), MEMORY)
                box, part = state.boxes[parent], imposed[parent].reshape(box.lower.shape)
                implied = ((part > 0) & (box.lower >= 0)) | ((part < 0) & (box.upper <= 0))
                state.boxes[parent] = clamped(box, part)
                imposed[parent] = part.masked_fill(implied, 0).flatten(1)
        for position, mask in state.demands():
            if not state.tight[position] and not (position in done and node.operator.by_sign):
                refine(state, position, mask, MEMORY)
        state.advance()
    return torch.cat([imposed[position] for position in known.positions], 1)[0]


def narrowed(setting: Setting, reference: Propagation, signs: Int8[Tensor, " neurons"]) -> Propagation | None:
    """Boxes at least as tight as the reference's (float64, one example), by optimised passes with multipliers of the
    fixed neurons; None when they show that nothing follows.

    A pass starts at the deepest layer with the rows that bound a neuron added on the way, so that fixed neurons behind
    that neuron count as well.
    """
    known = Signs(reference.nodes)
    imposed = known.shaped(signs[None], reference)
    cut = known.split(signs[None])
    state = Propagation.resume(reference.nodes, reference.region, reference.rounding, reference.boxes[:1])
    for node in state.nodes:
        wanted = node.operator.wanted(*(state.boxes[i] for i in node.inputs))
        for parent, mask in zip(node.inputs, wanted):
            if mask is None or not parent or not bool(mask.any()):
                continue
            setting.deadline.check()
            before = state.boxes[parent]
            bound = _multiplied(setting, state, reference, parent, imposed)
            refine(state, parent, mask, MEMORY, intersect=False, bound=bound)
            found = state.boxes[parent]
            lower, upper = torch.maximum(found.lower, before.lower), torch.minimum(found.upper, before.upper)
            if bool((lower > upper).any()):
                return None
            state.boxes[parent] = Box(lower, upper)
        position = state.advance()
        box = state.boxes[position].intersect(reference.boxes[position])
        state.boxes[position] = clamped(box, cut[position]) if position in cut else box
    return state


def _multiplied(
    setting: Setting, state: Propagation, reference: Propagation, position: int, imposed: dict[int, Tensor]
) -> Units:
    """Bounds of entries of a value: multipliers are searched for in float32, what they give is proven in float64."""
    start = _last_behind(state, position, imposed)
    boxes = [*state.boxes, *reference.boxes[len(state.boxes) :]]
    exact = Propagation.resume(reference.nodes, reference.region, reference.rounding, boxes)
    coarse = [Box(box.lower.float(), box.upper.float()) for box in boxes]
    twin = Propagation.resume(setting.nodes(torch.float32), reference.region, Rounding(False, 0), coarse)

    def bound(search: Search, index: Tensor) -> Tensor:
        backward = search.backward(both=True)
        like = search.state.boxes[position].lower
        rows = one_hot(index, like[0].numel()).to(like).reshape(*index.shape, *like.shape[1:])
        if start != position:
            added = torch.cat([rows, -rows], 1)
            backward.extra = {**backward.extra, position: backward.extra.get(position, 0.0) + added}
            last = search.state.boxes[start].lower
            rows = last.new_zeros(*index.shape, *last.shape[1:])
        return both_ends(backward.run(start, rows))

    def bounded(examples: slice, index: Tensor) -> Box:
        search = Search(twin, examples, 2 * index.shape[1], {place: sign.float() for place, sign in imposed.items()})
        search.climb(lambda: bound(search, index), NARROW_STEPS, Steps())
        found = search.best().to(boxes[0].lower)
        with torch.no_grad():
            below, above = bound(Search(exact, examples, 2 * index.shape[1], imposed, found), index).chunk(2, 1)
        return Box(below, -above)

    return bounded


def _last_behind(state: Propagation, position: int, places: Iterable[int]) -> int:
    """The last of the places whose value depends on the one at `position`; that one itself without any."""
    behind = {position}
    for place, node in enumerate(state.nodes, 1):
        if behind.intersection(node.inputs):
            behind.add(place)
    return max(behind.intersection(places), default=position)
