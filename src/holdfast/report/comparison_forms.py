"""A comparison as a text table, as JSON, and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Bars, Table
from holdfast.report.compare import Changes, Comparison, Difference, Unpaired
from holdfast.report.numbers import MINUS, estimate_text, interval_text, is_share, plain_number, value_text
from holdfast.report.page import environment, exhibit_view, style, visible
from holdfast.report.record import RunRecord
from holdfast.store.manifest import to_json

SCHEMA = "holdfast.comparison/1"
#: Positions of changed examples that are written out for a person; JSON holds all.
MOST_POSITIONS = 20


def signed(estimate: Estimate, unit: str) -> str:
    """A difference with its sign and interval: "+1.2 pp [0.4 – 2.0 pp]" (shares in percentage points)."""
    sign = "" if estimate.value < 0 else "+"
    shown = f"{sign}{value_text(estimate, unit)}"
    between = interval_text(estimate, unit)
    if is_share(unit):
        shown, between = shown.replace("%", " pp"), between.replace("%", " pp")
    return f"{shown} [{between}]" if between else shown


def probability_text(p: float) -> str:
    """A p-value as it is written."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def named(positions: Sequence[int], most: int = MOST_POSITIONS) -> str:
    """The first positions in words."""
    shown = ", ".join(str(position) for position in positions[:most])
    return f"{shown} and {len(positions) - most} more" if len(positions) > most else shown or "none"


def title(comparison: Comparison) -> str:
    """One line that names both runs."""
    names = [str(record.subject["name"]) for record in (comparison.a, comparison.b)]
    return f"{names[0]} and {names[1]}" if names[0] != names[1] else f"{names[0]}, two runs"


def mcnemar_sentence(changes: Changes) -> str:
    """What McNemar's test says, in a sentence."""
    test = changes.test
    return (
        f"On {plain_number(changes.shared)} shared examples both are right on {plain_number(changes.both_right)}, "
        f"only A on {plain_number(test.only_a)}, only B on {plain_number(test.only_b)}, neither on "
        f"{plain_number(changes.both_wrong)}. "
        f"If neither were better, a split this uneven would come up with probability {probability_text(test.mid_p)} "
        f"(McNemar, mid-p; exact {probability_text(test.exact_p)})."
    )


# --------------------------------------------------------------------------------------------------------------------
# text


def as_text(comparison: Comparison) -> str:
    """A table for the terminal."""
    parts = [f"A: {_named_run(comparison.a)}\nB: {_named_run(comparison.b)}"]
    parts += [f"note: {note}" for note in comparison.notes]
    if comparison.differences:
        parts.append(_columns(_HEAD, [_row(difference) for difference in comparison.differences]))
    if comparison.unpaired:
        rows = [(u.key, *_sides(u), visible(u.reason)) for u in comparison.unpaired]
        parts.append("Not paired:\n" + _columns(("finding", "A", "B", "why"), rows))
    for word, keys in (("A", comparison.only_a), ("B", comparison.only_b)):
        if keys:
            parts.append(f"Only in {word}: {', '.join(keys)}")
    if comparison.changes is not None:
        changes = comparison.changes
        parts.append(
            f"{mcnemar_sentence(changes)}\n"
            f"right only in B ({len(changes.fixed)}): {named(changes.fixed)}\n"
            f"right only in A ({len(changes.broken)}): {named(changes.broken)}\n"
            f"wrong in another way ({len(changes.otherwise)}): {named(changes.otherwise)}"
        )
    return "\n\n".join(parts)


_HEAD = ("finding", "A", "B", "B − A", "", "examples")


def _row(difference: Difference) -> tuple[str, ...]:
    unit = difference.b.unit
    return (
        difference.key,
        *_sides(difference),
        signed(difference.difference, unit),
        difference.word,
        plain_number(difference.shared),
    )


def _sides(pair: Difference | Unpaired) -> tuple[str, str]:
    return estimate_text(pair.a.estimate, pair.a.unit), estimate_text(pair.b.estimate, pair.b.unit)


def _named_run(record: RunRecord) -> str:
    return visible(
        f"{record.subject['name']} ({record.url}, {record.manifest['created']}, {record.manifest['status']})"
    )


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (head, *rows)]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])


# --------------------------------------------------------------------------------------------------------------------
# JSON


def as_json(comparison: Comparison) -> str:
    """All of it as data.

    `runs` name A and B; `differences` hold both estimates, the paired difference B − A, its `word`, counts and
    positions of the examples that rose and fell; `unpaired` hold both estimates and the reason; `changes` is about
    the clean predictions.
    """
    changes = comparison.changes
    return to_json(
        {
            "schema": SCHEMA,
            "runs": {"a": _run_data(comparison.a), "b": _run_data(comparison.b)},
            "notes": list(comparison.notes),
            "differences": [
                {
                    "key": d.key,
                    "a": d.a.estimate.to_dict(),
                    "b": d.b.estimate.to_dict(),
                    "difference": d.difference.to_dict(),
                    "unit": d.b.unit,
                    "direction": d.b.direction,
                    "word": d.word,
                    "shared": d.shared,
                    "better": d.better,
                    "worse": d.worse,
                    "rising": list(d.rising),
                    "falling": list(d.falling),
                }
                for d in comparison.differences
            ],
            "unpaired": [
                {"key": u.key, "a": u.a.estimate.to_dict(), "b": u.b.estimate.to_dict(), "reason": u.reason}
                for u in comparison.unpaired
            ],
            "only_a": list(comparison.only_a),
            "only_b": list(comparison.only_b),
            "changes": None if changes is None else _changes_data(changes),
        }
    )


def _run_data(record: RunRecord) -> dict[str, Any]:
    return {
        "url": record.url,
        "name": record.subject["name"],
        "created": record.manifest["created"],
        "status": record.manifest["status"],
        "fingerprint": record.subject["fingerprint"],
    }


def _changes_data(changes: Changes) -> dict[str, Any]:
    test = changes.test
    return {
        "shared": changes.shared,
        "both_right": changes.both_right,
        "both_wrong": changes.both_wrong,
        "mcnemar": {"only_a": test.only_a, "only_b": test.only_b, "exact_p": test.exact_p, "mid_p": test.mid_p},
        "fixed": list(changes.fixed),
        "broken": list(changes.broken),
        "otherwise": list(changes.otherwise),
    }


# --------------------------------------------------------------------------------------------------------------------
# page

_TONES = {"better": "good", "worse": "bad", "no clear difference": "open", "higher": "plain", "lower": "plain"}


def as_html(comparison: Comparison) -> str:
    """One page in the style of the report."""
    changes = comparison.changes
    lists: list[tuple[str, int, str]] = []
    if changes is not None:
        lists = [
            ("right only in B", len(changes.fixed), named(changes.fixed, 60)),
            ("right only in A", len(changes.broken), named(changes.broken, 60)),
            ("wrong in another way", len(changes.otherwise), named(changes.otherwise, 60)),
        ]
    page: str = (
        environment()
        .get_template("comparison.html")
        .render(
            style=style(),
            title=title(comparison),
            runs=[("A", _named_run(comparison.a)), ("B", _named_run(comparison.b))],
            notes=comparison.notes,
            lines=_lines(comparison.differences),
            exhibits=_exhibits(comparison),
            mcnemar=None if changes is None else mcnemar_sentence(changes),
            lists=lists,
            version=comparison.b.manifest["holdfast_version"],
        )
    )
    return page


def _lines(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    """Differences gathered by what they say, those that are clear first."""
    gathered = []
    for word in ("better", "worse", "higher", "lower", "no clear difference"):
        items = [(d.key, signed(d.difference, d.b.unit)) for d in differences if d.word == word]
        if items:
            lead = f"B is {word}" if word != "no clear difference" else "No clear difference"
            gathered.append({"lead": lead, "tone": _TONES[word], "items": items})
    return gathered


def _exhibits(comparison: Comparison) -> list[dict[str, Any]]:
    shares = [d for d in comparison.differences if is_share(d.b.unit)]
    made: list[Any] = []
    if shares:
        made.append(
            Bars(
                "Differences in percentage points",
                f"B {MINUS} A",
                tuple(d.key for d in shares),
                tuple(d.difference.scaled(100.0) for d in shares),
                "Lines are paired intervals; dashed is no difference.",
                reference=0.0,
            )
        )
    if comparison.differences:
        rows = tuple(_row(difference) for difference in comparison.differences)
        made.append(Table("Every paired finding", (*_HEAD[:4], "verdict", "examples"), rows))
    if comparison.unpaired:
        rows = tuple((u.key, *_sides(u), u.reason) for u in comparison.unpaired)
        made.append(Table("Findings that cannot be paired", ("finding", "A", "B", "why"), rows))
    return [exhibit_view(exhibit, f"comparison-{number}") for number, exhibit in enumerate(made, 1)]
