"""Shifts and rotations on models that look at one place."""

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.attack.shifts import RotationTranslation, ShiftAttack, rotated
from holdfast.threats.places import Translation


class Peep(nn.Module):
    """Class 1 when the middle pixel is bright."""

    def forward(self, x):
        value = x[:, 0, x.shape[2] // 2, x.shape[3] // 2] - 0.5
        return torch.stack([-value, value], 1)


def dots(*places, side=9):
    x = torch.zeros(len(places), 1, side, side)
    for image, (row, column) in zip(x, places, strict=True):
        image[0, row, column] = 1
    return x


def test_only_moves_that_bring_the_dot_to_the_middle_fool():
    x = dots((4, 4), (3, 4), (0, 0), (4, 6))
    y = torch.tensor([1, 0, 0, 0])
    run = ShiftAttack(Translation(1, "zeros")).run(Peep().eval(), x, y)
    assert run.success.tolist() == [True, True, False, False]
    assert run.fooled_moves.tolist() == [8, 1, 0, 0]  # the bright one is lost by every real move
    torch.testing.assert_close(run.x_adv[1, 0, 4, 4], torch.tensor(1.0))
    torch.testing.assert_close(run.x_adv[2:], x[2:])
    torch.testing.assert_close(run.worst_margin, torch.tensor([1.0, 1.0, -1.0, -1.0]))
    assert ShiftAttack(Translation(2, "zeros")).run(Peep().eval(), x, y).success.tolist() == [True, True, False, True]


def test_real_pixels_enter_when_moves_reveal_them():
    x = dots((5, 6), side=11)
    run = ShiftAttack(Translation(1, "reveal")).run(Peep().eval(), x, torch.tensor([0]))
    assert run.x_adv.shape == (1, 1, 9, 9)
    assert run.success.all()
    assert run.predictions.shape == (9, 1)


def test_what_is_wrong_already_is_not_counted_as_fooled():
    run = ShiftAttack(Translation(1, "zeros")).run(Peep().eval(), dots((4, 4)), torch.tensor([0]))
    assert not run.success.any()
    assert run.fooled_moves.tolist() == [0]


def test_quarter_turns_and_whole_shifts_move_pixels_exactly():
    x = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotated(x, 90.0, 0.0, 0.0), x.rot90(1, (2, 3)), atol=1e-5, rtol=0)
    moved = rotated(x, 0.0, 2.0, -1.0)
    torch.testing.assert_close(moved[:, :, 2:, :-1], x[:, :, :-2, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[:, :, :2], torch.zeros(2, 3, 2, 7), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        rotated(x, 90.0, 1.0, 0.0), rotated(rotated(x, 90.0, 0.0, 0.0), 0.0, 1.0, 0.0), atol=1e-5, rtol=0
    )


def test_rotation_keeps_a_wide_image_rigid():
    """A turn by 30 degrees moves a pixel 4 right of the centre to (4 cos 30 right, 4 sin 30 up), whatever the shape."""
    x = torch.zeros(1, 1, 11, 21)
    x[0, 0, 5, 14] = 1
    made = rotated(x, 30.0, 0.0, 0.0)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(11.0), torch.arange(21.0), indexing="ij")
    centre = torch.stack([(made * rows).sum(), (made * columns).sum()]) / made.sum()
    torch.testing.assert_close(centre, torch.tensor([5 - 2.0, 10 + 3.4641]), atol=0.15, rtol=0)


def test_rotations_are_tried_from_mild_to_wild():
    attack = RotationTranslation(30.0, 2.0, (5, 3, 3))
    moves = attack.moves()
    assert len(moves) == 45
    assert moves[0] == (0.0, 0.0, 0.0)
    run = attack.run(Peep().eval(), dots((4, 6)), torch.tensor([0]))
    assert run.success.all()


def test_bad_input_is_told():
    with pytest.raises(InputError, match="odd"):
        RotationTranslation(grid=(4, 3, 3))
    with pytest.raises(InputError, match="too small"):
        ShiftAttack(Translation(5, "zeros"))(Peep().eval(), dots((1, 1), side=4), torch.tensor([0]))


EVERY = [ShiftAttack(Translation(1, "zeros")), RotationTranslation(grid=(3, 3, 3))]


@pytest.mark.parametrize("attack", EVERY, ids=["shifts", "rotations"])
def test_a_range_and_a_generator_are_taken_as_by_other_attacks(attack):
    x, y = dots((3, 4), (0, 0)), torch.tensor([0, 0])
    plain = attack.run(Peep().eval(), x, y)
    ranged = attack.run(Peep().eval(), x, y.int(), valid=(0, 1), generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.x_adv, ranged.x_adv)
    assert torch.equal(plain.success, ranged.success)
    assert torch.equal(attack(Peep().eval(), x, y, valid=(0, 1), generator=None), plain.x_adv)


@pytest.mark.parametrize("attack", EVERY, ids=["shifts", "rotations"])
@pytest.mark.parametrize(
    ("change", "valid", "says"),
    [
        (lambda m, x, y: (m.train(), x, y), None, "training mode"),
        (lambda m, x, y: (m, x, y[:1]), None, "labels must be int64 of shape"),
        (lambda m, x, y: (m, x, y.float()), None, "labels must be int64"),
        (lambda m, x, y: (m, x, y + 7), None, "labels span"),
        (lambda m, x, y: (m, x * 255, y), (0, 1), "outside the valid range"),
        (lambda m, x, y: (m, x + torch.nan, y), None, "NaN or infinity"),
        (lambda m, x, y: (m, x + 1, y), (1, 2), "zeros enter"),
    ],
    ids=["training", "length", "float", "class", "range", "nan", "zeros"],
)
def test_what_does_not_fit_is_refused(attack, change, valid, says, as_users_run_it):
    model, x, y = change(Peep().eval(), dots((3, 4), (0, 0)), torch.tensor([0, 0]))
    with pytest.raises(InputError, match=says):
        attack.run(model, x, y, valid=valid)
