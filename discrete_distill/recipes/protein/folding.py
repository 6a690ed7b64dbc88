"""pLDDT by ESMFold (Lin et al., Science 379, 2023) through transformers: how sure it is of a sequence's structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError


def load_esmfold(name_or_path: str, device: torch.device | str = "cpu") -> Any:
    """``facebook/esmfold_v1``, or a folder; 3 billion parameters.

    Raises:
        FileNotFoundError: if it cannot be had.
        ValueError: if it is damaged or lacks weights.
    """
    from transformers import EsmForProteinFolding

    return load_strictly(EsmForProteinFolding, name_or_path, flag="--fold").to(device)


def load_strictly(model_class: Any, name_or_path: str, *, flag: str) -> Any:
    """Load a model of transformers, in evaluation mode, without running code from its files."""
    try:
        model, found = model_class.from_pretrained(name_or_path, trust_remote_code=False, output_loading_info=True)
    except (OSError, HFValidationError) as error:  # transformers before 5 passes on the hub's refusal of a path.
        raise FileNotFoundError(f"no model at {name_or_path}; give {flag} a local folder, or leave it out") from error
    except Exception as error:  # Damaged files raise errors of a dozen kinds.
        raise ValueError(f"the model at {name_or_path} cannot be loaded ({type(error).__name__})") from error
    # The head for contacts is not used here, and some published models leave it out.
    if missing := sorted(name for name in found["missing_keys"] if "contact_head" not in name):
        raise ValueError(f"the model at {name_or_path} lacks weights: {', '.join(missing[:3])}")
    return model.eval()


@torch.no_grad()
def plddt(model: Any, sequence: str) -> float:
    """Mean over residues of the predicted lDDT of their C-alpha atoms, in ``[0, 100]``."""
    out = model.infer([sequence])
    # Atom 1 of the 37 is C-alpha.
    confidence_L = out.plddt[0, : len(sequence), 1].float()
    return 100.0 * float(confidence_L.mean())


def mean_plddt(model: Any, sequences: Sequence[str]) -> float:
    """Mean of `plddt` over sequences, one at a time: memory grows with the square of the length."""
    if not sequences:
        raise ValueError("there are no sequences to fold")
    return sum(plddt(model, sequence) for sequence in sequences) / len(sequences)
