"""Word substitution: up to `swaps` positions of a sequence take another of their allowed embeddings.

x is (batch, positions, width), the embedded sequence; `candidates` (batch or 1, positions, choices, width) holds the
embedded substitutes of every position and `allowed` (batch or 1, positions, choices) says which of them exist.

    min over S(x) of <a, x' - x> = sum of the `swaps` smallest over positions t of min(0, min_{w in S_t} <a_t, w - x_t>)

A row is additive over positions, so the general dynamic programme g[t, j] = min(g[t-1, j], g[t-1, j-1] + gain_t) is
solved by taking the most negative gains.  Paper: Xu et al., 2020 (auto_LiRPA), section on synonym perturbation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.threats.base import Threat, Valid, uniform


@dataclass(frozen=True, eq=False)
class WordSwap(Threat):
    """At most `swaps` positions replaced by one of their own candidates."""

    swaps: int
    candidates: Float[Tensor, "sentences positions choices width"]
    allowed: Bool[Tensor, "sentences positions choices"]

    def __post_init__(self) -> None:
        if self.swaps < 1:
            raise InputError(f"a word swap replaces at least one word, got {self.swaps}")
        if self.candidates.ndim != 4 or self.allowed.shape != self.candidates.shape[:3]:
            raise InputError(
                "a word swap takes candidates (sentences, positions, choices, width), allowed without the last axis, "
                f"got {tuple(self.candidates.shape)} and {tuple(self.allowed.shape)}"
            )

    @property
    def radius(self) -> float:
        return float(self.swaps)

    def scaled(self, radius: float | int) -> WordSwap:
        return WordSwap(max(1, math.floor(radius + 0.5)), self.candidates, self.allowed)

    def describe(self) -> str:
        return (
            "one word replaced by a substitute"
            if self.swaps == 1
            else f"up to {self.swaps} words replaced by substitutes"
        )

    def part(self, examples: slice | Tensor) -> WordSwap:
        """The candidates of some of the sentences (those for all sentences stay)."""
        if len(self.candidates) == 1:
            return self
        return WordSwap(self.swaps, self.candidates[examples], self.allowed[examples])

    def norm(self, delta: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Number of positions that changed."""
        return (delta.abs().amax(2) > 0).sum(1).to(delta.dtype)

    def _tables(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sentences, positions, choices, width = self.candidates.shape
        if x.ndim != 3 or x.shape[1:] != (positions, width) or sentences not in (1, len(x)):
            raise InputError(
                f"the candidates are for sequences of shape ({positions}, {width}) and {sentences} sentences, "
                f"got a batch of shape {tuple(x.shape)}"
            )
        return (
            self.candidates.to(x).expand(len(x), positions, choices, width),
            self.allowed.to(x.device).expand(len(x), positions, choices),
        )

    def _substituted(self, x: Tensor, cost: Tensor, choice: Tensor) -> Tensor:
        """x with the chosen candidate at the `swaps` positions of lowest (negative) cost."""
        candidates, _ = self._tables(x)
        picked = candidates.gather(2, choice[..., None, None].expand(-1, -1, 1, x.shape[2])).squeeze(2)
        cheap = cost.topk(min(self.swaps, cost.shape[1]), dim=1, largest=False).indices
        swap = torch.zeros_like(cost, dtype=torch.bool).scatter(1, cheap, True) & (cost < 0)
        return torch.where(swap[..., None], picked, x)

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch *shape"]:
        candidates, allowed = self._tables(x)
        distance = (x_adv[:, :, None] - candidates).square().sum(3).masked_fill(~allowed, torch.inf)
        nearest, choice = distance.min(2)
        return self._substituted(x, nearest - (x_adv - x).square().sum(2), choice)

    def random_start(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        _, allowed = self._tables(x)
        choice = uniform(x, generator, tuple(allowed.shape)).masked_fill(~allowed, -1.0).argmax(2)
        order = -uniform(x, generator, tuple(allowed.shape[:2])) - 1e-3
        return self._substituted(x, order.masked_fill(~allowed.any(2), 0.0), choice)

    def interval(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        candidates, allowed = self._tables(x)
        reachable = torch.where(allowed[..., None], candidates, x[:, :, None])
        return torch.minimum(reachable.amin(2), x), torch.maximum(reachable.amax(2), x)

    def worst(
        self, rows: Float[Tensor, "batch rows *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch rows"]:
        candidates, allowed = self._tables(x)
        gains = torch.einsum("brtw,btcw->brtc", rows, candidates - x[:, :, None])
        lowest = gains.masked_fill(~allowed[:, None], 0.0).amin(3).clamp(max=0)
        return lowest.topk(min(self.swaps, lowest.shape[2]), dim=2, largest=False).values.sum(2)

    def contains(
        self,
        x_adv: Float[Tensor, "batch *shape"],
        x: Float[Tensor, "batch *shape"],
        valid: Valid = None,
        tolerance: float = 1e-6,
    ) -> Bool[Tensor, " batch"]:
        candidates, allowed = self._tables(x)
        kept = (x_adv - x).abs().amax(2) <= tolerance
        known = (((x_adv[:, :, None] - candidates).abs().amax(3) <= tolerance) & allowed).any(2)
        return (kept | known).all(1) & ((~kept).sum(1) <= self.swaps)
