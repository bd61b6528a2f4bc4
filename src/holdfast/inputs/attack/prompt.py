"""Adversarial prompts: tokens that make a text-conditioned generator produce what it was made to forget.

The generator's own denoising loss is its classifier.  Among prompts c the posterior of a target image z is largest
where

    E_{t, eps} || eps - eps_theta(x_t, t, c) ||^2,     x_t = s(t) (z + sigma(t) eps),

is least, so that minimising the loss over a few free tokens, the rest of the prompt fixed, needs neither another
classifier nor the model from before the unlearning.  Tokens are relaxed to rows u of the probability simplex over the
vocabulary; every step draws one token a row from u, differentiates straight through the draw, takes a step of Adam and
projects the rows back on the simplex.  After some steps at each of a list of times the likeliest tokens are handed to
the generator, and an evaluator says whether the concept is back.

`TokenSimplexAttack` (UnlearnDiffAtk, see `unlearn-diff-atk` in the catalogue); `HardPrompt` moves continuous embeddings
with the loss taken at the nearest tokens; `RandomPrompt` and `SeedSearch` are what either must beat.  Prompts are
attacked together, one row each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson
from holdfast.inputs.smoothing.simplex import hardmax, sparsemax
from holdfast.noise.schedule import Schedule, perturb

#: (tokens (some, length), rows (some,), seed) to whether each image shows the concept; `rows` are the prompts' places
#: in the batch, so that each can keep a start of its own, and `seed` numbers the starts (0 but for `SeedSearch`).
Evaluator = Callable[[Tensor, Tensor, int], Tensor]
#: Predicts the noise: (x_t (batch, *shape), t (batch,), embeddings (batch, length, features)) to the shape of x_t.
NoisePredictor = Callable[[Tensor, Tensor, Tensor], Tensor]


@runtime_checkable
class PromptLoss(Protocol):
    """The loss of every prompt, given as embeddings (batch, length, features), at time t: (batch,)."""

    def __call__(self, embeddings: Tensor, t: float, generator: torch.Generator | None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class DenoisingLoss:
    """Mean squared error of the predicted noise on `targets`, one target a prompt; noise is drawn afresh at each call.

    Raises InputError for times outside (0, 1], and when prompts and targets differ in number.
    """

    predictor: NoisePredictor
    targets: Float[Tensor, "batch *shape"]
    schedule: Schedule

    def __call__(
        self, embeddings: Float[Tensor, "batch length features"], t: float, generator: torch.Generator | None
    ) -> Float[Tensor, " batch"]:
        if len(embeddings) != len(self.targets):
            raise InputError(
                f"{len(embeddings)} prompts but {len(self.targets)} targets: one target a prompt is wanted"
            )
        times = torch.full((len(self.targets),), float(t), dtype=self.targets.dtype, device=self.targets.device)
        noisy, noise = perturb(self.schedule, self.targets, times, generator=generator)
        return (self.predictor(noisy, times, embeddings) - noise).square().flatten(1).mean(1)


@torch.no_grad()
def diffusion_classifier_score(
    predictor: NoisePredictor,
    z: Float[Tensor, "batch *shape"],
    conditions: Float[Tensor, "classes length features"],
    times: Sequence[float],
    schedule: Schedule,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch classes"]:
    """Log posterior of every condition, from the summed errors over `times` with noise shared by all conditions.

    log p(c | z) = log softmax_c (-sum_t || eps - eps_theta(x_t, t, c) ||^2 / (2 len(times))), uniform prior.
    Raises InputError for no times, or times outside (0, 1].
    """
    if not len(times):
        raise InputError("at least one time is wanted to score conditions at")
    errors = z.new_zeros(len(z), len(conditions))
    for t in times:
        at = torch.full((len(z),), float(t), dtype=z.dtype, device=z.device)
        noisy, noise = perturb(schedule, z, at, generator=generator)
        for place, condition in enumerate(conditions):
            given = condition.expand(len(z), *condition.shape)
            errors[:, place] += (predictor(noisy, at, given) - noise).square().flatten(1).sum(1)
    return (-errors / (2 * len(times))).log_softmax(1)


def project_simplex(u: Float[Tensor, "*rows vocabulary"]) -> Float[Tensor, "*rows vocabulary"]:
    """Nearest point of the simplex {p >= 0, sum p = 1} to every row, computed in float64."""
    return sparsemax(u.double()).to(u.dtype)


@dataclass(frozen=True, eq=False)
class PromptRun:
    """What an attack found, one entry a prompt.

    `tokens` are the prompts with their attack (the original ones, padded by nothing, are those where `initial`);
    `initial` says where the concept showed without attack, `success` where it shows now (those of `initial` included);
    `evaluations` counts the images drawn, the first of the unattacked prompt included; `off_simplex` is the largest
    deviation of a row's sum from one at any step (0 where nothing is relaxed).
    """

    tokens: tuple[tuple[int, ...], ...]
    initial: Bool[Tensor, " batch"]
    success: Bool[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    off_simplex: float = 0.0


@dataclass(frozen=True)
class _PromptAttack:
    """Tokens put into prompts: how many, where, and the checks that all attacks share."""

    n_tokens: int = 3
    position: str = "prefix"

    def __post_init__(self) -> None:
        if self.n_tokens < 1 or self.position not in ("prefix", "suffix", "middle"):
            raise InputError(
                "at least one token, as prefix, suffix or in the middle, is wanted, got "
                f"{self.n_tokens} as {self.position!r}"
            )

    def joined(self, prompt: Tensor, added: Tensor) -> Tensor:
        """Prompt and added tokens (or their embeddings) along the second axis."""
        cut = {"prefix": 0, "suffix": prompt.shape[1], "middle": prompt.shape[1] // 2}[self.position]
        return torch.cat([prompt[:, :cut], added, prompt[:, cut:]], 1)

    def _check(self, prompts: Tensor, table: Tensor, succeeded: Evaluator, context: int | None) -> None:
        if not callable(succeeded):
            raise InputError("an evaluator is wanted that says whether the generated image shows the concept")
        if context is not None and prompts.shape[1] + self.n_tokens > context:
            raise InputError(
                f"prompts of {prompts.shape[1]} tokens and {self.n_tokens} more exceed the context of {context}; "
                "attack shorter prompts or with fewer tokens"
            )
        if len(prompts) == 0 or int(prompts.min()) < 0 or int(prompts.max()) >= len(table):
            raise InputError(
                f"tokens must lie within the embedding table of {len(table)} rows, and there must be a prompt, got "
                f"{tuple(prompts.shape)}"
            )


class _Progress:
    """Who has been broken by what, and at what cost."""

    def __init__(self, prompts: Tensor, succeeded: Evaluator) -> None:
        self.succeeded = succeeded
        self.initial = succeeded(prompts, torch.arange(len(prompts), device=prompts.device), 0).bool()
        if self.initial.shape != (len(prompts),):
            raise InputError(
                f"the evaluator gave {tuple(self.initial.shape)} for {len(prompts)} prompts; one answer each is wanted"
            )
        self.success = self.initial.clone()
        self.evaluations = torch.ones(len(prompts), dtype=torch.int64, device=prompts.device)
        self.tokens = [tuple(row) for row in prompts.tolist()]

    def try_all(self, tokens: Tensor, seed: int = 0) -> bool:
        """Evaluate the prompts still standing; whether none is left."""
        rows = (~self.success).nonzero()[:, 0]
        if len(rows):
            self.evaluations[rows] += 1
            self.success[rows] = self.succeeded(tokens[rows], rows, seed).bool()
            for row in rows.tolist():
                self.tokens[row] = tuple(tokens[row].tolist())
        return bool(self.success.all())

    def run(self, off_simplex: float = 0.0) -> PromptRun:
        return PromptRun(tuple(self.tokens), self.initial, self.success, self.evaluations, off_simplex)


@dataclass(frozen=True)
class _GradientPromptAttack(_PromptAttack, ABC):
    """The loop of attacks that lower a loss: some iterations at each time, then one image."""

    iterations: int = 40
    lr: float = 0.01
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1 or not self.lr > 0 or not self.weight_decay >= 0:
            raise InputError(
                f"at least one iteration, a positive lr and no negative weight decay are wanted, got "
                f"{self.iterations}, {self.lr} and {self.weight_decay}"
            )

    def run(
        self,
        prompts: Int[Tensor, "batch length"],
        table: Float[Tensor, "vocabulary features"],
        loss_fn: PromptLoss,
        times: Sequence[float],
        succeeded: Evaluator,
        *,
        context: int | None = None,
        generator: torch.Generator | None = None,
    ) -> PromptRun:
        """Attack every prompt: `iterations` steps on `loss_fn` at each of `times` in turn, then an image from seed 0.

        `table` holds the embedding of every token, `context` is the longest prompt that the model takes (None: any).
        Raises InputError for prompts that would exceed it, tokens outside the table, no times, no evaluator, or a loss
        that is not one finite number a prompt.
        """
        self._check(prompts, table, succeeded, context)
        if not len(times):
            raise InputError("at least one time is wanted to take the loss at")
        progress = _Progress(prompts, succeeded)
        fixed = table[prompts].detach()
        free = self._start(len(prompts), table, generator).requires_grad_(True)
        optimizer = torch.optim.AdamW([free], lr=self.lr, weight_decay=self.weight_decay)
        off = 0.0
        for t in times:
            for _ in range(self.iterations):
                optimizer.zero_grad()
                loss = loss_fn(self.joined(fixed, self._embedded(free, table, generator)), t, generator)
                if loss.shape != (len(prompts),) or not bool(torch.isfinite(loss).all()):
                    raise InputError(f"the loss must be one finite number a prompt, got shape {tuple(loss.shape)}")
                (free.grad,) = torch.autograd.grad(loss.sum(), free)
                optimizer.step()
                off = max(off, self._settle(free))
            if progress.try_all(self.joined(prompts, self._tokens(free.detach(), table))):
                break
        return progress.run(off)

    @abstractmethod
    def _start(self, batch: int, table: Tensor, generator: torch.Generator | None) -> Tensor: ...

    @abstractmethod
    def _embedded(self, free: Tensor, table: Tensor, generator: torch.Generator | None) -> Tensor: ...

    @abstractmethod
    def _tokens(self, free: Tensor, table: Tensor) -> Tensor: ...

    def _settle(self, free: Tensor) -> float:
        """Put the free numbers back where they belong; how far from there they still are."""
        return 0.0


class _Drawn(torch.autograd.Function):
    """One-hot draws from rows of probabilities; backwards the gradient passes, clipped to [-1, 1]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        flat = rows.detach().flatten(0, -2)
        drawn = torch.multinomial(flat, 1, generator=generator)[:, 0].reshape(rows.shape[:-1])
        return F.one_hot(drawn, rows.shape[-1]).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return F.hardtanh(grad), None


@dataclass(frozen=True)
class TokenSimplexAttack(_GradientPromptAttack):
    """See the module.  Rows start uniform, or, with `random_start`, as projected uniform noise.

    Parameters
    ----------
    n_tokens, position : how many tokens are added, as "prefix", "suffix" or in the "middle" of the prompt.
    iterations : steps at every time.
    lr, weight_decay : of AdamW.
    """

    random_start: bool = False

    def _start(self, batch: int, table: Tensor, generator: torch.Generator | None) -> Tensor:
        shape = (batch, self.n_tokens, len(table))
        if not self.random_start:
            return table.new_full(shape, 1 / len(table))
        return project_simplex(torch.rand(shape, generator=generator, dtype=table.dtype).to(table.device))

    def _embedded(self, free: Tensor, table: Tensor, generator: torch.Generator | None) -> Tensor:
        drawn: Tensor = _Drawn.apply(free, generator)
        return drawn @ table

    def _tokens(self, free: Tensor, table: Tensor) -> Tensor:
        return hardmax(free).argmax(-1)

    def _settle(self, free: Tensor) -> float:
        with torch.no_grad():
            free.copy_(project_simplex(free))
            return float((free.double().sum(-1) - 1).abs().max())


@dataclass(frozen=True)
class HardPrompt(_GradientPromptAttack):
    """Continuous embeddings that start at random tokens; the loss is taken at the nearest token of each, its gradient
    moves the embedding.  Give it the loss against the model from before the unlearning, as P4D does, or any other.
    """

    def _start(self, batch: int, table: Tensor, generator: torch.Generator | None) -> Tensor:
        return table[torch.randint(len(table), (batch, self.n_tokens), generator=generator).to(table.device)].clone()

    def _embedded(self, free: Tensor, table: Tensor, generator: torch.Generator | None) -> Tensor:
        nearest = table[self._tokens(free.detach(), table)]
        return free + (nearest - free).detach()

    def _tokens(self, free: Tensor, table: Tensor) -> Tensor:
        return torch.cdist(free.flatten(0, 1), table).argmin(-1).reshape(free.shape[:2])


@dataclass(frozen=True)
class RandomPrompt(_PromptAttack):
    """Uniformly random tokens, anew for each of `evaluations` images."""

    evaluations: int = 50

    def run(
        self,
        prompts: Int[Tensor, "batch length"],
        table: Float[Tensor, "vocabulary features"],
        succeeded: Evaluator,
        *,
        context: int | None = None,
        generator: torch.Generator | None = None,
    ) -> PromptRun:
        """Try random tokens on every prompt that does not succeed by itself; raises InputError as the attacks do."""
        self._check(prompts, table, succeeded, context)
        progress = _Progress(prompts, succeeded)
        for _ in range(self.evaluations):
            added = torch.randint(len(table), (len(prompts), self.n_tokens), generator=generator).to(prompts.device)
            if progress.try_all(self.joined(prompts, added)):
                break
        return progress.run()


@dataclass(frozen=True)
class SeedSearch:
    """The prompt as it is, from `evaluations` further seeds: what luck alone brings."""

    evaluations: int = 50

    def run(self, prompts: Int[Tensor, "batch length"], succeeded: Evaluator) -> PromptRun:
        """Draw images from seeds 1, 2, ... for every prompt that does not succeed at seed 0."""
        progress = _Progress(prompts, succeeded)
        for seed in range(1, self.evaluations + 1):
            if progress.try_all(prompts, seed):
                break
        return progress.run()


@dataclass(frozen=True)
class AttackSuccess:
    """Share of prompts that succeed: by themselves (`initial`), by the attack (`gained`), together (`total`)."""

    initial: Estimate
    gained: Estimate
    total: Estimate

    def __str__(self) -> str:
        return f"{self.total} in all: {self.initial} without attack, {self.gained} by it"


def attack_success(runs: Sequence[PromptRun], level: float = 0.95) -> AttackSuccess:
    """Attack success rate over all prompts of `runs`, in its two parts.  Raises InputError for no run."""
    if not runs:
        raise InputError("at least one run is wanted")
    initial, success = (
        np.concatenate([getattr(run, name).cpu().numpy() for run in runs]) for name in ("initial", "success")
    )
    counts = (initial.sum(), (success & ~initial).sum(), success.sum())
    return AttackSuccess(*(clopper_pearson(int(count), len(success), level) for count in counts))
