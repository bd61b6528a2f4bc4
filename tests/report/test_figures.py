"""Figures: valid SVG in the page's colours, whatever the numbers and names are."""

from __future__ import annotations

import base64
import io
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Bars, Curve, Gallery, Heatmap, Histogram, Reliability, Series
from holdfast.report.canvas import shown_text
from holdfast.report.figures import MOST_BARS, draw_exhibit, swatch

NASTY = ("<b>&\"'", "$\\frac{", "]]>", "\u202e\x00x", "鹤🦩", "n" * 300, "")


def svg(exhibit):
    drawing = draw_exhibit(exhibit, "test")
    root = ET.fromstring(drawing.svg)
    assert root.tag == "svg"
    assert root.attrib["role"] == "img"
    assert len(drawing.svg) < 60_000
    assert not re.search(r"#[0-9a-f]{6}", re.sub(r'href="[^"]*"', "", drawing.svg)), (
        "a colour that dark pages cannot change"
    )
    assert "font-family" not in drawing.svg
    return drawing, root, [element.text for element in root.iter("text")]


def bars(count, labels=None):
    rng = np.random.default_rng(0)
    values = tuple(Estimate(v, max(0.0, v - 0.1), min(1.0, v + 0.1)) for v in rng.random(count).tolist())
    return Bars("Title", "x", labels or tuple(f"class {k}" for k in range(count)), values, limits=(0.0, 1.0))


def test_bars_show_their_numbers_and_their_names():
    drawing, _, texts = svg(bars(len(NASTY), NASTY))
    assert "<b>&\"'" in texts
    assert "$\\frac{" in texts
    assert "x" in texts
    assert sum(bool(re.fullmatch(r"\d+\.\d%", text or "")) for text in texts) == len(NASTY)
    assert not any("n" * 60 in (text or "") for text in texts)
    assert drawing.note == ""


def test_more_bars_than_fit_are_cut_to_the_extremes_and_it_is_said():
    many = bars(500)
    drawing, _, texts = svg(many)
    order = np.argsort([v.value for v in many.values])
    assert f"class {order[0]}" in texts
    assert f"class {order[-1]}" in texts
    assert f"class {order[250]}" not in texts
    assert drawing.note == f"The {MOST_BARS} lowest and highest of 500 are drawn."


def test_long_curves_stay_small_and_keep_their_ends():
    x = tuple(np.linspace(0, 1, 50_000).tolist())
    drawing, _, _ = svg(Curve("T", "x", "y", (Series("one", x, x, x, x), Series("two", x, x)), diagonal=True))
    assert drawing.legend == (("one", 0), ("two", 1))
    assert "var(--s0)" in swatch(0)
    assert swatch(0) != swatch(1)


@pytest.mark.parametrize(
    "series",
    [
        (),
        (Series("empty", (), ()),),
        (Series("point", (1.0,), (0.5,)),),
        (Series("holes", (0.0, 1.0, 2.0), (0.5, math.nan, math.inf)),),
    ],
)
def test_odd_curves_are_drawn(series):
    _, _, texts = svg(Curve("T", "x", "y", series, y_limits=(0.0, 1.0)))
    assert {"x", "y"} <= set(texts)
    assert not {"nan", "inf", "nan%", "inf%"} & set(texts)


def test_points_are_labelled_unless_labels_would_hide_one_another():
    _, _, texts = svg(
        Curve("T", "x", "y", (Series("s", (0.0, 0.01, 0.5, 1.0), (0.99, 0.97, 0.5, 0.1)),), y_limits=(0.0, 1.0))
    )
    assert {"99%", "50%", "10%"} <= set(texts)
    assert "97%" not in texts
    log = (Series("s", (1e-4, 1e-2, 1.0), (0.99, 0.97, 0.96)),)
    _, _, texts = svg(Curve("T", "x", "y", log, y_limits=(0.0, 1.0), x_log=True))
    assert {"99%", "97%", "96%"} <= set(texts)


def test_log_axes():
    _, _, texts = svg(Curve("T", "x", "y", (Series("s", (1e-3, 1.0, 1e3), (1e-9, 1e-3, 1.0)),), x_log=True, y_log=True))
    assert {"x", "y"} <= set(texts)
    assert {"0.001", "1", "1,000"} <= set(texts)  # the points themselves, x
    assert any("e−0" in text for text in texts)  # decades, y
    assert not any("$" in text for text in texts)


def test_a_log_axis_of_many_points_marks_decades():
    x = tuple(np.geomspace(1e-3, 1e3, 40).tolist())
    _, _, texts = svg(Curve("T", "x", "y", (Series("s", x, x),), x_log=True))
    assert {"0.001", "1", "1,000"} <= set(texts)
    assert not any("$" in text for text in texts)


def test_small_matrices_show_every_value_and_missing_ones_as_missing():
    values = ((0.91, 0.5, math.nan), (0.0, 1.0, 0.25))
    _, _, texts = svg(Heatmap("T", ("a", "b"), ("x", "y", "z"), values, limits=(0.0, 1.0)))
    assert {"91", "50", "–", "0", "100", "25"} <= set(texts)


def shade(drawing):
    return sorted(float(opacity) for opacity in re.findall(r"fill: var\(--bad\); opacity: ([\d.]+)", drawing.svg))


def test_colour_is_strong_where_it_is_bad():
    values = ((0.1, 1.0),)
    low = shade(svg(Heatmap("T", ("a",), ("x", "y"), values, limits=(0.0, 1.0)))[0])
    high = shade(svg(Heatmap("T", ("a",), ("x", "y"), values, limits=(0.0, 1.0), low_is_bad=False))[0])
    assert low == [pytest.approx(0.62 * 0.9, abs=0.01)]
    assert high == [pytest.approx(0.62 * 0.1, abs=0.01), pytest.approx(0.62, abs=0.01)]


def test_the_diagonal_of_a_confusion_matrix_is_no_mistake():
    names = ("cat", "dog")
    drawing, _, texts = svg(Heatmap("T", names, names, ((0.9, 0.1), (0.05, 0.95)), limits=(0.0, 1.0), low_is_bad=False))
    assert shade(drawing) == [pytest.approx(0.31, abs=0.01), pytest.approx(0.62, abs=0.01)]
    assert "90" in texts


def test_large_matrices_become_one_small_image_that_hides_no_bad_cell():
    values = np.zeros((1000, 1000))
    names = tuple(f"class number {k}" for k in range(1000))
    clean = draw_exhibit(
        Heatmap("T", names, tuple(reversed(names)), tuple(map(tuple, values.tolist())), low_is_bad=False), "n"
    )
    values[123, 456] = 1.0
    drawing, root, _ = svg(
        Heatmap("T", names, tuple(reversed(names)), tuple(map(tuple, values.tolist())), low_is_bad=False)
    )
    (image,) = root.iter("image")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image.attrib["href"].partition(",")[2]))))
    assert pixels[..., 3].max() == pytest.approx(0.62 * 255, abs=9)
    assert (pixels[..., 3] > 0).mean() < 0.001
    assert "the worst is shown" in drawing.note
    assert len(clean.svg) < len(drawing.svg)


def test_histograms_compare_shares_when_there_are_several_groups():
    edges = (0.0, 0.5, 1.0)
    drawing, _, texts = svg(Histogram("T", "score", edges, (("small", (1.0, 3.0)), ("large", (300.0, 100.0)))))
    assert drawing.legend == (("small (4)", 0), ("large (400)", 1))
    assert "share of each group" in texts
    _, _, texts = svg(Histogram("T", "score", edges, (("only", (1.0, 3.0)),)))
    assert "examples" in texts
    svg(Histogram("T", "score", edges, (("none", (0.0, 0.0)), ("also none", (0.0, 0.0)))))


def test_reliability_diagrams_show_how_many_examples_stand_behind_each_point():
    accuracy = (Estimate(0.5, 0.2, 0.8), Estimate(0.8, 0.7, 0.9))
    _, root, texts = svg(Reliability("T", (0.6, 0.9), accuracy, (12, 345)))
    assert {"12", "345"} <= set(texts)
    assert "at 60% right 50%" in root.attrib["aria-label"]
    svg(Reliability("T", (), (), ()))


def test_what_is_no_figure_is_refused():
    with pytest.raises(InputError, match="Gallery"):
        draw_exhibit(Gallery("T"), "g")


def test_drawing_is_repeatable_and_leaves_no_settings_behind():
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert draw_exhibit(bars(5), "x") == draw_exhibit(bars(5), "x")
    assert dict(matplotlib.rcParams) == before


def test_shown_text_is_one_visible_line():
    assert shown_text("a\tb\n\u202ec\x07") == "a b c"
    assert shown_text("\u200b") == "(empty)"
    assert shown_text("abcdef", 4) == "abc…"
