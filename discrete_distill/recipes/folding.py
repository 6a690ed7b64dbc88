"""pLDDT by ESMFold (Lin et al., Science 379, 2023) through transformers: how sure it is of a sequence's structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def load_esmfold(name_or_path: str, device: torch.device | str = "cpu") -> Any:
    """``facebook/esmfold_v1``, or a folder; 3 billion parameters.

    Raises:
        FileNotFoundError: if it cannot be had.
    """
    from transformers import EsmForProteinFolding

    try:
        return EsmForProteinFolding.from_pretrained(name_or_path).to(device).eval()
    except OSError as error:
        raise FileNotFoundError(f"no ESMFold at {name_or_path}; give --fold a local folder, or leave it out") from error


@torch.no_grad()
def plddt(model: Any, sequence: str) -> float:
    """Mean over residues of the predicted lDDT of their C-alpha atoms, in ``[0, 100]``."""
    out = model.infer([sequence])
    # Atom 1 of the 37 is C-alpha.
    confidence_L = out.plddt[0, : len(sequence), 1].float()
    return 100.0 * float(confidence_L.mean())


def mean_plddt(model: Any, sequences: Sequence[str]) -> float:
    """Mean of `plddt` over sequences, one at a time: memory grows with the square of the length.

    Raises:
        ValueError: without sequences.
    """
    if not sequences:
        raise ValueError("there are no sequences to fold")
    return sum(plddt(model, sequence) for sequence in sequences) / len(sequences)
