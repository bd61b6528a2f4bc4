"""The live table of an audit: one line a probe, intervals that only shrink."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from holdfast.core.estimate import Estimate
from holdfast.core.finding import Section

BAR = 24


@dataclass
class _Row:
    examined: int = 0
    available: int = 0
    headline: Estimate | None = None
    state: str = "waiting"
    began: float | None = None


def interval_bar(estimate: Estimate, width: int = BAR) -> str:
    """The interval on [0, 1] drawn with characters: a line for the interval, a dot for the value."""
    place = [round(max(0.0, min(1.0, part)) * (width - 1)) for part in (estimate.low, estimate.value, estimate.high)]
    cells = ["·"] * width
    for k in range(place[0], place[2] + 1):
        cells[k] = "━"
    cells[place[1]] = "●"
    return "".join(cells)


@dataclass
class Display:
    """An `Observer` that draws to a terminal, or prints a line a finished probe when there is no terminal."""

    console: Console
    rows: dict[str, _Row] = field(default_factory=dict)
    clean: str = ""
    began: float = field(default_factory=time.monotonic)
    _live: Live | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._table, console=self.console, refresh_per_second=6, transient=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, probes: list[str], examples: int) -> None:
        self.rows = {name: _Row(available=examples) for name in probes}
        if self._live is None:
            self.console.print(
                f"{len(probes)} probes, up to {examples} examples each; press Ctrl-C to stop with a valid report"
            )

    def predicted(self, examples: int, available: int) -> None:
        self.clean = f"clean predictions {examples}/{available}"

    def preparing(self, probe: str) -> None:
        self.rows[probe].state = "preparing"
        self.rows[probe].began = time.monotonic()

    def progressed(self, probe: str, examined: int, available: int, headline: Estimate | None) -> None:
        row = self.rows[probe]
        row.examined, row.available, row.headline = examined, available, headline
        row.state = "done" if examined >= available else "running"

    def concluded(self, section: Section) -> None:
        row = self.rows.get(section.probe)
        if row is not None:
            row.state = section.status
        if self._live is None:
            self.console.print(f"{section.probe:12} {section.answer}", highlight=False, markup=False, soft_wrap=True)

    def track(self, items: Iterable, description: str, total: int | None) -> Iterable:
        """Progress of inner loops is shown by the table already."""
        return items

    def _table(self) -> Table:
        table = Table(
            box=None,
            padding=(0, 1),
            caption=f"{self.clean}  ·  {time.monotonic() - self.began:.0f} s  ·  Ctrl-C ends with a valid report",
        )
        for name in ("probe", "0 ─ headline ─ 1", "value and interval", "examples", ""):
            table.add_column(name, justify="right" if name == "examples" else "left")
        for name, row in self.rows.items():
            known = row.headline is not None
            table.add_row(
                Text(name, style="bold"),
                Text(
                    interval_bar(row.headline) if row.headline is not None else "·" * BAR,
                    style="cyan" if known else "dim",
                ),
                str(row.headline) if known else "",
                f"{row.examined}/{row.available}",
                Text(
                    row.state, style={"complete": "green", "failed": "red", "skipped": "yellow"}.get(row.state, "dim")
                ),
            )
        return table
