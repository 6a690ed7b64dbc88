"""Protein sequences: FASTA files, and the tokenizer of their letters."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path

from ..evaluation.protein import AMINO_ACIDS
from .tokenizer import TextTokenizer

END = "."
SUFFIXES = (".fasta", ".fa", ".faa", ".fasta.xz", ".fa.xz")


def is_fasta(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith(SUFFIXES)


def read_fasta(path: Path) -> dict[str, str]:
    """Sequences by the first word of their header, in the order of the file; ``.xz`` is unpacked.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no FASTA, is empty, names a sequence twice, or holds a letter that is no amino acid.
    """
    if not path.exists():
        raise FileNotFoundError(f"no sequences at {path}: give --data.source a FASTA file, or 'bundled'")
    raw = path.read_bytes()
    text = (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode("ascii", errors="replace")
    found: dict[str, list[str]] = {}
    name = None
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if line.startswith(">"):
            name = line[1:].split()[0] if len(line) > 1 else f"line-{number}"
            if name in found:
                raise ValueError(f"{path} holds two sequences named {name} (line {number}); name them apart")
            found[name] = []
        elif line:
            strange = set(line.upper()) - set(AMINO_ACIDS)
            if name is None or strange:
                what = f"{sorted(strange)[0]!r} is no amino acid" if strange else "no header line before it"
                raise ValueError(f"{path}, line {number}: {what}; the 20 letters are {AMINO_ACIDS}")
            found[name].append(line.upper())
    sequences = {name: "".join(parts) for name, parts in found.items() if parts}
    if not sequences:
        raise ValueError(f"no sequence in {path}")
    return sequences


class ResidueTokenizer(TextTokenizer):
    """One token a residue, in alphabetical order of letters; then the end of a protein, then the mask."""

    def __init__(self) -> None:
        self.eos_token_id = len(AMINO_ACIDS)
        self.mask_token_id = len(AMINO_ACIDS) + 1

    @property
    def vocab_size(self) -> int:
        """22: twenty amino acids, end and mask."""
        return len(AMINO_ACIDS) + 2

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each sequence; ``.`` is the end of a protein.

        Raises:
            ValueError: for a letter that is no amino acid.
        """
        letters = AMINO_ACIDS + END
        strange = {letter for text in texts for letter in text} - set(letters)
        if strange:
            raise ValueError(f"{sorted(strange)[0]!r} is no amino acid; the 20 letters are {AMINO_ACIDS}")
        return [[letters.index(letter) for letter in text] for text in texts]

    def decode(self, ids: list[int], *, mask: str = "_") -> str:
        """Letters of a sequence; ends are shown as ``.``, masks as ``mask``."""
        return "".join((AMINO_ACIDS + END + mask)[index] for index in ids)

    def proteins(self, windows: list[list[int]], *, least: int = 20) -> list[str]:
        """Stretches between ends in each window, of ``least`` residues or more."""
        pieces = [piece for window in windows for piece in self.decode(window).split(END)]
        return [piece for piece in pieces if len(piece) >= least]

    def fingerprint(self) -> str:
        """Hash of the whole definition."""
        return hashlib.sha256(self._definition().encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write the definition as JSON; it has no settings."""
        path.write_text(self._definition())

    @staticmethod
    def _definition() -> str:
        return json.dumps({"residues": AMINO_ACIDS, "end": END})
