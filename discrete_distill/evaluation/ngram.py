"""An n-gram model as a judge: nothing to train but counts, and a likelihood that can be checked by hand.

Shape suffixes: B samples, L tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from ..checks import check_count
from .checks import check_token_ids
from .ending import before_end
from .judges import TokenNats


class NGramJudge:
    """Interpolated n-grams with Witten-Bell weights (IEEE Trans. Inf. Theory 37, 1991):

        p_n(v | h) = ( c(h v) + d(h) p_{n-1}(v | h') ) / ( c(h) + d(h) )

    with ``c`` counts, ``d(h)`` the number of different tokens seen after ``h``, ``h'`` the history less its oldest
    token, and ``p_0`` uniform. A token is priced given all before it in the sample, up to ``order - 1``; the first one
    is context and not counted, as for `CausalLMJudge`.

    Args:
        sequences_NL: text to count, int64 ``[N, L]``; what it is priced on must be other text.
        vocab_size: V; tokens of ``excluded`` are never expected.
        order: n.
        eos_token_id: nothing after the first one is counted; None if there is none.
        excluded: ids without probability, such as the mask.

    Raises:
        TypeError: if the text is no integers.
        ValueError: if there is no text, an id is outside the vocabulary or excluded, all ids are excluded, the order is
            below 1, or the table of counts would have more than 2^26 entries.
    """

    def __init__(
        self,
        sequences_NL: Tensor,
        *,
        vocab_size: int,
        order: int = 3,
        eos_token_id: int | None = None,
        excluded: tuple[int, ...] = (),
    ) -> None:
        check_token_ids(sequences_NL, "the text")
        check_count("vocab_size", vocab_size)
        check_count("order", order)
        if order * math.log2(vocab_size) > 26:
            raise ValueError(
                f"order {order} over {vocab_size} tokens: give an order of 1 or more that can be tabulated"
            )
        if not 0 <= int(sequences_NL.min()) <= int(sequences_NL.max()) < vocab_size:
            raise ValueError(f"ids must lie in 0..{vocab_size - 1}, got up to {int(sequences_NL.max())}")
        if any(bool((sequences_NL == token).any()) for token in excluded):
            raise ValueError(f"the text holds a token that has no probability, one of {excluded}")
        self.vocab_size = vocab_size
        self.order = order
        self.eos_token_id = eos_token_id
        uniform = torch.ones(vocab_size, dtype=torch.float64)
        if not all(0 <= token < vocab_size for token in excluded) or len(set(excluded)) >= vocab_size:
            raise ValueError(f"excluded must leave some of the ids 0..{vocab_size - 1}, got {excluded}")
        uniform[list(excluded)] = 0.0
        self.tables = [uniform / uniform.sum()]
        for n in range(1, order + 1):
            self.tables.append(self._interpolated(sequences_NL.cpu().long(), n))
        digest = hashlib.sha256(self.tables[-1].numpy().tobytes()).hexdigest()[:8]
        self.name = f"{order}-gram@{digest}"

    def _interpolated(self, sequences_NL: Tensor, n: int) -> Tensor:
        """``p_n``, fp64 ``[V ** (n - 1), V]``."""
        counts = torch.bincount(self._codes(sequences_NL, n).flatten(), minlength=self.vocab_size**n)
        counts_HV = counts.double().view(-1, self.vocab_size)
        different_H1 = (counts_HV > 0).sum(1, keepdim=True).double()
        # The shorter history of h = (a, h') is its place within the first token's block.
        lower = self.tables[n - 1].view(-1, self.vocab_size)
        lower_HV = lower.repeat(len(counts_HV) // len(lower), 1)
        total_H1 = counts_HV.sum(1, keepdim=True) + different_H1
        return torch.where(total_H1 > 0, (counts_HV + different_H1 * lower_HV) / total_H1.clamp(min=1.0), lower_HV)

    def _codes(self, sequences_NL: Tensor, n: int) -> Tensor:
        """A number for every n-gram, ``[N, L - n + 1]``, the last token fastest."""
        length = sequences_NL.shape[1] - n + 1
        codes = torch.zeros(len(sequences_NL), max(length, 0), dtype=torch.long)
        for k in range(n):
            codes = codes * self.vocab_size + sequences_NL[:, k : k + length]
        return codes

    def token_nats(self, sequences_BL: Tensor) -> TokenNats:
        """See `Judge`.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        check_token_ids(sequences_BL)
        ids_BL = sequences_BL.cpu().long()
        if not 0 <= int(ids_BL.min()) <= int(ids_BL.max()) < self.vocab_size:
            raise ValueError(f"ids must lie in 0..{self.vocab_size - 1} for judge {self.name}")
        nats_BL = torch.zeros(ids_BL.shape, dtype=torch.float64)
        for n in range(1, self.order + 1):
            length = ids_BL.shape[1] - n + 1
            if length > 0:
                nats_BL[:, n - 1 :] = -self.tables[n].flatten()[self._codes(ids_BL, n)].log()
        counted_BL = before_end(ids_BL, self.eos_token_id)
        counted_BL[:, :1] = False
        return TokenNats(nats_BL.float(), counted_BL)
