"""The smoke check of `lvm-rs` passes, and its baseline counts the same noisy copies."""

import torch

from holdfast.papers.inputs import lvm_rs
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = lvm_rs.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert len(outcome.criteria) == 3


def test_votes_and_margins_see_the_same_copies(monkeypatch):
    seen = []

    def model(x):
        seen.append(x.clone())
        return x[:, :10]

    monkeypatch.setattr(lvm_rs, "_model", lambda seed: (model, torch.rand(1, 12), torch.tensor([3])))
    monkeypatch.setattr(lvm_rs, "DRAWS", 50)
    lvm_rs._trial(1.0, 0)
    votes, margins, hard = seen[:2], seen[2:4], seen[4:]
    assert len(seen) == 6
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(votes, margins, hard, strict=True))
