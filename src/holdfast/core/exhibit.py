"""What a probe or a check shows: tables, figures and galleries as plain data, drawn later by `holdfast.report`.

Everything here turns into JSON and back without loss (`to_dict` / `exhibit_from_dict`), so a report is a function of
the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate

Cell = str | int | float | bool | None | Estimate


@dataclass(frozen=True)
class Exhibit:
    """Base of everything that can be shown; `title` is one line, `caption` says what to see."""

    kind: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **{f.name: _plain(getattr(self, f.name)) for f in fields(self)}}


@dataclass(frozen=True)
class Table(Exhibit):
    """Rows under named columns; Estimates are shown with their interval."""

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Series:
    """One named line of a `Curve`: `y[i]` at `x[i]`, with an optional band."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Curve(Exhibit):
    """Lines over a numeric axis (radius-accuracy curves, scaling laws).  `diagonal` draws y = x for reference."""

    kind: ClassVar[str] = "curve"
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    caption: str = ""
    x_log: bool = False
    y_log: bool = False
    y_limits: tuple[float, float] | None = None
    diagonal: bool = False


@dataclass(frozen=True)
class Bars(Exhibit):
    """One horizontal bar a label with its interval; `reference` draws a line across."""

    kind: ClassVar[str] = "bars"
    title: str
    x_label: str
    labels: tuple[str, ...]
    values: tuple[Estimate, ...]
    caption: str = ""
    reference: float | None = None
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Heatmap(Exhibit):
    """A matrix of numbers with named rows and columns; `low_is_bad` picks the colour's direction."""

    kind: ClassVar[str] = "heatmap"
    title: str
    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    caption: str = ""
    value_label: str = ""
    limits: tuple[float, float] | None = None
    low_is_bad: bool = True


@dataclass(frozen=True)
class Histogram(Exhibit):
    """Counts of several named groups over shared bin `edges`."""

    kind: ClassVar[str] = "histogram"
    title: str
    x_label: str
    edges: tuple[float, ...]
    groups: tuple[tuple[str, tuple[float, ...]], ...]
    caption: str = ""


@dataclass(frozen=True)
class Reliability(Exhibit):
    """A reliability diagram: per bin mean confidence, accuracy with interval, and count."""

    kind: ClassVar[str] = "reliability"
    title: str
    confidence: tuple[float, ...]
    accuracy: tuple[Estimate, ...]
    counts: tuple[int, ...]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """One example of a `Gallery`: `png` (base64) for an image, `fields` for a row of a table, `text` for words."""

    label: str
    png: str | None = None
    before_png: str | None = None
    fields: tuple[tuple[str, str], ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Gallery(Exhibit):
    """Examples worth looking at: worst cases, suspicious labels, duplicate pairs."""

    kind: ClassVar[str] = "gallery"
    title: str
    pictures: tuple[Picture, ...] = field(default=())
    caption: str = ""


_KINDS: dict[str, type[Exhibit]] = {
    cls.kind: cls for cls in (Table, Curve, Bars, Heatmap, Histogram, Reliability, Gallery)
}


def exhibit_from_dict(data: Mapping[str, Any]) -> Exhibit:
    """Inverse of `Exhibit.to_dict`.  Raises InputError on an unknown kind."""
    kind = _KINDS.get(str(data.get("kind")))
    if kind is None:
        raise InputError(f"unknown exhibit kind {data.get('kind')!r}; known: {', '.join(sorted(_KINDS))}")
    return kind(**{f.name: _revive(f.name, data[f.name]) for f in fields(kind) if f.name in data})


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return {"estimate": value.to_dict()}
    if isinstance(value, (Series, Picture)):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if hasattr(value, "item"):
        return value.item()
    raise InputError(f"an exhibit cannot hold a {type(value).__name__}")


def _revive(name: str, value: Any) -> Any:
    if isinstance(value, Mapping) and "estimate" in value:
        return Estimate.from_dict(value["estimate"])
    if isinstance(value, Mapping):
        kind: type[Series] | type[Picture] = Series if name == "series" else Picture
        return kind(**{key: _revive(key, part) for key, part in value.items()})
    if isinstance(value, list):
        return tuple(_revive(name, part) for part in value)
    return value
