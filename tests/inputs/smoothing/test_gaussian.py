"""Smoothing against classifiers whose truth is known, and stopping rules against their guarantee."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.intervals import clopper_pearson_lower
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.smoothing.gaussian import (
    FIRST_LOOK,
    Smoothed,
    average_certified_radius,
    certified_accuracy,
)
from holdfast.inputs.smoothing.stopping import FixedN, Precision, RadiusTarget, mixture_interval


class HalfSpace(nn.Module):
    """Class 1 on one side of a hyperplane; smoothing changes nothing, and the distance to it is the exact radius."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.tensor([3.0, -4.0])

    def forward(self, x: Tensor) -> Tensor:
        score = x @ self.weight
        return torch.stack([-score, score], 1)


def test_radius_is_the_distance_to_the_plane():
    smoothed = Smoothed(HalfSpace(), sigma=0.5, classes=2, batch=10_000)
    distance = torch.tensor([0.1, 0.5, 1.0])
    x = distance[:, None] * torch.tensor([[0.6, -0.8]])
    found = smoothed.certify(x, n=50_000, alpha=1e-3, generator=torch_generator(0, "t"))
    assert found.label.tolist() == [1, 1, 1]
    assert not found.abstained.any()
    assert (found.radius <= distance).all()
    assert (found.radius >= distance - 0.02).all()
    assert found.n_used.tolist() == [50_100] * 3


def test_on_the_boundary_it_abstains_with_radius_zero():
    found = Smoothed(HalfSpace(), 0.5, 2).certify(torch.zeros(1, 2), n=2000, generator=torch_generator(1, "t"))
    assert found.abstained.all()
    assert found.radius.item() == 0.0
    assert Smoothed(HalfSpace(), 0.5, 2).predict(torch.zeros(1, 2), generator=torch_generator(1, "t")).item() == -1
    assert Smoothed(HalfSpace(), 0.5, 2).predict(torch.tensor([[1.0, 0.0]])).item() == 1


@pytest.mark.parametrize(("k", "n"), [(0, 0), (0, 50), (50, 50), (40, 50), (999, 1000)])
def test_mixture_interval_holds_the_share_and_is_wider_than_the_exact_bound(k, n):
    lower, upper = mixture_interval(k, n, 0.01)
    assert lower <= (k / n if n else 0.5) <= upper
    if n:
        assert lower <= clopper_pearson_lower(k, n, 0.01)
    if 0 < k < n:
        for end in (lower, upper):
            log_m = math.lgamma(k + 0.5) + math.lgamma(n - k + 0.5) - math.lgamma(n + 1) - math.log(math.pi)
            log_m -= k * math.log(end) + (n - k) * math.log1p(-end)
            assert log_m == pytest.approx(math.log(100), abs=1e-4)


@pytest.mark.parametrize("rule", [RadiusTarget(0.0), RadiusTarget(0.4), Precision(0.3), FixedN()])
@pytest.mark.parametrize("p", [0.5, 0.6, 0.9, 0.999])
def test_stopping_early_keeps_the_error_below_alpha(rule, p):
    # 400 runs at alpha = 0.1: were the true error 0.1, more than 59 misses would have probability below 0.1 %.
    rng = numpy_generator(0, "stopping", str(rule), int(1000 * p))
    alpha, cap, misses = 0.1, 2000, 0
    for _ in range(400):
        k = n = 0
        best = 0.0
        while n < cap:
            step = min(max(n, FIRST_LOOK), cap - n) if rule.sequential else cap
            k, n = k + int(rng.binomial(step, p)), n + step
            look = rule.look(k, n, cap, alpha, 1.0)
            best = max(best, look.p_lower)
            if look.stop:
                break
        misses += best > p
    assert misses <= 59


def test_deciding_a_radius_takes_a_small_part_of_the_draws():
    smoothed = Smoothed(HalfSpace(), 0.5, 2, batch=10_000)
    rng = torch_generator(0, "points")
    distance = torch.rand(60, generator=rng) * 1.2
    x = distance[:, None] * torch.tensor([[0.6, -0.8]])
    fixed = smoothed.certify(x, n=20_000, generator=torch_generator(1, "t"))
    early = smoothed.certify(x, n=20_000, stop=RadiusTarget(0.5), generator=torch_generator(2, "t"))
    clear = (distance - 0.5).abs() > 0.05
    assert torch.equal((fixed.radius >= 0.5)[clear], (early.radius >= 0.5)[clear])
    assert (early.radius <= distance + 1e-9).all()
    assert fixed.n_used.sum() / early.n_used.sum() > 5


def test_precision_reaches_its_width():
    smoothed = Smoothed(HalfSpace(), 0.5, 2, batch=1000)
    x = torch.tensor([[0.24, -0.32]])  # distance 0.4
    found = smoothed.certify(x, n=100_000, stop=Precision(0.1), generator=torch_generator(3, "t"))
    assert 0.4 - 0.1 * 0.5 <= found.radius.item() <= 0.4
    assert found.n_used.item() < 30_000


def test_curve_and_average_radius():
    radius, correct = np.array([0.0, 0.5, 1.0, 2.0]), np.array([True, True, False, True])
    curve = certified_accuracy(radius, correct, [0.0, 0.5, 1.5])
    assert [point.value for point in curve] == [0.5, 0.5, 0.25]
    average = average_certified_radius(radius, correct, 4.0)
    assert average.low <= 0.625 <= average.high


def test_same_stream_same_certificate():
    smoothed, x = Smoothed(HalfSpace(), 0.5, 2), torch.tensor([[0.3, 0.1]])
    first, second = (smoothed.certify(x, n=500, generator=torch_generator(5, "t")) for _ in range(2))
    assert torch.equal(first.p_lower, second.p_lower)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Smoothed(HalfSpace(), 0.0, 2), "sigma"),
        (lambda: Smoothed(HalfSpace(), 1.0, 1), "2 classes"),
        (lambda: Smoothed(HalfSpace(), 1.0, 2).certify(torch.zeros(1, 2), n=0), "n >= 1"),
        (lambda: Smoothed(HalfSpace(), 1.0, 2).certify(torch.zeros(1, 2), alpha=1.5), "alpha"),
        (lambda: Smoothed(HalfSpace(), 1.0, 2).certify(torch.full((1, 2), torch.nan)), "finite"),
        (lambda: Smoothed(HalfSpace(), 1.0, 3).certify(torch.zeros(1, 2)), "scores of shape"),
        (lambda: RadiusTarget(-1.0), "radius"),
        (lambda: Precision(0.0), "width"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_truth_of_the_half_space():
    # The share of votes that the radius formula inverts.
    votes = Smoothed(HalfSpace(), 0.5, 2).votes(torch.tensor([0.6, -0.8]) * 0.3, 20_000, torch_generator(0, "v"))
    assert float(votes[1]) / 20_000 == pytest.approx(float(ndtr(0.3 / 0.5)), abs=0.015)
