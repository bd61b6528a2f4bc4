"""One step of certified training, bound and gradient, against auto_LiRPA: intervals and CROWN-IBP.

The peer's present version is not on the Python index.  Clone github.com/Verified-Intelligence/auto_LiRPA, and run

    PYTHONPATH=/path/to/auto_LiRPA python -m benchmarks certified-training

(it also needs the packages `appdirs`, `ninja`, `sortedcontainers` and `graphviz`).  A convolutional network for 28 x 28
pixels, 128 random images, radius 0.1 in [0, 1], float32, one thread.  Both sides are built once; a step computes the
cross-entropy of the worst-case logits and its gradient with respect to every parameter.  Steps count as equal when
loss and every gradient agree to 1e-3 of their size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Benchmark
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import capture, margin_spec
from holdfast.inputs.bounds.training import CertifiedLoss
from holdfast.papers.bench_models.networks import initialise

PEER = "auto_LiRPA"
EPS, BATCH, CLASSES = 0.1, 128, 10
Way = Literal["ibp", "crown-ibp"]


@dataclass(frozen=True)
class Setting:
    """Both sides, built, and one batch."""

    graph: Any
    loss: CertifiedLoss
    peer: Any
    x: Tensor
    y: Tensor


def peer_version() -> str | None:
    """Version of the auto_LiRPA on the path, None when there is none."""
    if find_spec(PEER) is None:
        return None
    import auto_LiRPA

    return str(auto_LiRPA.__version__)


def network() -> nn.Module:
    """Two convolutions and two linear layers; 225 000 parameters."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )
    initialise(model, torch_generator(0, "certified training", "weights"))
    return model.eval()


def prepare(way: Way) -> Setting:
    """Build both sides on the same weights."""
    from auto_LiRPA import BoundedModule

    torch.set_num_threads(1)
    generator = torch_generator(0, "certified training", "batch")
    x = torch.rand(BATCH, 1, 28, 28, generator=generator)
    y = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    return Setting(capture(network(), x), CertifiedLoss(way, eps=EPS), BoundedModule(network(), x[:2]), x, y)


def ours(setting: Setting) -> list[Tensor]:
    """Loss and gradients."""
    return _stepped(setting.graph.model, setting.loss(setting.graph, setting.x, setting.y))


def theirs(setting: Setting, way: Way) -> list[Tensor]:
    """The peer's."""
    from auto_LiRPA import BoundedTensor, PerturbationLpNorm

    low, high = ((setting.x + sign * EPS).clamp(0, 1) for sign in (-1, 1))
    given = BoundedTensor(setting.x, PerturbationLpNorm(norm=float("inf"), x_L=low, x_U=high))
    setting.peer(given)
    lower, _ = setting.peer.compute_bounds(
        x=(given,),
        C=margin_spec(setting.y, CLASSES).float(),
        IBP=True,
        method=None if way == "ibp" else "backward",
        bound_upper=False,
    )
    return _stepped(setting.peer, F.pad(-lower, (1, 0)).logsumexp(1).mean())


def _stepped(model: nn.Module, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def equal(mine: list[Tensor], peers: list[Tensor]) -> bool:
    """Whether loss and gradients agree to 1e-3 of their size."""
    return len(mine) == len(peers) and all(
        float((a - b).abs().max()) <= 1e-3 * float(b.abs().max()) for a, b in zip(mine, peers)
    )


BENCHMARKS = tuple(
    Benchmark(
        name=f"certified-training-{way}",
        subject=f"A step of certified training ({way}), convolutional network",
        peer=PEER,
        peer_version=peer_version(),
        prepare=partial(prepare, way),
        ours=ours,
        theirs=partial(theirs, way=way),
        equal=equal,
        settings={"images": BATCH, "classes": CLASSES, "radius": EPS, "dtype": "float32", "threads": 1},
    )
    for way in ("ibp", "crown-ibp")
)
