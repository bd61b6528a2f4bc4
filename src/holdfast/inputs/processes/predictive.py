"""What a neural process says about functions: for every task a few of them, each with Gaussian noise of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FunctionPosterior:
    """A mixture with equal weights over `samples` functions, each independent Gaussians at the target points."""

    means: Float[Tensor, "samples tasks target y_dim"]
    scales: Float[Tensor, "samples tasks target y_dim"]

    def log_densities(self, y: Float[Tensor, "tasks target y_dim"]) -> Float[Tensor, "samples tasks target"]:
        """log p(y_i | x_i, sample), summed over the dimensions of y."""
        standard = (y - self.means) / self.scales
        return (-0.5 * standard**2 - self.scales.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def log_likelihood(
        self, y: Float[Tensor, "tasks target y_dim"], mask: Bool[Tensor, "tasks target"]
    ) -> Float[Tensor, " tasks"]:
        """log (1/K) sum_k prod_i p(y_i | x_i, sample k), divided by the number of targets: joint over points."""
        return joint_log_likelihood(self.log_densities(y), mask)

    @property
    def mean(self) -> Float[Tensor, "tasks target y_dim"]:
        """Mean of the mixture at every point."""
        return self.means.mean(0)

    @property
    def spread(self) -> Float[Tensor, "tasks target y_dim"]:
        """Standard deviation of the samples' means: uncertainty about the function, without the noise."""
        return self.means.std(0, correction=0)

    @property
    def deviation(self) -> Float[Tensor, "tasks target y_dim"]:
        """Standard deviation of the mixture: uncertainty about an observation."""
        return (self.means.var(0, correction=0) + (self.scales**2).mean(0)).sqrt()


def joint_log_likelihood(
    log_densities: Float[Tensor, "samples tasks target"], mask: Bool[Tensor, "tasks target"]
) -> Float[Tensor, " tasks"]:
    """Log of the mean over samples of the product over points, per point."""
    of_samples = (log_densities * mask).sum(2)
    return (of_samples.logsumexp(0) - math.log(len(of_samples))) / mask.sum(1)
