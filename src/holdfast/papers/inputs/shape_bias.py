"""Check of `shape-bias`: kernels, noise and channels of CNNs trained with and without adversarial examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor, nn

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Exhibit, Series, Table
from holdfast.core.intervals import paired_difference
from holdfast.core.seeds import torch_generator
from holdfast.inputs.attack.biases import CueConflicts, cue_conflict, recognition, scramble, shape_bias, silhouette
from holdfast.inputs.attack.channels import (
    activation_smoothness,
    channel_variety,
    cut_off,
    dissect,
    frequency_response,
    kernel_smoothness,
    noise_transfer,
)
from holdfast.papers import datasets
from holdfast.papers.bench_models import empty, load
from holdfast.papers.bench_models.attacked import fit_attacked
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale
from holdfast.threats.balls import Linf

PAPER = Paper(
    key="shape-bias",
    group="inputs",
    title="Shape and simplicity biases of adversarially robust CNNs",
    builds=(
        "holdfast.inputs.attack.biases.cue_conflict",
        "holdfast.inputs.attack.biases.shape_bias",
        "holdfast.inputs.attack.biases.scramble",
        "holdfast.inputs.attack.channels.kernel_smoothness",
        "holdfast.inputs.attack.channels.noise_transfer",
        "holdfast.inputs.attack.channels.channel_variety",
        "holdfast.inputs.attack.channels.dissect",
    ),
    claim=(
        "Adversarially trained CNNs go by shape where standard ones go by texture, and simplify inside: kernels are "
        "smoother and block high-frequency noise, and channels answer to lower-level and fewer kinds of input."
    ),
    reference="Chen, Agarwal and Nguyen, The shape and simplicity biases of adversarially robust ImageNet-trained CNNs",
)

RINGS = (0.0, 0.125, 0.25, 0.375, 0.75)
#: Outputs of the three ReLUs, and of the first convolution before its own.
LAYERS, BEFORE = ("1", "3", "5"), "0"
RADIUS = 0.1
Pair = tuple[nn.Module, nn.Module]


@dataclass(frozen=True)
class Pictures:
    """Test images, their labels, and where the object is."""

    x: Tensor
    y: Tensor
    masks: Bool[Tensor, "n 1 height width"]

    @classmethod
    def first(cls, count: int) -> Pictures:
        x, y = datasets.fashion_mnist("test", count)
        filled = np.stack([ndimage.binary_fill_holes(image[0] > 0.1) for image in x])
        return cls(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(filled)[:, None])


def check(scale: Scale) -> Outcome:
    """Standard and adversarially trained twins: the shipped pair, and in full two more trained here."""
    full = scale is Scale.FULL
    pictures = Pictures.first(1000 if full else 100)
    pairs: list[Pair] = [(load("cnn"), load("cnn_linf"))]
    if full:
        pairs += [_trained(seed) for seed in (1, 2)]
    smooth, kernels = _kernels(pairs)
    blocked, curve, transfers = _noise(pairs, pictures)
    criteria, exhibits = [smooth, blocked], [kernels, curve, transfers]
    if not full:
        return Outcome(tuple(criteria), exhibits=tuple(exhibits), seeds=(0,))
    varied, variety = _variety(pairs, pictures)
    biases, ours, baseline = _shapes(pairs, pictures)
    notes = (
        "Shape bias is reported, not required: on Fashion-MNIST silhouettes filled with cloth cut from other classes "
        "both kinds of network already answer by shape (above 0.9), and scrambling into 4x4 tiles or more leaves both "
        "near chance, so images of 28x28 pixels cannot show the paper's contrast.  Noise is judged after the first "
        "ReLU; before it the shipped pair passes the two highest bands alike, so there it is the threshold that blocks "
        "noise rather than the kernels.  Variety differs by layer and pair without a common sign."
    )
    return Outcome((*criteria, varied), ours, baseline, (*exhibits, variety, *biases), (0, 1, 2), notes)


def _trained(seed: int) -> Pair:
    x, y = (torch.from_numpy(part) for part in datasets.fashion_mnist("train", 6000))
    made = [fit_attacked(empty("cnn"), x, y, threat, PAPER.key, seed=seed, epochs=2) for threat in (None, Linf(RADIUS))]
    return made[0], made[1]


def _kernels(pairs: Sequence[Pair]) -> tuple[Criterion, Table]:
    """Total variation of unit kernels; the first layer and two of three must be smoother, on average over pairs."""
    found = [tuple(kernel_smoothness(model) for model in pair) for pair in pairs]
    layers = list(found[0][0])
    rows: list[tuple[str, str, Estimate, Estimate]] = [
        (f"pair {number}", f"convolution {place}", standard[layer], robust[layer])
        for number, (standard, robust) in enumerate(found)
        for place, layer in enumerate(layers, 1)
    ]
    lower = [
        float(np.mean([robust[layer].value - standard[layer].value for standard, robust in found])) for layer in layers
    ]
    table = Table(
        "Total variation of kernels of unit norm",
        ("networks", "layer", "standard", "robust"),
        tuple(rows),
        "Lower is smoother.  Pair 0 is the shipped one; intervals are over the kernels of a layer.",
    )
    criterion = Criterion(
        "robust kernels are smoother in the first convolution and in at least two of the three (mean over pairs)",
        lower[0] < 0 and sum(change < 0 for change in lower) >= 2,
        {f"robust minus standard, convolution {place}": change for place, change in enumerate(lower, 1)}
        | {"pairs with a smoother first convolution": sum(r[layers[0]].value < s[layers[0]].value for s, r in found)},
    )
    return criterion, table


def _transfer(model: nn.Module, pictures: Pictures, layer: str) -> Float[np.ndarray, "n bands"]:
    generator = torch_generator(0, PAPER.key, "noise")
    return noise_transfer(model, pictures.x, layer, RINGS, generator=generator)


def _noise(pairs: Sequence[Pair], pictures: Pictures) -> tuple[Criterion, Curve, Table]:
    """Relative response to noise of one band, averaged over pairs within an image."""
    layer = LAYERS[0]
    found = np.array([[_transfer(model, pictures, layer) for model in pair] for pair in pairs])
    standard, robust = found.mean(0)
    bands = [f"{low:g} to {min(high, 0.5 * 2**0.5):.3g}" for low, high in pairwise(RINGS)]
    change = [paired_difference(standard[:, band], robust[:, band]) for band in range(len(bands))]
    middles = tuple((low + min(high, 0.5 * 2**0.5)) / 2 for low, high in pairwise(RINGS))
    series = []
    for name, part in (("standard", standard), ("robust", robust)):
        means = [paired_difference(np.zeros(len(part)), part[:, band]) for band in range(len(bands))]
        values, low, high = (tuple(getattr(mean, side) for mean in means) for side in ("value", "low", "high"))
        series.append(Series(name, middles, values, low, high))
    curve = Curve(
        "Noise that passes the first layer",
        "spatial frequency, cycles per pixel",
        "relative response",
        tuple(series),
        "Noise of the same size in every band, after the first ReLU; means over pairs of networks and images.",
    )
    others = (BEFORE, *LAYERS[1:])
    rows = []
    for other in (layer, *others):
        at = found if other == layer else np.array([[_transfer(m, pictures, other) for m in pair] for pair in pairs])
        for number, (plain, hard) in enumerate(at.mean(2)):
            rows.append((f"pair {number}", _LAYER_NAMES[other], *(f"{a:.3f} / {b:.3f}" for a, b in zip(plain, hard))))
    table = Table("Noise transfer, standard / robust", ("networks", "layer", *bands), tuple(rows))
    criterion = Criterion(
        "after the first ReLU robust networks answer less to noise of the two highest bands (paired over images)",
        change[-1].high < 0 and change[-2].high < 0,
        {f"robust minus standard, {band}": value for band, value in zip(bands, change, strict=True)},
    )
    return criterion, curve, table


_LAYER_NAMES = {"0": "before the first ReLU", "1": "first ReLU", "3": "second ReLU", "5": "third ReLU"}


def _variety(pairs: Sequence[Pair], pictures: Pictures) -> tuple[Criterion, Table]:
    """Entropy of the labels of each channel's top images, the level of what channels detect, and smoothness of maps."""
    concepts, low_level = _concepts(pictures)
    rows: list[tuple[str, ...]] = []
    entropies: tuple[list[float], list[float]] = ([], [])
    for number, pair in enumerate(pairs):
        for layer in LAYERS:
            told = []
            for model, entropy in zip(pair, entropies, strict=True):
                variety = channel_variety(model, pictures.x, pictures.y, layer)
                detects = dissect(model, pictures.x, concepts, layer, quantile=0.95).detects
                simple, whole = int(np.isin(detects, range(low_level)).sum()), int((detects >= low_level).sum())
                entropy.append(float(np.nanmean(variety.label_entropy)))
                variation = float(np.nanmean(activation_smoothness(model, pictures.x, layer)))
                told.append(
                    (
                        f"{entropy[-1]:.3f}",
                        f"{np.nanmean(variety.pixel_distance):.3f}",
                        f"{simple} : {whole}",
                        f"{variation:.2f}",
                    )
                )
            rows.append((f"pair {number}", _LAYER_NAMES[layer], *(f"{a} / {b}" for a, b in zip(*told, strict=True))))
    change = paired_difference(np.array(entropies[0]), np.array(entropies[1]))
    cut_offs = [np.mean([cut_off(frequency_response(pair[side], "0")) for pair in pairs]) for side in (0, 1)]
    table = Table(
        "What excites channels, standard / robust",
        (
            "networks",
            "layer",
            "entropy of labels, nats",
            "distance of images",
            "detectors of brightness and edges : of classes",
            "variation of maps",
        ),
        tuple(rows),
        "Of the 50 images that excite a channel most: entropy of their labels, and mean distance (1: as any two "
        "images).  Detectors by network dissection, of the top 5 % of activations since objects fill a third of these "
        "images (IoU above 0.04).  "
        f"Half-height cut-off of the first kernels: {cut_offs[0]:.2f} / {cut_offs[1]:.2f} cycles per pixel.",
    )
    criterion = Criterion(
        "channels of robust networks are no more varied: the entropy of their top images' labels is not higher "
        "(paired over pairs and layers)",
        change.low <= 0,
        {"robust minus standard, nats": change},
    )
    return criterion, table


def _concepts(pictures: Pictures) -> tuple[Bool[Tensor, "n concepts height width"], int]:
    """Brightness in three steps and edges of two directions, then the objects of each class; how many come first."""
    x = pictures.x[:, 0]
    masks = pictures.masks[:, 0]
    across = torch.nn.functional.pad(x, (1, 1)).diff(dim=2)[:, :, 1:].abs() > 0.3
    down = torch.nn.functional.pad(x, (0, 0, 1, 1)).diff(dim=1)[:, 1:].abs() > 0.3
    simple = [masks & (x < 0.4), masks & (x >= 0.4) & (x < 0.7), x >= 0.7, across, down]
    whole = [masks & (pictures.y == label)[:, None, None] for label in range(10)]
    return torch.stack([*simple, *whole], 1), len(simple)


def _shapes(pairs: Sequence[Pair], pictures: Pictures) -> tuple[tuple[Exhibit, ...], Estimate, Estimate]:
    """Shape bias on cue conflicts, and accuracy on changed images, of every pair."""
    generator = torch_generator(0, PAPER.key, "conflicts")
    x, y, masks = pictures.x, pictures.y, pictures.masks
    other = torch.randperm(len(x), generator=generator)
    filled = cue_conflict(x, x[other], masks, generator, texture_masks=masks[other])
    kept = y != y[other]
    conflicts = CueConflicts(filled[kept], y[kept], y[other][kept])
    biases = [tuple(shape_bias(model, conflicts) for model in pair) for pair in pairs]
    rows = tuple((f"pair {number}", pair[0], pair[1]) for number, pair in enumerate(biases))
    table = Table(
        "Shape bias",
        ("networks", "standard", "robust"),
        rows,
        "Answers by shape among answers by shape or texture, on outlines of one class filled with cloth of another.",
    )
    changed = {f"scrambled into {k}x{k}": scramble(x, k, generator) for k in (2, 4, 7)}
    changed |= {"silhouettes": silhouette(masks, x, value=0.7), "cloth of another image": filled}
    standard, robust = pairs[0]
    seen = recognition({"standard": standard, "robust": robust}, x, y, changed)
    return (table, seen), biases[0][1], biases[0][0]
