"""The audit: probes over a subject, evidence first, ready to stop at any moment.

Examples are looked at in one random order shared by all probes.  Evidence is written shard by shard; the probe that has
used least time goes next, so that every interval shrinks from the start.  The run ends when every probe has seen all
examples or reached the wanted precision, when the time is up, or on Ctrl-C - and what it says then is valid, because
probes report anytime-valid intervals.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from holdfast import __version__
from holdfast.audit.doubts import general_doubts
from holdfast.audit.lane import Lane, examine_shard, shard_bounds
from holdfast.audit.observer import Observer, Silent
from holdfast.audit.predictions import audit_order, clean_predictions
from holdfast.audit.probe import Probe, Settings
from holdfast.audit.probes import load_probes
from holdfast.audit.threads import fastest_threads, use_threads
from holdfast.audit.workers import Engine, Runner, runner
from holdfast.core.errors import HoldfastError, InputError, ResumeError, StorageError
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.store.files import Folder, sole_writer
from holdfast.store.manifest import EVIDENCE_VERSION, FINDINGS, MANIFEST, read_json, require_same, write_json
from holdfast.subject.fingerprint import data_fingerprint, fingerprint
from holdfast.subject.subject import Subject


@dataclass(frozen=True)
class Run:
    """A finished (or interrupted) audit: its folder and what it found."""

    folder: str
    sections: tuple[Section, ...]
    doubts: tuple[Doubt, ...]
    manifest: Mapping[str, Any]

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for section in self.sections for finding in section.findings)

    def finding(self, key: str) -> Finding:
        """The finding called `key` ("adversarial.accuracy").  Raises InputError when the run has none of that name."""
        for finding in self.findings:
            if finding.key == key:
                return finding
        known = ", ".join(finding.key for finding in self.findings) or "none"
        raise InputError(f"this run has no finding {key!r}; it has: {known}")

    @property
    def failed(self) -> tuple[Section, ...]:
        """Sections of probes that crashed."""
        return tuple(section for section in self.sections if section.status == "failed")


@dataclass
class _Clock:
    """Decides when time is up."""

    minutes: float | None
    began: float = field(default_factory=time.monotonic)

    def out(self) -> bool:
        return self.minutes is not None and self.seconds >= 60 * self.minutes

    def past_half(self) -> bool:
        return self.minutes is not None and self.seconds >= 30 * self.minutes

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def audit(
    subject: Subject,
    *,
    out: str | os.PathLike[str],
    probes: Sequence[str] | Sequence[Probe] | None = None,
    settings: Settings | None = None,
    minutes: float | None = None,
    limit: int | None = None,
    resume: bool = False,
    engine: Engine = "serial",
    workers: int = 1,
    observer: Observer | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Run:
    """Audit `subject` and leave evidence, findings and manifest in the folder `out` (a path or fsspec URL).

    Parameters
    ----------
    probes : names of probes, or probe objects of your own; all when None.
    settings : threat, seed, interval level, wanted precision (half-width of each headline interval).
    minutes : time budget; the run ends soon after it is spent, with valid intervals.
    limit : look at no more than this many test examples.
    resume : go on with an earlier run in `out`; a changed model, data or settings are refused.
    arguments : recorded in the manifest, so that the run can be made again.

    Raises
    ------
    InputError for bad arguments, ResumeError when `out` holds another run, StorageError when `out` cannot be written.
    """
    settings = settings or Settings()
    _validate(minutes, limit, settings)
    chosen = _chosen(probes)
    folder = Folder(os.fspath(out))
    if resume and not folder.exists(MANIFEST):
        raise ResumeError(
            f"there is no run to resume in {folder.path()} (no {MANIFEST}); without --resume one is started"
        )
    with runner(engine, workers) as run_calls, sole_writer(folder):
        manifest = _open_manifest(folder, subject, chosen, settings, minutes, limit, resume, arguments)
        audit_run = _Audit(subject, chosen, settings, folder, _Clock(minutes), observer or Silent(), limit)
        with use_threads(manifest["threads"]):
            return audit_run.run(manifest, run_calls, workers)


def _validate(minutes: float | None, limit: int | None, settings: Settings) -> None:
    if minutes is not None and not minutes > 0:
        raise InputError(f"minutes must be positive, got {minutes}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1 example, got {limit}")
    if settings.precision is not None and not 0 < settings.precision < 1:
        raise InputError(
            f"precision is the half-width of an interval and must lie between 0 and 1, got {settings.precision}"
        )
    if not 0.5 <= settings.level < 1:
        raise InputError(f"level must lie in [0.5, 1), got {settings.level}")


def _chosen(probes: Sequence[str] | Sequence[Probe] | None) -> list[Probe]:
    if probes is None or all(isinstance(probe, str) for probe in probes):
        return load_probes(probes)  # type: ignore[arg-type]
    return list(probes)  # type: ignore[arg-type]


def _open_manifest(
    folder: Folder,
    subject: Subject,
    probes: Sequence[Probe],
    settings: Settings,
    minutes: float | None,
    limit: int | None,
    resume: bool,
    arguments: Mapping[str, Any] | None,
) -> dict[str, Any]:
    mark, earlier = fingerprint(subject), {}
    identity = {
        "subject": mark,
        "seed": settings.seed,
        "threat": repr(settings.threat),
        "limit": limit,
        "options": repr(sorted(settings.extra.items())),
        "evidence_version": EVIDENCE_VERSION,
    }
    if folder.exists(MANIFEST):
        if not resume:
            raise ResumeError(f"{folder.path()} already holds a run; go on with it by --resume or choose another --out")
        earlier = read_json(folder, MANIFEST)
        require_same(earlier.get("identity", {}), identity, folder.path())
        for name in ["", *(f"evidence/{probe}" for probe in folder.names("evidence"))]:
            folder.sweep(name)
    manifest = {
        "holdfast_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "running",
        "stopped_because": "",
        "identity": identity,
        "subject": _described(subject, mark),
        "settings": {
            "threat": None if settings.threat is None else settings.threat.describe(),
            "seed": settings.seed,
            "level": settings.level,
            "precision": settings.precision,
            "minutes": minutes,
            "limit": limit,
            "probes": [probe.name for probe in probes],
        },
        "arguments": dict(arguments or {}),
        "command": sys.argv if arguments is not None else [],
        "versions": _versions(),
        # the same number on resuming: rounding may depend on how a sum was shared out
        "threads": earlier.get("threads") or fastest_threads(subject),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "seconds": 0.0,
    }
    write_json(folder, MANIFEST, manifest)
    return manifest


def _described(subject: Subject, mark: str) -> dict[str, Any]:
    return {
        "name": subject.name,
        "source": subject.test.source,
        "classes": subject.classes,
        "class_names": list(subject.class_names),
        "shape": list(subject.test.shape),
        "modality": subject.modality,
        "access": subject.access.name.lower(),
        "test_examples": len(subject.test),
        "train_examples": 0 if subject.train is None else len(subject.train),
        "fingerprint": mark,
        "data_fingerprint": data_fingerprint(subject.test),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "numpy", "scipy", "scikit-learn", "pyarrow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@dataclass
class _Audit:
    """One audit while it runs."""

    subject: Subject
    probes: Sequence[Probe]
    settings: Settings
    folder: Folder
    clock: _Clock
    observer: Observer
    limit: int | None
    available: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    crashed: dict[str, str] = field(default_factory=dict)

    def run(self, manifest: dict[str, Any], run_calls: Runner[Any], workers: int) -> Run:
        order = audit_order(len(self.subject.test), self.settings.seed, self.limit)
        self.available = len(order)
        able = [probe for probe in self.probes if self._able(probe)]
        self.observer.started([probe.name for probe in able], len(order))
        why, lanes, clean = "", [], {}
        try:
            # Probes need predictions first, but a budget spent on these alone would answer nothing.
            clean = clean_predictions(self.subject, order, self.folder, self.clock.past_half, self.observer.predicted)
            lanes = [self._lane(probe, len(clean["index"])) for probe in able]
            why = self._work(lanes, clean, run_calls, workers)
            if not why and len(clean["index"]) < len(order):
                why = (
                    f"half the time budget of {self.clock.minutes:g} minutes was spent on the predictions of "
                    f"{len(clean['index'])} of {len(order)} examples"
                )
        except KeyboardInterrupt:
            if not clean:
                raise
            why = "interrupted by the user"
        return self._finish(manifest, lanes, clean, why)

    def _able(self, probe: Probe) -> bool:
        reason = _missing(probe, self.subject)
        if reason:
            self.skipped[probe.name] = reason
        return not reason

    def _lane(self, probe: Probe, examples: int) -> Lane:
        return Lane(probe, self.subject, self.settings, self.folder, examples)

    def _work(
        self, lanes: Sequence[Lane], clean: Mapping[str, np.ndarray], run_calls: Runner[Any], workers: int
    ) -> str:
        """Give turns to the lanes until all are done; returns why it stopped early, or ""."""
        open_lanes = list(lanes)
        while open_lanes:
            if self.clock.out():
                return f"the time budget of {self.clock.minutes:g} minutes was spent"
            lane = min(open_lanes, key=lambda candidate: candidate.seconds)
            self._guarded(lane, partial(self._turn, lane, clean, run_calls, workers))
            if lane.done or lane.probe.name in self.skipped or lane.probe.name in self.crashed:
                open_lanes.remove(lane)
        return ""

    def _turn(self, lane: Lane, clean: Mapping[str, np.ndarray], run_calls: Runner[Any], workers: int) -> None:
        if not lane.prepared:
            self.observer.preparing(lane.probe.name)
            lane.prepare()
            lane.restore(clean)
        else:
            calls = [
                partial(
                    examine_shard, self.subject, lane.probe, lane.state, clean, self.settings.seed, shard,
                    *shard_bounds(shard, lane.probe.shard_size, lane.total),
                )
                for shard in lane.pending(workers)
            ]  # fmt: skip
            lane.accept(run_calls(calls), clean)
        self.observer.progressed(lane.probe.name, lane.examined, lane.total, lane.headline)

    def _guarded(self, lane: Lane, step: Callable[[], None]) -> None:
        """One probe's failure must not cost the others' evidence; it is recorded, shown, and ends in exit code 1."""
        name = lane.probe.name
        try:
            step()
        except StorageError:
            raise
        except HoldfastError as error:
            self.skipped[name] = str(error)
        except Exception as error:  # noqa: BLE001 - reported in the section, the folder and the exit code
            self.crashed[name] = f"{type(error).__name__}: {error}"
            self.folder.write(f"errors/{name}.txt", traceback.format_exc().encode())

    def _finish(
        self, manifest: dict[str, Any], lanes: Sequence[Lane], clean: Mapping[str, np.ndarray], why: str
    ) -> Run:
        sections: dict[str, Section] = {}
        for lane in lanes:
            if lane.examined and lane.probe.name not in self.skipped | self.crashed:
                self._guarded(lane, partial(self._conclude, lane, clean, sections))
        told = [sections.get(probe.name) or self._absent(probe, why) for probe in self.probes]
        for section in told:
            self.observer.concluded(section)
        doubts = general_doubts(self.subject, clean, self.settings.level)
        write_json(
            self.folder,
            FINDINGS,
            {"sections": [section.to_dict() for section in told], "doubts": [doubt.to_dict() for doubt in doubts]},
        )
        incomplete = why or any(section.status in ("partial", "failed") for section in told)
        manifest |= {
            "status": "partial" if incomplete else "complete",
            "stopped_because": why,
            "seconds": round(self.clock.seconds, 3),
        }
        write_json(self.folder, MANIFEST, manifest)
        return Run(self.folder.url, tuple(told), tuple(doubts), manifest)

    def _conclude(self, lane: Lane, clean: Mapping[str, np.ndarray], sections: dict[str, Section]) -> None:
        section = lane.probe.conclude(self.subject, lane.state, lane.evidence(clean), self.settings)
        for finding in section.findings:
            if not math.isfinite(finding.estimate.value):
                raise InputError(f"{finding.key} is {finding.estimate.value}; a finding must be a finite number")
        complete = lane.done and (lane.examined < lane.total or lane.total == self.available)
        sections[lane.probe.name] = replace(
            section,
            status="complete" if complete else "partial",
            examined=lane.examined,
            available=self.available,
            seconds=round(lane.seconds, 3),
        )

    def _absent(self, probe: Probe, why: str) -> Section:
        name = probe.name
        if name in self.crashed:
            answer = f"This probe failed ({self.crashed[name]}); errors/{name}.txt in the run folder has the details."
            return Section(name, probe.question, answer, (), status="failed")
        reason = self.skipped.get(name) or (f"not started: {why}" if why else "no evidence was gathered")
        return Section(name, probe.question, f"Not examined: {reason}.", (), status="skipped")


def _missing(probe: Probe, subject: Subject) -> str:
    needs = probe.needs
    if subject.access < needs.access:
        return f"it needs {needs.access.name.lower()}, and this model gives only {subject.access.name.lower()}"
    if needs.train and subject.train is None:
        return "it needs the training data; give it with --train"
    if subject.modality not in needs.modality:
        return f"it is made for {' and '.join(sorted(needs.modality))} inputs, and these are {subject.modality}"
    return ""
