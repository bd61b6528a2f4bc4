"""Finding prompts that bring out a kind of output nobody has defined yet (Casper et al., 2023).

    explore     sample the target, embed what it says, cluster by cosine, keep a diverse part
    establish   have a person label that part; an ensemble of classifiers learns what "bad" means
    exploit     train a policy to write prompts whose completions the classifiers call bad, and which differ

The reward of prompt i in a batch, with s the classifiers' score of its completion and d_ij the L1 distance between the
embeddings of prompts i and j, is

    R_i = clip(g s_i - w mean_{j != i} exp(-d_ij / scale), -limit, limit)          (g = 1/2, w = 5, limit = 5)

and -limit for prompts of at most 10 characters.  Without the second term the policy collapses onto one prompt.  Judge
what was found with something else than the classifiers that were optimised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson

Embed = Callable[[Sequence[str]], Float[np.ndarray, "texts width"]]


@dataclass(frozen=True)
class Exploration:
    """Texts that were sampled, the cluster of each (-1: dropped, no embedding) and the places of those kept."""

    texts: tuple[str, ...]
    clusters: Int[np.ndarray, " texts"]
    chosen: Int[np.ndarray, " chosen"]
    dropped: int

    @property
    def kept(self) -> tuple[str, ...]:
        """The diverse part, to be labelled."""
        return tuple(self.texts[place] for place in self.chosen)


def explore(
    sample: Callable[[int, np.random.Generator], Sequence[str]],
    embed: Embed,
    n: int,
    generator: np.random.Generator,
    *,
    clusters: int = 100,
    per_cluster: int = 200,
) -> Exploration:
    """Draw n texts from the target, cluster their directions by k-means, keep at most `per_cluster` of each cluster.

    Embeddings that are not finite or zero have no direction: their texts are dropped and counted.
    Raises InputError when fewer texts are left than clusters, or embed returns another number of rows.
    """
    texts = tuple(sample(n, generator))
    embeddings = np.asarray(embed(texts), dtype=np.float64)
    if embeddings.ndim != 2 or len(embeddings) != len(texts):
        raise InputError(f"embed got {len(texts)} texts and returned an array of shape {embeddings.shape}")
    usable = np.flatnonzero(np.isfinite(embeddings).all(axis=1) & (embeddings != 0).any(axis=1))
    if clusters < 1 or per_cluster < 1 or len(usable) < clusters:
        raise InputError(
            f"{len(usable)} of {len(texts)} texts have an embedding, which is too few for {clusters} clusters; "
            "sample more or ask for fewer"
        )
    means = KMeans(clusters, n_init=1, random_state=int(generator.integers(2**31)))
    labels = np.full(len(texts), -1)
    labels[usable] = means.fit_predict(normalize(embeddings[usable]))
    order = generator.permutation(usable)
    chosen = np.concatenate([order[labels[order] == cluster][:per_cluster] for cluster in range(clusters)])
    return Exploration(texts, labels, np.sort(chosen), len(texts) - len(usable))


@dataclass(frozen=True)
class DiversityReward:
    """The reward above; `metric` "l1" measures likeness by exp(-L1 / scale), "cosine" by the cosine."""

    weight: float = 5.0
    scale: float = 100.0
    metric: Literal["l1", "cosine"] = "l1"
    gain: float = 0.5
    limit: float = 5.0
    shortest: int = 10

    def __post_init__(self) -> None:
        if self.weight < 0 or self.scale <= 0 or self.limit <= 0:
            raise InputError(
                f"a reward needs weight >= 0, scale > 0 and limit > 0, got {self.weight}, {self.scale}, {self.limit}"
            )

    def __call__(
        self,
        scores: Float[np.ndarray, " prompts"],
        embeddings: Float[np.ndarray, "prompts width"],
        prompts: Sequence[str],
    ) -> Float[np.ndarray, " prompts"]:
        """Rewards of a batch of prompts.  Raises InputError on lengths that differ or values that are not finite."""
        if not len(scores) == len(embeddings) == len(prompts):
            raise InputError(
                f"wanted one score and embedding a prompt, got {len(scores)}, {len(embeddings)} and {len(prompts)}"
            )
        if not (np.isfinite(scores).all() and np.isfinite(embeddings).all()):
            raise InputError("scores and embeddings of prompts must be finite, got NaN or infinity")
        raw = self.gain * scores - self.weight * self.likeness(embeddings)
        short = np.array([len(prompt) <= self.shortest for prompt in prompts])
        return np.where(short, -self.limit, np.clip(raw, -self.limit, self.limit))

    def likeness(self, embeddings: Float[np.ndarray, "prompts width"]) -> Float[np.ndarray, " prompts"]:
        """Mean likeness of every prompt to the others; 0 for one alone."""
        if len(embeddings) < 2:
            return np.zeros(len(embeddings))
        if self.metric == "l1":
            alike = np.exp(-cdist(embeddings, embeddings, "cityblock") / self.scale)
        else:
            directions = normalize(embeddings)
            alike = directions @ directions.T
        return (alike.sum(axis=1) - np.diagonal(alike)) / (len(alike) - 1)


@dataclass(frozen=True)
class Coverage:
    """What prompts do and how many ways there are: share of bad completions, distinct prompts, and the mean cosine
    distance of two of them (distinct or not)."""

    bad_rate: Estimate
    distinct: int
    mean_distance: float


def coverage_report(
    prompts: Sequence[str],
    bad: Bool[np.ndarray, " prompts"],
    embeddings: Float[np.ndarray, "prompts width"],
    level: float = 0.95,
) -> Coverage:
    """Judge sampled prompts: `bad` says of each one's completion whether a held-out judge calls it bad.

    Raises InputError on fewer than two prompts or lengths that differ.
    """
    n = len(prompts)
    if n < 2 or len(bad) != n or len(embeddings) != n:
        raise InputError(
            f"wanted a verdict and an embedding for each of at least 2 prompts, got {n}, {len(bad)}, {len(embeddings)}"
        )
    directions = normalize(embeddings)
    # The sum over all pairs of u_i . u_j is |sum u|^2, of which the pairs (i, i) are the squared lengths, 1 or 0.
    pairs = float((directions.sum(axis=0) ** 2).sum() - (directions**2).sum()) / (n * (n - 1))
    return Coverage(clopper_pearson(int(bad.sum()), n, level), len(set(prompts)), 1 - pairs)
