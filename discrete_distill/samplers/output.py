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
        network_evaluations: calls of any network, those that fill a cache included; a backward pass counts as two.
        log_probs: fp32 ``[B, L]``, nats: log-probability of each token when it was drawn; 0 where it was given or
            masked.
        num_tokens: int64 ``[B]``, generated tokens of each sequence, up to its end token where a sampler knows one.
        history: the state before each step and at the end, int64 ``[B, L]`` each, with ``return_history``.
        commits: passes that kept the keys and values of a finished block.

    Examples:
        >>> out = FirstHittingSampler(process)(teacher, shape=(1, 4), generator=generator)
        >>> out.nfe, out.log_probs  # -log(8) for each token
        (4, tensor([[-2.0794, -2.0794, -2.0794, -2.0794]]))
    """

    sequences: Tensor
    nfe: int
    network_evaluations: int
    log_probs: Tensor
    num_tokens: Tensor
    history: list[Tensor] | None = None
    commits: int = 0

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens of a sequence, averaged over the batch, over denoising forwards and commits; 0 without any
        forward."""
        forwards = self.nfe + self.commits
        return float(self.num_tokens.double().mean()) / forwards if forwards else 0.0
