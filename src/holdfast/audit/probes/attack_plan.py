"""Which attacks the adversarial probe runs at which radius, by what the model lets us see.

Radii rise, and only what survived the smaller ones is attacked at the next: an example broken within r is broken
within every larger radius, so the radius-accuracy curve falls by construction and costs little more than its last
point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import UnsupportedError
from holdfast.inputs.attack.apgd import APGD
from holdfast.inputs.attack.ensemble import hope_for
from holdfast.inputs.attack.few_pixels import FewPixels
from holdfast.inputs.attack.gradient import PGD
from holdfast.inputs.attack.hopskipjump import HopSkipJump
from holdfast.inputs.attack.loop import Attack, AttackRun, Model
from holdfast.inputs.attack.losses import Goal, Targeted
from holdfast.inputs.attack.noise import RandomNoise
from holdfast.inputs.attack.patch import PatchAttack
from holdfast.inputs.attack.shifts import ShiftAttack
from holdfast.inputs.attack.square import Square
from holdfast.subject.subject import Access, Subject
from holdfast.threats import L0, L1, L2, Box, Corruption, Linf, Patch, Threat, Translation, Valid

FRACTIONS = (0.25, 0.5, 1.0, 2.0)
#: Radius of the last point for inputs without a valid range, in units of the chosen one.
FAR = 100.0
SAMPLE = 2000
#: Passes whose gradients are averaged where a model answers differently each time.
EOT_PASSES = 10
#: Few queries make uneven progress, so Square keeps more of its hope than in the ensemble.
SQUARE_HOPE = 0.5


@dataclass(frozen=True)
class EveryMove(Attack):
    """All whole-pixel moves, under the signature that attacks share."""

    threat: Translation

    def run(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
        goal: Goal | None = None,
        clean_logits: Tensor | None = None,
    ) -> AttackRun:
        """The mildest fooling move of every example; `norm` is the Euclidean size of the change."""
        if isinstance(goal, Targeted):
            raise UnsupportedError("every move is tried for any error; it has no target class")
        run = ShiftAttack(self.threat).run(model, x, y)
        return AttackRun(
            x_adv=run.x_adv,
            success=run.success,
            queries=torch.full_like(y, len(run.predictions)),
            norm=self.threat.norm(run.x_adv - x),
            best_loss=run.worst_margin,
        )


@dataclass(frozen=True)
class Stage:
    """One radius and the attacks run at it, in order."""

    threat: Threat
    attacks: tuple[tuple[str, Attack], ...]
    chosen: bool  # the radius the user asked about
    everything: bool  # nearly any input is admissible here


@dataclass(frozen=True)
class Plan:
    """Stages by rising radius; `words` say how the threat was chosen."""

    stages: tuple[Stage, ...]
    words: str

    @property
    def chosen(self) -> int:
        """Place of the stage the user asked about."""
        return next(place for place, stage in enumerate(self.stages) if stage.chosen)

    @property
    def threat(self) -> Threat:
        return self.stages[self.chosen].threat

    @property
    def radii(self) -> tuple[float, ...]:
        return tuple(stage.threat.radius for stage in self.stages)


def feature_spread(subject: Subject) -> torch.Tensor:
    """Standard deviation of every input value over (at most `SAMPLE`) training examples, test examples where there
    are none.
    """
    data = subject.train or subject.test
    sample = data.inputs.take(np.linspace(0, len(data) - 1, min(SAMPLE, len(data))).astype(np.int64))
    return torch.from_numpy(np.nan_to_num(np.nanstd(sample.astype(np.float64), axis=0)).astype(np.float32))


def default_threat(subject: Subject) -> tuple[Threat, str]:
    """The threat an audit uses when none is given, and the words for it."""
    if subject.modality == "image" and subject.valid is not None:
        low, high = (torch.as_tensor(end, dtype=torch.float64) for end in subject.valid)
        span = float((high - low).max())
        colour = subject.test.shape[0] == 3
        share = 8 / 255 if colour else 0.1
        kind = (
            "8/255 of the range of values, the custom for colour images" if colour else "a tenth of the range of values"
        )
        return Linf(share * span), f"No threat was given, so the default was used: {kind}."
    spread = feature_spread(subject)
    if not bool((spread > 0).any()):
        spread = torch.ones_like(spread)
    source = "training" if subject.train is not None else "test"
    return Box(-spread, spread, 0.1), (
        "No threat was given, so the default was used: every feature may move by a tenth of its own standard deviation "
        f"in the {source} data, which is its allowance and the unit of all radii."
    )


def whole_range(threat: Threat, subject: Subject) -> Threat | None:
    """The same family at a radius where nearly any input is admissible; None for families without one."""
    shape = subject.test.shape
    if isinstance(threat, L0):
        return threat.scaled(float(np.prod(shape[1:] if len(shape) == 3 else shape)))
    if isinstance(threat, Patch):
        grown = min(shape[1] / threat.height, shape[2] / threat.width) * threat.radius
        return threat.scaled(float(np.floor(grown)))
    if isinstance(threat, Translation):
        return None
    if subject.valid is None or isinstance(threat, Box) or (isinstance(threat, Linf) and torch.is_tensor(threat.eps)):
        return threat.scaled(FAR * threat.radius)
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in subject.valid)
    span, size = float((high - low).max()), float(np.prod(shape))
    factor = {L2: size**0.5, L1: size}.get(type(threat), 1.0)
    return threat.scaled(span * factor)


def attacks_at(threat: Threat, access: Access, effort: str, randomised: bool = False) -> tuple[tuple[str, Attack], ...]:
    """Attacks for one radius; `effort` is "light" beside the chosen radius and "full" at it.  Gradients of a model that
    answers at random are averaged over `EOT_PASSES` passes.
    """
    full = effort == "full"
    if randomised and access >= Access.GRADIENTS and not isinstance(threat, Translation):
        steps = 30 if full else 10
        return tuple(
            (f"APGD-{loss.upper()}", APGD(threat, steps=steps, eot=EOT_PASSES, loss=loss))
            for loss in (("ce", "dlr") if full else ("ce",))
        )
    if isinstance(threat, Translation):
        return (("every move", EveryMove(threat)),)
    if access >= Access.GRADIENTS:
        if isinstance(threat, Patch):
            # Where a patch lies matters more than how long it is optimised; PGD, which moves it at every step, finds
            # little.
            places = "saliency:3" if full else "saliency:1"
            patch = PatchAttack(threat, steps=40 if full else 20, step_size=0.1, locations=places)
            return (("patch", patch), ("APGD", APGD(threat, steps=50))) if full else (("patch", patch),)
        chosen: list[tuple[str, Attack]] = [("PGD", PGD(threat, steps=20))]
        if full:
            hope = hope_for(threat)
            chosen.append(("APGD", APGD(threat, hope=hope)))
            chosen.append(("APGD-T", APGD(threat, targets=5, hope=hope)))
            if isinstance(threat, (Linf, Box, L2, L1)):
                chosen.append(("Square", Square(threat, queries=500, rescale=True, hope=SQUARE_HOPE)))
        else:
            chosen.append(("APGD-DLR", APGD(threat, steps=20, loss="dlr")))
        return tuple(chosen)
    if access == Access.SCORES and isinstance(threat, (Linf, Box, L2, L1)):
        return (("Square", Square(threat, queries=300 if full else 100, rescale=True)),)
    if access == Access.SCORES and isinstance(threat, L0):
        return (("few pixels", FewPixels(threat, population=30, generations=12 if full else 5)),)
    if isinstance(threat, (Linf, Box, L2)):
        return (("HopSkipJump", HopSkipJump(threat, iterations=3, initial_evals=30, tries=25)),)
    return (("random search", RandomNoise(threat, draws=200 if full else 50)),)


def make_plan(subject: Subject, threat: Threat | None, randomised: bool = False) -> Plan:
    """The stages for a subject, `randomised` where passes over the same input differ.

    Raises UnsupportedError for a threat with nothing to search, InputError where it does not fit.
    """
    if isinstance(threat, Corruption):
        raise UnsupportedError("a corruption is not searched for a worst case; the corruption probe measures it")
    if threat is None:
        threat, words = default_threat(subject)
    else:
        words = ""
    threat.stride(subject.valid)
    if isinstance(threat, (Patch, Translation)) and len(subject.test.shape) != 3:
        raise UnsupportedError(
            f"{threat.describe()} needs images; this model is fed examples of shape {subject.test.shape}"
        )
    found: dict[float, tuple[Threat, bool, bool]] = {}
    largest = whole_range(threat, subject)
    for scaled in (threat.scaled(fraction * threat.radius) for fraction in FRACTIONS):
        if largest is None or scaled.radius < largest.radius:
            found[scaled.radius] = (scaled, False, False)
    if largest is not None and largest.radius > threat.radius:
        found[largest.radius] = (largest, False, True)
    found[threat.radius] = (threat, True, largest is not None and threat.radius >= largest.radius)
    stages = (
        Stage(part, attacks_at(part, subject.access, "full" if chosen else "light", randomised), chosen, everything)
        for _, (part, chosen, everything) in sorted(found.items())
    )
    return Plan(tuple(stages), words)
