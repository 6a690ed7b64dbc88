"""A toy language for the examples: a Markov chain of 8 words, whose every probability is known, and a teacher of it."""

from __future__ import annotations

import torch

from discrete_distill import AncestralSampler, MaskedDiffusion
from discrete_distill.exact import large_chain
from discrete_distill.models import DiT, DiTConfig

CHAIN, LENGTH = large_chain()
PROCESS = MaskedDiffusion(mask_token_id=8)


def train_teacher(steps: int = 400) -> DiT:
    """A small masked diffusion model of the chain."""
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "num_layers": 2, "num_heads": 2, "cond_size": 16, "dropout": 0.0}
    teacher = DiT(DiTConfig(vocab_size=9, max_length=LENGTH, **shape))
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        loss = PROCESS.nelbo(teacher, CHAIN.sample(64, LENGTH, generator=g), by="count", generator=g).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return teacher.eval()


def surprise(denoiser, num_steps: int, count: int = 512) -> float:
    """``-log P(x)`` per word of samples, in nats. Near the chain's own entropy is right; below it is collapse."""
    g = torch.Generator().manual_seed(1)
    x = AncestralSampler(PROCESS, num_steps=num_steps)(denoiser, (count, LENGTH), generator=g).sequences
    return float(-CHAIN.log_prob(x).mean()) / LENGTH


def report(teacher, student, num_steps: int = 2) -> dict[str, float]:
    """Print and return what teacher and student cost the chain, and what its own samples cost."""
    found = {
        "teacher": surprise(teacher, num_steps),
        "student": surprise(student, num_steps),
        "language": CHAIN.entropy(LENGTH) / LENGTH,
    }
    print(f"nats per word in {num_steps} steps:", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found
