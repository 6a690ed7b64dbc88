"""The network of MDLM against a plain implementation of it in NumPy, double precision."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from discrete_distill.models import CheckpointError, DiT, DiTConfig, load_denoiser
from discrete_distill.models.layers import Rotary
from discrete_distill.models.step_conditioning import trainable_copy
from discrete_distill.process import (
    CosineSchedule,
    GeometricSchedule,
    LinearSchedule,
    LogLinearSchedule,
    PolynomialSchedule,
)

SHAPE = {
    "vocab_size": 11,
    "max_length": 9,
    "hidden_size": 24,
    "num_layers": 2,
    "num_heads": 3,
    "cond_size": 5,
}


def randomised(seed: int = 0, **settings: object) -> DiT:
    """A small network, all of whose weights are random: at its own start the head is zero."""
    model = DiT(DiTConfig(**{**SHAPE, **settings})).eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


def example(batch: int = 3, length: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(SHAPE["vocab_size"], (batch, length), generator=generator)
    return x, torch.rand(batch, generator=generator)


Rounding = Callable[[np.ndarray], np.ndarray]


def exactly(v: np.ndarray) -> np.ndarray:
    return v


def to_bf16(v: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.asarray(v)).bfloat16().double().numpy()


def plain_network(
    weights: dict[str, np.ndarray], x: np.ndarray, sigma: float, heads: int, r: Rounding = exactly
) -> np.ndarray:
    """Logits ``[L, V]`` of one sequence, loop by loop; ``r`` rounds wherever MDLM's blocks hold bf16."""

    def exact_linear(name: str, v: np.ndarray) -> np.ndarray:
        return v @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def linear(name: str, v: np.ndarray) -> np.ndarray:
        return r(r(v) @ r(weights[f"{name}.weight"]).T + r(weights.get(f"{name}.bias", np.zeros(1))))

    def norm(name: str, v: np.ndarray) -> np.ndarray:
        centred = v - v.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights[f"{name}.weight"]

    def silu(v: np.ndarray) -> np.ndarray:
        return v / (1.0 + np.exp(-v))

    def gelu(v: np.ndarray) -> np.ndarray:
        return 0.5 * v * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (v + 0.044715 * v**3)))

    frequencies = 10_000.0 ** (-np.arange(128) / 128)
    waves = np.concatenate([np.cos(sigma * frequencies), np.sin(sigma * frequencies)])
    cond = silu(exact_linear("sigma_map.mlp.2", silu(exact_linear("sigma_map.mlp.0", waves))))
    h = weights["vocab_embed.embedding"][x]
    length, size = h.shape
    h = h + weights.get("position_embedding", np.zeros((length, size)))[:length]
    half = size // heads // 2
    turn = np.exp(1j * np.outer(np.arange(length), 10_000.0 ** (-np.arange(half) / half)))
    for block in (f"blocks.{i}" for i in range(SHAPE["num_layers"])):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = np.split(linear(f"{block}.adaLN_modulation", cond), 6)
        q, k, v = np.split(linear(f"{block}.attn_qkv", norm(f"{block}.norm1", h) * r(1 + scale_a) + shift_a), 3, -1)
        attended, bias = [], weights.get(f"{block}.position_bias")
        for head in range(heads):
            part = slice(2 * half * head, 2 * half * (head + 1))
            as_complex = [u[:, part][:, :half] + 1j * u[:, part][:, half:] for u in (q, k)]
            turned_q, turned_k = (r((u * turn).real) + 1j * r((u * turn).imag) for u in as_complex)
            scores = (turned_q @ turned_k.conj().T).real / math.sqrt(2 * half)
            if bias is not None:
                scores = q[:, part] @ k[:, part].T / math.sqrt(2 * half) + bias[head, :length, :length]
            attention = np.exp(scores - scores.max(-1, keepdims=True))
            attended.append(r(r(attention) @ v[:, part] / attention.sum(-1, keepdims=True)))
        h = h + r(gate_a * linear(f"{block}.attn_out", np.concatenate(attended, -1)))
        inner = r(gelu(linear(f"{block}.mlp.0", norm(f"{block}.norm2", h) * r(1 + scale_m) + shift_m)))
        h = h + r(gate_m * linear(f"{block}.mlp.2", inner))
    shift, scale = np.split(linear("output_layer.adaLN_modulation", cond), 2)
    return linear("output_layer.linear", norm("output_layer.norm_final", h) * r(1 + scale) + shift)


@pytest.mark.parametrize("position_bias", [False, True])
@pytest.mark.parametrize("time_conditioning", [False, True])
def test_it_computes_what_a_plain_implementation_does(time_conditioning: bool, position_bias: bool) -> None:
    model = randomised(time_conditioning=time_conditioning, position_bias=position_bias)
    x, t = example()
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    with torch.no_grad():
        logits = model(x, t)
    for row, time, out in zip(x.numpy(), t.tolist(), logits, strict=True):
        sigma = -math.log(1.0 - (1.0 - 1e-3) * time) if time_conditioning else 0.0
        expected = plain_network(weights, row, sigma, SHAPE["num_heads"])
        np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert logits.std() > 0.1


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_blocks_in_bf16_round_where_mdlm_does(time_conditioning: bool) -> None:
    """Only there: closer to a plain implementation that rounds in those places than to an exact one, by far."""
    model = randomised(time_conditioning=time_conditioning, bf16_blocks=True)
    x, t = example(8)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    with torch.no_grad():
        logits = model(x, t)
        features = model.features(x, t)
        hidden, _ = model.trunk(model.embed(x), t)
    assert (logits.dtype, features.dtype, hidden.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert torch.equal(logits, model.project(features))
    distance = {}
    for rounding in (to_bf16, exactly):
        sigmas = -np.log1p(-(1.0 - 1e-3) * t.double().numpy()) * time_conditioning
        plain = np.stack(
            [
                plain_network(weights, *each, SHAPE["num_heads"], rounding)
                for each in zip(x.numpy(), sigmas, strict=True)
            ]
        )
        distance[rounding] = np.abs(logits.double().numpy() - plain).mean()
    assert distance[to_bf16] < 0.25 * distance[exactly]
    assert 1e-4 < distance[exactly] < 0.02 * logits.float().std()


def test_a_position_bias_takes_the_place_of_the_order_of_positions(tmp_path: Path) -> None:
    model = randomised(position_bias=True)
    x, t = example()
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(2))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        length = len(order)
        moved.position_embedding[:length] = moved.position_embedding[order]
        for block in moved.blocks:
            block.position_bias[:, :length, :length] = block.position_bias[:, order][:, :, order]
        torch.testing.assert_close(moved(x[:, order], t), model(x, t)[:, order])
        assert (model(x[:, order], t) - model(x, t)[:, order]).abs().max() > 0.01
        assert torch.isfinite(model.to(torch.bfloat16)(x, t.bfloat16())).all()
    moved.save_pretrained(tmp_path)
    loaded = load_denoiser(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(x, t), moved(x, t))


def test_a_sequence_of_masks_has_a_prediction_for_each_position() -> None:
    model, x = randomised(position_bias=True), torch.full((1, 7), SHAPE["vocab_size"] - 1)
    with torch.no_grad():
        assert model(x, torch.ones(1)).std(1).max() > 0.01
        model.position_embedding.zero_()  # The bias alone weighs values that are all the same.
        torch.testing.assert_close(model(x, torch.ones(1)), model(x, torch.ones(1))[:, :1].expand(-1, 7, -1))


def test_bf16_blocks_train_weights_of_full_precision() -> None:
    model, (x, t) = randomised(bf16_blocks=True), example()
    model(x, t).float().square().sum().backward()
    exact = randomised()
    exact(x, t).square().sum().backward()
    for (name, rounded), plain in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert rounded.dtype == rounded.grad.dtype == torch.float32
        assert (rounded.grad - plain.grad).norm() <= 0.1 * plain.grad.norm(), name


def test_without_time_conditioning_the_time_changes_nothing() -> None:
    model = randomised()
    x, t = example()
    assert torch.equal(model(x, t), model(x, 1.0 - t))
    timed = randomised(time_conditioning=True)
    assert not torch.allclose(timed(x, t), timed(x, 1.0 - t))


def test_logits_are_the_projected_features() -> None:
    model = randomised()
    x, t = example()
    assert torch.equal(model(x, t), model.project(model.features(x, t)))
    assert torch.equal(model.features(x, t), model.features(x, t, inputs_embeds=model.embed(x)))


@pytest.mark.parametrize("position_bias", [False, True])
def test_padding_does_not_leak_into_real_tokens(position_bias: bool) -> None:
    model = randomised(position_bias=position_bias)
    x, t = example()
    real = torch.arange(7) < torch.tensor([7, 4, 2])[:, None]
    other = torch.where(real, x, (x + 1) % SHAPE["vocab_size"])
    out, out_other = (model(ids, t, attention_mask=real) for ids in (x, other))
    assert torch.equal(out[real], out_other[real])
    assert not torch.allclose(model(x, t)[real], model(other, t)[real])
    torch.testing.assert_close(out[1, :4], model(x[1:2, :4], t[1:2])[0], rtol=1e-5, atol=1e-5)


def test_step_conditioning_starts_as_the_same_network() -> None:
    """Bit for bit row by row; in a batch, to the rounding of a matrix product with more rows."""
    model = randomised()
    student = trainable_copy(model, step_conditioning=True)
    x, t = example()
    s = 0.5 * t
    assert (model.accepts_step, student.accepts_step) == (False, True)
    for row in (slice(i, i + 1) for i in range(len(x))):
        assert torch.equal(student(x[row], t[row], s=s[row]), model(x[row], t[row]))
    torch.testing.assert_close(student(x, t, s=s), model(x, t), rtol=1e-5, atol=1e-5)
    assert torch.equal(student(x, t), model(x, t))
    torch.nn.init.ones_(student.step_map.mlp[-1].weight)
    assert not torch.allclose(student(x, t, s=s), model(x, t))
    assert not torch.allclose(student(x, t, s=s), student(x, t, s=0.9 * t))


def test_a_fresh_network_predicts_uniformly() -> None:
    x, t = example()
    assert DiT(DiTConfig(**SHAPE))(x, t).eq(0.0).all()


def test_dropout_acts_in_training_only() -> None:
    model = randomised(dropout=0.5)
    x, t = example()
    assert torch.equal(model(x, t), model(x, t))
    model.train()
    assert not torch.allclose(model(x, t), model(x, t))


def test_a_sequence_that_is_too_long_is_refused() -> None:
    model = randomised()
    x = torch.zeros(1, 10, dtype=torch.long)
    with pytest.raises(ValueError, match="10 tokens is longer than the model's max_length 9"):
        model(x, torch.ones(1))
    assert model(x[:, :9], torch.ones(1)).shape == (1, 9, 11)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size 24 must be a multiple of"):
        DiTConfig(**{**SHAPE, "num_heads": 5})
    with pytest.raises(ValueError, match=r"num_layers.*0"):
        DiTConfig(**{**SHAPE, "num_layers": 0})


@pytest.mark.parametrize("step_conditioning", [False, True])
def test_saving_and_loading_keeps_every_bit(step_conditioning: bool, tmp_path: Path) -> None:
    model = randomised(step_conditioning=step_conditioning, time_conditioning=True)
    model.save_pretrained(tmp_path)
    loaded = DiT.from_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.glob("*.safetensors")) == ["model.safetensors"]
    assert loaded.config == model.config
    assert not loaded.training
    x, t = example()
    assert torch.equal(loaded(x, t, s=0.5 * t), model(x, t, s=0.5 * t))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_checkpoint_with_a_missing_weight_is_refused(tmp_path: Path) -> None:
    randomised().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["blocks.1.attn_out.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: blocks\.1\.attn_out\.weight"):
        DiT.from_pretrained(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"time_conditioning": True, "step_conditioning": True}])
def test_it_runs_in_bf16_weights(settings: dict[str, bool]) -> None:
    model = randomised(**settings)
    x, t = example()
    exact = model(x, t, s=0.5 * t)
    rounded = model.bfloat16()(x, t, s=0.5 * t)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().mean() < 0.05 * exact.std()


def test_parameters_are_named_as_in_the_checkpoints_of_mdlm() -> None:
    model = DiT(DiTConfig(**{**SHAPE, "num_layers": 1}))
    assert set(model.state_dict()) == {
        "vocab_embed.embedding",
        "sigma_map.mlp.0.weight",
        "sigma_map.mlp.0.bias",
        "sigma_map.mlp.2.weight",
        "sigma_map.mlp.2.bias",
        "rotary_emb.inv_freq",
        "blocks.0.norm1.weight",
        "blocks.0.attn_qkv.weight",
        "blocks.0.attn_out.weight",
        "blocks.0.norm2.weight",
        "blocks.0.mlp.0.weight",
        "blocks.0.mlp.0.bias",
        "blocks.0.mlp.2.weight",
        "blocks.0.mlp.2.bias",
        "blocks.0.adaLN_modulation.weight",
        "blocks.0.adaLN_modulation.bias",
        "output_layer.norm_final.weight",
        "output_layer.linear.weight",
        "output_layer.linear.bias",
        "output_layer.adaLN_modulation.weight",
        "output_layer.adaLN_modulation.bias",
    }
    torch.testing.assert_close(model.rotary_emb.inv_freq, torch.tensor([10_000 ** (-i / 4) for i in range(4)]))


@pytest.mark.parametrize(
    "schedule", [LogLinearSchedule(), LinearSchedule(), CosineSchedule(), PolynomialSchedule(), GeometricSchedule()]
)
def test_a_network_is_told_the_noise_of_its_own_schedule(schedule) -> None:
    """A network of another schedule that is asked at the time of the same noise answers alike; all masks are no NaN."""
    names = {
        LogLinearSchedule: "log_linear",
        LinearSchedule: "linear",
        CosineSchedule: "cosine",
        PolynomialSchedule: "polynomial",
        GeometricSchedule: "geometric",
    }
    named = randomised(time_conditioning=True, schedule=names[type(schedule)])
    published = randomised(time_conditioning=True)
    x, t = example()
    t = 0.2 + 0.6 * t
    same_noise = LogLinearSchedule().inverse(schedule.alpha(t))
    torch.testing.assert_close(named(x, t), published(x, same_noise), rtol=1e-3, atol=1e-3)
    assert bool(named(x, torch.ones(len(x))).isfinite().all())
    again = DiTConfig(**asdict(named.config))
    assert again == named.config
    with pytest.raises(ValueError, match="sigmoid"):
        DiTConfig(vocab_size=3, schedule="sigmoid")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_frequencies_are_exact_in_any_precision(dtype: torch.dtype) -> None:
    """Rounded to bf16, the highest would be off by a radian after 1000 positions."""
    rotary, length = Rotary(8), 1024
    positions = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, 8, 2) / 8)
    restored = Rotary(8)
    restored.load_state_dict({"inv_freq": rotary.inv_freq.to(dtype)})
    for each in (rotary, copy.deepcopy(rotary).to(dtype), copy.deepcopy(rotary).to(dtype).float(), restored):
        cos, sin = each(length)
        np.testing.assert_allclose(cos.double().numpy(), np.cos(positions), atol=3e-4)
        np.testing.assert_allclose(sin.double().numpy(), np.sin(positions), atol=3e-4)


def test_a_network_saved_in_half_precision_differs_by_its_rounded_weights_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = DiT(DiTConfig(vocab_size=11, max_length=512, hidden_size=32, num_layers=2, num_heads=2, cond_size=8)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter).mul(0.3).bfloat16())
    x, t = torch.randint(11, (1, 512)), torch.ones(1)
    copy.deepcopy(net).bfloat16().save_pretrained(tmp_path)
    torch.testing.assert_close(DiT.from_pretrained(tmp_path)(x, t), net(x, t), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("token", [11, -1])
def test_ids_outside_the_vocabulary_are_named(token: int) -> None:
    net = DiT(DiTConfig(vocab_size=11, max_length=4, hidden_size=8, num_layers=1, num_heads=2, cond_size=4))
    x = torch.tensor([[0, token, 3]])
    with pytest.raises(ValueError, match=str(token)):
        net(x, torch.ones(1))
    for wrong in (x.float(), x[0]):
        with pytest.raises(TypeError):
            net(wrong, torch.ones(1))


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (torch.ones(2, 4, dtype=torch.bool), ValueError),
        (torch.ones(3, dtype=torch.bool), ValueError),
        (torch.ones(2, 1, 3, 3, dtype=torch.bool), ValueError),
        (torch.zeros(2, 3), TypeError),  # as an additive mask this would mean that all is real
    ],
)
def test_masks_of_another_shape_or_kind_are_refused(mask: torch.Tensor, error: type[Exception]) -> None:
    net = DiT(DiTConfig(vocab_size=11, max_length=4, hidden_size=8, num_layers=1, num_heads=2, cond_size=4))
    x = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(error):
        net(x, torch.ones(2), attention_mask=mask)
    net(x, torch.ones(2), attention_mask=torch.ones(2, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dropout", math.nan),
        ("dropout", 7),
        ("dropout", -0.1),
        ("dropout", "a"),
        ("max_length", math.nan),
        ("max_length", 8.5),
        ("num_layers", True),
        ("num_layers", 0),
        ("bf16_blocks", "yes"),
    ],
)
def test_configurations_that_cannot_be(field: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=field):
        DiTConfig(**{"vocab_size": 11, field: value})
