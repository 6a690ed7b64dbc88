"""A denoiser without a network: free logits for every masked position of every state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from discrete_distill.process import Denoiser, MaskedDiffusion

from ..checks import check_per_row
from .enumeration import masked_states, place_values
from .sampler import DenoiserRows, checked_times, uniform_times
from .vocabulary import check_ids, check_mask_token_id, logits_of_words, mask_last

TIME_TOLERANCE = 1e-5
LEAST_PROBABILITY = 1e-30


class TabularDenoiser(nn.Module):
    """A table of logits for every state and step: any position-wise factorised sampler on a grid of times.

    Args:
        length: L.
        vocab_size: K, words without the mask.
        mask_token_id: in ``0 .. K``.
        times: grid from 1 down, one table for each step, chosen by the ``t`` of a call; None: one table for
            all times.

    Attributes:
        logits: parameter, fp64 ``[steps, L (K + 1)^(L - 1), K]``, in the row order of ``masked_states``;
            zeros at first.

    Raises:
        ValueError: if there are too many states; on a call, if ``t`` is no start of a step.

    Examples:
        >>> table = TabularDenoiser(length=2, vocab_size=2, mask_token_id=2)
        >>> table.logits.shape  # Rows: either position is masked, the other one is 0, 1 or masked.
        torch.Size([1, 6, 2])
        >>> sampler_distribution(table, MaskedDiffusion(mask_token_id=2), uniform_times(2), 2, 2)
        tensor([[0.2500, 0.2500],
                [0.2500, 0.2500]], dtype=torch.float64, grad_fn=...)
    """

    accepts_step = False

    def __init__(
        self, length: int, vocab_size: int, mask_token_id: int, times: Sequence[float] | Tensor | None = None
    ) -> None:
        super().__init__()
        check_mask_token_id(mask_token_id, vocab_size)
        self.length, self.vocab_size, self.mask_token_id = length, vocab_size, mask_token_id
        space = masked_states(vocab_size, length)
        starts = None if times is None else checked_times(times)[:-1]
        num_tables = 1 if starts is None else len(starts)
        self.starts: Tensor | None
        self.register_buffer("starts", starts, persistent=False)
        self.row_of: Tensor
        self.register_buffer("row_of", space.row_of, persistent=False)
        self.logits = nn.Parameter(torch.zeros(num_tables, space.num_rows, vocab_size, dtype=torch.float64))

    def copy_from(self, denoiser: Denoiser, process: MaskedDiffusion) -> TabularDenoiser:
        """Fill every table with the log-probabilities of ``denoiser`` and return self.

        Words less likely than 1e-30, impossible ones too, are raised to it, so that a fit can reach them.
        """
        rows = DenoiserRows(denoiser, process, self.length, self.vocab_size)
        times = uniform_times(1) if self.starts is None else torch.cat([self.starts.cpu(), torch.zeros(1)])
        everywhere = torch.ones(len(rows.tokens), dtype=torch.bool)
        with torch.no_grad():
            for table, (t, s) in zip(self.logits, pairwise(times), strict=True):
                table.copy_(rows(everywhere, t, s).clamp_min(LEAST_PROBABILITY).log())
        return self

    def forward(self, x_t: Tensor, t: Tensor, /, **model_kwargs: Any) -> Tensor:
        """Logits fp64 ``[B, L, K + 1]``: the table's at masked positions, zeros at visible ones."""
        check_ids(x_t, self.vocab_size + 1, "token ids")
        if x_t.shape[1] != self.length:
            raise ValueError(f"the table is for length {self.length}, the tokens have length {x_t.shape[1]}")
        check_per_row("t", t, len(x_t))
        states = mask_last(x_t, self.mask_token_id, self.vocab_size)
        rows_BL = self.row_of[(states * place_values(self.vocab_size + 1, self.length, x_t.device)).sum(1)]
        chosen_BLK = self.logits[self._table_of(t)[:, None], rows_BL.clamp_min(0)]
        words_BLK = torch.where((rows_BL >= 0)[..., None], chosen_BLK, 0.0)
        return logits_of_words(words_BLK, self.mask_token_id)

    def _table_of(self, t: Tensor) -> Tensor:
        if self.starts is None:
            return torch.zeros(t.shape, dtype=torch.long, device=t.device)
        distance, table = (t[:, None] - self.starts).abs().min(1)
        if bool((distance > TIME_TOLERANCE).any()):
            raise ValueError(
                f"t = {float(t[distance.argmax()])} is not the start of a step; this table knows {self.starts.tolist()}"
            )
        return table
