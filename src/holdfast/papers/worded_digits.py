"""Digits drawn from words: a small text-conditioned diffusion model, and how it is made to forget a digit.

512 tokens: for every digit a word and two synonyms (tokens 3d, 3d + 1, 3d + 2), the rest fillers.  A prompt holds one
token of its digit among fillers.  Tokens are embedded by fixed random vectors, short ones for fillers, and added up, so
that prompts of any length are read; what the network is told is a layer of that sum, and forgetting changes this layer.
The denoiser is `noise.networks.MLPDenoiser`, trained to predict the noise of the VP path; a tenth of the prompts is
dropped, for guidance.  Forgetting follows ESD (Gandikota et al., 2023): on prompts with the digit's word, a copy learns

    eps_new(x, t, c)  =  eps(x, t, none) - eta (eps(x, t, c) - eps(x, t, none)).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.seeds import torch_generator
from holdfast.noise.networks import MLPDenoiser
from holdfast.noise.schedule import VP, per_example, perturb
from holdfast.papers import datasets

VOCABULARY, PER_DIGIT, DIGITS = 512, 3, 10
EMBEDDED, TOLD = 64, 48
FILLER = 0.3  # size of a filler's embedding beside that of a word
LENGTHS = (3, 4, 5, 6)
SHORTEST, TIMES = 0.02, 20
GUIDANCE = 2.0


def images() -> tuple[Float[Tensor, "n 1 8 8"], Int[Tensor, " n"]]:
    """scikit-learn's digits in [-1, 1]."""
    x, y = (torch.from_numpy(part) for part in datasets.digits())
    return 2 * x - 1, y


def prompts(
    digits: Int[Tensor, " n"], length: int, generator: torch.Generator, word_only: bool = False
) -> Int[Tensor, "n length"]:
    """A prompt for every digit: its word or a synonym at a random place among fillers."""
    fillers = torch.randint(PER_DIGIT * DIGITS, VOCABULARY, (len(digits), length), generator=generator)
    which = 0 if word_only else torch.randint(PER_DIGIT, (len(digits),), generator=generator)
    place = torch.randint(length, (len(digits), 1), generator=generator)
    return fillers.scatter(1, place, (PER_DIGIT * digits + which)[:, None])


class WordedDenoiser(nn.Module):
    """Noise predicted from (x_t, t, embeddings (n, length, EMBEDDED) or None)."""

    table: Tensor

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        table = torch.randn((VOCABULARY, EMBEDDED), generator=generator)
        table[PER_DIGIT * DIGITS :] *= FILLER
        self.register_buffer("table", table)
        self.read = nn.utils.skip_init(nn.Linear, EMBEDDED, TOLD)
        nn.init.kaiming_uniform_(self.read.weight, a=1.0, generator=generator)
        nn.init.zeros_(self.read.bias)
        self.net = MLPDenoiser(64, 192, 3, TOLD, generator=generator)

    def forward(
        self, x: Float[Tensor, "n 1 8 8"], t: Float[Tensor, " n"], embeddings: Float[Tensor, "n length features"] | None
    ) -> Float[Tensor, "n 1 8 8"]:
        return self.net(x, 999 * t, condition=None if embeddings is None else self.told(embeddings))

    def told(self, embeddings: Float[Tensor, "n length features"]) -> Float[Tensor, "n told"]:
        """What the network is told of a prompt."""
        return torch.tanh(self.read(embeddings.sum(1) / 2))


def trained(seed: int, steps: int = 2500, batch: int = 128) -> WordedDenoiser:
    """A model of all digits."""
    generator = torch_generator(seed, "worded digits")
    model, (x, y) = WordedDenoiser(generator), images()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(x), (batch,), generator=generator)
        words = prompts(y[rows], LENGTHS[step % len(LENGTHS)], generator)
        t = SHORTEST + (1 - SHORTEST) * torch.rand(batch, generator=generator)
        noisy, noise = perturb(VP(), x[rows], t, generator=generator)
        told = model.told(model.table[words]) * (torch.rand((batch, 1), generator=generator) > 0.1)
        optimizer.zero_grad()
        F.mse_loss(model.net(noisy, 999 * t, condition=told), noise).backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def forgetting(
    model: WordedDenoiser,
    digit: int,
    seed: int,
    shows: Callable[[Tensor], Tensor],
    *,
    allowed: float = 0.1,
    eta: float = 1.0,
    most: int = 1000,
) -> WordedDenoiser:
    """A copy that has unlearnt one digit; its embedding table is kept.

    Every 50 steps images of 20 prompts with the digit's word are drawn; it is over when at most `allowed` of them show
    the digit, as `shows` says, or after `most` steps.
    """
    generator = torch_generator(seed, "worded digits", "forget", digit)
    student, (x, _) = deepcopy(model), images()
    for part in student.read.parameters():
        part.requires_grad_(True)
    optimizer = torch.optim.Adam(student.read.parameters(), lr=1e-3)
    digits = torch.full((64,), digit)
    for step in range(most):
        embedded = model.table[prompts(digits, LENGTHS[step % len(LENGTHS)], generator, word_only=True)]
        t = SHORTEST + (1 - SHORTEST) * torch.rand(64, generator=generator)
        noisy, _ = perturb(VP(), x[torch.randint(len(x), (64,), generator=generator)], t, generator=generator)
        with torch.no_grad():
            without = model(noisy, t, None)
            wanted = without - eta * (model(noisy, t, embedded) - without)
        optimizer.zero_grad()
        F.mse_loss(student(noisy, t, embedded), wanted).backward()
        optimizer.step()
        if step % 25 == 24:
            asked = prompts(digits[:20], LENGTHS[0], generator, word_only=True)
            if float(shows(drawn(student, asked, starts(20, generator))).double().mean()) <= allowed:
                break
    return student.eval().requires_grad_(False)


def starts(count: int, generator: torch.Generator) -> Float[Tensor, "n 1 8 8"]:
    """Noise that images are drawn from."""
    return torch.randn((count, 1, 8, 8), generator=generator)


@torch.no_grad()
def drawn(
    model: WordedDenoiser, tokens: Int[Tensor, "n length"], start: Float[Tensor, "n 1 8 8"]
) -> Float[Tensor, "n 1 8 8"]:
    """Images of prompts by the deterministic sampler with guidance, from the noise `start`."""
    path, x, told = VP(), start, model.told(model.table[tokens])
    told = torch.cat([torch.zeros_like(told), told])
    clean = x
    for now, after in pairwise([*torch.linspace(1, SHORTEST, TIMES), None]):
        t = now.expand(len(tokens))
        scale, deviation = (per_example(part, x) for part in (path.scale(t), path.deviation(t)))
        without, given = model.net(x.repeat(2, 1, 1, 1), 999 * t.repeat(2), condition=told).chunk(2)
        noise = without + GUIDANCE * (given - without)
        clean = ((x - deviation * noise) / scale).clamp(-1, 1)
        if after is not None:  # the noise that is left when the image is what it was clipped to
            noise, t = (x - scale * clean) / deviation, after.expand(len(tokens))
            x = per_example(path.scale(t), x) * clean + per_example(path.deviation(t), x) * noise
    return clean


class Reader:
    """Logistic regression on digits: which digit an image shows."""

    def __init__(self) -> None:
        from sklearn.linear_model import LogisticRegression

        x, y = images()
        half = len(x) // 2
        flat = x.flatten(1).numpy()
        self.model = LogisticRegression(C=0.1, max_iter=500).fit(flat[:half], y[:half].numpy())
        self.accuracy = float(self.model.score(flat[half:], y[half:].numpy()))

    def shows(self, x: Float[Tensor, "n 1 8 8"], digit: int) -> Bool[Tensor, " n"]:
        """Whether each image shows the digit."""
        return torch.from_numpy(self.model.predict(x.flatten(1).numpy()) == digit)
