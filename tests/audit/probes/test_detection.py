"""The probe finds what it should on models whose answer is known, and stays honest where a score is blind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.audit.probe import Batch, Evidence, Probe, Settings
from holdfast.audit.probes.ood import OutOfDistributionProbe
from holdfast.core.finding import Section
from holdfast.core.seeds import torch_generator
from holdfast.inputs.detection.metrics import auroc
from holdfast.subject.data import ArrayInputs, Data
from holdfast.subject.embedded import embedded_subject, embedded_tabular
from holdfast.subject.subject import Access

PROBE = OutOfDistributionProbe()


def audited(subject, limit=None, settings=None):
    """State, evidence and section of a whole run, in shards."""
    settings = settings or Settings()
    state = PROBE.prepare(subject, settings)
    order = np.random.default_rng(0).permutation(len(subject.test))[:limit]
    rows, logits = [], []
    for shard, index in enumerate(np.array_split(order, 3)):
        x, y = subject.test.take(index)
        x = subject.tensor(x)
        logits.append(subject.logits(x))
        batch = Batch(index, x, torch.from_numpy(y), logits[-1], torch_generator(settings.seed, "ood", shard))
        rows.append(PROBE.examine(subject, state, batch))
    columns = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
    z = torch.cat(logits).numpy()
    clean = {"index": order, "label": subject.test.labels[order], "prediction": z.argmax(1), "logits": z}
    evidence = Evidence(columns, clean)
    return state, evidence, PROBE.conclude(subject, state, evidence, settings)


def named(section):
    return {finding.name: finding for finding in section.findings}


@pytest.fixture(scope="module")
def digits():
    return embedded_subject()


@pytest.fixture(scope="module")
def run(digits):
    return audited(digits)


def test_follows_the_protocol(run):
    assert isinstance(PROBE, Probe)
    section = run[2]
    assert section == Section.from_dict(section.to_dict())


def test_digits_are_told_from_noise(run):
    state, evidence, section = run
    assert state.lead == "energy"
    assert state.scores[-1] == "Mahalanobis"
    found = named(section)
    assert found["auroc"].headline
    assert found["auroc"].estimate.low > 0.6
    assert "50% would be blind" in section.answer
    assert 0 <= found["fpr95"].estimate.value <= 1
    assert PROBE.headline(state, evidence, Settings()) == found["auroc"].estimate


def test_headline_agrees_with_the_area_over_all_pairs(run):
    state, evidence, section = run
    areas = [auroc(evidence["typical"][:, 0], evidence["foreign"][:, k, 0]).value for k in range(len(state.kinds))]
    estimate = named(section)["auroc"].estimate
    assert estimate.low <= np.mean(areas) <= estimate.high
    assert abs(estimate.value - np.mean(areas)) < 0.05


def test_evidence_depends_on_the_generator_alone(digits):
    state = PROBE.prepare(digits, Settings())
    index = np.arange(20)
    x, y = (torch.from_numpy(part) for part in digits.test.take(index))
    first, again, another = (
        PROBE.examine(digits, state, Batch(index, x, y, digits.logits(x), torch_generator(seed))) for seed in (1, 1, 2)
    )
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first["foreign"], another["foreign"])


def test_made_images_stay_in_range_and_shuffling_keeps_the_pixels(digits):
    from holdfast.audit.probes.ood import IMAGE_KINDS, _foreign

    state = PROBE.prepare(digits, Settings())
    x, y = (torch.from_numpy(part) for part in digits.test.take(np.arange(30)))
    batch = Batch(np.arange(30), x, y, digits.logits(x), torch_generator(0))
    for kind in IMAGE_KINDS:
        made = _foreign(kind, digits, state, batch)
        assert made.shape == x.shape
        assert made.min() >= 0
        assert made.max() <= 1
        if kind == "shuffled pixels":
            torch.testing.assert_close(made.flatten(1).sort(1).values, x.flatten(1).sort(1).values)
            assert not torch.equal(made, x)


def test_the_same_data_as_other_set_is_not_told_apart(digits):
    subject = replace(digits, other=digits.test)
    _, _, section = audited(subject)
    estimate = named(section)["auroc_other"].estimate
    assert named(section)["auroc_other"].headline
    assert estimate.low <= 0.5 <= estimate.high
    assert any(exhibit.kind == "gallery" for exhibit in section.exhibits)


def test_each_foreign_example_is_used_once(digits):
    few = Data(ArrayInputs(digits.test.inputs.take(np.arange(40))), digits.test.labels[:40])
    _, evidence, section = audited(replace(digits, other=few))
    assert np.isfinite(evidence["other"]).all(1).sum() == 40
    assert named(section)["auroc_other"].estimate.n <= 20


def test_scores_alone_leave_the_feature_detector_out(digits):
    state, evidence, section = audited(replace(digits, access=Access.SCORES), limit=60)
    assert state.scores == ("energy", "max softmax")
    assert evidence["typical"].shape == (60, 2)
    assert "gives scores but not its layers" in section.method


def test_normalised_outputs_are_scored_by_max_softmax(digits):
    logs = nn.Sequential(digits.model, nn.LogSoftmax(1)).eval()
    state, _, section = audited(replace(digits, model=logs, access=Access.SCORES), limit=60)
    assert state.lead == "max softmax"
    assert "max softmax" in section.answer


def test_a_model_that_prefers_noise_is_doubted(digits):
    class Backwards(nn.Module):
        def forward(self, x):
            rough = (x[..., 1:] - x[..., :-1]).abs().flatten(1).mean(1, keepdim=True)
            return 50 * rough * torch.eye(10)[0]

    _, _, section = audited(replace(digits, model=Backwards(), access=Access.SCORES), limit=100)
    assert "score upside down" in [doubt.name for doubt in section.doubts]
    assert named(section)["auroc"].estimate.high < 0.7


def test_a_constant_model_is_doubted(digits):
    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 10)

    _, _, section = audited(replace(digits, model=Constant(), access=Access.SCORES), limit=50)
    assert "constant score" in [doubt.name for doubt in section.doubts]
    assert named(section)["auroc"].estimate.value == 0.5


def test_rows_of_a_table_are_probed_too():
    state, evidence, section = audited(embedded_tabular())
    assert state.kinds == ("shuffled columns", "far away")
    assert evidence["foreign"].shape[1:] == (2, 3)
    detector = next(e for e in section.exhibits if e.kind == "table").rows[-1]
    assert detector[0] == "Mahalanobis"
    assert detector[1].value > 0.9
