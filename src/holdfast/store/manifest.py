"""The manifest: what a run was made from, so that it can be resumed, compared and made again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from holdfast.core.errors import ResumeError, StorageError
from holdfast.store.files import Folder

MANIFEST = "manifest.json"
FINDINGS = "findings.json"

#: Raised when the layout of evidence changes so that old shards cannot be continued.
EVIDENCE_VERSION = 1


def write_json(folder: Folder, name: str, content: Mapping[str, Any]) -> None:
    """Write `content` as readable JSON, atomically."""
    folder.write(name, to_json(content).encode())


def to_json(content: Mapping[str, Any]) -> str:
    """`content` as readable standard JSON, ending in a line end."""
    return json.dumps(_finite(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """Standard JSON has no infinities or NaN; they travel as {"number": "inf"} and come back as floats."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value


def _number(value: dict[str, Any]) -> Any:
    return float(value["number"]) if set(value) == {"number"} else value


def read_json(folder: Folder, name: str) -> dict[str, Any]:
    """Raises StorageError when the file is absent or damaged."""
    try:
        content = json.loads(folder.read(name), object_hook=_number)
    except ValueError as error:
        raise StorageError(f"{folder.path(name)} is not valid JSON ({error}); the run folder is damaged") from error
    if not isinstance(content, dict):
        raise StorageError(
            f"{folder.path(name)} holds a {type(content).__name__}, not an object; the run folder is damaged"
        )
    return content


def require_same(earlier: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raise ResumeError naming every part of a run's identity that differs."""
    changed = [
        f"{name} was {earlier.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*earlier, *now})
        if earlier.get(name) != now.get(name)
    ]
    if changed:
        raise ResumeError(
            f"cannot resume {where}: {'; '.join(changed)}. Evidence of different runs must not be mixed: "
            "restore what changed, or start a new run with another --out"
        )
