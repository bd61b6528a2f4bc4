"""Check of `sensor-mcqa`: candidates of known skill, images as options, FailureSensorIQ, sets, selection of columns."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp
from sklearn.datasets import load_breast_cancer
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import check_estimator

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.intervals import paired_difference
from holdfast.core.seeds import numpy_generator
from holdfast.inputs.attack.loop import forward
from holdfast.inputs.text.feature_selection import LanguageModelFeatureSelector
from holdfast.inputs.text.mcqa import Answers, MCQItem, MCQPrompt, MCQReport, aligned, ask, read_items, stress
from holdfast.inputs.text.mcqa_edits import perturb
from holdfast.inputs.text.mcqa_uncertainty import uncertainty
from holdfast.papers import datasets
from holdfast.papers.bench_models import load
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="sensor-mcqa",
    group="inputs",
    title="Multi-choice stress test for domain question answering",
    builds=(
        "holdfast.inputs.text.mcqa.MCQItem",
        "holdfast.inputs.text.mcqa.stress",
        "holdfast.inputs.text.mcqa_edits.perturb",
        "holdfast.inputs.text.mcqa_uncertainty.uncertainty",
        "holdfast.inputs.text.feature_selection.LanguageModelFeatureSelector",
    ),
    claim=(
        "Models that answer multiple-choice questions of a trade lose right answers when the options are reordered, "
        "relabelled or reworded, and more when distractors are added; conformal sets of options keep their coverage."
    ),
)

SEEDS = (0, 1, 2)
FORMS = ("5opt", "5opt_perturbed_simple", "10opt", "10opt_perturbed_complex")
KNOWLEDGE, GUESS, WRITTEN = 0.6, (0.4, 0.3, 0.15, 0.1, 0.05), (0.5, 0.2, 0.1, 0.1, 0.1)
SPLITS = 200
#: Fourteen numbers of every candidate hold at once with probability 99%.
LEVEL = 1 - 0.01 / (14 * len(SEEDS))


def check(scale: Scale) -> Outcome:
    """(a) closed forms, (b) images as options and FailureSensorIQ, (c) coverage, (d) the selector."""
    full = scale is Scale.FULL
    seeds = SEEDS if full else SEEDS[:1]
    simulated = [_candidate(20_000 if full else 1_500, seed) for seed in seeds]
    criteria = [_closed_forms(simulated), _selector(full)]
    if not full:
        return Outcome(tuple(criteria), seeds=seeds)
    images = [_images(seed) for seed in seeds]
    sensors = [_sensors(seed) for seed in seeds]
    criteria += [*_image_criteria(images), _sensor_criterion(sensors)]
    coverage, sets = _coverage(
        {"candidate": simulated[0].plain, "images": images[0][0].plain, "sensors": sensors[0].plain}
    )
    tables = (replace(sensors[0].table(), title="FailureSensorIQ, half of the items, a word model"), sets)
    complex_form = sensors[0].stresses["ten options, complex"]
    notes = (
        "The word model is a logistic regression on pairs of question and option words, trained on the other half of "
        "the items; it is blind to order and labels by construction, so only distractors and other words can hurt it.  "
        "No language model was run.  A scorer as good as the network on images needs the "
        "bias it learnt in few items: with the 2 000 items of one seed the interval of its loss may touch 0."
    )
    ours, baseline = complex_form.accuracy, sensors[0].plain.accuracy()
    return Outcome((*criteria, coverage), ours, baseline, tables, seeds, notes)


def _candidate(n: int, seed: int) -> MCQReport:
    """Knows a share `KNOWLEDGE` of the answers and else picks a place by `GUESS`; truths stand by `WRITTEN`."""
    generator = numpy_generator(seed, PAPER.key, "candidate")
    known = generator.random(n) < KNOWLEDGE
    truths = generator.choice(5, n, p=WRITTEN)
    items = [
        MCQItem(f"question {i}", tuple("vwxyz"), tuple(j == truth for j in range(5)), key=i, asset=str(i % 10))
        for i, truth in enumerate(truths.tolist())
    ]

    def model(prompt: MCQPrompt) -> Float[np.ndarray, " options"]:
        i = int(prompt.question.split()[1])
        logits = np.log(GUESS) + generator.gumbel(size=5)
        if known[i]:
            logits[prompt.options.index("vwxyz"[truths[i]])] += 30
        return logits

    twins = {kind: [perturb(item, kind, generator) for item in items] for kind in ("simple", "reverse")}
    return stress(model, items, twins, level=LEVEL)


def _closed_forms(reports: Sequence[MCQReport]) -> Criterion:
    """Every measured number beside k + (1 - k) P(the guess hits)."""
    guess, written = np.array(GUESS), np.array(WRITTEN)

    def right(chance: float) -> float:
        return float(KNOWLEDGE + (1 - KNOWLEDGE) * chance)

    plain = right(written @ guess)
    moved = {"simple": (right(0.2), right(0.2 * written @ guess))}
    moved["reverse"] = (right(written @ guess[::-1]), right(written @ (guess * guess[::-1])))
    pairs: list[tuple[Estimate, float]] = []
    for report in reports:
        pairs.append((report.plain.accuracy(LEVEL), plain))
        pairs += [(report.plain.position_recall(level=LEVEL)[j], right(guess[j])) for j in range(5)]
        for name, (accuracy, both) in moved.items():
            measured = report.stresses[name]
            pairs += [(measured.accuracy, accuracy), (measured.drop_rate, accuracy - plain)]
            pairs += [(measured.consistent, both)] + ([(measured.recall, both / plain)] if measured.recall else [])
    inside = [estimate.low <= wanted <= estimate.high for estimate, wanted in pairs]
    numbers: dict[str, Estimate | float | int] = {"inside": sum(inside), "of": len(inside)}
    for name, (accuracy, both) in moved.items():
        numbers |= {f"{name}: drop rate": reports[0].stresses[name].drop_rate, f"{name}: its formula": accuracy - plain}
        numbers |= {f"{name}: consistent": reports[0].stresses[name].consistent, f"{name}: formula": both}
    return Criterion(
        "drop rate, consistent accuracy, recall of performance and recall by position of a candidate with known "
        "knowledge and position prior are what the formulas say (99% intervals, Bonferroni)",
        all(inside),
        numbers,
    )


def _images(seed: int) -> tuple[MCQReport, MCQReport]:
    """ "Which of these five is a trouser?": an order-blind network, and the same with a learnt bias for places."""
    x, y = datasets.fashion_mnist("test")
    with torch.no_grad():
        scores = log_softmax(forward(load("cnn"), torch.from_numpy(x)).double().numpy(), axis=1)
    generator = numpy_generator(seed, PAPER.key, "images")

    def model(prompt: MCQPrompt) -> Float[np.ndarray, " options"]:
        return scores[[int(option.split()[1]) for option in prompt.options], int(prompt.question.split()[-1][:-1])]

    items = list(_image_items(y, 3000, generator))
    learnt, items = items[:1000], items[1000:]
    bias = _learnt_bias(ask(model, learnt))
    pools = {c: [f"image {i}" for i in generator.choice(np.flatnonzero(y != c), 60, replace=False)] for c in range(10)}
    simple = [perturb(item, "simple", generator) for item in items]
    ten = [perturb(item, "distract", generator, distractors=pools[int(item.asset)]) for item in items]
    blind = stress(model, items, {"simple": simple, "ten options": ten})
    return blind, stress(lambda prompt: model(prompt) + bias, items, {"simple": simple})


def _image_items(y: np.ndarray, n: int, generator: np.random.Generator) -> Iterator[MCQItem]:
    """One image of the class asked for, at a place drawn from `WRITTEN`, among four of other classes."""
    for key in range(n):
        asked, place = int(generator.integers(10)), int(generator.choice(5, p=WRITTEN))
        shown = generator.choice(np.flatnonzero(y != asked), 5, replace=False)
        shown[place] = generator.choice(np.flatnonzero(y == asked))
        marks = tuple(j == place for j in range(5))
        names = tuple(f"image {i}" for i in shown)
        yield MCQItem(f"Which of these is of class {asked}?", names, marks, key=key, asset=str(asked))


def _learnt_bias(answers: Answers, ridge: float = 0.01) -> Float[np.ndarray, " places"]:
    """Bias of every place that makes the truths of these items likeliest (the last place at 0)."""
    z = np.stack(answers.logits)
    truth = np.array([item.correct.index(True) for item in answers.items])

    def loss(free: np.ndarray) -> float:
        shifted = z + np.append(free, 0)
        return float((logsumexp(shifted, axis=1) - shifted[np.arange(len(z)), truth]).mean() + ridge * free @ free)

    return np.append(minimize(loss, np.zeros(4)).x, 0)


def _image_criteria(reports: Sequence[tuple[MCQReport, MCQReport]]) -> list[Criterion]:
    blind = [pair[0].stresses["simple"] for pair in reports]
    same = all((s.answers.right == pair[0].plain.right).all() for s, pair in zip(blind, reports, strict=True))
    accuracy: dict[str, Estimate | float | int] = {
        f"seed {seed}: accuracy": pair[0].plain.accuracy() for seed, pair in zip(SEEDS, reports, strict=True)
    }
    return [
        Criterion("reordering and relabelling change no answer of a scorer that is blind to order", same, accuracy),
        _loses(
            "a scorer that learnt where right options stand loses by reordering (interval over all seeds below 0)",
            [(pair[1].plain, pair[1].stresses["simple"].answers) for pair in reports],
        ),
        _loses(
            "ten options cost right answers that five do not (interval over all seeds below 0)",
            [(pair[0].plain, pair[0].stresses["ten options"].answers) for pair in reports],
        ),
    ]


def _loses(statement: str, pairs: Sequence[tuple[Answers, Answers]]) -> Criterion:
    """Whether the answers after are fewer than those before, over the items of all seeds."""
    numbers: dict[str, Estimate | float | int] = {
        f"seed {seed}": paired_difference(before.right, after.right)
        for seed, (before, after) in zip(SEEDS, pairs, strict=True)
    }
    before, after = (np.concatenate([answers.right for answers in side]) for side in zip(*pairs, strict=True))
    together = paired_difference(before, after)
    return Criterion(statement, together.high < 0, {"all seeds": together, **numbers})


class _WordModel:
    """Log-odds that an option is right, from its words, pairs of question and option words, and the whole option."""

    def __init__(self, items: Sequence[MCQItem]) -> None:
        self.hasher = FeatureHasher(2**18, input_type="string")
        shown = [(item.question, option) for item in items for option in item.options]
        marks = [mark for item in items for mark in item.correct]
        self.model = LogisticRegression(max_iter=200).fit(self.hasher.transform(map(_features, shown)), marks)

    def __call__(self, prompt: MCQPrompt) -> Float[np.ndarray, " options"]:
        shown = [(prompt.question, option) for option in prompt.options]
        return self.model.decision_function(self.hasher.transform(map(_features, shown)))


def _features(shown: tuple[str, str]) -> list[str]:
    question, option = (sorted(set(re.findall("[a-z]+", text.lower()))) for text in shown)
    pairs = [f"{asked}|{word}" for asked in question for word in (*option, shown[1])]
    return [*option, *pairs]


def _sensors(seed: int) -> MCQReport:
    """The four published forms of the held-out half of FailureSensorIQ's single-answer items."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # five ten-option items offer one option twice
        forms = aligned(
            *(read_items(datasets.data_path(f"failuresensoriq/single_answer_{f}.jsonl.gz"), "skip") for f in FORMS)
        )
    order = numpy_generator(seed, PAPER.key, "halves").permutation(len(forms[0]))
    trained, held = order[: len(order) // 2], order[len(order) // 2 :]
    names = ("simple", "ten options", "ten options, complex")
    twins = {name: [form[i] for i in held] for name, form in zip(names, forms[1:], strict=True)}
    return stress(_WordModel([forms[0][i] for i in trained]), [forms[0][i] for i in held], twins)


def _sensor_criterion(reports: Sequence[MCQReport]) -> Criterion:
    """Accuracy falls on the published twins, and more in the complex ones."""
    numbers: dict[str, Estimate | float | int] = {}
    for seed, report in zip(SEEDS, reports, strict=True):
        simple, hard = report.stresses["simple"], report.stresses["ten options, complex"]
        numbers[f"seed {seed}: complex"] = hard.drop_rate
        numbers[f"seed {seed}: complex - simple"] = paired_difference(simple.answers.right, hard.answers.right)
    numbers["reworded - ten options as written"] = paired_difference(
        reports[0].stresses["ten options"].answers.right, reports[0].stresses["ten options, complex"].answers.right
    )
    decisive = [number for name, number in numbers.items() if name.startswith("seed")]
    return Criterion(
        "on FailureSensorIQ the complex perturbation costs a word model right answers, and more than the simple one "
        "(intervals below 0, every seed)",
        all(isinstance(number, Estimate) and number.high < 0 for number in decisive),
        numbers,
    )


def _coverage(answers: dict[str, Answers]) -> tuple[Criterion, Table]:
    """Coverage at alpha = 0.1 over splits by asset."""
    numbers: dict[str, Estimate | float | int] = {}
    rows, kept = [], []
    for name, answered in answers.items():
        few = Answers(answered.items[:2000], answered.logits[:2000])
        for score in ("lac", "aps"):
            results = [
                uncertainty(few, numpy_generator(split, PAPER.key, "split"), score=score) for split in range(SPLITS)
            ]
            coverage = np.array([result.coverage.value for result in results])
            error = float(coverage.std(ddof=1)) / len(coverage) ** 0.5
            kept.append(coverage.mean() >= 0.9 - 3 * error)
            numbers |= {f"{name}, {score}": float(coverage.mean()), f"{name}, {score}: standard error": error}
            size, uacc = (float(np.mean(v)) for v in zip(*((r.mean_size.value, r.uacc) for r in results), strict=True))
            rows.append((name, score, few.accuracy(), float(coverage.mean()), size, uacc))
    statement = f"sets of options cover at least 90% less three standard errors over {SPLITS} splits by asset"
    columns = ("answers of", "score", "accuracy", "coverage", "mean set size", "UAcc")
    return Criterion(statement, all(kept), numbers), Table(
        "Conformal sets of options, alpha = 0.1", columns, tuple(rows)
    )


def _selector(full: bool) -> Criterion:
    """scikit-learn's own tests, and the named columns of a real table."""
    table = load_breast_cancer()
    columns, wanted = [str(name) for name in table.feature_names], ["worst area", "mean concavity", "worst texture"]
    named = LanguageModelFeatureSelector(_Stub(wanted), "malignancy", k=2, columns=columns)
    kept = [columns[i] for i in np.flatnonzero(named.fit(table.data).get_support())]
    if full:
        check_estimator(LanguageModelFeatureSelector(_Stub(["x0", "x1"])), on_skip=None)
    statement = "the selector keeps the named columns of breast_cancer, up to k, and passes scikit-learn's tests"
    return Criterion(statement, sorted(kept) == sorted(wanted[:2]), {"kept": len(kept), "of": len(columns)})


class _Stub:
    """A language model that always names the same columns."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __call__(self, prompt: str) -> str:
        return json.dumps({"features": list(self.names)})
