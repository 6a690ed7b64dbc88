"""Token arrays on disk: written atomically with their hashes, mapped into memory, and made again when they differ.

Shape suffixes: T tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..digests import file_digest
from ..files import read_json_object, replacing, write_text

INDEX_FILE = "done.json"
PIECE = 1 << 20  # integers that are hashed at a time


class CachedArray(NamedTuple):
    """Integers ``[T]``, mapped from disk, and the `content_digest` that was taken when they were written."""

    array: np.ndarray
    digest: str


def content_digest(array_T: np.ndarray) -> str:
    """SHA-256 of all integers of an array, in hexadecimal, whatever their type; read in pieces."""
    digest = hashlib.sha256()
    for start in range(0, len(array_T), PIECE):
        digest.update(np.asarray(array_T[start : start + PIECE], dtype="<i8").tobytes())
    return digest.hexdigest()


def cached_arrays(
    folder: Path, names: tuple[str, ...], make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, CachedArray]:
    """Arrays of a folder, mapped from disk; made and written first where any is missing or damaged.

    Several processes may do so at the same time; each writes files of its own and renames them. What is read was
    compared with the hash that was taken while it was written.

    Args:
        folder: of these arrays alone, under a name that changes with their content.
        names: of the arrays.
        make: the arrays, one-dimensional, by name.

    Returns:
        Read-only arrays ``[T]`` by name, with their digests.
    """
    found = _read(folder, names)
    if found is None:
        _write(folder, make())
        found = _read(folder, names)
    if found is None:
        raise OSError(f"the tokens in {folder} are not what was just written; look at the disk, or give another folder")
    return found


def is_cut(array: np.ndarray) -> bool:
    """Whether the file behind a mapped array has become shorter than the array: reading on would end the process."""
    if not isinstance(array, np.memmap) or array.filename is None:
        return False
    try:
        return Path(array.filename).stat().st_size < array.offset + array.nbytes
    except OSError:  # A file that was removed or replaced stays readable while it is mapped.
        return False


def _read(folder: Path, names: tuple[str, ...]) -> dict[str, CachedArray] | None:
    """The arrays, or None where anything differs from what was written."""
    try:
        index = read_json_object(folder / INDEX_FILE)
        files = {name: folder / f"{name}.npy" for name in names}
        if any(index.get(name) != file_digest(file) for name, file in files.items()):
            return None
        contents = {name: str(index[f"content of {name}"]) for name in names}
        return {name: CachedArray(np.load(file, mmap_mode="r"), contents[name]) for name, file in files.items()}
    except (OSError, ValueError, EOFError, KeyError):
        return None


def _write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Each file aside and renamed; the index comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array_T in arrays.items():
        with replacing(folder / f"{name}.npy") as stream:
            np.save(stream, array_T)
    digests = {name: file_digest(folder / f"{name}.npy") for name in arrays}
    contents = {f"content of {name}": content_digest(array_T) for name, array_T in arrays.items()}
    write_text(folder / INDEX_FILE, json.dumps(digests | contents))
