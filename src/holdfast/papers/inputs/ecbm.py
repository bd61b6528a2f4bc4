"""Check of `ecbm`: noisy digits with eight concepts, corrected one after another.

Every digit has four random bits and their complements as concepts; images get Gaussian noise of 0.35; 300 train the
models, 497 others choose lambda_g by their likelihood, 1000 are tested.  An energy model and a joint concept bottleneck
are trained alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Series, Table
from holdfast.core.intervals import paired_difference
from holdfast.core.seeds import torch_generator
from holdfast.inputs.concepts import ConceptBottleneck, EnergyConceptModel
from holdfast.inputs.concepts.classifier import train
from holdfast.inputs.concepts.joint import ConceptPosterior, JointTable
from holdfast.inputs.perceptrons import drawn_linear
from holdfast.papers import datasets
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale
from holdfast.subject.embedded import one_thread

PAPER = Paper(
    key="ecbm",
    group="inputs",
    title="Energy-Based Concept Bottleneck Models: Unifying Prediction, Concept Intervention, and Probabilistic "
    "Interpretations",
    builds=(
        "holdfast.inputs.concepts.energy.EnergyConceptModel",
        "holdfast.inputs.concepts.joint.JointTable",
        "holdfast.inputs.concepts.descent.descend",
        "holdfast.inputs.concepts.bottleneck.ConceptBottleneck",
        "holdfast.inputs.concepts.classifier.EnergyConceptClassifier",
    ),
    claim=(
        "Under one energy of input, concepts and class, correcting a few concepts improves the others and the class, "
        "and conditional probabilities of concepts can be read off."
    ),
    reference="Xu, Qin, Mi, Wang and Li, ICLR 2024",
)

NOISE = 0.35
CORRECTED = (0, 2, 3, 4)


@dataclass(frozen=True, eq=False)
class Variant:
    """One model and way of inference on one seed: right concepts and class, (tests, ...) for every number corrected."""

    concepts: dict[int, Bool[np.ndarray, "tests concepts"]]
    classes: dict[int, Bool[np.ndarray, " tests"]]
    energies: Float[np.ndarray, " tests"] | None = None

    def untouched_gain(self) -> Float[np.ndarray, " tests"]:
        """Rise of the accuracy of concepts not corrected, averaged over how many were."""
        return np.mean(
            [
                self.concepts[k][:, k:].mean(axis=1) - self.concepts[0][:, k:].mean(axis=1)
                for k in self.concepts
                if k > 0
            ],
            axis=0,
        )

    def class_gain(self) -> Float[np.ndarray, " tests"]:
        return np.mean([1.0 * self.classes[k] - self.classes[0] for k in self.classes if k > 0], axis=0)


def check(scale: Scale) -> Outcome:
    """(a) corrections spread, (b) enumeration against descent, (c) conditionals against enumeration and Bayes' rule."""
    full = scale is Scale.FULL
    seeds = (0, 1, 2) if full else (0,)
    trials, weights = [], []
    with one_thread():
        for seed in seeds:
            variants, weight = _trial(seed, *((60, 1000) if full else (3, 50)), everything=full)
            trials.append(variants)
            weights.append(weight)
    exact_criteria = [_conditionals(), _bayes()]
    descent = Criterion(
        "descent never ends below the least energy that enumeration finds",
        all(_energy_gap(trial) >= -1e-9 for trial in trials),
        {"smallest excess": min(_energy_gap(trial) for trial in trials)},
    )
    bottleneck = max(float(np.abs(trial["bottleneck"].untouched_gain()).max()) for trial in trials)
    still = Criterion(
        "corrections leave the other concepts of the bottleneck as they were",
        bottleneck == 0,
        {"largest change": bottleneck},
    )
    if not full:
        return Outcome((*exact_criteria, descent, still), seeds=seeds)
    untouched = {name: _pooled([trial[name].untouched_gain() for trial in trials]) for name in trials[0]}
    classes = {name: _pooled([trial[name].class_gain() for trial in trials]) for name in trials[0]}
    lead = _pooled([1.0 * trial["exact"].classes[0] - trial["gradient"].classes[0] for trial in trials])
    criteria = (
        Criterion(
            "correcting two to four concepts raises the accuracy of the others (exact inference)",
            untouched["exact"].low > 0,
            untouched,
        ),
        still,
        Criterion("the same corrections raise the accuracy of the class", classes["exact"].low > 0, classes),
        Criterion(
            "enumeration is at least as accurate in the class as descent, on average over seeds",
            lead.value >= 0,
            {"exact - gradient": lead},
        ),
        descent,
        *exact_criteria,
    )
    ours, baseline = (_level([trial[name].classes[0] for trial in trials]) for name in ("exact", "bottleneck"))
    notes = (
        "lambda_g was chosen by the likelihood of held-out examples: "
        + ", ".join(f"{weight:g}" for weight in weights)
        + f".  With lambda_g = 1 enumeration gives the states never seen in training too much weight: "
        f"{_level([t['exact, lambda_g = 1'].classes[0] for t in trials]).value:.3f} of the classes are right, "
        f"{_level([t['gradient, lambda_g = 1'].classes[0] for t in trials]).value:.3f} by descent, which starts from "
        "the verdicts of the single parts and ends near them.  Digits can share their random bits, so the bottleneck, "
        "which sees nothing else, cannot tell all of them apart (training it five times as long made it worse); it is "
        "here for what corrections do to the other concepts, not for its accuracy."
    )
    return Outcome(criteria, ours, baseline, (_table(trials), _curve(trials)), seeds, notes)


def _trial(seed: int, epochs: int, tests: int, everything: bool) -> tuple[dict[str, Variant], float]:
    generator = torch_generator(seed, PAPER.key)
    images, y = (torch.from_numpy(part) for part in datasets.digits())
    x = images.flatten(1)
    x = x + NOISE * torch.randn(x.shape, generator=generator)
    bits = torch.randint(2, (10, 4), generator=generator)
    c = torch.cat([bits, 1 - bits], 1)[y]
    order = torch.randperm(len(x), generator=generator)
    learn, held, test = order[:300], order[1300:], order[300 : 300 + tests]
    energy = EnergyConceptModel(_encoder(generator), 64, 8, 10, generator=generator)
    bottleneck = ConceptBottleneck(_encoder(generator), 64, 8, 10, generator=generator)
    for model in (energy, bottleneck):
        train(model, x[learn], c[learn], y[learn], generator, epochs=epochs)
        model.double()
    x = x.double()
    both = {}
    if everything:
        for method in ("exact", "gradient"):
            both[f"{method}, lambda_g = 1"] = _variant(energy, x[test], c[test], y[test], (0, 3), method=method)
    weight = energy.tune_consistency(x[held], c[held], y[held])
    if everything:
        energy.normalised, kept = True, energy.consistency_weight
        energy.consistency_weight = 1.0
        both["exact, E_cy normalised"] = _variant(energy, x[test], c[test], y[test], (0, 3), method="exact")
        energy.normalised, energy.consistency_weight = False, kept
    numbers = CORRECTED if everything else (0, 3)
    few = (0, 3) if everything else (0,)
    return {
        "exact": _variant(energy, x[test], c[test], y[test], numbers, method="exact"),
        "gradient": _variant(energy, x[test], c[test], y[test], few, method="gradient"),
        "bottleneck": _variant(bottleneck, x[test], c[test], y[test], numbers),
        **both,
    }, weight


def _encoder(generator: torch.Generator) -> nn.Module:
    return nn.Sequential(drawn_linear(64, 64, generator), nn.ReLU())


def _variant(
    model: EnergyConceptModel | ConceptBottleneck,
    x: Tensor,
    c: Tensor,
    y: Tensor,
    numbers: tuple[int, ...],
    **how: str,
) -> Variant:
    found: dict[int, ConceptPosterior] = {
        k: model.infer(x, {concept: c[:, concept] for concept in range(k)}, **how) for k in numbers
    }
    energy = found[0].energy
    return Variant(
        {k: ((p.concept_probs > 0.5) == c.bool()).numpy() for k, p in found.items()},
        {k: (p.class_probs.argmax(1) == y).numpy() for k, p in found.items()},
        None if energy is None else energy.numpy(),
    )


def _energy_gap(trial: dict[str, Variant]) -> float:
    above, least = trial["gradient"].energies, trial["exact"].energies
    return float("nan") if above is None or least is None else float((above - least).min())


def _conditionals() -> Criterion:
    """p(c_k | c_k', x) of a random model against sums over all states written out one by one."""
    generator = torch_generator(0, PAPER.key, "conditionals")
    model = EnergyConceptModel(nn.Identity(), 5, 4, 3, 16, generator=generator).double().eval()
    x = torch.randn((6, 5), generator=generator).double()
    with torch.no_grad():
        energies = model.energies(x)
        weight = {
            (*state, label): torch.exp(
                -model.joint_energy(energies, torch.tensor([state] * 6), torch.full((6,), label, dtype=torch.int64))
            )
            for state in product((0, 1), repeat=4)
            for label in range(3)
        }
    worst, total = 0.0, 0.0
    for asked, known in ((0, 1), (1, 3), (3, 0)):
        condition = [key for key in weight if key[known] == 1]
        below = sum(weight[key] for key in condition)
        for value in (0, 1):
            wanted = sum(weight[key] for key in condition if key[asked] == value) / below
            ours = model.conditional({asked: value}, {known: 1}, x)
            worst = max(worst, float((ours - wanted).abs().max()))
        both = model.conditional({asked: 0}, {known: 1}, x) + model.conditional({asked: 1}, {known: 1}, x)
        total = max(total, float((both - 1).abs().max()))
    return Criterion(
        "conditional probabilities sum to one and equal enumeration to 1e-10",
        worst <= 1e-10 and total <= 1e-10,
        {"largest difference": worst, "largest distance of a sum from 1": total},
    )


def _bayes() -> Criterion:
    """Two concepts and two classes written down by hand: p(y) = (0.3, 0.7), p(c_0 | y), p(c_1 | y) independent."""
    prior, first, second = (0.3, 0.7), (0.9, 0.2), (0.4, 0.6)
    table = torch.zeros(1, 4, 2, dtype=torch.float64)
    for c_0, c_1, y in product((0, 1), repeat=3):
        of_first = first[y] if c_0 else 1 - first[y]
        of_second = second[y] if c_1 else 1 - second[y]
        table[0, 2 * c_0 + c_1, y] = np.log(prior[y] * of_first * of_second)
    joint = JointTable(table)
    posterior = 0.3 * 0.9 / (0.3 * 0.9 + 0.7 * 0.2)
    through_class = posterior * 0.4 + (1 - posterior) * 0.6
    worst = max(
        abs(float(joint.conditional({"class": 0}, {0: 1})) - posterior),
        abs(float(joint.conditional({1: 1}, {0: 1})) - through_class),
    )
    return Criterion("a table written down by hand follows Bayes' rule", worst <= 1e-12, {"largest difference": worst})


def _pooled(gains: list[Float[np.ndarray, " tests"]]) -> Estimate:
    together = np.concatenate(gains).astype(np.float64)
    return paired_difference(np.zeros(len(together)), together)


def _level(right: list[Bool[np.ndarray, " tests"]]) -> Estimate:
    return _pooled([part.astype(np.float64) for part in right])


def _table(trials: list[dict[str, Variant]]) -> Table:
    rows = tuple(
        (
            name,
            k,
            _level([trial[name].classes[k] for trial in trials]),
            _level([trial[name].concepts[k][:, 4:].mean(axis=1) for trial in trials]),
        )
        for name in trials[0]
        for k in trials[0][name].classes
    )
    return Table(
        "Accuracy after corrections",
        ("model", "concepts corrected", "class", "the four complements"),
        rows,
        caption="The complements are never corrected; three seeds of 1000 test images, pooled.",
    )


def _curve(trials: list[dict[str, Variant]]) -> Curve:
    series = []
    for name in ("exact", "bottleneck"):
        levels = [_level([trial[name].classes[k] for trial in trials]) for k in CORRECTED]
        series.append(
            Series(
                "energy model" if name == "exact" else "concept bottleneck",
                tuple(float(k) for k in CORRECTED),
                tuple(level.value for level in levels),
                tuple(level.low for level in levels),
                tuple(level.high for level in levels),
            )
        )
    return Curve("What corrections do for the class", "concepts corrected, of 8", "class accuracy", tuple(series))
