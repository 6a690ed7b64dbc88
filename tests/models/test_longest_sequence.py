"""Sequences that are longer than an external model has positions for."""

from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from discrete_distill import AncestralSampler, MaskedDiffusion, as_denoiser
from discrete_distill.models.longest_sequence import longest_sequence

SHAPE: dict[str, Any] = {
    "vocab_size": 9,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
MODELS: dict[str, Any] = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SHAPE, intermediate_size=32)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SHAPE, intermediate_size=32, pad_token_id=1)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2, n_positions=16)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SHAPE, ffn_dim=32, word_embed_proj_dim=16, pad_token_id=1)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=32)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_longest_sequence_is_the_longest_that_the_model_reads(name: str) -> None:
    model = MODELS[name]().eval()
    longest = longest_sequence(model)
    assert longest == {"roberta": 14, "llama": None}.get(name, 16)
    if longest is not None:
        model(input_ids=torch.full((1, longest), 4))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 4))


def test_longer_sequences_are_refused_by_their_length() -> None:
    denoiser = as_denoiser(MODELS["bert"]())
    with pytest.raises(ValueError, match=r"17 tokens .* 16 .* BertForMaskedLM"):
        AncestralSampler(MaskedDiffusion(8), num_steps=2)(denoiser, shape=(2, 17))
    x_t, t = torch.full((2, 17), 8), torch.ones(2)
    for call in (denoiser, denoiser.features, lambda *given: denoiser.hidden_states(*given, 0)):
        with pytest.raises(ValueError, match="17 tokens"):
            call(x_t, t)
    positions = torch.arange(17).clamp(max=15)[None]
    assert denoiser(x_t, t, position_ids=positions).shape == (2, 17, 9)
