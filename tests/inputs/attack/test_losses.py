"""Losses against their definitions, and the edge cases the reference code is known to fail on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.inputs.attack.losses import Aim, cross_entropy, difference_of_logits_ratio, margin


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_dlr_ignores_scale_and_shift_and_has_the_sign_of_the_margin(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 5, (7,), generator=generator)
    t = (y + 1) % 5
    for target in (None, t):
        value = difference_of_logits_ratio(logits, y, target)
        assert torch.allclose(
            value, difference_of_logits_ratio(scale * logits + shift, y, target), rtol=1e-6, atol=1e-6
        )
    assert torch.equal(difference_of_logits_ratio(logits, y) > 0, margin(logits, y) > 0)


def test_values_by_hand():
    logits = torch.tensor([[4.0, 3.0, 1.0, -2.0]])
    y, t = torch.tensor([0]), torch.tensor([1])
    assert margin(logits, y).item() == -1.0
    assert margin(logits, y, t).item() == -1.0
    assert margin(logits, y, torch.tensor([3])).item() == -6.0
    assert difference_of_logits_ratio(logits, y).item() == pytest.approx(-1 / 3)
    assert difference_of_logits_ratio(logits, y, t).item() == pytest.approx(-1 / 4.5)
    assert difference_of_logits_ratio(logits[:, :3], y, t).item() == pytest.approx(-1 / 3)
    assert difference_of_logits_ratio(logits[:, :2], y, t).item() == -1.0
    assert cross_entropy(logits, y).item() == pytest.approx(-torch.log_softmax(logits, 1)[0, 0].item())
    assert cross_entropy(logits, y, t).item() == pytest.approx(torch.log_softmax(logits, 1)[0, 1].item())


def test_outputs_that_are_not_finite_never_count_as_a_win():
    aim = Aim("ce", torch.tensor([0, 0]))
    assert aim.reached(torch.tensor([[0.0, torch.nan], [0.0, 1.0]])).tolist() == [False, True]
