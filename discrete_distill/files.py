"""Files that are read defensively and written atomically."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

JSON_BYTES = 2**30


def check_regular(path: Path) -> None:
    """Refuse what is no regular file: reading a pipe may wait for ever, and a device may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is no regular file; copy its content to a file first")


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    check_regular(path)
    if path.stat().st_size > JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {JSON_BYTES} of a JSON file")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); write it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a JSON object; write it again")
    return found


def write_text(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    with replacing(path) as stream:
        stream.write(text.encode("utf-8"))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file in the folder of ``path``; on success it is flushed to disk and renamed to ``path``.

    Several processes may write one ``path`` at the same time: the last rename stands.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with aside.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
