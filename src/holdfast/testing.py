"""Robustness claims as tests: `assert_holds` for pytest (or any test runner).

>>> from holdfast.subject.embedded import embedded_subject
>>> from holdfast.testing import assert_holds
>>> finding = assert_holds("accuracy.accuracy >= 0.9", embedded_subject())
>>> finding.estimate.low >= 0.9
True
"""

from __future__ import annotations

import tempfile
from typing import Any

from holdfast.audit.engine import audit
from holdfast.audit.gate import Condition
from holdfast.audit.probe import Settings
from holdfast.core.errors import InputError
from holdfast.core.finding import Finding
from holdfast.subject.subject import Subject
from holdfast.threats import parse


def assert_holds(
    condition: str,
    subject: Subject,
    *,
    threat: str | None = None,
    precision: float | None = 0.02,
    minutes: float | None = None,
    limit: int | None = None,
    level: float = 0.95,
    seed: int = 0,
    **options: Any,
) -> Finding:
    """Assert that `condition` ("adversarial.accuracy >= 0.4") holds for every number in the finding's interval.

    Only the probe that the condition names is run.  `threat` is text as for `--threat`; `options` go to
    `holdfast.audit.audit`.
    Returns the finding.

    Raises
    ------
    AssertionError when the condition is false, or when the evidence leaves it undecided (the message says what would
    decide it); InputError when the condition cannot be read or its probe does not apply to the subject.
    """
    wanted = Condition.parse(condition)
    settings = Settings(threat=parse(threat) if threat else None, seed=seed, level=level, precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        run = audit(
            subject,
            out=folder,
            probes=[wanted.key.partition(".")[0]],
            settings=settings,
            minutes=minutes,
            limit=limit,
            **options,
        )
    if not run.findings:
        raise InputError(f"cannot decide {condition!r}: {run.sections[0].answer}")
    finding = run.finding(wanted.key)
    truth = wanted.truth(finding.estimate)
    if truth == "false":
        raise AssertionError(f"{wanted} does not hold: measured {finding.estimate}. {finding.sentence}")
    if truth == "undecided":
        raise AssertionError(
            f"{wanted} is not shown: measured {finding.estimate} from {run.sections[0].examined} examples, and "
            f"{wanted.number:g} lies inside the interval; examine more (limit, minutes, precision) or claim less"
        )
    return finding
