"""Models that only answer: arrays in, scores out, every example counted, no gradient; and losses on their answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError

#: Below this a probability says no more than "no"; its logarithm would only carry rounding noise.
_SMALLEST = 1e-12


class BlackBox(nn.Module):
    """`model` cut from every graph: tensors go in, NumPy arrays reach the model, its answers come back as tensors.

    An `nn.Module` gets tensors, under `no_grad`; its parameters are not parameters of the box.  With `most` the box
    refuses the call that would take it past so many examples.

    Attributes
    ----------
    queries : examples shown to the model so far.
    """

    def __init__(self, model: Callable[..., Any], most: int | None = None) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that a module's parameters are not found from here
        self.most = most
        self.queries = 0

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "batch *shape"]) -> Tensor:
        (model,) = self._model
        self._count(len(x))
        given = x.detach()
        answers = model(given) if isinstance(model, nn.Module) else model(given.cpu().numpy())
        array = answers.detach() if isinstance(answers, Tensor) else torch.from_numpy(np.ascontiguousarray(answers))
        if array.ndim == 0 or len(array) != len(x):
            raise InputError(
                f"the model answered shape {tuple(array.shape)} to {len(x)} examples; one row each is needed"
            )
        return array.to(x.device)

    def split(self, x: Float[Tensor, "n *shape"], batch: int) -> Tensor:
        """Answers to all rows, at most `batch` a call."""
        return torch.cat([self(part) for part in x.split(batch)])

    def with_gradient(self, x: Float[Tensor, "batch *shape"]) -> Tensor:
        """Answers of an `nn.Module` with their graph: for comparison with a white box, counted all the same."""
        (model,) = self._model
        self._count(len(x))
        return model(x)

    def _count(self, examples: int) -> None:
        if self.most is not None and self.queries + examples > self.most:
            raise InputError(
                f"{examples} more queries would exceed the budget of {self.most}: {self.queries} were asked already"
            )
        self.queries += examples


@runtime_checkable
class AnswerLoss(Protocol):
    """What a model's answers are worth against what it answered to the clean input."""

    def target(self, answers: Tensor) -> Tensor:
        """What to aim at, from answers to clean inputs.  Raises InputError when they are not of the announced kind."""
        ...

    def loss(self, answers: Tensor, target: Tensor) -> Float[Tensor, " batch"]: ...

    def classes(self, answers: Tensor) -> int:
        """How many classes clean answers tell of; 0 where there are none."""
        ...

    def scores(self, answers: Tensor, classes: int) -> Tensor:
        """Answers as scores of shape (batch, classes), for votes."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """-log p_y with y the likeliest class of the clean input; from probabilities, or from logits by softmax."""

    kind: Literal["probabilities", "logits"] = "probabilities"

    def target(self, answers: Tensor) -> Int[Tensor, " batch"]:
        if answers.ndim != 2 or answers.shape[1] < 2 or not answers.is_floating_point():
            raise InputError(
                f"cross-entropy needs scores of shape (n, classes), and the model answered {tuple(answers.shape)} of "
                f"{answers.dtype}; use its scores (predict_proba, decision_function), or loss='vote' for labels alone"
            )
        if self.kind == "probabilities":
            off = float((answers.sum(1) - 1).abs().max())
            if float(answers.min()) < -1e-6 or off > 1e-3:
                raise InputError(
                    f"the model's scores are not probabilities (smallest {float(answers.min()):.3g}, sums up to "
                    f"{off:.3g} away from 1); say scores='logits' if a softmax turns them into some"
                )
        return answers.argmax(1)

    def loss(self, answers: Tensor, target: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        scores = answers.double()
        if self.kind == "logits":
            return F.cross_entropy(scores, target, reduction="none")
        return -scores.gather(1, target[:, None])[:, 0].clamp_min(_SMALLEST).log()

    def classes(self, answers: Tensor) -> int:
        return answers.shape[1]

    def scores(self, answers: Tensor, classes: int) -> Tensor:
        return answers


@dataclass(frozen=True)
class Votes:
    """1 where the label is not that of the clean input, from integer labels (n,) or from scores (n, classes).

    It is piecewise constant, so only differences over steps as long as the way to the boundary say anything.
    """

    def target(self, answers: Tensor) -> Int[Tensor, " batch"]:
        return self._labels(answers)

    def loss(self, answers: Tensor, target: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return (self._labels(answers) != target).double()

    def classes(self, answers: Tensor) -> int:
        return answers.shape[1] if answers.ndim == 2 else int(answers.max()) + 1

    def scores(self, answers: Tensor, classes: int) -> Tensor:
        labels = self._labels(answers)
        if int(labels.max()) >= classes:
            raise InputError(
                f"the model answered label {int(labels.max())}, and only 0 to {classes - 1} on the data it was fitted "
                "with; fit on data of every class"
            )
        return F.one_hot(labels, classes).double()

    @staticmethod
    def _labels(answers: Tensor) -> Int[Tensor, " batch"]:
        if answers.ndim == 2:
            return answers.argmax(1)
        if answers.ndim != 1 or answers.is_floating_point() or int(answers.min()) < 0:
            raise InputError(
                f"votes need integer labels from 0 of shape (n,), or scores (n, classes); the model answered "
                f"{tuple(answers.shape)} of {answers.dtype}"
            )
        return answers.long()


@dataclass(frozen=True)
class Squared:
    """Mean squared difference to the clean answer, for models whose answer is a number, a vector or an image."""

    def target(self, answers: Tensor) -> Tensor:
        return answers.double()

    def loss(self, answers: Tensor, target: Tensor) -> Float[Tensor, " batch"]:
        return (answers.double() - target).square().reshape(len(answers), -1).mean(1)

    def classes(self, answers: Tensor) -> int:
        return 0

    def scores(self, answers: Tensor, classes: int) -> Tensor:
        return answers


class Scored(nn.Module):
    """A box whose answers come as the scores (batch, classes) that votes need."""

    def __init__(self, box: BlackBox, loss: AnswerLoss, classes: int) -> None:
        super().__init__()
        self.box, self.loss, self.classes = box, loss, classes

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Tensor:
        return self.loss.scores(self.box(x), self.classes)


def loss_named(loss: str, scores: str) -> AnswerLoss:
    """A loss by name.  Raises InputError on an unknown name."""
    if scores not in ("probabilities", "logits"):
        raise InputError(f"scores must be 'probabilities' or 'logits', got {scores!r}")
    losses: dict[str, AnswerLoss] = {
        "cross-entropy": CrossEntropy("logits" if scores == "logits" else "probabilities"),
        "vote": Votes(),
        "squared": Squared(),
    }
    if loss not in losses:
        raise InputError(f"no loss is called {loss!r}; there are {', '.join(losses)}")
    return losses[loss]
