"""The bound: equal to the likelihood for a perfect denoiser, above it for another."""

import math

import pytest
import torch

from discrete_distill import MaskedDiffusion, exact
from discrete_distill.evaluation import likelihood_bound
from discrete_distill.models import DiT, DiTConfig

PROCESS = MaskedDiffusion(5)


def test_for_a_perfect_denoiser_the_bound_is_the_likelihood(seeded) -> None:
    chain, length = exact.small_chain()
    x = chain.sample(400, length, generator=seeded(0))
    bound = likelihood_bound(PROCESS, chain.denoiser(5), x, repeats=16, generator=seeded(1))
    true = -float(chain.log_prob(x).mean()) / length
    # The noise of the masks alone: what is left of the error when the sequences are the same.
    assert bound.nats_per_token == pytest.approx(true, abs=0.02)
    assert (bound.num_sequences, bound.num_tokens, bound.repeats) == (400, 2400, 16)
    assert bound.perplexity == pytest.approx(math.exp(bound.nats_per_token))
    spread = float(chain.log_prob(x).std()) / length / 20.0
    assert bound.standard_error == pytest.approx(spread, rel=0.3)
    uniform = likelihood_bound(PROCESS, lambda x_t, t: torch.zeros(*x_t.shape, 6), x, generator=seeded(1))
    assert uniform.nats_per_token == pytest.approx(math.log(5.0), abs=1e-5)
    assert uniform.nats_per_token > bound.nats_per_token + 0.5


def test_given_tokens_are_read_and_not_priced(seeded) -> None:
    chain, length = exact.small_chain()
    x = chain.sample(400, length, generator=seeded(0))
    behind = torch.arange(length) >= 2
    bound = likelihood_bound(PROCESS, chain.denoiser(5), x, generation_mask=behind, repeats=16, generator=seeded(1))
    conditional = -float((chain.log_prob(x) - chain.log_prob(x[:, :2])).mean()) / (length - 2)
    assert bound.nats_per_token == pytest.approx(conditional, abs=0.03)
    assert bound.num_tokens == 400 * (length - 2)
    with pytest.raises(ValueError, match="generation_mask"):
        likelihood_bound(PROCESS, chain.denoiser(5), x, generation_mask=torch.zeros(length, dtype=torch.bool))


def test_a_network_that_reads_blocks_of_one_token_has_its_exact_likelihood(seeded) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 6, "max_length": 7, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "cond_size": 8}
    network = DiT(DiTConfig(**shape, dropout=0.0, block_length=1)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    process, data = MaskedDiffusion(5), torch.randint(5, (4, 7), generator=seeded(1))
    expected = 0.0
    for place in range(7):
        state = torch.cat((data[:, :place], torch.full((4, 1), 5)), dim=1)
        logits = process.masked_log_probs(network(state, torch.zeros(4))[:, -1]).detach()
        expected -= float(logits.gather(1, data[:, place, None]).sum()) / data.numel()
    bound = likelihood_bound(process, network, data, repeats=1, generator=seeded(0))
    assert bound.nats_per_token == pytest.approx(expected, rel=1e-5)


def test_neither_batches_nor_a_seed_used_again_change_it_much(seeded) -> None:
    chain, length = exact.small_chain()
    x = chain.sample(100, length, generator=seeded(0))
    values = [
        likelihood_bound(PROCESS, chain.denoiser(5), x, batch_size=size, generator=seeded(2)).nats_per_token
        for size in (100, 100, 7)
    ]
    assert values[0] == values[1]
    assert values[2] == pytest.approx(values[0], abs=0.05)
    one = likelihood_bound(PROCESS, chain.denoiser(5), x[:1], generator=seeded(2))
    assert one.standard_error is None
    with pytest.raises(ValueError, match="got 0"):
        likelihood_bound(PROCESS, chain.denoiser(5), x, repeats=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sequences_NL": torch.zeros(3, 0, dtype=torch.long)},
        {"sequences_NL": torch.zeros(0, 3, dtype=torch.long)},
        {"sequences_NL": torch.zeros(3, dtype=torch.long)},
        {"sequences_NL": torch.tensor([[1, 5]])},
        {"batch_size": 0},
        {"denoiser": lambda x_t, t: torch.full((*x_t.shape, 6), math.nan)},
    ],
)
def test_what_has_no_bound_is_refused(wrong: dict) -> None:
    settings = {"denoiser": lambda x_t, t: torch.zeros(*x_t.shape, 6), "sequences_NL": torch.tensor([[1, 2]]), **wrong}
    with pytest.raises(ValueError, match=r"must|finite"):
        likelihood_bound(PROCESS, **settings)


def test_text_is_ids_and_no_numbers() -> None:
    with pytest.raises(TypeError, match="float32"):
        likelihood_bound(PROCESS, lambda x_t, t: torch.zeros(*x_t.shape, 6), torch.zeros(2, 3))
