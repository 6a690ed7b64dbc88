from __future__ import annotations

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def tiny_gpt2() -> nn.Module:
    """A GPT-2 of 23 classes and context 8, with weights large enough to make its predictions differ."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=23,
        n_positions=8,
        n_embd=12,
        n_layer=2,
        n_head=2,
        initializer_range=0.6,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)
