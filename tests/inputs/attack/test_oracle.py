"""Oracle-bounded attacks: what is accepted, generators, and the ratio of accuracies."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.attack.oracle import (
    ConvAutoencoder,
    Identity,
    OracleBoundedAttack,
    PCAGenerator,
    fmr,
    labels_of,
)
from holdfast.threats.balls import Linf


def linear(*weights, bias=0.0):
    """Two classes: 1 where <w, x> + bias > 0."""
    model = nn.Linear(len(weights), 2)
    with torch.no_grad():
        w = torch.tensor([weights], dtype=torch.float32) / 2
        model.weight.copy_(torch.cat([-w, w]))
        model.bias.copy_(torch.tensor([-bias, bias]) / 2)
    return model.eval()


def points(n=60, seed=0):
    return torch.rand((n, 2), generator=torch.Generator().manual_seed(seed))


OBJECT = linear(1.0, -1.0)  # the truth: above or below the diagonal
SUBJECT = linear(1.0, -0.6, bias=-0.2)


def labels(x):
    return labels_of(OBJECT, x)


def test_accepted_images_keep_the_vote_and_raise_the_loss():
    x, y = points(), labels(points())
    attack = OracleBoundedAttack([OBJECT], Identity(), steps=20, step_size=0.02)
    run = attack.run(SUBJECT, x, y)
    assert run.eligible.all()
    assert torch.equal(labels(run.x_adv), y)
    loss = [nn.functional.cross_entropy(SUBJECT(part), y, reduction="none") for part in (x, run.x_adv)]
    assert (loss[1] >= loss[0] - 1e-6).all()
    moved = torch.linalg.vector_norm(run.x_adv - x, dim=1)
    assert (moved <= 0.02 * run.accepted + 1e-5).all()
    assert run.accepted.max() == 20


def test_a_model_among_its_own_oracles_cannot_be_moved_to_an_error():
    x, y = points(), labels(points())
    report = fmr(SUBJECT, x, y, OracleBoundedAttack([OBJECT, SUBJECT], Identity()), resampling=np.random.default_rng(0))
    assert report.fmr.value == 1


def test_examples_without_agreement_are_left_alone():
    x = points()
    y = labels(x)
    wrong = y.clone()
    wrong[:10] = 1 - wrong[:10]
    run = OracleBoundedAttack([OBJECT], Identity(), steps=5).run(SUBJECT, x, wrong)
    assert not run.eligible[:10].any()
    assert torch.equal(run.x_adv[:10], x[:10])
    assert (run.accepted[:10] == 0).all()


def test_majority_goes_further_than_unanimity():
    x, y = points(200), labels(points(200))
    strict = linear(1.0, -1.2, bias=0.05)
    oracles = [OBJECT, OBJECT, strict]
    counts = [
        int(OracleBoundedAttack(oracles, Identity(), step_size=0.05, vote=vote).run(SUBJECT, x, y).accepted.sum())
        for vote in ("all", "majority")
    ]
    assert counts[1] > counts[0]


def test_the_threat_of_pixel_space_is_kept_and_random_directions_need_no_gradient():
    x, y = points(), labels(points())
    attack = OracleBoundedAttack([labels], Identity(Linf(0.03)), mode="random")

    def blind(inputs):
        return SUBJECT(inputs).detach()

    found = attack(blind, x, y, generator=torch.Generator().manual_seed(0))
    assert Linf(0.03).contains(found, x, (0, 1)).all()
    again = attack(blind, x, y, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
    with pytest.raises(InputError, match="mode='random'"):
        OracleBoundedAttack([labels], Identity())(blind, x, y)


def test_the_report_counts_what_it_says():
    x, y = points(300), labels(points(300))
    attack = OracleBoundedAttack([OBJECT], Identity(), steps=30, step_size=0.02)
    report = fmr(SUBJECT, x, y, attack, held_out=OBJECT, resampling=np.random.default_rng(0))
    found = attack(SUBJECT, x, y)
    standard, held = (float((labels_of(SUBJECT, part) == y).double().mean()) for part in (x, found))
    assert report.standard_accuracy.value == pytest.approx(standard)
    assert report.perturbed_accuracy.value == pytest.approx(held)
    assert report.fmr.value == pytest.approx(held / standard)
    assert report.fmr.low < report.fmr.value < report.fmr.high
    assert report.validity.value == 1
    assert report.reconstructed_accuracy.value == report.standard_accuracy.value
    assert report.distance == pytest.approx(float(torch.linalg.vector_norm(found - x, dim=1).mean()))


def test_principal_components_give_back_what_they_span():
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn((3, 16), generator=generator)
    images = (torch.randn((40, 3), generator=generator) @ basis).reshape(40, 1, 4, 4)
    pca = PCAGenerator(3).fit(images)
    torch.testing.assert_close(pca.decode(pca.encode(images)), images, atol=1e-4, rtol=1e-4)
    codes = pca.encode(images)
    torch.testing.assert_close(codes.T @ codes / 40, torch.eye(3), atol=1e-3, rtol=1e-3)


def test_the_autoencoder_keeps_shapes_and_is_named_by_its_generator():
    images = torch.rand((2, 3, 16, 8))
    models = [ConvAutoencoder((3, 16, 8), 5, 4, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert models[0].encode(images).shape == (2, 5)
    torch.testing.assert_close(models[0](images), models[1](images))
    assert models[0](images).shape == images.shape


def test_bad_input_is_told():
    x, y = points(), labels(points())
    with pytest.raises(InputError, match="oracle"):
        OracleBoundedAttack([], Identity())
    with pytest.raises(InputError, match="step"):
        OracleBoundedAttack([OBJECT], Identity(), steps=0)
    with pytest.raises(InputError, match="vote"):
        OracleBoundedAttack([OBJECT], Identity(), vote="any")

    class Squeezed(Identity):
        def decode(self, z):
            return z[:, :1]

    with pytest.raises(InputError, match="same shape"):
        OracleBoundedAttack([OBJECT], Squeezed())(SUBJECT, x, y)

    class Stretched(Identity):
        def decode(self, z):
            return 2 * z - 1

    with pytest.raises(InputError, match="leaves the valid range"):
        OracleBoundedAttack([OBJECT], Stretched())(SUBJECT, x, y)
    OracleBoundedAttack([OBJECT], Stretched(), steps=1)(SUBJECT, x, y, valid=None)
    with pytest.raises(InputError, match="nothing is judged"):
        fmr(SUBJECT, x, 1 - y, OracleBoundedAttack([OBJECT], Identity()), resampling=np.random.default_rng(0))
    with pytest.raises(InputError, match="logits or labels"):
        OracleBoundedAttack([lambda images: images[None]], Identity())(SUBJECT, x, y)
    with pytest.raises(InputError, match="divide by 4"):
        ConvAutoencoder((1, 30, 28), generator=torch.Generator())
    with pytest.raises(InputError, match="components"):
        PCAGenerator(50).fit(torch.rand(20, 16))
