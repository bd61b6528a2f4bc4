"""The command that makes a run, or one probe of it, again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from holdfast.report.record import RunRecord

#: Options that name this run's place or history rather than what it measures.
_DROPPED = {"--out": True, "-o": True, "--resume": False}


def make_again(record: RunRecord, probe: str | None = None) -> list[str]:
    """Quoted parts of the command that repeats the run, options together with their values.

    Only `probe` is run when one is named.  A run that was started from Python is one part, a Python call.
    """
    words = [str(word) for word in record.manifest.get("command") or ()]
    seed = record.manifest["settings"].get("seed", 0)
    if not words:
        return [_in_python(record, probe)]
    options = _without(words[1:], {**_DROPPED, "--seed": True, **({} if probe is None else {"--probes": True})})
    chosen = [] if probe is None else ["--probes", probe]
    return _joined([os.path.basename(words[0]), *options, *chosen, "--seed", str(seed)])


def _joined(words: Sequence[str]) -> list[str]:
    """Every word quoted for the shell; an option and the value after it make one part."""
    parts: list[str] = []
    for place, word in enumerate(words):
        follows = place > 0 and words[place - 1].startswith("--") and "=" not in words[place - 1]
        if follows and not word.startswith("-"):
            parts[-1] += f" {shlex.quote(word)}"
        else:
            parts.append(shlex.quote(word))
    return parts


def _without(words: Sequence[str], dropped: dict[str, bool]) -> list[str]:
    """`words` less the options in `dropped` (name -> whether a value follows)."""
    kept: list[str] = []
    skip = False
    for word in words:
        name = word.split("=", 1)[0]
        if skip:
            skip = False
        elif name in dropped:
            skip = dropped[name] and "=" not in word
        else:
            kept.append(word)
    return kept


def _in_python(record: RunRecord, probe: str | None) -> str:
    settings = record.manifest["settings"]
    probes = [probe] if probe is not None else settings.get("probes")
    wanted = f"Settings(seed={settings.get('seed', 0)!r}, level={settings.get('level', 0.95)!r})"
    threat = f"  # threat: {settings['threat']}" if settings.get("threat") else ""
    return f'audit(subject, out="again", probes={probes!r}, settings={wanted}){threat}'
