"""What a person watching an audit is told, and when."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from holdfast.core.estimate import Estimate
from holdfast.core.finding import Section


@runtime_checkable
class Observer(Protocol):
    """Called by the engine from its own thread; every method must return quickly."""

    def started(self, probes: list[str], examples: int) -> None: ...

    def predicted(self, examples: int, available: int) -> None: ...

    def preparing(self, probe: str) -> None: ...

    def progressed(self, probe: str, examined: int, available: int, headline: Estimate | None) -> None: ...

    def concluded(self, section: Section) -> None: ...


class Silent:
    """Tells nobody."""

    def started(self, probes: list[str], examples: int) -> None:
        pass

    def predicted(self, examples: int, available: int) -> None:
        pass

    def preparing(self, probe: str) -> None:
        pass

    def progressed(self, probe: str, examined: int, available: int, headline: Estimate | None) -> None:
        pass

    def concluded(self, section: Section) -> None:
        pass
