"""Stable laws: agreement with scipy, density against distribution, samples, and indices that cannot be had."""

import numpy as np
import pytest
from scipy import integrate, stats

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.attack.stable import SymmetricStable

POINTS = np.array([-20.0, -3.0, -0.5, 0.0, 0.01, 0.3, 1.0, 2.0, 5.0])


@pytest.mark.parametrize("alpha", [0.5, 0.9, 1.1, 1.5])
def test_agrees_with_scipy(alpha):
    law = SymmetricStable(alpha)
    np.testing.assert_allclose(law.cdf(POINTS), stats.levy_stable.cdf(POINTS, alpha, 0), atol=1e-8)
    np.testing.assert_allclose(law.pdf(POINTS), stats.levy_stable.pdf(POINTS, alpha, 0), atol=1e-8)


def test_closed_forms():
    np.testing.assert_allclose(SymmetricStable(2).cdf(POINTS), stats.norm.cdf(POINTS))
    np.testing.assert_allclose(SymmetricStable(2).pdf(POINTS), stats.norm.pdf(POINTS))
    np.testing.assert_allclose(SymmetricStable(1).cdf(POINTS), stats.cauchy.cdf(POINTS))
    np.testing.assert_allclose(SymmetricStable(1).pdf(POINTS), stats.cauchy.pdf(POINTS))


@pytest.mark.parametrize("alpha", [0.3, 0.95, 1.05, 1.8, 1.99])
def test_the_density_integrates_to_the_distribution(alpha):
    law = SymmetricStable(alpha)
    for low, high in [(0.1, 0.7), (0.7, 3.0), (3.0, 30.0)]:
        area, _ = integrate.quad(law.pdf, low, high, epsabs=1e-11, epsrel=1e-10)
        assert area == pytest.approx(float(law.cdf(high) - law.cdf(low)), abs=1e-9)


@pytest.mark.parametrize("alpha", [0.6, 1.0, 1.5, 2.0])
def test_samples_and_every_projection_of_isotropic_ones_follow_the_law(alpha):
    law, generator, n = SymmetricStable(alpha), np.random.default_rng(0), 20_000
    direction = np.array([0.6, 0.0, -0.8])
    for drawn in (law.sample((n,), generator), law.sample_isotropic(n, 3, generator) @ direction):
        quantiles = np.array([-3.0, -1.0, 0.0, 0.5, 2.0])
        share = (drawn[:, None] <= quantiles).mean(0)
        expected = law.cdf(quantiles)
        assert (np.abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / n)).all()


def test_bad_indices_are_told():
    for alpha in (0.0, -1.0, 2.1):
        with pytest.raises(InputError, match="index"):
            SymmetricStable(alpha)
    for alpha in (1.01, 0.97, 1.995, 0.05):
        with pytest.raises(UnsupportedError, match="not accurate"):
            SymmetricStable(alpha)
