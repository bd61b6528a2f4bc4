"""ONNX operators that rearrange: shapes, selection, joining, padding, resizing.

Sizes among a converter's constants may stand for the batch (see `onnx_graph`); `Builder.call` turns them into the batch
at run time.  What would take some of the batch, or join across it, is refused.
"""

from __future__ import annotations

import math
import operator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.subject.onnx_builder import BATCH, Builder, Converter, Live, Operation, stands_for_batch

#: Operators that may be evaluated at once on sizes that stand for the batch: what they give still scales with it.
SHAPE_ARITHMETIC = frozenset(
    {"Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max", "Floor", "Ceil", "Cast", "ReduceProd", "Concat"}
    | {"Gather", "Slice", "Split", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity", "Shape", "Size", "Where"}
    | {"Equal", "Greater", "Less", "Not", "And", "Or"}
)


def reshape(build: Builder, op: Operation) -> Live:
    x, wanted = op.live(), op.setting("shape", 1)
    if not op.attribute("allowzero", 0):
        wanted = [x.shape[k] if size == 0 else size for k, size in enumerate(wanted)]
    return reshaped(build, x, wanted)


def reshaped(build: Builder, x: Live, wanted: list[int]) -> Live:
    """`x` in the shape that the file asks for, whatever the batch the file was exported with."""
    sizes = _freed(x.shape, wanted, build.declared_batch)
    if tuple(sizes) == x.shape:
        return x
    if x.shape[0] == BATCH and sizes[0] == BATCH:
        if len(sizes) == 2:
            return build.layer("flatten", nn.Flatten(), x)
        if len(x.shape) == 2:
            return build.layer("unflatten", nn.Unflatten(1, tuple(sizes[1:])), x)
    batched = [k for k, size in enumerate(sizes) if stands_for_batch(size)]
    if len(batched) == 1:
        open_sizes = [-1 if k == batched[0] else size for k, size in enumerate(sizes)]
        return Live(build.call(torch.reshape, x, open_sizes).node, x.meta.reshape(sizes))
    return build.call(torch.reshape, x, sizes)


def _freed(old: tuple[int, ...], wanted: list[int], declared: int | None) -> list[int]:
    """Sizes with -1 worked out and, in a file of fixed batch, the batch put where it lies in memory.

    A reshape keeps the order of memory, so the dimension that holds the batch (as its slower part) has as many values
    in front of it after the reshape as before.
    """
    places = [k for k, size in enumerate(old) if stands_for_batch(size)]
    fixed = declared is not None and len(places) == 1 and not any(stands_for_batch(size) for size in wanted)
    sizes, total = list(wanted), math.prod(old)
    if fixed:
        assert declared is not None
        total = total // BATCH * declared
    if -1 in sizes:
        sizes[sizes.index(-1)] = total // math.prod(size for size in sizes if size != -1)
    if not fixed:
        return sizes
    assert declared is not None
    front = math.prod(old[: places[0]])
    fitting = [k for k, size in enumerate(sizes) if math.prod(sizes[:k]) == front and size % declared == 0]
    if not fitting:
        raise ValueError(f"the batch cannot be kept apart when {list(old)} becomes {wanted}; export with a free batch")
    place = next((k for k in fitting if sizes[k] == declared), fitting[0])
    sizes[place] = sizes[place] // declared * BATCH
    return sizes


def transpose(build: Builder, op: Operation) -> Live:
    x = op.live()
    order = op.attribute("perm", list(range(len(x.shape)))[::-1])
    return build.call(torch.permute, x, tuple(order))


def squeeze(build: Builder, op: Operation) -> Live:
    x, axes = op.live(), op.setting("axes", 1)
    rank = len(x.shape)
    chosen = {axis % rank for axis in axes} if axes is not None else {k for k, size in enumerate(x.shape) if size == 1}
    if not chosen:
        return x
    return reshaped(build, x, [size for k, size in enumerate(x.shape) if k not in chosen])


def unsqueeze(build: Builder, op: Operation) -> Live:
    x, axes = op.live(), op.setting("axes", 1)
    rank = len(x.shape) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = build.call(torch.unsqueeze, x, axis)
    return x


def concat(build: Builder, op: Operation) -> Live:
    axis, batched = op.attribute("axis"), any(isinstance(v, Live) and v.shape[0] == BATCH for v in op.inputs)
    parts = []
    for value in op.inputs:
        assert value is not None
        part = build.as_live(value)
        if batched and axis != 0 and part.shape[0] in (1, build.declared_batch):
            part = build.method("expand", part, [BATCH, *part.shape[1:]])
        parts.append(part)
    return build.call(torch.cat, parts, axis)


def split(build: Builder, op: Operation) -> tuple[Live, ...]:
    x, axis = op.live(), op.attribute("axis", 0)
    width = x.shape[axis]
    sizes = op.setting("split", 1)
    if sizes is None:
        each = -(-width // op.attribute("num_outputs", op.outputs))
        sizes = [min(each, width - start) for start in range(0, width, each)]
    starts = np.cumsum([0, *sizes]).tolist()
    return tuple(build.call(torch.narrow, x, axis, start, size) for start, size in zip(starts, sizes, strict=False))


def slices(build: Builder, op: Operation) -> Live:
    x = op.live()
    starts, ends = op.setting("starts", 1), op.setting("ends", 2)
    axes = op.setting("axes", 3)
    axes = list(range(len(starts))) if axes is None else axes
    steps = op.setting("steps", 4) or [1] * len(starts)
    index, flipped = [slice(None)] * len(x.shape), []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis, size = axis % len(x.shape), x.shape[axis]
        taken = range(size)[slice(start, None if end < -size and step < 0 else end, step)]
        if len(taken) == size and step == 1:
            continue
        if stands_for_batch(size):
            raise op.unsupported("it takes some of the batch")
        first, last = (taken[0], taken[-1]) if step > 0 else (taken[-1], taken[0])
        index[axis] = slice(first, last + 1, None if abs(step) == 1 else abs(step))
        if step < 0:
            flipped.append(axis)
    taken_part = x if all(part == slice(None) for part in index) else build.call(operator.getitem, x, tuple(index))
    return build.call(torch.flip, taken_part, tuple(flipped)) if flipped else taken_part


def gather(build: Builder, op: Operation) -> Live:
    data, index = op.inputs[0], op.inputs[1]
    axis = op.attribute("axis", 0)
    if isinstance(index, Live):
        if not isinstance(data, np.ndarray) or axis != 0 or data.ndim != 2:
            raise op.unsupported("its indices are computed; only a look-up in a constant table is converted")
        return build.call(F.embedding, index, build.attach(data))
    x = op.live()
    axis %= len(x.shape)
    if stands_for_batch(x.shape[axis]):
        raise op.unsupported("it takes some of the batch")
    assert index is not None
    index = np.where(index < 0, index + x.shape[axis], index).astype(np.int64)
    if index.ndim == 0:
        return build.call(torch.select, x, axis, int(index))
    taken = build.call(torch.index_select, x, axis, build.attach(index.reshape(-1)))
    return taken if index.ndim == 1 else build.method("unflatten", taken, axis, index.shape)


def gather_places(build: Builder, op: Operation) -> Live:
    """GatherND with constant indices: x[i, j, ...] for each row (i, j, ...)."""
    x, index = op.live(), op.constant(1)
    assert index is not None
    reach = index.shape[-1]
    if op.attribute("batch_dims", 0) or any(stands_for_batch(size) for size in x.shape[:reach]):
        raise op.unsupported("it takes some of the batch")
    index = np.where(index < 0, index + np.array(x.shape[:reach]), index).astype(np.int64)
    rows = tuple(build.attach(index[..., k]) for k in range(reach))
    return build.call(operator.getitem, x, rows)


def pad(build: Builder, op: Operation) -> Live:
    x, ends = op.live(), op.setting("pads", 1)
    value = op.setting("value", 2) or 0.0
    axes = op.setting("axes", 3)
    axes = range(len(x.shape)) if axes is None else [axis % len(x.shape) for axis in axes]
    pairs = [(0, 0)] * len(x.shape)
    for k, axis in enumerate(axes):
        pairs[axis] = (ends[k], ends[k + len(ends) // 2])
    if any(pairs[0]):
        raise op.unsupported("it pads the batch")
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        op.attribute("mode", "constant")
    ]
    if not any(map(any, pairs)):
        return x
    kept = pairs[1:] if mode == "constant" else pairs[2:]
    if mode != "constant" and any(pairs[1]):
        raise op.unsupported(f"mode {mode} is converted for spatial dimensions only")
    flat = [end for pair in reversed(kept) for end in pair]
    return build.call(F.pad, x, flat, mode, value) if mode == "constant" else build.call(F.pad, x, flat, mode)


def expand(build: Builder, op: Operation) -> Live:
    assert op.inputs[0] is not None
    x, wanted = build.as_live(op.inputs[0]), op.setting("shape", 1)
    missing = max(0, len(wanted) - len(x.shape))
    new = [1] * (len(x.shape) - len(wanted)) + list(wanted)
    sizes = new[:missing]
    for before, after in zip(x.shape, new[missing:], strict=True):
        kept = before == after or after == 1 or (stands_for_batch(before) and after == build.declared_batch)
        sizes.append(-1 if kept else after)
    return build.method("expand", x, sizes)


def tile(build: Builder, op: Operation) -> Live:
    assert op.inputs[0] is not None
    return build.method("repeat", build.as_live(op.inputs[0]), op.setting("repeats", 1))


def constant_of_shape(build: Builder, op: Operation) -> Live:
    fill = op.attribute("value", np.zeros(1, np.float32))
    kind = torch.from_numpy(np.zeros(1, fill.dtype)).dtype
    assert build.input is not None
    return build.method("new_full", build.input, op.setting("shape", 0), fill.item(), dtype=kind)


def shape(build: Builder, op: Operation) -> np.ndarray:
    return np.array(op.live().shape[op.attribute("start", 0) : op.attribute("end")], dtype=np.int64)


def size(build: Builder, op: Operation) -> np.ndarray:
    return np.array(math.prod(op.live().shape), dtype=np.int64)


def cast(build: Builder, op: Operation) -> Live:
    from onnx import helper

    kind = torch.from_numpy(np.zeros(1, helper.tensor_dtype_to_np_dtype(op.attribute("to")))).dtype
    x = op.live()
    return x if x.meta.dtype == kind else build.method("to", x, kind)


def resize(build: Builder, op: Operation) -> Live:
    """Nearest, linear and cubic resizing under the conventions that torch shares with ONNX."""
    x = op.live()
    old = op.kind == "Upsample"
    scales = op.setting("scales", 1 if old or op.opset < 11 else 2)
    sizes = None if old else op.setting("sizes", 3)
    if sizes:
        scales = [new / before if before != BATCH else 1 for new, before in zip(sizes, x.shape, strict=True)]
    mode = op.attribute("mode", "nearest")
    place = op.attribute("coordinate_transformation_mode", "asymmetric" if old or op.opset < 11 else "half_pixel")
    if not scales or list(scales[:2]) != [1, 1] or op.attribute("antialias", 0):
        raise op.unsupported("only spatial dimensions are resized, without antialiasing")
    rank = len(x.shape) - 2
    whole = all(float(scale).is_integer() for scale in scales)
    if mode == "nearest":
        rounding = op.attribute("nearest_mode", "floor" if old or op.opset < 11 else "round_prefer_floor")
        repeats = whole and place == "half_pixel" and rounding.startswith("round_prefer")
        if not repeats and (place, rounding) != ("asymmetric", "floor"):
            raise op.unsupported(f"nearest with {place} and {rounding} is not one of torch's")
        method, align = "nearest", None
    else:
        if place not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
            raise op.unsupported(f"{mode} with {place} is not one of torch's")
        if mode == "cubic" and abs(op.attribute("cubic_coeff_a", -0.75) + 0.75) > 1e-6:
            raise op.unsupported("only the cubic coefficient -0.75 is torch's")
        method = {"linear": {1: "linear", 2: "bilinear", 3: "trilinear"}[rank], "cubic": "bicubic"}[mode]
        align = place == "align_corners"
    target = {"size": tuple(sizes[2:])} if sizes else {"scale_factor": tuple(map(float, scales[2:]))}
    return build.call(F.interpolate, x, mode=method, align_corners=align, **target)


def depth_to_space(build: Builder, op: Operation) -> Live:
    x, block = op.live(), op.attribute("blocksize")
    if op.attribute("mode", "DCR") == "CRD":
        return build.layer("pixelshuffle", nn.PixelShuffle(block), x)
    _, channels, height, width = x.shape
    parts = reshaped(build, x, [BATCH, block, block, channels // block**2, height, width])
    moved = build.call(torch.permute, parts, (0, 3, 4, 1, 5, 2))
    return reshaped(build, moved, [BATCH, channels // block**2, height * block, width * block])


def space_to_depth(build: Builder, op: Operation) -> Live:
    x, block = op.live(), op.attribute("blocksize")
    _, channels, height, width = x.shape
    parts = reshaped(build, x, [BATCH, channels, height // block, block, width // block, block])
    moved = build.call(torch.permute, parts, (0, 3, 5, 1, 2, 4))
    return reshaped(build, moved, [BATCH, channels * block**2, height // block, width // block])


SHAPES: dict[str, Converter] = {
    "Reshape": reshape,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Split": split,
    "Slice": slices,
    "Gather": gather,
    "GatherND": gather_places,
    "Pad": pad,
    "Expand": expand,
    "Tile": tile,
    "ConstantOfShape": constant_of_shape,
    "Shape": shape,
    "Size": size,
    "Cast": cast,
    "Resize": resize,
    "Upsample": resize,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
