"""Maximum mean discrepancy with fixed and with learnt kernels (Gretton et al., 2012; Liu et al., 2020).

    MMD²(X, Y) = mean k(x, x') - 2 mean k(x, y) + mean k(y, y')      over all pairs (biased, never negative)

GaussianKernel averages Gaussians whose squared bandwidths are 2^-2, ..., 2^2 times the mean squared distance of a
reference sample.  DeepKernel compares what a network φ makes of the inputs as well as the inputs themselves,

    k(x, y) = [(1 - ε) exp(-||φ(x) - φ(y)||² / σ_φ) + ε] exp(-||x - y||² / σ),     0 < ε < 1,

and learns φ, ε, σ_φ and σ by maximising the power of a test of two samples of equal size n, to first order

    J = MMD²_u / sqrt(v + 1e-8),   v = 4 (mean_i h̄_i² - (mean_i h̄_i)²),   h_ij = k_xx + k_yy - k_xy - k_yx,

with h̄_i the mean of row i and MMD²_u the mean of h over i ≠ j.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from holdfast.core.errors import InputError
from holdfast.core.progress import track

Sample = Float[Tensor, "_ features"]

#: Squared bandwidths in units of the mean squared distance.
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


@runtime_checkable
class Kernel(Protocol):
    """A positive definite function of two samples: all pairs of rows."""

    def __call__(self, x: Sample, y: Sample) -> Float[Tensor, "rows columns"]: ...


class GaussianKernel:
    """The mean of Gaussians at several bandwidths around the mean squared distance of `reference`."""

    def __init__(self, reference: Float[Tensor, "n features"], bandwidths: tuple[float, ...] = BANDWIDTHS):
        self.scale = mean_squared_distance(reference)
        self.bandwidths = bandwidths

    def __call__(self, x: Sample, y: Sample) -> Float[Tensor, "rows columns"]:
        """Kernel values in (0, 1]."""
        distances = torch.cdist(x, y).square() / self.scale
        return torch.stack([torch.exp(-distances / width) for width in self.bandwidths]).mean(0)


class DeepKernel(nn.Module):
    """The learnt kernel of the module; `network` maps rows (n, features) to representations (n, _).

    Bandwidths start at the mean squared distances of the first sample that `fit` sees.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.share = nn.Parameter(torch.tensor(-2.0))  # ε on the logit scale
        self.log_width = nn.Parameter(torch.zeros(()))
        self.log_width_learnt = nn.Parameter(torch.zeros(()))

    @classmethod
    def perceptron(
        cls, features: int, width: int = 300, depth: int = 2, *, generator: torch.Generator | None = None
    ) -> DeepKernel:
        """With a network of `depth` hidden layers and as many outputs as hidden units; weights from `generator`."""
        sizes = [features, *[width] * depth]
        layers: list[nn.Module] = []
        for given, made in zip(sizes, [*sizes[1:], width], strict=True):
            linear = skip_init(nn.Linear, given, made)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.Softplus()]
        return cls(nn.Sequential(*layers[:-1]))

    def forward(self, x: Sample, y: Sample) -> Float[Tensor, "rows columns"]:
        """Kernel values in (0, 1]."""
        share = torch.sigmoid(self.share)
        plain = torch.exp(-_squared_distances(x, y) / self.log_width.exp())
        learnt = torch.exp(-_squared_distances(self.network(x), self.network(y)) / self.log_width_learnt.exp())
        return ((1 - share) * learnt + share) * plain

    @torch.no_grad()
    def set_widths(self, sample: Float[Tensor, "n features"]) -> None:
        """Bandwidths at the mean squared distances of `sample`, before and after the network."""
        self.log_width.fill_(mean_squared_distance(sample)).log_()
        self.log_width_learnt.fill_(mean_squared_distance(self.network(sample))).log_()


def mmd_statistic(x: Sample, y: Sample, kernel: Kernel) -> Float[Tensor, ""]:
    """Biased MMD² of two samples; `x` may be a single row, where the unbiased estimate does not exist."""
    return kernel(x, x).mean() - 2 * kernel(x, y).mean() + kernel(y, y).mean()


def mmd_to_reference(
    x: Float[Tensor, "n features"], reference: Float[Tensor, "m features"], kernel: Kernel
) -> Float[Tensor, " n"]:
    """Biased MMD² of every row by itself against `reference`; for kernels with k(x, x) = 1, as both here are."""
    return 1 - 2 * kernel(x, reference).mean(1) + kernel(reference, reference).mean()


def power_criterion(
    x: Float[Tensor, "n features"], y: Float[Tensor, "n features"], kernel: Kernel
) -> Float[Tensor, ""]:
    """J of the module: the larger, the surer a test tells samples of this kind apart."""
    cross = kernel(x, y)
    h = kernel(x, x) + kernel(y, y) - cross - cross.T
    n = len(h)
    rows = h.mean(1)
    variance = 4 * (rows.square().mean() - rows.mean().square())
    unbiased = (h.sum() - h.diagonal().sum()) / (n * (n - 1))
    return unbiased / (variance.clamp_min(0) + 1e-8).sqrt()


def fit_kernel(
    kernel: DeepKernel,
    x: Float[Tensor, "n features"],
    y: Float[Tensor, "m features"],
    *,
    epochs: int = 200,
    batch: int = 128,
    lr: float = 2e-4,
    generator: torch.Generator | None = None,
) -> DeepKernel:
    """Train `kernel` in place by Adam to tell `x` from `y`, and give it back in evaluation mode.

    Batches hold equal numbers of both; an epoch passes once over the smaller sample.
    Raises InputError when a sample has fewer than two rows or training diverges.
    """
    few = min(len(x), len(y))
    if few < 2 or epochs < 1 or batch < 2:
        raise InputError(f"a kernel is fitted on two samples of 2 rows or more, got {len(x)} and {len(y)} rows")
    kernel.set_widths(x)
    optimizer = torch.optim.Adam(kernel.parameters(), lr=lr)
    kernel.train()
    for _ in track(range(epochs), "fitting the kernel", epochs):
        orders = (torch.randperm(len(sample), generator=generator)[:few].split(batch) for sample in (x, y))
        for rows, others in zip(*orders, strict=True):
            if len(rows) < 2:
                continue
            loss = -power_criterion(x[rows], y[others], kernel)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not torch.isfinite(loss):
                raise InputError(f"the kernel diverged (test power {-loss.item()}); use a smaller lr than {lr:g}")
    return kernel.eval()


def mean_squared_distance(sample: Float[Tensor, "n features"]) -> float:
    """Over all pairs of different rows.  Raises InputError when all rows are the same."""
    centred = sample.double() - sample.double().mean(0)
    distance = 2 * float(centred.square().sum(1).mean()) * len(sample) / max(len(sample) - 1, 1)
    if not distance > 0:
        raise InputError("all rows of the reference sample are the same, so distances have no scale")
    return distance


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    # Through the inner product: cdist has no finite gradient where two rows coincide, as they do on the diagonal.
    gram = x @ y.T
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * gram).clamp_min(0)
