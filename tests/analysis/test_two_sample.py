"""The kernel two-sample test: its statistic, its level, its power, and that impossible samples are told."""

import numpy as np
import pytest

from holdfast.analysis.two_sample import mmd_test
from holdfast.core.errors import InputError


def test_the_statistic_is_the_sum_of_kernel_means():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(7, 3)), generator.normal(size=(5, 3))
    found = mmd_test(a, b, bandwidth=0.8, generator=generator, permutations=5)

    def mean(left, right):
        return np.mean([np.exp(-((u - v) ** 2).sum() / (2 * 0.8**2)) for u in left for v in right])

    assert found.mmd == pytest.approx(np.sqrt(mean(a, a) + mean(b, b) - 2 * mean(a, b)))


def test_equal_samples_are_at_distance_zero_and_never_told_apart():
    points = np.random.default_rng(1).normal(size=(20, 2))
    found = mmd_test(points, points, generator=np.random.default_rng(2))
    assert found.mmd == pytest.approx(0, abs=1e-7)
    assert found.p_value == 1


def test_p_values_are_uniform_under_equality_and_small_under_a_shift():
    generator = np.random.default_rng(3)
    same = [
        mmd_test(*generator.normal(size=(2, 15, 2)), permutations=99, generator=generator).p_value for _ in range(200)
    ]
    assert 0.02 <= np.mean(np.array(same) <= 0.1) <= 0.18
    shifted = mmd_test(generator.normal(size=(60, 2)), generator.normal(1, 1, size=(60, 2)), generator=generator)
    assert shifted.p_value == pytest.approx(1 / 501)


def test_windows_of_any_shape_are_points():
    generator = np.random.default_rng(4)
    a, b = generator.normal(size=(2, 8, 3, 2))
    flat = mmd_test(a.reshape(8, 6), b.reshape(8, 6), generator=np.random.default_rng(5))
    assert mmd_test(a, b, generator=np.random.default_rng(5)) == flat


def test_bad_input_is_told():
    generator = np.random.default_rng(6)
    fine = np.zeros((3, 2))
    with pytest.raises(InputError, match="at least two points"):
        mmd_test(fine[:1], fine, generator=generator)
    with pytest.raises(InputError, match="one shape"):
        mmd_test(fine, np.zeros((3, 1)), generator=generator)
    with pytest.raises(InputError, match="NaN"):
        mmd_test(fine, np.full((3, 2), np.nan), generator=generator)
    with pytest.raises(InputError, match="permutation"):
        mmd_test(fine, fine, permutations=0, generator=generator)
    with pytest.raises(InputError, match="bandwidth"):
        mmd_test(fine, fine, bandwidth=0.0, generator=generator)
