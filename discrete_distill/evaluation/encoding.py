"""Features of whole samples from a judge, for MAUVE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .judges import CausalLMJudge, TextJudge


@torch.no_grad()
def encode_with_judge(judge: CausalLMJudge | TextJudge, sequences_NL: Tensor, *, batch_size: int = 32) -> Tensor:
    """Last hidden states of a causal language model, averaged over the counted tokens of each sample, fp32 ``[N, D]``.

    Text beyond the model's context is left out.

    Args:
        judge: whose model returns ``hidden_states`` when asked, as those of transformers do.
        sequences_NL: token ids of the samples, int64 ``[N, L]``.
        batch_size: samples at once.
    """
    return torch.cat([_encode(judge, chunk) for chunk in sequences_NL.split(batch_size)])


def _encode(judge: CausalLMJudge | TextJudge, chunk_BL: Tensor) -> Tensor:
    ids_BL, counted_BL = judge.prepare(chunk_BL)
    model: Any = judge.model
    device = next(model.parameters()).device
    ids_BL, counted_BL = ids_BL[:, : judge.context].to(device), counted_BL[:, : judge.context].to(device)
    hidden_BLD = model(input_ids=ids_BL, output_hidden_states=True).hidden_states[-1].float()
    weight_BL = counted_BL.float()
    return (hidden_BLD * weight_BL[..., None]).sum(1) / weight_BL.sum(1, keepdim=True).clamp(min=1.0)
