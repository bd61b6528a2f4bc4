"""Kernel pooling over a matrix of word similarities, K-NRM (Xiong, Dai, Callan, Liu and Power, 2017).

With M_ij the cosine of the embeddings of query word i and document word j,

    φ_k = 0.01 Σ_i ln max(10^-10, Σ_j exp(-(M_ij - μ_k)² / 2σ_k²)),        score = w · φ + b.

Eleven kernels: μ = 1 with σ = 10^-3 counts exact matches, μ = 0.9, 0.7, ..., -0.9 with σ = 0.1 the soft ones.  The
paper's tanh around the score changes no order and is left out, since it makes distant documents tie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.inputs.text.tokens import Tokenise, Vocabulary, words


class KernelPooling(nn.Module):
    """Scores of pairs of a query and a document, given as numbers of a `Vocabulary` (0 pads).

    `rows` is the size of the vocabulary, `width` that of the embedding; `generator` draws the first weights.
    """

    mu: Tensor
    sigma: Tensor

    def __init__(self, rows: int, width: int = 50, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width, padding_idx=Vocabulary.PAD)
        self.out = nn.Linear(11, 1)
        with torch.no_grad():
            self.embedding.weight[1:].normal_(generator=generator)
            self.out.weight.uniform_(-0.1, 0.1, generator=generator)
            self.out.bias.zero_()
        self.register_buffer("mu", torch.tensor([1.0, *(round(0.9 - 0.2 * step, 1) for step in range(10))]))
        self.register_buffer("sigma", torch.tensor([1e-3, *(0.1 for _ in range(10))]))

    def forward(
        self, query: Int[Tensor, "pairs asked"], document: Int[Tensor, "pairs said"]
    ) -> Float[Tensor, " pairs"]:
        """The scores; pads of either side count for nothing."""
        cosine = F.normalize(self.embedding(query), dim=2) @ F.normalize(self.embedding(document), dim=2).transpose(
            1, 2
        )
        here = (document != Vocabulary.PAD).to(cosine.dtype)[:, None]
        asked = (query != Vocabulary.PAD).to(cosine.dtype)
        pooled = []
        for mu, sigma in zip(self.mu, self.sigma):
            soft = ((cosine - mu).square() * (-0.5 / sigma**2)).exp()
            pooled.append(((soft * here).sum(2).clamp(min=1e-10).log() * asked).sum(1) * 0.01)
        return self.out(torch.stack(pooled, 1)).squeeze(1)


class EncodedRanker:
    """A ranker `(query, documents) -> scores` from a module on numbers of words.

    Queries and documents are cut at `asked` and `said` words.  Give `tokens.remembered(words)` as
    `tokenise` where the same documents are ranked for many queries.
    """

    def __init__(
        self, module: nn.Module, vocabulary: Vocabulary, *, asked: int = 40, said: int = 200, tokenise: Tokenise = words
    ) -> None:
        if asked < 1 or said < 1:
            raise InputError(f"queries and documents need at least one word, got asked={asked}, said={said}")
        self.module, self.vocabulary, self.asked, self.said, self.tokenise = module, vocabulary, asked, said, tokenise

    @torch.no_grad()
    def __call__(self, query: str, documents: Sequence[str]) -> Float[np.ndarray, " documents"]:
        """Scores of the documents, in blocks of 1000."""
        device = next(self.module.parameters()).device
        asked = self.vocabulary.encode([self.tokenise(query)], self.asked).to(device)
        scores = [
            self.module(asked.expand(len(part), -1), part) for part in self.encoded(documents).to(device).split(1000)
        ]
        return torch.cat(scores).double().cpu().numpy() if scores else np.zeros(0)

    def encoded(self, documents: Sequence[str]) -> Int[Tensor, "documents said"]:
        """Numbers of the documents' words."""
        return self.vocabulary.encode([self.tokenise(document) for document in documents], self.said)
