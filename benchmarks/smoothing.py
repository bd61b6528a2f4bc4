"""Certifying by votes: deciding a radius with stopping rules, against drawing a fixed number for everyone.

The peer is the usual way (Cohen, Rosenfeld & Kolter, 2019): 100 draws choose the label, 100 000 fresh ones bound its
probability by Clopper & Pearson, one input after the other in batches of 1000, whatever the input.  The question both
answer is which inputs are certified at a radius; they count as equal when they answer alike for every input.

    python -m benchmarks.smoothing

prints what each stopping rule costs and keeps on digits, what a radius within 2 % must cost whoever computes it, and
how often certificates are wrong.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import beta
from torch import Tensor, nn

from benchmarks.harness import Benchmark
from holdfast.core.errors import MissingData
from holdfast.core.intervals import clopper_pearson
from holdfast.core.seeds import torch_generator
from holdfast.inputs.smoothing import FixedN, Planned, Precision, RadiusTarget, Smoothed, SmoothedCertificate, Stopping
from holdfast.inputs.smoothing.noise import Gaussian
from holdfast.inputs.smoothing.votes import expected_lower
from holdfast.papers.bench_models.fitting import fit, perceptron
from holdfast.papers.datasets import digits, fashion_mnist

N0, N, ALPHA, SIGMA = 100, 100_000, 1e-3, 0.25
#: Name, rule, and draws that choose the label.
RULES: tuple[tuple[str, Stopping, int], ...] = (
    ("all draws", FixedN(), N0),
    *((f"radius {r:g} or not", RadiusTarget(r), N0) for r in (0.125, 0.25, 0.5)),
    *((f"within {w:g} sigma", Precision(w), N0) for w in (0.05, 0.1, 0.2, 0.4)),
    *((f"planned, {share:.0%}", Planned(share), N0) for share in (0.98, 0.95, 0.9)),
    *((f"planned, {share:.0%}, n0 = 1000", Planned(share), 1000) for share in (0.98, 0.95, 0.9)),
)


@dataclass(frozen=True)
class Setting:
    """A network trained with noise, and the inputs to certify."""

    model: nn.Module
    x: Tensor
    y: Tensor
    radius: float


def prepare(images: int, radius: float) -> Setting:
    """Fashion-MNIST, or digits where it is not on the machine."""
    try:
        train, test = fashion_mnist("train", 6000), fashion_mnist("test", images)
    except MissingData:
        return digits_setting(images, radius)
    x, y, test_x, test_y = (torch.from_numpy(part) for part in (*train, *test))
    return Setting(_trained(x, y), test_x, test_y, radius)


def digits_setting(images: int, radius: float = 0.25) -> Setting:
    """Digits, fast enough for all draws of some hundred inputs."""
    x, y = map(torch.from_numpy, digits())
    return Setting(_trained(x[:1400], y[:1400]), x[1400 : 1400 + images], y[1400 : 1400 + images], radius)


def _trained(x: Tensor, y: Tensor) -> nn.Module:
    stream = torch_generator(0, "benchmark", "smoothing")
    model = perceptron(x[0].numel(), 128, 10)
    epochs = max(8, 60_000 // len(x))
    return fit(
        model,
        x,
        y,
        lambda z: z + SIGMA * torch.randn(z.shape, generator=stream),
        "benchmark smoothing",
        seed=0,
        epochs=epochs,
    )


def certificate(setting: Setting, rule: Stopping, n0: int = N0) -> SmoothedCertificate:
    """Ours."""
    smoothed = Smoothed(setting.model, SIGMA, 10)
    return smoothed.certify(setting.x, n0, N, ALPHA, rule, torch_generator(1, "benchmark", "draws"))


def ours(setting: Setting) -> list[bool]:
    return (certificate(setting, RadiusTarget(setting.radius)).radius >= setting.radius).tolist()


@torch.no_grad()
def every_draw(setting: Setting) -> list[bool]:
    """The peer: the same number of draws for every input."""
    generator, decided = torch_generator(2, "benchmark", "draws"), []

    def counts(x: Tensor, draws: int) -> Tensor:
        total = torch.zeros(10, dtype=torch.long)
        while draws > 0:
            size = min(draws, 1000)
            batch = x.expand(size, *x.shape) + SIGMA * torch.randn((size, *x.shape), generator=generator)
            total += torch.bincount(setting.model(batch).argmax(1), minlength=10)
            draws -= size
        return total

    for x in setting.x:
        label = int(counts(x, N0).argmax())
        votes = int(counts(x, N)[label])
        lower = float(beta.ppf(ALPHA, votes, N - votes + 1)) if votes else 0.0
        decided.append(SIGMA * float(ndtri(lower)) >= setting.radius)
    return decided


def equal(mine: list[bool], theirs: list[bool]) -> bool:
    """Every input is answered alike."""
    return mine == theirs


BENCHMARKS = tuple(
    Benchmark(
        name=f"smoothing-decide-{radius:g}",
        subject=f"which of 20 images are certified at L2 radius {radius:g} (Fashion-MNIST, sigma {SIGMA:g})",
        peer="fixed-n script",
        peer_version=f"n={N}",
        prepare=partial(prepare, 20, radius),
        ours=ours,
        theirs=every_draw,
        equal=equal,
        settings={"n0": N0, "cap": N, "alpha": ALPHA, "batch": 1000},
        memory=False,
    )
    for radius in (0.25, 0.5)
)


def savings(setting: Setting) -> str:
    """What each rule costs and keeps, as a table."""
    found = {name: (rule, certificate(setting, rule, n0)) for name, rule, n0 in RULES}
    fixed = found["all draws"][1]
    right = fixed.label == setting.y
    lines = [
        "| rule | mean draws | fewer by | average radius kept | kept by 95 of 100 | decided alike |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, (rule, one) in found.items():
        draws = one.n_used.double()
        cells = [name, f"{draws.mean():,.0f}", f"{float(fixed.n_used.double().mean() / draws.mean()):.1f}x"]
        if isinstance(rule, RadiusTarget):
            alike = (one.radius >= rule.radius) == (fixed.radius >= rule.radius)
            cells += ["", "", f"{int(alike.sum())} of {len(alike)}"]
        else:
            both = right & (one.label == fixed.label) & ~fixed.abstained
            kept = one.radius[both] / fixed.radius[both]
            alike = one.abstained == fixed.abstained
            acr = float((one.radius * (one.label == setting.y)).mean() / (fixed.radius * right).mean())
            cells += [f"{acr:.1%}", f"{float(kept.quantile(0.05)):.1%}", f"{int(alike.sum())} of {len(alike)}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def price_of_two_percent() -> str:
    """Draws that any fixed number needs to certify 98 % of what 100 000 certify, by the label's probability."""
    lines = ["| probability of the label | radius (sigma) | draws for 98 % of it | fewer by |", "|---:|---:|---:|---:|"]
    for p in (0.6, 0.75, 0.9, 0.99, 0.999, 0.9999, 1.0):
        votes = round(10**7 * p)
        sizes = np.arange(100, N + 1, 100)
        radius = Gaussian(1.0).radius(expected_lower(votes, 10**7, sizes, ALPHA))
        first = int(sizes[np.argmax(radius >= 0.98 * radius[-1])])
        lines.append(f"| {p:g} | {radius[-1]:.3f} | {first:,} | {N / first:.1f}x |")
    return "\n".join(lines)


def mistakes(runs: int = 2000, alpha: float = 0.05) -> str:
    """Certificates beyond the true radius, the distance of a half-space, over several distances for every rule."""
    lines = ["| rule | wrong at alpha = 0.05, all distances | the worst of six |", "|---|---:|---:|"]

    def half_space(x: Tensor) -> Tensor:
        return torch.cat([-x, x], 1)

    for name, rule, n0 in RULES:
        wrong = []
        for distance in (0.02, 0.12, 0.24, 0.26, 0.45, 0.7):
            x = torch.full((runs, 1), distance)
            found = Smoothed(half_space, SIGMA, 2, batch=100_000).certify(
                x, n0, 2000, alpha, rule, torch_generator(3, "benchmark", name, str(distance))
            )
            wrong.append(int((found.radius > torch.where(found.label == 1, distance, 0.0)).sum()))
        cells = name, clopper_pearson(sum(wrong), len(wrong) * runs), clopper_pearson(max(wrong), runs)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    torch.set_num_threads(1)
    print(savings(digits_setting(200)), price_of_two_percent(), mistakes(), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
