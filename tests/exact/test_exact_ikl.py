import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laboratory import SCHEDULES, all_tokens, random_distribution, seeded
from scipy import integrate

from discrete_distill import exact
from discrete_distill.process import ConstantWeight, ElboWeight, LinearSchedule, MaskedDiffusion

S, T = random_distribution(3, 3, 0), random_distribution(3, 3, 1)
seeds = st.integers(0, 10_000)
sizes = st.sampled_from([(2, 3), (3, 3), (4, 2), (2, 5)])


def kl_through_the_forward_distribution(process, t):
    return float(exact.kl(exact.forward_distribution(S, process, t), exact.forward_distribution(T, process, t)))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mask", [0, 3])
def test_kl_at_a_time_is_that_of_the_forward_distributions(schedule, mask):
    process, times = MaskedDiffusion(mask, schedule), [0.0, 0.1, 0.5, 0.9, 1.0]
    actual = exact.kl_at_time(S, T, process, torch.tensor(times, dtype=torch.float64))
    assert actual.tolist() == pytest.approx([kl_through_the_forward_distribution(process, t) for t in times], abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("elbo", [False, True])
def test_integral_kl_equals_adaptive_quadrature(schedule, elbo):
    process = MaskedDiffusion(3, schedule)
    weight = ElboWeight(schedule) if elbo else ConstantWeight(2.0)

    def integrand(t):
        omega = float(weight(torch.tensor(t, dtype=torch.float64)))
        return omega * kl_through_the_forward_distribution(process, t)

    expected = integrate.quad(integrand, 0.05, 0.95, epsabs=1e-9)[0]
    actual = exact.integral_kl(S, T, process, weight, low=0.05, high=0.95)
    assert float(actual) == pytest.approx(expected, rel=1e-7)


@settings(max_examples=30, deadline=None)
@given(sizes, seeds, st.sampled_from(SCHEDULES))
def test_zero_iff_equal_and_positive_otherwise(size, seed, schedule):
    process = MaskedDiffusion(size[0], schedule)
    student, teacher = random_distribution(*size, seed), random_distribution(*size, seed + 1)
    assert float(exact.integral_kl(student, teacher, process, ConstantWeight())) > 1e-6
    assert float(exact.integral_kl(student, student, process, ConstantWeight())) == pytest.approx(0, abs=1e-12)
    half_way = 0.5 * (student + teacher)
    part, whole = (
        exact.integral_kl(distribution, teacher, process, ConstantWeight()) for distribution in (half_way, student)
    )
    assert float(part) < 0.5 * float(whole) + 1e-12


@settings(max_examples=30, deadline=None)
@given(sizes, seeds, st.data())
def test_invariant_under_relabelling_of_words_and_positions(size, seed, data):
    vocab_size, length = size
    process, weight = MaskedDiffusion(vocab_size), ElboWeight(low=0.1, high=10.0)
    distributions = [random_distribution(*size, seed), random_distribution(*size, seed + 1)]
    words = torch.tensor(data.draw(st.permutations(range(vocab_size))))
    positions = data.draw(st.permutations(range(length)))
    renamed = distributions
    for axis in range(length):
        renamed = [distribution.index_select(axis, words) for distribution in renamed]
    renamed = [distribution.permute(positions) for distribution in renamed]
    before, after = (exact.integral_kl(*pair, process, weight) for pair in (distributions, renamed))
    assert float(after) == pytest.approx(float(before), rel=1e-10)


@settings(max_examples=30, deadline=None)
@given(sizes, seeds, st.sampled_from(SCHEDULES))
def test_kl_never_grows_with_time_nor_with_fewer_positions(size, seed, schedule):
    student, teacher = random_distribution(*size, seed), random_distribution(*size, seed + 1)
    times = torch.linspace(0, 1, 21)
    values = exact.kl_at_time(student, teacher, MaskedDiffusion(size[0], schedule), times)
    assert bool((values.diff() <= 1e-12).all())
    by_count = exact.subset_kl(student, teacher)
    assert bool((by_count.diff() >= -1e-12).all())
    assert float(by_count[-1]) == pytest.approx(float(exact.kl(student, teacher)))
    assert float(by_count[0]) == pytest.approx(0.0, abs=1e-12)


def test_few_nodes_are_exact_for_a_polynomial():
    process = MaskedDiffusion(3, LinearSchedule())
    few, many = (exact.integral_kl(S, T, process, ConstantWeight(), nodes=n) for n in (3, 200))
    assert float(few) == pytest.approx(float(many), rel=1e-12)
    assert float(many) == pytest.approx(float(exact.subset_kl(S, T).mean()), rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES[:4])
def test_a_divergent_integral_is_refused_and_its_remedies_work(schedule):
    process = MaskedDiffusion(3, schedule)
    with pytest.raises(ValueError, match=r"\[0\.0, 1\.0\].*low.*clip"):
        exact.integral_kl(S, T, process, ElboWeight(schedule))
    assert float(exact.integral_kl(S, T, process, ElboWeight(schedule), low=1e-3)) > 0
    assert float(exact.integral_kl(S, T, process, ElboWeight(schedule, 0.1, 10.0))) > 0


@pytest.mark.parametrize(
    ("kwargs", "value"),
    [
        ({"low": 0.5, "high": 0.5}, r"0\.5.*0\.5"),
        ({"low": -0.1}, r"-0\.1"),
        ({"high": 1.1}, r"1\.1"),
        ({"nodes": 0}, r"nodes.*\b0\b"),
    ],
)
def test_bad_intervals_are_refused(kwargs, value):
    with pytest.raises(ValueError, match=value):
        exact.integral_kl(S, T, MaskedDiffusion(3), ConstantWeight(), **kwargs)


def test_times_outside_are_refused():
    with pytest.raises(ValueError, match=r"1\.1"):
        exact.kl_at_time(S, T, MaskedDiffusion(3), torch.tensor([0.5, 1.1]))


def test_infinite_where_the_teacher_lacks_support_but_zero_at_full_mask():
    teacher = torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=torch.float64)
    student = torch.full((2, 2), 0.25, dtype=torch.float64)
    values = exact.kl_at_time(student, teacher, MaskedDiffusion(2), torch.tensor([0.5, 1.0]))
    assert values.tolist() == [float("inf"), 0.0]


def test_gradient_is_that_of_finite_differences():
    logits = torch.randn(27, dtype=torch.float64, generator=seeded(0), requires_grad=True)

    def objective(values):
        student = values.softmax(0).reshape(3, 3, 3)
        return exact.integral_kl(student, T, MaskedDiffusion(3), ElboWeight(low=0.1, high=10.0))

    assert torch.autograd.gradcheck(objective, (logits,))


@pytest.mark.parametrize("t", [0.2, 0.8])
def test_score_function_identity(t):
    """``grad KL_t = E_x E_{x_t | x} [R(x_t) grad log p(x)]``, every expectation a sum."""
    process = MaskedDiffusion(3)
    logits = torch.randn(27, dtype=torch.float64, generator=seeded(0), requires_grad=True)
    student = logits.softmax(0).reshape(3, 3, 3)
    ratio = exact.log_ratio(student.detach(), T, process)
    cost = torch.zeros(27, dtype=torch.float64)
    for number in range(27):
        only = torch.zeros(27, dtype=torch.float64)
        only[number] = 1.0
        cost[number] = (exact.forward_distribution(only.reshape(3, 3, 3), process, t) * ratio).sum()
    surrogate = (student.detach().flatten() * cost * student.flatten().log()).sum()
    expected = torch.autograd.grad(surrogate, logits)[0]
    actual = torch.autograd.grad(exact.kl_at_time(logits.softmax(0).reshape(3, 3, 3), T, process, t), logits)[0]
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("mask", [0, 2, 3])
@pytest.mark.parametrize("t", [0.1, 0.7])
def test_log_ratio_is_that_of_the_forward_distributions_at_any_time(mask, t):
    process = MaskedDiffusion(mask)
    student, teacher = exact.forward_distribution(S, process, t), exact.forward_distribution(T, process, t)
    torch.testing.assert_close(exact.log_ratio(S, T, process), student.log() - teacher.log())


def test_log_ratio_says_who_lacks_support():
    student = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    teacher = torch.tensor([0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    ratio = exact.log_ratio(student, teacher, MaskedDiffusion(4))
    assert ratio[0] == 0.0
    assert ratio[4] == 0.0
    assert ratio[1] == float("inf")
    assert ratio[2] == -float("inf")
    assert bool(ratio[3].isnan())


@pytest.mark.parametrize("mask", [1, 3])
def test_discriminator_logits_are_the_stationary_point_of_cross_entropy(mask):
    process, x_t = MaskedDiffusion(mask), all_tokens(4, 3)
    logits = exact.discriminator_logits(S, T, process, x_t).requires_grad_()
    student = exact.forward_distribution(S, process, 0.6).flatten()[:, None]
    teacher = exact.forward_distribution(T, process, 0.6).flatten()[:, None]
    masked = process.is_masked(x_t)
    masked = masked | ~masked.any(1, keepdim=True)  # all positions of a state without a mask
    softplus = torch.nn.functional.softplus
    loss = ((student * softplus(-logits) + teacher * softplus(logits)) * masked).sum()
    assert float(torch.autograd.grad(loss, logits)[0].abs().max()) < 1e-12
    assert bool((logits[~masked] == 0).all())
    assert bool((logits[masked].abs() > 0.1).any())


@pytest.mark.parametrize("mask", [0, 3])
def test_token_log_ratio_is_the_change_of_the_sequence_log_ratio(mask):
    process, x_t = MaskedDiffusion(mask), all_tokens(4, 3)
    ratio = exact.log_ratio(S, T, process)
    actual = exact.token_log_ratio(S, T, process, x_t)
    for i in range(3):
        for word in exact.tokens_of_words(torch.arange(3), mask).tolist():
            filled = x_t.clone()
            filled[:, i] = word
            change = exact.look_up(ratio, filled) - exact.look_up(ratio, x_t)
            expected = torch.where(process.is_masked(x_t)[:, i], change, 0.0)
            torch.testing.assert_close(actual[:, i, word], expected, atol=1e-12, rtol=0)
    assert bool((actual[..., mask] == 0).all())
