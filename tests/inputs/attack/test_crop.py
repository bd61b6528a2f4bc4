"""Crop selection: which window is chosen, how often shifts change it, and that cyclic shifts never do."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.intervals import clopper_pearson
from holdfast.inputs.attack.crop import (
    CropSelection,
    QuantisedWarning,
    consistency_bound,
    filter_score,
    shift_consistency,
    window_hash,
)


def noise(n, side, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, side, side), generator=generator) / 255.0


def test_the_formula_at_known_points():
    assert consistency_bound(30, 22, (1, 1)) == pytest.approx((64 / 81) / (2 - 64 / 81))
    assert consistency_bound(30, 22, (0, 0)) == 1
    assert consistency_bound(8, 8, (0, 1)) == 0
    assert consistency_bound(10_000, 2, (1, 1)) > 0.999


@pytest.mark.parametrize("move", [(0, 1), (1, 1), (2, 3)])
def test_the_hash_chooses_alike_as_often_as_the_formula_says(move):
    x = noise(4000, 15)
    down, right = move
    select = CropSelection(nn.Identity(), 4)
    first = select.places(x[:, :, :12, :12])
    second = select.places(x[:, :, down : down + 12, right : right + 12])
    same = int((second + torch.tensor(move) == first).all(1).sum())
    measured = clopper_pearson(same, len(x), 0.999)
    assert measured.low <= consistency_bound(12, 4, move) <= measured.high


def test_every_window_is_equally_likely_to_be_chosen():
    places = CropSelection(nn.Identity(), 5).places(noise(4500, 7))
    counts = torch.bincount(places[:, 0] * 3 + places[:, 1], minlength=9).double()
    assert float(((counts - 500) ** 2 / 500).sum()) < 27.9  # chi-squared with 8 degrees of freedom, p = 0.0005


def test_the_hash_sees_its_window_and_nothing_else():
    x = noise(1, 12, channels=3)
    hashes = window_hash(x, 4, key=7)
    assert hashes.shape == (1, 9, 9)
    assert len(hashes.unique()) == 81
    for row, column in [(0, 0), (3, 5), (8, 8)]:
        alone = window_hash(x[:, :, row : row + 4, column : column + 4].contiguous(), 4, key=7)
        assert alone.item() == hashes[0, row, column]
    changed = x.clone()
    changed[0, 2, 5, 5] = 1 - changed[0, 2, 5, 5]
    touched = window_hash(changed, 4, key=7) != hashes
    rows, columns = touched[0].nonzero(as_tuple=True)
    assert touched.sum() == 16
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 5, 2, 5)
    assert not torch.equal(window_hash(x, 4, key=8), hashes)


@pytest.mark.parametrize("score", ["hash", "energy", "filter"])
def test_cyclic_shifts_never_change_the_answer(score):
    x = noise(20, 10, channels=2)
    select = CropSelection(nn.Flatten(), 5, score, cyclic=True, resize=False)
    answer = select(x)
    for move in [(0, 1), (3, 7), (9, 9)]:
        torch.testing.assert_close(select(x.roll(move, (2, 3))), answer, rtol=0, atol=0)


def test_windows_are_what_the_places_say_and_ties_go_to_the_first():
    x = noise(3, 9)
    select = CropSelection(nn.Identity(), 4, lambda image: image[:, 0, :6, :6])
    for image, window, (row, column) in zip(x, select.selected(x), select.places(x).tolist(), strict=True):
        assert image[0, row, column] == image[0, :6, :6].max()
        torch.testing.assert_close(window, image[:, row : row + 4, column : column + 4])
    assert CropSelection(nn.Identity(), 4).places(torch.zeros(2, 1, 9, 9)).tolist() == [[0, 0], [0, 0]]


def test_scores_are_those_of_the_windows():
    x = noise(2, 9)
    energy = CropSelection(nn.Identity(), 4, "energy").places(x)
    for image, place in zip(x, energy.tolist(), strict=True):
        variances = F.unfold(image[None].double(), 4)[0].var(0, unbiased=False)
        assert place[0] * 6 + place[1] == int(variances.argmax())
    scores = filter_score(x, 5)
    assert scores.shape == (2, 5, 5)
    centre = 9 * x[0, 0, 2, 2] - x[0, 0, 1:4, 1:4].sum()
    torch.testing.assert_close(scores[0, 0, 0], centre.abs(), atol=1e-5, rtol=1e-5)


def test_the_majority_of_independent_keys_wins_and_ties_go_by_softmax():
    x, model = noise(1000, 10), nn.Sequential(nn.Flatten(), nn.Linear(100, 3)).eval()
    single = torch.stack([CropSelection(model, 6, key=key)(x).softmax(1) for key in (0, 1, 2)])
    voted = CropSelection(model, 6, votes=3)(x).exp()
    torch.testing.assert_close(voted.sum(1), torch.ones(1000))
    answers = single.argmax(2)
    majority, counts = answers.mode(0).values, torch.nn.functional.one_hot(answers, 3).sum(0)
    clear = counts.amax(1) > 1
    assert (voted.argmax(1) == majority)[clear].all()
    assert (voted.argmax(1) == single.mean(0).argmax(1))[~clear].all()
    assert (majority != single.mean(0).argmax(1))[clear].any()  # the mean softmax would have said otherwise


@pytest.mark.parametrize("votes", [1, 3])
def test_nothing_in_nothing_out(votes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(100, 3)).eval()
    assert CropSelection(model, 6, votes=votes)(noise(4, 10)[:0]).shape == (0, 3)
    flat = CropSelection(nn.Flatten(), 6, cyclic=True, votes=votes, resize=False)
    assert flat(noise(4, 10)[:0]).shape == (0, 36)


def test_consistency_of_a_model_that_sees_position_and_of_one_that_does_not():
    x = noise(50, 12)
    corner = nn.Sequential(nn.Flatten(), nn.Linear(100, 2, bias=False)).eval()
    with torch.no_grad():
        corner[1].weight.zero_()
        corner[1].weight[0, 0], corner[1].weight[1, 99] = 1.0, 1.0

    class Constant(nn.Module):
        def forward(self, images):
            return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)

    assert shift_consistency(Constant().eval(), x, 10).value == 1
    assert shift_consistency(corner, x, 10).value < 0.3


def test_bad_input_is_told():
    with pytest.raises(InputError, match="does not fit"):
        CropSelection(nn.Identity(), 9)(noise(1, 8))
    with pytest.raises(InputError, match="unknown score"):
        CropSelection(nn.Identity(), 3, "best")
    with pytest.raises(InputError, match="votes"):
        CropSelection(nn.Identity(), 3, "energy", votes=3)
    with pytest.raises(InputError, match="whole number"):
        consistency_bound(32, 22, (0.5, 0))
    with pytest.raises(InputError, match="whole number"):
        shift_consistency(nn.Flatten(), noise(1, 12), 10, px=0.5)
    with pytest.raises(InputError, match="need images of 12"):
        shift_consistency(nn.Flatten(), noise(1, 11), 10)
    with pytest.warns(QuantisedWarning):
        window_hash(torch.full((1, 1, 4, 4), 0.1234), 2)
