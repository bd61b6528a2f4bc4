"""Which source files a result rests on, and a hash of them, found without importing anything.

The hash of a catalogue entry is BLAKE2b over the normalised text of the modules that define what the paper `builds`,
of the module with its check, and of what that check imports from `holdfast.papers`.  Module names and contents enter;
paths, line endings, interpreter and platform do not.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from holdfast.core.errors import HoldfastError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "holdfast"
#: What serves every check alike (running it, handing out files as they are) and so is no part of any one result.
MACHINERY = frozenset(
    f"{PACKAGE}.papers.{name}" for name in ("paper", "catalogue", "datasets", "provenance", "reproduce", "search")
)


def source_file(module: str) -> Path | None:
    """File of a dotted module name inside holdfast, or None when there is no such module."""
    head, *rest = module.split(".")
    if head != PACKAGE:
        return None
    place = ROOT.joinpath(*rest)
    for candidate in (place / "__init__.py", place.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def defining_module(path: str) -> str:
    """The module in which the object with import path `path` is written, through any number of re-exports.

    Raises HoldfastError when the path leads nowhere: then a catalogue entry names something that does not exist.
    """
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        module = ".".join(parts[:cut])
        if source_file(module) is None:
            continue
        if cut == len(parts):
            return module
        name = parts[cut]
        origins = imported_names(module)
        if name in defined_names(module):
            return module
        if name in origins:
            return defining_module(origins[name])
        break
    raise HoldfastError(f"{path} is not defined in holdfast; correct `builds` in the catalogue entry that names it")


@cache
def parsed(module: str) -> ast.Module:
    """Syntax tree of a module of holdfast."""
    file = source_file(module)
    if file is None:
        raise HoldfastError(f"there is no module {module}")
    return ast.parse(file.read_text(encoding="utf-8"), filename=module)


@cache
def defined_names(module: str) -> frozenset[str]:
    """Names that a module defines at its top level."""
    names: set[str] = set()
    for node in parsed(module).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return frozenset(names)


@cache
def imported_names(module: str) -> dict[str, str]:
    """Names that a module imports from holdfast, with the import path of each (`if TYPE_CHECKING` blocks included)."""
    origins: dict[str, str] = {}
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == PACKAGE:
            origins.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return origins


def modules_behind(check_module: str, builds: Iterable[str]) -> tuple[str, ...]:
    """Sorted names of the modules a result rests on."""
    modules = {check_module, *(defining_module(path) for path in builds)}
    for origin in imported_names(check_module).values():
        if origin.startswith(f"{PACKAGE}.papers."):
            modules.add(defining_module(origin))
    return tuple(sorted(modules - MACHINERY))


def source_hash(modules: Iterable[str]) -> str:
    """Hexadecimal BLAKE2b digest (16 bytes) of the named modules."""
    digest = hashlib.blake2b(digest_size=16)
    for module in sorted(modules):
        digest.update(f"{module}\0{normalised_source(module)}\0".encode())
    return digest.hexdigest()


@cache
def normalised_source(module: str) -> str:
    """Text of a module with Unix line endings and no white space at the ends of lines."""
    file = source_file(module)
    if file is None:
        raise HoldfastError(f"there is no module {module}")
    return "\n".join(line.rstrip() for line in file.read_text(encoding="utf-8").splitlines())
