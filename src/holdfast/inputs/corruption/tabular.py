"""What goes wrong with the rows of a table between the training set and the day of use.

    gaussian noise    x + c sd N(0, 1) in every numeric feature
    missing values    a share of the cells is lost and filled with the feature's median
    scaling drift     every feature is multiplied by its own factor exp(c N(0, 1)), the same for all rows
    unit slip         one feature of a row is given in another unit: x 1000, / 1000, x 100, x 60, x 2.54, x 0.4536, ...
    swapped columns   pairs of features of a row are exchanged
    sign flip         the sign of some cells is lost
    rounding          values are rounded to a grid of c sd

`TableProfile.of(rows)` learns what a feature's spread and median are; 0/1 columns (one-hot levels, flags) are told
apart and, where noise or a unit makes no sense, left alone or flipped.  x (n, features) float, severities 1 to 5.
Every row draws from its own stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from holdfast.core.errors import InputError
from holdfast.inputs.corruption.streams import Streams

Table = Float[np.ndarray, "n features"]

#: Wrong units, mild to wild: kilograms for pounds, inches for centimetres, hours for minutes, percent, thousands.
SLIPS = ((0.4536, 2.2046), (2.54, 1 / 2.54), (10.0, 0.1), (60.0, 0.01), (1000.0, 0.001))


@dataclass(frozen=True)
class TableProfile:
    """What the features look like when all is well: median and spread (standard deviation), and which are 0/1."""

    median: Float[np.ndarray, " features"]
    spread: Float[np.ndarray, " features"]
    binary: Bool[np.ndarray, " features"]
    drift: Float[np.ndarray, " features"]

    @classmethod
    def of(cls, rows: Table, generator: np.random.Generator) -> TableProfile:
        """Learn from `rows`; NaN counts as missing.  `generator` draws in which direction each feature drifts."""
        if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] == 0:
            raise InputError(f"a table profile needs rows of shape (n, features), got {rows.shape}")
        values = rows.astype(np.float64)
        known = np.isfinite(values)
        values = np.where(known, values, np.nan)
        empty = ~known.any(axis=0)
        values[:, empty] = 0.0
        binary = np.asarray(np.isin(np.where(known, values, 0.0), (0.0, 1.0)).all(axis=0))
        spread = np.asarray(np.nanstd(values, axis=0))
        drift = np.asarray(generator.standard_normal(rows.shape[1]))
        return cls(np.asarray(np.nanmedian(values, axis=0)), spread, binary, drift)


def gaussian_noise(x: Table, profile: TableProfile, severity: int, streams: Streams) -> Table:
    """Noise of 0.05, 0.1, 0.25, 0.5, 1 spreads in every feature that is not 0/1."""
    size = (0.05, 0.1, 0.25, 0.5, 1.0)[severity - 1] * np.where(profile.binary, 0.0, profile.spread)
    return x + size * streams.normal(x.shape[1])


def missing_values(x: Table, profile: TableProfile, severity: int, streams: Streams) -> Table:
    """2, 5, 10, 25, 50 percent of the cells become the feature's median."""
    lost = streams.uniform(x.shape[1]) < (0.02, 0.05, 0.1, 0.25, 0.5)[severity - 1]
    return np.where(lost, profile.median, x)


def scaling_drift(x: Table, profile: TableProfile, severity: int, streams: Streams) -> Table:
    """Feature j times exp(c d_j), d_j standard normal and the same for all rows, c = 0.02, 0.05, 0.1, 0.2, 0.4."""
    size = (0.02, 0.05, 0.1, 0.2, 0.4)[severity - 1]
    return x * np.where(profile.binary, 1.0, np.exp(size * profile.drift))


def unit_slip(x: Table, profile: TableProfile, severity: int, streams: Streams) -> Table:
    """One feature of every row, among those that are not 0/1, is multiplied by a wrong unit (`SLIPS`)."""
    numeric = np.flatnonzero(~profile.binary)
    if not len(numeric):
        return x.copy()
    column = numeric[(streams.uniform() * len(numeric)).astype(np.int64)]
    factor = np.array(SLIPS[severity - 1])[streams.integers(0, 2)]
    made = x.copy()
    made[np.arange(len(x)), column] *= factor
    return made


def swapped_columns(x: Table, profile: TableProfile, severity: int, streams: Streams) -> Table:
    """1, 2, 3, 5, 8 disjoint pairs of features of every row are exchanged (as many as there are)."""
    pairs = min((1, 2, 3, 5, 8)[severity - 1], x.shape[1] // 2)
    order = np.argsort(streams.uniform(x.shape[1]), axis=1)
    one, two = order[:, :pairs], order[:, pairs : 2 * pairs]
    made = x.copy()
    np.put_along_axis(made, one, np.take_along_axis(x, two, axis=1), axis=1)
    np.put_along_axis(made, two, np.take_along_axis(x, one, axis=1), axis=1)
    return made


def sign_flip(x: Table, profile: TableProfile, severity: int, streams: Streams) -> Table:
    """2, 5, 10, 20, 40 percent of the cells change sign; 0/1 cells become the other value."""
    hit = streams.uniform(x.shape[1]) < (0.02, 0.05, 0.1, 0.2, 0.4)[severity - 1]
    return np.where(hit, np.where(profile.binary, 1 - x, -x), x)


def rounding(x: Table, profile: TableProfile, severity: int, streams: Streams) -> Table:
    """Every feature that is not 0/1 is rounded to multiples of 0.1, 0.25, 0.5, 1, 2 spreads."""
    step = (0.1, 0.25, 0.5, 1.0, 2.0)[severity - 1] * profile.spread
    coarse = ~profile.binary & (step > 0)
    step = np.where(coarse, step, 1.0)
    return np.where(coarse, np.round(x / step) * step, x)


FAMILIES: dict[str, Callable[[Table, TableProfile, int, Streams], Table]] = {
    "gaussian_noise": gaussian_noise,
    "missing_values": missing_values,
    "scaling_drift": scaling_drift,
    "unit_slip": unit_slip,
    "swapped_columns": swapped_columns,
    "sign_flip": sign_flip,
    "rounding": rounding,
}


def corrupt_rows(
    x: Table,
    name: str,
    severity: int,
    *,
    profile: TableProfile,
    generator: np.random.Generator | Sequence[np.random.Generator],
) -> Table:
    """x (n, features) under one corruption, same type.  `generator` is one, or one a row.

    Raises InputError for an unknown family or severity, or rows that do not fit the profile.
    """
    if name not in FAMILIES:
        raise InputError(f"unknown corruption of rows {name!r}; choose from {', '.join(FAMILIES)}")
    if severity not in (1, 2, 3, 4, 5):
        raise InputError(f"the severity of a corruption is 1 to 5, got {severity}")
    if x.ndim != 2 or x.shape[1] != len(profile.median):
        raise InputError(f"the profile is of {len(profile.median)} features, got rows of shape {x.shape}")
    if len(x) == 0:
        return x.copy()
    made = FAMILIES[name](x.astype(np.float64), profile, severity, Streams.of(generator, len(x)))
    return made.astype(x.dtype)
