"""What every sampler returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class SamplerOutput:
    """Samples and what they cost.

    Attributes:
        sequences: int64 ``[B, L]``.
        nfe: calls of the denoiser (what papers call NFE).
        network_evaluations: calls of any network; a backward pass counts as two.
        log_probs: fp32 ``[B, L]``, nats: log-probability of each token when it was drawn; 0 where it was given or
            masked.
        history: the state before each step and at the end, int64 ``[B, L]`` each, with ``return_history``.

    Examples:
        >>> out = FirstHittingSampler(process)(teacher, shape=(1, 4), generator=generator)
        >>> out.nfe, out.log_probs  # -log(8) for each token
        (4, tensor([[-2.0794, -2.0794, -2.0794, -2.0794]]))
    """

    sequences: Tensor
    nfe: int
    network_evaluations: int
    log_probs: Tensor
    history: list[Tensor] | None = None
