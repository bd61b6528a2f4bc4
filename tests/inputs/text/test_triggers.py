"""A trigger is the best there is where that can be known, and never worse than where it started."""

import itertools

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.text import UniversalTrigger


class Pooled(nn.Module):
    def __init__(self, hidden=0, words=15):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(words, 4, padding_idx=0)
        bent = [nn.Linear(4, hidden), nn.Tanh()] if hidden else []
        self.head = nn.Sequential(*bent, nn.Linear(hidden or 4, 1))

    def forward(self, numbers):
        return self.head(self.embedding(numbers).sum(1)).squeeze(1)


NUMBERS = torch.randint(2, 15, (6, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("direction", [1, -1])
def test_a_linear_score_has_one_best_word(direction):
    model = Pooled()
    with torch.no_grad():
        values = model.embedding.weight @ model.head[0].weight[0] * direction
    best = int(values[2:].argmax()) + 2
    found = UniversalTrigger(length=3, direction=direction, candidates=1)(model, NUMBERS)
    assert found.numbers.tolist() == [best] * 3
    assert found.after - found.before == pytest.approx(3 * direction * float(values[best]), rel=1e-4)


def test_all_candidates_and_a_wide_beam_find_the_best_of_all_triggers():
    model = Pooled(hidden=6, words=8)
    numbers = NUMBERS.clamp(max=7)
    found = UniversalTrigger(length=2, beam=36, candidates=6)(model, numbers)
    with torch.no_grad():
        every = {
            pair: float(model(torch.cat([torch.tensor(pair).expand(6, -1), numbers], 1)).mean())
            for pair in itertools.product(range(2, 8), repeat=2)
        }
    assert found.after == pytest.approx(max(every.values()), rel=1e-5)
    torch.testing.assert_close(model(found.prepended(numbers)).mean().item(), found.after)


def test_only_allowed_words_are_used():
    allowed = torch.tensor([3, 5])
    found = UniversalTrigger(length=3, candidates=9)(Pooled(hidden=6), NUMBERS, allowed)
    assert set(found.numbers.tolist()) <= {3, 5}


def test_bad_requests_are_refused():
    with pytest.raises(InputError, match="at least 1"):
        UniversalTrigger(length=0)
    with pytest.raises(InputError, match="no text"):
        UniversalTrigger()(Pooled(), NUMBERS[:0])
    with pytest.raises(InputError, match=r"nn\.Embedding"):
        UniversalTrigger(embedding="head")(Pooled(), NUMBERS)
