"""What the channels of a network answer to: how smooth their kernels are, what noise passes, what excites them.

    kernel smoothness    TV(w) = sum |w_{i+1,j} - w_{i,j}| + |w_{i,j+1} - w_{i,j}|,   each kernel scaled to ||w||_2 = 1
    noise transfer       ||phi(x + n) - phi(x)|| / ||phi(x)||,   n of one band of spatial frequency
    variety              entropy of the labels, and distances, of the images that excite a channel most
    dissection           IoU of where a channel is most active with where a concept is  (Bau et al., 2017)

Adversarial training makes kernels smoother, lets less high-frequency noise through, and leaves channels that answer to
simpler things and fewer of them (Chen, Agarwal & Nguyen, 2020).  Layers are named as in `model.named_modules()`;
images are (n, channels, height, width).  Raises InputError for a layer that does not exist or gives no maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import paired_difference
from holdfast.inputs.features import Features
from holdfast.threats.base import gaussian

Images = Float[Tensor, "n channels height width"]


def total_variation(maps: Float[Tensor, "... height width"]) -> Float[Tensor, "..."]:
    """Sum of absolute differences of neighbours of maps scaled to unit Euclidean norm; NaN where a map is all zero."""
    unit = maps / torch.linalg.vector_norm(maps, dim=(-2, -1), keepdim=True)
    return unit.diff(dim=-2).abs().sum((-2, -1)) + unit.diff(dim=-1).abs().sum((-2, -1))


def kernel_smoothness(model: nn.Module, level: float = 0.95) -> dict[str, Estimate]:
    """Mean total variation of the two-dimensional kernels of every convolution with more than one tap; lower is
    smoother.  Raises InputError for a model that has none.
    """
    found = {name: _kernel_variation(module) for name, module in _convolutions(model)}
    if not found:
        raise InputError("the model has no two-dimensional convolution of more than one tap, so no kernel to measure")
    return {name: _mean(values[~np.isnan(values)], level) for name, values in found.items()}


def _convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            yield name, module


def _kernel_variation(module: nn.Conv2d) -> Float[np.ndarray, " kernels"]:
    return total_variation(module.weight.detach().double()).flatten().cpu().numpy()


def _mean(values: Float[np.ndarray, " n"], level: float) -> Estimate:
    return paired_difference(np.zeros_like(values), values, level)


def frequency_response(model: nn.Module, layer: str, size: int = 32) -> Float[np.ndarray, " frequencies"]:
    """Mean |DFT| of a convolution's kernels, each of unit norm, by radial frequency.

    Entry k is the mean over the ring of |f| within half a step of k / size cycles per pixel, k = 0 ... size / 2.
    """
    modules = dict(_convolutions(model))
    if layer not in modules:
        raise InputError(f"{layer!r} is no convolution of more than one tap; the model has {', '.join(modules)}")
    kernels = modules[layer].weight.detach().double().flatten(0, 1)
    norm = torch.linalg.vector_norm(kernels, dim=(1, 2), keepdim=True)
    kernels = (kernels / norm)[norm.flatten() > 0]
    spectrum = torch.fft.fft2(kernels, s=(size, size)).abs().mean(0)
    ring = (_radii(size, size) * size).round().long()
    return np.array([float(spectrum[ring == k].mean()) for k in range(size // 2 + 1)])


def cut_off(response: Float[np.ndarray, " frequencies"]) -> float:
    """Lowest frequency (cycles per pixel) above which a response stays below half its largest value; 0.5 if it never
    does.
    """
    over = np.flatnonzero(response >= response.max() / 2)
    return float(min(over[-1] + 1, len(response) - 1) / (2 * (len(response) - 1)))


def _radii(height: int, width: int) -> Float[Tensor, "height width"]:
    """|f| of every coefficient of a discrete Fourier transform, cycles per pixel."""
    down, across = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.fftfreq(width, dtype=torch.float64)
    return torch.hypot(down[:, None], across[None, :])


def band_noise(like: Images, low: float, high: float, rms: float, generator: torch.Generator | None = None) -> Images:
    """Gaussian noise of the frequencies low <= |f| < high (cycles per pixel), scaled to the same root mean square for
    every image and band.  Raises InputError for a band with no frequency of this size of image.
    """
    radii = _radii(*like.shape[2:]).to(like.device)
    kept = (radii >= low) & (radii < high)
    if not bool(kept.any()):
        raise InputError(
            f"no frequency of {like.shape[2]}x{like.shape[3]} pixels lies in [{low}, {high}) cycles per pixel"
        )
    white = gaussian(like.double(), generator)
    noise = torch.fft.ifft2(torch.fft.fft2(white) * kept).real
    size = noise.square().mean((1, 2, 3), keepdim=True).sqrt()
    return (rms * noise / size).to(like.dtype)


@torch.no_grad()
def noise_transfer(
    model: nn.Module,
    x: Images,
    layer: str,
    rings: Sequence[float] = (0.0, 0.125, 0.25, 0.375, 0.75),
    *,
    rms: float = 0.1,
    generator: torch.Generator | None = None,
) -> Float[np.ndarray, "n bands"]:
    """Relative response of a layer to noise of each band of frequency: how much of it gets through.

    `rings` are the edges of the bands in cycles per pixel, rising; `rms` the noise's root mean square in input units,
    added without clipping.  Infinite where the layer does not answer to the image at all.
    """
    if len(rings) < 2 or any(not low < high for low, high in pairwise(rings)):
        raise InputError(f"the edges of the rings must rise and be at least two, got {tuple(rings)}")
    clean = _maps(model, x, layer)
    size = torch.linalg.vector_norm(clean.flatten(1).double(), dim=1)
    columns = []
    for low, high in pairwise(rings):
        noisy = _maps(model, x + band_noise(x, low, high, rms, generator), layer)
        columns.append(torch.linalg.vector_norm((noisy - clean).flatten(1).double(), dim=1) / size)
    return torch.stack(columns, 1).cpu().numpy()


@torch.no_grad()
def _maps(model: nn.Module, x: Tensor, layer: str) -> Float[Tensor, "n channels high wide"]:
    features = Features(model, (layer,))
    found = torch.cat([features.activations(part)[0][0] for part in x.split(features.batch)])
    if found.ndim != 4:
        raise InputError(
            f"layer {layer!r} gives shape {tuple(found.shape)}; maps (n, channels, height, width) are wanted"
        )
    return found


@torch.no_grad()
def activation_smoothness(model: nn.Module, x: Images, layer: str) -> Float[np.ndarray, " n"]:
    """Mean total variation of each image's activation maps, those that are all zero left out (NaN where all are)."""
    return torch.nanmean(total_variation(_maps(model, x, layer).double()), dim=1).cpu().numpy()


@dataclass(frozen=True, eq=False)
class ChannelVariety:
    """How different the images are that excite each channel of a layer most; NaN for a channel that none excites.

    `label_entropy` in nats; `pixel_distance` and `feature_distance` are mean distances between two of them, of pixels
    and of the layer's channel means, over the mean distance between any two images: 1 is no preference.
    """

    label_entropy: Float[np.ndarray, " channels"]
    pixel_distance: Float[np.ndarray, " channels"]
    feature_distance: Float[np.ndarray, " channels"]


@torch.no_grad()
def channel_variety(model: nn.Module, x: Images, y: Int[Tensor, " n"], layer: str, top: int = 50) -> ChannelVariety:
    """Variety of the `top` images by largest activation of each channel.

    Raises InputError for fewer images than `top`, or a top below 2.
    """
    if not 2 <= top <= len(x):
        raise InputError(f"the {top} images that excite a channel most cannot be taken from {len(x)}; top is 2 to that")
    maps = _maps(model, x, layer).double()
    height, place = maps.amax((2, 3)).topk(top, dim=0)
    alive = (height[0] > maps.amin()) & (height[0] != height[-1])
    pixels, means = x.double().flatten(1), maps.mean((2, 3))
    entropy, distances = [], []
    for chosen in place.T:
        share = torch.bincount(y[chosen]).double() / top
        entropy.append(float(torch.special.entr(share).sum()))
        distances.append([float(torch.pdist(part[chosen]).mean()) for part in (pixels, means)])
    overall = [float(_mean_distance(part)) for part in (pixels, means)]
    dead = ~alive.cpu().numpy()
    columns = [np.array(entropy), *(np.array(distances).T / np.array(overall)[:, None])]
    return ChannelVariety(*(np.where(dead, np.nan, column) for column in columns))


def _mean_distance(points: Float[Tensor, "n features"], most: int = 1000) -> Tensor:
    """Mean distance of two points, from at most `most` evenly spaced ones."""
    return torch.pdist(points[:: -(-len(points) // most)]).mean()


@dataclass(frozen=True, eq=False)
class Dissection:
    """`iou` of every channel with every concept; a channel detects the concept of its largest IoU above `threshold`,
    else none (-1).
    """

    iou: Float[np.ndarray, "channels concepts"]
    threshold: float

    @property
    def detects(self) -> Int[np.ndarray, " channels"]:
        """Concept of each channel, -1 for none."""
        best = self.iou.argmax(1)
        return np.where(self.iou.max(1) > self.threshold, best, -1)


@torch.no_grad()
def dissect(
    model: nn.Module,
    x: Images,
    masks: Bool[Tensor, "_ concepts _ _"],
    layer: str,
    quantile: float = 0.995,
    threshold: float = 0.04,
) -> Dissection:
    """Network dissection: each channel's map, enlarged to the image and cut at its own `quantile` over all images and
    places, against the masks of concepts; IoU over the whole data set.

    Raises InputError for masks that do not fit or a quantile outside (0, 1).
    """
    if masks.ndim != 4 or masks.shape[0] != len(x) or masks.shape[2:] != x.shape[2:]:
        raise InputError(
            f"masks have shape {tuple(masks.shape)}; ({len(x)}, concepts, {x.shape[2]}, {x.shape[3]}) was wanted"
        )
    if not 0 < quantile < 1:
        raise InputError(f"the quantile lies in (0, 1), got {quantile}")
    maps = _maps(model, x, layer)
    flat = maps.transpose(0, 1).flatten(1).double()
    cut = torch.from_numpy(np.quantile(flat.cpu().numpy(), quantile, axis=1)).to(maps)
    concept = masks.flatten(2).double()
    both = torch.zeros(maps.shape[1], masks.shape[1], dtype=torch.float64, device=x.device)
    area = torch.zeros(maps.shape[1], 1, dtype=torch.float64, device=x.device)
    for rows in torch.arange(len(x), device=x.device).split(256):
        large = F.interpolate(maps[rows], size=x.shape[2:], mode="bilinear", align_corners=False)
        active = (large > cut[:, None, None]).flatten(2).double()
        both += torch.einsum("ncp,nkp->ck", active, concept[rows])
        area += active.sum((0, 2))[:, None]
    union = area + concept.sum((0, 2)) - both
    return Dissection((both / union.clamp(min=1)).cpu().numpy(), threshold)
