"""Students of low rank: the same network at first, small gradients, merged into plain weights."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from published import BLOCKS, VOCABULARY, WIDTH, denoiser, network
from torch import Tensor, nn

from discrete_distill import DiDiInstruct, DiDiInstructConfig, MaskedDiffusion, as_denoiser
from discrete_distill.models import DiT, add_lora, lora_weights, merge_lora


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (3, 7), generator=generator), torch.rand(3, generator=generator)


def student(**options: Any) -> DiT:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    return add_lora(denoiser(network()), generator=torch.Generator().manual_seed(0), **options)


def disturbed(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in lora_weights(net).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net


def test_its_first_answers_are_the_networks_and_only_small_matrices_are_trained() -> None:
    net, plain, (x, t) = student(rank=2), denoiser(network()), example()
    assert isinstance(net, DiT)
    torch.testing.assert_close(net(x, t), plain(x, t), atol=1e-6, rtol=1e-6)
    net(x, t).square().sum().backward()
    trained = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert trained == set(lora_weights(net))
    layers = ("attn_qkv", "attn_out", "mlp.0", "mlp.2", "adaLN_modulation")
    assert trained == {
        f"blocks.{i}.{layer}.lora_{side}.default.weight" for i in range(BLOCKS) for layer in layers for side in "AB"
    }
    sizes = {name: tuple(value.shape) for name, value in lora_weights(net).items()}
    assert sizes["blocks.0.attn_qkv.lora_A.default.weight"] == (2, WIDTH)
    assert sizes["blocks.0.attn_qkv.lora_B.default.weight"] == (3 * WIDTH, 2)


def test_merged_it_is_a_plain_network_of_the_stated_sum() -> None:
    net, (x, t) = disturbed(student(rank=2, alpha=6.0)), example()
    before, plain = net(x, t), network()
    pair = {name: value.clone() for name, value in lora_weights(net).items()}
    merged = merge_lora(net)
    assert merged is net
    assert set(merged.state_dict()) == set(plain)
    torch.testing.assert_close(merged(x, t), before, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, denoiser(plain)(x, t), atol=0.1)
    for name in ("blocks.1.attn_out", "blocks.0.mlp.2"):
        product = pair[f"{name}.lora_B.default.weight"] @ pair[f"{name}.lora_A.default.weight"]
        expected = plain[f"{name}.weight"] + 6.0 / 2 * product
        torch.testing.assert_close(merged.state_dict()[f"{name}.weight"], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged.output_layer.linear.weight, plain["output_layer.linear.weight"])
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_it_is_saved_merged_or_not_at_all(tmp_path: Path) -> None:
    net, (x, t) = disturbed(student()), example()
    with pytest.raises(ValueError, match="fold them in with merge_lora before saving it"):
        net.save_pretrained(tmp_path)
    merge_lora(net).save_pretrained(tmp_path)
    assert torch.equal(DiT.from_pretrained(tmp_path)(x, t), net(x, t))


def test_the_generator_decides_its_start_and_targets_its_places() -> None:
    first, second = lora_weights(student()), lora_weights(student())
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(7)
    assert all(torch.equal(first[name], value) for name, value in lora_weights(student()).items())
    only = lora_weights(student(targets=["blocks.1.attn_qkv", "attn_out"]))
    assert {name.split(".lora_")[0] for name in only} == {"blocks.0.attn_out", "blocks.1.attn_out", "blocks.1.attn_qkv"}


def test_the_embedding_of_the_step_stays_trainable() -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    net = add_lora(denoiser(network()).with_step_conditioning())
    assert {name.split(".")[0] for name in lora_weights(net)} == {"blocks", "step_map"}
    frozen = add_lora(denoiser(network()).with_step_conditioning(), trainable=())
    assert {name.split(".")[0] for name in lora_weights(frozen)} == {"blocks"}


def test_a_step_of_the_method_moves_the_small_matrices_alone() -> None:
    net, teacher = student(), denoiser(network())
    config = DiDiInstructConfig(group_size=2, step_conditioning=False)
    auxiliary = DiDiInstruct.make_auxiliary(denoiser(network(1)), config)  # not the teacher: there is a reward
    method = DiDiInstruct(net, teacher, None, MaskedDiffusion(VOCABULARY - 1), config, auxiliary=auxiliary)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    rollout = method.rollout(4, 6, generator=torch.Generator().manual_seed(0))
    method.student_loss(rollout, generator=torch.Generator().manual_seed(1)).loss.backward()
    optimizer.step()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".lora_B." in name for name in moved)  # B starts at zero, and holds A's first gradient at zero


def test_a_hugging_face_student_keeps_its_head_apart() -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config).eval()
    x, t = example()
    plain = model(x).logits.detach()
    net = add_lora(as_denoiser(model), targets=["query", "value", "cls.predictions.transform.dense"])
    torch.testing.assert_close(net(x, t), plain, atol=1e-6, rtol=1e-6)
    disturbed(net)
    torch.testing.assert_close(net.project(net.features(x, t)), net(x, t), atol=1e-5, rtol=1e-5)
    changed = net(x, t).detach()
    torch.testing.assert_close(merge_lora(net)(x, t), changed, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(changed, plain, atol=0.01)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    net = denoiser(network())
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        add_lora(net, rank=0)
    with pytest.raises(ValueError, match=r"no linear layer is named \['no'\]; there are sigma_map\.mlp\.0"):
        add_lora(net, targets=["no"])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'discrete_distill\[lora\]'"):
        add_lora(net)
    monkeypatch.undo()
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    with pytest.raises(ValueError, match="the DiT has no LoRA weights"):
        merge_lora(net)
    again = merge_lora(student())
    with pytest.raises(ValueError, match="has LoRA weights already"):
        add_lora(add_lora(again))
