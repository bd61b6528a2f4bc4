"""Regression tasks with contexts of different sizes, as padded batches with masks; draws from Gaussian processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.core.errors import InputError


@dataclass(frozen=True, eq=False)
class Tasks:
    """A batch of tasks: context points to learn from and target points to predict; masks mark what is not padding."""

    xc: Float[Tensor, "tasks context x_dim"]
    yc: Float[Tensor, "tasks context y_dim"]
    context_mask: Bool[Tensor, "tasks context"]
    xt: Float[Tensor, "tasks target x_dim"]
    yt: Float[Tensor, "tasks target y_dim"]
    target_mask: Bool[Tensor, "tasks target"]

    def __len__(self) -> int:
        return len(self.xc)

    def part(self, rows: Any) -> Tasks:
        """Some of the tasks."""
        return Tasks(*(getattr(self, name)[rows] for name in Tasks.__dataclass_fields__))


def gathered(tasks: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> Tasks:
    """One padded batch from (xc, yc, xt, yt) of every task, arrays (points, dim).

    Raises InputError when there is no task, a part is empty, lengths or dimensions differ, or a number is not finite.
    """
    if not tasks:
        raise InputError("there is no task; give at least one tuple (xc, yc, xt, yt)")
    parts = [[np.asarray(part, dtype=np.float32) for part in task] for task in tasks]
    dims = {(part[0].shape[-1], part[1].shape[-1]) for part in parts if all(p.ndim == 2 for p in part)}
    for place, part in enumerate(parts):
        if len(part) != 4 or any(p.ndim != 2 or len(p) == 0 for p in part) or len(dims) != 1:
            raise InputError(
                f"task {place} must be (xc, yc, xt, yt), each (points, dim) and not empty, dims as in others"
            )
        if len(part[0]) != len(part[1]) or len(part[2]) != len(part[3]) or part[0].shape[1] != part[2].shape[1]:
            raise InputError(f"task {place} has x and y of different lengths, or context and target of different dims")
        if not all(np.isfinite(p).all() for p in part):
            raise InputError(f"task {place} holds NaN or infinity; drop those points")
    columns = [_padded([part[index] for part in parts]) for index in range(4)]
    return Tasks(columns[0][0], columns[1][0], columns[0][1], columns[2][0], columns[3][0], columns[2][1])


@dataclass(frozen=True)
class GaussianProcessTasks:
    """Tasks on [-2, 2] from Gaussian processes with an RBF kernel whose scale differs from task to task.

    f ~ GP(0, s^2 exp(-(x - x')^2 / (2 l^2))), y = f + noise; length l and scale s are uniform in their ranges; there
    are `fewest` to `points` - `fewest` context points and at least `fewest` targets, at most `points` together.
    """

    lengths: tuple[float, float] = (0.1, 0.6)
    scales: tuple[float, float] = (0.1, 1.0)
    noise: float = 0.02
    points: int = 50
    fewest: int = 3

    def __post_init__(self) -> None:
        if not (0 < self.lengths[0] <= self.lengths[1] and 0 < self.scales[0] <= self.scales[1] and self.noise > 0):
            raise InputError(f"lengths, scales and noise must be positive and ranges must rise, got {self}")
        if not 1 <= self.fewest <= self.points // 2:
            raise InputError(f"fewest must lie between 1 and half of points, got {self.fewest} of {self.points}")

    def sample(self, tasks: int, generator: torch.Generator, *, same_sizes: bool = False) -> Tasks:
        """A batch of tasks, padded to the largest; with `same_sizes` all have as many points, and nothing is padded."""
        return self.sample_with_kernels(tasks, generator, same_sizes=same_sizes)[0]

    def sample_with_kernels(
        self, tasks: int, generator: torch.Generator, *, same_sizes: bool = False
    ) -> tuple[Tasks, Float[Tensor, "tasks 2"]]:
        """A batch of tasks with the length and scale behind each."""
        draws = torch.rand((tasks, 2), generator=generator)
        low, high = (torch.tensor([self.lengths[end], self.scales[end]]) for end in (0, 1))
        kernels = low + draws * (high - low)
        x = torch.rand((tasks, self.points), generator=generator).double() * 4 - 2
        length, scale = kernels.double().T[..., None, None]
        covariance = scale**2 * torch.exp(-0.5 * ((x[:, :, None] - x[:, None]) / length) ** 2)
        covariance += self.noise**2 * torch.eye(self.points, dtype=torch.float64)
        normal = torch.randn((tasks, self.points), generator=generator).double()
        y = (torch.linalg.cholesky(covariance) @ normal[..., None]).float()
        x32 = x.float()[..., None]
        sizes = 1 if same_sizes else tasks
        context = torch.randint(self.fewest, self.points - self.fewest + 1, (sizes,), generator=generator)
        spare = self.points - self.fewest - context
        target = self.fewest + (torch.rand((sizes,), generator=generator) * (spare + 1)).long()
        context, target = context.expand(tasks), target.expand(tasks)
        most_context, most_target = int(context.max()), int(target.max())
        places = (context[:, None] + torch.arange(most_target)).clamp(max=self.points - 1)[..., None]
        return (
            Tasks(
                x32[:, :most_context],
                y[:, :most_context],
                torch.arange(most_context) < context[:, None],
                x32.gather(1, places),
                y.gather(1, places),
                torch.arange(most_target) < target[:, None],
            ),
            kernels,
        )


def exact_log_likelihoods(tasks: Tasks, kernels: Float[Tensor, "tasks 2"], noise: float) -> Float[np.ndarray, " tasks"]:
    """log p(yt | context) per target point under the process that made each task: what no model can beat on average.

    The posterior is scikit-learn's, with the true kernel and noise; y has one dimension.
    """
    from scipy.stats import multivariate_normal
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    found = np.empty(len(tasks))
    for row, (length, scale) in enumerate(kernels.double().tolist()):
        context, target = tasks.context_mask[row], tasks.target_mask[row]
        kernel = ConstantKernel(scale**2, "fixed") * RBF(length, "fixed")
        process = GaussianProcessRegressor(kernel, alpha=noise**2, optimizer=None)
        process.fit(tasks.xc[row][context].double().numpy(), tasks.yc[row][context, 0].double().numpy())
        mean, covariance = process.predict(tasks.xt[row][target].double().numpy(), return_cov=True)
        covariance = covariance + noise**2 * np.eye(len(covariance))
        truth = tasks.yt[row][target, 0].double().numpy()
        found[row] = multivariate_normal(mean, covariance, allow_singular=True).logpdf(truth) / len(truth)
    return found


def _padded(parts: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    most = max(len(part) for part in parts)
    table = np.zeros((len(parts), most, parts[0].shape[1]), dtype=np.float32)
    mask = np.zeros((len(parts), most), dtype=bool)
    for row, part in enumerate(parts):
        table[row, : len(part)] = part
        mask[row, : len(part)] = True
    return torch.from_numpy(table), torch.from_numpy(mask)
