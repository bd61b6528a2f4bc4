"""Hidden features of a torch model, read through forward hooks.

    features = Features(model, ("layer3", "layer4"))
    f3, f4 = features(x)            # two float64 arrays (n, channels)

Pooling turns any activation into one vector an example: "mean" averages all positions of channel-second activations
(n, channels, ...), "tokens" those of channel-last ones (n, ..., channels), "flatten" keeps every coordinate.  The
model is switched to evaluation mode for the call and put back after it, since batch statistics would make an
example's features depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.subject.modes import training_parts

Pool = Literal["mean", "tokens", "flatten"]


def placement(model: object) -> tuple[torch.dtype, torch.device]:
    """Floating type and device of a model's first floating parameter or buffer; float32 on the CPU without one."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype, tensor.device
    return torch.float32, torch.device("cpu")


def as_input(model: nn.Module, X: ArrayLike | Tensor) -> Tensor:
    """X as the model takes it: on its device and in its floating type, the values as they are (bytes too).

    Integers stay what they are for a model that embeds them.  Raises InputError on values that are not finite.
    """
    dtype, device = placement(model)
    x = X if isinstance(X, Tensor) else torch.as_tensor(np.asarray(X))
    if not torch.isfinite(x).all():
        raise InputError("inputs hold NaN or infinite values; a detector cannot place them")
    indices = not x.is_floating_point() and any(isinstance(module, nn.Embedding) for module in model.modules())
    return x.to(device) if indices else x.to(device, dtype)


@dataclass(frozen=True)
class Features:
    """Callable that maps a batch of inputs to the pooled features of named modules.

    `layers` are names as in `model.named_modules()`; `at` picks what enters or what leaves those modules.
    Raises InputError when a name is unknown, or a module gives no tensor or is not reached by the forward pass.
    """

    model: nn.Module
    layers: Sequence[str]
    pool: Pool = "mean"
    at: Literal["output", "input"] = "output"
    batch: int = 512

    def __post_init__(self) -> None:
        known = dict(self.model.named_modules())
        if not self.layers:
            raise InputError("no layer was named; name at least one of `model.named_modules()`")
        if missing := [name for name in self.layers if name not in known]:
            some = ", ".join([name for name in known if name][:12])
            raise InputError(f"the model has no layer {missing[0]!r}; it has {some}")

    def __call__(self, x: Float[Tensor, "n ..."]) -> list[Float[np.ndarray, "n features"]]:
        """Pooled features of every layer as float64 arrays, without gradients."""
        return self.with_logits(x)[0]

    @torch.no_grad()
    def with_logits(
        self, x: Float[Tensor, "n ..."]
    ) -> tuple[list[Float[np.ndarray, "n features"]], Float[np.ndarray, "n classes"]]:
        """Pooled features and the model's output for the same inputs, from one forward pass."""
        parts = [self.tensors(part) for part in x.split(self.batch)]
        pooled = [np.concatenate([_array(part[0][index]) for part in parts]) for index in range(len(self.layers))]
        return pooled, np.concatenate([_array(part[1]) for part in parts])

    def tensors(self, x: Float[Tensor, "n ..."]) -> tuple[list[Float[Tensor, "n features"]], Tensor]:
        """Pooled features and output of one batch as tensors, on the graph when gradients are enabled."""
        found, output = self.activations(x)
        return [_pooled(part, self.pool) for part in found], output

    def activations(self, x: Float[Tensor, "n ..."]) -> tuple[list[Tensor], Tensor]:
        """The same without pooling, each of the shape its module gives."""
        caught: dict[str, Tensor] = {}
        with self._hooked(caught), evaluating(self.model):
            output = self.model(x)
        if unreached := [name for name in self.layers if name not in caught]:
            raise InputError(f"layer {unreached[0]!r} was not reached by the forward pass, so it has no features")
        return [caught[name] for name in self.layers], output

    @contextmanager
    def _hooked(self, caught: dict[str, Tensor]) -> Iterator[None]:
        modules = dict(self.model.named_modules())
        handles = [modules[name].register_forward_hook(self._catcher(name, caught)) for name in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _catcher(self, name: str, caught: dict[str, Tensor]):  # type: ignore[no-untyped-def]  # torch's hook type
        def catch(module: nn.Module, given: tuple[object, ...], output: object) -> None:
            value = output if self.at == "output" else given[0]
            if not isinstance(value, Tensor):
                raise InputError(f"layer {name!r} gives a {type(value).__name__}, not a tensor; name a layer inside it")
            caught[name] = value

        return catch


def last_linear(model: nn.Module) -> str | None:
    """Name of the last `nn.Linear` in definition order (in most classifiers the one that gives the logits), if any."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module is put back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def require_evaluation(model: object) -> None:
    """Raises InputError when a layer of the model is in training mode and then acts otherwise than in use.

    A method is judged by the model that it is of; other callables have no mode.
    """
    model = getattr(model, "__self__", model)
    parts = training_parts(model) if isinstance(model, nn.Module) else []
    if parts:
        shown = ", ".join(parts[:3]) + (", ..." if len(parts) > 3 else "")
        raise InputError(f"{shown} in training mode: what is found then is not true in use; call model.eval()")


def _pooled(activation: Tensor, pool: Pool) -> Tensor:
    if activation.dim() <= 2 or pool == "flatten":
        return activation.flatten(1)
    if pool == "mean":
        return activation.flatten(2).mean(2)
    return activation.flatten(1, -2).mean(1)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
