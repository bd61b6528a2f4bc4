"""Images folded from flat triangles: a Delaunay triangulation of points that crowd along edges."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage
from scipy.spatial import Delaunay

from holdfast.inputs.corruption.resampling import Images
from holdfast.inputs.corruption.streams import Streams


def folded(x: Images, smoothing: float, streams: Streams, points: int = 170, shading: float = 0.16) -> Images:
    """Every triangle in the mean colour of its pixels, lit as a facet that faces a random way.

    `points` vertices are drawn for an image, twelve of them along its frame, the others where the gradient of its
    brightness, smoothed by `smoothing` pixels, is large.
    """
    made = np.empty_like(x)
    for image, generator, out in zip(x, streams.generators, made, strict=True):
        triangle, count = _triangles(image, smoothing, points, generator)
        sizes = np.maximum(np.bincount(triangle.ravel(), minlength=count), 1)
        light = 1 + shading * (generator.random(count) - 0.5) * 2
        for channel in range(x.shape[-1]):
            total = np.bincount(triangle.ravel(), image[..., channel].ravel(), minlength=count)
            out[..., channel] = (total / sizes * light)[triangle]
    return made


def _triangles(
    image: Float[np.ndarray, "height width channels"], smoothing: float, points: int, generator: np.random.Generator
) -> tuple[Int[np.ndarray, "height width"], int]:
    """Which triangle every pixel lies in, and how many there are."""
    height, width = image.shape[:2]
    edges = ndimage.gaussian_gradient_magnitude(image.mean(-1), smoothing, mode="nearest")
    chance = (edges + 0.15 * edges.mean() + 1e-6).ravel().astype(np.float64)
    chosen = generator.choice(height * width, size=points, replace=height * width < points, p=chance / chance.sum())
    inner = np.stack([chosen // width, chosen % width], axis=1) + generator.uniform(-0.5, 0.5, (points, 2))
    frame = np.array([(i, j) for i in (0, 1 / 3, 2 / 3, 1) for j in (0, 1 / 3, 2 / 3, 1) if {i, j} & {0, 1}])
    outer = frame * (height + 1, width + 1) - 1  # one pixel beyond the image, so that no pixel is left out
    mesh = Delaunay(np.concatenate([inner.clip(0, (height - 1, width - 1)), outer]))
    rows, columns = np.mgrid[:height, :width]
    place = mesh.find_simplex(np.stack([rows.ravel(), columns.ravel()], axis=1))
    return np.maximum(place, 0).reshape(height, width), len(mesh.simplices)
