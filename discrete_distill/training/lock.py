"""One run a folder: a lock that the operating system releases when its process ends, however it ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there.
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_held: dict[str, int] = {}


class FolderInUse(OSError):
    """Another process writes to a folder."""


@contextmanager
def folder_lock(directory: Path) -> Iterator[None]:
    """Hold a folder for this process; it may be entered again inside.

    The file ``.lock`` in it names process and machine. It stays behind, and has no effect once that process has ended.

    Raises:
        FolderInUse: if another process holds it.

    Examples:
        >>> from pathlib import Path
        >>> with folder_lock(Path("run")):
        ...     print(Path("run/.lock").exists())
        True
    """
    name = str(Path(directory).resolve())
    if fcntl is None or name in _held:
        _held[name] = _held.get(name, 0) + 1
        try:
            yield
        finally:
            _release(name)
        return
    Path(directory).mkdir(parents=True, exist_ok=True)
    with (Path(directory) / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderInUse(
                f"{directory} is in use by another run ({_holder(file)}); wait for it, or choose another folder"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        _held[name] = 1
        try:
            yield
        finally:
            _release(name)


def _release(name: str) -> None:
    _held[name] -= 1
    if not _held[name]:
        del _held[name]


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read(200) or "unknown"
