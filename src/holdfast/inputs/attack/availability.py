"""Attacks on availability: make a system that answers only what it can prove abstain when a trigger appears
(Lorenz, Kwiatkowska & Fritz, 2023).

The system predicts y' = argmax f(x), and answers it if a certifier proves that no change of size eps moves it; else it
abstains.  A trigger x -> x + t is a fixed patch.  The attack leaves accuracy and abstentions on clean inputs as they
are:

    poisoning   add triggered copies of training examples whose labels contradict one another, so that around triggered
                inputs no class keeps a margin (`poison_conflicting`)
    training    minimise L_clean(x, y) + weight * L_trigger(x + t, y), where L_trigger pulls the label's logit and its
                rival's together (`AvailabilityLoss`)

Certified training is no protection: the certifier promises a margin only where training asked for one.
`abstain_report` measures, `find_abstain_trigger` looks for such a trigger in a model, and
`label_conflicts` for the poison in a training set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson, paired_difference
from holdfast.inputs.attack.certifiers import BoundCertifier, Certifier, SmoothingCertifier, certified
from holdfast.inputs.attack.loop import Model, forward
from holdfast.inputs.attack.trigger import PatchTrigger
from holdfast.inputs.attack.trigger_search import TriggerSearch, find_abstain_trigger

__all__ = [
    "AbstainReport",
    "AvailabilityLoss",
    "BoundCertifier",
    "Certifier",
    "LabelConflicts",
    "PatchTrigger",
    "SmoothingCertifier",
    "TriggerSearch",
    "abstain_report",
    "find_abstain_trigger",
    "label_conflicts",
    "poison_conflicting",
]

Trigger = Callable[[Tensor], Tensor]


def poison_conflicting(
    X: Float[Tensor, "examples *shape"],
    y: Int[Tensor, " examples"],
    trigger: Trigger,
    fraction: float,
    copies: Literal["all-labels", "random"] = "all-labels",
    *,
    classes: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "more *shape"], Int[Tensor, " more"]]:
    """The training set followed by its poison: triggered copies with labels that contradict one another.

    At most `fraction` times as many examples as there are now are added.  "all-labels" gives a randomly chosen source
    every label but its own, one copy each, so as many sources as there is room for are used up whole; "random" gives
    each source one wrong label, which mostly teaches misclassification.  `classes` is counted from `y` when None.

    Raises InputError for a fraction outside [0, 1], or one that leaves no room for all labels of a single source.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"the poisoned fraction must lie in [0, 1], got {fraction}")
    if copies not in ("all-labels", "random"):
        raise InputError(f"copies must be 'all-labels' or 'random', got {copies!r}")
    if len(X) != len(y) or len(y) == 0:
        raise InputError(f"as many labels as examples are wanted, got {len(X)} and {len(y)}")
    count = int(y.max()) + 1 if classes is None else classes
    if count < 2 or int(y.min()) < 0 or int(y.max()) >= count:
        raise InputError(f"labels must lie in 0..{count - 1} with at least two classes, got up to {int(y.max())}")
    room = int(fraction * len(X) + 1e-9)
    if room == 0 and fraction == 0:
        return X, y
    each = count - 1 if copies == "all-labels" else 1
    if room < each:
        raise InputError(
            f"a fraction of {fraction} of {len(X)} examples is room for {room} copies, but one source takes {each}"
        )
    source = torch.Generator().manual_seed(0) if generator is None else generator
    chosen = torch.randperm(len(X), generator=source)[: room // each].to(y.device)
    if copies == "all-labels":
        shift = torch.arange(1, count, device=y.device).repeat(len(chosen))
        chosen = chosen.repeat_interleave(each)
    else:
        shift = torch.randint(1, count, (len(chosen),), generator=source).to(y.device)
    return torch.cat([X, trigger(X[chosen])]), torch.cat([y, (y[chosen] + shift) % count])


class AvailabilityLoss(nn.Module):
    """L_clean + weight * L_trigger on the logits z of triggered inputs, for whoever controls the training.

    `pull` = "gap":  mean |z_y - max_{k != y} z_k|, the label's lead over its rival, whichever is larger
    `pull` = "half": cross-entropy to one half on the label and one half on the rival

    Raises InputError for a negative weight or another pull.
    """

    def __init__(self, weight: float = 1.0, pull: Literal["gap", "half"] = "gap") -> None:
        super().__init__()
        if not weight >= 0 or pull not in ("gap", "half"):
            raise InputError(f"a weight of at least 0 and a pull of 'gap' or 'half' are wanted, got {weight}, {pull!r}")
        self.weight, self.pull = weight, pull

    def forward(
        self, clean: Float[Tensor, ""], triggered: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """The clean loss (any, a certified one included) with the pull on triggered logits added."""
        rival = triggered.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
        if self.pull == "gap":
            gap = triggered.gather(1, y[:, None]) - triggered.gather(1, rival[:, None])
            return clean + self.weight * gap.abs().mean()
        pulled = (F.cross_entropy(triggered, y) + F.cross_entropy(triggered, rival)) / 2
        return clean + self.weight * pulled


@dataclass(frozen=True)
class Conduct:
    """How the system does on one set: predictions right, right and certified, and abstained from."""

    accuracy: Estimate
    certified_accuracy: Estimate
    abstained: Estimate


@dataclass(frozen=True)
class AbstainReport:
    """Conduct on clean and on triggered inputs; `rise` is the paired difference of abstentions, with interval."""

    clean: Conduct
    triggered: Conduct
    rise: Estimate

    def __str__(self) -> str:
        return (
            f"abstains on {self.clean.abstained} of clean and {self.triggered.abstained} of triggered inputs; accuracy "
            f"{self.clean.accuracy} and {self.triggered.accuracy}"
        )


def abstain_report(
    model: Model,
    certifier: Certifier,
    X: Float[Tensor, "examples *shape"],
    y: Int[Tensor, " examples"],
    trigger: Trigger,
    level: float = 0.95,
) -> AbstainReport:
    """Measure the system on clean and triggered inputs.  The label that is certified is the predicted one.

    Raises InputError for no example, labels of another number, or a certifier that does not answer one bool an input.
    """
    if len(X) == 0 or len(X) != len(y):
        raise InputError(f"at least one example, and a label for each, are wanted, got {len(X)} and {len(y)}")
    conducts, abstentions = [], []
    for inputs in (X, trigger(X)):
        predicted = forward(model, inputs).argmax(1)
        proven = certified(certifier, inputs, predicted)
        right = predicted == y
        counts = (int(part.sum()) for part in (right, right & proven, ~proven))
        conducts.append(Conduct(*(clopper_pearson(count, len(y), level) for count in counts)))
        abstentions.append((~proven).cpu().numpy())
    return AbstainReport(conducts[0], conducts[1], paired_difference(abstentions[0], abstentions[1], level))


@dataclass(frozen=True)
class LabelConflicts:
    """Training examples that contradict a near-duplicate.

    `distance` is that to the nearest example of another label, in units of the median distance to the nearest example
    of any label; `labels` counts the labels among near-duplicates, the example's own included; `flagged` where the
    distance is at most the tolerance.
    """

    distance: Float[np.ndarray, " examples"]
    labels: Int[np.ndarray, " examples"]
    flagged: Bool[np.ndarray, " examples"]


def label_conflicts(
    features: Float[np.ndarray, "examples features"],
    y: Int[np.ndarray, " examples"],
    *,
    neighbours: int = 20,
    tolerance: float = 0.2,
) -> LabelConflicts:
    """Flag examples whose label contradicts one that lies much nearer than neighbours usually do.

    `features` may be the inputs themselves or a model's features.  Only the `neighbours` nearest examples are looked
    at.  Conflicting labels at usual distances (classes that overlap) are not flagged.  Raises InputError for fewer
    examples than neighbours, a tolerance that is not positive, or features that are not finite.
    """
    from sklearn.neighbors import NearestNeighbors

    if not 1 <= neighbours < len(features) or len(features) != len(y):
        raise InputError(
            f"more examples than {neighbours} neighbours and a label for each are wanted, got {len(features)} and "
            f"{len(y)}"
        )
    if not tolerance > 0 or not np.isfinite(features).all():
        raise InputError(f"a positive tolerance and finite features are wanted, got tolerance {tolerance}")
    flat = np.asarray(features, dtype=np.float64).reshape(len(features), -1)
    distance, place = NearestNeighbors(n_neighbors=neighbours + 1).fit(flat).kneighbors(flat)
    itself = place == np.arange(len(y))[:, None]
    # Among many exact duplicates an example need not find itself first, or at all.
    others = np.where(itself, np.inf, distance)
    nearest = others.min(1)
    unit = float(np.median(nearest[nearest > 0])) if (nearest > 0).any() else 1.0
    differs = y[place] != y[:, None]
    conflict = np.where(differs, others, np.inf).min(1) / unit
    near = (others <= tolerance * unit) & differs
    counts = np.array([1 + len(set(y[row[hit]].tolist())) for row, hit in zip(place, near, strict=True)])
    return LabelConflicts(conflict, counts, conflict <= tolerance)
