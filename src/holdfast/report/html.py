"""The report as one web page that needs nothing else: no network, no script, light and dark, phone, desktop and
print."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from holdfast.core.errors import StorageError
from holdfast.core.exhibit import Gallery
from holdfast.core.finding import Section
from holdfast.report.command import make_again
from holdfast.report.numbers import duration_text, plain_number
from holdfast.report.page import environment, exhibit_view, style
from holdfast.report.record import RunRecord
from holdfast.report.verdict import AGAINST_CLEAN, RETAINED, Verdict, clean_verdict, first_screen, judge, rules_in_words

#: No report is larger than this.
LARGEST = 5_000_000
#: What the pictures of all galleries may take of it.
PICTURES = 3_000_000


def render_html(record: RunRecord) -> str:
    """The whole page.  Raises StorageError when it would exceed `LARGEST` bytes even without most pictures."""
    page: str = environment().get_template("report.html").render(**_context(record))
    size = len(page.encode())
    if size > LARGEST:
        raise StorageError(
            f"the report of {record.url} would take {size / 1e6:.1f} MB, more than the {LARGEST / 1e6:.0f} MB it may; "
            "audit with fewer probes, or export it with --format json"
        )
    return page


def _context(record: RunRecord) -> dict[str, Any]:
    verdicts = judge(record)
    told = dict(zip((section.probe for section in record.sections), verdicts))
    anchors = {section.probe: f"probe-{number}" for number, section in enumerate(record.sections, 1)}
    share = _share_of_pictures(record.sections)
    return {
        "style": style(),
        "manifest": record.manifest,
        "subject": record.subject,
        "created": _date(record.manifest["created"]),
        "level": f"{100 * record.level:g}%",
        "clean": clean_verdict(record),
        "lines": first_screen(verdicts),
        "strip": _strip(record, verdicts),
        "stopped": _stopped(record),
        "doubts": record.doubts,
        "rules": rules_in_words(),
        "anchors": anchors,
        "sections": [
            _section_view(record, section, told[section.probe], anchors[section.probe], share)
            for section in record.sections
            if _examined(section)
        ],
        "absent": [
            {
                "anchor": anchors[section.probe],
                "probe": section.probe,
                "question": section.question,
                "answer": section.answer,
            }
            for section in record.sections
            if not _examined(section)
        ],
        "facts": facts(record),
        "command": make_again(record),
        "closing": (
            f"Every interval is meant to cover the truth with probability {100 * record.level:g}%; those of averages "
            "over examples stay valid however early the audit was stopped. This page was made from the run folder "
            "alone; findings.json there holds every number on it."
        ),
    }


def _examined(section: Section) -> bool:
    return section.status in ("complete", "partial")


def _share_of_pictures(sections: Sequence[Section]) -> float:
    """How much of every gallery fits into the page."""
    total = sum(
        len(picture.png or "") + len(picture.before_png or "")
        for section in sections
        for exhibit in section.exhibits
        if isinstance(exhibit, Gallery)
        for picture in exhibit.pictures
    )
    return min(1.0, PICTURES / total) if total else 1.0


def _section_view(record: RunRecord, section: Section, verdict: Verdict, anchor: str, share: float) -> dict[str, Any]:
    findings = sorted(section.findings, key=lambda finding: finding is not verdict.finding)
    return {
        "anchor": anchor,
        "probe": section.probe,
        "question": section.question,
        "answer": section.answer,
        "verdict": verdict,
        "findings": [
            {
                "key": finding.key,
                "title": finding.name.replace("_", " "),
                "estimate": finding.estimate,
                "unit": finding.unit,
                "sentence": finding.sentence,
            }
            for finding in findings
        ],
        "doubts": section.doubts,
        "exhibits": [
            exhibit_view(exhibit, f"{anchor}-{number}", share) for number, exhibit in enumerate(section.exhibits, 1)
        ],
        "method": section.method,
        "advice": section.advice,
        "remedies": list(dict.fromkeys(remedy for finding in findings for remedy in finding.remedies)),
        "effort": effort(section),
        "command": make_again(record, section.probe),
    }


def effort(section: Section) -> str:
    """How much was looked at and how long it took."""
    looked = f"{plain_number(section.examined)} of {plain_number(section.available)} examples"
    state = " (stopped before the end)" if section.status == "partial" else ""
    took = f", {duration_text(section.seconds)}" if section.seconds else ""
    return f"{looked}{state}{took}."


def _strip(record: RunRecord, verdicts: Sequence[Verdict]) -> dict[str, Any] | None:
    """Rows of the picture on the first screen: accuracies as they are, and under each perturbation."""
    clean = clean_verdict(record)
    shown = [v for v in verdicts if v.probe in AGAINST_CLEAN and v.finding is not None]
    if clean is None or clean.finding is None or not shown:
        return None
    value = clean.finding.estimate.value
    rows = [clean, *sorted(shown, key=lambda verdict: -verdict.finding.estimate.value if verdict.finding else 0.0)]
    return {
        "rows": [_strip_row(verdict) for verdict in rows],
        "ticks": [f"{100 * share * value:.1f}" for share in RETAINED],
        "words": f"{100 * RETAINED[0]:.0f}% and {100 * RETAINED[1]:.0f}% of the clean accuracy",
    }


def _strip_row(verdict: Verdict) -> dict[str, Any]:
    assert verdict.finding is not None  # rows without a number were left out by the caller
    low, value, high = (
        min(1.0, max(0.0, part))
        for part in (verdict.finding.estimate.low, verdict.finding.estimate.value, verdict.finding.estimate.high)
    )
    return {
        "topic": verdict.topic,
        "tone": verdict.tone,
        "finding": verdict.finding,
        "value": f"{100 * value:.1f}",
        "low": f"{100 * low:.1f}",
        "width": f"{100 * (high - low):.1f}",
    }


def _stopped(record: RunRecord) -> str:
    """Why the run is not complete, as a clause; empty when it is."""
    if record.manifest["status"] == "complete":
        return ""
    return str(record.manifest.get("stopped_because") or "the audit did not finish; go on with it by --resume")


def _date(created: str) -> str:
    try:
        at = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{at.day} {at:%B %Y}"


def facts(record: RunRecord) -> list[tuple[str, str]]:
    """The manifest as a person reads it."""
    subject, settings = record.subject, record.manifest["settings"]
    shape = "×".join(str(side) for side in subject["shape"])
    names = ", ".join(str(name) for name in list(subject["class_names"])[:20])
    more = f" and {len(subject['class_names']) - 20} more" if len(subject["class_names"]) > 20 else ""
    versions = ", ".join(f"{name} {version}" for name, version in record.manifest["versions"].items())
    train = subject.get("train_examples", 0)
    rows = [
        ("model", f"{subject['name']}, which gives {subject['access']}"),
        ("test data", f"{subject['source']}: {plain_number(subject['test_examples'])} examples of shape {shape}"),
        ("training data", f"{plain_number(train)} examples" if train else "not given"),
        ("classes", f"{subject['classes']}: {names}{more}"),
        ("threat", settings.get("threat") or "none chosen"),
        ("seed", str(settings.get("seed", 0))),
        ("intervals", f"{100 * record.level:g}%"),
        ("fingerprint", str(subject["fingerprint"])),
        ("status", str(record.manifest["status"])),
        ("made", f"{record.manifest['created']}, in {duration_text(float(record.manifest.get('seconds', 0.0)))}"),
        ("machine", str(record.manifest.get("machine", "not recorded"))),
        ("versions", f"holdfast {record.manifest['holdfast_version']}, {versions}"),
    ]
    limits = [
        f"{name} {settings[name]}" for name in ("minutes", "limit", "precision") if settings.get(name) is not None
    ]
    return [*rows[:7], ("limits", ", ".join(limits)), *rows[7:]] if limits else rows
