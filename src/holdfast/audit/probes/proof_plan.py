"""What a proof over a threat set costs on a model, and the search for the largest radius that can be proven.

Methods are tried in turn on what is still open: linear bounds on intervals, linear bounds throughout (CROWN), linear
bounds with optimised slopes (alpha-CROWN), at every radius as many of them as their work on a typical example allows:
at small radii most neurons keep their sign and the dear methods become cheap.  The choice depends on the model, the
data and the threat only, never on a clock, so a resumed audit makes it again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from holdfast.audit.probes.attack_plan import EveryMove
from holdfast.core.errors import UnsupportedError
from holdfast.inputs.attack.gradient import PGD
from holdfast.inputs.attack.loop import Attack
from holdfast.inputs.bounds import Graph, Method, Region, certify, unsupported
from holdfast.inputs.bounds.effort import open_entries
from holdfast.subject.subject import Access, Subject
from holdfast.threats.base import Threat, Valid
from holdfast.threats.places import Translation

#: Work that may be spent on one example at one radius, in floating-point operations (about a second on one core).
AFFORDABLE = 1.5e10
#: Passes over the network for one row: forth and back; and the steps of an optimisation on top.
CROWN_PASSES, OPTIMISED_PASSES = 2, 120
#: Examples that the work is estimated from.
SAMPLE = 8
#: Gradient steps that look for a point that spares the attempt at a proof.
ATTACK_STEPS = 10
#: What a method is called in tables and in sentences.
TITLES: dict[Method, str] = {
    "crown-ibp": "linear bounds on intervals",
    "crown": "linear bounds",
    "alpha-crown": "linear bounds with optimised slopes",
}
PUBLISHED: dict[Method, str] = {"crown-ibp": "CROWN-IBP", "crown": "CROWN", "alpha-crown": "alpha-CROWN"}


@dataclass(frozen=True)
class Provable:
    """The model can be bounded over `threats`, one a radius, rising; `chosen` is the place of the one asked about.

    `methods`, one tuple a radius, are tried in turn on what is still open.
    """

    graph: Graph
    threats: tuple[Threat, ...]
    chosen: int
    methods: tuple[tuple[Method, ...], ...]
    words: str

    @property
    def threat(self) -> Threat:
        return self.threats[self.chosen]

    @property
    def radii(self) -> tuple[float, ...]:
        return tuple(threat.radius for threat in self.threats)


def affordable(subject: Subject, graph: Graph, threat: Threat) -> tuple[Method, ...]:
    """The methods whose work on a typical example is affordable, cheapest first.

    A backward pass costs about a pass over the network for every entry whose bounds a relaxation would use and
    intervals do not know exactly.
    """
    x = subject.tensor(subject.test.inputs.take(np.arange(min(SAMPLE, len(subject.test)))))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        subject.model(x[:1])
    rows = float(open_entries(graph, Region(x, threat, widened(subject.valid, x))).float().mean())
    work = rows * max(counter.get_total_flops(), 1)
    methods: list[Method] = ["crown-ibp"]
    if CROWN_PASSES * work <= AFFORDABLE:
        methods.append("crown")
    if OPTIMISED_PASSES * work <= AFFORDABLE:
        methods.append("alpha-crown")
    return tuple(methods)


def largest_stable(
    model: nn.Module, state: Provable, x: Tensor, answers: Tensor, valid: Valid, generator: torch.Generator
) -> Tensor:
    """Place of the largest radius at which each answer is proven to stay, -1 for none; (batch,) on the CPU.

    By halving: a proof covers every smaller radius, and where one fails larger radii are not tried.
    """
    least = torch.full((len(x),), -1)
    failed = torch.full((len(x),), len(state.threats))
    while True:
        middle = torch.div(least + failed, 2, rounding_mode="floor")
        undecided = failed - least > 1
        if not bool(undecided.any()):
            return least
        for place in middle[undecided].unique().tolist():
            rows = (undecided & (middle == place)).nonzero().squeeze(1)
            there = rows.to(x.device)
            proven = _stays(model, state, place, x[there], answers[there], valid, generator)
            least[rows[proven]], failed[rows[~proven]] = place, place


def _stays(
    model: nn.Module,
    state: Provable,
    place: int,
    x: Tensor,
    answers: Tensor,
    valid: Valid,
    generator: torch.Generator,
) -> Tensor:
    """Which answers are proven at one radius; (batch,) bool on the CPU."""
    threat, methods = state.threats[place], state.methods[place]
    proven = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    left = torch.arange(len(x), device=x.device)
    for method in methods:
        found = certify(state.graph, x[left], answers[left], threat, valid, method).certified
        proven[left] = found
        left = left[~found]
        if method == methods[0] and len(methods) > 1 and len(left):
            # A point that moves the answer spares every further attempt to prove that there is none.
            attack = _quick_attack(threat)
            if attack is not None:
                run = attack.run(model, x[left], answers[left], valid=valid, generator=generator)
                left = left[~run.success]
        if not len(left):
            break
    return proven.cpu()


def _quick_attack(threat: Threat) -> Attack | None:
    if isinstance(threat, Translation):
        return EveryMove(threat)
    return None if type(threat).steepest is Threat.steepest else PGD(threat, steps=ATTACK_STEPS, loss="margin")


def widened(valid: Valid, x: Tensor) -> Valid:
    """The valid range, stretched to hold inputs that lie outside it (a larger set, so proofs stay proofs)."""
    if valid is None:
        return None
    low, high = (torch.as_tensor(end, dtype=torch.float64, device=x.device) for end in valid)
    least, most = x.amin(0).double(), x.amax(0).double()
    return torch.minimum(low, least), torch.maximum(high, most)


def hindrance(subject: Subject, threat: Threat) -> str | None:
    """Why the model cannot be bounded over the threat, or None."""
    if subject.access < Access.GRADIENTS:
        return "the model's operators cannot be read"
    x = example(subject)
    try:
        threat.interval(x, widened(subject.valid, x))
        threat.worst(torch.zeros(1, 1, *x.shape[1:], device=x.device), x, widened(subject.valid, x))
    except UnsupportedError as error:
        return str(error)
    problems = unsupported(subject.model, x)
    return "; ".join(problems) or None


def example(subject: Subject) -> Tensor:
    """The first test input, as a batch of one."""
    return subject.tensor(subject.test.inputs.take(np.zeros(1, dtype=np.int64)))
