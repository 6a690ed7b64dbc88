"""The three estimators of the log-ratio against the laboratory."""

import math

import pytest
import torch
from enumerated_paths import mask_patterns, random_distribution, seeded
from torch import Tensor

from discrete_distill import exact
from discrete_distill.distillation.divergence import (
    AuxiliaryDenoiserLogRatio,
    DiscriminatorLogRatio,
    ExactLogRatio,
    difference_of_logs,
)
from discrete_distill.process import MaskedDiffusion

PROCESS = MaskedDiffusion(3)
STUDENT, TEACHER = random_distribution(3, 3, 0), random_distribution(3, 3, 1)
STATES = exact.enumerate_sequences(4, 3)


def auxiliary() -> AuxiliaryDenoiserLogRatio:
    return AuxiliaryDenoiserLogRatio(
        PROCESS, exact.DistributionDenoiser(STUDENT, 3), exact.DistributionDenoiser(TEACHER, 3)
    )


def test_the_exact_ratio_stands_at_masked_positions_as_the_optimal_discriminators_logit() -> None:
    table = exact.log_ratio(STUDENT, TEACHER, PROCESS)
    out = ExactLogRatio(PROCESS, lambda x_t, t: exact.look_up(table, x_t))(STATES, torch.ones(64))
    torch.testing.assert_close(out.per_sequence, exact.look_up(table, STATES))
    expected = exact.discriminator_logits(STUDENT, TEACHER, PROCESS, STATES)
    torch.testing.assert_close(out.per_position, expected)


def test_the_optimal_discriminator_gives_the_exact_ratio_of_every_state() -> None:
    """States without a mask, the 27 samples, among them; nothing is read beside the masks of the others."""
    some = PROCESS.is_masked(STATES).any(1)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return exact.discriminator_logits(STUDENT, TEACHER, PROCESS, x_t) + 7.0 * ((x_t != 3) & some[:, None])

    out = DiscriminatorLogRatio(PROCESS, network)(STATES, torch.ones(64))
    truth = exact.look_up(exact.log_ratio(STUDENT, TEACHER, PROCESS), STATES)
    torch.testing.assert_close(out.per_sequence, truth)
    assert int((~some).sum()) == 27
    assert bool((out.per_position[(STATES != 3) & some[:, None]] == 0).all())


def test_immovable_masks_are_not_counted() -> None:
    x_t, generation_mask = torch.tensor([[3, 3, 1]]), torch.tensor([[True, False, True]])
    network = lambda x_t, t: torch.tensor([[2.0, 10.0, 5.0]])  # noqa: E731
    out = DiscriminatorLogRatio(PROCESS, network)(x_t, torch.ones(1), generation_mask=generation_mask)
    assert out.per_position.tolist() == [[2.0, 0.0, 0.0]]
    assert out.per_sequence.tolist() == [2.0]
    judged = auxiliary()(
        x_t, torch.ones(1), x_0=torch.tensor([[0, 2, 1]]), generation_mask=generation_mask
    ).per_position
    assert bool(((judged != 0) == torch.tensor([[True, False, False]])).all())
    clean = DiscriminatorLogRatio(PROCESS, network)(
        torch.tensor([[0, 3, 1]]), torch.ones(1), generation_mask=generation_mask
    )
    assert clean.per_position.tolist() == [[2.0, 0.0, 5.0]]
    assert clean.per_sequence.tolist() == [3.5]
    exactly = ExactLogRatio(PROCESS, lambda x_t, t: torch.tensor([4.0]))(
        x_t, torch.ones(1), generation_mask=generation_mask
    )
    assert exactly.per_position.tolist() == [[4.0, 0.0, 0.0]]


def test_the_auxiliary_scores_clean_tokens_by_the_ratio_of_conditionals() -> None:
    x = exact.enumerate_sequences(3, 3)
    for hidden in mask_patterns(3):
        x_t = torch.where(hidden, 3, x)
        out = auxiliary()(x_t, torch.ones(27), x_0=x)
        table = exact.token_log_ratio(STUDENT, TEACHER, PROCESS, x_t).gather(2, x[..., None]).squeeze(2)
        torch.testing.assert_close(out.per_position, table * hidden)
        torch.testing.assert_close(out.per_sequence, (table * hidden).sum(1))


def test_perfect_denoisers_averaged_over_counts_give_the_log_ratio_of_the_sample() -> None:
    """Exactly, by enumeration of all sets of masked positions: k uniform, a uniform set of k, weight n / k."""
    x = exact.enumerate_sequences(3, 3)
    total = torch.zeros(27, dtype=torch.float64)
    for hidden in mask_patterns(3)[1:]:
        count = int(hidden.sum())
        probability = 1.0 / (3 * math.comb(3, count))
        ratio = auxiliary()(torch.where(hidden, 3, x), torch.ones(27), x_0=x).per_sequence
        total += probability * (3 / count) * ratio
    torch.testing.assert_close(total, STUDENT.log().flatten() - TEACHER.log().flatten())


def test_the_librarys_own_draws_by_count_average_to_it_within_five_standard_errors() -> None:
    x = exact.enumerate_sequences(3, 3).repeat_interleave(400, 0)
    x_t, t, weight = PROCESS.draw_corruption(x, by="count", generator=seeded(3))
    estimates = (weight * auxiliary()(x_t, t, x_0=x).per_sequence).view(27, 400)
    truth = STUDENT.log().flatten() - TEACHER.log().flatten()
    distance = (estimates.mean(1) - truth) / (estimates.std(1) / 20.0)
    assert float(distance.abs().max()) < 5.0
    assert float(estimates.std(1).max()) > 0.1


def test_the_auxiliary_asks_for_the_clean_tokens() -> None:
    with pytest.raises(ValueError, match="pass x_0="):
        auxiliary()(STATES, torch.ones(64))


def test_the_difference_of_logs_is_zero_where_neither_has_mass() -> None:
    log = lambda *values: Tensor(values).log()  # noqa: E731
    assert difference_of_logs(log(0.0, 1.0, 0.0), log(0.0, 1.0, 1.0)).tolist() == [0.0, 0.0, float("-inf")]
    assert difference_of_logs(log(1.0), log(0.0)).tolist() == [float("inf")]
