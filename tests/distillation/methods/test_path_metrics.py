"""Agreement of a batch's samples: pairs that were drawn independently given the prompt, and no others."""

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from discrete_distill import DiDiInstructConfig
from discrete_distill.distillation.methods import (
    PathKL,
    Regularization,
    TokenCredit,
    VocabularyCredit,
    agreement_metrics,
)
from discrete_distill.distillation.rollout import Rollout, TrajectoryStep
from tests.distillation.methods.chain_networks import LENGTH, PROCESS, seeded, small_method

MASK = PROCESS.mask_token_id


def rollout_of(sequences: Tensor, generated: Tensor | None = None, group_size: int = 1, **choices: Any) -> Rollout:
    batch = len(sequences)
    nothing = torch.empty(0, dtype=torch.long)
    step = TrajectoryStep(
        torch.full_like(sequences, MASK),
        sequences,
        torch.ones(batch),
        torch.zeros(batch),
        nothing,
        nothing.bool(),
        torch.empty(0, MASK + 1),
        MASK,
    )
    generated = torch.ones_like(sequences, dtype=torch.bool) if generated is None else generated
    return Rollout([step], generated, group_size, None, {}, **choices)


def by_hand(x: Tensor, generated: Tensor, may_compare: Any) -> float:
    """The definition, pair by pair."""
    equal = total = 0
    for i, j in combinations(range(len(x)), 2):
        if may_compare(i, j):
            both = generated[i] & generated[j]
            equal += int((x[i] == x[j])[both].sum())
            total += int(both.sum())
    return equal / total


def agreement(rollout: Rollout) -> float:
    return float(agreement_metrics(rollout)["sample_agreement"])


X = torch.randint(3, (12, 8), generator=seeded(0))


def test_rows_without_a_prompt_are_all_compared() -> None:
    everywhere = torch.ones_like(X, dtype=torch.bool)
    assert agreement(rollout_of(X, group_size=4)) == pytest.approx(by_hand(X, everywhere, lambda i, j: True))
    assert agreement(rollout_of(X[:1].expand(12, -1), group_size=4)) == 1.0


def test_rows_of_one_prompt_are_compared_where_they_were_generated() -> None:
    x, generated = X.clone(), torch.ones_like(X, dtype=torch.bool)
    for row in range(12):
        prompt = row // 4 % 2  # the first and the third group have the same one
        x[row, : 3 + prompt] = prompt
        generated[row, : 3 + prompt] = False
    expected = by_hand(x, generated, lambda i, j: i // 4 % 2 == j // 4 % 2)
    assert agreement(rollout_of(x, generated, group_size=4)) == pytest.approx(expected)
    # What all rows of a prompt are given would read as agreement.
    assert expected < by_hand(x, torch.ones_like(generated), lambda i, j: True)


def test_rows_that_share_a_path_are_not_compared_with_one_another() -> None:
    x = X[::4].repeat_interleave(4, dim=0)  # copies within each group
    across = by_hand(x, torch.ones_like(x, dtype=torch.bool), lambda i, j: i // 4 != j // 4)
    assert agreement(rollout_of(x, group_size=4, branching=True)) == pytest.approx(across)
    assert agreement(rollout_of(x, group_size=4)) > across
    single = agreement_metrics(rollout_of(x, group_size=12, branching=True))
    assert single == {}


@pytest.mark.parametrize("credit", [TokenCredit(), VocabularyCredit()])
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_the_students_loss_gives_the_metrics_of_collapse(credit: Any, kl: float) -> None:
    method = small_method(
        DiDiInstructConfig.recommended(
            advantages={"group_size": 4},
            paths={"num_steps": (3,)},
            credit=credit,
            regularization=Regularization(path_kl=PathKL(coefficient=kl)),
        )
    )
    rollout = method.rollout(8, LENGTH, generator=seeded(0))
    metrics = method.student_loss(rollout, generator=seeded(1)).metrics
    expected = by_hand(rollout.sequences, rollout.generation_mask, lambda i, j: True)
    assert float(metrics["sample_agreement"]) == pytest.approx(expected)
    entropy = next(step.losses().entropy for step in rollout.steps if len(step.revealed_tokens()))
    assert float(metrics["first_entropy"]) == pytest.approx(float(entropy.detach().mean()), rel=1e-5)
    assert ("teacher_divergence" in metrics) == (kl > 0.0)
    assert all(not value.requires_grad for value in metrics.values())


def test_the_size_of_the_log_ratio_is_the_median_of_its_absolute_value() -> None:
    from discrete_distill.distillation.divergence import SurrogateOutput
    from discrete_distill.distillation.methods.reward_metrics import reward_metrics

    ratios = torch.tensor([-3.0, 1.0, 2.0, -50.0])
    generated = torch.ones(4, 8, dtype=torch.bool)
    generated[3] = False  # a row that is all prompt has no sample
    out = SurrogateOutput(loss=torch.zeros(()), log_ratio=ratios, advantages=torch.zeros(4))
    estimator = small_method(
        DiDiInstructConfig.recommended(advantages={"group_size": 4}, regularization=Regularization())
    ).estimator
    assert estimator is not None
    found = reward_metrics(estimator, rollout_of(X[:4], generated), out)
    assert float(found["log_ratio_size"]) == 2.0
