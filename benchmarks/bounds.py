"""Intervals, CROWN-IBP, CROWN (same adaptive slopes) and alpha-CROWN against auto_LiRPA on networks of the VNN-COMP.

The peer's present version is not on the Python index.  Clone github.com/Verified-Intelligence/auto_LiRPA, and run

    PYTHONPATH=/path/to/auto_LiRPA python -m benchmarks bounds

(it also needs the packages `appdirs`, `ninja`, `sortedcontainers` and `graphviz`).  The networks are read from the data
folder (`vnncomp/`); without either the benchmarks are skipped.  Both sides are built once; what is timed is one call
that bounds all outputs over the first input box of the network's specifications, in float32 on one thread.
The peer does not intersect backward bounds with intervals, so neither do we here.  Bounds count as equal when they
differ by at most 1e-4 of their width (or 1e-4, where that is more).  alpha-CROWN is a search: both sides take 20 steps
per bound and their own default step sizes, and ours must not be wider than the peer's by more than 1e-3 on average, nor
any single bound looser than the peer's by more than 1e-2 of its width.
"""

from __future__ import annotations

import gzip
import tempfile
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Benchmark
from holdfast.core.errors import MissingData
from holdfast.inputs.bounds import Graph, Method, Region, bounds, capture
from holdfast.papers.datasets import data_path
from holdfast.threats import Box

PEER = "auto_LiRPA"
PEER_METHOD = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "crown", "alpha-crown": "alpha-crown"}
ITERATIONS = 20


@dataclass(frozen=True)
class Network:
    """One network of the competition: files below the data folder, and the shape of one input."""

    title: str
    onnx: str
    specs: str
    shape: tuple[int, ...]


NETWORKS = {
    "mnist-fc": Network(
        "MNIST 4x256 ReLU",
        "vnncomp/mnist_fc/nets/mnist-net_256x4.onnx.gz",
        "vnncomp/mnist_fc/specs_mnist-net_256x4.npz",
        (784,),
    ),
    "oval-conv": Network(
        "CIFAR-10 convolutional (oval21 base)",
        "vnncomp/oval21/nets/cifar_base_kw.onnx.gz",
        "vnncomp/oval21/specs_cifar_base_kw.npz",
        (3, 32, 32),
    ),
    "resnet-2b": Network(
        "CIFAR-10 residual (resnet_2b)",
        "vnncomp/cifar10_resnet/nets/resnet_2b.onnx.gz",
        "vnncomp/cifar10_resnet/specs_resnet_2b.npz",
        (3, 32, 32),
    ),
}


@dataclass(frozen=True)
class Setting:
    """Both sides, built, and the region."""

    graph: Graph
    region: Region
    peer: Any
    peer_input: Any


def peer_version() -> str | None:
    """Version of the auto_LiRPA on the path, None when there is none, or no network to run it on."""
    if find_spec(PEER) is None:
        return None
    try:
        data_path("vnncomp")
    except MissingData:
        return None
    import auto_LiRPA

    return str(auto_LiRPA.__version__)


def prepare(network: Network) -> Setting:
    """Read the network and its first box; build both sides."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    from holdfast.subject.onnx_graph import load_onnx

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        path.write_bytes(gzip.decompress(data_path(network.onnx).read_bytes()))
        model = load_onnx(path).eval()
    with np.load(data_path(network.specs), allow_pickle=False) as specs:
        lower, upper = (
            torch.from_numpy(specs[end][0]).float().reshape(1, *network.shape) for end in ("box_lower", "box_upper")
        )
    x = (lower + upper) / 2
    region = Region(x, Box((lower - x)[0].clamp(max=0), (upper - x)[0].clamp(min=0)))
    peer = BoundedModule(model, x)
    peer.set_bound_opts({"optimize_bound_args": {"iteration": ITERATIONS}})
    perturbed = BoundedTensor(x, PerturbationLpNorm(norm=float("inf"), x_L=lower, x_U=upper))
    return Setting(capture(model, x), region, peer, perturbed)


@torch.no_grad()
def ours(setting: Setting, method: Method) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of all outputs."""
    found = bounds(setting.graph, setting.region, method=method, intersect=False, iterations=ITERATIONS)
    return found.lower, found.upper


def theirs(setting: Setting, method: Method) -> tuple[Tensor, Tensor]:
    """The peer's."""
    with torch.set_grad_enabled(method == "alpha-crown"):  # its optimiser does not switch gradients on by itself
        lower, upper = setting.peer.compute_bounds(x=(setting.peer_input,), method=PEER_METHOD[method])
    return lower.detach(), upper.detach()


def equal(mine: tuple[Tensor, Tensor], peers: tuple[Tensor, Tensor]) -> bool:
    """Whether no bound differs by more than 1e-4, absolutely or relative to the interval's width."""
    allowed = 1e-4 * (peers[1] - peers[0]).clamp(min=1.0)
    return all(bool(((a - b).abs() <= allowed).all()) for a, b in zip(mine, peers))


def as_tight(mine: tuple[Tensor, Tensor], peers: tuple[Tensor, Tensor]) -> bool:
    """Whether optimised bounds are as good as the peer's (see the module's text)."""
    width = peers[1] - peers[0]
    looser = torch.maximum(peers[0] - mine[0], mine[1] - peers[1]) / width
    return float((mine[1] - mine[0]).mean() / width.mean()) <= 1 + 1e-3 and float(looser.max()) <= 1e-2


BENCHMARKS = tuple(
    Benchmark(
        name=f"bounds-{method}-{name}",
        subject=network.title,
        peer=PEER,
        peer_version=peer_version(),
        prepare=partial(prepare, network),
        ours=partial(ours, method=method),
        theirs=partial(theirs, method=method),
        equal=as_tight if method == "alpha-crown" else equal,
        settings={
            "method": method,
            "inputs": 1,
            "slopes": f"{ITERATIONS} steps" if method == "alpha-crown" else "adaptive",
            "dtype": "float32",
            "threads": 1,
        },
    )
    for name, network in NETWORKS.items()
    for method in ("ibp", "crown-ibp", "crown", "alpha-crown")
)
