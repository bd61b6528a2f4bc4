"""The power law of adversarial error, on models where error is known, and the mean-field density of gaps."""

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.attack.gradient import FGSM
from holdfast.inputs.attack.scaling import (
    EntropyRegularized,
    adversarial_error_curve,
    fit_power_law,
    gap_density,
    logit_gaps,
    predict_small_radius_error,
)
from holdfast.threats.balls import L2, Linf

RADII = [0.01, 0.02, 0.04, 0.08, 0.16]


def linear(features=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(features, classes, dtype=torch.float64).eval()
    model.weight.data = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    model.bias.data.zero_()
    return model


def stream(seed=0):
    return np.random.default_rng(seed)


def test_two_linear_classes_have_exponent_one_and_a_known_prefactor():
    """x uniform on [0, 1], classes split at 1/2: error at radius r is 2 r."""
    model = nn.Linear(1, 2, dtype=torch.float64).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.bias.copy_(torch.tensor([0.5, -0.5]))
    x = torch.linspace(0, 1, 4000, dtype=torch.float64)[:, None]
    radii = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
    curve = adversarial_error_curve(model, x, lambda r: FGSM(Linf(r)), radii, generator=stream(), resamples=200)
    np.testing.assert_allclose(curve.error, 2 * np.array(radii), rtol=0.1)
    assert curve.exponent.value == pytest.approx(1.0, abs=0.02)
    assert curve.prefactor == pytest.approx(2.0, rel=0.05)
    assert curve.exponent.low < 1.0 < curve.exponent.high


@pytest.mark.parametrize("exponent", [0.7, 1.0, 2.0])
def test_the_fit_recovers_the_law_it_is_given(exponent):
    distance = stream(1).random(20_000) ** (1 / exponent)  # P(distance < r) = r^exponent
    radii = np.geomspace(0.05, 0.3, 6) ** (1 / exponent)
    curve = fit_power_law(radii, distance[None] < radii[:, None], generator=stream(), resamples=200)
    assert curve.exponent.low <= exponent <= curve.exponent.high
    assert curve.exponent.width < 0.15 * exponent


def test_saturated_and_empty_points_stay_out_of_the_fit():
    distance = np.linspace(0, 1, 10_001)[1:]
    radii = np.array([1e-5, 0.01, 0.02, 0.05, 0.1, 0.9])
    curve = fit_power_law(radii, distance[None] < radii[:, None], generator=stream(), resamples=50)
    assert curve.fitted.tolist() == [False, True, True, True, True, False]
    assert curve.exponent.value == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("threat", "order"), [(Linf(1.0), 1), (L2(1.0), 2)])
def test_the_prediction_is_exact_for_linear_models(threat, order):
    model = linear()
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits, weight = model(x).detach(), model.weight.detach()
    top = logits.argmax(1)
    distance = torch.full((300,), torch.inf, dtype=torch.float64)
    for other in range(3):
        gap = logits.gather(1, top[:, None])[:, 0] - logits[:, other]
        size = torch.linalg.vector_norm(weight[top] - weight[other], ord=order, dim=1)
        distance = torch.where(top == other, distance, torch.minimum(distance, gap / size))
    wanted = [(distance < radius).double().mean().item() for radius in RADII]
    np.testing.assert_allclose(predict_small_radius_error(model, x, RADII, threat), wanted)


def test_the_valid_range_takes_away_what_steps_cannot_use():
    model = linear()
    x = torch.rand(300, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).round()  # all at a border
    free = predict_small_radius_error(model, x, RADII, Linf(1.0))
    cut = predict_small_radius_error(model, x, RADII, Linf(1.0), (0.0, 1.0))
    assert (cut <= free).all()
    assert cut[-1] < free[-1]


def test_gaps_are_sorted_differences():
    gaps = logit_gaps(torch.tensor([[1.0, 5.0, 3.0], [0.0, 0.0, -2.0]]))
    assert gaps.tolist() == [[2.0, 4.0], [0.0, 2.0]]
    with pytest.raises(InputError, match="two logits"):
        logit_gaps(torch.zeros(3, 1))


@pytest.mark.parametrize(("K", "j"), [(2, 2), (5, 2), (10, 3), (10, 10)])
def test_densities_integrate_to_one_and_give_the_mean_gap(K, j):
    d = np.linspace(0, 15, 1501)
    density = gap_density(K, j, d)
    assert integrate.simpson(density, x=d) == pytest.approx(1, abs=1e-6)
    draws = np.sort(stream(K + j).standard_normal((100_000, K)), axis=1)
    gaps = draws[:, -1] - draws[:, -j]
    assert integrate.simpson(d * density, x=d) == pytest.approx(gaps.mean(), abs=4 * gaps.std() / 316)


def test_the_gap_of_two_logits_is_half_normal_and_scales():
    d = np.linspace(0, 4, 9)
    np.testing.assert_allclose(gap_density(2, 2, d), np.exp(-(d**2) / 4) / np.sqrt(np.pi), rtol=1e-8)
    np.testing.assert_allclose(gap_density(6, 3, d, 2.0), gap_density(6, 3, d / 2) / 2, rtol=1e-9)


@pytest.mark.parametrize("j", [2, 3, 4])
def test_near_zero_the_density_grows_as_a_power(j):
    d = np.array([1e-3, 2e-3])
    low, high = gap_density(10, j, d)
    assert np.log2(high / low) == pytest.approx(j - 2, abs=0.01)


def test_the_entropy_penalty_at_its_ends():
    target = torch.tensor([0, 1])
    certain, blind = torch.tensor([[50.0, 0], [0, 50.0]]), torch.zeros(2, 2)
    base = nn.CrossEntropyLoss()
    assert float(EntropyRegularized(base, 1.0)(certain, target)) == pytest.approx(0, abs=1e-6)
    assert float(EntropyRegularized(base, 0.5)(blind, target)) == pytest.approx(1.5 * np.log(2), rel=1e-6)
    torch.testing.assert_close(EntropyRegularized(base, 0.0)(blind + certain / 9, target), base(certain / 9, target))


def test_bad_input_is_told():
    model, x = linear(), torch.zeros(4, 5, dtype=torch.float64)
    with pytest.raises(InputError, match="increasing"):
        adversarial_error_curve(model, x, lambda r: FGSM(Linf(r)), [0.1, 0.05, 0.2, 0.3], generator=stream())
    with pytest.raises(InputError, match="at least 4 radii"):
        fit_power_law(np.geomspace(0.1, 1, 5), np.ones((5, 10), bool), generator=stream())
    with pytest.raises(InputError, match="2 <= j <= K"):
        gap_density(3, 4, np.zeros(1))
    with pytest.raises(InputError, match="at least 0"):
        EntropyRegularized(nn.CrossEntropyLoss(), -1.0)
