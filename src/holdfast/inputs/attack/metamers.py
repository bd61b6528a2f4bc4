"""Model metamers: images that a network represents alike though they look nothing alike.

From noise x', by normalised gradient descent on the representation g of one layer,

    minimise  ||g(x') - g(x)||_2 / ||g(x)||_2,      x' <- clip(x' - step_t grad / ||grad||_2),

the step falling geometrically to a thousandth of the first.  A metamer that people cannot tell from x, at least in the
periphery of their vision, shows that the network keeps what they keep (Harrington & Deza, 2022; Feather et al., 2019);
`observer` says which ones can be told apart.  Comparisons are fair only at matched errors, so they are returned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.inputs.features import Features
from holdfast.threats.base import Valid, per_example, uniform, valid_bounds, value_range
from holdfast.threats.places import Patch

#: Share of the first step that the last one has.
_LAST = 1e-3


@dataclass(frozen=True, eq=False)
class MetamerRun:
    """Synthesised images, the error of each, and the noise each was made from."""

    images: Float[Tensor, "n *shape"]
    relative_error: Float[Tensor, " n"]
    start: Float[Tensor, "n *shape"]

    def accepted(self, tolerance: float = 0.05) -> Tensor:
        """Which images match their reference within a relative error."""
        return self.relative_error <= tolerance


@dataclass(frozen=True)
class Metamer:
    """Synthesises metamers of one layer, all images of a batch together.

    Parameters
    ----------
    layer : name as in `model.named_modules()`; its output is the representation.
    steps, step : descent steps, and the length of the first in the Euclidean norm of the input.
    restarts : starts from different noise; the best of all iterates is kept.

    Raises InputError for counts below one or a step that is not positive.
    """

    layer: str
    steps: int = 2000
    step: float = 1.0
    restarts: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts) < 1 or not self.step > 0:
            raise InputError(
                f"metamers need steps and restarts of at least 1 and a positive step, got {self.steps}, "
                f"{self.restarts} and {self.step}"
            )

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *shape"],
        generator: torch.Generator | None = None,
        *,
        valid: Valid = (0, 1),
        start: Float[Tensor, "_ *_shape"] | None = None,
    ) -> MetamerRun:
        """Metamers of x, from uniform noise over the valid range or from `start`.

        Raises InputError for an unknown layer, a representation that is zero (any image without an answer matches
        it), and a start of another shape, out of range or equal to its reference.
        """
        value_range(valid, Patch(1, 1))
        features = Features(model, (self.layer,), pool="flatten")
        with torch.no_grad():
            target = features.tensors(x)[0][0]
        size = torch.linalg.vector_norm(target, dim=1)
        if bool((size == 0).any()):
            raise InputError(
                f"layer {self.layer!r} gives all zeros for {int((size == 0).sum())} references, which have no metamers"
            )
        low, high = valid_bounds(x, valid)
        best: MetamerRun | None = None
        for _ in range(self.restarts):
            seed = low + (high - low) * uniform(x, generator) if start is None else _checked(start, x, low, high)
            run = self._descend(features, target, size, seed, low, high)
            if best is not None:
                keep = best.relative_error <= run.relative_error
                run = MetamerRun(
                    torch.where(per_example(keep, x), best.images, run.images),
                    torch.where(keep, best.relative_error, run.relative_error),
                    torch.where(per_example(keep, x), best.start, run.start),
                )
            best = run
        assert best is not None
        return best

    def _descend(
        self, features: Features, target: Tensor, size: Tensor, seed: Tensor, low: Tensor, high: Tensor
    ) -> MetamerRun:
        point, best = seed, seed
        least = torch.full_like(size, torch.inf)
        for step in range(self.steps + 1):
            with torch.enable_grad():
                leaf = point.detach().requires_grad_(True)
                error = torch.linalg.vector_norm(features.tensors(leaf)[0][0] - target, dim=1) / size
                (grad,) = torch.autograd.grad(error.sum(), leaf)
            error = error.detach()
            better = error < least
            best, least = torch.where(per_example(better, point), point, best), torch.where(better, error, least)
            # At an exact match the norm has no gradient; there is nowhere better to go.
            grad = torch.nan_to_num(grad)
            norm = torch.linalg.vector_norm(grad.flatten(1), dim=1).clamp(min=torch.finfo(grad.dtype).tiny)
            length = self.step * _LAST ** (step / self.steps)
            point = torch.clamp(point - length * grad / per_example(norm, grad), low, high)
        return MetamerRun(best, least, seed)


def _checked(start: Tensor, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    if start.shape != x.shape:
        raise InputError(f"the start has shape {tuple(start.shape)}, the references {tuple(x.shape)}")
    if bool((start == x).flatten(1).all(1).any()):
        raise InputError("a start equals its reference, which is its own metamer; start from noise")
    if bool(((start < low) | (start > high)).any()):
        raise InputError("the start leaves the valid range")
    return start.to(x)
