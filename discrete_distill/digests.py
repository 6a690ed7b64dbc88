"""SHA-256 of files, in hexadecimal: the identity of weights, tokens and text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def file_digest(file: Path) -> str:
    """Digest of the contents of a file; read in pieces, so that its size does not matter."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_digest(files: Iterable[Path]) -> str:
    """Digest of several files: of the one file where there is one, else of the digests of all, in the given order."""
    digests = [file_digest(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
