"""Pre-training along diffusion paths: levels, contrast, targets without gradient, and classifiers on top."""

import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.progress import showing
from holdfast.inputs.smoothing.consistency import (
    ConsistencyRegularizer,
    NoiseClassifier,
    NoiseConsistencyPretrainer,
    info_nce,
)
from holdfast.inputs.smoothing.dense import perceptron
from holdfast.inputs.smoothing.gaussian import Smoothed
from holdfast.inputs.smoothing.level_conditioning import LevelConditioned, sinusoids
from holdfast.inputs.smoothing.levels import LevelSchedule, Units
from holdfast.inputs.smoothing.noise_training import layerwise_rates, train_under_noise


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def pretrainer(features=6, seed=0, **settings):
    g = stream(seed)
    encoder = LevelConditioned(perceptron((features, 32, 16), g), 16, g)
    return NoiseConsistencyPretrainer(encoder, perceptron((16, 16, 8), g), perceptron((8, 16, 8), g), **settings)


class Recorder(nn.Module):
    """An encoder that keeps what it was shown: (x, log level, whether gradients were wanted)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls = []

    def forward(self, x, log_level):
        self.calls.append((x.detach(), log_level.detach(), torch.is_grad_enabled()))
        return x * self.weight + log_level[:, None]


class TestLevels:
    def test_end_points_are_exact(self):
        levels = LevelSchedule().levels()
        assert levels.dtype == torch.float64
        assert abs(levels[0].item() - 80) < 1e-9
        assert abs(levels[-1].item() - 0.002) < 1e-9
        assert bool((levels.diff() < 0).all())

    def test_between_the_ends_the_roots_are_evenly_spaced(self):
        levels = LevelSchedule(first=5, last=5, rho=3.0).levels()
        roots = levels ** (1 / 3)
        assert torch.allclose(roots.diff(), roots.diff()[0].expand(4), atol=1e-12)

    def test_their_number_doubles_from_first_to_last(self):
        schedule = LevelSchedule(20, 80)
        assert [schedule.count(p) for p in (0.0, 0.3, 0.34, 0.6, 0.67, 1.0)] == [20, 20, 40, 40, 80, 80]
        assert LevelSchedule(20, 50).count(1.0) == 50
        assert LevelSchedule(7, 7).count(0.0) == LevelSchedule(7, 7).count(1.0) == 7
        assert len(schedule.levels(0.5)) == 40

    def test_nearest_is_a_level_and_none_is_nearer(self):
        schedule = LevelSchedule()
        for level in (0.002, 0.37, 1.0, 2.0, 80.0):
            found = schedule.nearest(level)
            assert abs(found - level) == float((schedule.levels() - level).abs().min())

    @pytest.mark.parametrize("settings", [{"first": 1}, {"first": 30, "last": 20}, {"sigma_min": 0.0}, {"rho": -1.0}])
    def test_bad_schedules(self, settings):
        with pytest.raises(InputError):
            LevelSchedule(**settings)

    def test_pixels_in_the_unit_interval_count_double(self):
        assert Units(0.0, 1.0).level(0.5) == 1.0
        assert Units(-1.0, 1.0).level(0.5) == 0.5
        assert Units(0.0, 255.0).level(255 / 4) == 0.5
        assert torch.allclose(Units(0.0, 1.0).inward(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([-1.0, 0.0, 1.0]))


class TestContrast:
    def test_indistinguishable_examples_cost_the_logarithm_of_their_number(self):
        same = torch.ones((7, 4), dtype=torch.float64)
        assert torch.allclose(info_nce(same, same), torch.full((7,), math.log(7.0), dtype=torch.float64))

    @given(st.integers(2, 8), st.floats(0.05, 2.0))
    def test_orthogonal_examples_have_a_known_cost(self, batch, tau):
        own = torch.eye(batch, dtype=torch.float64)
        known = -math.log(math.exp(1 / tau) / (math.exp(1 / tau) + batch - 1))
        assert torch.allclose(info_nce(own, own, tau), torch.full((batch,), known, dtype=torch.float64), atol=1e-9)

    def test_lengths_do_not_matter_and_the_target_gets_no_gradient(self):
        a, b = (torch.randn((5, 3), generator=stream(k), dtype=torch.float64, requires_grad=True) for k in range(2))
        scale = torch.arange(1.0, 6, dtype=torch.float64)[:, None]
        assert torch.allclose(info_nce(a, b), info_nce(a * scale, b / scale))
        info_nce(a, b).sum().backward()
        assert b.grad is None
        assert a.grad.abs().sum() > 0

    def test_one_example_has_no_negatives(self):
        with pytest.raises(InputError, match="negatives"):
            info_nce(torch.ones(1, 3), torch.ones(1, 3))


class TestTerms:
    def test_both_points_of_a_path_share_their_direction_and_the_target_is_the_cleaner(self):
        encoder = Recorder()
        made = NoiseConsistencyPretrainer(encoder, nn.Identity(), nn.Identity(), data_range=(-1.0, 1.0))
        x = torch.rand((8, 5), generator=stream()) - 0.5
        made.terms(x, x, x, stream(1))
        (noisy, high, online), (clean, low, target) = encoder.calls[-2:]
        assert (online, target) == (True, False)
        assert bool((high > low).all())
        levels = LevelSchedule().levels().log().float()
        place = [int((levels - level).abs().argmin()) for level in high]
        assert all(abs(float(levels[p + 1] - level)) < 1e-5 for p, level in zip(place, low))
        directions = []
        for seen, log in ((noisy, high), (clean, low)):
            t = log.exp()[:, None]
            directions.append((seen * (t**2 + 0.25).sqrt() - x) / t)
        # (x + t z - x) / t loses digits where t is small: float32 rounds x + t z to about 1e-7 (|x| + t |z|).
        lost = 1e-6 * (x.abs() + high.exp()[:, None] * directions[0].abs()) / low.exp()[:, None]
        assert bool(((directions[0] - directions[1]).abs() <= 1e-5 + lost).all())
        assert float(directions[0].std()) > 0.5

    def test_the_semantic_views_carry_the_least_noise_and_the_moving_average_is_the_target(self):
        encoder = Recorder()
        made = NoiseConsistencyPretrainer(
            encoder, nn.Identity(), nn.Identity(), data_range=(-1.0, 1.0), consistency_weight=0.0
        )
        x, first, second = (torch.rand((4, 5), generator=stream(k)) - 0.5 for k in range(3))
        made.terms(x, first, second, stream(9))
        assert len(encoder.calls) == 2
        assert [grad for *_, grad in made.target_encoder.calls] == [False, False]
        for seen, view in zip(encoder.calls, (first, second)):
            assert torch.allclose(seen[1].exp(), torch.full((4,), 0.002), rtol=1e-5)
            assert torch.allclose(seen[0] * math.sqrt(0.002**2 + 0.25), view, atol=0.02)

    def test_the_semantic_term_crosses_the_views(self):
        encoder = Recorder()
        made = NoiseConsistencyPretrainer(encoder, nn.Identity(), nn.Identity(), data_range=(-1.0, 1.0))
        x, first, second = (torch.rand((6, 5), generator=stream(k)) - 0.5 for k in range(3))
        semantic = made.terms(x, first, second, stream(3)).semantic
        a, b = (seen[0] + seen[1][:, None] for seen in encoder.calls[:2])
        assert torch.allclose(semantic, info_nce(a, b) + info_nce(b, a), atol=1e-5)
        assert not torch.allclose(semantic, info_nce(a, a) + info_nce(b, b), atol=1e-2)

    def test_no_gradient_reaches_a_target(self):
        made = pretrainer()
        x = torch.rand((8, 6), generator=stream())
        made.loss(x, x, x, stream()).backward()
        assert all(p.grad is None for part in (made.target_encoder, made.target_projector) for p in part.parameters())
        assert made.encoder.stages[0][0].weight.grad.abs().sum() > 0

    def test_the_gradient_is_that_of_the_online_side_alone(self):
        made = pretrainer(consistency_weight=1.0)
        x = torch.rand((8, 6), generator=stream())
        weight = made.projector[0].weight
        (got,) = torch.autograd.grad(made.terms(x, x, x, stream(5)).consistency.mean(), weight)
        frozen = copy.deepcopy(made)
        g = stream(5)
        z = torch.randn(x.shape, generator=g)
        levels = made.levels.levels()
        i = torch.randint(len(levels) - 1, (8,), generator=g)

        def projected(owner, places):
            level = levels[places]
            noisy = made.units.inward(x) + level.float()[:, None] * z
            return owner.projector(owner.units.encode(owner.encoder, noisy, level))

        (wanted,) = torch.autograd.grad(info_nce(projected(made, i), projected(frozen, i + 1)).mean(), weight)
        assert torch.allclose(got, wanted, atol=1e-6)

    def test_weight_zero_is_the_semantic_term_alone(self):
        x = torch.rand((8, 6), generator=stream())
        both, alone = pretrainer(), pretrainer(consistency_weight=0.0)
        assert torch.allclose(both.terms(x, x, x, stream(2)).semantic, alone.terms(x, x, x, stream(2)).semantic)
        assert alone.terms(x, x, x, stream(2)).consistency.abs().sum() == 0

    def test_what_is_refused(self):
        made = pretrainer()
        x = torch.rand((4, 6), generator=stream())
        with pytest.raises(InputError, match="data_range"):
            made.loss(2 * x - 1, x, x)
        with pytest.raises(InputError, match="NaN"):
            made.loss(x, x * float("nan"), x)
        with pytest.raises(InputError, match="negatives"):
            made.loss(x[:1], x[:1], x[:1])
        with pytest.raises(InputError, match="views must have"):
            made.loss(x, x[:3], x)
        with pytest.raises(InputError, match="tau"):
            pretrainer(tau=0.0)
        with pytest.raises(InputError, match="ema"):
            pretrainer(ema=(0.9, 1.0))


class TestMovingAverage:
    def test_one_step_is_the_weighted_mean(self):
        made = pretrainer(ema=(0.75, 0.75))
        before = made.target_encoder.stages[0][0].weight.clone()
        with torch.no_grad():
            made.encoder.stages[0][0].weight.add_(1.0)
        made.update_target()
        assert torch.allclose(made.target_encoder.stages[0][0].weight, before + 0.25, atol=1e-6)

    def test_the_decay_runs_from_the_first_to_the_last(self):
        made = pretrainer()
        decays = [made.decay(p) for p in np.linspace(0, 1, 11)]
        assert decays[0] == 0.99
        assert decays[-1] == pytest.approx(0.9999, abs=2e-6)
        assert all(a < b for a, b in itertools.pairwise(decays))


@pytest.fixture(scope="module")
def digits():
    images, y = load_digits(return_X_y=True)
    return torch.from_numpy(images / 16.0).float(), torch.from_numpy(y)


@pytest.fixture(scope="module")
def trained(digits):
    made = pretrainer(64)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(digits[0][:1400]), 128, shuffle=True, generator=stream(), drop_last=True
    )
    return made.fit(loader, 120, lr=1e-3, generator=stream(1))


class TestFit:
    def test_the_consistency_term_falls(self, trained):
        losses = trained.losses_["consistency"]
        assert losses[-10:].mean() < losses[:10].mean() - 1.0
        assert not trained.training

    def test_views_come_from_the_loader_or_from_the_augmentation_twice(self, digits):
        x = digits[0][:16]
        seen = []

        def darker(batch, generator):
            seen.append(len(batch))
            return batch * 0.5

        pretrainer(64).fit([x], 3, darker, generator=stream())
        assert seen == [16] * 6
        given = pretrainer(64).fit([(x, x * 0.5, x * 0.5)], 3, generator=stream())
        made = pretrainer(64).fit([x], 3, darker, generator=stream())
        assert np.allclose(given.losses_["semantic"], made.losses_["semantic"])

    def test_the_same_seed_gives_the_same_weights(self, digits):
        a, b = (pretrainer(64).fit([digits[0][:32]], 4, generator=stream(3)) for _ in range(2))
        assert torch.equal(a.encoder.stages[0][0].weight, b.encoder.stages[0][0].weight)

    def test_an_encoder_that_ignores_the_level_is_warned_about(self, digits):
        class Deaf(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = perceptron((64, 16), stream())

            def forward(self, x, log_level):
                return self.net(x)

        parts = (perceptron((16, 8), stream()), perceptron((8, 8), stream()))
        with pytest.warns(UserWarning, match="ignore"):
            NoiseConsistencyPretrainer(Deaf(), *parts).fit([digits[0][:8]], 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pretrainer(64).fit([digits[0][:8]], 1)

    def test_what_cannot_be_trained_on(self, digits):
        with pytest.raises(InputError, match="no batch"):
            pretrainer(64).fit(iter([digits[0][:8]]), 2)
        with pytest.raises(InputError, match="drop the labels"):
            pretrainer(64).fit([(digits[0][:8], digits[1][:8])], 1)
        with pytest.raises(InputError, match="smaller lr"):
            pretrainer(64).fit([digits[0][:8]], 200, lr=1e12, generator=stream())

    def test_progress_is_shown(self, digits):
        seen = []
        with showing(lambda items, description, total: seen.append((description, total)) or items):
            pretrainer(64).fit([digits[0][:8]], 2)
        assert seen == [("pre-training along diffusion paths", 2)]


class TestRegularizer:
    def test_the_published_formula_on_fixed_tensors(self):
        logits = torch.randn((3, 5, 4), generator=stream(), dtype=torch.float64)
        p = logits.softmax(2).numpy()
        mean = p.mean(0)
        divergence = np.mean([(mean * np.log(mean / each)).sum(1) for each in p], axis=0)
        entropy = -(mean * np.log(mean)).sum(1)
        wanted = (20 * divergence + 0.5 * entropy).mean()
        assert float(ConsistencyRegularizer(20.0, 0.5)(logits)) == pytest.approx(wanted, abs=1e-12)
        backward = np.mean([(each * np.log(each / mean)).sum(1) for each in p], axis=0)
        wanted = (20 * backward + 0.5 * entropy).mean()
        assert float(ConsistencyRegularizer(20.0, 0.5, "mean")(logits)) == pytest.approx(wanted, abs=1e-12)

    def test_equal_draws_cost_their_entropy_alone(self):
        logits = torch.randn((1, 6, 3), generator=stream(), dtype=torch.float64).expand(4, 6, 3)
        entropy = torch.distributions.Categorical(logits=logits[0]).entropy().mean()
        assert float(ConsistencyRegularizer(10.0, 0.5)(logits)) == pytest.approx(0.5 * entropy.item(), abs=1e-12)

    def test_with_equal_weights_it_is_the_mean_cross_entropy_to_the_mean(self):
        # lam KL(p || p_j) + lam H(p) = lam CE(p, p_j)
        logits = torch.randn((2, 6, 3), generator=stream(), dtype=torch.float64)
        mean = logits.softmax(2).mean(0)
        wanted = -(mean * logits.log_softmax(2)).sum(2).mean()
        assert float(ConsistencyRegularizer(1.0, 1.0)(logits)) == pytest.approx(wanted.item(), abs=1e-12)

    def test_certain_answers_do_not_overflow(self):
        logits = torch.tensor([[[1e4, 0.0]], [[0.0, 1e4]]], requires_grad=True)
        value = ConsistencyRegularizer()(logits)
        value.backward()
        assert bool(torch.isfinite(value))
        assert bool(torch.isfinite(logits.grad).all())

    def test_one_draw_cannot_be_consistent(self):
        with pytest.raises(InputError, match="2 draws"):
            ConsistencyRegularizer()(torch.zeros(1, 2, 3))
        with pytest.raises(InputError, match="lam"):
            ConsistencyRegularizer(-1.0)


class TestConditioning:
    def test_every_layer_but_the_last_hears_the_level(self):
        g = stream()
        plain = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Sequential(nn.Linear(8, 6), nn.ReLU()))
        made = LevelConditioned(plain.append(nn.Linear(6, 2)), 16, g).eval()
        assert [film.channels for film in made.films] == [8, 6]
        assert isinstance(made.stages[0][1], nn.BatchNorm1d)
        x = torch.rand((3, 4), generator=g)
        near, far = (made(x, torch.full((3,), level)) for level in (0.0, 1.0))
        assert near.shape == (3, 2)
        assert not torch.allclose(near, far)

    def test_without_scale_and_shift_it_is_the_plain_module(self):
        plain = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
        made = LevelConditioned(plain, 8, stream())
        for film in made.films:
            nn.init.zeros_(film.project.weight)
        x = torch.rand((5, 1, 4, 4), generator=stream())
        assert torch.allclose(made(x, torch.zeros(5)), plain(x), atol=1e-6)

    def test_levels_belong_to_their_example(self):
        made = LevelConditioned(perceptron((4, 8, 2), stream()), 8, stream(1))
        x = torch.rand((2, 4), generator=stream())
        levels = torch.tensor([0.0, 2.0])
        both = made(x, levels)
        assert torch.allclose(both[1:], made(x[1:], levels[1:]), atol=1e-6)

    def test_sinusoids_lie_on_the_unit_circle_and_tell_neighbouring_levels_apart(self):
        logs = LevelSchedule().levels().log().float()
        waves = sinusoids(logs, 32)
        assert torch.allclose(waves[:, :16] ** 2 + waves[:, 16:] ** 2, torch.ones(80, 16), atol=1e-5)
        assert float((waves[1:] - waves[:-1]).norm(dim=1).min()) > 0.5

    def test_networks_it_cannot_condition(self):
        with pytest.raises(InputError, match="Sequential"):
            LevelConditioned(nn.Linear(3, 3))
        with pytest.raises(InputError, match="at least two"):
            LevelConditioned(nn.Sequential(nn.Linear(3, 3)))
        with pytest.raises(InputError, match="even"):
            LevelConditioned(perceptron((3, 3, 3)), 5)


class TestClassifier:
    def test_it_tells_the_encoder_the_level_of_its_noise_in_the_levels_units(self):
        encoder = Recorder()
        made = NoiseClassifier(encoder, nn.Identity(), 0.5)
        x = torch.rand((3, 2), generator=stream())
        made(x)
        seen, log, _ = encoder.calls[0]
        assert made.level == LevelSchedule().nearest(1.0)
        assert torch.allclose(log.exp(), torch.full((3,), made.level), rtol=1e-5)
        assert torch.allclose(seen, (2 * x - 1) / math.sqrt(made.level**2 + 0.25), atol=1e-6)

    @pytest.mark.parametrize("sigma", [0.0005, 50.0, -1.0])
    def test_noise_beyond_the_levels_is_refused(self, sigma):
        with pytest.raises(InputError, match="outside"):
            NoiseClassifier(Recorder(), nn.Identity(), sigma)

    def test_a_head_on_frozen_features_can_be_trained_and_certified(self, trained, digits):
        x, y = digits
        encoder = copy.deepcopy(trained.encoder).requires_grad_(False)
        before = encoder.stages[0][0].weight.clone()
        made = NoiseClassifier(encoder, perceptron((16, 10), stream()), 0.25)
        losses = train_under_noise(made, x[:1400], y[:1400], 0.25, steps=250, lr=2e-2, generator=stream())
        assert losses[-20:].mean() < losses[:20].mean() - 0.5
        assert torch.equal(encoder.stages[0][0].weight, before)
        certificate = Smoothed(made, 0.25, 10).certify(x[1400:1450], 50, 300, generator=stream())
        assert ((certificate.label == y[1400:1450]) & ~certificate.abstained).double().mean() > 0.4

    def test_consistency_makes_answers_under_two_draws_more_alike(self, digits):
        x, y = digits
        gaps = []
        for regularizer in (None, ConsistencyRegularizer(20.0, 0.0)):
            model = perceptron((64, 32, 10), stream())
            train_under_noise(
                model, x, y, 0.5, steps=200, draws=2, regularizer=regularizer, lr=5e-3, generator=stream(1)
            )
            a, b = (model(x + 0.5 * torch.randn(x.shape, generator=stream(k))).softmax(1) for k in (2, 3))
            gaps.append((a - b).abs().sum(1).mean().item())
        assert gaps[1] < 0.7 * gaps[0]

    def test_layers_far_from_the_output_learn_slower(self):
        made = NoiseClassifier(LevelConditioned(perceptron((4, 3, 2), stream()), 8), nn.Linear(2, 2), 0.5)
        rates = [group["lr"] for group in layerwise_rates(made, 1.0, 0.5)]
        assert rates == [0.5**k for k in reversed(range(len(rates)))]
        assert {id(p) for group in layerwise_rates(made, 1.0, 0.5) for p in group["params"]} == {
            id(p) for p in made.parameters()
        }
        groups = layerwise_rates(made, 1.0, 0.5)
        assert groups[-1]["params"][0] is made.head.weight
        assert groups[0]["lr"] < 1

    def test_plain_noise_training_is_cross_entropy(self):
        model = perceptron((3, 2), stream())
        x, y = torch.rand((5, 3), generator=stream()), torch.tensor([0, 1, 0, 1, 0])
        g = stream(4)
        index = torch.randint(5, (5,), generator=g)
        wanted = F.cross_entropy(model(x[index]), y[index]).item()
        assert train_under_noise(model, x, y, 0.0, steps=1, generator=stream(4))[0] == pytest.approx(wanted, abs=1e-6)

    def test_settings_out_of_range(self):
        x, y = torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)
        model = perceptron((3, 2), stream())
        for settings in ({"sigma": -1.0}, {"sigma": 0.5, "layer_decay": 0.0}, {"sigma": 0.5, "draws": 0}):
            with pytest.raises(InputError):
                train_under_noise(model, x, y, **{"steps": 1, **settings})
        with pytest.raises(InputError, match="unfreeze"):
            train_under_noise(model.requires_grad_(False), x, y, 0.5, steps=1)
