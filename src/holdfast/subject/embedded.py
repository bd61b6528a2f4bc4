"""Two subjects that need no file: what `holdfast audit` looks at when it is given nothing.

Digits: a small convolutional network

    conv 3x3, 16 -> conv 3x3, 32, stride 2 -> conv 3x3, 32, stride 2 -> linear 64 -> linear 10      (ReLU between)

trained by Adam with a one-cycle step on 1 350 of scikit-learn's 1 797 images of digits, (1, 8, 8) with ink in [0, 1];
the other 447 are the test set.  Cells: logistic regression on the 30 standardised measurements of scikit-learn's breast
cancer set, as an `nn.Module` in the measurements' own units, so every probe of tabular data has gradients.

Training takes seconds, draws on explicit generators only, and runs on one thread so that the weights do not depend on
how many the machine has: a run can be resumed under another number of threads.  torch's global state is as it was
afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.subject.data import ArrayInputs, Data
from holdfast.subject.subject import Subject

TRAIN_DIGITS = 1350
TRAIN_CELLS = 400


def embedded_subject(seed: int = 0) -> Subject:
    """The digits network with its data; `seed` names the split, the initial weights and the order of training."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images[:, None] / 16).astype(np.float32)
    train, test = _split(images, bunch.target, TRAIN_DIGITS, "scikit-learn digits", seed)
    names = tuple(str(name) for name in bunch.target_names)
    model = digits_network(seed)
    with one_thread():
        train_classifier(
            model, torch.from_numpy(train.inputs.take(np.arange(len(train)))), torch.from_numpy(train.labels), seed=seed
        )
    return Subject(
        model, test, train, class_names=names, valid=(0.0, 1.0), modality="image", name="embedded digits network"
    )


def embedded_tabular(seed: int = 0) -> Subject:
    """Logistic regression on scikit-learn's breast cancer measurements (569 rows, 30 features, 2 classes)."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression

    bunch = load_breast_cancer()
    rows = bunch.data.astype(np.float32)
    train, test = _split(
        rows, bunch.target, TRAIN_CELLS, "scikit-learn breast cancer", seed, tuple(map(str, bunch.feature_names))
    )
    x = train.inputs.take(np.arange(len(train))).astype(np.float64)
    mean, spread = x.mean(0), x.std(0)
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit((x - mean) / spread, train.labels)
    linear = skip_init(nn.Linear, rows.shape[1], 2)
    weight = np.stack([np.zeros_like(mean), fitted.coef_[0] / spread])
    bias = np.array([0.0, fitted.intercept_[0] - (fitted.coef_[0] * mean / spread).sum()])
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))
    names = tuple(str(name) for name in bunch.target_names)
    return Subject(linear.eval(), test, train, class_names=names, modality="tabular", name="logistic regression")


def digits_network(seed: int = 0) -> nn.Module:
    """The untrained network: (batch, 1, 8, 8) to (batch, 10), with He-uniform weights drawn from `seed`."""
    model = nn.Sequential(
        skip_init(nn.Conv2d, 1, 16, 3, padding=1),
        nn.ReLU(),
        skip_init(nn.Conv2d, 16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        skip_init(nn.Conv2d, 32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        skip_init(nn.Linear, 128, 64),
        nn.ReLU(),
        skip_init(nn.Linear, 64, 10),
    )
    generator = torch_generator(seed, "embedded", "weights")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_uniform_(parameter.data, generator=generator)
        else:
            nn.init.zeros_(parameter.data)
    return model


def train_classifier(
    model: nn.Module,
    x: Float[Tensor, "examples ..."],
    y: Int[Tensor, " examples"],
    *,
    seed: int = 0,
    epochs: int = 25,
    batch: int = 64,
    peak: float = 4e-3,
) -> None:
    """Fit `model` in place by Adam under a one-cycle step size with cross-entropy; leaves it in evaluation mode.

    `peak` is the largest step.  The order of examples depends on `seed` alone.
    """
    model.train()
    generator = torch_generator(seed, "embedded", "order")
    optimizer = torch.optim.Adam(model.parameters(), lr=peak, weight_decay=1e-4)
    steps = -(-len(x) // batch) * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.2)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread inside the block: sums in one order, so the same bits on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _split(
    inputs: np.ndarray, labels: np.ndarray, held: int, source: str, seed: int, features: tuple[str, ...] | None = None
) -> tuple[Data, Data]:
    """Training and test data by a permutation that depends on `seed` and the source only."""
    order = numpy_generator(seed, "embedded", source).permutation(len(inputs))
    labels = labels.astype(np.int64)
    parts = [
        Data(ArrayInputs(inputs[index]), labels[index], f"{source} ({part})", feature_names=features)
        for part, index in (("train", order[:held]), ("test", order[held:]))
    ]
    return parts[0], parts[1]
