"""Greedy search for the words of a text that change an answer (after Jin et al., 2020, and Li et al., 2019).

With scores, the importance of a word is how much the objective rises when the word is taken out; words are visited in
that order, all candidates of a word are tried in one batch, and the best text (with `beam`, the best few) is kept.  The
search stops at success, when the threat's allowance is spent, or when the query budget is.

With labels alone there is no score to climb.  Then texts with the full allowance of random replacements are drawn until
one succeeds, and its words are put back one by one as long as it still does (after Maheshwary et al., 2021).

A search is a generator that yields texts and is sent their objectives; `together` runs many of them and asks for the
texts of all at once, so the model sees large batches.  An objective above zero is
success; with classes it is the margin, so a tie is none.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from holdfast.core.errors import InputError
from holdfast.core.seeds import numpy_generator
from holdfast.inputs.attack.losses import Aim, Goal
from holdfast.inputs.text.edits import WordSubstitution, replace_words, without_words, word_places
from holdfast.inputs.text.tokens import pieces

#: Maps n texts to scores (n, classes), or to labels (n,) as integers.
TextModel = Callable[[list[str]], np.ndarray | torch.Tensor]
#: Whether an edited text may stand for the original.
Constraint = Callable[[str, str], bool]
Objective = Callable[[list[str], Int[np.ndarray, " n"]], Float[np.ndarray, " n"]]


@dataclass(frozen=True)
class Found:
    """The best text of one search, its objective, the texts scored for it, and how many words it changed."""

    text: str
    objective: float
    queries: int
    changed: int

    @property
    def success(self) -> bool:
        return self.objective > 0


#: Texts that go to the model together; bounds memory, not results.
CHUNK = 4096
#: Random texts that a search by labels asks for at once.
_DRAWS = 25
Search = Generator[list[str], Float[np.ndarray, " n"], Found]


@dataclass(frozen=True, eq=False)
class TextAttackRun:
    """What an attack on texts found, one entry a text.

    `success` says whether a text that was classified rightly is now classified as the attack wants, by a fresh look at
    `texts`; `queries` counts the texts scored for it; `changed` its words that were replaced; `best_loss` the margin
    reached (-inf where the answer was wrong already and nothing was tried).
    """

    texts: tuple[str, ...]
    success: Bool[np.ndarray, " texts"]
    queries: Int[np.ndarray, " texts"]
    changed: Int[np.ndarray, " texts"]
    best_loss: Float[np.ndarray, " texts"]


@dataclass(frozen=True)
class GreedyTextAttack:
    """Replace the words that matter most by what hurts most.

    Parameters
    ----------
    threat : which words may become what, and how many of them.
    constraint : (original, edited) -> whether the edited text is admissible; it costs no query.
    queries : texts that may be scored for one example.
    beam : texts kept at every word.
    access : "scores" or "labels"; a model that answers integers of shape (n,) gives labels.

    Raises InputError for queries or beam below 1.
    """

    threat: WordSubstitution
    constraint: Constraint | None = None
    queries: int = 1000
    beam: int = 1
    access: Literal["scores", "labels"] = "scores"

    def __post_init__(self) -> None:
        if self.queries < 1 or self.beam < 1:
            raise InputError(f"an attack needs queries >= 1 and beam >= 1, got {self.queries} and {self.beam}")

    def __call__(
        self,
        model: TextModel,
        texts: Sequence[str],
        y: Int[np.ndarray, " texts"],
        *,
        goal: Goal | None = None,
        generator: np.random.Generator | None = None,
    ) -> tuple[str, ...]:
        """Adversarial texts; one whose answer could not be changed comes back at its best all the same."""
        return self.run(model, texts, y, goal=goal, generator=generator).texts

    def run(
        self,
        model: TextModel,
        texts: Sequence[str],
        y: Int[np.ndarray, " texts"],
        *,
        goal: Goal | None = None,
        generator: np.random.Generator | None = None,
    ) -> TextAttackRun:
        """The texts with the record of the search.

        Raises InputError when labels do not fit the texts, a text has no word, or the model's answer has a wrong shape.
        """
        texts = tuple(texts)
        if len(y) != len(texts):
            raise InputError(f"{len(texts)} texts but {len(y)} labels")
        for place, text in enumerate(texts):
            if not word_places(pieces(text)):
                raise InputError(f"text {place} has no word to be replaced: {text[:40]!r}")
        generator = numpy_generator(0, "greedy text attack") if generator is None else generator
        if not texts:
            return TextAttackRun((), np.zeros(0, bool), np.zeros(0, int), np.zeros(0, int), np.zeros(0))
        aim = Aim.of("margin", torch.from_numpy(np.asarray(y, dtype=np.int64)), goal)

        def objective(edited: list[str], owners: np.ndarray) -> np.ndarray:
            part = aim.take(torch.from_numpy(owners))
            return part.value(_scores(model, edited, part)).numpy()

        clean = objective(list(texts), np.arange(len(texts)))
        right = Aim.of("margin", aim.y, None).value(_scores(model, list(texts), aim)).numpy() <= 0
        rows = np.flatnonzero(right & (clean <= 0))
        searches = [self.search(texts[row], float(clean[row]), generator) for row in rows]
        found = together(searches, lambda edited, owners: objective(edited, rows[owners]))
        edited, queries = list(texts), np.zeros(len(texts), dtype=np.int64)
        changed, best = np.zeros(len(texts), dtype=np.int64), np.full(len(texts), -np.inf)
        for row, result in zip(rows, found):
            edited[row], queries[row] = result.text, result.queries
            changed[row], best[row] = result.changed, result.objective
        success = np.zeros(len(texts), dtype=bool)
        if len(rows):
            success[rows] = objective([edited[row] for row in rows], rows) > 0
        return TextAttackRun(tuple(edited), success, queries, changed, best)

    def search(self, text: str, objective: float, generator: np.random.Generator) -> Search:
        """The search on one text whose objective is known; see `together`."""
        if self.access == "labels":
            return self._by_labels(text, objective, generator)
        return self._by_scores(text, objective)

    def _by_scores(self, text: str, objective: float) -> Search:
        tokens = pieces(text)
        options = {place: found for place in word_places(tokens) if (found := self.threat.options(tokens[place]))}
        asked = list(options)[: self.queries] if len(options) > 1 else []
        importance = (yield ["".join(without_words(tokens, [place])) for place in asked]) if asked else np.zeros(0)
        order = [asked[place] for place in np.argsort(-importance, kind="stable")] if asked else list(options)
        queries, allowed = len(asked), self.threat.allowance(tokens)
        beam = [_Kept(objective, tuple(tokens), 0)]
        for place in order:
            if beam[0].objective > 0:
                break
            trials = [
                (changed, member.changed + 1)
                for member in beam
                if member.changed < allowed
                for option in options[place]
                if self._admits(text, changed := (*member.tokens[:place], option, *member.tokens[place + 1 :]))
            ][: self.queries - queries]
            if not trials:
                continue
            queries += len(trials)
            values = yield ["".join(changed) for changed, _ in trials]
            kept = [_Kept(float(value), *trial) for value, trial in zip(values, trials)]
            beam = sorted(beam + kept, key=lambda member: -member.objective)[: self.beam]
        return Found("".join(beam[0].tokens), beam[0].objective, queries, beam[0].changed)

    def _by_labels(self, text: str, objective: float, generator: np.random.Generator) -> Search:
        tokens, queries = pieces(text), 0
        best = _Kept(objective, tuple(tokens), 0)
        while queries < self.queries and best.objective <= 0:
            drawn = (self._drawn(tokens, generator) for _ in range(min(_DRAWS, self.queries - queries)))
            trials = [trial for trial in drawn if self._admits(text, trial)]
            queries += max(len(trials), 1)
            if trials:
                values = yield ["".join(trial) for trial in trials]
                first = int(np.argmax(values))
                if values[first] > 0:
                    best = _Kept(float(values[first]), trials[first], _differences(trials[first], tokens))
        if best.objective > 0:
            for place in generator.permutation([p for p, token in enumerate(tokens) if best.tokens[p] != token]):
                restored = (*best.tokens[:place], tokens[place], *best.tokens[place + 1 :])
                if queries >= self.queries or best.changed == 1 or not self._admits(text, restored):
                    continue
                queries += 1
                (value,) = yield ["".join(restored)]
                if value > 0:
                    best = _Kept(float(value), restored, best.changed - 1)
        return Found("".join(best.tokens), best.objective, queries, best.changed)

    def _drawn(self, tokens: list[str], generator: np.random.Generator) -> tuple[str, ...]:
        options = self.threat.options
        return tuple(replace_words(tokens, generator, options=options, count=self.threat.allowance(tokens)))

    def _admits(self, text: str, tokens: Sequence[str]) -> bool:
        return self.constraint is None or self.constraint(text, "".join(tokens))


def together(searches: Sequence[Search], objective: Objective) -> list[Found]:
    """Run searches side by side: `objective(texts, owners)` gets what all of them ask for, owners being their numbers.

    Raises InputError when it does not answer one finite number a text.
    """
    found: dict[int, Found] = {}
    asked: dict[int, list[str]] = {}

    def advance(number: int, values: np.ndarray | None) -> None:
        try:
            asked[number] = next(searches[number]) if values is None else searches[number].send(values)
        except StopIteration as end:
            found[number] = end.value

    for number in range(len(searches)):
        advance(number, None)
    while asked:
        pending, asked = asked, {}
        owners = np.repeat(list(pending), [len(texts) for texts in pending.values()])
        values = np.asarray(objective([text for texts in pending.values() for text in texts], owners), dtype=np.float64)
        if values.shape != owners.shape or np.isnan(values).any():
            raise InputError(f"the objective of {len(owners)} texts must be as many numbers, got {values.shape} or NaN")
        start = 0
        for number, texts in pending.items():
            advance(number, values[start : start + len(texts)])
            start += len(texts)
    return [found[number] for number in range(len(searches))]


@dataclass(frozen=True)
class _Kept:
    """A text on the beam."""

    objective: float
    tokens: tuple[str, ...]
    changed: int


def _differences(tokens: Sequence[str], others: Sequence[str]) -> int:
    return sum(here != there for here, there in zip(tokens, others))


def _scores(model: TextModel, texts: list[str], aim: Aim) -> torch.Tensor:
    """Scores (n, classes) in float64; labels become one and zeros, so that the right class is ahead by one."""
    parts = [model(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK)]
    answers = torch.cat([torch.as_tensor(part).detach().cpu() for part in parts])
    if answers.ndim == 1 and len(answers) == len(texts) and not answers.is_floating_point():
        classes = int(max(answers.max(), aim.y.max(), 1 if aim.towards is None else aim.towards.max(), 1)) + 1
        answers = torch.nn.functional.one_hot(answers.long(), classes)
    if answers.ndim != 2 or len(answers) != len(texts) or answers.shape[1] < 2:
        raise InputError(
            f"the model maps {len(texts)} texts to shape {tuple(answers.shape)}; (texts, classes) scores or (texts,) "
            "integer labels were wanted"
        )
    if int(aim.y.max()) >= answers.shape[1] or int(aim.y.min()) < 0:
        raise InputError(f"labels reach {int(aim.y.max())}, but the model has {answers.shape[1]} classes")
    return answers.double()
