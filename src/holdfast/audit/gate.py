"""Gates: conditions on findings, decided by the interval and not by the point.

`--fail-if "adversarial.accuracy < 0.4"` passes only when the whole interval rules the condition out, so a gate never
passes by luck; what decided is said.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from holdfast.audit.probes import PROBES
from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.finding import Finding

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"^\s*([a-z_]+)\.([a-z0-9_.@-]+)\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*$")

Truth = Literal["true", "false", "undecided"]


@dataclass(frozen=True)
class Condition:
    """`key comparison number`, for example `adversarial.accuracy < 0.4`."""

    key: str
    comparison: str
    number: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises InputError when `text` is not `probe.finding < number` (or <=, >, >=)."""
        match = _FORM.match(text)
        if match is None:
            raise InputError(
                f"cannot read the condition {text!r}; write it like 'adversarial.accuracy < 0.4' (<, <=, > or >=)"
            )
        probe, name, comparison, number = match.groups()
        if probe not in PROBES:
            raise InputError(f"the condition {text!r} names no probe; choose from {', '.join(PROBES)}")
        try:
            return cls(f"{probe}.{name}", comparison, float(number))
        except ValueError as error:
            raise InputError(f"the condition {text!r} ends in {number!r}, which is not a number") from error

    def truth(self, estimate: Estimate) -> Truth:
        """Whether the condition holds for every number in the interval, for none, or for some."""
        compare = _OPERATORS[self.comparison]
        low, high = compare(estimate.low, self.number), compare(estimate.high, self.number)
        if low and high:
            return "true"
        return "undecided" if low or high else "false"

    def deciding_bound(self, estimate: Estimate) -> tuple[str, float]:
        """The end of the interval that is most in favour of the condition."""
        return ("lower", estimate.low) if self.comparison.startswith("<") else ("upper", estimate.high)

    def __str__(self) -> str:
        return f"{self.key} {self.comparison} {self.number:g}"


@dataclass(frozen=True)
class Verdict:
    """How a gate ended, in words."""

    condition: Condition
    passed: bool
    sentence: str


def decide(conditions: Iterable[Condition], findings: Iterable[Finding]) -> list[Verdict]:
    """One verdict a condition: passed when the interval rules it out.  What was not measured does not pass."""
    known = {finding.key: finding for finding in findings}
    verdicts = []
    for condition in conditions:
        finding = known.get(condition.key)
        if finding is None:
            measured = ", ".join(sorted(known)) or "nothing"
            sentence = f"{condition}: not measured in this run, so it cannot be ruled out (measured: {measured})"
            verdicts.append(Verdict(condition, False, sentence))
            continue
        end, bound = condition.deciding_bound(finding.estimate)
        passed = condition.truth(finding.estimate) == "false"
        relation = "rules it out" if passed else "does not rule it out"
        verdicts.append(
            Verdict(
                condition, passed, f"{condition}: measured {finding.estimate}; the {end} bound {bound:.4g} {relation}"
            )
        )
    return verdicts
