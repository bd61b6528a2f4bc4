"""The component classifier says reasons that add up, and a radius that nothing inside it beats."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.attack.gradient import PGD
from holdfast.inputs.bounds.components import (
    ComponentClassifier,
    ComponentClassifierEstimator,
    MarginLoss,
    class_components,
    exponential_radius,
    rbf_certified_radius,
)
from holdfast.threats.balls import L1, L2, Linf

THREATS = {1: L1, 2: L2, math.inf: Linf}


def drawn(seed: int, kernel="exponential", norm=2, features=5, components=7, classes=3, **options):
    generator = torch_generator(seed, "tests", "components")
    centres = torch.randn(components, features, generator=generator, dtype=torch.float64)
    model = ComponentClassifier(centres, classes, kernel, norm, **options).eval()
    with torch.no_grad():
        model.reasoning.copy_(2 * torch.randn(model.reasoning.shape, generator=generator, dtype=torch.float64))
    return model, torch.randn(20, features, generator=generator, dtype=torch.float64)


def flips(model, x, radius, norm, seed=0, steps=10):
    """How many labels random points and gradient steps change within the radius of each."""
    generator, count = torch_generator(seed, "tests", "flips"), 0
    for point, size in zip(x, radius.tolist()):
        if not 0 < size < math.inf:
            continue
        start = point.expand(8, *point.shape)
        label = model(point[None]).argmax(1).expand(8)
        threat = THREATS[norm](size * (1 - 1e-9))
        reached = PGD(threat, steps=steps, loss="margin")(model, start, label, valid=None, generator=generator)
        count += int((model(reached).argmax(1) != label).sum())
    return count


@settings(max_examples=12)
@given(st.integers(0, 2**31), st.sampled_from(["exponential", "gaussian"]), st.sampled_from([1, 2, math.inf]))
def test_nothing_inside_the_radius_changes_the_label(seed, kernel, norm):
    model, x = drawn(seed, kernel, norm, widths=1.5)
    with torch.no_grad():
        assert flips(model, x[:4], model.certified_radius(x[:4]), norm, seed) == 0


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_the_attack_would_notice_a_radius_five_times_too_large(norm):
    model, x = drawn(3, norm=norm)
    assert flips(model, x, 5 * model.certified_radius(x), norm) > 0


def test_the_radius_is_attained_on_a_line_through_two_components():
    # One dimension, equal weights: moving towards the rival is the worst case that the triangle inequality allows.
    weights = torch.eye(2, dtype=torch.float64)
    centres = torch.tensor([[0.0], [4.0]], dtype=torch.float64)
    for kernel in ("exponential", "gaussian"):
        radius = rbf_certified_radius(weights, centres, 1.3, torch.tensor([[0.5]]), kernel=kernel)
        assert float(radius) == pytest.approx(1.5, abs=1e-12)
        assert float(radius) < 1.5


@settings(max_examples=200)
@given(*(st.floats(1e-6, 1.0) for _ in range(2)), st.floats(-1.0, 1.0), st.floats(0.1, 10.0))
def test_the_closed_form_is_the_root_of_the_margin(gain, loss, offset, width):
    tensors = [torch.tensor(value, dtype=torch.float64) for value in (gain, loss, offset)]
    found = float(exponential_radius(*tensors, width))

    def margin(radius):
        return gain * math.exp(-radius / width) - loss * math.exp(radius / width) + offset

    if margin(0.0) <= 0:
        assert found == pytest.approx(0.0, abs=1e-12)
    else:
        assert found == pytest.approx(brentq(margin, 0.0, 100 * width, xtol=1e-13), abs=1e-8)


def test_the_closed_form_without_opposition():
    gain, zero = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    assert exponential_radius(gain, zero, zero, 1.0) == math.inf
    offset = torch.tensor(-0.2, dtype=torch.float64)
    assert float(exponential_radius(gain, zero, offset, 2.0)) == pytest.approx(2 * math.log(2.5), abs=1e-12)
    assert float(exponential_radius(zero, zero, offset, 2.0)) == 0.0


def test_far_from_the_components_the_certificate_is_the_closed_form():
    model, x = drawn(1, widths=2.0)
    x = 6 * x
    positive, negative = model.reasons()
    detected, evidence = model.detect(x), model(x)
    best = evidence.argmax(1)
    q = (positive - negative)[best][:, None] - (positive - negative)
    offset = negative.sum(1)[best][:, None] - negative.sum(1)
    parts = (q.clamp(min=0) * detected[:, None]).sum(2), ((-q).clamp(min=0) * detected[:, None]).sum(2)
    closed = exponential_radius(*parts, offset, 2.0).scatter(1, best[:, None], math.inf).amin(1)
    found = model.certified_radius(x)
    reached = torch.cdist(x, model.components).amin(1) < found
    assert not reached.all()
    torch.testing.assert_close(found[~reached], closed[~reached].detach(), atol=1e-8, rtol=0)
    assert (found[~reached] <= closed[~reached]).all()
    assert (found >= closed * (1 - 1e-9)).all()


def test_a_class_that_nothing_opposes_is_certified_everywhere():
    radius = rbf_certified_radius(
        torch.tensor([[1.0, 0.5], [0.5, 0.5]]),
        torch.zeros(2, 3),
        1.0,
        torch.ones(1, 3),
        bias=torch.tensor([0.2, 0.1]),
    )
    assert radius.item() == math.inf


def test_a_tie_and_a_wrong_label_have_radius_zero():
    centres = torch.tensor([[-1.0], [1.0]])
    assert rbf_certified_radius(torch.eye(2), centres, 1.0, torch.zeros(1, 1)).item() == 0
    x = torch.tensor([[-0.5], [0.5]])
    radius = rbf_certified_radius(torch.eye(2), centres, 1.0, x, y=torch.tensor([0, 0]))
    assert radius[0] > 0
    assert radius[1] == 0


def test_unequal_widths_are_certified_and_equal_ones_agree_with_one():
    model, x = drawn(5, widths=0.8)
    torch.testing.assert_close(
        drawn(5, widths=torch.full((7,), 0.8, dtype=torch.float64))[0].certified_radius(x), model.certified_radius(x)
    )
    generator = torch_generator(0, "widths")
    uneven, x = drawn(5, widths=0.3 + torch.rand(7, generator=generator, dtype=torch.float64))
    assert flips(uneven, x, uneven.certified_radius(x), 2) == 0


def test_rounding_is_charged_where_a_margin_is_smaller_than_it():
    # Weights of 1e8 cancel down to a margin of 1e-9: less than float64 can promise, so nothing is promised.
    centres = torch.tensor([[-0.3], [0.3]], dtype=torch.float64)
    x, bias = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([1e-9, 0.0], dtype=torch.float64)
    weights = torch.eye(2, dtype=torch.float64)
    assert 0 < rbf_certified_radius(weights, centres, 1.0, x, bias=bias).item() < 1e-9
    assert rbf_certified_radius(1e8 * weights, centres, 1.0, x, bias=bias).item() == 0


@given(st.integers(0, 2**31))
def test_reasons_are_probabilities_and_explanations_add_up(seed):
    model, x = drawn(seed, "gaussian")
    positive, negative = model.reasons()
    torch.testing.assert_close((positive + negative).sum(1), torch.ones(3, dtype=torch.float64))
    evidence = model(x)
    explanation = model.explain(x)
    assert (explanation.positive >= 0).all()
    assert (explanation.negative >= 0).all()
    torch.testing.assert_close(explanation.evidence, evidence, atol=1e-12, rtol=0)
    assert ((evidence >= 0) & (evidence <= 1)).all()


def test_the_radius_in_another_norm_is_sound():
    model, x = drawn(2)
    own, linf, l1 = (model.certified_radius(x, norm=norm) for norm in (None, math.inf, 1))
    torch.testing.assert_close(linf, own / 5**0.5)
    torch.testing.assert_close(l1, own)
    assert flips(model, x, linf, math.inf) == 0
    assert flips(model, x, l1, 1) == 0


def backbone():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)).double().eval()


def test_a_radius_through_a_backbone_is_in_input_units():
    deep, _ = drawn(4, backbone=backbone(), widths=2.0)
    x = torch.randn(20, 6, generator=torch_generator(1), dtype=torch.float64)
    radius = deep.certified_radius(x)
    assert (radius > 0).any()
    assert flips(deep, x, radius, 2) == 0
    shallow, _ = drawn(4, widths=2.0)
    in_features = shallow.certified_radius(deep.features(x).detach())
    told, _ = drawn(4, backbone=deep.backbone, lipschitz=2.0, widths=2.0)
    torch.testing.assert_close(told.certified_radius(x), in_features / 2)


def test_patches_are_detected_and_not_certified():
    centres = torch.eye(3, dtype=torch.float64)
    model = ComponentClassifier(centres, 3, "patch-softmax", widths=0.05, owners=torch.arange(3))
    x = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    x[0, 1, 1, 0] = 1.0  # one position shows the second component; the others are at equal distance from all
    detected = model.detect(x).detach()
    assert detected.shape == (1, 3)
    assert detected[0, 1] == pytest.approx(1.0, abs=1e-6)
    assert model(x).argmax() == 1
    with pytest.raises(UnsupportedError, match="patch"):
        model.certified_radius(x)


def test_the_margin_loss_by_hand():
    evidence = torch.tensor([[0.7, 0.5, 0.1], [0.2, 0.3, 0.9]])
    loss = MarginLoss(0.3)(evidence, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx((0.1 + 0.9) / 2, abs=1e-6)


def test_components_of_a_small_class_are_its_examples():
    X = np.array([[0.0], [1.0], [5.0], [5.0], [7.0]])
    centres, owners = class_components(X, np.array([0, 0, 1, 1, 1]), 3, 2, 0)
    np.testing.assert_array_equal(np.sort(centres[owners == 0, 0]), [0, 1])
    np.testing.assert_array_equal(np.sort(centres[owners == 1, 0]), [5, 7])


def test_is_a_scikit_learn_estimator():
    check_estimator(ComponentClassifierEstimator(epochs=5))


def test_the_estimator_learns_certifies_and_explains():
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    names = np.array(["malignant", "benign"])[y]
    estimator = ComponentClassifierEstimator(epochs=15, random_state=0).fit(X[::2], names[::2])
    assert estimator.score(X[1::2], names[1::2]) > 0.93
    radius = estimator.certified_radius(X[1::2], names[1::2])
    right = estimator.predict(X[1::2]) == names[1::2]
    assert (radius[right] > 0).all()
    assert (radius[~right] == 0).all()
    np.testing.assert_allclose(estimator.explain(X).evidence.numpy(), estimator.evidence(X), atol=1e-12)
    again = ComponentClassifierEstimator(epochs=15, random_state=0).fit(X[::2], names[::2])
    np.testing.assert_array_equal(again.evidence(X), estimator.evidence(X))


def test_input_errors():
    centres = torch.zeros(2, 3)
    with pytest.raises(InputError, match="2 components for 3 classes"):
        ComponentClassifier(centres, 3)
    for width in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="widths"):
            ComponentClassifier(centres, 2, widths=width)
    with pytest.raises(InputError, match="norm"):
        ComponentClassifier(centres, 2, norm=3)
    with pytest.raises(InputError, match="kernel"):
        ComponentClassifierEstimator(kernel="cubic").fit(np.eye(4), np.array([0, 0, 1, 1]))
    with pytest.raises(InputError, match="finite"):
        ComponentClassifier(torch.full((2, 3), math.nan), 2)
    model = ComponentClassifier(centres, 2)
    with pytest.raises(InputError, match="finite"):
        model.certified_radius(torch.tensor([[0.0, math.nan, 0.0]]))
    with pytest.raises(InputError, match="labels"):
        model.certified_radius(torch.zeros(1, 3), torch.tensor([2]))
    with pytest.raises(InputError, match="features"):
        model(torch.zeros(1, 4))
    with pytest.raises(InputError, match="owns no component"):
        ComponentClassifier(centres, 2, owners=torch.tensor([0, 0]))
    with pytest.raises(InputError, match="no example"):
        class_components(np.zeros((2, 1)), np.array([0, 0]), 1, 2)
    with pytest.raises(InputError, match="lipschitz="):
        ComponentClassifier(torch.zeros(2, 5), 2, norm=1, backbone=backbone()).certified_radius(torch.zeros(1, 6))
    with pytest.raises(InputError, match="margin"):
        MarginLoss(0.0)
