"""Square Attack and random noise: scores only, inside the set, any shape, stronger than noise."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.attack.noise import RandomNoise
from holdfast.inputs.attack.square import HALVINGS, Square, bump, share, side_lengths, window_mask
from holdfast.threats import L0, L1, L2, Box, Linf

spec = importlib.util.spec_from_file_location("attack_models", Path(__file__).with_name("models.py"))
models = importlib.util.module_from_spec(spec)
sys.modules["attack_models"] = models
spec.loader.exec_module(models)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("threat", [Linf(0.06), L2(0.6), L1(3.0), Box(-0.05, 0.08)], ids=repr)
def test_inside_the_set_and_stronger_than_noise(threat):
    model, x, y = models.trained()
    with torch.no_grad():
        run = Square(threat, queries=150).run(lambda z: model(z).detach(), x, y, generator=stream())
        noise = RandomNoise(threat, draws=10).run(model, x, y, generator=stream())
    assert threat.contains(run.x_adv, x, (0, 1)).all()
    assert threat.contains(noise.x_adv, x, (0, 1)).all()
    assert run.success.sum() > noise.success.sum()
    wrong = model(x).argmax(1) != y
    assert torch.equal(run.success, ~wrong & (model(run.x_adv).argmax(1) != y))


@pytest.mark.parametrize("threat", [Linf(0.4), L2(1.0), L1(5.0)], ids=repr)
def test_rows_of_a_table_and_images_that_are_not_square(threat):
    model, x, y = models.linear(features=24)
    rows = Square(threat, queries=100).run(model, x, y, generator=stream(), valid=(torch.zeros(24), torch.ones(24)))
    assert rows.success.float().mean() > 0.15
    tall, tall_x, tall_y = models.linear(features=24, shape=(1, 8, 3))
    tall_run = Square(threat, queries=100).run(tall, tall_x, tall_y, generator=stream())
    assert tall_run.success.float().mean() > 0.15
    assert threat.contains(tall_run.x_adv, tall_x, (0, 1)).all()


def test_more_queries_never_lower_the_best_loss():
    model, x, y = models.trained()
    few = Square(Linf(0.02), queries=20).run(model, x, y, generator=stream())
    many = Square(Linf(0.02), queries=100).run(model, x, y, generator=stream())
    held = ~few.success & ~many.success
    assert (many.best_loss[held] >= few.best_loss[held]).all()
    assert (many.queries <= 101).all()


def test_colour_images_of_odd_sizes_stay_inside():
    model = models.convolutional(channels=3)
    x = torch.rand(6, 3, 13, 9, generator=stream())
    y = model(x).argmax(1)
    for threat in (Linf(0.05), L2(0.8), L1(6.0)):
        run = Square(threat, queries=10).run(model, x, y, generator=stream())
        assert threat.contains(run.x_adv, x, (0, 1)).all()
        assert (run.norm > 0.5 * threat.radius).all()


def test_schedule_and_windows():
    assert [share(q, 0.8) for q in (1, 10, 11, 51, 201)] == pytest.approx([0.8, 0.8, 0.4, 0.2, 0.1])
    assert share(10_000, 0.8) == 0.8 / 2 ** len(HALVINGS)
    plane = torch.zeros(4, 1, 6, 9)
    assert side_lengths(plane, 1.0) == (6, 7)
    assert side_lengths(torch.zeros(1, 1, 1, 40), 0.25) == (1, 10)
    mask = window_mask(plane, (2, 3), torch.tensor([0, 1, 2, 4]), torch.tensor([0, 3, 6, 6]))
    assert mask.sum((1, 2, 3)).tolist() == [6] * 4
    for size in ((1, 1), (1, 5), (5, 5), (7, 3)):
        assert float(bump(*size, plane).norm()) == pytest.approx(1.0)
        assert bump(*size, plane).shape == size


def test_what_it_cannot_attack_is_named():
    with pytest.raises(UnsupportedError, match="L0"):
        Square(L0(3))
    with pytest.raises(InputError, match="at least one query"):
        Square(Linf(0.1), queries=0)
