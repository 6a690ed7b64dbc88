"""An n-gram model as a judge: nothing to train but counts, and a likelihood that can be checked by hand.

Shape suffixes: B samples, L tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_count
from .checks import check_token_ids
from .ending import before_end
from .judges import TokenNats


class _Order(NamedTuple):
    """Counts of the n-grams of one n.

    Attributes:
        codes: ``history * V + token`` of each n-gram seen, ascending, int64 ``[G]``; ``history`` is the place of its
            first ``n - 1`` tokens among the codes of the order before.
        counts: how often each was seen, fp64 ``[G]``.
        total: tokens seen after each history, fp64 ``[H]``.
        different: different tokens seen after each history, fp64 ``[H]``.
    """

    codes: Tensor
    counts: Tensor
    total: Tensor
    different: Tensor


class NGramJudge:
    """Interpolated n-grams with Witten-Bell weights (IEEE Trans. Inf. Theory 37, 1991):

        p_n(v | h) = ( c(h v) + d(h) p_{n-1}(v | h') ) / ( c(h) + d(h) )

    with ``c`` counts, ``d(h)`` the number of different tokens seen after ``h``, ``h'`` the history less its oldest
    token, and ``p_0`` uniform. A token is priced given all before it in the sample, up to ``order - 1``; the first one
    is context and not counted, as for `CausalLMJudge`. Memory grows with the number of tokens counted, not with the
    vocabulary.

    Args:
        sequences_NL: text to count, int64 ``[N, L]``; what it is priced on must be other text.
        vocab_size: V; tokens of ``excluded`` are never expected.
        order: n.
        eos_token_id: nothing after the first one is counted; None if there is none.
        excluded: ids without probability, such as the mask.

    Raises:
        TypeError: if the text is no integers.
        ValueError: if there is no text, an id is outside the vocabulary or excluded, all ids are excluded, or the order
            is below 1.

    Examples:
        >>> judge = NGramJudge(torch.tensor([[0, 0, 0, 1]]), vocab_size=2, order=1)
        >>> (-judge.token_nats(torch.tensor([[1, 0]])).nats).exp()[0, 1].item()  # (3 + 2 * 1/2) / (4 + 2)
        0.666...
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
        check_count("vocab_size", vocab_size)
        check_count("order", order)
        self.vocab_size = vocab_size
        self.order = order
        self.eos_token_id = eos_token_id
        self._check_ids(sequences_NL)
        if not all(0 <= token < vocab_size for token in excluded) or len(set(excluded)) >= vocab_size:
            raise ValueError(f"excluded must leave some of the ids 0..{vocab_size - 1}, got {excluded}")
        if any(bool((sequences_NL == token).any()) for token in excluded):
            raise ValueError(f"the text holds a token that has no probability, one of {excluded}")
        self._base = torch.full((vocab_size,), 1.0 / (vocab_size - len(set(excluded))), dtype=torch.float64)
        self._base[list(excluded)] = 0.0
        self._orders = self._count(sequences_NL.cpu().long())
        self.name = f"{order}-gram@{self._digest()}"

    def _count(self, ids_NL: Tensor) -> list[_Order]:
        orders: list[_Order] = []
        history_NL, num_histories = torch.zeros_like(ids_NL), 1
        for n in range(1, min(self.order, ids_NL.shape[1]) + 1):
            codes_NL = history_NL * self.vocab_size + ids_NL[:, n - 1 :]
            codes, place_NL, counts = torch.unique(codes_NL, return_inverse=True, return_counts=True)
            owner = codes // self.vocab_size
            zeros = torch.zeros(num_histories, dtype=torch.float64)
            total = zeros.index_add(0, owner, counts.double())
            orders.append(
                _Order(codes, counts.double(), total, torch.bincount(owner, minlength=num_histories).double())
            )
            history_NL, num_histories = place_NL[:, :-1], len(codes)
        return orders

    def _digest(self) -> str:
        digest = hashlib.sha256(self._base.numpy().tobytes())
        for order in self._orders:
            digest.update(order.codes.numpy().tobytes() + order.counts.numpy().tobytes())
        return digest.hexdigest()[:8]

    def token_nats(self, sequences_BL: Tensor) -> TokenNats:
        """See `Judge`.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        self._check_ids(sequences_BL)
        ids_BL = sequences_BL.cpu().long()
        probability_BL = self._base[ids_BL]
        history_BL = torch.zeros_like(ids_BL)
        for n, order in enumerate(self._orders[: ids_BL.shape[1]], start=1):
            known_BL = history_BL >= 0
            history_BL = history_BL.clamp(min=0)
            codes_BL = history_BL * self.vocab_size + ids_BL[:, n - 1 :]
            place_BL = torch.searchsorted(order.codes, codes_BL).clamp(max=len(order.codes) - 1)
            found_BL = known_BL & (order.codes[place_BL] == codes_BL)
            count_BL = torch.where(found_BL, order.counts[place_BL], 0.0)
            weight_BL = order.total[history_BL] + order.different[history_BL]
            lower_BL = probability_BL[:, n - 1 :]
            mixed_BL = (count_BL + order.different[history_BL] * lower_BL) / weight_BL.clamp(min=1.0)
            probability_BL[:, n - 1 :] = torch.where(known_BL & (weight_BL > 0), mixed_BL, lower_BL)
            history_BL = torch.where(found_BL, place_BL, -1)[:, :-1]
        loss_mask_BL = before_end(ids_BL, self.eos_token_id)
        loss_mask_BL[:, :1] = False
        return TokenNats(-probability_BL.log().float(), loss_mask_BL)

    def _check_ids(self, sequences_NL: Tensor) -> None:
        check_token_ids(sequences_NL)
        if not 0 <= int(sequences_NL.min()) <= int(sequences_NL.max()) < self.vocab_size:
            raise ValueError(
                f"ids must lie in 0..{self.vocab_size - 1}, got {int(sequences_NL.min())} to {int(sequences_NL.max())}"
            )
