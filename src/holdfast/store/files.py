"""Files that are either whole or absent: temporary name, flush to disk, rename.  Any fsspec URL will do."""

from __future__ import annotations

import errno
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from holdfast.core.errors import StorageError

TEMPORARY = ".tmp"


@dataclass(frozen=True)
class Folder:
    """A folder at an fsspec URL (a plain path is one too).  Every write is atomic; every failure is a StorageError."""

    url: str

    @cached_property
    def _place(self) -> tuple[Any, str]:
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(self.url)
        return filesystem, root

    @property
    def local(self) -> bool:
        """Whether the folder lies on this machine's own file system."""
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self._place[0], LocalFileSystem)

    def path(self, name: str = "") -> str:
        """Full path of `name` on the folder's file system."""
        return posixpath.join(self._place[1], name) if name else str(self._place[1])

    def exists(self, name: str = "") -> bool:
        with _told(f"look for {self.path(name)}"):
            return bool(self._place[0].exists(self.path(name)))

    def names(self, subfolder: str = "") -> list[str]:
        """Sorted names of the files in `subfolder`; empty when there is no such folder."""
        filesystem, _ = self._place
        with _told(f"list {self.path(subfolder)}"):
            filesystem.invalidate_cache()
            if not filesystem.isdir(self.path(subfolder)):
                return []
            return sorted(
                posixpath.basename(entry.rstrip("/")) for entry in filesystem.ls(self.path(subfolder), detail=False)
            )

    def read(self, name: str) -> bytes:
        with _told(f"read {self.path(name)}"):
            return bytes(self._place[0].cat_file(self.path(name)))

    def write(self, name: str, content: bytes) -> None:
        """Put `content` at `name`: readers see the old file or the new one, never a part."""
        filesystem, _ = self._place
        target = self.path(name)
        with _told(f"write {target}"):
            filesystem.makedirs(posixpath.dirname(target), exist_ok=True)
            if not self.local:  # object stores show an object only once it is complete
                filesystem.pipe_file(target, content)
                return
            _write_local(target, content)

    def sweep(self, subfolder: str) -> None:
        """Remove what a killed writer left under temporary names."""
        for name in self.names(subfolder):
            if name.endswith(TEMPORARY):
                with _told(f"remove {name}"):
                    self._place[0].rm_file(self.path(posixpath.join(subfolder, name)))


def _write_local(target: str, content: bytes) -> None:
    temporary = f"{target}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    folder = os.open(os.path.dirname(target) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


@contextmanager
def _told(action: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = "no space left on the device" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise StorageError(
            f"cannot {action}: {reason}; nothing half-written was left, free the cause and run again with --resume"
        ) from error


@contextmanager
def sole_writer(folder: Folder) -> Iterator[None]:
    """Hold the folder for one writing process; the hold ends with the process, however it ends.

    Raises StorageError when another process holds it.  On remote file systems there is no such lock and none is taken.
    """
    if not folder.local:
        yield
        return
    import fcntl

    with _told(f"create {folder.path()}"):
        os.makedirs(folder.path(), exist_ok=True)
        lock = open(folder.path("run.lock"), "a")  # noqa: SIM115 - held for the whole context
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"{folder.path()} is being written by another process; wait for it or choose another --out"
            ) from error
        yield
    finally:
        lock.close()
