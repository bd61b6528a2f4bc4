"""PGD-40 on a small CNN against foolbox and torchattacks: same model, images, radius and step size.

The CNN is trained here with a fixed seed on the first part of Fashion-MNIST, or of scikit-learn's digits where that
is not on the machine, so the numbers can be re-made anywhere.  Two attacks count as equal when robust accuracies
differ by at most 0.5 points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Benchmark, version
from holdfast.core.errors import MissingData
from holdfast.core.seeds import torch_generator
from holdfast.inputs.attack.gradient import PGD
from holdfast.papers.datasets import digits, fashion_mnist
from holdfast.threats import Linf

STEPS, IMAGES, SEED = 40, 1000, 0


@dataclass(frozen=True)
class Setting:
    """A trained model and the images to attack."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float

    @property
    def step(self) -> float:
        return 2.5 * self.eps / STEPS


def network(side: int) -> nn.Sequential:
    """LeNet-sized: two convolutions, two linear layers."""
    last = side // 4
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * last * last, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def trained(x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    """A network fitted to (x, y); everything random comes from the one seed."""
    generator = torch_generator(SEED, "benchmark", "pgd")
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(SEED)  # initial weights have no generator argument; the global stream is given back
        model = network(x.shape[-1])
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(128):
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    return model.eval()


def prepare(eps: float) -> Setting:
    """Train, and take the first `IMAGES` test images."""
    try:
        train, test, epochs = fashion_mnist("train", 10_000), fashion_mnist("test", IMAGES), 4
    except MissingData:
        x, y = digits()
        train, test, epochs = (x[:797], y[:797]), (x[797:], y[797:]), 20
    x, y, test_x, test_y = (torch.from_numpy(part) for part in (*train, *test))
    return Setting(trained(x, y, epochs), test_x, test_y, eps)


def ours(setting: Setting) -> tuple[Setting, Tensor]:
    attack = PGD(Linf(setting.eps), steps=STEPS, step_size=setting.step)
    return setting, attack(setting.model, setting.x, setting.y, generator=torch_generator(SEED))


def foolbox_pgd(setting: Setting) -> tuple[Setting, Tensor]:
    import foolbox

    model = foolbox.PyTorchModel(setting.model, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=setting.step, steps=STEPS)
    return setting, attack(model, setting.x, setting.y, epsilons=setting.eps)[1]


def torchattacks_pgd(setting: Setting) -> tuple[Setting, Tensor]:
    import torchattacks

    attack = torchattacks.PGD(setting.model, eps=setting.eps, alpha=setting.step, steps=STEPS)
    return setting, attack(setting.x, setting.y)


@torch.no_grad()
def robust_accuracy(result: tuple[Setting, Tensor]) -> float:
    setting, x_adv = result
    return float((setting.model(x_adv).argmax(1) == setting.y).double().mean())


def equal(mine: tuple[Setting, Tensor], theirs: tuple[Setting, Tensor]) -> bool:
    """Robust accuracies within 0.5 points."""
    return abs(robust_accuracy(mine) - robust_accuracy(theirs)) <= 0.005


PEERS = {"foolbox": foolbox_pgd, "torchattacks": torchattacks_pgd}

BENCHMARKS = tuple(
    Benchmark(
        name=f"pgd-{peer}-{eps}",
        subject=f"PGD-{STEPS}, {IMAGES} images, small CNN, L-infinity {eps}",
        peer=peer,
        peer_version=version(peer),
        prepare=partial(prepare, eps),
        ours=ours,
        theirs=theirs,
        equal=equal,
        settings={"eps": eps, "steps": STEPS, "step size": "2.5 eps / steps", "start": "random"},
    )
    # At 0.1 every example falls within a few steps; at 0.01 most hold, and the passes of the model are all there is.
    for eps in (0.1, 0.01)
    for peer, theirs in PEERS.items()
)
