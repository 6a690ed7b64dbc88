"""Rows of logits that start at multiples of 16 bytes: the same values, whatever the stride."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from discrete_distill import AncestralSampler, MaskedDiffusion
from discrete_distill.kernels import linear_token_losses, padding, token_losses
from discrete_distill.kernels.padding import empty_rows, padded_linear, row_stride
from discrete_distill.models import DiT, DiTConfig

ON_CUDA = padding.row_stride
VOCAB = 70


@pytest.fixture
def rows_as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding, "row_stride", lambda columns, device: ON_CUDA(columns, torch.device("cuda")))


def layer(dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, VOCAB, dtype=dtype)


def network(**options) -> DiT:
    torch.manual_seed(0)
    made = DiT(
        DiTConfig(
            vocab_size=VOCAB,
            max_length=8,
            hidden_size=16,
            num_layers=1,
            num_heads=2,
            cond_size=8,
            dropout=0.0,
            **options,
        )
    )
    torch.nn.init.normal_(made.output_layer.linear.weight)
    return made.eval()


def aligned(logits: torch.Tensor) -> bool:
    return all(stride % 64 == 0 for stride in logits.stride()[:-1]) and logits.stride(-1) == 1


@pytest.mark.parametrize(("columns", "stride"), [(1, 64), (64, 64), (65, 128), (50258, 50304), (50304, 50304)])
def test_rows_are_padded_on_cuda_alone(columns: int, stride: int) -> None:
    assert row_stride(columns, torch.device("cuda", 1)) == stride
    assert row_stride(columns, torch.device("cpu")) == columns


@pytest.mark.usefixtures("rows_as_on_cuda")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6), (0, 6), (6,)])
def test_it_is_the_linear_layer(bias: bool, shape: tuple[int, ...]) -> None:
    made, features = layer(), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    arguments = (features, made.weight, made.bias if bias else None)
    ours, theirs = padded_linear(*arguments), functional.linear(*arguments)
    assert aligned(ours)
    torch.testing.assert_close(ours, theirs)
    upstream, wanted = torch.randn_like(theirs), [each for each in arguments if each is not None]
    for mine, reference in zip(
        torch.autograd.grad(ours, wanted, upstream), torch.autograd.grad(theirs, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(mine, reference)


@pytest.mark.usefixtures("rows_as_on_cuda")
def test_it_is_differentiable_twice_and_can_be_written_into() -> None:
    arguments = (
        torch.randn(3, 6).double().requires_grad_(),
        *(each.detach().requires_grad_() for each in [*layer().parameters()]),
    )
    assert torch.autograd.gradgradcheck(padded_linear, arguments)
    logits = padded_linear(*arguments)
    logits[..., -1] = -1e6
    (gradient,) = torch.autograd.grad(logits.sum(), arguments[0])
    torch.testing.assert_close(gradient, arguments[1][:-1].sum(0).expand(3, -1))


@pytest.mark.usefixtures("rows_as_on_cuda")
def test_autocast_casts_it_as_it_casts_a_linear_layer() -> None:
    made, features = layer(torch.float32), torch.randn(5, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (
            padded_linear(features, made.weight, made.bias),
            functional.linear(features, made.weight, made.bias),
        )
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert aligned(ours)
    torch.testing.assert_close(ours, theirs)
    ours.sum().backward()
    assert made.weight.grad is not None
    assert made.weight.grad.dtype == features.grad.dtype == torch.float32


@pytest.mark.usefixtures("rows_as_on_cuda")
def test_autocast_leaves_float64_as_it_leaves_it_in_a_linear_layer() -> None:
    made, features = layer(), torch.randn(5, 6, dtype=torch.float64)
    expected = functional.linear(features, made.weight, made.bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.linear(features, made.weight, made.bias).dtype == torch.float64
        torch.testing.assert_close(padded_linear(features, made.weight, made.bias), expected)


@pytest.mark.usefixtures("rows_as_on_cuda")
@pytest.mark.parametrize("gradients", [True, False])
def test_logits_of_a_dit_in_float64_stay_in_it_under_autocast(gradients: bool) -> None:
    made = network().double()
    with torch.set_grad_enabled(gradients):
        features = made.features(torch.full((2, 8), VOCAB - 1), torch.ones(2)).double()
        expected = made.project(features)
        with torch.autocast("cpu", torch.bfloat16):
            for logits in (made.project(features), made.projection()(features)):
                torch.testing.assert_close(logits, expected)


@pytest.mark.usefixtures("rows_as_on_cuda")
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("bf16_blocks", [True, False])
def test_logits_of_a_dit_have_aligned_rows(gradients: bool, bf16_blocks: bool) -> None:
    made = network(bf16_blocks=bf16_blocks)
    with torch.set_grad_enabled(gradients):
        features = made.features(torch.full((2, 8), VOCAB - 1), torch.ones(2))
        head = made.output_layer.linear
        with made.precision(features.device):
            expected = functional.linear(features, head.weight, head.bias)
        assert aligned(made.project(features))
        for logits in (made.project(features), made.projection()(features)):
            torch.testing.assert_close(logits, expected)


@pytest.mark.usefixtures("rows_as_on_cuda")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_the_losses_have_aligned_rows(dtype: torch.dtype) -> None:
    student, teacher = (empty_rows(torch.empty(4, 1, dtype=dtype), VOCAB).normal_() for _ in range(2))
    tokens = torch.arange(4)
    seen = []
    student.requires_grad_().register_hook(seen.append)
    plain = student.detach().contiguous().requires_grad_()
    for each in (student, plain):
        torch.stack(token_losses(each, teacher, tokens, mask_token_id=VOCAB - 1)).sum().backward()
    assert aligned(seen[0])
    assert torch.equal(student.grad, plain.grad)


def test_losses_of_features_do_not_depend_on_the_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    made, features, teacher = layer(), torch.randn(7, 6).double().requires_grad_(), torch.randn(7, 6).double()

    def value_and_gradients() -> list[torch.Tensor]:
        losses = linear_token_losses(
            features, made.weight, torch.arange(7), bias_V=made.bias, chunk_rows=3,
            teacher_features_RD=teacher, teacher_weight_VD=made.weight.detach() + 0.1, mask_token_id=VOCAB - 1,
        )  # fmt: skip
        stacked = torch.stack(losses)
        return [stacked, *torch.autograd.grad(stacked.sin().sum(), [features, made.weight, made.bias])]

    contiguous = value_and_gradients()
    monkeypatch.setattr(padding, "row_stride", lambda columns, device: ON_CUDA(columns, torch.device("cuda")))
    for mine, reference in zip(value_and_gradients(), contiguous, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.usefixtures("rows_as_on_cuda")
def test_a_sampler_draws_the_same_tokens_from_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = AncestralSampler(MaskedDiffusion(VOCAB - 1), num_steps=3, chunk_rows=4)
    padded = sampler(network(), (3, 8), generator=torch.Generator().manual_seed(0)).sequences
    monkeypatch.undo()
    plain = sampler(network(), (3, 8), generator=torch.Generator().manual_seed(0)).sequences
    assert torch.equal(padded, plain)
