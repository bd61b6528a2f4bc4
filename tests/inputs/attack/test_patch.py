"""Patches: the optimum on linear models, where they are tried, what they leave alone; learnt patches and few pixels."""

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.attack.few_pixels import FewPixels
from holdfast.inputs.attack.losses import Targeted
from holdfast.inputs.attack.noise import RandomNoise
from holdfast.inputs.attack.patch import LearntPatch, PatchAttack, UniversalPatch
from holdfast.threats import L0, Patch

spec = importlib.util.spec_from_file_location("attack_models", Path(__file__).with_name("models.py"))
models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(models)
Linear, convolutional, images, trained = models.Linear, models.convolutional, models.images, models.trained


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def two_classes(side=6, channels=2, seed=0, bias=5.0):
    """A linear model of two classes, whose worst patch is known, and images it calls class 0."""
    weight = torch.randn(2, channels * side * side, generator=seeded(seed), dtype=torch.float64)
    model = Linear(weight, torch.tensor([bias * side, 0.0], dtype=torch.float64)).eval()
    x = torch.rand(7, channels, side, side, generator=seeded(seed + 1), dtype=torch.float64)
    return model, x, torch.zeros(7, dtype=torch.int64), (weight[1] - weight[0]).reshape(1, channels, side, side)


@pytest.mark.parametrize("locations", ["all", "saliency:40"])
def test_the_worst_patch_of_a_linear_model_is_found_exactly(locations):
    model, x, y, gradient = two_classes()
    threat = Patch(2, 3)
    run = PatchAttack(threat, steps=30, step_size=0.1, locations=locations).run(model, x, y, generator=seeded())
    clean = (model(x)[:, 1] - model(x)[:, 0]).detach()
    best = clean - threat.worst(-gradient[:, None].expand(7, 1, -1, -1, -1), x, (0, 1))[:, 0]
    assert float((best < 0).double().mean()) == 1  # nothing is fooled, so nothing stops early
    if locations == "all":
        torch.testing.assert_close(run.best_loss, best.detach())
    else:
        assert bool((run.best_loss <= best + 1e-9).all())
    found = model(run.x_adv)
    torch.testing.assert_close((found[:, 1] - found[:, 0]).detach(), run.best_loss)


def test_a_patch_at_a_given_place_reaches_its_optimum_and_touches_nothing_else():
    model, x, y, gradient = two_classes()
    places = torch.tensor([[0, 0], [4, 3], [2, 1], [1, 2], [3, 3], [0, 3], [4, 0]])
    attack = PatchAttack(Patch(2, 3), steps=30, step_size=0.1, locations=places)
    found = attack(model, x, y, generator=seeded())
    for image, clean, (top, left) in zip(found, x, places.tolist(), strict=True):
        wanted = clean.clone()
        window = (slice(None), slice(top, top + 2), slice(left, left + 3))
        wanted[window] = (gradient[0][window] > 0).double()
        torch.testing.assert_close(image, wanted)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000), st.sampled_from(["random:2", "saliency:2"]))
@settings(max_examples=15, deadline=None)
def test_patched_images_are_admissible_and_success_is_what_the_model_says(height, width, seed, locations):
    model = convolutional()
    x, y = images(model, seed=seed, batch=6, side=8)
    x = 2 * x - 1
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    threat = Patch(height, width)
    run = PatchAttack(threat, steps=4, step_size=0.3, locations=locations).run(
        model, x, y, valid=(-1, 1), generator=seeded(seed)
    )
    assert bool(threat.contains(run.x_adv, x, (-1, 1)).all())
    assert torch.equal(run.success, (model(run.x_adv).argmax(1) != y) & (model(x).argmax(1) == y))
    assert torch.equal(run.x_adv[0], x[0])
    assert run.queries[0] == 0


def test_salient_places_do_not_crowd_and_the_first_holds_the_largest_gradient():
    model, x, y, gradient = two_classes(side=9)
    attack = PatchAttack(Patch(3, 3), steps=1, locations="saliency:5")
    tried = []

    class Spy(PatchAttack):
        def _climb(self, search, rows, places, generator):
            tried.append(places)

    Spy(**vars(attack)).run(model, x, y, generator=seeded())
    sums = Patch(3, 3).window_sums(gradient.abs().sum(1))[0]
    assert tried[0][0].tolist() == [int(sums.argmax()) // 7, int(sums.argmax()) % 7]
    corners = torch.stack(tried, 1)[0]
    gaps = (corners[:, None] - corners).abs().amax(2) + 9 * torch.eye(len(corners))
    assert float(gaps.min()) >= 2


def test_more_places_and_restarts_never_lose_and_a_patch_of_the_whole_image_wins():
    model, x, y = trained()
    x, y = x[:60], y[:60]
    few, many = (
        PatchAttack(Patch(3, 3), steps=15, step_size=0.2, locations=f"saliency:{k}").run(
            model, x, y, generator=seeded()
        )
        for k in (1, 4)
    )
    assert int(many.success.sum()) > int(few.success.sum())
    assert bool((many.success | ~few.success).all())
    right = model(x).argmax(1) == y
    everything = PatchAttack(Patch(8, 8), steps=20, step_size=0.2, locations="all").run(model, x, y, generator=seeded())
    assert torch.equal(everything.success, right)


def test_a_target_is_reached_exactly():
    model, x, y = trained()
    x, y = x[:40], y[:40]
    target = (y + 1) % 10
    run = PatchAttack(Patch(5, 5), steps=30, step_size=0.1, locations="saliency:3").run(
        model, x, y, goal=Targeted(target), generator=seeded()
    )
    assert int(run.success.sum()) > 10
    assert torch.equal(model(run.x_adv).argmax(1)[run.success], target[run.success])


def test_a_patch_attack_beats_random_patches():
    model, x, y = trained()
    given = {"generator": seeded()}
    found = PatchAttack(Patch(3, 3), steps=20, step_size=0.1).run(model, x[:80], y[:80], **given).success
    random = RandomNoise(Patch(3, 3), draws=60).run(model, x[:80], y[:80], **given).success
    assert int(found.sum()) > int(random.sum()) + 10


def test_bad_input_is_told():
    model, x, y = trained()
    with pytest.raises(InputError, match="does not fit"):
        PatchAttack(Patch(9, 2)).run(model, x[:2], y[:2])
    for bad in ("best", "saliency", "saliency:0", "random:-1"):
        with pytest.raises(InputError, match="unknown locations"):
            PatchAttack(Patch(2, 2), locations=bad)
    for bad in ({"steps": 0}, {"restarts": 0}, {"step_size": 0.0}, {"eot": 0}):
        with pytest.raises(InputError, match="patch attack needs"):
            PatchAttack(Patch(2, 2), **bad)
    with pytest.raises(InputError, match="leaves images"):
        PatchAttack(Patch(2, 2), locations=torch.tensor([[0, 0], [7, 0]])).run(model, x[:2], y[:2])
    with pytest.raises(InputError, match=r"shape \(2, 2\)"):
        PatchAttack(Patch(2, 2), locations=torch.tensor([[0, 0]])).run(model, x[:2], y[:2])
    with pytest.raises(InputError, match="valid range"):
        PatchAttack(Patch(2, 2)).run(model, x[:2], y[:2], valid=None)


def test_a_stamp_copies_the_patch_turns_it_and_scales_it():
    values = torch.rand(2, 3, 4, generator=seeded())
    x = torch.zeros(1, 2, 10, 12)
    patch = LearntPatch(values)
    plain = patch.stamp(x, torch.tensor([[2 + 1.5, 5 + 2.0]]))
    wanted = x.clone()
    wanted[0, :, 2:5, 5:9] = values
    torch.testing.assert_close(plain, wanted, atol=1e-6, rtol=0)
    half_turn = patch.stamp(x, torch.tensor([[3.5, 7.0]]), degrees=torch.tensor([180.0]))
    wanted[0, :, 2:5, 5:9] = values.flip(1, 2)
    torch.testing.assert_close(half_turn, wanted, atol=1e-5, rtol=0)
    ones = LearntPatch(torch.ones(2, 3, 4))
    double = ones.stamp(x, torch.tensor([[5.0, 6.0]]), scale=torch.tensor([2.0]))
    assert int(double[0, 0].sum()) == 48
    turned = ones.stamp(x, torch.tensor([[5.5, 6.5]]), degrees=torch.tensor([90.0]))[0, 0]
    rows, columns = turned.nonzero(as_tuple=True)
    assert (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) in ((4, 3), (5, 3), (3, 3))


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_scattered_patch_stays_in_the_image_and_in_its_range(seed):
    patch = LearntPatch(torch.rand(1, 4, 4, generator=seeded(seed)))
    x = torch.full((5, 1, 12, 12), -1.0)
    made = patch.scattered(x, generator=seeded(seed))
    changed = made != x
    assert bool((made[changed] >= float(patch.values.min()) - 1e-5).all())
    assert bool((made[changed] <= float(patch.values.max()) + 1e-5).all())
    area = changed.flatten(1).sum(1)
    assert bool(((area >= 6) & (area <= 32)).all())


def test_a_universal_patch_fools_images_it_was_not_learnt_on_more_than_noise_does():
    model, x, y = trained()
    learn = UniversalPatch(Patch(4, 4), steps=60)
    patch = learn.learn(model, x[:100], y[:100], generator=seeded())
    noise = LearntPatch(torch.rand(1, 4, 4, generator=seeded(1)))
    rate = [
        float((model(p.scattered(x[100:], generator=seeded(2))).argmax(1) != y[100:]).double().mean())
        for p in (patch, noise)
    ]
    assert rate[0] > rate[1] + 0.1
    assert 0 <= float(patch.values.min()) <= float(patch.values.max()) <= 1
    again = learn.learn(model, x[:100], y[:100], generator=seeded())
    assert torch.equal(again.values, patch.values)
    target = torch.full_like(y, 3)
    pulled = learn.learn(model, x[:100], y[:100], goal=Targeted(target[:100]), generator=seeded())
    said = [(model(p.scattered(x[100:], generator=seeded(2))).argmax(1) == 3).double().mean() for p in (pulled, noise)]
    assert said[0] > said[1] + 0.1


def test_a_learnt_patch_is_a_trigger_at_a_fixed_place():
    patch = LearntPatch(torch.rand(1, 2, 3, generator=seeded()))
    x = torch.rand(4, 1, 8, 8, generator=seeded(1))
    fixed = patch.trigger((1, 8, 8), top=1, left=4)(x)
    torch.testing.assert_close(fixed, patch.stamp(x, torch.tensor([[2.0, 5.5]]).expand(4, -1)), atol=1e-6, rtol=0)


def test_targets_of_universal_patches_may_be_whole_numbers_of_any_type():
    model, x, y = models.trained()
    learn, target = UniversalPatch(Patch(2, 2), steps=3), torch.ones_like(y)
    wide, narrow = (
        learn.learn(model, x, y, goal=Targeted(goal), generator=seeded()) for goal in (target, target.int())
    )
    assert torch.equal(wide.values, narrow.values)


def test_universal_patches_refuse_what_they_cannot_learn():
    model, x, y = trained()
    with pytest.raises(InputError, match="scale"):
        UniversalPatch(Patch(2, 2), scale=(1.2, 0.8))
    with pytest.raises(InputError, match="at least 1"):
        UniversalPatch(Patch(2, 2), steps=0)
    with pytest.raises(InputError, match="does not fit"):
        UniversalPatch(Patch(9, 9)).learn(model, x, y)
    with pytest.raises(InputError, match="no image"):
        UniversalPatch(Patch(2, 2)).learn(model, x[:0], y[:0])


def test_few_pixels_find_the_best_pixel_of_a_linear_model():
    model, x, y, gradient = two_classes(side=5, channels=1)
    run = FewPixels(L0(1), population=60, generations=25).run(model, x, y, generator=seeded())
    gain = torch.maximum(gradient * (1 - x), -gradient * x).flatten(1).amax(1)
    best = (model(x)[:, 1] - model(x)[:, 0]).detach() + gain
    assert float((best - run.best_loss).max()) < 1e-6
    assert bool(L0(1).contains(run.x_adv, x, (0, 1)).all())
    assert run.queries.tolist() == [60 * 26 + 1] * 7


def test_more_pixels_fool_more_and_without_gradients():
    model, x, y = trained()
    x, y = x[:30], y[:30]

    def scores(points):
        with torch.no_grad():
            return model(points)

    rates = [
        int(FewPixels(L0(k), population=40, generations=15).run(scores, x, y, generator=seeded()).success.sum())
        for k in (1, 4, 8)
    ]
    assert rates[0] < rates[1] < rates[2]


def test_every_child_has_three_other_parents():
    members = 5
    values = 10.0 ** torch.arange(members, dtype=torch.float64)
    candidates = values.reshape(1, members, 1, 1).expand(200, -1, -1, -1) / 10**members
    children = FewPixels(L0(1), population=members, factor=0.5)._children(candidates, seeded())
    scaled = (children * 10**members).reshape(200, members)
    wanted = {}
    for own in range(members):
        others = [k for k in range(members) if k != own]
        wanted[own] = sorted(
            {
                max(0.0, float(values[a] + 0.5 * (values[b] - values[c])))
                for a in others
                for b in others
                for c in others
                if len({a, b, c}) == 3
            }
        )
        found = sorted({round(value, 3) for value in scaled[:, own].tolist()})
        assert set(found) <= {round(value, 3) for value in wanted[own]}
        assert len(found) > len(set(wanted[own])) * 0.9


def test_few_pixels_on_rows_of_features_and_bad_numbers():
    model, x, y = trained()
    run = FewPixels(L0(9), population=30, generations=5).run(model, x[:8].flatten(1), y[:8], generator=seeded())
    assert bool(L0(9).contains(run.x_adv, x[:8].flatten(1), (0, 1)).all())
    with pytest.raises(InputError, match="population"):
        FewPixels(L0(1), population=3)


def test_both_classes_of_attack_refuse_a_model_in_training_mode():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).train()
    x, y = torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    for attack in (PatchAttack(Patch(1, 1)), FewPixels(L0(1))):
        with pytest.raises(InputError, match="training mode"):
            attack.run(model, x, y)
