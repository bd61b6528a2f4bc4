"""Square Attack and random noise: scores only, inside the set, any shape, stronger than noise."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.attack.noise import RandomNoise
from holdfast.inputs.attack.square import (
    HALVINGS,
    Square,
    bump,
    move_mass,
    place_bump,
    share,
    side_lengths,
    window_mask,
)
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


@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.6), L1(2.0)], ids=repr)
@pytest.mark.parametrize("shape", [(3, 8), (3, 2, 4), (2, 3, 2, 2), (24,)], ids=str)
def test_every_channel_keeps_its_own_range_whatever_the_shape(threat, shape):
    model, x, y = models.linear(features=24, shape=shape)
    ends = torch.linspace(0.5, 1.0, shape[0], dtype=x.dtype).reshape(-1, *(1,) * (len(shape) - 1))
    x = x * ends
    y = model(x).argmax(1)
    run = Square(threat, queries=40).run(model, x, y, valid=(torch.zeros_like(ends), ends), generator=stream())
    assert threat.contains(run.x_adv, x, (torch.zeros_like(ends), ends)).all()
    assert torch.equal(run.success, model(run.x_adv).argmax(1) != y)
    assert (run.norm[run.queries > 0] > 0.9 * threat.radius).any()


@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.6), L1(2.0)], ids=repr)
@pytest.mark.parametrize(("shape", "share"), [((24,), 0.6), ((1, 8, 3), 0.25)], ids=["rows", "tall"])
def test_finds_much_of_what_can_be_found_in_rows_and_in_images_that_are_not_square(threat, shape, share):
    model, x, y = models.linear(features=24, shape=shape)
    run = Square(threat, queries=300, rescale=True).run(model, x, y, generator=stream())
    assert threat.contains(run.x_adv, x, (0, 1)).all()
    logits = model(x)
    gaps = logits.gather(1, y[:, None]) - logits
    normals = (model.weight[y][:, None] - model.weight).reshape(len(x), -1, *shape)
    reachable = ((gaps + threat.worst(normals, x, (0, 1)) < 0) & (gaps > 0)).any(1)
    assert not run.success[~reachable].any()
    assert run.success.sum() > share * reachable.sum() > 5


@pytest.mark.parametrize(("threat", "norm"), [(Linf(0.06), "Linf"), (L2(0.8), "L2")], ids=["linf", "l2"])
def test_as_strong_as_the_reference_at_the_same_number_of_queries(threat, norm):
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = models.trained()
    right = model(x).argmax(1) == y
    ours = (right & ~Square(threat, queries=120).run(model, x, y, generator=stream()).success).sum()
    peer = torchattacks.Square(model, norm=norm, eps=threat.radius, n_queries=120, seed=0)(x, y)
    theirs = (right & (model(peer).argmax(1) == y)).sum()
    assert 0 < ours < right.sum()
    share = theirs / len(x)
    assert ours <= theirs + (share * (1 - share) * len(x)) ** 0.5  # one standard error of the reference's


def test_a_change_that_the_valid_range_cut_off_is_spent_elsewhere():
    plane = torch.zeros(64, 1, 8, 8)  # black: half of every bump would go below the range
    change = torch.zeros_like(plane)
    moved = move_mass(change, 1.0, 2, 0.5, stream())
    assert torch.allclose(moved.square().sum((1, 2, 3)), torch.ones(64))
    cut = moved.clamp(min=0)
    assert (cut.square().sum((1, 2, 3)) < 0.9).all()
    again = move_mass(cut, 1.0, 2, 0.1, stream())
    assert torch.allclose(again.square().sum((1, 2, 3)), torch.ones(64))


@pytest.mark.parametrize("power", [1, 2])
def test_bumps_lie_either_way(power):
    plane = torch.zeros(200, 1, 5, 5)
    placed = place_bump(plane, (5, 5), (torch.zeros(200).long(), torch.zeros(200).long()), power, stream())[:, 0]
    shape = bump(5, 5, plane, power)
    upright = (placed == shape).flatten(1).all(1)
    lying = (placed == shape.T).flatten(1).all(1)
    assert (upright ^ lying).all()
    assert 60 < upright.sum() < 140


def test_more_queries_never_lower_the_best_loss():
    model, x, y = models.trained()
    few = Square(Linf(0.02), queries=20).run(model, x, y, generator=stream())
    many = Square(Linf(0.02), queries=100).run(model, x, y, generator=stream())
    held = ~few.success & ~many.success
    assert (many.best_loss[held] >= few.best_loss[held]).all()
    assert (many.queries <= 101).all()


def test_a_short_search_needs_the_schedule_stretched_to_it():
    model, x, y = models.linear(features=24)
    plain, stretched = (
        int(Square(Linf(0.2), queries=100, rescale=rescale).run(model, x, y, generator=stream()).success.sum())
        for rescale in (False, True)
    )
    assert stretched > 1.5 * plain > 0


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
        assert float(bump(*size, plane, 1).abs().sum()) == pytest.approx(1.0)


def test_what_it_cannot_attack_is_named():
    with pytest.raises(UnsupportedError, match="L0"):
        Square(L0(3))
    with pytest.raises(InputError, match="at least one query"):
        Square(Linf(0.1), queries=0)
