"""What the comparison of attacks calls equal: never weaker than the peer beyond the slack, the same tensors, norms."""

from dataclasses import replace

import pytest
import torch

from benchmarks import attacks
from holdfast.threats import L2

MODEL = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False)).eval()
with torch.no_grad():
    MODEL[1].weight.copy_(torch.eye(2))
#: Class 0 wherever the first value is larger.
X = torch.tensor([[1.0, 0.0]]).repeat(10, 1)
Y = torch.zeros(10, dtype=torch.int64)


def moved(broken, size=0.75):
    """The first `broken` points pushed over the boundary by an L2 change of size sqrt(2) * `size`."""
    points = X.clone()
    points[:broken] += size * torch.tensor([-1.0, 1.0])
    return points


COMPARISON = replace(attacks.comparisons()[0], threat=L2(2.0))


@pytest.mark.parametrize(("ours", "theirs", "equal"), [(6, 6, True), (7, 6, True), (5, 6, False)])
def test_breaking_fewer_is_weaker_and_breaking_more_is_not(ours, theirs, equal):
    found, told = COMPARISON._verdicts(MODEL, X, Y, moved(ours), moved(theirs))
    assert found == equal
    assert float(told["equal verdicts"]) == pytest.approx(1 - abs(ours - theirs) / 10)
    assert float(told["robust accuracy ours"]) == pytest.approx(1 - ours / 10)


def test_norms_are_medians_and_what_was_not_found_is_infinite():
    assert COMPARISON._norms(MODEL, X, Y, moved(10, 0.6), moved(10, 0.7))[0]
    assert not COMPARISON._norms(MODEL, X, Y, moved(10, 0.7), moved(10, 0.6))[0]
    assert not COMPARISON._norms(MODEL, X, Y, moved(4, 0.6), moved(10, 0.9))[0]


def test_tensors_must_be_the_same_to_the_bit():
    assert COMPARISON._tensors(MODEL, X, Y, moved(3), moved(3))[0]
    assert not COMPARISON._tensors(MODEL, X, Y, moved(3), moved(3) + 1e-7)[0]


def test_names_are_unique():
    names = [comparison.name for comparison in attacks.comparisons()]
    assert len(set(names)) == len(names)
