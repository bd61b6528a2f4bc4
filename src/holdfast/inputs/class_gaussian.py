"""A small class-conditional generator for arrays: one Gaussian a class, on the class's principal components.

    x = mean_c + sum_j sqrt(l_cj) z_j v_cj,    z ~ N(0, I)

v the leading eigenvectors of the covariance of class c, l their eigenvalues, clipped to the range of the training data.
Enough for digits, clothing and tables; anything that gives labelled samples can stand in its place.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Shaped

from holdfast.core.errors import InputError


class ClassGaussianPCA:
    """Fit and sample.

    Parameters
    ----------
    components : principal components a class, at most one less than its examples; a share in (0, 1) keeps as many as
        hold that share of the class's variance.

    Attributes
    ----------
    classes_ : (classes,) labels.
    shares_ : (classes,) share of each in the training data; samples follow it.
    means_, directions_ : per class (features,), and (components, features) scaled by the square root of the eigenvalue.
    """

    def __init__(self, components: int | float = 0.95) -> None:
        if not (components >= 1 or 0 < components < 1):
            raise InputError(f"components must be at least 1, or a share in (0, 1), got {components}")
        self.components = components

    def fit(self, X: Shaped[np.ndarray, "n ..."], y: Int[np.ndarray, " n"]) -> ClassGaussianPCA:
        """Take means and components of every class.  Raises InputError for a class with fewer than two examples."""
        if len(X) != len(y) or len(y) == 0:
            raise InputError(f"as many labels as examples are wanted, got {len(X)} and {len(y)}")
        flat = np.asarray(X, dtype=np.float64).reshape(len(X), -1)
        if not np.isfinite(flat).all():
            raise InputError("the training data hold NaN or infinity; drop or fill them first")
        self.shape_, self.dtype_ = X.shape[1:], np.asarray(X).dtype if np.asarray(X).dtype.kind == "f" else np.float64
        self.classes_, counts = np.unique(y, return_counts=True)
        if counts.min() < 2:
            rare = self.classes_[counts.argmin()]
            raise InputError(f"class {rare} has {counts.min()} example; a Gaussian needs at least two")
        self.shares_ = counts / counts.sum()
        self.low_, self.high_ = flat.min(0), flat.max(0)
        fitted = [self._component(flat[y == label]) for label in self.classes_]
        self.means_ = [mean for mean, _ in fitted]
        self.directions_ = [directions for _, directions in fitted]
        return self

    def sample(
        self, n: int, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, "n ..."], Int[np.ndarray, " n"]]:
        """`n` samples shaped and typed like the training data, and their labels.  Raises InputError for n < 1."""
        if n < 1:
            raise InputError(f"at least one sample is wanted, got {n}")
        place = generator.choice(len(self.classes_), size=n, p=self.shares_)
        flat = np.empty((n, len(self.low_)))
        for index in np.unique(place):
            rows = np.flatnonzero(place == index)
            directions = self.directions_[index]
            flat[rows] = self.means_[index] + generator.standard_normal((len(rows), len(directions))) @ directions
        clipped = np.clip(flat, self.low_, self.high_).astype(self.dtype_)
        return clipped.reshape(n, *self.shape_), self.classes_[place].astype(np.int64)

    def _component(self, rows: Float[np.ndarray, "n features"]) -> tuple[np.ndarray, np.ndarray]:
        mean = rows.mean(0)
        _, size, directions = np.linalg.svd(rows - mean, full_matrices=False)
        variance = size**2 / (len(rows) - 1)
        if self.components >= 1:
            keep = min(int(self.components), len(rows) - 1, len(variance))
        else:
            explained = np.cumsum(variance) / max(float(variance.sum()), np.finfo(np.float64).tiny)
            keep = min(int(np.searchsorted(explained, self.components) + 1), len(variance))
        return mean, np.sqrt(variance[:keep])[:, None] * directions[:keep]
