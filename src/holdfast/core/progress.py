"""Progress for long work: silent unless a person is looking (the command line turns it on)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Tracker = Callable[[Iterable[T], str, int | None], Iterable[T]]

_tracker: ContextVar[Callable[..., Iterable] | None] = ContextVar("holdfast_progress", default=None)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items`; when a display is active (`showing`), it shows `description` and how far the loop is."""
    show = _tracker.get()
    yield from items if show is None else show(items, description, total)


@contextmanager
def showing(tracker: Callable[..., Iterable]) -> Iterator[None]:
    """Within this context every `track` loop reports to `tracker(items, description, total)`."""
    token = _tracker.set(tracker)
    try:
        yield
    finally:
        _tracker.reset(token)
