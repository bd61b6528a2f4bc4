"""The audit stops cleanly at any moment, resumes to the same answer, and never mixes runs."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_audit import EXAMPLES, BrokenProbe, ToyProbe, toy_subject

from holdfast.audit import predictions
from holdfast.audit.engine import audit
from holdfast.audit.observer import Silent
from holdfast.audit.probe import Needs, Settings
from holdfast.core.errors import InputError, ResumeError, StorageError, UnsupportedError
from holdfast.store.files import Folder
from holdfast.store.shards import read_evidence
from holdfast.subject.subject import Access

TOY = Path(__file__).with_name("toy_audit.py")


def findings(folder):
    """What a run found, without how long it took."""
    content = json.loads((Path(folder) / "findings.json").read_text())
    for section in content["sections"]:
        del section["seconds"]
    return content


def test_every_example_is_examined_once_and_the_answer_is_exact(tmp_path):
    run = audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe()], settings=Settings(seed=3))
    evidence = read_evidence(Folder(str(tmp_path / "run")), "toy")
    assert sorted(evidence["index"].tolist()) == list(range(EXAMPLES))
    assert run.finding("toy.accuracy").estimate.value == pytest.approx(evidence["held"].mean())
    assert run.sections[0].status == "complete"
    assert run.manifest["status"] == "complete"


def test_clean_predictions_are_the_models_own(tmp_path):
    subject = toy_subject()
    audit(subject, out=tmp_path / "run", probes=[ToyProbe()])
    clean = read_evidence(Folder(str(tmp_path / "run")), "clean")
    x, y = subject.test.take(clean["index"])
    np.testing.assert_array_equal(clean["prediction"], subject.logits(torch.from_numpy(x)).argmax(1).numpy())
    np.testing.assert_array_equal(clean["label"], y)


@pytest.mark.parametrize(("engine", "workers"), [("threading", 3), ("loky", 2)])
def test_workers_do_not_change_the_findings(tmp_path, engine, workers):
    settings = Settings(seed=1, precision=0.12)
    audit(toy_subject(), out=tmp_path / "one", probes=[ToyProbe()], settings=settings)
    audit(toy_subject(), out=tmp_path / "many", probes=[ToyProbe()], settings=settings, engine=engine, workers=workers)
    assert findings(tmp_path / "one") == findings(tmp_path / "many")


def test_precision_stops_a_probe_as_soon_as_its_interval_is_narrow_enough(tmp_path):
    run = audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe()], settings=Settings(precision=0.07))
    section = run.sections[0]
    assert section.status == "complete"
    assert section.examined < EXAMPLES
    assert run.finding("toy.accuracy").estimate.width <= 0.14
    run = audit(toy_subject(), out=tmp_path / "less", probes=[ToyProbe()], limit=section.examined - 16)
    assert run.finding("toy.accuracy").estimate.width > 0.14


def test_the_time_budget_ends_the_run_with_a_valid_partial_report(tmp_path):
    run = audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe(delay=0.15)], minutes=1.2 / 60)
    section = run.sections[0]
    assert section.status == "partial"
    assert 0 < section.examined < EXAMPLES
    assert "time budget" in run.manifest["stopped_because"]
    done = audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe()], resume=True)
    whole = audit(toy_subject(), out=tmp_path / "whole", probes=[ToyProbe()])
    assert done.sections == whole.sections


def test_slow_predictions_leave_half_the_time_to_the_probes_and_resume_to_the_same_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "SHARD", 24)
    with monkeypatch.context() as slow:
        slow.setattr("holdfast.audit.engine._Clock.past_half", lambda clock: True)
        run = audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe()], minutes=5.0)
    section = run.sections[0]
    assert (section.status, section.examined, section.available) == ("partial", 24, EXAMPLES)
    assert "predictions of 24 of 240" in run.manifest["stopped_because"]
    # The second shard of 16 holds 8 rows now and must be examined again.
    done = audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe()], resume=True)
    whole = audit(toy_subject(), out=tmp_path / "whole", probes=[ToyProbe()])
    assert findings(tmp_path / "run") == findings(tmp_path / "whole")
    assert done.sections[0].status == whole.sections[0].status == "complete"


class Interrupting(Silent):
    """Presses Ctrl-C after the third shard."""

    def __init__(self):
        self.shards = 0

    def progressed(self, probe, examined, available, headline):
        self.shards += 1
        if self.shards == 4:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)


def test_ctrl_c_ends_cleanly_and_resumes(tmp_path):
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with Ctrl-C ignored
    try:
        run = audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe()], observer=Interrupting())
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert run.manifest["stopped_because"] == "interrupted by the user"
    assert run.sections[0].examined == 3 * 16
    assert findings(tmp_path / "run")["sections"][0]["status"] == "partial"
    done = audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe()], resume=True)
    whole = audit(toy_subject(), out=tmp_path / "whole", probes=[ToyProbe()])
    assert done.sections == whole.sections


@pytest.mark.slow
def test_kill_nine_at_twenty_random_moments_loses_nothing(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out, delay, *more):
        command = [sys.executable, str(TOY), str(out), str(delay), *more]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    undisturbed = tmp_path / "undisturbed"
    process = start(undisturbed, 0)
    assert process.communicate(timeout=120)[0] == "finished\n"
    moments = random.Random(2)
    out, kills, finished = tmp_path / "killed", 0, 0
    attempt = 0
    while kills < 20:
        attempt += 1
        folder = out / str(finished)
        process = start(folder, 0.02, *(["--resume"] if (folder / "manifest.json").exists() else []))
        # wait until the run folder is being written, then strike at a random moment of the work
        began = time.monotonic()
        while not (folder / "evidence").exists() and process.poll() is None and time.monotonic() - began < 60:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.6))
        process.kill()
        printed = process.communicate()[0]
        if printed == "finished\n":
            assert findings(folder) == findings(undisturbed)
            finished += 1
        else:
            kills += 1
    process = start(out / str(finished), 0, *(["--resume"] if (out / str(finished) / "manifest.json").exists() else []))
    assert process.communicate(timeout=120)[0] == "finished\n"
    assert findings(out / str(finished)) == findings(undisturbed)
    assert not list(out.rglob("*.tmp"))


def test_a_changed_model_data_or_setting_refuses_to_resume(tmp_path):
    audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe()], settings=Settings(seed=1))
    before = sorted(path.read_bytes() for path in (tmp_path / "run").rglob("*.parquet"))
    for subject, settings, word in [
        (toy_subject(shift=0.5), Settings(seed=1), "subject"),
        (toy_subject(examples=100), Settings(seed=1), "subject"),
        (toy_subject(), Settings(seed=2), "seed"),
    ]:
        with pytest.raises(ResumeError, match=rf"cannot resume.*{word} was"):
            audit(subject, out=tmp_path / "run", probes=[ToyProbe()], settings=settings, resume=True)
    assert sorted(path.read_bytes() for path in (tmp_path / "run").rglob("*.parquet")) == before


def test_an_existing_run_is_not_overwritten_and_a_missing_one_not_resumed(tmp_path):
    audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe()])
    with pytest.raises(ResumeError, match="already holds a run"):
        audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe()])
    with pytest.raises(ResumeError, match="no run to resume"):
        audit(toy_subject(), out=tmp_path / "other", probes=[ToyProbe()], resume=True)


def test_one_probes_crash_costs_only_its_own_section(tmp_path):
    run = audit(toy_subject(), out=tmp_path / "run", probes=[BrokenProbe(), ToyProbe()])
    broken, toy = run.sections
    assert broken.status == "failed"
    assert "a wheel came off" in broken.answer
    assert "RuntimeError" in (tmp_path / "run/errors/broken.txt").read_text()
    assert toy.status == "complete"
    assert run.failed == (broken,)


class Refusing(ToyProbe):
    def prepare(self, subject, settings):
        raise UnsupportedError("this model cannot be traced")


def test_a_probe_that_does_not_apply_says_why(tmp_path):
    probes = [
        Refusing(name="refusing"),
        ToyProbe(name="hungry", needs=Needs(train=True)),
        ToyProbe(name="visual", needs=Needs(modality=frozenset({"image"}))),
        ToyProbe(name="white", needs=Needs(access=Access.GRADIENTS)),
    ]
    subject = replace(toy_subject(), access=Access.SCORES)
    answers = [section.answer for section in audit(subject, out=tmp_path / "run", probes=probes).sections]
    for answer, words in zip(
        answers, ["cannot be traced", "--train", "made for image", "gives only scores"], strict=True
    ):
        assert answer.startswith("Not examined")
        assert words in answer


def test_outputs_that_are_not_finite_are_refused(tmp_path):
    subject = toy_subject(shift=float("nan"))
    with pytest.raises(InputError, match="NaN or infinite outputs"):
        audit(subject, out=tmp_path / "run", probes=[ToyProbe()])


def test_evidence_of_the_wrong_length_is_refused(tmp_path):
    class Short(ToyProbe):
        def examine(self, subject, state, batch):
            return {"held": np.ones(len(batch) - 1)}

    section = audit(toy_subject(), out=tmp_path / "run", probes=[Short()]).sections[0]
    assert "one row an example" in section.answer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"minutes": 0.0}, "minutes must be positive"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"settings": Settings(precision=1.5)}, "precision is the half-width"),
        ({"settings": Settings(level=0.1)}, "level must lie"),
        ({"workers": 0, "engine": "loky"}, "workers must be at least 1"),
    ],
)
def test_bad_arguments_end_before_anything_is_written(tmp_path, arguments, words):
    with pytest.raises(InputError, match=words):
        audit(toy_subject(), out=tmp_path / "run", probes=[ToyProbe()], **arguments)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        audit(toy_subject(), out=tmp_path / "file/run", probes=[ToyProbe()])
