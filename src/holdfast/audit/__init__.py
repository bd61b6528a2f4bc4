"""Probes over a subject: the audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.audit.engine import Run as Run
    from holdfast.audit.engine import audit as audit
    from holdfast.audit.probe import Settings as Settings

_PLACES = {"audit": "engine", "Run": "engine", "Settings": "probe"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
