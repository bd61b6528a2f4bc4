"""Which words a score rests on: integrated gradients on embeddings (Sundararajan, Taly and Yan, 2017), and occlusion.

    IG_i = (e_i - e'_i) · (1/S) Σ_{s=1..S} ∂F(e' + (s - ½)/S (e - e')) / ∂e_i,      Σ_i IG_i = F(e) - F(e') as S grows,

where e are the embedded tokens of a text and e' those of pads.  The sum over a token's embedding is its attribution.
Gradient times input is the same with one step at e and does not add up; this does, and says by how much it is off.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.inputs.text.edits import without_words, word_places
from holdfast.inputs.text.tokens import pieces

#: Maps n texts to n numbers.
ScoreFunction = Callable[[list[str]], Any]
#: Embedded texts that go through the model together.
CHUNK = 1024


class CompletenessWarning(UserWarning):
    """Attributions do not add up to the score's difference even with the most steps."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """`values` (texts, length), 0 at pads; `difference` F(e) - F(e'); `error` how far the sum is off, relative to it.

    The error is |Σ IG - difference| / max(|difference|, 0.01 Σ |IG|): where parts cancel, a difference near zero is not
    divided by.  `steps` is the number of steps each text took.
    """

    values: Float[Tensor, "texts length"]
    difference: Float[Tensor, " texts"]
    error: Float[Tensor, " texts"]
    steps: Int[Tensor, " texts"]

    def by_text(self, numbers: Int[Tensor, "texts length"], pad: int = 0) -> list[Float[np.ndarray, "_"]]:
        """The attributions of every text without its pads."""
        return [row[number != pad].double().cpu().numpy() for row, number in zip(self.values, numbers)]


@dataclass(frozen=True)
class IntegratedGradients:
    """Integrated gradients of a score with respect to what an embedding layer puts out.

    Parameters
    ----------
    embedding : the layer, or its name in the model (as in `named_modules`).
    steps : points of the midpoint rule, at least 8; doubled for texts off by more than `tolerance`, up to `most`.
    tolerance : relative error of the sum that is accepted.
    pad : number of the pad, whose embedding is the baseline.

    Raises InputError for steps below 8, and, when called, for a layer that is not in the model or a text that is all
    pads.
    """

    embedding: str | nn.Module = "embedding"
    steps: int = 50
    tolerance: float | int = 0.05
    most: int = 800
    pad: int = 0

    def __post_init__(self) -> None:
        if self.steps < 8:
            raise InputError(f"integrated gradients need at least 8 steps to mean anything, got {self.steps}")

    def __call__(
        self, model: nn.Module, numbers: Int[Tensor, "texts length"], target: int | None = None
    ) -> Attribution:
        """Attributions of `model(numbers)`, of shape (texts,), or (texts, outputs) with `target` naming the column."""
        if bool((numbers == self.pad).all(1).any()):
            empty = int((numbers == self.pad).all(1).int().argmax())
            raise InputError(f"text {empty} is empty; leave it out, there is no word to attribute its score to")
        layer = embedding_layer(model, self.embedding)
        with torch.no_grad():
            here, there = layer(numbers), layer(torch.full_like(numbers, self.pad))
            difference = self._score(model, numbers, target) - self._with(model, layer, numbers, there, target)
        steps = torch.full((len(numbers),), self.steps, dtype=torch.int64, device=numbers.device)
        values = self._integrated(model, layer, numbers, here, there, self.steps, target)
        error = _completeness_error(values, difference)
        count = self.steps
        while bool((error > self.tolerance).any()) and count < self.most:
            count = min(2 * count, self.most)
            rows = (error > self.tolerance).nonzero().squeeze(1)
            steps[rows] = count
            values[rows] = self._integrated(model, layer, numbers[rows], here[rows], there[rows], count, target)
            error = _completeness_error(values, difference)
        if bool((error > self.tolerance).any()):
            off = int((error > self.tolerance).sum())
            warnings.warn(
                f"attributions of {off} of {len(numbers)} texts are off by more than {self.tolerance:.0%} at "
                f"{self.most} steps",
                CompletenessWarning,
                stacklevel=2,
            )
        return Attribution(values, difference, error, steps)

    def _integrated(
        self,
        model: nn.Module,
        layer: nn.Module,
        numbers: Tensor,
        here: Tensor,
        there: Tensor,
        steps: int,
        target: int | None,
    ) -> Tensor:
        gap, total = here - there, torch.zeros_like(here)
        together = max(1, CHUNK // max(len(numbers), 1))
        for fractions in ((torch.arange(steps, device=here.device) + 0.5) / steps).split(together):
            points = (there + fractions[:, None, None, None].to(here) * gap).flatten(0, 1).requires_grad_(True)
            with torch.enable_grad():
                score = self._with(model, layer, numbers.repeat(len(fractions), 1), points, target)
                (gradient,) = torch.autograd.grad(score.sum(), points)
            total += gradient.unflatten(0, (len(fractions), -1)).sum(0)
        return (gap * total / steps).sum(2).masked_fill(numbers == self.pad, 0.0)

    def _with(self, model: nn.Module, layer: nn.Module, numbers: Tensor, points: Tensor, target: int | None) -> Tensor:
        with embedded_as(layer, points):
            return self._score(model, numbers, target)

    def _score(self, model: nn.Module, numbers: Tensor, target: int | None) -> Tensor:
        score = model(numbers)
        if score.ndim == 2 and target is not None:
            score = score[:, target]
        if score.shape != (len(numbers),):
            raise InputError(
                f"the model maps {len(numbers)} texts to shape {tuple(score.shape)}; (texts,) was wanted, or (texts, "
                "outputs) with `target` naming one"
            )
        return score


def embedding_layer(model: nn.Module, embedding: str | nn.Module) -> nn.Module:
    """The layer of that name, or the layer itself.  Raises InputError when the model does not hold it."""
    modules = dict(model.named_modules())
    if isinstance(embedding, nn.Module):
        if not any(module is embedding for module in modules.values()):
            raise InputError("the embedding layer is not part of this model; pass a layer of the model or its name")
        return embedding
    if embedding not in modules:
        tables = [name for name, module in modules.items() if isinstance(module, nn.Embedding)]
        raise InputError(f"the model has no layer {embedding!r}; its embeddings are: {', '.join(tables) or 'none'}")
    return modules[embedding]


@contextmanager
def embedded_as(layer: nn.Module, points: Tensor) -> Iterator[None]:
    """Inside, the layer puts out `points` whatever it is given."""
    handle = layer.register_forward_hook(lambda module, given, output: points)
    try:
        yield
    finally:
        handle.remove()


def leave_one_out(score: ScoreFunction, texts: Sequence[str], window: int = 1) -> list[Float[np.ndarray, "_"]]:
    """Fall of the score when a word is taken out, one number a word; for scorers without gradients.

    With a longer `window` that many words are taken out together (occlusion) and each gets the mean over the windows it
    is in.  Raises InputError for texts without words, a window below 1, or a score that is not one number a text.
    """
    if window < 1:
        raise InputError(f"at least one word is taken out at a time, got a window of {window}")
    tokens = [pieces(text) for text in texts]
    places = [word_places(parts) for parts in tokens]
    if empty := [number for number, found in enumerate(places) if not found]:
        raise InputError(f"text {empty[0]} is empty; leave it out, there is no word to attribute its score to")
    spans = [[found[start : start + window] for start in range(max(1, len(found) - window + 1))] for found in places]
    variants = ["".join(without_words(parts, span)) for parts, some in zip(tokens, spans) for span in some]
    values = scored(score, [*texts, *variants])
    full, start, result = values[: len(texts)], len(texts), []
    for before, found, some in zip(full, places, spans):
        falls = before - values[start : start + len(some)]
        start += len(some)
        cover = np.array([[place in span for place in found] for span in some], dtype=np.float64)
        result.append(falls @ cover / cover.sum(0))
    return result


def per_word(values: Float[np.ndarray, " tokens"], word_of: Int[np.ndarray, " tokens"]) -> Float[np.ndarray, " words"]:
    """Attributions of the pieces a tokeniser cut words into, added up word by word; -1 marks pieces of no word."""
    kept = word_of >= 0
    return np.bincount(word_of[kept], values[kept])


def scored(score: ScoreFunction, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
    """The scores as float64.  Raises InputError unless they are one finite number a text."""
    answers = score(list(texts))
    values = np.asarray(answers.detach().cpu() if isinstance(answers, Tensor) else answers, dtype=np.float64)
    if values.shape != (len(texts),) or not np.isfinite(values).all():
        raise InputError(f"{len(texts)} texts were scored with shape {values.shape}; one finite number each was wanted")
    return values


def _completeness_error(values: Tensor, difference: Tensor) -> Tensor:
    scale = torch.maximum(difference.abs(), 0.01 * values.abs().sum(1)).clamp(min=torch.finfo(values.dtype).tiny)
    return (values.sum(1) - difference).abs() / scale
