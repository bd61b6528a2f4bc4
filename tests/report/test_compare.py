"""Two runs, paired: only what can be paired is paired, and the intervals are about the pairs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from holdfast.core.errors import InputError, StorageError
from holdfast.core.intervals import paired_difference
from holdfast.report.compare import compare, render_comparison
from holdfast.report.record import RunRecord
from holdfast.store.files import Folder
from holdfast.store.manifest import FINDINGS, MANIFEST, read_json, write_json


@pytest.fixture(scope="module")
def runs(tmp_path_factory, build):
    folder = tmp_path_factory.mktemp("pair")
    return build(folder / "a", seed=0, skill=0.9), build(folder / "b", seed=1, skill=0.98, keep=0.8)


def changed(run, tmp_path, name, edit):
    """A copy of `run` whose JSON file `name` went through `edit`."""
    copy = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}"
    shutil.copytree(run, copy)
    content = read_json(Folder(str(copy)), name)
    edit(content)
    write_json(Folder(str(copy)), name, content)
    return copy


def test_a_run_does_not_differ_from_itself(runs):
    same = compare(runs[0], runs[0])
    assert {d.key for d in same.differences} == {"accuracy.accuracy", "adversarial.accuracy", "corruption.accuracy"}
    for difference in same.differences:
        assert difference.difference.value == 0
        assert difference.difference.width > 0, "no finite sample shows that two models never differ"
        assert difference.word == "no clear difference"
        assert difference.rising == difference.falling == ()
    assert same.changes.test.mid_p == 1
    assert same.changes.fixed == same.changes.broken == same.changes.otherwise == ()


def test_differences_are_over_shared_examples_whatever_the_order(runs):
    both = compare(*runs)
    a, b = (RunRecord.read(run).clean for run in runs)
    right_a, right_b = (dict(zip(c["index"].tolist(), (c["prediction"] == c["label"]).tolist())) for c in (a, b))
    shared = sorted(set(right_a) & set(right_b))
    before, after = (np.array([right[i] for i in shared]) for right in (right_a, right_b))
    accuracy = next(d for d in both.differences if d.key == "accuracy.accuracy")
    expected = paired_difference(before, after)
    assert accuracy.shared == len(shared) == 480
    assert accuracy.difference == expected
    assert accuracy.word == "better"
    assert list(both.changes.fixed) == [i for i in shared if right_b[i] and not right_a[i]]
    assert list(both.changes.broken) == [i for i in shared if right_a[i] and not right_b[i]]
    assert (
        both.changes.both_right + both.changes.both_wrong + both.changes.test.only_a + both.changes.test.only_b == 480
    )


def test_swapping_the_runs_turns_every_sign(runs):
    forth, back = compare(*runs), compare(*reversed(runs))
    for one, other in zip(forth.differences, back.differences):
        assert one.difference.value == pytest.approx(-other.difference.value)
        assert one.difference.low == pytest.approx(-other.difference.high)
        assert (one.rising, one.falling) == (other.falling, other.rising)
    assert forth.changes.test.exact_p == back.changes.test.exact_p


def test_lower_is_better_is_read_the_other_way(runs, tmp_path):
    def turn(found):
        found["sections"][0]["findings"][0]["direction"] = "lower is better"

    both = compare(runs[0], changed(runs[1], tmp_path, FINDINGS, turn))
    assert next(d for d in both.differences if d.key == "accuracy.accuracy").word == "worse"


def test_other_data_is_refused_by_name(runs, tmp_path):
    other = changed(runs[1], tmp_path, MANIFEST, lambda m: m["subject"].update(data_fingerprint="eee", source="mnist"))
    with pytest.raises(InputError, match=r"different test data.*source 'digits \(embedded\)' against 'mnist'"):
        compare(runs[0], other)


def test_runs_that_do_not_name_their_data_are_compared_by_label_and_say_so(runs, tmp_path, build):
    unnamed = changed(runs[1], tmp_path, MANIFEST, lambda m: m["subject"].pop("data_fingerprint"))
    assert "inputs were not compared" in compare(runs[0], unnamed).notes[0]
    larger = build(tmp_path / "larger", examples=700)
    unnamed = changed(larger, tmp_path, MANIFEST, lambda m: m["subject"].pop("data_fingerprint"))
    with pytest.raises(InputError, match="600 against 700"):
        compare(runs[0], unnamed)
    forged = changed(unnamed, tmp_path, MANIFEST, lambda m: m["subject"].update(test_examples=600))
    with pytest.raises(InputError, match="have other labels"):
        compare(runs[0], forged)


def test_a_finding_that_is_not_the_mean_of_its_column_is_not_paired(runs, tmp_path):
    def forge(found):
        found["sections"][2]["findings"][0]["estimate"].update(value=0.5, high=0.6)

    both = compare(runs[0], changed(runs[1], tmp_path, FINDINGS, forge))
    assert "adversarial.accuracy" not in {d.key for d in both.differences}
    assert (
        "is not the number reported (0.5)" in next(u for u in both.unpaired if u.key == "adversarial.accuracy").reason
    )


def test_a_probe_that_stopped_early_gets_an_interval_that_allows_it(runs, tmp_path):
    early = changed(runs[1], tmp_path, FINDINGS, lambda found: found["sections"][2].update(status="partial"))
    fixed, anytime = (
        next(d for d in compare(runs[0], run).differences if d.key == "adversarial.accuracy").difference
        for run in (runs[1], early)
    )
    assert fixed.method == "bonett-price"
    assert anytime.method == "betting"
    assert anytime.width > fixed.width


def test_other_threats_are_noted_and_missing_findings_listed(runs, tmp_path):
    other = changed(runs[1], tmp_path, MANIFEST, lambda m: m["settings"].update(threat="every pixel by 0.3"))
    assert any("threat differs" in note for note in compare(runs[0], other).notes)
    fewer = changed(runs[1], tmp_path, FINDINGS, lambda found: found["sections"].pop(2))
    assert compare(runs[0], fewer).only_a == ("adversarial.accuracy", "adversarial.median_radius")


def test_all_three_forms(runs, hostile_run):
    both = compare(runs[0], hostile_run)
    text = render_comparison(both)
    assert "accuracy.accuracy" in text
    assert "McNemar" in text
    data = json.loads(render_comparison(both, "json"))
    assert data["schema"] == "holdfast.comparison/1"
    assert data["differences"][0]["difference"]["value"] == both.differences[0].difference.value
    assert data["changes"]["fixed"] == list(both.changes.fixed)
    page = render_comparison(both, "html")
    assert "&lt;b&gt;CNN&lt;/b&gt;" in page
    assert "<b>CNN" not in page
    assert "src=" not in page
    with pytest.raises(InputError, match="text, json, html"):
        render_comparison(both, "pdf")


def test_no_run_no_comparison(runs, tmp_path):
    with pytest.raises(StorageError, match="holds no run"):
        compare(runs[0], tmp_path / "nothing")
