"""Classification by components with radial kernels (Saralajew et al., 2024): reasons for every answer, and a radius.

K components w_k are detected by d_k(x) = phi(||x - w_k|| / s_k) in (0, 1] (module `radial`).  Every class c reasons
over them with probabilities r+_ck ("it is present") and r-_ck ("it is absent") that sum to one, and its evidence is

    p_c(x) = sum_k [r+_ck d_k(x) + r-_ck (1 - d_k(x))] = sum_k v_ck d_k(x) + b_c,   v = r+ - r-,   b_c = sum_k r-_ck,

the probability that a reason drawn for c agrees with what is seen.  This is an RBF network, so module `radial`
certifies it.  For one exponential width s, with A and B the parts of the margin's kernel sum that speak for y and for
the rival and C = b_y - b_c, the radius is R = s log[(C + sqrt(C^2 + 4 A B)) / (2 B)], the smallest over all rivals.

`ComponentClassifier` is the network, shallow or on top of a backbone; `ComponentClassifierEstimator` trains the shallow
one on tables the scikit-learn way; `MarginLoss` raises the margin, and with it the radius.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.bounds.enclosure import enclosed
from holdfast.inputs.bounds.graph import capture
from holdfast.inputs.bounds.radial import (
    UNIT,
    Expansion,
    RadialKernel,
    Widths,
    bump,
    check_centres,
    check_finite,
    check_kernel,
    distance_interval,
    distances,
    expansion_radius,
    exponential_radius,
    norm_factor,
    rbf_certified_radius,
    rounded_down,
)
from holdfast.inputs.lipschitz import lipschitz_bound

__all__ = [
    "ComponentClassifier",
    "ComponentClassifierEstimator",
    "Explanation",
    "MarginLoss",
    "class_components",
    "exponential_radius",
    "rbf_certified_radius",
]

Kernel = Literal["exponential", "gaussian", "patch-softmax"]


class MarginLoss(nn.Module):
    """Mean of max(0, margin + max_{c != y} p_c - p_y): what it raises is the margin that the radius comes from.

    Raises InputError for a margin outside (0, 1]: p_y - p_c is a difference of probabilities.
    """

    def __init__(self, margin: float = 0.3) -> None:
        super().__init__()
        if not 0 < margin <= 1:
            raise InputError(f"the margin is a difference of two probabilities, in (0, 1], got {margin}")
        self.margin = margin

    def forward(self, evidence: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        own = evidence.gather(1, y[:, None])
        rival = evidence.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)
        return torch.relu(self.margin + rival - own).mean()


@dataclass(frozen=True)
class Explanation:
    """What every component said for every class: `positive` by being present, `negative` by being absent.

    Both have shape (batch, classes, components) and are at least 0; together they sum to the evidence p_c.
    """

    positive: Float[Tensor, "batch classes components"]
    negative: Float[Tensor, "batch classes components"]

    @property
    def evidence(self) -> Float[Tensor, "batch classes"]:
        """The sum over components of both kinds: p_c."""
        return (self.positive + self.negative).sum(2)


class ComponentClassifier(nn.Module):
    """Evidence p_c(x) of every class from components that are present or absent.

    The evidence of a class is a probability over its reasons; over classes it does not sum to one, and no softmax
    belongs on top of it.

    Parameters
    ----------
    components : (components, features), where the learnt components start; see `class_components`.
    classes : number of classes, at most the number of components.
    kernel : "exponential", "gaussian", or "patch-softmax": features (batch, channels, *positions) are compared with the
        components at every position, d_k = max over positions of the softmax over k of -dist_k / s_k. No certificate.
    norm : 1, 2 or infinity: the norm of the distances, and the one the radius speaks of.
    widths : one number for all kernels, or one a component; learnt (as logarithms) with the rest.
    owners : (components,), the class each component was drawn from; its reasoning then starts with "my components are
        present, those of others are absent", else with all reasons alike.
    backbone : features are backbone(x); without one they are x itself, flattened.
    lipschitz : constant of the backbone from its input to its features, both in `norm`, for the radius in input space;
        when None it is computed for every batch to certify (norm 2, operators that `bounds` knows).

    Raises InputError for fewer components than classes, widths that are not positive, or components not finite.
    """

    def __init__(
        self,
        components: Float[Tensor, "components features"],
        classes: int,
        kernel: Kernel = "exponential",
        norm: float | int = 2,
        *,
        widths: Widths = 1.0,
        owners: Int[Tensor, " components"] | None = None,
        backbone: nn.Module | None = None,
        lipschitz: float | int | None = None,
    ) -> None:
        super().__init__()
        check_kernel(kernel, norm, get_args(Kernel))
        check_centres(components, widths)
        if classes < 2 or len(components) < classes:
            raise InputError(
                f"got {len(components)} components for {classes} classes; give at least one a class, and two classes"
            )
        if lipschitz is not None and not 0 < lipschitz < math.inf:
            raise InputError(f"a Lipschitz constant must be positive and finite, got {lipschitz}")
        self.kernel: Kernel = kernel
        self.norm = norm
        self.backbone = backbone
        self.lipschitz = lipschitz
        self.components = nn.Parameter(components.detach().clone())
        width = torch.as_tensor(widths, dtype=components.dtype, device=components.device)
        self.log_widths = nn.Parameter(width.log().reshape(-1).clone())
        self.reasoning = nn.Parameter(_first_reasoning(owners, classes, components))

    @property
    def classes(self) -> int:
        return len(self.reasoning)

    @property
    def widths(self) -> Float[Tensor, " components"]:
        """Width of every kernel."""
        return self.log_widths.exp().expand(len(self.components))

    def reasons(self) -> tuple[Float[Tensor, "classes components"], Float[Tensor, "classes components"]]:
        """(r+, r-): how much every class counts on a component's presence and on its absence; sums to one a class."""
        positive, negative = self.reasoning.flatten(1).softmax(1).reshape(self.reasoning.shape).unbind(1)
        return positive, negative

    def features(self, x: Float[Tensor, "batch *shape"]) -> Tensor:
        """What is compared with the components."""
        found = x if self.backbone is None else self.backbone(x)
        patches = self.kernel == "patch-softmax"
        found = found.flatten(2) if patches else found.flatten(1)
        if found.ndim < 2 or found.shape[1] != self.components.shape[1]:
            raise InputError(
                f"features have shape {tuple(found.shape)}, the components have {self.components.shape[1]} "
                f"{'channels' if patches else 'features'}"
            )
        return found

    def detect(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch components"]:
        """d_k(x) in [0, 1]: how clearly every component is present."""
        features = self.features(x)
        if self.kernel != "patch-softmax":
            return bump(distances(features, self.components, self.norm) / self.widths, self.kernel)
        positions = features.transpose(1, 2)
        distance = distances(positions.flatten(0, 1), self.components, self.norm)
        shares = (-distance / self.widths).softmax(1)
        return shares.reshape(*positions.shape[:2], -1).amax(1)

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        positive, negative = self.reasons()
        return self.detect(x) @ (positive - negative).T + negative.sum(1)

    def explain(self, x: Float[Tensor, "batch *shape"]) -> Explanation:
        """Every component's share in the evidence of every class, by presence and by absence."""
        detected = self.detect(x)[:, None, :]
        positive, negative = self.reasons()
        return Explanation(positive * detected, negative * (1 - detected))

    @torch.no_grad()
    def certified_radius(
        self,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, " batch"] | None = None,
        *,
        norm: float | int | None = None,
    ) -> Float[Tensor, " batch"]:
        """Radius within which the predicted label cannot change: float64, sound, possibly infinite, 0 where tied.

        With labels `y` it is 0 where the prediction is another. `norm` asks for the radius in another norm than the
        classifier's own, at the price of the norms' equivalence (a factor of up to the number of input values).
        With a backbone it is the radius in feature space over the Lipschitz constant: that of `lipschitz_bound`, or
        `lipschitz` where it was given (then for features as float64 computes them).

        Raises UnsupportedError for "patch-softmax", whose similarities are not functions of one distance, and for a
        backbone with operators that have no bounding rule; InputError for inputs that are not finite, labels out of
        range, or a backbone in another norm than 2 without `lipschitz`.
        """
        if self.kernel == "patch-softmax":
            raise UnsupportedError(
                "patch similarities are no function of a distance to x, so no radius follows from them; use "
                "kernel='exponential' or 'gaussian', or bound the network with holdfast.inputs.bounds.bounds"
            )
        check_finite(x)
        features, error, scale = self._located(x)
        nearest, farthest = distance_interval(features, self.components.detach().double(), self.norm)
        interval = (nearest - error[:, None]).clamp(min=0), farthest + error[:, None]
        radius = expansion_radius(self._expansion(), interval, y)
        return torch.where(radius > 0, radius * rounded_down(scale * norm_factor(x, self.norm, norm)), 0.0)

    def _located(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """Features, how far the exact ones may be from them, and input change per change of the features."""
        if self.backbone is None:
            return self.features(x.double()), x.new_zeros(len(x), dtype=torch.float64), 1.0
        if self.lipschitz is not None:
            double = copy.deepcopy(self.backbone).double().eval()
            return double(x.double()).flatten(1), x.new_zeros(len(x), dtype=torch.float64), 1 / float(self.lipschitz)
        if self.norm != 2:
            raise InputError(f"only Lipschitz constants in norm 2 are computed; for norm {self.norm} pass lipschitz=")
        graph = capture(self.backbone, x)
        features, error = enclosed(graph, x)
        steepness = lipschitz_bound(graph, x)
        return features, error * 1.001, math.inf if steepness == 0 else 1 / steepness

    def _expansion(self) -> Expansion:
        """The classifier in float64, with what rounding may have done to its reasons."""
        logits = self.reasoning.detach().double().flatten(1)
        positive, negative = logits.softmax(1).reshape(self.reasoning.shape).unbind(1)
        # The differences of the logits are rounded, then the exponentials, their sum, and the sums that use them.
        slack = 4 * UNIT * (logits.amax(1) - logits.amin(1) + 2 * len(self.components) + 16)
        widths = self.log_widths.detach().double().exp().expand(len(self.components))
        kernel: Any = self.kernel
        return Expansion(positive - negative, negative.sum(1), widths, kernel, slack)


def class_components(
    X: Float[np.ndarray, "examples features"],
    y: Int[np.ndarray, " examples"],
    per_class: int,
    classes: int,
    random_state: Any = None,
) -> tuple[Float[np.ndarray, "components features"], Int[np.ndarray, " components"]]:
    """Centres of k-means within every class, and the class of each; a class with fewer examples gives those.

    Raises InputError when a class has no example, or labels lie outside 0..classes - 1.
    """
    if per_class < 1:
        raise InputError(f"every class needs at least one component, got {per_class} a class")
    if len(y) and not (y.min() >= 0 and y.max() < classes):
        raise InputError(f"labels must lie in 0..{classes - 1}, got {y.min()}..{y.max()}")
    random = check_random_state(random_state)
    centres = []
    for label in range(classes):
        members = np.unique(X[y == label], axis=0)
        if not len(members):
            raise InputError(f"class {label} has no example to take components from; drop it or add some")
        if len(members) > per_class:
            members = KMeans(per_class, n_init=3, random_state=random).fit(X[y == label]).cluster_centers_
        centres.append(members)
    owners = np.repeat(np.arange(classes), [len(part) for part in centres])
    return np.concatenate(centres), owners


class ComponentClassifierEstimator(ClassifierMixin, BaseEstimator):
    """The shallow component classifier for tables: k-means components, then training by gradient descent.

    Features should have comparable scales (a `StandardScaler` before it): distances add them up.

    Parameters
    ----------
    components_per_class : number of components that start as k-means centres of a class.
    kernel : "exponential" or "gaussian".
    norm : 1, 2 or infinity (of distances and of the radius).
    loss : module (evidence, y) -> scalar; `MarginLoss(0.1)` when None.
    width : of all kernels, in the units of X; when None, four times the mean distance to the nearest component.  With
        kernels this wide the evidence is nearly linear in the distances, and a margin in it is a margin in them.
    learn_widths : let training change the widths, one for each kernel.  The loss then no longer decides the radius:
        narrow kernels buy margin with radius.
    epochs, batch_size, learning_rate : of Adam.
    random_state : of k-means and the order of the batches.

    Attributes
    ----------
    classes_ : (classes,)
    model_ : ComponentClassifier in float64
    """

    # scikit-learn wants every check of a setting in `fit`, none here.
    def __init__(
        self,
        components_per_class: Any = 3,
        kernel: Any = "exponential",
        norm: Any = 2,
        loss: Any = None,
        width: Any = None,
        learn_widths: Any = False,
        epochs: Any = 100,
        batch_size: Any = 64,
        learning_rate: Any = 0.02,
        random_state: Any = None,
    ):
        self.components_per_class = components_per_class
        self.kernel = kernel
        self.norm = norm
        self.loss = loss
        self.width = width
        self.learn_widths = learn_widths
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> ComponentClassifierEstimator:
        """Place the components and train everything.

        Raises InputError for fewer than two classes or settings out of range.
        """
        if self.epochs < 0 or self.batch_size < 1 or not self.learning_rate > 0:
            raise InputError(
                f"epochs must be at least 0, batch_size at least 1 and learning_rate positive, "
                f"got {self.epochs}, {self.batch_size} and {self.learning_rate}"
            )
        check_kernel(self.kernel, self.norm, get_args(RadialKernel))
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"a classifier needs at least two classes, got one class: {self.classes_[0]!r}")
        random = check_random_state(self.random_state)
        components, owners = class_components(X, index, self.components_per_class, len(self.classes_), random)
        centres, inputs, targets = (torch.tensor(part) for part in (components, X, index))
        width = self.width
        if width is None:
            nearest = float(distances(inputs, centres, self.norm).amin(1).mean())
            width = 4 * nearest if nearest > 0 else 1.0
        widths = torch.full((len(centres),), width, dtype=torch.float64) if self.learn_widths else width
        self.model_ = ComponentClassifier(
            centres, len(self.classes_), self.kernel, self.norm, widths=widths, owners=torch.from_numpy(owners)
        )
        self.model_.log_widths.requires_grad_(bool(self.learn_widths))
        self._train(inputs, targets, torch.Generator().manual_seed(int(random.randint(2**31 - 1))))
        return self

    def _train(self, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
        loss = MarginLoss(0.1) if self.loss is None else self.loss
        learnt = [parameter for parameter in self.model_.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(learnt, lr=self.learning_rate)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(x), generator=generator).split(self.batch_size):
                optimizer.zero_grad()
                loss(self.model_(x[rows]), y[rows]).backward()
                optimizer.step()
        self.model_.eval()

    def evidence(self, X: Any) -> Float[np.ndarray, "n classes"]:
        """p_c: the probability that a reason of class c agrees with the input; does not sum to one over classes."""
        x = self._checked(X)
        with torch.no_grad():
            return self.model_(x).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The class with the most evidence, shape (n,)."""
        best = self.evidence(X).argmax(1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n classes"]:
        """Evidence divided by its sum over the classes: a share, not a calibrated probability."""
        evidence = self.evidence(X)
        return evidence / evidence.sum(1, keepdims=True)

    def certified_radius(self, X: Any, y: Any = None) -> Float[np.ndarray, " n"]:
        """Radius in `norm`, in units of the features, within which the prediction cannot change.

        With labels `y`, 0 where the prediction is another.  Raises InputError for labels not seen in `fit`.
        """
        x = self._checked(X)
        if y is None:
            return self.model_.certified_radius(x).numpy()
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise InputError(f"label {unknown[0]!r} was not seen in fit; the classes are {list(self.classes_)}")
        labels = torch.from_numpy(np.searchsorted(self.classes_, y))
        return self.model_.certified_radius(x, labels).numpy()

    def explain(self, X: Any) -> Explanation:
        """Every component's share in the evidence of every class (`ComponentClassifier.explain`)."""
        x = self._checked(X)
        with torch.no_grad():
            return self.model_.explain(x)

    def _checked(self, X: Any) -> Tensor:
        check_is_fitted(self)
        return torch.tensor(validate_data(self, X, dtype=np.float64, reset=False))


def _first_reasoning(owners: Tensor | None, classes: int, components: Tensor) -> Tensor:
    """Logits (classes, 2, components) of the reasons."""
    if owners is None:
        return components.new_zeros(classes, 2, len(components))
    if owners.shape != (len(components),) or int(owners.min()) < 0 or int(owners.max()) >= classes:
        raise InputError(f"owners must name a class in 0..{classes - 1} for each of {len(components)} components")
    missing = sorted(set(range(classes)) - set(owners.tolist()))
    if missing:
        raise InputError(f"class {missing[0]} owns no component; every class needs one of its own")
    own = owners == torch.arange(classes, device=owners.device)[:, None]
    present = torch.where(own, 2.0, -2.0).to(components)
    absent = torch.where(own, -2.0, 0.0).to(components)
    return torch.stack([present, absent], 1)
