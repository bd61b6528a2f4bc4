"""Conditional neural processes (Garnelo et al., 2018), with a mean or with attention (Kim et al., 2019).

    r_i = encoder([x_i, y_i]),   phi = mean_i r_i  or  attention of the query x to (x_i, r_i)
    p(y | x, context) = N(mu, (0.1 + 0.9 softplus(s))^2),   (mu, s) = decoder([x, phi])

The floor on the standard deviation keeps the likelihood bounded.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.inputs.perceptrons import perceptron
from holdfast.inputs.processes.predictive import FunctionPosterior, joint_log_likelihood
from holdfast.inputs.processes.tasks import Tasks

FLOOR = 0.1


class NeuralProcess(nn.Module):
    """Encoder, aggregation and decoder that all processes here share.

    `attention` lets every target attend to the context through embeddings of x; otherwise representations are averaged.
    `generator` draws the initial weights, torch's own when None.
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        hidden: int = 128,
        *,
        attention: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if x_dim < 1 or y_dim < 1 or hidden < 1:
            raise InputError(f"dimensions must be at least 1, got x_dim={x_dim}, y_dim={y_dim}, hidden={hidden}")
        self.x_dim, self.y_dim, self.hidden, self.attention = x_dim, y_dim, hidden, attention
        self.encoder = perceptron((x_dim + y_dim, hidden, hidden, hidden), generator)
        self.decoder = perceptron((x_dim + hidden, hidden, hidden, 2 * y_dim), generator)
        self.key = perceptron((x_dim, hidden, hidden), generator) if attention else None

    @abstractmethod
    def loss(
        self,
        xc: Float[Tensor, "tasks context x_dim"],
        yc: Float[Tensor, "tasks context y_dim"],
        xt: Float[Tensor, "tasks target x_dim"],
        yt: Float[Tensor, "tasks target y_dim"],
        *,
        context_mask: Bool[Tensor, "tasks context"] | None = None,
        target_mask: Bool[Tensor, "tasks target"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """What training minimises."""

    def decoded(
        self, x: Float[Tensor, "tasks target x_dim"], phi: Float[Tensor, "samples tasks some hidden"]
    ) -> FunctionPosterior:
        """Gaussians at x for every sample; `phi` holds one summary a target, or one for all of them."""
        first, rest = cast(nn.Linear, self.decoder[0]), self.decoder[1:]
        # the first layer on [x, phi], without copies of x for every sample and of phi for every target
        of_x = F.linear(x, first.weight[:, : self.x_dim], first.bias)
        mean, raw = rest(of_x + F.linear(phi, first.weight[:, self.x_dim :])).chunk(2, dim=-1)
        return FunctionPosterior(mean, FLOOR + (1 - FLOOR) * F.softplus(raw))

    def check(self, xc: Tensor, yc: Tensor, xt: Tensor, context_mask: Tensor | None) -> Bool[Tensor, "tasks context"]:
        """The context's mask.  Raises InputError for dimensions that do not fit, an empty context, or NaN in y."""
        shapes = tuple(tuple(part.shape) for part in (xc, yc, xt))
        if any(part.dim() != 3 for part in (xc, yc, xt)) or xc.shape[:2] != yc.shape[:2] or len(xc) != len(xt):
            raise InputError(f"xc, yc and xt must be (tasks, points, dim) of the same tasks, got {shapes}")
        if (xc.shape[2], yc.shape[2], xt.shape[2]) != (self.x_dim, self.y_dim, self.x_dim):
            raise InputError(f"this process was made for x_dim={self.x_dim} and y_dim={self.y_dim}, got {shapes}")
        mask = torch.ones(xc.shape[:2], dtype=torch.bool, device=xc.device) if context_mask is None else context_mask
        if mask.shape != xc.shape[:2] or not bool(mask.any(1).all()):
            raise InputError("every task needs at least one context point; there is no learnt prior to fall back on")
        if not bool(torch.isfinite(yc[mask]).all()) or not bool(torch.isfinite(xc[mask]).all()):
            raise InputError("the context holds NaN or infinity; mask those points out")
        return mask


class ConditionalNeuralProcess(NeuralProcess):
    """One deterministic summary of the context: the baseline that imagines nothing."""

    def loss(
        self,
        xc: Float[Tensor, "tasks context x_dim"],
        yc: Float[Tensor, "tasks context y_dim"],
        xt: Float[Tensor, "tasks target x_dim"],
        yt: Float[Tensor, "tasks target y_dim"],
        *,
        context_mask: Bool[Tensor, "tasks context"] | None = None,
        target_mask: Bool[Tensor, "tasks target"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Negative log-likelihood per target point.  Raises InputError as `predict`, and on targets that do not fit."""
        mask = check_targets(xt, yt, target_mask)
        found = self.predict(xc, yc, xt, context_mask=context_mask)
        return -joint_log_likelihood(found.log_densities(yt), mask).mean()

    def predict(
        self,
        xc: Float[Tensor, "tasks context x_dim"],
        yc: Float[Tensor, "tasks context y_dim"],
        xt: Float[Tensor, "tasks target x_dim"],
        samples: int = 1,
        *,
        context_mask: Bool[Tensor, "tasks context"] | None = None,
        generator: torch.Generator | None = None,
    ) -> FunctionPosterior:
        """One function a task; `samples` and `generator` change nothing.

        Raises InputError for dimensions that do not fit, an empty context, or values that are not finite.
        """
        mask = self.check(xc, yc, xt, context_mask)
        r = self.encoder(torch.cat([xc, yc], dim=-1))
        if self.key is None:
            phi = masked_mean(r, mask)[:, None]
        else:
            phi = F.scaled_dot_product_attention(self.key(xt), self.key(xc), r, attn_mask=mask[:, None])
        return self.decoded(xt, phi[None])


def masked_mean(r: Float[Tensor, "*many points hidden"], mask: Bool[Tensor, "tasks points"]) -> Tensor:
    """Mean over the points that are there."""
    weights = (mask / mask.sum(1, keepdim=True)).to(r.dtype)
    return (r * weights[..., None]).sum(-2)


def check_targets(xt: Tensor, yt: Tensor, target_mask: Tensor | None) -> Bool[Tensor, "tasks target"]:
    """The targets' mask.  Raises InputError when y does not fit x, a task has no target, or y is not finite."""
    mask = torch.ones(yt.shape[:2], dtype=torch.bool, device=yt.device) if target_mask is None else target_mask
    if yt.dim() != 3 or yt.shape[:2] != xt.shape[:2] or mask.shape != yt.shape[:2] or not bool(mask.any(1).all()):
        raise InputError(
            f"targets must be (tasks, points, dim) with at least one point a task, got {tuple(xt.shape)} and "
            f"{tuple(yt.shape)}"
        )
    if not bool(torch.isfinite(yt[mask]).all()):
        raise InputError("the targets hold NaN or infinity; mask those points out")
    return mask


def fit_process(
    model: NeuralProcess,
    batches: Callable[[int], Tasks],
    steps: int,
    generator: torch.Generator,
    *,
    step: float = 5e-4,
) -> list[float]:
    """Adam with a cosine schedule and clipped gradients on the tasks that `batches(index)` gives; the losses."""
    optimizer = torch.optim.Adam(model.parameters(), lr=step, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    model.train()
    for index in range(steps):
        tasks = batches(index)
        optimizer.zero_grad()
        loss = model.loss(
            tasks.xc,
            tasks.yc,
            tasks.xt,
            tasks.yt,
            context_mask=tasks.context_mask,
            target_mask=tasks.target_mask,
            generator=generator,
        )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses
