"""A house of two small papers on disk, so that the catalogue is tested without depending on the real entries."""

import sys
import types

import pytest

from holdfast.papers import catalogue, provenance
from holdfast.papers.paper import Criterion, Outcome

ENTRY = """
from holdfast.{group}.methods import {name}
from holdfast.papers.paper import Paper

PAPER = Paper(
    key="{key}",
    group="{group}",
    title="{title}",
    builds=("holdfast.{group}.{name}",),
    claim=(
        "{claim}"
        " beyond doubt."
    ),
)

def check(scale): ...
"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Root of a small package with papers `blunt-knife` and `warm-tea`; caches are fresh before and after."""
    root = tmp_path / "src" / "holdfast"
    papers = [
        ("inputs", "blunt-knife", "BluntKnife", "Cutting inputs with randomised smoothing", "Blunt cuts are certified"),
        ("noise", "warm-tea", "WarmTea", "Denoising by steam", "Tea removes Gaussian noise"),
    ]
    for group, key, name, title, claim in papers:
        methods = root / group
        methods.mkdir(parents=True)
        (methods / "__init__.py").write_text(f'"""Group."""\nfrom holdfast.{group}.methods import {name}\n')
        (methods / "methods.py").write_text(f"class {name}:\n    strength = 1\n")
        entries = root / "papers" / group
        entries.mkdir(parents=True)
        (entries / "__init__.py").write_text("")
        text = ENTRY.format(group=group, key=key, name=name, title=title, claim=claim)
        (entries / f"{key.replace('-', '_')}.py").write_text(text)
    (root / "papers" / "paper.py").write_text("class Paper: ...\n")
    monkeypatch.setattr(provenance, "ROOT", root)
    monkeypatch.setattr(catalogue, "ROOT", root)
    _forget()
    yield root
    _forget()


@pytest.fixture
def planted(monkeypatch):
    """`planted("noise", "warm_tea", outcome)` makes that module's check return (or raise) `outcome`."""

    def plant(group, stem, outcome):
        def check(scale):
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        name = f"holdfast.papers.{group}.{stem}"
        module = types.ModuleType(name)
        module.check = check
        monkeypatch.setitem(sys.modules, name, module)

    return plant


@pytest.fixture
def outcome():
    """`outcome(first=True, second=False)`: an Outcome with those criteria."""

    def make(**passed):
        return Outcome(criteria=tuple(Criterion(name, value, {"gap": 0.5}) for name, value in passed.items()))

    return make


def _forget():
    for cached in (
        provenance.parsed,
        provenance.defined_names,
        provenance.imported_names,
        provenance.normalised_source,
    ):
        cached.cache_clear()
