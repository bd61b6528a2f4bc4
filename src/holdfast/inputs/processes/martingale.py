"""Martingale posterior neural process (Lee, Yun, Nam, Fong and Lee, 2023).

Uncertainty about a function is uncertainty about data not yet seen: imagine N' more representations R' of such data,
add them to the context's and decode.  Doing so K times gives K functions.

    R' = MAB(Z, MAB(R_c, Z)),    Z (N', hidden) rows of independent Gaussian noise, fresh for every task and sample
    MAB(Q, K) = norm(H + relu(fc(H))),    H = norm(Q + attention(Q, K, K))

R' depends on the order of Z's rows only through its own order, so the imagined set is exchangeable; it sees the
context and never the targets.  Training maximises, per target point,

    log (1/K) sum_k prod_i p(y_i | phi_k)  +  log p(y | agg(R_c))  +  (1/K) sum_k log p(y | agg(R'_k)),

phi_k the aggregate of R_c and R'_k: the mixture, the context alone, and the imagined data alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.inputs.perceptrons import perceptron
from holdfast.inputs.processes.neural import NeuralProcess, check_targets, masked_mean
from holdfast.inputs.processes.predictive import FunctionPosterior, joint_log_likelihood


class AttentionBlock(nn.Module):
    """MAB above: every query attends to all keys, then a layer of its own; `heads` must divide `hidden`."""

    def __init__(self, hidden: int, heads: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.keys, self.merge, self.own = (perceptron((hidden, made), generator) for made in _sizes(hidden))
        self.norms = nn.ModuleList([nn.LayerNorm(hidden) for _ in range(2)])

    def forward(
        self,
        queries: Float[Tensor, "many q hidden"],
        keys: Float[Tensor, "many k hidden"],
        mask: Bool[Tensor, "many k"] | None = None,
    ) -> Float[Tensor, "many q hidden"]:
        """`mask` marks the keys that are there."""
        q = self._split(self.query(queries))
        k, v = (self._split(part) for part in self.keys(keys).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
        h = self.norms[0](queries + self.merge(mixed.transpose(1, 2).flatten(2)))
        return self.norms[1](h + F.relu(self.own(h)))

    def _split(self, rows: Tensor) -> Tensor:
        return rows.unflatten(2, (self.heads, -1)).transpose(1, 2)


class MartingaleNeuralProcess(NeuralProcess):
    """Neural process whose functions differ by the data they imagine.

    Parameters
    ----------
    x_dim, y_dim : int, of the points
    hidden : int, width of all representations
    pseudo : int, N', imagined representations a sample
    samples : int, K in training
    attention : let targets attend to context and imagined data (then with keys of their own) instead of averaging
    heads : int, of the generator's attention; divides `hidden`
    generator : draws the initial weights
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        hidden: int = 128,
        pseudo: int = 20,
        samples: int = 5,
        attention: bool = False,
        *,
        heads: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(x_dim, y_dim, hidden, attention=attention, generator=generator)
        if pseudo < 1 or samples < 1 or hidden % heads:
            raise InputError(
                f"pseudo and samples must be at least 1 and heads must divide hidden, got pseudo={pseudo}, "
                f"samples={samples}, heads={heads}, hidden={hidden}"
            )
        self.pseudo, self.samples = pseudo, samples
        self.to_noise = AttentionBlock(hidden, heads, generator)
        self.to_context = AttentionBlock(hidden, heads, generator)
        self.pseudo_key = perceptron((hidden, hidden), generator) if attention else None

    def imagined(
        self,
        r: Float[Tensor, "tasks context hidden"],
        mask: Bool[Tensor, "tasks context"],
        noise: Float[Tensor, "samples tasks pseudo hidden"],
    ) -> Float[Tensor, "samples tasks pseudo hidden"]:
        """R' of every sample and task from rows of noise: permuting these permutes R' and does nothing else."""
        samples = len(noise)
        z = noise.flatten(0, 1)
        # the context looks at the noise; the samples share its projections
        context = r[None].expand(samples, -1, -1, -1).flatten(0, 1)
        informed = self.to_noise(context, z)
        found = self.to_context(z, informed, mask[None].expand(samples, -1, -1).flatten(0, 1))
        return found.unflatten(0, (samples, -1))

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
        """The negative of the three terms above, mean over tasks.

        Raises InputError as `predict`, and on targets that do not fit or are not finite.
        """
        targets = check_targets(xt, yt, target_mask)
        mask = self.check(xc, yc, xt, context_mask)
        r = self.encoder(torch.cat([xc, yc], dim=-1))
        pseudo = self.imagined(r, mask, self._noise(self.samples, r, generator))
        together, context, alone = self._aggregated(xc, r, mask, xt, pseudo)
        densities = self.decoded(xt, torch.cat([together, alone, context[None]])).log_densities(yt)
        mixture = joint_log_likelihood(densities[: self.samples], targets)
        of_each = (densities[self.samples :] * targets).sum(2) / targets.sum(1)
        return -(mixture + of_each[:-1].mean(0) + of_each[-1]).mean()

    def predict(
        self,
        xc: Float[Tensor, "tasks context x_dim"],
        yc: Float[Tensor, "tasks context y_dim"],
        xt: Float[Tensor, "tasks target x_dim"],
        samples: int = 50,
        *,
        context_mask: Bool[Tensor, "tasks context"] | None = None,
        generator: torch.Generator | None = None,
    ) -> FunctionPosterior:
        """`samples` functions a task, each with means and noise at the targets.

        Raises InputError for dimensions that do not fit, an empty context, fewer than one sample, or values that are
        not finite.
        """
        if samples < 1:
            raise InputError(f"a prediction needs at least one sample, got {samples}")
        mask = self.check(xc, yc, xt, context_mask)
        r = self.encoder(torch.cat([xc, yc], dim=-1))
        pseudo = self.imagined(r, mask, self._noise(samples, r, generator))
        together, _, _ = self._aggregated(xc, r, mask, xt, pseudo)
        return self.decoded(xt, together)

    @torch.no_grad()
    def sample_functions(
        self,
        xc: Float[Tensor, "tasks context x_dim"],
        yc: Float[Tensor, "tasks context y_dim"],
        x: Float[Tensor, "tasks target x_dim"],
        samples: int = 50,
        *,
        context_mask: Bool[Tensor, "tasks context"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "samples tasks target y_dim"]:
        """Mean functions at x, one for every imagined future, without observation noise."""
        return self.predict(xc, yc, x, samples, context_mask=context_mask, generator=generator).means

    def _noise(self, samples: int, r: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.randn((samples, len(r), self.pseudo, self.hidden), generator=generator, device=r.device)

    def _aggregated(
        self, xc: Tensor, r: Tensor, mask: Tensor, xt: Tensor, pseudo: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """phi of context and imagined data together, of the context alone, of the imagined data alone.

        One a target with attention, one for all targets without.
        """
        if self.key is None or self.pseudo_key is None:
            count = mask.sum(1, keepdim=True)
            context, alone = masked_mean(r, mask), pseudo.mean(2)
            together = (context * count + alone * self.pseudo) / (count + self.pseudo)
            return together[:, :, None], context[:, None], alone[:, :, None]
        samples = len(pseudo)
        query, key, pseudo_key = self.key(xt), self.key(xc), self.pseudo_key(pseudo)
        keys = torch.cat([key[None].expand(samples, -1, -1, -1), pseudo_key], dim=2)
        values = torch.cat([r[None].expand(samples, -1, -1, -1), pseudo], dim=2)
        there = torch.cat([mask, mask.new_ones(len(mask), self.pseudo)], dim=1)[None, :, None]
        queries = query[None].expand(samples, -1, -1, -1)
        return (
            F.scaled_dot_product_attention(queries, keys, values, attn_mask=there),
            F.scaled_dot_product_attention(query, key, r, attn_mask=mask[:, None]),
            F.scaled_dot_product_attention(queries, pseudo_key, pseudo),
        )


def _sizes(hidden: int) -> tuple[int, int, int, int]:
    """Widths of queries, keys and values together, the merged heads, and the layer of its own."""
    return hidden, 2 * hidden, hidden, hidden
