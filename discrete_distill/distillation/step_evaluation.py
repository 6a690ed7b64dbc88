"""Evaluation of the logits of one step of a path, repeatable with any network.

Shape suffixes: B batch, V vocabulary, N chosen positions, R revealed positions.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import token_losses
from ..process import Denoiser
from ..process.denoiser import LogitsOfPart
from ..process.modes import differentiable_evaluation_mode
from ..samplers.positions import Positions
from ..samplers.state import SamplerState


@dataclass(frozen=True)
class StepEvaluation:
    """One evaluation of a denoiser in a state of a path.

    Attributes:
        state: before the step.
        positions: whose logits are computed.
        t: time before the step, ``[B]``.
        s: time after it, ``[B]``.
        one_time: whether all sequences take the step between the same times.
        temperature: that the logits are divided by.
        chunk_rows: rows of logits that are held at once; all if None.
        repeats: index in ``positions`` of each position of the step, int64 ``[N]``, if sequences were repeated since.
    """

    state: SamplerState
    positions: Positions
    t: Tensor
    s: Tensor
    one_time: bool
    temperature: float = 1.0
    chunk_rows: int | None = None
    repeats: Tensor | None = None

    def distribution(self, logits: Tensor) -> Tensor:
        """Turn raw logits ``[..., V]`` into those that the path draws from: without forbidden ids, by temperature."""
        logits = self.state.process.forbid(logits)
        return logits if self.temperature == 1.0 else logits.float() / self.temperature

    def logits(self, denoiser: Denoiser) -> LogitsOfPart:
        """Call a denoiser, in evaluation mode, with a graph where gradients are enabled.

        Returns:
            ``logits(part) -> [n, V]``, those that the path draws from.
        """
        state = copy.copy(self.state)
        state.denoiser = denoiser
        with differentiable_evaluation_mode(denoiser):
            logits_of = state.logits(self.positions, self.t, self.s, one_time=self.one_time, share_head=True)

        def read(part: slice) -> Tensor:
            with differentiable_evaluation_mode(denoiser):
                if self.repeats is None:
                    return self.distribution(logits_of(part))
                return self.distribution(logits_of(slice(None)))[self.repeats][part]

        return read

    def parts(self) -> list[slice]:
        """The slices of rows whose logits are held at once."""
        count = len(self.positions.index)
        if self.chunk_rows is None or count <= self.chunk_rows:
            return [slice(None)]
        return [slice(start, start + self.chunk_rows) for start in range(0, count, self.chunk_rows)]

    def log_probs(self, denoiser: Denoiser, tokens_R: Tensor, place_R: Tensor | None) -> Tensor:
        """Compute the log-probabilities of tokens under a denoiser, ``[R]`` in nats, differentiable.

        Args:
            denoiser: any `Denoiser`.
            tokens_R: int64 ``[R]``.
            place_R: where they stand in the positions of the step; None if they stand in all positions, in order.
        """
        logits_of, mask_token_id = self.logits(denoiser), self.state.process.mask_token_id
        found = []
        for part in self.parts():
            logits = logits_of(part) if place_R is None else logits_of(part)[place_R]
            found.append(token_losses(logits, None, tokens_R[part], mask_token_id=mask_token_id).log_prob)
        return torch.cat(found)
