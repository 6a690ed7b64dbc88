"""On a real GPU: samplers draw what they draw on a CPU, graphs replay it, and methods train every kind of model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_sampling_on_cuda import BATCH, LENGTH, PROCESS, SAMPLERS, STEPS, VOCAB, WAITS_EACH_STEP, name_of, network
from test_training_on_cuda import BLOCK_LENGTHS, CONFIGURATIONS
from torch import Generator, nn

from discrete_distill import (
    AncestralSampler,
    CudaGraphSampler,
    DiDiInstruct,
    DiDiInstructConfig,
    RGASampler,
    SharedBase,
    as_denoiser,
    make_networks,
)
from discrete_distill.distillation.methods import PathConfig, Regularization
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.corpus import TokenStream
from discrete_distill.recipes.common.distill import Distillation
from discrete_distill.recipes.common.distill_config import DistillConfig
from discrete_distill.training import LoopConfig, OptimizerConfig, seeding

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("sampler", [*SAMPLERS, *WAITS_EACH_STEP], ids=name_of)
def test_a_sampler_draws_what_it_draws_on_a_cpu(sampler: Any) -> None:
    there = replace(sampler, reward=sampler.reward.cuda()) if isinstance(sampler, RGASampler) else sampler
    out = there(network().cuda(), (BATCH, LENGTH), generator=Generator().manual_seed(0))
    if isinstance(sampler, RGASampler):
        sampler.reward.cpu()
    here = sampler(network(), (BATCH, LENGTH), generator=Generator().manual_seed(0))
    assert torch.equal(out.sequences.cpu(), here.sequences)
    assert out.nfe == here.nfe
    torch.testing.assert_close(out.log_probs.cpu(), here.log_probs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bf16_blocks", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"end": 0.1}, {"end": 0.1, "noise_removal": "greedy"}, {"order": "strided"}], ids=str
)
def test_a_captured_graph_draws_what_the_sampler_draws(options: dict[str, Any], bf16_blocks: bool) -> None:
    sampler = AncestralSampler(PROCESS, num_steps=STEPS, **options)
    denoiser, graph = network(bf16_blocks=bf16_blocks).cuda(), CudaGraphSampler(sampler)
    for seed in (0, 1, 2):
        plain, replayed = (
            each(denoiser, (BATCH, LENGTH), generator=Generator().manual_seed(seed)) for each in (sampler, graph)
        )
        assert torch.equal(plain.sequences, replayed.sequences)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_method_trains(name: str, precision: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    method, discriminator, _ = CONFIGURATIONS[name]
    assert isinstance(method, PathConfig)
    optimizer = OptimizerConfig(warmup_steps=1, ema_decay=0.9)
    config = DistillConfig(
        method=method, batch_size=4, discriminator=discriminator, discriminator_blocks=1, teacher_steps=2,
        loop=LoopConfig(num_steps=10), student=optimizer, ratio=optimizer,
    )  # fmt: skip
    stream = TokenStream(np.random.default_rng(0).integers(0, VOCAB - 1, 500).astype(np.uint16), LENGTH)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    teacher = network()
    if name in BLOCK_LENGTHS:
        teacher = DiT(replace(teacher.config, block_length=BLOCK_LENGTHS[name])).eval()
    made = Distillation(config, teacher.cuda(), stream, PROCESS, accelerate.Accelerator(mixed_precision=precision))
    with torch.no_grad():
        for parameter in made.student.parameters:
            parameter.add_(0.05)
    before = [parameter.clone() for parameter in made.student.parameters]
    for index in range(2):
        metrics = made.step(index, seeding.step_generator(0, index, device=torch.device("cuda")))
    assert metrics["student_skipped_updates"] == 0.0
    assert not all(torch.equal(old, new) for old, new in zip(before, made.student.parameters, strict=True))
    assert all(bool(parameter.isfinite().all()) for parameter in made.student.parameters)


def hugging_face(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 24, "max_position_embeddings": 16}  # fmt: skip
    torch.manual_seed(0)
    if kind == "bert":
        return as_denoiser(transformers.BertForMaskedLM(transformers.BertConfig(**size)).eval())
    config = transformers.LlamaConfig(**size, tie_word_embeddings=kind == "tied llama")
    return as_denoiser(transformers.LlamaForCausalLM(config).eval(), attention="full", shifted=True)


@pytest.mark.parametrize("bf16_blocks", [False, True])
@pytest.mark.parametrize("length", [256, 300])
def test_the_tiles_of_a_mask_are_the_mask(length: int, bf16_blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over noisy and clean tokens and its gradients, of ragged rows, by FlexAttention and by the dense mask."""
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "max_length": length, "hidden_size": 64, "num_layers": 2, "num_heads": 2}
    blocks = DiT(DiTConfig(**shape, cond_size=8, block_length=16, bf16_blocks=bf16_blocks)).cuda().eval()
    with torch.no_grad():
        for parameter in blocks.parameters():
            parameter.normal_(std=0.1)
    x_t, x_0 = torch.randint(VOCAB, (2, 3, length), device="cuda")
    real = torch.arange(length, device="cuda") < torch.tensor([[length], [length - 150], [40]], device="cuda")
    results = []
    for tiled in (True, False):
        if not tiled:
            monkeypatch.setattr(DiT, "pays_in_tiles", lambda *_: False)
        assert blocks.pays_in_tiles(torch.cat((x_t, x_0), dim=1)) == tiled
        blocks.zero_grad()
        features = blocks.paired_features(x_t, x_0, attention_mask=real)[real].float()
        features.square().mean().backward()
        gradients = [each.grad for each in blocks.parameters() if each.grad is not None]
        results.append([features.detach(), *gradients])
    for got, expected in zip(*results, strict=True):
        error = (got - expected).norm() / expected.norm().clamp_min(1e-6)
        assert error < (2e-2 if bf16_blocks else 5e-3)


@pytest.mark.parametrize("sharing", ["copies", "one base"])
@pytest.mark.parametrize("kind", ["bert", "llama", "tied llama"])
def test_a_model_of_hugging_face_trains_as_on_a_cpu(kind: str, sharing: str) -> None:
    if sharing == "one base":
        pytest.importorskip("peft", reason="LoRA is an optional extra")
    config = DiDiInstructConfig.recommended(advantages={"group_size": 2}, regularization=Regularization())
    losses: dict[str, list[float]] = {}
    for device in ("cpu", "cuda"):
        shared = SharedBase(rank=2) if sharing == "one base" else "copies"
        networks = make_networks(hugging_face(kind), sharing=shared, generator=Generator().manual_seed(9))
        with torch.no_grad():
            for number, parameters in enumerate(networks.trainable_parameters().values()):
                for parameter in parameters:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=Generator().manual_seed(number)))
        for each in networks.named().values():
            if isinstance(each, nn.Module):
                each.to(device)
        method = DiDiInstruct(networks, PROCESS, config)
        rollout = method.rollout(4, LENGTH, generator=Generator().manual_seed(0))
        losses[device] = []
        for name, parameters in networks.trainable_parameters().items():
            loss = method.loss(name, rollout, generator=Generator().manual_seed(1)).loss
            loss.backward()
            norms = [parameter.grad.norm().item() for parameter in parameters if parameter.grad is not None]
            losses[device] += [loss.item(), *norms]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], atol=1e-4, rtol=1e-3)
