"""Protein sequences in FASTA files."""

from __future__ import annotations

import warnings
from pathlib import Path

from ...evaluation.protein import AMINO_ACIDS
from .files import plain_name, read_text

SUFFIXES = (".fasta", ".fa", ".faa")
# Codes of databases that name no single one of the 20 amino acids, and gaps of alignments.
OTHER_CODES = "BJOUXZ*-"


def is_fasta(path: Path) -> bool:
    """By its name, whether compressed or not."""
    return plain_name(path).endswith(SUFFIXES)


def read_fasta(path: Path) -> dict[str, str]:
    """Sequences by the first word of their header, in the order of the file, which may be compressed.

    A stop ``*`` at the end of a sequence is dropped. Sequences with a code other than the 20 amino acids (``X``, ``U``,
    a stop inside) are left out, with a warning that counts them. Lines that start with ``;`` are comments.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no FASTA, holds no usable sequence, names a sequence twice, or holds a character that is
            no code of an amino acid.
    """
    if not path.exists():
        raise FileNotFoundError(f"no sequences at {path}: give --data.source a FASTA file, or 'bundled'")
    found: dict[str, list[str]] = {}
    name = None
    for number, line in enumerate(read_text(path, errors="replace").splitlines(), start=1):
        line = line.strip()
        if line.startswith(">"):
            words = line[1:].split()
            name = words[0] if words else f"line-{number}"
            if name in found:
                raise ValueError(f"{path} holds two sequences named {name} (line {number}); name them apart")
            found[name] = []
        elif line and not line.startswith(";"):
            strange = set(line.upper()) - set(AMINO_ACIDS + OTHER_CODES)
            if name is None or strange:
                what = f"{sorted(strange)[0]!r} is no amino acid" if strange else "no header line before it"
                raise ValueError(f"{path}, line {number}: {what}; the 20 letters are {AMINO_ACIDS}")
            found[name].append(line.upper())
    joined = {name: "".join(parts).removesuffix("*") for name, parts in found.items()}
    sequences = {name: text for name, text in joined.items() if text and not set(text) & set(OTHER_CODES)}
    left_out = sum(bool(set(text) & set(OTHER_CODES)) for text in joined.values())
    if not sequences:
        letters = f"; {left_out} with other codes than {AMINO_ACIDS} were left out" if left_out else ""
        raise ValueError(f"no sequence in {path}{letters}")
    if left_out:
        warnings.warn(
            f"{left_out} of {len(joined)} sequences in {path} hold other codes than {AMINO_ACIDS}: left out",
            stacklevel=2,
        )
    return sequences
