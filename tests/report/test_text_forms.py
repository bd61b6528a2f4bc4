"""Markdown, model card and JSON: the same numbers, for other readers."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from holdfast.core.errors import InputError, StorageError
from holdfast.core.estimate import Estimate
from holdfast.core.finding import Section
from holdfast.report.markdown import code, escaped
from holdfast.report.record import RunRecord
from holdfast.report.render import FILES, render, write_report
from holdfast.report.verdict import judge


@pytest.fixture(scope="module")
def data(plain_run):
    return json.loads(render(plain_run, "json"))


def test_json_holds_everything_and_comes_back(data, plain_run):
    record = RunRecord.read(plain_run)
    assert data["schema"] == "holdfast.report/1"
    assert tuple(Section.from_dict(part) for part in data["sections"]) == record.sections
    for finding in record.findings:
        assert Estimate.from_dict(data["findings"][finding.key]) == finding.estimate
    assert data["findings"]["labels.wrong"]["doubts"] == ["weak guide"]
    assert [v["word"] for v in data["verdicts"]] == [v.word for v in judge(record)]
    assert data["manifest"]["subject"]["class_names"][3] == "three"


def test_markdown_tables_are_rectangular_whatever_the_names(hostile_run):
    text = render(hostile_run, "md")
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(blocks) > 12
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().split("\n")}
        assert len(widths) == 1, block
    assert "<script>" not in text
    assert "](javascript" not in text.replace("\\]", "")
    assert "\u202e" not in text
    assert "**It falls:** inputs perturbed on purpose (right on 11.8%" in text
    assert "`holdfast harden --remedy temperature`" in text


@pytest.mark.parametrize(
    "text", ["a|b", "`", "``x`", "*a* _b_", "<b>", "[x](y)", "line\nline", "&amp;", "$x$", "~~x~~"]
)
def test_escaped_text_keeps_no_markup(text):
    shown = escaped(text)
    assert "\n" not in shown
    for sign in "|`*_[]<>$~":
        assert not re.search(rf"(?<!\\){re.escape(sign)}", shown), shown


@pytest.mark.parametrize("text", ["x", "`", "a``b", "```"])
def test_code_spans_hold_any_backticks(text):
    fenced = code(text)
    fence = re.match(r"`+", fenced).group()
    assert fence not in text
    assert fenced.endswith(fence)
    assert text in fenced


def test_a_card_has_the_metadata_the_hub_reads_and_guesses_nothing(hostile_run):
    text = render(hostile_run, "model-card")
    _, head, body = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["pipeline_tag"] == "image-classification"
    (model,) = metadata["model-index"]
    assert model["name"] == "<b>CNN</b> & friends"
    (result,) = model["results"]
    assert set(result) == {"task", "dataset", "metrics"}
    metrics = {metric["name"]: metric for metric in result["metrics"]}
    record = RunRecord.read(hostile_run)
    assert metrics.keys() == {finding.key for finding in record.findings}
    attacked = record.find("adversarial.accuracy").estimate
    assert metrics["adversarial.accuracy"]["value"] == attacked.value
    assert metrics["adversarial.accuracy"]["args"]["low"] == attacked.low
    assert "license" not in metadata
    assert "**License:** [More Information Needed]" in body
    assert "do not rely on it where this matters:\n\n- inputs perturbed on purpose" in body
    assert body.index("## Model Details") < body.index("## Uses") < body.index("## Bias") < body.index("## Evaluation")


@pytest.mark.parametrize("format", ["md", "json", "model-card"])
def test_a_report_is_written_whole_where_it_is_wanted(plain_run, tmp_path, format):
    target = tmp_path / "new" / "report.txt"
    assert write_report(plain_run, format, target) == str(target)
    assert target.read_text() == render(plain_run, format)
    assert [path.name for path in target.parent.iterdir()] == ["report.txt"]


def test_unknown_formats_and_places(plain_run, tmp_path):
    with pytest.raises(InputError, match=", ".join(FILES)):
        render(plain_run, "pdf")
    with pytest.raises(InputError, match="names a folder"):
        write_report(plain_run, "json", f"{tmp_path}/")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_report(plain_run, "json", tmp_path / "file" / "report.json")
