"""Every kind of exhibit that is a picture, drawn: exhibit in, inline SVG and its legend out."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np

from holdfast.core.errors import InputError
from holdfast.core.exhibit import Bars, Curve, Exhibit, Heatmap, Histogram, Reliability, Series
from holdfast.report.canvas import BAD, FAINT, FONT, INK, MUTED, PAPER, SERIES, WIDTH, draw, shown_text
from holdfast.report.numbers import bare_text, plain_number

#: More points than a figure can show are thinned, more bars are cut to the extremes, larger matrices become one image.
MOST_POINTS = 300
MOST_BARS = 40
MOST_CELLS = 256
MOST_BLOCKS = 100
#: Points that are marked one by one on a logarithmic axis.
MOST_TICKS = 8

_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
#: The colour of `--bad` as numbers, for matrices drawn as an image; its opacity carries the value in light and dark
#: alike.
_BAD_RGB = (0.835, 0.369, 0.0)


@dataclass(frozen=True)
class Drawing:
    """An inline SVG; `legend` pairs each series' name with the number of its colour; `note` says what was left out."""

    svg: str
    legend: tuple[tuple[str, int], ...] = ()
    note: str = ""


def swatch(number: int) -> str:
    """A small sample of line `number` for a legend outside the figure."""
    dash = ("", ' stroke-dasharray="6 3"', ' stroke-dasharray="2 2.5"', ' stroke-dasharray="7 2.5 2 2.5"')[
        number % len(_DASHES)
    ]
    line = f'<path d="M0 5h30" stroke-width="2.6" stroke="var(--s{number % len(SERIES)})"{dash}/>'
    return f'<svg viewBox="0 0 30 10" aria-hidden="true">{line}</svg>'


@singledispatch
def draw_exhibit(exhibit: Exhibit, name: str) -> Drawing:
    """Draw `exhibit`; `name` must be unique on the page.  Raises InputError for kinds that are not figures."""
    raise InputError(f"a {type(exhibit).__name__} is not drawn as a figure")


def _shares(limits: tuple[float, float] | None) -> bool:
    """An axis fixed to [0, 1] shows shares, which a person reads as percentages."""
    return limits is not None and tuple(limits) == (0.0, 1.0)


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))


def _log_axis(axis: Any, places: Sequence[float] = ()) -> None:
    """Plain numbers, at the points themselves where there are few; powers of ten would come out as formulae."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value, 2)))
    axis.set_minor_formatter(NullFormatter())
    if 0 < len(places) <= MOST_TICKS:
        axis.set_major_locator(FixedLocator(list(places)))
        axis.set_minor_locator(NullLocator())


def _grid(axes: Any, which: str) -> None:
    axes.grid(True, axis=which, alpha=0.55)
    axes.tick_params(length=0)


# ----------------------------------------------------------------------------------------------------------------
# curves


def _thinned(series: Series) -> np.ndarray:
    """Places of the points that are shown: all, or `MOST_POINTS` spread evenly with both ends."""
    count = len(series.x)
    return (
        np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int)) if count else np.empty(0, int)
    )


@draw_exhibit.register
def _(exhibit: Curve, name: str) -> Drawing:
    shown = exhibit.series[: len(SERIES) * 2]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        if exhibit.diagonal:
            axes.axline((0, 0), slope=1, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        for number, series in enumerate(shown):
            _line(axes, series, number, exhibit)
        axes.set_xlabel(shown_text(exhibit.x_label, 60))
        axes.set_ylabel(shown_text(exhibit.y_label, 40))
        if exhibit.x_log:
            axes.set_xscale("log")
            _log_axis(axes.xaxis, sorted({float(x) for series in shown for x in series.x if x > 0}))
        if exhibit.y_log:
            axes.set_yscale("log")
            _log_axis(axes.yaxis)
        if exhibit.y_limits is not None:
            low, high = exhibit.y_limits
            pad = 0.0 if exhibit.y_log else 0.02 * (high - low)
            axes.set_ylim(low - pad, high + 2 * pad)
        if _shares(exhibit.y_limits):
            _percent_axis(axes.yaxis)
        _grid(axes, "y")

    note = (
        "" if len(shown) == len(exhibit.series) else f"The first {len(shown)} of {len(exhibit.series)} lines are drawn."
    )
    legend = (
        tuple((shown_text(series.name, 80), number) for number, series in enumerate(shown)) if len(shown) > 1 else ()
    )
    return Drawing(draw(230, name, _curve_words(exhibit), paint), legend, note)


def _line(axes: Any, series: Series, number: int, exhibit: Curve) -> None:
    places = _thinned(series)
    x, y = np.asarray(series.x, float)[places], np.asarray(series.y, float)[places]
    colour, few = SERIES[number % len(SERIES)], len(places) <= 30
    if series.low and series.high:
        low, high = np.asarray(series.low, float)[places], np.asarray(series.high, float)[places]
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=_DASHES[number % len(_DASHES)],
        marker=_MARKERS[number % len(_MARKERS)] if few else "",
    )
    if len(exhibit.series) == 1 and len(places) <= 9:
        for at, value in _apart(x, y, exhibit.x_log):
            label = f"{100 * value:.0f}%" if _shares(exhibit.y_limits) else plain_number(float(value), 3)
            axes.annotate(label, (at, value), (5, 4), textcoords="offset points", fontsize=FONT - 1, color=INK)


def _apart(x: np.ndarray, y: np.ndarray, x_log: bool) -> list[tuple[float, float]]:
    """The points that can be labelled without one label hiding another, the first and each far enough from the
    last."""
    along = np.log10(np.where(x > 0, x, np.nan)) if x_log else x
    finite = np.isfinite(along) & np.isfinite(y)
    spans = [float(np.ptp(values[finite])) or 1.0 if finite.any() else 1.0 for values in (along, y)]
    kept: list[int] = []
    for place in np.flatnonzero(finite).tolist():
        near = kept and abs(along[place] - along[kept[-1]]) < 0.1 * spans[0]
        if not (near and abs(y[place] - y[kept[-1]]) < 0.09 * spans[1]):
            kept.append(place)
    return [(float(x[place]), float(y[place])) for place in kept]


def _curve_words(exhibit: Curve) -> str:
    ends = "; ".join(
        f"{series.name} goes from {plain_number(series.y[0], 3)} at {plain_number(series.x[0], 3)} "
        f"to {plain_number(series.y[-1], 3)} at {plain_number(series.x[-1], 3)}"
        for series in exhibit.series[:4]
        if series.x
    )
    return f"{exhibit.title}. Line chart of {exhibit.y_label} over {exhibit.x_label}. {ends}."


# ------------------------------------------------------------------------------------------------------------------
# bars


def _extremes(values: np.ndarray, most: int) -> np.ndarray:
    """Places of the `most` values farthest out (half lowest, half highest), in their own order."""
    if len(values) <= most:
        return np.arange(len(values))
    order = np.argsort(values, kind="stable")
    return np.sort(np.concatenate([order[: most // 2], order[-(most - most // 2) :]]))


@draw_exhibit.register
def _(exhibit: Bars, name: str) -> Drawing:
    places = _extremes(np.array([estimate.value for estimate in exhibit.values]), MOST_BARS)
    labels = ["\n".join(textwrap.wrap(shown_text(exhibit.labels[i], 44), 22)[:2]) for i in places]
    values = [exhibit.values[i] for i in places]
    shares = _shares(exhibit.limits)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for row, estimate in enumerate(values):
            axes.barh(row, estimate.value, height=0.62, color=SERIES[0], alpha=0.30, linewidth=0)
            axes.plot([estimate.value] * 2, [row - 0.31, row + 0.31], color=SERIES[0], linewidth=2)
            if estimate.width > 0:
                axes.plot([estimate.low, estimate.high], [row, row], color=INK, linewidth=1.2, solid_capstyle="butt")
            said = bare_text(estimate, "share" if shares else "number")
            axes.annotate(
                said, (1, row), (4, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                va="center", fontsize=FONT - 1, color=INK, annotation_clip=False,
            )  # fmt: skip
        if exhibit.reference is not None:
            axes.axvline(exhibit.reference, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_yticks(range(len(values)), labels, color=INK)
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlabel(shown_text(exhibit.x_label, 60))
        if exhibit.limits is not None:
            axes.set_xlim(*exhibit.limits)
        if shares:
            _percent_axis(axes.xaxis)
        axes.spines["bottom"].set_visible(False)
        _grid(axes, "x")

    lines = sum(1 + 0.5 * label.count("\n") for label in labels)
    left_out = len(exhibit.values) - len(values)
    note = f"The {len(values)} lowest and highest of {len(exhibit.values)} are drawn." if left_out else ""
    spoken = ", ".join(f"{label} {plain_number(value.value, 3)}" for label, value in zip(labels[:12], values[:12]))
    words = f"{exhibit.title}. Bar chart of {exhibit.x_label}. {spoken}."
    return Drawing(draw(44 + 18 * max(lines, 1), name, words, paint), note=note)


# -------------------------------------------------------------------------------------------------------------- heat
# maps


@draw_exhibit.register
def _(exhibit: Heatmap, name: str) -> Drawing:
    values = np.asarray(exhibit.values, dtype=float).reshape(len(exhibit.row_labels), len(exhibit.column_labels))
    matched = exhibit.row_labels == exhibit.column_labels and len(values) > 1
    depth = _mistakes(values) if matched else _depth(values, exhibit.limits, exhibit.low_is_bad)
    detailed = values.size <= MOST_CELLS
    longest_row = max((len(shown_text(label, 24)) for label in exhibit.row_labels), default=0)
    cell = (WIDTH - 5.2 * min(longest_row, 24) - 16) / max(values.shape[1], 1)
    row_height = 19.0 if detailed else max(150.0, min(300.0, 3.0 * len(values))) / max(len(values), 1)
    slanted = max((len(label) for label in exhibit.column_labels), default=0) * 5.0 > cell

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        if detailed:
            _cells(axes, values, depth, _shares(exhibit.limits), cell)
        else:
            _image(axes, depth)
        _name_cells(axes, exhibit, values.shape, slanted)

    height = row_height * len(values) + (70 if slanted else 28)
    measured = shown_text(exhibit.value_label, 60) + ". " if exhibit.value_label else ""
    sense = "Orange marks what is off the diagonal" if matched else "Stronger colour is worse"
    unit = "Numbers are percentages. " if detailed and _shares(exhibit.limits) and "%" not in measured else ""
    pooled = (
        " Neighbouring cells share a place, and the worst is shown."
        if max(values.shape, default=0) > MOST_BLOCKS
        else ""
    )
    note = f"{measured}{unit}{sense}.{pooled}"
    size = f"{values.shape[0]} rows, {values.shape[1]} columns"
    words = f"{exhibit.title}. Matrix of {exhibit.value_label or 'values'}, {size}."
    return Drawing(draw(height, name, words, paint), note=note)


def _depth(values: np.ndarray, limits: tuple[float, float] | None, low_is_bad: bool) -> np.ndarray:
    """Opacity of every cell, 0 to 0.62 (so that ink stays readable on it); NaN cells stay empty."""
    finite = values[np.isfinite(values)]
    low, high = limits if limits is not None else ((finite.min(), finite.max()) if len(finite) else (0.0, 1.0))
    unit = np.clip((values - low) / ((high - low) or 1.0), 0.0, 1.0)
    return np.nan_to_num(0.62 * (1 - unit if low_is_bad else unit), nan=0.0)


def _mistakes(values: np.ndarray) -> np.ndarray:
    """Opacity of a matrix whose rows and columns mean the same: the diagonal is as it should be, the rest is shown
    against the largest of the rest."""
    rest = np.where(np.eye(len(values), dtype=bool), 0.0, np.nan_to_num(values))
    top = rest.max()
    return 0.62 * np.clip(rest / top, 0.0, 1.0) if top > 0 else rest


def _cells(axes: Any, values: np.ndarray, depth: np.ndarray, shares: bool, width: float) -> None:
    from matplotlib.patches import Rectangle

    for (row, column), value in np.ndenumerate(values):
        place = (column - 0.5, row - 0.5)
        if depth[row, column] > 0.01:
            shade = float(depth[row, column])
            axes.add_patch(Rectangle(place, 1, 1, facecolor=BAD, alpha=shade, edgecolor=PAPER, linewidth=1.2))
        if width >= 14:
            said = (
                "–" if not math.isfinite(value) else f"{100 * value:.0f}" if shares else plain_number(float(value), 3)
            )
            size = min(FONT - 1.0, 1.55 * width / max(len(said), 1))
            colour = INK if depth[row, column] > 0.01 or row == column else MUTED
            axes.text(column, row, said, ha="center", va="center_baseline", fontsize=size, color=colour)


def _image(axes: Any, depth: np.ndarray) -> None:
    """A large matrix as one image; where cells must share a pixel the worst of them is shown, in sixteen steps."""
    rows, columns = depth.shape
    pooled = depth
    for axis, count in enumerate(depth.shape):
        starts = np.unique(np.linspace(0, count, min(count, MOST_BLOCKS), endpoint=False).astype(int))
        pooled = np.maximum.reduceat(pooled, starts, axis=axis)
    opacity = np.round(pooled * 16) / 16
    image = np.concatenate([np.broadcast_to(_BAD_RGB, (*opacity.shape, 3)), opacity[..., None]], axis=-1)
    axes.imshow(image, aspect="auto", interpolation="nearest", extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))


def _name_cells(axes: Any, exhibit: Heatmap, shape: tuple[int, ...], slanted: bool) -> None:
    rows, columns = (range(0, count, max(1, math.ceil(count / 24))) for count in shape)
    axes.set_yticks(list(rows), [shown_text(exhibit.row_labels[i], 24) for i in rows], color=INK)
    axes.set_xticks(list(columns), [shown_text(exhibit.column_labels[i], 18) for i in columns], color=INK)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=FONT - 1)
    if slanted:
        for label in axes.get_xticklabels():
            label.set(rotation=50, ha="left", va="bottom", rotation_mode="anchor")
    axes.set_xlim(-0.5, shape[1] - 0.5)
    axes.set_ylim(shape[0] - 0.5, -0.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


# ------------------------------------------------------------------------------------------------- histograms,
# reliability


@draw_exhibit.register
def _(exhibit: Histogram, name: str) -> Drawing:
    totals = [sum(counts) for _, counts in exhibit.groups]
    several = len(exhibit.groups) > 1

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for number, (_, counts) in enumerate(exhibit.groups):
            colour = SERIES[number % len(SERIES)]
            heights = np.asarray(counts, float) / (max(totals[number], 1) if several else 1)
            axes.stairs(heights, exhibit.edges, fill=True, color=colour, alpha=0.22)
            axes.stairs(heights, exhibit.edges, color=colour, linewidth=1.6, linestyle=_DASHES[number % len(_DASHES)])
        axes.set_xlabel(shown_text(exhibit.x_label, 60))
        axes.set_ylabel("share of each group" if several else "examples")
        axes.set_ylim(bottom=0)
        if several:
            _percent_axis(axes.yaxis)
        _grid(axes, "y")

    legend = tuple(
        (f"{shown_text(group, 60)} ({plain_number(total)})", i)
        for i, ((group, _), total) in enumerate(zip(exhibit.groups, totals))
    )
    names = " and ".join(group for group, _ in exhibit.groups)
    words = f"{exhibit.title}. Histogram of {exhibit.x_label} for {names}."
    return Drawing(draw(210, name, words, paint), legend if several else ())


@draw_exhibit.register
def _(exhibit: Reliability, name: str) -> Drawing:
    def paint(figure: Any) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        confidence = np.asarray(exhibit.confidence, float)
        accuracy = np.array([estimate.value for estimate in exhibit.accuracy])
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        upper.annotate(
            "honest", (0.06, 0.06), (4, -3), textcoords="offset points", color=MUTED, fontsize=FONT - 1, va="top"
        )
        upper.vlines(confidence, accuracy, confidence, color=BAD, alpha=0.35, linewidth=5)
        for at, estimate in zip(confidence, exhibit.accuracy):
            upper.plot([at, at], [estimate.low, estimate.high], color=SERIES[0], linewidth=1.2, alpha=0.6)
        upper.plot(confidence, accuracy, color=SERIES[0], marker="o", linewidth=1)
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), ylabel="how often right")
        _percent_axis(upper.yaxis)
        _grid(upper, "y")
        _counts(lower, confidence, exhibit.counts)

    total = plain_number(sum(exhibit.counts))
    spoken = ", ".join(
        f"at {100 * at:.0f}% right {100 * estimate.value:.0f}%"
        for at, estimate in zip(exhibit.confidence, exhibit.accuracy)
    )
    words = f"{exhibit.title}. Reliability diagram of {total} examples: {spoken}."
    return Drawing(
        draw(310, name, words, paint),
        note="Orange: the gap between what the model says and how often it is right.",
    )


def _counts(axes: Any, confidence: np.ndarray, counts: tuple[int, ...]) -> None:
    width = 0.7 * float(np.min(np.diff(np.sort(confidence)))) if len(confidence) > 1 else 0.1
    axes.bar(confidence, counts, width=max(0.015, min(width, 0.08)), color=MUTED, alpha=0.45, linewidth=0)
    axes.set(
        ylim=(0, 1.45 * max(counts, default=1)), xlabel="how sure the model says it is", ylabel="examples", yticks=[]
    )
    if len(counts) <= 12:
        for at, count in zip(confidence, counts):
            said = plain_number(count) if count < 10_000 else f"{count / 1000:.0f}k"
            axes.annotate(
                said, (at, count), (0, 2), textcoords="offset points", ha="center", fontsize=FONT - 2.5, color=MUTED
            )
    _percent_axis(axes.xaxis)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(length=0)
