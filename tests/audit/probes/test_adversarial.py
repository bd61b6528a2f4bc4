"""The adversarial probe on small models whose robustness is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.audit.probe import Batch, Evidence, Settings
from holdfast.audit.probes.adversarial import AdversarialProbe, doubts, median_radius
from holdfast.audit.probes.attack_plan import make_plan
from holdfast.core.errors import UnsupportedError
from holdfast.core.finding import Section
from holdfast.core.seeds import torch_generator
from holdfast.inputs.attack.gradient import PGD
from holdfast.subject.data import ArrayInputs, Data
from holdfast.subject.subject import Access, Subject
from holdfast.threats import L0, L2, Box, Corruption, Linf, Patch, Translation

EXAMPLES = 160


class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        score = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack([-score, score], 1)


def image_subject(channels=1, access=Access.GRADIENTS, model=None):
    generator = np.random.default_rng(0)
    x = generator.uniform(0.2, 0.8, (EXAMPLES, channels, 6, 6)).astype(np.float32)
    weight = torch.from_numpy(generator.normal(size=channels * 36).astype(np.float32))
    model = Linear(weight) if model is None else model
    with torch.no_grad():
        y = Linear(weight)(torch.from_numpy(x)).argmax(1).numpy().astype(np.int64)
    y[:8] = 1 - y[:8]
    data = Data(ArrayInputs(x), y)
    return Subject(
        model.eval(), data, class_names=("no", "yes"), valid=(0.0, 1.0), access=access, modality="image"
    ), weight


def drive(subject, settings, shards=2):
    probe = AdversarialProbe()
    state = probe.prepare(subject, settings)
    index = np.random.default_rng(1).permutation(EXAMPLES)
    inputs, labels = subject.test.take(index)
    x, y = subject.tensor(inputs), torch.from_numpy(labels)
    logits = subject.logits(x)
    parts = []
    for k, rows in enumerate(np.array_split(np.arange(EXAMPLES), shards)):
        generator = torch_generator(settings.seed, "examine", k)
        parts.append(probe.examine(subject, state, Batch(index[rows], x[rows], y[rows], logits[rows], generator)))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    clean = {"index": index, "label": labels, "prediction": logits.argmax(1).numpy(), "logits": logits.numpy()}
    evidence = Evidence(columns, clean)
    return (
        state,
        evidence,
        probe.conclude(subject, state, evidence, settings),
        probe.headline(state, evidence, settings),
    )


def test_a_linear_model_is_measured_exactly():
    subject, weight = image_subject()
    threat = Linf(0.02)
    _, evidence, section, headline = drive(subject, Settings(threat=threat))
    x, y = subject.test.take(evidence.clean["index"])
    score = (torch.from_numpy(x).flatten(1) - 0.5) @ weight
    reach = (score.abs() / weight.abs().sum()).numpy()
    right = evidence.clean["prediction"] == y
    robust = right & (reach > threat.radius)
    clear = np.abs(reach - threat.radius) > 1e-4
    assert np.array_equal(evidence["robust"][clear], robust[clear])
    assert headline.value == pytest.approx(robust.mean(), abs=0.02)
    # the smallest radius found bounds the true distance from above, closely at the steepest-sign direction
    found = np.isfinite(evidence["radius"])
    assert (evidence["radius"][found] >= reach[found] - 1e-5).all()
    held = evidence["held"]
    assert (held[:, :-1] >= held[:, 1:]).all()
    assert held[:, -1].sum() == 0
    keys = {finding.key: finding for finding in section.findings}
    assert set(keys) == {"adversarial.accuracy", "adversarial.drop", "adversarial.median_radius"}
    assert keys["adversarial.drop"].estimate.value == pytest.approx(evidence["lost"].mean())
    assert keys["adversarial.median_radius"].estimate.low <= np.median(reach[right]) * 1.05
    assert section.doubts == ()
    assert Section.from_dict(section.to_dict()) == section
    assert {exhibit.kind for exhibit in section.exhibits} == {"curve", "table", "gallery"}
    assert all(picture.png and picture.before_png for picture in section.exhibits[2].pictures)


def test_the_same_evidence_comes_out_twice():
    subject, _ = image_subject()
    first, second = (drive(subject, Settings())[1].columns for _ in range(2))
    assert all(np.array_equal(first[name], second[name], equal_nan=first[name].dtype.kind == "f") for name in first)


@pytest.mark.parametrize("access", [Access.SCORES, Access.LABELS])
def test_less_access_breaks_no_more_than_is_breakable(access):
    subject, weight = image_subject(access=access)
    model = subject.model

    class Blind(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                logits = model(x)
            return logits if access == Access.SCORES else nn.functional.one_hot(logits.argmax(1), 2).float()

    _, evidence, section, _ = drive(subject.with_model(Blind().eval()), Settings(threat=Linf(0.05)))
    x, y = subject.test.take(evidence.clean["index"])
    reach = (((torch.from_numpy(x).flatten(1) - 0.5) @ weight).abs() / weight.abs().sum()).numpy()
    assert (reach[evidence["lost"]] <= 0.05 + 1e-5).all()
    assert evidence["lost"].sum() >= 0.5 * ((evidence.clean["prediction"] == y) & (reach < 0.05)).sum()
    assert ("scores" if access == Access.SCORES else "labels") in section.method


def test_masked_gradients_raise_doubts():
    subject, _ = image_subject()
    inner = subject.model

    class Rounded(nn.Module):
        def forward(self, x):
            return inner((x * 64).round() / 64) + 0 * x.sum()

    _, _, section, _ = drive(subject.with_model(Rounded().eval()), Settings(threat=Linf(0.05)))
    names = {doubt.name for doubt in section.doubts}
    assert "zero gradients" in names
    assert "black-box attack beats white-box" in names
    assert all("adversarial.accuracy" in doubt.touches for doubt in section.doubts)


def test_what_noise_or_plain_steps_break_does_not_count_as_robust():
    subject, _ = image_subject()
    probe, settings = AdversarialProbe(), Settings(threat=Linf(0.05))
    state = probe.prepare(subject, settings)
    idle = (("PGD", PGD(Linf(0.05), steps=1, step_size=1e-9, random_start=False)),)
    misled = replace(state, plan=replace(state.plan, stages=tuple(replace(s, attacks=idle) for s in state.plan.stages)))
    index = np.arange(EXAMPLES)
    inputs, labels = subject.test.take(index)
    x, y = subject.tensor(inputs), torch.from_numpy(labels)
    batch = Batch(index, x, y, subject.logits(x), torch_generator(0, "examine", 0))
    rows = probe.examine(subject, misled, batch)
    assert rows["fgsm"].any()
    assert not (rows["robust"] & (rows["fgsm"] | rows["noise"])).any()
    assert np.isfinite(rows["radius"][rows["fgsm"]]).all()
    assert set(rows["broken_by"][rows["lost"]]) <= {1, 2, 3}
    clean = {"index": index, "label": labels, "prediction": batch.logits.argmax(1).numpy()}
    rows["falling"] = rows["robust"] | rows["lost"]
    names = {doubt.name for doubt in doubts(subject, misled, Evidence(rows, clean), settings)}
    assert {"noise beats the whole attack", "more steps do not help"} <= names


def test_a_model_that_answers_at_random_is_attacked_through_averaged_gradients():
    noise = torch.Generator().manual_seed(0)

    class Jittered(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x + 0.02 * torch.randn(x.shape, generator=noise))

    subject, weight = image_subject()
    jittered, _ = image_subject(model=Jittered(Linear(weight)))
    settings = Settings(threat=Linf(0.05))
    plans = [AdversarialProbe().prepare(case, settings).plan for case in (subject, jittered)]
    plain, averaged = ([getattr(a, "eot", 1) for _, a in plan.stages[plan.chosen].attacks] for plan in plans)
    assert set(plain) == {1}
    assert min(averaged) > 1


def test_default_threats_follow_the_data():
    grey, colour = (image_subject(channels)[0] for channels in (1, 3))
    assert make_plan(grey, None).threat == Linf(0.1)
    assert make_plan(colour, None).threat == Linf(8 / 255)
    wide = replace(grey, valid=(0.0, 255.0))
    assert make_plan(wide, None).threat.radius == pytest.approx(25.5)
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * [1.0, 100.0, 0.0]
    table = Subject(grey.model, Data(ArrayInputs(rows.astype(np.float32)), np.zeros(50, np.int64)), modality="tabular")
    plan = make_plan(table, None)
    assert isinstance(plan.threat, Box)
    assert plan.threat.radius == 0.1
    assert plan.threat.high == pytest.approx(rows.std(axis=0), rel=1e-5)
    assert "standard deviation in the test data" in plan.words


@pytest.mark.parametrize("threat", [L2(0.3), L0(3), Patch(2, 2), Translation(1)], ids=repr)
def test_every_family_gives_a_falling_curve(threat):
    subject, _ = image_subject()
    state, evidence, section, _ = drive(subject, Settings(threat=threat), shards=1)
    curve = section.exhibits[0].series[0]
    assert list(curve.x) == sorted(set(curve.x))
    assert list(evidence["held"].mean(0)) == sorted(evidence["held"].mean(0), reverse=True)
    assert state.plan.threat == threat


def test_what_cannot_be_attacked_is_refused():
    subject, _ = image_subject()
    with pytest.raises(UnsupportedError, match="corruption probe"):
        make_plan(subject, Corruption("fog", 2))
    rows = replace(subject, test=Data(ArrayInputs(np.zeros((4, 5), np.float32)), np.zeros(4, np.int64)))
    with pytest.raises(UnsupportedError, match="needs images"):
        make_plan(rows, Patch(2, 2))


def test_the_median_interval_holds_the_median():
    radius = np.random.default_rng(0).permutation(np.linspace(0.01, 1.0, 300))
    estimate = median_radius(radius, 5.0, 0.95)
    assert estimate.low < np.median(radius) < estimate.high
    assert estimate.width < 0.4
    never = median_radius(np.full(50, np.inf), 5.0, 0.95)
    assert (never.value, never.high) == (5.0, 5.0)


def test_a_patch_is_searched_for_place_by_place():
    subject, weight = image_subject()
    state, evidence, section, _ = drive(subject, Settings(threat=Patch(2, 2)), shards=1)
    assert [name for name, _ in state.plan.stages[state.plan.chosen].attacks] == ["patch", "APGD"]
    x = subject.tensor(subject.test.inputs.take(evidence.clean["index"]))
    rows = weight.reshape(1, 1, 1, 6, 6)
    score = (x.flatten(1) - 0.5) @ weight
    sign = 1 - 2 * (score > 0).float()  # an attack pushes the score across zero
    worst = Patch(2, 2).worst(-sign[:, None, None, None, None] * rows, x, (0.0, 1.0))[:, 0]
    breakable = ((score.abs() + worst) < -1e-4).numpy()
    right = evidence["broken_by"] != -2
    assert (evidence["lost"] <= breakable).all()
    assert evidence["lost"].sum() > 0.9 * (breakable & right).sum()
    assert "patch" in section.method


def test_few_pixels_are_searched_by_evolution_where_only_scores_are_seen():
    subject, _ = image_subject()
    by_scores = replace(subject, access=Access.SCORES)
    plan = make_plan(by_scores, L0(3))
    assert {name for stage in plan.stages for name, _ in stage.attacks} == {"few pixels"}
    _, evidence, _, _ = drive(by_scores, Settings(threat=L0(3)), shards=1)
    assert 0 < evidence["lost"].sum() < EXAMPLES
