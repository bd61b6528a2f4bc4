"""Check of `factor-consistency`: agreement of models on factors as knowledge for a small network.

Diabetes, 80 training rows, twelve splits: boosting, forest, ridge and extra trees are fitted on the training rows, and
the mean of their importance distributions is the prior of a tanh perceptron.  The second table is breast cancer with
40 training rows.  The full text of the paper was not at hand: attribution, prior and penalty are our reading of its
abstract, and neither of its surveys is used.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from sklearn.base import clone
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Bars, Table
from holdfast.core.intervals import paired_difference
from holdfast.core.seeds import derive_seed, numpy_generator
from holdfast.inputs.explanations import (
    AlignedMLPClassifier,
    AlignedMLPRegressor,
    ConsistencyReport,
    exact_shapley,
    factor_consistency,
    permutation_shapley,
)
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale
from holdfast.subject.embedded import one_thread

PAPER = Paper(
    key="factor-consistency",
    group="inputs",
    title="Primary and Secondary Factor Consistency as Domain Knowledge to Guide Happiness Computing in Online "
    "Assessment",
    builds=(
        "holdfast.inputs.explanations.consistency.factor_consistency",
        "holdfast.inputs.explanations.importance.importance_distribution",
        "holdfast.inputs.explanations.shapley.permutation_shapley",
        "holdfast.inputs.explanations.alignment.ImportanceAlignment",
        "holdfast.inputs.explanations.aligned.AlignedMLPRegressor",
    ),
    claim=(
        "Accurate models of different kinds agree on the primary factors of a table, and holding a network to the "
        "importance distribution they agree on makes it more accurate."
    ),
)

#: Splits 0 to 7 and 0 to 4 were looked at while the check was written, with too few to tell priors apart.
SPLITS, CANCER_SPLITS = tuple(range(8, 20)), tuple(range(5, 15))
ROWS, PRIMARY, WEIGHT = 80, 4, 3.0
CANCER_ROWS, CANCER_PRIMARY, BOOTSTRAPS = 40, 8, 4
BEHIND, PAIRS = 20, 2
#: Initialisations a split, whose errors are averaged.
NETWORKS = 2


@dataclass(frozen=True, eq=False)
class Split:
    """Agreement of the references and test errors of the network, by prior and weight."""

    report: ConsistencyReport
    errors: dict[str, float]


def check(scale: Scale) -> Outcome:
    """(a) overlap of references, (b) error against weight and prior, (c) proposition, (d) breast cancer."""
    with one_thread():
        if scale is Scale.SMOKE:
            return Outcome(_exactness(60), seeds=(0,))
        return _full()


def _full() -> Outcome:
    splits = [_diabetes(split) for split in SPLITS]
    overlap = _mean([split.report.overlap.value for split in splits])
    errors = {name: np.array([split.errors[name] for split in splits]) for name in splits[0].errors}
    gain = paired_difference(errors["no prior"], errors["prior"])
    ignorant = ("permuted prior", "uniform prior")
    others = {name: paired_difference(errors["no prior"], errors[name]) for name in ignorant}
    lightly = {
        name: paired_difference(errors["no prior"], errors[f"{name}, weight 1"]) for name in ("prior", *ignorant)
    }
    lead = {f"prior - {name}": paired_difference(errors[name], errors["prior"]) for name in ignorant}
    cancer, cancer_rows = _cancer()
    criteria = (
        Criterion(
            "the four references share at least 0.6 of their four primary factors, and more than chance's 0.4",
            overlap.value >= 0.6 and overlap.low > 0.4,
            {"overlap": overlap, "Kendall tau": _mean([split.report.tau.value for split in splits])},
        ),
        Criterion(
            f"the prior with weight {WEIGHT:g} lowers the test error (paired over splits)",
            gain.high < 0,
            {"difference": gain},
        ),
        Criterion(
            "with weight 1 the prior lowers the error, and a permuted and a uniform prior do not",
            lightly["prior"].high < 0 and all(lightly[name].high >= 0 for name in ignorant),
            lightly,
        ),
        Criterion(
            f"with weight {WEIGHT:g} a permuted and a uniform prior do not lower it either",
            all(other.high >= 0 for other in others.values()),
            others,
        ),
        Criterion("the prior does better than either of them", all(part.high < 0 for part in lead.values()), lead),
        *_exactness(1000),
        *cancer,
    )
    table = Table(
        "Mean squared error on diabetes (variance 1), 64-64 tanh perceptron, 80 training rows",
        ("penalty", "test error", "difference from none"),
        tuple((name, _mean(values), paired_difference(errors["no prior"], values)) for name, values in errors.items()),
        caption=f"{len(SPLITS)} random splits, {NETWORKS} initialisations each; intervals over splits, which share "
        f"rows.  The weight is {WEIGHT:g} where none is given.",
    )
    return Outcome(
        criteria,
        _mean(errors["prior"]),
        _mean(errors["no prior"]),
        (table, cancer_rows, _bars(splits)),
        SPLITS,
        "The surveys of the paper are not public; the full text was not at hand.  Splits are taken as independent, "
        "although they share test rows.  Step and batch (all rows) were chosen on six other splits: with batches of 20 "
        "rows, whose importances are noisy, no prior helped (-0.02 [-0.20, 0.16] on splits 0 to 7).  Any "
        "penalty on importances also regularises a network that overfits 80 rows, so the comparison with priors that "
        "know nothing is the one that says what the knowledge is worth.",
    )


def _diabetes(split: int) -> Split:
    from sklearn.datasets import load_diabetes

    X, y = load_diabetes(return_X_y=True)
    X, y = (X - X.mean(axis=0)) / X.std(axis=0), (y - y.mean()) / y.std()
    generator = numpy_generator(split, PAPER.key, "diabetes")
    order = generator.permutation(len(X))
    train, test = order[:ROWS], order[ROWS:]
    state = derive_seed(split, PAPER.key) % 2**32
    references = [
        GradientBoostingRegressor(random_state=state),
        RandomForestRegressor(50, random_state=state),
        Ridge(),
        ExtraTreesRegressor(50, random_state=state),
    ]
    report = _agreement(references, X[train], y[train], PRIMARY, generator)
    prior = _smoothed(report)
    knowledge = {
        "prior": prior,
        "permuted prior": generator.permutation(prior),
        "uniform prior": np.full(len(prior), 1 / len(prior)),
    }
    variants = {"no prior": (prior, 0.0)}
    variants |= {name: (q, WEIGHT) for name, q in knowledge.items()}
    variants |= {f"{name}, weight 1": (q, 1.0) for name, q in knowledge.items()}
    errors = {}
    for name, (q, weight) in variants.items():
        networks = [AlignedMLPRegressor(q, weight, random_state=s).fit(X[train], y[train]) for s in range(NETWORKS)]
        errors[name] = float(np.mean([(network.predict(X[test]) - y[test]) ** 2 for network in networks]))
    return Split(report, errors)


def _cancer() -> tuple[tuple[Criterion, ...], Table]:
    """Accuracy with and without the prior, and how far networks trained on bootstraps agree on the primary factors."""
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    accuracy: dict[float, list[float]] = {0.0: [], WEIGHT: []}
    stability: dict[float, list[float]] = {0.0: [], WEIGHT: []}
    for split in CANCER_SPLITS:
        generator = numpy_generator(split, PAPER.key, "cancer")
        order = generator.permutation(len(X))
        train, test = order[:CANCER_ROWS], order[CANCER_ROWS:]
        state = derive_seed(split, PAPER.key) % 2**32
        references = [
            GradientBoostingClassifier(random_state=state),
            RandomForestClassifier(50, random_state=state),
            make_pipeline(StandardScaler(), LogisticRegression()),
            ExtraTreesClassifier(50, random_state=state),
        ]
        prior = _smoothed(_agreement(references, X[train], y[train], CANCER_PRIMARY, generator))
        picks = [generator.integers(CANCER_ROWS, size=CANCER_ROWS) for _ in range(BOOTSTRAPS)]
        for weight in accuracy:
            network = AlignedMLPClassifier(prior, weight, random_state=split)
            accuracy[weight].append(float(clone(network).fit(X[train], y[train]).score(X[test], y[test])))
            again = [clone(network).fit(X[train][pick], y[train][pick]) for pick in picks]
            report = factor_consistency(
                again, X[train], CANCER_PRIMARY, background=X[train][:BEHIND], pairs=PAIRS, resamples=2
            )
            stability[weight].append(report.overlap.value)
    change, steadier = (
        paired_difference(np.array(part[0.0]), np.array(part[WEIGHT])) for part in (accuracy, stability)
    )
    table = Table(
        f"Breast cancer, {CANCER_ROWS} training rows",
        ("penalty", "test accuracy", f"overlap of {CANCER_PRIMARY} primary factors over bootstraps"),
        tuple(
            (name, _mean(accuracy[weight]), _mean(stability[weight]))
            for name, weight in (("none", 0.0), ("prior", WEIGHT))
        ),
    )
    return (
        Criterion(
            "breast cancer: the prior does not lower the accuracy (interval over splits reaches 0)",
            change.high >= 0,
            {"difference": change},
        ),
        Criterion(
            "breast cancer: networks trained on bootstraps agree more on the primary factors with the prior",
            steadier.low > 0,
            {"difference": steadier},
        ),
    ), table


def _agreement(
    references: list, X: np.ndarray, y: np.ndarray, k: int, generator: np.random.Generator
) -> ConsistencyReport:
    """References fitted and explained on training rows alone."""
    fitted = {type(model).__name__: model.fit(X, y) for model in references}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return factor_consistency(fitted, X, k, background=X[:BEHIND], pairs=PAIRS, resamples=2, generator=generator)


def _smoothed(report: ConsistencyReport) -> Float[np.ndarray, " features"]:
    mean = report.importances.mean(axis=0)
    return 0.999 * mean + 0.001 / len(mean)


def _exactness(pairs: int) -> tuple[Criterion, ...]:
    """Pairs of random functions, linear parts and a split of a tree each: bound, order and local accuracy."""
    generator = numpy_generator(0, PAPER.key, "exactness")
    over = swapped = settled = 0
    worst = worst_sampled = 0.0
    for _ in range(pairs):
        features = int(generator.integers(2, 6))
        X, behind = generator.normal(size=(6, features)), generator.normal(size=(5, features))
        f = _function(features, generator)
        g = _near(f, generator) if generator.random() < 0.7 else _function(features, generator)
        of_f, of_g = exact_shapley(f, X, behind), exact_shapley(g, X, behind)
        gap = float(np.abs(of_f.worths - of_g.worths).max())
        over += int((np.abs(of_f.values - of_g.values) > 2 * gap + 1e-12).sum())
        first, second = of_f.magnitudes().mean(axis=0), of_g.magnitudes().mean(axis=0)
        clear = first[:, None] - first > 4 * gap
        settled += int(clear.sum())
        swapped += int((clear & (second[:, None] <= second)).sum())
        worst = max(worst, float(np.abs(of_f.base + of_f.values.sum(axis=1)[:, 0] - f(X)).max()))
        sampled = permutation_shapley(f, X, behind, pairs=1, generator=generator)
        worst_sampled = max(worst_sampled, float(np.abs(sampled.base + sampled.values.sum(axis=1)[:, 0] - f(X)).max()))
    return (
        Criterion(
            "no attribution of two models differs by more than twice the largest difference of their worths, and no "
            "order that this settles is swapped",
            over == 0 and swapped == 0 and settled > 0,
            {"pairs of models": pairs, "violations": over, "settled orders": settled, "swapped": swapped},
        ),
        Criterion(
            "attributions add up to the prediction to 1e-10, exact and sampled",
            max(worst, worst_sampled) <= 1e-10,
            {"exact": worst, "sampled": worst_sampled},
        ),
    )


@dataclass(frozen=True, eq=False)
class _Function:
    """slope . x + jump where two features exceed their cuts."""

    slope: np.ndarray
    places: np.ndarray
    cuts: np.ndarray
    jump: float

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return X @ self.slope + self.jump * (X[:, self.places] > self.cuts).all(axis=1)


def _function(features: int, generator: np.random.Generator) -> _Function:
    slope = generator.normal(size=features) * generator.choice([0.1, 1, 5], size=features)
    return _Function(slope, generator.permutation(features)[:2], generator.normal(size=2), float(generator.normal()))


def _near(f: _Function, generator: np.random.Generator) -> _Function:
    return _Function(f.slope + 0.05 * generator.normal(size=len(f.slope)), f.places, f.cuts, f.jump)


def _mean(values: list[float] | Float[np.ndarray, " n"]) -> Estimate:
    together = np.asarray(values, dtype=np.float64)
    return paired_difference(np.zeros(len(together)), together)


def _bars(splits: list[Split]) -> Bars:
    """Mean importance of every factor over references and splits."""
    from sklearn.datasets import load_diabetes

    shares = np.stack([split.report.importances.mean(axis=0) for split in splits])
    order = np.argsort(-shares.mean(axis=0))
    names = load_diabetes().feature_names
    return Bars(
        "What the references agree on",
        "share of importance",
        tuple(names[index] for index in order),
        tuple(_mean(shares[:, index]) for index in order),
        "Diabetes; mean over four references, intervals over splits.",
    )
