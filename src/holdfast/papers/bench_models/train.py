"""Trains the bench models and writes their safetensors files beside itself.

    python -m holdfast.papers.bench_models.train [cnn cnn_linf ...]

One thread, seed 0, Fashion-MNIST from the shared data; a minute or so a network, a few for the adversarially trained
one.  Each file carries a card: how it was trained and its accuracy on the 10 000 test images, clean and (first 1 000)
under PGD-20 of Linf radius 0.1.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.seeds import torch_generator
from holdfast.inputs.attack.gradient import PGD
from holdfast.papers.bench_models import FOLDER, empty
from holdfast.papers.bench_models.networks import NETWORKS, initialise
from holdfast.papers.datasets import fashion_mnist
from holdfast.subject.embedded import one_thread
from holdfast.threats.balls import L2, Linf


@dataclass(frozen=True)
class Recipe:
    """How one network is trained; `radius` > 0 trains on PGD-4 examples of that Linf radius."""

    epochs: int
    examples: int = 60_000
    peak: float = 4e-3
    radius: float = 0.0
    batch: int = 128
    seed: int = 0


RECIPES = {
    "cnn": Recipe(epochs=8),
    "cnn_linf": Recipe(epochs=10, examples=30_000, radius=0.1),
    "residual": Recipe(epochs=6),
    "transformer": Recipe(epochs=8, peak=3e-3),
    "perceptron": Recipe(epochs=10),
}


def train(name: str, recipe: Recipe, x: Float[Tensor, "examples 1 28 28"], y: Int[Tensor, " examples"]) -> nn.Module:
    """The network `name` trained by Adam under a one-cycle step, in evaluation mode."""
    model = empty(name)
    initialise(model, torch_generator(recipe.seed, "bench models", name, "weights"))
    order = torch_generator(recipe.seed, "bench models", name, "order")
    noise = torch_generator(recipe.seed, "bench models", name, "attack")
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.peak, weight_decay=1e-5)
    steps = recipe.epochs * -(-len(x) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak, total_steps=steps, pct_start=0.2)
    for _ in range(recipe.epochs):
        for index in torch.randperm(len(x), generator=order).split(recipe.batch):
            inputs, labels = x[index], y[index]
            if recipe.radius:
                inputs = adversarial(model, inputs, labels, Linf(recipe.radius), noise)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def adversarial(model: nn.Module, x: Tensor, y: Tensor, threat: Linf | L2, generator: torch.Generator) -> Tensor:
    """Four full steps of ascent from a random start; unlike an attack, it goes on once an example is fooled."""
    points = threat.random_start(x, (0, 1), generator=generator)
    for _ in range(4):
        points.requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(model(points), y, reduction="sum"), points)
        points = threat.project(points.detach() + 0.35 * threat.eps * threat.steepest(grad), x, (0, 1)).detach()
    return points


def main(names: list[str]) -> None:
    """Train `names` (all when empty) and write their files."""
    from safetensors.torch import save_file

    x, y = (torch.from_numpy(part) for part in fashion_mnist("train"))
    x_test, y_test = (torch.from_numpy(part) for part in fashion_mnist("test"))
    for name in names or list(NETWORKS):
        recipe, began = RECIPES[name], time.perf_counter()
        with one_thread():
            model = train(name, recipe, x[: recipe.examples], y[: recipe.examples])
            with torch.no_grad():
                clean = float((model(x_test).argmax(1) == y_test).double().mean())
            attack = PGD(Linf(0.1), steps=20)
            found = attack(model, x_test[:1000], y_test[:1000], generator=torch_generator(0, "bench models", "test"))
            with torch.no_grad():
                robust = float((model(found).argmax(1) == y_test[:1000]).double().mean())
        card = {
            **asdict(recipe),
            "data": "fashion-mnist",
            "accuracy": clean,
            "accuracy_pgd20_linf_0.1": robust,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds": round(time.perf_counter() - began, 1),
        }
        save_file(model.state_dict(), FOLDER / f"{name}.safetensors", {"card": json.dumps(card)})


if __name__ == "__main__":
    main(sys.argv[1:])
