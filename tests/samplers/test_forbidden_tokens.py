"""Forbidden ids are never drawn, and what is drawn follows the distribution renormalised without them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from counting import chi_square_p, counts_of, seeded
from enumerated import RandomNetwork
from hypothesis import given, settings
from hypothesis import strategies as st
from test_every_sampler import JUDGE, SAMPLERS, with_options

from discrete_distill import (
    AncestralSampler,
    BlockwiseSampler,
    ConfidenceSampler,
    CudaGraphSampler,
    GeometricSchedule,
    LinearSchedule,
    MaskedDiffusion,
    RGASampler,
    TeacherRatio,
    exact,
)
from discrete_distill.process.forbidden import without_ids

MASK, WORDS, LENGTH, DRAWS = 3, 3, 3, 20_000


def renormalised(network, forbidden):
    """The denoiser without the forbidden ids, written down apart from the library."""

    def denoiser(x_t, t, **_):
        logits = network(x_t, t).clone()
        logits[..., list(forbidden)] = -torch.inf
        return logits

    return denoiser


@pytest.mark.parametrize("where", ["process", "sampler"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_as_from_the_renormalised_denoiser(name, where) -> None:
    network, forbidden = RandomNetwork(2, 5, 0), (1,)
    sampler = SAMPLERS[name]
    inner = sampler.sampler if isinstance(sampler, BlockwiseSampler) else sampler
    if where == "sampler":
        chosen = with_options(sampler, forbidden_token_ids=forbidden)
    else:
        chosen = with_options(sampler, process=replace(inner.process, forbidden_token_ids=forbidden))
    x_init = torch.full((16, 5), 2)
    x_init[:, 0] = 1  # a forbidden id may be given
    out = chosen(network, x_init=x_init, generator=seeded(3))
    assert bool((out.sequences[:, 1:] == 0).all())
    assert bool((out.sequences[:, 0] == 1).all())
    torch.testing.assert_close(out.log_probs, torch.zeros(16, 5))
    expected = sampler(renormalised(network, forbidden), x_init=x_init, generator=seeded(3))
    assert torch.equal(out.sequences, expected.sequences)
    assert out.nfe == expected.nfe


@pytest.mark.parametrize("forbidden", [(0,), (2,)])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_ancestral_samples_follow_the_enumerated_distribution(steps, forbidden) -> None:
    process = MaskedDiffusion(MASK, forbidden_token_ids=forbidden)
    network = RandomNetwork(WORDS, LENGTH, steps, times=[1.0 - k / steps for k in range(steps)])
    out = AncestralSampler(process, num_steps=steps)(network, (DRAWS, LENGTH), generator=seeded(1))
    plain, times = MaskedDiffusion(MASK), exact.uniform_times(steps)
    expected = exact.sampler_distribution(renormalised(network, forbidden), plain, times, LENGTH, WORDS)
    counts = counts_of(out.sequences, WORDS, MASK)
    assert chi_square_p(counts, expected) > 1e-3
    assert chi_square_p(counts, exact.sampler_distribution(network, plain, times, LENGTH, WORDS)) < 1e-6
    torch.testing.assert_close(exact.sampler_distribution(network, process, times, LENGTH, WORDS), expected)


def test_confidence_is_that_of_the_renormalised_distribution() -> None:
    network, plain = RandomNetwork(WORDS, LENGTH, 4), MaskedDiffusion(MASK, LinearSchedule())
    for order in ("confidence", "margin", "entropy"):
        sampler = ConfidenceSampler(plain, num_steps=2, order=order)
        out = replace(sampler, forbidden_token_ids=[1])(network, (DRAWS, LENGTH), generator=seeded(2))
        other = sampler(renormalised(network, [1]), (DRAWS, LENGTH), generator=seeded(2))
        assert torch.equal(out.sequences, other.sequences)


def test_guidance_scores_of_a_teacher_and_graphs_obey_the_process() -> None:
    network, process = RandomNetwork(2, 5, 0), MaskedDiffusion(2, forbidden_token_ids=[0])
    out = CudaGraphSampler(AncestralSampler(process, num_steps=3), capture=False)(network, (8, 5), generator=seeded(0))
    assert bool((out.sequences == 1).all())
    x_init = torch.full((8, 5), 2)
    x_init[:, 0] = 1
    guided = AncestralSampler(process, num_steps=3, cfg_scale=2.0)(network, x_init=x_init, generator=seeded(0))
    assert bool((guided.sequences == 1).all())
    ratio = TeacherRatio(JUDGE, network, process)
    out = RGASampler(process, reward=ratio, num_steps=2, num_candidates=2)(network, (8, 5), generator=seeded(0))
    assert bool((out.sequences == 1).all())


def test_the_precisions_and_filters_obey() -> None:
    network, process = RandomNetwork(4, 3, 0), MaskedDiffusion(4, forbidden_token_ids=[1, 2])
    for options in ({"precision": torch.float64}, {"top_k": 2}, {"top_p": 0.7}, {"temperature": 0.5}):
        out = AncestralSampler(process, num_steps=2, **options)(network, (500, 3), generator=seeded(0))
        assert not set(out.sequences.unique().tolist()) & {1, 2, 4}


@settings(max_examples=60)
@given(st.data())
def test_logits_without_ids(data) -> None:
    classes = data.draw(st.integers(1, 12))
    ids = data.draw(st.lists(st.integers(0, classes - 1), max_size=classes, unique=True))
    shape = data.draw(st.sampled_from([(), (3,), (2, 3)]))
    logits = torch.randn(*shape, classes, requires_grad=True)
    filled = without_ids(logits, tuple(sorted(ids)))
    kept = torch.tensor([each not in ids for each in range(classes)])
    assert torch.equal(filled, torch.where(kept, logits, -torch.inf))
    assert (filled is logits) == (not ids)
    filled.where(kept, 0.0).sum().backward()
    assert torch.equal(logits.grad, kept.float().expand_as(logits))


def test_the_bound_and_its_gradient_are_those_of_the_renormalised_denoiser() -> None:
    table = torch.randn(3, 4, requires_grad=True, generator=seeded(0))
    denoiser = lambda x_t, t: table.expand(len(x_t), -1, -1)  # noqa: E731
    x = torch.tensor([[0, 2, 2], [2, 0, 0]])
    found = MaskedDiffusion(3, forbidden_token_ids=[1]).nelbo(denoiser, x, by="count", generator=seeded(1)).loss
    (gradient,) = torch.autograd.grad(found, table)
    plain = MaskedDiffusion(3).nelbo(renormalised(denoiser, [1]), x, by="count", generator=seeded(1)).loss
    (expected,) = torch.autograd.grad(plain, table)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(gradient, expected)
    assert float(gradient[:, 1].abs().max()) == 0.0


@pytest.mark.parametrize(
    ("ids", "error", "value"),
    [
        ([2], ValueError, "2"),
        ([-1], ValueError, "-1"),
        (3, TypeError, "3"),
        ("01", TypeError, "01"),
        ([0.5], TypeError, "0.5"),
        ([True], TypeError, "True"),
    ],
)
def test_ids_that_mean_nothing_are_refused(ids, error, value) -> None:
    for make in (
        lambda: MaskedDiffusion(2, forbidden_token_ids=ids),
        lambda: AncestralSampler(MaskedDiffusion(2), forbidden_token_ids=ids),
    ):
        with pytest.raises(error, match=value):
            make()


def test_ids_outside_the_vocabulary_are_refused_and_none_left_is_named() -> None:
    network = RandomNetwork(2, 5, 0)
    for ids in ([3], np.array([7]), torch.tensor([7, 0])):
        with pytest.raises(ValueError, match=str(int(max(ids)))):
            AncestralSampler(MaskedDiffusion(2, forbidden_token_ids=ids))(network, (2, 5), generator=seeded(0))
    with pytest.raises(ValueError, match="sequence 0, position"):
        AncestralSampler(MaskedDiffusion(2), forbidden_token_ids=[0, 1])(network, (2, 5), generator=seeded(0))


def test_a_process_is_a_value() -> None:
    process = MaskedDiffusion(2, GeometricSchedule(), [1, 0, 1])
    assert process == MaskedDiffusion(2, GeometricSchedule(), (0, 1))
    assert hash(process) == hash(replace(process))
