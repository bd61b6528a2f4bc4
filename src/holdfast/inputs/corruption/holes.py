"""Filling holes in images from around them: as smooth as possible, with the texture of the surroundings.

The smooth part bends least: among all fillings that agree with the known pixels it minimises the sum of squared
Laplacians (at the image's border, of second differences along it), so it solves the biharmonic equation in the hole and
continues planes exactly.  The texture is what a Gaussian takes away from the image elsewhere, moved over the hole.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage, sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from holdfast.core.errors import InputError


def biharmonic_fill(
    x: Float[Tensor, "n channels height width"], missing: Bool[Tensor, "n height width"], *, texture: float = 1.0
) -> Float[Tensor, "n channels height width"]:
    """x with its missing pixels filled; what they held has no influence.  `texture` scales what is laid over them.

    Raises InputError when an image has fewer than 3 known pixels.
    """
    holes = missing.cpu().numpy()
    if (holes.shape[1] * holes.shape[2] - holes.sum((1, 2)) < 3).any():
        raise InputError("a hole covers all but two pixels of an image, or more; there is nothing to fill it from")
    pixels = x.detach().cpu().double().numpy()
    filled = [_smooth(image, hole) for image, hole in zip(pixels, holes, strict=True)]
    if texture:
        laid = [texture * _texture(image, hole) for image, hole in zip(filled, holes, strict=True)]
        filled = [
            np.where(hole, np.clip(image + more, 0, 1), image)
            for image, more, hole in zip(filled, laid, holes, strict=True)
        ]
    made = torch.from_numpy(np.stack(filled)).to(x) if filled else x
    return torch.where(missing[:, None], made, x)


def _smooth(image: Float[np.ndarray, "channels height width"], hole: Bool[np.ndarray, "height width"]) -> np.ndarray:
    if not hole.any():
        return image
    bending = _bending(*hole.shape)
    unknown = hole.ravel()
    free = bending[:, np.flatnonzero(unknown)]
    known = bending[:, np.flatnonzero(~unknown)] @ image.reshape(len(image), -1)[:, ~unknown].T
    system = (free.T @ free + 1e-10 * sparse.identity(free.shape[1])).tocsc()
    made = image.reshape(len(image), -1).copy()
    made[:, unknown] = splu(system).solve(np.ascontiguousarray(-(free.T @ known))).T
    return made.reshape(image.shape)


@lru_cache(maxsize=8)
def _bending(height: int, width: int) -> sparse.csc_matrix:
    """One row an inner pixel with the Laplacian there, and one a border pixel with the second difference along it."""

    def second(size: int) -> sparse.csr_matrix:
        inner = sparse.diags([1.0, -2.0, 1.0], [0, 1, 2], shape=(size - 2, size)).tolil()
        return sparse.vstack([sparse.csr_matrix((1, size)), inner.tocsr(), sparse.csr_matrix((1, size))]).tocsr()

    down = sparse.kron(second(height), sparse.identity(width))
    across = sparse.kron(sparse.identity(height), second(width))
    return (down + across).tocsc()


def _texture(
    image: Float[np.ndarray, "channels height width"], hole: Bool[np.ndarray, "height width"], width: float = 1.5
) -> np.ndarray:
    """Fine detail of the known part, moved by the half frame that brings the fewest unknown pixels over the hole."""
    detail = image - ndimage.gaussian_filter(image, (0, width, width), mode="nearest")
    near = ndimage.binary_dilation(hole, iterations=int(np.ceil(width)))
    detail = np.where(near, 0, detail)
    moves = [(down, right) for down in _thirds(hole.shape[0]) for right in _thirds(hole.shape[1])]
    overlap = [(np.roll(near, move, (0, 1)) & hole).sum() for move in moves]
    return np.roll(detail, moves[int(np.argmin(overlap))], (1, 2))


def _thirds(size: int) -> tuple[int, ...]:
    return (0, size // 3, size // 2, size - size // 3)
