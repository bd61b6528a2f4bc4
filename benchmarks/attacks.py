"""Attacks beside their peers: how many examples each breaks, which, and what it costs.

    python -m benchmarks attacks [NAME ...] [--list]

A comparison attacks `PARTS` disjoint parts of the test images, ours and the peer in alternation, both on one thread.
Times are CPU seconds of this process, summed over the parts, so a busy machine does not decide.  Compared are
verdicts (right or wrong under attack, every example) or, for minimum-norm attacks, the median size of the change.
Where both break the same, the ratio says what it costs; where they differ, the settings in the table say by how much.

The peers: `autoattack` is the reference implementation (github.com/fra31/auto-attack), run member by member on what
the ones before left standing, as its own `standard` version does, at batch 256.  The networks: the Fashion-MNIST CNNs
that `papers.bench_models` ships, and the two CIFAR-10 residual nets of VNN-COMP 2021 (`papers.vnncomp`).
"""

from __future__ import annotations

import argparse
import sys
import time
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import machine, version, write
from holdfast.core.seeds import torch_generator
from holdfast.inputs.attack.apgd import APGD
from holdfast.inputs.attack.ensemble import StandardEnsemble
from holdfast.inputs.attack.fab import FAB
from holdfast.inputs.attack.gradient import FGSM, PGD
from holdfast.inputs.attack.hopskipjump import HopSkipJump
from holdfast.inputs.attack.loop import Attack, Search
from holdfast.inputs.attack.square import Square
from holdfast.papers import bench_models
from holdfast.papers.datasets import cifar10, fashion_mnist
from holdfast.papers.vnncomp import network
from holdfast.threats import L1, L2, Linf, Threat

PARTS = 2
BATCH = 256
SEED = 0
#: Channel means and deviations that the residual nets were trained with; attacks see pixels in [0, 1].
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

Side = Callable[[nn.Module, Tensor, Tensor, Threat], Tensor]


class Normalised(nn.Module):
    """A network fed pixels in [0, 1] that normalises them itself."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.mean, self.deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x - self.mean) / self.deviation)


def subject(name: str, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in evaluation mode and the first test images."""
    if name.startswith("resnet"):
        model, data = Normalised(network("cifar10_resnet", f"{name}.onnx")).eval(), cifar10("test", images)
    else:
        model, data = bench_models.load(name), fashion_mnist("test", images)
    x, y = (torch.from_numpy(part) for part in data)
    return model, x, y.long()


def attack(make: Callable[[Threat], Attack]) -> Side:
    """Ours, as a function of model, images, labels and threat."""

    def side(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        return make(threat)(model, x, y, generator=torch_generator(SEED, "benchmark", "attacks"))

    return side


def nearest(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Our FAB as a minimum-norm attack."""
    return FAB(threat, targets=0).nearest(model, x, y, generator=torch_generator(SEED)).x_adv


HOPS = 16


def hops(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Our HopSkipJump as a minimum-norm attack."""
    attack = HopSkipJump(threat, iterations=HOPS)
    search = Search.begin(model, threat, x, y, (0, 1), None, "margin")
    rows, points = attack.minimise(search, torch_generator(SEED))
    found = x.clone()
    found[rows] = points
    return found


def reference(members: str) -> Side:
    """The reference AutoAttack, some of its members in turn."""

    def side(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        from autoattack import AutoAttack

        suite = AutoAttack(model, norm=type(threat).__name__, eps=threat.radius, seed=SEED, verbose=False, device="cpu")
        suite.attacks_to_run = members.split()
        return suite.run_standard_evaluation(x, y, bs=BATCH)

    return side


def foolbox_attack(make: Callable[[Any], Any]) -> Side:
    def side(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        torch.random.manual_seed(SEED)
        return make(foolbox.attacks)(wrapped, x, y, epsilons=threat.radius)[1]

    return side


def foolbox_hops(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """As many boundary steps and probes as ours takes, from the same starting points (foolbox's own search for some
    refuses the whole batch when one example has none).
    """
    import foolbox

    search = Search.begin(model, threat, x, y, (0, 1), None, "margin")
    rows, starts = HopSkipJump(threat)._misclassified(search, torch_generator(SEED))
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    torch.random.manual_seed(SEED)
    attack = foolbox.attacks.HopSkipJumpAttack(steps=HOPS, constraint="l2" if isinstance(threat, L2) else "linf")
    found = x.clone()
    found[rows] = attack.run(wrapped, x[rows], foolbox.criteria.Misclassification(y[rows]), starting_points=starts)
    return found


def adv_lib(module: str, function: str) -> Callable[..., Any]:
    """A function of adv_lib, which imports torchvision for one distance that no attack here uses."""
    if "torchvision" not in sys.modules:
        sys.modules["torchvision"] = stand_in = types.ModuleType("torchvision")
        stand_in.models = types.ModuleType("torchvision.models")  # type: ignore[attr-defined]
    if "visdom" not in sys.modules:
        sys.modules["visdom"] = types.ModuleType("visdom")
        sys.modules["visdom"].Visdom = object  # type: ignore[attr-defined]
    from importlib import import_module

    return getattr(import_module(module), function)


def adv_lib_fab(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    fab = adv_lib("adv_lib.attacks.fast_adaptive_boundary", "fab")
    norm = {Linf: float("inf"), L2: 2.0, L1: 1.0}[type(threat)]
    return fab(model, x, y, norm=norm, n_iter=100)


def adv_lib_pgd(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    pgd = adv_lib("adv_lib.attacks.projected_gradient_descent", "pgd_linf")
    return pgd(model, x, y, ε=threat.radius, steps=40, absolute_step_size=2.5 * threat.radius / 40)


def art_pgd(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    step = 2.5 * threat.radius / 40
    made = ProjectedGradientDescentPyTorch(
        wrapped, eps=threat.radius, eps_step=step, max_iter=40, num_random_init=1, batch_size=BATCH, verbose=False
    )
    return torch.from_numpy(made.generate(x.numpy(), y.numpy()))


def torchattacks_attack(name: str, **settings: float) -> Side:
    def side(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        import torchattacks

        return getattr(torchattacks, name)(model, eps=threat.radius, **settings)(x, y)

    return side


@dataclass(frozen=True)
class Comparison:
    """Two attacks on the same images; `by` says what is compared: "verdicts", "tensors" or "norms"."""

    name: str
    what: str
    peer: str
    network: str
    threat: Threat
    images: int
    ours: Side
    theirs: Side
    by: str = "verdicts"
    slack: float = 0.002  # by how much our robust accuracy may be higher, or our median norm larger (relative)

    def run(self) -> dict[str, Any]:
        """The result in the harness's form."""
        model, x, y = subject(self.network, self.images)
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        found: dict[str, list[Tensor]] = {"ours": [], "theirs": []}
        for turn, (part, labels) in enumerate(zip(x.tensor_split(PARTS), y.tensor_split(PARTS))):
            for side in ("ours", "theirs") if turn % 2 == 0 else ("theirs", "ours"):
                began = time.process_time()
                points = getattr(self, side)(model, part.clone(), labels.clone(), self.threat)
                seconds[side].append(time.process_time() - began)
                found[side].append(points.detach())
        ours, theirs = (torch.cat(found[side]) for side in ("ours", "theirs"))
        equal, told = getattr(self, f"_{self.by}")(model, x, y, ours, theirs)
        mine, peers = sum(seconds["ours"]), sum(seconds["theirs"])
        return {
            "name": self.name,
            "subject": f"{self.what}, {self.network}, {self.threat!r}",
            "peer": self.peer,
            "peer_version": version(self.peer),
            "ours_s": mine,
            "peer_s": peers,
            "ratio": peers / mine,
            "memory_ratio": None,
            "equal": equal,
            "settings": {
                **({} if equal else {"ours": "WEAKER"}),
                **told,
                "images": self.images,
                "clock": f"CPU seconds, {PARTS} parts",
                "ours_runs_s": seconds["ours"],
                "peer_runs_s": seconds["theirs"],
            },
            "machine": machine(),
        }

    def _verdicts(
        self, model: nn.Module, x: Tensor, y: Tensor, ours: Tensor, theirs: Tensor
    ) -> tuple[bool, dict[str, Any]]:
        mine, peers = (holds(model, points, y) for points in (ours, theirs))
        robust = [float(side.double().mean()) for side in (mine, peers)]
        return robust[0] <= robust[1] + self.slack, {
            "robust accuracy ours": f"{robust[0]:.4f}",
            "peer": f"{robust[1]:.4f}",
            "equal verdicts": f"{float((mine == peers).double().mean()):.4f}",
        }

    def _tensors(
        self, model: nn.Module, x: Tensor, y: Tensor, ours: Tensor, theirs: Tensor
    ) -> tuple[bool, dict[str, Any]]:
        right = holds(model, x, y)
        apart = float((ours - theirs)[right].abs().max())
        return apart == 0.0, {"largest difference": apart}

    def _norms(
        self, model: nn.Module, x: Tensor, y: Tensor, ours: Tensor, theirs: Tensor
    ) -> tuple[bool, dict[str, Any]]:
        right = holds(model, x, y)
        sizes = []
        for points in (ours, theirs):
            size = self.threat.norm(points - x)
            size[holds(model, points, y)] = torch.inf  # nothing found
            sizes.append(float(size[right].median()))
        return sizes[0] <= sizes[1] * (1 + self.slack), {
            "median norm ours": f"{sizes[0]:.4f}",
            "peer": f"{sizes[1]:.4f}",
        }


@torch.no_grad()
def holds(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Whether each answer is right."""
    return torch.cat([model(part) for part in x.split(BATCH)]).argmax(1) == y


STANDARD = "apgd-ce apgd-t fab-t square"
SETTINGS: tuple[tuple[str, str, Threat, int], ...] = (
    ("linf", "cnn_linf", Linf(0.1), 100),
    ("l2", "cnn_linf", L2(1.0), 60),
    ("l1", "cnn_linf", L1(8.0), 30),
    ("plain", "cnn", Linf(0.1), 500),
    ("resnet-2b", "resnet_2b", Linf(2 / 255), 100),
    ("resnet-4b", "resnet_4b", Linf(1 / 255), 50),
)


def comparisons() -> tuple[Comparison, ...]:
    """Everything that is compared."""
    return (*suites(), *members(), *single_attacks(), *smallest_changes())


def suites() -> list[Comparison]:
    """Whole ensembles."""
    return [
        Comparison(
            f"attacks-{ours}-{name}",
            f"ensemble, {ours} against standard",
            "autoattack",
            model,
            threat,
            images,
            attack(partial(StandardEnsemble, version=ours)),
            reference(STANDARD),
        )
        for ours, settings in (("adaptive", SETTINGS), ("standard", SETTINGS[:1]))
        for name, model, threat, images in settings
    ]


def members() -> list[Comparison]:
    """The ensemble's members alone."""
    made: Sequence[tuple[str, Callable[[Threat], Attack], float]] = (
        ("apgd-ce", APGD, 0.005),
        ("apgd-t", partial(APGD, targets=9), 0.005),
        ("fab-t", FAB, 0.005),
        ("square", Square, 0.01),
    )
    return [
        Comparison(
            f"attacks-{name}",
            name,
            "autoattack",
            "cnn_linf",
            Linf(0.1),
            500 if name == "apgd-ce" else 100,
            attack(make),
            reference(name),
            slack=slack,
        )
        for name, make, slack in made
    ]


def single_attacks() -> list[Comparison]:
    """PGD beside everybody's, and FGSM, whose points are the peer's to the bit."""
    threat, step = Linf(0.1), 2.5 * 0.1 / 40
    pgd = attack(lambda threat: PGD(threat, steps=40))
    peers = (
        ("torchattacks", torchattacks_attack("PGD", alpha=step, steps=40)),
        ("foolbox", foolbox_attack(lambda attacks: attacks.LinfPGD(abs_stepsize=step, steps=40))),
        ("adv-lib", adv_lib_pgd),
        ("adversarial-robustness-toolbox", art_pgd),
    )
    fgsm = attack(FGSM), torchattacks_attack("FGSM")
    return [
        *(
            Comparison(f"attacks-pgd-{peer}", "PGD-40", peer, "cnn_linf", threat, 1000, pgd, theirs, slack=0.005)
            for peer, theirs in peers
        ),
        Comparison("attacks-fgsm", "FGSM", "torchattacks", "cnn_linf", threat, 1000, *fgsm, by="tensors"),
    ]


def smallest_changes() -> list[Comparison]:
    """Attacks that look for the nearest point."""
    near, hop = "FAB, smallest change", f"HopSkipJump, {HOPS} steps, smallest change"
    norms = partial(Comparison, network="cnn_linf", by="norms")
    return [
        *(
            norms(
                f"attacks-fab-norm-{name}",
                near,
                "adv-lib",
                threat=threat,
                images=100,
                ours=nearest,
                theirs=adv_lib_fab,
                slack=0.02,
            )
            for name, threat in (("linf", Linf(0.1)), ("l2", L2(1.0)))
        ),
        norms(
            "attacks-hopskipjump", hop, "foolbox", threat=L2(1.0), images=30, ours=hops, theirs=foolbox_hops, slack=0.1
        ),
    ]


def main(arguments: list[str]) -> int:
    """Run what is asked for; 1 when ours is weaker than its peer somewhere."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks attacks", description="Attacks beside their peers.")
    parser.add_argument("names", nargs="*", help="comparisons whose name starts so; all when none is given")
    parser.add_argument("--list", action="store_true", help="only list what there is")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    weaker = 0
    for comparison in comparisons():
        if options.names and not comparison.name.startswith(tuple(options.names)):
            continue
        if options.list:
            print(f"{comparison.name}: {comparison.what} on {comparison.network} against {comparison.peer}")
            continue
        if version(comparison.peer) is None:
            print(f"{comparison.name}: skipped, {comparison.peer} is not installed")
            continue
        result = comparison.run()
        write(result)
        told = ", ".join(f"{key} {value}" for key, value in result["settings"].items() if not key.endswith("_s"))
        verdict = "" if result["equal"] else "WEAKER: "
        print(f"{verdict}{comparison.name}: ratio {result['ratio']:.2f} ({result['ours_s']:.1f} s), {told}", flush=True)
        weaker += not result["equal"]
    return 1 if weaker else 0
