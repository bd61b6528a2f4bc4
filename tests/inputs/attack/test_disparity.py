"""Two-class mixtures: closed forms against known answers and numerical minima; disparity of any model's predictions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.attack.disparity import DisparityReport, LinearRule, TwoClassMixture, class_disparity, dual_norm
from holdfast.threats.balls import L1, L2, Linf

THETA = np.array([1.0, -0.8, 0.5, 0.3, 0.1])


def risk(mixture, threat, rule):
    major, minor = mixture.accuracies(rule, threat)
    return (mixture.ratio * (1 - major) + 1 - minor) / (1 + mixture.ratio)


def test_gaussian_rules_are_those_of_the_formula():
    mixture = TwoClassMixture(THETA, 0.7, 4.0)
    standard, robust = mixture.standard_optimum(), mixture.robust_optimum(Linf(0.2))
    size = np.linalg.norm(THETA)
    np.testing.assert_allclose(standard.w, THETA / size)
    assert standard.b == pytest.approx(0.49 * math.log(4) / (2 * size))
    soft = np.sign(THETA) * np.maximum(np.abs(THETA) - 0.2, 0)
    np.testing.assert_allclose(robust.w, soft / np.linalg.norm(soft))
    assert robust.b == pytest.approx(0.49 * math.log(4) / (2 * np.linalg.norm(soft)))
    assert robust.margin == pytest.approx(robust.w @ THETA - 0.2 * np.abs(robust.w).sum())
    major, minor = mixture.accuracies(standard)
    assert major == pytest.approx(stats.norm.cdf((size + standard.b) / 0.7))
    assert minor == pytest.approx(stats.norm.cdf((size - standard.b) / 0.7))


def test_theta_may_be_a_list():
    listed, array = TwoClassMixture([1, 0.5], 1.0, 3.0), TwoClassMixture(np.array([1, 0.5]), 1.0, 3.0)
    assert listed.robust_optimum(Linf(0.2)).b == array.robust_optimum(Linf(0.2)).b
    assert listed.disparity_gap(Linf(0.2)) == array.disparity_gap(Linf(0.2))


def test_cauchy_bias_is_the_root_of_the_quadratic():
    mixture = TwoClassMixture(np.array([2.0]), 1.0, 2.0, alpha=1.0)
    expected = min(np.roots([1.0, -2 * 2.0 * 3.0, 1 + 2.0**2]).real)
    assert mixture.standard_optimum().b == pytest.approx(expected)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 1.8])
def test_the_bias_is_the_least_risk_of_all(alpha):
    for ratio in (1.2, 2.0, 5.0, 30.0):
        mixture = TwoClassMixture(np.array([1.5]), 1.0, ratio, alpha=alpha)
        found = mixture.standard_optimum()
        grid = np.linspace(-1, 60, 611)
        risks = [risk(mixture, None, LinearRule(found.w, float(b), 0.0)) for b in grid]
        assert risk(mixture, None, found) <= min(*risks, 1 / (1 + ratio)) + 1e-12


def test_with_heavy_tails_a_rare_class_is_given_up():
    theta = np.array([1.5])
    assert TwoClassMixture(theta, 1.0, 50.0, alpha=1.0).standard_optimum().b == math.inf
    assert math.isfinite(TwoClassMixture(theta, 1.0, 50.0).standard_optimum().b)
    given_up = TwoClassMixture(theta, 1.0, 50.0, alpha=1.0)
    assert given_up.accuracies(given_up.standard_optimum()) == (1.0, 0.0)
    assert given_up.disparity_gap(L2(0.5)) == 0


@pytest.mark.parametrize(("alpha", "isotropic"), [(2.0, True), (1.0, True), (1.5, False), (1.0, False), (0.7, False)])
def test_no_direction_beats_the_closed_form(alpha, isotropic):
    mixture = TwoClassMixture(THETA, 0.6, 3.0, alpha, isotropic)
    threat = Linf(0.15)
    best = risk(mixture, threat, mixture.robust_optimum(threat))
    generator = np.random.default_rng(0)

    def objective(point):
        return risk(mixture, threat, LinearRule(point[:-1], float(point[-1]), 0.0))

    for _ in range(3):
        start = np.append(mixture.robust_optimum(threat).w + 0.2 * generator.normal(size=5), 0.3)
        assert optimize.minimize(objective, start, method="Nelder-Mead").fun >= best - 1e-9


@given(st.floats(1.0, 30.0), st.floats(0.05, 0.4))
def test_gaussian_disparity_never_shrinks(ratio, eps):
    mixture = TwoClassMixture(THETA, 0.7, ratio)
    assert mixture.disparity_gap(Linf(eps)) >= -1e-12
    assert abs(mixture.robust_optimum(Linf(eps)).b) >= abs(mixture.standard_optimum().b) - 1e-12
    if ratio > 1.01:
        later = TwoClassMixture(THETA, 0.7, 1.0).disparity_gap(Linf(eps))
        assert later == 0


def test_balanced_classes_lose_alike_under_linf_and_nothing_under_l2():
    mixture = TwoClassMixture(THETA, 0.7, 1.0)
    standard = mixture.accuracies(mixture.standard_optimum())
    linf, l2 = (mixture.accuracies(mixture.robust_optimum(threat)) for threat in (Linf(0.2), L2(0.4)))
    assert standard[0] == standard[1]
    assert linf[0] == linf[1] < standard[0]
    assert l2 == pytest.approx(standard)


def test_samples_have_the_accuracies():
    mixture = TwoClassMixture(THETA, 0.7, 3.0, 1.5, False)
    x, y = mixture.sample(40_000, np.random.default_rng(0))
    assert np.mean(y == 1) == pytest.approx(0.75, abs=0.01)
    rule = mixture.standard_optimum()
    for label, accuracy in zip((1, -1), mixture.accuracies(rule), strict=True):
        assert np.mean((label * (x @ rule.w + rule.b) > 0)[y == label]) == pytest.approx(accuracy, abs=0.02)


def test_dual_norms():
    w = np.array([3.0, -4.0])
    assert dual_norm(Linf(0.5), w) == pytest.approx(3.5)
    assert dual_norm(L2(0.5), w) == pytest.approx(2.5)
    assert dual_norm(L1(0.5), w) == pytest.approx(2.0)


def test_disparity_of_predictions():
    y = np.repeat([0, 1], 100)
    predictions, attacked = y.copy(), y.copy()
    predictions[100:120] = 0
    attacked[50:] = 1 - y[50:]
    report = class_disparity(predictions, y, attacked)
    assert [estimate.value for estimate in report.clean.estimates] == [1.0, 0.8]
    assert report.gap.value == pytest.approx(0.2)
    assert report.attacked_gap.value == pytest.approx(0.5)
    assert report.gap.low <= 0.2 <= report.gap.high
    halves = class_disparity(predictions, y, groups=np.tile(["a", "b"], 100))
    assert halves.attacked is None
    assert halves.attacked_gap is None
    assert halves.gap.value == 0
    same = DisparityReport.of(predictions == y, y, attacked == y)
    assert same == report


def test_bad_input_is_told():
    with pytest.raises(InputError, match="swap"):
        TwoClassMixture(THETA, 1.0, 0.5)
    with pytest.raises(InputError, match="index"):
        TwoClassMixture(THETA, 1.0, 2.0, alpha=2.5)
    with pytest.raises(InputError, match="theta"):
        TwoClassMixture(np.zeros(3), 1.0, 2.0)
    with pytest.raises(InputError, match="one number a feature"):
        TwoClassMixture([[1.0, 0.5]], 1.0, 2.0)
    with pytest.raises(InputError, match="smaller radius"):
        TwoClassMixture(THETA, 1.0, 2.0).robust_optimum(Linf(1.0))
    with pytest.raises(InputError, match="smaller radius"):
        TwoClassMixture(THETA, 1.0, 2.0).disparity_gap(L2(2.0))
    with pytest.raises(UnsupportedError, match="Linf"):
        TwoClassMixture(THETA, 1.0, 2.0, 1.5, False).robust_optimum(L2(0.2))
    with pytest.raises(InputError, match="lengths"):
        class_disparity(np.array([0, 1]), np.array([0]))
