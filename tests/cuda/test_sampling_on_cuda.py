"""Samplers on a pretended CUDA device: devices agree, and the host waits as seldom as documented."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pretended_cuda as pretended
import pytest
import torch
from pretended_cuda import CUDA, PretendedCuda, PretendedGenerator
from torch.nn.attention.flex_attention import BlockMask

from discrete_distill import (
    AnalyticSampler,
    AncestralSampler,
    BlockwiseSampler,
    ConfidenceSampler,
    CudaGraphSampler,
    EntropyBoundedSampler,
    FirstHittingSampler,
    MaskedDiffusion,
    PathPlanningSampler,
    ReMaskingSampler,
    RGASampler,
    TeacherRatio,
)
from discrete_distill.models import Discriminator, DiT, DiTConfig

VOCAB, LENGTH, BATCH, STEPS = 67, 8, 3, 3
PROCESS = MaskedDiffusion(VOCAB - 1)


def network(**options) -> DiT:
    torch.manual_seed(0)
    config = DiTConfig(
        vocab_size=VOCAB,
        max_length=LENGTH,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        cond_size=8,
        dropout=0.0,
        **options,
    )
    made = DiT(config).eval()
    torch.nn.init.normal_(made.output_layer.linear.weight, std=0.5)
    return made


def judge() -> Discriminator:
    return Discriminator.from_denoiser(network(), 1).eval()


SAMPLERS = [
    AncestralSampler(PROCESS, num_steps=STEPS),
    AncestralSampler(PROCESS, num_steps=STEPS, end=0.1),
    AncestralSampler(PROCESS, num_steps=STEPS, end=0.1, noise_removal="greedy"),
    AncestralSampler(PROCESS, num_steps=STEPS, order="strided"),
    AncestralSampler(PROCESS, num_steps=STEPS, top_k=20, top_p=0.9),
    AncestralSampler(PROCESS, num_steps=STEPS, precision=torch.float64),
    AnalyticSampler(PROCESS, num_steps=STEPS),
    ConfidenceSampler(PROCESS, num_steps=STEPS, order="margin", order_temperature=0.5),
    FirstHittingSampler(PROCESS),
    PathPlanningSampler(PROCESS, num_steps=STEPS),
    ReMaskingSampler(PROCESS, num_steps=STEPS, strategy="conf"),
    RGASampler(PROCESS, reward=judge(), num_steps=STEPS),
    RGASampler(PROCESS, reward=judge(), num_steps=STEPS, tilt_fraction=0.5),
]
WAITS_EACH_STEP = [
    EntropyBoundedSampler(PROCESS, gamma=0.5),
    BlockwiseSampler(AncestralSampler(PROCESS, num_steps=STEPS), block_length=4),
    BlockwiseSampler(ConfidenceSampler(PROCESS, num_steps=STEPS), block_length=4),
]


def on_device(sampler):
    """The sampler, with a judge on the device where it has one."""
    if not isinstance(sampler, RGASampler):
        return sampler
    return replace(sampler, reward=pretended.to_cuda(judge()))


def name_of(sampler) -> str:
    return f"{type(sampler).__name__}-{SAMPLERS.index(sampler) if sampler in SAMPLERS else ''}"


@pytest.mark.parametrize("generator", ["cuda", "cpu", None])
@pytest.mark.parametrize("sampler", [*SAMPLERS, *WAITS_EACH_STEP], ids=name_of)
def test_everything_a_sampler_touches_is_on_the_device(sampler, generator) -> None:
    with pretended.pretended_cuda():
        denoiser = pretended.to_cuda(network())
        source = None if generator is None else PretendedGenerator(generator).manual_seed(0)
        there = on_device(sampler)
        out = there(denoiser, (BATCH, LENGTH), generator=source)
        x_init = torch.full((BATCH, LENGTH), VOCAB - 1, device=CUDA)
        x_init[:, :3] = 5
        real = torch.ones(BATCH, LENGTH, dtype=torch.bool, device=CUDA)
        real[1, -2:] = False
        prompted = there(denoiser, x_init=x_init, attention_mask=real, generator=source).sequences
        assert isinstance(out.sequences, PretendedCuda)
        assert isinstance(prompted, PretendedCuda)
        assert isinstance(out.log_probs, PretendedCuda)
        if generator != "cpu":
            return
    here = sampler(network(), (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    assert torch.equal(out.sequences.inner, here.sequences)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name_of)
def test_the_host_waits_twice_in_a_call(sampler) -> None:
    """Once for the rows of all steps, before the first; once at the end."""
    with pretended.pretended_cuda():
        denoiser = pretended.to_cuda(network())
        there = on_device(sampler)
        pretended.waits.clear()
        there(denoiser, (BATCH, LENGTH), generator=PretendedGenerator("cuda"), device=CUDA)
        # Event times, plans and guided first steps are read apart.
        budget = 3 if isinstance(sampler, (FirstHittingSampler, PathPlanningSampler, RGASampler)) else 2
        assert pretended.waits.total() <= budget, pretended.waits


def test_a_ratio_of_two_networks_scores_on_the_device() -> None:
    with pretended.pretended_cuda():
        denoiser, other = pretended.to_cuda(network()), pretended.to_cuda(network())
        ratio = TeacherRatio(denoiser, other, PROCESS)
        out = RGASampler(PROCESS, reward=ratio, num_steps=STEPS)(denoiser, (BATCH, LENGTH), device=CUDA)
        assert isinstance(out.sequences, PretendedCuda)


@pytest.mark.parametrize("bf16_blocks", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"end": 0.1}, {"end": 0.1, "noise_removal": "greedy"}, {"order": "strided"}, {"precision": torch.float64}],
    ids=str,
)
def test_a_static_trajectory_never_waits(options, bf16_blocks) -> None:
    sampler = AncestralSampler(PROCESS, num_steps=STEPS, **options)
    with pretended.pretended_cuda():
        denoiser = pretended.to_cuda(network(bf16_blocks=bf16_blocks))
        static = CudaGraphSampler(sampler, capture=False)
        trajectory = static.trajectory(denoiser, (BATCH, LENGTH), device=CUDA)
        pretended.waits.clear()
        with torch.no_grad():
            trajectory.run()
        assert not pretended.waits
        generator = PretendedGenerator("cuda").manual_seed(3)
        fixed = static(denoiser, (BATCH, LENGTH), device=CUDA, generator=generator).sequences
        plain = sampler(denoiser, (BATCH, LENGTH), device=CUDA, generator=PretendedGenerator("cuda").manual_seed(3))
        assert torch.equal(fixed.inner, plain.sequences.inner)


def test_logits_on_the_device_have_aligned_rows() -> None:
    with pretended.pretended_cuda():
        denoiser = pretended.to_cuda(network())
        logits = denoiser(torch.full((2, LENGTH), 5, device=CUDA), torch.ones(2, device=CUDA))
        assert logits.shape == (2, LENGTH, VOCAB)
        assert logits.inner.stride() == (LENGTH * 128, 128, 1)


def test_the_tiles_of_a_mask_are_listed_without_waiting() -> None:
    """A pass over noisy and clean tokens of blocks lists them on the device of its tokens, and is given them."""
    with pretended.pretended_cuda():
        denoiser = DiT(DiTConfig(vocab_size=VOCAB, max_length=300, hidden_size=32, num_heads=2, block_length=16))
        given = mock.Mock(side_effect=lambda x, *_, **__: torch.zeros(*x.shape, 1, device=x.device))
        x = torch.full((2, 300), 5, device=CUDA)
        with mock.patch.object(denoiser, "read_part", given), mock.patch.object(BlockMask, "from_kv_blocks") as made:
            denoiser.paired_features(x, x)
        assert given.call_args.args[4] is made.return_value
        assert [each.shape for each in made.call_args.args] == [(2, 1, 5), (2, 1, 5, 5)] * 2
        assert all(isinstance(each, PretendedCuda) for each in made.call_args.args)
        assert pretended.waits.total() == 0


def test_the_pretence_refuses_what_a_gpu_refuses() -> None:
    with pretended.pretended_cuda():
        there = torch.ones(2, device=CUDA)
        with pytest.raises(pretended.DeviceMismatch):
            there + torch.ones(2)
        with pytest.raises(pretended.DeviceMismatch):
            torch.rand(2, device=CUDA, generator=PretendedGenerator("cpu"))
        assert float(there.sum()) == 2.0
        assert there[there > 0].tolist() == [1.0, 1.0]
        assert pretended.waits.total() == 3
