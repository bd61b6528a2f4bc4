"""Confident learning agrees with its definition, with cleanlab to the example, and with what people verified."""

import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from holdfast.core.errors import InputError
from holdfast.labels.confident import Rule, confident_joint, find_label_issues, joint_estimate, noise_rates
from holdfast.labels.quality import Score, checked, class_thresholds, label_quality

CLEANLAB_RULES = {
    "predicted-neq-given": "predicted_neq_given",
    "confident-joint": "confident_learning",
    "prune-by-class": "prune_by_class",
    "prune-by-noise-rate": "prune_by_noise_rate",
    "both": "both",
}


def noisy(seed: int, examples: int = 600, classes: int = 5, flipped: float = 0.2, signal: float = 3.0):
    """Labels of which a share is flipped, true labels, and probabilities of a model that knows something."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, examples)
    labels = np.where(rng.random(examples) < flipped, rng.integers(0, classes, examples), true)
    logits = rng.normal(size=(examples, classes))
    logits[np.arange(examples), true] += signal
    probabilities = np.exp(logits)
    return labels, true, probabilities / probabilities.sum(1, keepdims=True)


def by_definition(labels, probabilities):
    """Thresholds and confident joint, example by example, as the paper writes them."""
    classes = probabilities.shape[1]
    thresholds = np.array([probabilities[labels == j, j].mean() for j in range(classes)])
    counts = np.zeros((classes, classes))
    for label, row in zip(labels, probabilities, strict=True):
        confident = [j for j in range(classes) if row[j] >= thresholds[j]]
        if confident:
            counts[label, max(confident, key=lambda j: row[j])] += 1
    return thresholds, counts


@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from([0.5, 3.0]))
def test_paper_convention_is_the_papers_definition(seed, classes, signal):
    labels, _, probabilities = noisy(seed, 120, classes, signal=signal)
    if len(np.unique(labels)) < classes:
        return
    thresholds, counts = by_definition(labels, probabilities)
    issues = find_label_issues(labels, probabilities, "confident-joint", convention="paper")
    np.testing.assert_allclose(issues.thresholds, thresholds, rtol=1e-12)
    np.testing.assert_array_equal(confident_joint(labels, probabilities, calibrate=False, convention="paper"), counts)
    assert np.count_nonzero(issues.mask) == counts.sum() - np.trace(counts)
    np.testing.assert_allclose(issues.joint.sum(1), np.bincount(labels, minlength=classes) / len(labels), atol=1e-12)


@given(
    st.integers(0, 10_000),
    st.integers(2, 8),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
    st.sampled_from([0.0, 1.0, 4.0]),
)
def test_same_issues_in_the_same_order_as_cleanlab(seed, classes, dtype, coarse, signal):
    filters = pytest.importorskip("cleanlab.filter")
    labels, _, probabilities = noisy(seed, 300, classes, signal=signal)
    if coarse:  # many exact ties, as forests and nearest neighbours give them
        probabilities = np.round(probabilities, 1)
    probabilities = probabilities.astype(dtype)
    for rule, theirs in CLEANLAB_RULES.items():
        expected = filters.find_label_issues(
            labels, probabilities, filter_by=theirs, return_indices_ranked_by="self_confidence", n_jobs=1
        )
        np.testing.assert_array_equal(find_label_issues(labels, probabilities, rule).order, expected)


@pytest.mark.parametrize("adjusted", [False, True])
@pytest.mark.parametrize("score", get_args(Score))
def test_joint_and_quality_agree_with_cleanlab(score, adjusted):
    count = pytest.importorskip("cleanlab.count")
    from cleanlab.rank import get_label_quality_scores

    labels, _, probabilities = noisy(1, 2000, 7)
    np.testing.assert_array_equal(
        confident_joint(labels, probabilities), count.compute_confident_joint(labels, probabilities)
    )
    np.testing.assert_allclose(
        joint_estimate(labels, probabilities), count.estimate_joint(labels, probabilities), atol=1e-15
    )
    if adjusted and score == "confidence-weighted-entropy":
        pytest.skip("cleanlab does not offer the adjusted entropy")
    name = score.replace("-", "_").replace("normalised", "normalized")
    theirs = get_label_quality_scores(labels, probabilities, method=name, adjust_pred_probs=adjusted)
    np.testing.assert_allclose(label_quality(labels, probabilities, score, adjusted=adjusted), theirs, rtol=1e-12)


def test_a_perfect_model_finds_exactly_the_flipped_labels():
    labels, true, _ = noisy(0, flipped=0.3)
    perfect = np.eye(5)[true] * 0.96 + 0.008
    for rule in get_args(Rule):
        np.testing.assert_array_equal(find_label_issues(labels, perfect, rule).mask, labels != true)
    rates = noise_rates(joint_estimate(labels, perfect))
    np.testing.assert_allclose(rates.prior, np.bincount(true) / len(true), atol=2e-2)
    np.testing.assert_allclose(rates.noise.sum(0), 1)
    np.testing.assert_allclose(rates.inverse.sum(0), 1)


def test_the_joint_recovers_the_share_of_flipped_labels():
    labels, true, probabilities = noisy(3, 20_000, 10, flipped=0.1, signal=8.0)
    issues = find_label_issues(labels, probabilities)
    assert abs(issues.estimated_share - np.mean(labels != true)) < 0.01


def test_relabelling_the_classes_changes_nothing():
    labels, _, probabilities = noisy(5)
    names = np.random.default_rng(0).permutation(5)
    renamed = np.empty_like(probabilities)
    renamed[:, names] = probabilities
    for rule in get_args(Rule):
        for convention in ("paper", "cleanlab"):
            np.testing.assert_array_equal(
                find_label_issues(labels, probabilities, rule, convention=convention).mask,
                find_label_issues(names[labels], renamed, rule, convention=convention).mask,
            )


def test_issues_are_ranked_by_quality_and_never_the_most_probable_class():
    labels, _, probabilities = noisy(6, signal=1.0)
    issues = find_label_issues(labels, probabilities, "prune-by-class", "normalised-margin")
    assert np.all(np.diff(issues.quality[issues.order]) >= 0)
    assert np.all(issues.suggested[issues.mask] != labels[issues.mask])
    assert issues.share == issues.mask.mean()


def test_layout_and_integer_type_do_not_matter():
    labels, _, probabilities = noisy(7)
    expected = find_label_issues(labels, probabilities).order
    np.testing.assert_array_equal(
        find_label_issues(labels.astype(np.uint16), np.asfortranarray(probabilities)).order, expected
    )


def test_a_class_nobody_was_given_has_an_unreachable_threshold():
    labels, _, probabilities = noisy(8)
    labels[labels == 4] = 0
    issues = find_label_issues(labels, probabilities)
    assert issues.thresholds[4] > 1
    assert not np.any(issues.joint[4, :4])


def test_thresholds_are_class_means():
    confidence = np.array([0.2, 0.4, 0.9, 0.7])
    np.testing.assert_allclose(class_thresholds(np.array([0, 0, 1, 1]), confidence, 3), [0.3, 0.8, 2.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y, p: (y, p[:, :1]), "classes >= 2"),
        (lambda y, p: (y[:0], p[:0]), "empty"),
        (lambda y, p: (y + 3, p), "relabel the classes"),
        (lambda y, p: (y, np.log(p)), "softmax"),
        (lambda y, p: (y, np.where(np.arange(len(p))[:, None] == 9, np.nan, p)), "NaN"),
    ],
)
def test_bad_input_is_refused_with_advice(change, message):
    labels, _, probabilities = noisy(9)
    with pytest.raises(InputError, match=message):
        find_label_issues(*change(labels, probabilities))


def test_one_label_a_row():
    labels, _, probabilities = noisy(9)
    with pytest.raises(InputError, match="one label a row"):
        checked(labels[:-1], probabilities)


def test_a_joint_that_is_not_one_is_refused():
    with pytest.raises(InputError, match="sum to one"):
        noise_rates(np.eye(3))


def verified_errors(name: str):
    for folder in (os.environ.get("HOLDFAST_DATA"), Path(__file__).parents[3] / "shared" / "data"):
        if folder and (path := Path(folder) / "label-errors" / f"{name}.npz").exists():
            return np.load(path)
    pytest.skip("the verified label errors are not on this machine (set HOLDFAST_DATA)")


@pytest.mark.parametrize(("name", "auroc", "enrichment"), [("mnist", 0.998, 100), ("cifar10", 0.988, 30)])
def test_people_confirm_what_confident_learning_flags(name, auroc, enrichment):
    data = verified_errors(name)
    labels, probabilities = data["given"].astype(np.int64), data["pred_probs"]
    wrong = np.zeros(len(labels), dtype=bool)
    wrong[data["cand_index"][data["cand_is_error"]]] = True
    assert roc_auc_score(wrong, -label_quality(labels, probabilities)) > auroc - 5e-4
    assert wrong[find_label_issues(labels, probabilities, "predicted-neq-given").mask].sum() == wrong.sum()
    flagged = find_label_issues(labels, probabilities, "both").mask
    assert wrong[flagged].mean() > enrichment * wrong.mean()
