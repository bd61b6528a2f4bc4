"""Attacked inputs for the detection probe, and a detector that has seen the simplest attack only.

Two attacks within the threat: one that stops at its first success, at the decision boundary, and one that goes on for
all its steps.  Neither knows of any detector, so what is measured is how well a score tells attacked inputs of someone
who does not look out for it.  The detector combines Mahalanobis scores of several layers with weights learnt on
one-step attacks of half of a training sample, its means and covariances on the other half (Lee et al., 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.audit.probe import Batch, Settings
from holdfast.audit.probes.attack_plan import default_threat
from holdfast.inputs.attack.gradient import FGSM, PGD
from holdfast.inputs.attack.persistent import PersistentPGD
from holdfast.inputs.detection.layerwise import LayerwiseMahalanobis
from holdfast.inputs.features import Pool, evaluating
from holdfast.subject.subject import Access, Subject
from holdfast.threats import L1, L2, Box, Linf, Threat

ATTACKED_KINDS = ("attacked, first success", "attacked, all steps")
STEPS = 20
MOST_LAYERS = 4
WIDEST = 1024
FEWEST_ATTACKED = 20


@dataclass(frozen=True)
class Attacker:
    """The threat attacks keep within, and its words."""

    threat: Threat
    words: str

    def inputs(self, subject: Subject, batch: Batch) -> tuple[Tensor, np.ndarray]:
        """(batch, kinds, *shape) and (batch, kinds) bool: which were right before and are wrong now."""
        x, y = batch.x, batch.y
        found = [
            attack.run(subject.model, x, y, valid=subject.valid, generator=batch.generator, clean_logits=batch.logits)
            for attack in (PGD(self.threat, steps=STEPS), PersistentPGD(self.threat, steps=STEPS))
        ]
        success = torch.stack([run.success for run in found], 1)
        return torch.stack([run.x_adv for run in found], 1), success.cpu().numpy()


def make_attacker(subject: Subject, settings: Settings) -> tuple[Attacker | None, str]:
    """The attacker, or why there is none."""
    if subject.access < Access.GRADIENTS:
        return None, "the model gives no gradients to attack with"
    threat, _ = (settings.threat, "") if settings.threat is not None else default_threat(subject)
    if not isinstance(threat, (Linf, L2, L1, Box)):
        return None, f"{threat.describe()} is not climbed by gradients"
    return Attacker(threat, threat.describe()), ""


def fit_layers(
    subject: Subject, attacker: Attacker, x: np.ndarray, y: np.ndarray
) -> tuple[LayerwiseMahalanobis | None, str]:
    """The combined detector fitted on a training sample, or why there is none."""
    layers, pool = hidden_layers(subject, subject.tensor(x[:2]))
    if not layers:
        return None, "the model has no layers to look at"
    half = len(x) // 2
    kept = np.flatnonzero(np.bincount(y[:half], minlength=subject.classes)[y[:half]] >= 2)
    held = subject.tensor(x[half:])
    believed = subject.logits(held).argmax(1) if len(held) else torch.empty(0)
    if len(kept) < 2 or len(held) < FEWEST_ATTACKED:
        return None, f"{len(x)} training examples are too few"
    run = FGSM(attacker.threat).run(subject.model, held, believed, valid=subject.valid)
    if int(run.success.sum()) < FEWEST_ATTACKED:
        return None, "one gradient step within the threat fools the model too seldom to learn from"
    detector = LayerwiseMahalanobis(subject.model, layers, pool=pool)
    detector.fit(subject.tensor(x[:half][kept]), y[:half][kept])
    return detector.fit_combiner(held, run.x_adv[run.success]), ""


def hidden_layers(subject: Subject, x: Tensor) -> tuple[tuple[str, ...], Pool]:
    """Up to four linear or convolutional layers, evenly from first to last, and how to pool them."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str):  # type: ignore[no-untyped-def]  # torch's hook type
        def hook(module: nn.Module, given: object, output: object) -> None:
            if isinstance(output, Tensor):
                shapes[name] = tuple(output.shape)

        return hook

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    handles = [m.register_forward_hook(note(n)) for n, m in subject.model.named_modules() if n and isinstance(m, kinds)]
    try:
        with torch.no_grad(), evaluating(subject.model):
            subject.model(x)
    finally:
        for handle in handles:
            handle.remove()
    pool: Pool = "mean" if any(len(shape) == 4 for shape in shapes.values()) else "tokens"
    channel = 1 if pool == "mean" else -1
    usable = [name for name, shape in shapes.items() if len(shape) in (2, 4 if pool == "mean" else 3)]
    usable = [name for name in usable if shapes[name][channel] <= WIDEST]
    chosen = np.unique(np.linspace(0, len(usable) - 1, min(MOST_LAYERS, len(usable))).round().astype(int))
    return tuple(usable[place] for place in chosen), pool
