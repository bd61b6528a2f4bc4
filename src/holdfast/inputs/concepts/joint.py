"""Joint distributions of K binary concepts and a class, as a table over all 2^K states, and what follows from one.

State s of the table has concept k at value (s >> (K - 1 - k)) & 1, as counting in binary does, concept 0 in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.core.errors import InputError

#: Concept number, or "class".
Variable = int | str
Event = Mapping[Variable, int]


@dataclass(frozen=True, eq=False)
class ConceptPosterior:
    """What is believed of every input: probabilities, and one state (concepts and class) with its energy.

    `state` and `label` are the state of least energy ("exact"), or the one a descent ended in ("gradient").  For models
    without a joint energy, `energy` is None and the state is the more probable value of each.
    """

    class_probs: Float[Tensor, "n classes"]
    concept_probs: Float[Tensor, "n concepts"]
    state: Int[Tensor, "n concepts"]
    label: Int[Tensor, " n"]
    energy: Float[Tensor, " n"] | None = None


@dataclass(frozen=True, eq=False)
class JointTable:
    """p(c, y) ∝ exp(log_weights), one table of all states and classes for each of n inputs."""

    log_weights: Float[Tensor, "n states classes"]

    def __post_init__(self) -> None:
        states = self.log_weights.shape[1]
        if states < 1 or states & (states - 1):
            raise InputError(f"a table of K binary concepts has 2^K states, got {states}")

    @property
    def concepts(self) -> int:
        """K."""
        return self.log_weights.shape[1].bit_length() - 1

    def class_probs(self) -> Float[Tensor, "n classes"]:
        """p(y), summed over concepts."""
        return self.log_weights.logsumexp(1).softmax(1)

    def concept_probs(self) -> Float[Tensor, "n concepts"]:
        """p(c_k = 1) of every concept, summed over the others and the class."""
        states = self.log_weights.logsumexp(2).softmax(1)
        return states @ all_states(self.concepts, states.device).to(states.dtype)

    def conditional(self, query: Event, given: Event) -> Float[Tensor, " n"]:
        """p(query | given): both map concept numbers, or "class", to values.

        Raises InputError for variables or values that are not in the table, for an empty query, and for a variable that
        `query` and `given` set to different values.
        """
        if not query:
            raise InputError("the query names nothing; give at least one concept or 'class' with a value")
        for name, value in query.items():
            if given.get(name, value) != value:
                raise InputError(f"{name!r} is {given[name]} in `given` and {value} in `query`; drop one of them")
        condition = self._holds(given)
        both = condition & self._holds(query)
        flat = self.log_weights.flatten(1)
        # max keeps rounding in the two sums from making a certain event more than certain
        return (flat[:, both].logsumexp(1) - flat[:, condition].logsumexp(1)).exp().clamp(max=1.0)

    def mode(self) -> tuple[Int[Tensor, "n concepts"], Int[Tensor, " n"], Float[Tensor, " n"]]:
        """The most probable state, its class, and its log weight."""
        weight, place = self.log_weights.flatten(1).max(1)
        classes = self.log_weights.shape[2]
        return all_states(self.concepts, place.device)[place // classes], place % classes, weight

    def _holds(self, event: Event) -> Bool[Tensor, " cells"]:
        states = all_states(self.concepts, self.log_weights.device)
        holds = torch.ones(self.log_weights.shape[1:], dtype=torch.bool, device=states.device)
        for name, value in event.items():
            require_variable(name, value, self.concepts, self.log_weights.shape[2])
            if name == "class":
                holds &= torch.arange(holds.shape[1], device=states.device) == value
            else:
                holds &= (states[:, int(name)] == value)[:, None]
        return holds.flatten()


def all_states(concepts: int, device: torch.device | None = None) -> Int[Tensor, "states concepts"]:
    """Every value of K binary concepts, in counting order."""
    counts = torch.arange(2**concepts, device=device)
    return (counts[:, None] >> torch.arange(concepts - 1, -1, -1, device=device)) & 1


def require_variable(name: Variable, value: int, concepts: int, classes: int) -> None:
    """Raises InputError unless `name` is a concept or "class" and `value` one of its values."""
    if name == "class":
        if not 0 <= value < classes:
            raise InputError(f"the class must lie in 0..{classes - 1}, got {value}")
    elif not isinstance(name, int) or not 0 <= name < concepts:
        raise InputError(f"there is no concept {name!r}; name one of 0..{concepts - 1}, or 'class'")
    elif value not in (0, 1):
        raise InputError(f"concept {name} must be 0 or 1, got {value}")


def clamps(
    known: Mapping[int, int | Tensor] | Int[Tensor, "n concepts"] | None, n: int, concepts: int
) -> Int[Tensor, "n concepts"]:
    """What is known of every input's concepts as one array: 0, 1, or -1 for unknown.

    `known` is such an array, or maps concept numbers to one value for all or one (n,) each.  Raises InputError for
    concepts that do not exist and values other than these.
    """
    if known is None:
        return torch.full((n, concepts), -1)
    if isinstance(known, Tensor):
        if known.shape != (n, concepts) or not bool(torch.isin(known, torch.tensor([-1, 0, 1])).all()):
            raise InputError(
                f"`known` must hold 0, 1 or -1 (unknown) for {n} inputs and {concepts} concepts, "
                f"got shape {tuple(known.shape)}"
            )
        return known.long()
    table = torch.full((n, concepts), -1)
    for concept, value in known.items():
        values = torch.as_tensor(value).long().cpu()
        if values.shape not in ((), (n,)):
            raise InputError(f"concept {concept} needs one value, or one for each of {n} inputs; got {values.shape}")
        for single in values.unique().tolist():
            require_variable(concept, single, concepts, 0)
        table[:, concept] = values
    return table


def check_labels(c: Tensor, y: Tensor, n: int, concepts: int, classes: int) -> None:
    """Raises InputError unless c (n, concepts) holds 0 and 1 and y (n,) classes."""
    if c.shape != (n, concepts) or not bool(((c == 0) | (c == 1)).all()):
        raise InputError(
            f"concept labels must be 0 or 1 for {n} inputs and {concepts} concepts, got shape {tuple(c.shape)}"
            + ("" if c.shape != (n, concepts) else f" with values from {float(c.min()):g} to {float(c.max()):g}")
        )
    if y.shape != (n,) or not bool(((y >= 0) & (y < classes)).all()):
        raise InputError(f"labels must be one class of 0..{classes - 1} for each of {n} inputs, got {tuple(y.shape)}")
