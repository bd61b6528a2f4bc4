"""crmt: orthogonal fusion with uni-modal margins and integrated scales, against joint training by concatenation.

Two views of Fashion-MNIST at 14 x 14 (each pixel the mean of four): the upper half, and the lower half under Gaussian
noise of 0.3, so that the upper one is preferred.  Encoders are small perceptrons; three seeds.  Attacks are L2, on the
preferred view alone and on both together, and models are compared example by example.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Cell, Table
from holdfast.core.intervals import paired_difference
from holdfast.core.seeds import torch_generator
from holdfast.inputs.attack.gradient import PGD
from holdfast.inputs.bounds.modality_report import JoinedViews, OneView
from holdfast.inputs.bounds.multimodal import (
    CertifiableFusionLoss,
    ConcatenationFusion,
    MultimodalClassifier,
    OrthogonalFusion,
    empirical_lipschitz,
    multimodal_radius,
    optimise_integration,
)
from holdfast.papers.datasets import Split, fashion_mnist
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale
from holdfast.threats.balls import L2

PAPER = Paper(
    key="crmt",
    group="inputs",
    title="Quantifying and Enhancing Multi-modal Robustness with Modality Preference",
    builds=(
        "holdfast.inputs.bounds.multimodal.OrthogonalFusion",
        "holdfast.inputs.bounds.multimodal.multimodal_radius",
        "holdfast.inputs.bounds.multimodal.CertifiableFusionLoss",
        "holdfast.inputs.bounds.multimodal.optimise_integration",
        "holdfast.inputs.bounds.modality_report.modality_report",
    ),
    claim=(
        "Orthogonal fusion trained for uni-modal margins, its scales then tuned for the radius, withstands attacks on "
        "the preferred modality, joint attacks and a missing modality better than joint training, at little cost in "
        "accuracy."
    ),
    reference="Yang, Wei, Liang and Hu, ICLR 2024",
)

CLASSES, FEATURES, WIDTH = 10, 64, 7 * 14
RHO = 1.0
EPS = (0.5, 1.0)
RATE = 1e-3


@dataclass(frozen=True)
class Effort:
    """How much a scale does."""

    seeds: tuple[int, ...]
    train: int
    test: int
    epochs: int
    certified: int  # examples of the soundness attack, over all seeds
    steps: int


EFFORT = {Scale.SMOKE: Effort((0,), 500, 50, 2, 4, 5), Scale.FULL: Effort((11, 12, 13), 10_000, 1000, 20, 300, 20)}


@dataclass(frozen=True)
class Data:
    """Views and labels for training, testing."""

    views: list[Tensor]
    y: Tensor
    test_views: list[Tensor]
    test_y: Tensor


@dataclass(frozen=True)
class Shown:
    """What one model shows on the test data; the first three are (examples,) booleans."""

    clean: np.ndarray
    attacked: dict[tuple[str, float], np.ndarray]
    missing: np.ndarray
    radius: float


@dataclass(frozen=True)
class Trial:
    """One seed: joint training, orthogonal fusion without the margin term, after step 1, after step 2."""

    joint: Shown
    orthogonal: Shown
    first: Shown
    second: Shown
    flips: int
    certified: np.ndarray


def check(scale: Scale) -> Outcome:
    """Robustness by view, radii by training, soundness, the hand-made identity."""
    effort = EFFORT[scale]
    trials = [_trial(seed, effort, scale) for seed in effort.seeds]
    criteria = [_identity(), _sound(trials)]
    if scale is Scale.FULL:  # two epochs on noise images decide nothing about training
        criteria += [*_robust(trials), _accuracy(trials), _radii(trials)]
    key = ("preferred view", EPS[0])
    return Outcome(
        tuple(criteria),
        ours=_share(np.concatenate([trial.second.attacked[key] for trial in trials])),
        baseline=_share(np.concatenate([trial.joint.attacked[key] for trial in trials])),
        exhibits=(_table(trials),),
        seeds=effort.seeds,
        notes=(
            "Every class is a group of its own, so rows are centred and of unit length, as in the released layer.  "
            "Radii of the table and of criterion (b) rest on the largest gradients seen in training data, as the "
            "paper's do: estimates, no certificates.  The certified ones are attacked in (c).  Step 2 uses a third of "
            "the epochs and SGD at 0.3 times the rate of step 1.  These settings were chosen on other seeds and other "
            "test images than the ones measured here.  Not checked: video data, the adversarial and mixup "
            "variants."
        ),
    )


def _trial(seed: int, effort: Effort, scale: Scale) -> Trial:
    data = _data(seed, effort, scale)
    sizes = (FEATURES, FEATURES)
    stream = torch_generator(seed, "crmt", "fusion")
    joint = _trained(ConcatenationFusion(sizes, CLASSES, generator=stream), 0.0, data, effort, seed)
    orthogonal = _trained(OrthogonalFusion(sizes, CLASSES, CLASSES, generator=stream), 0.0, data, effort, seed)
    first = _trained(OrthogonalFusion(sizes, CLASSES, CLASSES, generator=stream), RHO, data, effort, seed)
    second = copy.deepcopy(first)
    loader = [([view[rows] for view in data.views], data.y[rows]) for rows in torch.arange(len(data.y)).split(256)]
    optimise_integration(second, loader, epochs=max(1, effort.epochs // 3), learning_rate=0.3 * RATE)
    shown = [_shown(model, data, effort, seed) for model in (joint, orthogonal, first, second)]
    flips, certified = _inside(second, data, effort, seed)
    return Trial(shown[0], shown[1], shown[2], shown[3], flips, certified)


def _data(seed: int, effort: Effort, scale: Scale) -> Data:
    views, y = _views("train", effort.train, seed, scale)
    return Data(views, y, *_views("test", effort.test, seed, scale))


def _views(split: Split, count: int, seed: int, scale: Scale) -> tuple[list[Tensor], Tensor]:
    """Upper half, noisy lower half, labels."""
    generator = torch_generator(seed, "crmt", split)
    if scale is Scale.FULL:
        # The last of each split: settings were chosen while looking at the first of the test images.
        images, labels = (part[-count:] for part in fashion_mnist(split))
        x, y = F.avg_pool2d(torch.from_numpy(images), 2)[:, 0], torch.from_numpy(labels)
    else:
        x, y = torch.rand(count, 14, 14, generator=generator), torch.arange(count) % CLASSES
    upper, lower = x[:, :7].flatten(1), x[:, 7:].flatten(1)
    return [upper, lower + 0.3 * torch.randn(lower.shape, generator=generator)], y


def _encoder(generator: torch.Generator) -> nn.Module:
    layers = [skip_init(nn.Linear, given, FEATURES) for given in (WIDTH, FEATURES)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU())


def _trained(fusion: ConcatenationFusion, rho: float, data: Data, effort: Effort, seed: int) -> MultimodalClassifier:
    generator = torch_generator(seed, "crmt", "training")
    model = MultimodalClassifier([_encoder(generator) for _ in data.views], fusion)
    loss = CertifiableFusionLoss(rho)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(effort.epochs):
        for rows in torch.randperm(len(data.y), generator=generator).split(128):
            optimizer.zero_grad()
            loss(model([view[rows] for view in data.views]), data.y[rows]).backward()
            optimizer.step()
    return model.eval()


def _shown(model: MultimodalClassifier, data: Data, effort: Effort, seed: int) -> Shown:
    joined = JoinedViews(model, data.test_views)
    x, y = joined.join(data.test_views), data.test_y
    tau = empirical_lipschitz(model, data.views)
    with torch.no_grad():
        fused, missing = model(data.test_views), model.without(data.test_views, 0).argmax(1) == y
        radius = multimodal_radius(fused.scores, model.fusion.scales, tau, model.fusion.bias, y).mean()
    clean = fused.logits.argmax(1) == y
    attacked = {}
    for eps in EPS:
        for where, threat in (("preferred view", OneView(L2(eps), *joined.places[0])), ("both views", L2(eps))):
            generator = torch_generator(seed, "crmt", where, str(eps))
            run = PGD(threat, steps=effort.steps).run(joined, x, y, valid=None, generator=generator)
            attacked[where, eps] = (clean & ~run.success).numpy()
    return Shown(clean.numpy(), attacked, missing.numpy(), float(radius))


def _inside(model: MultimodalClassifier, data: Data, effort: Effort, seed: int) -> tuple[int, np.ndarray]:
    """Labels changed by a joint attack within the certified radius of each example, and those radii."""
    count = effort.certified // len(effort.seeds)
    double = copy.deepcopy(model).double()
    views = [view[:count].double() for view in data.test_views]
    radius = double.certified_radius(views)
    joined = JoinedViews(double, views)
    x, generator, flips = joined.join(views), torch_generator(seed, "crmt", "inside"), 0
    with torch.no_grad():
        label = joined(x).argmax(1)
    for point, own, size in zip(x, label, radius.tolist()):
        if size > 0:
            copies = point.expand(3, -1)
            attack = PGD(L2(size), steps=effort.steps, loss="margin")
            run = attack.run(joined, copies, own.expand(3), valid=None, generator=generator)
            flips += int(run.success.any())
    return flips, radius.numpy()


def _robust(trials: list[Trial]) -> list[Criterion]:
    """(a) Under attack and with the preferred view missing."""
    found = []
    for where, eps in trials[0].joint.attacked:
        gain = _gain([(trial.joint.attacked[where, eps], trial.second.attacked[where, eps]) for trial in trials])
        found.append(
            Criterion(
                f"(a) L2 attack of {eps:g} on {where}: accuracy is above that of joint training (paired by example)",
                gain.low > 0,
                {"accuracy gain": gain},
            )
        )
    gain = _gain([(trial.joint.missing, trial.second.missing) for trial in trials])
    statement = "(a) preferred view missing: accuracy is above that of joint training (paired by example)"
    return [*found, Criterion(statement, gain.low > 0, {"accuracy gain": gain})]


def _accuracy(trials: list[Trial]) -> Criterion:
    gain = _gain([(trial.joint.clean, trial.second.clean) for trial in trials])
    return Criterion(
        "(a) clean accuracy is at most four points below that of joint training",
        gain.value >= -0.04,
        {"accuracy gain": gain},
    )


def _radii(trials: list[Trial]) -> Criterion:
    """(b) Mean empirical radius by training."""
    plain, first, second = (
        float(np.mean([getattr(trial, name).radius for trial in trials])) for name in ("orthogonal", "first", "second")
    )
    every = all(trial.orthogonal.radius < trial.first.radius < trial.second.radius for trial in trials)
    return Criterion(
        "(b) mean radius (estimate): after step 2 above after step 1 above orthogonal fusion without the margin term, "
        "in every seed",
        every,
        {"without margins": plain, "step 1": first, "step 2": second},
    )


def _sound(trials: list[Trial]) -> Criterion:
    radius = np.concatenate([trial.certified for trial in trials])
    flips = sum(trial.flips for trial in trials)
    return Criterion(
        "(c) no joint L2 attack inside the certified radius changes a label",
        flips == 0 and bool((radius > 0).any()),
        {"labels changed": flips, "examples": len(radius), "mean radius": float(radius.mean())},
    )


def _identity() -> Criterion:
    """(d) One linear view, two classes, orthonormal rows."""
    generator = torch_generator(0, "crmt", "identity")
    rows = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64))[0].T
    scales = torch.tensor([[2.0, 0.5]], dtype=torch.float64)
    bias = torch.tensor([0.3, -0.1], dtype=torch.float64)
    x = torch.randn(100, 6, generator=generator, dtype=torch.float64)
    scores = (x @ rows.T)[:, None]
    logits = scores[:, 0] * scales + bias
    y, scaled = logits.argmax(1), scales.T * rows
    distance = (logits[:, 0] - logits[:, 1]).abs() / (scaled[0] - scaled[1]).norm()
    pairs = torch.cdist(scaled, scaled)[None]
    gap = float((multimodal_radius(scores, scales, pairs, bias, y) - distance).abs().max())
    ones = torch.ones(1, 2, dtype=torch.float64)
    excess = float((multimodal_radius(scores, scales, ones, bias, y) - distance).max())
    return Criterion(
        "(d) one linear view, two classes: the radius is at most the distance to the hyperplane, and is that distance "
        "(to 1e-6) with the constant of the difference",
        excess <= 0 and gap <= 1e-6,
        {"largest excess": excess, "largest difference": gap},
    )


def _gain(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Estimate:
    """Ours minus baseline over examples, each example's difference averaged over the seeds."""
    baseline, ours = (np.array([pair[side] for pair in pairs], dtype=np.float64).mean(0) for side in (0, 1))
    return paired_difference(np.asarray(baseline), np.asarray(ours))


def _share(hits: np.ndarray) -> Estimate:
    return paired_difference(np.zeros(len(hits)), hits.astype(np.float64))


def _table(trials: list[Trial]) -> Table:
    names = ("joint", "orthogonal", "first", "second")
    labels = ("joint training", "orthogonal, no margin term", "CRMT, step 1", "CRMT, step 2")
    rows: list[tuple[Cell, ...]] = []
    for name, label in zip(names, labels):
        shown = [getattr(trial, name) for trial in trials]
        attacked = [float(np.mean([one.attacked[key] for one in shown])) for key in shown[0].attacked]
        clean, missing = (float(np.mean([getattr(one, field) for one in shown])) for field in ("clean", "missing"))
        rows.append((label, clean, *attacked, missing, float(np.mean([one.radius for one in shown]))))
    heads = (f"{where}, {eps:g}" for where, eps in trials[0].joint.attacked)
    columns = ("trained by", "clean", *heads, "preferred view missing", "mean radius (estimate)")
    return Table("Accuracy by what is attacked, mean over seeds", columns, tuple(rows))
