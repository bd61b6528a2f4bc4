"""The loop that every iterative attack shares: what is still standing, what has been found, what it cost.

An example that the model gets wrong already is returned unchanged and costs nothing.  An example that is fooled
leaves the batch, so the batch shrinks and no pass is spent on what is decided.  At the end the tensor that is
returned, and no other, goes through the model once more: `success` is what that pass says, and every point is checked
against the threat's set.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.inputs.attack.losses import Aim, Goal
from holdfast.threats.base import Threat, Valid

Model = Callable[[Tensor], Tensor]
#: Examples that go through the model together: on a CPU so few that their activations stay in its caches (512 took 1.3
#: to 1.5 times as long an image as 128 on two residual networks), on an accelerator enough to fill it.
CHUNK = 128
ACCELERATOR_CHUNK = 1024
#: Input values of the (target, example) pairs that are searched together; bounds memory.
PAIR_ELEMENTS = 1 << 22


@dataclass(frozen=True, eq=False)
class AttackRun:
    """What an attack found, one entry an example.

    `x_adv` is admissible; `success` says whether a correctly classified example is now classified as the attack
    wants; `queries` counts the passes of that example through the model (a pass with gradient counts once); `norm` is
    the threat's measure of the change; `best_loss` the highest loss seen (the clean loss is -inf for examples that
    were not attacked).
    """

    x_adv: Float[Tensor, "batch *shape"]
    success: Bool[Tensor, " batch"]
    queries: Int[Tensor, " batch"]
    norm: Float[Tensor, " batch"]
    best_loss: Float[Tensor, " batch"]


class Attack(ABC):
    """An attack is configured once and called often: `attack(model, x, y)` gives adversarial inputs, `run` everything.

    Subclasses write `run`.  x (batch, *shape) lies in `valid`; y int64 (batch,); model maps x to logits (batch,
    classes).  Raises InputError for inputs, labels or a model that do not fit (see `check_batch`).
    """

    def __call__(
        self,
        model: Model,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
        goal: Goal | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Adversarial inputs like `x`; an example that could not be fooled comes back inside the set all the same."""
        return self.run(model, x, y, valid=valid, generator=generator, goal=goal).x_adv

    @abstractmethod
    def run(
        self,
        model: Model,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = (0, 1),
        generator: torch.Generator | None = None,
        goal: Goal | None = None,
        clean_logits: Float[Tensor, "batch classes"] | None = None,
    ) -> AttackRun:
        """Adversarial inputs with the record of the search; `clean_logits` saves a pass where they are known."""


class EscapeWarning(UserWarning):
    """An attack produced a point outside its set; the clean input was returned instead."""


def pieces(points: Float[Tensor, "batch *shape"]) -> int:
    """In how many parts of equal size a batch goes through the model."""
    return -(-len(points) // (CHUNK if points.device.type == "cpu" else ACCELERATOR_CHUNK))


@torch.no_grad()
def forward(model: Model, points: Float[Tensor, "batch *shape"]) -> Tensor:
    """Logits (batch, classes) without gradients; a wrong shape is found by `check_logits`.  Raises InputError when the
    model answers with anything but a tensor.
    """
    parts = pieces(points)
    answers: list[object] = [model(part) for part in (points.tensor_split(parts) if parts > 1 else (points,))]
    logits = [answer.detach() for answer in answers if isinstance(answer, Tensor)]
    if len(logits) < len(answers):
        raise InputError(
            f"the model answers with {type(answers[0]).__name__}; a tensor of logits (batch, classes) was wanted: wrap "
            "it, for example lambda x: model(x)[0] or lambda x: model(x).logits"
        )
    return logits[0] if parts <= 1 else torch.cat(logits)


def ascend(
    model: Model, points: Float[Tensor, "batch *shape"], aim: Aim, samples: int = 1
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, " batch"], Float[Tensor, "batch *shape"]]:
    """Logits, loss and the loss's gradient at `points`, each the mean over `samples` passes of a random model."""
    parts = pieces(points)
    if parts > 1:
        places = torch.arange(len(points), device=points.device).tensor_split(parts)
        done = [ascend(model, points[rows], aim.take(rows), samples) for rows in places]
        logits, losses, grads = (torch.cat(part) for part in zip(*done))
        return logits, losses, grads
    sums: tuple[Tensor, ...] | None = None
    for _ in range(samples):
        with torch.enable_grad():
            leaf = points.detach().requires_grad_(True)
            logits = model(leaf)
            loss = aim.value(logits)
            if not loss.requires_grad:
                raise InputError("the model gives no gradient with respect to its input; use a score or label attack")
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
        found = (logits.detach(), loss.detach(), grad)
        sums = found if sums is None else tuple(old + new for old, new in zip(sums, found))
    assert sums is not None
    logits, loss, grad = sums if samples == 1 else tuple(total / samples for total in sums)
    # A gradient that is not finite would poison every later step; zero leaves the example where it is.
    return logits, loss, torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)


def as_labels(x: Any, y: Any) -> Int[Tensor, " batch"]:
    """Labels of the batch x as int64.  Raises InputError when x or y is no tensor, or y is not one whole number an
    example.
    """
    for what, values in (("inputs", x), ("labels", y)):
        if not isinstance(values, Tensor):
            raise InputError(
                f"{what} are of type {type(values).__name__}; a tensor was wanted: pass torch.as_tensor({what})"
            )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or x.ndim == 0 or y.shape != (len(x),):
        wanted = f"({len(x)},)" if x.ndim else "(batch,)"
        raise InputError(f"labels must be int64 of shape {wanted}, got {y.dtype} of shape {tuple(y.shape)}")
    return y.long()


def check_batch(model: Model, x: Tensor, y: Tensor, valid: Valid) -> None:
    """Raises InputError for a model in training mode, inputs that are not floating-point, finite or in range, or bad
    labels.
    """
    if getattr(model, "training", False):
        raise InputError("the model is in training mode, so every pass differs: call model.eval()")
    if not x.is_floating_point():
        raise InputError(
            f"inputs of type {x.dtype} cannot be perturbed; convert to float32 in the range the model is fed"
        )
    if y.dtype != torch.int64 or y.shape != (len(x),):
        raise InputError(f"labels must be int64 of shape ({len(x)},), got {y.dtype} of shape {tuple(y.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise InputError("inputs hold NaN or infinity; drop or repair these examples first")
    if valid is not None and len(x):
        low, high = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in valid)
        # In float64: 1e6 is beyond the largest half.
        slack = (1e-6 * (high - low).double().abs().clamp(max=1e6)).to(x.dtype)
        if bool(((x < low - slack) | (x > high + slack)).any()):
            raise InputError(
                f"inputs span [{float(x.min()):.4g}, {float(x.max()):.4g}], outside the valid range {valid}; "
                "pass the range the model is fed, with normalisation inside the model"
            )


def check_logits(logits: Tensor, x: Tensor, y: Tensor) -> None:
    """Raises InputError when the model's answer is not one finite row of at least two logits an example, or labels
    exceed it.
    """
    if logits.ndim != 2 or len(logits) != len(x):
        raise InputError(f"the model maps {len(x)} inputs to shape {tuple(logits.shape)}; (batch, classes) was wanted")
    if logits.shape[1] < 2:
        raise InputError("the model has a single output column; give it two, for example torch.cat([-z, z], 1)")
    if len(y) and (int(y.min()) < 0 or int(y.max()) >= logits.shape[1]):
        raise InputError(f"labels span {int(y.min())} to {int(y.max())}, but the model has {logits.shape[1]} classes")
    if not bool(torch.isfinite(logits).all()):
        raise InputError("the model's outputs on clean inputs hold NaN or infinity")


@dataclass(eq=False)
class Search:
    """The state of an attack on one batch."""

    model: Model
    threat: Threat
    x: Tensor
    aim: Aim
    valid: Valid
    logits: Tensor  # clean
    attacked: Tensor
    x_adv: Tensor
    fooled: Tensor
    queries: Tensor
    best_loss: Tensor
    owner: Tensor | None = None  # of a search over pairs: the place of each pair's example among those attacked
    won: Tensor | None = None  # which of these examples some pair has fooled

    @classmethod
    def begin(
        cls,
        model: Model,
        threat: Threat,
        x: Any,
        y: Any,
        valid: Valid,
        goal: Goal | None,
        loss: str,
        clean_logits: Tensor | None = None,
    ) -> Search:
        """Check the batch, find what is worth attacking (`clean_logits` saves the pass), start with nothing found."""
        y = as_labels(x, y)
        check_batch(model, x, y, valid)
        x = x.detach()
        logits = forward(model, x) if clean_logits is None and len(x) else clean_logits
        if logits is None:
            logits = x.new_zeros(0, 2)
        check_logits(logits, x, y)
        aim = Aim.of(loss, y, goal, logits.shape[1])
        attacked = (logits.argmax(1) == y) & ~aim.reached(logits)
        return cls(
            model=model,
            threat=threat,
            x=x,
            aim=aim,
            valid=valid,
            logits=logits.detach(),
            attacked=attacked,
            x_adv=x.clone(),
            fooled=torch.zeros_like(attacked),
            queries=torch.zeros_like(y),
            best_loss=torch.full_like(logits[:, 0], -torch.inf),
        )

    def pairs(self, rows: Int[Tensor, " rows"], aims: Sequence[Aim]) -> Search:
        """A search over (aim, example), aims first: all of `rows` towards every aim at once.  A pair is decided as soon
        as any pair of its example has won.
        """
        many = rows.repeat(len(aims))
        parts = [aim.take(rows) for aim in aims]
        pulled = [part.towards for part in parts if part.towards is not None]
        y = self.aim.y[many]
        return Search(
            model=self.model,
            threat=self.threat,
            x=self.x[many],
            aim=replace(parts[0], y=y, towards=torch.cat(pulled) if pulled else None),
            valid=self.valid,
            logits=self.logits[many],
            attacked=torch.ones_like(self.fooled[many]),
            x_adv=self.x_adv[many],
            fooled=torch.zeros_like(self.fooled[many]),
            queries=torch.zeros_like(y),
            best_loss=torch.full_like(self.best_loss[many], -torch.inf),
            owner=torch.arange(len(rows), device=rows.device).repeat(len(aims)),
            won=torch.zeros_like(self.fooled[rows]),
        )

    def absorb(self, rows: Int[Tensor, " rows"], pairs: Search, worth: Float[Tensor, " pairs"]) -> None:
        """Take over what the pairs of `rows` found: of each example the pair worth most, where it won or its loss is
        higher than any before.  A pair worth -inf is never taken.
        """
        self.queries[rows] += pairs.queries.reshape(-1, len(rows)).sum(0)
        most, place = worth.reshape(-1, len(rows)).max(0)
        best = place * len(rows) + torch.arange(len(rows), device=rows.device)
        better = (most > -torch.inf) & (pairs.fooled[best] | (pairs.best_loss[best] > self.best_loss[rows]))
        chosen, taken = rows[better], best[better]
        self.x_adv[chosen], self.best_loss[chosen] = pairs.x_adv[taken], pairs.best_loss[taken]
        self.fooled[chosen] = pairs.fooled[taken]

    def standing(self) -> Int[Tensor, " rows"]:
        """Indices of the examples still to be fooled."""
        return (self.attacked & ~self.decided()).nonzero().squeeze(1)

    def decided(self) -> Bool[Tensor, " batch"]:
        """Whether each example, or a pair of the same example, is fooled."""
        return self.fooled if self.won is None or self.owner is None else self.won[self.owner]

    def together(self, rows: Int[Tensor, " rows"], aims: int, hopeful: bool) -> int:
        """How many of the `aims` to search at once: all, as far as memory goes, when most pairs are soon given up; else
        as many as fill one pass.
        """
        values = max(self.x[:1].numel() * len(rows), 1)
        wanted = aims if hopeful else -(-CHUNK // max(len(rows), 1))
        return max(1, min(aims, wanted, PAIR_ELEMENTS // values))

    def win(self, rows: Int[Tensor, " rows"]) -> None:
        """Count these as fooled."""
        self.fooled[rows] = True
        if self.won is not None and self.owner is not None:
            self.won[self.owner[rows]] = True

    def note(self, rows: Tensor, points: Tensor, logits: Tensor, loss: Tensor) -> Bool[Tensor, " rows"]:
        """Record one pass of `rows` at `points`; returns which of them are decided by it."""
        self.queries[rows] += 1
        fooled = self.aim.take(rows).reached(logits)
        better = fooled | (loss > self.best_loss[rows])
        chosen = rows[better]
        self.x_adv[chosen] = points[better]
        self.best_loss[chosen] = loss[better].to(self.best_loss.dtype)
        self.win(rows[fooled])
        return fooled if self.owner is None else self.decided()[rows]

    def close(self) -> AttackRun:
        """Check and re-evaluate exactly what is returned."""
        inside = self.threat.contains(self.x_adv, self.x, self.valid)
        if not bool(inside.all()):
            escaped = int((~inside).sum())
            warnings.warn(
                f"{escaped} of {len(self.x)} adversarial points lay outside {self.threat!r}; "
                "their clean inputs were returned",
                EscapeWarning,
                stacklevel=3,
            )
            self.x_adv = torch.where(inside.reshape(-1, *(1,) * (self.x.ndim - 1)), self.x_adv, self.x)
        success = torch.zeros_like(self.fooled)
        rows = self.attacked.nonzero().squeeze(1)
        if len(rows):
            success[rows] = self.aim.take(rows).reached(forward(self.model, self.x_adv[rows]))
            self.queries[rows] += 1
        norm = self.threat.norm(self.x_adv - self.x)
        return AttackRun(self.x_adv.detach(), success, self.queries, norm, self.best_loss)
