"""The certified probe on models whose robustness is known, against attacks, and without gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from holdfast.audit.probe import Batch, Evidence, Settings
from holdfast.audit.probes import proof_plan
from holdfast.audit.probes.certified import FRACTIONS, CertifiedProbe, Provable, Votes
from holdfast.core.finding import Section
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Region, capture
from holdfast.inputs.bounds.effort import open_entries
from holdfast.subject.data import ArrayInputs, Data
from holdfast.subject.subject import Access, Subject
from holdfast.threats import L0, L2, Corruption, Linf
from holdfast.threats.wording import number

EXAMPLES = 90


class Plane(nn.Module):
    """Two classes divided by a hyperplane through the middle of the range."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack([-score, score], 1)


class Sorting(Plane):
    """The same plane after an operator that has no bounds."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0 * x.sort(dim=1).values)


def plane_subject(kind: type[Plane] = Plane) -> tuple[Subject, np.ndarray]:
    """A subject and each example's distance to the plane in the L-infinity norm; the first 9 labels are wrong."""
    generator = np.random.default_rng(0)
    x = generator.uniform(0.3, 0.7, (EXAMPLES, 12)).astype(np.float32)
    weight = torch.from_numpy(generator.normal(size=12).astype(np.float32))
    model = kind(weight).eval()
    with torch.no_grad():
        y = model(torch.from_numpy(x)).argmax(1).numpy().astype(np.int64)
    distance = np.abs((x - 0.5) @ weight.numpy()) / np.abs(weight.numpy()).sum()
    y[:9] = 1 - y[:9]
    distance[:9] = 0
    subject = Subject(model, Data(ArrayInputs(x), y), class_names=("no", "yes"), valid=(0.0, 1.0), modality="tabular")
    return subject, distance


def drive(subject: Subject, settings: Settings = Settings(), shards: int = 2) -> tuple[object, Evidence, Section]:  # noqa: B008
    probe = CertifiedProbe()
    state = probe.prepare(subject, settings)
    index = np.arange(len(subject.test))
    inputs, labels = subject.test.take(index)
    x, y = subject.tensor(inputs), torch.from_numpy(labels)
    logits = subject.logits(x)
    parts = []
    for k, rows in enumerate(np.array_split(index, shards)):
        generator = torch_generator(settings.seed, "examine", k)
        parts.append(probe.examine(subject, state, Batch(index[rows], x[rows], y[rows], logits[rows], generator)))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    clean = {"index": index, "label": labels, "prediction": logits.argmax(1).numpy(), "logits": logits.numpy()}
    evidence = Evidence(columns, clean)
    return state, evidence, probe.conclude(subject, state, evidence, settings)


def test_a_plane_is_proven_exactly_where_it_is_out_of_reach():
    subject, distance = plane_subject()
    radius = float(np.median(distance))
    state, evidence, section = drive(subject, Settings(threat=Linf(radius)))
    assert isinstance(state, Provable)
    assert state.threat.radius == radius
    away = np.abs(distance - radius) > 1e-6
    assert (evidence["certified"] == (distance > radius))[away].all()
    for place, fraction in enumerate(FRACTIONS):
        assert (evidence["proven"][:, place] == (distance > fraction * radius))[
            np.abs(distance - fraction * radius) > 1e-6
        ].all()
    finding = section.findings[0]
    reached = [fraction for fraction in FRACTIONS[:-1] if (distance > fraction * radius).mean() >= 0.5]
    below_half = evidence["certified"].mean() < 0.5
    assert (f"At least half are proven up to radius {number(reached[-1] * radius)}." in section.answer) == below_half
    x, _ = subject.test.take(np.arange(EXAMPLES))
    weight = subject.model.weight.detach().numpy()
    from_plane = np.abs((x - 0.5) @ weight) / np.abs(weight).sum()  # of the answer, right or wrong
    clear = np.abs(from_plane - radius) > 1e-6
    assert (evidence["abstained"] == (from_plane <= radius))[clear].all()
    assert evidence["abstained"][:9].mean() < 1  # a wrong answer can be proven to stay
    assert finding.key == "certified.accuracy"
    assert finding.headline
    assert finding.estimate.low <= evidence["certified"].mean() <= finding.estimate.high
    assert CertifiedProbe().headline(state, evidence, Settings()) == finding.estimate
    assert Section.from_dict(section.to_dict()) == section


def test_no_random_point_breaks_what_is_proven():
    subject, _ = plane_subject()
    threat = L2(0.15)
    _, evidence, _ = drive(subject, Settings(threat=threat))
    assert 0 < evidence["certified"].sum() < EXAMPLES
    x, y = (torch.from_numpy(part[evidence["certified"]]) for part in subject.test.take(np.arange(EXAMPLES)))
    generator = torch_generator(0, "points")
    for _ in range(50):
        point = threat.random_start(x, subject.valid, generator=generator)
        assert (subject.model(point).argmax(1) == y).all()


def test_pixel_counts_that_round_together_are_one_radius():
    subject, _ = plane_subject()
    state, evidence, _ = drive(subject, Settings(threat=L0(2)))
    assert state.radii == (1.0, 2.0)
    assert state.threat.radius == 2.0
    assert evidence["proven"].shape == (EXAMPLES, 2)


@pytest.mark.parametrize(
    ("subject", "settings", "reason"),
    [
        (replace(plane_subject()[0], access=Access.SCORES), Settings(), "cannot be read"),
        (plane_subject(Sorting)[0], Settings(), "sort"),
        (plane_subject()[0], Settings(threat=Corruption("gaussian_noise", 3)), "Corruption"),
    ],
)
def test_otherwise_the_model_votes(subject, settings, reason):
    state, evidence, section = drive(subject, settings)
    assert isinstance(state, Votes)
    assert reason in state.reason
    assert reason in section.method
    assert (evidence["radius"][evidence["certified"]] >= state.target).all()
    assert not evidence["certified"][:9].any()  # wrong labels
    assert evidence["draws"].mean() < 700
    # A plane's smoothed radius is its distance, in units of the features' spread.
    unit = state.unit.numpy()
    x, _ = subject.test.take(np.arange(EXAMPLES))
    weight = subject.model.weight.detach().numpy()
    distance = np.abs((x - 0.5) @ weight) / np.linalg.norm(weight * unit)
    assert (evidence["radius"] <= distance * 1.02 + 0.01).all()
    assert evidence["certified"][9:][distance[9:] > 2 * state.target].all()
    again = CertifiedProbe().examine(subject, state, _batch(subject))
    assert all(
        np.array_equal(again[name], CertifiedProbe().examine(subject, state, _batch(subject))[name]) for name in again
    )


def _batch(subject: Subject) -> Batch:
    inputs, labels = subject.test.take(np.arange(20))
    x = subject.tensor(inputs)
    return Batch(np.arange(20), x, torch.from_numpy(labels), subject.logits(x), torch_generator(0, "again"))


def test_inputs_outside_the_valid_range_are_still_examined():
    subject, _ = plane_subject()
    _, evidence, _ = drive(replace(subject, valid=(0.4, 0.6)), Settings(threat=Linf(1e-4)))
    assert evidence["certified"][9:].mean() > 0.9


def test_dear_methods_are_tried_where_they_are_affordable_and_prove_more(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    layers = [nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2)]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.4 / fan**0.5)
    subject, _ = plane_subject()
    x, _ = subject.test.take(np.arange(EXAMPLES))
    with torch.no_grad():
        y = model(torch.from_numpy(x)).argmax(1).numpy()
    subject = replace(subject, model=model, test=Data(ArrayInputs(x), y))
    proven = {}
    for budget, methods in ((0.0, 1), (proof_plan.AFFORDABLE, 3)):
        monkeypatch.setattr(proof_plan, "AFFORDABLE", budget)
        state, evidence, section = drive(subject, Settings(threat=Linf(0.3)))
        assert set(state.methods) == {("crown-ibp", "crown", "alpha-crown")[:methods]}
        assert all(proof_plan.PUBLISHED[method] in section.method for method in state.methods[0])
        proven[methods] = evidence["proven"]
    assert (proven[3] | ~proven[1]).all()
    assert proven[3].sum() > proven[1].sum()
    # Dear methods go as far as the work of a radius allows: with what the middle one costs, not to the largest.
    monkeypatch.setattr(proof_plan, "AFFORDABLE", 0.0)
    graph = capture(model, torch.from_numpy(x[:1]))
    effort = [open_entries(graph, Region(torch.from_numpy(x[:8]), t)).float().mean() for t in state.threats]
    assert float(effort[0]) < float(effort[-1])
    monkeypatch.setattr(proof_plan, "AFFORDABLE", 2 * float(effort[-2]) * flops(model, x))
    state, evidence, section = drive(subject, Settings(threat=Linf(0.3)))
    assert state.methods[0][-1] != "crown-ibp"
    assert state.methods[-1] == ("crown-ibp",)
    assert f"CROWN, affordable up to radius {state.radii[-2]:g}" in section.method
    assert (proven[3] | ~evidence["proven"]).all()


def flops(model: nn.Module, x: np.ndarray) -> int:
    """Of one pass over the network."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.from_numpy(x[:1]))
    return counter.get_total_flops()
