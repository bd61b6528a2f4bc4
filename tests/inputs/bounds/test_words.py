"""Word substitution and pixel sets through `bounds` and `certify`: exact on linear models, against enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Method, Region, bounds, certify
from holdfast.threats import L0, WordSwap

from .architectures import Attention
from .attack import excess
from .networks import drawn

POSITIONS, WIDTH, CHOICES = 4, 3, 2
METHODS: tuple[Method, ...] = ("ibp", "forward", "crown-ibp", "crown", "alpha-crown")


def sentences(batch: int = 3) -> tuple[Tensor, WordSwap]:
    generator = torch_generator(0, "tests", "sentences")
    x = torch.randn(batch, POSITIONS, WIDTH, generator=generator, dtype=torch.float64)
    words = torch.randn(batch, POSITIONS, CHOICES, WIDTH, generator=generator, dtype=torch.float64)
    return x, WordSwap(2, words, torch.rand(batch, POSITIONS, CHOICES, generator=generator) < 0.8)


def every_sentence(x: Tensor, threat: WordSwap, place: int) -> Tensor:
    """All admissible sentences of one example."""
    options = [
        [x[place, t], *(threat.candidates[place, t, c] for c in range(CHOICES) if threat.allowed[place, t, c])]
        for t in range(POSITIONS)
    ]
    found = []
    for picks in itertools.product(*(range(len(part)) for part in options)):
        if sum(pick > 0 for pick in picks) <= threat.swaps:
            found.append(torch.stack([options[t][pick] for t, pick in enumerate(picks)]))
    return torch.stack(found)


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_model_is_exact_over_all_substitutions(method):
    model = drawn(nn.Sequential(nn.Flatten(), nn.Linear(POSITIONS * WIDTH, 3)), 0).double()
    x, threat = sentences()
    # So little memory that examples are bounded one by one: each has candidates of its own.
    found = bounds(model, Region(x, threat), method=method, memory=1 << 10)
    for place in range(len(x)):
        outputs = model(every_sentence(x, threat, place))
        torch.testing.assert_close(found.lower[place], outputs.amin(0), rtol=0, atol=1e-9)
        torch.testing.assert_close(found.upper[place], outputs.amax(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_model_is_exact_over_all_choices_of_pixels(method):
    model = drawn(nn.Linear(5, 3), 0).double()
    x = torch.rand(2, 5, generator=torch_generator(1, "pixels"), dtype=torch.float64)
    found = bounds(model, Region(x, L0(2), (0.0, 1.0)), method=method)
    corners = []
    for chosen in itertools.combinations(range(5), 2):
        for values in itertools.product((0.0, 1.0), repeat=2):
            moved = x.clone()
            moved[:, list(chosen)] = torch.tensor(values, dtype=torch.float64)
            corners.append(model(moved))
        for values in itertools.product((0.0, 1.0), repeat=1):
            for one in chosen:
                moved = x.clone()
                moved[:, one] = values[0]
                corners.append(model(moved))
    outputs = torch.stack([*corners, model(x)])
    torch.testing.assert_close(found.lower, outputs.amin(0), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.upper, outputs.amax(0), rtol=0, atol=1e-9)


class Classifier(nn.Module):
    """Attention over embedded words, then the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.head = Attention(False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.attend(x)).mean(1))


def test_what_is_certified_survives_every_substitution():
    model = drawn(Classifier(), 3, 2.0).double()
    generator = torch_generator(2, "tests", "sentences")
    x = torch.randn(12, POSITIONS, 4, generator=generator, dtype=torch.float64)
    words = x[:, :, None] + 0.25 * torch.randn(12, POSITIONS, CHOICES, 4, generator=generator, dtype=torch.float64)
    threat = WordSwap(2, words, torch.ones(12, POSITIONS, CHOICES, dtype=torch.bool))
    y = model(x).argmax(1)
    proven = certify(model, x, y, threat, method="crown")
    assert proven.certified.any()
    assert not proven.certified.all()
    for place in range(len(x)):
        outputs = model(every_sentence(x, threat, place))
        margins = outputs[:, y[place]] - outputs[:, 1 - y[place]]
        assert margins.min() >= proven.margin[place]
    with torch.no_grad():
        found = bounds(model, Region(x, threat), method="crown-ibp", rounding="outward")
    assert excess(model, Region(x, threat), found, samples=20, steps=4) <= 0
