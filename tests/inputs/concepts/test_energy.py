"""The energy model: parts add up, corrections hold, inference agrees with brute force, training learns."""

from itertools import product

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.concepts import ConceptBottleneck, EnergyConceptClassifier, EnergyConceptModel
from holdfast.inputs.concepts.classifier import train


def model_of(concepts=3, classes=4, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    return EnergyConceptModel(nn.Identity(), 5, concepts, classes, 12, generator=generator, **settings).double().eval()


def inputs(n=7, seed=1):
    return torch.randn((n, 5), generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("normalised", [False, True])
def test_the_table_holds_the_joint_energy_of_every_state(normalised):
    model, x = model_of(concept_weight=0.7, consistency_weight=0.3, normalised=normalised), inputs()
    energies, table = model.energies(x), model.table(x).log_weights
    for index, c in enumerate(product((0, 1), repeat=3)):
        for y in range(4):
            wanted = model.joint_energy(energies, torch.tensor([c] * 7), torch.full((7,), y))
            torch.testing.assert_close(-table[:, index, y], wanted.detach())


@pytest.mark.parametrize("normalised", [False, True])
def test_relaxed_energy_at_a_corner_is_the_joint_energy(normalised):
    model, x = model_of(consistency_weight=0.5, normalised=normalised), inputs()
    c, y = torch.tensor([[1, 0, 1]] * 7), torch.tensor([3] * 7)
    one_hot = nn.functional.one_hot(c, 2).double(), nn.functional.one_hot(y, 4).double()
    relaxed = model.relaxed_energy(model.projections(x), *one_hot)
    torch.testing.assert_close(relaxed, model.joint_energy(model.energies(x), c, y))


def test_the_likeliest_state_has_the_least_energy_and_descent_never_beats_it():
    for seed in range(3):
        model, x = model_of(seed=seed), inputs(40)
        exact, descended = model.infer(x), model.infer(x, method="gradient")
        torch.testing.assert_close(exact.energy, -model.table(x).log_weights.flatten(1).max(1).values)
        assert (descended.energy >= exact.energy - 1e-9).all()
        torch.testing.assert_close(
            descended.energy, model.joint_energy(model.energies(x), descended.state, descended.label).detach()
        )
        assert (descended.energy - exact.energy).median() < exact.energy.std()


@pytest.mark.parametrize("method", ["exact", "gradient"])
def test_what_is_known_stays(method):
    model, x = model_of(), inputs()
    truth = torch.tensor([0, 1, 0, 1, 1, 0, 1])
    found = model.infer(x, {0: 1, 2: truth}, method=method)
    assert (found.concept_probs[:, 0] == 1).all()
    assert torch.equal(found.concept_probs[:, 2], truth.double())
    assert torch.equal(found.state[:, [0, 2]], torch.stack([torch.ones(7).long(), truth], 1))


def test_corrections_condition_the_joint_distribution():
    model, x = model_of(), inputs()
    corrected = model.infer(x, {1: 1})
    torch.testing.assert_close(corrected.concept_probs[:, 0], model.conditional({0: 1}, {1: 1}, x))
    torch.testing.assert_close(corrected.class_probs[:, 2], model.conditional({"class": 2}, {1: 1}, x))


def test_without_an_input_only_the_last_part_counts():
    model = model_of(consistency_weight=0.4)
    p = torch.stack([model.conditional({"class": y}, {0: 1}) for y in range(4)])
    assert p.shape == (4, 1)
    torch.testing.assert_close(p.sum(), torch.tensor(1.0).double())
    flat = EnergyConceptModel(nn.Identity(), 5, 3, 4, consistency_weight=0.0)
    torch.testing.assert_close(flat.conditional({1: 1}, {"class": 0}), torch.tensor([0.5]).double())


def test_normalised_consistency_says_nothing_about_the_concepts_alone():
    model = model_of(normalised=True)
    torch.testing.assert_close(model.conditional({0: 1}, {2: 1}), torch.tensor([0.5]).double())


def test_without_coupling_corrections_do_not_spread():
    model, x = model_of(consistency_weight=0.0), inputs()
    before, after = model.infer(x), model.infer(x, {0: 1})
    torch.testing.assert_close(after.concept_probs[:, 1:], before.concept_probs[:, 1:])
    torch.testing.assert_close(after.class_probs, before.class_probs)


def test_inference_does_not_depend_on_mode_or_on_batch_mates():
    model, x = model_of(), inputs(6)
    for method in ("exact", "gradient"):
        together = model.infer(x, method=method)
        model.train()
        alone = model.infer(x[2:3], method=method)
        assert model.training
        model.eval()
        # mates only decide how long descent goes on
        torch.testing.assert_close(alone.energy[0], together.energy[2])
        torch.testing.assert_close(alone.class_probs[0], together.class_probs[2], atol=1e-2, rtol=0)


def trained():
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(3, (400,), generator=generator)
    c = torch.tensor([[0, 1, 1], [1, 0, 1], [1, 1, 0]])[y]
    x = torch.nn.functional.one_hot(y, 5).float() + 0.5 * torch.randn((400, 5), generator=generator)
    return x, c, y, generator


def test_training_learns_and_likelihood_chooses_the_weight():
    x, c, y, generator = trained()
    energy = EnergyConceptModel(nn.Identity(), 5, 3, 3, 16, generator=generator, normalised=True)
    bottleneck = ConceptBottleneck(nn.Identity(), 5, 3, 3, generator=generator)
    for model in (energy, bottleneck):
        train(model, x[:300], c[:300], y[:300], generator, epochs=30, step=2e-2)
        found = model.infer(x[300:])
        assert (found.class_probs.argmax(1) == y[300:]).double().mean() > 0.6
        assert (found.state == c[300:]).double().mean() > 0.7
        assert (model.infer(x[300:], c[300:]).class_probs.argmax(1) == y[300:]).double().mean() > 0.9
    chosen = energy.tune_consistency(x[300:], c[300:], y[300:], (1.0, 0.1))
    of_chosen = energy.log_likelihood(x[300:], c[300:], y[300:]).mean()
    energy.consistency_weight = 1.1 - chosen
    assert energy.log_likelihood(x[300:], c[300:], y[300:]).mean() <= of_chosen
    weights = energy.table(x[:2]).log_weights.flatten(1).log_softmax(1).reshape(2, 8, 3)
    place = (c[:2] * torch.tensor([4, 2, 1])).sum(1)
    torch.testing.assert_close(energy.log_likelihood(x[:2], c[:2], y[:2]), weights[torch.arange(2), place, y[:2]])


def test_corrections_leave_the_other_concepts_of_a_bottleneck_alone():
    x, c, _, generator = trained()
    model = ConceptBottleneck(nn.Identity(), 5, 3, 3, generator=generator)
    before, after = model.infer(x), model.infer(x, {0: c[:, 0]})
    assert torch.equal(before.concept_probs[:, 1:], after.concept_probs[:, 1:])
    assert torch.equal(after.state[:, 0], c[:, 0])


def test_dropout_and_flips_follow_the_generator():
    x, c, y, _ = trained()
    model = EnergyConceptModel(nn.Identity(), 5, 3, 3, generator=torch.Generator().manual_seed(0)).train()
    losses = [model.loss(x, c, y, generator=torch.Generator().manual_seed(seed)).item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    model.eval()
    assert model.loss(x, c, y, flipped=0.0).item() == model.loss(x, c, y, flipped=0.0).item()


def test_the_table_estimator_is_a_scikit_learn_classifier():
    check_estimator(EnergyConceptClassifier(hidden=8, epochs=5, batch=50, step=5e-2))


def test_the_table_estimator_takes_concepts_and_corrections():
    x, c, y, _ = trained()
    names = np.array(["a", "b", "c"])[y.numpy()]
    model = EnergyConceptClassifier(hidden=16, epochs=20, step=1e-2).fit(x.numpy()[:300], names[:300], c.numpy()[:300])
    assert (model.predict(x.numpy()[300:]) == names[300:]).mean() > 0.6
    assert (model.predict_concepts(x.numpy()[300:]) == c.numpy()[300:]).mean() > 0.7
    known = model.infer(x.numpy()[300:], {0: c[300:, 0]})
    torch.testing.assert_close(known.concept_probs[:, 0], c[300:, 0].double())
    for bad in (c.numpy()[:10], c.numpy()[:300] * 2, c.numpy()[:300, 0]):
        with pytest.raises(InputError):
            EnergyConceptClassifier().fit(x.numpy()[:300], names[:300], bad)


def test_too_many_concepts_need_descent():
    model = model_of(concepts=15)
    with pytest.raises(UnsupportedError, match="gradient"):
        model.infer(inputs())
    assert model.infer(inputs(), {3: 1}, method="gradient").concept_probs.shape == (7, 15)


@pytest.mark.parametrize(
    ("c", "y"),
    [
        (torch.full((7, 3), 2), torch.zeros(7)),
        (torch.zeros((7, 2)), torch.zeros(7)),
        (torch.zeros((7, 3)), torch.full((7,), 4)),
    ],
)
def test_labels_are_checked(c, y):
    for model in (model_of(), ConceptBottleneck(nn.Identity(), 5, 3, 4).double()):
        with pytest.raises(InputError):
            model.loss(inputs(), c.long(), y.long())


@pytest.mark.parametrize(
    "settings", [{"dropout": 1.0}, {"concept_weight": -1.0}, {"hidden": 0}, {"classes": 1}, {"features": 0}]
)
def test_settings_are_checked(settings):
    with pytest.raises(InputError):
        EnergyConceptModel(nn.Identity(), **{"features": 5, "concepts": 3, "classes": 4, **settings})


def test_unknown_methods_are_refused():
    with pytest.raises(InputError, match="exact"):
        model_of().infer(inputs(), method="sampling")
