"""Importances, agreement of models, the penalty and its gradient, and the estimators."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.explanations import (
    AlignedMLPClassifier,
    AlignedMLPRegressor,
    ImportanceAlignment,
    factor_consistency,
    importance_distribution,
    mutual_divergence,
    prior_from_ranks,
    reference_prior,
)
from holdfast.inputs.explanations.alignment import attributions, importances


@pytest.fixture(scope="module")
def table():
    X, y = load_diabetes(return_X_y=True)
    return (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()


def linear(slope):
    layer = nn.Linear(len(slope), 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([slope]))
        layer.bias.zero_()
    return layer


def test_importances_of_a_linear_model_are_slopes_times_mean_distances(table):
    X, y = table
    model = LinearRegression().fit(X, y)
    wanted = np.abs(model.coef_) * np.abs(X - X.mean(0)).mean(0)
    wanted /= wanted.sum()
    for method in ("permutation-shap", "exact-shap"):
        np.testing.assert_allclose(importance_distribution(model, X[:], X.mean(0, keepdims=True), method), wanted)
    torch_model = linear([float(c) for c in model.coef_])
    np.testing.assert_allclose(importance_distribution(torch_model, X, method="gradient"), wanted, rtol=1e-4)


def test_importances_rank_factors_as_permuting_columns_does(table):
    X, y = table
    model = LinearRegression().fit(X, y)
    ours = importance_distribution(model, X[:80])
    theirs = permutation_importance(model, X, y, random_state=0).importances_mean
    assert np.argmax(ours) == np.argmax(theirs)


def test_two_classes_are_explained_by_one_probability(table):
    X, y = table
    model = LogisticRegression().fit(X, y > 0)
    by_hand = importance_distribution(lambda rows: model.predict_proba(rows)[:, 1], X[:20], pairs=2)
    np.testing.assert_allclose(importance_distribution(model, X[:20], pairs=2), by_hand)


def test_constant_columns_have_no_importance_and_are_named(table):
    X = np.column_stack([table[0][:20, :3], np.ones(20)])
    with pytest.warns(UserWarning, match=r"\[3\]"):
        assert importance_distribution(lambda rows: rows.sum(1), X)[3] < 1e-15


def test_models_that_are_the_same_agree_entirely(table):
    X, y = table
    model = LinearRegression().fit(X, y)
    report = factor_consistency({"a": model, "b": model}, X[:30], 3, resamples=20)
    assert report.overlap.value == report.order.value == 1
    assert report.tau.value > 1 - 1e-12
    assert report.worth_gaps.max() == 0
    assert report.settled.min() == 1
    assert report.primary()["a"] == report.primary()["b"]


def test_opposite_models_agree_on_nothing():
    X = np.random.default_rng(0).normal(size=(40, 4))
    first, second = (lambda Z: Z @ [8, 4, 2, 1.0]), (lambda Z: Z @ [1, 2, 4, 8.0])
    report = factor_consistency([first, second], X, 2, resamples=20)
    assert report.overlap.value == 0
    assert report.tau.value < -0.9
    assert report.order.value == 0
    assert report.names == ("model 0", "model 1")


def test_settled_orders_hold_in_the_other_model():
    X = np.random.default_rng(1).normal(size=(40, 4))
    report = factor_consistency([lambda Z: Z @ [8, 4, 0.2, 0.1], lambda Z: Z @ [8.1, 4, 0.2, 0.1]], X, 2, resamples=20)
    assert report.settled[0, 1] == 1
    assert report.overlap.value == 1
    assert 0 < report.worth_gaps[0, 1] == report.worth_gaps[1, 0]


def test_gradient_attributions_of_linear_models_are_exact_in_both_ways():
    x = torch.randn((30, 3), generator=torch.Generator().manual_seed(0))
    model = linear([1.0, -2.0, 0.5])
    wanted = (x - x.mean(0)) * torch.tensor([1.0, -2.0, 0.5])
    for way in ("gradient", "integrated-gradients"):
        torch.testing.assert_close(attributions(model, x, way)[..., 0], wanted)


def test_integrated_gradients_add_up_to_the_prediction():
    x = torch.randn((30, 3), generator=torch.Generator().manual_seed(0)).double()
    model = lambda z: torch.sin(z).sum(1) + z[:, 0] * z[:, 1]  # noqa: E731

    class Model(nn.Module):
        def forward(self, z):
            return model(z)

    added = attributions(Model(), x, "integrated-gradients").sum((1, 2))
    torch.testing.assert_close(added, model(x) - model(x.mean(0, keepdim=True)), atol=1e-2, rtol=0)


def test_the_penalty_is_the_divergence_and_has_the_gradient_of_finite_differences():
    x = torch.randn((20, 3), generator=torch.Generator().manual_seed(1)).double()
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    prior = np.array([0.5, 0.3, 0.2])
    penalty = ImportanceAlignment(prior, 2.0)
    p = importances(model, x).detach().numpy()
    np.testing.assert_allclose(penalty(model, x).item(), 2 * (prior * np.log(prior / p)).sum())
    penalty(model, x).backward()
    weight = model[0].weight
    found = weight.grad[1, 2].item()
    with torch.no_grad():
        values = []
        for move in (1e-5, -2e-5):
            weight[1, 2] += move
            values.append(penalty(model, x).item())
    np.testing.assert_allclose(found, (values[0] - values[1]) / 2e-5, rtol=1e-4)


def test_the_penalty_is_zero_where_importances_are_the_prior():
    x = torch.randn((50, 3), generator=torch.Generator().manual_seed(2))
    model = linear([3.0, 1.0, 0.5])
    penalty = ImportanceAlignment(importances(model, x).detach().double().numpy().round(12) / 1.0, 1.0)
    assert abs(penalty(model, x).item()) < 1e-6
    assert mutual_divergence(torch.stack([importances(model, x)] * 3)).item() < 1e-6
    assert mutual_divergence(torch.tensor([[0.9, 0.1], [0.1, 0.9]])).item() > 0.3


def test_training_moves_importances_towards_the_prior(table):
    X, y = table
    prior = np.array([0.55] + [0.05] * 9)
    free, held = (AlignedMLPRegressor(prior, weight, epochs=40).fit(X[:80], y[:80]) for weight in (0.0, 10.0))
    shares = [importance_distribution(model.network_, X[:80], method="gradient")[0] for model in (free, held)]
    assert shares[1] > 0.45 > shares[0]


def test_priors_from_ranks_and_from_references(table):
    np.testing.assert_allclose(prior_from_ranks([1, 2, 2]), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(prior_from_ranks([1, 2, 3], "geometric"), np.array([4, 2, 1]) / 7)
    X, y = table
    model = LinearRegression().fit(X, y)
    prior = reference_prior([model], X[:30], smoothing=0.1)
    np.testing.assert_allclose(prior, 0.9 * importance_distribution(model, X[:30]) + 0.01)


def test_the_estimators_are_scikit_learns():
    check_estimator(AlignedMLPRegressor(hidden=(8,), epochs=10, batch=50, step=5e-2))
    check_estimator(AlignedMLPClassifier(hidden=(8,), epochs=6, batch=50, step=5e-2))


@pytest.mark.parametrize(
    "settings",
    [
        {"prior": [0.5, 0.6]},
        {"prior": [1.5, -0.5]},
        {"prior": [1.0, 0.0]},
        {"prior": [[1.0]]},
        {"prior": [0.5, 0.5], "weight": -1.0},
        {"prior": [0.5, 0.5], "smoothing": 1.0},
        {"prior": [0.5, 0.5], "attribution": "lime"},
    ],
)
def test_priors_are_checked(settings):
    with pytest.raises(InputError):
        ImportanceAlignment(**settings)


def test_smoothing_mends_a_prior_with_zeros():
    np.testing.assert_allclose(ImportanceAlignment([1.0, 0.0], smoothing=0.1).prior, [0.95, 0.05])


def test_what_cannot_be_explained_is_refused(table):
    X, y = table
    model = LinearRegression().fit(X, y)
    with pytest.raises(InputError, match="encode"):
        importance_distribution(model, [["a", 1.0]])
    with pytest.raises(InputError, match="method"):
        importance_distribution(model, X[:5], method="lime")
    with pytest.raises(UnsupportedError, match="Module"):
        importance_distribution(model, X[:5], method="gradient")
    with pytest.raises(InputError, match="no factor"):
        importance_distribution(lambda rows: np.zeros(len(rows)), X[:5])
    with pytest.raises(InputError, match="two rows"):
        ImportanceAlignment(np.full(3, 1 / 3))(linear([1.0, 1.0, 1.0]), torch.zeros(1, 3))
    with pytest.raises(InputError, match="features"):
        ImportanceAlignment([0.5, 0.5])(linear([1.0, 1.0, 1.0]), torch.zeros(2, 3))
    with pytest.raises(InputError):
        AlignedMLPRegressor(prior=[0.5, 0.5]).fit(X, y)
    for k in (0, 10):
        with pytest.raises(InputError, match="k must"):
            factor_consistency([model, model], X[:5], k)
    with pytest.raises(InputError, match="two models"):
        factor_consistency([model], X[:5], 2)
    with pytest.raises(InputError, match="reference"):
        reference_prior([], X)
    for ranks in ([0, 1], [], [[1.0]]):
        with pytest.raises(InputError):
            prior_from_ranks(ranks)
    with pytest.raises(InputError, match="decay"):
        prior_from_ranks([1, 2], "linear")
