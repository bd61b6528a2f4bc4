"""Losses that train networks to be certifiable: `CertifiedLoss`, `FusedCertifiedLoss`, `SmallBoxLoss`.

With lower bounds l_k on the margins f_y - f_k over a set around x, worst-case logits are z_y = 0, z_k = -l_k, and

    loss = kappa CE(f(x), y) + (1 - kappa) log sum_k exp(z_k)

whose second term is at least the cross-entropy of every point of the set.

`CertifiedLoss("ibp")`        intervals (Gowal et al., 2018)
`CertifiedLoss("crown-ibp")`  beta times backward bounds through intervals plus 1 - beta times intervals: a convex
                              combination of bounds is a bound (Zhang et al., 2020)
`FusedCertifiedLoss`          the sum of exponentials is bounded as one number: one backward row instead of K - 1
                              (loss fusion; Xu et al., 2020)
`SmallBoxLoss(eps, lam)`      intervals over a box of radius lam * eps around an adversarial centre (SABR; Mueller et
                              al., 2023): what it minimises is *not* a bound over the whole set unless lam = 1

The radius and the weights may be `Ramp`s.  A loss counts steps in its buffer `step` (saved with its state); `advance()`
after every optimiser step.

A model is traced once for each input shape and its present parameters are read at every step; make a new loss when the
model's structure changes, or hand the model's `capture` to several losses.  Bounds speak of the network in evaluation
mode (dropout off), with one exception, which is what makes batch normalisation trainable: a normalisation layer in
*training* mode is bounded with mean and variance of the batch of clean inputs at that layer, and gradients pass through
both.  The clean pass is the only one that moves running statistics.

Inputs x (batch, *shape) inside `valid`, labels y (batch,), logits (batch, classes).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds.bounding import MEMORY, propagate
from holdfast.inputs.bounds.graph import Bound, Graph, capture
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.margins import backward_margins, fused_log_sum, interval_margins
from holdfast.inputs.bounds.region import Region
from holdfast.inputs.bounds.rounding import Rounding
from holdfast.inputs.bounds.schedule import Scheduled, extremes, value_at
from holdfast.inputs.features import evaluating
from holdfast.threats.balls import Linf
from holdfast.threats.base import Threat, Valid

_NORMALISATION = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class View:
    """The network as one batch sees it: operators with the present parameters, and the logits of the clean inputs."""

    nodes: list[Bound]
    output: int
    logits: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `x` with the statistics of the clean batch, (batch, classes)."""
        values = [x.unsqueeze(1)]
        for node in self.nodes[: self.output]:
            values.append(node.operator.value(*(values[i] for i in node.inputs)))
        return values[self.output].flatten(1)

    def boxes(self, region: Region) -> Propagation:
        """Interval bounds of every value over the region."""
        state = Propagation(self.nodes, region, Rounding(False, 0))
        propagate(state, "ibp", MEMORY)
        return state


class BoundLoss(nn.Module):
    """What the losses of this module share: schedules, the cached trace, kappa, and the treatment of normalisation.

    Subclasses write `worst_case`.
    """

    step: Tensor

    def __init__(self, eps: Scheduled, kappa: Scheduled, threat: Threat | None, valid: Valid) -> None:
        super().__init__()
        _within(eps, "eps")
        _within(kappa, "kappa", 1.0)
        self.eps, self.kappa, self.valid = eps, kappa, valid
        self.threat: Threat = Linf(1.0) if threat is None else threat
        self.register_buffer("step", torch.tensor(0))
        self._graphs: dict[tuple[int, tuple[int, ...]], Graph] = {}

    def advance(self) -> None:
        """Move every schedule on by one step."""
        self.step += 1

    def now(self, scheduled: Scheduled) -> float:
        """The present value of a schedule."""
        return value_at(scheduled, int(self.step))

    def forward(
        self, model: nn.Module | Graph, x: Float[Tensor, "batch *shape"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """The mean loss over the batch.

        Raises InputError for inputs outside the valid range, labels that the model does not have, and a normalisation
        layer that is used more than once; UnsupportedError for operators without a bounding rule, naming them.
        """
        kappa, radius = self.now(self.kappa), self.now(self.eps)
        clean = kappa == 1 or radius == 0
        view = self._view(model, x, y, clean=kappa > 0 or clean)
        if clean:
            assert view.logits is not None
            return F.cross_entropy(view.logits, y)
        worst = self.worst_case(view, x, y, radius).mean()
        return (
            worst
            if view.logits is None or kappa == 0
            else kappa * F.cross_entropy(view.logits, y) + (1 - kappa) * worst
        )

    @abstractmethod
    def worst_case(self, view: View, x: Tensor, y: Tensor, radius: float) -> Float[Tensor, " batch"]:
        """The second term of the loss, example by example."""

    def region(self, x: Tensor, radius: float) -> Region:
        """The set of size `radius` around the inputs."""
        return Region(x, self.threat.scaled(radius), self.valid)

    def _view(self, model: nn.Module | Graph, x: Tensor, y: Tensor, clean: bool) -> View:
        graph = self._graph(model, x)
        model = graph.model
        if len(x) != len(y) or len(y) == 0:
            raise InputError(
                f"got {len(x)} inputs and {len(y)} labels; give at least one input, and one label for each"
            )
        if int(y.min()) < 0 or int(y.max()) >= graph.outputs:
            raise InputError(f"labels must lie in 0..{graph.outputs - 1}, got {int(y.min())}..{int(y.max())}")
        learning = [module for module in model.modules() if isinstance(module, _NORMALISATION) and module.training]
        logits = None
        if learning:
            with _statistics(model) as statistics:
                logits = model(x).flatten(1)
            sources = {n: ("lifted" if t in statistics else kind, t) for n, (kind, t) in graph.sources.items()}
            graph = replace(graph, sources=sources, lifted={**graph.lifted, **statistics})
        elif clean:
            logits = model(x).flatten(1)
        return View(graph.bind(x.dtype, x.device), graph.output, logits)

    def _graph(self, model: nn.Module | Graph, x: Tensor) -> Graph:
        if isinstance(model, Graph):
            return model
        key = id(model), tuple(x.shape[1:])  # a graph keeps its model, so no other object can get this id
        if key not in self._graphs:
            with evaluating(model):
                self._graphs[key] = capture(model, x)
        return self._graphs[key]

    def __getstate__(self) -> dict[str, Any]:
        # Traces hold the models they belong to; copies of the loss trace anew.
        return {**super().__getstate__(), "_graphs": {}}


class CertifiedLoss(BoundLoss):
    """kappa CE + (1 - kappa) CE of worst-case logits over the threat's set.

    Parameters
    ----------
    method : "ibp", or "crown-ibp" (slower by about half the number of classes, tighter early in training).
    eps : radius of the set; usually a `Ramp` from 0.
    kappa : weight of the clean loss; usually a `Ramp` from 1 to 0 or 0.5.
    beta : share of backward bounds with "crown-ibp", 1 when None; usually a `Ramp` from 1 to 0.
    threat : the family of sets, `Linf` when None; its radius is replaced by `eps`.
    valid : lowest and highest value an input may take, or None.

    Raises InputError for a negative radius, weights outside [0, 1], and a `beta` that the method does not have.
    """

    def __init__(
        self,
        method: Literal["ibp", "crown-ibp"] = "ibp",
        *,
        eps: Scheduled,
        kappa: Scheduled = 0.0,
        beta: Scheduled | None = None,
        threat: Threat | None = None,
        valid: Valid = (0, 1),
    ) -> None:
        super().__init__(eps, kappa, threat, valid)
        if method not in ("ibp", "crown-ibp"):
            raise InputError(f"certified training takes 'ibp' or 'crown-ibp', got {method!r}")
        if method == "ibp" and beta is not None:
            raise InputError("beta mixes backward bounds in, which method 'ibp' has none of; use 'crown-ibp'")
        self.method = method
        self.beta: Scheduled = (0.0 if method == "ibp" else 1.0) if beta is None else beta
        _within(self.beta, "beta", 1.0)

    def worst_case(self, view: View, x: Tensor, y: Tensor, radius: float) -> Float[Tensor, " batch"]:
        lower = self._margins(view, x, y, radius)
        return F.pad(-lower, (1, 0)).logsumexp(1)

    def margins(
        self, model: nn.Module | Graph, x: Float[Tensor, "batch *shape"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch rivals"]:
        """Lower bounds on f_y - f_k at the present radius and beta, rivals in ascending order; their sign is what
        training promises.
        """
        return self._margins(self._view(model, x, y, clean=False), x, y, self.now(self.eps))

    def _margins(self, view: View, x: Tensor, y: Tensor, radius: float) -> Tensor:
        if radius == 0:
            logits = view.forward(x)
            return without_own(logits.gather(1, y[:, None]) - logits, y)
        state, beta = view.boxes(self.region(x, radius)), self.now(self.beta)
        if beta == 1:
            return backward_margins(state, view.output, y)
        lower = without_own(-interval_margins(state, view.output, y).upper, y)
        return lower if beta == 0 else beta * backward_margins(state, view.output, y) + (1 - beta) * lower


class FusedCertifiedLoss(BoundLoss):
    """kappa CE + (1 - kappa) log S with S an upper bound on sum_k exp(f_k - f_y) over the set, by one backward row.

    Its cost hardly depends on the number of classes.  `beta` mixes beta S + (1 - beta) sum_k exp(interval bound); the
    other parameters are `CertifiedLoss`'s.
    """

    def __init__(
        self,
        *,
        eps: Scheduled,
        kappa: Scheduled = 0.0,
        beta: Scheduled = 1.0,
        threat: Threat | None = None,
        valid: Valid = (0, 1),
    ) -> None:
        super().__init__(eps, kappa, threat, valid)
        _within(beta, "beta", 1.0)
        self.beta = beta

    def worst_case(self, view: View, x: Tensor, y: Tensor, radius: float) -> Float[Tensor, " batch"]:
        state, beta = view.boxes(self.region(x, radius)), self.now(self.beta)
        margins = interval_margins(state, view.output, y)
        interval = margins.upper.logsumexp(1)
        if beta == 0:
            return interval
        fused = fused_log_sum(state, view.output, y, margins)
        if beta == 1:
            return fused
        weights = torch.tensor([beta, 1 - beta], dtype=x.dtype, device=x.device).log()
        return (torch.stack([fused, interval], 1) + weights).logsumexp(1)


class SmallBoxLoss(BoundLoss):
    """Interval loss over [c - lam eps, c + lam eps], cut by the valid range, around an adversarial centre c.

    c is found by `steps` signed gradient steps of ascent on the cross-entropy within eps (1 - lam) of x, so that the
    box stays inside the set of radius eps; a step is half of that distance, a tenth of it after half the steps and a
    hundredth at the last.  lam = 1 is `CertifiedLoss("ibp")`; as lam goes to 0 it becomes adversarial training.

    Parameters
    ----------
    eps, kappa, valid : as in `CertifiedLoss`; the set is an L-infinity ball.
    lam : share of the radius that is covered by intervals, in (0, 1].
    generator : where the attack's random starts come from, advanced by every batch.  When None, the stream of seed 0
        named "small box", on the device of the inputs, begins with the first batch and is the loss's own, so training
        repeats and torch's global stream is left alone.
    """

    def __init__(
        self,
        eps: Scheduled,
        lam: float | int,
        *,
        kappa: Scheduled = 0.0,
        steps: int = 8,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(eps, kappa, None, valid)
        if not 0 < lam <= 1:
            raise InputError(f"lam is the share of the radius that intervals cover, in (0, 1], got {lam}")
        if steps < 1:
            raise InputError(f"the centre is found in at least one step, got {steps}")
        self.lam, self.steps, self.generator = float(lam), steps, generator

    def _starts(self, device: torch.device) -> torch.Generator:
        if self.generator is None:
            self.generator = torch_generator(0, "small box", device=device)
        return self.generator

    def worst_case(self, view: View, x: Tensor, y: Tensor, radius: float) -> Float[Tensor, " batch"]:
        state = view.boxes(self.region(self._centre(view, x, y, radius), self.lam * radius))
        return interval_margins(state, view.output, y).upper.logsumexp(1)

    def _centre(self, view: View, x: Tensor, y: Tensor, radius: float) -> Tensor:
        reach = (1 - self.lam) * radius
        if reach == 0:
            return x
        ball = self.threat.scaled(reach)
        centre = ball.random_start(x, self.valid, generator=self._starts(x.device))
        for step in range(self.steps):
            with torch.enable_grad():
                leaf = centre.detach().requires_grad_(True)
                (slope,) = torch.autograd.grad(F.cross_entropy(view.forward(leaf), y, reduction="sum"), leaf)
            stride = 0.5 * reach * (1.0 if step < self.steps / 2 else 0.1 if step < self.steps - 1 else 0.01)
            centre = ball.project(centre + stride * ball.steepest(slope), x, self.valid)
        return centre.detach()


def without_own(values: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, "batch rivals"]:
    """Every row without the entry of its label."""
    rival = torch.arange(values.shape[1], device=y.device) != y[:, None]
    return values[rival].reshape(len(y), -1)


@contextmanager
def _statistics(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Mean and variance of the batch at every normalisation layer in training mode, under the names of the buffers
    that evaluation mode would read instead, filled by the forward pass inside the block."""
    found: dict[str, Tensor] = {}
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _NORMALISATION) and module.training:
            names.setdefault(module, []).append(f"{name}." if name else "")

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        axes = [axis for axis in range(given[0].ndim) if axis != 1]
        for prefix in names[module]:
            if f"{prefix}running_mean" in found:
                raise InputError(
                    f"the normalisation layer {prefix.rstrip('.')} is used more than once, so it has no one batch "
                    "statistic to be bounded with; give each use a layer of its own, or put it in evaluation mode"
                )
            found[f"{prefix}running_mean"] = given[0].mean(axes)
            found[f"{prefix}running_var"] = given[0].var(axes, unbiased=False)

    handles = [module.register_forward_pre_hook(note) for module in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _within(scheduled: Scheduled, what: str, most: float = math.inf) -> None:
    least, largest = extremes(scheduled)
    if not 0 <= least <= largest <= most or math.isinf(largest):
        reach = "finite and not negative" if math.isinf(most) else f"in [0, {most:g}]"
        raise InputError(f"{what} must be {reach}, got {scheduled}")
