"""Verification properties, and the VNN-LIB files (version 1) that hold them.

A property asks: is there an input inside one of the boxes whose output lies in the unsafe set?  Everything is brought
into disjunctive normal form: a list of `Disjunct`s, each one box lower <= x <= upper with one polyhedron A y <= b.  The
property holds when every disjunct is infeasible.  `Property.margin` asks the usual question about a classifier: is
there an input inside a threat's box where another class reaches the label's logit?

The format is a subset of SMT-LIB: `declare-const X_i / Y_j Real` and `assert` over `and`, `or`, `<=`, `>=`, `<`, `>`
and `=`, whose sides are linear in one kind of variable.  Strict comparisons are read as their closure, as the
competition does: that is sound for "holds".

Source: VNN-LIB standard (Demarchi, Guidotti, Pulina, Tacchella, 2023) and the rules of VNN-COMP.
"""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.inputs.bounds.region import Region, margin_spec
from holdfast.threats.balls import Box, Linf
from holdfast.threats.base import Threat, Valid

_TOKEN = re.compile(r"\(|\)|[^\s()]+")
_VARIABLE = re.compile(r"^([XY])_(\d+)$")
_FLIPPED = {">=": "<=", ">": "<"}

#: Cases of a property in disjunctive normal form, and nesting of parentheses, beyond which a file is refused.
MOST_CASES = 100_000
DEEPEST = 200

Tree = str | list[Any]  # an S-expression: a word, or a list of S-expressions


@dataclass(frozen=True)
class Disjunct:
    """One way to be unsafe: lower <= x <= upper and matrix @ y <= offset (float64; x and y flattened)."""

    lower: Float[np.ndarray, " inputs"]
    upper: Float[np.ndarray, " inputs"]
    matrix: Float[np.ndarray, "rows outputs"]
    offset: Float[np.ndarray, " rows"]


@dataclass(frozen=True)
class Margin:
    """Unsafe: lower <= x <= upper and y_k >= y_label for some k other than `label`, however many outputs there are."""

    lower: Float[np.ndarray, " inputs"]
    upper: Float[np.ndarray, " inputs"]
    label: int

    def disjuncts(self, outputs: int) -> tuple[Disjunct, ...]:
        """One disjunct for every rival.  Raises InputError when the label is not among `outputs` classes."""
        rows = margin_spec(torch.tensor([self.label]), outputs)[0].numpy()
        return tuple(Disjunct(self.lower, self.upper, row[None], np.zeros(1)) for row in rows)


@dataclass(frozen=True)
class Property:
    """A union of disjuncts; the property holds when no input is in any of them.

    `margins` become disjuncts once the number of outputs is known (`unsafe`).  `shape` is the shape of one input, where
    the property knows it; x is flattened everywhere else.
    """

    disjuncts: tuple[Disjunct, ...]
    name: str = ""
    margins: tuple[Margin, ...] = ()
    shape: tuple[int, ...] | None = None

    @property
    def inputs(self) -> int | None:
        """Number of input entries; None for a property without disjuncts, which says nothing."""
        parts: list[Disjunct | Margin] = [*self.disjuncts, *self.margins]
        return len(parts[0].lower) if parts else None

    @property
    def outputs(self) -> int | None:
        """Number of output entries; None where any number will do."""
        return int(self.disjuncts[0].matrix.shape[1]) if self.disjuncts else None

    def unsafe(self, outputs: int) -> tuple[Disjunct, ...]:
        """All ways to be unsafe for a network with that many outputs."""
        return (*self.disjuncts, *(part for margin in self.margins for part in margin.disjuncts(outputs)))

    def violated(
        self, x: Float[np.ndarray, "points inputs"], y: Float[np.ndarray, "points outputs"], tolerance: float = 0.0
    ) -> Bool[np.ndarray, " points"]:
        """Whether each input with its output is a counterexample, to `tolerance` in inputs and in output rows."""
        bad = np.zeros(len(x), dtype=bool)
        for part in self.unsafe(y.shape[1]):
            inside = ((x >= part.lower - tolerance) & (x <= part.upper + tolerance)).all(axis=1)
            bad |= inside & (y @ part.matrix.T <= part.offset + tolerance).all(axis=1)
        return bad

    @classmethod
    def from_vnnlib(cls, path: str | Path) -> Property:
        """Read a `.vnnlib` or `.vnnlib.gz` file.

        Raises InputError when the file cannot be read, is not VNN-LIB, leaves an input unbounded, mixes inputs and
        outputs in one comparison, or refers to a variable that is not declared.
        """
        source = Path(path)
        try:
            content = source.read_bytes()
            text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
        except (OSError, EOFError, UnicodeDecodeError, gzip.BadGzipFile) as error:
            raise InputError(f"{source.name}: cannot be read as a VNN-LIB property ({error})") from error
        return cls(tuple(_disjuncts(text, source.name)), name=source.name)

    @classmethod
    def margin(cls, x: Float[Tensor, "*shape"], y: int, threat: Threat, valid: Valid = None) -> Property:
        """Unsafe: an admissible change of the one input `x` lets another output reach output `y`.

        Ties count as unsafe.  Raises InputError for a threat whose set is not a box, a negative label, and inputs that
        a `Region` refuses.
        """
        if not isinstance(threat, (Linf, Box)):
            raise InputError(
                f"complete verification takes boxes (Linf, Box), got {type(threat).__name__}; "
                "`certify` bounds other threats"
            )
        if y < 0:
            raise InputError(f"a label must not be negative, got {y}")
        region = Region(x.detach().cpu().double()[None], threat, valid)
        lower, upper = (end.flatten().numpy() for end in region.interval())
        free_lower, free_upper = (end.flatten().numpy() for end in replace(region, valid=None).interval())
        # x - eps and x + eps were rounded; ends that the valid range cuts were not.
        lower = np.where(lower > free_lower, lower, np.nextafter(lower, -np.inf))
        upper = np.where(upper < free_upper, upper, np.nextafter(upper, np.inf))
        return cls((), name=f"margin of class {y}", margins=(Margin(lower, upper, y),), shape=tuple(x.shape))


@dataclass(frozen=True)
class _Row:
    """One comparison sum(coefficients * variables) <= bound over inputs (`X`) or outputs (`Y`)."""

    kind: str
    coefficients: tuple[tuple[int, float], ...]
    bound: float


def _disjuncts(text: str, name: str) -> Iterator[Disjunct]:
    declared: dict[str, set[int]] = {"X": set(), "Y": set()}
    shared: list[_Row] = []
    choices: list[list[list[_Row]]] = []
    for statement in _trees(text, name):
        match statement:
            case ["declare-const", str(variable), "Real"]:
                kind, index = _variable(variable, name)
                declared[kind].add(index)
            case ["assert", formula]:
                clauses = _clauses(formula, declared, name)
                if len(clauses) == 1:
                    shared += clauses[0]
                else:
                    choices.append(clauses)
            case _:
                raise InputError(
                    f"{name}: cannot read the statement {_words(statement)}; wanted declare-const or assert"
                )
    for kind, indices in declared.items():
        if indices != set(range(len(indices))) or not indices:
            raise InputError(f"{name}: variables {kind}_0, {kind}_1, ... must be declared without gaps")
    if math.prod(len(clauses) for clauses in choices) > MOST_CASES:
        raise InputError(
            f"{name}: its `or`s multiply to more than {MOST_CASES:,} cases; state them as one `or` of `and`s, or split "
            "the property"
        )
    for combination in product(*choices):
        rows = [*shared, *(row for clause in combination for row in clause)]
        yield from _disjunct(rows, len(declared["X"]), len(declared["Y"]), name)


def _disjunct(rows: Sequence[_Row], inputs: int, outputs: int, name: str) -> Iterator[Disjunct]:
    lower, upper = np.full(inputs, -np.inf), np.full(inputs, np.inf)
    matrix, offset = [], []
    for row in rows:
        if row.kind == "Y":
            matrix.append(np.zeros(outputs))
            for index, coefficient in row.coefficients:
                matrix[-1][index] += coefficient
            offset.append(row.bound)
            continue
        if len(row.coefficients) != 1:
            raise InputError(
                f"{name}: inputs must lie in boxes, but a comparison ties {len(row.coefficients)} inputs together"
            )
        index, coefficient = row.coefficients[0]
        if coefficient > 0:
            upper[index] = min(upper[index], row.bound / coefficient)
        else:
            lower[index] = max(lower[index], row.bound / coefficient)
    unbounded = np.flatnonzero(~np.isfinite(lower) | ~np.isfinite(upper))
    if len(unbounded):
        raise InputError(f"{name}: input X_{unbounded[0]} has no lower or no upper bound; every input needs both")
    if (lower <= upper).all():  # an empty box can hold no counterexample
        yield Disjunct(lower, upper, np.array(matrix).reshape(len(matrix), outputs), np.array(offset))


def _trees(text: str, name: str) -> Iterator[Tree]:
    """S-expressions at top level; comments run from `;` to the end of the line."""
    stack: list[list[Tree]] = [[]]
    for line in text.splitlines():
        for token in _TOKEN.findall(line.partition(";")[0]):
            if token == "(":
                stack.append([])
                if len(stack) > DEEPEST:
                    raise InputError(
                        f"{name}: parentheses nest deeper than {DEEPEST}; this is not a property to verify"
                    )
            elif token != ")":
                stack[-1].append(token)
            elif len(stack) == 1:
                raise InputError(f"{name}: a closing parenthesis too many")
            else:
                done = stack.pop()
                stack[-1].append(done)
            if len(stack) == 1 and stack[0]:
                yield stack[0].pop()
    if len(stack) != 1:
        raise InputError(f"{name}: the file ends inside parentheses; it is truncated")


def _clauses(formula: Tree, declared: dict[str, set[int]], name: str) -> list[list[_Row]]:
    """Disjunctive normal form of `formula`: a list of conjunctions."""
    match formula:
        case ["and", *parts]:
            cases = [_clauses(part, declared, name) for part in parts]
            if math.prod(len(clauses) for clauses in cases) > MOST_CASES:
                raise InputError(f"{name}: an `and` of `or`s multiplies to more than {MOST_CASES:,} cases")
            combined = product(*cases)
            return [[row for clause in clauses for row in clause] for clauses in combined]
        case ["or", *parts] if parts:
            return [clause for part in parts for clause in _clauses(part, declared, name)]
        case [("<=" | ">=" | "<" | ">" | "=") as relation, left, right]:
            return [_comparison(relation, left, right, declared, name)]
        case _:
            raise InputError(f"{name}: cannot read {_words(formula)}; wanted and, or, or a comparison of two sides")


def _comparison(relation: str, left: Tree, right: Tree, declared: dict[str, set[int]], name: str) -> list[_Row]:
    if relation in _FLIPPED:
        left, right, relation = right, left, _FLIPPED[relation]
    terms, constant = _linear(left, declared, name)
    for variable, coefficient in (others := _linear(right, declared, name))[0].items():
        terms[variable] = terms.get(variable, 0.0) - coefficient
    bound = others[1] - constant
    kinds = {kind for kind, _ in terms}
    if len(kinds) != 1:
        raise InputError(
            f"{name}: a comparison must speak of inputs or of outputs, got {_words([relation, left, right])}"
        )
    kind = kinds.pop()
    rows = [_Row(kind, tuple((index, value) for (_, index), value in terms.items() if value), bound)]
    if relation == "=":
        rows.append(_Row(kind, tuple((index, -value) for index, value in rows[0].coefficients), -bound))
    return rows


def _linear(tree: Tree, declared: dict[str, set[int]], name: str) -> tuple[dict[tuple[str, int], float], float]:
    """Coefficients by variable, and the constant, of a linear expression."""
    if isinstance(tree, str):
        if tree[:1] in "XY":
            kind, index = _variable(tree, name)
            if index not in declared[kind]:
                raise InputError(f"{name}: {tree} is used but was not declared")
            return {(kind, index): 1.0}, 0.0
        return {}, _number(tree, name)
    match tree:
        case ["+", *parts] if parts:
            return _total([(1.0, part) for part in parts], declared, name)
        case ["-", part]:
            return _total([(-1.0, part)], declared, name)
        case ["-", first, *rest]:
            return _total([(1.0, first), *((-1.0, part) for part in rest)], declared, name)
        case ["*", left, right]:
            sides = [_linear(part, declared, name) for part in (left, right)]
            factor = next((constant for terms, constant in sides if not terms), None)
            if factor is None:
                raise InputError(f"{name}: {_words(tree)} multiplies two variables; properties must be linear")
            terms, constant = sides[0] if sides[0][0] else sides[1]
            return {variable: value * factor for variable, value in terms.items()}, constant * factor
    raise InputError(f"{name}: cannot read the expression {_words(tree)}; wanted +, -, * over numbers and variables")


def _total(
    parts: Sequence[tuple[float, Tree]], declared: dict[str, set[int]], name: str
) -> tuple[dict[tuple[str, int], float], float]:
    terms: dict[tuple[str, int], float] = {}
    total = 0.0
    for sign, part in parts:
        more, constant = _linear(part, declared, name)
        total += sign * constant
        for variable, value in more.items():
            terms[variable] = terms.get(variable, 0.0) + sign * value
    return terms, total


def _variable(text: str, name: str) -> tuple[str, int]:
    match = _VARIABLE.match(text)
    if match is None:
        raise InputError(f"{name}: {text!r} is not a variable X_i or Y_j")
    return match[1], int(match[2])


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"{name}: {text!r} is neither a number nor a variable X_i or Y_j") from error
    if not np.isfinite(value):
        raise InputError(f"{name}: the number {text!r} is not finite")
    return value


def _words(tree: Tree, limit: int = 80) -> str:
    text = tree if isinstance(tree, str) else "(" + " ".join(_words(part) for part in tree) + ")"
    return text if len(text) <= limit else text[: limit - 3] + "..."
