"""Every operator family under every threat and method: attacked, at all radii, in both precisions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.errors import UnsupportedError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Method, Region, bounds, capture, unsupported
from holdfast.inputs.bounds.decompose import einsum
from holdfast.inputs.bounds.product import EntryProduct, Planes
from holdfast.inputs.bounds.softmax import Share
from holdfast.threats import L0, L1, L2, Linf, Threat, WordSwap
from holdfast.threats import Box as BoxThreat

from .architectures import FAMILIES, built, examples, traced
from .attack import excess
from .networks import drawn

FAST: tuple[Method, ...] = ("ibp", "forward", "crown-ibp", "crown")
SLOW: tuple[Method, ...] = ("ibp", "forward", "crown-ibp", "forward+backward", "crown", "alpha-crown")


def threats(x: Tensor) -> dict[str, Threat]:
    """All kinds of sets around inputs in [0, 1]; words where the input is a sequence."""
    found: dict[str, Threat] = {
        "linf": Linf(0.05), "l2": L2(0.1), "l1": L1(0.15), "l0": L0(1), "box": BoxThreat(-0.02, 0.06)
    }  # fmt: skip
    if x.ndim == 3:
        generator = torch_generator(0, "tests", "words")
        words = torch.rand(len(x), x.shape[1], 3, x.shape[2], generator=generator, dtype=x.dtype)
        found["words"] = WordSwap(
            1, x[:, :, None] + 0.3 * (words - 0.5), torch.rand(words.shape[:3], generator=generator) < 0.7
        )
    return found


def check(name: str, methods: tuple[Method, ...], chosen: tuple[str, ...], samples: int, steps: int, seed: int) -> None:
    graph, x = traced(name), examples(name, seed)
    drawn(graph.model, seed)
    valid = (0.0, 1.0)
    for kind, threat in threats(x).items():
        if kind not in chosen:
            continue
        region = Region(x, threat, None if kind == "words" else valid)
        for method in methods:
            with torch.no_grad():
                found = bounds(graph, region, method=method, rounding="outward", iterations=3)
            assert bool(torch.isfinite(found.width).all())
            assert excess(graph.model, region, found, samples=samples, steps=steps) <= 0, (name, kind, method)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_attacked_point_leaves_the_bounds(name):
    check(name, FAST, ("linf", "words"), samples=5, steps=3, seed=3)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_attacked_point_leaves_the_bounds_of_other_threats(name):
    check(name, ("crown",), ("l2", "l1", "l0", "box"), samples=20, steps=5, seed=0)
    check(name, ("alpha-crown",), ("l2",), samples=20, steps=5, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FAMILIES)
def test_no_attacked_point_leaves_any_bounds_of_any_threat(name, seed):
    check(name, SLOW, ("linf", "l2", "l1", "l0", "box", "words"), samples=200, steps=20, seed=seed)


@pytest.mark.parametrize("radius", [1e-12, 1e-7, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["transformer", "lstm cell", "activations", "smooth", "functional"])
def test_degenerate_radii_keep_the_true_output(name, dtype, radius):
    graph, x = traced(name), examples(name, 5).to(dtype)
    drawn(graph.model, 5)
    inside = Region(x.double(), Linf(radius * (1 - 1e-6)))
    for method in ("ibp", "crown"):
        with torch.no_grad():
            found = bounds(graph, Region(x, Linf(radius)), method=method, rounding="outward")
        assert excess(graph.model, inside, found, samples=5, steps=2) <= 0
        assert float(found.width.max()) < (1e-4 + 1e4 * radius if dtype == torch.float64 else 1e-1)


@pytest.mark.parametrize("name", FAMILIES)
def test_tighter_methods_are_tighter(name):
    graph, region = traced(name), Region(examples(name, 4), Linf(0.01))
    drawn(graph.model, 4)
    with torch.no_grad():
        ibp, crown = (bounds(graph, region, method=method).width.mean() for method in ("ibp", "crown"))
    assert crown <= ibp


@pytest.mark.parametrize("name", ["transformer", "lstm cell", "smooth", "functional"])
def test_optimised_choices_do_not_loosen(name):
    graph, region = traced(name), Region(examples(name, 4, 1), Linf(0.02))
    drawn(graph.model, 4)
    with torch.no_grad():
        crown = bounds(graph, region, method="crown")
        better = bounds(graph, region, method="alpha-crown", iterations=3)
    assert (better.lower >= crown.lower - 1e-9).all()
    assert (better.upper <= crown.upper + 1e-9).all()
    assert better.width.sum() < crown.width.sum()


def test_bounds_of_smooth_networks_can_be_trained_on():
    model = built("smooth", 1)
    region = Region(examples("smooth", 1).float(), Linf(0.02))
    for method in ("ibp", "crown-ibp", "crown"):
        lower = bounds(model, region, method=method).lower
        gradients = torch.autograd.grad(lower.sum(), list(model.parameters()))
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.one(x) * self.two(x), -1)


@pytest.mark.parametrize("operator", [EntryProduct, Share])
def test_the_attack_catches_an_unsound_operator(operator, monkeypatch):
    sound = operator.relax

    def unsound(self, *boxes, **options):
        found = sound(self, *boxes, **options)
        if isinstance(found, Planes):
            return replace(found, x=found.x._replace(upper=found.x.lower))
        return replace(found, upper_bias=found.upper_bias - 0.02)

    model, x = drawn(Gated(), 3, 2.0), torch.rand(2, 4, generator=torch_generator(3, "points")).double()
    region = Region(x, Linf(0.1))
    graph = capture(model, x.float())

    def attacked() -> float:
        with torch.no_grad():
            found = bounds(graph, region, method="crown")
        return excess(model, region, found, samples=50, steps=10)

    assert attacked() <= 0
    monkeypatch.setattr(operator, "relax", unsound)
    assert attacked() > 0


class Leftovers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        values, places = x.sort(1)
        return values + torch.fft.rfft(x).abs().sum(1, keepdim=True) + x[:, places[0, 0]].unsqueeze(1)


def test_what_is_left_is_named_with_its_lines():
    problems = unsupported(Leftovers(), torch.rand(1, 4))
    assert any("sort" in problem and "test_architectures.py:" in problem for problem in problems)
    assert any("fft" in problem for problem in problems)
    with pytest.raises(UnsupportedError, match="sort"):
        capture(Leftovers(), torch.rand(1, 4))


EQUATIONS = (
    "bij,bjk->bik",
    "bij,bkj->bik",
    "b i j,b j->b i",
    "bi,bj->bij",
    "bij->bji",
    "bij->b",
    "...ij,...jk->...ik",
    "bij,bij->b",
    "bij,jk,bk->bi",
    "bij,bjk",
)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_is_what_torch_says(equation):
    sizes = dict(zip("bijk", (2, 3, 4, 5)))
    parts = equation.split("->")[0].replace("...", "b").replace(" ", "").split(",")
    shapes = [[sizes[letter] for letter in part] for part in parts]
    tensors = [torch.rand(shape, generator=torch_generator(0, equation, str(shape))) for shape in shapes]
    torch.testing.assert_close(einsum(equation, tensors), torch.einsum(equation, *tensors))
