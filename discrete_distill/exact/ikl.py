"""The integral KL of two enumerated distributions under masking, and the log-ratios that estimate it.

Masking multiplies ``P(visible tokens)`` by ``alpha^visible (1 - alpha)^masked`` whatever the distribution. So the
log-ratio of a state does not depend on the time, and ``KL(q_student(., t) || q_teacher(., t))`` is a
polynomial in ``alpha(t)`` whose Bernstein coefficients are the mean KL over all subsets of positions of one
size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from discrete_distill.process import MaskedDiffusion

from ..checks import check_count
from .divergences import check_same_sequences, kl_terms, safe_log
from .enumeration import check_distribution, enumerate_sequences, look_up
from .forward import DistributionDenoiser, visible_marginals

QUADRATURE_TOLERANCE = 1e-2


def subset_kl(student_distribution: Tensor, teacher_distribution: Tensor) -> Tensor:
    """Mean over all sets of ``k`` positions of the KL between the distributions of those positions, nats ``[L + 1]``.

    Zero at ``k = 0``, ``KL(student || teacher)`` at ``k = L``, and never falling in between.

    Raises:
        ValueError: if the distributions are over different sequences, or too large to enumerate.

    Examples:
        >>> student, teacher = torch.tensor([[0.5, 0.0], [0.0, 0.5]]), torch.full((2, 2), 0.25)
        >>> subset_kl(student, teacher)  # Single positions have equal distributions.
        tensor([0.0000, 0.0000, 0.6931], dtype=torch.float64)
    """
    check_same_sequences(student_distribution, teacher_distribution)
    length, vocab_size = check_distribution(student_distribution)
    terms = kl_terms(
        visible_marginals(student_distribution, vocab_size), visible_marginals(teacher_distribution, vocab_size)
    ).flatten()
    num_visible = (enumerate_sequences(vocab_size + 1, length) != vocab_size).sum(1).to(terms.device)
    sums = terms.new_zeros(length + 1).index_add(0, num_visible, terms)
    return sums / _binomials(length, terms)


def kl_at_time(
    student_distribution: Tensor, teacher_distribution: Tensor, process: MaskedDiffusion, t: float | Tensor
) -> Tensor:
    """``KL(q_student(., t) || q_teacher(., t))`` in nats, of the shape of ``t``.

    ``sum_k C(L, k) alpha^k (1 - alpha)^(L - k) D_k`` with ``D`` from `subset_kl`. Never grows with ``t``
    (data processing).

    Args:
        student_distribution: probabilities ``[K] * L``.
        teacher_distribution: same shape.
        process: gives ``alpha``.
        t: times in ``[0, 1]``, any shape.

    Raises:
        ValueError: if a time lies outside ``[0, 1]`` or the distributions do not fit.

    Examples:
        >>> student, teacher = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
        >>> process = MaskedDiffusion(mask_token_id=2, schedule=LinearSchedule())
        >>> kl_at_time(student, teacher, process, torch.tensor([0.0, 0.75, 1.0])) / kl(student, teacher)  # 1 - t
        tensor([1.0000, 0.2500, 0.0000], dtype=torch.float64)
    """
    times = torch.as_tensor(t, dtype=torch.float64, device=student_distribution.device)
    if not bool(((times >= 0) & (times <= 1)).all()):
        raise ValueError(f"times must lie in [0, 1], got {t}")
    coefficients = subset_kl(student_distribution, teacher_distribution)
    return _mix(_visible_count_distribution(process, times, coefficients.shape[0] - 1), coefficients)


def integral_kl(
    student_distribution: Tensor,
    teacher_distribution: Tensor,
    process: MaskedDiffusion,
    weight: Callable[[Tensor], Tensor],
    *,
    low: float = 0.0,
    high: float = 1.0,
    nodes: int = 128,
) -> Tensor:
    """Integral KL, ``integral omega(t) KL(q_student(., t) || q_teacher(., t)) dt`` from ``low`` to ``high``.

    The objective of DiDi-Instruct (arXiv 2509.25035).

    Gauss-Legendre over ``t`` of a polynomial in ``alpha(t)``: one node costs L + 1 products, and the distributions are
    summed once. With a constant weight and a linear schedule ``L / 2 + 1`` nodes are exact. The ELBO weight
    behaves as ``1 / t``: its integral from 0 diverges unless the distributions are equal, so it needs ``low > 0`` or a
    clip.

    Args:
        student_distribution: probabilities ``[K] * L``; differentiable.
        teacher_distribution: same shape.
        process: gives ``alpha``.
        weight: ``omega``, elementwise on fp64 times, e.g. a `TimeWeight`.
        low: lower end, 0 is data.
        high: upper end, 1 is all mask.
        nodes: of the quadrature.

    Returns:
        Scalar, nats times the unit of ``omega``.

    Raises:
        ValueError: unless ``0 <= low < high <= 1`` and ``nodes >= 1``; if the distributions do not fit; if the
            integral has not converged, which is tested by doubling the number of nodes.

    Examples:
        >>> student, teacher = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
        >>> process = MaskedDiffusion(mask_token_id=2, schedule=LinearSchedule())
        >>> integral_kl(student, teacher, process, lambda t: 1.0 + 0.0 * t) / kl(student, teacher)  # Integral of 1 - t.
        tensor(0.5000, dtype=torch.float64)
    """
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(f"0 <= low < high <= 1 is needed, got low = {low}, high = {high}")
    check_count("nodes", nodes)
    length, _ = check_distribution(student_distribution)
    mass = _weight_of_counts(process, weight, length, low, high, nodes)
    finer = _weight_of_counts(process, weight, length, low, high, 2 * nodes)
    if not bool(((mass - finer).abs() <= QUADRATURE_TOLERANCE * finer.abs().sum()).all()):
        raise ValueError(
            f"the weight cannot be integrated over [{low}, {high}] with {nodes} nodes: they give a total "
            f"weight of {float(mass.sum()):.6g}, twice as many {float(finer.sum()):.6g}; "
            f"raise low above {low}, clip the weight, or take more nodes"
        )
    coefficients = subset_kl(student_distribution, teacher_distribution)
    return _mix(mass.to(coefficients), coefficients)


def _mix(mass: Tensor, coefficients: Tensor) -> Tensor:
    """``sum_k mass_k D_k`` over the last axis, where no mass times an infinite divergence is 0."""
    return torch.where(mass > 0, mass * coefficients, 0.0).sum(-1)


def _weight_of_counts(
    process: MaskedDiffusion,
    weight: Callable[[Tensor], Tensor],
    length: int,
    low: float,
    high: float,
    nodes: int,
) -> Tensor:
    """``integral omega(t) P(k of L positions are visible at t) dt`` for each ``k``, ``[L + 1]``."""
    points, point_weights = _gauss_legendre(nodes)
    times = low + (high - low) * points
    omega = weight(times) * point_weights * (high - low)
    return omega @ _visible_count_distribution(process, times, length)


@lru_cache(maxsize=32)
def _gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Points and weights on ``[0, 1]``, fp64 ``[nodes]`` each."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy(0.5 * (points + 1.0)), torch.from_numpy(0.5 * weights)


def _visible_count_distribution(process: MaskedDiffusion, times: Tensor, length: int) -> Tensor:
    """Binomial distribution of the number of visible positions, ``[..., L + 1]``."""
    alpha = process.visible_probability(times)[..., None]
    count = torch.arange(length + 1, dtype=torch.float64, device=times.device)
    return _binomials(length, alpha) * alpha**count * (1.0 - alpha) ** (length - count)


def _binomials(length: int, like: Tensor) -> Tensor:
    row = [1]
    for k in range(length):
        row.append(row[-1] * (length - k) // (k + 1))
    return torch.tensor(row, dtype=torch.float64, device=like.device)


def log_ratio(student_distribution: Tensor, teacher_distribution: Tensor, process: MaskedDiffusion) -> Tensor:
    """``log q_student(x_t, t) - log q_teacher(x_t, t)`` of every state ``x_t``: nats, ``[K + 1] * L`` by token ids.

    The same at every ``t`` in ``(0, 1)``, since masking multiplies both distributions by the same factor.
    ``look_up(ratio, x_t)`` reads it for a batch. -inf where only the teacher can be, inf where only the
    student, NaN where neither.

    Raises:
        ValueError: if the distributions are over different sequences, or too large to enumerate.

    Examples:
        >>> student, teacher = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
        >>> log_ratio(student, teacher, MaskedDiffusion(mask_token_id=2)).exp()  # 8/5, 2/5, and 1 for the mask.
        tensor([1.6000, 0.4000, 1.0000])
    """
    check_same_sequences(student_distribution, teacher_distribution)
    mask = process.mask_token_id
    return safe_log(visible_marginals(student_distribution, mask)) - safe_log(
        visible_marginals(teacher_distribution, mask)
    )


def discriminator_logits(
    student_distribution: Tensor, teacher_distribution: Tensor, process: MaskedDiffusion, x_t: Tensor
) -> Tensor:
    """What a per-position discriminator (student 1, reference 0) converges to: logits ``[B, L]``.

    Trained by binary cross-entropy, its logit at a masked position sees the whole of ``x_t`` and its label
    belongs to the whole sequence, so the optimum is the sequence log-ratio
    ``log q_student(x_t, t) / q_teacher(x_t, t)`` at *every* masked position: the mean over masked positions
    is that ratio, their sum is too large by the number of masks. In a state without a mask it stands at all
    positions. Zero where the loss does not look, see `MaskedDiffusion.judged_positions`.
    The reference must be corrupted to the same distribution of ``t``.

    Args:
        student_distribution: probabilities ``[K] * L``.
        teacher_distribution: same shape; the distribution of the reference.
        process: gives the mask's id.
        x_t: token ids, int64 ``[B, L]``.

    Raises:
        ValueError: if distributions or tokens do not fit.

    Examples:
        >>> student, teacher = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])  # Sequences of one word.
        >>> process = MaskedDiffusion(mask_token_id=2)
        >>> discriminator_logits(student, teacher, process, torch.tensor([[0], [2]]))  # log(8/5); 0 of the mask.
        tensor([[0.4700],
                [0.0000]])
    """
    ratio_B = look_up(log_ratio(student_distribution, teacher_distribution, process), x_t)
    return torch.where(process.judged_positions(x_t), ratio_B[:, None], 0.0)


def token_log_ratio(
    student_distribution: Tensor, teacher_distribution: Tensor, process: MaskedDiffusion, x_t: Tensor
) -> Tensor:
    """``log P_student(x_i = v | x_t) - log P_teacher(x_i = v | x_t)`` at masked positions: ``[B, L, K + 1]``.

    Log-ratio of a converged auxiliary denoiser and the perfect teacher. It is the change of `log_ratio` when
    position ``i`` of ``x_t`` is filled with ``v``. Zero at visible positions and for the mask; NaN where
    neither distribution can have ``v``.

    Raises:
        ValueError: if distributions or tokens do not fit, or ``x_t`` is impossible under one of the distributions.

    Examples:
        >>> student, teacher = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
        >>> token_log_ratio(student, teacher, MaskedDiffusion(mask_token_id=2), torch.tensor([[2]])).exp()
        tensor([[[1.6000, 0.4000, 1.0000]]])
    """
    mask = process.mask_token_id
    student, teacher = (
        DistributionDenoiser(student_distribution, mask)(x_t),
        DistributionDenoiser(teacher_distribution, mask)(x_t),
    )
    is_word = torch.arange(student.shape[-1], device=x_t.device) != mask
    scored = process.is_masked(x_t)[..., None] & is_word
    return torch.where(scored, student, 0.0) - torch.where(scored, teacher, 0.0)
