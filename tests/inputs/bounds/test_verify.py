"""Verdicts are proofs or counterexamples: minima agree with integer programs, points never contradict proofs."""

import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds as Range
from scipy.optimize import LinearConstraint, milp
from torch import nn

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import capture
from holdfast.inputs.bounds.activation import LeakyReLU
from holdfast.inputs.bounds.verify import Counterexample, Unknown, Verified, minimum, verify
from holdfast.inputs.bounds.vnnlib import Disjunct, Property
from holdfast.threats import L2, Box, Linf


def network(seed, widths):
    """A ReLU network in float64 with drawn weights."""
    generator = torch_generator(seed, "tests", "verify")
    layers = []
    for inner, outer in pairwise(widths):
        layer = nn.Linear(inner, outer, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(outer, inner, generator=generator) * (1.5 / inner) ** 0.5)
            layer.bias.copy_(0.3 * torch.randn(outer, generator=generator))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def box_property(inputs, matrix, offset, low=-1.0, high=1.0):
    matrix, offset = np.atleast_2d(np.array(matrix, float)), np.atleast_1d(np.array(offset, float))
    return Property((Disjunct(np.full(inputs, low), np.full(inputs, high), matrix, offset),))


def exact_minimum(model, row, low=-1.0, high=1.0):
    """min of row . f over the box, by the big-M mixed-integer program with interval bounds (HiGHS)."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    weights = [layer.weight.detach().numpy() for layer in layers]
    biases = [layer.bias.detach().numpy() for layer in layers]
    hidden = [len(bias) for bias in biases[:-1]]
    inputs = weights[0].shape[1]
    total = inputs + 2 * sum(hidden)  # x, every layer's outputs, every layer's switches
    lower, upper = np.zeros(total), np.ones(total)
    lower[:inputs], upper[:inputs] = low, high
    constraints = []
    start, before = inputs, slice(0, inputs)
    for weight, bias in zip(weights[:-1], biases[:-1]):
        size = len(bias)
        here, switch = slice(start, start + size), slice(start + size, start + 2 * size)
        middle, radius = (lower[before] + upper[before]) / 2, (upper[before] - lower[before]) / 2
        most = weight @ middle + bias + np.abs(weight) @ radius
        least = weight @ middle + bias - np.abs(weight) @ radius
        upper[here] = np.maximum(most, 0)
        identity = np.eye(size)

        def rows(a, y, d, before=before, here=here, switch=switch, size=size):
            matrix = np.zeros((size, total))
            matrix[:, before], matrix[:, here], matrix[:, switch] = a, y, d
            return matrix

        constraints += [
            LinearConstraint(rows(-weight, identity, 0 * identity), bias, np.inf),
            LinearConstraint(
                rows(-weight, identity, -np.diag(np.minimum(least, 0))), -np.inf, bias - np.minimum(least, 0)
            ),
            LinearConstraint(rows(0 * weight, identity, -np.diag(np.maximum(most, 0))), -np.inf, 0),
        ]
        start, before = start + 2 * size, here
    cost = np.zeros(total)
    cost[before] = row @ weights[-1]
    switches = np.zeros(total)
    place = inputs
    for size in hidden:
        switches[place + size : place + 2 * size] = 1
        place += 2 * size
    found = milp(
        cost, constraints=constraints, bounds=Range(lower, upper), integrality=switches, options={"mip_rel_gap": 0}
    )
    assert found.success
    return found.fun + float(row @ biases[-1])


SMALL = [(seed, (2 + seed % 4, 6 + seed % 7, 5 + seed % 5, 3)) for seed in range(20)]


@pytest.mark.parametrize(("seed", "widths"), SMALL)
def test_the_minimum_is_the_mixed_integer_programs(seed, widths):
    model, row = network(seed, widths), np.array([1.0, -1.0, 0.5])
    found = minimum(model, box_property(widths[0], row, 0.0), gap=5e-5, budget_s=30)
    exact = exact_minimum(model, row)
    assert found.lower - 1e-6 <= exact <= found.upper + 1e-6  # 1e-6: the program's own feasibility tolerance
    assert abs(found.upper - exact) <= 1e-4
    assert found.upper - found.lower <= 1e-4
    value = float(torch.from_numpy(row) @ model(found.point[None])[0].detach())
    assert value == pytest.approx(found.upper, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_verdicts_on_either_side_of_the_minimum(seed):
    seed, widths = SMALL[seed]
    model, row = network(seed, widths), np.array([1.0, -1.0, 0.5])
    exact = exact_minimum(model, row)
    below = verify(model, box_property(widths[0], row, exact - 1e-3), budget_s=30)
    above = verify(model, box_property(widths[0], row, exact + 1e-3), budget_s=30)
    assert isinstance(below, Verified)
    assert below.status == "verified"
    assert 0 < below.lower <= 1.1e-3
    assert isinstance(above, Counterexample)
    assert above.status == "counterexample"
    output = model(above.counterexample[None])[0].detach()
    assert float(torch.from_numpy(row) @ output) <= exact + 1e-3
    torch.testing.assert_close(above.output, output)
    assert bool((above.counterexample.abs() <= 1).all())


def test_a_grid_never_contradicts_a_verdict():
    line = torch.linspace(-1, 1, 201, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    for seed in range(8):
        model = network(100 + seed, (2, 10, 8, 3))
        outputs = model(grid).detach()
        matrix = np.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]])
        worst = (outputs @ torch.from_numpy(matrix).T).amax(1).amin().item()
        for shift in (-0.2, -0.03, 0.0, 0.01):
            asked = box_property(2, matrix, [worst + shift] * 2)
            verdict = verify(model, asked, budget_s=20)
            seen = asked.violated(grid.numpy(), outputs.numpy()).any()
            assert not (seen and verdict.status == "verified")
            if verdict.status == "counterexample":
                y = model(verdict.counterexample[None])
                assert asked.violated(verdict.counterexample[None].numpy(), y.detach().numpy())[0]


def test_a_conjunction_that_no_single_row_refutes():
    # f = (x, -x): both at most -0.1 is impossible, though each alone is not.
    model = nn.Sequential(nn.Linear(1, 2, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    verdict = verify(model, box_property(1, np.eye(2), [-0.1, -0.1]), budget_s=10)
    assert verdict.status == "verified"
    assert 0 < verdict.lower <= 0.1
    assert verdict.subproblems == 1


def test_every_box_and_every_disjunct_counts():
    model = nn.Sequential(nn.Linear(1, 1, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    parts = [
        Disjunct(np.array([low]), np.array([low + 1.0]), np.array([[1.0]]), np.array([bound]))
        for low, bound in ((0.0, -0.5), (5.0, 4.0), (-3.0, -2.9), (-3.0, -10.0))
    ]
    assert verify(model, Property(tuple(parts[:2])), budget_s=10).status == "verified"
    verdict = verify(model, Property(tuple(parts)), budget_s=10)
    assert verdict.status == "counterexample"
    assert -3 <= float(verdict.counterexample) <= -2.9
    assert verify(capture(model, torch.zeros(1, 1)), Property(()), budget_s=10).status == "verified"


def test_margins_agree_with_written_out_disjuncts():
    model = network(7, (3, 12, 4)).float()
    x = torch.tensor([0.2, -0.1, 0.4])
    label = int(model(x[None]).argmax())
    for radius in (0.01, 3.0):
        asked = Property.margin(x, label, Linf(radius))
        rows = np.delete(np.eye(4)[label] - np.eye(4), label, axis=0)
        center = x.double().numpy()
        written = Property(tuple(Disjunct(center - radius, center + radius, row[None], np.zeros(1)) for row in rows))
        assert verify(model, asked, budget_s=20).status == verify(model, written, budget_s=20).status
    cut = Property.margin(x, label, Box(-0.5, 0.1), valid=(-0.2, 0.45))
    np.testing.assert_allclose(cut.margins[0].lower, [-0.2, -0.2, -0.1], atol=1e-7)
    np.testing.assert_allclose(cut.margins[0].upper, [0.3, 0.0, 0.45], atol=1e-7)


def test_an_unsound_relaxation_is_found_out(monkeypatch):
    """What guards the verifier: were a ReLU's upper line too low, some of these verdicts would be wrong."""
    sound = LeakyReLU.relax

    def unsound(self, *boxes, **options):
        lines = sound(self, *boxes, **options)
        return type(lines)(lines.lower_slope, lines.upper_slope, lines.lower_bias, 0.2 * lines.upper_bias)

    def contradictions():
        wrong = 0
        for seed, widths in SMALL[:8]:
            model, row = network(seed, widths), np.array([1.0, -1.0, 0.5])
            found = minimum(model, box_property(widths[0], row, 0.0), gap=1e-3, budget_s=5)
            wrong += found.lower > exact_minimum(model, row) + 1e-6
        return wrong

    assert contradictions() == 0
    monkeypatch.setattr(LeakyReLU, "relax", unsound)
    assert contradictions() > 0


def hard(inputs=12):
    """A property whose margin is exactly zero at many points: no bound will ever close it."""
    model = nn.Sequential(nn.Linear(inputs, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2)).eval()
    generator = torch_generator(0, "tests", "hard")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    outputs = model(torch.randn(4096, inputs, generator=generator).clamp(-1, 1))
    return model, box_property(inputs, [[1.0, 0.0]], [float(outputs[:, 0].detach().min()) - 60.0])


def test_nothing_is_lost_when_the_time_runs_out():
    """Wherever the clock stops a search, what was under way is still open."""
    seed, widths = SMALL[1]
    model, row = network(seed, widths), np.array([1.0, -1.0, 0.5])
    exact = exact_minimum(model, row)
    graph = capture(model, torch.zeros(1, widths[0], dtype=torch.float64))
    for budget in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5):
        found = minimum(graph, box_property(widths[0], row, 0.0), gap=1e-6, budget_s=budget)
        assert found.lower - 1e-6 <= exact <= found.upper + 1e-6


@pytest.mark.parametrize("budget", [0.3, 1.5])
def test_the_budget_is_kept(budget):
    model, asked = hard()
    capture(model, torch.zeros(1, 12))  # the first capture of a process loads the tracer, which takes seconds
    began = time.monotonic()
    verdict = verify(model, asked, budget_s=budget)
    assert time.monotonic() - began < budget + 1.5
    assert isinstance(verdict, Unknown)
    assert verdict.timed_out
    assert verdict.lower <= 0


def test_the_second_program_has_to_agree():
    model = network(3, (2, 6, 2)).float()
    asked = box_property(2, [[1.0, 0.0]], [100.0])  # violated everywhere
    assert verify(model, asked, budget_s=1).status == "counterexample"
    denied = verify(model, asked, budget_s=1, deployed=lambda x: torch.full((len(x), 2), 1e3))
    assert denied.status == "unknown"


def test_the_observer_sees_bounds_that_hold():
    model, asked = hard()
    seen = []
    verify(model, asked, budget_s=3.0, observer=seen.append)
    assert len(seen) >= 2
    assert all(glance.lower <= glance.upper for glance in seen)
    assert [glance.subproblems for glance in seen] == sorted(glance.subproblems for glance in seen)


def test_bad_input_is_refused_at_the_door():
    model = network(0, (2, 5, 3))
    fine = box_property(2, [[1.0, 0.0, 0.0]], [0.0])
    with pytest.raises(InputError, match="must be positive, got 0"):
        verify(model, fine, budget_s=0)
    with pytest.raises(InputError, match="3 inputs, the model takes 2"):
        verify(capture(model, torch.zeros(1, 2, dtype=torch.float64)), box_property(3, [[1.0, 0.0, 0.0]], [0.0]))
    with pytest.raises(InputError, match="2 outputs, the model gives 3"):
        verify(model, box_property(2, [[1.0, 0.0]], [0.0]))
    with pytest.raises(InputError, match="gap must be positive"):
        minimum(model, fine, gap=0.0)
    with pytest.raises(InputError, match="takes boxes"):
        Property.margin(torch.zeros(2), 0, L2(0.1))
    with pytest.raises(InputError, match=r"0\.\.2, got 3"):
        verify(model, Property.margin(torch.zeros(2), 3, Linf(0.1)))
    with pytest.raises(InputError, match="training mode"):
        verify(nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)), fine)
    with torch.no_grad():
        model[0].bias[0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        verify(model, fine)
