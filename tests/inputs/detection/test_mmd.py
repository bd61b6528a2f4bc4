"""The discrepancy is a distance of samples, its power criterion has a gradient, and a learnt kernel sees more."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.detection.mmd import (
    BANDWIDTHS,
    DeepKernel,
    GaussianKernel,
    fit_kernel,
    mean_squared_distance,
    mmd_statistic,
    mmd_to_reference,
    power_criterion,
)


def samples(seed=0, n=60, d=4):
    generator = torch_generator(seed)
    x, y = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, y + 0.5


def test_the_kernel_is_the_mean_of_gaussians_at_every_bandwidth():
    x, y = samples()
    squared = cdist(x, y, "sqeuclidean")
    scale = cdist(x, x, "sqeuclidean").sum() / (60 * 59)
    assert mean_squared_distance(x) == pytest.approx(scale, rel=1e-12)
    wanted = np.mean([np.exp(-squared / (b * scale)) for b in BANDWIDTHS], axis=0)
    np.testing.assert_allclose(GaussianKernel(x)(x, y).numpy(), wanted, rtol=1e-10)


def test_the_statistic_is_zero_between_equal_samples_and_not_negative():
    x, y = samples()
    kernel = GaussianKernel(x)
    assert abs(mmd_statistic(x, x, kernel).item()) < 1e-12
    assert mmd_statistic(x, y, kernel) > 0.01
    assert mmd_statistic(x, y, kernel).item() == pytest.approx(mmd_statistic(y, x, kernel).item())


def test_a_single_row_is_a_sample_of_one():
    x, y = samples()
    for kernel in (GaussianKernel(x), DeepKernel.perceptron(4, generator=torch_generator(1)).double()):
        with torch.no_grad():
            apart = torch.stack([mmd_statistic(row[None], y, kernel) for row in x])
            torch.testing.assert_close(mmd_to_reference(x, y, kernel), apart)


def test_the_power_criterion_is_mean_over_spread_of_h():
    x, y = samples(n=30)
    kernel = GaussianKernel(x)
    xx, yy, xy = (kernel(a, b).numpy() for a, b in ((x, x), (y, y), (x, y)))
    h = xx + yy - xy - xy.T
    unbiased = np.mean([h[i, j] for i in range(30) for j in range(30) if i != j])
    spread = np.sqrt(4 * np.var(h.mean(axis=1)) + 1e-8)
    assert power_criterion(x, y, kernel).item() == pytest.approx(unbiased / spread, rel=1e-9)


def test_the_deep_kernel_is_one_on_the_diagonal_and_mixes_two():
    x, y = samples()
    kernel = DeepKernel.perceptron(4, width=8, generator=torch_generator(2)).double()
    kernel.set_widths(x)
    with torch.no_grad():
        torch.testing.assert_close(kernel(x, x).diagonal(), torch.ones(60, dtype=torch.float64))
        kernel.share.fill_(50.0)  # ε = 1: the network is not heard
        scale = mean_squared_distance(x)
        np.testing.assert_allclose(kernel(x, y).numpy(), np.exp(-cdist(x, y, "sqeuclidean") / scale), rtol=1e-5)


def test_learning_raises_the_power_on_fresh_samples():
    def rings(seed, radius):
        generator = torch_generator(seed)
        angle = 2 * np.pi * torch.rand(400, generator=generator)
        far = radius + 0.15 * torch.randn(400, generator=generator)
        noise = 3 * torch.randn(400, 6, generator=generator)  # coordinates that say nothing and drown distances
        return torch.cat([torch.stack([far * angle.cos(), far * angle.sin()], 1), noise], 1)

    kernel = DeepKernel.perceptron(8, width=32, generator=torch_generator(3))
    kernel.set_widths(rings(4, 1.0))
    with torch.no_grad():
        before = power_criterion(rings(6, 1.0), rings(7, 1.6), kernel)
    fit_kernel(kernel, rings(4, 1.0), rings(5, 1.6), epochs=60, lr=2e-3, generator=torch_generator(8))
    with torch.no_grad():
        after = power_criterion(rings(6, 1.0), rings(7, 1.6), kernel)
    assert after > 3 * before.clamp_min(0.05)
    assert not kernel.training


def test_what_cannot_be_compared_is_loud():
    kernel = DeepKernel.perceptron(2, width=4)
    with pytest.raises(InputError, match="2 rows"):
        fit_kernel(kernel, torch.rand(1, 2), torch.rand(5, 2))
    with pytest.raises(InputError, match="same"):
        GaussianKernel(torch.ones(5, 2))
