"""Samplers of a network whose blocks are compiled draw what they draw from the network as it was."""

from __future__ import annotations

import copy

import pytest
import torch

from discrete_distill import AncestralSampler, BlockwiseSampler, ConfidenceSampler, FirstHittingSampler, MaskedDiffusion
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.training import ParallelConfig
from discrete_distill.training.parallel import save_memory

VOCAB, LENGTH = 11, 8
PROCESS = MaskedDiffusion(VOCAB - 1)
SAMPLERS = [
    AncestralSampler(PROCESS, 3),
    ConfidenceSampler(PROCESS, 3),
    FirstHittingSampler(PROCESS),
    BlockwiseSampler(AncestralSampler(PROCESS, 2), 4),
]


@pytest.fixture(scope="module")
def networks() -> tuple[DiT, DiT]:
    torch.manual_seed(0)
    config = DiTConfig(vocab_size=VOCAB, max_length=LENGTH, hidden_size=16, num_layers=2, num_heads=2, cond_size=8)
    made = DiT(config).eval()
    torch.nn.init.normal_(made.output_layer.linear.weight, std=0.5)
    compiled = copy.deepcopy(made)
    save_memory(compiled, ParallelConfig(compile_backend="aot_eager"))
    return made, compiled


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_compiled_blocks_draw_the_same_tokens(sampler, networks) -> None:
    made, compiled = networks
    assert list(made.state_dict()) == list(compiled.state_dict())
    plain, ours = (
        sampler(network, (3, LENGTH), generator=torch.Generator().manual_seed(7)).sequences for network in networks
    )
    assert torch.equal(plain, ours)
