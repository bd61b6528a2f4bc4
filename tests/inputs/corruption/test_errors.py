"""Errors by family and severity, and the means made of them, against arithmetic by hand."""

import numpy as np
import pytest

from holdfast.core.errors import InputError
from holdfast.inputs.corruption import FAMILIES, CorruptionErrors, corrupt, corruption_errors


def rng(seed=0):
    return np.random.default_rng(seed)


def errors(rates, clean, n=400, seed=0):
    """Independent errors at the given rates (families, severities)."""
    generator, rates = rng(seed), np.asarray(rates, dtype=float)
    names = tuple(FAMILIES[: len(rates)])
    wrong = generator.random((n, *rates.shape)) < rates
    return CorruptionErrors(names, tuple(range(1, rates.shape[1] + 1)), generator.random(n) < clean, wrong)


def test_means_and_ratios_are_those_of_the_definition():
    ours, theirs = errors([[0.2, 0.4], [0.3, 0.5]], 0.1), errors([[0.4, 0.6], [0.5, 0.7]], 0.2, seed=1)
    e, r = ours.wrong.mean(0), theirs.wrong.mean(0)
    np.testing.assert_allclose(ours.cells, e)
    assert ours.mean.value == pytest.approx(e.mean())
    assert [each.value for each in ours.by_family.values()] == pytest.approx(list(e.mean(1)))
    assert [each.value for each in ours.by_severity.values()] == pytest.approx(list(e.mean(0)))
    mce = ours.mce(theirs, generator=rng())
    assert mce.value == pytest.approx((e.sum(1) / r.sum(1)).mean())
    relative = ours.relative_mce(theirs, generator=rng())
    added, reference = e - ours.clean_wrong.mean(), r - theirs.clean_wrong.mean()
    assert relative.value == pytest.approx((added.sum(1) / reference.sum(1)).mean())
    assert mce.low < 0.35 / 0.55 < mce.high
    assert ours.mce(ours, generator=rng()).value == pytest.approx(1)
    assert ours.mce(ours, generator=rng()).width == pytest.approx(0)  # paired: nothing varies


def test_no_error_is_not_certainty():
    perfect = errors(np.zeros((2, 2)), 0.0, n=50)
    assert perfect.mean.value == 0
    assert perfect.mean.high == pytest.approx(1 - 0.025 ** (1 / 50))


def test_a_classifier_is_shown_every_cell():
    x = rng().random((6, 12, 12)).astype(np.float32)

    def bright(images):
        return (images.mean(axis=(1, 2)) > 0.6).astype(int)

    found = corruption_errors(bright, x, np.zeros(6, int), families=["brightness", "contrast"], severities=[1, 5])
    assert found.cells.shape == (2, 2)
    assert found.clean.value == 0
    assert found.cells[0, 1] == (bright(corrupt(x, "brightness", 5, generator=rng())) != 0).mean() > 0
    again = corruption_errors(bright, x, np.zeros(6, int), families=["brightness", "contrast"], severities=[1, 5])
    np.testing.assert_array_equal(found.wrong, again.wrong)


def test_bad_input_is_told():
    x, y = np.zeros((2, 8, 8)), np.zeros(2, int)
    with pytest.raises(InputError, match="one label an image"):
        corruption_errors(lambda images: np.zeros((len(images), 3)), x, y, families=["fog"])
    with pytest.raises(InputError, match="at least one image"):
        corruption_errors(lambda images: np.zeros(len(images)), x[:0], y[:0])
    with pytest.raises(InputError, match="unknown corruption"):
        corruption_errors(lambda images: np.zeros(len(images)), x, y, families=["rain"])
    with pytest.raises(InputError, match="shape"):
        CorruptionErrors(("fog",), (1, 2), np.zeros(3, bool), np.zeros((3, 1, 1), bool))
    some, other, none = errors([[0.5]], 0.1, 20), errors([[0.5], [0.5]], 0.1, 20), errors([[0.0]], 0.0, 20)
    with pytest.raises(InputError, match="other families"):
        some.mce(other, generator=rng())
    with pytest.raises(InputError, match="the same ones"):
        some.mce(errors([[0.5]], 0.1, 21), generator=rng())
    with pytest.raises(InputError, match="causes none"):
        some.mce(none, generator=rng())
    with pytest.raises(InputError, match="adds nothing"):
        some.relative_mce(errors([[0.0]], 0.5, 20), generator=rng())
