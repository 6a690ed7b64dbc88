"""Features of whole samples from a judge, for MAUVE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import check_token_ids
from .judges import CausalLMJudge, TextJudge


@torch.no_grad()
def encode_with_judge(judge: CausalLMJudge | TextJudge, sequences_NL: Tensor, *, batch_size: int = 32) -> Tensor:
    """Last hidden state of a causal language model at the end of each sample, fp32 ``[N, D]``, as published for MAUVE.

    The end is the last token that the judge counts; text beyond the model's context is left out.

    Args:
        judge: whose model returns ``hidden_states`` on request, as those of transformers do.
        sequences_NL: token ids of the samples, int64 ``[N, L]``.
        batch_size: samples at once.

    Raises:
        TypeError: if the samples are no integers.
        ValueError: for no samples, or a batch size below 1.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=9, max_position_embeddings=16, **sizes))
        >>> features = encode_with_judge(CausalLMJudge(model, name="tiny Llama", eos_token_id=None), data)
        >>> mauve(features[:4], features[4:], num_clusters=2, generator=generator).num_samples
        4
    """
    check_token_ids(sequences_NL)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return torch.cat([_encode(judge, chunk) for chunk in sequences_NL.split(batch_size)])


def _encode(judge: CausalLMJudge | TextJudge, chunk_BL: Tensor) -> Tensor:
    ids_BL, loss_mask_BL = judge.prepare(chunk_BL)
    model: Any = judge.model
    device = next(model.parameters()).device
    ids_BL, loss_mask_BL = ids_BL[:, : judge.context].to(device), loss_mask_BL[:, : judge.context].to(device)
    hidden_BLD = model(input_ids=ids_BL, output_hidden_states=True).hidden_states[-1].float()
    places_L = torch.arange(loss_mask_BL.shape[1], device=device)
    last_B = (loss_mask_BL * places_L).max(1).values
    return hidden_BLD[torch.arange(len(last_B), device=device), last_B]
