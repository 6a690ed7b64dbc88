"""A denoiser guided by its prior: the formula, the cost, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from discrete_distill.models import DiT, DiTConfig, PriorGuided, guide_by_prior, prior_log_probs
from discrete_distill.process import FeatureDenoiser

MASK = 5


@pytest.fixture
def network() -> DiT:
    torch.manual_seed(0)
    made = DiT(DiTConfig(vocab_size=6, max_length=4, hidden_size=16, num_layers=2, num_heads=2, cond_size=8)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def test_the_copy_answers_with_the_formula(network: DiT) -> None:
    x, t, weight = torch.tensor([[0, MASK, 3, MASK], [1, 1, MASK, 4]]), torch.tensor([0.5, 0.2]), 0.7
    plain, prior = network(x, t).log_softmax(-1), prior_log_probs(network, MASK)
    expected = ((1.0 + weight) * plain - weight * prior).log_softmax(-1)
    torch.testing.assert_close(guide_by_prior(network, weight, MASK)(x, t).log_softmax(-1), expected)


def test_the_prior_is_the_mean_answer_to_masks_alone(network: DiT) -> None:
    logits = network(torch.full((1, 4), MASK), torch.ones(1))[0]
    mean = logits[:, :MASK].softmax(-1).mean(0)
    prior = prior_log_probs(network, MASK)
    torch.testing.assert_close(prior[:MASK].exp(), mean)
    assert float(prior[MASK]) == pytest.approx(torch.tensor(1e-9).log().item())


def test_any_denoiser_is_guided_as_a_dit_is(network: DiT) -> None:
    """A `PriorGuided` around a function, or around the network itself, has the logits of the copy with another head."""
    x, t, weight = torch.tensor([[0, MASK, 3, MASK], [1, 1, MASK, 4]]), torch.tensor([0.5, 0.2]), 0.7
    expected = guide_by_prior(network, weight, MASK)(x, t)
    around = guide_by_prior(lambda x_t, t: network(x_t, t), weight, MASK, length=4)
    torch.testing.assert_close(around(x, t), expected)
    assert not isinstance(around, FeatureDenoiser)
    whole = PriorGuided(network, weight, prior_log_probs(network, MASK))
    torch.testing.assert_close(whole.project(whole.features(x, t)), expected)


def test_no_weight_changes_nothing_and_the_original_stays(network: DiT) -> None:
    x, t = torch.tensor([[0, MASK, 3, MASK]]), torch.tensor([0.5])
    before = network(x, t)
    assert torch.equal(guide_by_prior(network, 0.0, MASK)(x, t), before)
    guide_by_prior(network, 1.0, MASK)
    assert torch.equal(network(x, t), before)


def test_what_says_no_more_than_the_prior_stays_the_prior(network: DiT) -> None:
    """Of a network that ignores its input, guidance of any weight changes no probability."""
    torch.nn.init.zeros_(network.output_layer.linear.weight)
    x, t = torch.tensor([[0, MASK, 3, MASK]]), torch.tensor([0.5])
    guided = guide_by_prior(network, 2.0, MASK)(x, t)[..., :MASK]
    torch.testing.assert_close(guided.softmax(-1), network(x, t)[..., :MASK].softmax(-1))


def test_a_negative_weight_is_refused(network: DiT) -> None:
    with pytest.raises(ValueError, match=r"-0\.1"):
        guide_by_prior(network, -0.1, MASK)


def test_dropout_has_no_part_in_it_and_the_mode_stays(network: DiT) -> None:
    expected = prior_log_probs(network, MASK)
    network.train().blocks[0].eval()
    assert torch.equal(prior_log_probs(network, MASK), expected)
    assert network.training
    assert [block.training for block in network.blocks] == [False, True]


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_weights_that_mean_nothing_are_refused(network: DiT, weight: float) -> None:
    with pytest.raises(ValueError, match=str(weight)):
        guide_by_prior(network, weight, MASK)


def test_other_networks_and_masks_are_refused(network: DiT) -> None:
    with pytest.raises(TypeError, match="str"):
        guide_by_prior("network", 0.3, MASK)
    with pytest.raises(ValueError, match="length"):
        guide_by_prior(lambda x_t, t: network(x_t, t), 0.3, MASK)
    for mask in (-1, 6):
        with pytest.raises(ValueError, match=str(mask)):
            guide_by_prior(network, 0.3, mask)
