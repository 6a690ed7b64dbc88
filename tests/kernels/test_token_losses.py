from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_distributions import plain_losses

from discrete_distill.kernels import token_losses
from discrete_distill.kernels.reference_losses import LOGIT_FLOOR

INF = float("inf")


def case(rows, vocab_size, seed=0, dtype=torch.float64, scale=2.0):
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, vocab_size, generator=g, dtype=torch.float64) * scale
    teacher = torch.randn(rows, vocab_size, generator=g, dtype=torch.float64) * scale
    tokens = torch.randint(0, vocab_size, (rows,), generator=g)
    return student.to(dtype), teacher.to(dtype), tokens


def gradient(losses, student, weights):
    total = sum((loss * weight).sum() for loss, weight in zip(losses, weights, strict=True) if loss is not None)
    return torch.autograd.grad(total, student)[0]


def test_by_hand():
    student = torch.log(torch.tensor([[0.5, 0.5]]))
    teacher = torch.log(torch.tensor([[0.25, 0.75]]))
    losses = token_losses(student, teacher, torch.tensor([1]))
    log = torch.log
    half, quarter, three = torch.tensor(0.5), torch.tensor(0.25), torch.tensor(0.75)
    assert torch.allclose(losses.log_prob, log(half))
    assert torch.allclose(losses.entropy, -log(half))
    assert torch.allclose(losses.forward_kl, quarter * log(quarter / half) + three * log(three / half))
    assert torch.allclose(losses.reverse_kl, half * log(half / quarter) + half * log(half / three))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_token_id": 6},
        {"mask_token_id": 2},
        {"mask_token_id": 5, "num_classes": 6},
        {"num_classes": 4, "weight_R": torch.tensor([0.5, 0.0, 2.0])},
    ],
)
@pytest.mark.parametrize("with_teacher", [True, False])
def test_gradcheck(options, with_teacher):
    student, teacher, _ = case(3, 7)
    tokens = torch.tensor([0, 3, 1])
    student.requires_grad_()

    def function(logits):
        losses = token_losses(logits, teacher if with_teacher else None, tokens, **options)
        return tuple(loss for loss in losses if loss is not None)

    assert len(function(student)) == (4 if with_teacher else 2)
    assert torch.autograd.gradcheck(function, student)


@given(
    st.integers(1, 5),
    st.integers(1, 1500),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_values_and_gradients_agree_with_plain_fp64(rows, vocab_size, dtype, teacher_dtype, seed):
    student, teacher, tokens = case(rows, vocab_size, seed, scale=3.0)
    student, teacher = student.to(dtype).requires_grad_(), teacher.to(teacher_dtype)
    losses = token_losses(student, teacher, tokens)
    exact_student = student.detach().double().requires_grad_()
    exact = plain_losses(exact_student, teacher.double(), tokens)
    for ours, theirs in zip(losses, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)
    weights = torch.randn(4, rows, generator=torch.Generator().manual_seed(seed)).unbind(0)
    ours, theirs = gradient(losses, student, weights), gradient(exact, exact_student, weights)
    assert ours.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(ours.double(), theirs, atol=tolerance, rtol=tolerance)


def test_no_worse_than_the_naive_chain_in_the_same_precision():
    """Errors against fp64, at the vocabulary of GPT-2: ours in fp32 from bf16 logits, naive in bf16."""
    student, teacher, tokens = case(4, 50_258, dtype=torch.bfloat16)
    exact = torch.stack(plain_losses(student.double(), teacher.double(), tokens))
    ours = torch.stack(token_losses(student, teacher, tokens)).double()
    naive = torch.stack(plain_losses(student, teacher, tokens)).double()
    assert (ours - exact).abs().max() < 1e-4 * (naive - exact).abs().max()
    assert (ours - exact).abs().max() < 1e-5


def test_equal_models_have_no_divergence_and_its_gradient_is_zero():
    student, _, tokens = case(6, 400, dtype=torch.float32)
    student.requires_grad_()
    losses = token_losses(student, student.detach().clone(), tokens)
    assert (losses.forward_kl == 0).all()
    assert (losses.reverse_kl == 0).all()
    for divergence in (losses.forward_kl, losses.reverse_kl):
        assert torch.autograd.grad(divergence.sum(), student, retain_graph=True)[0].abs().max() < 1e-6


@given(st.integers(2, 30), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_inequalities(vocab_size, seed):
    """Pinsker, entropy at most log V, and gradients that sum to zero (a constant does not matter)."""
    student, teacher, tokens = case(5, vocab_size, seed)
    student.requires_grad_()
    losses = token_losses(student, teacher, tokens)
    variation = 0.5 * (student.softmax(-1) - teacher.softmax(-1)).abs().sum(-1)
    for divergence in (losses.forward_kl, losses.reverse_kl):
        assert (divergence >= 2 * variation.detach() ** 2 - 1e-12).all()
    assert (losses.entropy <= torch.tensor(float(vocab_size)).log() + 1e-12).all()
    assert (losses.log_prob <= 0).all()
    for loss in losses:
        assert torch.autograd.grad(loss.sum(), student, retain_graph=True)[0].sum(-1).abs().max() < 1e-12


def test_score_function_has_mean_zero():
    """E_{y ~ p} grad log p(y) = 0, by enumeration of y."""
    student, _, _ = case(1, 9)
    student = student.expand(9, -1).clone().requires_grad_()
    log_prob = token_losses(student, None, torch.arange(9)).log_prob
    score = torch.autograd.grad((log_prob * log_prob.detach().exp()).sum(), student)[0]
    assert score.sum(0).abs().max() < 1e-12


@pytest.mark.parametrize("which", ["both", "student", "teacher"])
def test_minus_infinity_stays_finite(which):
    student, teacher, tokens = case(4, 60, dtype=torch.float32)
    forbidden = torch.arange(60) % 3 == 0
    tokens = torch.tensor([0, 1, 2, 3])
    if which != "teacher":
        student[:, forbidden] = -INF
    if which != "student":
        teacher[:, forbidden] = -INF
    student.requires_grad_()
    losses = token_losses(student, teacher, tokens)
    weights = torch.ones(4, 4).unbind(0)
    grad = gradient(losses, student, weights)
    assert torch.stack(losses).isfinite().all()
    assert grad.isfinite().all()
    if which != "teacher":
        assert (grad[:, forbidden] == 0).all()
    if which == "both":  # the forbidden tokens are as if they were not there
        kept = torch.tensor([1, 2])
        rest = token_losses(student.detach()[:, ~forbidden], teacher[:, ~forbidden], torch.tensor([9, 0, 1, 9]))
        for ours, theirs in zip(losses[1:], rest[1:], strict=True):
            torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(losses.log_prob[kept], rest.log_prob[kept])
    if which == "student":
        mass = teacher.softmax(-1)[:, forbidden].sum(-1)
        assert (losses.forward_kl > 0.9 * -LOGIT_FLOOR * mass).all()


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_common_offset_costs_no_digits(offset):
    student, teacher, tokens = case(4, 500, dtype=torch.float32)
    shifted = (student + offset).requires_grad_(), teacher - offset
    exact_student = shifted[0].detach().double().requires_grad_()
    exact = plain_losses(exact_student, shifted[1].double(), tokens)
    losses = token_losses(*shifted, tokens)
    weights = torch.ones(4, 4).unbind(0)
    torch.testing.assert_close(torch.stack(losses).double(), torch.stack(exact), atol=1e-5, rtol=1e-5)
    ours, theirs = gradient(losses, shifted[0], weights), gradient(exact, exact_student, weights)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)


def test_logits_of_plus_and_minus_1e4():
    student, teacher, tokens = case(6, 300, dtype=torch.float32)
    student, teacher = student.sign() * 1e4, teacher.sign() * 1e4
    exact = torch.stack(plain_losses(student.double(), teacher.double(), tokens))
    torch.testing.assert_close(
        torch.stack(token_losses(student, teacher, tokens)).double(), exact, atol=1e-5, rtol=1e-5
    )


def test_rows_of_zero_weight_are_not_read_and_get_no_gradient():
    student, teacher, tokens = case(6, 50, dtype=torch.float32)
    weight = torch.tensor([1.0, 0.0, 0.5, 0.0, -2.0, 1.0])
    off = weight == 0
    expected = token_losses(student[~off], teacher[~off], tokens[~off])
    student[off], teacher[off], tokens[off] = float("nan"), INF, -100
    student.requires_grad_()
    losses = token_losses(student, teacher, tokens, weight_R=weight)
    for ours, theirs in zip(losses, expected, strict=True):
        assert (ours[off] == 0).all()
        assert torch.equal(ours[~off], theirs)  # not multiplied by the weight
    grad = gradient(losses, student, torch.full((4, 6), INF).masked_fill(~off, 1.0).unbind(0))
    assert (grad[off] == 0).all()
    assert grad[~off].isfinite().all()


@pytest.mark.parametrize("classes", [40, 64])
def test_padding_and_mask_token_have_no_probability(classes):
    """The last classes cut off, or declared as padding: the same numbers, and zero gradient beyond."""
    student, teacher, tokens = case(5, 64, dtype=torch.float64)
    student[:, classes:] = float("nan")
    teacher[:, classes:] = 1e9
    tokens %= classes - 1
    for mask in (None, classes - 1, 17, 0):
        tokens_here = torch.where(tokens == mask, 3, tokens) if mask is not None else tokens
        keep = [v for v in range(classes) if v != mask]
        place = torch.tensor([keep.index(int(y)) for y in tokens_here])
        small = student[:, keep].clone().requires_grad_()
        expected = plain_losses(small, teacher[:, keep], place)
        whole = student.clone().requires_grad_()
        losses = token_losses(whole, teacher, tokens_here, mask_token_id=mask, num_classes=classes)
        torch.testing.assert_close(torch.stack(losses), torch.stack(expected))
        weights = torch.randn(4, 5, dtype=torch.float64).unbind(0)
        grad = gradient(losses, whole, weights)
        torch.testing.assert_close(grad[:, keep], gradient(expected, small, weights))
        rest = [v for v in range(64) if v not in keep]
        assert (grad[:, rest] == 0).all()


def test_tokens_outside_the_vocabulary_are_loud():
    student, teacher, _ = case(3, 8, dtype=torch.float32)
    log_prob = token_losses(student, teacher, torch.tensor([-1, 8, 2])).log_prob
    assert log_prob[:2].isnan().all()
    assert log_prob[2].isfinite()
    assert token_losses(student, None, torch.tensor([7, 7, 7]), mask_token_id=7).log_prob.max() < -9e4


def test_the_teacher_is_constant_and_nothing_is_written_to():
    student, teacher, tokens = case(3, 8, dtype=torch.float32)
    student.requires_grad_(), teacher.requires_grad_()
    copies = student.detach().clone(), teacher.detach().clone()
    sum(loss.sum() for loss in token_losses(student, teacher, tokens)).backward()
    assert teacher.grad is None
    assert torch.equal(student.detach(), copies[0])
    assert torch.equal(teacher.detach(), copies[1])


def test_strides_do_not_matter():
    student, teacher, tokens = case(5, 90, dtype=torch.float32)
    expected = torch.stack(token_losses(student[:, 2:80], teacher[:, 2:80], tokens % 78))
    a, b = student[:, 2:80].t().contiguous().t().requires_grad_(), teacher[:, 2:80].contiguous()
    losses = token_losses(a, b, tokens % 78)
    torch.testing.assert_close(torch.stack(losses), expected)
    assert gradient(losses, a, torch.ones(4, 5).unbind(0)).shape == a.shape
    empty = token_losses(torch.zeros(0, 4), torch.zeros(0, 4), tokens[:0])
    assert empty.reverse_kl.shape == (0,)


def test_errors_name_the_value_and_the_remedy():
    student, teacher, tokens = case(3, 8, dtype=torch.float32)
    for error, match, arguments, options in [
        (ValueError, r"teacher_logits_RV is \(3, 7\)", (student, teacher[:, 1:], tokens), {}),
        (ValueError, r"student_logits_RV has shape \(8,\)", (student[0], None, tokens), {}),
        (TypeError, "student_logits_RV is torch.int64", (student.long(), None, tokens), {}),
        (TypeError, "tokens_R is torch.int32", (student, None, tokens.int()), {}),
        (ValueError, r"tokens_R has shape \(2,\)", (student, None, tokens[:2]), {}),
        (ValueError, r"weight_R has shape \(1,\)", (student, None, tokens), {"weight_R": torch.ones(1)}),
        (ValueError, "mask_token_id is 8", (student, None, tokens), {"mask_token_id": 8}),
        (ValueError, "num_classes is 9", (student, None, tokens), {"num_classes": 9}),
        (ValueError, "backend is 'gpu'", (student, None, tokens), {"backend": "gpu"}),
    ]:
        with pytest.raises(error, match=match):
            token_losses(*arguments, **options)
