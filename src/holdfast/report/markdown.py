"""The report as GitHub-flavoured Markdown: the same answers, with figures as tables of their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from holdfast.core.exhibit import Bars, Curve, Exhibit, Gallery, Heatmap, Histogram, Reliability, Table
from holdfast.core.finding import Doubt, Section
from holdfast.report.command import make_again
from holdfast.report.html import effort, facts
from holdfast.report.numbers import estimate_text, plain_number
from holdfast.report.page import cell_text, share_columns, visible
from holdfast.report.record import RunRecord
from holdfast.report.verdict import Verdict, clean_verdict, first_screen, judge, rules_in_words

#: Rows of a table, points of a line and pictures of a gallery that are written out.
MOST_ROWS = 40


def escaped(text: str) -> str:
    """`text` in one line that Markdown and the HTML inside it show as it is."""
    line = " ".join(visible(text).split())
    line = re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: str) -> str:
    """`text` as code in one line, whatever backticks it holds."""
    line = " ".join(visible(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", line)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _prose(text: str) -> str:
    """A sentence whose `code` stays code."""
    parts = visible(text).split("`")
    if len(parts) % 2 == 0:
        return escaped(text)
    said = [code(part) if place % 2 else _spaced(part) for place, part in enumerate(parts)]
    return "".join(said).strip()


def _spaced(part: str) -> str:
    """`part` escaped, with the spaces at its ends kept."""
    return f"{' ' * part[:1].isspace()}{escaped(part)}{' ' * (part[-1:].isspace() and bool(part.strip()))}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are escaped here."""
    body = [f"| {' | '.join(escaped(cell) for cell in row)} |" for row in rows]
    head = f"| {' | '.join(escaped(column) for column in columns)} |"
    return "\n".join([head, f"|{' --- |' * len(columns)}", *body])


def render_markdown(record: RunRecord) -> str:
    """The whole report."""
    verdicts = judge(record)
    told = dict(zip((section.probe for section in record.sections), verdicts))
    parts = [f"# Can I trust {escaped(str(record.subject['name']))}, and for what?", first_lines(record, verdicts)]
    if record.manifest["status"] != "complete":
        reason = record.manifest.get("stopped_because") or "the audit did not finish"
        parts.append(
            f"> **Not everything was looked at:** {escaped(str(reason))}. The intervals are valid for what was."
        )
    parts += [doubt_text(doubt) for doubt in record.doubts]
    parts += [section_text(record, section, told[section.probe]) for section in record.sections]
    parts += ["## How the verdicts are chosen", "\n".join(f"- {escaped(rule)}" for rule in rules_in_words())]
    parts += ["## What was audited", table(("", ""), facts(record)), f"```sh\n{' '.join(make_again(record))}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def first_lines(record: RunRecord, verdicts: Sequence[Verdict]) -> str:
    """The answer in at most five lines."""
    lines = []
    clean = clean_verdict(record)
    if clean is not None and clean.finding is not None:
        lines.append(
            f"- **{estimate_text(clean.finding.estimate, clean.finding.unit)}** right on data like the test set"
        )
    for line in first_screen(tuple(verdicts)):
        items = (f"{escaped(str(v))}{f' ({escaped(v.remark)})' if v.remark else ''}" for v in line.verdicts)
        lines.append(f"- **{line.lead}:** {'; '.join(items)}")
    return "\n".join(lines)


def doubt_text(doubt: Doubt) -> str:
    """A doubt as a block quote."""
    advice = f" {_prose(doubt.advice)}" if doubt.advice else ""
    return f"> **Doubt: {escaped(doubt.name)}.** {_prose(doubt.sentence)}{advice}"


def section_text(record: RunRecord, section: Section, verdict: Verdict) -> str:
    """One probe."""
    parts = [f"## {escaped(section.question)}", f"**{verdict.word}.** {_prose(section.answer)}"]
    if not section.findings:
        return "\n\n".join(parts)
    numbers = [(f.name.replace("_", " "), estimate_text(f.estimate, f.unit), f.sentence) for f in section.findings]
    parts.append(table(("number", "value", "in words"), numbers))
    parts += [doubt_text(doubt) for doubt in section.doubts]
    parts += [exhibit_text(exhibit) for exhibit in section.exhibits]
    if section.advice:
        parts.append(f"**What to do about it.** {_prose(section.advice)}")
    parts.append(
        f"**How it was measured.** {_prose(section.method)} {effort(section)} Verdict: {escaped(verdict.rule)}."
    )
    parts.append(f"```sh\n{' '.join(make_again(record, section.probe))}\n```")
    return "\n\n".join(parts)


def exhibit_text(exhibit: Exhibit) -> str:
    """Any exhibit as its title, a table of its numbers, and its caption."""
    columns, rows = _numbers(exhibit)
    left = len(rows) - MOST_ROWS
    title, caption = getattr(exhibit, "title", ""), getattr(exhibit, "caption", "")
    more = f"{left} more rows are in findings.json." if left > 0 else ""
    below = " ".join(part for part in (_prose(caption), more) if part)
    return "\n\n".join(part for part in (f"**{escaped(title)}**", table(columns, rows[:MOST_ROWS]), below) if part)


def _numbers(exhibit: Exhibit) -> tuple[Sequence[str], list[Sequence[str]]]:
    match exhibit:
        case Table(columns=columns, rows=rows):
            shares = share_columns(columns)
            return columns, [[cell_text(value, share) for value, share in zip(row, shares)] for row in rows]
        case Curve(series=series, x_label=x_label, y_label=y_label):
            points = [(line.name, plain_number(x), plain_number(y)) for line in series for x, y in zip(line.x, line.y)]
            return ("line", x_label, y_label), list(points)
        case Bars(labels=labels, values=values, x_label=x_label, limits=limits):
            share = limits == (0.0, 1.0)
            return ("", x_label), [(label, cell_text(value, share)) for label, value in zip(labels, values)]
        case Heatmap(row_labels=names, column_labels=columns, values=values):
            return ("", *columns), [(name, *map(plain_number, row)) for name, row in zip(names, values)]
        case Histogram(edges=edges, groups=groups):
            between = [f"{plain_number(low)} to {plain_number(high)}" for low, high in pairwise(edges)]
            return ("bin", *(name for name, _ in groups)), [
                (bin_, *(plain_number(counts[i]) for _, counts in groups)) for i, bin_ in enumerate(between)
            ]
        case Reliability(confidence=confidence, accuracy=accuracy, counts=counts):
            return ("says", "is right", "examples"), [
                (f"{100 * says:.1f}%", cell_text(right, True), plain_number(count))
                for says, right, count in zip(confidence, accuracy, counts)
            ]
        case Gallery(pictures=pictures):
            return ("example", "note"), [
                (shot.label, " ".join([shot.text, *(f"{name}: {value};" for name, value in shot.fields)]).strip())
                for shot in pictures
            ]
        case _:
            return ("exhibit",), [(exhibit.kind,)]
