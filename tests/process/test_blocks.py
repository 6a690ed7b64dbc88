"""The bound of block diffusion: by enumeration of masks, exact for exact denoisers, in one pass or in one a block."""

import itertools
import math

import pytest
import torch

from discrete_distill import AncestralSampler, MaskedDiffusion, exact
from discrete_distill.models import DiT, DiTConfig, InBlocks
from discrete_distill.models.capabilities import forgo
from discrete_distill.process.blocks import reads_blocks
from discrete_distill.samplers import in_blocks_of

WORDS, LENGTH = 3, 5
PROCESS = MaskedDiffusion(WORDS)
CHAIN = exact.random_chain(WORDS, torch.Generator().manual_seed(3), 1.0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_denoiser():
    """Logits of every state at random: no two conditionals of it agree."""
    table = exact.TabularDenoiser(LENGTH, WORDS, WORDS)
    with torch.no_grad():
        table.logits.normal_(generator=seeded(0))
    return table


@torch.no_grad()
def enumerated(denoiser, row, block_length, counted):
    """Plain sum over blocks and their sets of masks, each weighted by the integral over time."""
    nats = 0.0
    for low in range(0, LENGTH, block_length):
        block = [i for i in range(low, min(low + block_length, LENGTH)) if counted[i]]
        for size in range(1, len(block) + 1):
            weight = math.factorial(size - 1) * math.factorial(len(block) - size) / math.factorial(len(block))
            for hidden in itertools.combinations(block, size):
                x = [WORDS if i in hidden or i >= low + block_length else token for i, token in enumerate(row)]
                log_probs = denoiser(torch.tensor([x]), torch.zeros(1))[0].log_softmax(-1)
                nats -= weight * sum(float(log_probs[i, row[i]]) for i in hidden)
    return nats


@pytest.mark.parametrize("by", ["time", "count"])
@pytest.mark.parametrize("block_length", [2, 3, 5])
@pytest.mark.parametrize("counted", [[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]])
def test_its_expectation_is_the_sum_over_blocks_and_masks(by, block_length, counted) -> None:
    denoiser, row = random_denoiser(), [0, 2, 1, 1, 2]
    draws = 20_000
    x_0, mask = torch.tensor([row]).expand(draws, -1), torch.tensor([counted]).bool().expand(draws, -1)
    with torch.no_grad():
        out = PROCESS.nelbo(denoiser, x_0, block_length=block_length, by=by, generation_mask=mask, generator=seeded(1))
    error = out.nats.std() / math.sqrt(draws)
    expected = enumerated(denoiser, row, block_length, counted)
    assert abs(float(out.nats.mean()) - expected) < 5 * float(error) + 1e-5  # the rounding, where nothing is random
    assert float(out.loss) == pytest.approx(float(out.nats.mean()) / sum(counted))


@pytest.mark.parametrize("block_length", [1, 2, 4])
def test_of_an_exact_denoiser_it_is_the_likelihood(block_length) -> None:
    x_0 = CHAIN.sample(4, LENGTH, generator=seeded(2))
    draws = 1 if block_length == 1 else 4000
    out = PROCESS.nelbo(
        CHAIN.denoiser(WORDS), x_0.repeat(draws, 1), block_length=block_length, by="count", generator=seeded(3)
    )
    nats = out.nats.view(draws, 4)
    error = 1e-6 if draws == 1 else 5 * nats.std(0) / math.sqrt(draws)
    assert bool(((nats.mean(0) + CHAIN.log_prob(x_0)).abs() <= error).all())


def dit(block_length, seed=0):
    config = DiTConfig(
        vocab_size=WORDS + 1, max_length=16, hidden_size=16, num_layers=2, num_heads=2, cond_size=4,
        block_length=block_length,
    )  # fmt: skip
    network = DiT(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3, generator=seeded(seed))
    return network


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_pass_is_a_pass_for_each_block_whatever_the_padding(side) -> None:
    """The same network called as a plain function sees each block in a pass of its own."""
    network = dit(4)
    x_0 = torch.randint(WORDS, (3, 11), generator=seeded(4))
    lengths = torch.tensor([11, 6, 3])
    real = torch.arange(11) < lengths[:, None]
    real = real.flip(1) if side == "left" else real
    options = {"block_length": 4, "by": "count", "model_kwargs": {"attention_mask": real}}
    once = PROCESS.nelbo(network, x_0, generator=seeded(5), **options)
    often = PROCESS.nelbo(
        lambda x, t, attention_mask: network(x, t, attention_mask=attention_mask), x_0, generator=seeded(5),
        **options,
    )  # fmt: skip
    torch.testing.assert_close(once.nats, often.nats, rtol=1e-4, atol=1e-5)
    options["model_kwargs"] = {"attention_mask": real.long()}  # as tokenizers make it
    assert PROCESS.nelbo(network, x_0, generator=seeded(5), **options).nats.tolist() == once.nats.tolist()
    assert once.num_tokens.tolist() == lengths.tolist()
    once.loss.backward()
    assert all(parameter.grad is not None for name, parameter in network.named_parameters() if "sigma" not in name)


def test_a_network_that_attends_both_ways_has_a_bound_in_blocks_too() -> None:
    network, x_0 = dit(None), torch.randint(WORDS, (2, 7), generator=seeded(6))
    out = PROCESS.nelbo(network, x_0, block_length=1, by="count")
    nats = torch.zeros(2)
    for i in range(7):
        x = torch.where(torch.arange(7) < i, x_0, WORDS)
        nats -= PROCESS.masked_log_probs(network(x, torch.ones(2)))[:, i].gather(1, x_0[:, i : i + 1])[:, 0]
    torch.testing.assert_close(out.nats, nats, rtol=1e-4, atol=1e-5)


class Passing(torch.nn.Module):
    """A wrapper that passes on what it lacks, as peft's does."""

    def __init__(self, network) -> None:
        super().__init__()
        self.inner = network

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)


@pytest.mark.parametrize("wrapped", [Passing, lambda network: torch.compile(network, backend="eager")])
def test_a_network_in_a_wrapper_reads_by_blocks_too(wrapped) -> None:
    """From Python 3.12 on isinstance of a protocol does not see what a wrapper passes on."""
    network, x_0 = dit(4), torch.randint(WORDS, (3, 10), generator=seeded(6))
    around = wrapped(network)
    assert reads_blocks(around)
    nats = [PROCESS.nelbo(each, x_0, by="count", generator=seeded(5)).nats for each in (network, around)]
    torch.testing.assert_close(*nats)
    t = torch.ones(3)
    torch.testing.assert_close(InBlocks(around)(x_0, t, clean=x_0), InBlocks(network)(x_0, t, clean=x_0))
    forgo(network, "paired_features")
    assert not reads_blocks(network)


def test_a_bare_ddp_that_hides_blocks_is_refused() -> None:
    class Bare(torch.nn.parallel.DistributedDataParallel):
        def __init__(self, module) -> None:  # without processes
            torch.nn.Module.__init__(self)
            self.module = module

    x_0 = torch.zeros(2, 8, dtype=torch.long)
    with pytest.raises(ValueError, match=r"DiT reads by blocks of 4.*replicate"):
        PROCESS.nelbo(Bare(dit(4)), x_0)
    assert not reads_blocks(Bare(dit(None)))
    sampler = AncestralSampler(PROCESS, num_steps=2)
    assert in_blocks_of(Bare(dit(4)), sampler).cache == "exact"
    assert in_blocks_of(Bare(dit(None)), sampler) is sampler


def test_guidance_in_blocks_reads_whole_sequences_without_a_cache() -> None:
    x_init = torch.full((2, 8), WORDS)
    x_init[:, :2] = 0
    guided = in_blocks_of(dit(4), AncestralSampler(PROCESS, num_steps=2, cfg_scale=2.0))
    assert guided.cache is None
    out = guided(dit(4), x_init=x_init, generator=seeded(0))
    assert not bool((out.sequences == WORDS).any())


def test_other_blocks_than_those_of_training_are_refused() -> None:
    x_0 = torch.zeros(2, 8, dtype=torch.long)
    with pytest.raises(ValueError, match=r"2.*4"):
        PROCESS.nelbo(dit(4), x_0, block_length=2)
    with pytest.raises(ValueError, match="0"):
        PROCESS.nelbo(dit(4), x_0, block_length=0)
