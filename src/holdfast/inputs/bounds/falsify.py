"""Falsification: gradient descent on a property's margin over its box (PGD; Madry et al., 2018).

For every disjunct the point that makes max_r (A_d f(x) - b_d)_r smallest is looked for by sign steps in units of the
box's own widths, whose length falls geometrically, from the best of many random points, corners and the centre.
Nothing found here is called a counterexample before the network itself, one example at a time, has confirmed it
(`Incumbent.offer`).
"""

from __future__ import annotations

import time

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.inputs.bounds.search import Query, Setting

#: Length of the first and of the last step, as a share of the box's width.
FIRST, LAST = 0.25, 1e-3
STEPS = 40
#: Seconds that one call of `advance` aims at.
SLICE = 0.3


class Descent:
    """Rounds of descent on one query, each from fresh starts; as many starts a round as fit the time slice."""

    def __init__(self, setting: Setting, query: Query) -> None:
        self.setting, self.query = setting, query
        self.starts = 1
        self.rounds = 0

    def advance(self) -> None:
        """One round: `starts` points a disjunct.  Offers the best point of every step to the incumbent."""
        began = time.monotonic()
        points, disjunct = self._starts()
        self._descend(points, disjunct)
        self.rounds += 1
        spent = time.monotonic() - began
        if spent < SLICE:
            self.starts = min(256, 2 * self.starts)
        elif spent > 3 * SLICE:
            self.starts = max(1, self.starts // 2)

    def _starts(self) -> tuple[Tensor, Tensor]:
        """Starts and the disjunct that each aims at: for every disjunct the best of several random points."""
        query, disjuncts = self.query, len(self.query.matrix)
        drawn = self._drawn(disjuncts * self.starts * 4)
        values = query.values(self.setting.program.outputs(drawn)).nan_to_num(torch.inf)
        best = values.topk(min(self.starts, len(drawn)), dim=0, largest=False).indices
        disjunct = torch.arange(disjuncts, device=drawn.device).expand_as(best)
        return drawn[best.flatten()], disjunct.flatten()

    def _drawn(self, count: int) -> Float[Tensor, "points inputs"]:
        """Uniform points and corners by turns; the centre comes first, once."""
        lower, upper = self.query.lower, self.query.upper
        source = self.setting.generator
        device = torch.device("cpu") if source is None else source.device
        share = torch.rand(count, len(lower), generator=source, dtype=torch.float64, device=device).to(lower.device)
        share[1::2] = share[1::2].round()
        if self.rounds == 0:
            share[0] = 0.5
        return lower + (upper - lower) * share

    def _descend(self, points: Tensor, disjunct: Tensor) -> None:
        program, query = self.setting.program, self.query
        dtype = program.dtype
        lower, upper = query.lower.to(dtype), query.upper.to(dtype)
        width = upper - lower
        best, values = points, torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
        x = points.to(dtype)
        for step in range(STEPS + 1):
            x = x.detach().requires_grad_(step < STEPS)
            with torch.enable_grad():
                outputs = program.model(x.reshape(len(x), *program.shape)).flatten(1)
                margins = query.values(outputs).gather(1, disjunct[:, None]).squeeze(1)
                (slope,) = torch.autograd.grad(margins.sum(), x) if step < STEPS else (None,)
            better = margins.detach().double() < values
            best = torch.where(better[:, None], x.detach().double(), best)
            values = torch.where(better, margins.detach().double(), values)
            if bool((values <= min(0.0, self.setting.incumbent.value)).any()) or step == STEPS:
                self.setting.incumbent.offer(query, best)
                if self.setting.incumbent.found:
                    return
            self.setting.deadline.check()
            if slope is not None:
                length = FIRST * (LAST / FIRST) ** (step / STEPS)
                x = torch.clamp(x.detach() - length * width * slope.sign(), lower, upper)
