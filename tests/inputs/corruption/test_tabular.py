"""Corruptions of rows: what each does by its definition, streams, 0/1 columns."""

import numpy as np
import pytest

from holdfast.core.errors import InputError
from holdfast.inputs.corruption.tabular import FAMILIES, SLIPS, TableProfile, corrupt_rows


def table(n=400, seed=0):
    g = np.random.default_rng(seed)
    return np.column_stack([g.normal(5, 2, n), g.gamma(2.0, 30, n), g.integers(0, 2, n), g.normal(0, 1e-3, n)])


ROWS = table()
PROFILE = TableProfile.of(ROWS, np.random.default_rng(1))


def apply(name, severity, x=ROWS, seed=0):
    return corrupt_rows(x, name, severity, profile=PROFILE, generator=np.random.default_rng(seed))


@pytest.mark.parametrize("name", FAMILIES)
def test_more_severe_is_farther_and_streams_belong_to_rows(name):
    spread = np.where(PROFILE.binary, 1.0, PROFILE.spread)
    change = [(np.abs(apply(name, s) - ROWS) / spread).mean() for s in range(1, 6)]
    assert change[0] > 0
    assert (np.diff(change) > -0.05 * np.array(change[1:])).all()
    together = corrupt_rows(ROWS[:5], name, 3, profile=PROFILE, generator=[np.random.default_rng(i) for i in range(5)])
    alone = corrupt_rows(ROWS[3:4], name, 3, profile=PROFILE, generator=[np.random.default_rng(3)])
    np.testing.assert_array_equal(together[3:4], alone)
    assert apply(name, 2, ROWS.astype(np.float32)).dtype == np.float32


def test_flags_are_told_apart():
    np.testing.assert_array_equal(PROFILE.binary, [False, False, True, False])
    for name in ("gaussian_noise", "scaling_drift", "unit_slip", "rounding"):
        np.testing.assert_array_equal(apply(name, 5)[:, 2], ROWS[:, 2])
    assert set(np.unique(apply("sign_flip", 5)[:, 2])) == {0.0, 1.0}


def test_noise_is_relative_to_the_spread_of_its_feature():
    noise = apply("gaussian_noise", 4) - ROWS
    np.testing.assert_allclose(noise.std(axis=0)[[0, 1, 3]] / PROFILE.spread[[0, 1, 3]], 0.5, rtol=0.1)


def test_missing_cells_are_medians():
    made = apply("missing_values", 5)
    lost = made != ROWS
    assert lost[:, [0, 1, 3]].mean() == pytest.approx(0.5, abs=0.05)
    assert (made[lost] == np.broadcast_to(PROFILE.median, made.shape)[lost]).all()


def test_drift_is_the_same_for_all_rows():
    ratio = apply("scaling_drift", 4)[:, :2] / ROWS[:, :2]
    np.testing.assert_allclose(ratio, ratio[:1].repeat(len(ROWS), axis=0))


def test_one_feature_of_a_row_slips_by_a_known_unit():
    made = apply("unit_slip", 5)
    changed = made != ROWS
    assert (changed.sum(axis=1) == 1).all()
    assert set(np.round(made[changed] / ROWS[changed], 6)) == {round(f, 6) for f in SLIPS[4]}


def test_swapped_rows_keep_their_values():
    made = apply("swapped_columns", 5)
    np.testing.assert_array_equal(np.sort(made, axis=1), np.sort(ROWS, axis=1))
    assert (made != ROWS).any(axis=1).all()


def test_rounded_values_lie_on_the_grid():
    steps = apply("rounding", 4)[:, 0] / PROFILE.spread[0]
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)


def test_constant_and_missing_columns_do_no_harm():
    rows = np.column_stack([np.full(20, 7.0), np.full(20, np.nan), np.arange(20.0)])
    profile = TableProfile.of(rows, np.random.default_rng(0))
    x = np.nan_to_num(rows)
    for name in FAMILIES:
        for severity in range(1, 6):
            made = corrupt_rows(x, name, severity, profile=profile, generator=np.random.default_rng(0))
            assert np.isfinite(made).all()


def test_bad_input_is_told():
    with pytest.raises(InputError, match="choose from"):
        apply("typo", 1)
    with pytest.raises(InputError, match="1 to 5"):
        apply("rounding", 0)
    with pytest.raises(InputError, match="4 features"):
        apply("rounding", 1, ROWS[:, :2])
