"""The autoregressive baseline: its distribution against enumeration, its cache, its likelihood, and that it learns."""

from itertools import product

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from discrete_distill import MaskedDiffusion
from discrete_distill.models import DiTConfig
from discrete_distill.recipes.common.corpus import TokenStream
from discrete_distill.recipes.common.network_shape import network_shape
from discrete_distill.recipes.compare.autoregressive import (
    AutoregressiveConfig,
    AutoregressiveSampler,
    AutoregressiveTraining,
    load_autoregressive,
    network_of_size,
    token_nats,
)
from discrete_distill.training import LoopConfig, OptimizerConfig

PROCESS = MaskedDiffusion(3)
SHAPE = network_shape(DiTConfig(vocab_size=4, max_length=3, hidden_size=16, num_layers=2, num_heads=2))


@pytest.fixture
def network(seeded):
    made = network_of_size(SHAPE, 3, 0).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=seeded(3))
    return made


def test_it_has_the_teachers_width_depth_heads_length_and_vocabulary(network) -> None:
    config = network.config
    assert (config.n_embd, config.n_layer, config.n_head, config.n_positions, config.vocab_size) == (16, 2, 2, 3, 4)


@torch.no_grad()
def test_token_prices_make_a_distribution_over_sequences_without_the_mask(network) -> None:
    x = torch.tensor(list(product(range(3), repeat=3)))
    assert float(torch.exp(-token_nats(network, x, PROCESS).double().sum(1)).sum()) == pytest.approx(1.0, abs=1e-5)


@torch.no_grad()
def test_samples_follow_that_distribution_and_carry_its_log_probabilities(network, seeded) -> None:
    out = AutoregressiveSampler(PROCESS)(network, (6000, 3), generator=seeded(0))
    assert (out.nfe, out.network_evaluations) == (3, 3)
    assert not bool((out.sequences == 3).any())
    torch.testing.assert_close(out.log_probs, -token_nats(network, out.sequences, PROCESS), atol=1e-4, rtol=1e-4)
    x = torch.tensor(list(product(range(3), repeat=3)))
    distribution = torch.exp(-token_nats(network, x, PROCESS).double().sum(1))
    seen = torch.bincount((out.sequences * torch.tensor([9, 3, 1])).sum(1), minlength=27).double()
    chi_square = float(((seen - 6000 * distribution) ** 2 / (6000 * distribution)).sum())
    assert chi_square < 54.1  # The 0.999 quantile for 26 degrees of freedom.


def test_the_cache_changes_nothing_and_a_seed_fixes_everything(network, seeded) -> None:
    draws = [
        AutoregressiveSampler(PROCESS, temperature=0.8)(network, (64, 3), generator=seeded(seed), use_cache=cached)
        for seed, cached in ((0, True), (0, False), (1, True))
    ]
    assert torch.equal(draws[0].sequences, draws[1].sequences)
    assert not torch.equal(draws[0].sequences, draws[2].sequences)


@torch.no_grad()
def test_a_forbidden_token_is_neither_drawn_nor_likely(network, seeded) -> None:
    process = MaskedDiffusion(3, forbidden_token_ids=[1])
    out = AutoregressiveSampler(process)(network, (200, 3), generator=seeded(0))
    assert out.sequences.unique().tolist() == [0, 2]
    x = torch.tensor(list(product((0, 2), repeat=3)))
    assert float(torch.exp(-token_nats(network, x, process).double().sum(1)).sum()) == pytest.approx(1.0, abs=1e-5)


def test_training_learns_a_cycle_and_the_network_survives_its_folder(tmp_path, seeded) -> None:
    stream = TokenStream(np.arange(400, dtype=np.uint16) % 3, 3)
    config = AutoregressiveConfig(
        loop=LoopConfig(num_steps=60), optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=5), batch_size=16
    )
    trainee = AutoregressiveTraining(config, SHAPE, stream, PROCESS, 0, Accelerator(cpu=True))
    losses = [trainee.step(index, seeded(index))["loss"] for index in range(60)]
    # The first token of a window is one of three; the others follow from it.
    assert losses[-1] == pytest.approx(torch.tensor(3.0).log().item() / 3.0, abs=0.1)
    trainee.student.averaged.save_pretrained(tmp_path)
    again = load_autoregressive(tmp_path)
    x = stream.packed(8)
    trainee.student.averaged.eval()
    torch.testing.assert_close(token_nats(again, x, PROCESS), token_nats(trainee.student.averaged, x, PROCESS))
    with pytest.raises(FileNotFoundError, match="no autoregressive model"):
        load_autoregressive(tmp_path / "missing")
