"""Check of `overstability`: what a scorer of worked solutions rests on, and whether texts made to fool it are seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Exhibit, Table
from holdfast.core.intervals import paired_difference
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.detection.metrics import auroc
from holdfast.inputs.text.attribution import IntegratedGradients
from holdfast.inputs.text.edits import edit_text, repeat_sentences, shuffle_words
from holdfast.inputs.text.stability import (
    OverstabilityCurve,
    bag_of_words_fidelity,
    oversensitivity,
    overstability_curve,
    overstability_figure,
    perturbation_suite,
)
from holdfast.inputs.text.tokens import Vocabulary, words
from holdfast.inputs.text.triggers import Trigger, UniversalTrigger
from holdfast.inputs.text.unusual import AttributionDetector, FluencyDetector
from holdfast.papers import datasets
from holdfast.papers.bench_models.networks import initialise
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="overstability",
    group="inputs",
    title="Automatic Essay Scoring Systems Are Both Overstable And Oversensitive",
    builds=(
        "holdfast.inputs.text.attribution.IntegratedGradients",
        "holdfast.inputs.text.stability.overstability_curve",
        "holdfast.inputs.text.stability.perturbation_suite",
        "holdfast.inputs.text.triggers.UniversalTrigger",
        "holdfast.inputs.text.unusual.FluencyDetector",
        "holdfast.inputs.text.unusual.AttributionDetector",
    ),
    claim=(
        "Neural scorers of text treat it as a bag of words: a few words fix the score whatever their order, while a "
        "single chosen word moves it; texts made to exploit either are found with high accuracy."
    ),
    reference="Singla, Parekh, Singh, Chen, Krishnamurthy and Shah, 2021",
)

SEEDS = (0, 1, 2)
LOW, HIGH = 2, 8
Numbers = dict[str, Estimate | float | int]


def check(scale: Scale) -> Outcome:
    """Attributions that add up; at full scale the curves, the suite, triggers and detectors of three trainings."""
    if scale is Scale.SMOKE:
        return Outcome((_completeness({SEEDS[0]: _untrained_error()}),), seeds=(SEEDS[0],))
    train, test = _solutions("train", 5000), _solutions("test", 500)
    vocabulary = Vocabulary.of(train[0], fewest=3)
    found = {seed: _examined(train, test, vocabulary, seed) for seed in SEEDS}
    errors = {seed: part.error for seed, part in found.items()}
    first = found[SEEDS[0]]
    criteria = (_completeness(errors), _overstable(found), _oversensitive(found), _detected(found))
    notes = (
        "The scorer sums embedded words and feeds the sum to a perceptron; the score is the number of steps (2 to 8) "
        "of a GSM8K solution, and one step is a rubric point.  A mean over words cannot count steps: its scores "
        f"correlate with the truth by {_correlation_of_means(train, test, vocabulary):.2f}, those of the sum by "
        f"{first.correlation:.2f}.  Order cannot matter to either, so the shuffle checks the measurement.  A ridge "
        f"regression on word counts explains {first.fidelity} of the variance; the perceptron bends the rest.  Fluency "
        "alone does not see a trigger of three words, attributions alone see neither shuffles nor repetition."
    )
    ours, baseline = first.kept[0], first.kept[1]
    figure = overstability_figure({"highest attribution": first.curve, "random": first.random})
    exhibits: tuple[Exhibit, ...] = (figure, first.suite, _detector_table(first))
    return Outcome(criteria, ours, baseline, exhibits, SEEDS, notes)


class PooledScorer(nn.Module):
    """Embedded words, their sum (or mean) through a perceptron; numbers (texts, length) to scores (texts,)."""

    def __init__(self, rows: int, generator: torch.Generator, *, mean: bool = False, width: int = 32) -> None:
        super().__init__()
        self.mean = mean
        self.embedding = nn.utils.skip_init(nn.Embedding, rows, width, padding_idx=Vocabulary.PAD)
        self.head = nn.Sequential(
            nn.utils.skip_init(nn.Linear, width, width), nn.ReLU(), nn.utils.skip_init(nn.Linear, width, 1)
        )
        initialise(self, generator)
        with torch.no_grad():
            self.embedding.weight.normal_(generator=generator)
            self.embedding.weight[Vocabulary.PAD] = 0.0

    def forward(self, numbers: Tensor) -> Tensor:
        words_in = (numbers != Vocabulary.PAD).sum(1, keepdim=True).clamp(min=1) if self.mean else 20
        return self.head(self.embedding(numbers).sum(1) / words_in).squeeze(1)


@dataclass(frozen=True, eq=False)
class _Scorer:
    """A trained model as a function of texts."""

    model: PooledScorer
    vocabulary: Vocabulary

    def encoded(self, texts: Sequence[str]) -> Tensor:
        return self.vocabulary.encode([words(text) for text in texts], 400)

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        return self.model(self.encoded(texts))

    def clipped(self, texts: list[str]) -> Tensor:
        """Scores of a grader who knows no others than 2 to 8."""
        return self(texts).clamp(LOW, HIGH)

    def attributions(self, texts: Sequence[str]) -> list[np.ndarray]:
        numbers = self.encoded(texts)
        return IntegratedGradients()(self.model, numbers).by_text(numbers)


@dataclass(frozen=True, eq=False)
class _Examined:
    """What one training showed."""

    correlation: float
    error: float
    curve: OverstabilityCurve
    random: OverstabilityCurve
    kept: tuple[Estimate, Estimate, Estimate]
    shuffle: Estimate
    trigger: Estimate
    fidelity: Estimate
    suite: Table
    detection: dict[str, tuple[Estimate, Estimate]]


def _examined(
    train: tuple[list[str], Tensor], test: tuple[list[str], Tensor], vocabulary: Vocabulary, seed: int
) -> _Examined:
    scorer = _Scorer(_trained(train, vocabulary, seed), vocabulary)
    texts, truth = test
    stream = numpy_generator(seed, PAPER.key, "texts")
    numbers = scorer.encoded(texts)
    attribution = IntegratedGradients()(scorer.model, numbers)
    values = attribution.by_text(numbers)
    curve = overstability_curve(scorer, texts, values)
    random = overstability_curve(scorer, texts, [stream.random(len(row)) for row in values])
    at = curve.shares.index(0.4)
    ours, baseline = curve.preserved()[:, at], random.preserved()[:, at]
    shuffled = [edit_text(text, shuffle_words, stream) for text in texts]
    scores = scorer(texts).double().numpy()
    change = np.abs(scorer(shuffled).double().numpy() - scores)
    some = scorer.encoded(train[0][:200])
    one = UniversalTrigger(length=1)(scorer.model, some)
    three = UniversalTrigger(length=3)(scorer.model, some)
    word = vocabulary.word(int(one.numbers[0]))
    moved = oversensitivity(scorer, texts, values, stream, insert=[word])
    suite = perturbation_suite(scorer.clipped, texts, scale=(LOW, HIGH), unchanged=0.01, seed=seed)
    return _Examined(
        float(np.corrcoef(scores, truth.numpy())[0, 1]),
        float(attribution.error.max()),
        curve,
        random,
        (_mean(ours), _mean(baseline), paired_difference(baseline, ours)),
        _mean(change),
        paired_difference(np.abs(moved.random_deleted), np.abs(moved.inserted[word])),
        bag_of_words_fidelity(scorer, texts, seed=seed),
        suite.table(),
        _detection(scorer, train[0], texts, shuffled, three, stream),
    )


def _detection(
    scorer: _Scorer,
    clean: list[str],
    texts: list[str],
    shuffled: list[str],
    trigger: Trigger,
    stream: np.random.Generator,
) -> dict[str, tuple[Estimate, Estimate]]:
    """AUROC of the fluency and of the attribution detector, both fitted on clean training texts."""
    front = " ".join(scorer.vocabulary.word(int(number)) for number in trigger.numbers)
    attacked = {
        "shuffled": shuffled,
        "repeated": [edit_text(text, repeat_sentences, stream) for text in texts],
        "trigger": [f"{front} {text}" for text in texts],
    }
    fluency = FluencyDetector().fit(clean)
    attribution = AttributionDetector().fit(scorer.attributions(clean[:1000]))
    read, rested = fluency.score_samples(texts), attribution.score_samples(scorer.attributions(texts))
    return {
        name: (
            auroc(read, fluency.score_samples(edited)),
            auroc(rested, attribution.score_samples(scorer.attributions(edited))),
        )
        for name, edited in attacked.items()
    }


def _completeness(errors: dict[int, float]) -> Criterion:
    return Criterion(
        "integrated gradients add up to the score's difference within 5% for every text",
        max(errors.values()) < 0.05,
        {f"largest error, seed {seed}": error for seed, error in errors.items()},
    )


def _overstable(found: dict[int, _Examined]) -> Criterion:
    numbers: Numbers = {}
    for seed, part in found.items():
        for name, value in zip(("attributed", "random", "difference"), part.kept):
            numbers[f"{name}, seed {seed}"] = value
    return Criterion(
        "the 40% of words with the highest attribution preserve more of the score than a random 40%, in each training",
        all(part.kept[2].low > 0 for part in found.values()),
        numbers,
    )


def _oversensitive(found: dict[int, _Examined]) -> Criterion:
    numbers: Numbers = {}
    for seed, part in found.items():
        numbers[f"change by shuffling, seed {seed}"] = part.shuffle
        numbers[f"change by one trigger word less that by deleting a random word, seed {seed}"] = part.trigger
    return Criterion(
        "shuffling all words changes the score by less than half a rubric point on average, while one word in front "
        "moves it by more than deleting a random word does, in each training",
        all(part.shuffle.high < 0.5 and part.trigger.low > 0 for part in found.values()),
        numbers,
    )


def _detected(found: dict[int, _Examined]) -> Criterion:
    numbers: Numbers = {}
    held = []
    for seed, part in found.items():
        for name, (fluency, attribution) in part.detection.items():
            used = attribution if name == "trigger" else fluency
            numbers[f"{name}, seed {seed}"] = used
            held.append(used.value >= 0.9)
    return Criterion(
        "detectors fitted on clean texts tell shuffled and repeated texts (by fluency) and texts with a trigger (by "
        "attributions) from clean ones at an AUROC of at least 0.9, in each training",
        all(held),
        numbers,
    )


def _detector_table(part: _Examined) -> Table:
    rows = tuple((name, *pair) for name, pair in part.detection.items())
    return Table("AUROC of clean against changed texts", ("texts", "fluency", "attributions"), rows)


def _mean(values: np.ndarray) -> Estimate:
    return paired_difference(np.zeros_like(values), values)


def _solutions(split: datasets.Split, limit: int) -> tuple[list[str], Tensor]:
    """Solutions of 2 to 8 steps and the number of their steps."""
    kept = [problem for problem in datasets.gsm8k(split, limit) if LOW <= len(problem.steps) <= HIGH]
    return [problem.solution for problem in kept], torch.tensor([float(len(problem.steps)) for problem in kept])


def _correlation_of_means(
    train: tuple[list[str], Tensor], test: tuple[list[str], Tensor], vocabulary: Vocabulary
) -> float:
    """What mean pooling learns of the number of steps."""
    scorer = _Scorer(_trained(train, vocabulary, SEEDS[0], mean=True), vocabulary)
    return float(np.corrcoef(scorer(test[0]).numpy(), test[1].numpy())[0, 1])


def _trained(
    train: tuple[list[str], Tensor], vocabulary: Vocabulary, seed: int, *, mean: bool = False, epochs: int = 6
) -> PooledScorer:
    texts, steps = train
    model = PooledScorer(len(vocabulary), torch_generator(seed, PAPER.key, "weights"), mean=mean)
    numbers = vocabulary.encode([words(text) for text in texts], 150)
    order = torch_generator(seed, PAPER.key, "order")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(numbers), generator=order).split(64):
            optimizer.zero_grad()
            F.mse_loss(model(numbers[rows]), steps[rows]).backward()
            optimizer.step()
    return model.eval()


def _untrained_error() -> float:
    model = PooledScorer(50, torch_generator(SEEDS[0], PAPER.key, "untrained")).eval()
    numbers = torch.randint(2, 50, (40, 30), generator=torch_generator(SEEDS[0], PAPER.key, "numbers"))
    return float(IntegratedGradients()(model, numbers).error.max())
