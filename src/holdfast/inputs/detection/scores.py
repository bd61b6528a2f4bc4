"""Confidence scores of logits, one function each; higher means more typical of the training data.

All take logits (n, classes) in any float type and return float64 (n,).  Softmax saturates: beyond a margin of about 17
in float32, 37 in float64, the largest probability rounds to one and the ranking is lost, so nothing here forms it.

Hendrycks and Gimpel, 2017 (max softmax); Liang et al., 2018 (temperature); Liu et al., 2020 (energy);
Hendrycks et al., 2022 (max logit); Liu, Lochman and Zach, 2023 (generalised entropy).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike

from holdfast.core.errors import InputError

Scores = Float[np.ndarray, " n"]


def max_softmax(logits: ArrayLike, temperature: float = 1.0) -> Scores:
    """Log of the largest probability, log max_k softmax(z / T)_k: ranks as the probability does, unsaturated."""
    return _log_probabilities(_checked(logits) / _positive(temperature)).max(axis=1)


def max_logit(logits: ArrayLike) -> Scores:
    """max_k z_k."""
    largest: Scores = torch.from_numpy(_checked(logits)).amax(dim=1).numpy()
    return largest


def energy(logits: ArrayLike, temperature: float = 1.0) -> Scores:
    """Negative free energy, T log sum_k exp(z_k / T)."""
    z = torch.from_numpy(_checked(logits))
    if _positive(temperature) == 1:
        return torch.logsumexp(z, dim=1).numpy()
    return temperature * torch.logsumexp(z / temperature, dim=1).numpy()


def negative_entropy(logits: ArrayLike) -> Scores:
    """sum_k p_k log p_k in nats, between -log(classes) and 0."""
    log_p = _log_probabilities(_checked(logits))
    return (np.exp(log_p) * log_p).sum(axis=1)


def generalised_entropy(logits: ArrayLike, gamma: float = 0.1, top: int | None = None) -> Scores:
    """-sum_k p_k^γ (1 - p_k)^γ over the `top` largest probabilities (all by default); a small γ heeds small p_k.

    Raises InputError unless 0 < gamma < 1 and top is at least 1.
    """
    if not 0 < gamma < 1 or (top is not None and top < 1):
        raise InputError(f"generalised entropy needs gamma in (0, 1) and top >= 1, got {gamma} and {top}")
    log_p = _log_probabilities(_checked(logits))
    if top is not None and top < log_p.shape[1]:
        log_p = np.partition(log_p, -top)[:, -top:]
    # log(1 - p) through the logarithm of p, which keeps p near one apart from one.
    with np.errstate(divide="ignore"):
        log_rest = np.log(-np.expm1(log_p))
    return -np.exp(gamma * (log_p + log_rest)).sum(axis=1)


def margin(logits: ArrayLike) -> Scores:
    """Largest minus second largest logit.  Raises InputError for fewer than two classes."""
    z = _checked(logits)
    if z.shape[1] < 2:
        raise InputError("the margin needs at least two classes, got one column of logits")
    top = np.partition(z, -2, axis=1)
    return top[:, -1] - top[:, -2]


#: Every score that needs no parameter, by name.
LOGIT_SCORES: Mapping[str, Callable[[ArrayLike], Scores]] = MappingProxyType(
    {
        "energy": energy,
        "max softmax": max_softmax,
        "max logit": max_logit,
        "negative entropy": negative_entropy,
        "generalised entropy": generalised_entropy,
        "margin": margin,
    }
)


def _log_probabilities(z: np.ndarray) -> Float[np.ndarray, "n classes"]:
    # log1p over all but the largest keeps log p_max apart from 0 down to margins of about 700; log(sum(exp)) gives
    # exactly 0 beyond 37 even in float64.
    rows, top = np.arange(len(z)), z.argmax(axis=1)
    gaps = z - z[rows, top][:, None]
    rest = np.exp(gaps)
    rest[rows, top] = 0.0
    return gaps - np.log1p(rest.sum(axis=1, keepdims=True))


def _checked(logits: ArrayLike) -> Float[np.ndarray, "n classes"]:
    z = np.asarray(logits, dtype=np.float64)
    if z.ndim != 2 or z.shape[1] == 0:
        raise InputError(f"logits must have shape (examples, classes), got {z.shape}")
    suspect = math.isnan(torch.from_numpy(z).sum())  # cheap, but infinities of both signs give NaN too
    if suspect and np.isnan(z).any():
        raise InputError(f"logits hold NaN in {int(np.isnan(z).any(axis=1).sum())} rows; the model diverged on them")
    return z


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise InputError(f"the temperature must be positive, got {temperature}")
    return temperature
