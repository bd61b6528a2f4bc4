"""One stream of random numbers an image, so that an image is corrupted alike in whatever batch it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Streams:
    """Draws with a leading axis of images, each slice from that image's own generator."""

    generators: Sequence[np.random.Generator]

    @classmethod
    def of(cls, generator: np.random.Generator | Sequence[np.random.Generator], images: int) -> Streams:
        """The given generators, or one drawn for every image from a single one."""
        if isinstance(generator, np.random.Generator):
            return cls([np.random.default_rng(int(seed)) for seed in generator.integers(2**63, size=images)])
        return cls(generator)

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal numbers, float32."""
        return self._each(lambda g: g.standard_normal(shape, dtype=np.float32))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """Numbers from U(low, high), float64."""
        return self._each(lambda g: g.uniform(low, high, shape))

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Integers from [low, high)."""
        return self._each(lambda g: g.integers(low, high, shape))

    def poisson(self, mean: np.ndarray) -> np.ndarray:
        """Poisson counts with the given means, image by image."""
        return np.stack([g.poisson(part) for g, part in zip(self.generators, mean, strict=True)])

    def _each(self, draw: Callable[[np.random.Generator], np.ndarray]) -> np.ndarray:
        return np.stack([np.asarray(draw(g)) for g in self.generators])
