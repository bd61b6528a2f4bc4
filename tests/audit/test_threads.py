"""The number of threads is chosen by measurement, kept on resuming, and given back."""

import json

import torch
from toy_audit import ToyProbe, toy_subject

from holdfast.audit import threads
from holdfast.audit.engine import audit
from holdfast.audit.threads import fastest_threads, use_threads


def test_threads_are_given_back_even_after_an_error():
    before = torch.get_num_threads()
    try:
        with use_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise ValueError
    except ValueError:
        pass
    assert torch.get_num_threads() == before


def test_the_faster_number_is_taken(monkeypatch):
    slow_alone = {1: 1.0, 4: 0.3}
    monkeypatch.setattr(threads, "_pass", lambda *_: slow_alone[torch.get_num_threads()])
    with use_threads(4):
        assert fastest_threads(toy_subject()) == 4
        slow_alone[4] = 0.95
        assert fastest_threads(toy_subject()) == 1


def test_a_resumed_run_keeps_its_number(tmp_path):
    audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe()], limit=32)
    manifest = tmp_path / "run/manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "threads": 3}))
    audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe()], limit=32, resume=True)
    assert json.loads(manifest.read_text())["threads"] == 3
