from __future__ import annotations

import pytest
import torch

from discrete_distill.kernels import (
    linear_cross_entropy,
    linear_token_losses,
    sample_features,
    sample_rows,
    token_losses,
)

ROWS, WIDTH, CLASSES = 23, 6, 40


def inputs(dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    features, weight, bias = (
        torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((ROWS, WIDTH), (CLASSES, WIDTH), (CLASSES,))
    )
    teacher = torch.randn(ROWS, 9, generator=g).to(dtype), torch.randn(CLASSES, 9, generator=g).to(dtype)
    return features, weight, bias, teacher, torch.randint(0, CLASSES - 5, (ROWS,), generator=g)


@pytest.mark.parametrize("chunk_rows", [1, 5, 23, 1000])
@pytest.mark.parametrize("with_teacher", [True, False])
def test_chunks_equal_the_whole(chunk_rows, with_teacher):
    features, weight, bias, (teacher_features, teacher_weight), tokens = inputs()
    options = {"mask_token_id": CLASSES - 3, "num_classes": CLASSES - 2, "weight_R": torch.arange(ROWS) % 4}
    teacher = {"teacher_features_RD": teacher_features, "teacher_weight_VD": teacher_weight} if with_teacher else {}
    chunked = linear_token_losses(features, weight, tokens, bias_V=bias, chunk_rows=chunk_rows, **teacher, **options)
    teacher_logits = teacher_features @ teacher_weight.t() if with_teacher else None
    whole = token_losses(features @ weight.t() + bias, teacher_logits, tokens, **options)
    assert (chunked.forward_kl is None) == (not with_teacher)
    count = 4 if with_teacher else 2
    chunked, whole = torch.stack(chunked[:count]), torch.stack(whole[:count])
    torch.testing.assert_close(chunked, whole)
    upstream = torch.randn(count, ROWS, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(chunked, (features, weight, bias), upstream),
        torch.autograd.grad(whole, (features, weight, bias), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradcheck_and_only_the_gradients_that_are_asked_for():
    features, weight, bias, _, tokens = inputs()
    features, tokens = features[:4].detach().requires_grad_(), tokens[:4]
    assert torch.autograd.gradcheck(
        lambda f, w, b: tuple(linear_token_losses(f, w, tokens, bias_V=b, chunk_rows=3)[:2]),
        (features, weight, bias),
    )
    losses = linear_token_losses(features, weight.detach(), tokens)
    losses.entropy.sum().backward()
    assert features.grad is not None
    assert weight.grad is None


def test_bf16_weight_gradients_are_summed_in_fp32():
    """A sum of 23 chunks of one row: no further from fp64 than one matrix product in bf16."""
    features, weight, _, _, tokens = inputs(torch.bfloat16)
    exact_features, exact_weight = (t.detach().double().requires_grad_() for t in (features, weight))
    grads = [
        torch.autograd.grad(linear_token_losses(f, w, tokens, chunk_rows=c).log_prob.sum(), w)[0].double()
        for f, w, c in ((exact_features, exact_weight, 1), (features, weight, 1), (features, weight, 100))
    ]
    errors = [(grad - grads[0]).norm() / grads[0].norm() for grad in grads[1:]]
    assert errors[0] < 1.5 * errors[1] + 1e-3
    assert grads[1].dtype == torch.float64


def test_autocast_is_followed_forward_and_backward():
    features, weight, bias, _, tokens = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = linear_token_losses(features, weight, tokens, bias_V=bias)
        expected = token_losses(torch.nn.functional.linear(features, weight, bias), None, tokens)
    torch.testing.assert_close(losses.log_prob, expected.log_prob)
    losses.log_prob.sum().backward()
    assert features.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32


def test_autocast_leaves_float64_as_a_linear_layer_does():
    features, weight, bias, (teacher_features, teacher_weight), tokens = inputs()
    teacher = {"teacher_features_RD": teacher_features, "teacher_weight_VD": teacher_weight}
    outside = torch.stack(linear_token_losses(features, weight, tokens, bias_V=bias, **teacher))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.nn.functional.linear(features, weight, bias).dtype == torch.float64
        inside = torch.stack(linear_token_losses(features, weight, tokens, bias_V=bias, **teacher))
    assert inside.dtype == torch.float64
    assert torch.equal(inside, outside)


def test_cross_entropy_is_that_of_torch():
    features, weight, bias, _, tokens = inputs()
    loss = linear_cross_entropy(features, weight, tokens, bias_V=bias, chunk_rows=7, provider="chunked")
    expected = torch.nn.functional.cross_entropy(features @ weight.t() + bias, tokens, reduction="none")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss.mean(), weight)[0], torch.autograd.grad(expected.mean(), weight)[0]
    )


def test_sampling_from_features_gives_the_tokens_of_the_whole():
    features, weight, bias, _, _ = inputs(torch.float64)
    options = {
        "seed": 5,
        "positions_R": torch.arange(ROWS) * 3,
        "step": 2,
        "num_candidates": 3,
        "mask_token_id": 7,
        "active_R": torch.arange(ROWS) % 2 == 0,
        "return_entropy": True,
    }
    chunked = sample_features(features, lambda f: f @ weight.t() + bias, chunk_rows=4, **options)
    whole = sample_rows(features @ weight.t() + bias, **options)
    assert torch.equal(chunked.tokens, whole.tokens)
    torch.testing.assert_close(chunked.log_probs, whole.log_probs)
    torch.testing.assert_close(chunked.entropy, whole.entropy)
    assert not chunked.log_probs.requires_grad


def test_errors_name_the_value_and_the_remedy():
    features, weight, bias, (teacher_features, teacher_weight), tokens = inputs()
    for match, call in [
        (
            r"features have shape \(23, 6\) and weight \(40, 5\)",
            lambda: linear_token_losses(features, weight[:, 1:], tokens),
        ),
        (r"bias has shape \(39,\)", lambda: linear_token_losses(features, weight, tokens, bias_V=bias[1:])),
        ("chunk_rows is 0", lambda: linear_token_losses(features, weight, tokens, chunk_rows=0)),
        (
            "go together",
            lambda: linear_token_losses(features, weight, tokens, teacher_features_RD=teacher_features),
        ),
        (
            r"teacher has \(rows, classes\) \(23, 39\)",
            lambda: linear_token_losses(
                features,
                weight,
                tokens,
                teacher_features_RD=teacher_features,
                teacher_weight_VD=teacher_weight[1:],
            ),
        ),
        ("num_classes is 41", lambda: linear_token_losses(features, weight, tokens, num_classes=41)),
        ("provider is 'liger'", lambda: linear_cross_entropy(features, weight, tokens, provider="liger")),
        (
            "cannot run: the features are on cpu",
            lambda: linear_cross_entropy(features, weight, tokens, provider="cut_cross_entropy"),
        ),
        (
            "chunk_rows is 0",
            lambda: sample_features(features, lambda f: f, seed=0, positions_R=tokens, step=0, chunk_rows=0),
        ),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
