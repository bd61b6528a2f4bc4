"""Scores of logits and features against pytorch-ood: the same scores, then time.

Both sides get the same float64 arrays and give one score an example; pytorch-ood's point the other way and are negated.
The maximum softmax is compared as a probability (ours is its logarithm), the generalised entropy as a mean over classes
(ours is the sum), the Mahalanobis distance without shrinkage and on its scale, half the distance under the sum
(not the mean) of squares.  pytorch-ood's virtual logits are computed in float32, ours in float64.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Benchmark, version

PACKAGE = "pytorch_ood"
LOGITS = ((100_000, 10), (20_000, 1000))
FEATURES = (20_000, 128, 10)
EXAMPLES = 5_000


def peer(module: str) -> Any:
    """A module of pytorch-ood.  Its package imports torchvision for models and data sets that scores do not need; where
    torchvision is not installed, the modules of the scores are imported without the package's own front page.
    """
    try:
        return import_module(f"{PACKAGE}.{module}")
    except (ImportError, RuntimeError):  # the latter from a torchvision built for another torch
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        root = Path(str(metadata.distribution("pytorch-ood").locate_file(PACKAGE)))
        for name in ("", ".detector"):
            package = types.ModuleType(PACKAGE + name)
            package.__path__ = [str(root / name.removeprefix("."))]
            sys.modules[PACKAGE + name] = package
        return import_module(f"{PACKAGE}.{module}")


def logits(examples: int, classes: int) -> np.ndarray:
    """Logits of a model that is sure of most of its answers."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((examples, classes))
    z[np.arange(examples), rng.integers(0, classes, examples)] += rng.uniform(0, 8, examples)
    return z


def close(tolerance: float, ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Equal to `tolerance`, relatively where values exceed one."""
    return bool(np.allclose(ours, theirs, rtol=tolerance, atol=tolerance))


def our_logit_score(name: str, z: np.ndarray) -> np.ndarray:
    """holdfast's score of this name."""
    from holdfast.inputs.detection.scores import LOGIT_SCORES

    return LOGIT_SCORES[name](z)


def their_logit_score(module: str, detector: str, z: np.ndarray) -> np.ndarray:
    """pytorch-ood's outlier score, negated."""
    return -getattr(peer(f"detector.{module}"), detector).score(torch.from_numpy(z)).numpy()


def same_probability(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Ours is log p."""
    return close(1e-9, np.exp(ours), theirs)


def features(examples: int, size: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training features and labels, and features to score."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, classes, examples)
    mixing = rng.standard_normal((size, size)) / np.sqrt(size)
    means = 2 * rng.standard_normal((classes, size))
    x = means[y] + rng.standard_normal((examples, size)) @ mixing + 0.1 * rng.standard_normal((examples, size))
    return x, y, rng.standard_normal((EXAMPLES, size)) * 2


Features = tuple[np.ndarray, np.ndarray, np.ndarray]


def our_mahalanobis(data: Features) -> np.ndarray:
    """Fit and score without shrinkage, on the peer's scale."""
    from holdfast.inputs.detection import MahalanobisDetector

    x, y, new = data
    return MahalanobisDetector(shrinkage=0.0).fit(x, y).score_samples(new) / (2 * len(x))


def their_mahalanobis(data: Features) -> np.ndarray:
    """Fit and score; its parameters have torch's default type, which is float32 unless told otherwise."""
    x, y, new = (torch.from_numpy(part) for part in data)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return -peer("detector.mahalanobis").Mahalanobis(None).fit_features(x, y).predict_features(new).numpy()
    finally:
        torch.set_default_dtype(before)


def our_neighbours(data: Features) -> np.ndarray:
    """Fit and score the 50th neighbour."""
    from holdfast.inputs.detection import NeighbourDetector

    return NeighbourDetector(k=50).fit(data[0]).score_samples(data[2])


def their_neighbours(data: Features) -> np.ndarray:
    """Fit and score the 50th neighbour."""
    x, y, new = (torch.from_numpy(part) for part in data)
    return -peer("detector.knn").KNN(None, k=50).fit_features(x, y).predict_features(new).numpy()


def head(data: Features) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases of a linear layer for these features."""
    rng = np.random.default_rng(2)
    classes, size = int(data[1].max()) + 1, data[0].shape[1]
    return rng.standard_normal((classes, size)) / np.sqrt(size), rng.standard_normal(classes)


def our_virtual_logit(data: Features) -> np.ndarray:
    """Fit and score with half of the dimensions."""
    from holdfast.inputs.detection import LinearHead, VirtualLogit

    return VirtualLogit(LinearHead(*head(data)), dimension=data[0].shape[1] // 2).fit(data[0]).score_samples(data[2])


def their_virtual_logit(data: Features) -> np.ndarray:
    """Fit and score with half of the dimensions."""
    x, y, new = (torch.from_numpy(part) for part in data)
    weight, bias = (torch.from_numpy(part).float() for part in head(data))
    detector = peer("detector.vim").ViM(None, x.shape[1] // 2, weight, bias)
    return -detector.fit_features(x, y).predict_features(new).numpy()


def our_rectified(data: Features) -> np.ndarray:
    """Fit and score, clipping a tenth of the activations."""
    from holdfast.inputs.detection import LinearHead, RectifiedEnergy

    return RectifiedEnergy(LinearHead(*head(data))).fit(data[0]).score_samples(data[2])


def their_rectified(data: Features) -> np.ndarray:
    """Fit and score, clipping a tenth of the activations."""
    x, y, new = (torch.from_numpy(part) for part in data)
    weight, bias = (torch.from_numpy(part) for part in head(data))
    detector = peer("detector.react").ReAct(None, lambda z: z @ weight.T + bias)
    return -detector.fit_feature_maps(x, y).predict_feature_maps(new).numpy()


def same_up_to_classes(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Theirs is a mean over classes; probabilities below 1e-7 are clipped there, so it may differ by 0.2 a class."""
    classes = np.median(ours / theirs)
    return close(1e-5, ours / round(classes), theirs)


SCORES: dict[str, tuple[str, str, Callable[[np.ndarray, np.ndarray], bool]]] = {
    "energy": ("energy", "EnergyBased", partial(close, 1e-9)),
    "max softmax": ("softmax", "MaxSoftmax", same_probability),
    "max logit": ("maxlogit", "MaxLogit", partial(close, 1e-12)),
    # The peer clips probabilities at 1e-7 before the logarithm, so an entropy may differ by 16e-7 a class.
    "negative entropy": ("entropy", "Entropy", partial(close, 2e-5)),
    "generalised entropy": ("gen", "GEN", same_up_to_classes),
}

#: Name: what ours and theirs do, and how near they are.
DETECTORS: dict[str, tuple[Callable[[Features], np.ndarray], Callable[[Features], np.ndarray], float]] = {
    "mahalanobis": (our_mahalanobis, their_mahalanobis, 1e-5),
    "neighbours": (our_neighbours, their_neighbours, 1e-9),
    "virtual-logit": (our_virtual_logit, their_virtual_logit, 2e-4),
    "rectified": (our_rectified, their_rectified, 1e-9),
}

#: The peer turns everything into float32 by itself, which halves its work.
FLOAT32_PEER = {"virtual-logit": "float64, the peer float32"}

BENCHMARKS = (
    *(
        Benchmark(
            name=f"detection-{name.replace(' ', '-')}-{examples // 1000}kx{classes}",
            subject=f"{name} of {examples:,} examples, {classes} classes",
            peer="pytorch-ood",
            peer_version=version("pytorch-ood"),
            prepare=partial(logits, examples, classes),
            ours=partial(our_logit_score, name),
            theirs=partial(their_logit_score, module, detector),
            equal=equal,
            settings={"dtype": "float64"},
            memory=False,
        )
        for name, (module, detector, equal) in SCORES.items()
        for examples, classes in LOGITS
    ),
    *(
        Benchmark(
            name=f"detection-{name}",
            subject=f"{name}: fit on {FEATURES[0]:,} features of {FEATURES[1]}, score {EXAMPLES:,}",
            peer="pytorch-ood",
            peer_version=version("pytorch-ood"),
            prepare=partial(features, *FEATURES),
            ours=ours,
            theirs=theirs,
            equal=partial(close, tolerance),
            settings={"dtype": FLOAT32_PEER.get(name, "float64"), "classes": FEATURES[2]},
            memory=False,
        )
        for name, (ours, theirs, tolerance) in DETECTORS.items()
    ),
)
