"""Tweedie's formula against conjugate posteriors and sampled noise; the learnt version against the exact one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.noise.networks import ConvScore
from holdfast.noise.tweedie import Gamma, Gaussian, Noise2Score, Poisson, mean_total_variation, tweedie


@given(st.floats(0.1, 3), st.floats(0.1, 3), st.floats(-2, 2))
def test_gaussian_formula_is_the_posterior_mean(prior_variance, sigma, mean):
    y = torch.linspace(-4, 4, 21, dtype=torch.float64)
    total = prior_variance + sigma**2
    posterior = (prior_variance * y + sigma**2 * mean) / total
    torch.testing.assert_close(tweedie(y, lambda t: -(t - mean) / total, Gaussian(sigma)), posterior)


@given(st.floats(0.5, 5), st.floats(0.1, 3), st.floats(1.5, 20))
def test_gamma_formula_is_the_harmonic_posterior_mean(a, b, k):
    y = torch.linspace(0.05, 5, 21, dtype=torch.float64)
    family = Gamma(k, largest_ratio=1e6)
    exact = (b + k * y) / (a + k)
    torch.testing.assert_close(tweedie(y, (k - 1) / y - k * (a + k) / (b + k * y), family), exact)


@given(st.floats(0.5, 5), st.floats(0.1, 3), st.floats(0.01, 2))
def test_poisson_formula_is_the_geometric_posterior_mean(a, rate, scale):
    counts = torch.arange(30, dtype=torch.float64)
    exact = scale * (torch.digamma(counts + a) - np.log(1 + rate)).exp()

    def score(c):
        return torch.digamma(c + a) - torch.digamma(c + 1) - np.log(1 + rate)

    torch.testing.assert_close(tweedie(scale * counts, score, Poisson(scale, digamma=True)), exact)
    short = tweedie(scale * counts, score, Poisson(scale))
    assert torch.all(short <= exact * (1 + 1e-12))
    assert torch.all(exact / short - 1 <= 1 / (24 * (counts + 0.5) ** 2) + 1e-9)


@pytest.mark.parametrize(
    ("family", "variance"), [(Gaussian(0.3), 0.09), (Poisson(0.2), 0.2 * 2.0), (Gamma(5.0), 2.0**2 / 5)]
)
def test_noise_has_the_mean_and_variance_of_its_family(family, variance):
    x = torch.full((200_000,), 2.0)
    y = family.sample(x, torch_generator(0))
    family.check(y)
    assert abs(y.mean() - 2) < 5 * (variance / len(x)) ** 0.5
    assert abs(y.var() / variance - 1) < 0.05
    assert torch.equal(y, family.sample(x, torch_generator(0)))


def test_clamped_denominators_are_counted():
    family = Gamma(10.0)
    y, score = torch.ones(4), torch.tensor([0.0, 8.5, 9.0, 20.0])
    assert family.clamped(y, score) == 0.75
    torch.testing.assert_close(family.estimate(y, score), torch.tensor([10 / 9, 10.0, 10.0, 10.0]))


def test_a_learnt_score_denoises_without_clean_data():
    generator = torch_generator(1)
    rows = torch.linspace(0, 3, 12)
    phase = torch.rand(400, 1, 1, 1, generator=generator) * 6
    clean = 0.5 + 0.5 * torch.sin(rows[:, None] + 2 * rows[None] + phase)
    family = Gaussian(0.4)
    noisy = family.sample(clean, generator)
    model = Noise2Score(ConvScore(width=16, generator=generator), family, steps=250, lr=2e-3).fit(noisy, generator)
    before, after = ((part - clean).square().mean() for part in (noisy, model.transform(noisy)))
    assert after < 0.5 * before
    curve = model.estimate_level(noisy[:50], [Gaussian(level) for level in (0.05, 0.4, 1.2)])
    assert curve.best == Gaussian(0.4)
    assert len(curve.criterion) == 3
    with pytest.raises(InputError, match="level is not known"):
        Noise2Score(model.net).transform(noisy)


def test_total_variation_of_a_ramp_is_its_slope():
    assert mean_total_variation(torch.arange(5.0).expand(3, 1, 4, 5)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Gaussian(0.0),
        lambda: Poisson(-1.0),
        lambda: Gamma(1.0),
        lambda: Gamma(2.0, largest_ratio=1.0),
        lambda: tweedie(torch.tensor([float("nan")]), torch.zeros(1), Gaussian(1.0)),
        lambda: tweedie(torch.tensor([-1.0]), torch.zeros(1), Poisson(1.0)),
        lambda: tweedie(torch.tensor([-1.0]), torch.zeros(1), Gamma(2.0)),
        lambda: tweedie(torch.zeros(2), lambda y: torch.zeros(3), Gaussian(1.0)),
        lambda: Poisson(1.0).sample(torch.tensor([-1.0])),
        lambda: ConvScore(depth=1),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InputError):
        call()


def test_counts_that_are_not_whole_are_doubted():
    with pytest.warns(UserWarning, match="whole multiples"):
        tweedie(torch.rand(100), torch.zeros(100), Poisson(0.1))
