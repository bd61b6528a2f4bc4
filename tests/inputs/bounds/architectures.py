"""Small networks of every family that bounds must cover: attention, recurrence, dense and grouped blocks, smooth
activations, and functional calls of all kinds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Graph, capture

from .networks import drawn


class Unrolled(nn.Module):
    """A recurrent cell over the steps of a sequence, then a linear layer."""

    def __init__(self, cell: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell = cell(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros(x.shape[0], 5)
        state = (hidden, torch.zeros_like(hidden)) if isinstance(self.cell, nn.LSTMCell) else hidden
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Recurrent(nn.Module):
    """A whole recurrent layer; its last output."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = layer(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


class Attention(nn.Module):
    """Multi-head attention by torch's module, with or without its weights."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.layer, self.weights = nn.MultiheadAttention(4, 2, batch_first=True), weights

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=self.weights)[0]


class ByHand(nn.Module):
    """Masked attention by einsum; a layer norm by hand; a stack of heads by chunk and cat."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads = []
        for part in self.query(x).chunk(2, -1):
            scores = torch.einsum("bqd,bkd->bqk", part, self.key(x)[..., :2]) / math.sqrt(2)
            later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            heads.append(torch.einsum("b i j, b j d -> b i d", scores.masked_fill(later, -math.inf).softmax(-1), x))
        y = torch.stack(heads).mean(0)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 0.1).sqrt()
        return self.head(F.scaled_dot_product_attention(y, y, x, is_causal=True)[:, -1])


class VisionTransformer(nn.Module):
    """Patches, a class token, positions from a table, one block before its norm, a norm after."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.positions = nn.Embedding(5, 4)
        self.block = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, norm_first=True, activation="gelu")
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = self.block(x + self.positions(torch.arange(x.shape[1])))
        return self.head(self.norm(x)[:, 0])


class Dense(nn.Module):
    """Two layers of a DenseNet block and a transition."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(2), nn.BatchNorm2d(4)])
        self.convs = nn.ModuleList([nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.Conv2d(4, 2, 3, padding=1)])
        self.transition, self.head = nn.Conv2d(6, 3, 1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(F.adaptive_avg_pool2d(F.avg_pool2d(self.transition(x), 2), 1).flatten(1))


class Grouped(nn.Module):
    """A ResNeXt block with group and instance normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = (
            nn.Conv2d(2, 4, 1),
            nn.Conv2d(4, 4, 3, padding=1, groups=2),
            nn.Conv2d(4, 2, 1),
        )
        self.norm, self.other = nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True, eps=0.1)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(self.middle(F.relu6(self.other(self.enter(x))))))
        return self.head((x + self.leave(y)).flatten(1))


class Functional(nn.Module):
    """Arithmetic of two perturbed values, functions of one, norms, extremes, gates."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ones", torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        arithmetic = (
            a * b + a / (b.exp() + 1) + 1 / (a**2 + 2) + torch.addcmul(a, b, b, value=0.5) - torch.lerp(a, b, 0.3)
        )
        arithmetic = arithmetic + torch.einsum("bi,bj->bij", a, b).sum(-1) + a @ self.ones + F.glu(x)
        curves = torch.erf(a) + (a * a + 1).sqrt() + torch.rsqrt(b * b + 1) + (a**2 + 1).log() + torch.log1p(b.square())
        curves = curves + torch.sin(3 * a) + torch.cos(b) + a**3 + (b * b + 0.1) ** 0.5 + torch.expm1(a)
        curves = curves + torch.logsumexp(x, 1, keepdim=True) + x.log_softmax(1)[:, :2]
        extremes = torch.maximum(a, b) - torch.minimum(a, 0.2 * b) + x.abs().amax(1, keepdim=True)
        extremes = extremes + x.max(1, keepdim=True)[0] - x.amin(1, keepdim=True) + a.clamp(-1, 0.5) + b.clamp(min=0.1)
        extremes = extremes + torch.where(torch.tensor([True, False]), a, b) + torch.maximum(a, torch.tensor(0.3))
        lengths = F.normalize(a, dim=1, eps=0.1) + b.norm(dim=1, keepdim=True) + x.std(1, keepdim=True)
        return arithmetic + curves + extremes + lengths


def activations() -> nn.Module:
    kinds = (
        nn.GELU("tanh"), nn.Softplus(2.0), nn.ELU(), nn.SELU(), nn.CELU(0.7), nn.Sigmoid(), nn.Hardtanh(-0.2, 0.7),
        nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Mish(), nn.LogSigmoid(), nn.Softsign(),
        nn.Tanhshrink(), nn.PReLU(),
    )  # fmt: skip
    layers: list[nn.Module] = [nn.Linear(4, 5)]
    for kind in kinds:
        layers += [kind, nn.LayerNorm(5, eps=0.1)] if isinstance(kind, nn.Sigmoid) else [kind]
    return nn.Sequential(*layers, nn.Linear(5, 3))


def smooth() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 6), nn.SiLU(), nn.Dropout(), nn.RMSNorm(6, eps=1e-3),
        nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Softmax(-1),
    )  # fmt: skip


#: Name to (constructor, shape of one input).
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), (3, 4)),
    "attention": (lambda: Attention(False), (3, 4)),
    "attention with weights": (lambda: Attention(True), (3, 4)),
    "attention by hand": (ByHand, (3, 4)),
    "vision transformer": (VisionTransformer, (1, 4, 4)),
    "lstm cell": (lambda: Unrolled(nn.LSTMCell), (2, 4)),
    "gru cell": (lambda: Unrolled(nn.GRUCell), (2, 4)),
    "rnn cell": (lambda: Unrolled(nn.RNNCell), (3, 4)),
    "lstm": (lambda: Recurrent(nn.LSTM), (2, 4)),
    "gru": (lambda: Recurrent(nn.GRU), (2, 4)),
    "dense block": (Dense, (2, 4, 4)),
    "grouped block": (Grouped, (2, 4, 4)),
    "functional": (Functional, (4,)),
    "activations": (activations, (4,)),
    "smooth": (smooth, (4,)),
}


def built(name: str, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """The network with weights of its own."""
    return drawn(FAMILIES[name][0](), seed, scale)


@cache
def traced(name: str) -> Graph:
    """The network and its trace; weights may be redrawn, the trace stays."""
    return capture(built(name), torch.rand(1, *FAMILIES[name][1], generator=torch_generator(0, "tests", "example")))


def examples(name: str, seed: int, batch: int = 2) -> Tensor:
    """Inputs in [0, 1], float64."""
    shape = (batch, *FAMILIES[name][1])
    return torch.rand(shape, generator=torch_generator(seed, "tests", "inputs"), dtype=torch.float64)
