"""Check of `attribute-editing`: what classifiers of objects in scenes lose when one attribute of the object changes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.intervals import clopper_pearson, paired_difference
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.corruption.attributes import ObjectEdit, dropped_rates, spectral_amplitude
from holdfast.inputs.corruption.placement import bounds
from holdfast.papers import datasets
from holdfast.papers.bench_models.fitting import fit
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale
from holdfast.papers.scenes import KINDS, CutOuts, cut_outs, object_scenes, photographs

PAPER = Paper(
    key="attribute-editing",
    group="inputs",
    title="ImageNet-E: Benchmarking Neural Network Robustness via Attribute Editing",
    builds=(
        "holdfast.inputs.corruption.attributes.ObjectEdit",
        "holdfast.inputs.corruption.attributes.attribute_report",
        "holdfast.inputs.corruption.attributes.blended_denoise",
        "holdfast.inputs.corruption.holes.biharmonic_fill",
        "holdfast.inputs.corruption.placement.resampled",
    ),
    claim=(
        "Classifiers lose accuracy when only the background, size, position or direction of the object changes: a "
        "small change of background costs 9.23 points on average, and some models trained to be robust lose more than "
        "plain ones."
    ),
    reference="Li et al., CVPR 2023",
)

SEEDS = (0, 1, 2)
SIDE, TRAINED, EPOCHS, TESTED = 48, 6000, 3, 400
#: How often a training or test scene of a kind shows one of the two sorts of photograph that go with the kind.
HABIT = 0.8
SIZES = (0.10, 0.08, 0.05)


@dataclass(frozen=True)
class _Material:
    """What scenes are made of: objects, photographs, and which of ten sorts every photograph is."""

    split: datasets.Split
    objects: CutOuts
    photos: np.ndarray
    sorts: np.ndarray


@dataclass(frozen=True)
class _Scenes:
    images: Tensor
    masks: Tensor
    kinds: Tensor


def check(scale: Scale) -> Outcome:
    """(a) objects are kept and sized as asked, (b) dropped rates of a plain CNN, (c) of one with random backgrounds."""
    full = scale is Scale.FULL
    test = _scenes(_material("test", TESTED if full else 12), HABIT, SEEDS[0])
    criteria = list(_faithful(test))
    if not full:
        return Outcome(tuple(criteria), seeds=SEEDS[:1])
    generator = torch_generator(SEEDS[0], PAPER.key, "edits")
    made = {
        name: edit.edit(test.images, test.masks, generator)
        for name, edit in _edits(torch.from_numpy(photographs("test", SIDE))).items()
    }
    material = _material("train", TRAINED)
    correct = {
        name: _answers([_trained(material, habit, seed) for seed in SEEDS], test, made)
        for name, habit in (("plain", HABIT), ("random backgrounds", 0.0))
    }
    plain, random = correct["plain"], correct["random backgrounds"]
    drops = {name: {edit: _drop(part, edit) for edit in part if edit != "original"} for name, part in correct.items()}
    busier = paired_difference(plain["busier background"], plain["calmer background"])
    other = paired_difference(
        plain["original"] - plain["other background"], random["original"] - random["other background"]
    )
    criteria += [
        Criterion(
            "a busier background (lambda = 20) costs the plain model more than a calmer one (-20; paired 95% interval)",
            busier.low > 0,
            {"DR(20) - DR(-20)": busier, **{f"DR, {e}": drops["plain"][e] for e in _BACKGROUNDS}},
        ),
        _smaller(plain),
        Criterion(
            "a model trained on random backgrounds loses less to another background (paired 95% interval)",
            other.high < 0,
            {"change of DR": other, **{f"DR, {name}": part["other background"] for name, part in drops.items()}},
        ),
    ]
    table = Table(
        "Dropped rate by edit",
        ("edit", "plain", "random backgrounds"),
        tuple((edit, *(drops[name][edit] for name in correct)) for edit in drops["plain"]),
        caption="Accuracy lost on the same images, mean of three seeds; at first "
        + " and ".join(f"{float(part['original'].mean()):.3f} ({name})" for name, part in correct.items()),
    )
    notes = (
        f"Scenes of {SIDE} pixels: a Fashion-MNIST object of five kinds ({', '.join(KINDS)}), 10 to 25% of the area, "
        f"on a CIFAR-10 photograph, in {HABIT:.0%} of the scenes one of the two sorts that go with the kind "
        f"(photographs of objects have such habits too). {TRAINED} scenes to train on, {TESTED} to test on. "
        "The paper edits ImageNet with a diffusion model; here backgrounds are edited by gradient steps on their "
        "spectrum."
    )
    ours = drops["plain"]["other background"]
    return Outcome(tuple(criteria), ours, drops["random backgrounds"]["other background"], (table,), SEEDS, notes)


_BACKGROUNDS = ("calmer background", "busier background", "busier, adversarial", "other background")


def _edits(photos: Tensor) -> dict[str, ObjectEdit]:
    return {
        "taken apart and put together": ObjectEdit(position=None, angle=0.0),
        "calmer background": ObjectEdit(complexity=-20.0),
        "busier background": ObjectEdit(complexity=20.0),
        "other background": ObjectEdit(background=photos),
        "size full": ObjectEdit(size="full"),
        **{f"size {size:.2f}": ObjectEdit(size=size) for size in SIZES},
        "random position": ObjectEdit(position="random"),
        "random direction": ObjectEdit(angle="random"),
    }


def _material(split: datasets.Split, n: int) -> _Material:
    objects = cut_outs(split, 0, n + n // 10 + 20)
    objects = CutOuts(*(part[:n] for part in (objects.pixels, objects.masks, objects.boxes, objects.kinds)))
    return _Material(split, objects, photographs(split, SIDE), datasets.cifar10(split)[1])


def _scenes(material: _Material, habit: float, seed: int) -> _Scenes:
    generator = numpy_generator(seed, PAPER.key, "scenes", material.split)
    objects, n = material.objects, len(material.objects.kinds)
    usual = generator.random(n) < habit
    wanted = np.where(usual, 2 * objects.kinds + generator.integers(0, 2, n), generator.integers(0, 10, n))
    members = [np.flatnonzero(material.sorts == sort) for sort in range(10)]
    chosen = np.array([members[sort][generator.integers(len(members[sort]))] for sort in wanted])
    images, masks = object_scenes(objects, material.photos[chosen], generator.uniform(0.10, 0.25, n), generator)
    return _Scenes(torch.from_numpy(images), torch.from_numpy(masks), torch.from_numpy(objects.kinds))


def _faithful(test: _Scenes) -> tuple[Criterion, Criterion, Criterion]:
    """The object is kept to the last bit, sized to within a row, and lambda orders the amplitude of the background."""
    worst, rows, amplitude = 0.0, 0.0, {}
    generator = torch_generator(SEEDS[0], PAPER.key, "faithful")
    part = _Scenes(test.images[:100], test.masks[:100], test.kinds[:100])
    shape = part.masks[:, None].expand_as(part.images)
    for complexity in (-20.0, 0.0, 20.0):
        made = ObjectEdit(complexity=complexity).edit(part.images, part.masks, generator)
        worst = max(worst, float((made - part.images)[shape].abs().max()))
        amplitude[complexity] = spectral_amplitude(made, part.masks).numpy()
    for size in SIZES:
        _, masks = ObjectEdit(size=size, fill=lambda images, missing: images).compose(
            part.images, part.masks, generator
        )
        box = bounds(masks)
        row = (box[:, 2:] - box[:, :2]).amax(1)
        rows = max(rows, float(((masks.sum((1, 2)) - size * SIDE * SIDE).abs() / row).max()))
    calmer, busier = (paired_difference(amplitude[a], amplitude[b]) for a, b in ((-20.0, 0.0), (0.0, 20.0)))
    return (
        Criterion(
            "edits of the background leave the object's pixels to 1e-6", worst <= 1e-6, {"largest change": worst}
        ),
        Criterion("an object covers what was asked to within one row of its box", rows <= 1, {"rows off": rows}),
        Criterion(
            "the background's spectral amplitude increases with lambda (-20, 0, 20; paired 95% intervals)",
            calmer.low > 0 and busier.low > 0,
            {"A(0) - A(-20)": calmer, "A(20) - A(0)": busier},
        ),
    )


class _Classifier(nn.Module):
    """Four convolutions, three of which halve the image, the mean over what is left, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((3, 24, 5, 2), (24, 48, 3, 2), (48, 64, 3, 2), (64, 64, 3, 1))
        self.layers = nn.Sequential(
            *(layer for shape in shapes for layer in _convolution(*shape)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.utils.skip_init(nn.Linear, 64, len(KINDS)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - 0.5).contiguous(memory_format=torch.channels_last))


def _convolution(entering: int, leaving: int, size: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.utils.skip_init(nn.Conv2d, entering, leaving, size, stride=stride, padding=size // 2, bias=False)
    return convolution, nn.BatchNorm2d(leaving, affine=False), nn.ReLU()


def _trained(material: _Material, habit: float, seed: int) -> nn.Module:
    scenes = _scenes(material, habit, seed)
    return fit(
        _Classifier(),
        scenes.images,
        scenes.kinds,
        lambda x: x,
        PAPER.key,
        seed=seed,
        epochs=EPOCHS,
        batch=32,
        peak=1e-2,
    )


def _answers(models: list[nn.Module], test: _Scenes, made: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Share of the models that are right on every image, as it was and edited; one edit is made against each model."""
    reports = []
    for model in models:

        def right(images: Tensor, model: nn.Module = model) -> Tensor:
            return model(images).log_softmax(1).gather(1, test.kinds[:, None])[:, 0]

        adversarial = ObjectEdit(complexity=20.0, guidance=right, steps=10).edit(
            test.images, test.masks, torch_generator(SEEDS[0], PAPER.key, "adversarial")
        )
        reports.append(dropped_rates(model, test.images, test.kinds, {**made, "busier, adversarial": adversarial}))
    return {name: np.mean([report.correct[name] for report in reports], axis=0) for name in reports[0].correct}


def _drop(correct: dict[str, np.ndarray], edit: str) -> Estimate:
    return paired_difference(correct[edit], correct["original"])


def _smaller(correct: dict[str, np.ndarray]) -> Criterion:
    """Two paired steps, each an increase, is the trend over three sizes."""
    names = [f"size {size:.2f}" for size in SIZES]
    steps = {
        f"DR({later}) - DR({sooner})": paired_difference(correct[later], correct[sooner])
        for sooner, later in pairwise(names)
    }
    whole = paired_difference(correct[names[-1]], correct[names[0]])
    slope = np.stack([correct[name] for name in names], 1) @ np.array([1.0, 0.0, -1.0])
    share = clopper_pearson(int((slope > 0).sum()), max(int((slope != 0).sum()), 1))
    return Criterion(
        "the dropped rate grows as the object shrinks from 10 to 8 to 5% of the area (each step up, paired 95% "
        "interval of the whole above 0)",
        all(step.value > 0 for step in steps.values()) and whole.low > 0,
        {**steps, "whole": whole, "images that follow the trend, of those that change": share},
    )
