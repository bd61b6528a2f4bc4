"""Files are whole or absent, evidence survives the round trip, and runs are not mixed."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from holdfast.core.errors import ResumeError, StorageError
from holdfast.store.files import Folder, sole_writer
from holdfast.store.manifest import read_json, require_same, write_json
from holdfast.store.shards import read_evidence, read_shard, shard_name, shards_present, write_shard


@given(
    values=hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.bool_]),
        hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5),
    )
)
def test_a_shard_returns_every_column_bit_for_bit(values, tmp_path_factory):
    folder = Folder(str(tmp_path_factory.mktemp("run")))
    write_shard(folder, "probe", 3, {"index": np.arange(len(values)), "values": values})
    again = read_shard(folder, "probe", 3)["values"]
    assert again.dtype == values.dtype
    assert again.shape == values.shape
    np.testing.assert_array_equal(again, values)


def test_evidence_is_joined_in_shard_order(tmp_path):
    folder = Folder(str(tmp_path))
    for shard in (2, 0, 10, 1):
        write_shard(folder, "probe", shard, {"index": np.array([shard])})
    assert shards_present(folder, "probe") == [0, 1, 2, 10]
    assert read_evidence(folder, "probe")["index"].tolist() == [0, 1, 2, 10]


def test_a_truncated_shard_is_named(tmp_path):
    folder = Folder(str(tmp_path))
    write_shard(folder, "probe", 0, {"index": np.arange(100)})
    path = tmp_path / shard_name("probe", 0)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StorageError, match=r"part-000000.parquet is damaged.*delete that file"):
        read_shard(folder, "probe", 0)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    folder.write("kept.txt", b"before")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left on the device"):
        folder.write("kept.txt", b"after")
    assert (tmp_path / "kept.txt").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_leftovers_of_a_killed_writer_are_swept(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("evidence/probe/part-000000.parquet", b"x")
    (tmp_path / "evidence/probe/part-000001.parquet.1234.tmp").write_bytes(b"half")
    folder.sweep("evidence/probe")
    assert folder.names("evidence/probe") == ["part-000000.parquet"]


def test_memory_urls_work_like_paths():
    folder = Folder("memory://holdfast-test-run")
    write_json(folder, "manifest.json", {"a": 1})
    write_shard(folder, "probe", 0, {"index": np.arange(3)})
    assert read_json(folder, "manifest.json") == {"a": 1}
    assert read_evidence(folder, "probe")["index"].tolist() == [0, 1, 2]


def test_json_stays_standard_and_keeps_infinities(tmp_path):
    folder = Folder(str(tmp_path))
    content = {"high": float("inf"), "low": float("-inf"), "nested": [{"x": float("nan")}, 0.1]}
    write_json(folder, "x.json", content)
    json.loads(
        (tmp_path / "x.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not standard JSON")
    )
    again = read_json(folder, "x.json")
    assert again["high"] == float("inf")
    assert again["low"] == float("-inf")
    assert np.isnan(again["nested"][0]["x"])
    assert again["nested"][1] == 0.1


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text('{"a": ')
    with pytest.raises(StorageError, match=r"manifest.json is not valid JSON"):
        read_json(Folder(str(tmp_path)), "manifest.json")


def test_resuming_names_what_changed():
    with pytest.raises(ResumeError, match=r"seed was 0, now 1") as caught:
        require_same({"seed": 0, "subject": "a"}, {"seed": 1, "subject": "a"}, "runs/x")
    assert "subject" not in str(caught.value)


def test_only_one_process_writes_a_run(tmp_path):
    script = textwrap.dedent(
        f"""
        import time
        from holdfast.store.files import Folder, sole_writer
        with sole_writer(Folder({str(tmp_path)!r})):
            print("held", flush=True)
            time.sleep(60)
        """
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match="being written by another process"), sole_writer(Folder(str(tmp_path))):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            with sole_writer(Folder(str(tmp_path))):
                return
        except StorageError:
            time.sleep(0.05)
    pytest.fail("the lock outlived its killed holder")
