"""What the members of a cascade say, in one form, asked only for the inputs that reach them.

A member is an `nn.Module` that gives logits, an object with `predict_proba`, or a callable that gives probabilities.
Probabilities are averaged over members, logit scores too, and the largest probability is kept as log(1 - rest), rest
the sum of all others: max_k p_k itself rounds to one, and ties hide the ranking, once the margin exceeds 17 in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import entr
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.inputs.detection.scores import energy, max_logit
from holdfast.inputs.features import evaluating

Probabilities = Float[np.ndarray, "n classes"]
Scores = Float[np.ndarray, " n"]
Rows = Int[np.ndarray, " rows"]
Score = str | Callable[[Probabilities], Scores]

_SUM_SLACK = 1e-3  # rows of float32 softmax over many classes do not sum to one exactly
_BATCH = 512


def max_probability(p: Probabilities) -> Scores:
    """log max_k p_k; where the others sum to less than a thousandth, from that sum, which keeps its digits.

    Not from the sum throughout: its rounding would tell apart scores that are equal.
    """
    top = p.argmax(axis=1)
    rows, rest = np.arange(len(p)), p.copy()
    rest[rows, top] = 0.0
    others = rest.sum(axis=1)
    return np.where(others < 1e-3, np.log1p(-np.minimum(others, 1e-3)), np.log(p[rows, top]))


def negative_entropy(p: Probabilities) -> Scores:
    """sum_k p_k log p_k in nats."""
    return -entr(p).sum(axis=1)


def margin(p: Probabilities) -> Scores:
    """Largest minus second largest probability."""
    top = np.partition(p, -2, axis=1)
    return top[:, -1] - top[:, -2]


#: Scores of the averaged probabilities, and scores of a member's logits that are averaged over members.
PROBABILITY_SCORES: Mapping[str, Callable[[Probabilities], Scores]] = MappingProxyType(
    {"max_probability": max_probability, "negative_entropy": negative_entropy, "margin": margin}
)
LOGIT_SCORES: Mapping[str, Callable[[Any], Scores]] = MappingProxyType({"energy": energy, "max_logit": max_logit})


@dataclass(frozen=True)
class Answer:
    """Probabilities of one member, and its logit score where the cascade's score is one of logits."""

    probabilities: Probabilities
    logit_scores: Scores | None = None

    def followed_by(self, other: Answer) -> Answer:
        """The answers for these inputs and after them those for the others."""
        both = None
        if self.logit_scores is not None and other.logit_scores is not None:
            both = np.concatenate([self.logit_scores, other.logit_scores])
        return Answer(np.concatenate([self.probabilities, other.probabilities]), both)


@runtime_checkable
class Source(Protocol):
    """Answers of member `index` for some rows of one fixed set of inputs."""

    def __len__(self) -> int:
        """How many inputs there are."""

    def answer(self, index: int, rows: Rows) -> Answer:
        """Ask member `index` about `rows`."""


@dataclass(frozen=True)
class Lazy:
    """Runs a member on the rows asked for and on no other."""

    members: Sequence[Any]
    X: Any
    score: Score

    def __len__(self) -> int:
        return int(self.X.shape[0]) if hasattr(self.X, "shape") else len(self.X)

    def answer(self, index: int, rows: Rows) -> Answer:
        return ask(self.members[index], taken(self.X, rows), self.score)


@dataclass(frozen=True)
class Known:
    """Answers of every member for every input, computed once: for looking at many cascades of the same members."""

    answers: Sequence[Answer]

    @classmethod
    def of(cls, source: Source, members: int) -> Known:
        everyone = np.arange(len(source))
        return cls([source.answer(index, everyone) for index in range(members)])

    def followed_by(self, other: Known) -> Known:
        """These inputs and after them the others, answered by the same members."""
        return Known([first.followed_by(second) for first, second in zip(self.answers, other.answers, strict=True)])

    def __len__(self) -> int:
        return len(self.answers[0].probabilities)

    def answer(self, index: int, rows: Rows) -> Answer:
        known = self.answers[index]
        scores = None if known.logit_scores is None else known.logit_scores[rows]
        return Answer(known.probabilities[rows], scores)


@dataclass(eq=False)
class Ensemble:
    """The running average of the answers each input has had so far; `stages` counts them."""

    source: Source
    score: Score
    probabilities: Probabilities
    logit_scores: Scores | None
    stages: Int[np.ndarray, " n"]
    scores: Scores

    @classmethod
    def begin(cls, source: Source, score: Score) -> Ensemble:
        """Every input with the answer of the first member."""
        first = source.answer(0, np.arange(len(source)))
        scores = scored(first.probabilities, score) if first.logit_scores is None else first.logit_scores
        copied = None if first.logit_scores is None else first.logit_scores.copy()
        return cls(
            source, score, first.probabilities.copy(), copied, np.ones(len(source), dtype=np.int64), scores.copy()
        )

    def part(self, rows: Rows, source: Source) -> Ensemble:
        """Some of the inputs; `source` answers for these alone."""
        logit_scores = None if self.logit_scores is None else self.logit_scores[rows]
        return Ensemble(
            source, self.score, self.probabilities[rows], logit_scores, self.stages[rows], self.scores[rows]
        )

    @classmethod
    def joined(cls, parts: Sequence[Ensemble], source: Source) -> Ensemble:
        """Inputs of several parts after one another; `source` answers for all of them."""
        logit_scores = [part.logit_scores for part in parts if part.logit_scores is not None]
        return cls(
            source,
            parts[0].score,
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate(logit_scores) if logit_scores else None,
            np.concatenate([part.stages for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )

    def ask(self, index: int, rows: Rows) -> None:
        """Add the answer of member `index` for `rows`, which have had `index` answers before."""
        if len(rows) == 0:
            return
        answer = self.source.answer(index, rows)
        if answer.probabilities.shape[1] != self.probabilities.shape[1]:
            raise InputError(
                f"member 0 knows {self.probabilities.shape[1]} classes and member {index} knows "
                f"{answer.probabilities.shape[1]}; averages need the same classes in the same order"
            )
        self.probabilities[rows] += (answer.probabilities - self.probabilities[rows]) / (index + 1)
        if self.logit_scores is not None and answer.logit_scores is not None:
            self.logit_scores[rows] += (answer.logit_scores - self.logit_scores[rows]) / (index + 1)
        self.stages[rows] = index + 1
        if self.logit_scores is not None:
            self.scores[rows] = self.logit_scores[rows]
        else:
            self.scores[rows] = scored(self.probabilities[rows], self.score)


def scored(probabilities: Probabilities, score: Score) -> Scores:
    """The score of averaged probabilities, one finite number a row."""
    if isinstance(score, str):
        return PROBABILITY_SCORES[score](probabilities)
    values = np.asarray(score(probabilities), dtype=np.float64)
    if values.shape != (len(probabilities),) or np.isnan(values).any():
        raise InputError(f"the score must give one number for each of {len(probabilities)} rows, got {values.shape}")
    return values


def ask(member: Any, X: Any, score: Score) -> Answer:
    """One member's answer for all of X.

    Raises InputError when it gives anything but a row of probabilities an input, or no logits where the score needs
    them.
    """
    if isinstance(member, nn.Module):
        logits = _logits(member, X)
        logit_scores = LOGIT_SCORES[score](logits.numpy()) if isinstance(score, str) and score in LOGIT_SCORES else None
        return Answer(logits.softmax(1).numpy(), logit_scores)
    if isinstance(score, str) and score in LOGIT_SCORES:
        raise InputError(f"the score {score!r} needs logits, so every member must be an nn.Module; got {member!r:.60}")
    predict = member.predict_proba if hasattr(member, "predict_proba") else member
    return Answer(_checked(np.asarray(predict(X), dtype=np.float64), len(X) if hasattr(X, "__len__") else X.shape[0]))


def taken(X: Any, rows: Rows) -> Any:
    """The rows of an array, a tensor, a data frame or a sparse matrix."""
    if isinstance(X, Tensor):
        return X[torch.from_numpy(rows).to(X.device)]
    return X.iloc[rows] if hasattr(X, "iloc") else X[rows]


def joined(parts: Sequence[Any]) -> Any:
    """Several sets of inputs as one: tensors, arrays or data frames of one kind."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if hasattr(parts[0], "iloc"):
        import pandas as pd

        return pd.concat(list(parts))
    return np.concatenate([np.asarray(part) for part in parts])


@torch.no_grad()
def _logits(model: nn.Module, X: Any) -> Float[Tensor, "n classes"]:
    first = next(model.parameters(), torch.zeros(()))
    x = torch.as_tensor(X)
    with evaluating(model):
        parts = [model(part.to(first.device)).double().cpu() for part in x.split(_BATCH)]
    return torch.cat(parts)


def _checked(p: np.ndarray, n: int) -> Probabilities:
    if p.ndim != 2 or len(p) != n or p.shape[1] < 2:
        raise InputError(f"a member must give a row of at least two class probabilities an input, got shape {p.shape}")
    if not (np.isfinite(p).all() and p.min() >= 0 and np.abs(p.sum(axis=1) - 1).max() <= _SUM_SLACK):
        raise InputError(
            "a member gave rows that are not probabilities (negative, or not summing to one); logits belong in an "
            "nn.Module member, or through a softmax"
        )
    return p
