"""The parts of lirpa's check that go beyond single bounds: complete verification and loss fusion.

(d) The smallest margin of small random ReLU networks over a box, by branch and bound and by integer programming.
(e) Public verification instances against their published verdicts, in a fixed total time.
(f) What a step of certified training costs as the number of classes grows, with the loss fused into the bound and with
one row a class; and that the fused loss stays above what an attack reaches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import Bounds as Ends
from scipy.optimize import LinearConstraint, milp
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.seeds import torch_generator
from holdfast.inputs.attack.gradient import PGD
from holdfast.inputs.bounds.training import BoundLoss, CertifiedLoss, FusedCertifiedLoss
from holdfast.inputs.bounds.verify import minimum, verify
from holdfast.inputs.bounds.vnnlib import Disjunct, Property
from holdfast.papers.paper import Criterion
from holdfast.papers.vnncomp import Instance, instances
from holdfast.threats import Linf

#: Families of (e); of rl only the cartpole controller.
FAMILIES = ("acasxu", "mnist_fc", "verivital", "rl")
EASIEST, TOTAL_S, WANTED = 40, 80.0, 0.75
FEW, MANY = 10, 200


def completeness(seed: int, nets: int) -> Criterion:
    """(d)"""
    gaps = []
    for place in range(nets):
        model, lower, upper = _small_network(torch_generator(seed, "lirpa", "complete", place))
        row = np.array([[1.0, -1.0]])
        asked = Property((Disjunct(lower, upper, row, np.zeros(1)),))
        found = minimum(model, asked, gap=1e-5, budget_s=20)
        gaps.append(abs(found.upper - _by_integers(model, lower, upper, row[0])))
    return Criterion(
        "(d) the smallest margin of random ReLU networks equals that of integer programming, to 1e-4",
        max(gaps) <= 1e-4,
        {"networks": nets, "largest difference": max(gaps)},
    )


def _small_network(generator: torch.Generator) -> tuple[nn.Sequential, np.ndarray, np.ndarray]:
    """Three hidden layers, at most 40 neurons, three to twenty-five inputs, and the ends of a box."""
    ranges = ((3, 26), (4, 14), (1, 4))
    inputs, width, depth = (int(torch.randint(low, high, (1,), generator=generator)) for low, high in ranges)
    sizes = [inputs, *[width] * depth, 2]
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        layer = nn.Linear(size, following, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * (2 / size) ** 0.5)
            layer.bias.copy_(0.3 * torch.randn(following, generator=generator))
        layers += [layer, nn.ReLU()]
    centre = torch.randn(inputs, generator=generator, dtype=torch.float64).numpy()
    return nn.Sequential(*layers[:-1]).eval(), centre - 0.5, centre + 0.5


def _by_integers(model: nn.Sequential, lower: np.ndarray, upper: np.ndarray, row: np.ndarray) -> float:
    """min of row . f over the box by HiGHS: a = max(z, 0) with a switch s in {0, 1} for every neuron.

    a >= z,    a <= z - low (1 - s),    a <= high s,    a >= 0         where low <= z <= high by intervals
    """
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    weights = [layer.weight.detach().numpy() for layer in linear]
    biases = [layer.bias.detach().numpy() for layer in linear]
    variables = len(lower) + 2 * sum(map(len, biases[:-1]))
    least, most = np.zeros(variables), np.ones(variables)
    whole = np.zeros(variables)
    least[: len(lower)], most[: len(lower)] = lower, upper
    before, used = np.arange(len(lower)), len(lower)
    lines, floors, ceilings = [], [], []
    for weight, bias in zip(weights[:-1], biases[:-1]):
        middle, half = (most[before] + least[before]) / 2, (most[before] - least[before]) / 2
        low, high = weight @ middle + bias - abs(weight) @ half, weight @ middle + bias + abs(weight) @ half
        after, switch = used + np.arange(len(bias)), used + len(bias) + np.arange(len(bias))
        used += 2 * len(bias)
        most[after], whole[switch] = high.clip(min=0), 1
        above, below, gate = (np.zeros((len(bias), variables)) for _ in range(3))
        each = np.arange(len(bias))
        above[:, before], above[each, after] = -weight, 1
        below[:, before], below[each, after], below[each, switch] = -weight, 1, -low
        gate[each, after], gate[each, switch] = 1, -high.clip(min=0)
        lines += [above, below, gate]
        floors += [bias, np.full(len(bias), -np.inf), np.full(len(bias), -np.inf)]
        ceilings += [np.full(len(bias), np.inf), bias - low, np.zeros(len(bias))]
        before = after
    cost = np.zeros(variables)
    cost[before] = row @ weights[-1]
    ties = LinearConstraint(np.concatenate(lines), np.concatenate(floors), np.concatenate(ceilings))
    solved = milp(cost, integrality=whole, bounds=Ends(least, most), constraints=ties, options={"mip_rel_gap": 1e-9})
    if solved.x is None:
        raise RuntimeError(f"the integer program of a network that is always feasible was not solved: {solved.message}")
    return float(solved.fun + row @ biases[-1])


def public_instances(easiest: int = EASIEST, total_s: float = TOTAL_S) -> tuple[Criterion, Criterion]:
    """(e): the instances whose best published time is smallest, one after the other, until the time is spent."""
    known = [one for one in instances(FAMILIES) if one.agreed and ("cartpole" in one.network or one.family != "rl")]
    asked = sorted((one for one in known if "256x6" not in one.network), key=lambda one: (one.best_time_s, one.name))
    decided, wrong, began = 0, 0, time.monotonic()
    for one in asked[:easiest]:
        left = total_s - (time.monotonic() - began)
        if left <= 0:
            break
        word = _word(one, left)
        decided += word == one.verdict
        wrong += word not in (one.verdict, "unknown")
    numbers = {"instances": easiest, "decided": decided, "seconds": time.monotonic() - began}
    return (
        Criterion("(e) no verdict contradicts the published one", wrong == 0, {"contradictions": wrong}),
        Criterion(
            f"(e) of the {easiest} instances with the smallest published time, {WANTED:.0%} are decided in {total_s:g} "
            "seconds for all together",
            decided >= WANTED * easiest,
            numbers,
        ),
    )


def _word(one: Instance, budget_s: float) -> str:
    verdict = verify(one.module(), one.asked, budget_s=budget_s, generator=torch_generator(0, "lirpa", one.name))
    return {"verified": "unsat", "counterexample": "sat", "unknown": "unknown"}[verdict.status]


def fusion(seed: int, classes: Sequence[int] = (FEW, MANY), repeats: int = 5) -> tuple[Criterion, Criterion]:
    """(f)"""
    losses: dict[str, Callable[[], BoundLoss]] = {
        "fused": lambda: FusedCertifiedLoss(eps=EPS),
        "one row a class": lambda: CertifiedLoss("crown-ibp", eps=EPS),
    }
    seconds = {
        name: [_step_seconds(make(), seed, count, repeats) for count in classes] for name, make in losses.items()
    }
    growth = {name: many / few for name, (few, many) in seconds.items()}
    gap = min(_above_attack(seed, count) for count in classes)
    return (
        Criterion(
            f"(f) from {classes[0]} to {classes[1]} classes a training step costs less than twice with the loss fused, "
            "more than four times with one row a class",
            growth["fused"] < 2 and growth["one row a class"] > 4,
            {f"{name}, times": value for name, value in growth.items()},
        ),
        Criterion("(f) the fused loss is never below the loss that PGD reaches", gap >= -1e-4, {"smallest gap": gap}),
    )


EPS, BATCH = 0.02, 16


def _classifier(seed: int, classes: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    generator = torch_generator(seed, "lirpa", "fusion", classes)
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, classes),
        )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    x = torch.rand(BATCH, 1, 28, 28, generator=generator)
    return model, x, torch.randint(0, classes, (BATCH,), generator=generator)


def _step_seconds(loss: BoundLoss, seed: int, classes: int, repeats: int) -> float:
    """CPU seconds of one step, the least of several."""
    model, x, y = _classifier(seed, classes)
    spent = []
    for _ in range(repeats + 1):
        began = time.process_time()
        loss(model, x, y).backward()
        spent.append(time.process_time() - began)
    return min(spent[1:])  # the first one traces the network


def _above_attack(seed: int, classes: int) -> float:
    """Smallest excess, over the examples, of the fused loss over cross-entropy under attack."""
    model, x, y = _classifier(seed, classes)
    model.eval()
    loss = FusedCertifiedLoss(eps=EPS)
    with torch.no_grad():
        y = model(x).argmax(1)
        proven = torch.stack([loss(model, x[k : k + 1], y[k : k + 1]) for k in range(len(x))])
    run = PGD(Linf(EPS), steps=20).run(model, x, y, generator=torch_generator(seed, "lirpa", "fusion attack"))
    with torch.no_grad():
        reached = F.cross_entropy(model(run.x_adv), y, reduction="none")
    return float((proven.flatten() - reached).min())
