"""Domain knowledge as a loss: hold the importance distribution of a network to a prior.

    L = task loss + weight * KL(Q || P_theta),   P_theta,j ∝ mean_i |phi_j(x_i)|

Q is the prior over factors, phi the attributions of the batch, computed on the graph so that the penalty has gradients:

    gradient                (x_j - mean_j) df/dx_j at x
    integrated-gradients    (x_j - mean_j) times the mean of df/dx_j at 16 midpoints between the batch mean and x
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from holdfast.core.errors import InputError

ATTRIBUTIONS = ("gradient", "integrated-gradients")
_MIDPOINTS = 16
_LEAST = 1e-12


class ImportanceAlignment(nn.Module):
    """weight * KL(Q || P_theta) of a model on a batch: `alignment(model, x)` is added to the task's loss.

    Parameters
    ----------
    prior : (features,), positive and summing to 1; zeros are allowed with `smoothing`
    weight : float >= 0
    attribution : "gradient" or "integrated-gradients"
    smoothing : float in [0, 1), s of (1 - s) Q + s / features
    """

    prior: Tensor

    def __init__(
        self, prior: ArrayLike, weight: float = 1.0, attribution: str = "gradient", smoothing: float = 0.0
    ) -> None:
        super().__init__()
        values = np.asarray(prior, dtype=np.float64)
        if not 0 <= smoothing < 1 or weight < 0:
            raise InputError(f"smoothing must lie in [0, 1) and weight not be negative, got {smoothing} and {weight}")
        if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or abs(values.sum() - 1) > 1e-6:
            raise InputError(f"the prior must be a distribution over features (>= 0, sum 1), got sum {values.sum():g}")
        if (values == 0).any() and smoothing == 0:
            raise InputError("the prior gives some factor no importance at all; set smoothing above 0, such as 0.001")
        if attribution not in ATTRIBUTIONS:
            raise InputError(f"attribution must be one of {', '.join(ATTRIBUTIONS)}, got {attribution!r}")
        smoothed = (1 - smoothing) * values + smoothing / len(values)
        self.weight, self.attribution = float(weight), attribution
        self.register_buffer("prior", torch.from_numpy(smoothed))

    def forward(self, model: nn.Module, x: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
        """The penalty, with gradients to the model's parameters.

        Raises InputError for other features than the prior's, a batch of one, or a model that no factor moves.
        """
        if x.shape[1] != len(self.prior):
            raise InputError(f"the prior is over {len(self.prior)} features, the batch has {x.shape[1]}")
        return self.weight * divergence(self.prior.to(x.dtype), importances(model, x, self.attribution))


def importances(
    model: nn.Module, x: Float[Tensor, "batch features"], attribution: str = "gradient"
) -> Float[Tensor, " features"]:
    """P_theta of one batch, on the graph.  Raises InputError for a batch of one, whose rows lie at their mean."""
    if len(x) < 2:
        raise InputError("importances are means over a batch and need at least two rows, got one")
    size = attributions(model, x, attribution, create_graph=True).abs().sum(2).mean(0)
    return (size + _LEAST) / (size + _LEAST).sum()


def attributions(
    model: nn.Module, x: Float[Tensor, "batch features"], attribution: str = "gradient", *, create_graph: bool = False
) -> Float[Tensor, "batch features outputs"]:
    """phi of every row, feature and output of the model."""
    away = x - x.mean(0)
    if attribution == "gradient":
        points = [x]
    else:
        shares = (torch.arange(_MIDPOINTS, dtype=x.dtype, device=x.device) + 0.5) / _MIDPOINTS
        points = [x.mean(0) + share * away for share in shares]
    slopes = [_jacobian(model, point, create_graph) for point in points]
    return away[:, :, None] * torch.stack(slopes).mean(0)


def divergence(q: Float[Tensor, " features"], p: Float[Tensor, " features"]) -> Float[Tensor, ""]:
    """KL(q || p) in nats."""
    return (torch.special.xlogy(q, q) - q * p.log()).sum()


def mutual_divergence(p: Float[Tensor, "models features"]) -> Float[Tensor, ""]:
    """Mean KL of the common mean from every model's importances: a penalty for models that are trained together."""
    mean = p.mean(0)
    return torch.stack([divergence(mean, row) for row in p]).mean()


def prior_from_ranks(ranks: ArrayLike, decay: str = "zipf") -> Float[np.ndarray, " features"]:
    """A prior from an expert's ranking, 1 = most important; equal ranks share.

    "zipf": Q_j ∝ 1 / rank_j; "geometric": Q_j ∝ 2^-rank_j.  Raises InputError for ranks below 1 or an unknown decay.
    """
    places = np.asarray(ranks, dtype=np.float64)
    if places.ndim != 1 or len(places) == 0 or not (places >= 1).all():
        raise InputError(f"ranks must be one number of at least 1 a factor, got {ranks!r}")
    if decay not in ("zipf", "geometric"):
        raise InputError(f"decay must be 'zipf' or 'geometric', got {decay!r}")
    weights = 1 / places if decay == "zipf" else 0.5**places
    return weights / weights.sum()


def _jacobian(model: nn.Module, x: Tensor, create_graph: bool) -> Float[Tensor, "batch features outputs"]:
    """df_o(x_i)/dx_ij, assuming rows do not influence one another."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        said: Any = model(leaf)
        said = said[:, None] if said.dim() == 1 else said
        columns = [
            torch.autograd.grad(said[:, o].sum(), leaf, create_graph=create_graph, retain_graph=True)[0]
            for o in range(said.shape[1])
        ]
    return torch.stack(columns, dim=2)
