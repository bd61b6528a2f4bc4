"""Word substitution against the dynamic programme and against enumeration."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.threats import WordSwap


def problem(seed, positions=5, choices=3, width=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, positions, width, generator=generator, dtype=torch.float64)
    candidates = torch.randn(1, positions, choices, width, generator=generator, dtype=torch.float64)
    allowed = torch.rand(1, positions, choices, generator=generator) < 0.6
    row = torch.randn(1, 1, positions, width, generator=generator, dtype=torch.float64)
    return x, WordSwap(2, candidates, allowed), row, generator


@given(seed=st.integers(0, 2**32 - 1))
def test_worst_equals_the_dynamic_programme_and_enumeration(seed):
    x, threat, row, generator = problem(seed)
    gains = [
        [
            0.0,
            *(
                float(row[0, 0, t] @ (threat.candidates[0, t, c] - x[0, t]))
                for c in range(3)
                if threat.allowed[0, t, c]
            ),
        ]
        for t in range(5)
    ]
    table = [0.0] + [float("inf")] * threat.swaps
    for options in gains:
        table = [min(table[j], table[j - 1] + min(options) if j else table[j]) for j in range(threat.swaps + 1)]
    worst = float(threat.worst(row, x))
    assert worst == pytest.approx(min(table), abs=1e-9)
    brute = min(sum(pick) for pick in itertools.product(*gains) if sum(value != 0 for value in pick) <= threat.swaps)
    assert worst == pytest.approx(brute, abs=1e-9)
    point = threat.random_start(x, generator=generator)
    assert threat.contains(point, x).all()
    assert float((row[:, 0] * (point - x)).sum()) >= worst - 1e-9
    assert threat.contains(threat.project(x + torch.randn(x.shape, generator=generator, dtype=x.dtype), x), x).all()


def test_too_many_swaps_and_foreign_words_are_outside():
    x, threat, _, _ = problem(3)
    threat = WordSwap(1, threat.candidates, torch.ones_like(threat.allowed))
    swapped = x.clone()
    swapped[0, 0] = threat.candidates[0, 0, 1]
    assert threat.contains(swapped, x).all()
    swapped[0, 1] = threat.candidates[0, 1, 0]
    assert not threat.contains(swapped, x).any()
    assert not threat.contains(x + 0.5, x).any()
    low, high = threat.interval(x)
    assert ((swapped >= low) & (swapped <= high)).all()
    with pytest.raises(InputError, match="candidates"):
        threat.worst(x[:, None, :3], x[:, :3])
