"""Files of text, read defensively and written atomically."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
# A compressed file may unpack to this many bytes, or to this multiple of its size; text compresses 3 to 10 times.
UNPACKED_BYTES, UNPACKED_RATIO = 2**26, 100
JSON_BYTES = 2**30


def plain_name(path: Path) -> str:
    """File name in lower case, without the suffix of its compression."""
    name = path.name.lower()
    return name.removesuffix(path.suffix.lower()) if path.suffix.lower() in OPENERS else name


def read_text(path: Path, *, errors: str = "strict") -> str:
    """Read a UTF-8 text file; ``.gz``, ``.xz`` and ``.bz2`` are unpacked, a byte order mark is dropped."""
    _check_regular(path)
    try:
        text = _read_bytes(path).decode("utf-8-sig", errors=errors)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    if "\0" in text:
        raise ValueError(f"{path} is not UTF-8 text: it holds zero bytes; convert it first")
    return text


def _check_regular(path: Path) -> None:
    """Reading a pipe may wait for ever, and a device may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is no regular file; copy its content to a file first")


def _read_bytes(path: Path) -> bytes:
    opener = OPENERS.get(path.suffix.lower())
    if opener is None:
        return path.read_bytes()
    limit = max(UNPACKED_BYTES, UNPACKED_RATIO * path.stat().st_size)
    try:
        with opener(path, "rb") as stream:
            content: bytes = stream.read(limit + 1)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}; compress it again") from error
    if len(content) > limit:
        raise ValueError(f"{path} unpacks to more than {limit} bytes; unpack it first if that is right")
    return content


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    _check_regular(path)
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
    """Open a file under a name of its own beside ``path``; on success it is flushed to disk and renamed to ``path``.

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
