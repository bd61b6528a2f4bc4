"""The expected score is that of the exact model, an input has one score, and attacked digits stand out."""

import numpy as np
import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.detection import DeepKernel, ExpectedPerturbationScore
from holdfast.noise.schedule import VP, per_example

MEAN, SPREAD = 0.1, 0.2


def exact(x, t):
    """Score of N(MEAN, SPREAD² I) along the path."""
    path = VP()
    scale, variance = per_example(path.scale(t), x), per_example(path.deviation(t) ** 2, x)
    return -(x - scale * MEAN) / (scale**2 * SPREAD**2 + variance)


def natural(n, seed=0, d=6):
    return (MEAN + SPREAD * torch.randn(n, d, generator=torch_generator(seed))).clamp(-1, 1)


def test_the_expected_score_of_a_gaussian_has_a_closed_form():
    x, path = torch.tensor([[0.5, -0.6, 0.1]]), VP()
    levels = np.array([0.02, 0.1, 0.3])
    found = ExpectedPerturbationScore(exact, levels, repeats=20_000).transform(x)[0]
    t = torch.as_tensor(levels)
    scale, variance = path.scale(t), path.deviation(t) ** 2
    gain = scale / (scale**2 * SPREAD**2 + variance)
    wanted = -(x[0].double() - MEAN).numpy() * gain.mean().item()
    spread = (variance.sqrt() / (scale**2 * SPREAD**2 + variance)).square().sum().sqrt().item() / 3 / 20_000**0.5
    assert np.abs(found - wanted).max() < 4 * spread


def test_the_score_has_the_shape_of_its_input():
    x = torch.zeros(3, 1, 2, 4)
    assert ExpectedPerturbationScore(exact).transform(x).shape == (3, 1, 2, 4)


def test_an_input_has_one_score_whatever_it_is_scored_with():
    detector = ExpectedPerturbationScore(exact, batch=64).fit(natural(60))
    x = natural(30, seed=1)
    together = detector.score_samples(x)
    np.testing.assert_allclose(detector.score_samples(x.flip(0))[::-1], together, rtol=1e-12)
    np.testing.assert_allclose([detector.score_samples(row[None])[0] for row in x], together, rtol=1e-12)
    other = ExpectedPerturbationScore(exact, random_state=1).fit(natural(60)).score_samples(x)
    assert not np.allclose(other, together)


def test_inputs_off_the_data_score_lower():
    detector = ExpectedPerturbationScore(exact, reference_size=100).fit(natural(300))
    shifted = (natural(200, seed=2) + 0.4).clamp(-1, 1)
    typical, foreign = detector.score_samples(natural(200, seed=3)), detector.score_samples(shifted)
    assert (typical[:, None] > foreign).mean() > 0.9
    assert detector.reference_.shape == (100, 6)
    assert np.array_equal(detector.predict(shifted), np.where(foreign >= detector.offset_, 1, -1))


def test_contamination_is_the_share_of_fresh_natural_inputs_refused():
    detector = ExpectedPerturbationScore(exact, contamination=0.2).fit(natural(500))
    assert (detector.predict(natural(800, seed=4)) == -1).mean() == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("given", ["name", "object"])
def test_a_deep_kernel_is_learnt_on_a_copy(given):
    kernel = "deep" if given == "name" else DeepKernel.perceptron(6, width=16, generator=torch_generator(5))
    detector = ExpectedPerturbationScore(exact, kernel=kernel).fit(natural(100))
    with pytest.raises(InputError, match="fit_kernel"):
        detector.score_samples(natural(5))
    shifted = (natural(100, seed=6) + 0.3).clamp(-1, 1)
    detector.fit_kernel(natural(100, seed=7), shifted, epochs=5, lr=1e-3)
    typical = detector.score_samples(natural(100, seed=8))
    foreign = detector.score_samples((natural(100, seed=9) + 0.3).clamp(-1, 1))
    assert (typical[:, None] > foreign).mean() > 0.8
    if given == "object":
        assert detector.kernel_ is not kernel
        assert kernel.log_width.item() == 0.0
        assert kernel.log_width.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "x", "message"),
    [
        ({"levels": [0.0, 0.5]}, natural(30), "levels"),
        ({"levels": [0.5, 1.2]}, natural(30), "levels"),
        ({"reference_size": 19}, natural(30), "at least 20"),
        ({}, natural(19), "at least 20"),
        ({}, natural(30) * 3, "rescale"),
        ({}, natural(30) * float("nan"), "NaN"),
        ({}, natural(30)[:, 0], "shape"),
        ({"kernel": "cubic"}, natural(30), "kernel"),
        ({"score_fn": lambda x, t: x[:, :2]}, natural(30), "shape"),
    ],
)
def test_bad_settings_and_data_are_loud(settings, x, message):
    with pytest.raises(InputError, match=message):
        ExpectedPerturbationScore(**{"score_fn": exact, **settings}).fit(x)


def test_only_a_deep_kernel_is_learnt_and_only_on_inputs_of_one_shape():
    detector = ExpectedPerturbationScore(exact).fit(natural(30))
    with pytest.raises(InputError, match="deep"):
        detector.fit_kernel(natural(30), natural(30))
    with pytest.raises(InputError, match="shape"):
        detector.score_samples(natural(4, d=5))
