"""Train a LeNet-size convolutional network on Fashion-MNIST, ready to be audited.

    python examples/fashion_cnn.py [FOLDER] [--out fashion.safetensors]
    holdfast audit examples/fashion_cnn.py:build --weights fashion.safetensors --data FOLDER/t10k --train FOLDER/train

FOLDER holds the four IDX files (`train-images-idx3-ubyte.gz`, ...); by default `fashion-mnist` in $HOLDFAST_DATA, or
`../shared/data/fashion-mnist` beside the repository.  The first layer of the network that `build()` makes brings plain
pixels in [0, 1] to the units it was trained in, so that whoever uses it thinks in pixels.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.subject.idx import read_idx

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class Normalise(nn.Module):
    """Pixels in [0, 1] to mean zero and spread one over the training set."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.2860) / 0.3530


def build() -> nn.Module:
    """The network: (batch, 1, 28, 28) pixels in [0, 1] to (batch, 10) logits; about 110 000 weights."""
    return nn.Sequential(
        Normalise(),
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 10),
    ).eval()


def draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """He-uniform weights and zero biases from an explicit generator, so that the seed decides the result."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_uniform_(parameter, nonlinearity="relu", generator=generator)
        else:
            nn.init.zeros_(parameter)


def read_split(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """Pixels (n, 1, 28, 28) in [0, 1] and class indices (n,)."""
    pixels = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    return torch.from_numpy(pixels)[:, None].float() / 255, torch.from_numpy(labels).long()


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, generator: torch.Generator, batch: int = 128) -> None:
    """Adam with a one-cycle step, cross-entropy with a little label smoothing; shows progress."""
    steps = -(-len(x) // batch) * epochs
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    model.train()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=steps)
        for epoch in range(epochs):
            for index in torch.randperm(len(x), generator=generator).split(batch):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[index]), y[index], label_smoothing=0.05)
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update(task, advance=1, description=f"epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}")
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of examples classified rightly."""
    return sum(
        int((model(part).argmax(1) == target).sum()) for part, target in zip(x.split(1000), y.split(1000))
    ) / len(y)


def save(model: nn.Module, path: Path) -> None:
    """Weights as safetensors, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(model.state_dict(), temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def default_folder() -> Path:
    named = os.environ.get("HOLDFAST_DATA")
    shared = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return shared / "fashion-mnist"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small network on Fashion-MNIST and save its weights.")
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder(), help="folder of the four IDX files")
    parser.add_argument("--out", type=Path, default=Path("fashion.safetensors"), help="where the weights go")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(options.seed)
    model = build()
    draw_weights(model, generator)
    began = time.perf_counter()
    train(model, *read_split(options.folder, "train"), options.epochs, generator)
    seconds = time.perf_counter() - began
    right = accuracy(model, *read_split(options.folder, "t10k"))
    save(model, options.out)
    print(f"test accuracy {right:.2%} after {seconds:.0f} s of training; weights in {options.out}")


if __name__ == "__main__":
    main()
