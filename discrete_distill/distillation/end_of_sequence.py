"""What becomes of the positions behind an end-of-sequence token.

Shape suffixes: B batch, L length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_choice, check_count

EndPolicy = Literal["padding", "stop", "forbidden"]


@dataclass(frozen=True)
class EndOfSequence:
    """The end-of-sequence token of generated text, and what follows it.

    Args:
        token_id: of the end.
        policy: "padding": every position is drawn, and those behind the first generated end are in no loss; "stop": in
            addition, masks behind an end that was drawn are filled with the end token, which costs no draw and has
            probability 1; "forbidden": the end is never drawn, so that every text has the full length.

    Raises:
        TypeError: if the id is no integer.
        ValueError: if it is negative, or the policy unknown.
    """

    token_id: int
    policy: EndPolicy = "padding"

    def __post_init__(self) -> None:
        check_count("end_token_id", self.token_id, minimum=0)
        check_choice("end_policy", self.policy, get_args(EndPolicy))

    def behind(self, x_t: Tensor, generation_mask: Tensor) -> Tensor:
        """Find generated positions behind the first generated end of each sequence.

        Args:
            x_t: int64 ``[B, L]``.
            generation_mask: bool ``[B, L]``; an end in the prompt ends nothing.

        Returns:
            bool ``[B, L]``.
        """
        ends = (x_t == self.token_id) & generation_mask
        return (ends.cumsum(1) - ends.long() > 0) & generation_mask

    def cut(self, x_0: Tensor, generation_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Write the end token behind the first generated end.

        Returns:
            The sequences, and bool ``[B, L]``, true at generated positions up to the end, that included.
        """
        behind = self.behind(x_0, generation_mask)
        return torch.where(behind, self.token_id, x_0), generation_mask & ~behind
