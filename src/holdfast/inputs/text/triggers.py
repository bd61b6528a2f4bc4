"""Universal triggers: a few words in front of any text that move every score (Wallace et al., 2019; HotFlip, 2018).

With t the trigger's embedded words and F the mean score over texts, to first order

    F(t with t_i replaced by e_v) - F(t) ≈ (e_v - t_i) · ∂F/∂t_i,

so for each place the words of largest gain are candidates; they are tried out, and the best `beam` triggers go on to
the next place.  Sweeps over the places repeat until none improves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.inputs.text.attribution import embedded_as, embedding_layer


@dataclass(frozen=True, eq=False)
class Trigger:
    """The numbers (length,) found, and the mean score without and with them in front."""

    numbers: Int[Tensor, " length"]
    before: float
    after: float

    def prepended(self, numbers: Int[Tensor, "texts words"]) -> Int[Tensor, "texts longer"]:
        """Texts with the trigger in front."""
        return torch.cat([self.numbers.to(numbers.device).expand(len(numbers), -1), numbers], 1)


@dataclass(frozen=True)
class UniversalTrigger:
    """Search the words in front of all texts that raise (`direction` 1) or lower (-1) a score most on average.

    Parameters
    ----------
    length : words in the trigger.
    beam : triggers kept at every place.
    candidates : words tried out at every place for every kept trigger.
    direction : which way the score is to go.
    embedding : the embedding table, an `nn.Embedding`, or its name in the model.
    sweeps : most passes over the places.

    Raises InputError for a length, beam, candidates or sweeps below 1.
    """

    length: int = 3
    beam: int = 3
    candidates: int = 20
    direction: Literal[-1, 1] = 1
    embedding: str | nn.Module = "embedding"
    sweeps: int = 3

    def __post_init__(self) -> None:
        if min(self.length, self.beam, self.candidates, self.sweeps) < 1:
            raise InputError(
                "a trigger needs length, beam, candidates and sweeps of at least 1, got "
                f"{self.length}, {self.beam}, {self.candidates}, {self.sweeps}"
            )

    def __call__(
        self, model: nn.Module, numbers: Int[Tensor, "texts words"], allowed: Int[Tensor, " some"] | None = None
    ) -> Trigger:
        """The best trigger for these texts; `model` gives scores (texts,), `allowed` the words it may use (all but pad
        and unknown).

        Raises InputError without texts, or for an embedding that is not a table of the model.
        """
        table = embedding_layer(model, self.embedding)
        if not isinstance(table, nn.Embedding):
            raise InputError(f"a trigger is searched in an nn.Embedding, got {type(table).__name__}")
        if not len(numbers):
            raise InputError("there is no text to search a trigger on")
        usable = torch.arange(2, table.num_embeddings) if allowed is None else allowed
        usable = usable.to(numbers.device)
        with torch.no_grad():
            before = float(model(numbers).mean())
        start = usable[: self.length].repeat(-(-self.length // len(usable)))[: self.length]
        beam = {tuple(start.tolist()): self._value(model, numbers, start[None])[0].item()}
        best = max(beam.values())
        for _ in range(self.sweeps):
            for place in range(self.length):
                beam = self._improved(model, table, numbers, beam, place, usable)
            if max(beam.values()) <= best + 1e-9:
                break
            best = max(beam.values())
        chosen = max(beam, key=lambda trigger: beam[trigger])
        after = self.direction * beam[chosen]
        return Trigger(torch.tensor(chosen, dtype=torch.int64, device=numbers.device), before, after)

    def _improved(
        self,
        model: nn.Module,
        table: nn.Embedding,
        numbers: Tensor,
        beam: dict[tuple[int, ...], float],
        place: int,
        usable: Tensor,
    ) -> dict[tuple[int, ...], float]:
        tried = dict(beam)
        for trigger in beam:
            current = torch.tensor(trigger, device=numbers.device)
            gradient = self._gradient(model, table, numbers, current)[place]
            gains = (table.weight.detach()[usable] - table.weight.detach()[current[place]]) @ gradient
            words = usable[gains.topk(min(self.candidates, len(usable))).indices]
            variants = current.repeat(len(words), 1)
            variants[:, place] = words
            values = self._value(model, numbers, variants).tolist()
            tried |= {tuple(variant): value for variant, value in zip(variants.tolist(), values)}
        kept = sorted(tried, key=lambda trigger: -tried[trigger])[: self.beam]
        return {trigger: tried[trigger] for trigger in kept}

    def _gradient(
        self, model: nn.Module, table: nn.Embedding, numbers: Tensor, trigger: Tensor
    ) -> Float[Tensor, "length width"]:
        """Gradient of the mean score, in the wanted direction, by the trigger's embedded words."""
        whole = torch.cat([trigger.expand(len(numbers), -1), numbers], 1)
        points = table(whole).detach().requires_grad_(True)
        with torch.enable_grad(), embedded_as(table, points):
            (gradient,) = torch.autograd.grad(model(whole).mean(), points)
        return self.direction * gradient[:, : len(trigger)].sum(0)

    @torch.no_grad()
    def _value(
        self, model: nn.Module, numbers: Tensor, triggers: Int[Tensor, "triggers length"]
    ) -> Float[Tensor, " triggers"]:
        """Mean score with each trigger, in the wanted direction."""
        return torch.stack(
            [
                self.direction * model(torch.cat([trigger.expand(len(numbers), -1), numbers], 1)).mean()
                for trigger in triggers
            ]
        )
