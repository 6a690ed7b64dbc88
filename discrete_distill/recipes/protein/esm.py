"""Protein sequences in the alphabet of ESM-2 (arXiv 2206.13517), which DPLM (arXiv 2402.18567) has as well."""

from __future__ import annotations

import json
from typing import Any

from ...evaluation.protein import AMINO_ACIDS
from .residues import END, ResidueTokenizer

# Part of the published weights.
ESM_ALPHABET = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO", ".", "-", "<null_1>", "<mask>")
CLS, EOS, MASK = (ESM_ALPHABET.index(name) for name in ("<cls>", "<eos>", "<mask>"))


class EsmTokenizer(ResidueTokenizer):
    """One token a residue, by ESM's ids, in the frame ``<cls> ... <eos>``. Nothing but amino acids and the end of a
    protein, ``<eos>``, is generated."""

    def __init__(self) -> None:
        self.eos_token_id, self.mask_token_id = EOS, MASK
        self.prefix, self.suffix = (CLS,), (EOS,)
        words = {*AMINO_ACIDS, "<eos>", "<mask>"}
        self.forbidden_token_ids = tuple(index for index, name in enumerate(ESM_ALPHABET) if name not in words)

    @property
    def vocab_size(self) -> int:
        """33."""
        return len(ESM_ALPHABET)

    def token_to_id(self, token: str) -> int | None:
        """Id of a letter or of the end; None for anything else."""
        if token == END:
            return EOS
        return ESM_ALPHABET.index(token) if token in AMINO_ACIDS and len(token) == 1 else None

    def decode(self, ids: list[int], *, mask: str = "_") -> str:
        """Letters of a sequence; ends are shown as ``.``, masks as ``mask``; other special tokens are left out."""
        shown = {EOS: END, MASK: mask}
        letters = [shown.get(index, ESM_ALPHABET[index]) for index in ids]
        return "".join(letter for letter in letters if len(letter) == 1)

    def definition(self) -> str:
        """The alphabet, as JSON."""
        return json.dumps({"alphabet": ESM_ALPHABET})


def find_residues(teacher: str, model: dict[str, Any] | None) -> ResidueTokenizer:
    """The tokenizer of a protein teacher.

    Args:
        teacher: folder or hub name, for the message.
        model: its ``config.json`` if it is a Hugging Face model, else None.

    Raises:
        ValueError: if it is a Hugging Face model of another alphabet than ESM's.
    """
    if model is None:
        return ResidueTokenizer()
    if model.get("vocab_size") != len(ESM_ALPHABET) or model.get("model_type") != "esm":
        raise ValueError(
            f"{teacher} is a {model.get('model_type')} of {model.get('vocab_size')} classes: of Hugging Face models "
            f"this recipe reads those with ESM's alphabet of {len(ESM_ALPHABET)}, such as ESM-2 and DPLM"
        )
    return EsmTokenizer()
