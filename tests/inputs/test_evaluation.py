"""The list of evaluations leads to real functions of catalogued papers, and the guide shows all of it."""

from pathlib import Path

import pytest

from holdfast.core.errors import InputError
from holdfast.inputs import evaluation
from holdfast.inputs.evaluation import EVALUATIONS, evaluations
from holdfast.papers.catalogue import catalogue

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "evaluations.md"


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_name_is_importable_and_documented(name):
    found = getattr(evaluation, name)
    assert callable(found)
    assert found.__doc__
    assert found.__module__ == EVALUATIONS[name].home.rpartition(".")[0]


def test_every_entry_belongs_to_a_paper_of_the_catalogue():
    keys = {entry.paper.key for entry in catalogue()}
    assert {entry.paper for entry in EVALUATIONS.values()} <= keys


def test_selection_by_need():
    assert set(evaluations("a policy")) == {"regret"}
    assert evaluations() == dict(EVALUATIONS)
    with pytest.raises(InputError, match="'a policy'"):
        evaluations("a spaceship")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="EVALUATIONS"):
        evaluation.nothing  # noqa: B018


def test_the_guide_lists_every_evaluation_with_its_need():
    text = GUIDE.read_text()
    for name, entry in EVALUATIONS.items():
        assert f"| `{name}` | {entry.needs} | {entry.question} | `{entry.paper}` |" in text
