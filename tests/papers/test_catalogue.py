"""The catalogue says of every paper what the last full run found, and notices when the source moved on."""

import importlib
import json
import subprocess
import sys

import pytest

from holdfast.core.errors import HoldfastError, InputError, StorageError
from holdfast.papers import provenance
from holdfast.papers.catalogue import catalogue, find, search
from holdfast.papers.paper import Scale
from holdfast.papers.provenance import defining_module, modules_behind
from holdfast.papers.reproduce import reproduce


def forget_sources():
    provenance.normalised_source.cache_clear()


def test_entries_are_read_from_source_without_importing_them(house, tmp_path):
    knife, tea = catalogue(tmp_path)
    assert (knife.paper.key, tea.paper.key) == ("blunt-knife", "warm-tea")
    assert knife.paper.claim == "Blunt cuts are certified beyond doubt."
    assert knife.status == "unrun"
    assert knife.numbers == {}
    assert "holdfast.papers.inputs.blunt_knife" not in sys.modules


def test_json_form_has_exactly_the_promised_fields(house, tmp_path):
    fields = ["key", "group", "title", "builds", "claim", "status", "numbers"]
    assert [list(entry.to_dict()) for entry in catalogue(tmp_path)] == [fields, fields]
    json.dumps([entry.to_dict() for entry in catalogue(tmp_path)])


def test_status_follows_result_and_source(house, tmp_path, planted, outcome):
    planted("noise", "warm_tea", outcome(steam_rises=True))
    reproduce("warm-tea", Scale.FULL, tmp_path)
    assert find("warm-tea", tmp_path).status == "holds"
    assert find("warm-tea", tmp_path).numbers["criteria"][0]["numbers"] == {"gap": 0.5}
    planted("noise", "warm_tea", outcome(steam_rises=True, cup_full=False))
    reproduce("warm-tea", Scale.FULL, tmp_path)
    assert find("warm-tea", tmp_path).status == "fails"
    (house / "noise" / "methods.py").write_text("class WarmTea:\n    strength = 9\n")
    forget_sources()
    assert find("warm-tea", tmp_path).status == "stale"


def test_a_damaged_result_is_loud(house, tmp_path):
    (tmp_path / "warm-tea.json").write_text('{"outcome": ')
    with pytest.raises(StorageError, match=r"warm-tea\.json is damaged"):
        catalogue(tmp_path)


def test_unknown_key_names_near_ones(house, tmp_path):
    with pytest.raises(InputError, match="did you mean warm-tea"):
        find("warm-tee", tmp_path)


def test_search_reaches_names_titles_and_claims(house, tmp_path):
    entries = catalogue(tmp_path)
    assert [entry.paper.key for entry in search("BluntKnife", entries)] == ["blunt-knife"]
    assert [entry.paper.key for entry in search("gausian", entries)] == ["warm-tea"]
    assert search("", entries) == entries


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('key="warm-tea"', 'key="blunt-knife"', "two entries with the key blunt-knife"),
        ('group="noise"', 'group="optim"', "its folder 'noise'"),
        ('title="Denoising by steam"', "title=make_title()", "literals"),
        ("PAPER = Paper(", "PAPER = make(", "Paper"),
    ],
)
def test_a_malformed_entry_is_loud(house, tmp_path, old, new, message):
    file = house / "papers" / "noise" / "warm_tea.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(HoldfastError, match=message):
        catalogue(tmp_path)


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.paper.key)
def test_every_real_entry_builds_what_it_says(entry):
    module = importlib.import_module(entry.module)
    assert entry.paper == module.PAPER
    assert callable(module.check)
    assert entry.module in modules_behind(entry.module, entry.paper.builds)
    for path in entry.paper.builds:
        owner, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(owner), name) is getattr(
            importlib.import_module(defining_module(path)), name
        )


def test_listing_the_catalogue_does_not_import_torch():
    code = "import sys; from holdfast.papers.catalogue import catalogue; catalogue(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
