"""The tokenizer of protein sequences: one token a residue."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ...evaluation.protein import AMINO_ACIDS
from ...files import write_text
from ..common.tokenizer import TextTokenizer

END = "."


class ResidueTokenizer(TextTokenizer):
    """One token a residue, in alphabetical order of letters; then the end of a protein, then the mask."""

    def __init__(self) -> None:
        self.eos_token_id = len(AMINO_ACIDS)
        self.mask_token_id = len(AMINO_ACIDS) + 1

    @property
    def vocab_size(self) -> int:
        """22: twenty amino acids, end and mask."""
        return len(AMINO_ACIDS) + 2

    def token_to_id(self, token: str) -> int | None:
        """Id of a letter or of the end; None for anything else."""
        return (AMINO_ACIDS + END).find(token) if len(token) == 1 and token in AMINO_ACIDS + END else None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each sequence; ``.`` is the end of a protein.

        Raises:
            ValueError: for a letter that is no amino acid.
        """
        index_of = {letter: index for letter in AMINO_ACIDS + END if (index := self.token_to_id(letter)) is not None}
        strange = {letter for text in texts for letter in text} - set(index_of)
        if strange:
            raise ValueError(f"{sorted(strange)[0]!r} is no amino acid; the 20 letters are {AMINO_ACIDS}")
        return [[index_of[letter] for letter in text] for text in texts]

    def decode(self, ids: list[int], *, mask: str = "_") -> str:
        """Letters of a sequence; ends are shown as ``.``, masks as ``mask``."""
        return "".join((AMINO_ACIDS + END + mask)[index] for index in ids)

    def proteins(self, windows: list[list[int]], *, minimum_residues: int = 20) -> list[str]:
        """Stretches between ends in each window, of ``minimum_residues`` or more."""
        pieces = [piece for window in windows for piece in self.decode(window).split(END)]
        return [piece for piece in pieces if len(piece) >= minimum_residues]

    def fingerprint(self) -> str:
        """Hash of the whole definition."""
        return hashlib.sha256(self.definition().encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write the definition as JSON; it has no settings."""
        write_text(path, self.definition())

    def definition(self) -> str:
        """Letters and end, as JSON."""
        return json.dumps({"residues": AMINO_ACIDS, "end": END})
