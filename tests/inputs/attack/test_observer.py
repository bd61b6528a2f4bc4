"""The observer: regions and filters as described, d' that falls with eccentricity, tasks against known accuracies."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from holdfast.core.errors import InputError
from holdfast.inputs.attack.observer import (
    FREQUENCIES,
    ORIENTATIONS,
    PeripheralObserver,
    feature_maps,
    log_polar_regions,
    oddity_accuracy,
    pooled,
    square_regions,
    twoafc_accuracy,
)


def pictures(n=12, side=24, channels=1, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (n, channels, side, side))


def grating(frequency, orientation, side=32, phase=0.0):
    """A plane wave whose frequency vector points along `orientation` (0: along the columns)."""
    rows, columns = np.mgrid[:side, :side]
    along = columns * math.cos(orientation) + rows * math.sin(orientation)
    return 0.5 + 0.5 * np.sin(2 * math.pi * frequency * along + phase)[None, None]


@pytest.mark.parametrize("scale", range(3))
@pytest.mark.parametrize("orientation", range(4))
def test_each_energy_answers_most_to_its_own_grating(scale, orientation):
    image = grating(FREQUENCIES[scale], orientation * math.pi / ORIENTATIONS, side=64)
    energies = feature_maps(image)[0, 1:, 20:44, 20:44].mean((1, 2))
    assert int(energies.argmax()) == scale * ORIENTATIONS + orientation


def test_energy_does_not_see_the_phase_of_a_grating_nor_the_mean():
    first, second = (feature_maps(grating(0.125, 0.0, 64, phase))[0, 1:, 24:40, 24:40] for phase in (0.0, 1.3))
    np.testing.assert_allclose(first[4], second[4], atol=0.03)
    np.testing.assert_allclose(first[4], 0.5, atol=0.05)
    flat = feature_maps(np.full((1, 3, 16, 16), 0.7))
    np.testing.assert_allclose(flat[:, 0], 0.7)
    np.testing.assert_allclose(flat[:, 1:], 0, atol=1e-12)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_squares_cover_every_pixel_once(height, width, side):
    regions = square_regions(height, width, side)
    assert len(regions) == -(-height // side) * -(-width // side)
    np.testing.assert_allclose(regions.sum((1, 2)), 1)
    assert ((regions > 0).sum(0) == 1).all()


@pytest.mark.parametrize("eccentricity", [1.0, 5.0, 12.0, 30.0])
def test_regions_grow_with_eccentricity_and_hold_the_centre(eccentricity):
    regions = log_polar_regions(28, 28, eccentricity, 0.5, 7.0)
    np.testing.assert_allclose(regions.sum((1, 2)), 1)
    assert (regions.max(0)[10:18, 10:18] > 0).all()
    finer = log_polar_regions(28, 28, eccentricity, 0.25, 7.0)
    assert len(finer) >= len(regions)
    assert len(log_polar_regions(28, 28, 2 * eccentricity, 0.5, 7.0)) <= len(regions)


def test_a_region_is_as_wide_as_scaling_times_eccentricity():
    regions = log_polar_regions(201, 201, 10.0, 0.5, 20.0)
    row = regions[:, 100]
    centre = row[row[:, 100].argmax()]
    wide = (centre > centre.max() / 2).sum() * 20.0 / 201
    assert wide == pytest.approx(5.0, rel=0.06)


def test_statistics_of_a_region_are_its_moments():
    maps = np.random.default_rng(0).gamma(2.0, size=(3, 13, 6, 6))
    found = pooled(maps, square_regions(6, 6, 6), np.zeros(13))
    flat = maps.reshape(3, 13, -1)
    np.testing.assert_allclose(found[:, :13, 0], flat.mean(2))
    np.testing.assert_allclose(found[:, 13:26, 0], flat.var(2))
    np.testing.assert_allclose(found[:, 26:39, 0], stats.skew(flat, axis=2))
    correlations = {round(value, 9) for value in np.corrcoef(flat[0])[1:, 1:].ravel().tolist()}
    assert {round(value, 9) for value in found[0, 39:, 0].tolist()} <= correlations
    assert found.shape[1] == 39 + 18 + 8


def test_an_image_is_never_told_from_itself_and_discriminability_is_symmetric():
    x, other = pictures(), pictures(seed=1)
    observer = PeripheralObserver().fit(pictures(30, seed=2))
    for place in (2.0, 30.0):
        np.testing.assert_array_equal(observer.dprime(x, x, place), 0)
        np.testing.assert_allclose(observer.dprime(x, other, place), observer.dprime(other, x, place))
        assert (observer.dprime(x, other, place) > 0).all()


def test_discriminability_falls_with_eccentricity_and_with_noise():
    x, other = pictures(), pictures(seed=1)
    observer = PeripheralObserver(noise=2.0).fit(pictures(30, seed=2))
    means = [float(observer.dprime(x, other, place).mean()) for place in (2.0, 6.0, 15.0)]
    assert means[0] > means[1] > means[2]
    squares = [float(observer.dprime_of_squares(x, other, side).mean()) for side in (3, 6, 12)]
    assert squares[0] > squares[1] > squares[2]
    louder = PeripheralObserver(noise=4.0).fit(pictures(30, seed=2))
    np.testing.assert_allclose(observer.dprime(x, other, 6.0), 2 * louder.dprime(x, other, 6.0))


def test_where_things_are_is_lost_in_the_periphery_before_what_they_are():
    x, other = pictures(20), pictures(20, seed=7)
    moved = np.roll(x, 12, axis=3)
    observer = PeripheralObserver().fit(pictures(40, seed=3))
    share = [float((observer.dprime(x, moved, at) / observer.dprime(x, other, at)).mean()) for at in (2.0, 30.0)]
    assert share[0] > 0.9
    assert share[1] < 0.75 * share[0]


TASKS = {
    oddity_accuracy: lambda d: 1 / 3 if d == 0 else None,
    twoafc_accuracy: lambda d: (
        stats.norm.cdf(d / 2**0.5) * stats.norm.cdf(d / 2) + stats.norm.cdf(-d / 2**0.5) * stats.norm.cdf(-d / 2)
    ),
}


@pytest.mark.parametrize("distance", [0.0, 0.7, 1.5, 3.0])
def test_matching_to_sample_is_as_accurate_as_its_formula(distance):
    found = twoafc_accuracy(distance, 40_000, generator=np.random.default_rng(0), level=0.999)
    assert found.low <= TASKS[twoafc_accuracy](distance) <= found.high


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.5])
def test_oddity_is_as_accurate_as_integration_says(distance):
    # With one unknown dimension the likeliest odd one is an extreme: of two alike and one apart, in sorted order.
    def lowest_is_odd(odd):
        """P(the odd value is chosen) when it is N(odd, 1) and the others N(distance - odd, 1)."""
        other = distance - odd

        grid = np.linspace(-5, 5 + distance, 61)
        weight = [stats.norm.pdf(grid - m) * (grid[1] - grid[0]) for m in (odd, other, other)]
        a, b, c = np.meshgrid(grid, grid, grid, indexing="ij")
        gain = [distance * (v - distance / 2) for v in (a, b, c)]
        worth = [np.logaddexp(g, sum(gain) - g) for g in gain]
        others = np.maximum(worth[1], worth[2])
        won = (worth[0] > others) + 0.5 * ((worth[0] == others) & (worth[1] != worth[2]))
        won = won + ((worth[0] == others) & (worth[1] == worth[2])) / 3
        return float(np.einsum("abc,a,b,c->", won, *weight))

    wanted = 1 / 3 if distance == 0 else (lowest_is_odd(0.0) + lowest_is_odd(distance)) / 2
    found = oddity_accuracy(distance, 40_000, generator=np.random.default_rng(0), level=0.999)
    assert found.low - 0.01 <= wanted <= found.high + 0.01


@pytest.mark.parametrize("task", TASKS)
def test_what_is_far_apart_is_always_told_apart(task):
    assert task(30.0, 500, generator=np.random.default_rng(0)).value == 1
    many = task(np.array([0.0, 30.0, 30.0, 0.0]), 4000, generator=np.random.default_rng(0))
    chance = 1 / 3 if task is oddity_accuracy else 1 / 2
    assert many.value == pytest.approx((1 + chance) / 2, abs=0.02)
    assert many.n == 4


def test_bad_input_is_told():
    x = pictures(4)
    observer = PeripheralObserver().fit(x)
    for place in (0.0, -3.0, float("inf")):
        with pytest.raises(InputError, match="eccentricity"):
            observer.dprime(x, x, place)
    with pytest.raises(InputError, match="24x24"):
        observer.dprime(x, pictures(4, side=20), 5.0)
    with pytest.raises(InputError, match="24x24"):
        observer.dprime(x, x[:2], 5.0)
    with pytest.raises(InputError, match="at least one pixel"):
        observer.dprime_of_squares(x, x, 0)
    with pytest.raises(InputError, match="two images"):
        PeripheralObserver().fit(x[:1])
    with pytest.raises(InputError, match="scaling"):
        PeripheralObserver(scaling=2.0).fit(x)
    with pytest.raises(InputError, match="finite"):
        oddity_accuracy(-1.0, generator=np.random.default_rng(0))
    with pytest.raises(InputError, match="trials"):
        twoafc_accuracy(1.0, 0, generator=np.random.default_rng(0))
