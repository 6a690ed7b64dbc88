"""Networks of a distillation: copies, and adapters on one base with the gradients of separate networks."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from every_kind import NETWORKS, teacher
from external import LENGTH, MASK, example, transformers
from torch import Tensor, nn

from discrete_distill import (
    DiDiInstruct,
    DiDiInstructConfig,
    MaskedDiffusion,
    SharedBase,
    as_denoiser,
    make_networks,
)
from discrete_distill.distillation.methods import Regularization
from discrete_distill.distillation.networks import Networks
from discrete_distill.models import StepConditioned, WrappedDenoiser, load_denoiser

PROCESS = MaskedDiffusion(mask_token_id=MASK)
SHARED = SharedBase(rank=2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disturbed(networks: Networks) -> Networks:
    """Every trained weight moved, so that no two networks agree."""
    with torch.no_grad():
        for seed, parameters in enumerate(networks.trainable_parameters().values()):
            for parameter in parameters:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(seed)))
    return networks


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def separate(networks: Networks) -> Networks:
    return Networks(**{name: copy.deepcopy(each) for name, each in networks.named().items()})


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_on_one_base_have_the_gradients_of_separate_copies(kind: str) -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    shared = disturbed(make_networks(teacher(kind), sharing=SHARED, generator=seeded(9)))
    copies = separate(shared)
    found = []
    for networks in (shared, copies):
        config = DiDiInstructConfig.recommended(advantages={"group_size": 2}, regularization=Regularization())
        method = DiDiInstruct(networks, PROCESS, config)
        rollout = method.rollout(4, LENGTH, generator=seeded(0))
        for name in ("student", "auxiliary"):
            method.loss(name, rollout, generator=seeded(1)).loss.backward()
        found.append({name: gradients(each) for name, each in networks.trained().items()})
    for name, expected in found[1].items():
        assert expected.keys() == found[0][name].keys()
        assert any(".lora_" in each for each in expected)
        assert any("step_map" in each for each in expected)
        for each, value in expected.items():
            torch.testing.assert_close(found[0][name][each], value, atol=1e-6, rtol=1e-6)


def test_a_block_is_run_again_under_the_adapter_of_its_own_network() -> None:
    """The student's blocks are run again in the backward pass, after the auxiliary was called."""
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    shared = disturbed(make_networks(teacher("llama"), sharing=SHARED, step_conditioning=False))
    plain, (x, t) = separate(shared), example()
    student: Any = shared.student.train()  # without dropout
    student.gradient_checkpointing_enable()
    runs: list[int] = []
    student.blocks[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    loss = student(x, t).square().mean()
    auxiliary = shared.auxiliary(x, t).square().mean()  # type: ignore[misc]
    shared.teacher(x, t)
    assert len(runs) == 1
    (loss + auxiliary).backward()
    assert len(runs) == 2
    for network, expected in ((shared.student, plain.student), (shared.auxiliary, plain.auxiliary)):
        expected(x, t).square().mean().backward()  # type: ignore[misc]
        for name, value in gradients(expected).items():  # type: ignore[arg-type]
            torch.testing.assert_close(gradients(network)[name], value, atol=1e-6, rtol=1e-6)  # type: ignore[arg-type]


def memory(*networks: Any) -> int:
    return sum({p.data_ptr(): p.numel() for network in networks for p in network.parameters()}.values())


@pytest.mark.parametrize("log_ratio", ["auxiliary", "discriminator"])
@pytest.mark.parametrize("kind", ["bert", "tied llama", "dit"])
def test_the_memory_is_one_base_and_what_is_trained(kind: str, log_ratio: Any) -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    given = teacher(kind)
    flags = [parameter.requires_grad for parameter in given.parameters()]
    (x, t), before = example(), given(*example())
    networks = make_networks(given, log_ratio=log_ratio, sharing=SHARED)
    everything = [each for each in networks.named().values() if each is not None]
    trained = sum(p.numel() for each in networks.trainable_parameters().values() for p in each)
    assert memory(given, *everything) == memory(given) + trained
    frozen = [{id(p) for p in each.parameters() if not p.requires_grad} for each in everything]
    assert all(each == frozen[0] for each in frozen[1:])  # one object each, so that they move together
    for parameters in networks.trainable_parameters().values():
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert torch.equal(given(x, t), before)
    assert torch.equal(networks.teacher(x, t), before)
    assert not torch.allclose(networks.student(x, t, s=t), before)
    assert [parameter.requires_grad for parameter in given.parameters()] == flags
    heads = {id(parameter) for parameter in networks.student.parameters() if parameter.requires_grad}
    head = networks.student.denoiser.vocabulary_head if kind != "dit" else networks.student.output_layer  # type: ignore
    assert heads.isdisjoint(id(parameter) for parameter in head.parameters())


def test_merged_weights_are_a_plain_model(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    (x, t), given = example(), teacher("bert")
    networks = disturbed(make_networks(given, sharing=SHARED, step_conditioning=False))
    merged: Any = networks.merge("student")
    assert isinstance(merged, WrappedDenoiser)
    torch.testing.assert_close(merged(x, t), networks.student(x, t), atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path)
    plain = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(plain) is type(given.model)
    torch.testing.assert_close(plain.eval()(x).logits, networks.student(x, t), atol=1e-4, rtol=1e-4)
    assert torch.equal(networks.teacher(x, t), given(x, t))  # the base is as it was
    for name in ("teacher", "discriminator", "nobody"):
        with pytest.raises(ValueError, match=name):
            networks.merge(name)


@pytest.mark.parametrize("sharing", ["copies", SHARED])
def test_the_embedding_of_the_step_is_saved_with_the_model(sharing: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    x, t = example()
    merged: Any = disturbed(make_networks(teacher("bert"), sharing=sharing)).merge()
    merged.save_pretrained(tmp_path)
    loaded: Any = load_denoiser(tmp_path)
    assert type(loaded) is StepConditioned
    torch.testing.assert_close(loaded(x, t, s=0.5 * t), merged(x, t, s=0.5 * t), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(loaded(x, t, s=0.5 * t), loaded(x, t))


def test_a_teacher_that_is_told_its_step_keeps_its_embedding_of_it() -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    given = copy.deepcopy(teacher("dit"))
    given.add_step_conditioning()
    nn.init.normal_(given.step_map.mlp[-1].weight)
    x, t = example()
    networks = make_networks(given, sharing=SHARED)
    torch.testing.assert_close(networks.student(x, t, s=0.5 * t), given(x, t, s=0.5 * t))
    maps = {each.step_map.mlp[0].weight.data_ptr() for each in (given, networks.student, networks.auxiliary)}  # type: ignore
    assert len(maps) == 3
    assert not any(p.requires_grad for p in networks.teacher.parameters())  # type: ignore[attr-defined]


def test_choices_that_mean_nothing_are_refused() -> None:
    for wrong in ({"log_ratio": "path"}, {"sharing": "none"}, {"sharing": 16}):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            make_networks(teacher("dit"), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0"):
        SharedBase(rank=0)


def test_experts_are_not_taken_for_blocks() -> None:
    """A layer of a mixture holds more experts than the model has layers."""
    layers = [nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(5))}) for _ in range(2)]
    model = nn.ModuleDict({"table": nn.Embedding(3, 2), "layers": nn.ModuleList(layers)})
    assert as_denoiser(model, embedding="table", verify=False).blocks == layers  # type: ignore[attr-defined]
