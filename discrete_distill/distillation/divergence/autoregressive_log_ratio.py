r"""The log-ratio of two autoregressive networks: exact on samples, without masks.

A network that reads by blocks of one token gives the likelihood of a sequence by the chain rule, so that

.. math:: \log \frac{q(x)}{p(x)} = \sum_i r_i, \qquad r_i = \log q(x_i | x_{<i}) - \log p(x_i | x_{<i}),

and ``E_q sum_i r_i`` is the KL of the student's samples from the target, the end ``t = 0`` of the integral KL.

Shape suffixes: B batch, L length, V vocabulary, N chosen positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...process import MaskedDiffusion, evaluation_mode
from ...process.blocks import PairedDenoiser, block_length_of, paired_logits
from .log_ratio import LogRatio, log_prob_of, scored_tokens, summed


@dataclass(frozen=True)
class AutoregressiveLogRatio:
    """``r_i = log q(x_i | x_<i) - log p(x_i | x_<i)`` at the masked positions of ``x_t``, and their sum.

    Where all generated positions are masked, as `CorruptionByParts` of one part has it, the sum is
    ``log q(x) / p(x)``, given the prompt. Nothing is estimated but ``q``: biased by what the auxiliary has not learned
    and by its lag behind the student. Both networks are read in evaluation mode.

    A token is judged given those before it, and those behind it are judged given it: it bears on the ratios from its
    own on, ``window_before=0`` of `TokenCredit`.

    Args:
        process: names the mask.
        auxiliary: a network that reads by blocks of one token, fitted to student samples.
        target: another one, frozen, whose distribution the student is to have.

    Raises:
        ValueError: if one of them does not read by blocks of one token.

    Examples:
        >>> network = DiT(DiTConfig(**{**vars(shape), "block_length": 1})).eval()
        >>> log_ratio = AutoregressiveLogRatio(process, network, network)
        >>> log_ratio(torch.full_like(data, 8), torch.ones(8), x_0=data).per_sequence[:2]
        tensor([0., 0.])
    """

    process: MaskedDiffusion
    auxiliary: PairedDenoiser
    target: PairedDenoiser

    def __post_init__(self) -> None:
        for name in ("target", "auxiliary"):
            check_autoregressive(getattr(self, name), name)

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        x_0: Tensor | None = None,
        generation_mask: Tensor | None = None,
        s: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> LogRatio:
        """Raises ValueError without the clean tokens ``x_0``, or where shapes do not fit."""
        if x_0 is None:
            raise ValueError("an autoregressive network scores clean tokens; pass x_0=")
        positions, tokens_N = scored_tokens(self.process, x_t, x_0, generation_mask)
        log_probs = []
        with torch.no_grad(), evaluation_mode(self.auxiliary, self.target):
            for network in (self.auxiliary, self.target):
                logits_NV = paired_logits(network, x_t, x_0, positions, model_kwargs=model_kwargs)(slice(None))
                log_probs.append(log_prob_of(self.process, logits_NV, tokens_N))
        return summed(log_probs[0] - log_probs[1], positions, x_t)


def check_autoregressive(network: Any, role: str) -> None:
    """Refuse a network that does not read by blocks of one token.

    Args:
        network: any denoiser.
        role: what it is called, such as "target".
    """
    block_length = block_length_of(network)
    if block_length == 1:
        return
    how = "attends both ways" if block_length is None else f"reads by blocks of {block_length}"
    raise ValueError(
        f"the {role} must be autoregressive, a network with block_length = 1, and this {type(network).__name__} {how}: "
        'train one by DiTConfig(block_length=1), or wrap a causal one by as_denoiser(model, attention="full", '
        "shifted=True, block_length=1)"
    )
