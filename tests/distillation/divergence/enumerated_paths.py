"""Every path of a tiny student through the library's own matcher, and every corruption of its samples.

The unmasking draws, the tokens and the masks are dictated instead of drawn; everything else is the library's own code.
Weighted with their probabilities, in fp64, the surrogates of all of them give the expected gradient without any
sampling.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from discrete_distill import exact
from discrete_distill.distillation.paths import IntermediateStateMatcher
from discrete_distill.distillation.remasked_state import RemaskedState, remask
from discrete_distill.distillation.rollout import Rollout, TrajectoryStep
from discrete_distill.kernels import SampledRows
from discrete_distill.process import MaskedDiffusion, TimeDistribution
from discrete_distill.samplers import SamplerState


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_distribution(vocab_size: int, length: int, seed: int, sharpness: float = 1.0) -> Tensor:
    """A distribution without any structure."""
    logits = sharpness * torch.randn(vocab_size**length, dtype=torch.float64, generator=seeded(seed))
    return logits.softmax(0).reshape([vocab_size] * length)


def random_student(
    vocab_size: int, length: int, times: Sequence[float], seed: int, mask_token_id: int | None = None
) -> exact.TabularDenoiser:
    """A table of random logits for every state and step; ``times`` are rounded to fp32, as the matcher's are."""
    mask = vocab_size if mask_token_id is None else mask_token_id
    table = exact.TabularDenoiser(length, vocab_size, mask, torch.tensor(times).double())
    with torch.no_grad():
        table.logits.normal_(generator=seeded(seed))
    return table


def student_distribution(student: exact.TabularDenoiser, process: MaskedDiffusion, times: Sequence[float]) -> Tensor:
    """Exact distribution of the samples, differentiable."""
    grid = torch.tensor(times).double()
    return exact.sampler_distribution(student, process, grid, student.length, student.vocab_size)


@dataclass(frozen=True)
class FixedTimes(TimeDistribution):
    """Not a distribution at all: the intermediate times that a test asks for."""

    interior: tuple[float, ...] = ()

    def _unit_sample(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        return torch.tensor(self.interior).repeat(n // len(self.interior))

    def _unit_density(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


@dataclass
class EnumeratedPaths:
    """All paths, as one rollout whose rows are the paths, and the fp64 probability of each, unmasking draws and
    tokens."""

    rollout: Rollout
    probability: Tensor


def enumerate_paths(
    student: exact.TabularDenoiser, process: MaskedDiffusion, times: Sequence[float], *, positions: str = "revealed"
) -> EnumeratedPaths:
    """At each position: the step that reveals it, and its word."""
    length, vocab_size, num_steps = student.length, student.vocab_size, len(times) - 1
    ids = exact.tokens_of_words(torch.arange(vocab_size), process.mask_token_id)
    options = torch.cartesian_prod(*[torch.arange(num_steps * vocab_size)] * length).view(-1, length)
    step_of, token_of = options // vocab_size, ids[options % vocab_size]
    matcher = IntermediateStateMatcher(
        process,
        num_steps=(num_steps,),
        time_distribution=FixedTimes(interior=tuple(times[1:-1])),
        times_per="batch",
        positions=positions,  # type: ignore[arg-type]
    )

    def dictated_draws(state: SamplerState, first: int, probabilities: Tensor) -> Tensor:
        return torch.stack([step_of == first + k for k in range(len(probabilities))])

    def dictated_tokens(state: SamplerState, logits: Tensor, index: Tensor, step: int) -> SampledRows:
        tokens = token_of.flatten()[index]
        return SampledRows(tokens[:, None], torch.zeros(len(tokens), 1), None)

    with (
        patch.object(SamplerState, "unmask_draws_of_steps", dictated_draws),
        patch.object(SamplerState, "draw_tokens", dictated_tokens),
    ):
        rollout = matcher(student, options.shape, generator=seeded(0))
    assert bool((rollout.sequences == token_of).all())

    grid = torch.stack([rollout.steps[0].t[0], *(step.s[0] for step in rollout.steps)]).double()
    assert grid.tolist() == torch.tensor(times).double().tolist()
    still, reveal_at = 1.0, []
    for t, s in pairwise(grid):
        reveal = float(process.unmask_probability(t, s))
        reveal_at.append(still * reveal)
        still *= 1.0 - reveal
    draw_probability = torch.tensor(reveal_at, dtype=torch.float64)[step_of].prod(1)
    return EnumeratedPaths(rollout, draw_probability * rollout.log_prob().detach().exp())


def gauss_legendre(nodes: int, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    points, weights = np.polynomial.legendre.leggauss(nodes)
    width = high - low
    return torch.from_numpy(low + width * 0.5 * (points + 1.0)), torch.from_numpy(0.5 * width * weights)


def mask_patterns(length: int) -> Tensor:
    """Bool ``[2 ** L, L]``, true where hidden."""
    return torch.cartesian_prod(*[torch.tensor([False, True])] * length).view(-1, length)


def corruptions_of(x: Tensor, process: MaskedDiffusion, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every corruption of every row at one time: row numbers ``[N]``, states ``[N, L]``, probabilities ``[N]``."""
    patterns = mask_patterns(x.shape[1])
    number = torch.arange(len(x)).repeat_interleave(len(patterns))
    hidden = patterns.repeat(len(x), 1)
    alpha = process.visible_probability(t)
    probability = torch.where(hidden, 1.0 - alpha, alpha).prod(1)
    return number, torch.where(hidden, process.mask_token_id, x[number]), probability


def with_states(states: Tensor) -> object:
    """While this patch is on, `MaskedDiffusion.corrupt` returns ``states``."""

    def dictated(self: MaskedDiffusion, x: Tensor, t: Tensor, **_: object) -> Tensor:
        assert x.shape == states.shape
        return states

    return patch.object(MaskedDiffusion, "corrupt", dictated)


def coefficients(estimator: Callable, x: Tensor, t: Tensor, group_size: int = 1) -> Tensor:
    """What the surrogate multiplies each token's log-probability with, ``[B, L]``, for one group of rows.

    The surrogate is linear in the log-probabilities, so its derivative is all of it; the mean over the batch is undone,
    the mean over a group is not.
    """
    leaf = torch.zeros(x.shape, dtype=torch.float64, requires_grad=True)
    loss = estimator(x, leaf, group_size=group_size, t=t).loss
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient * (len(x) // group_size)


def groups_of(size: int, group_size: int, probability: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """All ordered groups of that many independent draws: draws ``[groups, G]`` and probabilities ``[groups]``."""
    draws = torch.cartesian_prod(*[torch.arange(size)] * group_size).view(-1, group_size)
    for part in draws.split(2**16):
        yield part, probability[part].prod(1)


def expected_gradient(
    estimator: Callable,
    paths: EnumeratedPaths,
    student: exact.TabularDenoiser,
    process: MaskedDiffusion,
    time_mass: Sequence[tuple[Tensor, Tensor]],
    group_size: int = 1,
) -> Tensor:
    """Expectation of the gradient of ``estimator`` over paths, corruptions and times, exactly.

    Args:
        time_mass: pairs of a time and the probability mass that a quadrature of the time distribution puts there.
    """
    x = paths.rollout.sequences
    credit_NL = torch.zeros(x.shape, dtype=torch.float64)
    for t, mass in time_mass:
        number, states, probability = corruptions_of(x, process, t)
        probability = probability * paths.probability[number]
        for draws, group_probability in groups_of(len(number), group_size, probability):
            flat = draws.flatten()
            with with_states(states[flat]):
                each = coefficients(estimator, x[number[flat]], t.expand(len(flat)), group_size)
            weighted = each * (mass * group_probability).repeat_interleave(group_size)[:, None]
            credit_NL.index_add_(0, number[flat], weighted)
    surrogate = (credit_NL * paths.rollout.token_log_probs()).sum()
    (gradient,) = torch.autograd.grad(surrogate, student.logits, retain_graph=True)
    return gradient


def relative_bias(gradient: Tensor, truth: Tensor) -> float:
    """``|gradient - truth| / |truth|``."""
    return float((gradient - truth).norm() / truth.norm())


def cosine(gradient: Tensor, truth: Tensor) -> float:
    return float((gradient * truth).sum() / (gradient.norm() * truth.norm()))


@dataclass
class EnumeratedRemasking:
    """Every remasking of one step of all paths, as one `RemaskedState` with a row for each; ``path`` and probability of
    each."""

    remasked: RemaskedState
    path: Tensor
    probability: Tensor
    student_NV: Tensor


def enumerate_remasking(
    paths: EnumeratedPaths, process: MaskedDiffusion, index: int, *, hidden: float
) -> EnumeratedRemasking:
    """All ways of hiding again what step ``index`` revealed; the paths must hold ``positions="masked"``."""
    step, size = paths.rollout.steps[index], len(paths.probability)
    patterns = mask_patterns(step.x_t.shape[1])
    path = torch.arange(size).repeat_interleave(len(patterns))
    hide = patterns.repeat(size, 1)
    of_row = torch.zeros(step.x_t.numel(), dtype=torch.long).index_copy(
        0, step.positions, torch.arange(len(step.positions))
    )
    was_masked = process.is_masked(step.x_t)[path]
    places = (path[:, None] * step.x_t.shape[1] + torch.arange(step.x_t.shape[1]))[was_masked]
    copied = TrajectoryStep(
        step.x_t[path],
        step.x_s[path],
        step.t[path],
        step.s[path],
        was_masked.flatten().nonzero().squeeze(1),
        step.revealed[of_row[places]],
        step.logits_NV[of_row[places]],
        process.mask_token_id,
    )
    reveal = float(process.unmask_probability(step.t[0].double(), step.s[0].double()))
    again = (max(1.0 - reveal, hidden) - (1.0 - reveal)) / reveal
    with patch.object(torch, "rand", lambda *_, **__: torch.where(hide, -1.0, 2.0)):
        remasked = remask(process, copied, torch.ones_like(hide), mask_ratio=hidden)
    again_or_not = torch.tensor([1.0 - again, again], dtype=torch.float64)
    unmask_draws = again_or_not[hide.long()].prod(1)
    return EnumeratedRemasking(
        remasked,
        path,
        paths.probability[path] * unmask_draws,
        process.masked_log_probs(copied.logits_NV[remasked.index]),
    )


def converged_auxiliary(remaskings: EnumeratedRemasking) -> Tensor:
    """``log E[p_student(v | x_t) | z']`` at the hidden positions: a perfectly fitted auxiliary."""
    length = remaskings.remasked.x_t.shape[1]
    owner = remaskings.remasked.positions // length
    asked = torch.cat((remaskings.remasked.x_t[owner], remaskings.remasked.positions[:, None] % length), dim=1)
    _, place = torch.unique(asked, dim=0, return_inverse=True)
    mass_N = remaskings.probability[owner]
    distribution_NV = remaskings.student_NV.detach().exp()
    sums = torch.zeros(int(place.max()) + 1, distribution_NV.shape[1], dtype=torch.float64)
    sums.index_add_(0, place, mass_N[:, None] * distribution_NV)
    return (sums / sums.sum(1, keepdim=True)).log()[place]
