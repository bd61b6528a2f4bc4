"""Noisy copies of several inputs through one model, and the loop that draws until a stopping rule is content.

Copies of different inputs share a call of the model, up to `batch` at a time.  Every input has a random stream of its
own, seeded from the caller's generator, so what is drawn for an input depends on the generator's state and the input's
place, on `batch` and on the stopping rule, and not on what the other inputs need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.core.progress import track
from holdfast.core.seeds import torch_generator
from holdfast.inputs.features import require_evaluation
from holdfast.inputs.smoothing.noise import Noise
from holdfast.inputs.smoothing.stopping import Stopping

#: First look of a sequential rule, in draws; each further look adds a quarter of what was drawn, up to a batch.
FIRST_LOOK = 16
GROWTH = 4

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Copies:
    """Where the scores of one input stand in one answer of the model."""

    row: int
    place: slice


@dataclass(frozen=True)
class Sampler:
    """Calls `base` on noisy copies, at most `batch` at a time, and checks what comes back."""

    base: Model
    noise: Noise
    batch: int
    classes: int | None = None

    def draw(
        self, x: Float[Tensor, "rows *shape"], sizes: Sequence[int], streams: Sequence[torch.Generator]
    ) -> Iterator[tuple[tuple[Copies, ...], Float[Tensor, "copies classes"]]]:
        """`sizes[i]` noisy copies of `x[i]`, scored, a call of the model at a time."""
        for parts in _calls(sizes, self.batch):
            total = sum(size for _, size in parts)
            noisy = torch.empty((total, *x.shape[1:]), dtype=x.dtype, device=streams[0].device)
            copies, first = [], 0
            for row, size in parts:
                copies.append(Copies(row, slice(first, first + size)))
                self.noise.fill(noisy[first : first + size], streams[row])
                first += size
            noisy = noisy.to(x.device)
            for part in copies:
                noisy[part.place] += x[part.row]
            with torch.no_grad():
                scores = self.base(noisy)
            yield tuple(copies), self._checked(scores, total)

    def _checked(self, scores: Tensor, copies: int) -> Tensor:
        classes = self.classes if self.classes is not None else "classes"
        if scores.ndim != 2 or len(scores) != copies or scores.shape[1] != (self.classes or scores.shape[1]):
            raise InputError(
                f"the base model must give scores of shape ({copies}, {classes}), got {tuple(scores.shape)}"
            )
        if bool(torch.isnan(scores).any()):
            raise InputError("the base model gave NaN scores on noisy copies; look for a division or log in it")
        return scores

    def votes(
        self, x: Float[Tensor, "rows *shape"], sizes: Sequence[int], streams: Sequence[torch.Generator]
    ) -> Int[np.ndarray, "rows classes"]:
        """How often each class had the largest score."""
        counts: np.ndarray | None = None
        for copies, scores in self.draw(x, sizes, streams):
            if counts is None:
                counts = np.zeros((len(x), scores.shape[1]), dtype=np.int64)
            answers = scores.argmax(1).cpu().numpy()
            for part in copies:
                counts[part.row] += np.bincount(answers[part.place], minlength=counts.shape[1])
        if counts is None:
            raise InputError("votes need at least one draw")
        return counts


def _calls(sizes: Sequence[int], batch: int) -> Iterator[list[tuple[int, int]]]:
    """(input, copies) of every call.  An input is cut at multiples of `batch` only, so that its noise is its own."""
    parts = [(row, min(batch, size - start)) for row, size in enumerate(sizes) for start in range(0, size, batch)]
    call: list[tuple[int, int]] = []
    room = batch
    for row, size in parts:
        if size > room:
            yield call
            call, room = [], batch
        call.append((row, size))
        room -= size
    if call:
        yield call


def streams_of(x: Tensor, generator: torch.Generator | None) -> list[torch.Generator]:
    """One stream an input, on the generator's device; without a generator those of seed 0, on the inputs' device."""
    source = torch_generator(0, "smoothing", device=x.device) if generator is None else generator
    seeds = torch.randint(2**63 - 1, (len(x),), generator=source, device=source.device).tolist()
    return [torch.Generator(source.device).manual_seed(seed) for seed in seeds]


def require_inputs(x: Tensor, n0: int, n: int, alpha: float, *bases: Model, least: int = 1) -> None:
    """The door of every `certify`.  Raises InputError."""
    for base in bases:
        require_evaluation(base)
    if n0 < least or n < least or not 0 < alpha < 1:
        raise InputError(f"certify needs n0 >= {least}, n >= {least} and 0 < alpha < 1, got {n0}, {n} and {alpha}")
    if x.ndim < 2:
        raise InputError(
            f"inputs of shape (batch, *shape) are wanted, got {tuple(x.shape)}; pass one input as x[None] and a single "
            "feature as x[:, None]"
        )
    if not x.is_floating_point():
        raise InputError(f"the inputs to certify must be floating point, got {x.dtype}; noise cannot be added to it")
    if not bool(torch.isfinite(x).all()):
        raise InputError("the inputs to certify must be finite, got NaN or infinity")


@runtime_checkable
class Tally(Protocol):
    """What a certificate keeps of its draws; rows are places of inputs."""

    draws: Int[np.ndarray, " inputs"]
    cap: Int[np.ndarray, " inputs"]

    def admit(self, rows: Int[np.ndarray, " rows"]) -> None:
        """Choose labels, with draws that do not count."""
        ...

    def add(self, rows: Int[np.ndarray, " rows"], sizes: Int[np.ndarray, " rows"]) -> None:
        """Draw and count."""
        ...

    def done(self, rows: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        """Whether the rule is content."""
        ...


def settle(tally: Tally, inputs: int, n: int, batch: int, rule: Stopping, description: str) -> None:
    """Draw for every input until the rule is content or the cap is reached, as many inputs at a time as fill a call."""
    for _ in track(_settled(tally, inputs, n, batch, rule), description, inputs):
        pass


def _settled(tally: Tally, inputs: int, n: int, batch: int, rule: Stopping) -> Iterator[int]:
    window = max(1, batch // (FIRST_LOOK if rule.sequential else min(n, batch)))
    active, following = np.zeros(0, dtype=np.int64), 0
    while following < inputs or len(active):
        entering = np.arange(following, min(inputs, following + window - len(active)))
        if len(entering):
            tally.admit(entering)
            active, following = np.concatenate([active, entering]), following + len(entering)
        draws, left = tally.draws[active], tally.cap[active] - tally.draws[active]
        wanted = np.maximum(draws // GROWTH, FIRST_LOOK) if rule.sequential else left
        tally.add(active, np.minimum(np.minimum(wanted, batch), left))
        done = tally.done(active) | (tally.draws[active] == tally.cap[active])
        yield from active[done].tolist()
        active = active[~done]
