"""Exact and near-duplicate search within a set or between two, for images and rows.

Exact copies share the bytes of their float32 values (after -0 = 0 and one NaN); they are found by hashing and
confirmed by comparison.  Near-duplicates are found in two steps: nearest neighbours of a fingerprint
(`holdfast.data.fingerprints`) by exact blocked search, then, for images, the distance of each of the k candidates
after the best small shift and the best change of brightness and contrast.

What counts as near is read from the data.  If the points around a query are spread evenly on an m-dimensional surface
out to its k-th neighbour, the ratio r = d_1 / d_k of nearest to k-th distance has the law

    P(r <= t) = 1 - (1 - t^m)^(k-1)

whatever the local density, so the threshold on r with false-match rate alpha per query is
t = (1 - (1 - alpha)^(1/(k-1)))^(1/m).  The dimension m is the smaller of those that the lower quartile and the median
of r imply for reference examples searched among the others: the smaller dimension is the more cautious one, and up to a
quarter of duplicates cannot move either quartile past the other.  The rate is as good as that picture of the data: in
very uneven data look at the pairs before believing the count.

Memory is one fingerprint a reference example and one block of distances; never examples × examples.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from holdfast.core.errors import InputError
from holdfast.core.progress import track
from holdfast.data.fingerprints import Fingerprint, ImageFingerprint, RowFingerprint
from holdfast.data.neighbours import nearest
from holdfast.subject.data import ArrayInputs, Inputs, Modality

_READ_BLOCK = 2048
_CALIBRATION = 2000
_NEIGHBOURS = 10
_EXTRA = 2


@dataclass(frozen=True)
class Matches:
    """What was found for each query.

    `nearest` is the position of the closest reference example, `distance` its distance, `ratio` that distance over the
    k-th (1 when there is no k-th).  `exact` marks equal values, `near` the near-duplicates that are not equal.
    """

    nearest: Int[np.ndarray, " queries"]
    distance: Float[np.ndarray, " queries"]
    ratio: Float[np.ndarray, " queries"]
    exact: Bool[np.ndarray, " queries"]
    near: Bool[np.ndarray, " queries"]

    @property
    def duplicate(self) -> Bool[np.ndarray, " queries"]:
        """Exact or near."""
        return self.exact | self.near


@dataclass(frozen=True)
class DuplicateIndex:
    """A searchable reference set; make it with `DuplicateIndex.build`.

    `threshold` is the largest ratio that counts as near, `dimension` the m behind it, `neighbours` the k.
    """

    reference: Inputs
    fingerprint: Fingerprint
    views: tuple[np.ndarray, ...]  # each (references, features)
    hashes: np.ndarray  # (references,) uint64, ascending
    hashed: np.ndarray  # (references,) positions in the order of `hashes`
    neighbours: int
    dimension: float
    threshold: float
    false_match_rate: float

    @classmethod
    def build(
        cls, reference: Inputs, modality: Modality = "other", *, false_match_rate: float = 1e-4, seed: int = 0
    ) -> DuplicateIndex:
        """Read `reference` once, block by block, and choose the threshold (`seed` picks the calibration sample).

        Examples of modality "image" have shape (channels, height, width); everything else is flattened to rows.
        Raises InputError for a rate outside (0, 1) or images of another shape.
        """
        if not 0 < false_match_rate < 1:
            raise InputError(f"false_match_rate must lie strictly between 0 and 1, got {false_match_rate}")
        examples = reference.shape[0]
        fingerprint = _fingerprint(reference, modality)
        views, hashes = [], []
        for block in track(_blocks(examples), "reading the reference"):
            values = reference.take(block)
            views.append(fingerprint.views(values))
            hashes.append(_hashes(values))
        hashed = np.concatenate(hashes)
        joined = tuple(np.concatenate(parts) for parts in zip(*views, strict=True))
        order = np.argsort(hashed, kind="stable")
        neighbours = min(_NEIGHBOURS, examples - 1)
        index = cls(
            reference,
            fingerprint,
            joined,
            hashed[order],
            order,
            neighbours,
            0.0,
            0.0,
            false_match_rate,
        )
        return index._calibrated(seed)

    def _calibrated(self, seed: int) -> DuplicateIndex:
        """The index with its threshold; 0 (nothing is near) when there are too few examples to choose one."""
        if self.neighbours < 3:
            return self
        rng = np.random.default_rng(seed)
        examples = len(self.hashed)
        sample = np.sort(rng.choice(examples, min(_CALIBRATION, examples), replace=False))
        matches = self._search(self.reference.take(sample), own=sample)
        ratios = matches.ratio[~matches.exact]
        dimension = _implied_dimension(ratios, self.neighbours)
        inner = 1 - (1 - self.false_match_rate) ** (1 / (self.neighbours - 1))
        threshold = inner ** (1 / dimension) if dimension > 0 else 0.0
        return replace(self, dimension=dimension, threshold=float(threshold))

    def find(
        self, queries: Float[np.ndarray, "queries ..."], *, own: Int[np.ndarray, " queries"] | None = None
    ) -> Matches:
        """The closest reference example of every query, and whether it is a duplicate.

        `own` names the positions of the queries in the reference when they come from it; an example does not match
        itself. Raises InputError when a query has another shape than the reference.
        """
        if queries.shape[1:] != self.reference.shape[1:]:
            raise InputError(f"queries have shape {queries.shape[1:]}, the reference {self.reference.shape[1:]}")
        return self._search(queries, own)

    def _search(self, queries: np.ndarray, own: np.ndarray | None) -> Matches:
        copies = self._exact(queries, own)
        exact = copies >= 0
        if self.neighbours < 1 or self.views[0].shape[1] == 0:
            unknown = np.where(exact, 0.0, np.inf)
            return Matches(copies, unknown, np.ones(len(queries)), exact, np.zeros(len(queries), dtype=bool))
        candidates = self._candidates(queries, own)
        distances = self.fingerprint.distances(queries, self.reference, candidates)
        order = np.argsort(distances, axis=1, kind="stable")
        distances = np.take_along_axis(distances, order, 1)
        closest = np.take_along_axis(candidates, order[:, :1], 1)[:, 0]
        widest = distances[:, self.neighbours - 1]
        ratio = np.where(widest > 0, distances[:, 0] / np.where(widest > 0, widest, 1), 1.0)
        near = (ratio <= self.threshold) & ~exact
        return Matches(np.where(exact, copies, closest), np.where(exact, 0.0, distances[:, 0]), ratio, exact, near)

    def _candidates(self, queries: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        """Positions of the nearest references by the first view, then a few by every other view."""
        found = []
        for number, (features, reference) in enumerate(zip(self.fingerprint.views(queries), self.views, strict=True)):
            wanted = self.neighbours if number == 0 else min(_EXTRA, self.neighbours)
            if own is None:
                found.append(nearest(features, reference, wanted)[1])
                continue
            # One more than wanted, then the query itself (or, lost among many copies, the last one) is dropped.
            closest = nearest(features, reference, wanted + 1)[1]
            mine = closest == own[:, None]
            mine[~mine.any(axis=1), -1] = True
            found.append(closest[~mine].reshape(len(queries), wanted))
        return np.concatenate(found, axis=1)

    def _exact(self, queries: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        """Position of an equal reference example (the first that is not the query itself), -1 for none."""
        wanted = _hashes(queries)
        start = np.searchsorted(self.hashes, wanted, side="left")
        stop = np.searchsorted(self.hashes, wanted, side="right")
        copies = np.full(len(queries), -1, dtype=np.int64)
        for query in np.flatnonzero(stop > start):
            same = self.hashed[start[query] : stop[query]]
            same = same[same != own[query]][:1] if own is not None else same[:1]
            # Equal hashes are almost surely equal values; look, so that "exact" is never a matter of luck.
            if len(same) and np.array_equal(
                _canonical(self.reference.take(same))[0], _canonical(queries[query : query + 1])[0], equal_nan=True
            ):
                copies[query] = same[0]
        return copies


def find_duplicates(
    queries: Float[np.ndarray, "queries ..."],
    reference: Float[np.ndarray, "references ..."] | None = None,
    modality: Modality = "other",
    *,
    false_match_rate: float = 1e-4,
) -> Matches:
    """Duplicates of every query in `reference`, or among the queries themselves when there is none.

    Raises InputError as `DuplicateIndex.build` and `DuplicateIndex.find` do.
    """
    index = DuplicateIndex.build(
        ArrayInputs(queries if reference is None else reference), modality, false_match_rate=false_match_rate
    )
    parts = [index.find(queries[block], own=block if reference is None else None) for block in _blocks(len(queries))]
    return Matches(*(np.concatenate([getattr(part, name) for part in parts]) for name in Matches.__dataclass_fields__))


def chance_of_coincidence(rows: Float[np.ndarray, "rows features"], sample: int = 2000, seed: int = 0) -> float:
    """Expected share of rows that would equal some other row if columns were independent.

    Few columns with few values collide by chance: when this is not small, exact copies say little about leakage.
    Every column keeps its own frequencies; the mean over a sample of rows of 1 - (1 - prod_j f_j)^(n-1).
    """
    chosen = np.random.default_rng(seed).choice(len(rows), min(sample, len(rows)), replace=False)
    log_chance = np.zeros(len(chosen))
    for column in rows.T:
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        log_chance += np.log(counts[inverse[chosen]] / len(rows))
    return float(np.mean(-np.expm1((len(rows) - 1) * np.log1p(-np.minimum(np.exp(log_chance), 1 - 1e-12)))))


def _implied_dimension(ratios: np.ndarray, neighbours: int) -> float:
    """The smaller dimension implied by the lower quartile and the median of the ratios; 0 when they are degenerate."""
    if len(ratios) == 0:
        return 0.0
    implied = []
    for level in (0.25, 0.5):
        quantile = float(np.quantile(ratios, level))
        if not 0 < quantile < 1:
            return 0.0
        implied.append(np.log(1 - (1 - level) ** (1 / (neighbours - 1))) / np.log(quantile))
    return float(min(implied))


def _fingerprint(reference: Inputs, modality: Modality) -> Fingerprint:
    if modality == "image":
        if len(reference.shape) != 4:
            raise InputError(f"images have shape (channels, height, width), got {reference.shape[1:]}")
        return ImageFingerprint(reference.shape[2], reference.shape[3])
    rng = np.random.default_rng(0)
    sample = np.sort(rng.choice(reference.shape[0], min(20_000, reference.shape[0]), replace=False))
    return RowFingerprint.fit(reference.take(sample))


def _blocks(examples: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + _READ_BLOCK, examples)) for start in range(0, examples, _READ_BLOCK)]


def _canonical(values: np.ndarray) -> np.ndarray:
    canonical = values.astype(np.float32).reshape(len(values), -1) + np.float32(0.0)  # -0 + 0 = 0
    canonical[np.isnan(canonical)] = np.nan
    return canonical


def _hashes(values: np.ndarray) -> np.ndarray:
    rows = _canonical(values)
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype=np.uint64)
