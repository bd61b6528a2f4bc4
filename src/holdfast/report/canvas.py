"""From a matplotlib figure to inline SVG that follows the page: its font, its width, its light and dark colours.

Figures are drawn in placeholder colours, which are replaced by CSS variables of the page's style sheet.  Text stays
text; names of metadata, identifiers that could clash between figures, and style rules that would leak into the page
are removed.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable
from html import escape
from typing import Any

#: Placeholder colour -> CSS variable.  S0..S5 are a palette that stays distinct for colour-blind eyes (after Okabe
#: and Ito).
INK, MUTED, FAINT, PAPER, BAD, GOOD = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
SERIES = ("#020301", "#020302", "#020303", "#020304", "#020305", "#020306")
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    FAINT: "--faint",
    PAPER: "--paper",
    BAD: "--bad",
    GOOD: "--good",
    **{colour: f"--s{i}" for i, colour in enumerate(SERIES)},
}

#: Width of every figure in points; the page scales it to the column, on a phone by about one.
WIDTH = 360
FONT = 10

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$x^"
    "font.family": "DejaVu Sans",  # only to measure; the page's own font is shown, and it is narrower
    "font.size": FONT,
    "axes.labelsize": FONT,
    "axes.titlesize": FONT,
    "xtick.labelsize": FONT - 1,
    "ytick.labelsize": FONT - 1,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.grid": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "path.simplify": True,
}


def shown_text(text: str, longest: int | None = None) -> str:
    """`text` in one line without control or direction-changing characters, cut to `longest` with an ellipsis."""
    visible = "".join(
        " " if ch in "\t\r\n" else ch for ch in text if unicodedata.category(ch) not in _HIDDEN or ch in "\t\r\n"
    )
    line = " ".join(visible.split()) or "(empty)"
    return line if longest is None or len(line) <= longest else line[: longest - 1].rstrip() + "…"


_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn"}


def draw(height: float | int, name: str, description: str, paint: Callable[[Any], None]) -> str:
    """SVG of the figure that `paint(figure)` fills, `height` points tall.

    `name` keeps this figure's definitions apart from those of the others on the page; `description` is read out by
    screen readers.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
        # The measuring font lacks many scripts; the reader's browser has them.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        paint(figure)
        sink = io.StringIO()
        canvas.print_svg(sink, metadata={"Date": None})
    return _inline(sink.getvalue(), description)


def _inline(document: str, description: str) -> str:
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", lambda tag: _tidy(tag.group()), body)
    body = re.sub(r">\s+<", "><", body)
    view = re.search(r'viewBox="[^"]*"', body)
    start = body.index(">") + 1
    label = escape(shown_text(description), quote=True)
    opening = f'<svg class="plot" {view.group() if view else ""} role="img" aria-label="{label}"><title>{label}</title>'
    return opening + body[start:].strip()


def _tidy(tag: str) -> str:
    """One tag with the page's colours and font, short numbers, and no identifier that nothing refers to."""
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag).replace("xlink:href", "href")
    tag = re.sub(r"font: (?:\w+ )*([\d.]+)px [^;\"]*", r"font-size: \1px", tag)
    tag = re.sub(r" font-family: [^;\"]*;?", "", tag)
    tag = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", tag)
    for placeholder, variable in _VARIABLES.items():
        tag = tag.replace(placeholder, f"var({variable})")
    if tag.startswith("<image"):
        return tag  # digits inside encoded pixels are not numbers
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag)  # a hundredth of a point is finer than any screen
