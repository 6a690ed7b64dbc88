"""The score-function surrogate against the gradient of the exact integral KL: enumeration, fp64, no sampling."""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from enumerated_paths import (
    EnumeratedPaths,
    FixedTimes,
    coefficients,
    converged_auxiliary,
    corruptions_of,
    cosine,
    enumerate_paths,
    enumerate_remasking,
    expected_gradient,
    gauss_legendre,
    mask_patterns,
    random_distribution,
    random_student,
    relative_bias,
    seeded,
    student_distribution,
    with_states,
)
from torch import Tensor

from discrete_distill import exact
from discrete_distill.distillation.divergence import (
    AuxiliaryDenoiserLogRatio,
    DiscriminatorLogRatio,
    ExactLogRatio,
    LogRatio,
    ScoreFunctionIntegralKL,
    difference_of_logs,
    vocabulary_cost,
)
from discrete_distill.distillation.divergence.sample_scores import windowed_sum
from discrete_distill.distillation.paths import IntermediateStateMatcher
from discrete_distill.distillation.rewards import LogRatioReward, RunningMean
from discrete_distill.process import (
    BetaTime,
    ConstantWeight,
    CosineSchedule,
    ElboWeight,
    GeometricSchedule,
    LinearSchedule,
    LogLinearSchedule,
    MaskedDiffusion,
    PolynomialSchedule,
    StratifiedTime,
    TimeSample,
    UniformTime,
)

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "estimators.md"
SCHEDULES = [LogLinearSchedule(), LinearSchedule(), CosineSchedule(), PolynomialSchedule(2.0), GeometricSchedule()]
ONE_STEP, TWO_STEPS, THREE_STEPS = (1.0, 0.0), (1.0, 0.4, 0.0), (1.0, 0.7, 0.25, 0.0)
NODES = 12


class Bench:
    """A student with random tables, a teacher that is any distribution, and everything exact about them."""

    def __init__(self, vocab_size=2, length=2, times=TWO_STEPS, schedule=None, seed=0, mask=None, sharpness=1.0):
        mask = vocab_size if mask is None else mask
        self.process = MaskedDiffusion(mask, schedule if schedule is not None else LogLinearSchedule())
        self.times = times
        self.student = random_student(vocab_size, length, times, seed, mask)
        self.teacher_distribution = random_distribution(vocab_size, length, seed + 100, sharpness)
        self.distribution = student_distribution(self.student, self.process, times)
        self.paths: EnumeratedPaths = enumerate_paths(self.student, self.process, times)

    def log_ratio(self) -> ExactLogRatio:
        table = exact.log_ratio(self.distribution.detach(), self.teacher_distribution, self.process)
        return ExactLogRatio(self.process, lambda x_t, t: exact.look_up(table, x_t))

    def estimator(self, **choices) -> ScoreFunctionIntegralKL:
        return ScoreFunctionIntegralKL(self.process, self.log_ratio(), **{"baseline": "none", **choices})

    def expected(self, estimator: ScoreFunctionIntegralKL, group_size: int = 1, nodes: int = NODES) -> Tensor:
        """Expected gradient, with the time distribution replaced by its quadrature."""
        distribution = estimator.time_distribution
        points, widths = gauss_legendre(nodes, distribution.low, distribution.high)
        mass = list(zip(points, widths * distribution.density(points), strict=True))
        return expected_gradient(estimator, self.paths, self.student, self.process, mass, group_size)

    def truth(self, weight, low=0.0, high=1.0, nodes: int = NODES) -> Tensor:
        value = exact.integral_kl(
            self.distribution, self.teacher_distribution, self.process, weight, low=low, high=high, nodes=nodes
        )
        return torch.autograd.grad(value, self.student.logits, retain_graph=True)[0]


def assert_equal_to_1e8(actual: Tensor, truth: Tensor) -> None:
    assert float(truth.abs().max()) > 1e-3
    torch.testing.assert_close(actual, truth, atol=1e-8, rtol=0)


@pytest.mark.parametrize("times", [ONE_STEP, TWO_STEPS, THREE_STEPS])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_the_expected_gradient_is_that_of_the_integral_kl(times, schedule) -> None:
    bench = Bench(2, 3, times, schedule)
    assert_equal_to_1e8(bench.expected(bench.estimator()), bench.truth(ConstantWeight()))


@pytest.mark.parametrize(("vocab_size", "length", "mask"), [(3, 2, 3), (3, 2, 0), (2, 3, 1), (2, 1, 2)])
def test_it_is_for_other_vocabularies_lengths_and_mask_ids(vocab_size, length, mask) -> None:
    bench = Bench(vocab_size, length, TWO_STEPS, CosineSchedule(), seed=3, mask=mask)
    assert_equal_to_1e8(bench.expected(bench.estimator()), bench.truth(ConstantWeight()))


@pytest.mark.parametrize("weight", [ConstantWeight(3.0), ElboWeight(LogLinearSchedule(), 0.1, 10.0)])
@pytest.mark.parametrize(
    "distribution",
    [UniformTime(0.02, 0.98), StratifiedTime(0.1, 1.0), BetaTime(0.02, 0.98), BetaTime(0.0, 1.0, a=3.0, b=1.5)],
)
def test_importance_weights_remove_the_time_distribution(weight, distribution) -> None:
    bench = Bench(2, 2, THREE_STEPS, seed=1)
    estimator = bench.estimator(weight=weight, time_distribution=distribution)
    assert_equal_to_1e8(
        bench.expected(estimator, nodes=24), bench.truth(weight, distribution.low, distribution.high, nodes=24)
    )


@pytest.mark.parametrize("distribution", [UniformTime(0.02, 0.98), BetaTime(0.02, 0.98)])
def test_without_them_the_objective_is_weighted_by_the_time_distribution(distribution) -> None:
    bench = Bench(2, 2, seed=2)
    omega = ElboWeight(bench.process.schedule, 0.1, 10.0)
    estimator = bench.estimator(weight=omega, time_distribution=distribution, importance_weight=False)
    truth = bench.truth(lambda t: omega(t) * distribution.density(t), distribution.low, distribution.high, nodes=24)
    assert_equal_to_1e8(bench.expected(estimator, nodes=24), truth)


def test_coupled_time_is_the_gradient_of_each_paths_own_objective() -> None:
    """``integral omega(tau) KL(q_tau(., tau) || q_teacher(., tau)) d tau``: the student's distribution depends on tau
    too."""
    actual, truth = 0.0, 0.0
    for tau, mass in zip(*gauss_legendre(4), strict=True):
        bench = Bench(2, 2, (1.0, float(tau.float()), 0.0))
        assert bench.paths.rollout.tau.tolist() == pytest.approx([float(tau)] * 16, abs=1e-6)
        time = bench.paths.rollout.tau[0].double()
        estimator = bench.estimator(weight=ElboWeight(bench.process.schedule, 0.1, 10.0))
        actual = actual + expected_gradient(estimator, bench.paths, bench.student, bench.process, [(time, mass)])
        value = (
            mass
            * estimator.weight(time)
            * exact.kl_at_time(bench.distribution, bench.teacher_distribution, bench.process, time)
        )
        truth = truth + torch.autograd.grad(value, bench.student.logits)[0]
    assert_equal_to_1e8(actual, truth)


@pytest.mark.parametrize(("group_size", "length"), [(2, 2), (3, 1), (4, 1)])
def test_leave_one_out_is_unbiased(group_size, length) -> None:
    bench = Bench(2, length, ONE_STEP if group_size == 2 else TWO_STEPS)
    estimator = bench.estimator(baseline="leave_one_out", weight=ElboWeight(bench.process.schedule, 0.1, 10.0))
    truth = bench.truth(estimator.weight, nodes=16)
    assert_equal_to_1e8(bench.expected(estimator, group_size, nodes=16), truth)


def test_a_running_mean_is_unbiased() -> None:
    """Whatever earlier batches left in it: the expected gradient does not see it."""
    bench = Bench(2, 2, TWO_STEPS)
    baseline = RunningMean()
    baseline.update(torch.full((3,), 1.7, dtype=torch.float64))
    with patch.object(RunningMean, "update"):  # every enumerated batch is the next one
        actual = bench.expected(bench.estimator(baseline=baseline), 1)
    assert_equal_to_1e8(actual, bench.truth(ConstantWeight()))


@pytest.mark.parametrize("group_size", [2, 4])
def test_the_group_mean_shrinks_the_gradient_by_one_over_its_size(group_size) -> None:
    bench = Bench(2, 1, TWO_STEPS)
    actual = bench.expected(bench.estimator(baseline="group"), group_size)
    assert_equal_to_1e8(actual, (1.0 - 1.0 / group_size) * bench.truth(ConstantWeight()))


def test_the_batch_mean_shrinks_it_by_one_over_the_batch() -> None:
    """Pairs of rows, each a group of one: enumerated one batch at a time, since a batch shares its mean."""
    bench = Bench(2, 1, ONE_STEP)
    estimator, x, t = bench.estimator(baseline="batch"), bench.paths.rollout.sequences, torch.tensor(0.3).double()
    number, states, probability = corruptions_of(x, bench.process, t)
    probability = probability * bench.paths.probability[number]
    credit_NL = torch.zeros(x.shape, dtype=torch.float64)
    for pair in torch.cartesian_prod(*[torch.arange(len(number))] * 2):
        with with_states(states[pair]):
            each = coefficients(estimator, x[number[pair]], t.expand(2)) / 2
        credit_NL.index_add_(0, number[pair], each * probability[pair].prod())
    surrogate = (credit_NL * bench.paths.rollout.token_log_probs()).sum()
    actual = torch.autograd.grad(surrogate, bench.student.logits, retain_graph=True)[0]
    value = exact.kl_at_time(bench.distribution, bench.teacher_distribution, bench.process, t)
    assert_equal_to_1e8(actual, 0.5 * torch.autograd.grad(value, bench.student.logits)[0])


def printed_biases() -> dict[str, tuple[float, float]]:
    """The table of docs/reference/estimators.md: name of a choice, its relative bias, and its cosine with the truth."""
    rows = re.findall(r"^ *\| ([^|]+) \| ([\d.]+) \| (-?[\d.]+) \|$", PAGE.read_text(), flags=re.MULTILINE)
    return {name.strip(): (float(bias), float(cosine)) for name, bias, cosine in rows}


BIASED = {
    "group mean, G = 2": (2, {"baseline": "group"}),
    "group mean, G = 4": (4, {"baseline": "group"}),
    "leave-one-out over group std, G = 2": (2, {"baseline": "leave_one_out", "scale": "group"}),
    "leave-one-out over group std, G = 4": (4, {"baseline": "leave_one_out", "scale": "group"}),
    "the paper's: mean, std, clips, G = 4": (
        4,
        {"baseline": "group", "scale": "group", "reward": LogRatioReward(8.0), "advantage_clip": 3.0},
    ),
    "log-ratio clipped at 0.5 nats": (1, {"reward": LogRatioReward(0.5)}),
    "advantage clipped at 0.5, leave-one-out, G = 2": (2, {"baseline": "leave_one_out", "advantage_clip": 0.5}),
}


@pytest.mark.parametrize("name", BIASED)
def test_biased_choices_are_biased_by_the_size_that_the_page_states(name) -> None:
    bench = Bench(2, 2, ONE_STEP)
    group_size, choices = BIASED[name]
    truth = bench.truth(ConstantWeight(), nodes=6)
    actual = bench.expected(bench.estimator(**choices), group_size, nodes=6)
    bias, direction = relative_bias(actual, truth), cosine(actual, truth)
    assert bias > 0.05
    assert (bias, direction) == pytest.approx(printed_biases()[name], abs=6e-3)


def test_the_batch_std_scales_the_gradient_of_a_large_batch_and_keeps_its_direction() -> None:
    """Over many draws the batch's own deviation is a constant; only its length is then wrong."""
    bench = Bench(2, 2, ONE_STEP)
    x, t = bench.paths.rollout.sequences, torch.tensor(0.3).double()
    number, states, probability = corruptions_of(x, bench.process, t)
    copies = (4000 * probability * bench.paths.probability[number]).round().long()
    rows = torch.arange(len(number)).repeat_interleave(copies)
    with with_states(states[rows]):
        estimator = bench.estimator(baseline="batch", scale="batch")
        each = coefficients(estimator, x[number[rows]], t.expand(len(rows)))
    surrogate = (each * bench.paths.rollout.token_log_probs()[number[rows]]).sum() / len(rows)
    actual = torch.autograd.grad(surrogate, bench.student.logits, retain_graph=True)[0]
    value = exact.kl_at_time(bench.distribution, bench.teacher_distribution, bench.process, t)
    truth = torch.autograd.grad(value, bench.student.logits)[0]
    assert cosine(actual, truth) > 0.999
    assert relative_bias(actual, truth) > 0.5


def test_token_credit_with_a_ratio_of_whole_states_sees_states_without_a_mask_alone() -> None:
    """The ratio at a hidden position does not know its token, and the score has mean zero. Where nothing is hidden it
    is that of the sample: ``int alpha ** L dt`` of the gradient of the KL of clean samples."""
    bench = Bench(2, 2, ONE_STEP)
    kl = (bench.distribution * (bench.distribution.log() - bench.teacher_distribution.log())).sum()
    points, widths = gauss_legendre(NODES)
    share = (widths * bench.process.visible_probability(points) ** 2).sum()
    truth = share * torch.autograd.grad(kl, bench.student.logits, retain_graph=True)[0]
    assert_equal_to_1e8(bench.expected(bench.estimator(credit="token")), truth)


@pytest.mark.parametrize("times", [ONE_STEP, TWO_STEPS])
def test_an_optimal_discriminator_gives_the_gradient_of_the_integral_kl(times) -> None:
    """Its logit is ``log q / p`` at every position of every state, with masks or without."""
    bench = Bench(2, 3, times)
    table = exact.log_ratio(bench.distribution.detach(), bench.teacher_distribution, bench.process)
    optimal = DiscriminatorLogRatio(
        bench.process, lambda x_t, t: exact.look_up(table, x_t)[:, None].expand(x_t.shape).clone()
    )
    actual = bench.expected(replace(bench.estimator(), log_ratio=optimal))
    truth = bench.truth(ConstantWeight())
    assert_equal_to_1e8(actual, truth)
    assert float(actual.norm() / truth.norm()) == pytest.approx(1.0, abs=1e-8)


def auxiliary_ratio(bench: Bench) -> AuxiliaryDenoiserLogRatio:
    mask = bench.process.mask_token_id
    distributions = bench.distribution.detach(), bench.teacher_distribution
    return AuxiliaryDenoiserLogRatio(
        bench.process, *(exact.DistributionDenoiser(distribution, mask) for distribution in distributions)
    )


def gradient_at(bench: Bench, t: Tensor) -> Tensor:
    value = exact.kl_at_time(bench.distribution, bench.teacher_distribution, bench.process, t)
    return torch.autograd.grad(value, bench.student.logits, retain_graph=True)[0]


def test_token_credit_with_a_ratio_of_tokens_is_unbiased_for_one_step_and_biased_for_two() -> None:
    t = torch.tensor(0.6).double()
    for times, limits in ((ONE_STEP, (0.0, 1e-10)), (TWO_STEPS, (0.1, 1.0))):
        bench = Bench(2, 2, times)
        alpha = bench.process.visible_probability(t)
        estimator = replace(bench.estimator(credit="token"), log_ratio=auxiliary_ratio(bench))
        actual = expected_gradient(estimator, bench.paths, bench.student, bench.process, [(t, alpha / (1.0 - alpha))])
        assert limits[0] <= relative_bias(actual, gradient_at(bench, t)) <= limits[1]


def by_count_gradient(bench: Bench, **choices) -> Tensor:
    """Expected gradient with the auxiliary's ratio, over every number and every set of masked positions."""
    estimator = ScoreFunctionIntegralKL(bench.process, auxiliary_ratio(bench), by="count", baseline="none", **choices)
    x, patterns = bench.paths.rollout.sequences, mask_patterns(3)[1:]
    number = torch.arange(len(x)).repeat_interleave(len(patterns))
    hidden = patterns.repeat(len(x), 1)
    count = hidden.sum(1)
    probability = torch.tensor([1 / 9, 1 / 9, 1 / 3], dtype=torch.float64)[count - 1]
    assert float(probability[: len(patterns)].sum()) == pytest.approx(1.0)

    def dictated(self: MaskedDiffusion, x: Tensor, asked: Tensor, **_: object) -> Tensor:
        assert asked.tolist() == count.tolist()
        return torch.where(hidden, self.mask_token_id, x)

    levels = (count.double() - 0.5) / 3
    with (
        patch.object(MaskedDiffusion, "corrupt_by_count", dictated),
        patch.object(ScoreFunctionIntegralKL, "_levels", lambda *_: levels[None]),
    ):
        each = coefficients(estimator, x[number], torch.zeros(len(number)))
    weighted = each * (probability * bench.paths.probability[number])[:, None]
    surrogate = (weighted * bench.paths.rollout.token_log_probs()[number]).sum()
    return torch.autograd.grad(surrogate, bench.student.logits, retain_graph=True)[0]


@pytest.mark.parametrize("times", [ONE_STEP, TWO_STEPS])
def test_by_count_with_perfect_denoisers_it_is_the_gradient_of_the_kl_of_clean_samples(times) -> None:
    bench = Bench(2, 3, times, seed=4)
    truth = torch.autograd.grad(
        exact.kl(bench.distribution, bench.teacher_distribution), bench.student.logits, retain_graph=True
    )[0]
    torch.testing.assert_close(by_count_gradient(bench), truth, atol=1e-8, rtol=0)


@pytest.mark.parametrize("times", [ONE_STEP, TWO_STEPS])
@pytest.mark.parametrize("deal", [(0, 1, 1), (0, 1, 2), (1, 0, 1)])
def test_in_parts_it_is_the_gradient_of_the_kl_of_each_part_given_the_others(times, deal) -> None:
    """``sum over parts S, i in S, of E_q KL(q(x_i | x outside S) || p(x_i | x outside S))``, for every deal."""
    bench, parts = Bench(2, 3, times, seed=5), torch.tensor(deal)
    estimator = ScoreFunctionIntegralKL(
        bench.process, auxiliary_ratio(bench), by="parts", corruptions=int(parts.max()) + 1, baseline="none"
    )
    x = bench.paths.rollout.sequences
    with patch.object(MaskedDiffusion, "draw_parts", lambda *_, **__: parts.expand(len(x), -1)):
        each = coefficients(estimator, x, torch.zeros(len(x)))
    surrogate = (each * bench.paths.probability[:, None] * bench.paths.rollout.token_log_probs()).sum()
    (actual,) = torch.autograd.grad(surrogate, bench.student.logits, retain_graph=True)

    divergence = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        hidden_others = [j for j in range(3) if j != i and parts[j] == parts[i]]
        q, p = bench.distribution, bench.teacher_distribution
        if hidden_others:
            q, p = q.sum(hidden_others, keepdim=True), p.sum(hidden_others, keepdim=True)
        divergence = divergence + (q * ((q / q.sum(i, keepdim=True)).log() - (p / p.sum(i, keepdim=True)).log())).sum()
    (truth,) = torch.autograd.grad(divergence, bench.student.logits, retain_graph=True)
    assert_equal_to_1e8(actual, truth)


def test_a_log_ratio_that_is_already_there_gives_the_same_estimate() -> None:
    bench = Bench(2, 3, TWO_STEPS)
    estimator = bench.estimator(weight=ElboWeight(bench.process.schedule, 0.1, 10.0))
    x, t = bench.paths.rollout.sequences, torch.full((len(bench.paths.rollout.sequences),), 0.4).double()
    x_t = bench.process.corrupt(x, t, generator=seeded(0))
    leaf = torch.randn(x.shape, dtype=torch.float64, generator=seeded(1))
    with with_states(x_t):
        asked = estimator(x, leaf, t=t)
    given = estimator.from_log_ratio(estimator.log_ratio(x_t, t), t, leaf)
    torch.testing.assert_close(given.loss, asked.loss)
    torch.testing.assert_close(given.log_ratio, asked.log_ratio)
    with pytest.raises(ValueError, match="group_size 5 does not divide"):
        estimator.from_log_ratio(estimator.log_ratio(x_t, t), t, leaf, group_size=5)


@pytest.mark.parametrize("by", ["count", "parts"])
def test_shared_masks_are_those_of_the_whole_group(by) -> None:
    process, seen = MaskedDiffusion(5), []

    def watched(x_t: Tensor, t: Tensor, **_: object) -> LogRatio:
        seen.append(x_t == 5)
        return LogRatio(torch.zeros(x_t.shape), torch.zeros(len(x_t)))

    estimator = ScoreFunctionIntegralKL(process, watched, by=by, corruptions=3, shared_masks=True)
    x = torch.randint(5, (8, 12), generator=seeded(0))
    estimator(x, torch.zeros(x.shape), group_size=4, generator=seeded(1))
    for hidden in seen:
        assert bool((hidden.view(2, 4, 12) == hidden.view(2, 4, 12)[:, :1]).all())
        assert not bool((hidden[0] == hidden[4]).all())
    if by == "parts":
        assert bool((torch.stack(seen).sum(0) == 1).all())


def test_token_credit_is_biased_by_its_window_as_the_page_states_and_a_whole_window_by_nothing() -> None:
    bench = Bench(2, 3, TWO_STEPS, seed=6)
    truth = torch.autograd.grad(
        exact.kl(bench.distribution, bench.teacher_distribution), bench.student.logits, retain_graph=True
    )[0]
    for window in (0, 1):
        actual = by_count_gradient(bench, credit="token", window=window)
        measured = relative_bias(actual, truth), cosine(actual, truth)
        assert measured == pytest.approx(printed_biases()[f"token credit, window {window}"], abs=6e-3)
        assert measured[0] > 0.05
    torch.testing.assert_close(by_count_gradient(bench, credit="token", window=2), truth, atol=1e-8, rtol=0)


@pytest.mark.parametrize("window", [0, 1, 3, 9])
def test_a_window_sums_what_is_at_most_that_far_away(window) -> None:
    values = torch.randn(3, 6, dtype=torch.float64, generator=seeded(0))
    near = (torch.arange(6)[:, None] - torch.arange(6)).abs() <= window
    torch.testing.assert_close(windowed_sum(values, window), values @ near.double())
    behind = near & (torch.arange(6)[:, None] >= torch.arange(6))  # of values in rows, at positions in columns
    torch.testing.assert_close(windowed_sum(values, window, 0), values @ behind.double())


@pytest.mark.parametrize("baseline", ["group", "leave_one_out", "batch", "none"])
def test_a_whole_window_is_sequence_credit_for_drawn_samples_too(baseline) -> None:
    bench = Bench(2, 3, TWO_STEPS)
    x = bench.paths.rollout.sequences[:32]
    each = [
        coefficients(
            lambda *a, **k: ScoreFunctionIntegralKL(
                bench.process,
                auxiliary_ratio(bench),
                by="count",
                baseline=baseline,
                **choices,  # noqa: B023
            )(*a, generator=seeded(3), **k),
            x,
            torch.zeros(32),
            group_size=4,
        )
        for choices in ({"credit": "sequence"}, {"credit": "token", "window": 2})
    ]
    torch.testing.assert_close(each[0], each[1])
    assert float(each[0].abs().max()) > 1e-3


@dataclass(frozen=True)
class DictatedTimes(UniformTime):
    """Hands out the given times, one batch after another."""

    batches: tuple[Tensor, ...] = ()
    served: list[int] = field(default_factory=list)

    def sample(self, n, *, device="cpu", generator=None) -> TimeSample:
        t = self.batches[len(self.served) % len(self.batches)]
        self.served.append(n)
        assert len(t) == n
        return TimeSample(t, torch.ones_like(t))


def test_several_corruptions_at_different_times_stay_unbiased() -> None:
    """Weight and log-ratio of a corruption go together; averaging them apart would not give the integral KL."""
    bench, omega = Bench(2, 1, ONE_STEP), ElboWeight(LogLinearSchedule(), 0.1, 10.0)
    x = bench.paths.rollout.sequences
    times, mass = gauss_legendre(3)
    each_time = [corruptions_of(x, bench.process, t) for t in times]
    t_all = times.repeat_interleave(len(each_time[0][0]))
    number, states, probability = (torch.cat(parts) for parts in zip(*each_time, strict=True))
    probability = probability * mass.repeat_interleave(len(each_time[0][0]))
    first, second = torch.cartesian_prod(*[torch.arange(len(number))] * 2).unbind(1)
    same_sample = number[first] == number[second]
    first, second = first[same_sample], second[same_sample]
    distribution = DictatedTimes(batches=(t_all[first], t_all[second]))
    estimator = bench.estimator(weight=omega, time_distribution=distribution, corruptions=2)
    served = iter((states[first], states[second]))
    leaf = torch.zeros(len(first), 1, dtype=torch.float64, requires_grad=True)
    with patch.object(MaskedDiffusion, "corrupt", lambda *_, **__: next(served)):
        loss = estimator(x[number[first]], leaf).loss
    each = torch.autograd.grad(loss, leaf)[0] * len(first)
    weighted = each * (probability[first] * probability[second] * bench.paths.probability[number[first]])[:, None]
    surrogate = (weighted * bench.paths.rollout.token_log_probs()[number[first]]).sum()
    actual = torch.autograd.grad(surrogate, bench.student.logits, retain_graph=True)[0]
    truth = sum(m * omega(t) * gradient_at(bench, t) for t, m in zip(times, mass, strict=True))
    assert_equal_to_1e8(actual, truth)


@pytest.mark.parametrize(("by", "corruptions"), [("time", 1), ("time", 2), ("count", 2)])
def test_monte_carlo_is_within_five_standard_errors_which_shrink_as_they_should(by, corruptions) -> None:
    """Everything drawn: paths by the matcher, times and masks by the estimator, groups of four."""
    bench = Bench(2, 2, TWO_STEPS, seed=5)
    estimator = ScoreFunctionIntegralKL(
        bench.process,
        bench.log_ratio() if by == "time" else auxiliary_ratio(bench),
        time_distribution=BetaTime(0.02, 0.98, a=1.0, b=1.5),
        weight=ElboWeight(bench.process.schedule, 0.1, 10.0),
        corruptions=corruptions,
        by=by,
    )
    matcher = IntermediateStateMatcher(
        bench.process, num_steps=(2,), time_distribution=FixedTimes(interior=(0.4,)), times_per="batch"
    )
    generator, errors = seeded(11), []
    for batch in (64, 576):
        draws = []
        for _ in range(80):
            rollout = matcher(bench.student, (batch, 2), group_size=4, generator=generator)
            loss = estimator(rollout.sequences, rollout.token_log_probs(), group_size=4, generator=generator).loss
            draws.append(torch.autograd.grad(loss, bench.student.logits)[0].flatten())
        draws_RN = torch.stack(draws)
        errors.append(draws_RN.std(0).norm() / math.sqrt(len(draws)))
        if by == "time":
            truth = bench.truth(estimator.weight, 0.02, 0.98, nodes=64).flatten()
        else:
            truth = torch.autograd.grad(
                exact.kl(bench.distribution, bench.teacher_distribution), bench.student.logits, retain_graph=True
            )[0].flatten()
        moving = draws_RN.std(0) > 0
        assert int(moving.sum()) == 16
        distance = (draws_RN.mean(0) - truth).abs() / (draws_RN.std(0) / math.sqrt(len(draws)))
        assert float(distance[moving].max()) < 5.0
        assert float(truth[~moving].abs().sum()) == 0.0
    assert float(errors[0] / errors[1]) == pytest.approx(3.0, rel=0.15)


def test_a_group_shares_its_times_and_its_counts() -> None:
    seen: list[Tensor] = []

    def ratio(x_t, t, *, x_0=None, generation_mask=None, s=None, model_kwargs=None):
        seen.append(torch.stack((t.double(), (x_t == 2).sum(1).double())))
        return LogRatio(torch.zeros(x_t.shape), torch.zeros(len(x_t)))

    x = torch.zeros(8, 6, dtype=torch.long)
    for by in ("time", "count"):
        estimator = ScoreFunctionIntegralKL(MaskedDiffusion(2), ratio, by=by, corruptions=3)
        estimator(x, torch.zeros(8, 6), group_size=4, generator=seeded(0))
    assert len(seen) == 6
    for t, count in seen:
        assert len(t.view(2, 4).unique(dim=1)[0]) == 1
        assert len(t.unique()) == 2 or by == "count"
        del count
    for _, count in seen[3:]:
        assert len(count.view(2, 4).unique(dim=1)[0]) == 1
    counts = torch.stack([count[::4] for _, count in seen[3:]]).sort(0).values
    assert bool((counts[0] <= 2).all())
    assert bool((counts[2] >= 5).all())


def test_immovable_positions_are_never_corrupted() -> None:
    generation_mask = torch.tensor([[False, True, True, False]]).expand(16, -1)

    def ratio(x_t, t, *, x_0=None, generation_mask=None, s=None, model_kwargs=None):
        assert bool((x_t[:, [0, 3]] == 0).all())
        assert bool((x_t[:, 1:3] == 2).any())
        return LogRatio(torch.zeros(x_t.shape), torch.zeros(len(x_t)))

    for by in ("time", "count"):
        estimator = ScoreFunctionIntegralKL(MaskedDiffusion(2), ratio, by=by, baseline="none")
        estimator(
            torch.zeros(16, 4, dtype=torch.long),
            torch.zeros(16, 4),
            generation_mask=generation_mask,
            generator=seeded(0),
        )


def test_bad_arguments_are_refused() -> None:
    bench = Bench(2, 1, ONE_STEP)
    with pytest.raises(ValueError, match="corruptions must be at least 1, got 0"):
        bench.estimator(corruptions=0)
    with pytest.raises(ValueError, match=r"credit is .*, got 'word'"):
        bench.estimator(credit="word")
    with pytest.raises(ValueError, match="window must not be negative, got -1"):
        bench.estimator(window=-1)
    with pytest.raises(ValueError, match=r"by is .*, got 'luck'"):
        bench.estimator(by="luck")
    with pytest.raises(ValueError, match="group_size 3 does not divide the batch of 4 samples"):
        bench.estimator()(torch.zeros(4, 1, dtype=torch.long), torch.zeros(4, 1), group_size=3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_credit_over_the_vocabulary_is_exact_for_one_step(schedule) -> None:
    bench = Bench(3, 3, ONE_STEP, schedule, seed=6)
    x, t = bench.paths.rollout.sequences, torch.tensor(0.45).double()
    number, states, probability = corruptions_of(x, bench.process, t)
    alpha = bench.process.visible_probability(t)
    weight_N = probability * bench.paths.probability[number] * alpha / (1.0 - alpha)
    ratio = exact.token_log_ratio(bench.distribution.detach(), bench.teacher_distribution, bench.process, states)
    hidden = bench.process.is_masked(states)
    start = torch.full_like(x[:1], bench.process.mask_token_id)
    log_probs_LV = bench.process.masked_log_probs(bench.student(start, torch.ones(1))[0])
    row, position = hidden.nonzero().unbind(1)
    surrogate = (weight_N[row] * vocabulary_cost(log_probs_LV[position], ratio[row, position])).sum()
    actual = torch.autograd.grad(surrogate, bench.student.logits, retain_graph=True)[0]
    assert_equal_to_1e8(actual, gradient_at(bench, t))


def vocabulary_gradient(bench: Bench, hidden: float) -> Tensor:
    """Expected gradient of credit over the vocabulary along paths, with a converged auxiliary."""
    teacher = exact.DistributionDenoiser(bench.teacher_distribution, bench.process.mask_token_id)
    paths = enumerate_paths(bench.student, bench.process, bench.times, positions="masked")
    total = torch.zeros((), dtype=torch.float64)
    for index in range(len(bench.times) - 1):
        remaskings = enumerate_remasking(paths, bench.process, index, hidden=hidden)
        assert float(remaskings.probability.sum()) == pytest.approx(1.0, abs=1e-9)
        remasked, owner = remaskings.remasked, remaskings.remasked.positions // remaskings.remasked.x_t.shape[1]
        teacher_NV = bench.process.masked_log_probs(teacher(remasked.x_t).flatten(0, 1)[remasked.positions])
        ratio_NV = difference_of_logs(converged_auxiliary(remaskings), teacher_NV)
        weight_N = remasked.weight * remaskings.probability[owner]
        total = total + (weight_N * vocabulary_cost(remaskings.student_NV, ratio_NV)).sum()
    return torch.autograd.grad(total, bench.student.logits)[0]


@pytest.mark.parametrize("hidden", [0.25, 0.5, 0.8])
def test_along_one_step_it_is_the_gradient_of_the_kl_where_that_fraction_is_hidden(hidden) -> None:
    bench = Bench(2, 3, ONE_STEP, LinearSchedule(), seed=7)
    actual = vocabulary_gradient(bench, hidden)
    truth = gradient_at(bench, torch.tensor(hidden, dtype=torch.float64)) / (1.0 - hidden)
    torch.testing.assert_close(actual, truth, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("times", "low", "high"), [(TWO_STEPS, 0.87, 0.96), (THREE_STEPS, 0.75, 0.85)])
def test_along_more_steps_it_is_biased_as_the_page_states_and_still_goes_down(times, low, high) -> None:
    """It ignores what a token does to the steps after its own."""
    printed = f"between {low:.2f} and {high:.2f}"
    assert printed in PAGE.read_text()
    for seed in range(3):
        bench = Bench(2, 3, times, seed=seed)
        actual = vocabulary_gradient(bench, 0.5)
        truth = torch.autograd.grad(exact.kl(bench.distribution, bench.teacher_distribution), bench.student.logits)[0]
        assert low <= cosine(actual, truth) <= high


def test_impossible_words_cost_nothing_and_carry_no_gradient() -> None:
    log_probs = torch.tensor([[0.25, 0.75, 0.0]]).log().requires_grad_()
    ratio = torch.tensor([[1.0, 3.0, float("inf")]], requires_grad=True)
    value = 2.0 * vocabulary_cost(log_probs, ratio).sum()
    assert value.item() == pytest.approx(2.0 * (0.25 * 1.0 + 0.75 * 3.0))
    value.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [pytest.approx([0.5, 4.5, 0.0])]
    assert ratio.grad is None
