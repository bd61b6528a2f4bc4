"""Weights on a coarse grid, as they are after compression or in faulty memory.

Symmetric weight-only quantisation to b bits:   s = max|W| / (2^(b-1) - 1),   W' = s round(W / s),

one scale s for each output channel, or one for the tensor, so |W' - W| <= s / 2.  Biases, norms and activations stay in
floating point; W' is again a float tensor ("fake quantisation"), so any model can be run with it.  `flip_bits` turns
each bit of the 8-bit codes over with a given probability (two's complement), as low-voltage memory does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from holdfast.core.errors import InputError

Weights = dict[str, Tensor]
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def weight_names(model: nn.Module) -> Mapping[str, int]:
    """Names of the weights, with the axis of their output channels.

    A weight is a floating-point parameter of at least two dimensions: matrices and kernels of linear, convolutional,
    attention, recurrent and embedding layers, but no biases and no norms.
    """
    found: dict[str, int] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.ndim >= 2 and parameter.is_floating_point():
                found[name] = 1 if isinstance(module, _TRANSPOSED) else 0
    return found


def quantised_weights(model: nn.Module, bits: int = 8, *, per_channel: bool = True) -> Weights:
    """All weights of `model` on a grid of `bits` bits, by name; the model is not touched.

    Run the model with them by `torch.func.functional_call(model, weights, (x,))`.
    Raises InputError for fewer than 2 or more than 16 bits.
    """
    return {
        name: quantise(model.get_parameter(name).detach(), bits, axis if per_channel else None)
        for name, axis in weight_names(model).items()
    }


def quantise(weight: Float[Tensor, "..."], bits: int, axis: int | None = 0) -> Float[Tensor, "..."]:
    """The nearest points of the grid, one scale for each slice along `axis` (None: one for all)."""
    codes, scale = quantisation_codes(weight, bits, axis)
    return codes.to(weight.dtype) * scale


def quantisation_codes(
    weight: Float[Tensor, "..."], bits: int, axis: int | None = 0
) -> tuple[Int[Tensor, "..."], Float[Tensor, "..."]]:
    """Integer codes in [-(2^(b-1) - 1), 2^(b-1) - 1] and the scale they are multiplied by, which broadcasts."""
    if not 2 <= bits <= 16:
        raise InputError(f"weights can be quantised to 2 to 16 bits, got {bits}")
    largest = 2 ** (bits - 1) - 1
    if axis is None:
        reach = weight.abs().max().reshape((1,) * weight.ndim)
    else:
        reach = weight.abs().amax([d for d in range(weight.ndim) if d != axis], keepdim=True)
    scale = reach / largest
    steps = weight / torch.where(scale > 0, scale, torch.ones_like(scale))
    return steps.round().clamp(-largest, largest).to(torch.int32), scale


def flip_bits(model: nn.Module, rate: float, *, generator: torch.Generator) -> Weights:
    """Weights whose 8-bit codes had every bit turned over with probability `rate`; the model is not touched.

    Random numbers are drawn on the generator's device.  Raises InputError for a rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise InputError(f"the rate of bit errors must lie in [0, 1], got {rate}")
    flipped: Weights = {}
    for name, axis in weight_names(model).items():
        weight = model.get_parameter(name).detach()
        codes, scale = quantisation_codes(weight, 8, axis)
        hit = torch.rand((8, *weight.shape), generator=generator, device=generator.device) < rate
        place = 2 ** torch.arange(8, device=generator.device).reshape(8, *(1,) * weight.ndim)
        mask = (hit * place).sum(0).to(codes)
        damaged = (codes & 255) ^ mask
        flipped[name] = torch.where(damaged >= 128, damaged - 256, damaged).to(weight.dtype) * scale
    return flipped
