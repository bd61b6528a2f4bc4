"""The report as JSON, for programs.  The layout is stable: fields are added under the same `schema`, never changed or
removed.

    schema     "holdfast.report/1"
    manifest   what was audited and how (as in the run's manifest.json)
    verdicts   one a section: {probe, word, topic, finding (key or null), rule, doubts (names)}
    findings   key -> {value, low, high, level, n, method, unit, direction, sentence, headline, remedies, doubts
    (names)} sections   as in the run's findings.json: question, answer, findings, exhibits, doubts, method, advice,
    status, examined, ... doubts     about the audit as a whole: {name, sentence, touches, advice}

Infinite numbers, which JSON lacks, are written as {"number": "inf"}.
"""

from __future__ import annotations

from typing import Any

from holdfast.core.finding import Finding
from holdfast.report.record import RunRecord
from holdfast.report.verdict import judge
from holdfast.store.manifest import to_json

SCHEMA = "holdfast.report/1"


def render_json(record: RunRecord) -> str:
    """The report as JSON text."""
    return to_json(
        {
            "schema": SCHEMA,
            "manifest": record.manifest,
            "verdicts": [
                {
                    "probe": verdict.probe,
                    "word": verdict.word,
                    "topic": verdict.topic,
                    "finding": None if verdict.finding is None else verdict.finding.key,
                    "rule": verdict.rule,
                    "doubts": [doubt.name for doubt in verdict.doubts],
                }
                for verdict in judge(record)
            ],
            "findings": {finding.key: _finding(record, finding) for finding in record.findings},
            "sections": [section.to_dict() for section in record.sections],
            "doubts": [doubt.to_dict() for doubt in record.doubts],
        }
    )


def _finding(record: RunRecord, finding: Finding) -> dict[str, Any]:
    return {
        **finding.estimate.to_dict(),
        "unit": finding.unit,
        "direction": finding.direction,
        "sentence": finding.sentence,
        "headline": finding.headline,
        "remedies": list(finding.remedies),
        "doubts": [doubt.name for doubt in record.doubts_about(finding)],
    }
