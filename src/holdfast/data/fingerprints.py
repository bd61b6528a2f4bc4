"""Fingerprints in which near-duplicates lie close together, and the finer distances that confirm them.

An image becomes grey, at most 32 pixels a side (area averages), lightly blurred when it is large enough, and is
standardised to mean 0 and norm 1, which takes out brightness and contrast.  It is searched by two views: the
low-frequency block of the orthonormal cosine transform, which noise and recompression hardly move, and the magnitudes
of its low Fourier frequencies, which shifts hardly move.  Candidates are then compared by the correlation rho of the
middle of the query with the best-fitting window of the candidate, shifts of up to 1/14 of the side; the distance is
sqrt(2 - 2 rho), in [0, 2].

A row becomes its features in units of their interquartile range around the median, clipped to [-10, 10]; missing cells
become the median and a column of their own.  The distance is Euclidean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from holdfast.subject.data import Inputs

_LONGEST = 32
_SHIFT = 14
_BLURRED_FROM = 16
_PAIR_ELEMENTS = 1 << 22
_CLIP = 10.0


@runtime_checkable
class Fingerprint(Protocol):
    """Views for the blocked search (the first one finds most), and the distances that decide."""

    def views(self, values: Float[np.ndarray, "examples ..."]) -> tuple[np.ndarray, ...]: ...

    def distances(
        self, queries: Float[np.ndarray, "queries ..."], reference: Inputs, candidates: Int[np.ndarray, "queries k"]
    ) -> Float[np.ndarray, "queries k"]: ...


@dataclass(frozen=True)
class ImageFingerprint:
    """For images of `height` × `width` pixels, any number of channels."""

    height: int
    width: int

    @property
    def reduced(self) -> tuple[int, int]:
        """Height and width after area averaging."""
        factor = max(1.0, max(self.height, self.width) / _LONGEST)
        return max(1, round(self.height / factor)), max(1, round(self.width / factor))

    def views(self, values: Float[np.ndarray, "examples ..."]) -> tuple[np.ndarray, ...]:
        """Low cosine frequencies without the mean, and low Fourier magnitudes; unit length (zero for a flat image)."""
        height, width = self.reduced
        grey = _standardised(self._reduce(values).flatten(1)).view(len(values), height, width)
        rows, columns = _cosines(height), _cosines(width)
        cosines = (rows @ grey @ columns.T).flatten(1)[:, 1:]
        magnitudes = torch.fft.rfft2(grey).abs()
        down, across = max(2, height // 4), max(2, width // 4)
        low = torch.cat([magnitudes[:, :down, :across], magnitudes[:, 1 - down :, :across]], 1).flatten(1)
        return tuple(functional.normalize(view, dim=1).numpy() for view in (cosines, low))

    def distances(
        self, queries: Float[np.ndarray, "queries ..."], reference: Inputs, candidates: Int[np.ndarray, "queries k"]
    ) -> Float[np.ndarray, "queries k"]:
        """sqrt(2 - 2 rho) under the best shift, float64."""
        height, width = self.reduced
        down, across = (max(1, round(side / _SHIFT)) if side > 3 else 0 for side in (height, width))
        inner = (height - 2 * down, width - 2 * across)
        templates = self._reduce(queries)[:, down : down + inner[0], across : across + inner[1]]
        templates = _standardised(templates.flatten(1))
        windows_each = (2 * down + 1) * (2 * across + 1)
        step = max(1, _PAIR_ELEMENTS // (candidates.shape[1] * windows_each * inner[0] * inner[1]))
        distances = np.empty(candidates.shape)
        for start in range(0, len(queries), step):
            block = candidates[start : start + step]
            images = self._reduce(reference.take(block.ravel()))
            windows = images.unfold(1, inner[0], 1).unfold(2, inner[1], 1)
            windows = _standardised(windows.reshape(len(block), block.shape[1] * windows_each, -1))
            correlation = torch.bmm(windows, templates[start : start + step, :, None])
            best = correlation.view(len(block), block.shape[1], windows_each).amax(2).double()
            distances[start : start + step] = (2 - 2 * best).clamp(min=0).sqrt().numpy()
        return distances

    def _reduce(self, values: np.ndarray) -> Tensor:
        images = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        grey = images.mean(1, keepdim=True)
        if self.reduced != (self.height, self.width):
            grey = functional.adaptive_avg_pool2d(grey, self.reduced)
        if min(self.reduced) >= _BLURRED_FROM:
            grey = functional.avg_pool2d(functional.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return grey[:, 0]


@dataclass(frozen=True)
class RowFingerprint:
    """For rows: centre, scale (0 where a feature is constant and says nothing) and whether cells can be missing.

    Each has shape (features,).
    """

    centre: np.ndarray
    scale: np.ndarray
    missing: np.ndarray

    @classmethod
    def fit(cls, values: Float[np.ndarray, "examples ..."]) -> RowFingerprint:
        """Centre and scale from a sample of the reference."""
        rows = _finite_or_missing(values)
        empty = np.isnan(rows).all(axis=0)
        known = np.where(empty, 0.0, rows)
        lower, centre, upper = np.nanpercentile(known, [25, 50, 75], axis=0)
        spread = np.nanstd(known, axis=0)
        spread_by_quartiles = (upper - lower) / 1.349
        scale = np.where(spread_by_quartiles > 0, spread_by_quartiles, spread)
        missing = np.isnan(rows).any(axis=0)
        return cls(centre, np.where(spread > 0, scale, 0.0), missing)

    def views(self, values: Float[np.ndarray, "examples ..."]) -> tuple[np.ndarray, ...]:
        """One view: standardised features that vary, then a column for every feature with missing cells."""
        rows = _finite_or_missing(values)
        unknown = np.isnan(rows)
        varies = self.scale > 0
        filled = np.where(unknown, self.centre, rows)[:, varies]
        standardised = np.clip((filled - self.centre[varies]) / self.scale[varies], -_CLIP, _CLIP)
        return (np.concatenate([standardised, 2.0 * unknown[:, self.missing]], axis=1),)

    def distances(
        self, queries: Float[np.ndarray, "queries ..."], reference: Inputs, candidates: Int[np.ndarray, "queries k"]
    ) -> Float[np.ndarray, "queries k"]:
        """Euclidean distances of the standardised features, float64."""
        (ours,) = self.views(queries)
        distances = np.empty(candidates.shape)
        for column in range(candidates.shape[1]):
            (theirs,) = self.views(reference.take(candidates[:, column]))
            distances[:, column] = np.linalg.norm(ours - theirs, axis=1)
        return distances


def _finite_or_missing(values: np.ndarray) -> np.ndarray:
    rows = values.reshape(len(values), -1).astype(np.float64)
    return np.where(np.isfinite(rows), rows, np.nan)


def _standardised(flat: Tensor) -> Tensor:
    """Mean 0 and length 1 along the last axis; zero where it is constant up to rounding."""
    centred = flat - flat.mean(-1, keepdim=True)
    length = centred.norm(dim=-1, keepdim=True)
    flat_image = length <= 1e-5 * flat.abs().amax(-1, keepdim=True) * flat.shape[-1] ** 0.5
    return torch.where(flat_image, torch.zeros(()), centred / length.clamp(min=1e-30))


def _cosines(side: int) -> Tensor:
    """The lower half (at least six) of the orthonormal cosine basis of one axis, (kept, side)."""
    kept = min(side, max(6, side // 2))
    frequency, place = torch.arange(kept)[:, None], torch.arange(side)[None, :]
    basis = torch.cos(torch.pi * frequency * (2 * place + 1) / (2 * side)) * (2 / side) ** 0.5
    basis[0] /= 2**0.5
    return basis
