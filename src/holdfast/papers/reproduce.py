"""Re-run the headline claim of a paper and keep what was measured.

A full run writes results/<key>.json: the outcome, its seeds, the seconds it took (on the clock and of processors), the
versions, the machine, and a hash of the source it rests on.  A smoke run never writes: it is the same check made small
enough for every CI run, and should keep only those criteria that so little work can decide.

A smoke run *contradicts* the committed result when it fails a criterion that the full run passed (matched by its
statement), or when it fails a criterion the full run does not have while the full run as a whole holds.  A failed smoke
criterion of a paper that is unrun, or that fails at full scale too, is shown but is no news.  A stale result still
counts: source that changed and a smoke criterion that broke are what smoke runs are there to catch.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from holdfast.core.errors import HoldfastError
from holdfast.papers.catalogue import Entry, catalogue, find, results_folder
from holdfast.papers.paper import Outcome, Scale
from holdfast.papers.provenance import modules_behind, source_hash
from holdfast.store.files import Folder

_VERSIONED = ("holdfast", "torch", "numpy", "scipy", "scikit-learn")
Verdict = Literal["agrees", "contradicts", "crashed"]


@dataclass(frozen=True)
class ResultRecord:
    """What one run of a check measured, and on what."""

    key: str
    scale: Scale
    outcome: Outcome
    seconds: float
    cpu_seconds: float
    measured: str
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    modules: tuple[str, ...]
    source_hash: str

    @property
    def holds(self) -> bool:
        return self.outcome.holds

    def to_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "scale": self.scale.value,
            "outcome": self.outcome.to_dict(),
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "measured": self.measured,
            "versions": dict(self.versions),
            "machine": dict(self.machine),
            "modules": list(self.modules),
            "source_hash": self.source_hash,
        }


@dataclass(frozen=True)
class SmokeRun:
    """One row of `reproduce --all --smoke`: what the small check found and how that sits with the committed result."""

    key: str
    group: str
    seconds: float
    verdict: Verdict
    outcome: Outcome | None = None
    failed: tuple[str, ...] = ()
    contradicted: tuple[str, ...] = ()
    error: str = ""


def reproduce(key: str, scale: Scale = Scale.SMOKE, results: Path | None = None) -> ResultRecord:
    """Run the check of paper `key`; at full scale also write results/<key>.json into `results`, atomically.

    `results` defaults to the checkout's folder, or to ./results where holdfast is installed without one.
    Raises InputError on an unknown key, MissingData when the check needs a data set that is not here, and whatever
    the check itself raises.
    """
    record = run_check(find(key, results), scale)
    if scale is Scale.FULL:
        folder = results or writable_results_folder()
        Folder(str(folder)).write(f"{key}.json", _as_json(record))
    return record


def run_check(entry: Entry, scale: Scale) -> ResultRecord:
    """Import the entry's module, run its check and take down everything a reader needs to judge the numbers."""
    modules = modules_behind(entry.module, entry.paper.builds)
    digest = source_hash(modules)  # before the run: what is hashed is what is about to be imported
    check = importlib.import_module(entry.module).check
    start, spent = time.perf_counter(), _processor_time()
    outcome = check(scale)
    seconds, cpu_seconds = time.perf_counter() - start, _processor_time() - spent
    if not outcome.criteria:
        raise HoldfastError(f"the check of {entry.paper.key} decided nothing: it returned no criterion")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    versions, machine = _versions(), _machine()
    return ResultRecord(
        entry.paper.key, scale, outcome, seconds, cpu_seconds, today, versions, machine, modules, digest
    )


def smoke_runs(keys: Iterable[str] | None = None, results: Path | None = None) -> Iterator[SmokeRun]:
    """Smoke-check the named papers (all by default), one after the other, yielding each row as it is known."""
    entries = catalogue(results) if keys is None else tuple(find(key, results) for key in keys)
    for entry in entries:
        yield _smoke_run(entry)


def exit_code(runs: Iterable[SmokeRun]) -> int:
    """0 when every check ran and none contradicts its committed result, else 1."""
    return int(any(run.verdict != "agrees" for run in runs))


def contradictions(outcome: Outcome, committed: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Statements of the failed criteria that go against a committed full result (see the module's rule)."""
    if committed is None:
        return ()
    full = {criterion["statement"]: bool(criterion["passed"]) for criterion in committed["outcome"]["criteria"]}
    holds = bool(committed["outcome"]["holds"])
    return tuple(c.statement for c in outcome.criteria if not c.passed and full.get(c.statement, holds))


def writable_results_folder() -> Path:
    """The checkout's results folder, or ./results when holdfast is installed without a checkout."""
    folder = results_folder()
    return folder if (folder.parent / "pyproject.toml").is_file() else Path("results")


def _smoke_run(entry: Entry) -> SmokeRun:
    start = time.perf_counter()
    try:
        record = run_check(entry, Scale.SMOKE)
    except Exception:  # noqa: BLE001 - one crashing check must not hide the others; it is reported and fails the run
        return SmokeRun(
            entry.paper.key, entry.paper.group, time.perf_counter() - start, "crashed", error=traceback.format_exc()
        )
    against = contradictions(record.outcome, entry.result)
    return SmokeRun(
        entry.paper.key,
        entry.paper.group,
        record.seconds,
        "contradicts" if against else "agrees",
        record.outcome,
        tuple(criterion.statement for criterion in record.outcome.criteria if not criterion.passed),
        against,
    )


def _processor_time() -> float:
    """Seconds that processors spent on this process and its finished children: what a busy machine does not inflate."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _as_json(record: ResultRecord) -> bytes:
    try:
        text = json.dumps(record.to_dict(), indent=1, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise HoldfastError(f"the check of {record.key} measured something that is not a number: {error}") from error
    return (text + "\n").encode()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # holdfast itself run from an uninstalled checkout
            found[package] = "uninstalled"
    return found


def _machine() -> dict[str, Any]:
    import torch

    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }
