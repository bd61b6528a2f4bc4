"""Few-pixel attack by differential evolution: no gradient, k pixels of free value (Su, Vargas & Sakurai, 2019).

A candidate is k rows of (row, column, one value a channel).  Each generation every member i of the population makes

    child_i = a + F (b - c),   a, b, c members drawn at random,   F = 0.5

without crossover, and is replaced by its child where that raises the margin.  Shapes, ranges and errors as in
`gradient`; inputs that are not images count as one row of pixels with a single channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.inputs.attack.loop import CHUNK, Attack, AttackRun, Model, Search, forward
from holdfast.inputs.attack.losses import Goal
from holdfast.inputs.attack.square import as_planes
from holdfast.threats.balls import L0
from holdfast.threats.base import Valid, uniform, valid_bounds, value_range


@dataclass(frozen=True)
class FewPixels(Attack):
    """`generations` of `population` candidates an example, stopping where one fools; needs scores only."""

    threat: L0
    population: int = 400
    generations: int = 75
    factor: float = 0.5

    def __post_init__(self) -> None:
        if self.population < 4 or self.generations < 0 or not self.factor > 0:
            raise InputError(
                "differential evolution needs a population of at least 4, generations of at least 0 and a positive "
                f"factor, got {self.population}, {self.generations} and {self.factor}"
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
        """Adversarial inputs with the record of the search; `queries` counts every candidate's pass."""
        value_range(valid, self.threat)
        search = Search.begin(model, self.threat, x, y, valid, goal, "margin", clean_logits)
        rows = search.standing()
        if not len(rows):
            return search.close()
        candidates = self._start(search, rows, generator)
        worth = self._measure(search, rows, candidates)
        for _ in range(self.generations):
            keep = ~search.fooled[rows]
            rows, candidates, worth = rows[keep], candidates[keep], worth[keep]
            if not len(rows):
                break
            children = self._children(candidates, generator)
            gained = self._measure(search, rows, children)
            better = gained > worth
            candidates = torch.where(better[:, :, None, None], children, candidates)
            worth = torch.where(better, gained, worth)
        return search.close()

    def _start(
        self, search: Search, rows: Tensor, generator: torch.Generator | None
    ) -> Float[Tensor, "rows population pixels genes"]:
        """Uniform genes; all genes lie in [0, 1) and are mapped to places and values when candidates are drawn."""
        plane = as_planes(search.x[:1])
        pixels = min(int(self.threat.radius), plane.shape[2] * plane.shape[3])
        return uniform(plane, generator, (len(rows), self.population, pixels, 2 + plane.shape[1]))

    def _children(
        self, candidates: Float[Tensor, "rows population pixels genes"], generator: torch.Generator | None
    ) -> Float[Tensor, "rows population pixels genes"]:
        """One child a member, from three others that are all different."""
        count, members = candidates.shape[:2]
        drawn = uniform(candidates.double(), generator, (3, count, members))
        first, second, third = ((drawn[k] * (members - 1 - k)).long() for k in range(3))
        second = second + (second >= first)
        near, far = torch.minimum(first, second), torch.maximum(first, second)
        third = third + (third >= near)
        third = third + (third >= far)
        # Steps ahead of the parent, 1 to members - 1, so the parent itself is never drawn.
        own = torch.arange(members, device=drawn.device)
        row = torch.arange(count, device=drawn.device)[:, None]
        a, b, c = (candidates[row, (own + 1 + step) % members] for step in (first, second, third))
        return (a + self.factor * (b - c)).clamp(0, 1)

    def _measure(
        self, search: Search, rows: Tensor, candidates: Float[Tensor, "rows population pixels genes"]
    ) -> Float[Tensor, "rows population"]:
        """Margin of every candidate; the best of each example is noted."""
        worth = torch.empty(candidates.shape[:2], dtype=search.best_loss.dtype, device=candidates.device)
        members = candidates.shape[1]
        for part in torch.arange(len(rows), device=rows.device).split(max(1, CHUNK // members)):
            chosen = rows[part]
            points = self._drawn(search, chosen, candidates[part])
            logits = forward(search.model, points.flatten(0, 1))
            aim = search.aim.take(chosen.repeat_interleave(members))
            loss = aim.value(logits).reshape(len(part), members)
            reached = aim.reached(logits).reshape(len(part), members)
            # A candidate that fools comes before one that does not, whatever the loss says.
            best = torch.where(reached.any(1, keepdim=True) & ~reached, -torch.inf, loss).argmax(1)
            place = torch.arange(len(part), device=part.device)
            search.queries[chosen] += members - 1  # `note` counts the last one
            search.note(
                chosen, points[place, best], logits.reshape(len(part), members, -1)[place, best], loss[place, best]
            )
            worth[part] = loss
        return worth

    def _drawn(
        self, search: Search, rows: Tensor, candidates: Float[Tensor, "rows population pixels genes"]
    ) -> Float[Tensor, "rows population *shape"]:
        """The inputs that candidates stand for; where two pixels of one fall together the later wins."""
        plane = as_planes(search.x[rows])
        low, high = (as_planes(end) for end in valid_bounds(search.x[rows], search.valid))
        height, width = plane.shape[2:]
        top = (candidates[..., 0] * height).long().clamp(max=height - 1)
        left = (candidates[..., 1] * width).long().clamp(max=width - 1)
        place = top * width + left
        points = plane.flatten(2)[:, None].repeat(1, candidates.shape[1], 1, 1)
        low, high = (end.flatten(2)[:, None].expand_as(points) for end in (low, high))
        for pixel in range(candidates.shape[2]):
            at = place[:, :, pixel, None, None].expand(-1, -1, points.shape[2], 1)
            share = candidates[:, :, pixel, 2:, None]
            lowest, highest = low.gather(3, at), high.gather(3, at)
            points.scatter_(3, at, torch.clamp(lowest + (highest - lowest) * share, lowest, highest))
        return points.reshape(len(rows), candidates.shape[1], *search.x.shape[1:])
