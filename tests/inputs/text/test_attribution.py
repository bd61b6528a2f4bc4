"""Attributions add up, are exact where they can be, and agree with brute force and a peer."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.text import IntegratedGradients, leave_one_out, per_word, words
from holdfast.inputs.text.attribution import CompletenessWarning


class Pooled(nn.Module):
    """Sum of embeddings through a head; `hidden` 0 makes it linear."""

    def __init__(self, hidden=8, outputs=1, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(20, 4, padding_idx=0)
        layers = (
            [nn.Linear(4, outputs)] if not hidden else [nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, outputs)]
        )
        self.head = nn.Sequential(*layers)

    def forward(self, numbers):
        scores = self.head(self.embedding(numbers).sum(1))
        return scores.squeeze(1) if scores.shape[1] == 1 else scores


def texts(n=12, length=9, seed=1):
    numbers = torch.randint(1, 20, (n, length), generator=torch.Generator().manual_seed(seed))
    numbers[0, 3:] = 0
    return numbers


def test_a_linear_score_is_attributed_exactly():
    model = Pooled(hidden=0)
    numbers = texts()
    found = IntegratedGradients(steps=8)(model, numbers)
    wanted = model.embedding(numbers) @ model.head[0].weight[0]
    torch.testing.assert_close(found.values, wanted.detach())
    assert (found.steps == 8).all()
    assert float(found.error.max()) < 1e-4


def test_attributions_add_up_and_pads_get_none():
    model, numbers = Pooled(), texts()
    found = IntegratedGradients()(model, numbers)
    with torch.no_grad():
        difference = model(numbers) - model(torch.zeros_like(numbers))
    torch.testing.assert_close(found.difference, difference)
    torch.testing.assert_close(found.values.sum(1), difference, atol=1e-3, rtol=0.05)
    assert (found.values[0, 3:] == 0).all()
    assert [len(row) for row in found.by_text(numbers)] == [3] + [9] * 11


def test_chunks_change_nothing(monkeypatch):
    model, numbers = Pooled(), texts()
    whole = IntegratedGradients()(model, numbers).values
    monkeypatch.setattr("holdfast.inputs.text.attribution.CHUNK", 24)
    torch.testing.assert_close(IntegratedGradients()(model, numbers).values, whole, atol=1e-5, rtol=1e-4)


def test_more_steps_are_taken_where_the_sum_is_off():
    model = Pooled()
    with torch.no_grad():
        model.head[0].weight.mul_(60)  # so steep that eight steps miss it
    found = IntegratedGradients(steps=8)(model, texts())
    assert int(found.steps.max()) > 8
    assert float(found.error.max()) <= 0.05
    with pytest.warns(CompletenessWarning, match="off by more"):
        IntegratedGradients(steps=8, most=8)(model, texts())


def test_one_output_of_several_is_attributed():
    model, numbers = Pooled(outputs=3), texts()
    found = [IntegratedGradients()(model, numbers, target=column) for column in range(3)]
    with torch.no_grad():
        gap = model(numbers) - model(torch.zeros_like(numbers))
    torch.testing.assert_close(torch.stack([part.difference for part in found], 1), gap)
    with pytest.raises(InputError, match="target"):
        IntegratedGradients()(model, numbers)


def test_agrees_with_captum_at_equal_steps():
    attr = pytest.importorskip("captum.attr")
    model, numbers = Pooled(), texts()
    ours = IntegratedGradients(steps=50, most=50, tolerance=1.0)(model, numbers).values
    peer = attr.LayerIntegratedGradients(model, model.embedding)
    theirs = peer.attribute(numbers, baselines=torch.zeros_like(numbers), n_steps=50, method="riemann_middle").sum(2)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


VALUES = {"good": 2.0, "fine": 1.0, "bad": -3.0}


def bag(some):
    return np.array([sum(VALUES.get(word, 0.0) for word in words(text)) for text in some])


def test_leaving_a_word_out_of_a_sum_gives_its_value():
    for window in (1, 2):
        (values,) = leave_one_out(bag, ["A good, bad film: fine!"], window=window)
        wanted = {1: [0, 2, -3, 0, 1], 2: [2, 0.5, -2, -1, 1]}[window]
        np.testing.assert_allclose(values, wanted)
    assert leave_one_out(bag, ["good"], window=3)[0].tolist() == [2.0]


def test_pieces_of_words_are_added_up():
    np.testing.assert_allclose(per_word(np.array([1.0, 2, 3, 4]), np.array([0, 0, -1, 1])), [3, 4])


def test_bad_requests_are_refused():
    model = Pooled()
    with pytest.raises(InputError, match="8 steps"):
        IntegratedGradients(steps=7)
    with pytest.raises(InputError, match="its embeddings are: embedding"):
        IntegratedGradients("words")(model, texts())
    with pytest.raises(InputError, match="not part"):
        IntegratedGradients(nn.Embedding(20, 4))(model, texts())
    with pytest.raises(InputError, match="text 1 is empty"):
        IntegratedGradients()(model, torch.tensor([[1, 2], [0, 0]]))
    with pytest.raises(InputError, match="empty"):
        leave_one_out(bag, ["good", " . "])
    with pytest.raises(InputError, match="window"):
        leave_one_out(bag, ["good"], window=0)
    with pytest.raises(InputError, match="one finite number"):
        leave_one_out(lambda some: np.zeros((len(some), 2)), ["good"])
