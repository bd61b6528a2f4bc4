"""Patterns are what their definition says, followers are what the network's own activations say."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Graph, Region, capture
from holdfast.inputs.bounds.activation_patterns import (
    ActivationPattern,
    Activations,
    PatternMiner,
    contradict,
    coverage,
    follows,
    infeasible,
    mine_patterns,
)
from holdfast.inputs.features import Features
from holdfast.threats.balls import Linf

from .networks import drawn


@cache
def perceptron() -> nn.Sequential:
    layers = [nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 3)]
    return drawn(nn.Sequential(*layers), 0, 1.5)


@cache
def traced() -> Graph:
    """The perceptron's graph: tracing takes longer than everything else here."""
    return capture(perceptron(), inputs())


def inputs(count: int = 300, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch_generator(seed, "tests", "patterns"))


def pattern(on: list[list[int]], off: list[list[int]], widths: tuple[int, ...] = (10, 7)) -> ActivationPattern:
    def masks(chosen: list[list[int]]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.isin(torch.arange(width), torch.tensor(part)) for width, part in zip(widths, chosen))

    return ActivationPattern(masks(on), masks(off))


def test_activations_are_those_that_hooks_see():
    model, x = perceptron(), inputs()
    layers, outputs = Activations.of(model, x)(x)  # traces by itself
    for active, seen in zip(layers, Features(model, ("1", "3"), at="input")(x)):
        np.testing.assert_array_equal(active.numpy(), seen > 0)
    torch.testing.assert_close(outputs, model(x).detach())


def test_convolutions_and_leaky_units_have_patterns():
    layers = [nn.Conv2d(1, 3, 3), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(108, 5), nn.ReLU(), nn.Linear(5, 2)]
    model = drawn(nn.Sequential(*layers), 1)
    x = torch.rand(20, 1, 8, 8, generator=torch_generator(0))
    activations = Activations.of(model, x)
    assert activations.widths == (108, 5)
    assert torch.equal(activations(x)[0][0], model[0](x).flatten(1) > 0)


@pytest.mark.parametrize("delta", [1.0, 0.9, 0.6])
def test_a_pattern_is_what_nearly_all_inputs_of_the_class_share(delta):
    model, x = perceptron(), inputs()
    y = model(x).argmax(1)
    found = mine_patterns(traced(), x, y, delta)
    layers, _ = Activations.of(traced(), x)(x)
    for label, mined in found.items():
        active = torch.cat(layers, 1)[y == label].double()
        on, off = active.mean(0) >= delta, (1 - active).mean(0) >= delta
        assert torch.equal(mined.signs, on.to(torch.int8) - off.to(torch.int8))
        if delta == 1:
            assert coverage(traced(), mined, x[y == label]).value == 1
        assert mined.fixed >= mine_patterns(traced(), x, y, 1.0)[label].fixed


@pytest.mark.parametrize("share", range(51, 101))
def test_on_and_off_are_one_rule(share):
    """A neuron that is on for k of 100 is in the pattern of delta = k / 100; so is one that is off for k of 100."""
    on = torch.arange(100)[:, None] < share
    mined = ActivationPattern.of([torch.cat([on, ~on], 1)], share / 100)
    assert mined.signs.tolist() == [1, -1]
    if share < 100:
        assert ActivationPattern.of([torch.cat([on, ~on], 1)], (share + 1) / 100).fixed == 0


def test_wrong_inputs_are_left_out_unless_asked_for():
    model, x = perceptron(), inputs()
    y = model(x).argmax(1)
    wrong = y.clone()
    wrong[::7] = (y[::7] + 1) % 3
    right = model(x).argmax(1) == wrong
    expected = mine_patterns(traced(), x[right], wrong[right])
    for label, mined in mine_patterns(traced(), x, wrong).items():
        assert torch.equal(mined.signs, expected[label].signs)
    everyone = mine_patterns(traced(), x, wrong, correct_only=False)
    assert any(not torch.equal(everyone[label].signs, expected[label].signs) for label in expected)


def test_following_is_decided_neuron_by_neuron():
    model, x = perceptron(), inputs()
    first = model[0](x) > 0
    second = model[2](torch.relu(model[0](x))) > 0
    wanted = first[:, 2] & ~first[:, 5] & second[:, 1]
    chosen = pattern([[2], [1]], [[5], []])
    assert torch.equal(follows(traced(), chosen, x), wanted)
    estimate = coverage(traced(), chosen, x)
    assert estimate.value == pytest.approx(float(wanted.double().mean()))
    assert estimate.low < estimate.value < estimate.high
    assert follows(traced(), pattern([[], []], [[], []]), x).all()


def test_a_neuron_at_exactly_zero_is_off():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2)).eval()
    x = torch.zeros(1, 1)
    assert follows(model, pattern([[]], [[0]], (1,)), x).all()
    assert not follows(model, pattern([[0]], [[]], (1,)), x).any()


def test_contradicting_patterns_share_no_input():
    p, q, r = pattern([[0], []], [[1], [2]]), pattern([[1], []], [[], []]), pattern([[0], []], [[], [3]])
    assert contradict(p, q)
    assert contradict(q, p)
    assert not contradict(p, r)
    x = inputs(2000)
    assert not (follows(traced(), p, x) & follows(traced(), q, x)).any()
    with pytest.raises(InputError, match="different networks"):
        contradict(p, pattern([[0]], [[]], (10,)))


def test_only_regions_without_followers_are_called_infeasible():
    model, x = perceptron(), inputs(60, 1)
    y = model(x).argmax(1)
    found = mine_patterns(traced(), inputs(), model(inputs()).argmax(1), 0.95)
    region, graph = Region(x, Linf(0.05)), traced()
    generator = torch_generator(2)
    proven = 0
    for label, mined in found.items():
        empty = infeasible(graph, mined, region)
        proven += int(empty[y != label].sum())
        for _ in range(50):
            point = Linf(0.05).random_start(x, generator=generator)
            assert not (follows(graph, mined, point) & empty).any()
    assert proven > 0


def test_cutting_fixed_neurons_tightens_what_follows():
    # Second layer z2 = relu(x) - 0.5: it is never on where x is at most 0, which the first layer's mask says.
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        for layer, bias in ((model[0], 0.0), (model[2], -0.5)):
            layer.weight.fill_(1.0)
            layer.bias.fill_(bias)
    region = Region(torch.zeros(1, 1), Linf(1.0))
    graph = capture(model, region.x)
    assert infeasible(graph, pattern([[], [0]], [[0], []], (1, 1)), region).all()
    assert not infeasible(graph, pattern([[], [0]], [[], []], (1, 1)), region).any()
    assert not infeasible(graph, pattern([[0], [0]], [[], []], (1, 1)), region).any()


def test_patterns_survive_the_disk(tmp_path):
    mined = mine_patterns(traced(), inputs(), perceptron()(inputs()).argmax(1))[0]
    mined.save(tmp_path / "pattern.safetensors")
    again = ActivationPattern.load(tmp_path / "pattern.safetensors")
    assert torch.equal(again.signs, mined.signs)
    assert again.widths == mined.widths
    assert again.shape == mined.shape == (6,)
    bare = pattern([[0], []], [[1], [2]])
    bare.save(tmp_path / "bare.safetensors")
    assert ActivationPattern.load(tmp_path / "bare.safetensors").shape is None
    assert mined.joined(mined).shape == (6,)


def test_joined_patterns_are_followed_by_those_that_follow_both():
    x = inputs(2000)
    p, q = pattern([[0], []], [[1], [2]]), pattern([[0, 4], [1]], [[], []])
    both = follows(traced(), p, x) & follows(traced(), q, x)
    assert torch.equal(follows(traced(), p.joined(q), x), both)
    assert both.any()
    with pytest.raises(InputError, match="both ways"):
        p.joined(pattern([[1], []], [[], []]))


def test_the_miner_collects_all_classes():
    model, x = perceptron(), inputs()
    y = model(x).argmax(1)
    miner = PatternMiner(traced(), delta=0.97).fit(x, y)
    held = inputs(200, 5)
    hits = miner.predict_follows(held)
    for column, label in enumerate(miner.classes_.tolist()):
        assert torch.equal(hits[:, column], follows(traced(), miner.patterns_[label], held))
    labels = model(held).argmax(1)
    shares = [coverage(traced(), miner.patterns_[c], held[labels == c]).value for c in labels.unique().tolist()]
    assert miner.score(held, labels) == pytest.approx(np.mean(shares))


def test_input_errors():
    model, x = perceptron(), inputs(30)
    y = model(x).argmax(1)
    for delta in (0.5, 1.1):
        with pytest.raises(InputError, match="delta"):
            mine_patterns(traced(), x, y, delta)
    with pytest.raises(InputError, match=r"right; a pattern"):
        mine_patterns(traced(), x[:1], (y[:1] + 1) % 3)
    with pytest.raises(InputError, match="labels must lie"):
        mine_patterns(traced(), x, y + 5)
    with pytest.raises(InputError, match="no ReLU"):
        mine_patterns(nn.Sequential(nn.Linear(6, 3)).eval(), x, y)
    with pytest.raises(InputError, match="mine it from this model"):
        follows(traced(), pattern([[]], [[]], (10,)), x)
    with pytest.raises(InputError, match=r"inputs of shape \(9,\), the model takes \(6,\)"):
        follows(traced(), replace(pattern([[], []], [[], []]), shape=(9,)), x)
    with pytest.raises(InputError, match="both on and off"):
        pattern([[1], []], [[1], []])
    with pytest.raises(InputError, match="fit first"):
        PatternMiner(traced()).predict_follows(x)
    with pytest.raises(InputError, match="finite"):
        follows(traced(), pattern([[], []], [[], []]), torch.full((1, 6), torch.nan))
