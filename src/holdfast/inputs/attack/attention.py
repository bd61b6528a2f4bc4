"""Attention of a torch model from outside: a higher temperature at test time, and what attends to what.

    smoothed   softmax(Q K^T / (sqrt(d) T))   in every attention, T >= 1 flatter; T = 1 is the model itself
    rollout    A = A_L ... A_1,   A_l = (I + mean over heads of the attention of layer l) / 2   (Abnar & Zuidema, 2020)

Both find attention where it is computed: `nn.MultiheadAttention`, hence torch's transformer layers, and every call of
`scaled_dot_product_attention`, as in timm, Hugging Face models and exported programs.  The model is not changed and
needs no hook: a `TorchFunctionMode` sees the calls while it runs, and switches torch's fused fast path off.

A patch that draws attention to itself fools token models; smoothing weakens that pull at some cost in accuracy, without
training (Gu, Tresp & Qin, 2022).  An attack on the smoothed model must go *through* it: pass the wrapped model to the
attack, since points found at T = 1 say nothing about T > 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.attack.loop import Model
from holdfast.inputs.features import evaluating

_DOT_PRODUCT = (F.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)
Call = Callable[..., Any]
NO_ATTENTION = (
    "no attention was seen in the model's forward pass: it calls neither nn.MultiheadAttention nor "
    "scaled_dot_product_attention.  A model that multiplies queries and keys by hand must be told to use the latter "
    "(Hugging Face: attn_implementation='sdpa'; timm: fused attention)"
)


class _Attentions(TorchFunctionMode):
    """Sees every attention that is computed inside the block; `seen` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(
        self, func: Call, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in _DOT_PRODUCT:
            self.seen += 1
            names = ("query", "key", "value")
            query, key, value = (*args[:3], *(given.pop(name) for name in names[len(args[:3]) :]))
            return self.dot_product(func, query, key, value, args[3:], given)
        if func is F.multi_head_attention_forward:
            self.seen += 1
            return self.multi_head(func, args, given)
        return func(*args, **given)

    @abstractmethod
    def dot_product(
        self, func: Call, query: Tensor, key: Tensor, value: Tensor, rest: Sequence[Any], given: dict[str, Any]
    ) -> Any:
        """What the model gets from a scaled dot product attention."""

    @abstractmethod
    def multi_head(self, func: Call, args: Sequence[Any], given: dict[str, Any]) -> Any:
        """What the model gets from `F.multi_head_attention_forward`."""


class _Tempered(_Attentions):
    """Queries divided by the temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def dot_product(
        self, func: Call, query: Tensor, key: Tensor, value: Tensor, rest: Sequence[Any], given: dict[str, Any]
    ) -> Any:
        return func(query / self.temperature, key, value, *rest, **given)

    def multi_head(self, func: Call, args: Sequence[Any], given: dict[str, Any]) -> Any:
        """The projection that makes the queries is scaled; one packed matrix makes queries, keys and values."""
        arguments = dict(zip(_MULTI_HEAD_NAMES, args)) | given
        width = arguments["embed_dim_to_check"]
        weight, bias = arguments["in_proj_weight"], arguments["in_proj_bias"]
        if arguments.get("use_separate_proj_weight"):
            arguments["q_proj_weight"] = arguments["q_proj_weight"] / self.temperature
        else:
            arguments["in_proj_weight"] = torch.cat([weight[:width] / self.temperature, weight[width:]])
        if bias is not None:
            arguments["in_proj_bias"] = torch.cat([bias[:width] / self.temperature, bias[width:]])
        return func(**arguments)


#: Positional parameters of `F.multi_head_attention_forward`, in order.
_MULTI_HEAD_NAMES = (
    "query",
    "key",
    "value",
    "embed_dim_to_check",
    "num_heads",
    "in_proj_weight",
    "in_proj_bias",
    "bias_k",
    "bias_v",
    "add_zero_attn",
    "dropout_p",
    "out_proj_weight",
    "out_proj_bias",
)


class _Recorded(_Attentions):
    """Keeps the attention of every call, averaged over heads."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def dot_product(
        self, func: Call, query: Tensor, key: Tensor, value: Tensor, rest: Sequence[Any], given: dict[str, Any]
    ) -> Any:
        # Attention applied to the identity is the attention itself, whatever mask, scale or grouping was asked for.
        identity = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device)
        weights = func(query, key, identity.expand(*value.shape[:-2], -1, -1), *rest, **given)
        self.maps.append(weights if weights.ndim == 3 else weights.mean(1))
        return func(query, key, value, *rest, **given)

    def multi_head(self, func: Call, args: Sequence[Any], given: dict[str, Any]) -> Any:
        wanted = given.get("need_weights", True)
        if wanted and not given.get("average_attn_weights", True):
            result, weights = func(*args, **given)
            self.maps.append(weights.mean(1))
            return result, weights
        result, weights = func(*args, **(given | {"need_weights": True, "average_attn_weights": True}))
        self.maps.append(weights)
        return result, weights if wanted else None


class SmoothedAttention(nn.Module):
    """`model` with every attention at another temperature; gradients pass through, nothing is trained or copied.

    Parameters
    ----------
    model : a module or callable on a batch of inputs that computes attention in one of the ways the module names.
    temperature : T > 0; above 1 attention is spread more evenly, at 1 the model answers exactly as it does alone.

    Raises InputError for a temperature that is not positive and finite, UnsupportedError when called on a model in
    which no attention is seen.
    """

    def __init__(self, model: Model, temperature: float) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise InputError(
                f"the temperature of attention must be positive and finite, got {temperature}; 1 changes nothing, 1.5 "
                "is a usual choice"
            )
        self.model, self.temperature = model, float(temperature)
        self.training = bool(getattr(model, "training", False))

    def forward(self, x: Tensor) -> Tensor:
        """The model's answer, attention being smoothed."""
        if self.temperature == 1:
            return self.model(x)
        with _Tempered(self.temperature) as mode:
            answer = self.model(x)
        if not mode.seen:
            raise UnsupportedError(NO_ATTENTION)
        return answer

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


@torch.no_grad()
def attention_maps(model: Model, x: Float[Tensor, "batch *shape"]) -> list[Float[Tensor, "batch tokens tokens"]]:
    """Attention of every layer in the order of computation, averaged over heads: entry (q, k) is what q gives to k.

    Rows sum to one.  Raises UnsupportedError for a model without attention, one that attends from some tokens to
    others (decoders reading an encoder), or whose number of tokens changes on the way.
    """
    with _Recorded() as mode:
        if isinstance(model, nn.Module):
            with evaluating(model):
                model(x)
        else:
            model(x)
    if not mode.seen:
        raise UnsupportedError(NO_ATTENTION)
    first = mode.maps[0].shape[-1]
    if any(found.shape != (len(x), first, first) for found in mode.maps):
        shapes = ", ".join(str(tuple(found.shape)) for found in mode.maps)
        raise UnsupportedError(
            f"attention can be followed only where all layers see the same tokens; for {len(x)} inputs this model's "
            f"maps have shapes {shapes} (windows or pooling between layers?)"
        )
    return mode.maps


def attention_rollout(
    model: Model, x: Float[Tensor, "batch *shape"], *, residual: float = 0.5
) -> Float[Tensor, "batch tokens tokens"]:
    """Attention followed through all layers: entry (q, k) is how much of token k arrives at token q of the last layer.

    `residual` is the share of the identity in every layer, for the short cut around it.  Rows sum to one.
    Raises InputError for a share outside [0, 1), and as `attention_maps`.
    """
    if not 0 <= residual < 1:
        raise InputError(f"the residual share lies in [0, 1), got {residual}; 0.5 is usual")
    maps = attention_maps(model, x)
    identity = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device)
    total = identity.expand_as(maps[0])
    for found in maps:
        mixed = residual * identity + (1 - residual) * found
        total = mixed / mixed.sum(-1, keepdim=True) @ total
    return total


def attention_on(
    attention: Float[Tensor, "batch tokens tokens"],
    tokens: Sequence[int] | Tensor,
    *,
    read: Literal["mean", "first"] = "mean",
) -> Float[Tensor, " batch"]:
    """Attention that reaches the answer from one token an example, `tokens` (batch,), of a map or a rollout.

    `read` says what the model's head reads: the "mean" of all tokens or the "first" (a class token, which is token 0,
    so that the tokens of the image count from 1).  Raises InputError for places that are no tokens.
    """
    place = torch.as_tensor(tokens, dtype=torch.int64, device=attention.device)
    count = attention.shape[-1]
    if place.shape != (len(attention),) or (len(place) and not 0 <= int(place.min()) <= int(place.max()) < count):
        raise InputError(
            f"wanted one token from 0 to {count - 1} for each of {len(attention)} examples, got shape "
            f"{tuple(place.shape)}" + (f" from {int(place.min())} to {int(place.max())}" if place.numel() else "")
        )
    if read not in ("mean", "first"):
        raise InputError(f"read must be 'mean' or 'first', got {read!r}")
    reader = attention.mean(1) if read == "mean" else attention[:, 0]
    return reader.gather(1, place[:, None]).squeeze(1)
