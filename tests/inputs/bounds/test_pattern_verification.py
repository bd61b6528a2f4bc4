"""Verdicts about followers agree with mixed-integer programs; proofs about nothing say so."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.bounds import Graph, Region, capture
from holdfast.inputs.bounds.activation_patterns import ActivationPattern, Activations, follows, mine_patterns
from holdfast.inputs.bounds.pattern_search import Following, PatternIncumbent, narrowed
from holdfast.inputs.bounds.pattern_sweeps import DeltaPoint, delta_sweep, pareto, verified_radius
from holdfast.inputs.bounds.pattern_verification import (
    Infeasible,
    PatternVerified,
    _whole,
    ambiguous,
    verify_pattern,
)
from holdfast.inputs.bounds.search import Deadline, Program, Setting
from holdfast.inputs.bounds.signs import Signs
from holdfast.inputs.bounds.verify import Counterexample, Unknown, Verified
from holdfast.threats import L2, Linf

from .mixed_integer import least
from .networks import drawn

UNIT = (-1.0, 1.0)
WIDTHS = [(3, 8, 8, 3), (4, 16, 12, 3)]


@cache
def traced(widths: tuple[int, ...]) -> Graph:
    """One trace for all networks of a shape; weights are drawn anew in place."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return capture(nn.Sequential(*layers[:-1]).double().eval(), torch.zeros(1, widths[0], dtype=torch.float64))


def network(seed: int, widths: tuple[int, ...] = WIDTHS[0]) -> Graph:
    drawn(traced(widths).model, seed, 1.5)
    return traced(widths)


def pattern_of(signs: np.ndarray, widths: tuple[int, ...]) -> ActivationPattern:
    parts = torch.tensor(signs).split(list(widths[1:-1]))
    return ActivationPattern(tuple(part > 0 for part in parts), tuple(part < 0 for part in parts))


def random_pattern(graph: Graph, seed: int, share: float = 0.5, wrong: int = 0) -> np.ndarray:
    """The signs of `share` of the neurons at a random point, `wrong` of them turned around."""
    random = numpy_generator(seed, "tests", "pattern")
    x = torch.tensor(random.uniform(-1, 1, (1, graph.shape[1])))
    on = torch.cat(Activations.of(graph, x)(x)[0], 1)[0].numpy()
    signs = np.where(random.uniform(size=len(on)) < share, np.where(on, 1, -1), 0)
    turned = random.choice(np.flatnonzero(signs), wrong, replace=False)
    signs[turned] *= -1
    return signs


def exact_margin(graph: Graph, signs: np.ndarray, label: int, rivals: list[int]) -> float:
    """The smallest difference between label and rivals over the closed set of followers; inf without any."""
    inputs, classes = graph.shape[1], graph.outputs
    rows = (np.eye(classes)[label] - np.eye(classes)[rival] for rival in rivals)
    return min(least(graph.model, row, -np.ones(inputs), np.ones(inputs), signs) for row in rows)


@cache
def case(seed: int, widths: tuple[int, ...]) -> tuple[np.ndarray, int, float]:
    """Signs, a label, and the exact margin of its followers; the network is the one of the seed."""
    graph = network(seed, widths)
    signs, label = random_pattern(graph, seed, 0.6, wrong=seed % 3), seed % 2
    return signs, label, exact_margin(graph, signs, label, [k for k in range(3) if k != label])


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("seed", range(9))
def test_verdicts_are_the_mixed_integer_programs(seed, widths):
    signs, label, exact = case(seed, widths)
    graph, mined = network(seed, widths), pattern_of(signs, widths)
    verdict = verify_pattern(graph, mined, label, valid=UNIT, budget_s=10)
    if np.isinf(exact):
        assert isinstance(verdict, Infeasible)
        assert verdict.status == "infeasible"
    elif exact > 0:
        assert isinstance(verdict, PatternVerified)
        assert 0 < verdict.lower <= exact + 1e-6  # the program's own feasibility tolerance
        assert verdict.witness is not None
        assert follows(graph, mined, verdict.witness[None]).all()
    else:
        assert isinstance(verdict, Counterexample)
        x = verdict.counterexample[None]
        assert follows(graph, mined, x).all()
        output = graph.model(x)[0].detach()
        assert float(output[label]) <= float(torch.cat([output[:label], output[label + 1 :]]).max())
        assert float(x.abs().max()) <= 1


def test_the_cases_above_are_of_all_three_kinds():
    exact = np.array([case(seed, widths)[2] for seed in range(9) for widths in WIDTHS])
    assert np.isinf(exact).any()
    assert (np.isfinite(exact) & (exact > 0)).any()
    assert (exact < 0).any()


def test_one_rival_is_easier_than_all():
    decided = set()
    for seed in range(5):
        graph = network(seed)
        signs = random_pattern(graph, seed)
        for rival in (1, 2):
            exact = exact_margin(graph, signs, 0, [rival])
            verdict = verify_pattern(graph, pattern_of(signs, WIDTHS[0]), 0, valid=UNIT, rival=rival, budget_s=10)
            assert isinstance(verdict, PatternVerified if exact > 0 else Counterexample)
            decided.add(verdict.status)
    assert decided == {"verified", "counterexample"}


def test_a_pattern_rules_out_the_counterexamples_of_a_ball():
    helped = 0
    for seed in range(4):
        graph = network(seed)
        x = torch.rand(1, 3, generator=torch_generator(seed), dtype=torch.float64) * 2 - 1
        label = int(graph.model(x).argmax())
        region, free = Region(x, Linf(0.5), UNIT), pattern_of(np.zeros(16), WIDTHS[0])
        on = torch.cat(Activations.of(graph, x)(x)[0], 1)[0].numpy()
        without = verify_pattern(graph, free, label, region, budget_s=10)
        cut = verify_pattern(graph, pattern_of(np.where(on, 1, -1), WIDTHS[0]), label, region, budget_s=10)
        assert not isinstance(cut, (Infeasible, Unknown))  # x itself follows
        assert not (isinstance(without, Verified) and isinstance(cut, Counterexample))
        helped += isinstance(without, Counterexample) and isinstance(cut, Verified)
    assert helped > 0


def test_two_patterns_share_an_input_exactly_when_the_program_says_so():
    seen = set()
    for seed in range(10):
        graph = network(seed)
        p, q = random_pattern(graph, seed, 0.5), random_pattern(graph, 100 + seed, 0.4)
        verdict = ambiguous(graph, pattern_of(p, WIDTHS[0]), pattern_of(q, WIDTHS[0]), UNIT, budget_s=10)
        clash = bool((p * q < 0).any())
        shared = not clash and np.isfinite(exact_margin(graph, np.where(p != 0, p, q), 0, [1]))
        assert isinstance(verdict, Counterexample if shared else Infeasible)
        if shared:
            for signs in (p, q):
                assert follows(graph, pattern_of(signs, WIDTHS[0]), verdict.counterexample[None]).all()
        seen.add((clash, shared))
    assert {(True, False), (False, True)} <= seen


class Forked(nn.Module):
    """Two branches of which neither depends on the other, and a shortcut around the second layer of one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(3, 6), nn.Linear(3, 5), nn.Linear(6, 6), nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        a = torch.relu(self.c(a)) + a
        return self.head(torch.cat([a, torch.relu(self.b(x))], 1))


@cache
def forked() -> Graph:
    return capture(drawn(Forked(), 3, 1.5).double(), torch.zeros(1, 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["perceptron", "forked"])
def test_narrowed_boxes_hold_every_follower_and_are_narrower(kind):
    narrower = 0
    for seed in range(2):
        graph = network(seed, WIDTHS[1]) if kind == "perceptron" else forked()
        inputs = graph.shape[1]
        x = torch.rand(20000, inputs, generator=torch_generator(seed), dtype=torch.float64) * 2 - 1
        activations = Activations.of(graph, x)
        random = numpy_generator(seed, "tests", "narrowed")
        widths = activations.widths
        on = torch.cat(activations(x[:1])[0], 1)[0].numpy()
        mined = pattern_of(np.where(random.uniform(size=sum(widths)) < 0.3, np.where(on, 1, -1), 0), (0, *widths, 0))
        program = Program(graph.model, graph.shape[1:])
        incumbent = PatternIncumbent(program, following=Following(activations, mined, program.dtype, x.device))
        setting = Setting(graph, program, incumbent, Deadline(30))
        ends = torch.ones(1, inputs, dtype=torch.float64)
        reference = setting.propagation(-ends, ends)
        Signs(reference.nodes).propagate(reference, mined.signs[None], 1 << 26)
        state = narrowed(setting, reference, mined.signs)
        inside = x[follows(graph, mined, x)]
        layers, _ = activations.preactivations(graph.bind(torch.float64, x.device), inside)
        for place, values in zip(activations.positions, layers):
            box, before = state.boxes[place], reference.boxes[place]
            assert (values >= box.lower.flatten()).all()
            assert (values <= box.upper.flatten()).all()
            narrower += int((box.upper - box.lower < before.upper - before.lower - 1e-3).sum())
    assert narrower > 0


def half_lines() -> Graph:
    """f = (relu(x), relu(-x)) of one input: class 0 to the right of zero."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[2].weight.copy_(torch.eye(2))
        for layer in (model[0], model[2]):
            layer.bias.zero_()
    return capture(model, torch.zeros(1, 1, dtype=torch.float64))


def test_the_radius_of_a_ball_and_of_its_followers_are_known():
    graph, x = half_lines(), torch.tensor([0.25], dtype=torch.float64)
    ball = verified_radius(graph, x, 0, valid=UNIT, budget_s=10)
    assert 0.25 / 1.05 <= ball.eps < 0.25 <= ball.refuted < 0.26
    free = pattern_of(np.array([0, 0]), (1, 2, 2))
    again = verified_radius(graph, x, 0, free, valid=UNIT, budget_s=10)
    assert 0.25 / 1.05 <= again.eps < 0.25 <= again.refuted < 0.26
    # Followers are right, but at z = 0, which the closed set holds, both classes tie: nothing beyond 0.25 is proven.
    right = pattern_of(np.array([1, 0]), (1, 2, 2))
    closed = verified_radius(graph, x, 0, right, valid=UNIT, start=0.2, tolerance=0.3, budget_s=10, query_s=1)
    assert 0.2 <= closed.eps < 0.25
    assert closed.refuted == torch.inf
    with torch.no_grad():
        graph.model[2].bias.copy_(torch.tensor([0.1, 0.0]))
    whole = verified_radius(graph, x, 0, right, valid=UNIT, budget_s=60)
    assert whole.eps == 1.25
    assert whole.refuted == torch.inf


def test_nothing_is_verified_of_nothing():
    graph = half_lines()
    nobody = pattern_of(np.array([1, 1]), (1, 2, 2))  # x > 0 and x < 0
    away = Region(torch.tensor([[0.5]], dtype=torch.float64), Linf(0.1))
    for region in (None, away):
        assert isinstance(verify_pattern(graph, nobody, 0, region, valid=UNIT, budget_s=1), (Infeasible, Unknown))
    assert isinstance(verify_pattern(graph, nobody, 0, away, budget_s=1), Infeasible)
    off = pattern_of(np.array([-1, -1]), (1, 2, 2))  # x = 0 only, where both classes tie
    assert isinstance(verify_pattern(graph, off, 0, away, budget_s=1), Infeasible)
    tie = verify_pattern(graph, off, 0, None, valid=UNIT, budget_s=2)
    assert isinstance(tie, Counterexample)
    assert float(tie.counterexample) == 0


@given(low=st.floats(-1e3, 1e3), width=st.floats(1e-3, 1e3))
def test_the_whole_space_has_both_its_ends(low, width):
    lower, upper = _whole(traced(WIDTHS[0]), (low, low + width)).interval()
    assert bool((lower == low).all())
    assert bool((upper == low + width).all())


def single() -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    drawn(model, 0, 1.5)
    x = torch.rand(200, 3, generator=torch_generator(0, "tests", "single"))
    return model, x, model(x).argmax(1)


def test_a_mined_pattern_is_verified_of_a_plain_module():
    model, x, y = single()
    label, mined = next(iter(mine_patterns(model, x, y, 0.7).items()))
    by_itself = verify_pattern(model, mined, label, budget_s=2)
    assert by_itself.status == verify_pattern(capture(model, x), mined, label, budget_s=2).status != "unknown"
    assert isinstance(ambiguous(model, mined, mined, budget_s=2), Counterexample)


@pytest.mark.parametrize(("inputs", "hidden"), [(3, 7), (4, 8)])
def test_a_pattern_of_another_network_is_reported(inputs, hidden):
    model, x, y = single()
    label, mined = next(iter(mine_patterns(model, x, y, 0.7).items()))
    other = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 3)).eval()
    for asked in (other, capture(other, torch.zeros(1, inputs))):
        with pytest.raises(InputError, match="mine it from this model"):
            verify_pattern(asked, mined, label)


def test_counterexamples_are_in_the_type_of_the_network_and_hold_in_it():
    model, x, y = single()
    labels = []
    for label, mined in mine_patterns(model, x, y, 0.7).items():
        wrong = (label + 1) % 3
        found = verify_pattern(model, mined, wrong, valid=(0.1, 0.3), budget_s=2)
        if isinstance(found, Counterexample):
            point = found.counterexample
            assert point.dtype == torch.float32
            assert bool(((point.double() >= 0.1) & (point.double() <= 0.3)).all())  # neither is a float32 number
            assert bool(follows(model, mined, point[None]).all())
            output = model(point[None])[0].detach()
            assert torch.equal(output.double(), found.output)
            assert float(output[wrong]) <= float(output[[k for k in range(3) if k != wrong]].max())
            labels.append(label)
        proven = verify_pattern(model, mined, label, budget_s=2)
        if isinstance(proven, PatternVerified) and proven.witness is not None:
            assert proven.witness.dtype == torch.float32
            assert bool(follows(model, mined, proven.witness[None]).all())
    assert labels


def test_a_sweep_pays_coverage_for_proofs():
    graph = network(2)
    x = torch.rand(400, 3, generator=torch_generator(1), dtype=torch.float64) * 2 - 1
    y = graph.model(x).argmax(1)
    label = int(y.mode().values)
    held = x[y == label]
    region = Region(held[:2], Linf(0.3), UNIT)
    points = delta_sweep(graph, x, y, held[2:], label, region, deltas=(0.7, 1.0), budget_s=5)
    assert points[0].fixed > points[1].fixed
    assert points[0].coverage.value < points[1].coverage.value == 1
    for point in points:
        pattern = mine_patterns(graph, x, y, point.delta)[label]
        one = [verify_pattern(graph, pattern, label, region.part(slice(i, i + 1)), budget_s=5) for i in range(2)]
        assert point.verified.value == pytest.approx(np.mean([isinstance(v, Verified) for v in one]))
        assert point.vacuous == sum(isinstance(v, Infeasible) for v in one)


def test_pareto_points_are_those_that_nothing_beats():
    def point(covered: float, proven: float) -> DeltaPoint:
        return DeltaPoint(0.9, 1, Estimate(covered, covered, covered), Estimate(proven, proven, proven), 0)

    a, b, c, d = point(0.9, 0.1), point(0.5, 0.5), point(0.4, 0.5), point(0.9, 0.1)
    assert pareto([a, b, c, d]) == [a, b, d]


def test_input_errors():
    graph = network(0)
    free = pattern_of(np.zeros(16), WIDTHS[0])
    x = torch.zeros(1, 3, dtype=torch.float64)
    with pytest.raises(InputError, match="budget"):
        verify_pattern(graph, free, 0, budget_s=0)
    with pytest.raises(InputError, match="mine it from this model"):
        verify_pattern(graph, pattern_of(np.zeros(4), (3, 2, 2, 3)), 0)
    with pytest.raises(InputError, match="box of one example"):
        verify_pattern(graph, free, 0, Region(x, L2(0.1)))
    with pytest.raises(InputError, match="box of one example"):
        verify_pattern(graph, free, 0, Region(x.expand(2, 3), Linf(0.1)))
    with pytest.raises(InputError, match="inputs of shape"):
        verify_pattern(graph, free, 0, Region(x[:, :2], Linf(0.1)))
    with pytest.raises(InputError, match="label"):
        verify_pattern(graph, free, 3)
    with pytest.raises(InputError, match="labels must lie"):
        verify_pattern(graph, free, -1)
    with pytest.raises(InputError, match="rival"):
        verify_pattern(graph, free, 0, rival=0)
    with pytest.raises(InputError, match="low < high"):
        verify_pattern(graph, free, 0, valid=(1.0, 0.0))
    with pytest.raises(InputError, match="neither the model nor the pattern"):
        verify_pattern(graph.model, free, 0)
    label = int(graph.model(x).argmax())
    with pytest.raises(InputError, match="no ball"):
        verified_radius(graph, x[0], (label + 1) % 3, valid=UNIT)
    on = torch.cat(Activations.of(graph, x)(x)[0], 1)[0].numpy()
    with pytest.raises(InputError, match="follow"):
        verified_radius(graph, x[0], label, pattern_of(np.where(on, -1, 1), WIDTHS[0]), valid=UNIT)
    with pytest.raises(InputError, match="positive"):
        verified_radius(graph, x[0], label, valid=UNIT, start=0)
