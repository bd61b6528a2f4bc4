"""The smoke check of `dual-smoothing` passes, and the parts of the full one say what they measured."""

import numpy as np

from holdfast.papers.inputs import dual_smoothing
from holdfast.papers.inputs.dual_smoothing import IMAGES, Trial
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = dual_smoothing.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert len(outcome.criteria) == 3


def test_the_gain_is_that_of_the_means_and_no_gain_is_not_called_one():
    radii = np.linspace(0, 1, IMAGES)
    trials = [Trial(radii, 1.2 * radii, radii), Trial(radii[::-1], 1.2 * radii[::-1], radii)]
    gain = dual_smoothing._gain(trials)
    assert abs(gain.value - 1.2) < 1e-12
    assert gain.low > 1
    shuffled = [Trial(radii, radii[::-1].copy(), radii)]
    assert dual_smoothing._gain(shuffled).low < 1 < dual_smoothing._gain(shuffled).high
