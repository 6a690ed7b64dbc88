"""The Triton kernels in Triton's interpreter, against the torch reference. Run by test_triton.py in a process
of its own.

TRITON_INTERPRET must be set before triton is imported, and would then hold for every other test.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from gumbel import gumbel_kernel
from kernel_distributions import chi_square, plain_losses

from discrete_distill.kernels import philox_4x32, sample_rows, token_divergence, token_losses
from discrete_distill.kernels.triton_philox import triton_philox_4x32

INF = float("inf")
SIZES = [1, 127, 1000, 1024, 1025, 4096, 5000]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@triton.jit
def philox_kernel(seed, candidates, rows, steps, out, N: tl.constexpr):
    i = tl.arange(0, N)
    words = tl.philox(
        tl.load(seed),
        tl.load(candidates + i).to(tl.uint32),
        tl.load(rows + i).to(tl.uint32),
        tl.load(steps + i).to(tl.uint32),
        (i * 0 + 3).to(tl.uint32),
    )
    for k in tl.static_range(4):
        tl.store(out + k * N + i, words[k].to(tl.int64))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
def test_philox_is_bit_identical(seed):
    counters = torch.randint(-(2**40), 2**40, (3, 128), generator=torch.Generator().manual_seed(1))
    out = torch.zeros(4, 128, dtype=torch.int64)
    philox_kernel[(1,)](torch.tensor([seed]), *counters, out, N=128)
    expected = torch.stack(philox_4x32(seed, *counters, 3))
    assert torch.equal(out, expected)
    three = torch.tensor(3)
    assert torch.equal(triton_philox_4x32(torch.tensor(seed), [*counters, three]), expected)
    column, few = counters[1][:7, None], counters[0][:5]
    broadcast = triton_philox_4x32(torch.tensor(seed), [few, column, three, three])
    assert torch.equal(broadcast, torch.stack(philox_4x32(seed, few, column, 3, 3)))


def both(logits, **options):
    options = {"seed": 2**63 + 5, "positions_R": torch.arange(len(logits)) * 7 + 2**31, "step": 3, **options}
    reference = sample_rows(logits, backend="torch", **options)
    kernel = sample_rows(logits, backend="triton", **options)
    assert torch.equal(kernel.tokens, reference.tokens)
    torch.testing.assert_close(kernel.log_probs, reference.log_probs, atol=1e-5, rtol=0, equal_nan=True)
    if reference.entropy is not None:
        torch.testing.assert_close(kernel.entropy, reference.entropy, atol=1e-5, rtol=0, equal_nan=True)
    return kernel


def normal(rows, vocab_size, dtype=torch.float32, scale=3.0):
    return (torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * scale).to(dtype)


@pytest.mark.parametrize("vocab_size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_bit_identical(vocab_size, dtype):
    padded = normal(3, vocab_size + 7, dtype)
    both(padded[:, :vocab_size])
    both(padded[:, 3 : vocab_size + 3], return_entropy=True, temperature=0.7, num_candidates=2)


@pytest.mark.parametrize("vocab_size", SIZES[1:])
@pytest.mark.parametrize("mask", ["first", "inside", "last"])
def test_masks_tilts_and_inactive_rows_are_bit_identical(vocab_size, mask):
    logits = normal(3, vocab_size)
    both(
        logits.t().contiguous().t(),
        mask_token_id={"first": 0, "inside": vocab_size // 2, "last": vocab_size - 1}[mask],
        tilt=normal(3, vocab_size + 1, torch.bfloat16, scale=1.0)[:, 1:],
        tilt_scale=torch.tensor(3.0),
        temperature=1.3,
        num_candidates=3,
        active_R=torch.tensor([True, False, True]),
        return_entropy=True,
    )


@pytest.mark.parametrize("vocab_size", [5, 2500])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_extreme_logits_are_bit_identical(vocab_size, offset):
    logits = normal(6, vocab_size)
    logits[0] = 0.0  # equal
    logits[1], logits[1, vocab_size - 1] = -INF, 1.0  # one finite
    logits[2, ::2] = -INF
    logits[3] = logits[3].sign() * 1e4
    logits[4, : vocab_size // 2] = torch.finfo(torch.float32).min
    kernel = both(logits + offset, return_entropy=True, num_candidates=2, temperature=0.8)
    assert (kernel.tokens >= 0).all()
    assert kernel.entropy.isfinite().all()


def test_rows_with_nothing_to_draw():
    logits = normal(4, 1200)
    logits[0], logits[1, 77], logits[2, 1100] = -INF, float("nan"), INF
    kernel = both(logits)
    assert kernel.tokens[:3].flatten().tolist() == [-1, -1, -1]
    assert kernel.log_probs[:3].isnan().all()
    assert both(logits[:0], return_entropy=True).tokens.shape == (0, 1)


def test_an_independent_kernel_has_the_distribution_of_the_sampler():
    """Lanewise Gumbel-max and the inverse CDF share nothing but Philox, and draw from one softmax."""
    logits = torch.tensor([[0.5, -0.2, 1.2, -INF, 0.0, -1.0]]).expand(256, -1).contiguous()
    distribution = torch.softmax(logits[0].double(), -1)
    gumbel = torch.zeros(256, dtype=torch.int64)
    gumbel_kernel[(256,)](logits, gumbel, torch.tensor([9]), 0, 6, 6, Q=4)
    ours = sample_rows(logits, seed=3, positions_R=torch.arange(256), step=0, num_candidates=64, backend="torch").tokens
    for tokens in (gumbel, ours.flatten()):
        statistic, critical = chi_square(torch.bincount(tokens, minlength=6), distribution)
        assert statistic < critical


def losses_and_gradient(student, teacher, tokens, dtype=None, **options):
    student = (student if dtype is None else student.to(dtype)).detach().requires_grad_()
    teacher = teacher if teacher is None or dtype is None else teacher.to(dtype)
    losses = [loss for loss in token_losses(student, teacher, tokens, **options) if loss is not None]
    upstream = torch.tensor([0.3, -0.7, 1.1, 0.9]).unbind(0)
    rows = torch.arange(1, len(tokens) + 1)
    total = sum((loss * weight * rows).sum() for loss, weight in zip(losses, upstream, strict=False))
    return torch.stack(losses).detach().double(), torch.autograd.grad(total, student)[0].double()


def check(student, teacher, tokens, tolerance=1e-5, **options):
    """The kernel in fp32 against the reference in fp64."""
    exact = losses_and_gradient(student, teacher, tokens, torch.float64, backend="torch", **options)
    kernel = losses_and_gradient(student, teacher, tokens, backend="triton", **options)
    assert kernel[0].isfinite().all()
    torch.testing.assert_close(kernel[0], exact[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kernel[1], exact[1], atol=tolerance, rtol=tolerance)
    return kernel


def pair(rows, vocab_size, dtype=torch.float32, teacher_dtype=torch.float32):
    tokens = torch.randint(0, vocab_size, (rows,), generator=torch.Generator().manual_seed(2))
    return (
        normal(rows, vocab_size, dtype),
        normal(rows, 2 * vocab_size, teacher_dtype)[:, vocab_size:],
        tokens,
    )


@pytest.mark.parametrize("vocab_size", SIZES)
def test_losses_and_gradients(vocab_size):
    student, teacher, tokens = pair(4, vocab_size)
    check(student, teacher, tokens)
    check(student, None, tokens, weight_R=torch.tensor([1.0, 0.0, 2.0, -1.0]))


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.bfloat16])
def test_losses_of_half_precision_logits(dtype, teacher_dtype):
    student, teacher, tokens = pair(4, 1500, dtype, teacher_dtype)
    check(student, teacher, tokens, tolerance=4e-2 if dtype == torch.bfloat16 else 4e-3)


@pytest.mark.parametrize(
    ("mask", "classes"), [(0, None), (600, None), (1299, None), (None, 1100), (1023, 1024), (5, 1025)]
)
def test_losses_with_mask_and_padding(mask, classes):
    student, teacher, tokens = pair(4, 1300)
    tokens = tokens % 1000 + 6
    tokens[tokens == mask] += 1
    if classes is not None:
        student[:, classes:] = float("nan")
    _, grad = check(student, teacher, tokens, mask_token_id=mask, num_classes=classes)
    if mask is not None:
        assert (grad[:, mask] == 0).all()
    if classes is not None:
        assert (grad[:, classes:] == 0).all()


@pytest.mark.parametrize("vocab_size", [6, 2500])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_losses_of_extreme_logits(vocab_size, offset):
    student, teacher, tokens = pair(6, vocab_size)
    student[0] = teacher[0] = 0.0
    student[1], student[1, 0], teacher[1], teacher[1, 0] = -INF, 1.0, -INF, 1.0
    student[2, ::2] = teacher[2, ::2] = -INF
    student[3, 1::2] = -INF
    teacher[4, ::3] = -INF
    tokens[1], tokens[2], tokens[3] = 0, 1, 0
    check(student + offset, teacher + offset, tokens, tolerance=3e-5)


@pytest.mark.parametrize("mask", [None, 1, 3])
def test_divergences_of_every_pair_of_supports(mask):
    """Values and gradients of both models, with the tokens that only one of them rules out."""
    supports = torch.cartesian_prod(*[torch.tensor([False, True])] * 3)[1:]
    keep = [place for place in range(4) if place != mask][:3]
    pair = torch.full((2, len(supports) ** 2, 3 if mask is None else 4), 7.0)
    logits = normal(2 * len(supports) ** 2, 3).view(2, -1, 3)
    pair[0][:, keep] = logits[0].masked_fill(~supports.repeat_interleave(len(supports), 0), -INF)
    pair[1][:, keep] = logits[1].masked_fill(~supports.repeat(len(supports), 1), -INF)
    for kind in ("forward", "reverse", "jeffreys", "js"):
        results = []
        for backend, dtype in (("torch", torch.float64), ("triton", torch.float32)):
            both = [logits.to(dtype).requires_grad_() for logits in pair]
            value = token_divergence(*both, kind=kind, beta=0.3, mask_token_id=mask, backend=backend)
            results.append([each.double() for each in (value.detach(), *torch.autograd.grad(value.sum(), both))])
        tolerance = 1e-5 + 1e-6 * results[0][0]  # fp32 holds a cost of 1e5 nats to 0.1 after a few sums.
        for ours, theirs in zip(results[1], results[0], strict=True):
            assert ((ours - theirs).abs() <= tolerance.view(-1, *[1] * (ours.dim() - 1))).all()


def test_losses_of_logits_of_plus_and_minus_1e4():
    """Log-ratios reach 2e4, and fp32 holds them to 1e-3: the gradient is compared at that scale."""
    student, teacher, tokens = pair(4, 1200)
    student, teacher = student.sign() * 1e4, teacher.sign() * 1e4
    _, grad = check(student, teacher, tokens, tolerance=2e4 * 1e-5)
    assert grad.isfinite().all()


def test_skipped_rows_are_not_read_and_nan_is_seen():
    student, teacher, tokens = pair(4, 1100)
    student[0], teacher[0], tokens[0] = float("nan"), INF, -100
    losses, grad = check(student, teacher, tokens, weight_R=torch.tensor([0, 1, 1, 1]))
    assert (losses[:, 0] == 0).all()
    assert (grad[0] == 0).all()
    student[2, 1030] = float("nan")
    seen = token_losses(student, teacher, tokens, backend="triton")
    assert seen.entropy[2].isnan()
    outside = token_losses(student, teacher, torch.tensor([1, -1, 0, 1100]), backend="triton").log_prob
    assert outside[[1, 3]].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("teacher_is_padded", [True, False])
def test_losses_do_not_depend_on_where_rows_start(dtype, teacher_is_padded):
    """Rows at multiples of 16 bytes are read by another tile than rows that start anywhere."""
    student, teacher, tokens = pair(4, 5003, dtype, dtype)
    padded = [torch.full((4, 5056), float("nan"), dtype=dtype)[:, :5003].copy_(each) for each in (student, teacher)]
    assert padded[0].stride(0) == 5056
    other = padded[1] if teacher_is_padded else teacher
    tolerance = 4e-2 if dtype == torch.bfloat16 else 1e-5
    losses, grad = check(student, teacher, tokens, tolerance)
    ours, our_grad = check(padded[0], other, tokens, tolerance)
    torch.testing.assert_close(ours, losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_grad, grad, rtol=1e-2, atol=1e-5)


def test_no_worse_than_the_naive_chain_in_the_same_precision():
    student, teacher, tokens = pair(4, 3000, torch.bfloat16, torch.bfloat16)
    exact = torch.stack(plain_losses(student.double(), teacher.double(), tokens))
    kernel = torch.stack(token_losses(student, teacher, tokens, backend="triton")).double()
    naive = torch.stack(plain_losses(student, teacher, tokens)).double()
    assert (kernel - exact).abs().max() < 1e-4 * (naive - exact).abs().max()


def test_opcheck_with_the_kernels():
    from discrete_distill.kernels.losses import _token_losses_op
    from discrete_distill.kernels.sampling import _sample_rows_op

    zero = torch.tensor(0)
    arguments = torch.randn(2, 9), zero, torch.arange(2), zero, 1, 1.0, 8, None, None, None, True, "triton"
    torch.library.opcheck(_sample_rows_op, arguments)
    student = torch.randn(2, 9, requires_grad=True)
    torch.library.opcheck(_token_losses_op, (student, None, torch.tensor([0, 1]), None, 8, 9, "triton"))
