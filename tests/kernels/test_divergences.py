"""Divergences between rows: against plain sums in double precision, and the properties that define them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from discrete_distill.kernels import linear_token_losses, token_divergence, token_losses
from discrete_distill.kernels.reference_losses import LOGIT_FLOOR

INF = float("inf")
KINDS = ["forward", "reverse", "jeffreys", "js", "tv"]


def plain(p: list[float], q: list[float], kind: str, beta: float) -> float:
    """``p`` student, ``q`` teacher; word by word."""
    kl = lambda a, b: sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0.0)  # noqa: E731
    if kind == "tv":
        return 0.5 * sum(abs(x - y) for x, y in zip(p, q, strict=True))
    if kind == "js":
        middle = [beta * y + (1.0 - beta) * x for x, y in zip(p, q, strict=True)]
        return beta * kl(q, middle) + (1.0 - beta) * kl(p, middle)
    share = {"forward": 1.0, "reverse": 0.0, "jeffreys": beta}[kind]
    return (share and share * kl(q, p)) + ((1.0 - share) and (1.0 - share) * kl(p, q))


rows = st.lists(st.floats(-6.0, 6.0), min_size=4, max_size=4)
kinds = st.sampled_from(KINDS)


@given(rows, rows, kinds, st.floats(0.0, 1.0))
def test_equals_the_plain_sum_in_double_precision(student, teacher, kind, beta) -> None:
    student_V, teacher_V = torch.tensor(student).double(), torch.tensor(teacher).double()
    expected = plain(student_V.softmax(0).tolist(), teacher_V.softmax(0).tolist(), kind, beta)
    actual = token_divergence(student_V, teacher_V, kind=kind, beta=beta)
    assert actual.dtype == torch.float64
    assert float(actual) == pytest.approx(expected, abs=1e-12)
    single = token_divergence(student_V.float(), teacher_V.float(), kind=kind, beta=beta)
    assert float(single) == pytest.approx(expected, abs=2e-5)


@given(rows, rows, kinds)
def test_is_not_negative_and_bounded_where_it_should_be(student, teacher, kind) -> None:
    value = float(token_divergence(torch.tensor(student).double(), torch.tensor(teacher).double(), kind=kind))
    assert value >= -1e-14
    assert value <= {"js": math.log(2.0), "tv": 1.0}.get(kind, math.inf) + 1e-12


@given(rows, rows, st.sampled_from(["jeffreys", "js", "tv"]))
def test_is_symmetric_at_one_half(student, teacher, kind) -> None:
    a, b = torch.tensor(student).double(), torch.tensor(teacher).double()
    assert float(token_divergence(a, b, kind=kind)) == pytest.approx(
        float(token_divergence(b, a, kind=kind)), abs=1e-12
    )


@given(rows, kinds, st.floats(-5.0, 5.0), st.floats(0.1, 3.0))
def test_is_zero_for_equal_distributions_and_only_for_them(logits, kind, shift, push) -> None:
    row = torch.tensor(logits).double()
    assert float(token_divergence(row, row + shift, kind=kind)) == pytest.approx(0.0, abs=1e-12)
    pushed = row.clone()
    pushed[0] += push
    assert float(token_divergence(row, pushed, kind=kind)) > 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_reverse_exchange_their_arguments(kind) -> None:
    a, b = (torch.tensor(row).double() for row in ([1.0, 0.0, -2.0], [0.5, 2.0, 0.0]))
    swapped = {"forward": "reverse", "reverse": "forward"}.get(kind, kind)
    torch.testing.assert_close(token_divergence(a, b, kind=kind), token_divergence(b, a, kind=swapped))


def test_forward_means_teacher_against_student() -> None:
    teacher, student = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    value = token_divergence(student.log(), teacher.log(), kind="forward")
    assert float(value) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_with_finite_gradients_at_impossible_tokens(kind, dtype) -> None:
    inf = INF
    student = torch.tensor([[0.0, 1.0, -inf], [0.0, -inf, -inf], [3.0, 1.0, 2.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -inf], [-inf, 0.0, -inf], [-inf, 0.0, 1.0]], dtype=dtype, requires_grad=True)
    value = token_divergence(student, teacher, kind=kind)
    assert bool(value.isfinite().all())
    value.sum().backward()
    for logits in (student, teacher):
        assert logits.grad is not None
        assert bool(logits.grad.isfinite().all())
    expected = {"js": math.log(2.0), "tv": 1.0}.get(kind, 1e5)
    assert value[1].item() == pytest.approx(expected, rel=1e-5)


def floored(logits: Tensor) -> Tensor:
    """Log-probabilities in which impossible tokens have logits of -1e5, that are constants."""
    possible = logits > LOGIT_FLOOR
    return torch.where(possible, torch.where(possible, logits, 0.0), LOGIT_FLOOR).log_softmax(-1)


def plain_of_logits(student: Tensor, teacher: Tensor, kind: str, beta: float) -> Tensor:
    """Plain sums of floored log-probabilities, differentiated by autograd."""
    log_p, log_q = floored(student), floored(teacher)
    p, q = log_p.exp(), log_q.exp()
    if kind == "tv":
        return 0.5 * (p - q).abs().sum(-1)
    if kind == "js":
        middle = beta * q + (1.0 - beta) * p
        log_middle = torch.where(middle > 0, middle, 1.0).log()
        return (beta * q * (log_q - log_middle) + (1.0 - beta) * p * (log_p - log_middle)).sum(-1)
    forward, reverse = (q * (log_q - log_p)).sum(-1), (p * (log_p - log_q)).sum(-1)
    share = {"forward": 1.0, "reverse": 0.0}.get(kind, beta)
    return share * forward + (1.0 - share) * reverse


def every_pair_of_supports(size: int = 3) -> tuple[Tensor, Tensor]:
    """A row for each pair of non-empty sets of possible tokens, student and teacher, fp64."""
    supports = torch.cartesian_prod(*[torch.tensor([False, True])] * size)[1:]
    logits = torch.randn(2, len(supports) ** 2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    student = logits[0].masked_fill(~supports.repeat_interleave(len(supports), 0), -INF)
    return student, logits[1].masked_fill(~supports.repeat(len(supports), 1), -INF)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [None, 0, 2, 4])
def test_every_pair_of_supports_has_the_values_and_gradients_of_the_plain_sum(kind, mask) -> None:
    """For every place and logit of the mask, and with a padded class."""
    rows = every_pair_of_supports(4)
    plain_pair = [row.clone().requires_grad_() for row in rows]
    expected = plain_of_logits(*plain_pair, kind, 0.3)
    weights = torch.randn(len(expected), dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    expected_gradients = torch.autograd.grad(expected @ weights, plain_pair)
    keep = [place for place in range(5) if place != mask][:4]
    pair = []
    for number, row in enumerate(rows):
        wide = torch.full((len(row), 6), 50.0 + number, dtype=torch.float64)
        wide[:, keep] = row
        pair.append(wide.requires_grad_())
    actual = token_divergence(*pair, kind=kind, beta=0.3, mask_token_id=mask, num_classes=4 + (mask is not None))
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(actual @ weights, pair), expected_gradients, strict=True):
        # A floored logarithm of 1e5 is held to 1e5 * 2^-53 in each of the sums.
        torch.testing.assert_close(ours[:, keep], theirs, atol=1e-9, rtol=1e-9)
        rest = [place for place in range(6) if place not in keep]
        assert bool((ours[:, rest] == 0).all())


def test_all_that_computes_a_divergence_computes_the_same_at_every_pair_of_supports() -> None:
    student, teacher = every_pair_of_supports()
    tokens = torch.zeros(len(student), dtype=torch.long)
    finite = [row.masked_fill(row == -INF, 2.0 * LOGIT_FLOOR) for row in (student, teacher)]
    head = torch.eye(3, dtype=torch.float64)
    for losses in (
        token_losses(student, teacher, tokens),
        linear_token_losses(finite[0], head, tokens, teacher_features_RD=finite[1], teacher_weight_VD=head),
    ):
        assert losses.forward_kl is not None
        assert losses.reverse_kl is not None
        assert torch.equal(losses.forward_kl, token_divergence(student, teacher, kind="forward"))
        assert torch.equal(losses.reverse_kl, token_divergence(student, teacher, kind="reverse"))
        p = student.softmax(-1)
        torch.testing.assert_close(losses.entropy, torch.special.entr(p).sum(-1), atol=1e-12, rtol=0)


def test_log_probabilities_and_raw_logits_have_one_divergence() -> None:
    student, teacher = every_pair_of_supports()
    for kind in KINDS:
        torch.testing.assert_close(
            token_divergence(student.log_softmax(-1), teacher.log_softmax(-1), kind=kind),
            token_divergence(student, teacher, kind=kind),
            atol=1e-12,
            rtol=1e-4,
        )


@given(rows, rows, kinds, st.floats(0.0, 1.0), st.integers(0, 2**31))
def test_gradients_in_both_arguments_are_those_of_the_plain_sum(student, teacher, kind, beta, seed) -> None:
    ruled_out = torch.rand(2, 4, generator=torch.Generator().manual_seed(seed)) < 0.2
    pair = [torch.tensor(row).double() for row in (student, teacher)]
    if kind == "tv" and bool((pair[0].softmax(0) - pair[1].softmax(0)).abs().min() < 1e-9):
        return  # A kink.
    pair = [row.masked_fill(out, -INF).requires_grad_() for row, out in zip(pair, ruled_out, strict=True)]
    actual = torch.autograd.grad(token_divergence(*pair, kind=kind, beta=beta), pair)
    expected = torch.autograd.grad(plain_of_logits(*pair, kind, beta), pair)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jeffreys", "js"])
def test_gradients_are_those_of_finite_differences(kind) -> None:
    generator = torch.Generator().manual_seed(0)
    pair = [torch.randn(2, 5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(lambda a, b: token_divergence(a, b, kind=kind, beta=0.3), pair)


def test_total_variation_has_the_gradient_of_finite_differences_away_from_its_kinks() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(2, 5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: token_divergence(a, b, kind="tv"), (a, b))


def test_half_precision_is_computed_in_single() -> None:
    a, b = torch.randn(7, 9, generator=torch.Generator().manual_seed(2)).bfloat16(), torch.zeros(7, 9).bfloat16()
    actual = token_divergence(a, b, kind="reverse")
    assert actual.dtype == torch.float32
    assert actual.shape == (7,)
    torch.testing.assert_close(actual, token_divergence(a.float(), b.float(), kind="reverse"))


@pytest.mark.parametrize("kind", KINDS)
def test_stays_finite_when_denormals_are_flushed(kind) -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormals")
    try:
        a, b = Tensor([[0.0, -300.0, -300.0]]), Tensor([[-300.0, 0.0, -300.0]])
        assert bool(token_divergence(a, b, kind=kind).isfinite().all())
    finally:
        torch.set_flush_denormal(False)


def test_bad_arguments_are_refused() -> None:
    row = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="got 'cosine'"):
        token_divergence(row, row, kind="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"beta must be .*1 or less.*got 1.5"):
        token_divergence(row, row, beta=1.5)
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3,\)"):
        token_divergence(row, row[0])
    with pytest.raises(ValueError, match="mask_token_id is 3"):
        token_divergence(row, row, mask_token_id=3)
    with pytest.raises(ValueError, match="num_classes is 4"):
        token_divergence(row, row, num_classes=4)
    with pytest.raises(ValueError, match="backend is 'gpu'"):
        token_divergence(row, row, backend="gpu")  # type: ignore[arg-type]
