"""The battery environment: known bills, limits of the charge, gradients, and a policy that pays."""

import torch

from holdfast.core.seeds import torch_generator
from holdfast.papers.battery import FEED_IN, LEFT, LOSS, STEPS, Days, trained


def days(count=8):
    return Days.drawn(count, torch_generator(0, "battery days"))


def constant(action):
    return lambda s: torch.full((len(s), 1), action)


def test_an_idle_battery_leaves_the_bill_of_load_and_sun():
    some = days()
    grid = some.load - some.sun
    bill = torch.where(grid > 0, some.price * grid, FEED_IN * grid).sum(1)
    torch.testing.assert_close(some.cost(constant(0.0)), bill - LEFT * 0.5)


def test_charging_stops_at_a_full_battery_and_loses_a_tenth():
    some = days()
    idle, full = some.cost(constant(0.0)), some.cost(constant(1.0))
    grid = (some.load - some.sun)[:, 0]  # at midnight nothing is fed in
    assert (grid > 0).all()
    torch.testing.assert_close(full - idle, some.price[:, 0] * 0.5 / (1 - LOSS) - LEFT * 0.5)


def test_prices_ahead_are_seen_and_gradients_reach_the_policy():
    some = days()
    assert some.features.shape == (8, STEPS, 7)
    torch.testing.assert_close(some.features[:, :-4, 3], 3 * some.price[:, 4:])
    weight = torch.zeros(8, requires_grad=True)
    some.cost(lambda s: (s @ weight)[:, None]).sum().backward()
    assert weight.grad is not None
    assert bool((weight.grad != 0).any())


def test_a_little_training_saves_money():
    some = days(64)
    policy = trained(0, "battery test", batches=25)
    assert (some.cost(constant(0.0)) - some.cost(policy)).mean() > 0.2
