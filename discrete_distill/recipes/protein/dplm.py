"""DPLM (arXiv 2402.18567) as a denoiser: masked diffusion of proteins in ESM-2's architecture and alphabet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from ...evaluation.protein import AMINO_ACIDS
from ...models import as_denoiser
from ...process import MaskedDiffusion
from ...samplers import AncestralSampler
from .esm import CLS, EOS, ESM_ALPHABET, MASK
from .folding import load_strictly


class ResiduesOnly(nn.Module):
    """A denoiser that predicts the 20 amino acids and nothing else of ESM's alphabet.

    Args:
        denoiser: over ESM's alphabet.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        allowed = torch.tensor([name in AMINO_ACIDS for name in ESM_ALPHABET])
        self.forbidden: Tensor
        self.register_buffer("forbidden", ~allowed, persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, /, **model_kwargs: Any) -> Tensor:
        return self.denoiser(x_t, t, **model_kwargs).masked_fill(self.forbidden, float("-inf"))


def esm_process() -> MaskedDiffusion:
    """With ESM's mask."""
    return MaskedDiffusion(MASK)


def load_dplm(name_or_path: str, device: torch.device | str = "cpu") -> ResiduesOnly:
    """``airkingbd/dplm_150m``, or a folder, through transformers and `models.as_denoiser`.

    Raises:
        FileNotFoundError: if it cannot be had.
        ValueError: if it is damaged or lacks weights, or its alphabet is not ESM's.
    """
    from transformers import AutoModelForMaskedLM

    network = load_strictly(AutoModelForMaskedLM, name_or_path, flag="--dplm").to(device)
    if network.config.vocab_size != len(ESM_ALPHABET):
        raise ValueError(
            f"{name_or_path} has {network.config.vocab_size} classes, ESM's alphabet {len(ESM_ALPHABET)}: not a DPLM"
        )
    denoiser: Any = as_denoiser(network)
    return ResiduesOnly(denoiser).to(device)


def esm_masked_sequences(count: int, length: int, device: torch.device | str = "cpu") -> Tensor:
    """Start, ``length`` masks, end: int64 ``[count, length + 2]``, for ``x_init``."""
    x_init = torch.full((count, length + 2), MASK, dtype=torch.long, device=device)
    x_init[:, 0], x_init[:, -1] = CLS, EOS
    return x_init


def esm_letters(sequences: Tensor) -> list[str]:
    """Residues of token ids, without start and end."""
    return [
        "".join(ESM_ALPHABET[index] for index in row if len(ESM_ALPHABET[index]) == 1) for row in sequences.tolist()
    ]


def sample_dplm(
    denoiser: nn.Module, count: int, length: int, *, num_steps: int, seed: int, batch_size: int = 32
) -> tuple[list[str], int]:
    """``count`` proteins of ``length`` residues, and the network evaluations of a batch."""
    sampler = AncestralSampler(esm_process(), num_steps=num_steps)
    device = next(denoiser.parameters()).device
    generator = Generator(device=device).manual_seed(seed)
    proteins: list[str] = []
    cost = 0
    while len(proteins) < count:
        x_init = esm_masked_sequences(min(batch_size, count - len(proteins)), length, device)
        out = sampler(denoiser, x_init=x_init, generator=generator)
        proteins += esm_letters(out.sequences)
        cost = max(cost, out.network_evaluations)
    return proteins, cost
