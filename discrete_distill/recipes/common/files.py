"""Files of text, plain or compressed, read defensively."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...files import check_regular

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
# A compressed file may unpack to this many bytes, or to this multiple of its size; text compresses 3 to 10 times.
UNPACKED_BYTES, UNPACKED_RATIO = 2**26, 100


def plain_name(path: Path) -> str:
    """File name in lower case, without the suffix of its compression."""
    name = path.name.lower()
    return name.removesuffix(path.suffix.lower()) if path.suffix.lower() in OPENERS else name


def read_text(path: Path, *, errors: str = "strict") -> str:
    """Read a UTF-8 text file; ``.gz``, ``.xz`` and ``.bz2`` are unpacked, a byte order mark is dropped."""
    check_regular(path)
    try:
        text = _read_bytes(path).decode("utf-8-sig", errors=errors)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    if "\0" in text:
        raise ValueError(f"{path} is not UTF-8 text: it holds zero bytes; convert it first")
    return text


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
