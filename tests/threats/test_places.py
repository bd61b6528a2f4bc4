"""Patches and translations against enumeration."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.threats import Patch, Translation

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds)
def test_patch_projection_and_worst_equal_enumeration(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 2, 5, 6, generator=generator, dtype=torch.float64)
    wild = x + torch.randn(x.shape, generator=generator, dtype=x.dtype)
    rows = torch.randn(1, 1, 2, 5, 6, generator=generator, dtype=x.dtype)
    threat = Patch(2, 3)
    distances, inner = [], []
    for top, left in itertools.product(range(4), range(4)):
        window = (slice(None), slice(None), slice(top, top + 2), slice(left, left + 3))
        other = x.clone()
        other[window] = wild[window].clamp(0, 1)
        distances.append((other - wild).square().sum())
        corner = x.clone()
        corner[window] = (rows[0][window] < 0).to(x.dtype)
        inner.append((rows[0] * (corner - x)).sum())
    projected = threat.project(wild, x, (0, 1))
    assert float((projected - wild).square().sum()) == pytest.approx(float(min(distances)), abs=1e-9)
    assert threat.contains(projected, x, (0, 1)).all()
    assert float(threat.worst(rows, x, (0, 1))) == pytest.approx(float(min(inner)), abs=1e-9)
    assert threat.contains(threat.random_start(x, (0, 1), generator=generator), x, (0, 1)).all()


def test_patch_norm_is_the_stretch_that_covers_the_change():
    delta = torch.zeros(2, 1, 8, 8)
    delta[0, 0, 2:4, 5:8] = 1
    delta[1, 0, 0, 0] = delta[1, 0, 3, 0] = 1
    threat = Patch(2, 3)
    assert threat.norm(delta).tolist() == [3.0, 6.0]
    assert threat.contains(delta, torch.zeros_like(delta), (0, 1)).tolist() == [True, False]
    assert Patch(2, 4).scaled(8) == Patch(4, 8)
    with pytest.raises(InputError, match="does not fit"):
        Patch(9, 1).project(delta, delta)
    with pytest.raises(InputError, match="needs images"):
        Patch(1, 1).norm(torch.zeros(2, 5))


def test_translation_moves_the_content():
    x = torch.arange(25.0).reshape(1, 1, 5, 5)
    assert torch.equal(Translation(1, "cyclic").moved(x, (1, 0))[0, 0, 0], x[0, 0, -1])
    assert torch.equal(Translation(1, "zeros").moved(x, (1, 0))[0, 0, 0], torch.zeros(5))
    assert torch.equal(Translation(1, "edge").moved(x, (1, 0))[0, 0, 0], x[0, 0, 0])
    assert torch.equal(Translation(1, "reveal").moved(x, (1, 0))[0, 0], x[0, 0, 0:3, 1:4])
    assert Translation(1, "reveal").views(x).shape == (9, 1, 1, 3, 3)
    for edge in ("zeros", "edge", "cyclic"):
        assert next(iter(Translation(2, edge).moves())) == (0, 0)
        assert torch.equal(Translation(2, edge).views(x)[0], x)


def test_translation_set_operations_enumerate_the_moves():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 6, 6, generator=generator)
    threat = Translation(1, "edge")
    views = threat.views(x)
    rows = torch.randn(3, 2, 1, 6, 6, generator=generator)
    worst = threat.worst(rows, x)
    assert torch.allclose(worst, torch.stack([(rows * (v - x)[:, None]).flatten(2).sum(2) for v in views]).amin(0))
    moved = threat.random_start(x, generator=generator)
    assert threat.contains(moved, x).all()
    assert torch.equal(threat.project(moved + 1e-3, x), moved)
    assert not threat.contains(x + 0.1, x).any()
    low, high = threat.interval(x)
    assert ((views >= low) & (views <= high)).all()
    with pytest.raises(UnsupportedError, match="views"):
        Translation(1, "reveal").project(x, x)
    with pytest.raises(InputError, match="unknown edge"):
        Translation(1, "wrap")
