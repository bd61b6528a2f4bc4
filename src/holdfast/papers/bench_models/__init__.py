"""Five small networks for Fashion-MNIST, trained once by `train.py` so that checks need not train.

    cnn             three convolutions (16, 32, 32), cross-entropy on clean images
    cnn_linf        the same network trained on PGD-4 examples of Linf radius 0.1 (Madry et al., 2018)
    residual        a stem and three residual blocks (16, 16, 24 channels)
    transformer     patches of 4x4, width 32, two blocks of four heads
    perceptron      two hidden layers of 20 units

All map images (batch, 1, 28, 28) in [0, 1] to logits (batch, 10).  How each was trained, and what it reached on the
test set, stands in the metadata of its safetensors file (`card`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.papers.bench_models.networks import NETWORKS

FOLDER = Path(__file__).parent


def load(name: str) -> nn.Module:
    """The trained network in evaluation mode.  Raises InputError for a name that is not in NETWORKS."""
    from safetensors.torch import load_file

    model = empty(name)
    model.load_state_dict(load_file(_file(name)))
    return model.eval().requires_grad_(True)


def empty(name: str) -> nn.Module:
    """The architecture with weights yet to be set; no random number is drawn."""
    if name not in NETWORKS:
        raise InputError(f"no bench model is called {name!r}; there are {', '.join(NETWORKS)}")
    with torch.device("meta"):
        model = NETWORKS[name]()
    return model.to_empty(device="cpu")


def card(name: str) -> Mapping[str, Any]:
    """How `name` was trained and what it reached: seed, examples, epochs, seconds, accuracies on the test set."""
    from safetensors import safe_open

    with safe_open(_file(name), framework="pt") as file:
        return dict(json.loads(file.metadata()["card"]))


def _file(name: str) -> Path:
    if name not in NETWORKS:
        raise InputError(f"no bench model is called {name!r}; there are {', '.join(NETWORKS)}")
    return FOLDER / f"{name}.safetensors"
