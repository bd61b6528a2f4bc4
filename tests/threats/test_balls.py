"""The sets are what their names say: projections are admissible, idempotent and nearest; `worst` is the exact
minimum.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.threats import L0, L1, L2, Box, Corruption, Linf
from holdfast.threats.geometry import l1_threshold

N = 6
seeds = st.integers(0, 2**32 - 1)
SMOOTH = [
    Linf(0.3),
    Linf(torch.tensor([0.1, 0.0, 0.5, 0.2, 0.3, 1.0], dtype=torch.float64)),
    Box(-0.2, 0.4),
    Box(torch.tensor([-0.1, 0.0, -0.5, 0.0, -0.3, 0.0]), torch.tensor([0.1, 0.3, 0.0, 0.2, 0.3, 1.0]), 0.7),
    L2(0.6),
    L2(3.0),
    L1(0.8),
    L1(5.0),
]
ALL = [*SMOOTH, L0(2)]
VALID = [None, (0.0, 1.0), (torch.zeros(N), torch.linspace(0.5, 1.5, N))]


def draw(seed, dtype=torch.float64, batch=5, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, N, generator=generator, dtype=dtype) * (high - low) + low
    x = torch.where(torch.rand(batch, N, generator=generator) < 0.3, x.round(), x)  # corners of the valid range
    return x, x + torch.randn(batch, N, generator=generator, dtype=dtype), generator


@pytest.mark.parametrize("threat", ALL, ids=repr)
@given(seed=seeds, which=st.integers(0, 2), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_projection_is_admissible_and_idempotent(threat, seed, which, dtype):
    x, wild, _ = draw(seed, dtype)
    valid = VALID[which]
    x = x if valid is None else x.clamp(*[torch.as_tensor(end, dtype=dtype) for end in valid])
    inside = threat.project(wild, x, valid)
    assert threat.contains(inside, x, valid, tolerance=4 * torch.finfo(dtype).eps * N).all()
    assert torch.allclose(threat.project(inside, x, valid), inside, atol=1e-6 if dtype is torch.float32 else 1e-12)
    assert torch.equal(threat.project(x, x, valid), x)


@pytest.mark.parametrize("threat", SMOOTH, ids=repr)
@pytest.mark.parametrize("valid", VALID[:2], ids=["free", "box"])
@pytest.mark.parametrize("seed", range(4))
def test_projection_is_the_nearest_point(threat, valid, seed):
    x, wild, _ = draw(seed, batch=1)
    ours = threat.project(wild, x, valid)
    low, high = (end.flatten().numpy() for end in threat.interval(x, valid))
    start, goal = x.flatten().numpy(), wild.flatten().numpy()
    ball = {"type": "ineq", "fun": lambda z: threat.radius**2 - ((z - start) ** 2).sum()}
    if isinstance(threat, L1):  # split the change in two non-negative parts so that the constraint is linear
        lift = np.hstack([np.eye(N), -np.eye(N)])
        ball = {"type": "ineq", "fun": lambda z: threat.radius - z.sum()}
        bounds = [(0, max(top - s, 0)) for top, s in zip(high, start)] + [
            (0, max(s - bottom, 0)) for bottom, s in zip(low, start)
        ]
        best = minimize(
            lambda z: ((start + lift @ z - goal) ** 2).sum(),
            np.zeros(2 * N),
            bounds=bounds,
            constraints=[ball],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
    else:
        constraints = [ball] if isinstance(threat, L2) else []
        best = minimize(
            lambda z: ((z - goal) ** 2).sum(),
            start,
            bounds=list(zip(low, high)),
            constraints=constraints,
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
    assert float((ours - wild).square().sum()) <= best.fun + 1e-6


def test_l1_threshold_settles_where_newton_steps_go_to_and_fro():
    """Two of these coordinates are stuck; the others make Newton's steps repeat each other, 0.338 and 1.099 in turn."""
    magnitude = torch.tensor([[1.056, 1.675, 1.138, 0.815, 0.292, 0.924]], dtype=torch.float64)
    cap = torch.tensor([[0.5, 0.0, 0.9, 1.0, 0.294, 0.545]], dtype=torch.float64)
    threshold = l1_threshold(magnitude, cap, 0.8)
    assert torch.minimum((magnitude - threshold).clamp(min=0), cap).sum() == pytest.approx(0.8, abs=1e-12)


@given(
    seed=seeds,
    n=st.sampled_from([1, 2, 3, 8, 50]),
    radius=st.sampled_from([0.01, 0.8, 5.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_l1_threshold_spends_the_whole_radius(seed, n, radius, dtype):
    generator = torch.Generator().manual_seed(seed)
    magnitude, cap = 2 * torch.rand(2, 200, n, generator=generator, dtype=dtype)
    cap = torch.where(torch.rand(cap.shape, generator=generator) < 0.3, 0, cap)
    reach = torch.minimum(magnitude, cap)
    threshold = l1_threshold(magnitude, cap, radius)[..., None]
    spent = torch.minimum((magnitude - threshold).clamp(min=0), reach).sum(-1)
    assert torch.allclose(spent, reach.sum(-1).clamp(max=radius), rtol=0, atol=10 * n * torch.finfo(dtype).eps)


@given(seed=seeds)
def test_l0_projection_is_the_nearest_of_all_supports(seed):
    x, wild, _ = draw(seed, batch=1)
    x = x.clamp(0, 1)
    ours = float((L0(2).project(wild, x, (0, 1)) - wild).square().sum())
    for support in itertools.combinations(range(N), 2):
        other = x.clone()
        other[:, support] = wild[:, support].clamp(0, 1)
        assert ours <= float((other - wild).square().sum()) + 1e-12


def test_l0_counts_pixels_not_channels():
    delta = torch.zeros(1, 3, 4, 4)
    delta[0, :, 1, 2] = 1
    assert L0(1).norm(delta).tolist() == [1.0]
    kept = L0(1).project(delta + 0.1 * torch.rand(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), (0, 1))
    assert kept[0, :, 1, 2].min() > 0.9
    assert L0(1).norm(kept).tolist() == [1.0]


@pytest.mark.parametrize("threat", ALL, ids=repr)
@given(seed=seeds, which=st.integers(0, 2))
def test_random_points_are_admissible_and_worst_is_never_beaten(threat, seed, which):
    x, wild, generator = draw(seed)
    valid = VALID[which] if not isinstance(threat, L0) else (0.0, 1.0)
    x = x if valid is None else x.clamp(*[torch.as_tensor(end, dtype=x.dtype) for end in valid])
    rows = torch.randn(len(x), 3, N, generator=generator, dtype=x.dtype)
    worst = threat.worst(rows, x, valid)
    candidates = [threat.random_start(x, valid, generator=generator) for _ in range(20)]
    candidates += [threat.project(x - 10 * rows[:, k], x, valid) for k in range(3)] + [threat.project(wild, x, valid)]
    low, high = threat.interval(x, valid)
    for point in candidates:
        assert threat.contains(point, x, valid, tolerance=1e-9).all()
        assert (torch.einsum("brn,bn->br", rows, point - x) >= worst - 1e-9).all()
        assert (point >= low - 1e-9).all()
        assert (point <= high + 1e-9).all()


@pytest.mark.parametrize("seed", range(5))
def test_worst_equals_a_linear_program(seed):
    x, _, generator = draw(seed, batch=1)
    row = torch.randn(1, 1, N, generator=generator, dtype=x.dtype)
    a, start = row.flatten().numpy(), x.flatten().numpy()
    for threat in (L1(0.8), L1(0.05), L1(50.0)):
        lifted = linprog(
            np.concatenate([a, -a]),
            A_ub=np.ones((1, 2 * N)),
            b_ub=[threat.radius],
            bounds=[(0, 1 - s) for s in start] + [(0, s) for s in start],
        )
        assert float(threat.worst(row, x, (0.0, 1.0))) == pytest.approx(lifted.fun, abs=1e-9)
    for threat in (Linf(0.3), Box(-0.2, 0.4)):
        low, high = (end.flatten().numpy() for end in threat.interval(x, (0.0, 1.0)))
        corners = sum(min(w * (lo - s), w * (hi - s)) for w, lo, hi, s in zip(a, low, high, start))
        assert float(threat.worst(row, x, (0.0, 1.0))) == pytest.approx(corners, abs=1e-12)
    few = min(
        sum(min(0, a[i] * -start[i], a[i] * (1 - start[i])) for i in support)
        for support in itertools.combinations(range(N), 2)
    )
    assert float(L0(2).worst(row, x, (0.0, 1.0))) == pytest.approx(few, abs=1e-12)


@pytest.mark.parametrize("radius", [0.05, 0.6, 1.2, 9.0])
@given(seed=seeds)
def test_l2_worst_with_a_box_is_attained(radius, seed):
    """The dual value equals the primal value of a point in the set, so it is the exact minimum."""
    x, _, generator = draw(seed)
    rows = torch.randn(len(x), 2, N, generator=generator, dtype=x.dtype)
    worst = L2(radius).worst(rows, x, (0.0, 1.0))
    for k in range(2):
        reached = L2(radius).project(x - 1e6 * rows[:, k], x, (0.0, 1.0))
        assert ((rows[:, k] * (reached - x)).sum(1) - worst[:, k]).abs().max() < 1e-4
    free = L2(radius).worst(rows, x, None)
    assert (worst >= free - 1e-12).all()
    assert torch.allclose(free, -radius * rows.norm(dim=2))


def test_l2_worst_differentiates_through_the_dual():
    x = torch.tensor([[0.1, 0.5, 0.9]], dtype=torch.float64)
    rows = torch.tensor([[[1.0, -2.0, 0.5]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: L2(0.4).worst(r, x, (0.0, 1.0)), rows, atol=1e-5)


@pytest.mark.parametrize("threat", ALL, ids=repr)
def test_scaled_changes_only_the_radius(threat):
    double = threat.scaled(2 * threat.radius)
    assert type(double) is type(threat)
    assert double.radius == pytest.approx(2 * threat.radius)
    assert threat.scaled(threat.radius) == threat
    assert double != threat
    assert hash(threat.scaled(threat.radius)) == hash(threat)
    assert threat.describe() != double.describe()


@pytest.mark.parametrize("threat", [Linf(0.3), SMOOTH[1], Box(-0.2, 0.4), L2(0.6), L1(0.8)], ids=repr)
@given(seed=seeds)
def test_steepest_has_size_one_and_the_largest_inner_product(threat, seed):
    _, _, generator = draw(seed)
    grad = torch.randn(4, N, generator=generator, dtype=torch.float64)
    best = threat.steepest(grad)
    assert (threat.norm(best) <= 1 + 1e-9).all()
    support = -threat.worst(-grad[:, None], torch.zeros_like(grad), None).squeeze(1) / threat.radius
    assert torch.allclose((best * grad).sum(1), support)
    assert torch.equal(threat.steepest(torch.zeros_like(grad)), torch.zeros_like(grad))


def test_steepest_of_a_tiny_gradient_does_not_vanish():
    grad = torch.full((1, 4), 1e-30)
    assert L2(1.0).norm(L2(1.0).steepest(grad)).item() == pytest.approx(1.0, rel=1e-5)


def test_an_input_outside_the_valid_range_stays_admissible():
    x = torch.tensor([[1.2, -0.1, 0.5]])
    for threat in (Linf(0.05), L2(0.05), L1(0.05), Box(-0.1, 0.1)):
        assert torch.equal(threat.project(x, x, (0.0, 1.0)), x)
        assert threat.contains(x, x, (0.0, 1.0)).all()
        assert (threat.worst(torch.eye(3)[None], x, (0.0, 1.0)) <= 0).all()


def test_contains_forgives_rounding_at_large_magnitude_only():
    x = torch.full((1, 3), 1e4)
    assert Linf(1e-4).contains(x + 1e-4, x).all()
    assert not Linf(1e-4).contains(x + 1e-2, x).any()
    assert not Linf(0.1).contains(torch.tensor([[0.10001]]), torch.zeros(1, 1)).any()
    assert not Linf(0.1).contains(torch.tensor([[torch.nan]]), torch.zeros(1, 1)).any()


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan"), float("inf"), torch.tensor([0.1, -0.2])])
def test_a_bad_size_is_refused(eps):
    with pytest.raises(InputError, match="positive and finite"):
        Linf(eps)


def test_missing_operations_and_ranges_are_named():
    x = torch.rand(2, 4)
    with pytest.raises(UnsupportedError, match=r"Corruption\(name='fog', severity=3\) has no projection"):
        Corruption("fog", 3).project(x, x)
    with pytest.raises(InputError, match="needs a valid range"):
        L0(2).random_start(x)
    with pytest.raises(InputError, match="low <= 0"):
        Box(0.1, 0.2)
    with pytest.raises(InputError, match="at least one pixel"):
        L0(0)
