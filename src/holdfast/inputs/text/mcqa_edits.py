"""Changes to a multiple-choice item that keep its right answer (PertEval, 2024; FailureSensorIQ, 2025).

    distract       wrong options from elsewhere until there are ten, in a new order
    reorder        the options in a new order; `reverse`: back to front
    relabel        labels from P on; `bracket`: ")" after every label
    paraphrase     the question in other words
    question_last  the question after the options
    one_by_one     every option judged by itself

`simple` is reorder, relabel and bracket; `complex` is all of them but `reverse`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from holdfast.core.errors import InputError
from holdfast.inputs.text.mcqa import MCQItem, labels_from

SIMPLE = ("reorder", "relabel", "bracket")
COMPLEX = ("distract", *SIMPLE, "paraphrase", "question_last", "one_by_one")
EDITS = ("reverse", *COMPLEX)
TEN = 10


def perturb(
    item: MCQItem,
    kind: str | Sequence[str],
    generator: np.random.Generator,
    paraphrase: Callable[[str], str] | None = None,
    distractors: Sequence[str] | None = None,
) -> MCQItem:
    """The item after "simple", "complex" or a sequence of named edits, done in the order of the list above.

    `distractors` are wrong options to draw from (see `distractors_for`); `paraphrase` must keep the meaning: nothing
    here can check that.

    Raises InputError on an unknown edit, on "paraphrase" or "distract" without what they need, and when there are too
    few distractors to reach ten options.
    """
    edits = {"simple": SIMPLE, "complex": COMPLEX}.get(kind, (kind,)) if isinstance(kind, str) else tuple(kind)
    if unknown := [edit for edit in edits if edit not in EDITS]:
        raise InputError(f"no edit is called {unknown[0]!r}; there are simple, complex, {', '.join(EDITS)}")
    if "distract" in edits:
        item = _distracted(item, distractors, generator)
    if "reorder" in edits:
        item = _in_order(item, generator.permutation(len(item.options)))
    if "reverse" in edits:
        item = _in_order(item, np.arange(len(item.options))[::-1])
    if "relabel" in edits:
        item = replace(item, option_ids=labels_from("P", len(item.options)))
    if "bracket" in edits:
        item = replace(item, option_ids=tuple(f"{label})" for label in item.option_ids))
    if "paraphrase" in edits:
        if paraphrase is None:
            raise InputError('"paraphrase" needs a callable str -> str; pass paraphrase=, or name the edits without it')
        item = replace(item, question=paraphrase(item.question))
    if "question_last" in edits:
        item = replace(item, question_first=False)
    return replace(item, one_by_one=True) if "one_by_one" in edits else item


def distractors_for(item: MCQItem, items: Sequence[MCQItem]) -> tuple[str, ...]:
    """Options of other items of the same asset and wording, less this item's own and any that is right for its
    question in some item.

    Options of a question about another thing may be right for this one without the table saying so: look at a sample.
    """
    right = {
        option
        for other in items
        if other.question == item.question
        for option, mark in zip(other.options, other.correct, strict=True)
        if mark
    }
    alike = (o for other in items if (other.asset, other.wording) == (item.asset, item.wording) for o in other.options)
    return tuple(option for option in dict.fromkeys(alike) if option not in right and option not in item.options)


def _distracted(item: MCQItem, distractors: Sequence[str] | None, generator: np.random.Generator) -> MCQItem:
    wanted = TEN - len(item.options)
    pool = [option for option in dict.fromkeys(distractors or ()) if option not in item.options]
    if wanted > len(pool):
        raise InputError(
            f"item {item.key!r} needs {wanted} distractors to reach {TEN} options, got {len(pool)}; pass distractors="
        )
    if wanted > 0:
        drawn = tuple(pool[place] for place in generator.choice(len(pool), wanted, replace=False))
        options, correct = item.options + drawn, item.correct + (False,) * wanted
        item = replace(item, options=options, correct=correct, option_ids=labels_from("A", TEN))
    return _in_order(item, generator.permutation(len(item.options)))


def _in_order(item: MCQItem, order: np.ndarray) -> MCQItem:
    """The options as `order` names them; labels stay with their places."""
    return replace(item, options=tuple(item.options[i] for i in order), correct=tuple(item.correct[i] for i in order))
