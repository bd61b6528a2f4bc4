"""Branch and bound over the signs of neurons (Bunel et al., 2020), with split constraints in the bounds (beta-CROWN;
Wang et al., 2021) and branching decided by trial (De Palma et al., 2021).

The root: boxes of every value by CROWN, then every disjunct's rows with optimised slopes, then, for what is still open,
optimised bounds inside the network too.  After that a subproblem is one disjunct and the signs imposed on some neurons.
The worst ones are taken in batches.  For each, the neurons whose relaxation loses most under its last bound are tried
in both signs with the multipliers it has; the one whose worse child is best is split, and slopes and multipliers of the
children are optimised from where their parent's were.  A subproblem without undecided neurons is a linear program
(`leaf`), where the network is piecewise linear; where it is not, the bounds inside the network are optimised further
for as long as there is time.  What is proven of a subproblem is proven as `parts` says: in float64, rounded outward.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from holdfast.inputs.bounds.bounding import MEMORY, propagate
from holdfast.inputs.bounds.leaf import settle
from holdfast.inputs.bounds.optimize import Multipliers, sharpen
from holdfast.inputs.bounds.parts import Parts
from holdfast.inputs.bounds.search import Pool, Query, Setting

#: Adam steps for a child, and for the root.
STEPS, ROOT_STEPS = 6, 40
#: Neurons tried at every split.
CANDIDATES = 8
#: Seconds that one batch aims at.
SLICE = 0.6
LARGEST_BATCH = 256
#: Share of the time left that optimising bounds inside the network may take: first, and when that alone can help.
SHARPEN_SHARE, SHARPEN_REST = 0.35, 0.9
#: Adam steps for that: first, and at most.
SHARPEN_STEPS, MOST_SHARPEN_STEPS = 10, 300


class BranchSearch:
    """Branch and bound on the neurons of one query."""

    def __init__(self, setting: Setting, query: Query) -> None:
        self.setting, self.query = setting, query
        self.subproblems = 0
        self.batch = 4
        self._stages = [self._crown, self._optimise, self._sharpen]
        self._closed = self._stuck = torch.inf
        self._parts: Parts | None = None
        self._pool: Pool | None = None
        self._crown_seconds = 0.0
        self._sharpened = 0

    @property
    def open(self) -> int:
        return len(self.query.matrix) if self._pool is None else len(self._pool)

    @property
    def lower(self) -> float:
        """Proven lower bound of the margin on the whole box."""
        return -torch.inf if self._pool is None else min(self._closed, self._stuck, self._pool.lower)

    def advance(self) -> None:
        """The next stage of the root, or one batch of splits."""
        if self._stages:
            self._stages[0]()
            self._stages.pop(0)
            return
        assert self._pool is not None
        began = time.monotonic()
        with self._pool.taking(self.batch) as taken:
            self._split(taken)
        self._pace(len(taken["bound"]), time.monotonic() - began)

    # The root.

    def _crown(self) -> None:
        """Boxes of every value, and every disjunct by the default relaxations."""
        began = time.monotonic()
        state = self.setting.propagation(self.query.lower[None], self.query.upper[None])
        propagate(state, "crown", MEMORY)
        self._crown_seconds = time.monotonic() - began
        self._parts = Parts(self.setting, self.query, state)
        count, device = len(self.query.matrix), self.query.lower.device
        splits = self._parts.signs.unknown(count, device)
        self._bound_anew(splits, torch.arange(count, device=device), None, 0)

    def _optimise(self) -> None:
        """Optimised slopes for the disjuncts that are open."""
        self._again(ROOT_STEPS)

    def _sharpen(self) -> None:
        """Optimised bounds inside the network, when the time allows, and the open disjuncts once more."""
        assert self._parts is not None
        share = SHARPEN_SHARE if self._sharpened == 0 else SHARPEN_REST
        affordable = share * self.setting.deadline.left / max(self._crown_seconds, 1e-6)
        # Seen: 8 times as long as the plain passes with 3 steps, 17 times with 10.
        steps = min(3 * self._sharpened or SHARPEN_STEPS, int((affordable - 4) / 1.3))
        if steps <= self._sharpened or not self.open:
            self._sharpened = MOST_SHARPEN_STEPS
            return
        self._parts = Parts(self.setting, self.query, sharpen(self._parts.root, MEMORY, steps))
        self._sharpened = steps
        self._again(ROOT_STEPS)

    def _again(self, steps: int) -> None:
        assert self._pool is not None
        if len(self._pool):
            with self._pool.taking(len(self._pool)) as old:
                self._bound_anew(old["splits"], old["disjunct"], _multipliers(old), steps)

    def _bound_anew(self, splits: Tensor, disjunct: Tensor, start: Multipliers | None, steps: int) -> None:
        found = self._bounded(splits, disjunct, start, steps)
        if self._pool is None:
            self._pool = Pool(**found)
        else:
            self._pool.put(**found)
        self._prune()

    # Splitting.

    def _split(self, taken: dict[str, Tensor]) -> None:
        assert self._parts is not None
        assert self._pool is not None
        leaves = taken["candidates"][:, 0] < 0
        if bool(leaves.any()):
            if not self._parts.piecewise_linear and self._sharpened < MOST_SHARPEN_STEPS:
                # No neuron left to split, but no linear program either: better relaxations are what can help.
                self._pool.put(**taken)
                self._stages.append(self._sharpen)
                return
            self._settle_leaves({name: value[leaves] for name, value in taken.items()})
            taken = {name: value[~leaves] for name, value in taken.items()}
            if not len(taken["bound"]):
                return
        chosen = self._tried(taken)
        children = {name: torch.cat([value, value]) for name, value in taken.items()}
        children["splits"] = torch.cat([_with_sign(taken["splits"], chosen, sign) for sign in (1, -1)])
        found = self._bounded(children["splits"], children["disjunct"], _multipliers(children), STEPS)
        found["bound"] = torch.maximum(found["bound"], children["bound"])
        self._pool.put(**found)
        self._prune()

    def _tried(self, taken: dict[str, Tensor]) -> Tensor:
        """The candidate of every subproblem whose worse child is best."""
        assert self._parts is not None
        candidates = taken["candidates"]
        parts, count = candidates.shape
        if count == 1:
            return candidates[:, 0]
        repeat = torch.arange(parts, device=candidates.device).repeat_interleave(count)
        tried = candidates.flatten().clamp(min=0)
        start = _multipliers(taken).examples(repeat)
        outcome = torch.stack(
            [
                self._parts.search(
                    _with_sign(taken["splits"][repeat], tried, sign), taken["disjunct"][repeat], start, 0
                )[0].reshape(parts, count)
                for sign in (1, -1)
            ]
        )
        # A child above the threshold is closed, by how much does not matter.
        outcome = outcome.clamp(max=self.setting.incumbent.threshold)
        value = outcome.amin(0) + 0.05 * outcome.amax(0)
        best = torch.where(candidates < 0, -torch.inf, value.double()).argmax(1, keepdim=True)
        return candidates.gather(1, best).squeeze(1)

    def _bounded(self, splits: Tensor, disjunct: Tensor, start: Multipliers | None, steps: int) -> dict[str, Tensor]:
        """Bound subproblems; the fields of the pool."""
        assert self._parts is not None
        _, found = self._parts.search(splits, disjunct, start, steps)
        rows, offset = self._parts.rows(disjunct, torch.float64)
        proof = self._parts.prove(splits, rows, offset, found)
        self.subproblems += len(splits)
        self.setting.incumbent.offer(self.query, proof.corner)
        loss, candidates = proof.loss.topk(min(CANDIDATES, proof.loss.shape[1]), dim=1)
        candidates = torch.where(loss > 0, candidates, -1)
        if not candidates.shape[1]:
            candidates = torch.full((len(splits), 1), -1, device=splits.device)
        fields = {"splits": splits, "disjunct": disjunct, "bound": proof.bound, "candidates": candidates}
        return fields | _stored(self._parts, found, len(splits))

    def _prune(self) -> None:
        assert self._pool is not None
        self._closed = min(self._closed, self._pool.prune(self.setting.incumbent.threshold))

    def _settle_leaves(self, leaves: dict[str, Tensor]) -> None:
        assert self._parts is not None
        incumbent = self.setting.incumbent
        for place in range(len(leaves["bound"])):
            splits = leaves["splits"][place : place + 1]
            rows, offset = self._parts.rows(leaves["disjunct"][place : place + 1], torch.float64)
            state = self._parts.state(splits, torch.float64)
            imposed = self._parts.signs.shaped(splits, state)
            leaf = settle(state, self._parts.output, imposed, rows, offset, incumbent.threshold)
            if leaf.point is not None:
                incumbent.offer(self.query, leaf.point[None])
            bound = max(leaf.bound, float(leaves["bound"][place]))
            if bound > incumbent.threshold:
                self._closed = min(self._closed, bound)
            else:
                self._stuck = min(self._stuck, bound)

    def _pace(self, count: int, seconds: float) -> None:
        aim = min(SLICE, 0.5 * max(self.setting.deadline.left, 0.1))
        if seconds > 1.5 * aim:
            self.batch = max(1, int(self.batch * aim / seconds))
        elif seconds < aim / 2 and count == self.batch:
            self.batch = min(LARGEST_BATCH, 2 * self.batch)


def _with_sign(splits: Tensor, neuron: Tensor, sign: int) -> Tensor:
    return splits.scatter(1, neuron[:, None], sign)


def _stored(parts: Parts, found: Multipliers, count: int) -> dict[str, Tensor]:
    """Multipliers as fields with one leading axis, in half precision: any values give valid bounds."""
    fields = {f"free {position}": value.movedim(1, 0).half() for position, value in found.free.items()}
    rows = parts.query.offset.shape[1]
    for position in parts.signs.positions:
        like = parts.root.boxes[position].lower
        beta = found.beta.get(position)
        beta = like.new_zeros(count, rows, *like.shape[1:]) if beta is None else beta
        fields[f"beta {position}"] = beta.clamp(max=torch.finfo(torch.float16).max).half()
    return fields


def _multipliers(fields: dict[str, Tensor]) -> Multipliers:
    free, beta = {}, {}
    for name, value in fields.items():
        kind, _, position = name.partition(" ")
        if kind == "free":
            free[int(position)] = value.float().movedim(0, 1)
        elif kind == "beta":
            beta[int(position)] = value.float()
    return Multipliers(free, beta)
