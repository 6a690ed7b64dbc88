"""Students of low rank: the same network at first, small gradients, merged into plain weights."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from external import KINDS, TinyDream, TinyLLaDA, V, masked_lm, randomised, transformers
from published import BLOCKS, VOCABULARY, WIDTH, denoiser, network
from torch import Tensor, nn

from discrete_distill import DiDiInstruct, DiDiInstructConfig, MaskedDiffusion, as_denoiser
from discrete_distill.distillation.methods import Regularization
from discrete_distill.distillation.networks import Networks
from discrete_distill.models import Discriminator, DiT, add_lora, lora_weights, merge_lora
from discrete_distill.models.step_conditioning import trainable_copy


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
    with pytest.raises(ValueError, match="merge_lora"):
        net.save_pretrained(tmp_path)
    for copied in (net.add_step_conditioning, lambda: Discriminator.from_denoiser(net, 1)):
        with pytest.raises(ValueError, match="merge_lora"):
            copied()
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
    net = add_lora(trainable_copy(denoiser(network()), step_conditioning=True))
    assert {name.split(".")[0] for name in lora_weights(net)} == {"blocks", "step_map"}
    frozen = add_lora(trainable_copy(denoiser(network()), step_conditioning=True), trainable=())
    assert {name.split(".")[0] for name in lora_weights(frozen)} == {"blocks"}


def test_a_step_of_the_method_moves_the_small_matrices_alone() -> None:
    net, teacher = student(), denoiser(network())
    config = DiDiInstructConfig.recommended(
        advantages={"group_size": 2}, paths={"step_conditioning": False}, regularization=Regularization()
    )
    auxiliary = DiDiInstruct.make_auxiliary(denoiser(network(1)), config)  # not the teacher: there is a reward
    method = DiDiInstruct(Networks(net, teacher, auxiliary=auxiliary), MaskedDiffusion(VOCABULARY - 1), config)
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


def llama(tied: bool) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        tie_word_embeddings=tied,
    )
    return as_denoiser(randomised(transformers.LlamaForCausalLM(config)), attention="full", head="lm_head")


ALL_KINDS = [*KINDS, "llada", "dream", "llama", "llama tied", "dit"]


def of_kind(kind: str) -> nn.Module:
    if kind == "dit":
        return denoiser(network())
    if kind.startswith("llama"):
        return llama(tied=kind.endswith("tied"))
    model = {"llada": TinyLLaDA, "dream": TinyDream}[kind]() if kind in ("llada", "dream") else masked_lm(kind)
    return as_denoiser(randomised(model))


def embeddings_of(net: nn.Module) -> list[Tensor]:
    return [parameter for name, parameter in net.named_parameters() if "embed" in name and parameter.dim() == 2]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_merging_changes_no_logits_of_any_model(kind: str) -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    net = of_kind(kind)
    x, t = torch.randint(1, V - 1, (2, 6), generator=torch.Generator().manual_seed(3)), torch.rand(2)
    plain, embeddings = net(x, t).detach(), [each.detach().clone() for each in embeddings_of(net)]
    disturbed(add_lora(net, rank=2))
    before = net(x, t).detach()
    assert not torch.allclose(before, plain, atol=0.01)
    after = merge_lora(net)(x, t).detach()
    torch.testing.assert_close(after, before, atol=1e-5 * float(before.abs().max()), rtol=1e-5)
    assert all(torch.equal(new, old) for new, old in zip(embeddings_of(net), embeddings, strict=True))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_vocabulary_head_is_never_adapted_unless_named(kind: str) -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    for net in (of_kind(kind), getattr(of_kind(kind), "model", of_kind(kind))):
        if isinstance(net, TinyLLaDA | TinyDream):
            continue  # without its wrapper nothing says where the head is
        add_lora(net, rank=2)
        sizes = {tuple(value.shape) for name, value in lora_weights(net).items() if ".lora_B." in name}
        assert sizes
        assert all(rows != (VOCABULARY if kind == "dit" else V) for rows, _ in sizes)


@pytest.mark.parametrize(("kind", "head"), [("bert", "decoder"), ("modernbert", "decoder"), ("llama tied", "lm_head")])
def test_a_tied_layer_is_refused(kind: str, head: str) -> None:
    peft = pytest.importorskip("peft", reason="LoRA is an optional extra")
    net = of_kind(kind)
    with pytest.raises(ValueError, match="tied"):
        add_lora(net, targets=[head])
    assert not any(".lora_" in name for name, _ in net.named_parameters())
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=[head]), net)  # by other means
    with pytest.raises(ValueError, match="tied"):
        merge_lora(net)


def test_an_untied_head_that_is_named_is_adapted_and_merged() -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    net, (x, t) = of_kind("llama"), example()
    disturbed(add_lora(net, targets=["lm_head"]))
    before = net(x, t).detach()
    torch.testing.assert_close(merge_lora(net)(x, t), before, atol=1e-4, rtol=1e-4)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    net = denoiser(network())
    with pytest.raises(ValueError, match="rank must be 1 or more, got 0"):
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
