"""`torch.export` archives (`.pt2`).

Reading one can run code in several ways: pickled tensors and objects, compiled libraries, size expressions that are
evaluated as Python, and operators that are looked up by name anywhere in torch.  Without trust an archive is opened
only when it has none of these: `unsafe_parts` lists what it has.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import InputError, TrustError
from holdfast.subject.models.loaded import FixedBatch, LoadedModel

#: Operators that only compute: registered ones of these namespaces, arithmetic, and sizes.
HARMLESS = re.compile(
    r"torch\.ops\.(aten|prims|higher_order|quantized_decomposed|torchvision)\.[A-Za-z_]\w*(\.[A-Za-z]\w*)?"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.[a-z]\w*|torch\.sym_\w+|torch\._check|torch\._C\._set_grad_enabled"
)
#: Functions that may occur in expressions for sizes.
SIZE_FUNCTIONS = frozenset(
    {"Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "Eq", "Ne", "Lt", "Le"}
    | {"Gt", "Ge", "And", "Or", "Not", "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing", "PythonMod", "Where"}
    | {
        "ToFloat",
        "TruncToInt",
        "FloorToInt",
        "CeilToInt",
        "RoundToInt",
        "IntTrueDiv",
        "FloatTrueDiv",
        "floor",
        "ceiling",
    }
)
SIZE_SYNTAX = (
    ast.Expression,
    ast.Call,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.keyword,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
)
SIZE_OPERATORS = (ast.operator, ast.unaryop, ast.cmpop)


def exported_model(path: Path, trust: bool) -> LoadedModel:
    """The program in an archive as a module; one exported for a fixed batch is fed batches of that size.

    Raises TrustError when reading it could run code and `trust` is False; InputError when it is no whole archive or the
    program does not take one tensor.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            unsafe = [] if trust else list(unsafe_parts(archive))
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: not a whole .pt2 archive ({error}); export or fetch it again") from error
    if damaged is not None:
        raise InputError(f"{path}: {damaged} inside it is damaged; export or fetch it again")
    if unsafe:
        raise TrustError(
            f"{path}: reading it could run code ({unsafe[0]}); export it again with plain tensors, or say --trust "
            "if you trust "
            "where it came from"
        )
    try:
        program = torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, AssertionError, OSError) as error:
        raise InputError(f"{path}: torch cannot read this program ({str(error).splitlines()[0]})") from error
    program._guards_code.clear()  # checks of the example inputs, written as Python; our own checks replace them
    shape, batch = _example_input(program, path)
    module = Exported(program.module())
    return LoadedModel(module if batch is None else FixedBatch(module, batch), path.stem, shape=shape)


class Exported(nn.Module):
    """An exported program, which is for one mode only and refuses to be told which."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.training = False

    def train(self, mode: bool = True) -> Exported:
        return self

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.program(x)
        return output


def _example_input(program: Any, path: Path) -> tuple[tuple[int, ...] | None, int | None]:
    """Shape of one example and fixed batch size, None where the program leaves them open."""
    names = program.graph_signature.user_inputs
    inputs = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(inputs) != 1 or not isinstance(inputs[0].meta.get("val"), torch.Tensor):
        raise InputError(f"{path}: the program takes {len(inputs)} inputs; one tensor was wanted")
    batch, *shape = inputs[0].meta["val"].shape
    fixed = tuple(shape) if all(type(size) is int for size in shape) else None
    return fixed, batch if type(batch) is int else None


def unsafe_parts(archive: zipfile.ZipFile) -> Iterator[str]:
    """What in a `torch.export` archive can run code when it is read, in words."""
    for entry in archive.namelist():
        name = entry.partition("/")[2]
        if name.startswith("data/aotinductor/") or name.endswith((".so", ".cpp", ".cubin")):
            yield f"compiled code in {name}"
        elif name.endswith("_config.json") and name.startswith(("data/weights/", "data/constants/")):
            yield from _unsafe_payloads(json.loads(archive.read(entry)))
        elif name.endswith(".pt"):
            yield from _unsafe_pickle(archive.read(entry), name)
        elif name.startswith("models/"):
            yield from _unsafe_program(json.loads(archive.read(entry)))
    if not any(entry.partition("/")[2].startswith("models/") for entry in archive.namelist()):
        yield "it is of an older format, which cannot be looked through"


def _unsafe_payloads(config: Any) -> Iterator[str]:
    for name, payload in config.get("config", {}).items():
        if payload.get("use_pickle") or not str(payload.get("path_name")).startswith(("weight_", "tensor_")):
            yield f"{name} is pickled"


def _unsafe_pickle(content: bytes, name: str) -> Iterator[str]:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError):
        yield f"{name} is pickled"


def _unsafe_program(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for part in value:
            yield from _unsafe_program(part)
    if isinstance(value, dict):
        for key, part in value.items():
            if key == "expr_str" and not _is_size(str(part)):
                yield f"the size {str(part)[:40]!r} is more than arithmetic"
            elif key == "target" and isinstance(part, str) and "inputs" in value and not HARMLESS.fullmatch(part):
                yield f"the operator {part[:60]!r} is not a known one"
            else:
                yield from _unsafe_program(part)


def _is_size(text: str) -> bool:
    """Whether an expression is arithmetic of symbols: no attributes, no indexing, only known functions."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, (*SIZE_SYNTAX, *SIZE_OPERATORS)):
            return False
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in SIZE_FUNCTIONS):
            return False
        if isinstance(node, ast.Name) and not re.fullmatch(r"[A-Za-z]\w*", node.id):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not node.value.isidentifier():
            return False
    return True
