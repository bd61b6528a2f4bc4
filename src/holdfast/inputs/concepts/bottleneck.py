"""Joint concept bottleneck (Koh et al., 2020): the class is read off the concepts' probabilities.

    c_k = sigmoid(g_k(encoder(x))),    y = softmax(W c + b),    loss = CE(y) + weight * sum_k BCE(c_k)

A correction replaces c_k; the other concepts stay as they were, by construction.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.inputs.concepts.joint import ConceptPosterior, check_labels, clamps
from holdfast.inputs.features import evaluating
from holdfast.inputs.perceptrons import drawn_linear


class ConceptBottleneck(nn.Module):
    """The baseline of `EnergyConceptModel`, with the same `loss` and `infer`; `encoder` gives (n, features)."""

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        concepts: int,
        classes: int,
        *,
        concept_weight: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.concepts, self.classes, self.concept_weight = encoder, concepts, classes, concept_weight
        self.to_concepts = drawn_linear(features, concepts, generator)
        self.to_classes = drawn_linear(concepts, classes, generator)

    def loss(
        self,
        x: Float[Tensor, "n ..."],
        c: Int[Tensor, "n concepts"],
        y: Int[Tensor, " n"],
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the class plus that of every concept.  Raises InputError as `EnergyConceptModel.loss`."""
        check_labels(c, y, len(x), self.concepts, self.classes)
        logits = self.to_concepts(self.encoder(x))
        of_concepts = F.binary_cross_entropy_with_logits(logits, c.to(logits.dtype))
        of_class = F.cross_entropy(self.to_classes(logits.sigmoid()), y)
        return of_class + self.concept_weight * self.concepts * of_concepts

    @torch.no_grad()
    def infer(
        self,
        x: Float[Tensor, "n ..."],
        known: Mapping[int, int | Tensor] | Int[Tensor, "n concepts"] | None = None,
    ) -> ConceptPosterior:
        """Concepts and class with some concepts `known` (see `clamps`)."""
        held = clamps(known, len(x), self.concepts).to(x.device)
        with evaluating(self):
            probs = self.to_concepts(self.encoder(x)).sigmoid()
            probs = torch.where(held == -1, probs, held.to(probs.dtype))
            classes = self.to_classes(probs).double().softmax(1)
        return ConceptPosterior(classes, probs.double(), (probs > 0.5).long(), classes.argmax(1))
