"""What the tests of the laboratory share. Everything here is written the slow and obvious way."""

import torch
from torch import Tensor

from discrete_distill.exact import MarkovChain, random_chain
from discrete_distill.process import (
    CosineSchedule,
    GeometricSchedule,
    LinearSchedule,
    LogLinearSchedule,
    MaskedDiffusion,
    PolynomialSchedule,
)

SCHEDULES = [
    LogLinearSchedule(),
    LinearSchedule(),
    CosineSchedule(),
    PolynomialSchedule(2.0),
    GeometricSchedule(),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain(vocab_size: int, seed: int = 0, concentration: float = 0.7) -> MarkovChain:
    return random_chain(vocab_size, seeded(seed), concentration)


def random_distribution(vocab_size: int, length: int, seed: int) -> Tensor:
    """A distribution without any structure."""
    logits = 1.5 * torch.randn(vocab_size**length, dtype=torch.float64, generator=seeded(seed))
    return logits.softmax(0).reshape([vocab_size] * length)


def all_tokens(size: int, length: int) -> Tensor:
    """Every noisy state, as token ids, in the order of a flattened state distribution."""
    return torch.cartesian_prod(*[torch.arange(size)] * length).reshape(-1, length)


class RandomDenoiser:
    """Arbitrary logits that depend on state, time and the end of the step; the mask has one too."""

    accepts_step = True

    def __init__(self, vocab_size: int, length: int, seed: int) -> None:
        size = vocab_size + 1
        self.table = torch.randn(size**length, length, size, dtype=torch.float64, generator=seeded(seed))
        self.places = size ** torch.arange(length - 1, -1, -1)
        self.calls: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor, /, *, s: Tensor) -> Tensor:
        self.calls.append(x_t)
        return self.table[(x_t * self.places).sum(1)] * (1.0 + t + 3.0 * s)[:, None, None].double()


def transition_matrix(denoiser, process: MaskedDiffusion, t: Tensor, s: Tensor, size: int, length: int):
    """``P(x_s | x_t)`` between all pairs of states, from `MaskedDiffusion.posterior` alone."""
    states = all_tokens(size, length)
    t_B, s_B = t.float().expand(len(states)), s.float().expand(len(states))
    logits = denoiser(states, t_B, s=s_B) if getattr(denoiser, "accepts_step", False) else denoiser(states, t_B)
    probs = process.posterior(logits, states, t.expand(len(states)), s.expand(len(states)))
    matrix = torch.ones(len(states), len(states), dtype=torch.float64)
    for i in range(length):
        matrix = matrix * probs[:, i][:, states[:, i]]
    return matrix
