"""The exact distribution of an ancestral sampler, by enumeration.

One step from ``t`` to ``s`` reveals each masked position by its own draw and draws it from the denoiser,
independently of the others. States with the same masked positions move by an outer product of per-position
moves, so a step costs ``(2K + 1)^L`` products rather than the square of ``(K + 1)^L`` states.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from discrete_distill.process import Denoiser, MaskedDiffusion, evaluation_mode, step_kwargs

from ..checks import check_count
from .enumeration import MaskPattern, check_enumerable, masked_states, with_mask_at
from .vocabulary import check_mask_token_id, mask_at, word_ids


class RowProbabilities(Protocol):
    """Word probabilities ``[N, K]`` at the masked positions of all masked states, in the order of
    `masked_states`, for the step from ``t`` to ``s``. Rows of states that are not ``reached`` (bool ``[S]``)
    are never read."""

    def __call__(self, reached: Tensor, t: Tensor, s: Tensor) -> Tensor: ...


def sampler_distribution(
    denoiser: Denoiser,
    process: MaskedDiffusion,
    times: Sequence[float] | Tensor,
    length: int,
    vocab_size: int,
    *,
    time_dependent: bool = True,
    batch_size: int = 4096,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Distribution of the clean sequences that ancestral sampling through ``times`` produces (arXiv 2406.07524).

    The same function gives the distribution of student paths through given times.

    Args:
        denoiser: any `Denoiser` with logits ``[B, length, vocab_size + 1]``; called on all states that the
            sampler reaches, with ``t`` fp32 ``[B]`` (and ``s`` if it ``accepts_step``). The result is
            differentiable in its parameters. Read in evaluation mode: dropout would draw another denoiser for
            each state.
        process: gives unmask probabilities and the mask's id.
        times: descending from 1 to 0, one step between neighbours.
        length: L.
        vocab_size: K, words without the mask.
        time_dependent: False for a denoiser that ignores ``t`` and ``s``: it is then called
            again only when new states come within reach.
        batch_size: states per call of the denoiser.
        device: where tokens are made; the denoiser's.

    Returns:
        fp64 probabilities ``[vocab_size] * length``, summing to 1, indexed by words.

    Raises:
        ValueError: if ``times`` do not descend from 1 to 0, the logits have the wrong shape, the mask lies
            outside the vocabulary, or there is too much to enumerate.

    Examples:
        >>> chain = MarkovChain(torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
        >>> sampler_distribution(chain.denoiser(2), MaskedDiffusion(mask_token_id=2), uniform_times(1), 2, 2)
        tensor([[0.2500, 0.2500],
                [0.2500, 0.2500]], dtype=torch.float64)
    """
    times = checked_times(times)
    if float(times[-1]) != 0.0:
        raise ValueError(f"times must end at 0, where no mask is left, got {float(times[-1])}")
    rows = DenoiserRows(denoiser, process, length, vocab_size, time_dependent, batch_size, device)
    distribution = run_sampler(rows, process, times, length, vocab_size, device)[-1]
    return distribution[(slice(0, vocab_size),) * length]


def sampler_path_distributions(
    denoiser: Denoiser,
    process: MaskedDiffusion,
    times: Sequence[float] | Tensor,
    length: int,
    vocab_size: int,
    *,
    time_dependent: bool = True,
    batch_size: int = 4096,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, ...]:
    """Distribution of the sampler's state at each of ``times``: state distributions ``[K + 1] * L``, indexed by token
    ids.

    As `sampler_distribution`, but ``times`` may end anywhere. The first distribution is the point mass on all masks.

    Examples:
        >>> chain = MarkovChain(torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
        >>> process = MaskedDiffusion(mask_token_id=2, schedule=LinearSchedule())
        >>> start, middle, end = sampler_path_distributions(chain.denoiser(2), process, [1.0, 0.5, 0.0], 2, 2)
        >>> start[2, 2].item(), middle[2, 2].item()  # All masked at first; half of the tokens are after one step.
        (1.0, 0.25)
    """
    times = checked_times(times)
    rows = DenoiserRows(denoiser, process, length, vocab_size, time_dependent, batch_size, device)
    distributions = run_sampler(rows, process, times, length, vocab_size, device)
    return tuple(with_mask_at(distribution, process.mask_token_id) for distribution in distributions)


def uniform_times(num_steps: int) -> Tensor:
    """``1 = t_0 > ... > t_num_steps = 0`` in equal steps, fp64 ``[num_steps + 1]``.

    Raises:
        ValueError: if ``num_steps`` is less than 1.

    Examples:
        >>> uniform_times(4).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    check_count("num_steps", num_steps)
    return torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)


def checked_times(times: Sequence[float] | Tensor) -> Tensor:
    """``times`` as fp64 on the CPU.

    Raises:
        ValueError: unless they are two or more, start at 1, descend strictly and stay in ``[0, 1]``.
    """
    values = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
    if values.dim() != 1 or len(values) < 2:
        raise ValueError(f"times must be a list of two or more, got {times}")
    if float(values[0]) != 1.0 or not bool((values.diff() < 0).all()) or float(values[-1]) < 0.0:
        raise ValueError(f"times must descend strictly from 1 and not below 0, got {values.tolist()}")
    return values


def run_sampler(
    rows: RowProbabilities,
    process: MaskedDiffusion,
    times: Tensor,
    length: int,
    vocab_size: int,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """State distributions at all ``times``, ``[K + 1] * L`` with the mask last."""
    check_enumerable(2 * vocab_size + 1, length, "all transitions of a step of the sampler")
    space = masked_states(vocab_size, length)
    distribution = torch.zeros([vocab_size + 1] * length, dtype=torch.float64, device=device)
    distribution[(vocab_size,) * length] = 1.0
    distributions = [distribution]
    flat = space.flat.to(device)
    for t, s in pairwise(times):
        reached = distribution.detach().flatten()[flat] > 0
        reveal = float(process.unmask_probability(t, s))
        distribution = _step(distribution, rows(reached, t, s), reveal, reached, space.patterns)
        distributions.append(distribution)
    return distributions


def _step(
    distribution: Tensor, word_probs: Tensor, reveal: float, reached: Tensor, patterns: tuple[MaskPattern, ...]
) -> Tensor:
    vocab_size, length = word_probs.shape[1], distribution.dim()
    stay = word_probs.new_full((len(word_probs), 1), 1.0 - reveal)
    moves = torch.cat([reveal * word_probs, stay], dim=1) if reveal < 1.0 else word_probs
    new_distribution = torch.zeros_like(distribution)
    words = (slice(0, vocab_size),) * length
    new_distribution[words] = distribution[words]
    start = 0
    for pattern in patterns:
        is_reached = bool(reached[start : start + pattern.num_states].any())
        start += pattern.num_states
        if is_reached:
            target = [slice(0, vocab_size)] * length
            for i in pattern.masked:
                target[i] = slice(0, moves.shape[1])
            new_distribution[tuple(target)] += _contribution(distribution, moves, pattern)
    return new_distribution


def _contribution(distribution: Tensor, moves: Tensor, pattern: MaskPattern) -> Tensor:
    """Probability that flows from the states of one pattern: an axis of size K or ``moves`` per position."""
    vocab_size, num_moves = distribution.shape[0] - 1, moves.shape[1]
    masked, visible = pattern.masked, pattern.visible
    here = tuple(vocab_size if i in masked else slice(0, vocab_size) for i in range(distribution.dim()))
    flow = distribution[here].reshape(pattern.num_states, 1)
    rows = moves[pattern.row_start : pattern.row_start + pattern.num_rows]
    for position_moves in rows.view(pattern.num_states, len(masked), num_moves).unbind(1):
        flow = (flow[:, :, None] * position_moves[:, None, :]).flatten(1)
    flow = flow.view([vocab_size] * len(visible) + [num_moves] * len(masked))
    axes = [*visible, *masked]
    return flow.permute([axes.index(i) for i in range(distribution.dim())])


class DenoiserRows:
    """`RowProbabilities` of a `Denoiser`, called in batches on reached states only."""

    def __init__(
        self,
        denoiser: Denoiser,
        process: MaskedDiffusion,
        length: int,
        vocab_size: int,
        time_dependent: bool = True,
        batch_size: int = 4096,
        device: torch.device | str = "cpu",
    ) -> None:
        check_mask_token_id(process.mask_token_id, vocab_size)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        check_enumerable(2 * vocab_size + 1, length, "all transitions of a step of the sampler")
        self.denoiser = denoiser
        self.process = process
        self.vocab_size = vocab_size
        self.time_dependent = time_dependent
        self.batch_size = batch_size
        states = masked_states(vocab_size, length).states.to(device)
        self.hidden = states == vocab_size
        self.tokens = mask_at(states, process.mask_token_id, vocab_size)
        self.known = torch.zeros(len(states), dtype=torch.bool, device=device)
        self.known_rows: Tensor | None = None

    def __call__(self, reached: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if not self.time_dependent and self.known_rows is not None and bool((self.known | ~reached).all()):
            return self.known_rows
        probs = torch.cat([self._word_probs(chosen, t, s) for chosen in self._batches(reached)])
        num_rows = int(self.hidden.sum())
        if len(probs) != num_rows:
            rows = (self.hidden & reached[:, None])[self.hidden].nonzero().squeeze(1)
            probs = probs.new_zeros(num_rows, self.vocab_size).index_copy(0, rows, probs)
        self.known, self.known_rows = reached, probs
        return probs

    def _batches(self, reached: Tensor) -> tuple[Tensor, ...]:
        return reached.nonzero().squeeze(1).split(self.batch_size)

    def _word_probs(self, chosen: Tensor, t: Tensor, s: Tensor) -> Tensor:
        tokens = self.tokens[chosen]
        t_B, s_B = (time.float().to(tokens.device).expand(len(tokens)) for time in (t, s))
        with evaluation_mode(self.denoiser):
            logits = self.denoiser(tokens, t_B, **step_kwargs(self.denoiser, s_B))
        expected = (*tokens.shape, self.vocab_size + 1)
        if tuple(logits.shape) != expected:
            raise ValueError(
                f"the denoiser must return logits of shape {list(expected)} (vocab_size {self.vocab_size} "
                f"and the mask), got {list(logits.shape)}"
            )
        log_probs = self.process.masked_log_probs(logits[self.hidden[chosen]].double())
        if bool(log_probs.isnan().any()):
            raise ValueError("the denoiser's logits hold NaN, inf, or a row in which no word is possible")
        return log_probs.exp()[:, word_ids(self.vocab_size, self.process.mask_token_id, tokens.device)]
