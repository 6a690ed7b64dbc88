"""Samplers of a network that is compiled, whole or by its blocks, draw what they draw from the network as it was."""

from __future__ import annotations

import copy

import pytest
import torch

from discrete_distill import (
    AnalyticSampler,
    AncestralSampler,
    BlockwiseSampler,
    ConfidenceSampler,
    EntropyBoundedSampler,
    FirstHittingSampler,
    MaskedDiffusion,
    PathPlanningSampler,
    ReMaskingSampler,
    RGASampler,
)
from discrete_distill.distributed.parallel import save_memory
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.training import ParallelConfig

VOCAB, LENGTH = 11, 8
PROCESS = MaskedDiffusion(VOCAB - 1)
SAMPLERS = [
    AnalyticSampler(PROCESS, num_steps=3),
    AncestralSampler(PROCESS, num_steps=3),
    ConfidenceSampler(PROCESS, num_steps=3),
    EntropyBoundedSampler(PROCESS, gamma=0.5),
    FirstHittingSampler(PROCESS),
    PathPlanningSampler(PROCESS, num_steps=3),
    ReMaskingSampler(PROCESS, num_steps=3, eta=0.5),
    BlockwiseSampler(AncestralSampler(PROCESS, num_steps=2), block_length=4),
    RGASampler(PROCESS, reward=lambda x_t, t, **_: (x_t % 3).float(), num_steps=3, num_candidates=2),
]


@pytest.fixture(scope="module")
def network() -> DiT:
    torch.manual_seed(0)
    config = DiTConfig(vocab_size=VOCAB, max_length=LENGTH, hidden_size=16, num_layers=2, num_heads=2, cond_size=8)
    made = DiT(config).eval()
    torch.nn.init.normal_(made.output_layer.linear.weight, std=0.5)
    return made


@pytest.fixture(scope="module", params=["blocks", "whole"])
def compiled(request: pytest.FixtureRequest, network: DiT) -> torch.nn.Module:
    made = copy.deepcopy(network)
    if request.param == "blocks":
        save_memory(made, ParallelConfig(compile_backend="aot_eager"))
        assert list(made.state_dict()) == list(network.state_dict())
        return made
    return torch.compile(made, backend="eager")


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_compiled_networks_draw_the_same_tokens(sampler, network, compiled) -> None:
    plain, ours = (
        sampler(each, (3, LENGTH), generator=torch.Generator().manual_seed(7)).sequences for each in (network, compiled)
    )
    assert torch.equal(plain, ours)
