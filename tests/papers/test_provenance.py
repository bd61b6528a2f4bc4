"""The hash follows what a result rests on and nothing else."""

import pytest

from holdfast.core.errors import HoldfastError
from holdfast.papers import provenance
from holdfast.papers.provenance import defining_module, modules_behind, source_hash

BEHIND = ("holdfast.inputs.methods", "holdfast.papers.inputs.blunt_knife")


def fresh_hash():
    for cached in (provenance.parsed, provenance.normalised_source):
        cached.cache_clear()
    return source_hash(BEHIND)


def test_a_reexport_is_followed_to_where_the_object_is_written(house):
    assert defining_module("holdfast.inputs.BluntKnife") == "holdfast.inputs.methods"
    assert defining_module("holdfast.inputs.methods") == "holdfast.inputs.methods"


@pytest.mark.parametrize("path", ["holdfast.inputs.Sharp", "holdfast.nowhere.Thing", "holdfast.inputs.methods.Sharp"])
def test_a_path_to_nothing_is_loud(house, path):
    with pytest.raises(HoldfastError, match="builds"):
        defining_module(path)


def test_the_machinery_is_no_part_of_a_result(house):
    assert modules_behind("holdfast.papers.inputs.blunt_knife", ["holdfast.inputs.BluntKnife"]) == BEHIND


def test_a_shared_module_of_checks_is_part_of_the_result(house):
    (house / "papers" / "inputs" / "shared_nets.py").write_text("WIDTH = 3\n")
    entry = house / "papers" / "inputs" / "blunt_knife.py"
    entry.write_text("from holdfast.papers.inputs.shared_nets import WIDTH\n" + entry.read_text())
    behind = modules_behind("holdfast.papers.inputs.blunt_knife", ["holdfast.inputs.BluntKnife"])
    assert "holdfast.papers.inputs.shared_nets" in behind


def test_line_endings_do_not_matter_and_content_does(house):
    file = house / "inputs" / "methods.py"
    before = fresh_hash()
    file.write_bytes(file.read_bytes().replace(b"\n", b"  \r\n"))
    assert fresh_hash() == before
    file.write_text("class BluntKnife:\n    strength = 2\n")
    assert fresh_hash() != before
