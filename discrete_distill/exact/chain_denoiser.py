"""The perfect denoiser of a Markov chain."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .messages import backward_messages, evidence_of_tokens, forward_messages
from .vocabulary import check_mask_token_id, logits_of_words


class ChainDenoiser:
    """``log P(x_i = v | all visible tokens)`` at every position: what infinite training would reach.

    A `Denoiser`: ``denoiser(x_t, t) -> logits`` fp64 ``[B, L, K + 1]``, normalised, -inf for the mask and for
    impossible words. At a visible position the conditional is the point mass on its token. The masked
    posterior does not depend on the time (arXiv 2406.07524), so ``t`` and other arguments are ignored.

    Inference is a batched scaled forward-backward of O(B L K^2), in inference mode as elsewhere. The module ``pairs``
    states why it is not torch-struct's, against which the tests compare it.

    Args:
        initial: ``[K]``, distribution of the first word.
        transition: ``[K, K]``, row ``a`` is the distribution of the word after ``a``.
        mask_token_id: in ``0 .. K``; the words keep their order around it.
        impossible: what to do with rows whose visible tokens have probability zero, for which no conditional
            exists: "raise", or return the "uniform" distribution at masked positions.

    Raises:
        ValueError: if the mask lies outside the vocabulary, or ``impossible`` is unknown; on a call, for rows
            of probability zero under "raise".

    Examples:
        >>> chain = MarkovChain(torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
        >>> denoiser = chain.denoiser(mask_token_id=2)
        >>> denoiser(torch.tensor([[0, 2, 0]]))[0, 1].exp()  # 0.81 and 0.01, of 0.82
        tensor([0.9878, 0.0122, 0.0000], dtype=torch.float64)
    """

    def __init__(
        self,
        initial: Tensor,
        transition: Tensor,
        mask_token_id: int,
        *,
        impossible: Literal["raise", "uniform"] = "raise",
    ) -> None:
        check_mask_token_id(mask_token_id, len(initial))
        if impossible not in ("raise", "uniform"):
            raise ValueError(f'impossible must be "raise" or "uniform", got {impossible!r}')
        self.initial = initial
        self.transition = transition
        self.mask_token_id = mask_token_id
        self.impossible = impossible

    def __call__(self, x_t: Tensor, t: Tensor | None = None, /, **model_kwargs: Any) -> Tensor:
        evidence_BLK = evidence_of_tokens(x_t, self.mask_token_id, len(self.initial))
        forward = forward_messages(self.initial, self.transition, evidence_BLK)
        backward_BLK = backward_messages(self.transition, evidence_BLK)
        joint_BLK = forward.predicted * evidence_BLK * backward_BLK
        possible = (forward.log_normaliser > float("-inf"))[:, None, None]
        if self.impossible == "raise" and not bool(possible.all()):
            row = int((~possible).flatten().nonzero()[0])
            raise ValueError(
                f"the visible tokens of row {row} have probability zero under the chain, so nothing can be "
                f'conditioned on them: {x_t[row].tolist()}; pass impossible="uniform" to get a uniform answer'
            )
        joint_BLK = torch.where(possible, joint_BLK, evidence_BLK)
        log_probs_BLK = (joint_BLK / joint_BLK.sum(-1, keepdim=True)).log()
        return logits_of_words(log_probs_BLK, self.mask_token_id)
