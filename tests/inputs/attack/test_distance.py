"""Smallest changes: exact for a line, never longer than asked, zero for what is wrong already."""

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.attack.distance import smallest_changes
from holdfast.inputs.attack.ensemble import StandardEnsemble
from holdfast.inputs.attack.gradient import PGD
from holdfast.threats.balls import L2, Linf


def line():
    """Class 1 where 3 a + 4 b > 2.5: the L2 distance of (a, b) is |3 a + 4 b - 2.5| / 5."""
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    model.bias.data = torch.tensor([0.0, -2.5])
    return model.eval()


@pytest.mark.parametrize(("threat", "divisor"), [(L2(1.0), 5.0), (Linf(1.0), 7.0)])
def test_distances_to_a_line(threat, divisor):
    model, x = line(), torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    attack = PGD(threat, steps=10, random_start=False)
    run = smallest_changes(attack, model, x, y, largest=1.0, levels=256, valid=None)
    exact = (x @ torch.tensor([3.0, 4.0]) - 2.5).abs() / divisor
    assert bool((run.distance >= exact - 1e-5).all())
    assert bool((run.distance <= exact + 1 / 128).all())
    assert bool((model(run.x_adv).argmax(1) != y).all())
    torch.testing.assert_close(run.distance, threat.norm(run.x_adv - x))


def test_what_is_wrong_costs_nothing_and_what_is_out_of_reach_stays():
    model, x = line(), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    run = smallest_changes(PGD(L2(1.0), steps=5), model, x, torch.tensor([0, 0]), largest=0.1, levels=4, valid=None)
    assert run.distance.tolist() == [torch.inf, 0.0]
    assert run.queries[1] == 1
    assert torch.equal(run.x_adv, x)


def test_refusals():
    model, x, y = line(), torch.zeros(1, 2), torch.tensor([0])
    with pytest.raises(InputError, match="power of two"):
        smallest_changes(PGD(L2(1.0)), model, x, y, largest=1.0, levels=10)
    with pytest.raises(InputError, match="positive radius"):
        smallest_changes(StandardEnsemble(L2(1.0)), model, x, y, largest=0.0)
