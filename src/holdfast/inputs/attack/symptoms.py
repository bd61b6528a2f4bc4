"""Signs that a robustness number should not be believed (Carlini et al., 2019; Croce et al., 2022), each as a `Doubt`.

Every function takes what was measured and returns a Doubt or None; none raises because of what it sees.
`touches` of every doubt is the finding "adversarial.accuracy".
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.finding import Doubt
from holdfast.inputs.attack.loop import Model, forward

TOUCHES = ("adversarial.accuracy",)
RANDOM_PASSES = 5
RANDOM_CHANGE = 1e-4


def probabilities(logits: Float[Tensor, "batch classes"]) -> Doubt | None:
    """The outputs are probabilities, whose gradients vanish where the model is sure."""
    if not len(logits):
        return None
    sums_to_one = (logits.sum(1) - 1).abs().amax() < 1e-5
    if not bool((logits >= 0).all() & (logits <= 1).all() & sums_to_one):
        return None
    return Doubt(
        "probabilities instead of logits",
        "The model's outputs look like probabilities; their gradients vanish where it is sure, which hides weaknesses.",
        TOUCHES,
        "Audit the model before its softmax layer.",
    )


@torch.no_grad()
def randomness(model: Model, x: Float[Tensor, "batch *shape"]) -> Doubt | None:
    """Passes over the same inputs differ."""
    if not len(x):
        return None
    passes = torch.stack([F.normalize(forward(model, x).double(), dim=1) for _ in range(RANDOM_PASSES)])
    change = float((passes - passes[0]).norm(dim=2).amax())
    if change <= RANDOM_CHANGE:
        return None
    return Doubt(
        "random model",
        f"The model answers differently each time (outputs move by up to {change:.2g}), so one gradient is a "
        "noisy guess and one evaluation is luck.",
        TOUCHES,
        "Attack the average of several passes (APGD with eot=20).",
    )


def zero_gradients(zero: int, examples: int) -> Doubt | None:
    """For some inputs the gradient is exactly zero."""
    if zero == 0 or examples == 0:
        return None
    return Doubt(
        "zero gradients",
        f"For {zero} of {examples} inputs the gradient is exactly zero: gradient attacks start blind.",
        TOUCHES,
        "Look for rounding, saturation or non-differentiable steps in the model; trust the score-based attack instead.",
    )


def noise_beats(noise: int, attack: int, examples: int, name: str) -> Doubt | None:
    """Random noise fools more examples than an attack of the same size."""
    if noise <= attack:
        return None
    return Doubt(
        f"noise beats {name}",
        f"Random noise of the same size fools {noise} of {examples} examples, {name} only {attack}: it is misled.",
        TOUCHES,
        "Gradients do not point where the loss rises; treat the accuracy under attack as an upper bound.",
    )


def black_box_beats(extra: int, examples: int) -> Doubt | None:
    """A score-based attack breaks more than 0.2 points of what gradient attacks left."""
    if examples == 0 or extra / examples <= 0.002:
        return None
    return Doubt(
        "black-box attack beats white-box",
        f"An attack that sees only scores broke {extra} of the {examples} examples although every gradient attack had "
        "failed on them; seeing more should never break less, so gradients are masked.",
        TOUCHES,
        "These examples count as broken, but others may be hidden too: look for what blocks gradients.",
    )


def transfer_beats(transferred: int, direct: int, examples: int) -> Doubt | None:
    """Points made on another model fool this one more often than points made on itself."""
    if transferred <= direct:
        return None
    return Doubt(
        "transferred attack beats direct one",
        f"Adversarial inputs made for another model fool {transferred} of {examples} examples, "
        f"those made for this one {direct}.",
        TOUCHES,
        "Gradients of this model are masked.",
    )


def does_not_fall(low: float, chance: float, radius: str) -> Doubt | None:
    """Accuracy stays above chance at a radius where any input can become any other; `low` is its lower confidence
    end.
    """
    if low <= chance:
        return None
    return Doubt(
        "accuracy does not fall",
        f"Even at {radius}, where nearly anything is allowed, accuracy stays above {low:.0%}; "
        "no model can be right there, so the attack fails for reasons of its own.",
        TOUCHES,
        "Treat the accuracy under attack as an upper bound.",
    )


def loss_not_rising(falling: int, examples: int) -> Doubt | None:
    """For many examples more steps of the attack gave a lower loss."""
    if examples == 0 or falling <= 0.1 * examples:
        return None
    return Doubt(
        "more steps do not help",
        f"For {falling} of {examples} examples the attack's loss after all its steps is below that of its first step.",
        TOUCHES,
        "The loss surface is rugged; try smaller steps, restarts, or the score-based attack.",
    )
