"""Bounds on the probability of a label from a running count of its votes.

*Once*: after a number of draws that was fixed beforehand, the exact (Clopper-Pearson) bound at level alpha.

*Sequentially*: at every look the Beta mixture sequence (`core.sequences`, Ville's inequality) at level alpha/2, and
after the last draw also the exact bound at level alpha/2.  The best of all looks holds with probability 1 - alpha.  The
mixture is centred where the draws that chose the label fell, with half their weight: they are not counted, so any use
of them is fair, and a stream whose probability is roughly known beforehand is decided with fewer draws.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from holdfast.core.intervals import clopper_pearson_lowers
from holdfast.core.sequences import mixture_ends

#: Part of alpha that the looks before the last draw may spend.
EARLY = 0.5

Rows = Int[np.ndarray, " rows"]


def expected_lower(votes: int, n0: int, sizes: Int[np.ndarray, " sizes"], alpha: float) -> Float[np.ndarray, " sizes"]:
    """The exact lower bound that further draws are expected to give after `votes` of n0, with half a vote each way."""
    share = (votes + 0.5) / (n0 + 1)
    return clopper_pearson_lowers(np.floor(share * sizes + 0.5).astype(np.int64), sizes, alpha)


class VoteCounts:
    """Votes of many inputs' labels, and what they prove.

    Attributes
    ----------
    draws, successes : (inputs,) counted so far.
    cap : (inputs,) the most that will be drawn.
    lower : (inputs,) the best lower bound so far.
    """

    def __init__(self, inputs: int, alpha: float, sequential: bool) -> None:
        self.alpha, self.sequential = alpha, sequential
        self.draws, self.successes, self.cap = (np.zeros(inputs, dtype=np.int64) for _ in range(3))
        self.lower, self.upper = np.zeros(inputs), np.ones(inputs)
        self._prior = np.full((2, inputs), 0.5)

    def start(self, rows: Rows, cap: Rows, votes: Rows, n0: int) -> None:
        """Say how far some inputs may go, and how many of n0 draws voted for their label before the count."""
        self.cap[rows] = cap
        self._prior[:, rows] += np.stack([votes, n0 - votes]) / 2

    def add(self, rows: Rows, draws: Rows, successes: Rows) -> None:
        """Count new draws and bring the bounds up to date."""
        self.draws[rows] += draws
        self.successes[rows] += successes
        n, k = self.draws[rows], self.successes[rows]
        if self.sequential:
            a, b = self._prior[:, rows]
            low, high = mixture_ends(k, n, EARLY * self.alpha, (a, b))
            self.lower[rows] = np.maximum(self.lower[rows], low)
            self.upper[rows] = np.minimum(self.upper[rows], high)
        last = rows[n == self.cap[rows]]
        if len(last):
            exact = clopper_pearson_lowers(self.successes[last], self.draws[last], self._final_alpha)
            self.lower[last] = np.maximum(self.lower[last], exact)

    def eventual(self, rows: Rows) -> Float[np.ndarray, " rows"]:
        """The lower bound after all draws, if from now on as many vote for the label as the upper end allows."""
        left = self.cap[rows] - self.draws[rows]
        most = self.successes[rows] + np.ceil(left * self.upper[rows]).astype(np.int64)
        exact = clopper_pearson_lowers(most, self.cap[rows], self._final_alpha)
        return np.maximum(self.lower[rows], exact)

    @property
    def _final_alpha(self) -> float:
        return (1 - EARLY) * self.alpha if self.sequential else self.alpha
