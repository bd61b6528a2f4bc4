"""Composite calls, written as the primitive ones that have bounding rules.

`torch.export` keeps attention, normalisation and recurrent layers whole; this table tells it what they are made of.
Normalisation layers are written with x * x under the root (not a variance), so that `normalise` finds them again and
knows that |y_i| cannot exceed the root of the number of entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten


def _standardised(x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    centred = x - x.mean(list(axes), keepdim=True)
    return centred * torch.rsqrt(_mean_square(centred, axes, eps))


def _mean_square(x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """The mean of squares plus `eps`; not below `eps`, whatever rounding did to its bounds."""
    return ((x * x).mean(list(axes), keepdim=True) + eps).clamp(min=eps)


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    axes = list(range(x.ndim - len(shape), x.ndim))
    return _scaled(_standardised(x, axes, eps), weight, bias)


def rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    axes = list(range(x.ndim - len(shape), x.ndim))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _scaled(x * torch.rsqrt(_mean_square(x, axes, eps)), weight, None)


def _per_channel(parameter: Tensor | None, rank: int) -> Tensor | None:
    return None if parameter is None else parameter.reshape(1, -1, *(1,) * (rank - 2))


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    grouped = x.reshape(x.shape[0], groups, -1)
    standardised = _standardised(grouped, [2], eps).reshape(x.shape)
    return _scaled(standardised, _per_channel(weight, x.ndim), _per_channel(bias, x.ndim))


def instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if not use_input_stats:
        return aten.batch_norm.default(x, weight, bias, running_mean, running_var, False, momentum, eps, cudnn_enabled)
    axes = list(range(2, x.ndim))
    return _scaled(_standardised(x, axes, eps), _per_channel(weight, x.ndim), _per_channel(bias, x.ndim))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (part.repeat_interleave(repeats, -3) for part in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = torch.where(attn_mask, scores, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1) @ value


#: Longest axis of a softmax whose differences become values of their own: they number the square of its length.
DIFFERENCES = 32


def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """exp(-log sum_j exp(x_j - x_i)): bounds of the differences know what x_i and x_j have in common."""
    n = x.shape[dim]
    if n > DIFFERENCES or x.ndim < 2:
        return NotImplemented
    moved = x.movedim(dim, -1)
    itself = torch.eye(n, dtype=torch.bool, device=x.device)
    differences = torch.where(itself, 0.0, moved.unsqueeze(-2) - moved.unsqueeze(-1))
    return torch.exp(-torch.logsumexp(differences, -1)).movedim(-1, dim)


def vector_norm(
    x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    axes = list(range(x.ndim)) if dim is None else dim
    if ord == 1:
        return x.abs().sum(axes, keepdim=keepdim)
    if ord == math.inf:
        return x.abs().amax(axes, keepdim=keepdim)
    if ord != 2:
        return NotImplemented
    # Not below zero, whatever rounding did to the sum.
    return (x * x).sum(axes, keepdim=keepdim).clamp(min=0).sqrt()


def variance(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Tensor:
    axes = list(range(x.ndim)) if dim is None else list(dim)
    count = math.prod(x.shape[axis] for axis in axes)
    centred = x - x.mean(axes, keepdim=True)
    return (centred * centred).sum(axes, keepdim=keepdim) / (count - (1 if correction is None else correction))


def deviation(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Tensor:
    return variance(x, dim, correction=correction, keepdim=keepdim).clamp(min=0).sqrt()


def variance_unbiased(x: Tensor, dim: Any, unbiased: bool = True, keepdim: bool = False) -> Tensor:
    return variance(x, dim, correction=int(unbiased), keepdim=keepdim)


def deviation_unbiased(x: Tensor, dim: Any, unbiased: bool = True, keepdim: bool = False) -> Tensor:
    return variance_unbiased(x, dim, unbiased, keepdim).clamp(min=0).sqrt()


def smallest(x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return -(-x).amax(dim, keepdim)


def smallest_along(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    found = (-x).max(dim, keepdim)
    return -found.values, found.indices


def differences(
    x: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None
) -> Tensor:
    if prepend is not None or append is not None:
        return NotImplemented
    for _ in range(n):
        x = x.narrow(dim, 1, x.shape[dim] - 1) - x.narrow(dim, 0, x.shape[dim] - 1)
    return x


def _offsets(x: Tensor) -> Tensor:
    """Column less row of every entry of the last two axes."""
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape[-2:])
    return columns - rows[:, None]


def lower_triangle(x: Tensor, diagonal: int = 0) -> Tensor:
    return x * (_offsets(x) <= diagonal).to(x.dtype)


def upper_triangle(x: Tensor, diagonal: int = 0) -> Tensor:
    return x * (_offsets(x) >= diagonal).to(x.dtype)


def filled(x: Tensor, value: Any = 0.0) -> Tensor:
    return x * 0.0 + value


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    slope = weight if weight.numel() == 1 else weight.reshape(1, -1, *(1,) * (x.ndim - 2))
    return torch.relu(x) - slope * torch.relu(-x)


def hardsigmoid(x: Tensor) -> Tensor:
    return ((x + 3) / 6).clamp(0, 1)


def relu6(x: Tensor) -> Tensor:
    return x.clamp(0, 6)


def addcmul(x: Tensor, first: Tensor, second: Tensor, *, value: float = 1) -> Tensor:
    return x + value * (first * second)


def baddbmm(x: Tensor, first: Tensor, second: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * x + alpha * (first @ second)


def glu(x: Tensor, dim: int = -1) -> Tensor:
    first, second = x.chunk(2, dim)
    return first * torch.sigmoid(second)


def masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    return torch.where(mask, value, x)


def lstm_cell(
    x: Tensor, hx: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    hidden, cell = hx
    gates = F.linear(x, w_ih, b_ih) + F.linear(hidden, w_hh, b_hh)
    enter, forget, candidate, leave = gates.chunk(4, 1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
    return torch.sigmoid(leave) * torch.tanh(cell), cell


def gru_cell(
    x: Tensor, hidden: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    fresh, kept = F.linear(x, w_ih, b_ih).chunk(3, 1), F.linear(hidden, w_hh, b_hh).chunk(3, 1)
    reset, update = torch.sigmoid(fresh[0] + kept[0]), torch.sigmoid(fresh[1] + kept[1])
    candidate = torch.tanh(fresh[2] + reset * kept[2])
    return candidate + update * (hidden - candidate)


def _plain_cell(squash: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def cell(
        x: Tensor, hidden: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Tensor:
        return squash(F.linear(x, w_ih, b_ih) + F.linear(hidden, w_hh, b_hh))

    return cell


def einsum(equation: str, tensors: Sequence[Tensor], *, path: Any = None) -> Tensor:
    inputs, output = _subscripts(equation, tensors)
    result, letters = tensors[0], inputs[0]
    for place, (tensor, theirs) in enumerate(zip(tensors[1:], inputs[1:]), 2):
        wanted = set(output).union(*inputs[place:])
        result, letters = _contracted(result, letters, tensor, theirs, wanted)
    result, letters = _summed(result, letters, set(output))
    return result.permute([letters.index(letter) for letter in output])


def _subscripts(equation: str, tensors: Sequence[Tensor]) -> tuple[list[str], str]:
    """Letters of every tensor and of the result, ellipses written out."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    if not arrow:
        counts = {letter: left.count(letter) for letter in sorted(set(left)) if letter.isalpha()}
        output = ("..." if "..." in left else "") + "".join(l for l, count in counts.items() if count == 1)
    spare = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
    most = max(tensor.ndim - len(part.replace("...", "")) for tensor, part in zip(tensors, inputs))
    hidden = "".join(spare[:most])
    written = []
    for tensor, part in zip(tensors, inputs):
        count = tensor.ndim - len(part.replace("...", ""))
        written.append(part.replace("...", hidden[most - count :] if count else ""))
    if any(len(set(part)) < len(part) for part in written):
        raise NotImplementedError(f"einsum with a repeated index in one tensor ({equation})")
    return written, output.replace("...", hidden)


def _summed(x: Tensor, letters: str, wanted: set[str]) -> tuple[Tensor, str]:
    gone = [place for place, letter in enumerate(letters) if letter not in wanted]
    kept = "".join(letter for letter in letters if letter in wanted)
    return (x.sum(gone) if gone else x), kept


def _contracted(x: Tensor, xs: str, y: Tensor, ys: str, wanted: set[str]) -> tuple[Tensor, str]:
    """Two tensors as one product of matrices: (shared, own of x, gone) @ (shared, gone, own of y)."""
    x, xs = _summed(x, xs, wanted | set(ys))
    y, ys = _summed(y, ys, wanted | set(xs))
    shared = [letter for letter in xs if letter in ys and letter in wanted]
    gone = [letter for letter in xs if letter in ys and letter not in wanted]
    own_x, own_y = ([letter for letter in a if letter not in b] for a, b in ((xs, ys), (ys, xs)))
    sizes = dict(zip(ys, y.shape)) | {
        letter: size for letter, size in zip(xs, x.shape) if size != 1 or letter not in ys
    }
    x = x.expand([sizes[letter] for letter in xs])
    y = y.expand([sizes[letter] for letter in ys])
    batch, rows, inner, columns = (math.prod(sizes[l] for l in part) for part in (shared, own_x, gone, own_y))
    first = x.permute([xs.index(letter) for letter in (*shared, *own_x, *gone)]).reshape(batch, rows, inner)
    second = y.permute([ys.index(letter) for letter in (*shared, *gone, *own_y)]).reshape(batch, inner, columns)
    letters = (*shared, *own_x, *own_y)
    return (first @ second).reshape([sizes[letter] for letter in letters]), "".join(letters)


def table() -> dict[Any, Callable[..., Any]]:
    """Composite call to its decomposition, for `ExportedProgram.run_decompositions`."""
    from torch._decomp import get_decompositions

    recurrent = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
    return {
        **get_decompositions([*recurrent, aten.lerp.Scalar, aten.lerp.Tensor]),
        aten.einsum.default: einsum,
        aten.softmax.int: softmax,
        aten._softmax.default: lambda x, dim, half: softmax(x, dim),
        aten.lstm_cell.default: lstm_cell,
        aten.gru_cell.default: gru_cell,
        aten.rnn_tanh_cell.default: _plain_cell(torch.tanh),
        aten.rnn_relu_cell.default: _plain_cell(torch.relu),
        aten.layer_norm.default: layer_norm,
        aten.native_layer_norm.default: lambda *a: (layer_norm(*a), None, None),
        aten.rms_norm.default: rms_norm,
        aten.group_norm.default: group_norm,
        aten.instance_norm.default: instance_norm,
        aten.scaled_dot_product_attention.default: attention,
        aten.linalg_vector_norm.default: vector_norm,
        aten.var.correction: variance,
        aten.std.correction: deviation,
        aten.var.dim: variance_unbiased,
        aten.std.dim: deviation_unbiased,
        aten.amin.default: smallest,
        aten.min.default: smallest,
        aten.min.dim: smallest_along,
        aten.diff.default: differences,
        aten.tril.default: lower_triangle,
        aten.triu.default: upper_triangle,
        aten.fill.Scalar: filled,
        aten.fill.Tensor: filled,
        aten.zero.default: filled,
        aten.prelu.default: prelu,
        aten.hardsigmoid.default: hardsigmoid,
        aten.relu6.default: relu6,
        aten.addcmul.default: addcmul,
        aten.baddbmm.default: baddbmm,
        aten.glu.default: glu,
        aten.masked_fill.Scalar: masked_fill,
        aten.masked_fill.Tensor: masked_fill,
    }
