"""Activation patterns: what the inputs of a class have in common inside the network (Geng et al., 2023).

For class c and a neuron with pre-activation z_i let rho_i be the share of the class's training inputs with z_i > 0.
The pattern of c at relaxation delta holds the neurons that nearly all of them agree on,

    on  = {i : rho_i >= delta},        off = {i : rho_i <= 1 - delta},

and leaves the others free.  An input *follows* it when z_i > 0 for every i in `on` and z_i <= 0 for every i in `off`.
Neurons are the inputs of the ReLU and leaky ReLU nodes of the captured graph, layer by layer in the order of the graph.

A pattern is a specification: "everything that follows it is classified c", over a ball or over the whole input space.
Before anything is proven of it, two easy questions: `contradict` (two patterns that fix one neuron both ways share no
input) and `infeasible` (intervals show that nothing in a region follows).  Whatever is said of the followers of an
infeasible pattern is true of nothing; a proof about it must say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, Int8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson
from holdfast.inputs.bounds.activation import LeakyReLU
from holdfast.inputs.bounds.graph import Bound, Graph, Step, capture
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.operator import Box
from holdfast.inputs.bounds.region import Region
from holdfast.inputs.bounds.rounding import Rounding

#: Examples whose activations are held together.
_CHUNK = 512


@dataclass(frozen=True, eq=False)
class ActivationPattern:
    """Neurons that are `on` and `off`, one boolean mask (neurons,) for every layer of ReLU-like units.

    `shape` is that of one input of the network, where it is known (a mined pattern knows it).
    Raises InputError when masks do not pair up or a neuron is both.
    """

    on: tuple[Bool[Tensor, " _"], ...]
    off: tuple[Bool[Tensor, " _"], ...]
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.on or [len(part) for part in self.on] != [len(part) for part in self.off]:
            raise InputError(
                f"a pattern needs the same layers on and off, got widths {[len(part) for part in self.on]} and "
                f"{[len(part) for part in self.off]}"
            )
        if any(bool((on & off).any()) for on, off in zip(self.on, self.off)):
            raise InputError("a pattern cannot ask a neuron to be both on and off")

    @classmethod
    def of(
        cls, layers: Sequence[Bool[Tensor, "examples _"]], delta: float, shape: tuple[int, ...] | None = None
    ) -> ActivationPattern:
        """From which neurons of every layer are on for each example.  Raises InputError unless 0.5 < delta <= 1."""
        if not 0.5 < delta <= 1:
            raise InputError(f"delta must lie in (0.5, 1], got {delta}: below, a neuron could be both on and off")

        def agreed(active: Tensor) -> Tensor:
            # A quotient of counts for both: in floating point 1 - 0.07 < 0.93, and 0.07 > 1 - 0.93.
            return active.sum(0).double() / len(active) >= delta

        return cls(tuple(agreed(part) for part in layers), tuple(agreed(~part) for part in layers), shape)

    @property
    def widths(self) -> tuple[int, ...]:
        """Neurons of every layer."""
        return tuple(len(part) for part in self.on)

    @property
    def fixed(self) -> int:
        """Number of neurons that are not free."""
        return int(sum(int(part.sum()) for part in (*self.on, *self.off)))

    @property
    def signs(self) -> Int8[Tensor, " neurons"]:
        """All layers side by side: +1 on, -1 off, 0 free."""
        return torch.cat(self.on).to(torch.int8) - torch.cat(self.off).to(torch.int8)

    def joined(self, other: ActivationPattern) -> ActivationPattern:
        """The pattern of the inputs that follow both.  Raises InputError when they contradict each other."""
        if contradict(self, other):
            raise InputError("the patterns fix a neuron both ways, so no input follows both")
        on = tuple(mine | theirs for mine, theirs in zip(self.on, other.on))
        off = tuple(mine | theirs for mine, theirs in zip(self.off, other.off))
        return ActivationPattern(on, off, other.shape if self.shape is None else self.shape)

    def save(self, path: str | Path) -> None:
        """Write the masks, and the shape of inputs where it is known, as a safetensors file."""
        masks = {f"on.{i}": part for i, part in enumerate(self.on)}
        masks |= {f"off.{i}": part for i, part in enumerate(self.off)}
        if self.shape is not None:
            masks["shape"] = torch.tensor(self.shape)
        save_file(masks, str(path))

    @classmethod
    def load(cls, path: str | Path) -> ActivationPattern:
        """Read what `save` wrote.  Raises InputError when the file holds something else."""
        masks = load_file(str(path))
        shape = masks.pop("shape", None)
        layers = sum(name.startswith("on.") for name in masks)
        wanted = {f"{name}.{i}" for name in ("on", "off") for i in range(layers)}
        if set(masks) != wanted or any(part.dtype != torch.bool for part in masks.values()):
            raise InputError(f"{path} holds {sorted(masks)}, not an activation pattern")
        on, off = (tuple(masks[f"{name}.{i}"] for i in range(layers)) for name in ("on", "off"))
        return cls(on, off, None if shape is None else tuple(shape.tolist()))


@dataclass(frozen=True)
class Activations:
    """Signs of the pre-activations of a captured model."""

    graph: Graph
    positions: tuple[int, ...]
    widths: tuple[int, ...]

    @classmethod
    def of(cls, model: nn.Module | Graph, example: Float[Tensor, "batch *shape"]) -> Activations:
        """Raises InputError when the model has no ReLU-like unit behind its input."""
        graph = model if isinstance(model, Graph) else capture(model, example)
        steps = graph.steps
        kinds = ((step.operator, step.inputs[0]) for step in steps)
        places = sorted(
            {place for kind, place in kinds if isinstance(kind, type) and issubclass(kind, LeakyReLU)} - {0}
        )
        if not places:
            raise InputError("the model has no ReLU or leaky ReLU, so it has no activation pattern")
        return cls(graph, tuple(places), tuple(math.prod(steps[place - 1].shape) for place in places))

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "batch *shape"]) -> tuple[list[Bool[Tensor, "batch _"]], Tensor]:
        """Which neurons of every layer are on (z > 0), in the precision of `x`, and the model's outputs."""
        if tuple(x.shape[1:]) != self.graph.shape[1:] or not bool(torch.isfinite(x).all()):
            raise InputError(
                f"inputs must be finite and have shape {self.graph.shape[1:]}, got {tuple(x.shape[1:])} or NaN"
            )
        nodes = self.graph.bind(x.dtype, x.device)
        found = [self._chunk(nodes, part) for part in x.split(_CHUNK)]
        layers = [torch.cat([part[0][i] for part in found]) for i in range(len(self.positions))]
        return layers, torch.cat([part[1] for part in found])

    def _chunk(self, nodes: Sequence[Bound], x: Tensor) -> tuple[list[Tensor], Tensor]:
        layers, outputs = self.preactivations(nodes, x)
        return [layer > 0 for layer in layers], outputs

    def preactivations(
        self, nodes: Sequence[Bound], x: Float[Tensor, "batch *shape"]
    ) -> tuple[list[Float[Tensor, "batch _"]], Float[Tensor, "batch outputs"]]:
        """z of every layer, and the outputs, by the graph's operators bound in the precision of `x`; differentiable."""
        values = [x.unsqueeze(1)]  # graphs have an axis of one where their trace had the batch
        for node in nodes:
            values.append(node.operator.value(*(values[i] for i in node.inputs)))
        return [values[place].flatten(1) for place in self.positions], values[self.graph.output].flatten(1)

    def check(self, pattern: ActivationPattern) -> None:
        """Raises InputError when the pattern is of another network."""
        if pattern.widths != self.widths:
            raise InputError(
                f"the pattern is of layers of {pattern.widths} neurons, the model has {self.widths}: mine it from this "
                "model"
            )
        if pattern.shape not in (None, self.graph.shape[1:]):
            raise InputError(
                f"the pattern is of a network for inputs of shape {pattern.shape}, the model takes "
                f"{self.graph.shape[1:]}: mine it from this model"
            )


def _rectifies(step: Step) -> bool:
    return isinstance(step.operator, type) and issubclass(step.operator, LeakyReLU)


def mine_patterns(
    model: nn.Module | Graph,
    X: Float[Tensor, "examples *shape"],
    y: Int[Tensor, " examples"],
    delta: float = 0.99,
    correct_only: bool = True,
) -> dict[int, ActivationPattern]:
    """The pattern of every class in `y`, from the class's inputs (by default those the model gets right).

    `delta` 1 keeps only what every input agrees on; a lower one fixes more neurons, which is easier to verify and
    covers fewer inputs.  Mine on training data: coverage is then measured on others.

    Raises InputError for delta outside (0.5, 1], labels that do not fit, a class without a right input, or a model
    without ReLU-like units.
    """
    if len(X) != len(y) or not len(y):
        raise InputError(f"got {len(X)} inputs and {len(y)} labels; give one label an input, and at least one")
    layers, outputs = Activations.of(model, X)(X)
    if int(y.min()) < 0 or int(y.max()) >= outputs.shape[1]:
        raise InputError(f"labels must lie in 0..{outputs.shape[1] - 1}, got {int(y.min())}..{int(y.max())}")
    usable = outputs.argmax(1) == y if correct_only else torch.ones_like(y, dtype=torch.bool)
    patterns = {}
    for label in y.unique().tolist():
        members = (y == label) & usable
        if not bool(members.any()):
            raise InputError(f"the model gets no input of class {label} right; a pattern needs at least one")
        patterns[int(label)] = ActivationPattern.of([part[members] for part in layers], delta, tuple(X.shape[1:]))
    return patterns


def follows(
    model: nn.Module | Graph, pattern: ActivationPattern, X: Float[Tensor, "batch *shape"]
) -> Bool[Tensor, " batch"]:
    """Whether each input follows the pattern, as the model computes in the precision of `X`.

    Raises InputError when the pattern is of another network.
    """
    activations = Activations.of(model, X)
    activations.check(pattern)
    return _follow(activations(X)[0], pattern)


def coverage(model: nn.Module | Graph, pattern: ActivationPattern, X: Float[Tensor, "batch *shape"]) -> Estimate:
    """Share of the inputs that follow the pattern (its recall, when they are held-out inputs of its class)."""
    if not len(X):
        raise InputError("coverage needs at least one input")
    hits = follows(model, pattern, X)
    return clopper_pearson(int(hits.sum()), len(hits))


def contradict(p: ActivationPattern, q: ActivationPattern) -> bool:
    """Whether one neuron is on in the one and off in the other, so that no input follows both.

    False proves nothing: the patterns may still exclude each other.  Raises InputError for patterns of different
    networks.
    """
    if p.widths != q.widths:
        raise InputError(f"patterns of different networks, with layers of {p.widths} and {q.widths} neurons")
    return bool((p.signs * q.signs < 0).any())


@torch.no_grad()
def infeasible(model: nn.Module | Graph, pattern: ActivationPattern, region: Region) -> Bool[Tensor, " batch"]:
    """Where intervals prove that nothing in the region follows the pattern (float64, outward rounding).

    Fixed neurons are cut to their half-line on the way, so that what they exclude in one layer tightens the next.
    False proves nothing.  Raises InputError when the pattern is of another network.
    """
    activations = Activations.of(model, region.x)
    activations.check(pattern)
    graph = activations.graph
    exact = Region(region.x.double(), region.threat, region.valid)
    nodes = graph.bind(torch.float64, exact.x.device)
    state = Propagation(nodes, exact, Rounding(True, graph.longest_sum))
    masks = {place: (on, off) for place, on, off in zip(activations.positions, pattern.on, pattern.off)}
    empty = torch.zeros(len(exact), dtype=torch.bool, device=exact.x.device)
    for _ in nodes:
        place = state.advance()
        if place in masks:
            box = state.boxes[place]
            on, off = (mask.to(empty.device).reshape(box.lower.shape[1:]) for mask in masks[place])
            empty |= ((on & (box.upper <= 0)) | (off & (box.lower > 0))).flatten(1).any(1)
            lower = torch.where(on, box.lower.clamp(min=0), box.lower)
            upper = torch.where(off, box.upper.clamp(max=0), box.upper)
            # Where the box has become empty its ends are out of order; any box will do, the example is decided.
            state.boxes[place] = Box(torch.minimum(lower, upper), torch.maximum(lower, upper))
    return empty


class PatternMiner:
    """The patterns of all classes of one model, the scikit-learn way.

    Parameters are those of `mine_patterns`.  After `fit`, `patterns_` maps class to pattern and `classes_` (classes,)
    orders the columns of `predict_follows`.
    """

    patterns_: Mapping[int, ActivationPattern]
    classes_: Int[Tensor, " classes"]

    def __init__(self, model: nn.Module | Graph, delta: float = 0.99, correct_only: bool = True) -> None:
        self.model = model
        self.delta = delta
        self.correct_only = correct_only

    def fit(self, X: Float[Tensor, "examples *shape"], y: Int[Tensor, " examples"]) -> PatternMiner:
        """Mine the pattern of every class."""
        self.patterns_ = mine_patterns(self.model, X, y, self.delta, self.correct_only)
        self.classes_ = torch.tensor(sorted(self.patterns_))
        return self

    def predict_follows(self, X: Float[Tensor, "examples *shape"]) -> Bool[Tensor, "examples classes"]:
        """Which patterns each input follows; none, one or several."""
        if not hasattr(self, "patterns_"):
            raise InputError("this miner has no patterns yet; call fit first")
        activations = Activations.of(self.model, X)
        layers = activations(X)[0]
        return torch.stack([_follow(layers, self.patterns_[int(label)]) for label in self.classes_], 1)

    def score(self, X: Float[Tensor, "examples *shape"], y: Int[Tensor, " examples"]) -> float:
        """Mean over the classes in `y` of the share of their inputs that follow their pattern."""
        hits = self.predict_follows(X)
        shares = [hits[y == label, column].double().mean() for column, label in enumerate(self.classes_.tolist())]
        present = [share for share, label in zip(shares, self.classes_.tolist()) if bool((y == label).any())]
        if not present:
            raise InputError("none of the labels to score on was seen in fit")
        return float(torch.stack(present).mean())


def _follow(layers: Sequence[Bool[Tensor, "batch _"]], pattern: ActivationPattern) -> Bool[Tensor, " batch"]:
    agree = torch.ones(len(layers[0]), dtype=torch.bool, device=layers[0].device)
    for active, on, off in zip(layers, pattern.on, pattern.off):
        broken = (~active & on.to(agree.device)) | (active & off.to(agree.device))
        agree &= ~broken.any(1)
    return agree
