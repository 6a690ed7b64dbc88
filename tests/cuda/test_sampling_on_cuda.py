"""Samplers on a pretended CUDA device: devices agree, and the host waits as seldom as documented."""

from __future__ import annotations

import pretended_cuda as pretended
import pytest
import torch
from pretended_cuda import CUDA, PretendedCuda, PretendedGenerator

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
    StaticSampler,
    TeacherRatio,
)
from discrete_distill.models import Discriminator, DiT, DiTConfig

VOCAB, LENGTH, BATCH, STEPS = 67, 8, 3, 3
PROCESS = MaskedDiffusion(VOCAB - 1)
SAMPLERS = [
    AncestralSampler(PROCESS, STEPS),
    AncestralSampler(PROCESS, STEPS, end=0.1),
    AncestralSampler(PROCESS, STEPS, end=0.1, noise_removal="greedy"),
    AncestralSampler(PROCESS, STEPS, top_k=20, top_p=0.9),
    AncestralSampler(PROCESS, STEPS, precision=torch.float64),
    AnalyticSampler(PROCESS, STEPS),
    ConfidenceSampler(PROCESS, STEPS, order="margin", order_temperature=0.5),
    FirstHittingSampler(PROCESS),
    PathPlanningSampler(PROCESS, STEPS),
    ReMaskingSampler(PROCESS, STEPS, strategy="conf"),
    RGASampler(PROCESS, STEPS),
    RGASampler(PROCESS, STEPS, tilt_fraction=0.5),
]
WAITS_EACH_STEP = [
    EntropyBoundedSampler(PROCESS, gamma=0.5),
    BlockwiseSampler(AncestralSampler(PROCESS, STEPS), 4),
    BlockwiseSampler(ConfidenceSampler(PROCESS, STEPS), 4),
]


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


def scorers(sampler, denoiser) -> list:
    if not isinstance(sampler, RGASampler):
        return []
    return [pretended.to_cuda(Discriminator.from_denoiser(network(), 1).eval())]


def name_of(sampler) -> str:
    return f"{type(sampler).__name__}-{SAMPLERS.index(sampler) if sampler in SAMPLERS else ''}"


@pytest.mark.parametrize("generator", ["cuda", "cpu", None])
@pytest.mark.parametrize("sampler", [*SAMPLERS, *WAITS_EACH_STEP], ids=name_of)
def test_everything_a_sampler_touches_is_on_the_device(sampler, generator) -> None:
    with pretended.pretended_cuda():
        denoiser = pretended.to_cuda(network())
        source = None if generator is None else PretendedGenerator(generator).manual_seed(0)
        out = sampler(denoiser, *scorers(sampler, denoiser), (BATCH, LENGTH), generator=source, device=CUDA)
        x_init = torch.full((BATCH, LENGTH), VOCAB - 1, device=CUDA)
        x_init[:, :3] = 5
        real = torch.ones(BATCH, LENGTH, dtype=torch.bool, device=CUDA)
        real[1, -2:] = False
        prompted = sampler(
            denoiser, *scorers(sampler, denoiser), x_init=x_init, attention_mask=real, generator=source
        ).sequences
        assert isinstance(out.sequences, PretendedCuda)
        assert isinstance(prompted, PretendedCuda)
        assert isinstance(out.log_probs, PretendedCuda)
        if generator != "cpu":
            return
    here = sampler(
        network(),
        *([] if not isinstance(sampler, RGASampler) else [Discriminator.from_denoiser(network(), 1).eval()]),
        (BATCH, LENGTH),
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(out.sequences.inner, here.sequences)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name_of)
def test_the_host_waits_twice_in_a_call(sampler) -> None:
    """Once for the rows of all steps, before the first; once at the end."""
    with pretended.pretended_cuda():
        denoiser = pretended.to_cuda(network())
        others = scorers(sampler, denoiser)
        pretended.waits.clear()
        sampler(denoiser, *others, (BATCH, LENGTH), generator=PretendedGenerator("cuda"), device=CUDA)
        # Event times, plans and guided first steps are read apart.
        budget = 3 if isinstance(sampler, (FirstHittingSampler, PathPlanningSampler, RGASampler)) else 2
        assert pretended.waits.total() <= budget, pretended.waits


def test_a_ratio_of_two_networks_scores_on_the_device() -> None:
    with pretended.pretended_cuda():
        denoiser, other = pretended.to_cuda(network()), pretended.to_cuda(network())
        ratio = TeacherRatio(denoiser, other, PROCESS)
        out = RGASampler(PROCESS, STEPS)(denoiser, ratio, (BATCH, LENGTH), device=CUDA)
        assert isinstance(out.sequences, PretendedCuda)


@pytest.mark.parametrize("bf16_blocks", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"end": 0.1}, {"end": 0.1, "noise_removal": "greedy"}, {"top_k": 5}, {"precision": torch.float64}],
    ids=str,
)
def test_a_static_trajectory_never_waits(options, bf16_blocks) -> None:
    sampler = AncestralSampler(PROCESS, STEPS, **options)
    with pretended.pretended_cuda():
        denoiser = pretended.to_cuda(network(bf16_blocks=bf16_blocks))
        static = StaticSampler(sampler, denoiser, (BATCH, LENGTH), device=CUDA, capture=False)
        pretended.waits.clear()
        with torch.no_grad():
            static.trajectory()
        assert not pretended.waits
        fixed = static(PretendedGenerator("cuda").manual_seed(3)).sequences
        plain = sampler(denoiser, (BATCH, LENGTH), device=CUDA, generator=PretendedGenerator("cuda").manual_seed(3))
        assert torch.equal(fixed.inner, plain.sequences.inner)


def test_logits_on_the_device_have_aligned_rows() -> None:
    with pretended.pretended_cuda():
        denoiser = pretended.to_cuda(network())
        logits = denoiser(torch.full((2, LENGTH), 5, device=CUDA), torch.ones(2, device=CUDA))
        assert logits.shape == (2, LENGTH, VOCAB)
        assert logits.inner.stride() == (LENGTH * 128, 128, 1)


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
