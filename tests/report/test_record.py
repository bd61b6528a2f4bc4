"""A run folder is read whole or refused with a reason."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from holdfast.core.errors import StorageError
from holdfast.report.record import RunRecord
from holdfast.store.files import Folder
from holdfast.store.manifest import FINDINGS, MANIFEST, read_json, write_json


@pytest.fixture
def run(plain_run, tmp_path):
    shutil.copytree(plain_run, tmp_path / "run")
    return tmp_path / "run"


def test_everything_written_comes_back(run):
    record = RunRecord.read(run)
    written = read_json(Folder(str(run)), FINDINGS)
    assert [section.to_dict() for section in record.sections] == written["sections"]
    assert record.find("adversarial.accuracy").headline
    assert record.find("nothing.here") is None
    assert np.array_equal(np.sort(record.clean["index"]), np.arange(600))
    assert record.evidence("corruption")["correct"].shape == (600, 15, 5)
    assert record.evidence("leakage") == {}


def test_doubts_touch_the_findings_they_name_or_all_of_their_section(run):
    record = RunRecord.read(run)
    assert [d.name for d in record.doubts_about(record.find("labels.wrong"))] == ["weak guide"]
    assert record.doubts_about(record.find("adversarial.accuracy")) == ()
    assert len(record.doubts_about(record.find("adversarial.median_radius"))) == 1


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(StorageError, match=r"holds no run \(no manifest.json\)"):
        RunRecord.read(tmp_path)


def test_a_killed_run(run):
    (run / FINDINGS).unlink()
    with pytest.raises(StorageError, match="--resume"):
        RunRecord.read(run)


@pytest.mark.parametrize("name", [MANIFEST, FINDINGS])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"sections": 3, "doubts": []}'])
def test_damaged_files(run, name, content):
    (run / name).write_bytes(content)
    with pytest.raises(StorageError, match=name):
        RunRecord.read(run)


@pytest.mark.parametrize(
    "damage",
    [
        lambda section: section.pop("question"),
        lambda section: section["exhibits"].append({"kind": "hologram"}),
        lambda section: section["findings"][0]["estimate"].update(low=2.0),
        lambda section: section.update(findings=[3]),
        lambda section: section["exhibits"].append(7),
    ],
)
def test_damaged_sections(run, damage):
    found = read_json(Folder(str(run)), FINDINGS)
    damage(found["sections"][0])
    write_json(Folder(str(run)), FINDINGS, found)
    with pytest.raises(StorageError, match=r"findings.json is damaged"):
        RunRecord.read(run)


@pytest.mark.parametrize("part", ["subject", "settings", "status"])
def test_an_incomplete_manifest(run, part):
    manifest = read_json(Folder(str(run)), MANIFEST)
    del manifest[part]
    write_json(Folder(str(run)), MANIFEST, manifest)
    with pytest.raises(StorageError, match=f"lacks {part}"):
        RunRecord.read(run)
