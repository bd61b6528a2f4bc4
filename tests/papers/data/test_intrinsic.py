"""The check of `intrinsic` runs small, decides by its numbers, and measures what it says."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.papers.data.intrinsic import PAPER, _manifold, _robust_accuracy, check
from holdfast.papers.paper import Scale


def test_the_smoke_check_decides_every_part():
    outcome = check(Scale.SMOKE)
    parts = {criterion.statement[:3] for criterion in outcome.criteria}
    assert parts == {"(a)", "(b)", "(c)", "(d)"}
    sphere = next(criterion for criterion in outcome.criteria if "sphere" in criterion.statement)
    assert sphere.passed
    assert outcome.to_dict()["ours"]["low"] < outcome.ours.value
    assert all(path.startswith("holdfast.data.") for path in PAPER.builds)


@pytest.mark.parametrize("kind", ["cube", "sphere"])
def test_manifolds_lie_in_the_ambient_space_and_are_the_same_every_time(kind):
    X = _manifold(3, 50, 20, kind)
    assert X.shape == (50, 20)
    np.testing.assert_array_equal(X, _manifold(3, 50, 20, kind))


def test_the_sign_attack_moves_a_linear_model_by_its_l1_norm():
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 4, [1.0, -1.0, 1.0, -1.0]]))
        model.bias.copy_(torch.tensor([0.0, 0.0]))
    x = torch.tensor([[0.5 + 0.05, 0.5, 0.5, 0.5], [0.5 + 0.2, 0.5, 0.5, 0.5]])
    y = torch.tensor([1, 1])
    # Margins 0.05 and 0.2; an attack of eps takes 4 eps from each.
    assert _robust_accuracy(model, x, y, 0.01) == 1.0
    assert _robust_accuracy(model, x, y, 0.02) == 0.5
    assert _robust_accuracy(model, x, y, 0.06) == 0.0
