"""Smoothing against classifiers whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.progress import showing
from holdfast.core.seeds import torch_generator
from holdfast.inputs.smoothing.dual import DualSmoothed
from holdfast.inputs.smoothing.gaussian import (
    Smoothed,
    average_certified_radius,
    certified_accuracy,
    certified_curve,
)
from holdfast.inputs.smoothing.lvm import MarginSmoothed
from holdfast.inputs.smoothing.mean import SmoothedProbabilities
from holdfast.inputs.smoothing.noise import noise_named
from holdfast.inputs.smoothing.sampling import require_inputs
from holdfast.inputs.smoothing.stopping import Planned, Precision, RadiusTarget


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


def test_a_curve_never_rises_and_ends_at_the_largest_radius():
    radius, correct = np.array([0.0, 0.5, 1.0, 2.0]), np.array([True, True, False, True])
    (line,) = certified_curve({"one": (radius, correct)}, points=9).series
    assert line.x[-1] == 2.0
    assert (line.y[0], line.y[-1]) == (0.5, 0.25)
    assert list(line.y) == sorted(line.y, reverse=True)
    assert all(low <= y <= high for low, y, high in zip(line.low, line.y, line.high))


@pytest.mark.parametrize("noise", ["laplace", "uniform"])
def test_other_noises_certify_the_l1_distance_of_a_half_space(noise):
    # Along one coordinate the half-space attains the bound: the radius cannot exceed the distance, and comes near it.
    def base(x):
        return torch.stack([-x[:, 0], x[:, 0]], 1)

    distance = torch.tensor([0.1, 0.3, 0.6])
    x = torch.cat([distance[:, None], torch.ones(3, 1)], 1)
    found = Smoothed(base, 0.5, 2, batch=10_000, noise=noise).certify(x, n=50_000)
    assert found.norm == 1.0
    assert (found.radius <= distance).all()
    assert (found.radius >= distance - 0.03).all()


@pytest.mark.parametrize("noise", ["gaussian", "laplace", "uniform"])
def test_sigma_is_the_standard_deviation(noise):
    seen = []

    def base(x):
        seen.append(x)
        return x[:, :2]

    Smoothed(base, 0.7, 2, batch=50_000, noise=noise).votes(torch.ones(2), 50_000, torch_generator(0, noise))
    drawn = torch.cat(seen)
    assert float(drawn.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(drawn.std()) == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("rule", [None, RadiusTarget(0.3), Precision(0.2), Planned(0.95)])
def test_a_certificate_does_not_depend_on_its_neighbours(rule):
    smoothed = Smoothed(HalfSpace(), 0.5, 2, batch=200)
    x = torch.tensor([[0.3, 0.1], [0.0, 0.01], [1.0, -1.0], [-0.2, 0.2]])
    first = smoothed.certify(x, n=3000, stop=rule, generator=torch_generator(5, "t"))
    second = smoothed.certify(torch.cat([x[:2], -x[2:]]), n=3000, stop=rule, generator=torch_generator(5, "t"))
    torch.testing.assert_close(first.p_lower[:2], second.p_lower[:2], rtol=1e-9, atol=0.0)
    assert torch.equal(first.n_used[:2], second.n_used[:2])


def test_inputs_share_calls_of_the_model():
    sizes = []

    def base(x):
        sizes.append(len(x))
        return torch.stack([x[:, 0], -x[:, 0]], 1)

    Smoothed(base, 0.1, 2, batch=640).certify(torch.ones(40, 1), n0=16, n=1000, stop=RadiusTarget(0.01))
    assert sizes == [640, 640]  # all labels in one call, all decisions in another
    sizes.clear()
    Smoothed(base, 0.1, 2, batch=640).certify(torch.ones(3, 1), n0=10, n=1300)
    assert max(sizes) <= 640
    assert sum(sizes) == 3 * 1310


@pytest.mark.parametrize("kind", ["votes", "margins"])
def test_no_gradients_are_kept(kind):
    model, seen = nn.Linear(2, 3), []

    def base(x):
        seen.append(torch.is_grad_enabled())
        return model(x)

    one = Smoothed(base, 0.5, 3) if kind == "votes" else MarginSmoothed(base, 0.5)
    one.certify(torch.ones(2, 2), n0=10, n=50)
    assert not any(seen)
    assert torch.is_grad_enabled()


def test_progress_counts_finished_inputs():
    seen = []

    def tracker(items, description, total):
        for item in items:
            seen.append((item, total))
            yield item

    with showing(tracker):
        Smoothed(HalfSpace(), 0.5, 2).certify(torch.ones(5, 2), n=200)
    assert sorted(seen) == [(place, 5) for place in range(5)]


def test_planned_draws_keep_the_share_of_the_radius_it_was_asked_for():
    smoothed = Smoothed(HalfSpace(), 0.5, 2, batch=10_000)
    x = torch.tensor([[0.24, -0.32]]).repeat(20, 1)  # distance 0.4
    fixed = smoothed.certify(x, n0=1000, n=40_000, generator=torch_generator(0, "t"))
    planned = smoothed.certify(x, n0=1000, n=40_000, stop=Planned(0.95), generator=torch_generator(1, "t"))
    assert float(planned.radius.mean() / fixed.radius.mean()) == pytest.approx(0.95, abs=0.015)
    assert float(planned.n_used.double().mean()) < 0.5 * 41_000


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
        (lambda: Smoothed(lambda x: x, 1.0, 2).certify(torch.zeros(4)), r"\(batch, \*shape\) are wanted, got \(4,\)"),
        (lambda: noise_named("pink", 1.0), "no noise is called"),
        (lambda: require_inputs(torch.zeros(1, 2, dtype=torch.long), 1, 1, 0.1), "floating"),
        (lambda: Smoothed(lambda x: x / 0 * 0, 1.0, 2).certify(torch.zeros(1, 2)), "NaN"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.parametrize(
    "ask",
    [
        lambda base, x: Smoothed(base, 0.5, 2).certify(x, n=10),
        lambda base, x: Smoothed(base.forward, 0.5, 2).certify(x, n=10),
        lambda base, x: Smoothed(base, 0.5, 2).predict(x, n=10),
        lambda base, x: Smoothed(base, 0.5, 2).votes(x[0], 10, torch_generator(0, "votes")),
        lambda base, x: MarginSmoothed(base, 0.5).certify(x, n=10),
        lambda base, x: DualSmoothed(base, base, 0.5, torch.tensor([True, True, False]), fill="zero").certify(x, n=10),
        lambda base, x: SmoothedProbabilities(base, 0.5).interval(x, n=10),
    ],
)
def test_a_base_in_training_mode_is_neither_asked_nor_moved(ask):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).train()
    before, x = model[1].running_mean.clone(), torch.zeros(2, 3)
    with pytest.raises(InputError, match=r"BatchNorm1d '1', Dropout '2' in training mode.*model\.eval\(\)"):
        ask(model, x)
    assert torch.equal(model[1].running_mean, before)
    ask(model.eval(), x)


def test_truth_of_the_half_space():
    # The share of votes that the radius formula inverts.
    votes = Smoothed(HalfSpace(), 0.5, 2).votes(torch.tensor([0.6, -0.8]) * 0.3, 20_000, torch_generator(0, "v"))
    assert float(votes[1]) / 20_000 == pytest.approx(float(ndtr(0.3 / 0.5)), abs=0.015)
