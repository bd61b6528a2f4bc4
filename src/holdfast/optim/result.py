"""What a solver returns: where it stopped, how good that is, and how it got there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

#: One row an iteration.  `calls` counts oracle calls up to and including it, in the unit the solver names.
TRACE = np.dtype([("iteration", "i8"), ("calls", "i8"), ("value", "f8"), ("residual", "f8"), ("working_set", "?")])


@dataclass(frozen=True)
class Result:
    """`residual` is computed from scratch at `x`, not taken over from bookkeeping; `converged` compares it with tol."""

    x: Float[np.ndarray, " n"]
    value: float
    residual: float
    iterations: int
    calls: int
    converged: bool
    trace: np.ndarray
