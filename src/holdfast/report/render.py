"""A run folder in, a report out: one door for every format."""

from __future__ import annotations

import os
from collections.abc import Callable

from holdfast.core.errors import InputError
from holdfast.report.record import RunRecord
from holdfast.store.files import Folder

#: Format -> name of the file it is written to when no other is given.
FILES = {"html": "report.html", "md": "report.md", "json": "report.json", "model-card": "model-card.md"}


def render(run: str | os.PathLike[str], format: str = "html") -> str:
    """The report of the run folder `run` as text in `format`: html, md, json or model-card.

    Raises InputError for another format and StorageError when the folder holds no readable run.
    """
    return _renderer(format)(RunRecord.read(run))


def write_report(run: str | os.PathLike[str], format: str = "html", out: str | os.PathLike[str] | None = None) -> str:
    """Write the report to the file `out` (the run folder's own report when None), whole or not at all; returns its
    path.

    Raises InputError and StorageError as `render` does, and StorageError when `out` cannot be written.
    """
    text = render(run, format)
    if out is None:
        folder, name = Folder(os.fspath(run)), FILES[format]
    else:
        parent, name = os.path.split(os.fspath(out))
        folder = Folder(parent or ".")
    if not name:
        raise InputError(
            f"{os.fspath(out) if out is not None else run} names a folder; give the file to write the report to"
        )
    folder.write(name, text.encode())
    return folder.path(name)


def _renderer(format: str) -> Callable[[RunRecord], str]:
    if format == "html":
        from holdfast.report.html import render_html as chosen
    elif format == "md":
        from holdfast.report.markdown import render_markdown as chosen
    elif format == "json":
        from holdfast.report.export import render_json as chosen
    elif format == "model-card":
        from holdfast.report.card import render_card as chosen
    else:
        raise InputError(f"unknown report format {format!r}; choose from {', '.join(FILES)}")
    return chosen
