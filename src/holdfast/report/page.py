"""Pieces of a web page: the template environment and how each exhibit looks on it.

Everything that came from outside (class names, file names, sentences) is escaped by the templates; characters that
hide or reorder text are dropped; a content security policy in the page keeps it from loading or running anything.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Cell, Exhibit, Gallery, Table
from holdfast.report.figures import draw_exhibit, swatch
from holdfast.report.numbers import bare_text, estimate_text, interval_text, plain_number, unit_text, value_text

#: Rows that stand open, and rows at most (the rest is in findings.json).
OPEN_ROWS, MOST_ROWS = 12, 200
#: Columns of tables with these words hold shares, which are shown as percentages.
_SHARE_WORDS = ("accuracy", "share", "rate", "coverage", "recall", "precision", "%")


@cache
def environment() -> Any:
    """The jinja environment of all templates, with autoescape on."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("holdfast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"value": value_text, "bare": bare_text, "words": unit_text, "interval": interval_text}
    made.filters |= {"count": plain_number, "prose": prose}
    return made


def visible(text: str) -> str:
    """Text without control and direction-changing characters, and with its percentages kept together; line ends
    stay."""
    kept = "".join(ch for ch in text if ch in "\n\t" or unicodedata.category(ch) not in ("Cc", "Cf", "Cs"))
    return re.sub(r"(?<=\d) (?=%)", "\u00a0", kept)


def _finalized(value: Any) -> Any:
    """What the templates print: plain text made visible, marked-up text as it is."""
    return visible(value) if type(value) is str else value


def prose(text: str) -> Any:
    """A sentence with `code` between backticks set as code; everything else is escaped."""
    from markupsafe import Markup, escape

    parts = visible(text).split("`")
    if len(parts) % 2 == 0:
        return escape(visible(text))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part) for place, part in enumerate(parts)
    )


def style() -> Any:
    """The style sheet, safe to stand inside the page."""
    from markupsafe import Markup

    return Markup(environment().get_template("style.css").render())


def exhibit_view(exhibit: Exhibit, name: str, share_of_pictures: float = 1.0) -> dict[str, Any]:
    """What the templates need of one exhibit.  `share_of_pictures` < 1 leaves out the tail of galleries to keep the
    page small."""
    from markupsafe import Markup

    view: dict[str, Any] = {
        "kind": exhibit.kind,
        "title": getattr(exhibit, "title", ""),
        "caption": getattr(exhibit, "caption", ""),
        "wide": False,
        "note": "",
        "legend": (),
    }
    if isinstance(exhibit, Table):
        shown, note = table_view(exhibit)
        return view | {"table": shown, "note": note, "wide": _is_wide(exhibit)}
    if isinstance(exhibit, Gallery):
        shown, note = gallery_view(exhibit, share_of_pictures)
        return view | {"gallery": shown, "note": note, "wide": True}
    drawing = draw_exhibit(exhibit, name)
    legend = tuple((label, Markup(swatch(number))) for label, number in drawing.legend)
    return view | {"svg": Markup(drawing.svg), "legend": legend, "note": drawing.note}


def _is_wide(table: Table) -> bool:
    """Whether a table needs the whole width: half of it holds about 45 characters, and numbers do not wrap."""
    columns = [[name, *column] for name, *column in zip(table.columns, *table.rows)]
    least = sum(max(_unbroken(cell) for cell in column) + 3 for column in columns)
    longest = max((len(cell) for row in table.rows for cell in row if isinstance(cell, str)), default=0)
    return len(table.columns) > 3 or longest > 40 or least > 45


def _unbroken(cell: Cell) -> int:
    """Characters that must stand on one line: a number with its interval, or the longest word (short text whole)."""
    if isinstance(cell, str):
        return len(cell) if len(cell) < 30 else max(map(len, cell.split()))
    return 22 if isinstance(cell, Estimate) else 6


def table_view(table: Table) -> tuple[dict[str, Any], str]:
    """Cells with their text and alignment, and a note on rows left out."""
    shares = share_columns(table.columns)
    rows = [[_cell(value, share) for value, share in zip(row, shares)] for row in table.rows[:MOST_ROWS]]
    numeric = [_is_numeric(column) for column in zip(*table.rows)] or [False] * len(table.columns)
    for row in rows:
        for cell, right in zip(row, numeric):
            cell["numeric"] = right
    view = {
        "title": table.title,
        "columns": table.columns,
        "numeric": numeric,
        "first": rows[:OPEN_ROWS],
        "rest": rows[OPEN_ROWS:],
    }
    left = len(table.rows) - len(rows)
    return view, f"{left} more rows are in findings.json." if left else ""


def _is_numeric(column: Sequence[Cell]) -> bool:
    """Whether a column holds numbers only (gaps aside) and is set flush right."""
    held = [value for value in column if value is not None]
    return bool(held) and all(isinstance(v, int | float | Estimate) and not isinstance(v, bool) for v in held)


def _cell(value: Cell, share: bool) -> dict[str, Any]:
    if isinstance(value, Estimate):
        return {"estimate": value, "unit": _cell_unit(value, share), "text": ""}
    return {"estimate": None, "unit": "", "text": cell_text(value, share)}


def _cell_unit(estimate: Estimate, share: bool) -> str:
    return "share" if share and estimate.low >= 0 and estimate.high <= 1 else "number"


def cell_text(value: Cell, share: bool = False) -> str:
    """A table's cell in words, for pages and plain text alike."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Estimate):
        return estimate_text(value, _cell_unit(value, share))
    if isinstance(value, float):
        return f"{100 * value:.1f}%" if share and 0 <= value <= 1 else plain_number(value)
    return plain_number(value) if isinstance(value, int) else value


def share_columns(columns: Sequence[str]) -> list[bool]:
    """Which columns of a table hold shares."""
    return [any(word in column.lower() for word in _SHARE_WORDS) for column in columns]


def gallery_view(gallery: Gallery, share_of_pictures: float) -> tuple[dict[str, Any], str]:
    """Pictures with the layout that suits them, and a note on those left out."""
    keep = max(1, int(len(gallery.pictures) * share_of_pictures)) if gallery.pictures else 0
    pictures = gallery.pictures[:keep]
    if any(picture.before_png for picture in pictures):
        layout = "pairs"
    elif any(picture.fields for picture in pictures):
        layout = "rows"
    else:
        layout = "single"
    left = len(gallery.pictures) - keep
    note = f"{left} more are in findings.json; they were left out to keep this page small." if left else ""
    return {"pictures": pictures, "layout": layout}, note
