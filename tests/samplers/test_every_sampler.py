"""What all samplers promise: masks are filled in, nothing else moves, calls are counted, a seed is a seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from counting import Counting, InTwoParts, seeded
from enumerated import RandomNetwork
from hypothesis import given, settings
from hypothesis import strategies as st

from discrete_distill import (
    AnalyticSampler,
    AncestralSampler,
    BlockwiseSampler,
    ConfidenceSampler,
    EntropyBoundedSampler,
    FirstHittingSampler,
    GeometricSchedule,
    MaskedDiffusion,
    PathPlanningSampler,
    ReMaskingSampler,
    RGASampler,
    TeacherRatio,
)

MASK, LENGTH = 2, 5
PROCESS = MaskedDiffusion(MASK)
NETWORK = RandomNetwork(2, LENGTH, 0)
JUDGE = RandomNetwork(2, LENGTH, 1)


def judge(x_t, t, **_):
    return JUDGE(x_t, t)[..., 0]


SAMPLERS = {
    "ancestral": AncestralSampler(PROCESS, num_steps=4),
    "ancestral, leftovers": AncestralSampler(PROCESS, num_steps=4, end=0.3, grid="cosine"),
    "ancestral, greedy leftovers": AncestralSampler(PROCESS, num_steps=4, end=0.3, noise_removal="greedy"),
    "strided": AncestralSampler(PROCESS, num_steps=4, order="strided"),
    "strided, leftovers": AncestralSampler(PROCESS, num_steps=4, end=0.3, grid="cosine", order="strided"),
    "blocks of strided": BlockwiseSampler(AncestralSampler(PROCESS, num_steps=2, order="strided"), block_length=3),
    "guided, strided": RGASampler(PROCESS, reward=judge, num_steps=4, num_candidates=3, order="strided"),
    "analytic": AnalyticSampler(PROCESS, num_steps=4),
    "analytic, scores": AnalyticSampler(
        MaskedDiffusion(MASK, GeometricSchedule(0.1, 3.0)), num_steps=4, outputs="log_scores"
    ),
    "confidence": ConfidenceSampler(PROCESS, num_steps=3),
    "margin": ConfidenceSampler(PROCESS, num_steps=3, order="margin", order_temperature=0.5),
    "entropy, greedy": ConfidenceSampler(PROCESS, num_steps=3, order="entropy", greedy=True),
    "threshold": ConfidenceSampler(PROCESS, threshold=0.6),
    "factor": ConfidenceSampler(PROCESS, factor=1.0),
    "entropy-bounded": EntropyBoundedSampler(PROCESS, gamma=0.5),
    "entropy-bounded, margin": EntropyBoundedSampler(PROCESS, gamma=0.5, order="margin"),
    "first-hitting": FirstHittingSampler(PROCESS),
    "remasking, cap": ReMaskingSampler(PROCESS, num_steps=5, eta=0.5),
    "remasking, rescale": ReMaskingSampler(PROCESS, num_steps=5, strategy="rescale", eta=0.8),
    "remasking, conf": ReMaskingSampler(PROCESS, num_steps=5, strategy="conf"),
    "path planning": PathPlanningSampler(PROCESS, num_steps=4),
    "blocks of ancestral": BlockwiseSampler(AncestralSampler(PROCESS, num_steps=2), block_length=2),
    "blocks of confidence": BlockwiseSampler(ConfidenceSampler(PROCESS, num_steps=2), block_length=3),
    "guided": RGASampler(PROCESS, reward=judge, num_steps=4, num_candidates=3),
    "blocks of guided": BlockwiseSampler(
        RGASampler(PROCESS, reward=judge, num_steps=2, num_candidates=2), block_length=3
    ),
    "guided by a teacher": RGASampler(
        PROCESS, reward=TeacherRatio(JUDGE, NETWORK, PROCESS), num_steps=3, num_candidates=2
    ),
}


def with_options(sampler, **options):
    if isinstance(sampler, BlockwiseSampler):
        return replace(sampler, sampler=replace(sampler.sampler, **options))
    return replace(sampler, **options)


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=6)
@given(st.integers(0, 10**6), st.booleans())
def test_masks_are_filled_in_nothing_else_moves_and_calls_are_counted(name, seed, padded) -> None:
    generator, network = seeded(seed), Counting(NETWORK)
    x_init = torch.randint(3, (6, LENGTH), generator=generator)
    real = torch.rand(6, LENGTH, generator=generator) < 0.7 if padded else None
    out = SAMPLERS[name](
        network,
        x_init=x_init,
        attention_mask=real,
        generator=generator,
        return_history=True,
    )
    generation_mask = x_init == MASK if real is None else (x_init == MASK) & real
    assert bool((out.sequences[generation_mask] != MASK).all())
    for state in (*(out.history or []), out.sequences):
        assert bool((state[~generation_mask] == x_init[~generation_mask]).all())
    assert bool((out.log_probs[~generation_mask] == 0).all())
    assert bool((out.log_probs <= 0).all())
    assert out.nfe == network.calls
    assert (out.network_evaluations > out.nfe) == ("guided" in name)


@pytest.mark.parametrize("name", SAMPLERS)
def test_chunks_heads_and_padded_tables_change_no_token(name) -> None:
    sampler = SAMPLERS[name]
    plain = sampler(NETWORK, shape=(12, LENGTH), generator=seeded(3))
    others = {
        "chunks of one row": (with_options(sampler, chunk_rows=1), NETWORK),
        "chunks of seven": (with_options(sampler, chunk_rows=7), NETWORK),
        "a head of its own": (sampler, InTwoParts(NETWORK)),
        "static": (with_options(sampler, static=True), NETWORK),
        "checked": (with_options(sampler, check=True), NETWORK),
    }
    for how, (other, network) in others.items():
        out = other(network, shape=(12, LENGTH), generator=seeded(3))
        assert bool((out.sequences == plain.sequences).all()), how
        torch.testing.assert_close(out.log_probs, plain.log_probs, atol=1e-6, rtol=1e-6)
        # Without a look at the data, nobody knows that a step has nothing to do.
        assert out.nfe >= plain.nfe if how == "static" else out.nfe == plain.nfe, how


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_in_parts_is_the_batch(name) -> None:
    whole = SAMPLERS[name](NETWORK, shape=(9, LENGTH), generator=seeded(4)).sequences
    parts = [
        SAMPLERS[name](NETWORK, shape=(size, LENGTH), generator=seeded(4), first_row=start).sequences
        for start, size in ((0, 4), (4, 5))
    ]
    assert bool((torch.cat(parts) == whole).all())
    assert "greedy" in name or not bool((whole[:4] == whole[4:8]).all())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_without_a_token_to_draw_is_named(name) -> None:
    def broken(x, t, **_):
        logits = NETWORK(x, t)
        return torch.where((x[:, :1] == 1)[..., None], torch.nan, logits)

    x_init = torch.full((4, LENGTH), MASK)
    x_init[:, 0] = torch.tensor([0, 0, 1, 0])
    options = {"x_init": x_init, "generator": seeded(0)}
    with pytest.raises(ValueError, match=r"sequence 2, position 1: logits of the denoiser were NaN.*check=True"):
        SAMPLERS[name](broken, **options)
    with pytest.raises(ValueError, match=r"step \d, sequence 2, position \d: logits of the denoiser are NaN"):
        with_options(SAMPLERS[name], check=True)(broken, **options)


@pytest.mark.parametrize(
    "name", ["confidence", "entropy-bounded", "path planning", "analytic, scores", "remasking, cap"]
)
def test_a_row_that_was_bad_once_is_named_though_it_is_drawn_later(name) -> None:
    """These samplers look at rows that they do not draw, or draw them again."""
    first = []

    def broken_at_first(x, t, **_):
        logits = NETWORK(x, t)
        if not first:
            first.append(True)
            # All rows of the last sequence are surer than its row 3.
            logits = logits.clone()
            logits[-1, 3 if name != "remasking, cap" else slice(None)] = torch.nan
        return logits

    x_init = torch.full((3, LENGTH), MASK)
    with pytest.raises(ValueError, match=r"sequence 2, position \d"):
        SAMPLERS[name](broken_at_first, x_init=x_init, generator=seeded(0))


@pytest.mark.parametrize("value", [["a"] * 4, np.arange(4)], ids=["list", "array"])
def test_conditions_of_sequences_are_tensors(value) -> None:
    """Lists cannot follow their sequences, of which a step asks about some."""
    network = lambda x, t, **_: NETWORK(x, t)  # noqa: E731
    with pytest.raises(TypeError, match="topic"):
        AncestralSampler(PROCESS, num_steps=4)(network, (4, LENGTH), generator=seeded(0), model_kwargs={"topic": value})
    AncestralSampler(PROCESS, num_steps=4)(network, (3, LENGTH), generator=seeded(0), model_kwargs={"topic": value})
