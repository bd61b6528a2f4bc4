"""Gradients by queries, the budget they come from, and the defence that is trained with them."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import nn

from holdfast.core.errors import InputError
from holdfast.core.progress import showing
from holdfast.inputs.smoothing.blackbox import (
    BlackBoxDefence,
    DenoisedSmoothing,
    ZerothOrder,
    zeroth_order_gradient,
)
from holdfast.inputs.smoothing.dense import DenseDenoiser, dense_autoencoder, perceptron
from holdfast.inputs.smoothing.gaussian import Smoothed
from holdfast.inputs.smoothing.queries import BlackBox
from holdfast.inputs.smoothing.zeroth_order import FiniteDifferences, linear_share


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def quadratic(dimension, seed=0):
    matrix = torch.randn((dimension, dimension), generator=stream(seed), dtype=torch.float64)
    slope = torch.randn(dimension, generator=stream(seed + 1), dtype=torch.float64)
    return (lambda z: (z @ matrix * z).sum(1) + z @ slope), (lambda z: z @ (matrix + matrix.T) + slope)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:800] / 16.0, y[:800], X[800:880] / 16.0, y[800:880]


@pytest.fixture(scope="module")
def classifier(digits):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MLPClassifier((32,), max_iter=60, random_state=0).fit(digits[0], digits[1])


def networks(seed=0, latent=8):
    encoder, decoder = dense_autoencoder(64, latent, (32,), stream(seed))
    return {"encoder": encoder, "decoder": decoder, "denoiser": DenseDenoiser(64, (64,), stream(seed + 1))}


class TestGradients:
    @given(st.integers(1, 12), st.integers(0, 100), st.sampled_from([1e-3, 0.1, 2.0]))
    def test_coordinates_are_exact_for_quadratics_at_any_step(self, dimension, seed, mu):
        h, gradient = quadratic(dimension, seed)
        z = torch.randn((3, dimension), generator=stream(seed), dtype=torch.float64)
        assert torch.allclose(zeroth_order_gradient(h, z, mu=mu), gradient(z), rtol=1e-6, atol=1e-6)

    def test_directions_are_unbiased_as_the_step_vanishes(self):
        h, gradient = quadratic(6)
        z = torch.randn((1, 6), generator=stream(9), dtype=torch.float64)
        draws = zeroth_order_gradient(h, z.expand(50_000, 6), "rge", 1, 1e-6, stream(1))
        error = draws.std(0) / len(draws) ** 0.5
        assert bool(((draws.mean(0) - gradient(z)[0]).abs() <= 3 * error).all())

    def test_directions_without_the_factor_d_would_be_found_out(self):
        z = torch.zeros((20_000, 4), dtype=torch.float64)
        mean = zeroth_order_gradient(lambda p: p.sum(1), z, "rge", 1, 1e-6, stream()).mean(0)
        assert torch.allclose(mean, torch.ones(4, dtype=torch.float64), atol=0.05)

    def test_variance_of_directions_grows_with_the_dimension(self):
        # For h = <a, z> with |a| = 1: E |g|^2 = d^2 E <a, u>^2 = d, so the total variance is d - 1.
        for dimension in (4, 16, 64):
            a = torch.ones(dimension, dtype=torch.float64) / dimension**0.5
            z = torch.zeros((20_000, dimension), dtype=torch.float64)
            draws = zeroth_order_gradient(lambda p, a=a: p @ a, z, "rge", 1, 1e-6, stream(dimension))
            assert float(draws.var(0).sum()) == pytest.approx(dimension - 1, rel=0.05)

    @pytest.mark.parametrize("batch", [2, 7, 10_000])
    def test_neither_chunks_nor_shapes_change_coordinates(self, batch):
        h, gradient = quadratic(12)
        z = torch.randn((5, 3, 2, 2), generator=stream(), dtype=torch.float64)
        got = zeroth_order_gradient(lambda p: h(p.flatten(1)), z, batch=batch)
        assert got.shape == z.shape
        assert torch.allclose(got.flatten(1), gradient(z.flatten(1)), atol=1e-8)

    @pytest.mark.parametrize("batch", [2, 5, 999])
    def test_directions_are_exact_on_a_line_however_they_are_called(self, batch):
        # In one dimension u is 1 or -1, so every direction gives the whole slope.
        z = torch.randn((4, 1), generator=stream(), dtype=torch.float64)
        got = zeroth_order_gradient(lambda p: 3 * p[:, 0], z, "rge", 6, generator=stream(2), batch=batch)
        assert torch.allclose(got, torch.full_like(z, 3), atol=1e-9)

    def test_context_follows_its_row(self):
        z = torch.randn((6, 3), generator=stream(), dtype=torch.float64)
        weight = torch.arange(6.0, dtype=torch.float64) + 1
        got = zeroth_order_gradient(lambda p, w: w * p.sum(1), z, context=(weight,), batch=4)
        assert torch.allclose(got, weight[:, None].expand(6, 3), atol=1e-9)

    @pytest.mark.parametrize(("method", "directions", "cost"), [("cge", None, 14), ("rge", 5, 6), ("rge", None, 15)])
    def test_queries_are_what_was_announced(self, method, directions, cost):
        asked = []
        h, _ = quadratic(7)
        z = torch.randn((4, 7), generator=stream(), dtype=torch.float64)
        zeroth_order_gradient(
            lambda p: asked.append(len(p)) or h(p), z, method, directions, generator=stream(), batch=6
        )
        assert sum(asked) == 4 * cost == 4 * FiniteDifferences(method, directions).queries(7)
        assert max(asked) <= 6

    def test_float32_points_are_divided_by_the_step_really_taken(self):
        # At z = 4096 a step of 5e-3 is rounded to a multiple of 2^-11: a tenth of it.
        z = torch.full((1, 3), 4096.0)
        assert torch.allclose(zeroth_order_gradient(lambda p: p.sum(1), z), torch.ones(1, 3), atol=1e-6)

    def test_a_step_function_is_refused_and_a_slope_is_not(self):
        z = torch.full((8, 3), 0.25)
        with pytest.raises(InputError, match="piecewise constant"):
            zeroth_order_gradient(lambda p: (p > 0).double().sum(1), z)
        assert linear_share(lambda p: p.sin(), z.double(), 5e-3, stream()) > 0.999
        assert linear_share(lambda p: (p * 3).round(), z.double(), 5e-3, stream()) == 0.0
        # White noise: the two halves share their middle with opposite signs, so the cosine is -1/2.
        assert linear_share(lambda p: (p * 1e6).sin(), z.double().repeat(50, 1), 5e-3, stream()) < 0

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"mu": 0.0}, "mu"),
            ({"mu": float("nan")}, "mu"),
            ({"method": "spsa"}, "method"),
            ({"method": "cge", "directions": 3}, "directions"),
            ({"method": "rge", "directions": 0}, "directions"),
        ],
    )
    def test_settings_out_of_range(self, settings, words):
        with pytest.raises(InputError, match=words):
            FiniteDifferences(**settings)

    def test_answers_that_are_no_losses(self):
        z = torch.zeros((2, 3))
        with pytest.raises(InputError, match="one number a point"):
            zeroth_order_gradient(lambda p: p, z)
        with pytest.raises(InputError, match="NaN"):
            zeroth_order_gradient(lambda p: p.sum(1) * float("nan"), z)
        with pytest.raises(InputError, match="one entry"):
            zeroth_order_gradient(lambda p: p.sum(), z)
        with pytest.raises(InputError, match="context"):
            zeroth_order_gradient(lambda p, c: p.sum(1), z, context=(torch.zeros(3),))


class TestLayer:
    def test_backward_through_numpy_is_backward_through_torch(self):
        matrix = torch.randn((4, 3), generator=stream(), dtype=torch.float64)
        before = perceptron((5, 4), stream(3), torch.float64)
        x = torch.randn((6, 5), generator=stream(4), dtype=torch.float64)
        target = torch.tensor([0, 1, 2, 0, 1, 2])
        layer = ZerothOrder(lambda p: torch.from_numpy(np.tanh(p.numpy() @ matrix.numpy())), mu=1e-4)
        gradients = []
        for behind in (layer, lambda z: torch.tanh(z @ matrix)):
            before.zero_grad()
            nn.functional.cross_entropy(behind(before(x)), target).backward()
            gradients.append(before[0].weight.grad.clone())
        assert torch.allclose(*gradients, atol=1e-7)
        assert layer.queries == 6 + 6 * 8

    def test_directions_reuse_the_forward_answers(self):
        layer = ZerothOrder(lambda p: p.square(), "rge", 9, generator=stream())
        z = torch.randn((5, 3), generator=stream(), dtype=torch.float64, requires_grad=True)
        layer(z).sum().backward()
        assert layer.queries == 5 + 5 * 9

    def test_nothing_leaks_into_a_torch_function(self):
        weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        seen = []
        layer = ZerothOrder(lambda p: seen.append(p.requires_grad) or p * weight)
        z = torch.randn((2, 3), dtype=torch.float64, generator=stream(), requires_grad=True)
        layer(z).sum().backward()
        assert not any(seen)
        assert weight.grad is None
        assert torch.allclose(z.grad, torch.ones_like(z))

    def test_context_reaches_the_function_and_gets_no_gradient(self):
        layer = ZerothOrder(lambda p, scale: p * scale[:, None])
        z = torch.randn((4, 2), dtype=torch.float64, generator=stream(), requires_grad=True)
        scale = torch.arange(4.0, dtype=torch.float64).add(1).requires_grad_()
        layer(z, scale).sum().backward()
        assert torch.allclose(z.grad, scale.detach()[:, None].expand(4, 2))
        assert scale.grad is None


class TestBox:
    def test_counts_examples_and_refuses_the_call_beyond_its_budget(self):
        box = BlackBox(lambda a: a.sum(1), most=10)
        box(torch.zeros(6, 2))
        with pytest.raises(InputError, match="budget of 10"):
            box(torch.zeros(5, 2))
        assert box.queries == 6

    def test_a_module_is_asked_without_graph_and_keeps_its_parameters_to_itself(self):
        inner = nn.Linear(2, 2)
        box = BlackBox(inner)
        assert not box(torch.zeros(1, 2, requires_grad=True)).requires_grad
        assert list(box.parameters()) == []

    def test_numpy_callables_get_arrays(self):
        kinds = []
        BlackBox(lambda a: kinds.append(type(a)) or a)(torch.zeros(2, 2, requires_grad=True))
        assert kinds == [np.ndarray]

    def test_one_answer_a_row(self):
        with pytest.raises(InputError, match="one row each"):
            BlackBox(lambda a: a[:1])(torch.zeros(3, 2))


class TestDenoisedSmoothing:
    def test_an_identity_denoiser_certifies_as_the_model_alone(self, digits, classifier):
        x = torch.from_numpy(digits[2][:10])
        defended = DenoisedSmoothing(nn.Identity(), classifier.predict_proba, 0.25).smoothed(10)
        alone = Smoothed(BlackBox(classifier.predict_proba), 0.25, 10)
        ours, theirs = (s.certify(x, 50, 300, generator=stream()) for s in (defended, alone))
        assert torch.equal(ours.radius, theirs.radius)

    def test_a_constant_denoiser_certifies_everything(self, classifier):
        class Constant(nn.Module):
            def forward(self, x):
                return torch.full_like(x, 0.5)

        certificate = (
            DenoisedSmoothing(Constant(), classifier.predict_proba, 0.5)
            .smoothed(10)
            .certify(torch.rand((3, 64), generator=stream()), 20, 1000)
        )
        assert len(set(certificate.label.tolist())) == 1
        assert bool((certificate.radius > 1).all())  # 0.5 Phi^-1(0.001^(1/1000))

    def test_gradients_reach_the_denoiser_through_a_module_alone(self):
        denoiser = DenseDenoiser(4, (8,), stream())
        x = torch.rand((3, 4), generator=stream())
        DenoisedSmoothing(denoiser, nn.Linear(4, 2), 0.1)(x).sum().backward()
        assert denoiser.net[0].bias.grad is not None
        assert not DenoisedSmoothing(denoiser, lambda a: a, 0.1)(x).requires_grad

    def test_sigma_must_be_positive(self):
        with pytest.raises(InputError, match="sigma"):
            DenoisedSmoothing(nn.Identity(), nn.Identity(), 0.0)


TRAINED = {"reconstruction_steps": 800, "lr": 3e-3}


def defence(model, **settings):
    given = {"sigma": 0.5, "query_budget": 40_000, "reconstruction_steps": 150, **settings}
    return BlackBoxDefence(model, **given)


class TestDefence:
    def test_training_by_queries_certifies_more_than_no_defence(self, digits, classifier):
        fitted = defence(classifier.predict_proba, **networks(latent=12), query_budget=250_000, **TRAINED).fit(
            digits[0]
        )
        alone = Smoothed(BlackBox(classifier.predict_proba), 0.5, 10)
        x = torch.from_numpy(digits[2]).float()
        ours = fitted.certify(digits[2], 50, 400, 0.01, generator=stream())
        theirs = alone.certify(x, 50, 400, 0.01, generator=stream())
        ours_right, right = (
            ((c.label.numpy() == digits[3]) & (c.radius.numpy() >= 0.25)).mean() for c in (ours, theirs)
        )
        assert ours_right > right + 0.15

    @pytest.mark.parametrize("settings", [{}, {"method": "rge", "directions": 10}])
    def test_the_budget_is_counted_exactly_and_never_exceeded(self, digits, classifier, settings):
        asked = []

        def model(array):
            asked.append(len(array))
            return classifier.predict_proba(array)

        fitted = defence(model, **networks(), query_budget=20_000, batch=32, **settings).fit(digits[0])
        cost = 2 * 8 if not settings else 11
        assert fitted.queries_ == sum(asked) <= 20_000
        assert fitted.queries_ == 800 + 3 * 64 + len(fitted.losses_) * 32 * cost
        assert 20_000 - fitted.queries_ < 32 * cost

    def test_without_an_auto_encoder_directions_of_the_input_are_asked(self, digits, classifier):
        fitted = defence(classifier.predict_proba, directions=16, query_budget=30_000).fit(digits[0])
        assert fitted.encoder_ is None
        assert (fitted.queries_ - 800 - 192) % (64 * 17) == 0

    def test_the_denoiser_and_encoder_move_and_the_decoder_stays(self, digits, classifier):
        given = networks()
        states = []
        for budget in (800 + 192 + 64 * 16, 20_000):
            fitted = defence(classifier.predict_proba, **given, query_budget=budget, lr=1e-2).fit(digits[0])
            states.append(
                [next(net.parameters()).detach() for net in (fitted.decoder_, fitted.encoder_, fitted.denoiser_)]
            )
        assert torch.equal(states[0][0], states[1][0])
        assert not torch.equal(states[0][1], states[1][1])
        assert not torch.equal(states[0][2], states[1][2])
        assert all(parameter.requires_grad for parameter in given["decoder"].parameters())  # the caller's own copy

    def test_it_is_a_scikit_learn_estimator(self, classifier, digits):
        made = defence(classifier.predict_proba, **networks())
        assert clone(made).get_params()["sigma"] == 0.5
        assert set(made.get_params()) >= {"model", "encoder", "decoder", "denoiser", "query_budget", "mu"}
        with pytest.raises(NotFittedError):
            made.predict(digits[2])
        assert made.set_params(mu=0.1).mu == 0.1

    def test_the_same_seed_gives_the_same_defence(self, digits, classifier):
        a, b = (defence(classifier.predict_proba, **networks()).fit(digits[0]) for _ in range(2))
        assert np.array_equal(a.losses_, b.losses_)
        assert torch.equal(next(a.denoiser_.parameters()), next(b.denoiser_.parameters()))

    def test_labels_are_never_looked_at(self, digits, classifier):
        wrong = np.zeros(len(digits[1]), dtype=int)
        a = defence(classifier.predict_proba, **networks()).fit(digits[0])
        b = defence(classifier.predict_proba, **networks()).fit(digits[0], wrong)
        assert np.array_equal(a.losses_, b.losses_)

    def test_predictions_are_smoothed_labels(self, digits, classifier):
        fitted = defence(classifier.predict_proba, **networks(latent=12), sigma=0.1, **TRAINED).fit(digits[0])
        answers = fitted.predict(digits[2], n=200)
        decided = answers >= 0
        assert decided.mean() > 0.8
        assert (answers[decided] == digits[3][decided]).mean() > 0.8

    def test_true_gradients_and_differences_agree(self, digits, classifier):
        layers = []
        for weight, bias in zip(classifier.coefs_, classifier.intercepts_):
            linear = nn.Linear(*weight.shape, dtype=torch.float64)
            linear.load_state_dict({"weight": torch.from_numpy(weight.T), "bias": torch.from_numpy(bias)})
            layers += [linear, nn.ReLU()]
        white = nn.Sequential(*layers[:-1], nn.Softmax(1))
        given = {name: net.double() for name, net in networks().items()}
        steps = 20
        black = defence(classifier.predict_proba, **given, mu=1e-4, query_budget=800 + 192 + steps * 64 * 16).fit(
            digits[0]
        )
        seen = defence(white, **given, method="autograd", query_budget=800 + steps * 64).fit(digits[0])
        assert len(black.losses_) == len(seen.losses_) == steps
        assert np.allclose(black.losses_, seen.losses_, rtol=1e-3)
        assert torch.allclose(black.denoiser_.net[0].weight, seen.denoiser_.net[0].weight, atol=1e-3)
        assert all(parameter.grad is None for parameter in white.parameters())

    def test_logits_squared_errors_and_votes(self, digits, classifier):
        X, y, test, _ = digits
        linear = LogisticRegression(max_iter=200).fit(X, y)
        logits = defence(linear.decision_function, **networks(), scores="logits").fit(X)
        assert list(logits.classes_) == list(range(10))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            regressor = MLPRegressor(hidden_layer_sizes=(16,), max_iter=50, random_state=0).fit(X, y / 10)
        squared = defence(regressor.predict, **networks(), loss="squared").fit(X)
        assert squared.predict(test).shape == (80,)
        with pytest.raises(InputError, match="squared"):
            squared.certify(test)
        votes = defence(classifier.predict, **networks(), loss="vote", mu=1.0, query_budget=100_000).fit(X)
        assert votes.losses_[-10:].mean() < votes.losses_[:10].mean() - 0.05
        assert votes.certify(test[:5], 20, 200).radius.shape == (5,)

    def test_the_denoisers_own_error_can_be_added(self, digits, classifier):
        errors = []
        for weight in (0.0, 100.0):
            fitted = defence(classifier.predict_proba, **networks(), reconstruction_weight=weight).fit(digits[0])
            x = torch.from_numpy(digits[2]).float()
            noisy = x + 0.5 * torch.randn(x.shape, generator=stream())
            errors.append((fitted.denoiser_(noisy) - x).square().mean().item())
        assert errors[1] < errors[0]

    def test_progress_is_shown(self, digits, classifier):
        seen = []
        with showing(lambda items, description, total: seen.append(description) or items):
            defence(classifier.predict_proba, **networks()).fit(digits[0])
        assert "training before the black box" in seen

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"query_budget": 900}, "does not last for one batch"),
            ({"mu": -1.0}, "mu"),
            ({"sigma": 0.0}, "sigma"),
            ({"decoder": None}, "encoder and a decoder"),
            ({"decoder": nn.Linear(8, 63)}, "decoder gives"),
            ({"denoiser": nn.Linear(64, 32)}, "denoiser gives"),
            ({"denoiser": nn.Identity()}, "no parameters"),
            ({"loss": "vote", "mu": 1e-9}, "piecewise constant"),
            ({"method": "autograd"}, "nn.Module"),
            ({"loss": "hinge"}, "hinge"),
            ({"batch": 0}, "batch"),
            ({"reconstruction_steps": -1}, "negative"),
        ],
    )
    def test_bad_settings_are_named(self, digits, classifier, settings, words):
        with pytest.raises(InputError, match=words):
            defence(classifier.predict_proba, **{**networks(), **settings}).fit(digits[0])

    def test_models_it_cannot_learn_from(self, digits, classifier):
        X, y = digits[:2]
        with pytest.raises(InputError, match="loss='vote'"):
            defence(classifier.predict, **networks()).fit(X)
        linear = LogisticRegression(max_iter=200).fit(X, y)
        with pytest.raises(InputError, match="scores='logits'"):
            defence(linear.decision_function, **networks()).fit(X)
        forest = RandomForestClassifier(20, random_state=0).fit(X, y)
        with pytest.raises(InputError, match="piecewise constant"):
            defence(forest.predict_proba, **networks()).fit(X)

    def test_a_batch_of_certain_answers_does_not_end_the_training(self, digits):
        # Sure of class 1 to the last digit unless the first pixels are dark: most batches of one have no slope.
        def sure(array):
            p = expit(400 * (array[:, :8].mean(1) - 0.1))
            return np.stack([1 - p, p], 1)

        fitted = defence(sure, directions=4, query_budget=4_000, batch=1, mu=0.05).fit(digits[0])
        assert len(fitted.losses_) == (4_000 - 992) // 5

    def test_nothing_beyond_the_budget_is_asked_of_a_refused_model(self, digits):
        asked = []
        with pytest.raises(InputError):
            defence(lambda a: asked.append(len(a)) or np.zeros((len(a), 2)), query_budget=10).fit(digits[0])
        assert asked == []
