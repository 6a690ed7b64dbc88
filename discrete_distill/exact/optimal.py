"""The best that any sampler with a given number of parallel steps can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from discrete_distill.process import MaskedDiffusion

from .divergences import kl
from .markov import MarkovChain
from .mixture import MarkovMixture
from .sampler import checked_times, run_sampler, uniform_times
from .tabular import TabularDenoiser


class OptimalStudent(NamedTuple):
    """A fitted table, the distribution it samples, and the KLs in nats of that distribution against the chain's.

    Attributes:
        denoiser: the table, frozen; use it with ``times``.
        distribution: ``[K] * L``.
        times: the grid it was fitted for.
        reverse_kl: ``KL(student || chain)``.
        forward_kl: ``KL(chain || student)``.

    Examples:
        >>> chain = MarkovChain(torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
        >>> best = optimal_student(chain, num_steps=1, length=2, objective="forward", iterations=100)
        >>> round(best.forward_kl, 3), round(chain.total_correlation(2), 3)
        (0.368, 0.368)
    """

    denoiser: TabularDenoiser
    distribution: Tensor
    times: Tensor
    reverse_kl: float
    forward_kl: float


def optimal_student(
    chain: MarkovChain | MarkovMixture,
    num_steps: int,
    length: int,
    *,
    process: MaskedDiffusion | None = None,
    times: Sequence[float] | Tensor | None = None,
    objective: Literal["reverse", "forward"] = "reverse",
    iterations: int = 400,
    learning_rate: float = 0.3,
    noise: float = 1.0,
    generator: Generator | None = None,
) -> OptimalStudent:
    """Fit a table of logits per state and step by the exact gradient: the limit for any student network.

    The problem is not convex: what is found is an upper bound on the infimum. With one step and the forward
    objective the answer is known, the total correlation of the chain.

    Args:
        chain: the target, a chain or a mixture of chains.
        num_steps: parallel steps.
        length: L.
        process: log-linear with the mask last by default.
        times: grid from 1 to 0 with ``num_steps`` steps; uniform by default.
        objective: "reverse", ``KL(student || chain)``, or "forward", ``KL(chain || student)``.
        iterations: of Adam, its rate falling to zero along a cosine.
        learning_rate: of Adam, in logits.
        noise: standard deviation of the normal noise added to the perfect denoiser's log-probabilities, from
            which the fit starts; it breaks the symmetry of the perfect denoiser, which a sampler with few
            steps must leave.
        generator: source of that noise; a fixed seed by default.

    Returns:
        `OptimalStudent`.

    Raises:
        ValueError: if the grid does not fit ``num_steps``, the objective is unknown, there is too much to
            enumerate, or the reverse objective is chosen for a chain with impossible sequences.

    Examples:
        >>> chain = MarkovChain(torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
        >>> best = optimal_student(chain, num_steps=2, length=2, times=[1.0, 0.5, 0.0], iterations=100)
        >>> best.reverse_kl < chain.total_correlation(2)
        True
    """
    if objective not in ("reverse", "forward"):
        raise ValueError(f'objective must be "reverse" or "forward", got {objective!r}')
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    grid = uniform_times(num_steps) if times is None else checked_times(times)
    if len(grid) != num_steps + 1 or float(grid[-1]) != 0.0:
        raise ValueError(f"times must have {num_steps} steps and end at 0, got {grid.tolist()}")
    process = process if process is not None else MaskedDiffusion(chain.vocab_size)
    target = chain.distribution(length)
    if objective == "reverse" and bool((target == 0).any()):
        raise ValueError(
            "some sequences have probability zero under the chain, so KL(student || chain) is infinite for "
            'finite logits; use objective="forward", or a chain without zeros'
        )
    table = TabularDenoiser(length, chain.vocab_size, process.mask_token_id, grid)
    table.copy_from(chain.denoiser(process.mask_token_id, impossible="uniform"), process)
    _perturb(table, noise, generator)
    _fit(table, target, process, grid, objective, iterations, learning_rate)
    table.requires_grad_(False)
    distribution = table_distribution(table, process, grid)
    return OptimalStudent(table, distribution, grid, float(kl(distribution, target)), float(kl(target, distribution)))


def table_distribution(table: TabularDenoiser, process: MaskedDiffusion, times: Tensor) -> Tensor:
    """`sampler_distribution` of a table on its own grid, without a look-up for each state."""
    step = iter(table.logits)

    def rows(reached: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return next(step).softmax(-1)

    distributions = run_sampler(rows, process, times, table.length, table.vocab_size)
    return distributions[-1][(slice(0, table.vocab_size),) * table.length]


def _perturb(table: TabularDenoiser, noise: float, generator: Generator | None) -> None:
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    with torch.no_grad():
        table.logits.add_(noise * torch.randn(table.logits.shape, dtype=torch.float64, generator=generator))


def _fit(
    table: TabularDenoiser,
    target: Tensor,
    process: MaskedDiffusion,
    times: Tensor,
    objective: str,
    iterations: int,
    learning_rate: float,
) -> None:
    # Gradients of rare states are tiny and still decide; hence no floor, and a short memory of their scale.
    optimiser = torch.optim.Adam(table.parameters(), lr=learning_rate, betas=(0.9, 0.9), eps=1e-30)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for _ in range(iterations):
        distribution = table_distribution(table, process, times)
        loss = kl(distribution, target) if objective == "reverse" else kl(target, distribution)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
