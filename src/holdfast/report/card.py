"""A model card in the form the Hugging Face Hub reads: YAML metadata with results, then the sections of its template.

What an audit cannot know (intended use, training recipe, licence) is left as "[More Information Needed]", the Hub's
own words, and never guessed.  Metadata is written as JSON values, which are YAML.
"""

from __future__ import annotations

import json
from typing import Any

from holdfast.core.finding import Finding
from holdfast.report.command import make_again
from holdfast.report.html import facts
from holdfast.report.markdown import code, doubt_text, escaped, first_lines, table
from holdfast.report.numbers import estimate_text
from holdfast.report.page import visible
from holdfast.report.record import RunRecord
from holdfast.report.verdict import Verdict, judge

UNKNOWN = "[More Information Needed]"
_TASKS = {"image": "image-classification", "tabular": "tabular-classification"}


def render_card(record: RunRecord) -> str:
    """The card of the audited model."""
    verdicts = judge(record)
    name = escaped(str(record.subject["name"]))
    parts = [
        f"---\n{_metadata(record)}\n---",
        f"# Model card for {name}",
        f"This card was filled from a robustness audit ({code('holdfast ' + record.manifest['holdfast_version'])}). "
        "What the audit could not know is left open for the model's authors.",
        "## Model Details",
        f"- **Developed by:** {UNKNOWN}\n- **Model type:** {_task(record).replace('-', ' ')}, "
        f"{record.subject['classes']} classes\n- **License:** {UNKNOWN}",
        "## Uses",
        f"### Direct Use\n\n{UNKNOWN}",
        "### Out-of-Scope Use",
        _out_of_scope(verdicts),
        "## Bias, Risks, and Limitations",
        first_lines(record, verdicts),
        *(doubt_text(doubt) for doubt in (*record.doubts, *(d for s in record.sections for d in s.doubts))),
        "### Recommendations",
        _recommendations(record),
        "## Training Details",
        UNKNOWN,
        "## Evaluation",
        "### Testing Data, Factors & Metrics",
        table(("", ""), facts(record)),
        "### Results",
        _results(record),
        "## Make this card again",
        f"```sh\n{' '.join(make_again(record))}\nholdfast report RUN --format model-card\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _task(record: RunRecord) -> str:
    return _TASKS.get(str(record.subject["modality"]), "other")


def _metadata(record: RunRecord) -> str:
    """The `model-index` the Hub shows beside a model, one metric a finding, with the interval in the metric's
    arguments."""
    task, name = _task(record), visible(str(record.subject["name"]))
    metrics = [f"    - {_flow(_metric(finding))}" for finding in record.findings]
    lines = [
        f"tags: {_flow(['robustness', 'audit', 'holdfast'])}",
        *([f"pipeline_tag: {task}"] if task in _TASKS.values() else []),
        "model-index:",
        f"- name: {_flow(name)}",
        "  results:",
        f"  - task: {_flow({'type': task})}",
        f"    dataset: {_flow({'type': 'custom', 'name': visible(str(record.subject['source']))})}",
        "    metrics:" if metrics else "    metrics: []",
        *metrics,
    ]
    return "\n".join(lines)


def _flow(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _metric(finding: Finding) -> dict[str, Any]:
    estimate = finding.estimate
    return {
        "type": "accuracy" if finding.key == "accuracy.accuracy" else finding.key,
        "name": finding.key,
        "value": estimate.value,
        "args": {"low": estimate.low, "high": estimate.high, "level": estimate.level, "n": estimate.n},
    }


def _out_of_scope(verdicts: tuple[Verdict, ...]) -> str:
    fallen = [verdict for verdict in verdicts if verdict.word == "Falls"]
    if not fallen:
        return UNKNOWN
    lines = "\n".join(f"- {escaped(str(verdict))}" for verdict in fallen)
    return f"The audit found that the model does not hold here; do not rely on it where this matters:\n\n{lines}"


def _recommendations(record: RunRecord) -> str:
    advice = [f"- {escaped(section.advice)}" for section in record.sections if section.advice]
    return "\n".join(advice) or UNKNOWN


def _results(record: RunRecord) -> str:
    rows = [(f.key, estimate_text(f.estimate, f.unit), f.direction, f.sentence) for f in record.findings]
    note = f"Intervals have level {100 * record.level:g}%."
    return f"{table(('finding', 'value', 'direction', 'in words'), rows)}\n\n{note}"
