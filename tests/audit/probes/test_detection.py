"""The probe finds what it should on models whose answer is known, and stays honest where a score is blind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.audit.probe import Batch, Evidence, Probe, Settings
from holdfast.audit.probes.attacked_inputs import ATTACKED_KINDS, hidden_layers
from holdfast.audit.probes.detection import DetectionProbe
from holdfast.audit.probes.detection_scores import LAYER_SCORE
from holdfast.core.finding import Section
from holdfast.core.seeds import torch_generator
from holdfast.inputs.detection.metrics import auroc
from holdfast.subject.data import ArrayInputs, Data
from holdfast.subject.embedded import embedded_subject, embedded_tabular
from holdfast.subject.subject import Access
from holdfast.threats import Linf, Patch

PROBE = DetectionProbe()


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
        batch = Batch(index, x, torch.from_numpy(y), logits[-1], torch_generator(settings.seed, "detection", shard))
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
    assert state.scores == ("energy", "max softmax", "Mahalanobis", LAYER_SCORE)
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
    from holdfast.audit.probes.foreign_inputs import IMAGE_KINDS, foreign_inputs

    state = PROBE.prepare(digits, Settings())
    x, y = (torch.from_numpy(part) for part in digits.test.take(np.arange(30)))
    batch = Batch(np.arange(30), x, y, digits.logits(x), torch_generator(0))
    for kind in IMAGE_KINDS:
        made = foreign_inputs(kind, digits, state.reference, batch)
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
    table = next(e for e in section.exhibits if e.kind == "table")
    assert table.columns[-1] == "Mahalanobis"
    assert table.rows[0][-1].value > 0.9


def test_attacked_digits_are_told_by_layers_that_saw_one_step_attacks(run):
    state, evidence, section = run
    attacked = evidence["attacked"]
    assert attacked.shape[1:] == (len(ATTACKED_KINDS), len(state.scores))
    right = evidence.clean["prediction"] == evidence.clean["label"]
    broken = np.isfinite(attacked).all(axis=2)
    assert not broken[~right].any()
    assert broken[right].mean() > 0.3
    found = named(section)["auroc_attacked"]
    assert not found.headline
    assert found.estimate.low > 0.8
    assert LAYER_SCORE in found.sentence
    assert found.estimate.n <= broken[:, 1].sum() // 2
    table = next(e for e in section.exhibits if e.kind == "table")
    assert set(ATTACKED_KINDS) < {row[0] for row in table.rows}


def test_an_attack_that_stops_early_is_given_away_by_confidence(run):
    state, evidence, _ = run
    confidence = state.scores.index("max softmax")
    areas = []
    for kind in range(2):
        scores = evidence["attacked"][:, kind, confidence]
        areas.append(auroc(evidence["typical"][:, confidence], scores[np.isfinite(scores)]).value)
    assert areas[0] > areas[1]


def test_the_chosen_threat_is_the_attackers(digits):
    loose, tight = (audited(digits, 100, Settings(threat=Linf(eps)))[1]["attacked"] for eps in (0.2, 0.005))
    assert np.isfinite(loose).mean() > np.isfinite(tight).mean()


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        ({"access": Access.SCORES}, Settings(), "No attacked inputs: the model gives no gradients"),
        ({}, Settings(threat=Patch(2, 2)), "is not climbed by gradients"),
        ({"train": None}, Settings(), "no training data were given"),
        ({}, Settings(threat=Linf(1e-6)), "too seldom to learn from"),
    ],
)
def test_what_could_not_be_tried_is_said(digits, change, settings, words):
    state, evidence, section = audited(replace(digits, **change), 60, settings)
    assert words in section.method
    assert LAYER_SCORE not in state.scores
    assert ("attacked" in evidence.columns) == (state.attacker is not None)


def test_layers_are_spread_over_the_depth_and_pooled_by_their_kind(digits):
    x = digits.tensor(digits.test.inputs.take(np.arange(2)))
    deep = nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(9)), nn.Linear(64, 10)).eval()
    layers, pool = hidden_layers(replace(digits, model=deep), x)
    assert layers == ("1", "4", "7", "10")
    layers, pool = hidden_layers(digits, x)
    assert pool == "mean"
    assert layers[0] == "0"

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.read = nn.Linear(8, 16), nn.Linear(16, 10)

        def forward(self, x):
            return self.read(self.embed(x.squeeze(1)).mean(1))

    assert hidden_layers(replace(digits, model=Tokens().eval()), x) == (("embed", "read"), "tokens")
