"""Forward KL from the teacher in states of reference sequences: it keeps the modes that a reverse KL gives up.

Shape suffixes: B batch, L length, K steps, N masked positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ... import draws
from ...kernels import token_losses
from ...process import Denoiser, MaskedDiffusion, logits_at
from ...process.modes import differentiable_evaluation_mode
from ...samplers.logits import read_logits
from ..rollout import Rollout


def data_divergence(
    process: MaskedDiffusion,
    student: Denoiser,
    teacher: Denoiser,
    rollout: Rollout,
    reference: Tensor,
    *,
    num_tokens: Tensor | float,
    generator: Generator | None = None,
) -> Tensor:
    """Estimate the forward KL of few-step generation on reference sequences, in nats a token, with its graph.

    For a sequence ``x`` and a path with times ``1 = t_1 > ... > t_{K+1} = 0``,

        sum_k E[ sum_{i masked in x_{t_k}} (alpha_{t_{k+1}} - alpha_{t_k}) / (1 - alpha_{t_k})
                 KL(teacher(. | x_{t_k}) || student(. | x_{t_k}, t_k, t_{k+1})) ]

    One step is drawn for each row, uniformly, and weighted by ``K``. At states of *data* the teacher is right, and a
    student that gave up a mode pays for every sequence of it. At states that only the student's parallel draws reach
    (tokens of two modes), where it should depart from its teacher, there is no penalty.

    Args:
        process: corrupts the reference.
        student: read in evaluation mode, with a graph.
        teacher: read in evaluation mode, without a graph.
        rollout: gives the times of its steps and the positions that are generated.
        reference: clean tokens of data or of the teacher at many steps, int64 ``[B, L]``; given positions must agree
            with the rollout's.
        num_tokens: generated tokens of the batch.
        generator: source of randomness.

    Returns:
        A scalar; zero where the student is the teacher.

    Raises:
        ValueError: if the reference has another shape than the samples.
    """
    rollout.check_reference(reference)
    times_KB = torch.stack([step.t for step in rollout.steps])
    ends_KB = torch.stack([step.s for step in rollout.steps])
    batch = torch.arange(len(reference), device=reference.device)
    chosen_B = draws.randint(len(times_KB), batch.shape, device=reference.device, generator=generator)
    t, s = times_KB[chosen_B, batch], ends_KB[chosen_B, batch]
    reference, loss_mask = rollout.judged(reference)
    x_t = process.corrupt(reference, t, generation_mask=loss_mask, generator=generator)
    positions_N = process.is_masked(x_t, loss_mask).flatten().nonzero().squeeze(1)
    kwargs = rollout.denoiser_kwargs()
    with differentiable_evaluation_mode(student):
        student_NV = logits_at(student, x_t, t, positions_N, s=s, model_kwargs=kwargs)
    teacher_NV = read_logits(teacher, x_t, t, positions_N, kwargs)
    tokens_N = reference.flatten()[positions_N]
    student_NV, teacher_NV = process.forbid(student_NV), process.forbid(teacher_NV)
    kl_N = token_losses(student_NV, teacher_NV, tokens_N, mask_token_id=process.mask_token_id).forward_kl
    assert kl_N is not None
    weight_B = len(times_KB) * process.unmask_probability(t, s)
    return (weight_B[positions_N // reference.shape[1]] * kl_N).sum() / num_tokens
