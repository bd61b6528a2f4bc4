"""What the detection probe scores inputs with, declared and fitted before any test example is looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from holdfast.audit.probe import Settings
from holdfast.audit.probes.attacked_inputs import ATTACKED_KINDS, Attacker, fit_layers, make_attacker
from holdfast.audit.probes.foreign_inputs import IMAGE_KINDS, ROW_KINDS
from holdfast.core.seeds import numpy_generator
from holdfast.inputs.detection.layerwise import LayerwiseMahalanobis
from holdfast.inputs.detection.mahalanobis import MahalanobisDetector
from holdfast.inputs.detection.scores import LOGIT_SCORES, energy, max_softmax
from holdfast.inputs.features import Features, last_linear
from holdfast.subject.data import Data
from holdfast.subject.subject import Access, Subject

SCORES = ("energy", "max softmax")
FEATURE_SCORE = "Mahalanobis"
LAYER_SCORE = "layers (fitted on FGSM)"
CONFIDENT = 0.9
REFERENCE_ROWS = 2000


@dataclass(frozen=True)
class State:
    """What `examine` needs beside the batch; `lead` is the declared score."""

    kinds: tuple[str, ...]
    scores: tuple[str, ...]
    lead: str
    reference: Tensor
    layer: str | None = None
    detector: MahalanobisDetector | None = None
    centre: np.ndarray | None = None
    scale: np.ndarray | None = None
    layers: LayerwiseMahalanobis | None = None
    attacker: Attacker | None = None
    without_features: str = ""
    without_layers: str = ""
    without_attacks: str = ""

    @property
    def lead_attacked(self) -> str:
        """The score declared for attacked inputs."""
        return self.lead if self.layers is None else LAYER_SCORE

    def declared(self, kind: str) -> str:
        """The score declared for one kind of input."""
        return self.lead_attacked if kind in ATTACKED_KINDS else self.lead


def prepare_scores(subject: Subject, settings: Settings) -> State:
    """Look at typical values of the inputs, choose the declared scores, fit the detectors on training data."""
    source = subject.train or subject.test
    x, y = _sample(source, settings.seed)
    logits = subject.logits(subject.tensor(x[:64])).double().cpu().numpy()
    normalised = bool(np.abs(energy(logits)).max() < 1e-4)
    kinds = IMAGE_KINDS if subject.modality == "image" else ROW_KINDS
    attacker, without_attacks = make_attacker(subject, settings)
    state = State(
        kinds,
        SCORES,
        "max softmax" if normalised else "energy",
        torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)),
        attacker=attacker,
        without_attacks=without_attacks,
        without_layers=without_attacks,
    )
    state = _with_features(subject, state, x, y)
    if attacker is None or subject.train is None:
        return state if attacker is None else replace(state, without_layers="no training data were given")
    mixed = numpy_generator(settings.seed, "detection", "halves").permutation(len(x))
    layers, reason = fit_layers(subject, attacker, x[mixed], y[mixed])
    scores = state.scores if layers is None else (*state.scores, LAYER_SCORE)
    return replace(state, layers=layers, scores=scores, without_layers=reason)


def scored(subject: Subject, state: State, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, scores) and whether the model is confident (n,), as float64."""
    if state.layer is None:
        logits = subject.logits(x).double().cpu().numpy()
    else:
        (features,), logits = Features(subject.model, (state.layer,), at="input").with_logits(x)
    columns = [LOGIT_SCORES[name](logits) for name in SCORES]
    if state.detector is not None and state.centre is not None and state.scale is not None:
        columns.append(state.detector.score_samples((features - state.centre) / state.scale))
    if state.layers is not None:
        columns.append(state.layers.score_samples(x))
    return np.stack(columns, axis=1), (max_softmax(logits) >= np.log(CONFIDENT)).astype(np.float64)


def _feature_layer(subject: Subject) -> tuple[str | None, str]:
    if subject.access < Access.GRADIENTS:
        return None, "the model gives scores but not its layers"
    if subject.train is None:
        return None, "it needs training data, and none were given"
    layer = last_linear(subject.model)
    return (layer, "") if layer is not None else (None, "the model has no linear layer to take features from")


def _with_features(subject: Subject, state: State, x: np.ndarray, y: np.ndarray) -> State:
    layer, reason = _feature_layer(subject)
    if layer is None:
        return replace(state, without_features=reason)
    kept = np.bincount(y)[y] >= 2  # a class needs two examples to have a spread
    (features,) = Features(subject.model, (layer,), at="input")(subject.tensor(x[kept]))
    centre, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    detector = MahalanobisDetector().fit((features - centre) / scale, y[kept])
    scores = (*state.scores, FEATURE_SCORE)
    return replace(state, scores=scores, layer=layer, detector=detector, centre=centre, scale=scale)


def _sample(data: Data, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = numpy_generator(seed, "detection", "reference").permutation(len(data))[:REFERENCE_ROWS]
    return data.take(np.sort(order))
