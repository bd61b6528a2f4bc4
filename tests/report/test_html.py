"""The page: complete, self-contained, safe whatever the names are, and made from the run folder alone."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from holdfast.core.exhibit import Gallery, Picture
from holdfast.core.finding import Section
from holdfast.report.html import LARGEST, render_html
from holdfast.report.record import RunRecord
from holdfast.report.render import render, write_report
from holdfast.store.files import Folder
from holdfast.store.manifest import FINDINGS, read_json, write_json

VOID = {"meta", "img", "br", "input", "hr", "link"}
SHAPES = {"path", "use", "rect", "circle", "image"}


class Page(HTMLParser):
    """Collects elements, attributes and visible text, and checks that elements close in order."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)


@pytest.fixture(scope="module")
def plain(plain_run):
    return render(plain_run)


@pytest.fixture(scope="module")
def hostile(hostile_run):
    return render(hostile_run)


def test_the_page_is_well_formed_and_needs_nothing_else(plain, hostile):
    for text in (plain, hostile):
        page = Page(text)
        for tag, attributes in page.elements:
            assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
            assert not any(name.startswith("on") for name in attributes)
            for name in ("src", "href"):
                target = attributes.get(name) or "#"
                assert target.startswith(("#", "data:image/png;base64,")), target
        style = text[text.index("<style>") : text.index("</style>")]
        assert "url(" not in style
        assert "@import" not in style
        assert "default-src 'none'" in text


def test_names_cannot_break_out_and_are_shown_as_they_are(hostile):
    page = Page(hostile)
    text = " ".join(page.text)
    assert "<script>alert(1)</script>" in text
    assert "{{ 7 * 7 }}" in text
    assert "<b>CNN</b> & friends" in text
    assert "49" not in re.findall(r"least often on (\S+)", text)
    assert not {"script", "iframe"} & {tag for tag, _ in page.elements}
    assert "\u202e" not in hostile
    assert "\u0007" not in hostile


def test_every_link_and_definition_leads_somewhere_and_names_are_unique(hostile):
    page = Page(hostile)
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for tag, attributes in page.elements:
        target = attributes.get("href") or ""
        if target.startswith("#"):
            assert target[1:] in names, (tag, target)
        for value in attributes.values():
            for used in re.findall(r"url\(#([^)]+)\)", value or ""):
                assert used in names


def test_size_light_dark_print_and_narrow(plain, hostile):
    assert len(plain.encode()) < LARGEST
    assert len(hostile.encode()) < LARGEST
    for wanted in (
        "prefers-color-scheme: dark", "@media print", 'name="viewport"', 'data-theme="dark"', "@media (max-width",
    ):  # fmt: skip
        assert wanted in plain
    style = plain[plain.index("<style>") : plain.index("</style>")]
    defined = set(re.findall(r"(--[\w-]+):", style))
    assert set(re.findall(r"var\((--[\w-]+)", plain)) - {"--tone", "--wash"} <= defined
    dark = style[style.index("prefers-color-scheme: dark") :]
    assert {"--paper", "--ink", *(f"--s{i}" for i in range(6))} <= set(re.findall(r"(--[\w-]+):", dark))


def test_every_kind_of_exhibit_is_drawn_and_described(plain):
    page = Page(plain)
    plots = [attributes for tag, attributes in page.elements if tag == "svg" and attributes.get("class") == "plot"]
    record_kinds = set(re.findall(r'<figure class="is-(\w+)', plain))
    assert record_kinds == {"table", "curve", "bars", "heatmap", "histogram", "reliability", "gallery"}
    assert all(plot["role"] == "img" for plot in plots)
    assert all(len(plot["aria-label"] or "") > 20 for plot in plots)
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")


def test_the_first_screen_answers_in_five_lines_with_intervals(plain):
    first = plain[: plain.index("</header>")]
    lines = re.findall(r"<li class=\"(?:good|fair|bad|open|plain|none)\">", first[: first.index('class="strip"')])
    assert 1 <= len(lines) <= 5
    text = " ".join(" ".join(Page(first + "</header></div></body></html>").text).split())
    assert re.search(r"94.3% right on data like the test set 92.0 – 96.7%, 600 examples", text)
    assert "It falls:" in text
    assert re.search(r"perturbed on purpose right on 11.8% 8.6 – 15.0%", text)
    assert re.search(r"the answer key wrong for 1.2% 0.6 – 1.9% \(in doubt: weak guide\)", text)


def test_skipped_failed_and_partial_are_said(plain, hostile):
    text = " ".join(Page(plain).text)
    assert "it needs the training data; give it with --train" in text
    assert "ZeroDivisionError" in text
    assert "400 of 600 examples (stopped before the end)" in text
    assert "Not everything was looked at" not in text
    assert "the time budget of 2 minutes was spent" in " ".join(Page(hostile).text)


def test_every_section_says_how_to_make_it_again(plain):
    text = " ".join(" ".join(Page(plain).text).split())
    assert "holdfast audit 'models/my cnn.py:build' --weights w.safetensors --minutes 2 --probes adversarial" in text
    assert "--out" not in text
    assert "/usr/local" not in text


def test_the_page_is_a_function_of_the_folder(plain, plain_run, tmp_path):
    shutil.copytree(plain_run, tmp_path / "moved")
    path = write_report(tmp_path / "moved")
    assert path == str(tmp_path / "moved" / "report.html")
    assert (tmp_path / "moved" / "report.html").read_text() == plain


def test_many_pictures_are_cut_so_that_the_page_stays_small(plain_run, tmp_path):
    shutil.copytree(plain_run, tmp_path / "run")
    noise = np.random.default_rng(0).integers(0, 256, (400, 30_000), dtype=np.uint8)
    shots = tuple(Picture(f"{k}", png=row.tobytes().hex()) for k, row in enumerate(noise))
    found = read_json(Folder(str(tmp_path / "run")), FINDINGS)
    section = Section.from_dict(found["sections"][0])
    found["sections"] = [{**section.to_dict(), "exhibits": [Gallery("Many", shots).to_dict()]}]
    write_json(Folder(str(tmp_path / "run")), FINDINGS, found)
    page = render_html(RunRecord.read(tmp_path / "run"))
    assert 1_000_000 < len(page.encode()) < LARGEST
    assert "they were left out to keep this page small" in page
