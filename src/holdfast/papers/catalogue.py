"""The catalogue: every paper that was built, its claim, and whether the last full run of its check bore it out.

An entry is a module `holdfast.papers.<group>.<key>` that assigns `PAPER = Paper(...)` from literals and defines
`check(scale)`.  Entries are found by reading those assignments from the source, so listing the catalogue imports no
method and no torch, and no entry has to register itself.

Status of an entry: `unrun` without a result; `stale` when the source behind it has changed since the result was
measured; otherwise `holds` or `fails`, as the result says.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from holdfast.core.errors import HoldfastError, InputError, StorageError
from holdfast.papers.paper import Paper
from holdfast.papers.provenance import ROOT, modules_behind, parsed, source_hash
from holdfast.papers.search import rank, words

Status = Literal["holds", "fails", "stale", "unrun"]
_FIELD_WEIGHTS = {"key": 3.0, "title": 3.0, "builds": 2.0, "claim": 1.0, "group": 1.0}


@dataclass(frozen=True)
class Entry:
    """One paper of the catalogue with what is known of it: `result` is the content of results/<key>.json, if any."""

    paper: Paper
    module: str
    status: Status
    result: Mapping[str, Any] | None = None

    @property
    def numbers(self) -> dict[str, Any]:
        """What the last full run measured: seconds, our number, the baseline's, every criterion; empty when unrun."""
        if self.result is None:
            return {}
        outcome = self.result["outcome"]
        return {
            "seconds": self.result["seconds"],
            "ours": outcome["ours"],
            "baseline": outcome["baseline"],
            "criteria": outcome["criteria"],
        }

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of `holdfast papers --json`."""
        return {
            "key": self.paper.key,
            "group": self.paper.group,
            "title": self.paper.title,
            "builds": list(self.paper.builds),
            "claim": self.paper.claim,
            "status": self.status,
            "numbers": self.numbers,
        }


def catalogue(results: Path | None = None) -> tuple[Entry, ...]:
    """All entries, by group and key.  `results` is the folder of results/<key>.json files (default: the one shipped).

    Raises HoldfastError when an entry cannot be read, or two share a key.
    """
    folder = results_folder() if results is None else results
    entries = [_entry(module, paper, folder) for module, paper in _papers()]
    keys = [entry.paper.key for entry in entries]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise HoldfastError(f"the catalogue holds two entries with the key {sorted(twice)[0]}; rename one")
    return tuple(sorted(entries, key=lambda entry: (entry.paper.group, entry.paper.key)))


def find(key: str, results: Path | None = None) -> Entry:
    """The entry with this key.  Raises InputError, naming near keys, when there is none."""
    entries = catalogue(results)
    for entry in entries:
        if entry.paper.key == key:
            return entry
    near = [entry.paper.key for entry in search(key.replace("-", " "), entries)[:3]]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise InputError(f"no paper has the key {key!r}{hint} (`holdfast papers` lists all {len(entries)})")


def search(query: str, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Entries that match `query` in key, title, what is built, claim or group, best first; all for an empty query."""
    if not words(query):
        return tuple(entries)
    documents = [
        {
            "key": entry.paper.key,
            "title": entry.paper.title,
            "builds": " ".join(path.removeprefix("holdfast.") for path in entry.paper.builds),
            "claim": entry.paper.claim,
            "group": entry.paper.group,
        }
        for entry in entries
    ]
    return tuple(entries[position] for position, _ in rank(query, documents, _FIELD_WEIGHTS))


def results_folder() -> Path:
    """Where the committed results lie: `results/` of a checkout, else the copy that came with the installed package."""
    checkout = ROOT.parents[1]
    return checkout / "results" if (checkout / "pyproject.toml").is_file() else ROOT / "papers" / "results"


def read_result(key: str, folder: Path) -> dict[str, Any] | None:
    """Content of results/<key>.json, or None when there is no such file.  Raises StorageError when it is damaged."""
    file = folder / f"{key}.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        content["source_hash"], content["seconds"], content["outcome"]["holds"], content["outcome"]["criteria"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{file.name} is damaged ({error}); run `holdfast reproduce {key} --full` again") from error
    return dict(content)


def _entry(module: str, paper: Paper, folder: Path) -> Entry:
    result = read_result(paper.key, folder)
    return Entry(paper, module, _status(module, paper, result), result)


def _status(module: str, paper: Paper, result: Mapping[str, Any] | None) -> Status:
    if result is None:
        return "unrun"
    if result["source_hash"] != source_hash(modules_behind(module, paper.builds)):
        return "stale"
    return "holds" if result["outcome"]["holds"] else "fails"


def _papers() -> list[tuple[str, Paper]]:
    found = []
    for file in sorted((ROOT / "papers").glob("*/*.py")):
        module = f"holdfast.papers.{file.parent.name}.{file.stem}"
        paper = None if file.stem == "__init__" else read_paper(module)
        if paper is None:
            continue
        if paper.group != file.parent.name:
            raise HoldfastError(f"{module}: its paper says group {paper.group!r}, its folder {file.parent.name!r}")
        found.append((module, paper))
    return found


def read_paper(module: str) -> Paper | None:
    """The `PAPER = Paper(...)` of a module, read without importing it; None when the module has no such assignment.

    Raises HoldfastError when its arguments are not literals given by name.
    """
    for node in parsed(module).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if not any(isinstance(target, ast.Name) and target.id == "PAPER" for target in targets):
            continue
        call = node.value  # type: ignore[attr-defined]  # only assignments have targets
        if not (
            isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Paper" and not call.args
        ):
            raise HoldfastError(f"{module}: PAPER must be `Paper(...)` with every argument given by name")
        try:
            return Paper(**{keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.keywords})
        except (ValueError, TypeError) as error:
            raise HoldfastError(f"{module}: PAPER must be built from literals alone ({error})") from error
    return None
