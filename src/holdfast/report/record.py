"""A run folder, read: what was audited, what was found, and the evidence behind it.

Everything `holdfast.report` shows is a function of this record, so a report can be made again from the folder alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from holdfast.core.errors import InputError, StorageError
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.store.files import Folder
from holdfast.store.manifest import FINDINGS, MANIFEST, read_json
from holdfast.store.shards import read_evidence

CLEAN = "clean"
_MANIFEST_KEYS = ("holdfast_version", "created", "status", "subject", "settings", "versions")
_SUBJECT_KEYS = (
    "name",
    "source",
    "classes",
    "class_names",
    "shape",
    "modality",
    "access",
    "test_examples",
    "fingerprint",
)


@dataclass(frozen=True)
class RunRecord:
    """One run: its folder's URL, manifest, sections (one a probe, in report order) and doubts about the audit as a
    whole."""

    url: str
    manifest: Mapping[str, Any]
    sections: tuple[Section, ...]
    doubts: tuple[Doubt, ...]

    @classmethod
    def read(cls, url: str | os.PathLike[str]) -> RunRecord:
        """Read the run in the folder `url` (a path or fsspec URL).

        Raises StorageError when the folder holds no run, the run was killed before its first findings, or a file is
        damaged.
        """
        folder = Folder(os.fspath(url))
        if not folder.exists(MANIFEST):
            raise StorageError(
                f"{folder.path()} holds no run (no {MANIFEST}); give the folder that `holdfast audit --out` wrote"
            )
        manifest = read_json(folder, MANIFEST)
        _require(manifest, _MANIFEST_KEYS, folder.path(MANIFEST))
        _require(manifest["subject"], _SUBJECT_KEYS, f"'subject' in {folder.path(MANIFEST)}")
        if not folder.exists(FINDINGS):
            raise StorageError(f"the run in {folder.path()} stopped before it had findings; finish it with --resume")
        found = read_json(folder, FINDINGS)
        _require(found, ("sections", "doubts"), folder.path(FINDINGS))
        try:
            sections = tuple(Section.from_dict(part) for part in found["sections"])
            doubts = tuple(Doubt.from_dict(part) for part in found["doubts"])
        except (KeyError, TypeError, AttributeError, InputError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise StorageError(f"{folder.path(FINDINGS)} is damaged: {reason}; audit again with --resume") from error
        return cls(folder.url, manifest, sections, doubts)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for section in self.sections for finding in section.findings)

    @property
    def subject(self) -> Mapping[str, Any]:
        """What was audited, as the manifest describes it."""
        described: Mapping[str, Any] = self.manifest["subject"]
        return described

    @property
    def level(self) -> float:
        """Coverage of every interval."""
        return float(self.manifest["settings"].get("level", 0.95))

    @cached_property
    def clean(self) -> Mapping[str, np.ndarray]:
        """Columns `index, label, prediction, logits` of the unperturbed examples."""
        return self.evidence(CLEAN)

    def evidence(self, probe: str) -> dict[str, np.ndarray]:
        """Columns of a probe's evidence, one row an example; empty when it left none."""
        return read_evidence(Folder(self.url), probe)

    def find(self, key: str) -> Finding | None:
        """The finding called `key`, or None."""
        return next((finding for finding in self.findings if finding.key == key), None)

    def doubts_about(self, finding: Finding) -> tuple[Doubt, ...]:
        """Doubts that touch `finding`: those that name it or its probe, and those of its section that name nothing."""
        own = [doubt for section in self.sections if section.probe == finding.probe for doubt in section.doubts]
        everywhere = [*self.doubts, *(doubt for section in self.sections for doubt in section.doubts)]
        named = {finding.key, finding.probe}
        touching = [doubt for doubt in everywhere if named & set(doubt.touches)]
        return tuple(dict.fromkeys([*(doubt for doubt in own if not doubt.touches), *touching]))


def _require(content: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(content, Mapping):
        raise StorageError(f"{where} holds a {type(content).__name__}, not an object; the run folder is damaged")
    missing = [key for key in keys if key not in content]
    if missing:
        raise StorageError(
            f"{where} lacks {', '.join(missing)}; it is damaged or was written by another version of holdfast"
        )
