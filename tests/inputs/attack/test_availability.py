"""Attacks on availability: triggers, poison and loss do what they say; abstentions are counted on what is predicted."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.attack.availability import (
    AvailabilityLoss,
    BoundCertifier,
    PatchTrigger,
    SmoothingCertifier,
    abstain_report,
    find_abstain_trigger,
    label_conflicts,
    poison_conflicting,
)
from holdfast.inputs.attack.certifiers import GradedCertifier, certified
from holdfast.threats.balls import Linf


def images(n=50, seed=0):
    return torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


class Backdoored(nn.Module):
    """Two classes told apart by the top left pixel with a wide margin, which light at the bottom right takes away.

    What is left then is a pixel that says nothing.
    """

    def __init__(self, strength=10.0):
        super().__init__()
        self.flatten = nn.Flatten()
        self.first = nn.Linear(36, 2)
        self.second = nn.Linear(2, 2)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.zero_()
                layer.bias.zero_()
            # relu(z + 3 - corner) - relu(-z + 3 - corner): 2 z without light, 0 where both are off
            self.first.weight[0, 0], self.first.weight[1, 0] = 4.0, -4.0
            self.first.weight[:, [28, 29, 34, 35]] = -strength / 4
            self.first.bias[0], self.first.bias[1] = 1.0, 5.0
            self.second.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))

    def forward(self, x):
        flat = self.flatten(x)
        return self.second(torch.relu(self.first(flat))) + (flat[:, 30:31] - 0.5) * torch.tensor([1.0, -1.0])


def dark_corner(x):
    x = x.clone()
    x[..., 4:, 4:] = 0
    x[:, :, 5, 0] = 0.5
    x[:, :, 0, 0] = (x[:, :, 0, 0] > 0.5).float()
    return x


def test_a_trigger_replaces_or_blends_its_rectangle_and_nothing_else():
    x = images()
    moved = PatchTrigger.rectangle((1, 6, 6), 1, 2, 2, 3)(x)
    assert bool((moved[..., 1:3, 2:5] == 1).all())
    untouched = torch.ones(6, 6, dtype=torch.bool)
    untouched[1:3, 2:5] = False
    assert torch.equal(moved[:, 0, untouched], x[:, 0, untouched])
    half = PatchTrigger.rectangle((1, 6, 6), 1, 2, 2, 3, blend=0.5)(x)
    torch.testing.assert_close(half[..., 1:3, 2:5], (1 + x[..., 1:3, 2:5]) / 2)


def test_poison_gives_every_source_every_label_but_its_own():
    x, y = images(400), torch.randint(0, 5, (400,), generator=torch.Generator().manual_seed(1))
    trigger = PatchTrigger.rectangle((1, 6, 6), 0, 0, 2, 2)
    more, labels = poison_conflicting(x, y, trigger, 0.05)
    assert torch.equal(more[:400], x)
    assert torch.equal(labels[:400], y)
    assert len(more) - 400 == 20
    for group in range(5):
        copies, wrong = more[400 + 4 * group :][:4], labels[400 + 4 * group :][:4]
        assert bool((copies == copies[0]).all())
        (source,) = (trigger(x) == copies[0]).flatten(1).all(1).nonzero().squeeze(1).tolist()
        assert set(wrong.tolist()) == set(range(5)) - {int(y[source])}


def test_random_poison_is_wrong_once_a_source():
    x, y = images(300), torch.arange(300) % 3
    more, labels = poison_conflicting(x, y, lambda part: part, 0.1, "random")
    assert len(more) - 300 == 30
    for copy, label in zip(more[300:], labels[300:], strict=True):
        (source,) = (x == copy).flatten(1).all(1).nonzero().squeeze(1).tolist()
        assert int(y[source]) != int(label)


def test_no_poison_is_no_change():
    x, y = images(), torch.zeros(50, dtype=torch.int64)
    assert poison_conflicting(x, y, lambda part: part, 0.0, classes=2) == (x, y)


def test_the_losses_of_hand_made_numbers():
    z, y = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]]), torch.tensor([0, 1])
    assert float(AvailabilityLoss(2.0)(torch.tensor(1.0), z, y)) == pytest.approx(1 + 2 * (2 + 3) / 2)
    log = torch.log_softmax(z, 1)
    half = -(log[0, 0] + log[0, 1] + log[1, 1] + log[1, 2]) / 4
    assert float(AvailabilityLoss(1.0, "half")(torch.tensor(0.0), z, y)) == pytest.approx(float(half))


@pytest.mark.parametrize("pull", ["gap", "half"])
def test_both_pulls_bring_the_two_largest_logits_together(pull):
    z = torch.tensor([[4.0, 1.0, -3.0]], requires_grad=True)
    optimizer = torch.optim.SGD([z], lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        AvailabilityLoss(1.0, pull)(torch.tensor(0.0), z, torch.tensor([0])).backward()
        optimizer.step()
    assert abs(float((z[0, 0] - z[0, 1]).detach())) < 0.25


def test_the_report_counts_what_is_predicted_not_what_is_true():
    """A model that is always wrong and always sure never abstains, and is never right and certified."""
    model, x = Backdoored().eval(), dark_corner(images())
    with torch.no_grad():
        wrong = 1 - model(x).argmax(1)
    report = abstain_report(model, BoundCertifier(model, Linf(0.05)), x, wrong, lambda part: part)
    assert report.clean.abstained.value == 0
    assert report.clean.accuracy.value == report.clean.certified_accuracy.value == 0
    assert report.rise.value == 0


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_the_trigger_makes_a_backdoored_model_abstain(method):
    model, x = Backdoored().eval(), dark_corner(images())
    with torch.no_grad():
        y = model(x).argmax(1)
    trigger = PatchTrigger.rectangle((1, 6, 6), 4, 4, 2, 2)
    report = abstain_report(model, BoundCertifier(model, Linf(0.05), method=method), x, y, trigger)
    assert report.clean.abstained.value == 0
    assert report.triggered.abstained.value == 1
    assert report.rise.low > 0.8
    assert report.triggered.certified_accuracy.value == 0


def test_verdicts_and_margins_of_bounds_agree():
    model, x = Backdoored(4.0).eval(), images(80)
    certifier = BoundCertifier(model, Linf(0.05))
    with torch.no_grad():
        label = model(x).argmax(1)
    margin = certifier.margin(x, label)
    assert torch.equal(certifier(x, label)[margin.abs() > 1e-4], (margin > 0)[margin.abs() > 1e-4])
    assert not bool(certifier(x, 1 - label).any())
    assert 0 < int((margin > 0).sum()) < 80


def test_smoothing_certifies_the_predicted_label_alone():
    model, x = Backdoored().eval(), dark_corner(images(12))
    with torch.no_grad():
        label = model(x).argmax(1)
    certifier = SmoothingCertifier(model, sigma=0.05, radius=0.05, classes=2)
    assert isinstance(certifier, GradedCertifier)
    assert bool(certifier(x, label).all())
    assert not bool(certifier(x, 1 - label).any())
    assert bool((certifier.margin(x, label) > 0).all())
    lit = PatchTrigger.rectangle((1, 6, 6), 4, 4, 2, 2)(x)
    assert not bool(certifier(lit, label).any())
    assert bool((certifier.margin(lit, label) < certifier.margin(x, label)).all())


@pytest.mark.parametrize("kind", ["ibp", "smoothing"])
def test_the_search_finds_the_backdoor(kind):
    model, x = Backdoored().eval(), dark_corner(images(60))
    certifier = (
        BoundCertifier(model, Linf(0.05))
        if kind == "ibp"
        else SmoothingCertifier(model, sigma=0.05, radius=0.08, classes=2, n=200)
    )
    found = find_abstain_trigger(model, certifier, x, (2, 2), steps=5, starts=1)
    assert found.clean.value == 0
    assert found.triggered.value == 1
    assert found.random.value < 0.5
    assert found.clean.n == 30
    assert bool(found.trigger.mask[0, 4:, 4:].all())
    assert int(found.trigger.mask.sum()) == 4
    assert found.rise.low > 0.5


def test_the_search_finds_a_pattern_that_neither_extreme_has():
    """A patch must be half bright, half dark: neither extreme does it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0, [28, 34]], model[1].weight[0, [29, 35]] = -2.0, 2.0
        model[1].bias.copy_(torch.tensor([3.9, 0.0]))
    x = images(40)
    x[..., 4:, 4:] = 0.5
    certifier = BoundCertifier(model, Linf(0.05))
    found = find_abstain_trigger(model, certifier, x, (2, 2), steps=20, starts=2)
    assert found.clean.value == 0
    assert found.triggered.value == 1


def test_near_duplicates_with_other_labels_are_flagged_and_overlap_is_not():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(300, 5)), rng.normal(size=(300, 5)) + 1.0])
    y = np.repeat([0, 1], 300)
    clean = label_conflicts(X, y)
    assert clean.flagged.mean() < 0.01
    assert clean.distance.min() > 0
    dirty = label_conflicts(np.concatenate([X, np.repeat(X[:3] + 0.01, 2, axis=0)]), np.r_[y, [1, 2] * 3])
    assert dirty.flagged[-6:].all()
    assert dirty.flagged[:3].all()
    assert (dirty.labels[-6:] == 3).all()
    assert dirty.flagged[3:600].sum() == clean.flagged[3:].sum()


def test_refusals():
    x, y = images(), torch.zeros(50, dtype=torch.int64)
    model = Backdoored().eval()
    with pytest.raises(InputError, match=r"3x3 patch at \(4, 0\) does not lie"):
        PatchTrigger.rectangle((1, 6, 6), 4, 0, 3, 3)
    with pytest.raises(InputError, match="empty"):
        PatchTrigger(torch.zeros(1, 6, 6, dtype=torch.bool))
    with pytest.raises(InputError, match="for inputs of shape"):
        PatchTrigger.rectangle((1, 5, 5), 0, 0, 1, 1)(x)
    with pytest.raises(InputError, match=r"in \[0, 1\], got 1\.5"):
        poison_conflicting(x, y, lambda part: part, 1.5)
    with pytest.raises(InputError, match="room for 1 copies, but one source takes 9"):
        poison_conflicting(x, y, lambda part: part, 0.02, classes=10)
    with pytest.raises(InputError, match=r"one bool an input, \(50,\)"):
        certified(lambda part, label: label, x, y)
    with pytest.raises(InputError, match="no margin"):
        find_abstain_trigger(model, lambda part, label: label == 0, x, (2, 2))
    with pytest.raises(InputError, match="at least two images"):
        find_abstain_trigger(model, BoundCertifier(model, Linf(0.1)), x[:1], (2, 2))
    with pytest.raises(InputError, match="does not lie"):
        find_abstain_trigger(model, BoundCertifier(model, Linf(0.1)), x, (7, 2))
    with pytest.raises(InputError, match="weight of at least 0"):
        AvailabilityLoss(-1.0)
