"""The check of `zo-ae-ds`: its smoke run passes, its white box is its black box, and its criteria can fail."""

import numpy as np
import torch

from holdfast.papers.inputs import zo_ae_ds
from holdfast.papers.inputs.zo_ae_ds import FIRST_ORDER, UNDEFENDED, ZO_AE_DS, ZO_DS, Certified
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = zo_ae_ds.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert outcome.to_dict()["seeds"] == [0]


def test_the_white_box_is_the_black_box():
    split = zo_ae_ds._split("digits", 0, 20)
    classifier = zo_ae_ds._black_box(split, 0)
    seen = zo_ae_ds._white_box(classifier)(torch.from_numpy(split.test)).detach().numpy()
    assert np.allclose(seen, classifier.predict_proba(split.test), atol=1e-5)


def test_training_and_test_digits_are_apart():
    split = zo_ae_ds._split("digits", 1, 100)
    assert len(split.x) + len(split.test) <= 1797
    rows = {row.tobytes() for row in split.x}
    assert sum(row.tobytes() in rows for row in split.test) <= 1


def runs(**share):
    """Made-up radii of 300 points: the first so many per cent reach 0.6."""
    radius = {name: np.where(np.arange(300) < 3 * percent, 0.6, 0.0) for name, percent in share.items()}
    names = {"none": UNDEFENDED, "directions": ZO_DS, "coordinates": ZO_AE_DS, "gradients": FIRST_ORDER}
    return [{names[name]: Certified(value) for name, value in radius.items()}]


def test_the_ordering_is_judged_by_paired_intervals():
    verdicts = [
        [c.passed for c in zo_ae_ds._ordering("made up", runs(**shares))]
        for shares in (
            {"none": 10, "directions": 30, "coordinates": 50, "gradients": 52},
            {"none": 10, "directions": 30, "coordinates": 30, "gradients": 34},
            {"none": 30, "directions": 10, "coordinates": 50, "gradients": 40},
        )
    ]
    assert verdicts == [[True, True, True], [True, False, False], [False, True, True]]


def test_overspending_is_seen():
    spent = [{ZO_DS: Certified(np.zeros(1), 1_000_001), ZO_AE_DS: Certified(np.zeros(1), 999_000)}]
    assert not zo_ae_ds._budgets(spent, 1_000_000).passed
    assert zo_ae_ds._budgets(spent, 1_000_100).passed
