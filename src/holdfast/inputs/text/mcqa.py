"""Multiple-choice questions and a stress test of models that answer them (FailureSensorIQ, 2025).

A model is asked the same items in their own form and in forms that keep the right answer (`mcqa_edits.perturb`, or a
file of reworded twins).  With r_i, r'_i in {0, 1} saying whether item i was answered right before and after:

    accuracy              mean(r)
    performance drop rate mean(r' - r)               negative when the perturbation costs answers
    consistent accuracy   mean(r r')
    recall of performance sum(r r') / sum(r)         what is left of what was right

Shapes: logits (options,) an item, in the order of the options as they were shown.  With one right option the answer is
the option with the largest logit, and a tie at the top answers nothing; where several may be right, a logit is the
log-odds of its option and the answer is every option above zero.
"""

from __future__ import annotations

import gzip
import json
import string
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats
from scipy.special import softmax

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Cell, Table
from holdfast.core.intervals import bootstrap, clopper_pearson, empirical_bernstein, paired_difference

Quality = Literal["options", "asset", "wording"]


@dataclass(frozen=True)
class MCQPrompt:
    """What a model is shown: never which option is right.  A single option is to be judged true or false."""

    question: str
    options: tuple[str, ...]
    option_ids: tuple[str, ...]
    question_first: bool = True
    several: bool = False

    @property
    def text(self) -> str:
        """The prompt as lines: question and labelled options, in the order of `question_first`."""
        if len(self.options) == 1:
            lines = [f"Proposed answer: {self.options[0]}", "Is the proposed answer right, true or false?"]
        else:
            gaps = ["" if label.endswith(")") else "." for label in self.option_ids]
            lines = [f"{i}{gap} {option}" for i, gap, option in zip(self.option_ids, gaps, self.options, strict=True)]
        return "\n".join([self.question, *lines] if self.question_first else [*lines, self.question])


class MCQModel(Protocol):
    """Logits of the options of a prompt, (options,); from any `(question, options) -> logits` by a lambda:
    `lambda prompt: score(prompt.question, prompt.options)`."""

    def __call__(self, prompt: MCQPrompt, /) -> Any: ...


@dataclass(frozen=True)
class MCQItem:
    """A question with its options and which of them are right.

    `option_ids` default to A, B, ...; `key` names the item in all its forms; `asset` and `wording` group items in
    reports; `one_by_one` shows the model one option at a time; `several` (default: more than one is right) says that
    more than one option may be chosen.

    Raises InputError on fewer than two options, equal options, no right option or lengths that differ.
    """

    question: str
    options: tuple[str, ...]
    correct: tuple[bool, ...]
    option_ids: tuple[str, ...] = ()
    key: str | int = ""
    asset: str = ""
    wording: str = ""
    question_first: bool = True
    one_by_one: bool = False
    several: bool | None = None

    def __post_init__(self) -> None:
        k, name = len(self.options), f"item {self.key!r}" if self.key != "" else f"the item {self.question[:40]!r}"
        if k < 2:
            raise InputError(f"{name} has {k} options; a choice needs at least two")
        if len(set(self.options)) < k:
            twice = next(option for option in self.options if self.options.count(option) > 1)
            raise InputError(f"{name} offers {twice!r} twice; leave one out")
        if len(self.correct) != k or not any(self.correct):
            raise InputError(f"{name} needs {k} marks `correct` with at least one true, got {self.correct}")
        if not self.option_ids:
            object.__setattr__(self, "option_ids", labels_from("A", k))
        if len(self.option_ids) != k or len(set(self.option_ids)) < k:
            raise InputError(f"{name} needs {k} different option_ids, got {self.option_ids}")
        if self.several is None:
            object.__setattr__(self, "several", sum(self.correct) > 1)

    def prompts(self) -> tuple[MCQPrompt, ...]:
        """What the model is shown: one prompt, or one for every option."""
        several = bool(self.several)
        if not self.one_by_one:
            return (MCQPrompt(self.question, self.options, self.option_ids, self.question_first, several),)
        pairs = zip(self.options, self.option_ids, strict=True)
        return tuple(MCQPrompt(self.question, (o,), (i,), self.question_first, several) for o, i in pairs)


def labels_from(first: str, count: int) -> tuple[str, ...]:
    """`count` capital letters from `first` on.  Raises InputError when the alphabet ends before."""
    start = string.ascii_uppercase.index(first)
    if start + count > len(string.ascii_uppercase):
        raise InputError(f"{count} options from {first!r} on run past 'Z'; give option_ids of your own")
    return tuple(string.ascii_uppercase[start : start + count])


def read_items(path: str | Path, damaged: Literal["raise", "skip"] = "raise") -> tuple[MCQItem, ...]:
    """Items of a JSONL file, plain or .gz, with fields question, options, correct and, where known, option_ids, id,
    asset_name, question_type, question_first.

    Raises InputError naming the line of an item that is none; `damaged="skip"` warns how many were left out.
    """
    path = Path(path)
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    items, left_out = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            items.append(_item(json.loads(line), number))
        except (KeyError, TypeError, ValueError) as error:
            if damaged == "raise":
                reason = f"there is no field {error}" if isinstance(error, KeyError) else str(error)
                raise InputError(f"{path.name}, line {number}, is no multiple-choice item: {reason}") from error
            left_out.append(number)
    if left_out:
        warnings.warn(f"{path.name}: {len(left_out)} lines are no items (the first: {left_out[0]})", stacklevel=2)
    return tuple(items)


def _item(row: Mapping[str, Any], number: int) -> MCQItem:
    return MCQItem(
        question=row["question"],
        options=tuple(row["options"]),
        correct=tuple(bool(mark) for mark in row["correct"]),
        option_ids=tuple(row.get("option_ids", ())),
        key=row.get("id", number),
        asset=row.get("asset_name", ""),
        wording=row.get("question_type", ""),
        question_first=row.get("question_first", True),
    )


def aligned(*forms: Sequence[MCQItem]) -> tuple[tuple[MCQItem, ...], ...]:
    """The items whose key is in every form, in the order of the first.  Raises InputError when a key comes twice."""
    tables = [{item.key: item for item in form} for form in forms]
    if any(len(table) < len(form) for table, form in zip(tables, forms, strict=True)):
        raise InputError("two items of one form carry the same key; keys name an item in all its forms")
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    return tuple(tuple(table[key] for key in shared) for table in tables)


@dataclass(frozen=True)
class PositionInformation:
    """Mutual information (nats) between the place of a right option and whether it was chosen, given the number of
    options, and the p-value of the G-test that there is none."""

    nats: float
    p: float


@dataclass(frozen=True)
class Answers:
    """What a model said to items; numbers over items come with intervals at `level`."""

    items: tuple[MCQItem, ...]
    logits: tuple[Float[np.ndarray, " _"], ...]

    @cached_property
    def chosen(self) -> tuple[Bool[np.ndarray, " _"], ...]:
        """The options that each answer consists of."""
        return tuple(z > 0 if item.several else z == z.max() for item, z in zip(self.items, self.logits, strict=True))

    @cached_property
    def right(self) -> Bool[np.ndarray, " items"]:
        """Whether exactly the right options were chosen."""
        return np.array([bool((c == i.correct).all()) for c, i in zip(self.chosen, self.items, strict=True)])

    @cached_property
    def counts(self) -> Int[np.ndarray, "items 3"]:
        """An item's options chosen and right, chosen, right."""
        pairs = zip(self.chosen, self.items, strict=True)
        return np.array([(int((c & i.correct).sum()), int(c.sum()), sum(i.correct)) for c, i in pairs])

    def accuracy(self, level: float = 0.95) -> Estimate:
        """Share of items with exactly the right options (exact match)."""
        return clopper_pearson(self.right.sum(), len(self.right), level)

    def accuracy_by(self, quality: Quality, level: float = 0.95) -> dict[str, Estimate]:
        """Accuracy for every number of options, asset or wording."""
        kinds = np.array([str(len(i.options)) if quality == "options" else getattr(i, quality) for i in self.items])
        return {
            str(kind): clopper_pearson(self.right[kinds == kind].sum(), (kinds == kind).sum(), level)
            for kind in sorted(set(kinds.tolist()), key=lambda kind: (len(kind), kind))
        }

    def jaccard(self, level: float = 0.95) -> Estimate:
        """Mean over items of |chosen and right| / |chosen or right|."""
        both, chosen, right = self.counts.T
        return empirical_bernstein(both / (chosen + right - both), level)

    def micro_f1(self, generator: np.random.Generator, level: float = 0.95) -> Estimate:
        """2 x (chosen and right) / (chosen + right), counted over all items; bootstrap over items."""

        def f1(counts: np.ndarray) -> np.ndarray:
            totals = counts.sum(axis=-2)
            return 2 * totals[..., 0] / (totals[..., 1] + totals[..., 2])

        return bootstrap(f1, self.counts, generator=generator, level=level, vectorized=True)

    def position_recall(self, options: int | None = None, level: float = 0.95) -> dict[int, Estimate]:
        """For every place: how often a right option that stood there was chosen; over items with so many `options`
        (late places exist in long items only, which are harder).  Raises InputError when no item has so many."""
        found, places, counts = self._found()
        if options is not None:
            found, places = found[counts == options], places[counts == options]
        if not len(found):
            raise InputError(f"no item has {options} options")
        table = {int(place): found[places == place] for place in np.unique(places)}
        return {place: clopper_pearson(some.sum(), len(some), level) for place, some in table.items()}

    def position_information(self) -> PositionInformation:
        """How much the place of a right option says about whether it is chosen: zero for models blind to order."""
        found, places, counts = self._found()
        statistic, freedom = 0.0, 0
        for k in np.unique(counts):
            alike = counts == k
            table = np.stack([np.bincount(places[alike & (found == hit)], minlength=k) for hit in (True, False)])
            table = table[:, table.sum(axis=0) > 0]
            if table.shape[1] > 1 and table.any(axis=1).all():
                test = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
                statistic, freedom = statistic + float(test.statistic), freedom + int(test.dof)
        p = float(stats.chi2.sf(statistic, freedom)) if freedom else 1.0
        return PositionInformation(statistic / (2 * len(found)), p)

    def _found(self) -> tuple[Bool[np.ndarray, " right"], Int[np.ndarray, " right"], Int[np.ndarray, " right"]]:
        """For every right option: whether it was chosen, its place, and how many options its item has."""
        marks = [np.asarray(item.correct) for item in self.items]
        found = np.concatenate([c[m] for c, m in zip(self.chosen, marks, strict=True)])
        counts = np.concatenate([np.full(m.sum(), len(m)) for m in marks])
        return found, np.concatenate([np.flatnonzero(m) for m in marks]), counts

    def probabilities(self) -> Float[np.ndarray, "items most_options"]:
        """Softmax over each item's own options; the places of options that it does not have hold 0."""
        padded = np.full((len(self.items), max(map(len, self.logits))), -np.inf)
        for row, z in zip(padded, self.logits, strict=True):
            row[: len(z)] = z
        return softmax(padded, axis=1)


def ask(model: Callable[[MCQPrompt], Any], items: Sequence[MCQItem]) -> Answers:
    """Put every item to the model.  Raises InputError on no items, or logits of a wrong number or not finite."""
    if not items:
        raise InputError("no items to ask")
    return Answers(tuple(items), tuple(_logits(model, item) for item in items))


def _logits(model: Callable[[MCQPrompt], Any], item: MCQItem) -> Float[np.ndarray, " options"]:
    parts = []
    for prompt in item.prompts():
        logits = np.asarray(model(prompt), dtype=np.float64)
        if logits.shape != (len(prompt.options),):
            raise InputError(f"item {item.key!r} has {len(prompt.options)} options, got logits of shape {logits.shape}")
        parts.append(logits)
    joined = np.concatenate(parts)
    if not np.isfinite(joined).all():
        raise InputError(f"the model's logits for item {item.key!r} hold NaN or infinity")
    return joined


@dataclass(frozen=True)
class Stress:
    """What one perturbation did; `recall` is None when nothing was right before."""

    answers: Answers
    accuracy: Estimate
    drop_rate: Estimate
    consistent: Estimate
    recall: Estimate | None


@dataclass(frozen=True)
class MCQReport:
    """Answers to the items themselves, and what every perturbation did to them."""

    plain: Answers
    stresses: Mapping[str, Stress]

    def table(self) -> Table:
        """One row a form of the items."""
        rows: list[tuple[Cell, ...]] = [("as written", self.plain.accuracy(), None, None, None)]
        rows += [(name, s.accuracy, s.drop_rate, s.consistent, s.recall) for name, s in self.stresses.items()]
        columns = ("form", "accuracy", "drop rate", "consistent accuracy", "recall of performance")
        return Table("Multiple choice under perturbation", columns, tuple(rows))


def stress(
    model: Callable[[MCQPrompt], Any],
    items: Sequence[MCQItem],
    perturbations: Mapping[str, Sequence[MCQItem]],
    level: float = 0.95,
) -> MCQReport:
    """Ask `items` and, under every name, their perturbed twins in the same order; differences are paired.

    Raises InputError when twins do not carry the keys of their items.
    """
    plain = ask(model, items)
    return MCQReport(plain, {name: _stress(model, plain, twins, name, level) for name, twins in perturbations.items()})


def _stress(
    model: Callable[[MCQPrompt], Any], plain: Answers, twins: Sequence[MCQItem], name: str, level: float
) -> Stress:
    if [twin.key for twin in twins] != [item.key for item in plain.items]:
        raise InputError(f"the items of {name!r} must be the {len(plain.items)} items in order, with the same keys")
    answers = ask(model, twins)
    before, after = plain.right, answers.right
    both, n = (before & after).sum(), len(before)
    return Stress(
        answers,
        answers.accuracy(level),
        paired_difference(before, after, level),
        clopper_pearson(both, n, level),
        clopper_pearson(both, before.sum(), level) if before.any() else None,
    )
