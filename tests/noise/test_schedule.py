"""The variance-preserving path is the solution of its own equation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.noise.schedule import VP, perturb

TIMES = torch.linspace(1e-3, 1, 50, dtype=torch.float64)


def test_scale_and_noise_keep_unit_variance():
    path = VP()
    assert torch.allclose(path.scale(TIMES) ** 2 * (1 + path.sigma(TIMES) ** 2), torch.ones_like(TIMES))
    assert torch.allclose(path.deviation(TIMES), path.scale(TIMES) * path.sigma(TIMES))


def test_the_scale_is_the_integral_of_beta():
    path = VP(0.3, 7.0)
    for t in (0.01, 0.4, 1.0):
        integral, _ = quad(lambda u: 0.3 + u * 6.7, 0, t)
        assert path.scale(torch.tensor([t], dtype=torch.float64)).log().item() == pytest.approx(
            -integral / 2, rel=1e-12
        )


def test_moments_solve_the_equation_of_the_path():
    path = VP()
    t = TIMES.clone().requires_grad_()
    x = torch.full_like(t, 1.7)[:, None]
    (slope,) = torch.autograd.grad((path.scale(t) * 1.7).sum(), t)
    assert torch.allclose(slope, path.drift(path.scale(TIMES)[:, None] * x.detach(), TIMES)[:, 0])
    (growth,) = torch.autograd.grad(path.deviation(t).square().sum(), t)
    rate = path.diffusion(TIMES) ** 2  # d var / dt = -β var + β
    assert torch.allclose(growth, rate * (1 - path.deviation(TIMES) ** 2))


@given(st.floats(1e-4, 1.0), st.floats(0.01, 2.0), st.floats(0.0, 30.0))
def test_sigma_is_inverted(t, least, more):
    path = VP(least, least + more)
    time = torch.tensor([t], dtype=torch.float64)
    assert torch.allclose(path.inverse_sigma(path.sigma(time)), time, rtol=1e-9, atol=0)


def test_small_times_keep_their_digits_in_single_precision():
    path = VP()
    t = torch.tensor([1e-6])
    assert path.deviation(t).item() == pytest.approx(path.deviation(t.double()).item(), rel=1e-5)


def test_every_example_gets_its_own_time_and_noise():
    x = torch.ones(20_000, 1)
    t = torch.tensor([0.1, 0.8]).repeat(10_000)
    noisy, noise = perturb(VP(), x, t, generator=torch_generator(0))
    for part in (0, 1):
        scale, deviation = VP().scale(t[part : part + 1]).item(), VP().deviation(t[part : part + 1]).item()
        assert noisy[part::2].mean().item() == pytest.approx(scale, abs=4 * deviation / 100)
        assert noisy[part::2].std().item() == pytest.approx(deviation, rel=0.03)
    assert len(noise.unique()) > 19_000


def test_bad_paths_and_times_are_loud():
    with pytest.raises(InputError, match="beta_min"):
        VP(0.0, 1.0)
    for bad in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="times"):
            perturb(VP(), torch.zeros(1, 2), torch.tensor([bad]))
