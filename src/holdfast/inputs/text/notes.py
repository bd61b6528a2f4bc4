"""Notes before answers, for models that read retrieved documents (Chain-of-Note; Yu et al., 2023).

The reader writes a note on every document, then the answer:

    p(n_1..n_k, a | q, d) = prod_i p(n_i | q, d, n_<i) p(a | q, d, n)

A note says that its document answers the question, gives context to combine with what the model knows, or is
irrelevant; with nothing to go by the answer is "unknown".  Notes are long and would drown the answer in one mean, so
the training loss weighs two means,

    loss = (1 - w) mean over tokens of notes and answer of -log p + w mean over tokens of the answer of -log p,

which is what drawing one of the two at every step costs on average (w = 1/2 in the paper).  Shapes: logits (batch,
tokens, vocabulary), labels and answer mask (batch, tokens); labels of -100 do not count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.inputs.text.answers import UNKNOWN, is_unknown

INSTRUCTION = (
    "Read the documents and write one note on each: (answer) what it answers, (context) what it tells that helps, or "
    '(irrelevant). Then answer the question in few words, or with "unknown" when neither the documents nor what you '
    "know will do."
)
_IGNORED = -100


class NoteKind(StrEnum):
    """What a document is to a question."""

    ANSWER = "answer"
    CONTEXT = "context"
    IRRELEVANT = "irrelevant"


_LINE = re.compile(rf"^(?:Note (\d+) \(({'|'.join(NoteKind)})\)|(Answer)):[ \t]*", re.MULTILINE)


@dataclass(frozen=True)
class Notes:
    """One note a document and the answer."""

    kinds: tuple[NoteKind, ...]
    notes: tuple[str, ...]
    answer: str

    @property
    def unknown(self) -> bool:
        """Whether the reader declined to answer."""
        return is_unknown(self.answer)


@dataclass(frozen=True)
class NotePrompt:
    """The prompt for `k` documents, the text that a reader should write, and the way back."""

    k: int = 5
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"a prompt for notes needs at least one document, got k={self.k}")

    def render(self, question: str, documents: Sequence[str]) -> str:
        """Instruction, documents and question.  Raises InputError unless there are k documents."""
        if len(documents) != self.k:
            raise InputError(f"the prompt takes {self.k} documents, got {len(documents)}; set k, or retrieve as many")
        # One line a document: a document cannot pretend to be a note or an answer.
        lines = [f"Document {i}: {_one_line(document)}" for i, document in enumerate(documents, 1)]
        return "\n".join([self.instruction, *lines, f"Question: {_one_line(question)}", ""])

    def write(self, notes: Notes) -> str:
        """What the reader should write: the target of training.  Raises InputError unless there are k notes."""
        if not len(notes.kinds) == len(notes.notes) == self.k:
            raise InputError(f"wanted {self.k} notes, got {len(notes.kinds)} kinds and {len(notes.notes)} notes")
        pairs = zip(notes.kinds, notes.notes, strict=True)
        lines = [f"Note {i} ({kind}): {_one_line(note)}" for i, (kind, note) in enumerate(pairs, 1)]
        return "\n".join([*lines, f"Answer: {_one_line(notes.answer)}"])

    def parse(self, text: str) -> Notes:
        """Notes from what a reader wrote.  Raises InputError unless it holds notes 1 to k in order and one answer."""
        heads = list(_LINE.finditer(text))
        ends = [*(head.start() for head in heads[1:]), len(text)]
        bodies = [text[head.end() : end].strip() for head, end in zip(heads, ends, strict=False)]
        found = [head[3] or f"Note {head[1]}" for head in heads]
        if found != [*(f"Note {i}" for i in range(1, self.k + 1)), "Answer"]:
            raise InputError(f"wanted notes 1 to {self.k} and an answer, got {', '.join(found) or 'none of them'}")
        return Notes(tuple(NoteKind(head[2]) for head in heads[:-1]), tuple(bodies[:-1]), bodies[-1])


def _one_line(text: str) -> str:
    return " ".join(text.split())


class NoteLoss(nn.Module):
    """The weighted loss over notes and answer.

    Parameters
    ----------
    answer_weight : w, the weight of the mean over the answer alone, in [0, 1].
    shift : labels stand at their own tokens, as for causal models of transformers, and logits predict the next one;
        False when logits and labels are aligned already.
    """

    def __init__(self, answer_weight: float | int = 0.5, shift: bool = True) -> None:
        super().__init__()
        if not 0 <= answer_weight <= 1:
            raise InputError(f"answer_weight must lie in [0, 1], got {answer_weight}")
        self.answer_weight, self.shift = float(answer_weight), shift

    def forward(
        self,
        logits: Float[Tensor, "batch tokens vocabulary"],
        labels: Int[Tensor, "_ _"],
        answer_mask: Bool[Tensor, "_ _"],
    ) -> Float[Tensor, ""]:
        """`answer_mask` marks the labels that belong to the answer.

        Raises InputError on shapes that differ and when no label counts as answer.
        """
        if not logits.shape[:2] == labels.shape == answer_mask.shape:
            shapes = f"{tuple(logits.shape[:2])}, {tuple(labels.shape)} and {tuple(answer_mask.shape)}"
            raise InputError(f"logits, labels and answer_mask must agree in (batch, tokens), got {shapes}")
        if self.shift:
            logits, labels, answer_mask = logits[:, :-1], labels[:, 1:], answer_mask[:, 1:]
        answer = answer_mask & (labels != _IGNORED)
        if not bool(answer.any()):
            raise InputError("answer_mask marks no label that counts; mark the tokens of the answer")
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none")
        everything = losses.sum() / (labels != _IGNORED).sum()
        return (1 - self.answer_weight) * everything + self.answer_weight * losses[answer.flatten()].mean()


class NotedReader:
    """A reader that takes notes, from any text generator.

    Parameters
    ----------
    generate : prompt -> text, a language model.
    prompt : how documents and notes are written.
    malformed : what to do with text that holds no notes and answer: "raise" InputError, or answer "unknown".
    """

    def __init__(
        self,
        generate: Callable[[str], str],
        prompt: NotePrompt | None = None,
        malformed: Literal["raise", "unknown"] = "raise",
    ) -> None:
        self.generate, self.prompt, self.malformed = generate, prompt or NotePrompt(), malformed

    def read(self, question: str, documents: Sequence[str]) -> Notes:
        """Notes on the documents, and the answer."""
        text = self.generate(self.prompt.render(question, documents))
        try:
            return self.prompt.parse(text)
        except InputError:
            if self.malformed == "raise":
                raise
            return Notes((NoteKind.IRRELEVANT,) * self.prompt.k, ("",) * self.prompt.k, UNKNOWN)

    def __call__(self, questions: Sequence[str], documents: Sequence[Sequence[str]]) -> list[str]:
        """The answers alone: what `noise.noise_curve` asks of a reader."""
        return [self.read(question, some).answer for question, some in zip(questions, documents, strict=True)]
