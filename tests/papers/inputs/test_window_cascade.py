"""The smoke check of `window-cascade` holds; the one-sided baseline is given no less than it is compared with."""

import numpy as np

from holdfast.papers.inputs import window_cascade
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = window_cascade.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert len(outcome.criteria) == 3


def test_the_one_sided_cascade_costs_at_least_what_it_is_compared_with():
    x, y, x_valid, y_valid, x_test, _ = window_cascade._digits()
    forests = window_cascade._forests(0, x, y, leaf=3)
    for cost in (1.1, 1.3):
        assert cost <= window_cascade._one_sided(forests, x_valid, y_valid, x_test, cost).cost < cost + 0.1
    covered = window_cascade._covered(np.array([3.0, 2.0, 1.0]), np.array([0.0, 0.0, 1.0]))
    assert covered == 2 / 3
