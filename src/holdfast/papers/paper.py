"""A catalogue entry and what its check found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Exhibit

Group = Literal["inputs", "labels", "data", "weights", "environments", "rewards", "noise", "analysis", "optim"]
Number = Estimate | float | int


class Scale(StrEnum):
    """How much work a check may do: `SMOKE` at most 3 s (every CI run), `FULL` at most 120 s on two cores."""

    SMOKE = "smoke"
    FULL = "full"


@dataclass(frozen=True)
class Paper:
    """`key` names the paper everywhere; `builds` are import paths of public objects; `claim` is in our own words."""

    key: str
    group: Group
    title: str
    builds: tuple[str, ...]
    claim: str
    reference: str = ""


@dataclass(frozen=True)
class Criterion:
    """One part of a claim, as a statement that can be false, and the numbers that decided it."""

    statement: str
    passed: bool
    numbers: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a check measured.  The claim holds when every criterion passed."""

    criteria: tuple[Criterion, ...]
    ours: Estimate | None = None
    baseline: Estimate | None = None
    exhibits: tuple[Exhibit, ...] = ()
    seeds: tuple[int, ...] = ()
    notes: str = ""

    @property
    def holds(self) -> bool:
        return bool(self.criteria) and all(criterion.passed for criterion in self.criteria)

    def to_dict(self) -> dict[str, Any]:
        def plain(number: Number) -> Any:
            return number.to_dict() if isinstance(number, Estimate) else float(number)

        return {
            "holds": self.holds,
            "criteria": [
                {
                    "statement": c.statement,
                    "passed": bool(c.passed),
                    "numbers": {name: plain(number) for name, number in c.numbers.items()},
                }
                for c in self.criteria
            ],
            "ours": None if self.ours is None else self.ours.to_dict(),
            "baseline": None if self.baseline is None else self.baseline.to_dict(),
            "exhibits": [exhibit.to_dict() for exhibit in self.exhibits],
            "seeds": list(self.seeds),
            "notes": self.notes,
        }
