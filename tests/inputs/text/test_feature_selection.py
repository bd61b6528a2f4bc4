"""A language model that names columns: scikit-learn's rules, and answers that are not what was asked for."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from holdfast.core.errors import InputError
from holdfast.inputs.text.feature_selection import LanguageModelFeatureSelector, Remembered

X = pd.DataFrame(np.arange(12.0).reshape(3, 4), columns=["age", "job", "city", "debt"])


def names(*columns):
    return lambda prompt: "Sure!\n" + json.dumps({"features": list(columns)}) + "\nDone."


def first_two(prompt):
    return '{"features": ["x0", "x1"]}'


def rules():
    """scikit-learn's checks under their own names: the usual ones hold the address of `first_two`."""
    for place, (estimator, check) in enumerate(estimator_checks_generator(LanguageModelFeatureSelector(first_two))):
        yield pytest.param(estimator, check, id=f"{place}-{getattr(check, 'func', check).__name__}")


@pytest.mark.parametrize(("estimator", "check"), list(rules()))
def test_scikit_learn_rules(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # tables of one column have no x1
        check(estimator)


def test_priority_decides_and_order_stays_that_of_the_table():
    selector = LanguageModelFeatureSelector(names("debt", "age", "job"), "default", k=2).fit(X)
    assert selector.ranking_ == ("debt", "age")
    assert selector.get_feature_names_out().tolist() == ["age", "debt"]
    np.testing.assert_array_equal(selector.transform(X), X[["age", "debt"]])
    assert selector.transform(X).shape == (3, 2)


def test_the_model_is_told_target_and_columns_and_never_a_value():
    seen = []
    LanguageModelFeatureSelector(lambda p: seen.append(p) or '{"features": ["age"]}', "default", k=3).fit(X)
    assert "default" in seen[0]
    assert all(f"- {name}" in seen[0] for name in X.columns)
    assert "at most 3" in seen[0]
    assert "11.0" not in seen[0]
    LanguageModelFeatureSelector(lambda p: seen.append(p) or '{"features": ["x1"]}', "t", template="{target}?").fit(
        X.values
    )
    assert seen[1] == "t?"


def test_unknown_names_are_ignored_and_told():
    with pytest.warns(UserWarning, match="income"):
        selector = LanguageModelFeatureSelector(names("income", "debt", "debt"), k=2).fit(X)
    assert selector.ignored_ == ("income",)
    assert selector.ranking_ == ("debt",)


@pytest.mark.parametrize(
    "answer",
    ["debt and age", '{"columns": ["debt"]}', '{"features": "debt"}', "{", '{"features": [3]}', "debt [1], age [2]"],
)
def test_an_answer_in_another_form_keeps_everything_with_a_warning_or_raises(answer):
    with pytest.warns(UserWarning, match="all columns are kept"):
        selector = LanguageModelFeatureSelector(lambda prompt: answer, k=1).fit(X)
    assert selector.get_support().all()
    assert selector.answer_ == answer
    with pytest.raises(InputError, match='no column in a list "features"'):
        LanguageModelFeatureSelector(lambda prompt: answer, malformed="raise").fit(X)


@pytest.mark.parametrize("answer", ['["debt", "age", "job"]', 'As said [1]:\n```json\n["debt", "age"]\n```'])
def test_a_list_alone_is_taken_by_priority(answer):
    selector = LanguageModelFeatureSelector(lambda prompt: answer, k=2, malformed="raise").fit(X)
    assert selector.ranking_ == ("debt", "age")
    both = '["job"] or rather {"features": ["debt"]}'
    assert LanguageModelFeatureSelector(lambda prompt: both).fit(X).ranking_ == ("debt",)


def test_arrays_take_names_given():
    selector = LanguageModelFeatureSelector(names("debt"), columns=list(X.columns)).fit(X.to_numpy())
    assert selector.get_support().tolist() == [False, False, False, True]
    with pytest.raises(InputError, match="4 columns"):
        LanguageModelFeatureSelector(names("debt"), columns=["debt"]).fit(X.to_numpy())


def test_bad_settings_are_told():
    for changed, words in [({"k": 0}, "at least 1"), ({"ask": "gpt"}, "callable"), ({"malformed": "guess"}, "warn")]:
        with pytest.raises(InputError, match=words):
            LanguageModelFeatureSelector(**{"ask": names("age"), **changed}).fit(X)


def test_a_cross_validation_asks_once():
    asked = []
    ask = Remembered(lambda prompt: asked.append(prompt) or names("worst area", "worst texture")(prompt))
    table = load_breast_cancer(as_frame=True)
    selector = LanguageModelFeatureSelector(ask, "malignancy", k=2)
    model = make_pipeline(selector, StandardScaler().set_output(transform="default"), LogisticRegression())
    assert cross_val_score(model, table.data, table.target).mean() > 0.9
    assert len(asked) == 1
    assert clone(selector).ask is ask
