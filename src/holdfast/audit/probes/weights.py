"""Does the model survive being stored coarsely, or its weights being a little off?

Every example is classified again with the weights (a) rounded to 8 bits with one scale a channel, to 8 bits with one
scale a layer, and to 4 bits; (b) with Gaussian noise of a given share of each layer's size, several draws; (c) with
bits of their 8-bit codes turned over, several draws.  The user's model is never changed: perturbed weights are passed
to it call by call, and made anew from their seed for every shard, so a large model costs one copy at a time.

Accuracy is the mean over examples; for (b) and (c) over the draws too, so those intervals are about these draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.func import functional_call

from holdfast.audit.probe import Batch, Evidence, Needs, Rows, Settings
from holdfast.core.errors import UnsupportedError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Exhibit, Series, Table
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.core.seeds import torch_generator
from holdfast.core.sequences import anytime_difference, anytime_mean
from holdfast.subject.subject import Access, Subject
from holdfast.weights.noise import noisy_weights
from holdfast.weights.quantise import Weights, flip_bits, quantised_weights, weight_names

NOISE = (0.01, 0.03, 0.1, 0.2, 0.3)
FLIPS = (1e-4, 1e-3, 1e-2)
DRAWS = 3
#: Column of evidence -> (bits, one scale a channel).
GRIDS = {"int8": (8, True), "int8_tensor": (8, False), "int4": (4, True)}
TOLD = 0.1  # the noise that a finding is about


@dataclass(frozen=True)
class State:
    """Seed of all draws; `weights` and `parameters` count what is perturbed."""

    seed: int
    weights: int
    parameters: int


@dataclass(frozen=True)
class WeightsProbe:
    """See the module."""

    name: str = "weights"
    question: str = "Does it survive compressed or slightly wrong weights?"
    perturbs: str = "weights"
    needs: Needs = field(default_factory=lambda: Needs(access=Access.GRADIENTS))
    shard_size: int = 256

    def prepare(self, subject: Subject, settings: Settings) -> State:
        """Count the weights.  UnsupportedError when the model has none that can be perturbed."""
        names = weight_names(subject.model)
        if not names:
            raise UnsupportedError(
                "the model has no weight matrices or kernels among its parameters, so there is nothing to perturb"
            )
        sizes = sum(subject.model.get_parameter(name).numel() for name in names)
        return State(settings.seed, len(names), sizes)

    def examine(self, subject: Subject, state: State, batch: Batch) -> Rows:
        """Columns: a grid's name (n,): right with it; `agrees` (n,): int8 gives the original answer.

        `noise` (n, levels, draws) and `flips` (n, rates, draws): right with that draw.
        """
        model, original = subject.model, batch.logits.argmax(1)
        columns: dict[str, np.ndarray] = {}
        for name, (bits, per_channel) in GRIDS.items():
            answers = _answers(subject, batch, quantised_weights(model, bits, per_channel=per_channel))
            columns[name] = (answers == batch.y).cpu().numpy()
            if name == "int8":
                columns["agrees"] = (answers == original).cpu().numpy()
        columns["noise"] = _draws(
            subject, batch, state, "noise", NOISE, lambda size, g: noisy_weights(model, size, generator=g)
        )
        columns["flips"] = _draws(
            subject, batch, state, "flips", FLIPS, lambda rate, g: flip_bits(model, rate, generator=g)
        )
        return columns

    def headline(self, state: State, evidence: Evidence, settings: Settings) -> Estimate | None:
        """Accuracy with 8-bit weights."""
        return anytime_mean(evidence["int8"].astype(np.bool_), level=settings.level)

    def conclude(self, subject: Subject, state: State, evidence: Evidence, settings: Settings) -> Section:
        """Accuracy and agreement with 8 bits, accuracy with 4 bits and with noise, and the two curves."""
        findings = _findings(evidence, settings)
        return Section(
            probe=self.name,
            question=self.question,
            answer=f"{findings[0].sentence} {findings[-1].sentence}",
            findings=findings,
            exhibits=_exhibits(evidence, settings),
            doubts=_doubts(evidence),
            method=f"{state.weights} weight tensors ({state.parameters:,} numbers) were perturbed; biases, norms and "
            f"activations stayed in floating point.  Noise and bit errors: {DRAWS} draws a level, the same for all "
            "examples, so their intervals say how these draws would do on more examples.",
            advice="If 8 bits cost accuracy, calibrate with one scale a channel or train with quantisation; if little "
            "noise does, flatter minima help: weight decay, weight averaging, training under weight noise.",
            examined=len(evidence),
            available=len(subject.test),
        )


@torch.no_grad()
def _answers(subject: Subject, batch: Batch, weights: Weights) -> torch.Tensor:
    return functional_call(subject.model, weights, (batch.x,)).argmax(1)


def _draws(
    subject: Subject,
    batch: Batch,
    state: State,
    kind: str,
    levels: tuple[float, ...],
    perturb: Callable[[float, torch.Generator], Weights],
) -> np.ndarray:
    """(n, levels, DRAWS) bool: right with each perturbed set of weights."""
    right = np.empty((len(batch), len(levels), DRAWS), dtype=np.bool_)
    for i, level in enumerate(levels):
        for draw in range(DRAWS):
            weights = perturb(level, torch_generator(state.seed, "weights", kind, i, draw))
            right[:, i, draw] = (_answers(subject, batch, weights) == batch.y).cpu().numpy()
    return right


def _findings(evidence: Evidence, settings: Settings) -> tuple[Finding, ...]:
    clean = evidence.clean["prediction"] == evidence.clean["label"]
    int8, int4 = (anytime_mean(evidence[name].astype(np.bool_), level=settings.level) for name in ("int8", "int4"))
    agrees = anytime_mean(evidence["agrees"].astype(np.bool_), level=settings.level)
    drop = anytime_difference(evidence["int8"].astype(np.float64), clean.astype(np.float64), level=settings.level)
    noisy = anytime_mean(evidence["noise"][:, NOISE.index(TOLD)].mean(axis=1), level=settings.level)
    return (
        Finding(
            "weights",
            "int8_accuracy",
            int8,
            f"With weights rounded to 8 bits it is right on {int8.value:.1%} of the examples ({clean.mean():.1%} with "
            "the weights as they are).",
            headline=True,
            column="int8",
        ),
        Finding(
            "weights",
            "int8_agreement",
            agrees,
            f"8-bit weights give the same answer as the original ones on {agrees.value:.1%} of the examples.",
            column="agrees",
        ),
        Finding(
            "weights",
            "int8_drop",
            drop,
            f"8-bit weights cost {100 * drop.value:.2f} points of accuracy.",
            direction="lower is better",
        ),
        Finding(
            "weights",
            "int4_accuracy",
            int4,
            f"With weights rounded to 4 bits it is right on {int4.value:.1%}.",
            column="int4",
        ),
        Finding(
            "weights",
            "noise_accuracy",
            noisy,
            f"With every weight off by about {TOLD:.0%} of its layer's size it is right on {noisy.value:.1%}.",
        ),
    )


def _exhibits(evidence: Evidence, settings: Settings) -> tuple[Exhibit, ...]:
    clean = evidence.clean["prediction"] == evidence.clean["label"]
    noise = [anytime_mean(evidence["noise"][:, i].mean(axis=1), level=settings.level) for i in range(len(NOISE))]
    flips = [anytime_mean(evidence["flips"][:, i].mean(axis=1), level=settings.level) for i in range(len(FLIPS))]
    start = anytime_mean(clean, level=settings.level)
    grids = {
        "as they are": start,
        "8 bits, one scale a channel": anytime_mean(evidence["int8"].astype(np.bool_), level=settings.level),
        "8 bits, one scale a layer": anytime_mean(evidence["int8_tensor"].astype(np.bool_), level=settings.level),
        "4 bits, one scale a channel": anytime_mean(evidence["int4"].astype(np.bool_), level=settings.level),
        **{f"8 bits, {rate:.2%} of the bits turned over": flip for rate, flip in zip(FLIPS, flips, strict=True)},
    }
    return (
        Curve(
            "Accuracy under noise on the weights",
            "noise, as a share of each layer's size",
            "accuracy",
            (_series("mean of draws", (0.0, *NOISE), [start, *noise]),),
            caption="Every weight is moved by a random amount; the band is the interval of the mean over the draws.",
            y_limits=(0.0, 1.0),
        ),
        Table(
            "Accuracy with weights stored coarsely",
            ("weights", "accuracy"),
            tuple(grids.items()),
            caption="Bit errors are those of memory run at too low a voltage.",
        ),
    )


def _series(name: str, x: tuple[float, ...], estimates: list[Estimate]) -> Series:
    return Series(
        name,
        x,
        tuple(estimate.value for estimate in estimates),
        tuple(estimate.low for estimate in estimates),
        tuple(estimate.high for estimate in estimates),
    )


def _doubts(evidence: Evidence) -> tuple[Doubt, ...]:
    largest = evidence["noise"][:, -1].mean(axis=0)
    clean = float((evidence.clean["prediction"] == evidence.clean["label"]).mean())
    spread = float(largest.max() - largest.min())
    if spread <= 0.2 or clean == 0:
        return ()
    return (
        Doubt(
            "draws disagree",
            f"At the largest noise, accuracy ranges from {largest.min():.1%} to {largest.max():.1%} between {DRAWS} "
            "draws, so their mean says little about another draw.",
            touches=("weights.noise_accuracy",),
            advice="Read the curve as a range; more draws would be needed for its mean.",
        ),
    )
