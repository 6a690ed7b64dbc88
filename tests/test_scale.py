"""The page on scale is what the script computes, and what it computes is right where it can be checked."""

import pytest
import torch

from benchmarks.scale import (
    PAGE,
    Assumptions,
    activations,
    count,
    gathered,
    kept_elements,
    plan,
    render,
    sharded,
    states,
    traffic,
)
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.models.dit import Block


def test_the_page_is_the_scripts() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(Assumptions())


def test_counts_are_those_of_real_networks() -> None:
    """V d embedding, V d + V head, and 12 layers of 12 d^2 with biases and modulation."""
    counts = count("169M", 1024)
    d, vocab = 768, 50258
    block = 12 * d * d + 5 * d + 2 * d + (128 + 1) * 6 * d
    sigma_map = (256 + 1) * 128 + (128 + 1) * 128
    head = d * vocab + vocab + d + (128 + 1) * 2 * d
    assert counts.block == block
    assert counts.denoiser == vocab * d + 12 * block + sigma_map + head
    tiny = DiT(DiTConfig(vocab_size=9, max_length=8, hidden_size=16, num_layers=1, num_heads=2))
    assert sum(p.numel() for p in tiny.blocks[0].parameters()) == 12 * 256 + 7 * 16 + 129 * 96


def test_a_block_keeps_what_its_backward_pass_reads() -> None:
    """Between 14 and 34 widths a token, the range that counts of transformer blocks give; the same for more tokens."""
    config = count("169M", 1024).config
    kept = [kept_elements(config, tokens) for tokens in (32, 128)]
    assert all(14 < each / config.hidden_size < 34 for each in kept)
    assert kept[0] == pytest.approx(kept[1], rel=0.05)


def test_states_shards_and_traffic_follow_their_formulas() -> None:
    counts, a = count("424M", 1024), Assumptions()
    parts = states(counts)
    assert parts["student and average"] == 20 * counts.denoiser
    assert parts["discriminator"] == 4 * counts.discriminator + 12 * counts.discriminator_trained
    total = sum(value for name, value in parts.items() if name != "auxiliary")
    assert sharded(counts, "discriminator", 8) - sharded(counts, "discriminator", 64) == pytest.approx(
        total * (1 / 8 - 1 / 64)
    )
    assert traffic(counts, a, 1, "DDP") == traffic(counts, a, 1, "FSDP2") == 0.0
    assert traffic(counts, a, 2, "DDP") == 4.0 * (counts.denoiser + counts.discriminator_trained)
    assert 2.0 < gathered(counts) / counts.denoiser < 4.0


def test_plans_take_the_simplest_layout_that_fits() -> None:
    a = Assumptions()
    small, large = count("169M", 1024), count("8B", 1024)
    assert plan(small, a, 8).strategy == "DDP"
    assert plan(large, a, 64).strategy == "FSDP2, checkpointed"
    assert "does not fit" in plan(large, Assumptions(gpu_memory=16e9), 8).strategy
    assert activations(large, a, checkpointed=True) < activations(large, a, checkpointed=False)
    assert plan(small, Assumptions(bandwidth_inside=1e9), 8).seconds == pytest.approx(traffic(small, a, 8, "DDP") / 1e9)


def test_blocks_run_on_the_meta_device() -> None:
    with torch.device("meta"):
        block = Block(DiTConfig(vocab_size=9, hidden_size=16, num_layers=1, num_heads=2))
    assert next(block.parameters()).is_meta
