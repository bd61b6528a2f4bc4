"""Energy-based concept bottleneck (Xu, Qin, Mi, Wang and Li, 2024).

One energy for an input x, K binary concepts c and a class y; low is probable, p(c, y | x) ∝ exp(-E):

    E(x, c, y) = E_xy(x, y) + lambda_c sum_k E_xc,k(x, c_k) + lambda_g E_cy(c, y)
    E_xy = w . relu(a (1 + ē_y)),    a = dropout(W v),      v = encoder(x),   ē = e / |e|
    E_xc = w_k . relu(b (1 + ē_k,c_k)),    b = dropout(W' v)
    E_cy = w' . relu(g (1 + ē_y)),    g = P concat_k e_k,c_k

with learnt embeddings e of every class and of both values of every concept.  The three parts are trained as
classifiers (contrastive log-likelihoods), the last on true concepts of which a share is flipped.  Given x, concepts
depend on one another through y and through g, so that correcting one moves the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.concepts.joint import (
    ConceptPosterior,
    Event,
    JointTable,
    all_states,
    check_labels,
    clamps,
)
from holdfast.inputs.features import evaluating
from holdfast.inputs.perceptrons import drawn_linear

#: Concepts whose states are still enumerated; 2^14 of them.
MOST_ENUMERATED = 14
#: Cells of one block of tables in memory.
_BLOCK = 4_000_000


@dataclass(frozen=True, eq=False)
class ConceptEnergies:
    """E_xy(x, .) and E_xc,k(x, .) of a batch, unweighted; lower is more probable."""

    classes: Float[Tensor, "n classes"]
    concepts: Float[Tensor, "n concepts 2"]


class EnergyConceptModel(nn.Module):
    """Classes and concepts under one energy; predicts, takes corrections and answers conditional questions.

    Parameters
    ----------
    encoder : maps inputs to features (n, features); trained along unless its parameters are frozen
    features, concepts, classes : int
    hidden : int, width of the embeddings
    concept_weight, consistency_weight : float, lambda_c and lambda_g
    dropout : float, share of the features' projections left out in training
    normalised : use -log softmax_y(-E_cy(c, y)) for E_cy.  Training fixes E_cy for every c only up to a constant, and
        states that were never seen can outweigh the others; normalised, none can, but corrections of concepts spread
        less.  The paper's energy is not normalised.
    generator : draws the initial weights (of all but the encoder); torch's own when None
    """

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        concepts: int,
        classes: int,
        hidden: int = 64,
        *,
        concept_weight: float = 1.0,
        consistency_weight: float = 1.0,
        dropout: float = 0.2,
        normalised: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if features < 1 or concepts < 0 or classes < 2 or hidden < 1:
            raise InputError(
                "an energy model needs at least one feature and hidden unit, two classes and no negative number of "
                f"concepts, got {features} features, {concepts} concepts, {classes} classes, hidden={hidden}"
            )
        if not 0 <= dropout < 1 or concept_weight < 0 or consistency_weight < 0:
            raise InputError(
                f"dropout must lie in [0, 1) and weights must not be negative, got dropout={dropout}, "
                f"concept_weight={concept_weight}, consistency_weight={consistency_weight}"
            )
        self.encoder, self.concepts, self.classes = encoder, concepts, classes
        self.concept_weight, self.consistency_weight, self.dropout = concept_weight, consistency_weight, dropout
        self.normalised = normalised
        self.class_embedding = _normal((classes, hidden), generator)
        self.concept_embedding = _normal((concepts, 2, hidden), generator)
        self.to_class, self.to_concept = (drawn_linear(features, hidden, generator) for _ in range(2))
        self.gather = drawn_linear(max(concepts, 1) * hidden, hidden, generator)
        self.read_class, self.read_consistency = (drawn_linear(hidden, 1, generator) for _ in range(2))
        self.read_concept = nn.Parameter(_normal((concepts, hidden), generator).detach() / hidden**0.5)
        self.concept_offset = nn.Parameter(torch.zeros(concepts))

    def energies(self, x: Float[Tensor, "n ..."], generator: torch.Generator | None = None) -> ConceptEnergies:
        """The two parts that depend on the input; in training mode `generator` draws what is dropped."""
        v = self.encoder(x)
        a, b = (self._dropped(project(v), generator) for project in (self.to_class, self.to_concept))
        classes = self._class_energy(a, self._unit_classes())
        moved = F.relu(b[:, None, None] * (1 + F.normalize(self.concept_embedding, dim=-1)))
        return ConceptEnergies(classes, self._read_concepts(moved))

    def consistency(self, weights: Float[Tensor, "n concepts 2"]) -> Float[Tensor, "n classes"]:
        """E_cy(c, .) where `weights` mix both values of every concept; one-hot weights are a definite c."""
        g = self._gathered(weights)
        energy = self.read_consistency(F.relu(g[:, None] * (1 + self._unit_classes()))).squeeze(2)
        return -(-energy).log_softmax(1) if self.normalised else energy

    def loss(
        self,
        x: Float[Tensor, "n ..."],
        c: Int[Tensor, "n concepts"],
        y: Int[Tensor, " n"],
        *,
        flipped: float = 0.2,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Sum of the three contrastive losses; a share `flipped` of the concepts of a share `flipped` of the inputs is
        flipped on its way into E_cy.

        Raises InputError for concept labels outside {0, 1}, labels that are no class, or shapes that do not fit.
        """
        check_labels(c, y, len(x), self.concepts, self.classes)
        energies = self.energies(x, generator)
        loss = F.cross_entropy(-energies.classes, y)
        if self.concepts == 0:
            return loss
        per_concept = F.cross_entropy(-energies.concepts.flatten(0, 1), c.flatten())
        draws = torch.rand((len(c), self.concepts + 1), generator=generator, device=c.device)
        noisy = c ^ ((draws[:, :1] < flipped) & (draws[:, 1:] < flipped)).long()
        consistency = F.cross_entropy(-self.consistency(F.one_hot(noisy, 2).to(energies.classes.dtype)), y)
        return loss + self.concept_weight * self.concepts * per_concept + self.consistency_weight * consistency

    def table(self, x: Float[Tensor, "n ..."] | None) -> JointTable:
        """log weights -E of all 2^K states and classes, in float64; without an input, -lambda_g E_cy alone.

        Raises UnsupportedError beyond 14 concepts.
        """
        if self.concepts > MOST_ENUMERATED:
            raise UnsupportedError(
                f"{self.concepts} concepts have 2^{self.concepts} states, too many to enumerate (at most "
                f"{MOST_ENUMERATED} concepts); use method='gradient'"
            )
        with torch.no_grad(), evaluating(self):
            states = all_states(self.concepts, self.class_embedding.device)
            one_hot = F.one_hot(states, 2).to(self.class_embedding.dtype)
            together = torch.cat([self.consistency(part) for part in one_hot.split(2048)])
            log_weights = -self.consistency_weight * together.double()[None]
            if x is None:
                return JointTable(log_weights)
            energies = self.energies(x)
            of_states = energies.concepts.double().flatten(1) @ one_hot.double().flatten(1).T
            return JointTable(
                log_weights - energies.classes.double()[:, None] - self.concept_weight * of_states[:, :, None]
            )

    def log_likelihood(
        self, x: Float[Tensor, "n ..."], c: Int[Tensor, "n concepts"], y: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """log p(c, y | x) of every example, in nats.  Raises InputError as `loss`, UnsupportedError as `table`."""
        check_labels(c, y, len(x), self.concepts, self.classes)
        log_weights = self.table(x).log_weights
        place = c @ (2 ** torch.arange(self.concepts - 1, -1, -1, device=c.device))
        rows = torch.arange(len(y), device=y.device)
        return log_weights[rows, place, y] - log_weights.flatten(1).logsumexp(1)

    def tune_consistency(
        self,
        x: Float[Tensor, "n ..."],
        c: Int[Tensor, "n concepts"],
        y: Int[Tensor, " n"],
        candidates: Sequence[float] = (1.0, 0.3, 0.1, 0.03, 0.01),
    ) -> float:
        """Set lambda_g to the candidate under which held-out examples are likeliest, and return it."""
        likelihoods = []
        for self.consistency_weight in candidates:
            likelihoods.append(float(self.log_likelihood(x, c, y).mean()))
        self.consistency_weight = candidates[likelihoods.index(max(likelihoods))]
        return self.consistency_weight

    def infer(
        self,
        x: Float[Tensor, "n ..."],
        known: Mapping[int, int | Tensor] | Int[Tensor, "n concepts"] | None = None,
        method: str = "exact",
    ) -> ConceptPosterior:
        """Concepts and class of every input, with some concepts `known` (see `clamps`).

        "exact" sums over all 2^K states (K <= 14); "gradient" descends the energy of relaxed concepts and class.
        Raises InputError for an unknown method or bad `known`, UnsupportedError for "exact" with too many concepts.
        """
        held = clamps(known, len(x), self.concepts).to(x.device)
        if method == "gradient":
            from holdfast.inputs.concepts.descent import descend

            return descend(self, x, held)
        if method != "exact":
            raise InputError(f"the method must be 'exact' or 'gradient', got {method!r}")
        rows = max(1, _BLOCK // (2**self.concepts * self.classes))
        parts = [self._enumerated(some, clamp) for some, clamp in zip(x.split(rows), held.split(rows), strict=True)]
        return ConceptPosterior(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def conditional(self, query: Event, given: Event, x: Float[Tensor, "n ..."] | None = None) -> Float[Tensor, " n"]:
        """p(query | given, x), or p(query | given) of the concepts and class alone (one number) without x.

        Both map concept numbers, or "class", to values, for example `conditional({3: 1}, {"class": 2})`.  Raises
        InputError as `JointTable.conditional` does.
        """
        return self.table(x).conditional(query, given)

    def joint_energy(
        self, energies: ConceptEnergies, c: Int[Tensor, "n concepts"], y: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """E(x, c, y) of one state an input."""
        one_hot = F.one_hot(c, 2).to(energies.classes.dtype)
        rows = torch.arange(len(y), device=y.device)
        parts = energies.classes[rows, y] + self.concept_weight * (energies.concepts * one_hot).sum((1, 2))
        return parts + self.consistency_weight * self.consistency(one_hot)[rows, y]

    def relaxed_energy(
        self,
        x_parts: tuple[Tensor, Tensor],
        concepts: Float[Tensor, "n concepts 2"],
        classes: Float[Tensor, "n classes"],
    ) -> Float[Tensor, " n"]:
        """E where class and concepts are mixtures: embeddings are mixed linearly; one-hot mixtures give E itself."""
        a, b = x_parts
        e_y = 1 + classes @ self._unit_classes()
        energy = self.read_class(F.relu(a * e_y)).squeeze(1)
        mixed = (concepts[..., None] * F.normalize(self.concept_embedding, dim=-1)).sum(2)
        energy = energy + self.concept_weight * self._read_concepts(F.relu(b[:, None] * (1 + mixed))).sum(1)
        g = self._gathered(concepts)
        together = self.read_consistency(F.relu(g * e_y)).squeeze(1)
        if self.normalised:
            of_classes = self.read_consistency(F.relu(g[:, None] * (1 + self._unit_classes()))).squeeze(2)
            together = together + (-of_classes).logsumexp(1)
        return energy + self.consistency_weight * together

    def projections(self, x: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "n hidden"], Float[Tensor, "n hidden"]]:
        """a and b of the energies above, without dropout."""
        v = self.encoder(x)
        return self.to_class(v), self.to_concept(v)

    def _enumerated(self, x: Tensor, held: Tensor) -> tuple[Tensor, ...]:
        table = self.table(x)
        states = all_states(self.concepts, x.device)
        allowed = ((held[:, None] == -1) | (held[:, None] == states)).all(2)
        table = JointTable(table.log_weights.masked_fill(~allowed[:, :, None], -torch.inf))
        state, label, weight = table.mode()
        return table.class_probs(), table.concept_probs(), state, label, -weight

    def _class_energy(self, a: Tensor, classes: Tensor) -> Tensor:
        return self.read_class(F.relu(a[:, None] * (1 + classes))).squeeze(2)

    def _read_concepts(self, moved: Float[Tensor, "n concepts *values hidden"]) -> Float[Tensor, "n concepts *values"]:
        """w_k . h + offset_k for every concept (and value)."""
        if moved.dim() == 3:
            return (moved * self.read_concept).sum(-1) + self.concept_offset
        return (moved * self.read_concept[:, None]).sum(-1) + self.concept_offset[:, None]

    def _gathered(self, weights: Float[Tensor, "n concepts 2"]) -> Float[Tensor, "n hidden"]:
        if self.concepts == 0:
            return self.gather.bias.expand(len(weights), -1)
        mixed = (weights[..., None] * self.concept_embedding).sum(2)
        return self.gather(mixed.flatten(1))

    def _unit_classes(self) -> Float[Tensor, "classes hidden"]:
        return F.normalize(self.class_embedding, dim=-1)

    def _dropped(self, values: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.training or self.dropout == 0:
            return values
        kept = torch.rand(values.shape, generator=generator, device=values.device) >= self.dropout
        return values * kept / (1 - self.dropout)


def _normal(shape: tuple[int, ...], generator: torch.Generator | None) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).normal_(generator=generator))
