"""A classifier head that learns its own temperature, and its energy as a detector (AbeT; LeVine et al., 2024).

From penultimate features h, with one temperature an input (BN is batch normalisation of the one number),

    T(x) = sigmoid(BN(wᵀ h + b)) + 1e-12        c_k = <h / ||h||, W_k / ||W_k||>        logits c_k / T

trained by cross-entropy as any head.  The score is the energy without the temperature that usually stands in front,

    s(x) = log Σ_k exp(c_k / T),       max_k c_k / T  <=  s  <=  max_k c_k / T + log K

Training pushes T down where the network is right with confidence and leaves it high on inputs like those it gets
wrong, and these score low; the factor T, left out, would pull the other way.  c does not change with the length of h;
an input whose features are all zero has c = 0 and the score log K.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.core.progress import track
from holdfast.inputs.features import as_input, evaluating, last_linear

SMALLEST_TEMPERATURE = 1e-12


class TemperedLogits(NamedTuple):
    """What the head says of every input: `logits` = `cosine` / `temperature`."""

    logits: Float[Tensor, "*batch classes"]
    cosine: Float[Tensor, "*batch classes"]
    temperature: Float[Tensor, "*batch"]


class LearnedTemperatureHead(nn.Module):
    """Features (..., in_features) to logits (..., classes); takes the place of a classifier's last `nn.Linear`.

    Every position of the leading axes has its own temperature, so that boxes and pixels are served too.  W is
    He-uniform and w normal, drawn from `generator`.  Raises InputError for fewer than two classes, for a single example
    in training mode (batch normalisation has no variance then) and when all features of a batch are zero.
    """

    def __init__(self, in_features: int, classes: int, *, generator: torch.Generator | None = None):
        super().__init__()
        if classes < 2 or in_features < 1:
            raise InputError(f"a head needs two classes and one feature at least, got {classes} and {in_features}")
        self.in_features = in_features
        self.classes = classes
        self.weight = nn.Parameter(torch.empty(classes, in_features))
        self.temperature = skip_init(nn.Linear, in_features, 1)
        self.normalise = nn.BatchNorm1d(1)
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu", generator=generator)
        nn.init.normal_(self.temperature.weight, std=in_features**-0.5, generator=generator)
        nn.init.zeros_(self.temperature.bias)

    def forward(self, features: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch classes"]:
        """The tempered logits; `temper` gives their parts as well."""
        return self.temper(features).logits

    def temper(self, features: Float[Tensor, "*batch features"]) -> TemperedLogits:
        """Logits, cosines and temperatures of the same features."""
        self._check(features)
        raw = self.normalise(self.temperature(features).reshape(-1, 1)).reshape(features.shape[:-1])
        temperature = torch.sigmoid(raw) + SMALLEST_TEMPERATURE
        cosine = F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))
        return TemperedLogits(cosine / temperature[..., None], cosine, temperature)

    def _check(self, features: Tensor) -> None:
        if features.ndim < 2 or features.shape[-1] != self.in_features:
            raise InputError(f"the head takes features (..., {self.in_features}), got {tuple(features.shape)}")
        if self.training and features.numel() == self.in_features:
            raise InputError("one example cannot be normalised in training mode; use larger batches, or call eval()")
        if not bool(features.any()):
            raise InputError(
                "all features of the batch are zero, so they have no direction; the network before is dead"
            )


def attach_temperature_head(
    model: nn.Module, layer: str | None = None, *, generator: torch.Generator | None = None
) -> nn.Module:
    """A copy of `model` whose linear layer called `layer` (default: the last one) is a LearnedTemperatureHead.

    The copy maps inputs to logits as before and has yet to be trained: whole, or, as a variant, its head alone with the
    rest frozen (`fit_head`).  Raises InputError when there is no such layer, UnsupportedError when it is not linear.
    """
    name = last_linear(model) if layer is None else layer
    modules = dict(model.named_modules())
    if name is None or name not in modules:
        raise InputError(f"the model has no {'linear layer' if name is None else f'layer {name!r}'} to put a head in")
    old = modules[name]
    if not isinstance(old, nn.Linear):
        raise UnsupportedError(f"a head takes the place of an nn.Linear; layer {name!r} is a {type(old).__name__}")
    head = LearnedTemperatureHead(old.in_features, old.out_features, generator=generator).to(old.weight)
    if not name:
        return head
    changed = copy.deepcopy(model)
    owner, _, attribute = name.rpartition(".")
    setattr(changed.get_submodule(owner), attribute, head)
    return changed


def fit_head(
    head: LearnedTemperatureHead,
    features: Float[Tensor, "n features"],
    y: Int[Tensor, " n"],
    *,
    epochs: int = 30,
    batch: int = 64,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    generator: torch.Generator | None = None,
) -> LearnedTemperatureHead:
    """Train the head alone on frozen features: a variant, for embeddings whose network cannot be trained again.

    SGD with momentum 0.9, the step divided by 10 after half and after three quarters of the epochs.  In place; the head
    is given back in evaluation mode.  Raises InputError on labels outside the classes or fewer than two examples.
    """
    if len(features) < 2 or int(y.min()) < 0 or int(y.max()) >= head.classes:
        raise InputError(
            f"the head needs two examples and labels 0..{head.classes - 1}, got {len(features)} examples, labels "
            f"{'none' if not len(y) else f'{int(y.min())}..{int(y.max())}'}"
        )
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs // 2, epochs * 3 // 4])
    head.train()
    for _ in track(range(epochs), "fitting the head", epochs):
        for rows in torch.randperm(len(features), generator=generator).split(batch):
            if len(rows) < 2:
                continue
            optimizer.zero_grad()
            F.cross_entropy(head(features[rows]), y[rows]).backward()
            optimizer.step()
        schedule.step()
    return head.eval()


class EnergyParts(NamedTuple):
    """Three scores of the same inputs, higher more typical: `ablated` is AbeT's, the others are for comparison."""

    ablated: Float[np.ndarray, "*batch"]  # log Σ exp(c / T)
    tempered: Float[np.ndarray, "*batch"]  # T log Σ exp(c / T)
    temperature: Float[np.ndarray, "*batch"]  # -T


class AblatedEnergy(BaseEstimator):
    """Detector over a model with a LearnedTemperatureHead: s(x) of the module.

    Parameters
    ----------
    model : nn.Module with exactly one such head; inputs are arrays or tensors of its input shape
    contamination : share of the typical inputs given to `fit` that `predict` refuses
    batch : inputs a forward pass

    Attributes
    ----------
    offset_ : threshold of `predict`
    """

    def __init__(self, model: nn.Module, contamination: float = 0.05, batch: int = 512):
        self.model = model
        self.contamination = contamination
        self.batch = batch

    def fit(self, X: ArrayLike | Tensor, y: Any = None) -> AblatedEnergy:
        """Set the threshold on typical inputs that the model was not trained on; the model stays as it is."""
        if not 0 <= self.contamination <= 0.5:
            raise InputError(f"contamination must lie in [0, 0.5], got {self.contamination}")
        self.offset_ = float(np.quantile(self.score_samples(X), self.contamination))
        return self

    def score_samples(self, X: ArrayLike | Tensor) -> Float[np.ndarray, "*batch"]:
        """s of every input (n,); of every box or pixel (n, ...) where the head sees several an input."""
        return self.components(X).ablated

    def predict(self, X: ArrayLike | Tensor) -> np.ndarray:
        """+1 for typical inputs, -1 for others."""
        check_is_fitted(self, "offset_")
        return np.where(self.score_samples(X) >= self.offset_, 1, -1)

    @torch.no_grad()
    def components(self, X: ArrayLike | Tensor) -> EnergyParts:
        """The score beside its parts, in float64: float32 would lose exp(c / T) at small T."""
        head = self._head()
        x = as_input(self.model, X)
        parts = [self._parts(head, part) for part in x.split(self.batch)]
        return EnergyParts(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _parts(self, head: LearnedTemperatureHead, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        try:
            with evaluating(self.model):
                self.model(x)
                if len(seen) != 1:
                    raise UnsupportedError(f"the head ran {len(seen)} times in one forward pass; score it by hand")
                found = head.temper(seen[0])
        finally:
            hook.remove()
        temperature = found.temperature.double()
        ablated = torch.logsumexp(found.cosine.double() / temperature[..., None], -1)
        return tuple(part.cpu().numpy() for part in (ablated, temperature * ablated, -temperature))  # type: ignore[return-value]

    def _head(self) -> LearnedTemperatureHead:
        heads = [module for module in self.model.modules() if isinstance(module, LearnedTemperatureHead)]
        if len(heads) != 1:
            raise InputError(
                f"the model has {len(heads)} learned-temperature heads, one is needed; attach_temperature_head puts "
                "one in place of the last linear layer"
            )
        return heads[0]
