"""Whether two samples come from one distribution: the kernel two-sample test (Gretton et al., 2012).

With the Gaussian kernel k(x, y) = exp(-||x - y||^2 / (2 h^2)), h the median distance between different points of the
pooled sample, and w = 1/n on the first sample, -1/m on the second, the squared distance of the mean embeddings is

    MMD^2 = w^T K w.

Under equality all assignments of the pooled points are equally likely, so the p-value is the share of permutations
(the one observed included) whose MMD^2 is at least as large: exact at any sample size, for independent points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import pdist, squareform

from holdfast.core.errors import InputError


@dataclass(frozen=True)
class TwoSampleTest:
    """`mmd` is the distance of the mean embeddings, `p_value` that of equality, `bandwidth` the kernel's."""

    mmd: float
    p_value: float
    bandwidth: float


def mmd_test(
    a: Float[np.ndarray, "n ..."],
    b: Float[np.ndarray, "m ..."],
    *,
    permutations: int = 500,
    bandwidth: float | None = None,
    generator: np.random.Generator,
) -> TwoSampleTest:
    """Test equality of two samples of independent points; the cost grows with (n + m)^2 times the permutations.

    Raises InputError when a sample has fewer than two points, the points differ in shape or are not finite, or there is
    no permutation or no positive bandwidth.
    """
    n, m = len(a), len(b)
    if min(n, m) < 2 or a.shape[1:] != b.shape[1:]:
        raise InputError(f"two samples of at least two points of one shape are wanted, got {a.shape} and {b.shape}")
    pooled = np.concatenate([a.reshape(n, -1), b.reshape(m, -1)]).astype(np.float64)
    if not np.isfinite(pooled).all():
        raise InputError("the samples hold NaN or infinity; drop these points first")
    if permutations < 1 or (bandwidth is not None and not bandwidth > 0):
        raise InputError(f"a permutation and a positive bandwidth are wanted, got {permutations} and {bandwidth}")
    distances = pdist(pooled)
    if bandwidth is None:
        different = distances[distances > 0]
        bandwidth = float(np.median(different)) if len(different) else 1.0
    kernel = np.exp(-squareform(distances**2) / (2 * bandwidth**2))
    weights = np.concatenate([np.full(n, 1 / n), np.full(m, -1 / m)])
    drawn = generator.permuted(np.tile(weights, (permutations, 1)), axis=1)
    observed = float(weights @ kernel @ weights)
    # Rounding must not make a permutation that only relabels look smaller than what was observed.
    reached = np.einsum("pn,pn->p", drawn @ kernel, drawn) >= observed - 1e-12
    p_value = (1 + int(reached.sum())) / (1 + permutations)
    return TwoSampleTest(max(observed, 0.0) ** 0.5, p_value, bandwidth)
