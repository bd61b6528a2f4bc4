"""The attack keeps within its set, climbs past the boundary, and moves what is wrong already."""

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.attack.gradient import PGD
from holdfast.inputs.attack.persistent import PersistentPGD
from holdfast.threats.balls import L2, Linf


def setting():
    generator = torch_generator(0)
    net = nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 3)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.rand(60, 5, generator=generator)
    y = net(x).argmax(1)
    y[:6] = (y[:6] + 1) % 3  # these it gets wrong
    return net, x, y


@pytest.mark.parametrize("threat", [Linf(0.4), L2(0.9)])
def test_it_ends_inside_the_set_with_more_loss_than_pgd_that_stops(threat):
    net, x, y = setting()
    run = PersistentPGD(threat).run(net, x, y, generator=torch_generator(1))
    assert threat.contains(run.x_adv, x, (0, 1)).all()
    stopped = PGD(threat, steps=20).run(net, x, y, generator=torch_generator(1))
    both = run.success & stopped.success
    assert both.sum() >= 10
    confidence = [net(found.x_adv[both]).softmax(1).amax(1).mean() for found in (run, stopped)]
    assert confidence[0] > confidence[1] + 0.05


def test_examples_that_are_wrong_are_moved_but_do_not_count():
    net, x, y = setting()
    run = PersistentPGD(Linf(0.1), steps=5).run(net, x, y, generator=torch_generator(2))
    assert not run.success[:6].any()
    assert ((run.x_adv - x).abs().amax(1) > 0.01).all()
    assert (run.queries >= 5).all()


def test_for_a_linear_model_it_is_the_corner():
    net = nn.Linear(4, 2).eval()
    x, y = torch.full((8, 4), 0.5), torch.zeros(8, dtype=torch.int64)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -1.0, 2.0, 0.5], [0.0, 0.0, 0.0, 0.0]]))
        net.bias.copy_(torch.tensor([1.0, 0.0]))
    found = PersistentPGD(Linf(0.2), steps=20)(net, x, y, generator=torch_generator(3))
    torch.testing.assert_close(found, 0.5 - 0.2 * torch.tensor([1.0, -1.0, 1.0, 1.0]).expand(8, 4))


def test_no_step_is_no_attack():
    with pytest.raises(InputError, match="one step"):
        PersistentPGD(Linf(0.1), steps=0)
